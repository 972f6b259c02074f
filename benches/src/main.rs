//! What recording costs: loads without and with the exporter, in turn, on this machine.
//!
//! `cargo cost` prints the report, `cargo cost soak` runs mixed traffic for minutes. Needs root.

mod agent;
mod cluster;
mod edges;
mod live;
mod load;
mod policies;
mod report;
mod ship;
mod weeks;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Measures what recording costs on this machine.
#[derive(Parser)]
#[command(name = "cost")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print everything: the default.
    Report {
        /// Pairs of runs without and with the exporter, per load.
        #[arg(long, default_value_t = 15)]
        pairs: usize,
        /// Only these lines of the report.
        #[arg(long, value_delimiter = ',')]
        only: Vec<report::Line>,
        /// Measure churn against this build of the exporter instead, and the run time of both builds' programs.
        #[arg(long, value_name = "PROGRAM", conflicts_with = "only")]
        baseline: Option<PathBuf>,
    },
    /// Run mixed traffic and watch memory and loss.
    Soak {
        /// For so long.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Connections per second.
        #[arg(long, default_value_t = 2000)]
        per_second: u32,
    },
    /// Fill the API server of KUBECONFIG, and measure an agent that asks it.
    Cluster {
        /// Pods, 100 on each node.
        #[arg(long, default_value_t = 10_000)]
        pods: u32,
        /// Services, with five endpoints each.
        #[arg(long, default_value_t = 2_000)]
        services: u32,
    },
    /// Derive edges from captures, beside polars and DuckDB (Python packages).
    Edges {
        /// Rows of flows of the captures.
        #[arg(long, value_delimiter = ',', default_value = "5000000,20000000,80000000")]
        rows: Vec<u64>,
        /// Runs of everybody, of which the best counts.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Directory for the captures, which stay there and are used again.
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// Make policies of many workloads and verify them.
    Policies {
        /// Deployments, each of which calls fifty others.
        #[arg(long, default_value_t = 2000)]
        workloads: u16,
        /// Runs, of which the best counts.
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
    /// Encode, send and receive rows.
    Ship {
        /// Rows that are sent to a receiver, by each protocol.
        #[arg(long, default_value_t = 3_000_000)]
        rows: usize,
        /// Agents that send at once.
        #[arg(long, default_value_t = 16)]
        agents: usize,
    },
    /// Have agents stream to one monitor, and then send to one receiver, at a rate, and watch memory and loss.
    Live {
        /// Agents.
        #[arg(long, default_value_t = 50)]
        agents: usize,
        /// Rows of flows per second of each.
        #[arg(long, default_value_t = 2000)]
        per_second: usize,
        /// For so long.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
    },
    /// Write 30 days of flows, compact them on the way, and report from the rollups.
    Weeks {
        /// Rows of flows, about.
        #[arg(long, default_value_t = 500_000_000)]
        rows: u64,
        /// Compact every so many hours.
        #[arg(long, default_value_t = 120)]
        every_hours: u32,
        /// Directory for the capture, which stays there.
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// The process that makes the load.
    #[command(hide = true)]
    Load {
        #[arg(long)]
        cgroup: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().command.unwrap_or(Command::Report { pairs: 15, only: Vec::new(), baseline: None }) {
        Command::Load { cgroup } => load::run(&cgroup),
        Command::Edges { rows, runs, keep } => edges::run(&rows, runs, keep.as_deref()),
        Command::Policies { workloads, runs } => policies::run(workloads, runs),
        Command::Weeks { rows, every_hours, keep } => weeks::run(rows, every_hours, keep.as_deref()),
        Command::Live { agents, per_second, seconds } => live::run(agents, per_second, seconds),
        Command::Ship { rows, agents } => ship::run(rows, agents),
        Command::Cluster { pods, services } => cluster::run(pods, services),
        Command::Report { pairs, only, baseline } => report::run(pairs, &only, baseline.as_deref()),
        Command::Soak { seconds, per_second } => report::soak(seconds, per_second),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}
