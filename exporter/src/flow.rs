//! From kernel events to flows: what one end of a connection did, summed per edge and window.
//!
//! ```text
//! FlowEvent, EdgeCounts ──step──► FlowTable ──close_windows──► Flow
//! ```
//!
//! The kernel remembers what it has told of a connection, so that nothing is remembered of connections here. No I/O and
//! no clock: time comes with the events and the calls.

mod conversation;
mod table;

use std::net::IpAddr;

use schemas::{
    event::{ROLE_CLIENT, ROLE_SERVER, RTT_BUCKETS},
    table::{RttHistogram, TimestampMs},
};

pub(crate) use schemas::vocabulary::Transport;
pub(crate) use table::{FlowTable, FlowTableLimits, SUMMED_WINDOW_MS, TableLoss};

/// One edge and window, or one connection, as seen from its local end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Flow {
    /// What makes it one edge.
    pub key: FlowKey,
    /// Start of the window, or of the connection.
    pub window_start: TimestampMs,
    /// End of the window, exclusive, or of the connection.
    pub window_end: TimestampMs,
    /// Port of the client, or of the local end where it is not known who that is; `None` where connections are summed.
    pub client_port: Option<u16>,
    /// What happened.
    pub sums: Sums,
}

/// What happened on an edge, or on one connection. Counts are of one window, an hour at most: four thousand million are
/// out of reach, and there may be a hundred thousand of these.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sums {
    /// Connections established; for UDP, distinct pairs of addresses and ports.
    pub connections: u32,
    /// Connections that failed to establish.
    pub failed: u32,
    /// Connections that ended.
    pub closed: u32,
    /// Connections open at the end.
    pub active: u32,
    /// Payload bytes from the client to the server; `None` while they are not known.
    pub bytes_sent: Option<i64>,
    /// Payload bytes from the server to the client.
    pub bytes_received: Option<i64>,
    /// Segments the local end sent again.
    pub retransmits: u32,
    /// Sum of the durations of connections that ended, in milliseconds.
    pub duration_ms_sum: i64,
    /// Round-trip times of connections that ended, as counts by [`RttHistogram`]'s buckets.
    pub rtt: [u32; RTT_BUCKETS],
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
    /// TCP or UDP.
    pub transport: Transport,
    /// Address of the local end; unspecified for a UDP socket that is bound to none.
    pub local_address: IpAddr,
    /// Address of the remote end.
    pub remote_address: IpAddr,
    /// Port of the server: the one dialled. Of the remote end where it is not known who was.
    pub server_port: u16,
    /// Port of the local end where it is not known who was dialled; else 0.
    pub local_port: u16,
    /// Why connections failed; `None` for those that were established.
    pub failure: Option<Failure>,
    /// Whether the connections began after the agent did.
    pub start_known: bool,
}

/// Whose socket it is: what the kernel tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SocketOwner {
    /// Inode number of the network namespace; 0 where it is not known.
    pub netns_inode: u32,
    /// Cookie of the network namespace: tells apart two that had the same number.
    pub netns_cookie: u64,
    /// Inode number of the cgroup v2 directory.
    pub cgroup_id: u64,
}

/// What the local end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// It dialled; for UDP, it sent first.
    Client,
    /// It was dialled; for UDP, it received first.
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

/// A transport by its IP protocol number.
pub(crate) const fn transport(number: u8) -> Transport {
    if number == UDP { Transport::Udp } else { Transport::Tcp }
}

impl Role {
    const fn from_event(role: u8) -> Self {
        match role {
            ROLE_CLIENT => Self::Client,
            ROLE_SERVER => Self::Server,
            _ => Self::Unknown,
        }
    }
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
    const fn from_errno(error: u16, error_soft: u16) -> Self {
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
        TimestampMs((boottime_ns as i64 + self.offset_ns).div_euclid(1_000_000))
    }

    /// Keeps to what it is while the other clock differs by less than the resolution of the records.
    pub(crate) fn follow(self, other: Self) -> Self {
        if (self.offset_ns - other.offset_ns).abs() < 1_000_000 { self } else { other }
    }

    /// The other way round.
    pub(crate) const fn boottime_ns(self, utc: TimestampMs) -> u64 {
        (utc.0 * 1_000_000 - self.offset_ns) as u64
    }
}

/// What an event adds to a flow.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    connections: i64,
    failed: i64,
    closed: i64,
    active: i64,
    /// By the local end; `None` where not known.
    sent_received: Option<(i64, i64)>,
    retransmits: i64,
    duration_ms: i64,
    rtt: RttHistogram,
}

impl Flow {
    /// Ends of connections it accounts for: established or failed.
    pub(crate) fn ends(&self) -> i64 {
        i64::from(self.sums.connections) + i64::from(self.sums.failed)
    }
}

impl Sums {
    const fn empty(first_seen: TimestampMs, last_seen: TimestampMs) -> Self {
        Self {
            connections: 0,
            failed: 0,
            closed: 0,
            active: 0,
            bytes_sent: None,
            bytes_received: None,
            retransmits: 0,
            duration_ms_sum: 0,
            rtt: [0; RTT_BUCKETS],
            first_seen,
            last_seen,
        }
    }

    /// Adds what happened at an end of this role.
    fn add(&mut self, role: Role, change: &Change) {
        let Change { connections, failed, closed, active, sent_received, retransmits, duration_ms, rtt } = change;
        self.connections += *connections as u32;
        self.failed += *failed as u32;
        self.closed += *closed as u32;
        self.active += *active as u32;
        if let Some((sent, received)) = *sent_received {
            let is_server = role == Role::Server;
            let (to_server, to_client) = if is_server { (received, sent) } else { (sent, received) };
            self.bytes_sent = Some(self.bytes_sent.unwrap_or(0) + to_server);
            self.bytes_received = Some(self.bytes_received.unwrap_or(0) + to_client);
        }
        self.retransmits += *retransmits as u32;
        self.duration_ms_sum += duration_ms;
        for (mine, theirs) in self.rtt.iter_mut().zip(rtt.0) {
            *mine += theirs as u32;
        }
    }
}

/// Protocol number of IANA.
const UDP: u8 = 17;
// Linux error numbers, the same on every architecture Rust's eBPF targets run on.
const EPIPE: u16 = 32;
const ECONNABORTED: u16 = 103;
const ECONNRESET: u16 = 104;
const ETIMEDOUT: u16 = 110;
const ECONNREFUSED: u16 = 111;
