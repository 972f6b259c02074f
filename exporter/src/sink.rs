//! Where records go: a capture on disk.

use std::{collections::VecDeque, path::Path};

use schemas::{
    capture::{CaptureError, DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

use crate::flow::Flow;

/// Writes the three datasets of a capture.
///
/// A file that can't be written is given up and the next one begun: a full disk that is emptied again costs what could
/// not be kept, not the run. Flows are then counted as lost, inventory is told again from the start, and health rows,
/// which carry the counts, are kept until they are durable.
pub(crate) struct ParquetSink {
    flows: DatasetWriter<FlowRecord>,
    inventory: DatasetWriter<InventoryRecord>,
    health: DatasetWriter<HealthRecord>,
    /// Ends of connections in rows that are not durable yet.
    pending_ends: i64,
    lost_ends: i64,
    pending_health: VecDeque<HealthRecord>,
}

impl ParquetSink {
    /// Prepares to write below `root`; nothing is made before the first row.
    pub(crate) fn new(root: &Path, origin: &Origin, roll: Roll) -> Self {
        Self {
            flows: DatasetWriter::new(root, origin, AGENT_VERSION, roll),
            inventory: DatasetWriter::new(root, origin, AGENT_VERSION, roll),
            health: DatasetWriter::new(root, origin, AGENT_VERSION, roll),
            pending_ends: 0,
            lost_ends: 0,
            pending_health: VecDeque::new(),
        }
    }

    /// Writes a flow's record.
    pub(crate) fn flow(&mut self, flow: &Flow, record: FlowRecord, now: TimestampMs) {
        let finished = self.flows.finish_other_hour(&record);
        let is_durable = matches!(finished, Ok(Some(_)));
        if !judge(&mut self.flows, finished) {
            self.lost_ends += std::mem::take(&mut self.pending_ends);
        } else if is_durable {
            self.pending_ends = 0;
        }
        self.pending_ends += flow.ends();
        if !push(&mut self.flows, record, now) {
            self.lost_ends += std::mem::take(&mut self.pending_ends);
        }
    }

    /// Writes an inventory row; whether it is on its way.
    pub(crate) fn inventory(&mut self, record: InventoryRecord, now: TimestampMs) -> bool {
        push(&mut self.inventory, record, now)
    }

    /// Whether an inventory file is open; the first row of a new one has to be a snapshot's.
    pub(crate) fn has_open_inventory(&self) -> bool {
        self.inventory.is_open()
    }

    /// Finishes the inventory file, so that the next row begins a new one. Returns whether it is durable.
    pub(crate) fn finish_inventory(&mut self) -> bool {
        finish(&mut self.inventory)
    }

    /// Writes a health row, after those that an earlier file could not keep.
    pub(crate) fn health(&mut self, record: HealthRecord, now: TimestampMs) {
        if self.pending_health.len() == PENDING_HEALTH_ROWS {
            self.pending_health.pop_front();
        }
        self.pending_health.push_back(record);
        let begin = if self.health.is_open() { self.pending_health.len() - 1 } else { 0 };
        for record in self.pending_health.range(begin..) {
            if !push(&mut self.health, record.clone(), now) {
                break;
            }
        }
    }

    /// Finishes the files that are large or old enough. Returns whether what there was of inventory is durable.
    pub(crate) fn roll(&mut self, now: TimestampMs) -> bool {
        if self.flows.is_due(now) {
            self.finish_flows();
        }
        if self.health.is_due(now) {
            self.finish_health();
        }
        !self.inventory.is_due(now) || self.finish_inventory()
    }

    /// Makes all flows durable.
    pub(crate) fn finish_flows(&mut self) {
        let pending = std::mem::take(&mut self.pending_ends);
        if !finish(&mut self.flows) {
            self.lost_ends += pending;
        }
    }

    /// Makes health durable: the last act of a run. Returns whether it is.
    pub(crate) fn finish_health(&mut self) -> bool {
        // Where no file is open, what is pending was given up and waits for the next one.
        if self.health.is_open() && finish(&mut self.health) {
            self.pending_health.clear();
        }
        self.pending_health.is_empty()
    }

    /// Ends of connections in rows that were given up since the last call.
    pub(crate) fn take_lost_ends(&mut self) -> i64 {
        std::mem::take(&mut self.lost_ends)
    }
}

/// Whether the row is on its way; if not, the file is given up.
fn push<R: Record>(writer: &mut DatasetWriter<R>, row: R, now: TimestampMs) -> bool {
    let pushed = writer.push(row, now);
    judge(writer, pushed)
}

/// Whether everything is durable; if not, the file is given up.
fn finish<R: Record>(writer: &mut DatasetWriter<R>) -> bool {
    let finished = writer.finish();
    judge(writer, finished)
}

fn judge<R: Record, T>(writer: &mut DatasetWriter<R>, written: Result<T, CaptureError>) -> bool {
    if let Err(error) = &written {
        tracing::error!(dataset = R::DATASET, error = error as &dyn std::error::Error, "a file is given up");
        writer.abandon();
    }
    written.is_ok()
}

/// Health rows that are kept while they can't be written: a day of the default windows.
const PENDING_HEALTH_ROWS: usize = 1440;
/// Version of the agent, as it stands in every file.
pub(crate) const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");
