//! What `flowscribe` can be asked to do: a file, or a folder, for each command, and `shared` for what several do.

pub(crate) mod apply;
pub(crate) mod backtest;
#[cfg(feature = "ballista")]
pub(crate) mod ballista;
pub(crate) mod compact;
pub(crate) mod connectivity;
pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod import;
pub(crate) mod inventory;
pub(crate) mod monitor;
pub(crate) mod receive;
pub(crate) mod regenerate;
pub(crate) mod report;
pub(crate) mod sets;
mod shared;
pub(crate) mod sql;
pub(crate) mod verify;
