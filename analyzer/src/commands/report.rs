//! `flowscribe report`: policies on standard output or in files, what they rest on, and what a person should know on
//! standard error.

use std::{collections::BTreeSet, fmt::Write, path::Path};

use schemas::capture::{Problem, ProblemKind};

use super::shared::capture::{Capture, CaptureError, Proposal, ProposalError, check_readable};
use crate::policy::explanation::Explanation;
use crate::{
    capture::{OpenCapture, health::Run},
    cli::{InputArgs, ReportArgs},
    communication::Workload,
    exit::Exit,
    netpol::replay::{Excuse, Verdict},
    output::{self, OutputError, note, notes},
    policy::{PolicySet, Wish},
    publish::directory::{self, TreeError},
};

/// Why a report can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    #[error("no policy or workload {wanted}: there are {known}")]
    NoSuchPolicy { wanted: String, known: String },
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Reads captures, writes policies that were tried on what they are made of, and tells on standard error what they rest on.
///
/// # Errors
/// An input is not there, or the output can't be written; a policy would deny what is stable. A broken file among the
/// input is no error.
pub(crate) async fn run(args: &ReportArgs) -> Result<Exit, ReportError> {
    let ReportArgs { input, learn, policy, format, output, evidence, explain } = args;
    let capture = Capture::read(input, learn).await?;
    let wish = policy.wish();
    let directory = output.as_deref().filter(|path| is_directory(path));
    if capture.open.files.is_empty() {
        notes!("{}", skipped(&capture.open, input));
        return Err(CaptureError::NoCapture(input.told()).into());
    }
    // Where nothing is known, what a former run wrote stays.
    if directory.is_some() || !wish.namespaces.is_empty() {
        capture.check(input, &wish.namespaces)?;
    }
    if let Some(directory) = directory
        && capture.is_read_in_part()
        && directory::has_policies(directory)?
    {
        output::skipped(&capture.open.problems);
        note!("a part of the capture can't be read, as listed above: what is in {} stays", directory.display());
        return Ok(Exit::Kept);
    }
    check_readable(&capture.open)?;
    let Proposal { set, verdict } = capture.propose(&wish)?;
    let explained = || Explanation::new(capture.sets(), &set, &verdict, &wish);
    let documents = capture.documents(&set, *format).map_err(OutputError::Yaml)?;
    match directory {
        Some(directory) => {
            let named = set.policies.iter().map(|written| &written.policy.metadata).zip(documents);
            directory::write(directory, &directory::files(named, explained().json())?)?;
        }
        None => output::write(&documents.join("---\n"), output.as_deref())?,
    }
    if let Some(path) = evidence {
        output::write(&explained().json(), Some(path))?;
    }
    notes!("{}", remarks(&capture, &set, &verdict, &wish));
    if *explain {
        notes!("\n{}", explained().text());
    }
    Ok(Exit::Done)
}

/// Whether a path is a directory, or is to be one.
fn is_directory(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().to_string_lossy().ends_with('/')
}

/// What is not used where there is no capture: that an input is empty is said with that.
fn skipped(capture: &OpenCapture, input: &InputArgs) -> String {
    let inputs = &input.input;
    let is_empty_input = |problem: &&Problem| problem.kind == ProblemKind::Empty && inputs.contains(&problem.path);
    let mut text = String::new();
    for problem in capture.problems.iter().filter(|problem| !is_empty_input(problem)) {
        let _ = writeln!(text, "skipped {problem}");
    }
    text
}

/// Everything worth knowing, a line each: what is missing first, then what the policies leave out.
fn remarks(capture: &Capture, set: &PolicySet<'_>, verdict: &Verdict<'_>, wish: &Wish) -> String {
    let Capture { open, learned: (sets, undirected), .. } = capture;
    let mut text = String::new();
    for problem in &open.problems {
        let _ = writeln!(text, "skipped {problem}");
    }
    if !open.index.is_covered() {
        text += "no inventory of the whole cluster is in the input, so that no address can be told to be outside: record \
                 one with flowscribe inventory\n";
    }
    for run in open.runs.iter() {
        remark(run, undirected.get(&run.run_id).copied().unwrap_or_default(), &mut text);
    }
    text += &open.overlaps.text();
    text += &sets.exposure.described_gaps();
    for finding in &set.findings {
        let _ = writeln!(text, "{finding}");
    }
    for edge in &verdict.let_through {
        let _ = writeln!(text, "{edge}: forbidden, and allowed all the same");
    }
    text += &sets.remarks(|workload| wish.wants(workload));
    // What is held, forbidden or unknown is told above, edge by edge.
    for denied in verdict.denied.iter().filter(|denied| denied.explanation.is_none()) {
        let _ = writeln!(text, "{denied}");
    }
    let beyond = beyond(verdict, &wished(set));
    if !beyond.is_empty() {
        let _ = writeln!(text, "allowed and never seen: {beyond}");
    }
    let established = sets.edges.values().map(|(evidence, _)| evidence).filter(|evidence| evidence.is_established());
    let one_sided = established.clone().filter(|evidence| evidence.seen_by() != "both").count();
    let _ = writeln!(text, "what was seen is {}", sets.completeness.told());
    let _ = write!(
        text,
        "{} policies from {} communications ({one_sided} seen from one end only), {} rows of flows in {} files",
        set.policies.len(),
        established.count(),
        open.flow_rows(),
        open.files.len(),
    );
    let _ = match open.problems.len() {
        0 => writeln!(text),
        skipped => writeln!(text, ", {skipped} skipped"),
    };
    text
}

/// The workloads that have a policy.
fn wished(set: &PolicySet<'_>) -> BTreeSet<Workload> {
    set.policies.iter().filter_map(|written| written.workload.clone()).collect()
}

/// What policies allow beyond what was seen, in words.
fn beyond(verdict: &Verdict<'_>, workloads: &BTreeSet<Workload>) -> String {
    let words = |excuse| match excuse {
        Excuse::Pinned => "pinned",
        Excuse::ViaService => "behind a Service that was dialled",
        Excuse::Names => "the other transport of DNS",
        Excuse::ServicePort => "ports of Services",
        Excuse::Collateral => "by selectors that take in another workload",
        Excuse::None => "without a reason",
    };
    let mut parts: Vec<String> =
        verdict.unseen_edges().into_iter().map(|(excuse, count)| format!("{count} edges {}", words(excuse))).collect();
    let outside = verdict.outside.iter().filter(|((workload, _), _)| workloads.contains(workload));
    let (allowed, seen) =
        outside.fold((0u128, 0), |sum, (_, (allowed, seen))| (sum.0.saturating_add(*allowed), sum.1 + seen));
    if allowed > seen {
        parts.push(format!("{} addresses outside beside the {seen} seen", allowed - seen));
    }
    parts.join(", ")
}

fn remark(run: &Run, undirected_rows: i64, text: &mut String) {
    let Run { node, run_id, clean_shutdown, whole_until, missing_rows, lost, unidentified, filters, .. } = run;
    let of = format!("run {run_id} on node {node}");
    if !filters.is_empty() {
        let filters = filters.iter().map(|filter| &**filter).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "{of} was limited to {filters}: the policies deny the rest");
    }
    if !clean_shutdown {
        let _ = writeln!(
            text,
            "{of} has not ended cleanly (killed, or still recording): what it saw after {whole_until} is incomplete"
        );
    }
    for (dataset, missing) in missing_rows.iter().filter(|(_, missing)| *missing > 0) {
        let _ = writeln!(text, "{of}: {missing} rows of {dataset} are missing");
    }
    if *lost > 0 {
        let _ = writeln!(text, "{of} lost {lost} ends of connections while recording");
    }
    if *unidentified > 0 {
        let _ = writeln!(text, "{of}: {unidentified} ends of connections were in no known pod");
    }
    if undirected_rows > 0 {
        let _ = writeln!(text, "{of}: {undirected_rows} rows of flows have no known direction and make no rule");
    }
}
