//! A capture: Parquet files, on disk or on their way to an object store.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use delivery::{Outbox, Stats};
use schemas::{
    capture::{CaptureError, DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

use super::{AGENT_VERSION, Account, Order, SETTLE_LAST, own_account};

/// Writes the three datasets of a capture.
///
/// A file that can't be written is given up and the next one begun: a full disk that is emptied again costs what could
/// not be kept, not the run. Flows are then counted as lost, inventory is told again from the start, and health rows,
/// which carry the counts, are kept until they are durable.
pub(crate) struct ParquetSink {
    flows: DatasetWriter<FlowRecord>,
    inventory: DatasetWriter<InventoryRecord>,
    health: DatasetWriter<HealthRecord>,
    /// Takes finished files to an object store.
    outbox: Option<Outbox>,
    account: Account,
    told_lost: i64,
    /// Ends of connections in rows that are not durable yet.
    pending_ends: i64,
    pending_health: VecDeque<HealthRecord>,
}

impl ParquetSink {
    /// Prepares to write below `root`; nothing is made before the first row. Files go on to an object store by `outbox`,
    /// whose directory `root` is.
    pub(crate) fn new(root: &Path, origin: &Origin, roll: Roll, outbox: Option<Outbox>, account: Account) -> Self {
        Self {
            flows: DatasetWriter::new(root, origin, AGENT_VERSION, roll),
            inventory: DatasetWriter::new(root, origin, AGENT_VERSION, roll),
            health: DatasetWriter::new(root, origin, AGENT_VERSION, roll),
            outbox,
            account,
            told_lost: 0,
            pending_ends: 0,
            pending_health: VecDeque::new(),
        }
    }

    pub(super) fn take(&mut self, order: Order, now: TimestampMs) {
        match order {
            Order::Flow(record, ends) => self.flow(*record, ends, now),
            Order::Inventory(record) => self.inventory(*record, now),
            Order::FinishInventory => self.finish_inventory(),
            Order::Health(record) => self.health(*record, now),
            Order::Tick => self.roll(now),
            Order::Sync(answer, patience) => {
                let is_durable = self.sync();
                if let Some(outbox) = self.outbox.as_ref().filter(|_| !patience.is_zero()) {
                    outbox.settle(patience);
                    self.account.lose(outbox.take_lost_ends());
                }
                let _ = answer.send(is_durable);
            }
            Order::End(answer) => {
                // Rows that can't be written are counted in those of health, on which all depends.
                self.sync();
                let is_durable = self.pending_health.is_empty();
                let is_kept = self.outbox.as_ref().is_none_or(|outbox| {
                    outbox.settle(SETTLE_LAST);
                    outbox.close()
                });
                let _ = answer.send(is_durable && is_kept);
            }
        }
    }

    pub(super) fn stats(&self) -> Option<Stats> {
        self.outbox.as_ref().map(Outbox::stats)
    }

    fn flow(&mut self, record: FlowRecord, ends: i64, now: TimestampMs) {
        let finished = self.flows.finish_other_hour(&record);
        self.flows_finished(finished);
        self.pending_ends += ends;
        if !push(&mut self.flows, record, now) {
            self.account.lose(std::mem::take(&mut self.pending_ends));
        }
    }

    /// Takes account of flows that were made durable, or could not be.
    fn flows_finished(&mut self, finished: Result<Option<PathBuf>, CaptureError>) {
        match judge(&mut self.flows, finished) {
            None => self.account.lose(std::mem::take(&mut self.pending_ends)),
            Some(None) => {}
            Some(Some(path)) => {
                let ends = std::mem::take(&mut self.pending_ends);
                self.deliver(&path, ends);
            }
        }
    }

    /// Sends a finished file on its way, if it has one to go.
    fn deliver(&self, path: &Path, ends: i64) {
        if let Some(outbox) = &self.outbox {
            outbox.adopt(path, 0, ends);
        }
    }

    fn inventory(&mut self, record: InventoryRecord, now: TimestampMs) {
        if !self.inventory.is_same_hour(&record) {
            self.finish_inventory();
        }
        // What follows a failure would look like all there is: it is told from the start soon.
        if !push(&mut self.inventory, record, now) {
            self.account.lose_inventory();
        }
    }

    fn finish_inventory(&mut self) {
        let finished = self.inventory.finish();
        match judge(&mut self.inventory, finished) {
            None => self.account.lose_inventory(),
            Some(None) => {}
            Some(Some(path)) => self.deliver(&path, 0),
        }
    }

    /// Writes a health row, after those that an earlier file could not keep.
    fn health(&mut self, record: HealthRecord, now: TimestampMs) {
        let record = own_account(record, &self.account, &mut self.told_lost);
        if self.pending_health.len() == PENDING_HEALTH_ROWS {
            self.pending_health.pop_front();
        }
        self.pending_health.push_back(record);
        let begin = if self.health.is_open() { self.pending_health.len() - 1 } else { 0 };
        for at in begin..self.pending_health.len() {
            let record = self.pending_health[at].clone();
            if !self.health.is_same_hour(&record) {
                let finished = self.health.finish();
                if let Some(Some(path)) = judge(&mut self.health, finished) {
                    self.deliver(&path, 0);
                }
            }
            if !push(&mut self.health, record, now) {
                break;
            }
        }
    }

    /// Finishes the files that are large or old enough. When inventory begins anew, the recorder says.
    fn roll(&mut self, now: TimestampMs) {
        if let Some(outbox) = &self.outbox {
            self.account.lose(outbox.take_lost_ends());
        }
        if self.flows.is_due(now) {
            let finished = self.flows.finish();
            self.flows_finished(finished);
        }
        if self.health.is_due(now) {
            self.finish_health();
        }
    }

    fn sync(&mut self) -> bool {
        let finished = self.flows.finish();
        let has_flows = finished.is_ok();
        self.flows_finished(finished);
        self.finish_inventory();
        let is_broken = self.account.is_inventory_broken.load(std::sync::atomic::Ordering::Relaxed);
        self.finish_health() && has_flows && !is_broken
    }

    /// Makes health durable. Returns whether it is.
    fn finish_health(&mut self) -> bool {
        // Where no file is open, what is pending was given up and waits for the next one.
        if self.health.is_open() {
            let finished = self.health.finish();
            if let Some(path) = judge(&mut self.health, finished) {
                self.pending_health.clear();
                path.iter().for_each(|path| self.deliver(path, 0));
            }
        }
        self.pending_health.is_empty()
    }
}

/// Whether the row is on its way; if not, the file is given up.
fn push<R: Record>(writer: &mut DatasetWriter<R>, row: R, now: TimestampMs) -> bool {
    let pushed = writer.push(row, now);
    judge(writer, pushed).is_some()
}

/// What was written; where that failed, the file is given up.
fn judge<R: Record, T>(writer: &mut DatasetWriter<R>, written: Result<T, CaptureError>) -> Option<T> {
    written
        .inspect_err(|error| {
            tracing::error!(dataset = R::DATASET, error = error as &dyn std::error::Error, "a file is given up");
            writer.abandon();
        })
        .ok()
}

/// Health rows that are kept while they can't be written: a day of the default windows.
const PENDING_HEALTH_ROWS: usize = 1440;
