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

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout, reason = "output bears readers that go away"))]

mod capture;
mod cli;
mod commands;
mod communication;
mod edge;
mod exit;
mod interrupt;
mod logging;
mod netpol;
mod output;
mod policy;
mod publish;
mod sets;
mod tables;
mod yaml;

use std::{ffi::OsString, process::ExitCode};

use tokio::runtime::Runtime;

use cli::Args;

use crate::{
    exit::Exit,
    output::{note, notes},
};

/// The program: parses the command line and runs one command.
///
/// What it exits with is in its help.
pub fn run_command(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::parse_named(arguments) {
        Ok(args) => args,
        Err(error) => {
            // What was typed is shown in errors.
            if error.use_stderr() {
                notes!("{}", error.render());
            } else {
                let _ = error.print();
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    interrupt::leave_to_listener();
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            note!("flowscribe: cannot start: {error}");
            return Exit::Undecided.into();
        }
    };
    let meaning = args.command.on_interrupt();
    let is_dropped = match interrupt::listen(meaning) {
        Ok(is_dropped) => is_dropped,
        Err(error) => {
            note!("flowscribe: cannot listen to Ctrl-C: {error}");
            return Exit::Undecided.into();
        }
    };
    let done = runtime.block_on(commands::run(&args, is_dropped));
    // What still reads for an answer that nobody waits for ends with the process.
    runtime.shutdown_background();
    match done {
        Ok(Some(exit)) => exit.into(),
        Ok(None) => {
            interrupt::say_interrupted(meaning);
            Exit::Interrupted.into()
        }
        Err(error) => {
            note!("flowscribe: {error:#}");
            Exit::Undecided.into()
        }
    }
}
