//! What `flowscribe` can be asked to do: a file, or a folder, for each command.

pub(crate) mod apply;
pub(crate) mod backtest;
#[cfg(feature = "ballista")]
pub(crate) mod ballista;
mod cluster;
pub(crate) mod compact;
pub(crate) mod connectivity;
pub(crate) mod diff;
mod explain;
pub(crate) mod import;
pub(crate) mod inventory;
mod learned;
pub(crate) mod monitor;
pub(crate) mod receive;
pub(crate) mod regenerate;
pub(crate) mod report;
pub(crate) mod sets;
pub(crate) mod sql;
pub(crate) mod verify;
