//! Finding and judging the files of captures: what can't be read is named, not fatal.

use std::{
    cell::RefCell,
    collections::HashSet,
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use arrow::{
    array::{BooleanArray, RecordBatch},
    error::ArrowError,
};
use parquet::{
    arrow::{ARROW_SCHEMA_META_KEY, arrow_reader::RowSelection, parquet_to_arrow_schema},
    errors::ParquetError,
    file::{
        metadata::{
            ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader,
            ParquetStatisticsPolicy, RowGroupMetaData,
        },
        statistics::Statistics,
    },
    schema::types::TypePtr,
};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    DATASETS, PARQUET, Pages, Runs, Seqs, Summary, UNFINISHED, UNFINISHED_FILES, contained::contained, key,
    pages::is_readable, runs,
};
use crate::{
    SCHEMA_VERSION,
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    rollup::RollupRow,
    table::{Column, Record, SchemaError, Table, TimestampMs, of_number},
};

/// Everything below the inputs: the files that can be read, and what can't be.
#[derive(Debug, Default)]
pub struct Listing {
    /// Readable files, sorted by path.
    pub files: Vec<CaptureFile>,
    /// Readable files whose rows are all in one of `files`, sorted by path: they were merged, or came twice.
    pub superseded: Vec<CaptureFile>,
    /// What was passed over and why, sorted by path.
    pub problems: Vec<Problem>,
}

/// One whole file of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFile {
    /// Where it is.
    pub path: PathBuf,
    /// One of [`DATASETS`], or `rollups`.
    #[serde(deserialize_with = "read_dataset")]
    pub dataset: Dataset,
    /// Major version of its schema.
    pub version: u32,
    /// Cluster it tells of.
    pub cluster: String,
    /// Rows in it.
    pub rows: i64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When it was written, as its file system says.
    pub modified: Option<SystemTime>,
    /// Runs whose rows are in it, or of a rollup, are summed up in it; in order of run, empty when the file does not say.
    pub runs: Runs,
    /// Earliest and latest [`Record::TIME`] of each of its row groups; all of time where one does not say.
    pub times: Vec<(TimestampMs, TimestampMs)>,
    /// Whether a row may have the DNS name of its destination.
    pub has_names: bool,
    /// What a rollup sums up.
    pub summary: Option<Summary>,
}

impl CaptureFile {
    /// Earliest [`Record::TIME`] in it.
    pub fn first_time(&self) -> TimestampMs {
        self.times.iter().map(|(first, _)| *first).min().unwrap_or_default()
    }

    /// Whether rows are in it more than once.
    pub fn repeats_itself(&self) -> bool {
        self.summary.is_none() && self.rows > self.runs.rows()
    }

    /// Whether it is of a schema that is read and written no more.
    pub const fn is_of_former_schema(&self) -> bool {
        self.version < SCHEMA_VERSION.0
    }

    /// A reason not to use it.
    pub fn problem(&self, kind: ProblemKind) -> Problem {
        Problem { path: self.path.clone(), kind }
    }

    /// Latest [`Record::TIME`] in it.
    pub fn last_time(&self) -> TimestampMs {
        self.times.iter().map(|(_, last)| *last).max().unwrap_or_default()
    }
}

/// Something among the input that is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub path: PathBuf,
    /// Why it is not used.
    pub kind: ProblemKind,
}

/// Why a file or directory is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// Neither a Parquet file nor a directory.
    NotParquet,
    /// A Parquet file that is cut short or damaged.
    Damaged { reason: String },
    /// Parquet, but not written by Flowscribe.
    Foreign,
    /// Of a schema version that this build does not know.
    NewerSchema { version: String },
    /// Lacks a column of its dataset, or has it with another type.
    WrongColumns { reason: String },
    /// Begun by a writer that was killed, or that still writes.
    Unfinished,
    /// Was received by a process that was killed, and is not in files yet.
    Received,
    /// A directory without files.
    Empty,
    /// Could not be opened.
    Unreadable { reason: String },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.kind {
            ProblemKind::NotParquet => write!(f, "not a Parquet file"),
            ProblemKind::Damaged { reason } => write!(f, "truncated or damaged ({reason})"),
            ProblemKind::Foreign => write!(f, "not written by Flowscribe (no {} in it)", key::SCHEMA_VERSION),
            ProblemKind::NewerSchema { version } => write!(
                f,
                "has schema version {version}, this build reads up to {}.x: use a newer flowscribe",
                SCHEMA_VERSION.0
            ),
            ProblemKind::WrongColumns { reason } => write!(f, "{reason}"),
            ProblemKind::Unfinished => write!(f, "unfinished: its writer was killed or is still writing"),
            ProblemKind::Received => {
                write!(
                    f,
                    "received by a process that was killed, and not in files: flowscribe compact makes files of it"
                )
            }
            ProblemKind::Empty => write!(f, "empty directory"),
            ProblemKind::Unreadable { reason } => write!(f, "cannot be read ({reason})"),
        }
    }
}

/// Lists the files below the given directories (or the files themselves); reads footers only.
///
/// # Errors
/// An input itself does not exist or can't be read; anything below it that can't be is a [`Problem`].
pub fn list(inputs: &[PathBuf]) -> io::Result<Listing> {
    list_known(inputs, |_, _, _| None)
}

/// As [`list`]; footers of files that are known, by path, size and time of writing, are not read again.
///
/// # Errors
/// As [`list`].
pub fn list_known(
    inputs: &[PathBuf],
    known: impl Fn(&Path, u64, Option<SystemTime>) -> Option<CaptureFile> + Sync,
) -> io::Result<Listing> {
    let known = &known;
    let (paths, problems) = find(inputs)?;
    let mut listing = Listing { problems, ..Listing::default() };
    // A footer takes a tenth of a millisecond, and there may be a hundred thousand.
    let share = paths.len().div_ceil(thread::available_parallelism().map_or(1, usize::from)).max(1);
    let examined = thread::scope(|scope| {
        let examine = |paths: &[PathBuf]| paths.iter().map(|path| examine(path, known)).collect::<Vec<_>>();
        #[expect(clippy::needless_collect, reason = "all begin before the first is waited for")]
        let threads: Vec<_> = paths.chunks(share).map(|paths| scope.spawn(move || examine(paths))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("looking at a file does not panic"))
            .collect::<Vec<_>>()
    });
    for examined in examined {
        match examined {
            Ok(file) => listing.files.push(file),
            Err(problem) => listing.problems.push(problem),
        }
    }
    listing.files.sort_by(|a, b| a.path.cmp(&b.path));
    listing.files.dedup_by(|a, b| a.path == b.path);
    (listing.files, listing.superseded) = set_apart(std::mem::take(&mut listing.files));
    listing.problems.sort();
    listing.problems.dedup();
    Ok(listing)
}

/// Sets those files apart whose rows are all in another one: files, then those set apart. Rollups are left: what they say
/// rests on more than rows.
pub fn set_apart(mut files: Vec<CaptureFile>) -> (Vec<CaptureFile>, Vec<CaptureFile>) {
    let mut ranges: Vec<(&str, &str, &str, i64, i64, usize)> = Vec::new();
    for (number, file) in files.iter().enumerate().filter(|(_, file)| file.summary.is_none()) {
        ranges.extend(file.runs.0.iter().filter_map(|(run, rows)| {
            Some((file.dataset, &*file.cluster, &**run, rows.seqs.first()?, rows.seqs.last()?, number))
        }));
    }
    ranges.sort_unstable();
    let mut is_superseded = vec![false; files.len()];
    for (at, (dataset, cluster, run, _, last, one)) in ranges.iter().enumerate() {
        let meets = |range: &&(&str, &str, &str, i64, i64, usize)| {
            (&range.0, &range.1, &range.2) == (dataset, cluster, run) && range.3 <= *last
        };
        for (.., other) in ranges[at + 1..].iter().take_while(meets) {
            let [a, b] = [*one, *other].map(|number| &files[number].runs);
            if a.covers(b) {
                // Of two with the same rows, that of the newer schema is kept, or the first.
                let rank = |number: usize| (std::cmp::Reverse(files[number].version), number);
                let last = if rank(*one) < rank(*other) { *other } else { *one };
                is_superseded[if b.covers(a) { last } else { *other }] = true;
            } else if b.covers(a) {
                is_superseded[*one] = true;
            }
        }
    }
    let mut is_superseded = is_superseded.into_iter();
    let superseded = files.extract_if(.., |_| is_superseded.next() == Some(true)).collect();
    (files, superseded)
}

/// Reads all rows of one file.
///
/// # Errors
/// The file is not of the dataset, or is damaged.
pub fn read<R: Record>(file: &CaptureFile) -> Result<Vec<R>, Problem> {
    read_where(file, None)
}

/// Reads the rows of one file that are selected; all of them for `None`.
///
/// # Errors
/// As [`read`].
pub fn read_where<R: Record>(file: &CaptureFile, selected: Option<BooleanArray>) -> Result<Vec<R>, Problem> {
    let count = selected.as_ref().map_or(file.rows.max(0) as usize, BooleanArray::true_count);
    // What a footer says is not believed at once.
    let mut rows = Vec::with_capacity(count.min(RESERVED_ROWS));
    for batch in batches::<R>(file, &columns::<R>(), selected)? {
        let decoded = R::decode(&batch?);
        rows.extend(decoded.map_err(|error| file.problem(ProblemKind::WrongColumns { reason: error.to_string() }))?);
    }
    Ok(rows)
}

/// Reads the named columns of one file, for [`decode_column`](crate::table::decode_column).
///
/// # Errors
/// The file is damaged, here or in one of the batches.
pub fn read_columns<T: Table>(
    file: &CaptureFile,
    columns: &[&str],
) -> Result<impl Iterator<Item = Result<RecordBatch, Problem>> + use<T>, Problem> {
    batches::<T>(file, columns, None)
}

/// The names of all columns of a table.
pub fn columns<T: Table>() -> Vec<&'static str> {
    T::columns().iter().map(|column| &*column.name).collect()
}

fn batches<T: Table>(
    file: &CaptureFile,
    columns: &[&str],
    selected: Option<BooleanArray>,
) -> Result<impl Iterator<Item = Result<RecordBatch, Problem>> + use<T>, Problem> {
    let schema = T::schema();
    let damaged = |error: ParquetError| file.problem(ProblemKind::Damaged { reason: error.to_string() });
    let pages = Pages::open(&file.path).map_err(damaged)?;
    let (mut readers, mut first) = (Vec::new(), 0);
    for (group, rows) in pages.rows().enumerate() {
        let selection = selected.as_ref().map(|selected| RowSelection::from_filters(&[selected.slice(first, rows)]));
        readers.push(pages.read(group, &schema, columns, selection).map_err(damaged)?);
        first += rows;
    }
    let path = file.path.clone();
    Ok(readers.into_iter().flatten().map(move |batch| {
        let damaged = |error: ArrowError| ProblemKind::Damaged { reason: error.to_string() };
        batch.map_err(|error| Problem { path: path.clone(), kind: damaged(error) })
    }))
}

/// Reads a whole file to see whether it can be read: what a footer cannot tell.
///
/// # Errors
/// As [`read`].
pub fn verify(file: &CaptureFile) -> Result<(), Problem> {
    match file.dataset {
        FlowRecord::DATASET => read::<FlowRecord>(file).map(drop),
        InventoryRecord::DATASET => read::<InventoryRecord>(file).map(drop),
        HealthRecord::DATASET => read::<HealthRecord>(file).map(drop),
        _ => read_columns::<RollupRow>(file, &columns::<RollupRow>())?.try_for_each(|batch| batch.map(drop)),
    }
}

/// Finds all files. While files are merged, a walk may miss both the merged one, which was made behind it, and those that
/// it was made of, which were removed before it: so it walks until it finds the same twice.
fn find(inputs: &[PathBuf]) -> io::Result<(Vec<PathBuf>, Vec<Problem>)> {
    let mut last = None;
    for _ in 0..WALKS {
        let (mut paths, mut problems, mut walked) = (Vec::new(), Vec::new(), HashSet::new());
        for input in inputs {
            if fs::metadata(input)?.is_dir() {
                walk(input, &mut walked, &mut paths, &mut problems);
                // What a writer left that was killed, or still writes.
                let unfinished = input.join(UNFINISHED_FILES);
                if unfinished.is_dir() {
                    walk(&unfinished, &mut walked, &mut paths, &mut Vec::new());
                }
                problems.extend(left_journal(input).map(|path| Problem { path, kind: ProblemKind::Received }));
            } else {
                paths.push(input.clone());
            }
        }
        paths.sort_unstable();
        let found = Some((paths, problems));
        if last == found {
            break;
        }
        last = found;
    }
    Ok(last.unwrap_or_default())
}

/// The journal of a capture, if something is in it and nobody receives: whoever does makes files of it.
fn left_journal(root: &Path) -> Option<PathBuf> {
    let journal = root.join(JOURNAL);
    let is_segment = |entry: &fs::DirEntry| {
        entry.path().extension().is_some_and(|extension| extension == SEGMENT)
            && entry.metadata().is_ok_and(|metadata| metadata.len() > 0)
    };
    fs::read_dir(&journal).ok()?.flatten().find(is_segment)?;
    let lock = File::open(journal.join(JOURNAL_LOCK)).ok()?;
    lock.try_lock_shared().is_ok().then_some(journal)
}

/// Finds the files below a folder. `walked` are folders by device and number: links may lead back to them.
fn walk(folder: &Path, walked: &mut HashSet<(u64, u64)>, paths: &mut Vec<PathBuf>, problems: &mut Vec<Problem>) {
    if fs::metadata(folder).is_ok_and(|of| !walked.insert((of.dev(), of.ino()))) {
        return;
    }
    let unreadable = |error: &io::Error| ProblemKind::Unreadable { reason: error.to_string() };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return problems.push(Problem { path: folder.into(), kind: unreadable(&error) }),
    };
    let mut empty = true;
    for entry in entries {
        empty = false;
        // As in Hive and Spark, names that begin so are not of the data, such as Delta Lake's log; but files of version 1 did.
        let is_hidden = |entry: &fs::DirEntry| match entry.file_name().as_encoded_bytes() {
            [b'.', ..] => true,
            [b'_', ..] => entry.path().is_dir(),
            _ => false,
        };
        if entry.as_ref().is_ok_and(is_hidden) {
            continue;
        }
        match entry {
            // What is a link is followed.
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_file()) => paths.push(entry.path()),
            Ok(entry) if entry.path().is_dir() => walk(&entry.path(), walked, paths, problems),
            Ok(entry) => paths.push(entry.path()),
            Err(error) => problems.push(Problem { path: folder.into(), kind: unreadable(&error) }),
        }
    }
    // A partition may be about to be filled, or was just pruned.
    let is_partition = folder.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'='));
    if empty && !is_partition {
        problems.push(Problem { path: folder.into(), kind: ProblemKind::Empty });
    }
}

fn examine(
    path: &Path,
    known: impl Fn(&Path, u64, Option<SystemTime>) -> Option<CaptureFile>,
) -> Result<CaptureFile, Problem> {
    let metadata = fs::metadata(path).ok();
    if let Some(file) = metadata.and_then(|metadata| known(path, metadata.len(), metadata.modified().ok())) {
        return Ok(file);
    }
    let inspected = contained(|| Ok::<_, ParquetError>(inspect(path)));
    let inspected = inspected.unwrap_or_else(|error| Err(ProblemKind::Damaged { reason: error.to_string() }));
    inspected.map_err(|kind| Problem { path: path.into(), kind })
}

/// Directory of a capture with what was received and is not in files yet, and what is in it: segments, and a file that
/// whoever receives holds locked.
pub const JOURNAL: &str = ".journal";
/// How the names of segments end.
pub const SEGMENT: &str = "segment";
/// The file that is locked.
pub const JOURNAL_LOCK: &str = "lock";
/// The name of a dataset.
type Dataset = &'static str;

/// Reads the name of a dataset.
fn read_dataset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let name = String::deserialize(deserializer)?;
    dataset(&name).ok_or_else(|| de::Error::custom(format!("`{name}` is no dataset")))
}

fn dataset(name: &str) -> Option<&'static str> {
    DATASETS.into_iter().chain([RollupRow::NAME]).find(|dataset| *dataset == name)
}

fn inspect(path: &Path) -> Result<CaptureFile, ProblemKind> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(PARQUET) => {}
        Some(UNFINISHED) => return Err(ProblemKind::Unfinished),
        _ => return Err(ProblemKind::NotParquet),
    }
    let file = File::open(path).map_err(|error| ProblemKind::Unreadable { reason: error.to_string() })?;
    let on_disk = file.metadata().ok();
    let size_bytes = on_disk.as_ref().map_or(0, |metadata| metadata.len());
    let modified = on_disk.and_then(|metadata| metadata.modified().ok());
    let damaged = |error: ParquetError| ProblemKind::Damaged { reason: error.to_string() };
    let options = ParquetMetaDataOptions::new()
        .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll);
    let reader = ParquetMetaDataReader::new().with_metadata_options(Some(options));
    let metadata = &reader.parse_and_finish(&file).map_err(damaged)?;
    let version = major_version(&value(metadata, key::SCHEMA_VERSION).ok_or(ProblemKind::Foreign)?)?;
    let named = value(metadata, key::DATASET).ok_or(ProblemKind::Foreign)?;
    let dataset = dataset(&named).ok_or_else(|| ProblemKind::WrongColumns {
        reason: format!("has dataset `{named}`, which this build does not know"),
    })?;
    check_columns(metadata, dataset)?;
    let cluster = value(metadata, key::CLUSTER).unwrap_or_default();
    let summary = value(metadata, key::SUMMARY).and_then(|summary| serde_json::from_str(&summary).ok());
    if dataset == RollupRow::NAME && summary.is_none() {
        return Err(ProblemKind::Damaged { reason: format!("no {} in it", key::SUMMARY) });
    }
    let (path, rows, times) = (path.into(), metadata.file_metadata().num_rows(), times(metadata, dataset));
    let of_groups = metadata.row_groups().iter().map(RowGroupMetaData::num_rows).fold(0, i64::saturating_add);
    if rows != of_groups || rows < 0 || rows.unsigned_abs() / ROWS_PER_BYTE > size_bytes {
        return Err(ProblemKind::Damaged { reason: format!("it says that {size_bytes} bytes are {rows} rows") });
    }
    let has_names = metadata.row_groups().iter().any(has_names);
    let runs = runs(metadata);
    Ok(CaptureFile { path, dataset, version, cluster, rows, size_bytes, modified, runs, times, has_names, summary })
}

/// What a file says of its rows: of one run, or after merging of several.
fn runs(metadata: &ParquetMetaData) -> Runs {
    let of_one = || {
        let run = value(metadata, key::RUN_ID)?;
        let number =
            |key| value(metadata, key)?.parse::<i64>().ok().filter(|number| of_number(*number, "seq").is_none());
        let seqs = match value(metadata, key::SEQS) {
            Some(seqs) => runs::parse(&seqs)?,
            None => Seqs::from_iter([number(key::FIRST_SEQ)?..=number(key::LAST_SEQ)?]),
        };
        // Who claims more rows than there are would have those of others taken for repetitions of them.
        let is_there = seqs.len() <= u128::from(metadata.file_metadata().num_rows().unsigned_abs());
        (!seqs.is_empty() && is_there).then(|| Runs::of(run, value(metadata, key::NODE).unwrap_or_default(), seqs))
    };
    let of_several = || serde_json::from_str(&value(metadata, key::RUNS)?).ok();
    of_several().or_else(of_one).unwrap_or_default()
}

/// Whether a row group does not say that all of its destinations are without a name.
fn has_names(group: &RowGroupMetaData) -> bool {
    let names = group.columns().iter().find(|chunk| chunk.column_path().string() == "destination_name");
    let nulls = |chunk: &ColumnChunkMetaData| chunk.statistics()?.null_count_opt();
    names.is_some_and(|chunk| nulls(chunk) != Some(group.num_rows() as u64))
}

fn times(metadata: &ParquetMetaData, dataset: &'static str) -> Vec<(TimestampMs, TimestampMs)> {
    let column = match dataset {
        FlowRecord::DATASET => FlowRecord::TIME,
        InventoryRecord::DATASET => InventoryRecord::TIME,
        HealthRecord::DATASET => HealthRecord::TIME,
        _ => ROLLUP_TIME,
    };
    let time = |group: &RowGroupMetaData| {
        let column = group.columns().iter().find(|chunk| chunk.column_path().string() == column)?;
        match column.statistics()? {
            Statistics::Int64(told) => Some((TimestampMs(*told.min_opt()?), TimestampMs(*told.max_opt()?))),
            _ => None,
        }
    };
    let unknown = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
    metadata.row_groups().iter().map(|group| time(group).unwrap_or(unknown)).collect()
}

fn major_version(version: &str) -> Result<u32, ProblemKind> {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.filter(|major| *major <= SCHEMA_VERSION.0).ok_or_else(|| ProblemKind::NewerSchema { version: version.into() })
}

/// Whether a file has the columns of its dataset. Files are mostly like the one before.
fn check_columns(metadata: &ParquetMetaData, dataset: &'static str) -> Result<(), ProblemKind> {
    let (schema, told) = (metadata.file_metadata().schema_descr(), value(metadata, ARROW_SCHEMA_META_KEY));
    let is_last = |last: &Option<Checked>| {
        last.as_ref()
            .is_some_and(|(of, known, arrow)| *of == dataset && *arrow == told && **known == *schema.root_schema())
    };
    if LAST_CHECKED.with_borrow(is_last) {
        return Ok(());
    }
    compare_columns(metadata, dataset)?;
    LAST_CHECKED.set(Some((dataset, schema.root_schema_ptr(), told)));
    Ok(())
}

fn compare_columns(metadata: &ParquetMetaData, dataset: &'static str) -> Result<(), ProblemKind> {
    let file = metadata.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
        .map_err(|error| ProblemKind::Damaged { reason: error.to_string() })?;
    let columns: &[Column] = match dataset {
        FlowRecord::DATASET => FlowRecord::columns(),
        InventoryRecord::DATASET => InventoryRecord::columns(),
        HealthRecord::DATASET => HealthRecord::columns(),
        _ => RollupRow::columns(),
    };
    for column in columns {
        let Ok(field) = schema.field_with_name(&column.name) else {
            // Of an older minor version: it is null.
            if column.nullable {
                continue;
            }
            let missing = SchemaError::MissingColumn { dataset, column: &column.name };
            return Err(ProblemKind::WrongColumns { reason: missing.to_string() });
        };
        if !is_readable(field.data_type(), &(column.data_type)()) {
            let reason = format!("column `{}` of dataset `{dataset}` has type {}", column.name, field.data_type());
            return Err(ProblemKind::WrongColumns { reason });
        }
    }
    Ok(())
}

/// A dataset, and the schema of a file of it that has its columns, as Parquet and as Arrow have it.
type Checked = (&'static str, TypePtr, Option<String>);

thread_local! {
    static LAST_CHECKED: RefCell<Option<Checked>> = const { RefCell::new(None) };
}

fn value(metadata: &ParquetMetaData, key: &str) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == key)?.value.clone()
}

/// The column of time of a rollup.
const ROLLUP_TIME: &str = "hour";
/// More rows than a byte of a file can have: each has a number of its own.
const ROWS_PER_BYTE: u64 = 1000;
/// Most rows that there is room made for before they are read.
const RESERVED_ROWS: usize = 64 * 1024;
/// How often is walked, where files come and go all the time.
const WALKS: usize = 8;
