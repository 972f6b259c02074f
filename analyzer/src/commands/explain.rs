//! `flowscribe explain`: what is behind the rules of one policy, and what is not in it.

use super::{
    report::ReportError,
    shared::capture::{Capture, CaptureError, Proposal, check_readable},
};
use crate::{
    cli::ExplainArgs,
    output::{self, notes},
    policy::explanation::Explanation,
};

/// Tells what is behind the rules of one policy, and what is not in it.
///
/// # Errors
/// As [`run`]; or there is no such policy.
pub(crate) async fn run(args: &ExplainArgs) -> Result<(), ReportError> {
    let ExplainArgs { policy: wanted, input, learn, wish } = args;
    let capture = Capture::read(input, learn).await?;
    if capture.open.files.is_empty() {
        return Err(CaptureError::NoCapture(input.told()).into());
    }
    check_readable(&capture.open)?;
    let wish = wish.wish();
    let Proposal { set, verdict } = capture.propose(&wish)?;
    let explanation = Explanation::new(capture.sets(), &set, &verdict, &wish).of(wanted).map_err(|known| {
        ReportError::NoSuchPolicy {
            wanted: wanted.clone(),
            known: if known.is_empty() { "none".into() } else { known.join(", ") },
        }
    })?;
    notes!("{}", capture.open.overlaps.text());
    Ok(output::write(&explanation.text(), None)?)
}
