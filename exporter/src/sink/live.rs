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
use schemas::{
    capture::Origin,
    flow::FlowRecord,
    health::HealthRecord,
    inventory::{EVENT_DELETE, InventoryRecord, SCOPE_CLUSTER, SCOPE_PART, log::InventoryLog},
    live,
    otlp::Encoder,
    table::{Record, TimestampMs},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{AGENT_VERSION, Account, Order};
use crate::telemetry::Telemetry;

/// What a client may see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
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
    known_scope: &'static str,
    clients: Vec<Client>,
    account: Account,
    told_lost: i64,
}

/// Somebody who listens, and what was told.
struct Client {
    telemetry: Arc<Telemetry>,
    origin: Origin,
    scope: Scope,
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
    pub(crate) fn join(&self, origin: Origin, scope: Scope, line: Arc<Line>) -> Option<Receiver<Bytes>> {
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
        let known = InventoryLog::new(Origin::default(), SCOPE_PART);
        Self { hub, known, known_scope: SCOPE_PART, clients: Vec::new(), account, told_lost: 0 }
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
        let is_gone = *record.event == *EVENT_DELETE;
        self.known_scope = if *record.scope == *SCOPE_CLUSTER { SCOPE_CLUSTER } else { SCOPE_PART };
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
    fn new(telemetry: Arc<Telemetry>, origin: Origin, scope: Scope, line: Arc<Line>, frames: Sender<Bytes>) -> Self {
        Self {
            telemetry,
            log: InventoryLog::new(origin.clone(), SCOPE_PART),
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
    fn begin(&mut self, known: &InventoryLog, known_scope: &'static str, now: TimestampMs) {
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

    fn learn(&mut self, record: &InventoryRecord, is_gone: bool, known_scope: &'static str, now: TimestampMs) {
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
        if self.is_inventory_broken || self.log.is_new_day(now) {
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

impl Scope {
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
    fn of_inventory(&self, known_scope: &'static str) -> &'static str {
        let is_whole = self.namespaces.is_none() || self.has_whole_inventory;
        if is_whole { known_scope } else { SCOPE_PART }
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
const REQUEST_BYTES: usize = schemas::otlp::REQUEST_BYTES / 4;
/// A client that hears nothing for three times as long takes the agent for gone.
const KEEP_ALIVE_MS: i64 = 10_000;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use schemas::{live::Frames, otlp::Decoder};

    use super::*;

    /// What a client was told.
    #[derive(Default)]
    struct Told {
        flows: Vec<FlowRecord>,
        inventory: Vec<InventoryRecord>,
        health: Vec<HealthRecord>,
    }

    /// Takes what waits for a client, as the server does.
    fn take(receiver: &mut Receiver<Bytes>, line: &Line) -> Told {
        let (mut frames, mut decoder, mut told) = (Frames::default(), Decoder::default(), Told::default());
        while let Ok(frame) = receiver.try_recv() {
            line.waiting_bytes.fetch_sub(frame.len(), Ordering::Relaxed);
            frames.push(&frame);
        }
        while let Some(packed) = frames.next_frame().expect("it is a stream") {
            let request = live::request(&packed).expect("it is whole");
            let decoded = decoder.decode(&request).expect("it is OTLP");
            told.flows.extend(decoded.flows);
            told.inventory.extend(decoded.inventory);
            told.health.extend(decoded.health);
        }
        told
    }

    struct Listening {
        sink: LiveSink,
        line: Arc<Line>,
        receiver: Receiver<Bytes>,
    }

    fn listening(scope: Scope) -> Listening {
        let hub = Arc::new(Hub::new(Arc::new(Telemetry::new())));
        let mut sink = LiveSink::new(Arc::clone(&hub), Account::default());
        sink.take(Order::Inventory(Box::new(pod("demo", "web"))), NOW);
        sink.take(Order::Inventory(Box::new(pod("other", "db"))), NOW);
        let line = Arc::new(Line::default());
        let origin = Origin { cluster: "c".into(), node: "n".into(), run_id: "stream".into() };
        let receiver = hub.join(origin, scope, Arc::clone(&line)).expect("there is room");
        sink.take(Order::Tick, NOW);
        Listening { sink, line, receiver }
    }

    fn pod(namespace: &str, name: &str) -> InventoryRecord {
        let (kind, event, scope) = ("Pod".into(), "upsert".into(), SCOPE_CLUSTER.into());
        InventoryRecord {
            kind,
            event,
            scope,
            namespace: Some(namespace.into()),
            name: name.into(),
            ..InventoryRecord::default()
        }
    }

    /// A flow within a namespace, with a name that does not compress.
    fn flow(namespace: &str, number: u64) -> Order {
        // A step of SplitMix64 each.
        let mix = |part: u64| {
            let mixed = (number * 64 + part + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB)
        };
        let noise: String = (0..64).map(|part| format!("{:016x}", mix(part))).collect();
        let record = FlowRecord {
            run_id: "agent".into(),
            seq: number as i64,
            source_namespace: Some(namespace.into()),
            source_pod: Some(noise.into()),
            connections: 1,
            ..FlowRecord::default()
        };
        Order::Flow(Box::new(record), 2)
    }

    fn health(until: i64) -> Order {
        let (window_start, window_end) = (TimestampMs(NOW.0 - 1000), TimestampMs(until));
        Order::Health(Box::new(HealthRecord {
            window_start,
            window_end,
            filtered: 3,
            seen: 99,
            ..HealthRecord::default()
        }))
    }

    const NOW: TimestampMs = TimestampMs(1_772_359_200_000);

    #[test]
    fn what_a_client_does_not_take_is_counted_in_its_own_health() {
        let Listening { mut sink, line, mut receiver } = listening(Scope::default());
        let rows = 20_000;
        for number in 0..rows {
            sink.take(flow("demo", number), NOW);
        }
        sink.take(health(NOW.0 + 1000), NOW);
        assert!(line.waiting_bytes.load(Ordering::Relaxed) <= 2 * WAITING_BYTES, "it is bounded");
        let told = take(&mut receiver, &line);
        let row = told.health.last().expect("a row of health");
        assert!(!told.flows.is_empty() && told.flows.len() < rows as usize, "some did not fit: {}", told.flows.len());
        assert_eq!(row.exported, 2 * told.flows.len() as i64);
        assert_eq!(row.lost_queue, 2 * (rows as i64 - told.flows.len() as i64), "both are told");
        assert_eq!(row.seen, row.exported + row.filtered + row.lost());
        assert_eq!(row.flows_next_seq, rows as i64, "what is missing is a gap");
        assert!(told.flows.iter().all(|flow| &*flow.run_id == "stream"), "every stream is a run of its own");
        // Now there is room again.
        sink.take(flow("demo", 1), NOW);
        sink.take(health(NOW.0 + 2000), NOW);
        let told = take(&mut receiver, &line);
        assert_eq!((told.flows.len(), told.health[0].exported, told.health[0].lost_queue), (1, 2, 0));
    }

    #[test]
    fn a_client_sees_its_namespaces_and_no_others() {
        let namespaces = Some(BTreeSet::from(["demo".into()]));
        let Listening { mut sink, line, mut receiver } = listening(Scope { namespaces, has_whole_inventory: false });
        sink.take(flow("demo", 0), NOW);
        sink.take(flow("other", 1), NOW);
        sink.take(Order::Inventory(Box::new(pod("other", "late"))), NOW);
        sink.take(Order::Inventory(Box::new(pod("demo", "late"))), NOW);
        sink.take(health(NOW.0 + 1000), NOW);
        let told = take(&mut receiver, &line);
        let names = |rows: &[InventoryRecord]| {
            rows.iter()
                .map(|row| format!("{}/{} {}", row.namespace.as_deref().unwrap_or_default(), row.name, row.event))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&told.inventory), ["demo/web snapshot", "demo/late upsert"]);
        assert_eq!(told.flows.len(), 1);
        let row = told.health.last().expect("a row of health");
        assert_eq!(
            (row.exported, row.filtered),
            (2, 3 + 2),
            "what the agent filtered, and what this client may not see"
        );
        assert_eq!(row.namespaces, ["demo".into()]);
        assert_eq!(row.window_start, NOW, "of what was before it came it says nothing");
    }

    #[test]
    fn who_is_told_all_of_the_inventory_knows_all_that_the_agent_does() {
        for (namespaces, has_whole_inventory, expected) in
            [(None, false, SCOPE_CLUSTER), (Some("demo"), true, SCOPE_CLUSTER), (Some("demo"), false, SCOPE_PART)]
        {
            let namespaces = namespaces.map(|name| BTreeSet::from([name.into()]));
            let Listening { line, mut receiver, .. } = listening(Scope { namespaces, has_whole_inventory });
            let told = take(&mut receiver, &line).inventory;
            assert!(!told.is_empty() && told.iter().all(|row| &*row.scope == expected), "{expected}: {told:?}");
        }
    }

    #[test]
    fn a_stream_ends_with_the_window_that_the_client_ended_in() {
        let Listening { mut sink, line, mut receiver } = listening(Scope::default());
        line.finish_at_ms.store(NOW.0 + 1500, Ordering::Relaxed);
        sink.take(health(NOW.0 + 1000), NOW);
        sink.take(flow("demo", 0), NOW);
        sink.take(health(NOW.0 + 2000), NOW);
        sink.take(flow("demo", 1), NOW);
        let told = take(&mut receiver, &line);
        assert_eq!(told.flows.len(), 1, "of the window that it ended in, and not of the one after it");
        let clean: Vec<bool> = told.health.iter().map(|row| row.clean_shutdown).collect();
        assert_eq!(clean, [false, false, true]);
        assert!(matches!(receiver.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Disconnected)));
        let (answer, answered) = sync_channel(1);
        sink.take(Order::End(answer), NOW);
        assert_eq!(answered.recv(), Ok(true));
    }
}
