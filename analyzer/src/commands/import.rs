//! `flowscribe import`: OTLP JSON lines, as a collector's file exporter writes them, into a capture.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use delivery::otlp::Rejected;
use schemas::{capture::CaptureError, table::TimestampMs};

use super::receive::server::from_json;
use crate::output::note;
use crate::{
    capture::{filing::Sorted, segment::decode},
    cli::ImportArgs,
};

/// Why nothing can be imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write to {path}: make room, or name another directory with --output")]
    Write {
        path: PathBuf,
        #[source]
        source: CaptureError,
    },
    #[error("there are no flows, inventory or health in the input")]
    Nothing,
}

/// What has been read.
#[derive(Default)]
struct Import {
    sorted: Sorted,
    rows: usize,
    files: usize,
    rejected: Rejected,
    bad_lines: usize,
}

/// Imports all inputs; lines and records that are no rows are told on standard error.
///
/// # Errors
/// An input can't be read, the capture not be written, or there is no row at all.
pub(crate) fn run(args: &ImportArgs) -> Result<(), ImportError> {
    let mut import = Import::default();
    for input in &args.input {
        if input == Path::new("-") {
            import.read(input, io::stdin().lock(), &args.output)?;
            continue;
        }
        for path in files(input)? {
            let file = File::open(&path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
            import.read(&path, BufReader::with_capacity(READ_BYTES, file), &args.output)?;
        }
    }
    import.write(&args.output)?;
    let Import { rows, files, rejected, bad_lines, .. } = import;
    if rejected.records > 0 {
        note!("passed over {} log records that are no rows, such as: {}", rejected.records, rejected.reason);
    }
    if rows == 0 {
        return Err(ImportError::Nothing);
    }
    note!("imported {rows} rows into {files} files of {}", args.output.display());
    if bad_lines > 0 {
        note!("{bad_lines} lines could not be read, as told above");
    }
    Ok(())
}

impl Import {
    fn read(&mut self, path: &Path, mut input: impl BufRead, output: &Path) -> Result<(), ImportError> {
        let read_error = |source| ImportError::Read { path: path.into(), source };
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            (&mut input).take(LINE_BYTES).read_until(b'\n', &mut line).map_err(read_error)?;
            if line.is_empty() {
                break;
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            // What a collector that was killed was writing is cut.
            let request = from_json(text).map_err(|error| error.to_string());
            let rows = request.and_then(|request| decode(&request).map_err(|error| error.to_string()));
            match rows {
                Ok(rows) => {
                    if self.rejected.records == 0 {
                        self.rejected.reason.clone_from(&rows.rejected.reason);
                    }
                    self.rejected.records += rows.rejected.records;
                    self.rows += rows.rows();
                    self.sorted.add(rows);
                }
                Err(reason) => {
                    self.bad_lines += 1;
                    note!("skipped {}:{number}: {reason}", path.display());
                }
            }
            if self.sorted.is_large() {
                self.write(output)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, output: &Path) -> Result<(), ImportError> {
        let written = self.sorted.write(output, TimestampMs::now());
        self.files += written.map_err(|source| ImportError::Write { path: output.into(), source })?.len();
        Ok(())
    }
}

/// A file, or those in a directory, in order of name.
fn files(input: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let read_error = |source| ImportError::Read { path: input.into(), source };
    if !fs::metadata(input).map_err(read_error)?.is_dir() {
        return Ok(vec![input.into()]);
    }
    let entries: io::Result<Vec<_>> = fs::read_dir(input).map_err(read_error)?.collect();
    let paths = entries.map_err(read_error)?.into_iter().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

const READ_BYTES: usize = 1 << 20;
/// Longest line that is read: a collector writes a request of some megabytes to each.
const LINE_BYTES: u64 = 256 << 20;
