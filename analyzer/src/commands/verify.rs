//! `flowscribe verify`: what of a capture policies would deny, and what they allow beyond it.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use serde_json::{Value, json};

use super::shared::capture::{Capture, CaptureError};
use crate::{
    cli::{VerifyArgs, VerifyFormat},
    communication::{Endpoint, Workload},
    netpol::{
        manifests::{Manifests, ManifestsError},
        replay::{self, Denied, Excuse, Terms, Verdict},
    },
    output::{self, OutputError},
    publish::cluster::{self, ClusterError},
    sets::Status,
};

/// Why policies can't be verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("no policies in {0}")]
    NoPolicies(PathBuf),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Replays a capture over policies; whether no stable flow is denied without explanation, and all policies are valid.
///
/// # Errors
/// The policies or the capture can't be read.
pub(crate) async fn run(args: &VerifyArgs) -> Result<bool, VerifyError> {
    let VerifyArgs { input, learn, policies, cluster: _, of, no_own_node, strict, format, output } = args;
    let (policies, mut problems) = match policies {
        Some(path) => {
            let Manifests { policies, problems, .. } = Manifests::read(path)?;
            if policies.is_empty() && problems.is_empty() {
                return Err(VerifyError::NoPolicies(path.clone()));
            }
            (policies, problems)
        }
        None => (cluster::policies(&of.connect().await?).await?, Vec::new()),
    };
    let capture = Capture::read(input, learn).await?;
    let terms = Terms { own_node_exempt: !no_own_node, ..Terms::default() };
    let (verdict, invalid) = replay::replay(capture.sets(), &capture.population, &policies, &terms);
    problems.extend(invalid.iter().map(ToString::to_string));
    let text = match format {
        VerifyFormat::Text => text(&verdict),
        VerifyFormat::Json => format!("{:#}\n", as_json(&verdict)),
    };
    output::write(&text, output.as_deref())?;
    output::skipped(problems.iter().cloned().chain(capture.open.problems.iter().map(ToString::to_string)));
    let is_judged = verdict.judged > 0;
    let is_wrong = match strict {
        true => verdict.denied.iter().any(|denied| denied.explanation.is_none()),
        false => verdict.wrong().next().is_some(),
    };
    Ok(problems.is_empty() && is_judged && verdict.let_through.is_empty() && !is_wrong)
}

/// Observed edges by workload: allowed, denied with an explanation, denied without one.
fn by_workload<'v>(verdict: &'v Verdict<'_>) -> BTreeMap<&'v Workload, [usize; 2]> {
    let mut counts: BTreeMap<&Workload, [usize; 2]> = BTreeMap::new();
    for denied in &verdict.denied {
        for end in [&denied.edge.source, &denied.edge.destination] {
            if let Endpoint::Workload(workload) = end {
                counts.entry(workload).or_default()[usize::from(denied.explanation.is_none())] += 1;
            }
        }
    }
    counts
}

fn text(verdict: &Verdict<'_>) -> String {
    let mut text = String::new();
    let (explained, denied): (Vec<_>, Vec<_>) = verdict.denied.iter().partition(|denied| denied.explanation.is_some());
    let (stable, unstable): (Vec<_>, Vec<_>) = denied.into_iter().partition(|denied| denied.status == Status::Stable);
    if !verdict.let_through.is_empty() {
        let _ = writeln!(text, "FORBIDDEN, and allowed all the same:");
    }
    for edge in &verdict.let_through {
        let _ = writeln!(text, "  {edge}");
    }
    let mut tell = |title: &str, list: Vec<&Denied<'_>>| {
        if !list.is_empty() {
            let _ = writeln!(text, "{title}");
        }
        for denied in list {
            let _ = writeln!(text, "  {denied}");
        }
    };
    tell("DENIED, and stable:", stable);
    tell("denied, and not stable:", unstable);
    tell("denied with an explanation:", explained);
    if !verdict.unseen.is_empty() {
        text += "allowed and never seen:\n";
    }
    for ((source, destination), excuses) in &verdict.unseen {
        for (excuse, connections) in excuses {
            let why = if *excuse == Excuse::None { String::new() } else { format!(" ({})", excuse.as_str()) };
            let _ = writeln!(text, "  {source} → {destination} {connections}{why}");
        }
    }
    let beyond = verdict.outside.iter().filter(|(_, (allowed, seen))| allowed > seen);
    for ((workload, direction), (allowed, seen)) in beyond {
        let _ = writeln!(text, "  {workload} {}: {allowed} addresses outside, {seen} of them seen", direction.as_str());
    }
    let _ = writeln!(
        text,
        "{} observed edges allowed, {} denied ({} of them stable and unexplained); {} edges allowed and never seen",
        verdict.allowed,
        verdict.denied.len(),
        verdict.wrong().count(),
        verdict.unseen_edges().values().sum::<usize>(),
    );
    if verdict.judged == 0 {
        let _ = writeln!(text, "nothing is judged: the capture has no connection between ends whose pods are known");
    }
    if verdict.unjudged > 0 {
        let _ = writeln!(text, "{} observed edges are not judged: no pods of an end are known", verdict.unjudged);
    }
    let (workloads, open) = verdict.workloads;
    if open > 0 {
        let _ = writeln!(text, "{open} of {workloads} workloads are limited by no policy");
    }
    text
}

fn as_json(verdict: &Verdict<'_>) -> Value {
    let denied = verdict.denied.iter().map(|denied| {
        let by = denied.by.iter().map(|denial| {
            json!({ "direction": denial.direction.as_str(), "policies": denial.policies.iter().map(|p| &**p).collect::<Vec<_>>() })
        });
        json!({
            "edge": denied.edge.to_string(),
            "status": denied.status.as_str(),
            "connections": denied.evidence.connections,
            "by": by.collect::<Value>(),
            "explanation": denied.explanation,
        })
    });
    let unseen = verdict.unseen.iter().flat_map(|((source, destination), excuses)| {
        excuses.iter().map(move |(excuse, connections)| {
            json!({
                "source": source.to_string(),
                "destination": destination.to_string(),
                "connections": connections.to_string(),
                "reason": excuse.as_str(),
            })
        })
    });
    let outside = verdict.outside.iter().map(|((workload, direction), (allowed, seen))| {
        // Beyond 2⁵³ numbers in JSON are not exact everywhere.
        json!({ "workload": workload.to_string(), "direction": direction.as_str(), "allowed": allowed.to_string(), "seen": seen.to_string() })
    });
    let workloads = by_workload(verdict).into_iter().map(|(workload, [explained, unexplained])| {
        json!({ "workload": workload.to_string(), "denied_explained": explained, "denied": unexplained })
    });
    json!({
        "allowed": verdict.allowed,
        "not_judged": verdict.unjudged,
        "forbidden_and_allowed": verdict.let_through.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "workloads_there": verdict.workloads.0,
        "workloads_without_policy": verdict.workloads.1,
        "denied": denied.collect::<Value>(),
        "unseen": unseen.collect::<Value>(),
        "outside": outside.collect::<Value>(),
        "workloads": workloads.collect::<Value>(),
        "stable_denied": verdict.wrong().count(),
    })
}
