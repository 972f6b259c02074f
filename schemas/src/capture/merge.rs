//! Files made of files: several of a dataset as one, and rollups.

use std::{
    collections::HashSet,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::{cast, filter_record_batch},
    datatypes::{DataType, Int64Type},
};
use parquet::{
    arrow::{ARROW_SCHEMA_META_KEY, ArrowSchemaConverter, ArrowWriter},
    column::writer::ColumnCloseResult,
    errors::ParquetError,
    file::{
        metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{
    CaptureError, CaptureFile, PARQUET, Problem, ProblemKind, Runs, Summary, Utc, columns,
    contained::contained,
    key, read_columns,
    writer::{create_unfinished, properties, remove, settle, unfinished},
};
use crate::{
    SCHEMA_VERSION,
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    rollup::RollupRow,
    table::{Column, Record, Table, TimestampMs},
};

/// Why files could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of them can't be read, or was written by a newer version, whose columns would be lost.
    #[error("{0}")]
    Input(Problem),
    /// The merged file can't be written.
    #[error(transparent)]
    Output(#[from] CaptureError),
}

/// The folder of a moment's hour, below that of its dataset.
pub fn partition(time: TimestampMs) -> String {
    Utc::new(time).partition()
}

/// Writes all rows of files of one dataset and cluster into one file in a folder. Its name follows from what is in it, so
/// that to do it again changes nothing.
///
/// # Errors
/// A file can't be read, or the merged one not be written.
pub fn merge(files: &[&CaptureFile], folder: &Path, version: &str) -> Result<PathBuf, MergeError> {
    match files.first().map(|file| file.dataset) {
        Some(InventoryRecord::DATASET) => merge_as::<InventoryRecord>(files, folder, version),
        Some(HealthRecord::DATASET) => merge_as::<HealthRecord>(files, folder, version),
        _ => merge_as::<FlowRecord>(files, folder, version),
    }
}

/// Writes a rollup of flows into a folder.
///
/// # Errors
/// The file can't be written.
pub fn write_rollup(
    batches: &[RecordBatch],
    summary: &Summary,
    runs: &Runs,
    (inputs, cluster): (&[&str], &str),
    folder: &Path,
    version: &str,
) -> Result<PathBuf, CaptureError> {
    let path = folder.join(format!("rollup-{:016x}.{PARQUET}", hash((told(runs), &summary.fingerprint))));
    let mut metadata = metadata(RollupRow::NAME, cluster, runs, inputs, version);
    metadata.push(KeyValue::new(key::SUMMARY.into(), serde_json::to_string(summary).unwrap_or_default()));
    write(&path, |file| {
        // There are many, of few rows, which are read whole: statistics would be most of a file.
        let properties = properties::<RollupRow>(metadata).into_builder();
        let mut properties = properties.set_statistics_enabled(EnabledStatistics::None).set_offset_index_disabled(true);
        for list in ["services", "failures", "source_pod_uids", "destination_pod_uids"] {
            let items = ColumnPath::from([list, "list", "element"].map(str::to_owned).to_vec());
            properties = properties.set_column_dictionary_enabled(items, true);
        }
        let mut writer = ArrowWriter::try_new(file, RollupRow::schema(), Some(properties.build()))?;
        batches.iter().try_for_each(|batch| writer.write(batch))?;
        writer.into_inner()
    })?;
    Ok(path)
}

/// Writes a file without rows that says which rows of a dataset were there and were given up: so that nobody misses them.
///
/// # Errors
/// The file can't be written.
pub fn write_forgotten(
    dataset: &str,
    cluster: &str,
    runs: &Runs,
    folder: &Path,
    version: &str,
) -> Result<PathBuf, CaptureError> {
    let path = folder.join(format!("forgotten-{:016x}.{PARQUET}", hash((dataset, cluster, told(runs)))));
    let metadata = metadata(dataset, cluster, runs, &[], version);
    let (schema, properties) = match dataset {
        InventoryRecord::DATASET => (InventoryRecord::schema(), properties::<InventoryRecord>(metadata)),
        HealthRecord::DATASET => (HealthRecord::schema(), properties::<HealthRecord>(metadata)),
        _ => (FlowRecord::schema(), properties::<FlowRecord>(metadata)),
    };
    write(&path, |file| ArrowWriter::try_new(file, schema, Some(properties))?.into_inner())?;
    Ok(path)
}

fn merge_as<R: Record>(files: &[&CaptureFile], folder: &Path, version: &str) -> Result<PathBuf, MergeError> {
    let mut runs = Runs::default();
    let mut repeats = false;
    for file in files {
        repeats |= file.repeats_itself() || runs.overlaps(&file.runs);
        runs.add(&file.runs);
    }
    // Rows of other datasets may have the same numbers.
    let cluster = files.first().map_or("", |file| &file.cluster);
    let path = folder.join(format!("merged-{:016x}.{PARQUET}", hash((R::DATASET, cluster, told(&runs)))));
    let sources = files.iter().map(|file| Source::open::<R>(file)).collect::<Result<Vec<_>, _>>()?;
    let inputs: Vec<&str> = files.iter().filter_map(|file| file.path.file_name()?.to_str()).collect();
    let mut metadata = metadata(R::DATASET, cluster, &runs, &inputs, version);
    let groups: usize = sources.iter().map(|source| source.metadata.num_row_groups()).sum();
    let rows: i64 = files.iter().map(|file| file.rows).sum();
    // Large row groups are taken as they are, without decoding them.
    let are_alike = sources.iter().all(|source| source.is_as_written);
    if !repeats && are_alike && rows >= LARGE_GROUP_ROWS * groups as i64 {
        let arrow = sources.iter().find_map(|source| {
            let pairs = source.metadata.file_metadata().key_value_metadata()?;
            pairs.iter().find(|pair| pair.key == ARROW_SCHEMA_META_KEY)
        });
        metadata.extend(arrow.cloned());
        write(&path, |file| concatenate(&sources, file, metadata))?;
        return Ok(path);
    }
    let mut problem = None;
    let written = write(&path, |file| {
        let mut writer = ArrowWriter::try_new(file, R::schema(), Some(properties::<R>(metadata)))?;
        let mut seen = HashSet::new();
        for file in files {
            let failed = |found: Problem| {
                let error = ParquetError::General(found.to_string());
                problem = Some(found);
                error
            };
            let (mut batches, mut failed) = (Vec::new(), failed);
            read_columns::<R>(file, &columns::<R>())
                .and_then(|read| read.into_iter().try_for_each(|batch| batch.map(|batch| batches.push(batch))))
                .map_err(&mut failed)?;
            for batch in batches {
                writer.write(&if repeats { unseen(&batch, &mut seen)? } else { batch })?;
            }
        }
        writer.into_inner()
    });
    match problem {
        Some(problem) => Err(MergeError::Input(problem)),
        None => Ok(written.map(|()| path)?),
    }
}

/// A file that is merged.
struct Source {
    file: File,
    metadata: ParquetMetaData,
    /// Whether it has the columns that are written now, of the same types.
    is_as_written: bool,
}

impl Source {
    fn open<R: Record>(file: &CaptureFile) -> Result<Self, MergeError> {
        let problem = |kind| MergeError::Input(file.problem(kind));
        let damaged = |error: ParquetError| problem(ProblemKind::Damaged { reason: error.to_string() });
        let opened =
            File::open(&file.path).map_err(|error| problem(ProblemKind::Unreadable { reason: error.to_string() }))?;
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = contained(|| reader.parse_and_finish(&opened)).map_err(damaged)?;
        let fields = metadata.file_metadata().schema().get_fields();
        let has = |column: &&Column| fields.iter().any(|field| field.name() == column.name);
        let known: Vec<&Column> = R::columns().iter().filter(has).collect();
        if fields.len() != known.len() || fields.iter().zip(&known).any(|(field, column)| field.name() != column.name) {
            let reason = "has other columns than this version writes".into();
            return Err(problem(ProblemKind::WrongColumns { reason }));
        }
        let written = ArrowSchemaConverter::new().convert(&R::schema()).map_err(damaged)?;
        let is_as_written = metadata.file_metadata().schema().get_fields() == written.root_schema().get_fields();
        Ok(Self { file: opened, is_as_written, metadata })
    }
}

/// Writes the row groups of all sources, as they are, one after another.
fn concatenate(sources: &[Source], file: File, metadata: Vec<KeyValue>) -> Result<File, ParquetError> {
    let Some(schema) = sources.first().map(|source| source.metadata.file_metadata().schema_descr().root_schema_ptr())
    else {
        return Ok(file);
    };
    let properties = WriterProperties::builder().set_key_value_metadata(Some(metadata)).build();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    for Source { file, metadata, .. } in sources {
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let mut out = writer.next_row_group()?;
            for (column, chunk) in group.columns().iter().enumerate() {
                let close = ColumnCloseResult {
                    bytes_written: chunk.compressed_size().unsigned_abs(),
                    rows_written: group.num_rows().unsigned_abs(),
                    metadata: chunk.clone(),
                    bloom_filter: None,
                    column_index: metadata.column_index().and_then(|index| index.get(number)?.get(column).cloned()),
                    offset_index: metadata.offset_index().and_then(|index| index.get(number)?.get(column).cloned()),
                };
                out.append_column(file, close)?;
            }
            out.close()?;
        }
    }
    writer.into_inner()
}

/// The rows of a batch that did not come before.
fn unseen(batch: &RecordBatch, seen: &mut HashSet<(Arc<str>, i64)>) -> Result<RecordBatch, ParquetError> {
    let column = |name| batch.column_by_name(name).ok_or_else(|| ParquetError::General(format!("no column {name}")));
    let runs = cast(column("run_id")?, &DataType::Utf8)?;
    let seqs = column("seq")?.as_primitive::<Int64Type>().values();
    let mut last: Arc<str> = "".into();
    let is_new: BooleanArray = (runs.as_string::<i32>().iter().zip(seqs))
        .map(|(run, seq)| {
            let run = run.unwrap_or_default();
            if *last != *run {
                last = run.into();
            }
            Some(seen.insert((Arc::clone(&last), *seq)))
        })
        .collect();
    Ok(filter_record_batch(batch, &is_new)?)
}

fn write(path: &Path, fill: impl FnOnce(File) -> Result<File, ParquetError>) -> Result<(), CaptureError> {
    let unfinished = unfinished(path);
    let io_error = |source| CaptureError::Io { path: path.into(), source };
    let written = (|| {
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(io_error)?;
        // One that was killed may have left it.
        remove(&unfinished);
        let file = create_unfinished(&unfinished).map_err(io_error)?;
        let file = fill(file).map_err(|source| CaptureError::Encode { path: path.into(), source })?;
        settle(&file, &unfinished, path)
    })();
    if written.is_err() {
        remove(&unfinished);
    }
    written
}

fn metadata(dataset: &str, cluster: &str, runs: &Runs, inputs: &[&str], version: &str) -> Vec<KeyValue> {
    let (major, minor) = SCHEMA_VERSION;
    let inputs = serde_json::to_string(inputs).unwrap_or_default();
    let pairs = [
        (key::SCHEMA_VERSION, format!("{major}.{minor}")),
        (key::AGENT_VERSION, version.into()),
        (key::DATASET, dataset.into()),
        (key::CLUSTER, cluster.into()),
        (key::RUNS, told(runs)),
        (key::INPUTS, inputs),
    ];
    pairs.map(|(key, value)| KeyValue::new(key.into(), value)).to_vec()
}

fn told(runs: &Runs) -> String {
    serde_json::to_string(runs).unwrap_or_default()
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Row groups with so many rows are as good as larger ones.
const LARGE_GROUP_ROWS: i64 = 8192;
