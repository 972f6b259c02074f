//! Reading units of flows, from files or from what sums them up, and folding them.

use std::{
    collections::HashMap,
    fmt, iter,
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
use indicatif::ProgressBar;
use parquet::errors::ParquetError;
use schemas::{
    capture::{self, CaptureFile, Pages, Problem},
    flow::FlowRecord,
    hour::{Hour, HourRange},
    index::{Fingerprints, Index},
    rollup::RollupRow,
    table::{Columns, Record, Table},
};

use super::{
    EdgeRow,
    all_hours::{Tally, merge},
    flow_columns,
    fold::Folder,
    overlap::Overlaps,
    rollup, table_rows,
    work_unit::{FlowFile, Source, Unit, repeats, units},
};
use crate::communication::Communications;

/// The flows of a capture, who was who, and which agents recorded the same.
pub(crate) struct Flows {
    cluster: Arc<str>,
    rows: u64,
    pub(super) files: Vec<FlowFile>,
    pub(super) rollups: Vec<CaptureFile>,
    pub(super) units: Vec<Unit>,
    /// What is read of them, and the columns that there are.
    columns: Vec<&'static str>,
    schema: SchemaRef,
    pub(super) index: Arc<Index>,
    pub(super) overlaps: Arc<Overlaps>,
    pub(super) fingerprints: OnceLock<Fingerprints>,
    reads_ahead: AtomicBool,
    progress: ProgressBar,
}

/// How many rows of each run had no known direction, and are no edge.
pub(crate) type Undirected = HashMap<Arc<str>, i64>;

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
    pub(crate) fn new(
        files: &[CaptureFile],
        index: Arc<Index>,
        overlaps: Arc<Overlaps>,
        progress: ProgressBar,
    ) -> Self {
        let of_dataset =
            |dataset| files.iter().filter(move |file| file.dataset == dataset).cloned().collect::<Vec<CaptureFile>>();
        let (flows, rollups) = (of_dataset(FlowRecord::DATASET), of_dataset(RollupRow::NAME));
        let repeats = repeats(&flows.iter().collect::<Vec<_>>());
        let cluster = files.first().map(|file| file.cluster.as_str().into()).unwrap_or_default();
        let flow_file = |(file, repeats): (CaptureFile, bool)| FlowFile {
            repeats,
            hours: file
                .times
                .iter()
                .map(|(first, last)| HourRange::new(Hour::ending(*first), Hour::ending(*last)))
                .collect(),
            file,
        };
        let files: Vec<FlowFile> = flows.into_iter().zip(repeats).map(flow_file).collect();
        let units = units(&files, &rollups);
        let rows = units.iter().map(|unit| unit.rows(&files, &rollups)).sum();
        let columns = flow_columns::columns().collect();
        let (schema, fingerprints, reads_ahead) = (FlowRecord::schema(), OnceLock::new(), AtomicBool::new(false));
        Self {
            cluster,
            rows,
            files,
            rollups,
            units,
            columns,
            schema,
            index,
            overlaps,
            fingerprints,
            reads_ahead,
            progress,
        }
    }

    /// Folds everything into one total per edge, on as many threads as there are processors. Memory goes by the edges of
    /// an hour and by edges, not by rows.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications(&self) -> Result<(Communications, Undirected), WorkError> {
        self.begin();
        self.total(&self.units.iter().collect::<Vec<_>>(), HourRange::EVER)
    }

    /// As [`Self::communications`], of some hours only, from first to last.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications_in(&self, hours: HourRange) -> Result<Communications, WorkError> {
        self.begin();
        let units = self.units.iter().filter(|unit| unit.hours.overlaps(&hours));
        Ok(self.total(&units.collect::<Vec<_>>(), hours)?.0)
    }

    /// First and last hour of flows, since the Unix epoch; `None` if there are none.
    pub(crate) fn hours(&self) -> Option<HourRange> {
        Some(HourRange::new(self.units.first()?.hours.first, self.units.last()?.hours.last))
    }

    /// The same flows, with another knowledge of who was who.
    pub(crate) fn as_known(&self, index: Arc<Index>) -> Self {
        let files = self.files.iter().map(|file| file.file.clone()).chain(self.rollups.iter().cloned());
        Self::new(&files.collect::<Vec<_>>(), index, Arc::clone(&self.overlaps), self.progress.clone())
    }

    /// Folds hours of some units into one total per edge.
    pub(super) fn total(&self, units: &[&Unit], hours: HourRange) -> Result<(Communications, Undirected), WorkError> {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        // Where there are fewer units than processors, one can read while another one folds.
        self.reads_ahead.store(units.len() < workers, Ordering::Relaxed);
        let workers = workers.min(units.len()).max(1);
        // Each begins with hours that follow one another, as what is known of one serves the next; then it helps others.
        let share = units.len().div_ceil(workers).max(1);
        let shares: Vec<(&[&Unit], AtomicUsize)> =
            units.chunks(share).map(|units| (units, AtomicUsize::new(0))).collect();
        let work = |worker: usize| {
            let (mut folder, mut tally) = (Folder::new(&self.index, &self.overlaps), Tally::default());
            let shares = shares.iter().cycle().skip(worker).take(shares.len());
            let units =
                shares.flat_map(|(units, next)| iter::from_fn(|| units.get(next.fetch_add(1, Ordering::Relaxed))));
            for unit in units {
                self.fold(&mut folder, unit)?;
                for hour in folder.finish().iter().filter(|hour| hours.contains(Hour(hour.number))) {
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

    /// How many parts [`Self::make_rows`] can be asked for, of so many that are wanted.
    pub(crate) fn parts(&self, wanted: usize) -> usize {
        wanted.min(self.units.len()).max(1)
    }

    /// Shows that reading begins.
    pub(crate) fn begin(&self) {
        self.progress.reset();
        self.progress.set_length(self.rows);
    }

    /// Makes the rows of every `parts`-th unit, for the given columns.
    pub(crate) fn make_rows(
        &self,
        (part, parts): (usize, usize),
        columns: &[usize],
        mut send: impl FnMut(RecordBatch) -> bool,
    ) -> Result<(), WorkError> {
        let mut folder = Folder::new(&self.index, &self.overlaps);
        let schema = Arc::new(EdgeRow::schema().project(columns).map_err(WorkError::Encode)?);
        for unit in self.units.iter().skip(part).step_by(parts) {
            self.fold(&mut folder, unit)?;
            for hour in folder.finish() {
                let rows = table_rows::rows(&folder, &self.cluster, &hour);
                for rows in rows.chunks(BATCH_ROWS) {
                    let arrays = columns.iter().map(|column| EdgeRow::encode_one(rows.iter(), *column)).collect();
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
    pub(super) fn fold(&self, folder: &mut Folder<'_>, unit: &Unit) -> Result<(), WorkError> {
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
    pub(super) fn place(&self, folder: &mut Folder<'_>, unit: &Unit) -> Result<bool, WorkError> {
        let mut read = Vec::new();
        for alternatives in &unit.rollups {
            let mut last = None;
            for rollup in alternatives.iter().map(|number| &self.rollups[*number]) {
                let batches = capture::read_columns::<RollupRow>(rollup, &capture::columns::<RollupRow>())
                    .and_then(Iterator::collect::<Result<Vec<RecordBatch>, _>>)
                    .map_err(WorkError::Rollup)?;
                let is_right = self.still_holds(rollup, &batches);
                if is_right || last.is_none() {
                    last = Some((rollup, batches, is_right));
                }
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
}

/// Adds communications, and rows without a direction.
pub(super) fn add(all: &mut (Communications, Undirected), more: (Communications, Undirected)) {
    for (edge, evidence) in more.0 {
        merge(&mut all.0, edge, evidence);
    }
    for (run, rows) in more.1 {
        *all.1.entry(run).or_default() += rows;
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

const BATCH_ROWS: usize = 8192;
/// Batches that are read before they are folded.
const BATCHES_AHEAD: usize = 8;
