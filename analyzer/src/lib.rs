//! Flowscribe's batch analyzer.
//!
//! ```text
//! cli ──► commands ──► publish   a directory, ConfigMap, Git, a cluster
//!            │ └─────► tables    everything in SQL
//!            ▼
//!          policy                what a policy may say
//!            ▼
//!          netpol                what policies mean, whoever wrote them; what they would deny
//!            ▼
//!           sets                 what is believed of the communications of every workload
//!            ▼
//!          capture               files, what agents say of their recording, and who had which address when
//!            ▼
//!           edge                 who talked to whom, from rows of flows
//! ```
//!
//! Each imports what is below it and nothing above. Most commands begin in `commands::shared`: a capture is opened, sets
//! are learned, and policies of them are tried on the capture before anybody sees them. Only `apply` and `regenerate`
//! change a cluster; `inventory`, `monitor`, `receive` and `import` write captures.

mod capture;
mod cli;
mod commands;
mod communication;
mod edge;
mod logging;
mod netpol;
mod output;
mod policy;
mod publish;
mod sets;
mod tables;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Context;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use cli::{Args, Command};
use commands::regenerate::Ended;

use crate::output::note;

/// The program: parses the command line and runs one command.
///
/// Exits with 0 when it worked, 1 when it did not, 2 for a wrong command line, and 130 when it was interrupted; commands
/// that compare say in their help what 0 and 1 mean.
pub fn run_command(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::parse_named(arguments) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            note!("flowscribe: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(run(&args));
    // What still reads for an answer that nobody waits for ends with the process.
    runtime.shutdown_background();
    match done {
        Ok(Some(code)) => ExitCode::from(code),
        Ok(None) => {
            let wrote = match args.command {
                Command::Apply(_) | Command::Regenerate(_) => {
                    "what is told above is done, and perhaps what would be next"
                }
                _ => "nothing was written",
            };
            note!("flowscribe: interrupted, {wrote}");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            note!("flowscribe: {error:#}");
            if matches!(args.command, Command::Diff(_)) { ExitCode::from(NOT_COMPARED) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs a command; what to exit with, and `None` if it was interrupted.
async fn run(args: &Args) -> anyhow::Result<Option<u8>> {
    let judged = |is_well: bool| Ok(Some(u8::from(!is_well)));
    let command = async {
        match &args.command {
            Command::Monitor(args) => commands::monitor::run(args).await?,
            Command::Report(args) => commands::report::run(args).await?,
            Command::Inventory(args) => commands::inventory::run(args).await?,
            Command::Receive(args) => commands::receive::run(args).await?,
            Command::Import(args) => commands::import::run(args)?,
            Command::Compact(args) => commands::compact::run(args).await?,
            Command::Prune(args) => commands::compact::prune(args).await?,
            Command::Sets(args) => commands::sets::run(args).await?,
            Command::Sql(args) => commands::sql::run(args).await?,
            #[cfg(feature = "ballista")]
            Command::BallistaScheduler(args) => commands::ballista::schedule(args).await?,
            #[cfg(feature = "ballista")]
            Command::BallistaExecutor(args) => commands::ballista::execute(args).await?,
            Command::Connectivity(args) => commands::connectivity::run(args)?,
            Command::Explain(args) => commands::explain::run(args).await?,
            Command::Backtest(args) => commands::backtest::run(args).await?,
            Command::Verify(args) => return judged(commands::verify::run(args).await?),
            Command::Diff(args) => return judged(commands::diff::run(args).await?),
            Command::Apply(args) => return judged(commands::apply::run(args).await?),
            Command::Regenerate(args) => {
                return Ok(Some(match commands::regenerate::run(args).await? {
                    Ended::Changed if args.exit_code => CHANGED,
                    Ended::Changed | Ended::Unchanged => 0,
                    Ended::Busy => BUSY,
                }));
            }
        }
        anyhow::Ok(Some(0))
    };
    // Recording ends by itself, with what it has yet to write.
    if matches!(args.command, Command::Inventory(_) | Command::Receive(_) | Command::Monitor(_)) {
        return command.await;
    }
    // Listens before the command begins, so that Ctrl-C is heard whatever that does first.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to Ctrl-C")?;
    tokio::select! {
        done = Box::pin(command) => done,
        _ = interrupt.recv() => Ok(None),
    }
}

/// What shells report of a program that Ctrl-C ended: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;
/// A scheduled run changed the set, or another one is at it.
const CHANGED: u8 = 3;
const BUSY: u8 = 4;
/// As diff(1) says that it could not compare.
const NOT_COMPARED: u8 = 2;
