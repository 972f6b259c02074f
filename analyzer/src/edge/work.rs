//! Dividing a capture's flows into units of work, which share no hour, and reading them.
//!
//! A unit is what is in memory at once. Usually it is an hour, as files are of one hour each; files that overlap in time
//! make longer ones, of a day at most.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fmt, iter,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
    error::ArrowError,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchReceiverStreamBuilder,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use indicatif::{ProgressBar, ProgressStyle};
use parquet::errors::ParquetError;
use schemas::{
    capture::{self, CaptureFile, Pages, Problem, Runs, Summary},
    flow::FlowRecord,
    index::{Fingerprints, Index, Span},
    rollup::RollupRow,
    table::{Record, Table, TimestampMs},
};
use serde::{Deserialize, Serialize};

use super::{
    EdgeRow,
    fold::Folder,
    hour::HOUR_MS,
    rollup, row, rows,
    total::{Tally, merge},
};
use crate::communication::{Communications, Endpoint};

/// The flows of a capture, and who was who.
pub(crate) struct Flows {
    cluster: Arc<str>,
    rows: u64,
    files: Vec<FlowFile>,
    rollups: Vec<CaptureFile>,
    units: Vec<Unit>,
    /// What is read of them, and the columns that there are.
    columns: Vec<&'static str>,
    schema: SchemaRef,
    index: Arc<Index>,
    fingerprints: OnceLock<Fingerprints>,
    reads_ahead: AtomicBool,
    progress: ProgressBar,
}

struct FlowFile {
    file: CaptureFile,
    /// Another file may hold some of its rows too.
    repeats: bool,
    /// First and last hour of each row group.
    hours: Vec<(i64, i64)>,
}

/// What is known of some hours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Block {
    hours: (i64, i64),
    /// Rows that it is of.
    runs: Runs,
    /// What the inventory said.
    fingerprint: String,
    communications: Communications,
    undirected: Undirected,
}

/// How many rows of each run had no known direction, and are no edge.
pub(crate) type Undirected = HashMap<Arc<str>, i64>;

/// Hours, and the files and row groups that have rows of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) hours: (i64, i64),
    parts: Vec<(usize, Vec<usize>)>,
    /// Rollups that sum up different rows of these hours, and for each others of the same rows.
    rollups: Vec<Vec<usize>>,
    source: Source,
}

/// What a unit is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    /// Files of flows: there are no rollups, or rows that they do not sum up.
    #[default]
    Files,
    /// Rollups, which sum up all rows that there are; else the files.
    RollupsOrFiles,
    /// Rollups, as what they sum up is not there any more, and files for what else there is.
    Rollups,
}

/// Why flows could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: ParquetError,
    },
    #[error("cannot read {path}")]
    Decode {
        path: PathBuf,
        #[source]
        source: ArrowError,
    },
    #[error("{0}")]
    Rollup(Problem),
    #[error("cannot make rows of edges")]
    Encode(#[source] ArrowError),
}

impl Flows {
    /// Divides the files that hold flows, and what sums them up.
    pub(crate) fn new(files: &[CaptureFile], index: Arc<Index>, progress: ProgressBar) -> Self {
        let of_dataset =
            |dataset| files.iter().filter(move |file| file.dataset == dataset).cloned().collect::<Vec<CaptureFile>>();
        let (flows, rollups) = (of_dataset(FlowRecord::DATASET), of_dataset(RollupRow::NAME));
        let repeats = repeats(&flows.iter().collect::<Vec<_>>());
        let cluster = files.first().map(|file| file.cluster.as_str().into()).unwrap_or_default();
        let hour = |time: i64| time.saturating_sub(1).div_euclid(HOUR_MS);
        let flow_file = |(file, repeats): (CaptureFile, bool)| FlowFile {
            repeats,
            hours: file.times.iter().map(|(first, last)| (hour(first.0), hour(last.0))).collect(),
            file,
        };
        let files: Vec<FlowFile> = flows.into_iter().zip(repeats).map(flow_file).collect();
        let units = units(&files, &rollups);
        let rows = units.iter().map(|unit| unit.rows(&files, &rollups)).sum();
        let columns = row::columns().collect();
        progress.set_style(style());
        let (schema, fingerprints, reads_ahead) = (FlowRecord::schema(), OnceLock::new(), AtomicBool::new(false));
        Self { cluster, rows, files, rollups, units, columns, schema, index, fingerprints, reads_ahead, progress }
    }

    /// Folds everything into one total per edge, on as many threads as there are processors. Memory goes by the edges of
    /// an hour and by edges, not by rows.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications(&self) -> Result<(Communications, Undirected), WorkError> {
        self.begin();
        self.total(&self.units.iter().collect::<Vec<_>>(), EVER)
    }

    /// As [`Self::communications`], of some hours only, from first to last.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications_in(&self, hours: (i64, i64)) -> Result<Communications, WorkError> {
        self.begin();
        let units = self.units.iter().filter(|unit| unit.hours.0 <= hours.1 && hours.0 <= unit.hours.1);
        Ok(self.total(&units.collect::<Vec<_>>(), hours)?.0)
    }

    /// First and last hour of flows, since the Unix epoch; `None` if there are none.
    pub(crate) fn hours(&self) -> Option<(i64, i64)> {
        Some((self.units.first()?.hours.0, self.units.last()?.hours.1))
    }

    /// The same flows, with another knowledge of who was who.
    pub(crate) fn as_known(&self, index: Arc<Index>) -> Self {
        let files = self.files.iter().map(|file| file.file.clone()).chain(self.rollups.iter().cloned());
        Self::new(&files.collect::<Vec<_>>(), index, self.progress.clone())
    }

    /// As [`Self::communications`], from what is known of hours that have not changed, and new hours; what is known then.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications_since(
        &self,
        known: Vec<Block>,
    ) -> Result<(Communications, Undirected, Vec<Block>), WorkError> {
        self.begin();
        let mut open: Vec<&Unit> = self.units.iter().collect();
        let mut blocks: BTreeMap<Age, Block> = BTreeMap::new();
        let newest = self.units.last().map_or(0, |unit| unit.hours.1);
        let mut keep = |block: Block| match blocks.entry(age(block.hours.1, newest)) {
            Entry::Vacant(entry) => drop(entry.insert(block)),
            Entry::Occupied(mut entry) => entry.get_mut().add(block),
        };
        for block in known {
            let (within, others): (Vec<&Unit>, Vec<&Unit>) =
                open.iter().partition(|unit| unit.hours.0 <= block.hours.1 && block.hours.0 <= unit.hours.1);
            let are_same = within.iter().all(|unit| block.hours.0 <= unit.hours.0 && unit.hours.1 <= block.hours.1)
                && self.runs_of(&within).is_some_and(|runs| runs == block.runs);
            if are_same && block.fingerprint == self.fingerprint_of(&block.communications) {
                keep(block);
                open = others;
            }
        }
        let mut groups: BTreeMap<Age, Vec<&Unit>> = BTreeMap::new();
        for unit in open {
            groups.entry(age(unit.hours.1, newest)).or_default().push(unit);
        }
        let mut untold = (Communications::new(), Undirected::new());
        for units in groups.into_values() {
            let (communications, undirected) = self.total(&units, EVER)?;
            let hours =
                units.iter().fold((i64::MAX, i64::MIN), |(a, b), unit| (a.min(unit.hours.0), b.max(unit.hours.1)));
            match self.runs_of(&units) {
                Some(runs) => {
                    keep(Block { hours, runs, fingerprint: String::new(), communications, undirected });
                }
                // Of what does not tell its rows, nobody can say next time whether it is the same.
                None => add(&mut untold, (communications, undirected)),
            }
        }
        let mut blocks: Vec<Block> = blocks.into_values().collect();
        let mut all = untold;
        for block in &mut blocks {
            block.fingerprint = self.fingerprint_of(&block.communications);
            add(&mut all, (block.communications.clone(), block.undirected.clone()));
        }
        Ok((all.0, all.1, blocks))
    }

    /// All rows of some units; `None` if a file does not tell its own.
    fn runs_of(&self, units: &[&Unit]) -> Option<Runs> {
        let mut runs = Runs::default();
        for unit in units {
            let of_files = unit.parts.iter().map(|(file, _)| &self.files[*file].file.runs);
            let of_rollups = unit.rollups.iter().flatten().map(|rollup| &self.rollups[*rollup].runs);
            for of_one in of_files.chain(of_rollups) {
                if of_one.is_empty() {
                    return None;
                }
                runs.add(of_one);
            }
        }
        Some(runs)
    }

    /// What the inventory says of the time and of the ends of some communications.
    fn fingerprint_of(&self, communications: &Communications) -> String {
        let seen = communications.values().map(|evidence| Span { from: evidence.first_seen, to: evidence.last_seen });
        let span = seen.reduce(Span::hull).unwrap_or(Span::at(TimestampMs(0)));
        let pods =
            communications.values().flat_map(|evidence| evidence.source_pods.iter().chain(&evidence.destination_pods));
        let outside =
            communications.keys().flat_map(|edge| [&edge.source, &edge.destination]).filter_map(|end| match end {
                Endpoint::External { address } => Some(*address),
                _ => None,
            });
        self.fingerprint(span, pods.map(|uid| &**uid), outside)
    }

    /// Folds hours of some units into one total per edge.
    fn total(&self, units: &[&Unit], hours: (i64, i64)) -> Result<(Communications, Undirected), WorkError> {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        // Where there are fewer units than processors, one can read while another one folds.
        self.reads_ahead.store(units.len() < workers, Ordering::Relaxed);
        let workers = workers.min(units.len()).max(1);
        // Each begins with hours that follow one another, as what is known of one serves the next; then it helps others.
        let share = units.len().div_ceil(workers).max(1);
        let shares: Vec<(&[&Unit], AtomicUsize)> =
            units.chunks(share).map(|units| (units, AtomicUsize::new(0))).collect();
        let work = |worker: usize| {
            let (mut folder, mut tally) = (Folder::new(&self.index), Tally::default());
            let shares = shares.iter().cycle().skip(worker).take(shares.len());
            let units =
                shares.flat_map(|(units, next)| iter::from_fn(|| units.get(next.fetch_add(1, Ordering::Relaxed))));
            for unit in units {
                self.fold(&mut folder, unit)?;
                for hour in folder.finish().iter().filter(|hour| (hours.0..=hours.1).contains(&hour.number)) {
                    tally.add(&folder, hour);
                }
            }
            Ok((tally.finish(&folder), folder.undirected().collect()))
        };
        let work = &work;
        let parts: Vec<Result<(Communications, Undirected), WorkError>> = thread::scope(|scope| {
            #[expect(clippy::needless_collect, reason = "all begin before the first is waited for")]
            let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
            workers.into_iter().map(|worker| worker.join().expect("the fold does not panic")).collect()
        });
        let mut parts = parts.into_iter();
        let mut all = parts.next().transpose()?.unwrap_or_default();
        for part in parts {
            add(&mut all, part?);
        }
        Ok(all)
    }

    fn begin(&self) {
        self.progress.reset();
        self.progress.set_length(self.rows);
    }

    /// Makes the rows of every `parts`-th unit, for the given columns.
    fn make_rows(
        &self,
        (part, parts): (usize, usize),
        columns: &[usize],
        mut send: impl FnMut(RecordBatch) -> bool,
    ) -> Result<(), WorkError> {
        let mut folder = Folder::new(&self.index);
        let schema = Arc::new(EdgeRow::schema().project(columns).map_err(WorkError::Encode)?);
        for unit in self.units.iter().skip(part).step_by(parts) {
            self.fold(&mut folder, unit)?;
            for hour in folder.finish() {
                let rows = rows(&folder, &self.cluster, &hour);
                for rows in rows.chunks(BATCH_ROWS) {
                    let arrays = columns.iter().map(|column| EdgeRow::ENCODERS[*column](rows)).collect();
                    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
                    let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), arrays, &options);
                    if !send(batch.map_err(WorkError::Encode)?) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a unit.
    fn fold(&self, folder: &mut Folder<'_>, unit: &Unit) -> Result<(), WorkError> {
        let is_summed_up = unit.source != Source::Files && self.place(folder, unit)?;
        if is_summed_up && unit.source == Source::RollupsOrFiles {
            return Ok(());
        }
        let mut add = |batch: &RecordBatch, repeats: bool| {
            folder.add(batch, unit.hours, repeats || is_summed_up);
            self.progress.inc(batch.num_rows() as u64);
        };
        if self.reads_ahead.load(Ordering::Relaxed) {
            let (sender, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
            return thread::scope(|scope| {
                // Who no longer listens has failed, and says so.
                let read = scope.spawn(move || {
                    self.read(unit, |batch, repeats| {
                        let _ = sender.send((batch, repeats));
                    })
                });
                receiver.into_iter().for_each(|(batch, repeats)| add(&batch, repeats));
                read.join().expect("reading does not panic")
            });
        }
        self.read(unit, |batch, repeats| add(&batch, repeats))
    }

    /// Reads the files of a unit, and tells of each batch whether its rows may be elsewhere too.
    fn read(&self, unit: &Unit, mut take: impl FnMut(RecordBatch, bool)) -> Result<(), WorkError> {
        for (file, groups) in &unit.parts {
            let FlowFile { file, repeats, .. } = &self.files[*file];
            let read_error = |source| WorkError::Read { path: file.path.clone(), source };
            let pages = Pages::open(&file.path).map_err(read_error)?;
            for group in groups {
                let reader = pages.read(*group, &self.schema, &self.columns, None).map_err(read_error)?;
                for batch in reader {
                    take(batch.map_err(|source| WorkError::Decode { path: file.path.clone(), source })?, *repeats);
                }
            }
        }
        Ok(())
    }

    /// Reads the rollups of a unit; not, if the files are there too and the inventory tells something else by now.
    fn place(&self, folder: &mut Folder<'_>, unit: &Unit) -> Result<bool, WorkError> {
        let mut read = Vec::new();
        for alternatives in &unit.rollups {
            let mut last = None;
            for rollup in alternatives.iter().map(|number| &self.rollups[*number]) {
                let batches = capture::read_columns::<RollupRow>(rollup, &capture::columns::<RollupRow>())
                    .and_then(Iterator::collect::<Result<Vec<RecordBatch>, _>>)
                    .map_err(WorkError::Rollup)?;
                let is_right = self.still_holds(rollup, &batches);
                last = Some((rollup, batches, is_right));
                if is_right {
                    break;
                }
            }
            read.extend(last);
        }
        if unit.source == Source::RollupsOrFiles && !read.iter().all(|(.., is_right)| *is_right) {
            return Ok(false);
        }
        for (rollup, batches, _) in read {
            for batch in &batches {
                rollup::place(folder, batch);
            }
            for (run, rows) in &rollup.runs.0 {
                folder.skip(run, &rows.seqs);
            }
            for (run, rows) in rollup.summary.iter().flat_map(|summary| &summary.undirected) {
                folder.add_undirected(run, *rows);
            }
            self.progress.inc(rollup.rows.unsigned_abs());
        }
        Ok(true)
    }

    /// Whether the inventory says what it said when a rollup was made.
    fn still_holds(&self, rollup: &CaptureFile, batches: &[RecordBatch]) -> bool {
        let Some(Summary { looked_up: (from, to), fingerprint, .. }) = &rollup.summary else { return false };
        let (pods, outside) = rollup::mentions(batches);
        *fingerprint == self.fingerprint(Span { from: *from, to: *to }, pods, outside)
    }

    /// What the inventory says of a span, and of what was met in it.
    fn fingerprint<'a>(
        &self,
        span: Span,
        pods: impl IntoIterator<Item = &'a str>,
        outside: impl IntoIterator<Item = IpAddr>,
    ) -> String {
        let fingerprints = self.fingerprints.get_or_init(|| Fingerprints::new(&self.index));
        format!("{:016x}", fingerprints.of(&self.index, span, pods, outside))
    }

    /// Sums up the hours for which that is not done yet, or not of all rows, until an hour: gives each rollup's rows and
    /// summary, the rows of flows that it is of, and their files. Hours that can't be read are left, and returned.
    ///
    /// # Errors
    /// `write` fails.
    pub(crate) fn sum_up<E: Send>(
        &self,
        until: i64,
        write: impl Fn(&[RecordBatch], &Summary, &Runs, &[&CaptureFile]) -> Result<(), E> + Sync,
    ) -> Result<Vec<WorkError>, E> {
        let is_due = |unit: &&Unit| unit.hours.1 < until && !unit.parts.is_empty();
        #[expect(clippy::needless_collect, reason = "threads share them")]
        let units: Vec<&Unit> = self.units.iter().filter(is_due).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut folder, mut left) = (Folder::new(&self.index), Vec::new());
            while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.sum_up_unit(&mut folder, unit) {
                    Ok(Some((batches, summary, runs, files))) => write(&batches, &summary, &runs, &files)?,
                    Ok(None) => {}
                    Err(error) => left.push(error),
                }
                folder.finish();
                folder.take_undirected();
            }
            Ok(left)
        };
        let workers = thread::available_parallelism().map_or(1, usize::from).min(units.len()).max(1);
        let parts: Vec<Result<Vec<WorkError>, E>> = thread::scope(|scope| {
            #[expect(clippy::needless_collect, reason = "all begin before the first is waited for")]
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().expect("the fold does not panic")).collect()
        });
        Ok(parts.into_iter().collect::<Result<Vec<_>, E>>()?.into_iter().flatten().collect())
    }

    /// What is to be written of a unit; `None` if it is summed up, or can't be.
    fn sum_up_unit<'a>(&'a self, folder: &mut Folder<'a>, unit: &Unit) -> Result<Option<SummedUp<'a>>, WorkError> {
        let files: Vec<&CaptureFile> = unit.parts.iter().map(|(file, _)| &self.files[*file].file).collect();
        // Of what does not tell its rows, nobody could say later whether it is summed up.
        if files.iter().any(|file| file.runs.is_empty()) {
            return Ok(None);
        }
        // Whether a rollup is right is known when it is read.
        if unit.source == Source::RollupsOrFiles && self.place(folder, unit)? {
            return Ok(None);
        }
        self.fold(folder, unit)?;
        let looked_up = folder.looked_up();
        let hours = folder.finish();
        let undirected = folder.take_undirected();
        let batches: Vec<RecordBatch> =
            hours.iter().map(|hour| RollupRow::encode(&rollup::rows(folder, hour))).collect();
        let mut runs = Runs::default();
        let old = unit.rollups.iter().filter_map(|same| self.rollups.get(*same.first()?));
        let of_rollups: Vec<&CaptureFile> = if unit.source == Source::Rollups { old.collect() } else { Vec::new() };
        files.iter().chain(&of_rollups).for_each(|file| runs.add(&file.runs));
        let spans = of_rollups.iter().filter_map(|rollup| rollup.summary.as_ref()).map(|summary| summary.looked_up);
        let span = spans.fold(looked_up, |span, (from, to)| span.hull(Span { from, to }));
        let (pods, outside) = rollup::mentions(&batches);
        let fingerprint = self.fingerprint(span, pods, outside);
        let (hours, looked_up, rows) = (unit.hours, (span.from, span.to), runs.rows());
        let summary = Summary { hours, looked_up, fingerprint, rows, undirected };
        Ok(Some((batches, summary, runs, files)))
    }
}

/// A rollup's rows and summary, the rows of flows that it is of, and their files.
type SummedUp<'a> = (Vec<RecordBatch>, Summary, Runs, Vec<&'a CaptureFile>);

impl Block {
    /// Adds what is known of other hours.
    fn add(&mut self, other: Self) {
        self.hours = (self.hours.0.min(other.hours.0), self.hours.1.max(other.hours.1));
        self.runs.add(&other.runs);
        let mut all = (std::mem::take(&mut self.communications), std::mem::take(&mut self.undirected));
        add(&mut all, (other.communications, other.undirected));
        (self.communications, self.undirected) = all;
    }
}

/// Adds communications, and rows without a direction.
fn add(all: &mut (Communications, Undirected), more: (Communications, Undirected)) {
    for (edge, evidence) in more.0 {
        merge(&mut all.0, edge, evidence);
    }
    for (run, rows) in more.1 {
        *all.1.entry(run).or_default() += rows;
    }
}

/// What is remembered together, newest first: hours of late, which still change; days; everything before.
type Age = (u8, i64);

fn age(hour: i64, newest: i64) -> Age {
    match newest - hour {
        ..LATE_HOURS => (0, -hour),
        LATE_HOURS..LATE_DAYS_HOURS => (1, -hour.div_euclid(24)),
        _ => (2, 0),
    }
}

impl Unit {
    /// Rows that are read of it.
    fn rows(&self, files: &[FlowFile], rollups: &[CaptureFile]) -> u64 {
        let of_rollups = || self.rollups.iter().filter_map(|same| Some(rollups[*same.first()?].rows)).sum::<i64>();
        let of_files = || self.parts.iter().map(|(file, _)| files[*file].file.rows).sum::<i64>();
        let rows = match self.source {
            Source::Files => of_files(),
            Source::RollupsOrFiles => of_rollups(),
            Source::Rollups => of_rollups() + of_files(),
        };
        rows.unsigned_abs()
    }
}

/// The table `edges`: the flows are read and folded whenever it is asked.
#[derive(Debug)]
pub(crate) struct EdgeTable(pub(crate) Arc<Flows>);

#[async_trait]
impl TableProvider for EdgeTable {
    fn schema(&self) -> SchemaRef {
        EdgeRow::schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let columns = projection.cloned().unwrap_or_else(|| (0..EdgeRow::COLUMNS.len()).collect());
        let schema = Arc::new(EdgeRow::schema().project(&columns)?);
        let parts = state.config().target_partitions().min(self.0.units.len()).max(1);
        let stream = |part| -> Arc<dyn PartitionStream> {
            let (flows, schema, columns) = (Arc::clone(&self.0), Arc::clone(&schema), columns.clone());
            Arc::new(EdgeStream { flows, schema, columns, part: (part, parts) })
        };
        self.0.begin();
        let streams = (0..parts).map(stream).collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema, streams, None, None, false, limit)?))
    }
}

#[derive(Debug)]
struct EdgeStream {
    flows: Arc<Flows>,
    schema: SchemaRef,
    columns: Vec<usize>,
    part: (usize, usize),
}

impl PartitionStream for EdgeStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), 2);
        let (sender, flows) = (builder.tx(), Arc::clone(&self.flows));
        let (columns, part) = (self.columns.clone(), self.part);
        builder.spawn_blocking(move || {
            let made = flows.make_rows(part, &columns, |batch| sender.blocking_send(Ok(batch)).is_ok());
            made.map_err(|error| DataFusionError::External(error.into()))
        });
        builder.build()
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

/// How work is shown to people; nothing is, where standard error is no terminal.
fn style() -> ProgressStyle {
    let template = "{bar:40} {percent:>3} % of {human_len} rows of flows, {per_sec}, {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Units in order of time, which share no hour.
fn units(files: &[FlowFile], rollups: &[CaptureFile]) -> Vec<Unit> {
    // Runs of hours that files connect. Rollups are numbered after the files.
    let mut groups: Vec<(i64, i64, usize, usize)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        groups.extend(file.hours.iter().enumerate().map(|(group, (first, last))| (*first, *last, number, group)));
    }
    for (number, rollup) in rollups.iter().enumerate() {
        let (first, last) = rollup.summary.as_ref().map(|summary| summary.hours).unwrap_or_default();
        groups.push((first, last, files.len() + number, 0));
    }
    groups.sort_unstable();
    let mut units = Vec::new();
    let mut rest = &groups[..];
    while let Some((first, last, ..)) = rest.first() {
        let (first, mut last, mut end) = (*first, *last, 0);
        while let Some((from, to, ..)) = rest.get(end).filter(|(from, ..)| *from <= last) {
            debug_assert!(*from >= first);
            (last, end) = (last.max(*to), end + 1);
        }
        let (connected, others) = rest.split_at(end);
        rest = others;
        let of_rollups = connected.iter().filter_map(|(.., number, _)| number.checked_sub(files.len()));
        let of_rollups: Vec<usize> = of_rollups.collect();
        // A row group is read once per unit: where that would be often, everything is one.
        let slices = |(from, to, ..): &(i64, i64, usize, usize)| to.saturating_sub(*from) / UNIT_HOURS;
        let is_divided = of_rollups.is_empty()
            && connected.iter().fold(0i64, |sum, group| sum.saturating_add(slices(group))) <= end as i64;
        let mut from = first;
        while from <= last {
            let hours = (from, if is_divided { last.min(from + UNIT_HOURS - 1) } else { last });
            let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
            let of_files = connected.iter().filter(|(.., number, _)| *number < files.len());
            for (.., file, group) in of_files.filter(|(first, last, ..)| *first <= hours.1 && hours.0 <= *last) {
                match parts.last_mut().filter(|(last, _)| last == file) {
                    Some((_, groups)) => groups.push(*group),
                    None => parts.push((*file, vec![*group])),
                }
            }
            let (rollups, source) = sources(files, rollups, &mut parts, &of_rollups);
            units.push(Unit { hours, parts, rollups, source });
            let Some(next) = hours.1.checked_add(1) else { break };
            from = next;
        }
    }
    units
}

/// Which rollups of some hours are used, and what else.
fn sources(
    files: &[FlowFile],
    rollups: &[CaptureFile],
    parts: &mut Vec<(usize, Vec<usize>)>,
    found: &[usize],
) -> (Vec<Vec<usize>>, Source) {
    // Those with the most rows first; others of the same rows are alternatives, and what else overlaps is left out.
    let mut found = found.to_vec();
    found.sort_by_key(|number| rollups[*number].summary.as_ref().map(|summary| std::cmp::Reverse(summary.rows)));
    let (mut chosen, mut summed): (Vec<Vec<usize>>, Runs) = (Vec::new(), Runs::default());
    for number in found {
        let runs = &rollups[number].runs;
        if let Some(same) = chosen.iter_mut().find(|same| rollups[same[0]].runs == *runs) {
            same.push(number);
        } else if !summed.overlaps(runs) {
            summed.add(runs);
            chosen.push(vec![number]);
        }
    }
    if chosen.is_empty() {
        return (chosen, Source::Files);
    }
    let mut there = Runs::default();
    parts.iter().for_each(|(file, _)| there.add(&files[*file].file.runs));
    let is_told = parts.iter().all(|(file, _)| !files[*file].file.runs.is_empty());
    let source = match (is_told && summed.covers(&there), there.covers(&summed)) {
        (true, true) => Source::RollupsOrFiles,
        (false, true) => Source::Files,
        (false, false) => Source::Rollups,
        (true, false) => {
            parts.clear();
            Source::Rollups
        }
    };
    (chosen, source)
}

/// Which files may hold rows that another one holds too, or do not tell theirs.
pub(crate) fn repeats(files: &[&CaptureFile]) -> Vec<bool> {
    if files.iter().any(|file| file.runs.is_empty()) {
        return vec![true; files.len()];
    }
    let mut repeats: Vec<bool> = files.iter().map(|file| file.repeats_itself()).collect();
    let mut ranges: Vec<(&str, i64, i64, usize)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        ranges.extend(
            file.runs
                .0
                .iter()
                .filter_map(|(run, rows)| Some((run.as_str(), rows.seqs.first()?, rows.seqs.last()?, number))),
        );
    }
    ranges.sort_unstable();
    for (at, (run, _, last, one)) in ranges.iter().enumerate() {
        for (.., other) in ranges[at + 1..].iter().take_while(|(of, first, ..)| of == run && first <= last) {
            if one != other && files[*one].runs.overlaps(&files[*other].runs) {
                (repeats[*one], repeats[*other]) = (true, true);
            }
        }
    }
    repeats
}

const BATCH_ROWS: usize = 8192;
/// Hours and days back from the newest that are remembered apart, as files of theirs may still come.
const LATE_HOURS: i64 = 6;
const LATE_DAYS_HOURS: i64 = 8 * 24;
/// Batches that are read before they are folded.
const BATCHES_AHEAD: usize = 8;
const EVER: (i64, i64) = (i64::MIN, i64::MAX);
/// Hours of a unit at most.
const UNIT_HOURS: i64 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(hours: &[(i64, i64)]) -> FlowFile {
        FlowFile { file: CaptureFile::default(), repeats: false, hours: hours.to_vec() }
    }

    #[test]
    fn units_share_no_hour_and_have_every_row_group_of_theirs() {
        let files = [file(&[(1, 1), (1, 2)]), file(&[(2, 2)]), file(&[(4, 4)])];
        let unit = |hours, parts: &[(usize, &[usize])]| Unit {
            hours,
            parts: parts.iter().map(|(file, groups)| (*file, groups.to_vec())).collect(),
            ..Unit::default()
        };
        assert_eq!(units(&files, &[]), [unit((1, 2), &[(0, &[0, 1]), (1, &[0])]), unit((4, 4), &[(2, &[0])])]);
        let long = units(&[file(&[(0, 30)]), file(&[(25, 25)])], &[]);
        assert_eq!(long, [unit((0, 23), &[(0, &[0])]), unit((24, 30), &[(0, &[0]), (1, &[0])])]);
        for all in [(i64::MIN, i64::MAX), (0, 72)] {
            let one = units(&[file(&[all]), file(&[(5, 5)])], &[]);
            assert_eq!(one.len(), 1, "not read over and over: {one:?}");
        }
    }
}
