//! Reading a kernel socket through offsets that the exporter took from BTF.

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock};
use schemas::event::FlowEvent;

use crate::{
    maps::{Connection, exchange, field},
    memory::load_from,
};

/// `BPF_SOCK_OPS_STATE_CB_FLAG` of the kernel's user API.
pub(crate) const STATE_CALLBACK_FLAG: u8 = 1 << 2;

/// Protocol numbers of IANA.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// The kernel's own number (`IPPROTO_MPTCP`).
pub(crate) const MPTCP: u16 = 262;

/// States of the kernel's user API (`BPF_TCP_*`).
pub(crate) const ESTABLISHED: u8 = 1;
pub(crate) const SYN_SENT: u8 = 2;
pub(crate) const SYN_RECV: u8 = 3;
pub(crate) const TIME_WAIT: u8 = 6;
pub(crate) const CLOSE: u8 = 7;
pub(crate) const LISTEN: u8 = 10;
pub(crate) const NEW_SYN_RECV: u8 = 12;

/// Whether a TCP socket in this state has been established and has not ended.
#[inline(always)]
pub(crate) fn is_open(state: u8) -> bool {
    !matches!(state, 0 | SYN_SENT | SYN_RECV | TIME_WAIT | CLOSE | LISTEN | NEW_SYN_RECV)
}

/// How deep a watched cgroup may be; Kubernetes has its containers at the fifth level.
const CGROUP_DEPTH: u32 = 16;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Bit of `sk_userlocks`: the application chose the local port (`SOCK_BINDPORT_LOCK`).
const PORT_CHOSEN: u8 = 8;
/// Bit of `sk_flags` (enum `sock_flags`): a FIN was received, and `bytes_received` counts it.
const SOCK_DONE_SHIFT: u64 = 1;

/// An IPv4 or IPv6 socket that the verifier knows as a BTF pointer to `struct sock` or `struct tcp_sock`; one that it
/// knows only as a number has its fields `COPIED` by a helper, which takes longer.
#[derive(Clone, Copy)]
pub(crate) struct Socket<const COPIED: bool>(*const u8);

impl Socket<false> {
    /// As a TCP socket, from any pointer to one; `None` for what is not a full one (an MPTCP parent, a request socket).
    #[inline(always)]
    pub(crate) fn tcp<T>(sk: *const T) -> Option<Self> {
        // SAFETY: the helper checks the type of the socket.
        let pointer = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) };
        (!pointer.is_null()).then(|| Self::new(pointer.cast_const().cast()))
    }
}

impl Socket<true> {
    /// From a pointer whose type lets the verifier allow no arithmetic: a copy of it is a number.
    #[inline(always)]
    pub(crate) fn of<T>(sk: *const T) -> Self {
        Self(load_from::<*const u8, true>((&raw const sk).cast(), 0))
    }
}

impl<const COPIED: bool> Socket<COPIED> {
    #[inline(always)]
    pub(crate) fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// As the verifier knows it.
    #[inline(always)]
    pub(crate) const fn pointer(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    pub(crate) fn is_internet(self) -> bool {
        matches!(self.load::<u16>(field!(OFFSETS.family)), AF_INET | AF_INET6)
    }

    #[inline(always)]
    pub(crate) fn protocol(self) -> u16 {
        self.load(field!(OFFSETS.protocol))
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        self.load(field!(OFFSETS.state))
    }

    /// Inode number of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn netns_inode(self) -> u32 {
        load_from::<_, COPIED>(self.load(field!(OFFSETS.net)), field!(OFFSETS.net_inode))
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn netns_cookie(self) -> u64 {
        load_from::<_, COPIED>(self.load(field!(OFFSETS.net)), field!(OFFSETS.net_cookie))
    }

    /// Inode number of the socket's cgroup.
    #[inline(always)]
    pub(crate) fn cgroup_id(self) -> u64 {
        cgroup_id::<COPIED>(self.load(field!(OFFSETS.cgroup)))
    }

    /// Whether the socket is of the watched cgroup or one below. The hooks of a cgroup see no others; tracepoints and
    /// iterators see all.
    #[inline(always)]
    pub(crate) fn is_watched(self) -> bool {
        let watched = field!(SETTINGS.watched_cgroup);
        if watched == 0 {
            return true;
        }
        let cgroup: *const u8 = self.load(field!(OFFSETS.cgroup));
        let level = load_from::<u32, COPIED>(cgroup, field!(OFFSETS.cgroup_level));
        // Where in the hierarchy the watched one is can't be told from within a cgroup namespace.
        for depth in 0..CGROUP_DEPTH {
            if depth > level {
                return false;
            }
            // The verifier has no direct loads from an array without a length.
            let ancestor = load_from::<_, true>(cgroup, field!(OFFSETS.cgroup_ancestors) + 8 * depth);
            if cgroup_id::<true>(ancestor) == watched {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        self.load(field!(OFFSETS.local_port))
    }

    /// The local port of a socket that may have given it back, as it does before the tracepoint of its end.
    #[inline(always)]
    pub(crate) fn source_port(self) -> u16 {
        u16::from_be(self.load(field!(OFFSETS.source_port)))
    }

    #[inline(always)]
    pub(crate) fn remote_port(self) -> u16 {
        u16::from_be(self.load(field!(OFFSETS.remote_port)))
    }

    /// Local and remote address, IPv4 as IPv4-mapped IPv6.
    ///
    /// Both forms are loaded before one is chosen: a choice between two addresses to load from would be merged by the
    /// compiler into one load from a pointer that the verifier does not know.
    #[inline(always)]
    pub(crate) fn addresses(self) -> ([u8; 16], [u8; 16]) {
        let is_ipv6 = self.load::<u16>(field!(OFFSETS.family)) == AF_INET6;
        let address = |ipv4_offset, ipv6_offset| {
            let ipv4: u32 = self.load(ipv4_offset);
            let ipv6: [u32; 4] = [
                self.load(ipv6_offset),
                self.load(ipv6_offset + 4),
                self.load(ipv6_offset + 8),
                self.load(ipv6_offset + 12),
            ];
            bytes(if is_ipv6 { ipv6 } else { mapped(ipv4) })
        };
        (
            address(field!(OFFSETS.local_ipv4), field!(OFFSETS.local_ipv6)),
            address(field!(OFFSETS.remote_ipv4), field!(OFFSETS.remote_ipv6)),
        )
    }

    /// Whether an IPv6 socket is connected to an IPv4-mapped address.
    #[inline(always)]
    pub(crate) fn has_mapped_remote(self) -> bool {
        let at = field!(OFFSETS.remote_ipv6);
        let words: [u32; 3] = [self.load(at), self.load(at + 4), self.load(at + 8)];
        words == [0, 0, 0xffff_u32.to_be()]
    }

    /// Fills in how the connection went, at its end.
    #[inline(always)]
    pub(crate) fn describe_end(self, event: &mut FlowEvent) {
        event.retransmits = self.load(field!(OFFSETS.total_retrans));
        event.rtt_us = self.load(field!(OFFSETS.rtt_min));
        self.describe(event);
    }

    /// Fills in whose socket it is and what it is connected to.
    #[inline(always)]
    pub(crate) fn describe(self, event: &mut FlowEvent) {
        event.netns_inode = self.netns_inode();
        event.netns_cookie = self.netns_cookie();
        event.cgroup_id = self.cgroup_id();
        (event.local_address, event.remote_address) = self.addresses();
        event.local_port = self.local_port();
        event.remote_port = self.remote_port();
        event.error = self.load::<u32>(field!(OFFSETS.error)) as u16;
        event.error_soft = self.load::<u32>(field!(OFFSETS.error_soft)) as u16;
    }

    /// Payload bytes sent and received since the connection began.
    #[inline(always)]
    pub(crate) fn bytes(self) -> (u64, u64) {
        let flags: u64 = self.load(field!(OFFSETS.flags));
        let sent = self.load::<u64>(field!(OFFSETS.bytes_sent)) - self.load::<u64>(field!(OFFSETS.bytes_retrans));
        (sent, self.load::<u64>(field!(OFFSETS.bytes_received)) - ((flags >> SOCK_DONE_SHIFT) & 1))
    }

    /// Whether `sock_ops` programs are called when its state changes.
    #[inline(always)]
    pub(crate) fn has_state_callbacks(self) -> bool {
        self.load::<u8>(field!(OFFSETS.callback_flags)) & STATE_CALLBACK_FLAG != 0
    }

    /// Whether its state is being set by a process (`TCP_REPAIR`), as of a container that is restored: what it connects may
    /// have been accepted before.
    #[inline(always)]
    pub(crate) fn is_in_repair(self) -> bool {
        let bits: u8 = self.load(field!(OFFSETS.repair));
        (bits >> field!(OFFSETS.repair_shift)) & 1 != 0
    }

    /// Whether any segment was sent.
    #[inline(always)]
    pub(crate) fn has_sent(self) -> bool {
        self.load::<u32>(field!(OFFSETS.segments_out)) > 0
    }

    /// Whether `connect` chose the local port, which tells a client from a listener's child: both share the port's
    /// bucket with whoever bound it, and only `connect` makes one with a negative reuse mark (`inet_hash_connect`).
    #[inline(always)]
    pub(crate) fn has_port_by_connect(self) -> bool {
        let bucket: *const u8 = self.load(field!(OFFSETS.bind_bucket));
        load_from::<i8, COPIED>(bucket, field!(OFFSETS.fast_reuse)) < 0
    }

    /// Whether the application chose the local port, as whoever serves has to.
    #[inline(always)]
    pub(crate) fn has_chosen_port(self) -> bool {
        let locks: u8 = self.load(field!(OFFSETS.user_locks));
        (locks >> field!(OFFSETS.user_locks_shift)) & PORT_CHOSEN != 0
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> T {
        load_from::<T, COPIED>(self.0, offset)
    }
}

/// Cookie of a socket, which is never used again; from a pointer to it in a tracing program, or from the context of
/// another program.
#[inline(always)]
pub(crate) fn cookie<T>(socket: *const T) -> u64 {
    // SAFETY: the verifier refuses any other pointer.
    unsafe { bpf_get_socket_cookie(socket.cast_mut().cast()) }
}

/// Inode number of a cgroup's directory.
#[inline(always)]
pub(crate) fn cgroup_id<const COPIED: bool>(cgroup: *const u8) -> u64 {
    let node: *const u8 = load_from::<_, COPIED>(cgroup, field!(OFFSETS.cgroup_node));
    load_from::<u64, COPIED>(node, field!(OFFSETS.node_id))
}

/// Fills in what is `known` of a connection, and what passed since events told of it last, and remembers that.
///
/// A scan and the end of the connection may do this at the same time on two CPUs: whichever comes second finds what
/// the first one left.
#[inline(always)]
pub(crate) fn tell(
    (sent, received): (u64, u64),
    known: &Connection,
    connection: *mut Connection,
    event: &mut FlowEvent,
) {
    // SAFETY: `connection` is a valid map value.
    let (told_sent, told_received) = unsafe {
        (exchange(&raw mut (*connection).told_sent, sent), exchange(&raw mut (*connection).told_received, received))
    };
    event.start_ns = known.start_ns;
    event.role = known.role;
    event.reported_ns = if known.told_ns == known.start_ns { 0 } else { known.told_ns };
    event.bytes_sent = sent.saturating_sub(told_sent);
    event.bytes_received = received.saturating_sub(told_received);
}

/// An IPv4 address as IPv4-mapped IPv6, in words of network byte order.
#[inline(always)]
pub(crate) fn mapped(ipv4: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), ipv4]
}

#[inline(always)]
pub(crate) fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are sixteen bytes without invalid values.
    unsafe { core::mem::transmute(words) }
}
