//! `flowscribe diff`: compares two sets of policies, with the pods of a capture or of manifests, or those that they select.

use std::path::PathBuf;

use super::shared::capture::{CaptureError, check_readable};
use crate::{
    capture::{OpenCapture, OpenError},
    cli::{DiffArgs, DiffFormat, InputArgs},
    netpol::{
        self, DifferenceError,
        manifests::{Manifests, ManifestsError},
        population::Population,
    },
    output::{self, OutputError},
};

/// Why policies can't be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiffError {
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("no manifests of pods, or of what makes them, in {0}")]
    NoWorkloads(PathBuf),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("no policies in {0}: to compare with none, name an empty directory")]
    NoPolicies(PathBuf),
    #[error(transparent)]
    Difference(#[from] DifferenceError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Compares two sets of policies; whether they allow the same.
///
/// # Errors
/// Something can't be read, or is not valid.
pub(crate) async fn run(args: &DiffArgs) -> Result<bool, DiffError> {
    let DiffArgs { old, new, input, cluster_name, manifests, format, output } = args;
    let paths = [old, new];
    let (old, new) = (Manifests::read(old)?, Manifests::read(new)?);
    let is_empty =
        |(path, set): &(&PathBuf, &Manifests)| !path.is_dir() && set.policies.is_empty() && set.problems.is_empty();
    if let Some((path, _)) = paths.into_iter().zip([&old, &new]).find(is_empty) {
        return Err(DiffError::NoPolicies(path.clone()));
    }
    if let Some(problem) = old.problems.iter().chain(&new.problems).next() {
        return Err(DifferenceError::Invalid(problem.clone()).into());
    }
    let mut population = match manifests {
        Some(path) => {
            let Manifests { population, problems, .. } = Manifests::read(path)?;
            if let Some(problem) = problems.first() {
                return Err(DifferenceError::Invalid(problem.clone()).into());
            }
            if population.members.is_empty() {
                return Err(DiffError::NoWorkloads(path.clone()));
            }
            population
        }
        None if input.is_empty() => Population::default(),
        None => {
            let input = InputArgs::new(input.clone(), cluster_name.clone());
            let capture = OpenCapture::new(input.of(None)).await?;
            if capture.files.is_empty() {
                output::skipped(&capture.problems);
                return Err(CaptureError::NoCapture(input.told()).into());
            }
            check_readable(&capture)?;
            output::skipped(&capture.problems);
            Population::of_index(&capture.index)
        }
    };
    if population.members.is_empty() {
        population = netpol::supposed(&old.policies.iter().chain(&new.policies).collect::<Vec<_>>())?;
    }
    let difference = netpol::compare(&population, &old.policies, &new.policies)?;
    let text = match format {
        DiffFormat::Text => difference.to_string(),
        DiffFormat::Markdown => difference.markdown(),
        DiffFormat::Json => output::json(&difference)?,
    };
    output::write(&text, output.as_deref())?;
    Ok(difference.is_none())
}
