//! The kernel event ABI: what the eBPF programs write and the exporter reads.
//!
//! Every type here is `#[repr(C)]`, free of padding the compiler could choose, and has its size asserted, so that the
//! two sides, built by different compilers for different targets, agree byte for byte. Changing a type means
//! rebuilding the committed BPF object.

/// What happened to one end of a TCP connection, as the kernel's socket saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds.
    pub time_ns: u64,
    /// When the connection was established or, where it failed, when it did; `CLOCK_BOOTTIME` nanoseconds;
    /// 0 when that was before the programs were attached.
    pub start_ns: u64,
    /// The moment up to which earlier events told of this connection, `CLOCK_BOOTTIME` nanoseconds; 0 when this is the
    /// first one, so that its establishment is still to be counted.
    pub reported_ns: u64,
    /// The network namespace's cookie: never reused, unlike `netns_inode`; 0 where the kernel has none.
    pub netns_cookie: u64,
    /// Inode number of the socket's cgroup v2 directory.
    pub cgroup_id: u64,
    /// Payload bytes this end sent since the event before, retransmissions not counted.
    pub bytes_sent: u64,
    /// Payload bytes this end's kernel received since the event before.
    pub bytes_received: u64,
    /// Local address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub local_address: [u8; 16],
    /// Remote address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub remote_address: [u8; 16],
    /// Inode number of the network namespace, as `stat /proc/PID/ns/net` shows it; 0 where it can't be told.
    pub netns_inode: u32,
    /// Segments retransmitted over the connection's lifetime; told when it ends.
    pub retransmits: u32,
    /// The least round-trip time that TCP measured of late, in microseconds; `u32::MAX` when it measured none. The
    /// smoothed one is spoilt when a connection ends, by the delayed ACK of the FIN.
    pub rtt_us: u32,
    /// The socket's pending error (`errno`), 0 for none.
    pub error: u16,
    /// The socket's soft error (`errno`), 0 for none: what ICMP said while connecting.
    pub error_soft: u16,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Remote port, host byte order.
    pub remote_port: u16,
    /// [`EVENT_OPEN`], [`EVENT_CLOSED`], [`EVENT_FAILED`] or [`EVENT_LISTENING`].
    pub kind: u8,
    /// [`ROLE_CLIENT`], [`ROLE_SERVER`] or [`ROLE_UNKNOWN`].
    pub role: u8,
    /// IP protocol number: 6 for TCP, 17 for UDP.
    pub transport: u8,
    /// Always zero.
    pub _pad: u8,
}

/// The connection was open at `time_ns`.
pub const EVENT_OPEN: u8 = 1;
/// An established connection ended at this end.
pub const EVENT_CLOSED: u8 = 2;
/// A connect of this end ended before it was established.
pub const EVENT_FAILED: u8 = 3;
/// The socket listened when the run began.
pub const EVENT_LISTENING: u8 = 4;

/// Who dialled is not known from this end: it was open before the programs were attached; for UDP, it received first
/// on a port that it did not choose.
pub const ROLE_UNKNOWN: u8 = 0;
/// This end called `connect`; for UDP, it sent first.
pub const ROLE_CLIENT: u8 = 1;
/// This end is a listener's child; for UDP, it received first, on a port that it chose.
pub const ROLE_SERVER: u8 = 2;

/// What is summed in the kernel under one [`EdgeCounts`]: UDP always, TCP when the ring buffer is full.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    /// As [`FlowEvent::netns_cookie`].
    pub netns_cookie: u64,
    /// As [`FlowEvent::cgroup_id`].
    pub cgroup_id: u64,
    /// Number of the window since the UNIX epoch, by [`Settings::window_ns`].
    pub window: u64,
    /// As [`FlowEvent::local_address`]; for a UDP socket bound to no address, unspecified.
    pub local_address: [u8; 16],
    /// As [`FlowEvent::remote_address`].
    pub remote_address: [u8; 16],
    /// Generation: the exporter raises it, and then takes what the generations before left.
    pub epoch: u32,
    /// Local port, host byte order; 0 for the client's end of TCP.
    pub local_port: u16,
    /// Remote port, host byte order; 0 for the server's end of TCP.
    pub remote_port: u16,
    /// As [`FlowEvent::error`], for connects that failed.
    pub error: u16,
    /// As [`FlowEvent::error_soft`], for connects that failed.
    pub error_soft: u16,
    /// As [`FlowEvent::kind`]; 0 for UDP.
    pub kind: u8,
    /// As [`FlowEvent::role`]; for UDP always [`ROLE_UNKNOWN`].
    pub role: u8,
    /// As [`FlowEvent::transport`].
    pub transport: u8,
    /// 1 when the connections began after the programs were attached.
    pub start_known: u8,
}

/// What happened on an edge. Sums are made by atomic additions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounts {
    /// First event, `CLOCK_BOOTTIME` nanoseconds.
    pub first_ns: u64,
    /// Last event, `CLOCK_BOOTTIME` nanoseconds.
    pub last_ns: u64,
    /// Connections that no event had told of before.
    pub connections: u64,
    /// Events: connections that ended, failed or were open, as the key's kind says; datagrams for UDP.
    pub events: u64,
    /// Payload bytes sent. For UDP, of sockets that are connected.
    pub bytes_sent: u64,
    /// Payload bytes received. For UDP, of sockets that are connected.
    pub bytes_received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Sum of the durations of connections that ended, in nanoseconds.
    pub duration_ns: u64,
    /// Connections that ended, by round-trip time; see [`rtt_bucket`].
    pub rtt: [u64; RTT_BUCKETS],
    /// As [`FlowEvent::netns_inode`].
    pub netns_inode: u32,
    /// For UDP, what the first datagram makes of this end: [`ROLE_CLIENT`], [`ROLE_SERVER`] or [`ROLE_UNKNOWN`].
    pub role: u8,
    /// For UDP, 1 when the lengths of datagrams are known.
    pub has_bytes: u8,
    /// For UDP, 1 when the application chose the local port: others may know it, and have sent to it.
    pub port_is_chosen: u8,
    /// For UDP with a chosen port, 1 when the socket may be older than the run: what it sends first may be an answer.
    pub is_older: u8,
}

/// A cgroup that was made: its number stays known when it is gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupEvent {
    /// Inode number of the directory.
    pub id: u64,
    /// Path below the root of the hierarchy, ended by a zero byte.
    pub path: [u8; CGROUP_PATH_BYTES],
}

/// Longest path of a cgroup that is handed over, with its end; of a longer one, the beginning.
pub const CGROUP_PATH_BYTES: usize = 512 - 8;

/// Number of round-trip time buckets.
pub const RTT_BUCKETS: usize = 8;

/// The bucket of a round-trip time: below 64 µs, 256 µs, 1 ms and so on by powers of four, and the rest.
#[inline(always)]
pub const fn rtt_bucket(micros: u32) -> usize {
    let bits = (u32::BITS - (micros >> 6).leading_zeros()).div_ceil(2) as usize;
    if bits < RTT_BUCKETS { bits } else { RTT_BUCKETS - 1 }
}

/// What the exporter tells the programs before they are loaded, as a read-only global.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Length of a window in nanoseconds.
    pub window_ns: u64,
    /// UTC minus `CLOCK_BOOTTIME` in nanoseconds.
    pub utc_offset_ns: u64,
    /// Inode number of the cgroup that is watched with all below it; 0 for all.
    pub watched_cgroup: u64,
}

/// Indices into the map of numbers that the exporter changes while the programs run.
pub mod control {
    /// The present generation, see [`super::EdgeKey::epoch`].
    pub const EPOCH: u32 = 0;
    /// What is open is told as of this moment, `CLOCK_BOOTTIME` nanoseconds.
    pub const SCAN_UNTIL_NS: u32 = 1;
    /// 1 once a connected UDP socket has sent to another address; set by the programs themselves.
    pub const HAS_STRAYS: u32 = 2;
    /// 1 while programs watch what connected UDP sockets send, with lengths.
    pub const SEES_SENT: u32 = 3;
    /// The exporter's process by the kernel's own number, whatever its PID namespace calls it; its sockets are not
    /// watched. 0 until `find_node` has run.
    pub const OWN_PROCESS: u32 = 4;
    /// Inode number of the network namespace of process 1 in the exporter's PID namespace; 0 until `find_node` has run.
    pub const NODE_NETNS_INODE: u32 = 5;
    /// Cookie of the same.
    pub const NODE_NETNS_COOKIE: u32 = 6;
    /// 1 while programs watch what connected UDP sockets receive, with lengths, and who receives on others without asking
    /// from whom. Set when all programs watch: a receiver is known to ask once the hooks of asking have seen it.
    pub const SEES_RECEIVED: u32 = 7;
    /// 1 once `adopt_sockets` has run: from then on a UDP socket that it did not find is younger than the run.
    pub const HAS_ADOPTED: u32 = 8;
    /// Number of numbers.
    pub const COUNT: u32 = 9;
}

/// Byte offsets into kernel structures, read from the running kernel's BTF and set as a read-only global before load.
///
/// Offsets of socket fields count from the start of `struct sock`, which is also the start of `struct tcp_sock`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOffsets {
    /// `sock.__sk_common.skc_family`, u16.
    pub family: u32,
    /// `sock.__sk_common.skc_num`, u16, host byte order.
    pub local_port: u32,
    /// `inet_sock.inet_sport`, u16, network byte order: the local port, also when the socket has given it back.
    pub source_port: u32,
    /// `sock.__sk_common.skc_dport`, u16, network byte order.
    pub remote_port: u32,
    /// `sock.__sk_common.skc_rcv_saddr`, u32, network byte order.
    pub local_ipv4: u32,
    /// `sock.__sk_common.skc_daddr`, u32, network byte order.
    pub remote_ipv4: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`, 16 bytes.
    pub local_ipv6: u32,
    /// `sock.__sk_common.skc_v6_daddr`, 16 bytes.
    pub remote_ipv6: u32,
    /// `sock.__sk_common.skc_net.net`, pointer to `struct net`.
    pub net: u32,
    /// `net.ns.inum`, u32.
    pub net_inode: u32,
    /// `net.net_cookie`, u64.
    pub net_cookie: u32,
    /// `sock.sk_cgrp_data.cgroup`, pointer to `struct cgroup`.
    pub cgroup: u32,
    /// `cgroup.kn`, pointer to `struct kernfs_node`.
    pub cgroup_node: u32,
    /// `kernfs_node.id`, u64.
    pub node_id: u32,
    /// `sock.sk_flags` (`__sk_common.skc_flags`), unsigned long; bit 1 is `SOCK_DONE`.
    pub flags: u32,
    /// `sock.sk_err`, int.
    pub error: u32,
    /// `sock.sk_err_soft`, int.
    pub error_soft: u32,
    /// `tcp_sock.bytes_sent`, u64.
    pub bytes_sent: u32,
    /// `tcp_sock.bytes_retrans`, u64.
    pub bytes_retrans: u32,
    /// `tcp_sock.bytes_received`, u64.
    pub bytes_received: u32,
    /// `tcp_sock.total_retrans`, u32.
    pub total_retrans: u32,
    /// `tcp_sock.rtt_min.s`, its first element's `v`, u32, microseconds: the minimum over `tcp_min_rtt_wlen` seconds.
    pub rtt_min: u32,
    /// `sock.__sk_common.skc_state`, u8.
    pub state: u32,
    /// `sock.sk_protocol`, u16.
    pub protocol: u32,
    /// `tcp_sock.bpf_sock_ops_cb_flags`, u8.
    pub callback_flags: u32,
    /// `inet_connection_sock.icsk_bind_hash`, pointer to `struct inet_bind_bucket`.
    pub bind_bucket: u32,
    /// `inet_bind_bucket.fastreuse`, i8: negative for a port that `connect` chose.
    pub fast_reuse: u32,
    /// `socket.sk`, pointer to `struct sock`.
    pub socket_sk: u32,
    /// `cgroup.root`, pointer to `struct cgroup_root`.
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`, int: 0 for cgroup v2.
    pub hierarchy_id: u32,
    /// `cgroup.level`, int.
    pub cgroup_level: u32,
    /// `cgroup.ancestors`, pointers to `struct cgroup` from the root down.
    pub cgroup_ancestors: u32,
    /// The byte that holds `sock.sk_userlocks`.
    pub user_locks: u32,
    /// How many bits of that byte stand before it: in older kernels it is a bit field.
    pub user_locks_shift: u32,
    /// `tcp_sock.segs_out`, u32: segments sent, the SYN among them.
    pub segments_out: u32,
    /// `task_struct.tgid`, int: from the start of `struct task_struct`.
    pub task_group: u32,
    /// `task_struct.nsproxy`, pointer to `struct nsproxy`.
    pub task_namespaces: u32,
    /// `nsproxy.net_ns`, pointer to `struct net`.
    pub namespaces_net: u32,
    /// `bpf_prog.aux`, pointer to `struct bpf_prog_aux`.
    pub program_aux: u32,
    /// `bpf_prog_aux.id`, u32.
    pub aux_id: u32,
    /// `bpf_prog_aux.name`, 16 bytes, ended by a zero byte.
    pub aux_name: u32,
    /// The byte that holds `tcp_sock.repair`.
    pub repair: u32,
    /// How many bits of that byte stand before it.
    pub repair_shift: u32,
    /// `mptcp_sock.conn_list`, `struct list_head`; 0 where the kernel has no MPTCP.
    pub mptcp_subflows: u32,
    /// `mptcp_subflow_context.node`, the link of that list.
    pub subflow_node: u32,
    /// `mptcp_subflow_context.tcp_sock`, pointer to `struct sock`.
    pub subflow_socket: u32,
}

/// An eBPF program of the machine, as `list_programs` writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramEntry {
    /// Its number.
    pub id: u32,
    /// Its name, ended by a zero byte.
    pub name: [u8; 16],
}

/// Indices into the per-CPU counter map.
pub mod counter {
    /// Ends of connections seen: one per established and one per failed transition.
    pub const SEEN: u32 = 0;
    /// Events that did not fit the ring buffer and were summed in the edge map instead.
    pub const RING_FULL: u32 = 1;
    /// Ends lost: neither the ring buffer nor the edge map had room.
    pub const LOST_MAP: u32 = 2;
    /// Closings and progress lost in the same way, of connections that were counted before.
    pub const LOST_CLOSED: u32 = 3;
    /// Ends lost: the connection could not be remembered, or ended without a call of the programs.
    pub const LOST_CONNECTIONS: u32 = 4;
    /// Datagrams lost: the edge map had no room for their edge.
    pub const LOST_DATAGRAMS: u32 = 5;
    /// Cgroups whose making was lost: the ring buffer was full.
    pub const LOST_CGROUPS: u32 = 6;
    /// Connections found open when the run began.
    pub const ADOPTED: u32 = 7;
    /// Of these, those that have ended.
    pub const ADOPTED_ENDED: u32 = 8;
    /// Entries made in the map of connections.
    pub const ENTRIES_MADE: u32 = 9;
    /// Of these, those that were removed.
    pub const ENTRIES_REMOVED: u32 = 10;
    /// Sockets found without the callback flag that was set on them: another program overwrote it. A connection that stays
    /// open counts once per scan.
    pub const FLAG_MISSING: u32 = 11;
    /// Number of counters.
    pub const COUNT: u32 = 12;
}

const _: () = assert!(size_of::<FlowEvent>() == 112 && align_of::<FlowEvent>() == 8);
const _: () = assert!(size_of::<EdgeKey>() == 72 && align_of::<EdgeKey>() == 8);
const _: () = assert!(size_of::<EdgeCounts>() == 17 * 8);
const _: () = assert!(size_of::<CgroupEvent>() == 512);
const _: () = assert!(size_of::<Settings>() == 24);
const _: () = assert!(size_of::<SocketOffsets>() == 46 * 4);
const _: () = assert!(size_of::<ProgramEntry>() == 20);

/// A record of the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "made once per record, on the stack")]
pub enum Record {
    /// Of a TCP socket.
    Flow(FlowEvent),
    /// Of a cgroup.
    Cgroup(CgroupEvent),
}

impl Record {
    /// Reads a record; `None` when its length is that of neither kind.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            FLOW_BYTES => Some(Self::Flow(FlowEvent::from_bytes(bytes))),
            CGROUP_BYTES => {
                Some(Self::Cgroup(CgroupEvent { id: u64::from_ne_bytes(array(bytes, 0)), path: array(bytes, 8) }))
            }
            _ => None,
        }
    }
}

impl FlowEvent {
    /// Whether the connection began after the programs were attached.
    pub const fn start_known(&self) -> bool {
        self.start_ns != 0
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let u64_at = |at: usize| u64::from_ne_bytes(array(bytes, at));
        let u32_at = |at: usize| u32::from_ne_bytes(array(bytes, at));
        let u16_at = |at: usize| u16::from_ne_bytes(array(bytes, at));
        Self {
            time_ns: u64_at(0),
            start_ns: u64_at(8),
            reported_ns: u64_at(16),
            netns_cookie: u64_at(24),
            cgroup_id: u64_at(32),
            bytes_sent: u64_at(40),
            bytes_received: u64_at(48),
            local_address: array(bytes, 56),
            remote_address: array(bytes, 72),
            netns_inode: u32_at(88),
            retransmits: u32_at(92),
            rtt_us: u32_at(96),
            error: u16_at(100),
            error_soft: u16_at(102),
            local_port: u16_at(104),
            remote_port: u16_at(106),
            kind: bytes[108],
            role: bytes[109],
            transport: bytes[110],
            _pad: 0,
        }
    }
}

const FLOW_BYTES: usize = size_of::<FlowEvent>();
const CGROUP_BYTES: usize = size_of::<CgroupEvent>();

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn events_are_read_at_the_offsets_they_are_written_at() {
        let bytes: [u8; size_of::<FlowEvent>()] = core::array::from_fn(|at| at as u8);
        let Some(Record::Flow(event)) = Record::from_bytes(&bytes) else { panic!("the length is right") };
        assert_eq!(event.time_ns.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, time_ns));
        assert_eq!(event.bytes_received.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, bytes_received));
        assert_eq!(event.remote_address[0] as usize, offset_of!(FlowEvent, remote_address));
        assert_eq!(event.netns_inode.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, netns_inode));
        assert_eq!(event.error_soft.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, error_soft));
        assert_eq!(event.remote_port.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, remote_port));
        assert_eq!(event.transport as usize, offset_of!(FlowEvent, transport));
        assert_eq!(Record::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn round_trip_times_fall_into_buckets_by_powers_of_four() {
        let bucket_of = |micros| rtt_bucket(micros);
        assert_eq!([0, 63, 64, 255, 256, 1023, 1024].map(bucket_of), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!([64 << 12, u32::MAX].map(bucket_of), [7, 7]);
    }
}
