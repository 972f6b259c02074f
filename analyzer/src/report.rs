//! `flowscribe report`: policies on standard output, what a person should know on standard error.

use std::{fmt::Write, path::PathBuf, sync::Arc};

use datafusion::error::DataFusionError;
use schemas::{
    capture::{Problem, ProblemKind},
    flow::FlowRecord,
    table::Record,
};

use crate::{
    args::ReportArgs,
    edge::Undirected,
    output::{self, OutputError},
    policy::{self, PolicyError, PolicySet, Wish},
    runs::Run,
    sets::{DecisionsError, Sets},
    tables::{Tables, TablesError},
};

/// Why a report can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error(transparent)]
    Decisions(#[from] DecisionsError),
    #[error("cannot read the capture")]
    Read(#[from] DataFusionError),
    #[error("refusing to write an unsafe policy, please report this")]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Reads captures, writes policies, and tells on standard error what they rest on.
///
/// # Errors
/// An input is not there, or the output can't be written. A broken file among the input is no error.
pub(crate) async fn run(args: &ReportArgs) -> Result<(), ReportError> {
    let learning = args.learn.learning()?;
    let question = async |tables: &Tables| Ok(tables.learned().await?);
    let (tables, learned) = Tables::ask::<_, ReportError>(&args.input, &learning, question).await?;
    let (sets, undirected) = &*learned;
    let named = args.namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
    let wish = Wish { namespaces: named.map(Arc::from).collect(), service_ports: args.service_ports };
    let communications = sets.allowed();
    let set = policy::synthesize(&communications, &tables.index, &wish)?;
    output::write(&output::yaml(&set.policies)?, args.output.as_deref())?;
    if tables.files.is_empty() {
        eprint!("{}", nothing(&tables, &args.input.input));
    } else {
        eprint!("{}", remarks(&tables, undirected, sets, &set));
    }
    Ok(())
}

/// What to say where there is no capture: that an input is empty is said with it.
fn nothing(tables: &Tables, inputs: &[PathBuf]) -> String {
    let is_empty_input = |problem: &&Problem| problem.kind == ProblemKind::Empty && inputs.contains(&problem.path);
    let mut text = String::new();
    for problem in tables.problems.iter().filter(|problem| !is_empty_input(problem)) {
        let _ = writeln!(text, "skipped {problem}");
    }
    let inputs: Vec<_> = inputs.iter().map(|input| input.display().to_string()).collect();
    let _ = writeln!(text, "nothing to report: no capture in {}", inputs.join(", "));
    text
}

/// Everything worth knowing, a line each: what is missing first, then what the policies leave out.
fn remarks(tables: &Tables, undirected: &Undirected, sets: &Sets, set: &PolicySet) -> String {
    let mut text = String::new();
    for problem in &tables.problems {
        let _ = writeln!(text, "skipped {problem}");
    }
    if !tables.index.is_covered() {
        text += "no inventory of the whole cluster is in the input, so that no address can be told to be outside: record \
                 one with flowscribe inventory\n";
    }
    for run in tables.runs.iter() {
        remark(run, undirected.get(&run.run_id).copied().unwrap_or_default(), &mut text);
    }
    for finding in &set.findings {
        let _ = writeln!(text, "{finding}");
    }
    text += &sets.remarks();
    let established = sets.edges.values().map(|(evidence, _)| evidence).filter(|evidence| evidence.is_established());
    let one_sided = established.clone().filter(|evidence| evidence.seen_by() != "both").count();
    let _ = write!(
        text,
        "{} policies from {} communications ({one_sided} seen from one end only), {} rows of flows in {} files",
        set.policies.len(),
        established.count(),
        tables.rows(FlowRecord::DATASET),
        tables.files.len(),
    );
    let _ = match tables.problems.len() {
        0 => writeln!(text),
        skipped => writeln!(text, ", {skipped} skipped"),
    };
    text
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
