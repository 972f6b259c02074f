//! Dividing a capture's flows into units of work, which share no hour, and reading them.
//!
//! A unit is what is in memory at once. Usually it is an hour, as files are of one hour each; files that overlap in time
//! make longer ones, of a day at most.

use std::{
    collections::HashMap,
    fmt, iter,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
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
    capture::{CaptureFile, Pages},
    flow::FlowRecord,
    index::Index,
    table::Table,
};

use super::{
    EdgeRow,
    fold::Folder,
    hour::HOUR_MS,
    row, rows,
    total::{Tally, merge},
};
use crate::communication::Communications;

/// The flows of a capture, and who was who.
pub(crate) struct Flows {
    cluster: Arc<str>,
    rows: u64,
    files: Vec<FlowFile>,
    units: Vec<Unit>,
    /// What is read of them, and the columns that there are.
    columns: Vec<&'static str>,
    schema: SchemaRef,
    index: Arc<Index>,
    progress: ProgressBar,
}

struct FlowFile {
    path: PathBuf,
    /// Another file may hold some of its rows too.
    repeats: bool,
    /// First and last hour of each row group.
    hours: Vec<(i64, i64)>,
}

/// How many rows of each run had no known direction, and are no edge.
pub(crate) type Undirected = HashMap<Arc<str>, i64>;

/// Hours, and the files and row groups that have rows of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unit {
    hours: (i64, i64),
    parts: Vec<(usize, Vec<usize>)>,
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
    #[error("cannot make rows of edges")]
    Encode(#[source] ArrowError),
}

impl Flows {
    /// Divides the files that hold flows.
    pub(crate) fn new(files: &[&CaptureFile], index: Arc<Index>, progress: ProgressBar) -> Self {
        let repeats = repeats(files);
        let cluster = files.first().map(|file| file.cluster.as_str().into()).unwrap_or_default();
        let rows = files.iter().map(|file| file.rows.max(0) as u64).sum();
        let hour = |time: i64| time.saturating_sub(1).div_euclid(HOUR_MS);
        let flow_file = |(file, repeats): (&&CaptureFile, bool)| FlowFile {
            path: file.path.clone(),
            repeats,
            hours: file.times.iter().map(|(first, last)| (hour(first.0), hour(last.0))).collect(),
        };
        let files: Vec<FlowFile> = files.iter().zip(repeats).map(flow_file).collect();
        let units = units(&files);
        let columns = row::columns().collect();
        progress.set_style(style());
        Self { cluster, rows, files, units, columns, schema: FlowRecord::schema(), index, progress }
    }

    /// Folds everything into one total per edge, on as many threads as there are processors. Memory goes by the edges of
    /// an hour and by edges, not by rows.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications(&self) -> Result<(Communications, Undirected), WorkError> {
        self.begin();
        let workers = thread::available_parallelism().map_or(1, usize::from).min(self.units.len()).max(1);
        // Each begins with hours that follow one another, as what is known of one serves the next; then it helps others.
        let share = self.units.len().div_ceil(workers).max(1);
        let shares: Vec<(&[Unit], AtomicUsize)> =
            self.units.chunks(share).map(|units| (units, AtomicUsize::new(0))).collect();
        let work = |worker: usize| {
            let (mut folder, mut tally) = (Folder::new(&self.index), Tally::default());
            let shares = shares.iter().cycle().skip(worker).take(shares.len());
            let units =
                shares.flat_map(|(units, next)| iter::from_fn(|| units.get(next.fetch_add(1, Ordering::Relaxed))));
            for unit in units {
                self.fold(&mut folder, unit)?;
                for hour in folder.finish() {
                    tally.add(&folder, &hour);
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
        let (mut communications, mut undirected) = parts.next().transpose()?.unwrap_or_default();
        for part in parts {
            let (more, runs) = part?;
            for (edge, evidence) in more {
                merge(&mut communications, edge, evidence);
            }
            for (run, rows) in runs {
                *undirected.entry(run).or_default() += rows;
            }
        }
        Ok((communications, undirected))
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
        for (file, groups) in &unit.parts {
            let file = &self.files[*file];
            let read_error = |source| WorkError::Read { path: file.path.clone(), source };
            let pages = Pages::open(&file.path).map_err(read_error)?;
            for group in groups {
                let reader = pages.read(*group, &self.schema, &self.columns, None).map_err(read_error)?;
                for batch in reader {
                    let batch = batch.map_err(|source| WorkError::Decode { path: file.path.clone(), source })?;
                    folder.add(&batch, unit.hours, file.repeats);
                    self.progress.inc(batch.num_rows() as u64);
                }
            }
        }
        Ok(())
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
fn units(files: &[FlowFile]) -> Vec<Unit> {
    // Runs of hours that files connect.
    let mut groups: Vec<(i64, i64, usize, usize)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        groups.extend(file.hours.iter().enumerate().map(|(group, (first, last))| (*first, *last, number, group)));
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
        // A row group is read once per unit: where that would be often, everything is one.
        let slices = |(from, to, ..): &(i64, i64, usize, usize)| to.saturating_sub(*from) / UNIT_HOURS;
        let is_divided = connected.iter().fold(0i64, |sum, group| sum.saturating_add(slices(group))) <= end as i64;
        let mut from = first;
        while from <= last {
            let hours = (from, if is_divided { last.min(from + UNIT_HOURS - 1) } else { last });
            let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
            for (.., file, group) in connected.iter().filter(|(first, last, ..)| *first <= hours.1 && hours.0 <= *last)
            {
                match parts.last_mut().filter(|(last, _)| last == file) {
                    Some((_, groups)) => groups.push(*group),
                    None => parts.push((*file, vec![*group])),
                }
            }
            units.push(Unit { hours, parts });
            let Some(next) = hours.1.checked_add(1) else { break };
            from = next;
        }
    }
    units
}

/// Which files may hold rows that another one holds too: their ranges of one run overlap, or one does not tell its range.
pub(crate) fn repeats(files: &[&CaptureFile]) -> Vec<bool> {
    let mut repeats = vec![false; files.len()];
    let mut runs: HashMap<&str, Vec<(i64, i64, usize)>> = HashMap::new();
    let mut is_told = true;
    for (number, file) in files.iter().enumerate() {
        match &file.run {
            Some((run, first, last)) => runs.entry(run).or_default().push((*first, *last, number)),
            None => is_told = false,
        }
    }
    if !is_told {
        return vec![true; files.len()];
    }
    for ranges in runs.values_mut() {
        ranges.sort_unstable();
        let mut furthest: Option<(i64, usize)> = None;
        for (first, last, number) in ranges.iter() {
            if let Some((end, other)) = furthest.filter(|(end, _)| first <= end) {
                (repeats[*number], repeats[other]) = (true, true);
                furthest = Some(if *last > end { (*last, *number) } else { (end, other) });
            } else {
                furthest = Some((*last, *number));
            }
        }
    }
    repeats
}

const BATCH_ROWS: usize = 8192;
/// Hours of a unit at most.
const UNIT_HOURS: i64 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(hours: &[(i64, i64)]) -> FlowFile {
        FlowFile { path: PathBuf::new(), repeats: false, hours: hours.to_vec() }
    }

    #[test]
    fn units_share_no_hour_and_have_every_row_group_of_theirs() {
        let files = [file(&[(1, 1), (1, 2)]), file(&[(2, 2)]), file(&[(4, 4)])];
        let unit = |hours, parts: &[(usize, &[usize])]| Unit {
            hours,
            parts: parts.iter().map(|(file, groups)| (*file, groups.to_vec())).collect(),
        };
        assert_eq!(units(&files), [unit((1, 2), &[(0, &[0, 1]), (1, &[0])]), unit((4, 4), &[(2, &[0])])]);
        let long = units(&[file(&[(0, 30)]), file(&[(25, 25)])]);
        assert_eq!(long, [unit((0, 23), &[(0, &[0])]), unit((24, 30), &[(0, &[0]), (1, &[0])])]);
        for all in [(i64::MIN, i64::MAX), (0, 72)] {
            let one = units(&[file(&[all]), file(&[(5, 5)])]);
            assert_eq!(one.len(), 1, "not read over and over: {one:?}");
        }
    }
}
