//! Everything at once: real pods, the real exporter, the real analyzer; and the analyzer on generated months. What needs
//! root and eBPF says SKIPPED with the reason where they are missing.

mod chart;
mod collector;
mod complete;
mod cookbook;
mod delivery;
mod demo;
mod enforced;
mod interop;
mod kill;
mod live;
mod loss;
mod months;
mod own;
mod plan;
mod receive;
mod support;
mod telemetry;
mod udp;
mod weeks;
