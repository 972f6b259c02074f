//! `flowscribe sets`: the communication sets that a capture teaches, as text or as JSON.

use super::shared::capture::{self, CaptureError};
use crate::{
    capture::{OpenCapture, OpenError},
    cli::{self, SetsArgs, SetsFormat},
    communication::Workload,
    output::{self, OutputError, note, notes},
    sets::{self, EncodeError},
};

/// Why sets can't be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetsError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Learns the sets and prints them.
///
/// # Errors
/// An input is not there, decisions are not valid, or the output can't be written.
pub(crate) async fn run(args: &SetsArgs) -> Result<(), SetsError> {
    let SetsArgs { input, learn, namespaces, format, output } = args;
    let (mut capture, learning) = capture::open(input, learn).await?;
    let (sets, _) = capture.read(async |capture: &OpenCapture| sets::learn(capture, &learning).await).await?;
    if capture.files.is_empty() {
        output::skipped(&capture.problems);
        return Err(CaptureError::NoCapture(input.told()).into());
    }
    capture::check_readable(&capture)?;
    output::skipped(&capture.problems);
    let namespaces = cli::names(namespaces);
    capture::check_namespaces(&namespaces, sets.workloads.keys().map(|workload| &workload.namespace), true)?;
    for name in namespaces.iter().filter(|name| sets.workloads.keys().all(|of| of.namespace != **name)) {
        note!("namespace {name}: no pod of it is known");
    }
    let is_wanted = |workload: &Workload| namespaces.is_empty() || namespaces.contains(&workload.namespace);
    let text = match format {
        SetsFormat::Table => sets.told(is_wanted),
        SetsFormat::Json => output::json(&sets.json(is_wanted)?)?,
    };
    output::write(&text, output.as_deref())?;
    notes!("{}{}", capture.overlaps.text(), sets.idle_remarks());
    Ok(())
}
