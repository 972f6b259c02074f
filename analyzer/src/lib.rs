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

use tokio::runtime::Runtime;

use cli::{Args, Command};

use crate::output::note;

/// The program: parses the command line and runs one command.
///
/// Exits with 0 when it worked, 1 when it did not, 2 for a wrong command line, and 130 when it was interrupted. Commands that
/// judge policies say in their help what 0 and 1 mean, and exit with 2 when they could not.
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
    let done = runtime.block_on(commands::run(&args));
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
            match args.command {
                Command::Connectivity(_) | Command::Diff(_) | Command::Verify(_) => ExitCode::from(NOT_DECIDED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// What shells report of a program that Ctrl-C ended: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;
/// As diff(1) says that it could not compare.
const NOT_DECIDED: u8 = 2;
