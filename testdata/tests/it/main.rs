//! Everything at once: real pods, the real exporter, the real analyzer. Needs root and eBPF; without, every test says
//! SKIPPED with the reason.

mod demo;
mod interop;
mod kill;
mod plan;
mod support;
