//! UDP: proof that a datagram was sent or received, per pair of addresses and ports.
//!
//! A socket that is connected is watched where sending and receiving end, which shows lengths but no address: at
//! tracepoints, or before Linux 6.3, which has none, at the return of the kernel's functions. One that is not connected is
//! watched by the cgroup hooks of the calls that name an address, which show no length. `connect` alone proves nothing:
//! resolvers connect to every address that they might use. Nor does a send that fails: the hooks come before the route and
//! the firewall, so that what began an edge is taken back where the call ends in an error. Whoever receives on an
//! unconnected socket and does not ask who sent is counted under the unspecified address.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock_addr},
    helpers::generated::bpf_get_netns_cookie,
    macros::{btf_tracepoint, cgroup_sock_addr, fexit},
    programs::{BtfTracePointContext, FExitContext, SockAddrContext},
};
use schemas::event::{EdgeCounts, EdgeKey, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN, control, counter};

use crate::{
    event::{counts, window},
    maps::{
        ASKING_SOCKETS, Addressed, EDGES, LAST_ADDRESSED, OLDER_SOCKETS, STRAYS, add, control, count, is_own, now_ns,
        set_control,
    },
    socket::{ESTABLISHED, Socket, UDP, bytes, cookie, mapped},
};

/// `MSG_PEEK` and `MSG_ERRQUEUE`: what is looked at, and what is about datagrams rather than one.
const NOT_RECEIVED: i32 = 0x2 | 0x2000;
const PROCEED: i32 = 1;

/// Watches what is sent on connected sockets.
///
/// # Minimum kernel version
/// 6.3; before, [`observe_send4`] and [`observe_send6`] stand in for it.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[btf_tracepoint(function = "sock_send_length")]
pub fn observe_sent(ctx: BtfTracePointContext) -> i32 {
    let _ = sent(ctx.arg(0), ctx.arg(1));
    0
}

/// Watches what is received on connected sockets, and on others by callers that do not ask from whom.
///
/// # Minimum kernel version
/// 6.3; before, [`observe_receive4`] and [`observe_receive6`] stand in for it.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[btf_tracepoint(function = "sock_recv_length")]
pub fn observe_received(ctx: BtfTracePointContext) -> i32 {
    let _ = received(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// As [`observe_sent`], over IPv4.
///
/// # Minimum kernel version
/// 5.12 on x86-64; arm64 has no way to it before 6.4.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[fexit(function = "udp_sendmsg")]
pub fn observe_send4(ctx: FExitContext) -> i32 {
    let _ = sent(ctx.arg(0), ctx.arg(3));
    0
}

/// As [`observe_send4`], on IPv6 sockets.
#[fexit(function = "udpv6_sendmsg")]
pub fn observe_send6(ctx: FExitContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    // What goes to an IPv4-mapped address is handed on to `udp_sendmsg`.
    if !Socket::<false>::new(sk).has_mapped_remote() {
        let _ = sent(sk, ctx.arg(3));
    }
    0
}

/// As [`observe_received`], on IPv4 sockets.
///
/// # Minimum kernel version
/// 5.19 on x86-64 (before, the function had one argument more); arm64 has no way to it before 6.4.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[fexit(function = "udp_recvmsg")]
pub fn observe_receive4(ctx: FExitContext) -> i32 {
    let _ = received(ctx.arg(0), ctx.arg(5), ctx.arg(3));
    0
}

/// As [`observe_receive4`], on IPv6 sockets.
#[fexit(function = "udpv6_recvmsg")]
pub fn observe_receive6(ctx: FExitContext) -> i32 {
    let _ = received(ctx.arg(0), ctx.arg(5), ctx.arg(3));
    0
}

/// Something was sent: `length` bytes, or a negative error.
#[inline(always)]
fn sent(sk: *const u8, length: i32) -> Option<()> {
    let socket = Socket::<false>::new(sk);
    if socket.protocol() != u16::from(UDP) {
        return None;
    }
    let is_stray = was_stray(sk);
    if length < 0 {
        return take_back(sk);
    }
    if is_stray || !socket.is_internet() || socket.state() != ESTABLISHED || !socket.is_watched() || is_own() {
        return None;
    }
    pass(socket, true, Some(length as u64))
}

/// Something was received: `length` bytes, or a negative error.
#[inline(always)]
fn received(sk: *const u8, length: i32, flags: i32) -> Option<()> {
    let socket = Socket::<false>::new(sk);
    if socket.protocol() != u16::from(UDP) || flags & NOT_RECEIVED != 0 || length < 0 {
        return None;
    }
    if !socket.is_internet() || !socket.is_watched() || is_own() {
        return None;
    }
    if socket.state() == ESTABLISHED {
        return pass(socket, false, Some(length as u64));
    }
    // Who did not choose its port has asked somebody, and an answer is of no interest; the hooks see who asks from whom.
    if control(control::SEES_RECEIVED) == 0 || !socket.has_chosen_port() || ASKING_SOCKETS.get_ptr(cookie(sk)).is_some()
    {
        return None;
    }
    pass(socket, false, None)
}

/// Counts a datagram between the socket's own addresses.
#[inline(always)]
fn pass(socket: Socket<false>, is_sent: bool, length: Option<u64>) -> Option<()> {
    let now = now_ns();
    let (local_address, remote_address) = socket.addresses();
    let remote = (remote_address, socket.remote_port());
    let key = edge(socket, socket.netns_cookie(), (local_address, socket.local_port()), remote, now);
    datagram(socket, || cookie(socket.pointer()), &key, now, is_sent, length);
    Some(())
}

/// Watches what is sent to an address over IPv4.
///
/// # Minimum kernel version
/// 5.8 (`bpf_get_netns_cookie`).
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[cgroup_sock_addr(sendmsg4)]
pub fn observe_sendmsg4(ctx: SockAddrContext) -> i32 {
    let _ = addressed(&ctx, true, false);
    PROCEED
}

/// As [`observe_sendmsg4`], over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn observe_sendmsg6(ctx: SockAddrContext) -> i32 {
    let _ = addressed(&ctx, true, true);
    PROCEED
}

/// Watches what is received over IPv4 by callers that ask from whom.
///
/// # Minimum kernel version
/// 5.8.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[cgroup_sock_addr(recvmsg4)]
pub fn observe_recvmsg4(ctx: SockAddrContext) -> i32 {
    let _ = addressed(&ctx, false, false);
    PROCEED
}

/// As [`observe_recvmsg4`], on IPv6 sockets.
#[cgroup_sock_addr(recvmsg6)]
pub fn observe_recvmsg6(ctx: SockAddrContext) -> i32 {
    let _ = addressed(&ctx, false, true);
    PROCEED
}

#[inline(always)]
fn addressed(ctx: &SockAddrContext, is_sent: bool, is_ipv6: bool) -> Option<()> {
    // SAFETY: the context is valid for the whole program.
    let address: &bpf_sock_addr = unsafe { &*ctx.sock_addr };
    if address.protocol != u32::from(UDP) || is_own() {
        return None;
    }
    // SAFETY: the only field of the union that programs may read.
    let sk = unsafe { address.__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a non-null socket of the context.
    let known = unsafe { &*sk };
    let remote = if is_ipv6 {
        [address.user_ip6[0], address.user_ip6[1], address.user_ip6[2], address.user_ip6[3]]
    } else {
        mapped(address.user_ip4)
    };
    let remote_port = address.user_port as u16;
    let is_connected = known.state == u32::from(ESTABLISHED);
    if !is_connected && !is_sent {
        asks(cookie(ctx.sock_addr));
    }
    if is_connected && control(if is_sent { control::SEES_SENT } else { control::SEES_RECEIVED }) != 0 {
        let connected_to = if is_ipv6 {
            [known.dst_ip6[0], known.dst_ip6[1], known.dst_ip6[2], known.dst_ip6[3]]
        } else {
            mapped(known.dst_ip4)
        };
        if !is_sent || (remote == connected_to && remote_port == known.dst_port) {
            return None; // it is seen where the call ends
        }
        strays(sk.cast())?;
    }
    let local = if is_ipv6 {
        [known.src_ip6[0], known.src_ip6[1], known.src_ip6[2], known.src_ip6[3]]
    } else {
        mapped(known.src_ip4)
    };
    // What the hook knows of the socket's owner is the namespace; the rest has to be copied.
    let socket = Socket::of(sk);
    // SAFETY: the helper takes the context of this program type.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let now = now_ns();
    let remote = (bytes(remote), u16::from_be(remote_port));
    let key = edge(socket, netns_cookie, (bytes(local), known.src_port as u16), remote, now);
    if datagram(socket, || cookie(ctx.sock_addr), &key, now, is_sent, None) && is_sent {
        let last = LAST_ADDRESSED.get_ptr_mut(0)?;
        // SAFETY: a valid map value, of this CPU.
        unsafe { *last = Addressed { sk: sk as u64, edge: key } };
    }
    Some(())
}

/// Takes back what a call began that ended in an error.
#[inline(always)]
fn take_back(sk: *const u8) -> Option<()> {
    let last = LAST_ADDRESSED.get_ptr_mut(0)?;
    // SAFETY: a valid map value, of this CPU.
    let last = unsafe { &mut *last };
    if last.sk != sk as u64 {
        return None;
    }
    last.sk = 0;
    let counts = EDGES.get_ptr_mut(&last.edge)?;
    // SAFETY: a valid map value.
    if unsafe { (*counts).events } == 1 {
        let _ = EDGES.remove(&last.edge);
    }
    Some(())
}

/// Counts a datagram of a socket, and its length where it is known; whether it is the first of its edge.
#[inline(always)]
fn datagram<const COPIED: bool>(
    socket: Socket<COPIED>,
    cookie: impl FnOnce() -> u64,
    key: &EdgeKey,
    now_ns: u64,
    is_sent: bool,
    length: Option<u64>,
) -> bool {
    let mut is_first = false;
    // SAFETY: a new value, as in the rest of this function.
    let begin = |counts: *mut EdgeCounts| unsafe {
        is_first = true;
        let port_is_chosen = socket.has_chosen_port();
        (*counts).first_ns = now_ns;
        (*counts).netns_inode = socket.netns_inode();
        (*counts).role = first_role(socket, is_sent, port_is_chosen);
        (*counts).port_is_chosen = port_is_chosen as u8;
        (*counts).is_older = (port_is_chosen && is_older(cookie())) as u8;
    };
    let Some(counts) = counts(key, begin) else {
        count(counter::LOST_DATAGRAMS);
        return false;
    };
    // SAFETY: a valid map value; every change is an atomic addition, or a store of a number that may be any of several.
    unsafe {
        (*counts).last_ns = now_ns;
        add(&raw mut (*counts).events, 1);
        if let Some(length) = length {
            (*counts).has_bytes = 1;
            add(if is_sent { &raw mut (*counts).bytes_sent } else { &raw mut (*counts).bytes_received }, length);
        }
    }
    is_first
}

/// What the first datagram makes of this end. Whoever sends first is the client. Who receives first serves, if its port is
/// one that others could know; if it is connected through a port that the kernel chose, it has asked before it was
/// watched.
#[inline(always)]
fn first_role<const COPIED: bool>(socket: Socket<COPIED>, is_sent: bool, port_is_chosen: bool) -> u8 {
    if is_sent {
        ROLE_CLIENT
    } else if port_is_chosen {
        ROLE_SERVER
    } else if socket.state() == ESTABLISHED {
        ROLE_CLIENT
    } else {
        ROLE_UNKNOWN
    }
}

/// Whether a socket may be older than the run.
#[inline(always)]
fn is_older(cookie: u64) -> bool {
    control(control::HAS_ADOPTED) == 0 || OLDER_SOCKETS.get_ptr(cookie).is_some()
}

/// The edge of a datagram.
#[inline(always)]
fn edge<const COPIED: bool>(
    socket: Socket<COPIED>,
    netns_cookie: u64,
    local: ([u8; 16], u16),
    remote: ([u8; 16], u16),
    now_ns: u64,
) -> EdgeKey {
    EdgeKey {
        netns_cookie,
        cgroup_id: socket.cgroup_id(),
        window: window(now_ns),
        local_address: local.0,
        remote_address: remote.0,
        epoch: control(control::EPOCH) as u32,
        local_port: local.1,
        remote_port: remote.1,
        error: 0,
        error_soft: 0,
        kind: 0,
        role: 0,
        transport: UDP,
        start_known: 1,
    }
}

/// Has the tracepoint of sending, which comes next, pass over a datagram that goes elsewhere than the socket is
/// connected to.
#[inline(always)]
fn strays(sk: *const u8) -> Option<()> {
    let _ = STRAYS.insert(sk as u64, 0, BPF_NOEXIST as u64);
    add(STRAYS.get_ptr_mut(sk as u64)?, 1);
    set_control(control::HAS_STRAYS, 1);
    Some(())
}

/// Remembers that who receives on an unconnected socket asks from whom.
#[inline(always)]
fn asks(cookie: u64) {
    if ASKING_SOCKETS.get_ptr(cookie).is_none() {
        let _ = ASKING_SOCKETS.insert(cookie, 1, BPF_ANY as u64);
    }
}

/// Whether what is sent went elsewhere than the socket is connected to.
#[inline(always)]
fn was_stray(sk: *const u8) -> bool {
    if control(control::HAS_STRAYS) == 0 {
        return false;
    }
    let Some(left) = STRAYS.get_ptr_mut(sk as u64) else { return false };
    // SAFETY: a valid map value.
    if unsafe { *left } == 0 {
        return false;
    }
    add(left, u64::MAX); // minus one
    true
}
