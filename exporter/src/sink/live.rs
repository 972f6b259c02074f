//! The live stream: rows to clients that ask for them while they are recorded.
//!
//! ```text
//! Order ──► LiveSink ──┬─► Client (scope, numbers, account) ──frame──► [bounded] ──► HTTP response
//! Hub ──new clients──┘ └─► Client …
//! ```
//!
//! A client never waits for another, nor recording for a client: what one does not take is dropped, and counted in its own
//! rows of health. What there is in the inventory is remembered, so that each can be told from the start.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use delivery::{live, otlp::Encoder};
use kubernetes::inventory_log::InventoryLog;
use schemas::{
    capture::Origin,
    flow::FlowRecord,
    health::HealthRecord,
    inventory::{InventoryEvent, InventoryRecord, Scope},
    table::{Record, TimestampMs},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{AGENT_VERSION, Account, Order};
use crate::telemetry::Telemetry;

/// What a client may see.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientScope {
    /// Flows with an end in one of these namespaces; all if `None`.
    pub(crate) namespaces: Option<BTreeSet<Arc<str>>>,
    /// All of the inventory even so.
    pub(crate) has_whole_inventory: bool,
}

/// What a client's sides share.
#[derive(Debug)]
pub(crate) struct Line {
    /// Bytes of frames that the client has not taken yet.
    pub(crate) waiting_bytes: AtomicUsize,
    /// The client wants no more than the windows that had begun by then, in milliseconds since the Unix epoch.
    pub(crate) finish_at_ms: AtomicI64,
    /// The client may not have more.
    pub(crate) is_cut: AtomicBool,
}

impl Default for Line {
    fn default() -> Self {
        let (waiting_bytes, is_cut) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { waiting_bytes, finish_at_ms: AtomicI64::new(i64::MAX), is_cut }
    }
}

/// Where clients are let in.
pub(crate) struct Hub {
    joining: Mutex<Vec<Client>>,
    clients: AtomicUsize,
    telemetry: Arc<Telemetry>,
}

/// Tells clients what is recorded.
pub(crate) struct LiveSink {
    hub: Arc<Hub>,
    /// What there is now; its rows are never written.
    known: InventoryLog,
    /// What the agent says that it knows: all of the cluster, or a part.
    known_scope: Scope,
    clients: Vec<Client>,
    account: Account,
    told_lost: i64,
}

/// Somebody who listens, and what was told.
struct Client {
    telemetry: Arc<Telemetry>,
    origin: Origin,
    scope: ClientScope,
    line: Arc<Line>,
    frames: Sender<Bytes>,
    log: InventoryLog,
    flows: Encoder<FlowRecord>,
    inventory: Encoder<InventoryRecord>,
    health: Encoder<HealthRecord>,
    flows_next_seq: i64,
    health_next_seq: i64,
    since: TimestampMs,
    /// Ends of connections in the flows of the next request.
    pending_ends: i64,
    /// Since the last row of health.
    exported: i64,
    filtered: i64,
    lost: i64,
    /// Inventory was dropped: it has to be told from the start.
    is_inventory_broken: bool,
    /// The last row of health was told.
    is_over: bool,
    last_frame: TimestampMs,
}

impl Hub {
    pub(crate) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { joining: Mutex::default(), clients: AtomicUsize::new(0), telemetry }
    }

    /// Lets a client in: what it is told comes out of the receiver. `None` if there are too many.
    pub(crate) fn join(&self, origin: Origin, scope: ClientScope, line: Arc<Line>) -> Option<Receiver<Bytes>> {
        if self.clients.fetch_add(1, Ordering::Relaxed) >= MOST_CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let (frames, receiver) = channel(WAITING_FRAMES);
        let client = Client::new(Arc::clone(&self.telemetry), origin, scope, line, frames);
        self.joining.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        Some(receiver)
    }

    fn take_joining(&self) -> Vec<Client> {
        std::mem::take(&mut self.joining.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn leave(&self, clients: usize) {
        self.clients.fetch_sub(clients, Ordering::Relaxed);
    }
}

impl LiveSink {
    pub(crate) fn new(hub: Arc<Hub>, account: Account) -> Self {
        let known = InventoryLog::new(Origin::default(), Scope::Part);
        Self { hub, known, known_scope: Scope::Part, clients: Vec::new(), account, told_lost: 0 }
    }

    pub(super) fn take(&mut self, order: Order, now: TimestampMs) {
        match order {
            Order::Flow(record, ends) => {
                self.clients.iter_mut().for_each(|client| client.flow(&record, ends, now));
            }
            Order::Inventory(record) => self.learn(*record, now),
            Order::FinishInventory => {}
            Order::Health(row) => {
                let lost = self.account.lost_ends();
                let lost = lost - std::mem::replace(&mut self.told_lost, lost);
                for client in &mut self.clients {
                    client.lost += lost;
                    client.tell_health(&row, now);
                }
                self.keep(|client| !client.is_over);
            }
            Order::Tick => {
                for mut client in self.hub.take_joining() {
                    client.begin(&self.known, self.known_scope, now);
                    self.clients.push(client);
                }
                self.clients.iter_mut().for_each(|client| client.tick(now));
                self.keep(|client| !client.frames.is_closed() && !client.line.is_cut.load(Ordering::Relaxed));
            }
            Order::Sync(answer, _) => drop(answer.send(true)),
            Order::End(answer) => {
                self.keep(|_| false);
                let _ = answer.send(true);
            }
        }
    }

    fn learn(&mut self, record: InventoryRecord, now: TimestampMs) {
        let is_gone = *record.event == InventoryEvent::Delete;
        self.known_scope = if *record.scope == Scope::Cluster { Scope::Cluster } else { Scope::Part };
        // As an object alone, without who told of it when.
        let record = InventoryRecord {
            cluster: Arc::default(),
            node: Arc::default(),
            run_id: Arc::default(),
            seq: 0,
            observed_at: TimestampMs::default(),
            event: Arc::default(),
            scope: Arc::default(),
            ..record
        };
        for client in &mut self.clients {
            client.learn(&record, is_gone, self.known_scope, now);
        }
        if is_gone {
            self.known.delete(record, now);
        } else {
            self.known.upsert(record, now);
        }
    }

    fn keep(&mut self, is_kept: impl Fn(&Client) -> bool) {
        let before = self.clients.len();
        self.clients.retain(is_kept);
        self.hub.leave(before - self.clients.len());
        self.hub.telemetry.live_clients(self.clients.len());
    }
}

impl Client {
    fn new(
        telemetry: Arc<Telemetry>,
        origin: Origin,
        scope: ClientScope,
        line: Arc<Line>,
        frames: Sender<Bytes>,
    ) -> Self {
        Self {
            telemetry,
            log: InventoryLog::new(origin.clone(), Scope::Part),
            origin,
            scope,
            line,
            frames,
            flows: Encoder::new(Vec::new(), AGENT_VERSION),
            inventory: Encoder::new(Vec::new(), AGENT_VERSION),
            health: Encoder::new(Vec::new(), AGENT_VERSION),
            flows_next_seq: 0,
            health_next_seq: 0,
            since: TimestampMs::default(),
            pending_ends: 0,
            exported: 0,
            filtered: 0,
            lost: 0,
            is_inventory_broken: false,
            is_over: false,
            last_frame: TimestampMs::default(),
        }
    }

    /// Tells that the run has begun, and who is who.
    fn begin(&mut self, known: &InventoryLog, known_scope: Scope, now: TimestampMs) {
        self.since = now;
        self.log.set_scope(self.scope.of_inventory(known_scope));
        let row = HealthRecord { window_start: now, window_end: now, ..HealthRecord::default() };
        self.tell_health(&row, now);
        for record in known.known().filter(|record| self.scope.includes_object(record)) {
            self.log.upsert(record.clone(), now);
        }
        self.tell_all(now);
    }

    fn tell_all(&mut self, now: TimestampMs) {
        self.is_inventory_broken = false;
        let rows = self.log.snapshot(now);
        rows.iter().for_each(|row| self.inventory.push(row, now));
    }

    fn flow(&mut self, record: &FlowRecord, ends: i64, now: TimestampMs) {
        if !self.scope.includes_flow(record) {
            self.filtered += ends;
            return;
        }
        let (run_id, seq) = (Arc::clone(&self.origin.run_id), self.flows_next_seq);
        self.flows_next_seq += 1;
        self.flows.push(&FlowRecord { run_id, seq, ..record.clone() }, now);
        self.pending_ends += ends;
        if self.flows.size_bytes() >= REQUEST_BYTES {
            self.send_flows(now);
        }
    }

    fn learn(&mut self, record: &InventoryRecord, is_gone: bool, known_scope: Scope, now: TimestampMs) {
        if !self.scope.includes_object(record) {
            return;
        }
        self.log.set_scope(self.scope.of_inventory(known_scope));
        // Every hour's rows open with all that is known.
        if self.log.is_new_hour(now) {
            self.tell_all(now);
        }
        let row = match is_gone {
            true => self.log.delete(record.clone(), now),
            false => self.log.upsert(record.clone(), now),
        };
        if let Some(row) = row {
            self.inventory.push(&row, now);
        }
    }

    fn tick(&mut self, now: TimestampMs) {
        if !self.log.has_begun() || self.log.is_due(self.is_inventory_broken, now) {
            self.tell_all(now);
        }
        self.send_flows(now);
        self.send_inventory(now);
        if now.0 - self.last_frame.0 >= KEEP_ALIVE_MS {
            self.hand_over(live::nothing(), WAITING_BYTES, now);
        }
    }

    fn tell_health(&mut self, row: &HealthRecord, now: TimestampMs) {
        self.send_flows(now);
        self.send_inventory(now);
        // Windows are told of a moment after their end, and one may have begun since.
        let is_last = row.window_end.0 >= self.line.finish_at_ms.load(Ordering::Relaxed);
        let filtered = row.filtered + self.filtered;
        let lost_queue = row.lost_queue + self.lost;
        let lost = row.lost_ring + row.lost_map + row.lost_parse + lost_queue + row.lost_end;
        let told = HealthRecord {
            cluster: Arc::clone(&self.origin.cluster),
            node: Arc::clone(&self.origin.node),
            run_id: Arc::clone(&self.origin.run_id),
            seq: self.health_next_seq,
            // What was before it came is not for this client to judge.
            window_start: row.window_start.max(self.since),
            run_start: self.since,
            agent_version: AGENT_VERSION.into(),
            namespaces: self.scope.limited(&row.namespaces),
            seen: self.exported + filtered + lost,
            exported: self.exported,
            filtered,
            lost_queue,
            lost_sink: 0,
            flows_next_seq: self.flows_next_seq,
            inventory_next_seq: self.log.next_seq(),
            clean_shutdown: row.clean_shutdown || is_last,
            ..row.clone()
        };
        self.health.push(&told, now);
        let request = self.health.finish();
        // What is not told now stays in the account of the next row.
        if request.is_some_and(|request| self.send::<HealthRecord>(&request, 1, now)) {
            self.health_next_seq += 1;
            self.is_over = is_last;
            (self.exported, self.filtered, self.lost) = (0, 0, 0);
        }
    }

    fn send_flows(&mut self, now: TimestampMs) {
        let (rows, ends) = (self.flows.rows(), std::mem::take(&mut self.pending_ends));
        let Some(request) = self.flows.finish() else { return };
        if self.send::<FlowRecord>(&request, rows, now) {
            self.exported += ends;
        } else {
            self.lost += ends;
        }
    }

    fn send_inventory(&mut self, now: TimestampMs) {
        let rows = self.inventory.rows();
        let Some(request) = self.inventory.finish() else { return };
        self.is_inventory_broken |= !self.send::<InventoryRecord>(&request, rows, now);
    }

    /// Hands a request over; whether there was room for it.
    fn send<R: Record>(&mut self, request: &[u8], rows: usize, now: TimestampMs) -> bool {
        // Health is little, and says what was dropped.
        let most = if R::DATASET == HealthRecord::DATASET { 2 * WAITING_BYTES } else { WAITING_BYTES };
        let is_taken = live::frame(request).is_ok_and(|frame| self.hand_over(frame, most, now));
        self.telemetry.live_rows(if is_taken { "sent" } else { "dropped" }, rows as u64);
        is_taken
    }

    /// Hands a frame over, unless more than `most` bytes would wait; whether it did.
    fn hand_over(&mut self, frame: Bytes, most: usize, now: TimestampMs) -> bool {
        let (waiting, bytes) = (&self.line.waiting_bytes, frame.len());
        if waiting.load(Ordering::Relaxed) + bytes > most {
            return false;
        }
        waiting.fetch_add(bytes, Ordering::Relaxed);
        let is_taken = self.frames.try_send(frame).is_ok();
        if is_taken {
            self.last_frame = now;
        } else {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_taken
    }
}

impl ClientScope {
    /// A flow is that of a namespace if its end here is there, or its other end is known to be.
    fn includes_flow(&self, record: &FlowRecord) -> bool {
        let Some(namespaces) = &self.namespaces else { return true };
        let ends = [&record.source_namespace, &record.destination_namespace, &record.destination_service_namespace];
        ends.into_iter().flatten().any(|namespace| namespaces.contains(namespace))
    }

    fn includes_object(&self, record: &InventoryRecord) -> bool {
        let Some(namespaces) = self.namespaces.as_ref().filter(|_| !self.has_whole_inventory) else { return true };
        record.namespace.as_ref().is_some_and(|namespace| namespaces.contains(namespace))
    }

    /// How much of what an agent knows is told.
    fn of_inventory(&self, known_scope: Scope) -> Scope {
        let is_whole = self.namespaces.is_none() || self.has_whole_inventory;
        if is_whole { known_scope } else { Scope::Part }
    }

    /// The namespaces that are told of, of an agent that is limited to some itself.
    fn limited(&self, agent: &[Arc<str>]) -> Vec<Arc<str>> {
        match &self.namespaces {
            None => agent.to_vec(),
            Some(wanted) => wanted.iter().filter(|name| agent.is_empty() || agent.contains(name)).cloned().collect(),
        }
    }
}

/// Clients at once.
const MOST_CLIENTS: usize = 8;
/// What may wait for one client.
const WAITING_FRAMES: usize = 1024;
const WAITING_BYTES: usize = 8 << 20;
const REQUEST_BYTES: usize = delivery::otlp::REQUEST_BYTES / 4;
/// A client that hears nothing for three times as long takes the agent for gone.
const KEEP_ALIVE_MS: i64 = 10_000;

#[cfg(test)]
mod tests;
