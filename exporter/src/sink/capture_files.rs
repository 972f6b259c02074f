//! A capture: Parquet files, on disk or on their way to an object store.

use std::collections::VecDeque;

use delivery::{FileDestination, FileWriter, GivenUp, Outbox, Stats};
use schemas::{
    capture::{Origin, Roll},
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
    flows: FileWriter<FlowRecord>,
    inventory: FileWriter<InventoryRecord>,
    health: FileWriter<HealthRecord>,
    /// Takes finished files to an object store.
    outbox: Option<Outbox>,
    account: Account,
    told_lost: i64,
    pending_health: VecDeque<HealthRecord>,
}

impl ParquetSink {
    /// Prepares to write to a destination; nothing is made before the first row.
    pub(crate) fn new(destination: FileDestination, origin: &Origin, roll: Roll, account: Account) -> Self {
        Self {
            flows: destination.writer(origin, AGENT_VERSION, roll),
            inventory: destination.writer(origin, AGENT_VERSION, roll),
            health: destination.writer(origin, AGENT_VERSION, roll),
            outbox: destination.outbox,
            account,
            told_lost: 0,
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
        self.lose_flows(finished);
        let pushed = self.flows.push(record, ends, now);
        self.lose_flows(pushed);
    }

    /// Takes account of flows that could not be written; whether all were.
    fn lose_flows<T>(&self, written: Result<T, GivenUp>) -> bool {
        let lost = given_up::<FlowRecord, T>(written);
        self.account.lose(lost.unwrap_or_default());
        lost.is_none()
    }

    fn inventory(&mut self, record: InventoryRecord, now: TimestampMs) {
        let finished = self.inventory.finish_other_hour(&record);
        self.lose_inventory(finished);
        // What follows a failure would look like all there is: it is told from the start soon.
        let pushed = self.inventory.push(record, 0, now);
        self.lose_inventory(pushed);
    }

    fn finish_inventory(&mut self) {
        let finished = self.inventory.finish();
        self.lose_inventory(finished);
    }

    fn lose_inventory<T>(&self, written: Result<T, GivenUp>) {
        if given_up::<InventoryRecord, T>(written).is_some() {
            self.account.lose_inventory();
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
            let _ = given_up::<HealthRecord, _>(self.health.finish_other_hour(&record));
            if given_up::<HealthRecord, _>(self.health.push(record, 0, now)).is_some() {
                break;
            }
        }
    }

    /// Finishes the files that are large or old enough. When inventory begins anew, the recorder says.
    fn roll(&mut self, now: TimestampMs) {
        if let Some(outbox) = &self.outbox {
            self.account.lose(outbox.take_lost_ends());
        }
        let finished = self.flows.finish_due(now);
        self.lose_flows(finished);
        if self.health.is_due(now) {
            self.finish_health();
        }
    }

    fn sync(&mut self) -> bool {
        let finished = self.flows.finish();
        let has_flows = self.lose_flows(finished);
        self.finish_inventory();
        let is_broken = self.account.is_inventory_broken.load(std::sync::atomic::Ordering::Relaxed);
        self.finish_health() && has_flows && !is_broken
    }

    /// Makes health durable. Returns whether it is.
    fn finish_health(&mut self) -> bool {
        // Where no file is open, what is pending was given up and waits for the next one.
        if self.health.is_open() && given_up::<HealthRecord, _>(self.health.finish()).is_none() {
            self.pending_health.clear();
        }
        self.pending_health.is_empty()
    }
}

/// Ends of connections that were lost with a file that was given up; `None` if it was not.
fn given_up<R: Record, T>(written: Result<T, GivenUp>) -> Option<i64> {
    let GivenUp { ends, source } = written.err()?;
    tracing::error!(dataset = R::DATASET, error = &source as &dyn std::error::Error, "a file is given up");
    Some(ends)
}

/// Health rows that are kept while they can't be written: a day of the default windows.
const PENDING_HEALTH_ROWS: usize = 1440;
