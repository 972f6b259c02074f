//! What every agent's run says of itself, against the rows that are there: what it lost, and when it watched.
//!
//! A claim that something was *not* seen counts only where somebody watched: where there is health, little was lost, and
//! all rows that were written are in the capture.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    thread,
};

use kubernetes::Resource;
use schemas::{
    capture::{CaptureFile, Problem, RunRows, Runs, Seqs},
    flow::FlowRecord,
    health::HealthRecord,
    hour::Hour,
    index::{Heard, Span},
    inventory::{InventoryRecord, WRITER},
    programs::Missing,
    table::{Record, TimestampMs},
};

use super::{
    cache::State,
    claims::{self, Claim, Claims, Limits},
};
use crate::edge::{Overlaps, Recorded};

/// What one agent's run says of itself.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) node: Arc<str>,
    pub(crate) run_id: Arc<str>,
    pub(crate) run_start: TimestampMs,
    pub(crate) clean_shutdown: bool,
    /// Up to here every row that was written is in a finished file.
    pub(crate) whole_until: TimestampMs,
    /// Rows that were written and are not there, by dataset.
    pub(crate) missing_rows: [(&'static str, i64); 3],
    /// Ends of connections.
    pub(crate) lost: i64,
    /// Ends of connections.
    pub(crate) unidentified: i64,
    /// What recording was limited to, besides namespaces.
    pub(crate) filters: BTreeSet<Arc<str>>,
    /// Times at which the run watched its node, in order, apart from each other.
    pub(crate) watched: Vec<Watch>,
    /// Where it heard all that there is to hear of the cluster.
    heard: Option<TimestampMs>,
    next_seq: [i64; 3],
    flows_told: i64,
}

/// A time at which an agent watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) span: Span,
    /// Namespaces that it was limited to; empty for all.
    pub(crate) namespaces: Vec<Arc<str>>,
    /// Why it does not count as watched.
    pub(crate) gap: Option<&'static str>,
    /// Programs without which not all of it was recorded.
    pub(crate) missing: Missing,
    /// Whether all else was recorded, and is known to be whose: what is not there did not happen.
    pub(crate) is_whole: bool,
}

/// Reads what the runs say; where a time is given, until then. Files that turn out to be damaged are left out, and returned.
pub(crate) fn read(
    files: &[CaptureFile],
    state: Option<&State>,
    until: Option<TimestampMs>,
) -> (Vec<Run>, Vec<Problem>) {
    let is_said = |time: TimestampMs| until.is_none_or(|until| time <= until);
    let (mut runs, mut problems) = (BTreeMap::new(), Vec::new());
    let flows = rows(files, FlowRecord::DATASET);
    // Who can't watch what tells of addresses has not heard everything.
    let needed: Vec<_> = Resource::cluster().into_iter().filter(|r| r.is_needed).map(|r| r.to_string()).collect();
    let mut health: Vec<&CaptureFile> = files.iter().filter(|file| file.dataset == HealthRecord::DATASET).collect();
    health.sort_by_key(|file| (file.first_time(), &file.path));
    // Where a clock was set back, order of time is not order of writing, and everything is needed at once.
    let at_once = if are_in_order(&health) { FILES_AT_ONCE } else { health.len().max(1) };
    for files in health.chunks(at_once) {
        let (told, damaged): (Vec<_>, Vec<_>) = read_all(files, state).into_iter().partition(Result::is_ok);
        problems.extend(damaged.into_iter().filter_map(Result::err));
        let mut by_run: BTreeMap<Arc<str>, (Arc<str>, Vec<Claim>)> = BTreeMap::new();
        for Claims { node, run_id, rows } in told.into_iter().flatten().flatten() {
            by_run.entry(run_id).or_insert_with(|| (node, Vec::new())).1.extend(rows);
        }
        for (run_id, (node, mut rows)) in by_run {
            rows.sort_by_key(|row| row.seq);
            let run = runs.entry(Arc::clone(&run_id)).or_insert_with(|| Run::new(node, run_id));
            let rows = rows.into_iter().filter(|row| is_said(row.span.to));
            rows.for_each(|row| run.learn(row, flows.as_ref(), &needed));
        }
    }
    let (inventory, told) = (rows(files, InventoryRecord::DATASET), rows(files, HealthRecord::DATASET));
    for file in files.iter().filter(|file| is_said(file.first_time())) {
        // A run that was killed before its first word of health.
        for (run_id, RunRows { node, .. }) in file.runs.0.iter().filter(|_| file.rows > 0) {
            let run_id: Arc<str> = run_id.as_str().into();
            let start = Hour::ending(file.first_time()).start();
            let new =
                || Run { whole_until: start, run_start: start, ..Run::new(node.as_str().into(), Arc::clone(&run_id)) };
            runs.entry(Arc::clone(&run_id)).or_insert_with(new);
        }
    }
    for run in runs.values_mut() {
        let missing = |told: i64, rows: &Option<Runs>| {
            let of_run = |rows: &Runs| rows.0.get(&*run.run_id).map_or(told, |rows| missing(&rows.seqs, told));
            rows.as_ref().map_or(0, of_run)
        };
        run.missing_rows[0].1 = missing(run.next_seq[0], &flows);
        run.missing_rows[1].1 = missing(run.next_seq[1], &inventory);
        run.missing_rows[2].1 = missing(run.next_seq[2], &told);
    }
    let mut runs: Vec<Run> = runs.into_values().collect();
    runs.sort_by(|a, b| (&a.node, a.run_start, &a.run_id).cmp(&(&b.node, b.run_start, &b.run_id)));
    (runs, problems)
}

impl Run {
    fn new(node: Arc<str>, run_id: Arc<str>) -> Self {
        Self {
            node,
            run_id,
            run_start: TimestampMs::default(),
            clean_shutdown: false,
            whole_until: TimestampMs::default(),
            missing_rows: [(FlowRecord::DATASET, 0), (InventoryRecord::DATASET, 0), (HealthRecord::DATASET, 0)],
            lost: 0,
            unidentified: 0,
            filters: BTreeSet::new(),
            watched: Vec::new(),
            heard: None,
            next_seq: [0; 3],
            flows_told: 0,
        }
    }

    /// When the run had told all that it knew; `None` where it could not watch what tells of addresses.
    pub(crate) fn heard(&self) -> Option<Heard> {
        let (writer, run_id) = (Arc::clone(&self.node), Arc::clone(&self.run_id));
        self.heard.map(|time| Heard { time, writer, run_id })
    }

    /// Takes in the next row of health.
    fn learn(&mut self, row: Claim, flows: Option<&Runs>, needed: &[String]) {
        if row.seq < self.next_seq[2] {
            return; // a second delivery
        }
        let (flows_next, inventory_next) = row.next_seq;
        let is_next = row.seq == self.next_seq[2];
        self.next_seq = [flows_next, inventory_next, row.seq + 1];
        self.run_start = row.run_start;
        self.clean_shutdown |= row.clean_shutdown;
        self.unidentified += row.unidentified;
        self.lost += row.lost;
        let Limits { namespaces, filters, unreadable } = row.limits.map(|limits| *limits).unwrap_or_default();
        let is_whole = row.lost == 0 && row.unidentified == 0 && filters.is_empty();
        self.filters.extend(filters);
        let end = row.span.to;
        if !unreadable.iter().any(|name| needed.iter().any(|needed| **needed == **name)) {
            self.heard = Some(end.max(self.heard.unwrap_or(end)));
        }
        let none = Seqs::new();
        let rows = flows.map(|flows| flows.0.get(&*self.run_id).map_or(&none, |rows| &rows.seqs));
        let last = |rows: &Seqs| rows.last().map_or(0, |last| last + 1);
        let written = rows.map_or(i64::MAX, last);
        if flows_next <= written || self.whole_until == TimestampMs::default() {
            self.whole_until = if flows_next <= written { end } else { row.run_start };
        }
        let told_before = if is_next { self.flows_told } else { flows_next };
        self.flows_told = flows_next;
        let gap = if rows.is_some_and(|rows| !has(rows, told_before, flows_next)) {
            Some("rows are missing")
        } else if row.lost * 100 > row.seen {
            Some("more than 1 % was lost")
        } else {
            None
        };
        self.watch(Watch {
            span: row.span,
            namespaces,
            gap,
            missing: row.missing,
            is_whole: is_whole && gap.is_none(),
        });
    }

    fn watch(&mut self, watch: Watch) {
        let goes_on = |last: &&mut Watch| {
            let Watch { span, namespaces, gap, missing, is_whole } = &**last;
            let is_same = *namespaces == watch.namespaces
                && *gap == watch.gap
                && *missing == watch.missing
                && *is_whole == watch.is_whole;
            is_same && span.to >= watch.span.from
        };
        match self.watched.last_mut().filter(goes_on) {
            Some(last) => last.span.to = watch.span.to.max(last.span.to),
            None => self.watched.push(watch),
        }
    }
}

/// Which agents recorded one node at the same time.
pub(crate) fn overlaps(runs: &[Run]) -> Overlaps {
    // An inventory counts no connections.
    let agents = runs.iter().filter(|run| *run.node != *WRITER);
    let recorded: Vec<Recorded> = agents
        .map(|run| Recorded {
            node: Arc::clone(&run.node),
            run_id: Arc::clone(&run.run_id),
            watched: run.watched.iter().map(|watch| watch.span).collect(),
        })
        .collect();
    Overlaps::new(&recorded)
}

/// Whether all rows from one number to another, exclusive, are there.
fn has(rows: &Seqs, from: i64, to: i64) -> bool {
    from >= to || rows.range_at(from).is_some_and(|range| to - 1 <= *range.end())
}

/// How many of the rows numbered up to `told`, exclusive, are missing.
fn missing(rows: &Seqs, told: i64) -> i64 {
    let next = rows.last().map_or(0, |last| last + 1).max(told);
    (next - i64::try_from(rows.len()).unwrap_or(next)).max(0)
}

/// Rows of a dataset by run, from what files say of themselves; `None` if one does not, as when others wrote it anew. Of
/// flows, those that are summed up are there too.
fn rows(files: &[CaptureFile], dataset: &str) -> Option<Runs> {
    let mut runs = Runs::default();
    let is_summed_up = |file: &CaptureFile| file.summary.is_some() && dataset == FlowRecord::DATASET;
    for file in files.iter().filter(|file| file.dataset == dataset || is_summed_up(file)) {
        if file.runs.is_empty() {
            return None;
        }
        runs.add(&file.runs);
    }
    Some(runs)
}

/// Whether files that are in order of time have the rows of each run in order too.
fn are_in_order(files: &[&CaptureFile]) -> bool {
    let mut last: HashMap<&str, i64> = HashMap::new();
    files.iter().flat_map(|file| &file.runs.0).all(|(run, rows)| {
        let before = last.insert(run, rows.seqs.last().unwrap_or_default());
        before.is_none_or(|before| rows.seqs.first().is_some_and(|first| before < first))
    }) && files.iter().all(|file| !file.runs.is_empty())
}

/// Reads files of health, on as many threads as there are processors.
fn read_all(files: &[&CaptureFile], state: Option<&State>) -> Vec<Result<Vec<Claims>, Problem>> {
    let share = files.len().div_ceil(thread::available_parallelism().map_or(1, usize::from)).max(1);
    thread::scope(|scope| {
        let told =
            |file: &CaptureFile| state.map_or_else(|| claims::read(file), |state| state.claims(file, claims::read));
        let read = move |files: &[&CaptureFile]| files.iter().map(|file| told(file)).collect::<Vec<_>>();
        #[expect(clippy::needless_collect, reason = "all begin before the first is waited for")]
        let threads: Vec<_> = files.chunks(share).map(|files| scope.spawn(move || read(files))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("reading health does not panic")).collect()
    })
}

/// Files of health that are in memory at once.
const FILES_AT_ONCE: usize = 256;
