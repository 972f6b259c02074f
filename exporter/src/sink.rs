//! Where records go: a capture on disk.

use std::{fs, path::Path};

use schemas::{
    capture::{CaptureError, DatasetWriter, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

use crate::{enrich::Origin, flow::Flow};

/// Writes the three datasets of a capture.
///
/// A file that can't be written is given up, its rows are counted as lost, and the next one is begun: a full disk that
/// is emptied again costs what could not be kept, not the run.
pub(crate) struct ParquetSink {
    flows: DatasetWriter<FlowRecord>,
    inventory: DatasetWriter<InventoryRecord>,
    health: DatasetWriter<HealthRecord>,
    /// Ends of connections in rows that are not durable yet.
    pending_ends: i64,
    lost_ends: i64,
}

impl ParquetSink {
    /// Prepares to write below `root`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory can't be made.
    pub(crate) fn new(root: &Path, origin: &Origin, roll: Roll) -> Result<Self, CaptureError> {
        fs::create_dir_all(root).map_err(|source| CaptureError::Io { path: root.into(), source })?;
        let (node, run_id) = (&origin.node, &origin.run_id);
        Ok(Self {
            flows: DatasetWriter::new(root, node, run_id, AGENT_VERSION, roll),
            inventory: DatasetWriter::new(root, node, run_id, AGENT_VERSION, roll),
            health: DatasetWriter::new(root, node, run_id, AGENT_VERSION, roll),
            pending_ends: 0,
            lost_ends: 0,
        })
    }

    /// Writes a flow's record.
    pub(crate) fn flow(&mut self, flow: &Flow, record: FlowRecord, now: TimestampMs) {
        self.pending_ends += flow.ends();
        let written = self.flows.push(record, now);
        self.judge_flows(written);
    }

    /// Writes an inventory row.
    pub(crate) fn inventory(&mut self, record: InventoryRecord, now: TimestampMs) {
        report(self.inventory.push(record, now));
    }

    /// Whether an inventory file is open; the first row of a new one has to be a snapshot's.
    pub(crate) fn has_open_inventory(&self) -> bool {
        self.inventory.is_open()
    }

    /// Finishes the inventory file, so that the next row begins a new one.
    pub(crate) fn finish_inventory(&mut self) {
        report(self.inventory.finish());
    }

    /// Writes a health row.
    pub(crate) fn health(&mut self, record: HealthRecord, now: TimestampMs) {
        report(self.health.push(record, now));
    }

    /// Finishes the files that are large or old enough.
    pub(crate) fn roll(&mut self, now: TimestampMs) {
        if self.flows.is_due(now) {
            let written = self.flows.finish();
            self.judge_flows(written.map(drop));
            self.pending_ends = 0;
        }
        finish_if_due(&mut self.inventory, now);
        finish_if_due(&mut self.health, now);
    }

    /// Makes all flows and inventory durable; what is told of them in `health` is true after this.
    pub(crate) fn finish_data(&mut self) {
        let written = self.flows.finish();
        self.judge_flows(written.map(drop));
        self.pending_ends = 0;
        self.finish_inventory();
    }

    /// Makes health durable: the last act of a run.
    pub(crate) fn finish_health(&mut self) {
        report(self.health.finish());
    }

    /// Ends of connections in rows that were given up since the last call.
    pub(crate) fn take_lost_ends(&mut self) -> i64 {
        std::mem::take(&mut self.lost_ends)
    }

    fn judge_flows(&mut self, written: Result<(), CaptureError>) {
        if written.is_err() {
            self.lost_ends += std::mem::take(&mut self.pending_ends);
            self.flows.abandon();
        }
        report(written);
    }
}

fn finish_if_due<R: Record>(writer: &mut DatasetWriter<R>, now: TimestampMs) {
    if writer.is_due(now) {
        report(writer.finish());
    }
}

fn report<T>(written: Result<T, CaptureError>) {
    if let Err(error) = written {
        tracing::error!(error = &error as &dyn std::error::Error, "rows are lost");
    }
}

/// Version of the agent, as it stands in every file.
pub(crate) const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");
