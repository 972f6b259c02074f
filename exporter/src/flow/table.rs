//! The table of edges and windows: events in, flows out.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use schemas::{
    event::{EVENT_CLOSED, EVENT_FAILED, EVENT_LISTENING, EVENT_OPEN, EdgeCounts, EdgeKey, FlowEvent},
    table::{RttHistogram, TimestampMs},
};

use super::{
    Change, Clock, Failure, Flow, FlowKey, Role, SocketOwner, Sums, Transport,
    conversation::{Conversation, Conversations, First},
    transport,
};

/// Bounds of a [`FlowTable`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowTableLimits {
    /// Edges of all open windows together.
    pub edges: usize,
    /// UDP conversations whose direction is remembered.
    pub conversations: usize,
}

/// Sums events per edge and window; with a window of zero, makes one flow per TCP connection.
#[derive(Debug)]
pub(crate) struct FlowTable {
    /// Never zero: without windows, UDP is summed over windows all the same.
    window_ms: i64,
    is_per_connection: bool,
    limits: FlowTableLimits,
    windows: BTreeMap<TimestampMs, HashMap<FlowKey, Sums>>,
    edges: usize,
    /// Of the window that was handed on last.
    last_edges: usize,
    /// Everything before is closed and handed on.
    closed_until: TimestampMs,
    /// Flows of single connections that are complete.
    ended: Vec<Flow>,
    /// Network namespaces, by cookie, and ports that were listened on when the run began.
    listeners: HashSet<(u64, u16)>,
    conversations: Conversations,
    /// Connections told of by the last scan.
    open: usize,
    /// As of when the scan told that ends the run, after which only another one follows; never is `i64::MAX`.
    told_last: TimestampMs,
    /// Ends of TCP connections taken in, since the start.
    ends: u64,
    /// UDP conversations counted, once per window, since the start.
    datagram_ends: u64,
    /// What found no room, since the start.
    lost: TableLoss,
}

/// What found no room in a [`FlowTable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableLoss {
    /// Ends of connections.
    pub(crate) ends: u64,
    /// How connections ended or went on, and their bytes.
    pub(crate) closings: u64,
}

impl FlowTable {
    /// A table for windows of `window`, from `now` on.
    pub(crate) fn new(window: Duration, limits: FlowTableLimits, now: TimestampMs) -> Self {
        let is_per_connection = window.is_zero();
        let window_ms = if is_per_connection { SUMMED_WINDOW_MS } else { window.as_millis() as i64 };
        Self {
            window_ms,
            is_per_connection,
            limits,
            windows: BTreeMap::new(),
            edges: 0,
            last_edges: 0,
            closed_until: TimestampMs(now.0 - now.0.rem_euclid(window_ms)),
            ended: Vec::new(),
            listeners: HashSet::new(),
            conversations: Conversations::new(limits.conversations, now),
            open: 0,
            told_last: TimestampMs(i64::MAX),
            ends: 0,
            datagram_ends: 0,
            lost: TableLoss::default(),
        }
    }

    /// Takes in one event.
    pub(crate) fn step(&mut self, event: &FlowEvent, clock: Clock) {
        if event.kind == EVENT_LISTENING {
            self.listeners.insert((event.netns_cookie, event.local_port));
            return;
        }
        let (key, client_port) = self.describe(event);
        let time = clock.utc(event.time_ns);
        let started = if event.start_known() { clock.utc(event.start_ns) } else { time };
        if event.kind == EVENT_FAILED {
            self.ends += 1;
            let key = FlowKey { failure: Some(Failure::from_errno(event.error, event.error_soft)), ..key };
            return self.record(key, client_port, started, time, Change { failed: 1, ..Change::default() });
        }
        let is_first = event.reported_ns == 0;
        let told_until = if is_first { started } else { clock.utc(event.reported_ns) };
        let mut change = Change {
            connections: i64::from(event.start_known() && is_first),
            sent_received: Some((event.bytes_sent as i64, event.bytes_received as i64)),
            ..Change::default()
        };
        self.ends += change.connections as u64;
        if event.kind == EVENT_CLOSED {
            change.closed = 1;
            change.retransmits = event.retransmits.into();
            change.duration_ms = if event.start_known() { time.0 - started.0 } else { 0 };
            change.rtt.add(event.rtt_us);
        } else {
            self.open += 1;
            change.active = 1;
        }
        if self.is_per_connection {
            return self.record_connection(key, client_port, told_until, time, change, is_first);
        }
        let counted_until = if !is_first && told_until >= self.told_last {
            self.end_of_window(TimestampMs(told_until.0 - 1)) // counted as active in the window that was not over
        } else {
            told_until
        };
        self.mark_active(key, counted_until, time);
        if time < counted_until {
            change.active = 0;
        }
        // It counts in the window in which it was established, if that one is still open.
        let connections = std::mem::take(&mut change.connections);
        if connections > 0 {
            let counted = TimestampMs(started.0.max(self.closed_until.0).min(time.0));
            self.update(key, counted, counted, Change { connections, ..Change::default() });
        }
        self.update(key, time, time, change);
    }

    /// Takes in what the kernel summed.
    pub(crate) fn step_edge(&mut self, edge: &EdgeKey, counts: &EdgeCounts, clock: Clock) {
        let (first, last) = (clock.utc(counts.first_ns), clock.utc(counts.last_ns));
        // The kernel's windows are those of the clock at the start; where the clock was set since, time decides.
        let window = TimestampMs(edge.window as i64 * self.window_ms);
        let in_window = |time: TimestampMs| TimestampMs(time.0.clamp(window.0, window.0 + self.window_ms - 1));
        let is_off = (first.0 - window.0).abs() > 2 * self.window_ms;
        let (first, last) = if is_off { (first, last) } else { (in_window(first), in_window(last)) };
        if transport(edge.transport) == Transport::Udp {
            return self.step_datagrams(edge, counts, first, last);
        }
        let event = FlowEvent {
            start_ns: edge.start_known.into(),
            time_ns: counts.last_ns,
            reported_ns: 0,
            netns_cookie: edge.netns_cookie,
            cgroup_id: edge.cgroup_id,
            bytes_sent: counts.bytes_sent,
            bytes_received: counts.bytes_received,
            local_address: edge.local_address,
            remote_address: edge.remote_address,
            netns_inode: counts.netns_inode,
            retransmits: 0,
            rtt_us: u32::MAX,
            error: edge.error,
            error_soft: edge.error_soft,
            local_port: edge.local_port,
            remote_port: edge.remote_port,
            kind: edge.kind,
            role: edge.role,
            transport: edge.transport,
            _pad: 0,
        };
        if edge.kind == EVENT_LISTENING {
            return self.step(&event, clock);
        }
        let (mut key, _) = self.describe(&event);
        let events = counts.events as i64;
        let mut change = Change {
            connections: counts.connections as i64,
            sent_received: Some((counts.bytes_sent as i64, counts.bytes_received as i64)),
            retransmits: counts.retransmits as i64,
            duration_ms: (counts.duration_ns / 1_000_000) as i64,
            rtt: RttHistogram(counts.rtt.map(|connections| connections as i64)),
            ..Change::default()
        };
        match edge.kind {
            EVENT_FAILED => {
                key.failure = Some(Failure::from_errno(edge.error, edge.error_soft));
                change = Change { failed: events, ..Change::default() };
            }
            EVENT_OPEN => {
                self.open += counts.events as usize;
                let is_counted =
                    first >= self.told_last && first < self.end_of_window(TimestampMs(self.told_last.0 - 1));
                change.active = if is_counted { change.connections } else { events };
            }
            _ => change.closed = events,
        }
        self.ends += (change.connections + change.failed) as u64;
        if self.is_per_connection {
            self.push_ended(key, None, (first, last), change);
        } else {
            self.update(key, first, last, change);
        }
    }

    /// Begins a scan: what it tells is what is open.
    pub(crate) fn begin_scan(&mut self) {
        self.open = 0;
    }

    /// Hands over the flows of windows that ended before `until`, and of connections that ended. One by one, since there
    /// may be many of them.
    pub(crate) fn close_windows(&mut self, until: TimestampMs) -> impl Iterator<Item = Flow> + use<> {
        while self.closed_until.0 + self.window_ms <= until.0 {
            self.closed_until = self.next_end();
        }
        let open = self.windows.split_off(&self.closed_until);
        let closed = std::mem::replace(&mut self.windows, open);
        self.edges -= closed.values().map(HashMap::len).sum::<usize>();
        self.last_edges = closed.values().last().map_or(self.last_edges, HashMap::len);
        let window_ms = self.window_ms;
        let summed = closed.into_iter().flat_map(move |(window_start, edges)| {
            let window_end = TimestampMs(window_start.0 + window_ms);
            edges.into_iter().map(move |(key, sums)| {
                let client_port = (key.role == Role::Unknown).then_some(key.local_port);
                Flow { key, window_start, window_end, client_port, sums }
            })
        });
        self.take_ended().into_iter().chain(summed)
    }

    /// The run ends: after the scan as of `now`, another one tells only what happened since.
    pub(crate) const fn begin_finish(&mut self, now: TimestampMs) {
        self.told_last = now;
    }

    /// Hands over everything: at the end of a run.
    pub(crate) fn finish(&mut self, now: TimestampMs) -> impl Iterator<Item = Flow> + use<> {
        let complete = self.close_windows(now);
        let last_end = TimestampMs(self.windows.keys().last().map_or(0, |start| start.0 + self.window_ms));
        // The last window is not over: it ends when the run does.
        let rest = self.close_windows(last_end).map(move |flow| Flow {
            window_end: TimestampMs(flow.window_end.0.min(now.0.max(flow.sums.last_seen.0 + 1))),
            ..flow
        });
        complete.chain(rest)
    }

    /// Hands over the flows of single connections.
    pub(crate) fn take_ended(&mut self) -> Vec<Flow> {
        std::mem::take(&mut self.ended)
    }

    /// Everything before is handed on.
    pub(crate) const fn closed_until(&self) -> TimestampMs {
        self.closed_until
    }

    /// The end of the oldest window that is not handed on.
    pub(crate) const fn next_end(&self) -> TimestampMs {
        TimestampMs(self.closed_until.0 + self.window_ms)
    }

    /// Connections that were open at the last scan.
    pub(crate) const fn open_connections(&self) -> usize {
        self.open
    }

    /// Edges that wait for the end of their window.
    pub(crate) const fn edges(&self) -> usize {
        self.edges
    }

    /// Ends of TCP connections taken in, whether there was room or not, since the start.
    pub(crate) const fn ends(&self) -> u64 {
        self.ends
    }

    /// UDP conversations, counted once per window, since the start.
    pub(crate) const fn datagram_ends(&self) -> u64 {
        self.datagram_ends
    }

    /// What found no room in the table, since the start.
    pub(crate) const fn lost(&self) -> TableLoss {
        self.lost
    }

    fn step_datagrams(&mut self, edge: &EdgeKey, counts: &EdgeCounts, first: TimestampMs, last: TimestampMs) {
        let remote_address = address(edge.remote_address);
        // A socket of both families that is bound to no address tells it now in one and now in the other.
        let local_address = match (address(edge.local_address), remote_address) {
            (local, IpAddr::V4(_)) if local.is_unspecified() => Ipv4Addr::UNSPECIFIED.into(),
            (local, IpAddr::V6(_)) if local.is_unspecified() => Ipv6Addr::UNSPECIFIED.into(),
            (local, _) => local,
        };
        let conversation = Conversation {
            netns_cookie: edge.netns_cookie,
            local_port: edge.local_port,
            remote: (remote_address, edge.remote_port),
        };
        let window = self.window_start(first);
        let port_is_chosen = counts.port_is_chosen != 0;
        let of_first = First { role: Role::from_event(counts.role), port_is_chosen, is_older: counts.is_older != 0 };
        let seen = self.conversations.see(conversation, of_first, first, window);
        // Peers that all send from the port on which they receive (gossip, SIP, IKE): either may begin, now or later.
        let are_peers = port_is_chosen && edge.local_port == edge.remote_port;
        let role = if are_peers { Role::Client } else { seen.role };
        let key = FlowKey {
            socket: SocketOwner {
                netns_inode: counts.netns_inode,
                netns_cookie: edge.netns_cookie,
                cgroup_id: edge.cgroup_id,
            },
            role,
            transport: Transport::Udp,
            local_address,
            remote_address,
            server_port: if role == Role::Server { edge.local_port } else { edge.remote_port },
            local_port: if role == Role::Unknown { edge.local_port } else { 0 },
            failure: None,
            start_known: true,
        };
        self.datagram_ends += u64::from(seen.is_new_in_window);
        let bytes = (counts.bytes_sent as i64, counts.bytes_received as i64);
        let change = Change {
            connections: i64::from(seen.is_new_in_window),
            sent_received: (counts.has_bytes != 0).then_some(bytes),
            ..Change::default()
        };
        self.update(key, first, last, change);
        if are_peers {
            // Counted once, open the other way round.
            let change = Change { active: i64::from(seen.is_new_in_window), ..Change::default() };
            self.update(FlowKey { role: Role::Server, ..key }, first, last, change);
        }
    }

    fn record_connection(
        &mut self,
        key: FlowKey,
        client_port: u16,
        told_until: TimestampMs,
        time: TimestampMs,
        mut change: Change,
        is_first: bool,
    ) {
        if change.active > 0 && !is_first && told_until >= self.told_last {
            if change.sent_received == Some((0, 0)) {
                return;
            }
            change.active = 0;
        }
        self.record(key, client_port, told_until, time, change);
    }

    /// Adds to the edge of the window, or makes the connection's own flow.
    fn record(&mut self, key: FlowKey, client_port: u16, started: TimestampMs, time: TimestampMs, change: Change) {
        if !self.is_per_connection {
            return self.update(key, time, time, change);
        }
        self.push_ended(key, Some(client_port), (started, time), change);
    }

    fn push_ended(
        &mut self,
        key: FlowKey,
        client_port: Option<u16>,
        (window_start, window_end): (TimestampMs, TimestampMs),
        change: Change,
    ) {
        if self.ended.len() >= self.limits.edges {
            return self.lost.add(&change);
        }
        let mut sums = Sums::empty(window_start, window_end);
        sums.add(key.role, &change);
        self.ended.push(Flow { key, window_start, window_end, client_port, sums });
    }

    fn update(&mut self, key: FlowKey, first: TimestampMs, last: TimestampMs, change: Change) {
        let start = self.window_start(first);
        let room = self.edges < self.limits.edges;
        // As large as the one before, so that it need not grow, which takes twice the memory for a moment.
        let window = self.windows.entry(start).or_insert_with(|| HashMap::with_capacity(self.last_edges));
        let sums = match window.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if !room => {
                return self.lost.add(&change);
            }
            Entry::Vacant(entry) => {
                self.edges += 1;
                entry.insert(Sums::empty(first, last))
            }
        };
        sums.first_seen = sums.first_seen.min(first);
        sums.last_seen = sums.last_seen.max(last);
        sums.add(key.role, &change);
    }

    /// Counts a connection as active at every end of a window that it outlived, from `told_until` to `time`.
    fn mark_active(&mut self, key: FlowKey, told_until: TimestampMs, time: TimestampMs) {
        let mut end = self.next_end();
        while end <= time {
            if told_until < end {
                let last = TimestampMs(end.0 - 1);
                self.update(key, last, last, Change { active: 1, ..Change::default() });
            }
            end.0 += self.window_ms;
        }
    }

    const fn window_start(&self, time: TimestampMs) -> TimestampMs {
        TimestampMs(time.0 - time.0.rem_euclid(self.window_ms))
    }

    const fn end_of_window(&self, time: TimestampMs) -> TimestampMs {
        TimestampMs(self.window_start(time).0 + self.window_ms)
    }

    fn describe(&self, event: &FlowEvent) -> (FlowKey, u16) {
        let role = match Role::from_event(event.role) {
            // Older than the run: whoever shares its port with a listener was dialled.
            Role::Unknown if self.listeners.contains(&(event.netns_cookie, event.local_port)) => Role::Server,
            role => role,
        };
        let (server_port, client_port) = match role {
            Role::Server => (event.local_port, event.remote_port),
            Role::Client | Role::Unknown => (event.remote_port, event.local_port),
        };
        let key = FlowKey {
            socket: SocketOwner {
                netns_inode: event.netns_inode,
                netns_cookie: event.netns_cookie,
                cgroup_id: event.cgroup_id,
            },
            role,
            transport: transport(event.transport),
            local_address: address(event.local_address),
            remote_address: address(event.remote_address),
            server_port,
            local_port: if role == Role::Unknown { event.local_port } else { 0 },
            failure: None,
            start_known: event.start_known(),
        };
        (key, client_port)
    }
}

impl TableLoss {
    fn add(&mut self, change: &Change) {
        self.ends += (change.connections + change.failed) as u64;
        self.closings += (change.closed + change.active) as u64;
    }
}

fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// Without windows, UDP, which has no connections, is summed over this long, in milliseconds.
pub(crate) const SUMMED_WINDOW_MS: i64 = 60_000;

#[cfg(test)]
mod tests;
