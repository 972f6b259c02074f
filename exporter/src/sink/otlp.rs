//! An OpenTelemetry collector: rows as log records.

use bytes::Bytes;
use delivery::{
    Outbox, Parcel, Stats,
    otlp::{Encoder, ResourceAttributes},
};
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

use super::{AGENT_VERSION, Account, Order, SETTLE_LAST, own_account};

/// Makes requests of the rows of all datasets, at least one per dataset and second in which there are any.
pub(crate) struct OtlpSink {
    flows: Encoder<FlowRecord>,
    inventory: Encoder<InventoryRecord>,
    health: Encoder<HealthRecord>,
    outbox: Outbox,
    account: Account,
    told_lost: i64,
    /// Ends of connections in the rows of the next request.
    pending_ends: i64,
}

impl OtlpSink {
    /// Prepares to send by `outbox`; `attributes` are those of the resource that rows do not have themselves.
    pub(crate) fn new(outbox: Outbox, attributes: &ResourceAttributes, account: Account) -> Self {
        Self {
            flows: Encoder::new(attributes.clone(), AGENT_VERSION),
            inventory: Encoder::new(attributes.clone(), AGENT_VERSION),
            health: Encoder::new(attributes.clone(), AGENT_VERSION),
            outbox,
            account,
            told_lost: 0,
            pending_ends: 0,
        }
    }

    pub(super) fn take(&mut self, order: Order, now: TimestampMs) {
        match order {
            Order::Flow(record, ends) => {
                self.flows.push(&record, now);
                self.pending_ends += ends;
                if self.flows.size_bytes() >= REQUEST_BYTES {
                    self.ship_flows();
                }
            }
            Order::Inventory(record) => {
                self.inventory.push(&record, now);
                if self.inventory.size_bytes() >= REQUEST_BYTES {
                    self.ship_inventory();
                }
            }
            Order::FinishInventory => self.ship_inventory(),
            Order::Health(record) => {
                // What the row tells of goes first.
                self.ship_flows();
                self.ship_inventory();
                self.learn_losses();
                let record = own_account(*record, &self.account, &mut self.told_lost);
                self.health.push(&record, now);
                ship(&mut self.health, 0, &self.outbox);
            }
            Order::Tick => {
                self.ship_flows();
                self.ship_inventory();
                self.learn_losses();
            }
            Order::Sync(answer, patience) => {
                self.ship_flows();
                self.ship_inventory();
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

    fn ship_flows(&mut self) {
        let ends = std::mem::take(&mut self.pending_ends);
        ship(&mut self.flows, ends, &self.outbox);
    }

    fn ship_inventory(&mut self) {
        if !ship(&mut self.inventory, 0, &self.outbox) {
            self.account.lose_inventory();
        }
    }

    fn learn_losses(&self) {
        self.account.lose(self.outbox.take_lost_ends());
    }
}

/// Hands over what was collected; whether it is not lost.
fn ship<R: Record>(encoder: &mut Encoder<R>, ends: i64, outbox: &Outbox) -> bool {
    let rows = encoder.rows() as i64;
    let Some(request) = encoder.finish() else { return true };
    outbox.put(Parcel { dataset: R::DATASET, rows, ends, body: Bytes::from(request) })
}

/// A request is sent once it is as large: half of what receivers take, since its last row may be large too.
const REQUEST_BYTES: usize = delivery::otlp::REQUEST_BYTES / 2;
