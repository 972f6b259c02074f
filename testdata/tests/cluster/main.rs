//! In a real cluster: kubelets, a container runtime, kube-proxy, CoreDNS, and an engine that enforces policies.
//!
//! `.ci/cluster` builds those and runs these; without it they are ignored.

#[macro_use]
#[path = "../it/harness.rs"]
#[expect(dead_code, reason = "who asks for these tests has what they need")]
mod harness;

mod apps;
mod defects;
mod demo;
mod first_hour;
mod setups;
mod support;
mod upgrade;
mod way;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::run(&[way::TESTS, first_hour::TESTS, setups::TESTS, upgrade::TESTS, defects::TESTS], true)
}
