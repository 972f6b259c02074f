//! Everything at once: real pods, the real exporter, the real analyzer; and the analyzer on generated months. What needs
//! root and eBPF says SKIPPED with the reason where they are missing.

mod complete;
mod cookbook;
mod demo;
mod enforced;
mod interop;
mod kill;
mod loss;
mod months;
mod plan;
mod support;
mod telemetry;
mod udp;
