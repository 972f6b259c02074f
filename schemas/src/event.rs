//! The kernel event ABI: what the eBPF programs write and the exporter reads.
//!
//! Every type here is `#[repr(C)]`, free of padding the compiler could choose, and has its size asserted, so that the
//! two sides, built by different compilers for different targets, agree byte for byte. Changing a type means
//! rebuilding the committed BPF object.

/// One transition of one end of a TCP connection, as the kernel's socket saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// When the transition happened, `CLOCK_BOOTTIME` nanoseconds.
    pub time_ns: u64,
    /// When the socket began to connect (client) or was established (server), `CLOCK_BOOTTIME` nanoseconds;
    /// 0 when that was before the programs were attached.
    pub start_ns: u64,
    /// The socket's cookie: unique for the lifetime of the kernel.
    pub socket_cookie: u64,
    /// The network namespace's cookie: never reused, unlike `netns_inode`; 0 where the kernel has none.
    pub netns_cookie: u64,
    /// Inode number of the socket's cgroup v2 directory.
    pub cgroup_id: u64,
    /// Payload bytes this end sent, retransmissions not counted. Final at [`EVENT_CLOSED`].
    pub bytes_sent: u64,
    /// Payload bytes this end's kernel received. Final at [`EVENT_CLOSED`].
    pub bytes_received: u64,
    /// Local address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub local_address: [u8; 16],
    /// Remote address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub remote_address: [u8; 16],
    /// Inode number of the network namespace, as `stat /proc/PID/ns/net` shows it.
    pub netns_inode: u32,
    /// Segments retransmitted over the connection's lifetime.
    pub retransmits: u32,
    /// Smoothed round-trip time in microseconds when the connection left ESTABLISHED; 0 when unknown.
    pub srtt_us: u32,
    /// The socket's pending error (`errno`), 0 for none.
    pub error: u32,
    /// The socket's soft error (`errno`), 0 for none: what ICMP said while connecting.
    pub error_soft: u32,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Remote port, host byte order.
    pub remote_port: u16,
    /// [`EVENT_ESTABLISHED`], [`EVENT_CLOSED`] or [`EVENT_FAILED`].
    pub kind: u8,
    /// [`ROLE_CLIENT`], [`ROLE_SERVER`] or [`ROLE_UNKNOWN`].
    pub role: u8,
    /// IP protocol number: 6 for TCP.
    pub transport: u8,
    /// Always zero.
    pub _pad: [u8; 5],
}

/// The connection is established at this end.
pub const EVENT_ESTABLISHED: u8 = 1;
/// An established connection ended at this end.
pub const EVENT_CLOSED: u8 = 2;
/// A connect of this end ended before it was established.
pub const EVENT_FAILED: u8 = 3;

/// This end was open before the programs were attached; who dialled is not known from it.
pub const ROLE_UNKNOWN: u8 = 0;
/// This end called `connect`.
pub const ROLE_CLIENT: u8 = 1;
/// This end is a listener's child.
pub const ROLE_SERVER: u8 = 2;

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
    /// `tcp_sock.srtt_us`, u32, microseconds times eight.
    pub srtt: u32,
    /// Always zero.
    pub _pad: u32,
}

/// Indices into the per-CPU counter map.
pub mod counter {
    /// Socket ends seen: one per established and one per failed transition.
    pub const SEEN: u32 = 0;
    /// Events lost because the ring buffer was full, other than [`LOST_CLOSED`].
    pub const LOST_RING: u32 = 1;
    /// Closings lost because the ring buffer was full.
    pub const LOST_CLOSED: u32 = 2;
    /// Sockets whose storage could not be allocated; each is also in [`SEEN`].
    pub const LOST_STORAGE: u32 = 3;
    /// Number of counters.
    pub const COUNT: u32 = 4;
}

const _: () = assert!(size_of::<FlowEvent>() == 7 * 8 + 2 * 16 + 5 * 4 + 2 * 2 + 8);
const _: () = assert!(size_of::<FlowEvent>() == 120 && align_of::<FlowEvent>() == 8);
const _: () = assert!(size_of::<SocketOffsets>() == 22 * 4);

impl FlowEvent {
    /// Reads an event from the bytes of a ring-buffer record; `None` when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let u64_at = |at: usize| u64::from_ne_bytes(array(bytes, at));
        let u32_at = |at: usize| u32::from_ne_bytes(array(bytes, at));
        Some(Self {
            time_ns: u64_at(0),
            start_ns: u64_at(8),
            socket_cookie: u64_at(16),
            netns_cookie: u64_at(24),
            cgroup_id: u64_at(32),
            bytes_sent: u64_at(40),
            bytes_received: u64_at(48),
            local_address: array(bytes, 56),
            remote_address: array(bytes, 72),
            netns_inode: u32_at(88),
            retransmits: u32_at(92),
            srtt_us: u32_at(96),
            error: u32_at(100),
            error_soft: u32_at(104),
            local_port: u16::from_ne_bytes(array(bytes, 108)),
            remote_port: u16::from_ne_bytes(array(bytes, 110)),
            kind: bytes[112],
            role: bytes[113],
            transport: bytes[114],
            _pad: [0; 5],
        })
    }
}

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
        let event = FlowEvent::from_bytes(&bytes).expect("the length is right");
        assert_eq!(event.time_ns.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, time_ns));
        assert_eq!(event.bytes_received.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, bytes_received));
        assert_eq!(event.remote_address[0] as usize, offset_of!(FlowEvent, remote_address));
        assert_eq!(event.netns_inode.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, netns_inode));
        assert_eq!(event.error_soft.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, error_soft));
        assert_eq!(event.remote_port.to_ne_bytes()[0] as usize, offset_of!(FlowEvent, remote_port));
        assert_eq!(event.transport as usize, offset_of!(FlowEvent, transport));
        assert_eq!(FlowEvent::from_bytes(&bytes[1..]), None);
    }
}
