//! `flowscribe verify`: what of a capture policies would deny, and what they allow beyond it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use serde::Serialize;

use super::shared::capture::{Capture, CaptureError};
use crate::{
    cli::{VerifyArgs, VerifyFormat},
    communication::{Direction, Edge, Endpoint, Workload},
    exit::Exit,
    netpol::{
        Connections, Denial,
        manifests::{Manifests, ManifestsError},
        replay::{self, Denied, Excuse, Terms, Verdict},
    },
    output::{self, OutputError, as_text},
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
    #[error("nothing can be judged: no communication of pods that are known is in {0}")]
    NotJudged(String),
    #[error(
        "some of the policies are none that an API server takes: what would be in force without them is not what they say"
    )]
    Invalid,
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Replays a capture over policies; well is that no stable flow is denied without explanation.
///
/// # Errors
/// The policies or the capture can't be read, some are not valid, or nothing can be judged.
pub(crate) async fn run(args: &VerifyArgs) -> Result<Exit, VerifyError> {
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
        VerifyFormat::Text => verdict.to_string(),
        VerifyFormat::Json => output::json(&VerdictJson::new(&verdict))?,
    };
    output::write(&text, output.as_deref())?;
    output::skipped(problems.iter().cloned().chain(capture.open.problems.iter().map(ToString::to_string)));
    if !problems.is_empty() {
        return Err(VerifyError::Invalid);
    }
    if verdict.judged == 0 {
        return Err(VerifyError::NotJudged(input.told()));
    }
    let is_wrong = match strict {
        true => verdict.denied.iter().any(|denied| denied.explanation.is_none()) || !verdict.of_nobody.is_empty(),
        false => verdict.wrong().next().is_some(),
    };
    Ok(Exit::judged(verdict.let_through.is_empty() && !is_wrong))
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

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (explained, denied): (Vec<_>, Vec<_>) = self.denied.iter().partition(|denied| denied.explanation.is_some());
        let (stable, unstable): (Vec<_>, Vec<_>) =
            denied.into_iter().partition(|denied| denied.status == Status::Stable);
        list(f, "FORBIDDEN, and allowed all the same:", &self.let_through)?;
        list(f, "DENIED, and stable:", &stable)?;
        list(f, "denied, and not stable:", &unstable)?;
        list(f, "denied with an explanation:", &explained)?;
        let unseen = self.unseen.iter().flat_map(|((source, destination), excuses)| {
            excuses.iter().map(move |(excuse, connections)| {
                let why = if *excuse == Excuse::None { String::new() } else { format!(" ({})", excuse.as_str()) };
                format!("{source} → {destination} {connections}{why}")
            })
        });
        list(f, "allowed and never seen:", &unseen.collect::<Vec<_>>())?;
        let beyond = self.outside.iter().filter(|(_, (allowed, seen))| allowed > seen);
        for ((workload, direction), (allowed, seen)) in beyond {
            writeln!(f, "  {workload} {}: {allowed} addresses outside, {seen} of them seen", direction.as_str())?;
        }
        writeln!(
            f,
            "{} observed edges allowed, {} denied ({} of them stable and unexplained); {} edges allowed and never seen",
            self.allowed,
            self.denied.len(),
            self.wrong().count(),
            self.unseen_edges().values().sum::<usize>(),
        )?;
        if self.judged == 0 {
            writeln!(f, "nothing is judged: the capture has no connection between ends whose pods are known")?;
        }
        if self.unjudged > 0 {
            writeln!(f, "{} observed edges are not judged: no pods of an end are known", self.unjudged)?;
        }
        for policy in &self.of_nobody {
            writeln!(f, "{policy} selects no pod that is known")?;
        }
        let (workloads, open) = self.workloads;
        if open > 0 {
            writeln!(f, "{open} of {workloads} workloads are limited by no policy")?;
        }
        Ok(())
    }
}

/// Writes a title and a line for each of a list, unless there is none.
fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, title: &str, list: &[T]) -> fmt::Result {
    if !list.is_empty() {
        writeln!(f, "{title}")?;
    }
    list.iter().try_for_each(|item| writeln!(f, "  {item}"))
}

/// A verdict as JSON has it.
#[derive(Serialize)]
struct VerdictJson<'v> {
    allowed: usize,
    not_judged: usize,
    forbidden_and_allowed: Vec<String>,
    policies_of_nobody: &'v [Arc<str>],
    workloads_there: usize,
    workloads_without_policy: usize,
    denied: Vec<DeniedJson<'v>>,
    unseen: Vec<UnseenJson<'v>>,
    outside: Vec<OutsideJson<'v>>,
    workloads: Vec<WorkloadJson<'v>>,
    stable_denied: usize,
}

#[derive(Serialize)]
struct DeniedJson<'v> {
    #[serde(serialize_with = "as_text")]
    edge: &'v Edge,
    status: Status,
    connections: i64,
    by: &'v BTreeSet<Denial>,
    explanation: Option<&'v str>,
    /// An address block by which some network plugins allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_by_some: Option<String>,
}

#[derive(Serialize)]
struct UnseenJson<'v> {
    #[serde(serialize_with = "as_text")]
    source: &'v Workload,
    #[serde(serialize_with = "as_text")]
    destination: &'v Workload,
    #[serde(serialize_with = "as_text")]
    connections: &'v Connections,
    reason: &'static str,
}

#[derive(Serialize)]
struct OutsideJson<'v> {
    #[serde(serialize_with = "as_text")]
    workload: &'v Workload,
    direction: Direction,
    // Beyond 2⁵³ numbers in JSON are not exact everywhere.
    #[serde(serialize_with = "as_text")]
    allowed: u128,
    #[serde(serialize_with = "as_text")]
    seen: u128,
}

#[derive(Serialize)]
struct WorkloadJson<'v> {
    #[serde(serialize_with = "as_text")]
    workload: &'v Workload,
    denied_explained: usize,
    denied: usize,
}

impl<'v> VerdictJson<'v> {
    fn new(verdict: &'v Verdict<'_>) -> Self {
        let denied = |Denied { edge, evidence, status, by, explanation, block }: &'v Denied<'_>| DeniedJson {
            edge,
            status: *status,
            connections: evidence.connections,
            by,
            explanation: explanation.as_deref(),
            allowed_by_some: block.map(|block| block.to_string()),
        };
        let unseen = verdict.unseen.iter().flat_map(|((source, destination), excuses)| {
            excuses.iter().map(move |(excuse, connections)| UnseenJson {
                source,
                destination,
                connections,
                reason: excuse.as_str(),
            })
        });
        let outside = verdict.outside.iter();
        let (workloads_there, workloads_without_policy) = verdict.workloads;
        Self {
            allowed: verdict.allowed,
            not_judged: verdict.unjudged,
            forbidden_and_allowed: verdict.let_through.iter().map(ToString::to_string).collect(),
            policies_of_nobody: &verdict.of_nobody,
            workloads_there,
            workloads_without_policy,
            denied: verdict.denied.iter().map(denied).collect(),
            unseen: unseen.collect(),
            outside: outside
                .map(|((workload, direction), (allowed, seen))| OutsideJson {
                    workload,
                    direction: *direction,
                    allowed: *allowed,
                    seen: *seen,
                })
                .collect(),
            workloads: by_workload(verdict)
                .into_iter()
                .map(|(workload, [denied_explained, denied])| WorkloadJson { workload, denied_explained, denied })
                .collect(),
            stable_denied: verdict.wrong().count(),
        }
    }
}
