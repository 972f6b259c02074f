//! What Flowscribe is tried on: a lab of network namespaces, an application played in it, and small captures.
//!
//! ```text
//! manifest ──app──► lab (pods, Services) ◄──watches── exporter ──► capture ──► flowscribe report
//! ```
//!
//! The program `lab` is the demo, and also what runs inside every pod. It holds the shipped programs too, so that the
//! demo and the tests start exactly what users start, from one file.

pub mod app;
mod cgroup;
pub mod cluster;
pub mod demo;
pub mod enforce;
pub mod generator;
pub mod kernels;
pub mod lab;
mod names;
pub mod neighbour;
pub mod nodes;
pub mod own_stack;
pub mod pod;
pub mod recording;
mod relay;
pub mod sender;
