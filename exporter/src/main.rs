//! See [`exporter::run_command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    exporter::run_command(std::env::args_os())
}
