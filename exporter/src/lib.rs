//! Flowscribe's node agent.
//!
//! ```text
//! kernel ──FlowEvent──► probe ──► flow ──Flow──► enrich ──FlowRecord──► sink ──► Parquet, OTLP, whoever listens (live)
//! API server ──Change──────────────► inventory ──InventoryRecord──┘
//! ```
//!
//! `probe` watches sockets with eBPF, `flow` sums what they did per edge and window, `enrich` names both
//! ends, and `sink` writes the datasets of a capture; `live` says who may listen to them. `pipeline` connects them; each stage but the two ends is
//! without I/O. The agent decides nothing about policies, and does not look at packets or payload.

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout, reason = "output bears readers that go away"))]

mod args;
mod config;
mod doctor;
mod enrich;
mod flow;
mod inventory;
mod live;
mod pipeline;
mod probe;
mod sink;
mod telemetry;

use std::{
    env,
    error::Error,
    ffi::OsString,
    future::pending,
    io::{self, IsTerminal, Write},
    pin::Pin,
    process::ExitCode,
};

use schemas::untrusted::shown;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use args::Command;
use config::ConfigError;

pub use args::Args;
pub use pipeline::{RunError, RunSummary, run};

/// The program: parses the command line, records until SIGINT, SIGTERM or SIGHUP, and tells how it went.
///
/// Exits with 0 after a clean end, 1 when recording can't start or fails, 2 for a wrong command line.
pub fn run_command(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match config::parse(arguments) {
        Ok(args) => args,
        Err(ConfigError::CommandLine(error)) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
        Err(error) => {
            say(&format!("flowscribe-exporter: {}", chain(&error)));
            return ExitCode::from(USAGE);
        }
    };
    if let Some(Command::Doctor(of_doctor)) = args.command {
        return doctor::run(&args, of_doctor);
    }
    probe::share_heap();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    // That nobody reads the log is no error either.
    let subscriber = subscriber.with_ansi(is_in_colour()).log_internal_errors(false);
    subscriber.with_writer(io::stderr).init();
    let verbose = args.verbose;
    match record(args) {
        Ok(RunSummary { rows, ends, filtered, lost }) => {
            tracing::info!(rows, connection_ends = ends, filtered, lost, "recorded");
            ExitCode::SUCCESS
        }
        Err(error) => {
            if let RunError::Probe(error) = &error
                && let Some(log) = error.verifier_log().filter(|_| verbose)
            {
                say(log);
            }
            say(&format!("flowscribe-exporter: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Says a line to whoever started the program; that nobody reads it is no error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", shown(line));
}

/// Whether the log is in colour: at a terminal, unless `NO_COLOR` (no-color.org) is set.
fn is_in_colour() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What a wrong command line ends with.
const USAGE: u8 = 2;

#[tokio::main(worker_threads = 1)]
async fn record(args: Args) -> Result<RunSummary, RunError> {
    Box::pin(run(args, Stopped)).await
}

/// SIGINT, SIGTERM or SIGHUP, which are listened to from when there is something to finish: before that, each ends the program
/// at once, whatever it reads.
struct Stopped;

impl IntoFuture for Stopped {
    type Output = ();
    type IntoFuture = Pin<Box<dyn Future<Output = ()>>>;

    fn into_future(self) -> Self::IntoFuture {
        let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Box::pin(async {
            let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
                tracing::warn!("signals can't be listened to: they end the recording without what is not written yet");
                return pending().await;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        })
    }
}

/// An error with its causes, as one line: of each the first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let first_line = |error: &dyn Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut text = first_line(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {}", first_line(error));
        cause = error.source();
    }
    text
}

/// What is logged by default. What its client finds wrong with the API server, the agent tells itself, once.
const LOGGED: &str = "info,kube_client=off,kube_runtime=off";
