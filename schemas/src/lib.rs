//! The contract between Flowscribe's exporter and its analyzer.
//!
//! ```text
//! exporter-ebpf ──event──► exporter ──FlowRecord, InventoryRecord, HealthRecord──► capture ──► analyzer
//!                             └───────────────────── index ─────────────────────────────────────┘
//! ```
//!
//! Without features this crate is the kernel event ABI ([`event`]) and the list of the kernel programs ([`programs`]), and
//! `no_std`. Feature `std` adds the three datasets, each defined by one table in [`flow`], [`inventory`] and [`health`],
//! from which the Arrow schema, the conversion to and from record batches, the OpenTelemetry attributes ([`attribute`]) and
//! this crate's README come; what sums flows up ([`rollup`]); the directory of files, its writer and its reader
//! ([`capture`]); and the time-aware index from addresses to their owners ([`index`]).
//!
//! There is nothing about eBPF loaders, query engines, networks or clusters in here: crate `delivery` brings rows to
//! collectors and object stores, crate `kubernetes` watches the API.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod event;
pub mod programs;

#[cfg(feature = "std")]
pub mod attribute;
#[cfg(feature = "std")]
pub mod capture;
#[cfg(feature = "std")]
pub mod edge_columns;
#[cfg(feature = "std")]
pub mod flow;
#[cfg(feature = "std")]
pub mod health;
#[cfg(feature = "std")]
pub mod hour;
#[cfg(feature = "std")]
pub mod index;
#[cfg(feature = "std")]
pub mod inventory;
#[cfg(feature = "std")]
pub mod labels;
#[cfg(feature = "std")]
pub mod protobuf;
#[cfg(feature = "std")]
pub mod rollup;
#[cfg(feature = "std")]
pub mod table;
#[cfg(feature = "std")]
pub mod untrusted;
#[cfg(feature = "std")]
pub mod value;
#[cfg(feature = "std")]
pub mod vocabulary;

/// Schema version, `major.minor`: a new column raises the minor, a changed meaning the major. Readers accept every
/// minor of the majors they know.
#[cfg(feature = "std")]
pub const SCHEMA_VERSION: (u32, u32) = (2, 0);
