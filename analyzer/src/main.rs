//! See [`analyzer::run_command`].

use std::process::ExitCode;

/// Reading Parquet makes and frees millions of small buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    analyzer::run_command(std::env::args_os())
}
