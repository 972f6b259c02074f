//! From kernel events to flows: what one end of a connection did, summed per edge and window.
//!
//! ```text
//! FlowEvent ──step──► FlowTable ──close_windows──► Flow
//! ```
//!
//! No I/O and no clock in here: time comes with the events and the calls.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use schemas::{
    event::{EVENT_CLOSED, EVENT_ESTABLISHED, FlowEvent, ROLE_CLIENT, ROLE_SERVER},
    table::{RttHistogram, TimestampMs},
};

/// One edge and window, or one connection, as seen from its local end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Flow {
    /// What makes it one edge.
    pub key: FlowKey,
    /// Start of the window, or of the connection.
    pub window_start: TimestampMs,
    /// End of the window, exclusive, or of the connection.
    pub window_end: TimestampMs,
    /// Port of the client; `None` where connections are summed.
    pub client_port: Option<u16>,
    /// Connections established.
    pub connections: i64,
    /// Connections that failed to establish.
    pub failed: i64,
    /// Connections that ended.
    pub closed: i64,
    /// Connections open at the end.
    pub active: i64,
    /// Payload bytes from the client to the server; `None` until a connection has ended.
    pub bytes_sent: Option<i64>,
    /// Payload bytes from the server to the client.
    pub bytes_received: Option<i64>,
    /// Segments the local end sent again.
    pub retransmits: i64,
    /// Sum of the durations of connections that ended, in milliseconds.
    pub duration_ms_sum: i64,
    /// Round-trip times of connections that ended.
    pub rtt: RttHistogram,
    /// First observation.
    pub first_seen: TimestampMs,
    /// Last observation.
    pub last_seen: TimestampMs,
}

/// What makes observations one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    /// Whose socket it is.
    pub socket: SocketOwner,
    /// What the local end is.
    pub role: Role,
    /// Local address, IPv4 unmapped.
    pub local_address: IpAddr,
    /// Remote address, IPv4 unmapped.
    pub remote_address: IpAddr,
    /// Port of the server, as dialled; where the role is unknown, the remote port.
    pub server_port: u16,
    /// Why connections failed; `None` for established ones.
    pub failure: Option<Failure>,
    /// Whether the connection was seen to begin.
    pub start_known: bool,
}

/// Whose socket it is, from the socket itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SocketOwner {
    /// Inode number of the network namespace.
    pub netns_inode: u32,
    /// Cookie of the network namespace: tells apart two that had the same number.
    pub netns_cookie: u64,
    /// Inode number of the cgroup v2 directory.
    pub cgroup_id: u64,
}

/// What the local end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
    /// The connection is older than the agent.
    Unknown,
}

/// Why a connection failed to establish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    /// Nobody listens there (ECONNREFUSED).
    Refused,
    /// No answer (ETIMEDOUT).
    Timeout,
    /// A router or firewall said so (EHOSTUNREACH, ENETUNREACH, EACCES and the like).
    Unreachable,
    /// Reset while connecting (ECONNRESET).
    Reset,
    /// Closed by the application while connecting.
    Aborted,
}

impl Failure {
    /// The value of the `failure` column.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Aborted => "aborted",
        }
    }

    /// Judges by the socket's error, and by its soft error where the application gave up first. Any error that is not
    /// one of TCP's own comes from ICMP.
    const fn from_errno(error: u32, error_soft: u32) -> Self {
        match if error == 0 { error_soft } else { error } {
            0 | ECONNABORTED => Self::Aborted,
            ECONNREFUSED => Self::Refused,
            ETIMEDOUT => Self::Timeout,
            ECONNRESET | EPIPE => Self::Reset,
            _ => Self::Unreachable,
        }
    }
}

/// Turns `CLOCK_BOOTTIME` nanoseconds of events into UTC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// UTC minus `CLOCK_BOOTTIME`, in nanoseconds.
    pub offset_ns: i64,
}

impl Clock {
    fn utc(self, boottime_ns: u64) -> TimestampMs {
        TimestampMs((boottime_ns as i64 + self.offset_ns) / 1_000_000)
    }
}

/// Bounds and shape of a [`FlowTable`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowTableLimits {
    /// Edges of all open windows together.
    pub edges: usize,
    /// Connections that are followed until they end.
    pub connections: usize,
}

/// Sums events per edge and window; with a window of zero, makes one flow per connection.
#[derive(Debug)]
pub(crate) struct FlowTable {
    window_ms: i64,
    limits: FlowTableLimits,
    host_netns: u32,
    windows: BTreeMap<TimestampMs, HashMap<FlowKey, Flow>>,
    edges: usize,
    open: HashMap<u64, Connection>,
    /// Everything before is closed and handed on.
    closed_until: TimestampMs,
    ended: Vec<Flow>,
    /// What found no room, since the start.
    lost: TableLoss,
}

/// What found no room in a [`FlowTable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableLoss {
    /// Ends of connections.
    pub(crate) ends: u64,
    /// Closings: how connections ended, and their bytes.
    pub(crate) closings: u64,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    key: FlowKey,
    established: TimestampMs,
    client_port: u16,
    /// Whether a row has counted it as established already; with windows, one has from the start.
    counted: bool,
}

impl TableLoss {
    /// One end, established or failed.
    const ENDS: Self = Self { ends: 1, closings: 0 };

    const fn add(&mut self, loss: Self) {
        self.ends += loss.ends;
        self.closings += loss.closings;
    }
}

impl FlowTable {
    /// A table for windows of `window`, from `now` on. In the network namespace `host_netns` the cgroup tells
    /// processes apart; elsewhere the namespace is the pod, and its containers are one.
    pub(crate) fn new(window: Duration, limits: FlowTableLimits, host_netns: u32, now: TimestampMs) -> Self {
        let window_ms = window.as_millis() as i64;
        let closed_until = if window_ms == 0 { now } else { TimestampMs(now.0 - now.0.rem_euclid(window_ms)) };
        Self {
            window_ms,
            limits,
            host_netns,
            windows: BTreeMap::new(),
            edges: 0,
            open: HashMap::new(),
            closed_until,
            ended: Vec::new(),
            lost: TableLoss::default(),
        }
    }

    /// Takes in one event.
    pub(crate) fn step(&mut self, event: &FlowEvent, clock: Clock) {
        let time = clock.utc(event.time_ns);
        let (key, client_port) = self.describe(event);
        match event.kind {
            EVENT_ESTABLISHED => {
                let is_followed = self.open.len() < self.limits.connections;
                // Without windows, the row of its end counts it; one that is not followed until then is counted now.
                let counted = self.window_ms > 0 || !is_followed;
                if is_followed {
                    let connection = Connection { key, established: time, client_port, counted };
                    self.open.insert(event.socket_cookie, connection);
                }
                if counted {
                    self.record(key, client_port, time, time, TableLoss::ENDS, |flow| flow.connections += 1);
                }
            }
            EVENT_CLOSED => self.close(event, key, client_port, time, clock),
            _ => {
                let key = FlowKey { failure: Some(Failure::from_errno(event.error, event.error_soft)), ..key };
                let started = if event.start_ns == 0 { time } else { clock.utc(event.start_ns) };
                self.record(key, client_port, started, time, TableLoss::ENDS, |flow| flow.failed += 1);
            }
        }
    }

    /// Hands over the flows of windows that ended before `until`, and of connections that ended.
    pub(crate) fn close_windows(&mut self, until: TimestampMs) -> Vec<Flow> {
        if self.window_ms == 0 {
            return std::mem::take(&mut self.ended);
        }
        let mut flows = Vec::new();
        while self.closed_until.0 + self.window_ms <= until.0 {
            let end = TimestampMs(self.closed_until.0 + self.window_ms);
            self.mark_open_as_active(end);
            self.closed_until = end;
            while self.windows.first_key_value().is_some_and(|(start, _)| *start < end) {
                let (_, window) = self.windows.pop_first().expect("the line above found it");
                self.edges -= window.len();
                flows.extend(window.into_values());
            }
        }
        flows
    }

    /// Hands over everything, with what is open as active: at the end of a run.
    pub(crate) fn finish(&mut self, now: TimestampMs) -> Vec<Flow> {
        if self.window_ms == 0 {
            let open = self.open_flows(now);
            self.ended.extend(open);
            return std::mem::take(&mut self.ended);
        }
        let mut flows = self.close_windows(now);
        self.mark_open_as_active(now);
        let rest = std::mem::take(&mut self.windows).into_values().flat_map(HashMap::into_values);
        // The last window is not over: it ends when the run does.
        flows.extend(rest.map(|flow| Flow {
            window_end: TimestampMs(flow.window_end.0.min(now.0.max(flow.last_seen.0 + 1))),
            ..flow
        }));
        self.edges = 0;
        flows
    }

    /// One flow per open connection; for runs without windows, whenever a file is finished.
    pub(crate) fn open_flows(&mut self, now: TimestampMs) -> Vec<Flow> {
        let flow = |connection: &mut Connection| {
            let connections = i64::from(!std::mem::replace(&mut connection.counted, true));
            let Connection { key, established, client_port, .. } = *connection;
            Flow {
                client_port: Some(client_port),
                connections,
                active: 1,
                last_seen: now,
                ..Flow::empty(key, established, now)
            }
        };
        self.open.values_mut().map(flow).collect()
    }

    /// Stops following what is open, since ends were lost and nobody knows whose; returns what no row has counted yet.
    pub(crate) fn forget_open(&mut self, now: TimestampMs) -> Vec<Flow> {
        let flows = if self.window_ms == 0 { self.open_flows(now) } else { Vec::new() };
        self.open.clear();
        flows
    }

    /// Connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.open.len()
    }

    /// Edges that wait for the end of their window.
    pub(crate) const fn edges(&self) -> usize {
        self.edges
    }

    /// What found no room in the table, since the start.
    pub(crate) const fn lost(&self) -> TableLoss {
        self.lost
    }

    fn close(&mut self, event: &FlowEvent, key: FlowKey, client_port: u16, time: TimestampMs, clock: Clock) {
        let known = self.open.remove(&event.socket_cookie);
        if let Some(connection) = known {
            self.mark_active_until(&connection, time);
        }
        // What was learned when it was established holds; an event without its socket's memory knows less.
        let key = known.map_or(key, |connection| connection.key);
        let established = known.map_or_else(
            || if event.start_ns == 0 { time } else { clock.utc(event.start_ns) },
            |connection| connection.established,
        );
        let connections = i64::from(known.is_some_and(|connection| !connection.counted));
        let is_server = key.role == Role::Server;
        let (sent, received) = (event.bytes_sent as i64, event.bytes_received as i64);
        let (to_server, to_client) = if is_server { (received, sent) } else { (sent, received) };
        let loss = TableLoss { ends: connections as u64, closings: 1 };
        self.record(key, client_port, established, time, loss, |flow| {
            flow.connections += connections;
            flow.closed += 1;
            flow.bytes_sent = Some(flow.bytes_sent.unwrap_or(0) + to_server);
            flow.bytes_received = Some(flow.bytes_received.unwrap_or(0) + to_client);
            flow.retransmits += i64::from(event.retransmits);
            flow.duration_ms_sum += time.0 - established.0;
            flow.rtt.add(event.srtt_us);
        });
    }

    /// Adds to the edge of the window, or makes the connection's own flow.
    fn record(
        &mut self,
        key: FlowKey,
        client_port: u16,
        started: TimestampMs,
        time: TimestampMs,
        loss: TableLoss,
        change: impl FnOnce(&mut Flow),
    ) {
        if self.window_ms > 0 {
            return self.update(key, time, loss, change);
        }
        if self.ended.len() >= self.limits.edges {
            return self.lost.add(loss);
        }
        let mut flow = Flow { client_port: Some(client_port), last_seen: time, ..Flow::empty(key, started, time) };
        change(&mut flow);
        self.ended.push(flow);
    }

    fn update(&mut self, key: FlowKey, time: TimestampMs, loss: TableLoss, change: impl FnOnce(&mut Flow)) {
        let start = TimestampMs(time.0 - time.0.rem_euclid(self.window_ms));
        let room = self.edges < self.limits.edges;
        let window = self.windows.entry(start).or_default();
        let flow = match window.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if !room => {
                return self.lost.add(loss);
            }
            Entry::Vacant(entry) => {
                self.edges += 1;
                let end = TimestampMs(start.0 + self.window_ms);
                entry.insert(Flow { first_seen: time, ..Flow::empty(key, start, end) })
            }
        };
        flow.first_seen = flow.first_seen.min(time);
        flow.last_seen = flow.last_seen.max(time);
        change(flow);
    }

    /// Counts what is open at `end` as active in the window that ends there.
    fn mark_open_as_active(&mut self, end: TimestampMs) {
        let open: Vec<FlowKey> =
            self.open.values().filter(|connection| connection.established < end).map(|c| c.key).collect();
        for key in open {
            self.update(key, TimestampMs(end.0 - 1), TableLoss::default(), |flow| flow.active += 1);
        }
    }

    /// Counts a connection as active in every window that it outlived and that is not handed on yet.
    fn mark_active_until(&mut self, connection: &Connection, closed: TimestampMs) {
        if self.window_ms == 0 {
            return;
        }
        let mut end = TimestampMs(self.closed_until.0 + self.window_ms);
        while end <= closed {
            if connection.established < end {
                self.update(connection.key, TimestampMs(end.0 - 1), TableLoss::default(), |flow| flow.active += 1);
            }
            end.0 += self.window_ms;
        }
    }

    fn describe(&self, event: &FlowEvent) -> (FlowKey, u16) {
        let role = match event.role {
            ROLE_CLIENT => Role::Client,
            ROLE_SERVER => Role::Server,
            _ => Role::Unknown,
        };
        let (server_port, client_port) = match role {
            Role::Server => (event.local_port, event.remote_port),
            Role::Client | Role::Unknown => (event.remote_port, event.local_port),
        };
        let in_host = event.netns_inode == self.host_netns;
        let key = FlowKey {
            socket: SocketOwner {
                netns_inode: event.netns_inode,
                netns_cookie: event.netns_cookie,
                cgroup_id: if in_host { event.cgroup_id } else { 0 },
            },
            role,
            local_address: address(event.local_address),
            remote_address: address(event.remote_address),
            server_port,
            failure: None,
            start_known: event.start_ns != 0,
        };
        (key, client_port)
    }
}

impl Flow {
    fn empty(key: FlowKey, window_start: TimestampMs, window_end: TimestampMs) -> Self {
        Self {
            key,
            window_start,
            window_end,
            client_port: None,
            connections: 0,
            failed: 0,
            closed: 0,
            active: 0,
            bytes_sent: None,
            bytes_received: None,
            retransmits: 0,
            duration_ms_sum: 0,
            rtt: RttHistogram::default(),
            first_seen: window_start,
            last_seen: window_start,
        }
    }

    /// Ends of connections it accounts for: established or failed.
    pub(crate) const fn ends(&self) -> i64 {
        self.connections + self.failed
    }
}

fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

// Linux error numbers, the same on every architecture Rust's eBPF targets run on.
const EPIPE: u32 = 32;
const ECONNABORTED: u32 = 103;
const ECONNRESET: u32 = 104;
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;

#[cfg(test)]
mod tests;
