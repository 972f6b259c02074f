//! Identity from a real API server: etcd, kube-apiserver, the lab's pods in both, real traffic, the shipped programs.
//!
//! `.ci/e2e` builds the API server and runs these; without it they are ignored.

mod demo;
mod hard;
mod outage;
mod policies;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "the kernel tests use the rest")]
mod support;
mod watching;
