//! Who was who: the capture's inventory, read in order of time and a part at a time, as an index.
//!
//! Every file opens with a snapshot. Where the file before it in the same run is there too, the snapshot tells nothing
//! that its changes have not told, and is passed over: most of an inventory is such repetition.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, mpsc},
    thread,
};

use arrow::array::BooleanArray;
use schemas::{
    capture::{self, CaptureFile, Problem, ProblemKind},
    index::{Heard, Index, IndexBuilder},
    inventory::{EVENT_SNAPSHOT, InventoryRecord},
    table::{Record, SchemaError, TimestampMs, decode_column},
};

/// Where a run of a writer has got to.
struct Progress {
    next_seq: i64,
    scope: Arc<str>,
}

/// What a file says before its rows are read.
struct Opening {
    selected: BooleanArray,
    heard: Option<Heard>,
    scopes: BTreeSet<Arc<str>>,
}

/// Reads the inventory. Files that turn out to be damaged are left out, and returned.
pub(crate) fn read(files: &[CaptureFile], heard: Vec<Heard>, clock_skew_ms: u32) -> (Index, Vec<Problem>) {
    let mut files: Vec<&CaptureFile> = files.iter().filter(|file| file.dataset == InventoryRecord::DATASET).collect();
    files.sort_by_key(|file| (file.first_time(), file.run.as_ref().map(|(_, first, _)| *first), &file.path));
    let mut builder = IndexBuilder::new(heard, clock_skew_ms.into());
    let mut problems = Vec::new();
    let mut waiting: BTreeMap<TimestampMs, Vec<InventoryRecord>> = BTreeMap::new();
    // Files are read while the ones before are taken in; those of a run by one reader, as each tells what the next adds.
    let reader_of = |file: &CaptureFile| match &file.run {
        Some((run, ..)) => {
            run.bytes().fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % READERS
        }
        None => 0,
    };
    thread::scope(|scope| {
        let ahead = &files;
        let receivers: [_; READERS] = std::array::from_fn(|reader| {
            let (sender, receiver) = mpsc::sync_channel(FILES_AHEAD);
            scope.spawn(move || {
                let mut runs = HashMap::new();
                for file in ahead.iter().filter(|file| reader_of(file) == reader) {
                    if sender.send(read_file(file, &mut runs)).is_err() {
                        return;
                    }
                }
            });
            receiver
        });
        for (at, file) in files.iter().enumerate() {
            match receivers[reader_of(file)].recv().expect("a reader tells of each of its files") {
                Ok((records, heard)) => {
                    heard.into_iter().for_each(|heard| builder.hear(heard));
                    for record in records {
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

/// Reads what is news in a file, and that its writer was there.
fn read_file(
    file: &CaptureFile,
    runs: &mut HashMap<String, Progress>,
) -> Result<(Vec<InventoryRecord>, Option<Heard>), Problem> {
    let Some((run, first, last)) = &file.run else { return Ok((capture::read(file)?, None)) };
    let (mut selected, mut heard) = (None, None);
    // Where rows are missing within the file, a snapshot tells more than the changes before it.
    let is_whole = file.seqs.len() == 1;
    if let Some(progress) = runs.get(run).filter(|progress| is_whole && progress.next_seq == *first) {
        let opening = open(file)?;
        if opening.scopes.iter().all(|scope| *scope == progress.scope) {
            (heard, selected) = (opening.heard, Some(opening.selected));
        }
    }
    let records: Vec<InventoryRecord> = capture::read_where(file, selected)?;
    let scope = records.last().map(|record| Arc::clone(&record.scope));
    let progress = runs.entry(run.clone()).or_insert(Progress { next_seq: 0, scope: "".into() });
    progress.next_seq = last + 1;
    progress.scope = scope.unwrap_or_else(|| Arc::clone(&progress.scope));
    Ok((records, heard))
}

/// Which rows of a file are no snapshot, and of what scope the snapshots are.
fn open(file: &CaptureFile) -> Result<Opening, Problem> {
    let wrong = |error: SchemaError| file.problem(ProblemKind::WrongColumns { reason: error.to_string() });
    let mut opening =
        Opening { selected: BooleanArray::from(Vec::<bool>::new()), heard: None, scopes: BTreeSet::new() };
    let mut selected = Vec::new();
    for batch in capture::read_columns::<InventoryRecord>(file, &["event", "scope", "node", "run_id", "observed_at"])? {
        let batch = batch?;
        let text = |column| decode_column::<Arc<str>>(&batch, InventoryRecord::DATASET, column).map_err(wrong);
        let events = text("event")?;
        let times = decode_column::<TimestampMs>(&batch, InventoryRecord::DATASET, "observed_at").map_err(wrong)?;
        let rows = events.iter().zip(times).zip(text("scope")?).zip(text("node")?).zip(text("run_id")?);
        for ((((event, time), scope), writer), run_id) in rows {
            selected.push(**event != *EVENT_SNAPSHOT);
            if **event == *EVENT_SNAPSHOT {
                opening.heard = Some(Heard { time, writer, run_id });
                opening.scopes.insert(scope);
            }
        }
    }
    opening.selected = selected.into();
    Ok(opening)
}

/// Files that are read before they are taken in.
const FILES_AHEAD: usize = 16;
const READERS: usize = 2;
