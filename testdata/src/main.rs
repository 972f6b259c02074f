//! The demo, the lab's processes, and the shipped programs, in one file.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use testdata::{
    cluster, demo,
    generator::{self, Plan},
    kernels, pod,
};

/// Flowscribe's demo and lab.
#[derive(Parser)]
#[command(name = "lab")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play an application, record it, and print its policies.
    Demo {
        /// Directory to record into; a capture that is there is replaced.
        #[arg(long, value_name = "DIR")]
        capture: Option<PathBuf>,
    },
    /// Write a capture whose truth is known, as agents would have of a made-up cluster.
    Generate {
        /// Directory to write into.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// About so many rows of flows of a cluster of 200 Deployments, instead of a month of a small one.
        #[arg(long, value_name = "N")]
        rows: Option<u64>,
        /// Of 30 days with so many rows of the same traffic every hour, these first hours.
        #[arg(long, value_name = "N", requires = "rows")]
        hours: Option<u32>,
        /// An hour of a cluster of so many Deployments, each of which calls fifty others.
        #[arg(long, value_name = "N", conflicts_with = "rows")]
        workloads: Option<u16>,
        /// The same seed makes the same capture.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Compare what the agent recorded on other kernels with the traffic there: see .ci/kernels.
    Kernels(kernels::Args),
    /// Run an API server with etcd until standard input ends, and print where its kubeconfig is.
    Cluster,
    /// The process inside a pod of the lab.
    #[command(hide = true)]
    Pod {
        #[arg(long)]
        cgroup: PathBuf,
        /// The network to join, instead of one of its own.
        #[arg(long)]
        netns: Option<PathBuf>,
    },
    /// The process that is the lab's node, and that cleans up after it.
    #[command(hide = true)]
    Node {
        #[arg(long)]
        cgroup: PathBuf,
    },
    /// flowscribe-exporter.
    #[command(disable_help_flag = true)]
    Exporter(Rest),
    /// flowscribe.
    #[command(disable_help_flag = true)]
    Flowscribe(Rest),
}

#[derive(clap::Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let ran = match Args::parse().command {
        Command::Exporter(rest) => return exporter::run_command(named("flowscribe-exporter", rest)),
        Command::Flowscribe(rest) => return analyzer::run_command(named("flowscribe", rest)),
        Command::Demo { capture } => demo::run(capture.as_deref()),
        Command::Generate { output, rows, hours, workloads, seed } => {
            let of_rows = |rows| match hours {
                Some(hours) => Plan { hours, ..Plan::long(rows) },
                None => Plan::bench(rows),
            };
            let plan = workloads.map(Plan::wide).or(rows.map(of_rows)).unwrap_or_else(|| Plan::month(seed));
            generator::generate(&plan, &output)
                .map(|truth| println!("{} rows, {} edges", truth.rows, truth.edges.len()))
        }
        Command::Kernels(args) => kernels::run(&args),
        Command::Cluster => cluster::run(),
        Command::Pod { cgroup, netns } => pod::run(&cgroup, netns.as_deref(), true),
        Command::Node { cgroup } => pod::run_node(&cgroup),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn named(program: &str, rest: Rest) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from(program)).chain(rest.arguments)
}
