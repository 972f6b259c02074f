//! What agents' runs claim: rows of health, as files have them.

use std::sync::Arc;

use arrow::{
    array::{Array as _, AsArray},
    compute::cast,
};
use schemas::{
    capture::{self, CaptureFile, Problem, ProblemKind},
    health::HealthRecord,
    index::Span,
    programs::Missing,
    table::{Cell, Record, TimestampMs, decode_column},
};
use serde::{Deserialize, Serialize};

/// What rows of health of one run say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(super) node: Arc<str>,
    pub(super) run_id: Arc<str>,
    pub(super) rows: Vec<Claim>,
}

/// What a row of health says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) seq: i64,
    pub(super) span: Span,
    pub(super) run_start: TimestampMs,
    /// Programs without which not all was recorded.
    pub(super) missing: Missing,
    /// Most rows have none.
    pub(super) limits: Option<Box<Limits>>,
    pub(super) seen: i64,
    pub(super) unidentified: i64,
    pub(super) lost: i64,
    /// Of flows and of inventory.
    pub(super) next_seq: (i64, i64),
    pub(super) clean_shutdown: bool,
}

/// What a run did not watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) namespaces: Vec<Arc<str>>,
    pub(super) filters: Vec<Arc<str>>,
    pub(super) unreadable: Vec<Arc<str>>,
}

/// Reads a file of health.
///
/// # Errors
/// It is damaged, or is not of health.
pub(crate) fn read(file: &CaptureFile) -> Result<Vec<Claims>, Problem> {
    let mut claims = Vec::new();
    for batch in capture::read_columns::<HealthRecord>(file, &COLUMNS)? {
        let batch = batch?;
        let columns = Columns { batch: &batch, file };
        let texts = |name| columns.read::<Arc<str>>(name);
        let lists = |name| columns.read::<Vec<Arc<str>>>(name);
        let numbers = |name| columns.read::<i64>(name);
        let times = |name| columns.read::<TimestampMs>(name);
        let (nodes, run_ids, seqs) = (texts("node")?, texts("run_id")?, numbers("seq")?);
        let (starts, ends, run_starts) = (times("window_start")?, times("window_end")?, times("run_start")?);
        let (mut namespaces, mut filters) = (lists("namespaces")?, lists("filters")?);
        let mut unreadable = lists("unreadable")?;
        let missing = columns.missing_programs()?;
        let (seen, unidentified) = (numbers("seen")?, numbers("unidentified")?);
        let (flows_next, inventory_next) = (numbers("flows_next_seq")?, numbers("inventory_next_seq")?);
        let clean = columns.read::<bool>("clean_shutdown")?;
        let lost = LOST.into_iter().map(numbers).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let limits = Limits {
                namespaces: std::mem::take(&mut namespaces[row]),
                filters: std::mem::take(&mut filters[row]),
                unreadable: std::mem::take(&mut unreadable[row]),
            };
            let says = Claim {
                seq: seqs[row],
                span: Span { from: starts[row].max(run_starts[row]), to: ends[row] },
                run_start: run_starts[row],
                missing: missing[row],
                limits: (limits != Limits::default()).then(|| Box::new(limits)),
                seen: seen[row],
                unidentified: unidentified[row],
                lost: lost.iter().map(|column| column[row]).sum(),
                next_seq: (flows_next[row], inventory_next[row]),
                clean_shutdown: clean[row],
            };
            match claims.last_mut().filter(|last: &&mut Claims| last.run_id == run_ids[row]) {
                Some(last) => last.rows.push(says),
                None => {
                    let (node, run_id) = (Arc::clone(&nodes[row]), Arc::clone(&run_ids[row]));
                    claims.push(Claims { node, run_id, rows: vec![says] });
                }
            }
        }
    }
    Ok(claims)
}

/// A batch's columns by name.
struct Columns<'a> {
    batch: &'a arrow::array::RecordBatch,
    file: &'a CaptureFile,
}

impl Columns<'_> {
    fn read<T: Cell>(&self, name: &'static str) -> Result<Vec<T>, Problem> {
        decode_column(self.batch, HealthRecord::DATASET, name)
            .map_err(|error| self.file.problem(ProblemKind::WrongColumns { reason: error.to_string() }))
    }

    /// What the lists of programs lack. Most are the same as the one before.
    fn missing_programs(&self) -> Result<Vec<Missing>, Problem> {
        let wrong = |reason: String| self.file.problem(ProblemKind::WrongColumns { reason });
        let column = self.batch.column_by_name("programs").ok_or_else(|| wrong("there are no programs".into()))?;
        let column = cast(column, &<Vec<Arc<str>>>::data_type()).map_err(|error| wrong(error.to_string()))?;
        let lists = column.as_list::<i32>();
        let texts = lists.values().as_string::<i32>();
        let list = |row: usize| {
            let range = lists.value_offsets()[row] as usize..lists.value_offsets()[row + 1] as usize;
            range.map(|at| texts.value(at))
        };
        let mut missing: Vec<Missing> = Vec::with_capacity(lists.len());
        for row in 0..lists.len() {
            let same = row.checked_sub(1).filter(|last| list(*last).eq(list(row))).map(|last| missing[last]);
            missing.push(same.unwrap_or_else(|| Missing::of(list(row))));
        }
        Ok(missing)
    }
}

const LOST: [&str; 6] = ["lost_ring", "lost_map", "lost_parse", "lost_queue", "lost_sink", "lost_end"];
const COLUMNS: [&str; 21] = [
    "node",
    "run_id",
    "seq",
    "window_start",
    "window_end",
    "run_start",
    "programs",
    "namespaces",
    "filters",
    "unreadable",
    "seen",
    "unidentified",
    "flows_next_seq",
    "inventory_next_seq",
    "clean_shutdown",
    "lost_ring",
    "lost_map",
    "lost_parse",
    "lost_queue",
    "lost_sink",
    "lost_end",
];
