//! Rows of many runs into the files of a capture, of which each is of one run and hour.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use delivery::{FileWriter, GivenUp, otlp::Decoded};
use schemas::{
    capture::{CaptureError, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    hour::Hour,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

/// Rows by the run that wrote them.
#[derive(Default)]
pub(crate) struct Sorted {
    runs: BTreeMap<Origin, Decoded>,
    rows: usize,
}

/// Writes rows of one run.
pub(crate) struct RunFiles {
    flows: FileWriter<FlowRecord>,
    inventory: FileWriter<InventoryRecord>,
    health: FileWriter<HealthRecord>,
    finished: Vec<PathBuf>,
}

impl Sorted {
    /// Adds the rows of a request.
    pub(crate) fn add(&mut self, request: Decoded) {
        self.rows += request.rows();
        let Decoded { flows, inventory, health, rejected: _ } = request;
        self.sort(flows, |run| &mut run.flows);
        self.sort(inventory, |run| &mut run.inventory);
        self.sort(health, |run| &mut run.health);
    }

    fn sort<R: Record>(&mut self, rows: Vec<R>, pick: fn(&mut Decoded) -> &mut Vec<R>) {
        for row in rows {
            pick(self.runs.entry(row.writer()).or_default()).push(row);
        }
    }

    /// Whether it is time to write them.
    pub(crate) const fn is_large(&self) -> bool {
        self.rows >= ROWS_AT_ONCE
    }

    /// Writes everything below `root`, and returns the files.
    ///
    /// # Errors
    /// A file can't be written.
    pub(crate) fn write(&mut self, root: &Path, now: TimestampMs) -> Result<Vec<PathBuf>, CaptureError> {
        self.rows = 0;
        let mut finished = Vec::new();
        for (origin, rows) in std::mem::take(&mut self.runs) {
            let mut files = RunFiles::new(root, &origin);
            files.add(rows, now)?;
            finished.extend(files.finish()?);
        }
        Ok(finished)
    }
}

impl RunFiles {
    pub(crate) fn new(root: &Path, origin: &Origin) -> Self {
        Self {
            flows: FileWriter::new(root, origin, VERSION, ROLL, None),
            inventory: FileWriter::new(root, origin, VERSION, ROLL, None),
            health: FileWriter::new(root, origin, VERSION, ROLL, None),
            finished: Vec::new(),
        }
    }

    /// Adds rows of the run.
    ///
    /// # Errors
    /// A file can't be written.
    pub(crate) fn add(&mut self, rows: Decoded, now: TimestampMs) -> Result<(), CaptureError> {
        let Decoded { flows, inventory, health, rejected: _ } = rows;
        add(&mut self.flows, flows, now, &mut self.finished)?;
        add(&mut self.inventory, inventory, now, &mut self.finished)?;
        add(&mut self.health, health, now, &mut self.finished)
    }

    /// Makes everything durable, and returns the files.
    ///
    /// # Errors
    /// A file can't be written.
    pub(crate) fn finish(mut self) -> Result<Vec<PathBuf>, CaptureError> {
        let last = [self.flows.finish(), self.inventory.finish(), self.health.finish()];
        let last: Vec<Option<PathBuf>> =
            last.into_iter().collect::<Result<_, GivenUp>>().map_err(|lost| lost.source)?;
        self.finished.extend(last.into_iter().flatten());
        Ok(std::mem::take(&mut self.finished))
    }
}

impl Drop for RunFiles {
    /// Frees the room of what was not finished; all of it comes again.
    fn drop(&mut self) {
        self.flows.abandon();
        self.inventory.abandon();
        self.health.abandon();
    }
}

fn add<R: Record>(
    writer: &mut FileWriter<R>,
    mut rows: Vec<R>,
    now: TimestampMs,
    finished: &mut Vec<PathBuf>,
) -> Result<(), CaptureError> {
    // What was kept while nobody took it comes late, between newer rows: an hour is one file even so.
    rows.sort_by_key(|row| Hour::of(row.partition_time()));
    let write = || {
        for row in rows {
            finished.extend(writer.finish_other_hour(&row)?);
            writer.push(row, 0, now)?;
        }
        finished.extend(writer.finish_due(now)?);
        Ok(())
    };
    write().map_err(|lost: GivenUp| lost.source)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
const ROLL: Roll = Roll { size_bytes: 64 << 20, age: Duration::from_secs(u32::MAX as u64) };
/// Rows that are in memory at once: some 45 MB.
const ROWS_AT_ONCE: usize = 1 << 16;
