//! See [`analyzer::run_command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    analyzer::run_command(std::env::args_os())
}
