//! What `flowscribe` can be asked to do: a file, or a folder, for each command.

pub(crate) mod apply;
pub(crate) mod backtest;
mod cluster;
pub(crate) mod compact;
pub(crate) mod connectivity;
pub(crate) mod diff;
mod explain;
pub(crate) mod import;
pub(crate) mod inventory;
mod lease;
pub(crate) mod monitor;
mod proposal;
pub(crate) mod receive;
pub(crate) mod regenerate;
pub(crate) mod report;
pub(crate) mod sets;
pub(crate) mod sql;
pub(crate) mod verify;
