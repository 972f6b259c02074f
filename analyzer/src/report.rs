//! `flowscribe report`: policies on standard output, what a person should know on standard error.

use std::{fmt::Write, path::PathBuf, sync::Arc};

use datafusion::error::DataFusionError;
use schemas::{
    capture::{Problem, ProblemKind},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

use crate::{
    args::ReportArgs,
    communication::Communications,
    output::{self, OutputError},
    policy::{self, PolicyError, PolicySet, Wish},
    rows::Rows,
    tables::{Tables, TablesError},
};

/// Why a report can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error("cannot read the capture")]
    Read(#[from] DataFusionError),
    #[error("refusing to write an unsafe policy, please report this")]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// What one agent's run says of itself.
struct Run {
    node: Arc<str>,
    run_id: Arc<str>,
    clean_shutdown: bool,
    whole_until: TimestampMs,
    /// Rows that were written and are not there, by dataset.
    missing_rows: [(&'static str, i64); 3],
    lost: i64,
    unidentified: i64,
    undirected_rows: i64,
    /// What recording was limited to, besides namespaces.
    filters: Arc<str>,
}

/// Reads captures, writes policies, and tells on standard error what they rest on.
///
/// # Errors
/// An input is not there, or the output can't be written. A broken file among the input is no error.
pub(crate) async fn run(args: &ReportArgs) -> Result<(), ReportError> {
    let (tables, (communications, runs)) = Tables::ask::<_, ReportError>(&args.input, read).await?;
    let named = args.namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
    let wish = Wish { namespaces: named.map(Arc::from).collect(), service_ports: args.service_ports };
    let set = policy::synthesize(&communications, &tables.index, &wish)?;
    output::write(&output::yaml(&set.policies)?, args.output.as_deref())?;
    if tables.files.is_empty() {
        eprint!("{}", nothing(&tables, &args.input.input));
    } else {
        eprint!("{}", remarks(&tables, &runs, &communications, &set));
    }
    Ok(())
}

async fn read(tables: &Tables) -> Result<(Communications, Vec<Run>), DataFusionError> {
    Ok((tables.communications().await?, runs(tables).await?))
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
fn remarks(tables: &Tables, runs: &[Run], communications: &Communications, set: &PolicySet) -> String {
    let mut text = String::new();
    for problem in &tables.problems {
        let _ = writeln!(text, "skipped {problem}");
    }
    if !tables.index.is_covered() {
        text += "no inventory of the whole cluster is in the input, so that no address can be told to be outside: record \
                 one with flowscribe inventory\n";
    }
    for run in runs {
        run.remark(&mut text);
    }
    for finding in &set.findings {
        let _ = writeln!(text, "{finding}");
    }
    let established = communications.values().filter(|evidence| evidence.is_established());
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

impl Run {
    fn remark(&self, text: &mut String) {
        let Self {
            node,
            run_id,
            clean_shutdown,
            whole_until,
            missing_rows,
            lost,
            unidentified,
            undirected_rows,
            filters,
        } = self;
        if !filters.is_empty() {
            let _ = writeln!(text, "run {run_id} on node {node} was limited to {filters}: the policies deny the rest");
        }
        if !clean_shutdown {
            let _ = writeln!(
                text,
                "run {run_id} on node {node} has not ended cleanly (killed, or still recording): what it saw after \
                 {whole_until} is incomplete"
            );
        }
        for (dataset, missing) in missing_rows.iter().filter(|(_, missing)| *missing > 0) {
            let _ = writeln!(text, "run {run_id} on node {node}: {missing} rows of {dataset} are missing");
        }
        if *lost > 0 {
            let _ = writeln!(text, "run {run_id} on node {node} lost {lost} ends of connections while recording");
        }
        if *unidentified > 0 {
            let _ =
                writeln!(text, "run {run_id} on node {node}: {unidentified} ends of connections were in no known pod");
        }
        if *undirected_rows > 0 {
            let _ = writeln!(
                text,
                "run {run_id} on node {node}: {undirected_rows} rows of flows have no known direction and make no rule"
            );
        }
    }
}

async fn runs(tables: &Tables) -> Result<Vec<Run>, DataFusionError> {
    let mut runs = Vec::new();
    for batch in &tables.sql(RUNS).await?.collect().await? {
        let rows = Rows::new(batch)?;
        runs.extend((0..batch.num_rows()).map(|row| Run {
            node: rows.text("node", row).unwrap_or_default(),
            run_id: rows.text("run_id", row).unwrap_or_default(),
            clean_shutdown: rows.flag("clean_shutdown", row),
            whole_until: TimestampMs(rows.number("whole_until", row)),
            missing_rows: [
                (FlowRecord::DATASET, rows.number("missing_flows", row)),
                (InventoryRecord::DATASET, rows.number("missing_inventory", row)),
                (HealthRecord::DATASET, rows.number("missing_health", row)),
            ],
            lost: rows.number("lost", row),
            unidentified: rows.number("unidentified", row),
            undirected_rows: rows.number("undirected_rows", row),
            filters: rows.text("filters", row).unwrap_or_default(),
        }));
    }
    Ok(runs)
}

const RUNS: &str = include_str!("sql/runs.sql");
