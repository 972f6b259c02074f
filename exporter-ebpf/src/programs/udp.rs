//! UDP: proof that a datagram was sent or received, per pair of addresses and ports.
//!
//! A socket that is connected is watched by the tracepoints of sending and receiving, which tell lengths but no
//! address; one that is not, by the cgroup hooks of the calls that name an address, which tell no length. `connect`
//! alone proves nothing: resolvers connect to every address that they might use.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_NOEXIST, bpf_sock_addr},
    helpers::generated::bpf_get_netns_cookie,
    macros::{btf_tracepoint, cgroup_sock_addr},
    programs::{BtfTracePointContext, SockAddrContext},
};
use schemas::event::{EdgeKey, control};

use crate::{
    event::{datagram, window},
    maps::{CONTROL, STRAYS, add, control, field, is_own, now_ns},
    socket::{ESTABLISHED, Socket, UDP, bytes, mapped},
};

/// `MSG_PEEK` and `MSG_ERRQUEUE`: what is looked at, and what is about datagrams rather than one.
const NOT_RECEIVED: i32 = 0x2 | 0x2000;
const PROCEED: i32 = 1;

/// Watches what is sent on connected sockets.
///
/// # Minimum kernel version
/// 6.3.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[btf_tracepoint(function = "sock_send_length")]
pub fn observe_sent(ctx: BtfTracePointContext) -> i32 {
    let _ = connected(ctx.arg(0), ctx.arg(1), true);
    0
}

/// Watches what is received on connected sockets.
///
/// # Minimum kernel version
/// 6.3.
///
/// # Drops
/// See [`crate::maps::EDGES`].
#[btf_tracepoint(function = "sock_recv_length")]
pub fn observe_received(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(2) & NOT_RECEIVED == 0 {
        let _ = connected(ctx.arg(0), ctx.arg(1), false);
    }
    0
}

#[inline(always)]
fn connected(sk: *const u8, length: i32, is_sent: bool) -> Option<()> {
    let socket = Socket::<false>::new(sk);
    if socket.protocol() != u16::from(UDP) || (is_sent && was_stray(sk)) || length < 0 {
        return None;
    }
    if !socket.is_internet() || socket.state() != ESTABLISHED || !socket.is_watched() || is_own() {
        return None;
    }
    let now = now_ns();
    let (local_address, remote_address) = socket.addresses();
    let remote = (remote_address, socket.remote_port());
    let key = edge(socket, socket.netns_cookie(), (local_address, socket.local_port()), remote, now);
    datagram(socket, &key, now, is_sent, Some(length as u64));
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
    if field!(SETTINGS.has_lengths) != 0 && known.state == u32::from(ESTABLISHED) {
        let connected_to = if is_ipv6 {
            [known.dst_ip6[0], known.dst_ip6[1], known.dst_ip6[2], known.dst_ip6[3]]
        } else {
            mapped(known.dst_ip4)
        };
        if !is_sent || (remote == connected_to && remote_port == known.dst_port) {
            return None; // the tracepoints tell of it
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
    datagram(socket, &key, now, is_sent, None);
    Some(())
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
    // SAFETY: a valid map value.
    unsafe { *CONTROL.get_ptr_mut(control::HAS_STRAYS)? = 1 };
    Some(())
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
