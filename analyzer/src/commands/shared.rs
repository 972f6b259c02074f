//! What several commands do: open a capture and learn from it, and reach a cluster.

pub(crate) mod capture;
mod cluster;
