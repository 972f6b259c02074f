//! With the programs of others: identity from a real API server, delivery to a real collector and object store. The
//! lab's pods, real traffic, the shipped programs.
//!
//! `.ci/e2e` builds those and runs these; without it they are ignored.

#[macro_use]
#[path = "../it/harness.rs"]
mod harness;

mod demo;
mod hard;
mod installed;
mod kubelet;
mod outage;
mod policies;
#[path = "../it/readers.rs"]
mod readers;
mod shipping;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "the kernel tests use the rest")]
mod support;
mod tables;
mod watching;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules =
        [demo::TESTS, hard::TESTS, installed::TESTS, outage::TESTS, policies::TESTS, shipping::TESTS, tables::TESTS];
    harness::run(&modules, true)
}
