//! Where rows of a dataset are written: files of a capture, which may go on to an object store, and requests of OTLP.

use std::path::{Path, PathBuf};

use schemas::{
    capture::{CaptureError, DatasetWriter, Origin, Roll},
    table::{Record, TimestampMs},
};

use crate::{
    Outbox, Parcel,
    otlp::{self, Encoder, ResourceAttributes},
};

/// Writes the rows of one dataset and run into files, and hands finished ones to an object store's outbox, if there is one.
pub struct FileWriter<R: Record> {
    writer: DatasetWriter<R>,
    outbox: Option<Outbox>,
    /// Ends of connections in rows that are not durable yet.
    ends: i64,
}

/// Collects the rows of one dataset and run into requests, and hands those to a receiver's outbox.
pub struct RequestWriter<R: Record> {
    encoder: Encoder<R>,
    outbox: Outbox,
    /// Ends of connections in the rows of the next request.
    ends: i64,
}

/// Writes the rows of one dataset and run to every destination that is asked for.
pub struct RecordWriter<R: Record> {
    pub(crate) files: Option<FileWriter<R>>,
    pub(crate) requests: Option<RequestWriter<R>>,
    pub(crate) is_open: bool,
}

/// A file could not be written, and was given up with the rows that were in it.
#[derive(Debug, thiserror::Error)]
#[error("a file is given up")]
pub struct GivenUp {
    /// Ends of connections in those rows.
    pub ends: i64,
    /// Why.
    #[source]
    pub source: CaptureError,
}

impl<R: Record> FileWriter<R> {
    /// Prepares to write below `root`; nothing is made before the first row. `version` is the program's.
    pub fn new(root: &Path, origin: &Origin, version: &'static str, roll: Roll, outbox: Option<Outbox>) -> Self {
        Self { writer: DatasetWriter::new(root, origin, version, roll), outbox, ends: 0 }
    }

    /// Finishes the open file if `row` is of another hour, and returns it.
    ///
    /// # Errors
    /// It can't be made durable.
    pub fn finish_other_hour(&mut self, row: &R) -> Result<Option<PathBuf>, GivenUp> {
        let finished = self.writer.finish_other_hour(row);
        self.finished(finished)
    }

    /// Adds a row, with the ends of connections that are in it, after [`Self::finish_other_hour`].
    ///
    /// # Errors
    /// The file can't be made or written to.
    pub fn push(&mut self, row: R, ends: i64, now: TimestampMs) -> Result<(), GivenUp> {
        self.ends += ends;
        let pushed = self.writer.push(row, now);
        self.judge(pushed)
    }

    /// Makes everything durable, and returns the file, if one was open.
    ///
    /// # Errors
    /// It can't be.
    pub fn finish(&mut self) -> Result<Option<PathBuf>, GivenUp> {
        let finished = self.writer.finish();
        self.finished(finished)
    }

    /// As [`Self::finish`], if the file is large or old enough.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_due(&mut self, now: TimestampMs) -> Result<Option<PathBuf>, GivenUp> {
        if self.is_due(now) { self.finish() } else { Ok(None) }
    }

    /// Whether the open file is large or old enough to be finished.
    pub fn is_due(&self, now: TimestampMs) -> bool {
        self.writer.is_due(now)
    }

    /// Whether a file is open.
    pub fn is_open(&self) -> bool {
        self.writer.is_open()
    }

    /// Gives up the open file.
    pub fn abandon(&mut self) {
        self.ends = 0;
        self.writer.abandon();
    }

    fn finished(&mut self, finished: Result<Option<PathBuf>, CaptureError>) -> Result<Option<PathBuf>, GivenUp> {
        let finished = self.judge(finished)?;
        if let Some(path) = &finished {
            let ends = std::mem::take(&mut self.ends);
            if let Some(outbox) = &self.outbox {
                outbox.adopt(path, 0, ends);
            }
        }
        Ok(finished)
    }

    fn judge<T>(&mut self, written: Result<T, CaptureError>) -> Result<T, GivenUp> {
        written.map_err(|source| {
            let ends = std::mem::take(&mut self.ends);
            self.writer.abandon();
            GivenUp { ends, source }
        })
    }
}

impl<R: Record> RequestWriter<R> {
    /// Prepares to send by `outbox`; `attributes` are those of the resource that rows do not have themselves.
    pub fn new(outbox: Outbox, attributes: &ResourceAttributes, version: &'static str) -> Self {
        Self { encoder: Encoder::new(attributes.clone(), version), outbox, ends: 0 }
    }

    /// Adds a row, with the ends of connections that are in it, and sends what there is once it is large. Whether nothing
    /// was lost.
    pub fn push(&mut self, row: &R, ends: i64, now: TimestampMs) -> bool {
        self.encoder.push(row, now);
        self.ends += ends;
        self.encoder.size_bytes() < REQUEST_BYTES || self.send()
    }

    /// Hands over what was collected; whether it is not lost.
    pub fn send(&mut self) -> bool {
        let (rows, ends) = (self.encoder.rows() as i64, std::mem::take(&mut self.ends));
        let Some(request) = self.encoder.finish() else { return true };
        self.outbox.put(Parcel { dataset: R::DATASET, rows, ends, body: request.into() })
    }
}

impl<R: Record> RecordWriter<R> {
    /// Adds a row.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn push(&mut self, row: R, now: TimestampMs) -> Result<(), GivenUp> {
        self.is_open = true;
        if let Some(requests) = &mut self.requests {
            requests.push(&row, 0, now);
        }
        let Some(files) = &mut self.files else { return Ok(()) };
        let written = files.finish_other_hour(&row).and_then(|_| files.push(row, 0, now));
        self.judge(written)
    }

    /// Sends what was added, where it is sent.
    pub fn send(&mut self) {
        if let Some(requests) = &mut self.requests {
            requests.send();
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn finish(&mut self) -> Result<(), GivenUp> {
        self.send();
        self.is_open = false;
        let finished = self.files.as_mut().map_or(Ok(None), FileWriter::finish);
        self.judge(finished).map(drop)
    }

    /// Whether rows were added that are not in a finished file; without files, these are the beginning of what is told.
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether the open file is large or old enough to be finished.
    pub fn is_due(&self, now: TimestampMs) -> bool {
        self.files.as_ref().is_some_and(|files| files.is_due(now))
    }

    fn judge<T>(&mut self, written: Result<T, GivenUp>) -> Result<T, GivenUp> {
        self.is_open &= written.is_ok();
        written
    }
}

/// A request is sent once it is as large: half of what receivers take, since its last row may be large too.
pub const REQUEST_BYTES: usize = otlp::REQUEST_BYTES / 2;
