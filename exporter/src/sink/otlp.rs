//! An OpenTelemetry collector: rows as log records.

use delivery::{Outbox, RequestDestination, RequestWriter, Stats};
use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord, table::TimestampMs};

use super::{AGENT_VERSION, Account, Order, SETTLE_LAST, own_account};

/// Makes requests of the rows of all datasets, at least one per dataset and second in which there are any.
pub(crate) struct OtlpSink {
    flows: RequestWriter<FlowRecord>,
    inventory: RequestWriter<InventoryRecord>,
    health: RequestWriter<HealthRecord>,
    outbox: Outbox,
    account: Account,
    told_lost: i64,
}

impl OtlpSink {
    /// Prepares to send to a receiver.
    pub(crate) fn new(destination: RequestDestination, account: Account) -> Self {
        Self {
            flows: destination.writer(AGENT_VERSION),
            inventory: destination.writer(AGENT_VERSION),
            health: destination.writer(AGENT_VERSION),
            outbox: destination.outbox,
            account,
            told_lost: 0,
        }
    }

    pub(super) fn take(&mut self, order: Order, now: TimestampMs) {
        match order {
            Order::Flow(record, ends) => {
                self.flows.push(&record, ends, now);
            }
            Order::Inventory(record) => {
                let is_kept = self.inventory.push(&record, 0, now);
                self.lose_inventory(is_kept);
            }
            Order::FinishInventory => self.send_inventory(),
            Order::Health(record) => {
                // What the row tells of goes first.
                self.flows.send();
                self.send_inventory();
                self.learn_losses();
                let record = own_account(*record, &self.account, &mut self.told_lost);
                self.health.push(&record, 0, now);
                self.health.send();
            }
            Order::Tick => {
                self.flows.send();
                self.send_inventory();
                self.learn_losses();
            }
            Order::Sync(answer, patience) => {
                self.flows.send();
                self.send_inventory();
                if !patience.is_zero() {
                    self.outbox.settle(patience);
                }
                self.learn_losses();
                let _ = answer.send(true);
            }
            Order::End(answer) => {
                self.outbox.settle(SETTLE_LAST);
                let _ = answer.send(self.outbox.close());
            }
        }
    }

    pub(super) fn stats(&self) -> Stats {
        self.outbox.stats()
    }

    fn send_inventory(&mut self) {
        let is_kept = self.inventory.send();
        self.lose_inventory(is_kept);
    }

    fn lose_inventory(&self, is_kept: bool) {
        if !is_kept {
            self.account.lose_inventory();
        }
    }

    fn learn_losses(&self) {
        self.account.lose(self.outbox.take_lost_ends());
    }
}
