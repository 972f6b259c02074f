//! Everything at once: real pods, the real exporter, the real analyzer. Needs root and eBPF; without, every test says
//! SKIPPED with the reason.

mod complete;
mod demo;
mod interop;
mod kill;
mod loss;
mod plan;
mod support;
mod telemetry;
mod udp;
