//! Delivery, tested from outside.

mod otlp;
#[path = "../../../tests/it/rows.rs"]
mod rows;
