//! Results for the reader: policies as YAML, query results as a table, CSV or JSON.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use arrow::{
    array::{Array, RecordBatch, StringArray},
    csv,
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
    json::ArrayWriter,
    util::{
        display::{ArrayFormatter, FormatOptions},
        pretty::pretty_format_batches,
    },
};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::args::Format;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// A policy can't be written as YAML.
    #[error("cannot write a policy as YAML")]
    Yaml(#[from] serde_yaml::Error),
    /// A result can't be printed in the wanted format.
    #[error("cannot print the result")]
    Print(#[from] ArrowError),
    /// The output refuses.
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Policies as YAML documents, separated by `---`; nothing for none.
///
/// # Errors
/// A policy can't be serialized.
pub(crate) fn yaml(policies: &[NetworkPolicy]) -> Result<String, OutputError> {
    let documents: Result<Vec<String>, _> = policies.iter().map(serde_yaml::to_string).collect();
    Ok(documents?.join("---\n"))
}

/// Writes text to standard output or to a file: an ordinary one is replaced whole or not at all, a device or a link is
/// written through. A reader that went away is no error.
///
/// # Errors
/// The file or standard output refuses.
pub(crate) fn write(text: &str, file: Option<&Path>) -> Result<(), OutputError> {
    let written = match file {
        None => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
        Some(path) => match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => fs::write(path, text),
            _ => replace(path, text),
        },
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => {
            let path = file.map_or_else(|| PathBuf::from("standard output"), Path::to_path_buf);
            written.map_err(|source| OutputError::Write { path, source })
        }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
    let unfinished = path.with_file_name(format!(".{name}.{}.tmp", process::id()));
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// A query's result as text.
///
/// # Errors
/// A value can't be printed in the format.
pub(crate) fn table(batches: &[RecordBatch], format: Format) -> Result<String, OutputError> {
    let mut text = Vec::new();
    match format {
        Format::Table => return Ok(format!("{}\n", pretty_format_batches(batches)?)),
        Format::Csv => {
            let mut writer = csv::WriterBuilder::new().with_header(true).build(&mut text);
            for batch in batches {
                writer.write(&flat(batch)?)?;
            }
        }
        Format::Json => {
            let mut writer = ArrayWriter::new(&mut text);
            writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
            writer.finish()?;
            text.push(b'\n');
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
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
