//! Who was who: the capture's inventory, read in order of time and a part at a time, as an index.
//!
//! Every file opens with a snapshot. Where the file before it in the same run is there too, the snapshot tells nothing
//! that its changes have not told, and is passed over: most of an inventory is such repetition.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, mpsc},
    thread,
};

use arrow::array::BooleanArray;
use schemas::{
    capture::{self, CaptureFile, Problem, ProblemKind},
    index::{Heard, Index, IndexBuilder},
    inventory::{InventoryEvent, InventoryRecord},
    table::{Record, SchemaError, TimestampMs, decode_column},
};

use super::cache::State;

/// Where a run of a writer has got to.
struct Progress {
    next_seq: i64,
    scope: Arc<str>,
}

/// A moment at which a writer told everything that it knew.
struct Snapshot {
    heard: Heard,
    scope: Arc<str>,
}

/// Reads the inventory; where a time is given, what was known then. Files that turn out to be damaged are left out, and returned.
pub(crate) fn read(
    files: &[CaptureFile],
    heard: Vec<Heard>,
    clock_skew_ms: u32,
    state: Option<&State>,
    until: Option<TimestampMs>,
) -> (Index, Vec<Problem>) {
    let is_known = |time: TimestampMs| until.is_none_or(|until| time <= until);
    let mut files: Vec<&CaptureFile> =
        files.iter().filter(|file| file.dataset == InventoryRecord::DATASET && file.rows > 0).collect();
    files.retain(|file| is_known(file.first_time()));
    let first_seq = |file: &CaptureFile| file.runs.0.values().next().and_then(|rows| rows.seqs.first());
    files.sort_by_key(|file| (file.first_time(), first_seq(file), &file.path));
    let mut builder = IndexBuilder::new(heard, clock_skew_ms.into());
    let mut problems = Vec::new();
    let mut waiting: BTreeMap<TimestampMs, Vec<InventoryRecord>> = BTreeMap::new();
    // Files are read while the ones before are taken in; those of a run by one reader, as each tells what the next adds.
    let are_merged = files.iter().any(|file| file.runs.0.len() > 1);
    let reader_of = |file: &CaptureFile| match file.runs.0.keys().next() {
        Some(run) if !are_merged => {
            run.bytes().fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % READERS
        }
        _ => 0,
    };
    thread::scope(|scope| {
        let ahead = &files;
        let receivers: [_; READERS] = std::array::from_fn(|reader| {
            let (sender, receiver) = mpsc::sync_channel(FILES_AHEAD);
            scope.spawn(move || {
                let mut runs = HashMap::new();
                for file in ahead.iter().filter(|file| reader_of(file) == reader) {
                    if sender.send(read_file(file, &mut runs, state)).is_err() {
                        return;
                    }
                }
            });
            receiver
        });
        for (at, file) in files.iter().enumerate() {
            match receivers[reader_of(file)].recv().expect("a reader tells of each of its files") {
                Ok((records, heard)) => {
                    heard.into_iter().filter(|heard| is_known(heard.time)).for_each(|heard| builder.hear(heard));
                    for record in records.into_iter().filter(|record| is_known(record.observed_at)) {
                        waiting.entry(record.observed_at).or_default().push(record);
                    }
                }
                Err(problem) => problems.push(problem),
            }
            // What no other file can have anything before of.
            let later = files.get(at + 1).map(|next| waiting.split_off(&next.first_time())).unwrap_or_default();
            builder.add(std::mem::replace(&mut waiting, later).into_values().flatten().collect());
        }
    });
    (builder.finish(), problems)
}

/// Reads what is news in a file, and when its writers were there.
fn read_file(
    file: &CaptureFile,
    runs: &mut HashMap<String, Progress>,
    state: Option<&State>,
) -> Result<(Vec<InventoryRecord>, Vec<Heard>), Problem> {
    let goes_on = |runs, run: &str| goes_on(file, runs, run);
    // What a file adds depends on which of its runs go on.
    let before: Vec<Option<Arc<str>>> = (file.runs.0.keys())
        .map(|run| goes_on(runs, run).then(|| runs.get(run).map(|run| Arc::clone(&run.scope))).flatten())
        .collect();
    let (records, heard) = match state {
        Some(state) => state.news(file, before, |file| news(file, runs))?,
        None => news(file, runs)?,
    };
    let scopes: HashMap<&str, &Arc<str>> = records.iter().map(|record| (&*record.run_id, &record.scope)).collect();
    for (run, rows) in &file.runs.0 {
        let progress = runs.entry(run.clone()).or_insert(Progress { next_seq: 0, scope: "".into() });
        progress.next_seq = rows.seqs.last().map_or(0, |last| last + 1);
        progress.scope = scopes.get(&**run).map_or_else(|| Arc::clone(&progress.scope), |scope| Arc::clone(scope));
    }
    Ok((records, heard))
}

/// Reads the rows of a file that add something to what runs told before, and when else its writers were there.
fn news(file: &CaptureFile, runs: &HashMap<String, Progress>) -> Result<(Vec<InventoryRecord>, Vec<Heard>), Problem> {
    let is_whole = |run: &str| is_whole(file, run);
    let goes_on = |runs, run: &str| goes_on(file, runs, run);
    let is_merged = file.runs.0.len() > 1;
    let may_repeat = file.runs.0.keys().any(|run| is_whole(run) && (is_merged || goes_on(runs, run)));
    let (mut selected, mut heard) = (None, Vec::new());
    if may_repeat {
        let snapshots = snapshots(file)?;
        let mut first: HashMap<&str, (TimestampMs, &Arc<str>)> = HashMap::new();
        for snapshot in snapshots.iter().flatten() {
            let told = first.entry(&snapshot.heard.run_id).or_insert((snapshot.heard.time, &snapshot.scope));
            *told = (*told).min((snapshot.heard.time, &snapshot.scope));
        }
        let is_news = |snapshot: &Snapshot| {
            let Snapshot { heard, scope } = snapshot;
            let (first, first_scope) = first.get(&*heard.run_id).copied().unwrap_or((heard.time, scope));
            let is_continued = goes_on(runs, &heard.run_id);
            let known = if is_continued { runs.get(&*heard.run_id).map(|run| &run.scope) } else { Some(first_scope) };
            !is_whole(&heard.run_id) || known != Some(scope) || (!is_continued && heard.time == first)
        };
        let select = |snapshot: &Option<Snapshot>| snapshot.as_ref().is_none_or(is_news);
        selected = Some(snapshots.iter().map(select).map(Some).collect::<BooleanArray>());
        heard = snapshots.iter().flatten().filter(|snapshot| !is_news(snapshot)).map(|s| s.heard.clone()).collect();
        heard.dedup();
    }
    Ok((capture::read_where(file, selected)?, heard))
}

/// Whether no row of a run is missing within a file: else a snapshot tells more than the changes before it.
fn is_whole(file: &CaptureFile, run: &str) -> bool {
    file.runs.0.get(run).is_some_and(|rows| rows.seqs.ranges_len() == 1)
}

/// Whether a file begins where what was read of a run before it ends.
fn goes_on(file: &CaptureFile, runs: &HashMap<String, Progress>, run: &str) -> bool {
    let first = file.runs.0.get(run).and_then(|rows| rows.seqs.first());
    runs.get(run).is_some_and(|progress| first == Some(progress.next_seq))
}

/// Of which snapshot each row of a file is, if of one.
fn snapshots(file: &CaptureFile) -> Result<Vec<Option<Snapshot>>, Problem> {
    let wrong = |error: SchemaError| file.problem(ProblemKind::WrongColumns { reason: error.to_string() });
    let mut snapshots = Vec::new();
    for batch in capture::read_columns::<InventoryRecord>(file, &["event", "scope", "node", "run_id", "observed_at"])? {
        let batch = batch?;
        let text = |column| decode_column::<Arc<str>>(&batch, InventoryRecord::DATASET, column).map_err(wrong);
        let events = text("event")?;
        let times = decode_column::<TimestampMs>(&batch, InventoryRecord::DATASET, "observed_at").map_err(wrong)?;
        let rows = events.iter().zip(times).zip(text("scope")?).zip(text("node")?).zip(text("run_id")?);
        snapshots.extend(rows.map(|((((event, time), scope), writer), run_id)| {
            (**event == InventoryEvent::Snapshot).then_some(Snapshot { heard: Heard { time, writer, run_id }, scope })
        }));
    }
    Ok(snapshots)
}

/// Files that are read before they are taken in.
const FILES_AHEAD: usize = 16;
const READERS: usize = 2;
