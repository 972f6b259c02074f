//! Everything at once: real pods, the real exporter, the real analyzer; and the analyzer on generated months. What needs
//! root, eBPF or a program is reported as ignored where they are missing.

#[macro_use]
mod harness;

mod agent;
mod begun;
mod chart;
mod collector;
mod complete;
mod connectivity;
mod cookbook;
mod delivery;
mod demo;
mod disks;
mod enforced;
mod interop;
mod kill;
mod layout;
mod live;
mod loss;
mod months;
mod neighbours;
mod node;
mod own;
mod plan;
mod readers;
mod receive;
mod stacks;
mod support;
mod telemetry;
mod udp;
mod udp_direction;
mod weeks;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        agent::TESTS,
        begun::TESTS,
        chart::TESTS,
        collector::TESTS,
        complete::TESTS,
        connectivity::TESTS,
        cookbook::TESTS,
        delivery::TESTS,
        demo::TESTS,
        disks::TESTS,
        enforced::TESTS,
        interop::TESTS,
        kill::TESTS,
        layout::TESTS,
        live::TESTS,
        loss::TESTS,
        months::TESTS,
        neighbours::TESTS,
        node::TESTS,
        own::TESTS,
        plan::TESTS,
        receive::TESTS,
        stacks::TESTS,
        telemetry::TESTS,
        udp::TESTS,
        udp_direction::TESTS,
        weeks::TESTS,
    ];
    harness::run(&modules, false)
}
