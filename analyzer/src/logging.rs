//! What commands log that run on.

use std::{env, io};

use tracing_subscriber::EnvFilter;

use crate::output::is_at_terminal;

/// Logs what happens while the program runs on, such as to a receiver that is away.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    // NO_COLOR as no-color.org has it. That nobody reads the log is no error.
    let is_in_colour = is_at_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _ = subscriber.with_ansi(is_in_colour).log_internal_errors(false).with_writer(io::stderr).try_init();
}

/// What is logged by default; of the API server, commands tell themselves.
const LOGGED: &str = "info,kube_client=off,kube_runtime=off";
