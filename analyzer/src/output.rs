//! What is printed. Results go to standard output or to a file: policies as YAML, query results as a table, CSV, JSON or
//! Parquet; what goes to a file is there whole or not at all. Notes, which a person should read, go to standard error. That
//! nobody reads either is no error.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File, Permissions},
    io::{self, BufWriter, IsTerminal, Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{Array, RecordBatch, StringArray},
    csv,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    json::{ArrayWriter, LineDelimitedWriter},
    util::{
        display::{ArrayFormatter, FormatOptions},
        pretty::pretty_format_batches,
    },
};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};
use schemas::untrusted::shown;
use serde::{Serialize, Serializer};
use tempfile::NamedTempFile;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// A policy can't be written as YAML.
    #[error("cannot write a policy as YAML")]
    Yaml(#[from] serde_yaml::Error),
    /// A result can't be printed in the wanted format.
    #[error("cannot print the result")]
    Print(#[from] ArrowError),
    /// A result can't be printed as JSON.
    #[error("cannot print the result as JSON")]
    Json(#[from] serde_json::Error),
    /// A result can't be written as Parquet.
    #[error("cannot write the result as Parquet")]
    Parquet(#[from] ParquetError),
    /// The output refuses.
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Says a line to whoever runs a command, as `eprintln!` takes it.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*), "\n") };
}
/// Says what has its own ends of lines, as `eprint!` takes it.
macro_rules! notes {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*), "") };
}
pub(crate) use {note, notes};

/// Says what of an input is not used, and why, a line each.
pub(crate) fn skipped(problems: impl IntoIterator<Item: fmt::Display>) {
    problems.into_iter().for_each(|problem| note!("skipped {problem}"));
}

/// Writes a note and its end to standard error.
pub(crate) fn say(text: fmt::Arguments<'_>, end: &str) {
    let _ = io::stderr().write_all(shown(&format!("{text}{end}")).as_bytes());
}

/// Whether notes are read at a terminal, which may be in colour and show what is under way.
pub(crate) fn is_at_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Shows on a terminal how many rows of flows have been read.
pub(crate) fn progress_of_rows() -> ProgressBar {
    let template = "{bar:40} {percent:>3} % of {human_len} rows of flows, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style)
}

/// Shows on a terminal a line that changes.
pub(crate) fn progress_line() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}

/// A value as JSON for people and programs, keys in order.
///
/// # Errors
/// It can't be JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<String, OutputError> {
    Ok(format!("{:#}\n", serde_json::to_value(value)?))
}

/// Serializes what a value says of itself.
pub(crate) fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Writes text to standard output or to a file, as [`Output`] does.
///
/// # Errors
/// The file or standard output refuses.
pub(crate) fn write(text: &str, file: Option<&Path>) -> Result<(), OutputError> {
    if let Some(file) = file.filter(|path| !is_standard_output(path)) {
        return written(text, file)?.finish();
    }
    HAS_APPEARED.store(true, Ordering::Relaxed);
    appeared(io::stdout().write_all(shown(text).as_bytes()).and_then(|()| io::stdout().flush()), None)
}

/// A file with a text, which appears when it is finished; there is room for all of it.
///
/// # Errors
/// There is not.
pub(crate) fn written(text: &str, file: &Path) -> Result<Output, OutputError> {
    let mut output = Output::new(Some(file))?;
    let written = output.file.write_all(text.as_bytes()).and_then(|()| output.file.flush());
    written.map_err(|source| output.error(source))?;
    Ok(output)
}

/// A result in the making. It appears when it is finished, and leaves nothing behind if it never is: an ordinary file is
/// replaced whole, as is one that a link leads to; a device is written through, and so is standard output. A reader that went
/// away is no error.
pub(crate) struct Output {
    file: BufWriter<NamedTempFile>,
    unfinished: Unfinished,
    /// `None` for standard output.
    target: Option<PathBuf>,
}

impl Output {
    /// Begins.
    ///
    /// # Errors
    /// There is no room for what is unfinished.
    pub(crate) fn new(target: Option<&Path>) -> Result<Self, OutputError> {
        let target = target.filter(|path| !is_standard_output(path)).map(followed);
        let target = target.as_deref();
        let is_replaced = |path: &&Path| fs::symlink_metadata(path).map_or(true, |metadata| metadata.is_file());
        let folder = target.filter(is_replaced).map(|path| match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        });
        let mut unfinished = tempfile::Builder::new();
        unfinished.prefix(".flowscribe-").suffix(".tmp");
        let made = match folder {
            Some(folder) => unfinished.permissions(Permissions::from_mode(ANYBODY)).tempfile_in(folder),
            // What waits for standard output is for nobody else to read.
            None => unfinished.tempfile(),
        };
        let target = target.map(Path::to_path_buf);
        match made {
            Ok(file) => Ok(Self { unfinished: Unfinished::new(file.path()), file: BufWriter::new(file), target }),
            Err(source) => Err(OutputError::Write { path: named(target.as_deref()), source }),
        }
    }

    /// Makes it appear.
    ///
    /// # Errors
    /// The file or standard output refuses.
    pub(crate) fn finish(self) -> Result<(), OutputError> {
        let Self { file, unfinished, target } = self;
        HAS_APPEARED.store(true, Ordering::Relaxed);
        let done = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|mut file| {
            let Some(path) = &target else { return print(&mut file) };
            match fs::symlink_metadata(path) {
                Ok(metadata) if !metadata.is_file() => through(&mut file, File::options().write(true).open(path)?),
                _ => file.persist(path).map(drop).map_err(|error| error.error),
            }
        });
        drop(unfinished);
        appeared(done, target.as_deref())
    }

    /// The file that it takes the place of.
    pub(crate) fn target(&self) -> Option<&Path> {
        self.target.as_deref()
    }

    fn error(&self, source: io::Error) -> OutputError {
        OutputError::Write { path: named(self.target.as_deref()), source }
    }
}

/// Files that are being written, for the end of a process that can't wait for them.
struct Unfinished(PathBuf);

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static HAS_APPEARED: AtomicBool = AtomicBool::new(false);

impl Unfinished {
    fn new(path: &Path) -> Self {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.into());
        Self(path.into())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes the files that are being written, as far as that is possible.
pub(crate) fn remove_unfinished() {
    for path in std::mem::take(&mut *UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)) {
        let _ = fs::remove_file(path);
    }
}

/// Whether any result may be there by now.
pub(crate) fn has_appeared() -> bool {
    HAS_APPEARED.load(Ordering::Relaxed)
}

/// What came of writing; a reader that went away is no error.
fn appeared(done: io::Result<()>, target: Option<&Path>) -> Result<(), OutputError> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|source| OutputError::Write { path: named(target), source }),
    }
}

fn named(target: Option<&Path>) -> PathBuf {
    target.map_or_else(|| PathBuf::from("standard output"), Path::to_path_buf)
}

/// Whether a path stands for standard output, as `-` does.
fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The file that a link leads to, which is replaced, while the link stays; anything else as it is.
fn followed(path: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let file = if is_link { fs::canonicalize(path).ok().filter(|file| file.is_file()) } else { None };
    file.unwrap_or_else(|| path.into())
}

/// Results that take the place of others one after the other: until it is dropped, Ctrl-C waits a while.
pub(crate) struct Appearing;

static APPEARING: AtomicUsize = AtomicUsize::new(0);

impl Appearing {
    pub(crate) fn new() -> Self {
        APPEARING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Appearing {
    fn drop(&mut self) {
        APPEARING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether some take the place of others right now.
pub(crate) fn is_appearing() -> bool {
    APPEARING.load(Ordering::SeqCst) > 0
}

/// Prints a result.
fn print(file: &mut NamedTempFile) -> io::Result<()> {
    through(file, io::stdout())
}

/// Writes a result as it is, and to a terminal as it may have it.
fn through(file: &mut NamedTempFile, mut to: impl Write + IsTerminal) -> io::Result<()> {
    if !to.is_terminal() {
        return copy(file, &mut to);
    }
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    to.write_all(shown(&String::from_utf8_lossy(&bytes)).as_bytes())?;
    to.flush()
}

fn copy(file: &mut NamedTempFile, to: &mut impl Write) -> io::Result<()> {
    file.rewind()?;
    io::copy(file, to)?;
    to.flush()
}

/// What a query's result is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects.
    Json,
    /// A JSON object per line.
    Jsonl,
    /// Parquet.
    Parquet,
}

/// Writes a query's result, batch by batch.
pub(crate) enum ResultWriter {
    /// Columns are as wide as their widest value: all is needed first.
    Table(Vec<RecordBatch>, Output),
    Csv(Box<csv::Writer<Output>>),
    Json(Box<ArrayWriter<Output>>),
    Jsonl(Box<LineDelimitedWriter<Output>>),
    Parquet(Box<ArrowWriter<Output>>),
}

impl ResultWriter {
    /// Begins a result of a schema.
    ///
    /// # Errors
    /// There is no room for what is unfinished.
    pub(crate) fn new(format: Format, schema: &SchemaRef, target: Option<&Path>) -> Result<Self, OutputError> {
        let output = Output::new(target)?;
        Ok(match format {
            Format::Table => Self::Table(vec![RecordBatch::new_empty(Arc::clone(schema))], output),
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(output);
                // A result without rows has its header too.
                writer.write(&flat(&RecordBatch::new_empty(Arc::clone(schema)))?)?;
                Self::Csv(Box::new(writer))
            }
            Format::Json => Self::Json(Box::new(ArrayWriter::new(output))),
            Format::Jsonl => Self::Jsonl(Box::new(LineDelimitedWriter::new(output))),
            Format::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                Self::Parquet(Box::new(ArrowWriter::try_new(output, Arc::clone(schema), Some(properties))?))
            }
        })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// A value can't be written in the format, or there is no room.
    pub(crate) fn add(&mut self, batch: RecordBatch) -> Result<(), OutputError> {
        match self {
            Self::Table(batches, _) => batches.push(batch),
            Self::Csv(writer) => writer.write(&flat(&batch)?)?,
            Self::Json(writer) => writer.write(&batch)?,
            Self::Jsonl(writer) => writer.write(&batch)?,
            Self::Parquet(writer) => writer.write(&batch)?,
        }
        Ok(())
    }

    /// Makes the result appear.
    ///
    /// # Errors
    /// As [`Output::finish`].
    pub(crate) fn finish(self) -> Result<(), OutputError> {
        let output = match self {
            Self::Table(batches, mut output) => {
                let table = pretty_format_batches(&batches)?.to_string();
                let written = writeln!(output.file, "{}", shown(&table));
                written.map_err(|source| output.error(source))?;
                output
            }
            Self::Csv(writer) => writer.into_inner(),
            Self::Json(mut writer) => {
                writer.finish()?;
                let mut output = writer.into_inner();
                writeln!(output.file).map_err(|source| output.error(source))?;
                output
            }
            Self::Jsonl(mut writer) => {
                writer.finish()?;
                writer.into_inner()
            }
            Self::Parquet(writer) => writer.into_inner()?,
        };
        output.finish()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The batch with lists and structs as text: CSV has no nesting.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = FormatOptions::default();
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !column.data_type().is_nested() || matches!(column.data_type(), DataType::Dictionary(..)) {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
            continue;
        }
        let formatter = ArrayFormatter::try_new(column, &options)?;
        let text = |row| column.is_valid(row).then(|| formatter.value(row).try_to_string()).transpose();
        let texts: Result<Vec<Option<String>>, ArrowError> = (0..column.len()).map(text).collect();
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(Arc::new(StringArray::from(texts?)));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Permissions of new files, of which the process's mask takes some away.
const ANYBODY: u32 = 0o666;
