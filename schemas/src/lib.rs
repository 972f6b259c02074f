//! The contract between Flowscribe's exporter and its analyzer.
//!
//! ```text
//! exporter-ebpf ──event──► exporter ──FlowRecord, InventoryRecord, HealthRecord──► capture ──► analyzer
//!                             └───────────────────── index ─────────────────────────────────────┘
//! ```
//!
//! Without features this crate is the kernel event ABI ([`event`]) and the list of the kernel programs ([`programs`]), and
//! `no_std`. Feature `arrow` adds the three
//! datasets, each defined by one table in [`flow`], [`inventory`] and [`health`], from which the Arrow schema, the
//! conversion to and from record batches and this crate's README come. Feature `capture` adds the directory layout,
//! its writer and its reader; feature `index` the time-aware index from addresses to their owners; feature `kubernetes`
//! what the API server tells of the inventory, which agent and analyzer watch in the same way; feature `ship` delivery
//! to collectors and object stores, and the live stream; feature `listen` how senders and listeners are let in. Rows as OpenTelemetry log records are in
//! [`otlp`].
//!
//! There is nothing about eBPF loaders or query engines in here.
#![cfg_attr(not(feature = "arrow"), no_std)]

pub mod event;
pub mod programs;

#[cfg(feature = "capture")]
pub mod capture;
#[cfg(feature = "arrow")]
pub mod flow;
#[cfg(feature = "arrow")]
pub mod health;
#[cfg(feature = "index")]
pub mod index;
#[cfg(feature = "arrow")]
pub mod inventory;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "listen")]
pub mod listen;
#[cfg(feature = "ship")]
pub mod live;
#[cfg(feature = "arrow")]
pub mod otlp;
#[cfg(feature = "arrow")]
pub mod rollup;
#[cfg(feature = "ship")]
pub mod ship;
#[cfg(feature = "arrow")]
pub mod table;

/// Schema version, `major.minor`: a new column raises the minor, a changed meaning the major. Readers accept every
/// minor of the majors they know.
#[cfg(feature = "arrow")]
pub const SCHEMA_VERSION: (u32, u32) = (1, 0);
