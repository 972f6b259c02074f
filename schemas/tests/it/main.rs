//! The contract, tested from outside: its tables, its README and its files.

mod capture;
mod readme;
mod rows;
mod table;
