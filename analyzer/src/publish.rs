//! Where policies go: a directory, a ConfigMap, a branch of a Git repository, or a cluster, and the way back from there.

pub(crate) mod cluster;
pub(crate) mod config_map;
pub(crate) mod destination;
pub(crate) mod directory;
pub(crate) mod git;
pub(crate) mod rollback;
