//! Writing a dataset of a capture, so that whatever has its final name is whole.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use arrow::datatypes::DataType;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};

use super::{DATASETS, Origin, PARQUET, UNFINISHED, UNFINISHED_FILES, Utc, key};
use crate::{
    SCHEMA_VERSION,
    hour::Hour,
    rollup::RollupRow,
    table::{Record, Table, TimestampMs},
};

/// Why a dataset could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file system refused.
    #[error("cannot write {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The Parquet writer failed.
    #[error("cannot encode {path}")]
    Encode {
        path: PathBuf,
        #[source]
        source: ParquetError,
    },
}

/// When a file is finished and the next one begun; a new UTC hour always begins a new file.
#[derive(Clone, Copy, Debug)]
pub struct Roll {
    /// Finish a file that has about this many bytes.
    pub size_bytes: u64,
    /// Finish a file this long after its first row.
    pub age: Duration,
}

/// Writes the rows of one dataset and run into files of a capture.
///
/// Rows are buffered, sorted and encoded a batch at a time; [`Self::finish`] makes them durable. Dropping a writer leaves its unfinished
/// file behind, which [`list`](super::list) names.
pub struct DatasetWriter<R: Record> {
    root: PathBuf,
    origin: Origin,
    agent_version: &'static str,
    roll: Roll,
    files: u64,
    buffer: Vec<R>,
    open: Option<OpenFile>,
}

struct OpenFile {
    writer: ArrowWriter<File>,
    path: PathBuf,
    hour: i64,
    opened_at: TimestampMs,
    /// First and last of the numbers without a gap, in order of writing.
    seqs: Vec<(i64, i64)>,
}

impl<R: Record> DatasetWriter<R> {
    /// Prepares to write below `root`; no file is made before the first row.
    pub fn new(root: &Path, origin: &Origin, agent_version: &'static str, roll: Roll) -> Self {
        Self {
            root: root.to_path_buf(),
            origin: origin.clone(),
            agent_version,
            roll,
            files: 0,
            buffer: Vec::new(),
            open: None,
        }
    }

    /// Adds a row. `now` is the time that [`Self::is_due`] measures a file's age with.
    ///
    /// # Errors
    /// The file can't be made or written to; [`Self::abandon`] it then.
    pub fn push(&mut self, row: R, now: TimestampMs) -> Result<(), CaptureError> {
        self.finish_other_hour(&row)?;
        if self.open.is_none() {
            self.open = Some(self.create(row.partition_time(), now)?);
        }
        self.buffer.push(row);
        if self.buffer.len() >= ROWS_PER_BATCH { self.write_batch() } else { Ok(()) }
    }

    /// Finishes the open file if `row` is of another hour, as [`Self::push`] does, and returns it.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_other_hour(&mut self, row: &R) -> Result<Option<PathBuf>, CaptureError> {
        if self.is_same_hour(row) { Ok(None) } else { self.finish() }
    }

    /// Whether a row belongs to the open file, or none is open.
    pub fn is_same_hour(&self, row: &R) -> bool {
        self.open.as_ref().is_none_or(|file| file.hour == hour(row.partition_time()))
    }

    /// Whether the open file has reached the size or age to be finished at.
    pub fn is_due(&self, now: TimestampMs) -> bool {
        self.open.as_ref().is_some_and(|file| {
            let size_bytes = file.writer.bytes_written() + file.writer.in_progress_size();
            let age_ms = now.0 - file.opened_at.0;
            // Where the clock was set back, how old the file is can't be told.
            let is_old = age_ms < 0 || age_ms >= self.roll.age.as_millis() as i64;
            is_old || size_bytes as u64 >= self.roll.size_bytes
        })
    }

    /// Whether a file is open: rows were pushed since the last [`Self::finish`].
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Makes everything pushed so far durable and visible, and returns the file; `None` when there was nothing.
    ///
    /// # Errors
    /// The file can't be written, synced or renamed; [`Self::abandon`] it then.
    pub fn finish(&mut self) -> Result<Option<PathBuf>, CaptureError> {
        self.write_batch()?;
        let Some(file) = self.open.take() else { return Ok(None) };
        let unfinished = unfinished(&file.path);
        let finished = file.finish(&unfinished);
        if finished.is_err() {
            remove(&unfinished);
        }
        finished.map(Some)
    }

    /// Gives up the open file and what is buffered for it, and frees its room; the next row begins a new one.
    pub fn abandon(&mut self) {
        self.buffer.clear();
        if let Some(file) = self.open.take() {
            remove(&unfinished(&file.path));
        }
    }

    fn create(&mut self, time: TimestampMs, now: TimestampMs) -> Result<OpenFile, CaptureError> {
        let folder = self.root.join(R::DATASET).join(Utc::new(time).partition());
        let started = Utc::new(now).compact();
        let Origin { cluster, node, run_id } = &self.origin;
        let run = file_name(run_id.get(..8).unwrap_or(run_id));
        fs::create_dir_all(&folder).map_err(|source| CaptureError::Io { path: folder.clone(), source })?;
        let (path, file) = loop {
            let path = folder.join(format!("{}-{started}-{run}-{}.{PARQUET}", file_name(node), self.files));
            // Another writer of the run may have been here in this second, and be gone, killed or not: where rows of a run
            // come from elsewhere.
            let created = if path.exists() { None } else { Some(create_unfinished(&unfinished(&path))) };
            match created {
                Some(Ok(file)) => break (path, file),
                Some(Err(source)) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CaptureError::Io { path, source });
                }
                _ => self.files += 1,
            }
        };
        let (major, minor) = SCHEMA_VERSION;
        let metadata = [
            (key::SCHEMA_VERSION, format!("{major}.{minor}")),
            (key::AGENT_VERSION, self.agent_version.into()),
            (key::DATASET, R::DATASET.into()),
            (key::CLUSTER, cluster.to_string()),
            (key::NODE, node.to_string()),
            (key::RUN_ID, run_id.to_string()),
        ];
        let metadata = metadata.map(|(key, value)| KeyValue::new(key.into(), value));
        let writer = ArrowWriter::try_new(file, R::schema(), Some(properties::<R>(metadata.to_vec())))
            .map_err(|source| CaptureError::Encode { path: path.clone(), source })?;
        self.files += 1;
        Ok(OpenFile { writer, path, hour: hour(time), opened_at: now, seqs: Vec::new() })
    }

    fn write_batch(&mut self) -> Result<(), CaptureError> {
        let Some(file) = self.open.as_mut().filter(|_| !self.buffer.is_empty()) else { return Ok(()) };
        R::sort_rows(&mut self.buffer);
        let mut seqs: Vec<i64> = self.buffer.iter().map(|row| row.origin().1).collect();
        seqs.sort_unstable();
        join(&mut file.seqs, seqs.into_iter().map(|seq| (seq, seq)));
        let written = file.writer.write(&R::encode(&self.buffer));
        written.map_err(|source| CaptureError::Encode { path: file.path.clone(), source })?;
        self.buffer.clear();
        Ok(())
    }
}

impl OpenFile {
    fn finish(self, unfinished: &Path) -> Result<PathBuf, CaptureError> {
        let Self { mut writer, path, mut seqs, .. } = self;
        seqs.sort_unstable();
        let mut ranges = Vec::new();
        join(&mut ranges, seqs);
        if let (Some((first, _)), Some((_, last))) = (ranges.first(), ranges.last()) {
            let told: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            let pairs =
                [(key::FIRST_SEQ, first.to_string()), (key::LAST_SEQ, last.to_string()), (key::SEQS, told.join(","))];
            for (key, value) in pairs {
                writer.append_key_value_metadata(KeyValue::new(key.into(), value));
            }
        }
        let file = writer.into_inner().map_err(|source| CaptureError::Encode { path: path.clone(), source })?;
        settle(&file, unfinished, &path)?;
        Ok(path)
    }
}

/// Gives a file that was written its name, durably.
pub(super) fn settle(file: &File, unfinished: &Path, path: &Path) -> Result<(), CaptureError> {
    let io_error = |source| CaptureError::Io { path: path.into(), source };
    file.sync_all().map_err(io_error)?;
    fs::rename(unfinished, path).map_err(io_error)?;
    // The rename itself is durable only once the directory is.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()).map_err(io_error)
}

/// Adds ranges that are in order to those before, as one where they meet or overlap.
fn join(ranges: &mut Vec<(i64, i64)>, more: impl IntoIterator<Item = (i64, i64)>) {
    for (first, last) in more {
        match ranges.last_mut().filter(|(begin, end)| *begin <= first && first <= end.saturating_add(1)) {
            Some((_, end)) => *end = last.max(*end),
            None => ranges.push((first, last)),
        }
    }
}

/// Hours since the Unix epoch: a number per partition.
const fn hour(time: TimestampMs) -> i64 {
    Hour::of(time).0
}

/// Removes what is given up; where that fails, readers name the file and skip it.
pub(super) fn remove(unfinished: &Path) {
    let _ = fs::remove_file(unfinished);
}

/// Where a file is until it is whole: outside of its dataset, since some readers take whatever lies below that for data
/// (polars, 2026), and on the same file system.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let is_dataset = |folder: &&Path| {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        DATASETS.contains(&name) || name == RollupRow::NAME
    };
    let name = format!("{}.{UNFINISHED}", path.file_name().unwrap_or_default().to_string_lossy());
    let dataset = path.ancestors().skip(1).find(is_dataset);
    match dataset.and_then(|dataset| Some((dataset.parent()?, dataset.file_name()?))) {
        Some((root, dataset)) => root.join(UNFINISHED_FILES).join(dataset).join(name),
        None => path.with_file_name(format!(".{name}")),
    }
}

/// Makes a file that is not whole yet.
pub(super) fn create_unfinished(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    File::create_new(path)
}

/// A node's name as part of a file's: node names are DNS subdomains, anything else is replaced. Other readers pass files over
/// that begin with a dot or an underscore.
fn file_name(node: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let name: String = node.chars().map(|c| if is_plain(&c) { c } else { '_' }).take(NAME_CHARS).collect();
    match name.trim_start_matches(['.', '_']) {
        "" => "node".into(),
        name => name.into(),
    }
}

/// The most of a name that a file's has: the rest of that takes some 60 of the 255 bytes that file systems take.
const NAME_CHARS: usize = 150;
/// Rows per row group: enough for dictionaries to pay, and a few megabytes once they are encoded.
const ROWS_PER_GROUP: usize = 64 * 1024;
/// Rows that are buffered before they are encoded: a row takes about a kilobyte until then.
const ROWS_PER_BATCH: usize = 512;
/// How a dataset is encoded. Only text is worth a dictionary, of which each takes 100 KB while a file is open; numbers
/// are near their neighbours.
pub(super) fn properties<T: Table>(metadata: Vec<KeyValue>) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
        .set_data_page_row_count_limit(ROWS_PER_PAGE)
        .set_dictionary_enabled(false)
        .set_key_value_metadata(Some(metadata));
    for field in T::schema().fields() {
        let column = ColumnPath::from(field.name().clone());
        properties = match field.data_type() {
            DataType::Dictionary(..) => properties.set_column_dictionary_enabled(column, true),
            DataType::Int64 | DataType::Int32 | DataType::Timestamp(..) => {
                properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
            }
            _ => properties,
        };
    }
    properties.build()
}

/// Rows per page, which the encoder holds as numbers of eight bytes per column until it is full.
const ROWS_PER_PAGE: usize = 2048;
