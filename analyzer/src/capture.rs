//! A capture as the analyzer opens it: which files there are, what agents' runs say of them, who was who, and what an
//! earlier run of the analyzer remembers of all that.

pub(crate) mod cache;
mod claims;
pub(crate) mod filing;
pub(crate) mod health;
pub(crate) mod inventory;
pub(crate) mod journal;
pub(crate) mod object_store;
mod open;
pub(crate) mod segment;

pub(crate) use open::{Input, Names, OpenCapture, OpenError, understand};
