//! What commands log that run on.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::output::is_at_terminal;

/// Logs what happens while the program runs on, such as to a receiver that is away.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let _ = subscriber.with_ansi(is_at_terminal()).with_writer(io::stderr).try_init();
}

/// What is logged by default; of the API server, commands tell themselves.
const LOGGED: &str = "info,kube_client=off,kube_runtime=off";
