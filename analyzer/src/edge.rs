//! Edges: who talked to whom, per hour, both ends resolved at the time of the flow, the two observers of an edge made one.
//!
//! ```text
//! files of flows ──unit──► units of hours ──work, fold──► HourEdges ──► rows of the table `edges`, rows of rollups
//! rollups ─────────┘                                       └──► Total of every edge over all hours ──► Block
//! ```
//!
//! A connection between two recorded pods is seen from both ends. Its client knows the address it dialled, its server
//! the pod that answered; resolved, both name the same edge, and the counts are the larger of the two sums, never their
//! sum. Likewise for two agents that recorded one node at the same time. A Service that was dialled becomes an edge to every workload that may have answered (`via_service`).
//! Left out is what stays on loopback or within one pod, and rows whose direction the kernel could not tell.
//!
//! This is the one place where rows of flows are not left to SQL: a plan of joins and distinct counts took five times as
//! long, and memory by the row.

mod all_hours;
mod dictionary;
mod flow_columns;
mod flows;
mod fold;
mod hour;
mod hour_cache;
mod overlap;
mod overlap_counts;
mod resolve;
mod rollup;
mod row_cache;
mod summing_up;
mod table_rows;
mod work_unit;

pub(crate) use flows::{Flows, Undirected, WorkError};
pub(crate) use hour_cache::Block;
pub(crate) use overlap::{Overlaps, Recorded};
pub(crate) use table_rows::EdgeRow;
pub(crate) use work_unit::repeats;
