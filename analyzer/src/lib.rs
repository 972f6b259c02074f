//! Flowscribe's batch analyzer.
//!
//! ```text
//! *.parquet ──tables──► SQL tables, view edges ──communication──► BTreeSet<Communication> ──policy──► NetworkPolicies ──output──► YAML
//!                          └ resolve: who had an address when
//! ```
//!
//! SQL owns joins and aggregation (`src/sql`), Rust owns what a policy may say (`policy`); a capture is all they know.
//! `inventory` talks to a cluster, and only writes.

mod args;
mod communication;
mod edge;
mod identity;
mod inventory;
mod output;
mod policy;
mod report;
mod runs;
mod sql;
mod tables;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

use args::{Args, Command};

/// The program: parses the command line and runs one command.
///
/// Exits with 0 when it worked, 1 when it did not, 2 for a wrong command line.
pub fn run_command(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flowscribe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Report(args) => report::run(args).await?,
        Command::Inventory(args) => inventory::run(args).await?,
        Command::Sql(args) => sql::run(args).await?,
    }
    Ok(())
}
