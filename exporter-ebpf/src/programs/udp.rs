//! UDP: proof that a datagram was sent or received, per pair of addresses and ports.
//!
//! A socket that is connected is watched by the tracepoints of sending and receiving, which tell lengths but no
//! address; one that is not, by the cgroup hooks of the calls that name an address, which tell no length. `connect`
//! alone proves nothing: resolvers connect to every address that they might use.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie},
    macros::{btf_tracepoint, cgroup_sock_addr},
    programs::{BtfTracePointContext, SockAddrContext},
};
use schemas::event::{EdgeKey, control};

use crate::{
    event::{datagram, window},
    maps::{control, field, is_own, now_ns},
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
    if socket.protocol() != u16::from(UDP) || length < 0 {
        return None;
    }
    if !socket.is_internet() || socket.state() != ESTABLISHED || !socket.is_watched() || is_own() {
        return None;
    }
    let now = now_ns();
    let (netns_inode, netns_cookie, cgroup_id) = socket.owner();
    let (local_address, remote_address) = socket.addresses();
    let key = EdgeKey {
        netns_cookie,
        cgroup_id,
        window: window(now),
        local_address,
        remote_address,
        netns_inode,
        epoch: control(control::EPOCH) as u32,
        local_port: socket.local_port(),
        remote_port: socket.remote_port(),
        error: 0,
        error_soft: 0,
        kind: 0,
        role: 0,
        transport: UDP,
        start_known: 1,
        _pad: 0,
    };
    datagram(&key, now, is_sent, Some(length as u64));
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
    let sk = unsafe { &*sk };
    if field!(SETTINGS.has_lengths) != 0 && sk.state == u32::from(ESTABLISHED) {
        return None; // the tracepoints tell of it
    }
    let remote = if is_ipv6 {
        [address.user_ip6[0], address.user_ip6[1], address.user_ip6[2], address.user_ip6[3]]
    } else {
        mapped(address.user_ip4)
    };
    let local = if is_ipv6 { [sk.src_ip6[0], sk.src_ip6[1], sk.src_ip6[2], sk.src_ip6[3]] } else { mapped(sk.src_ip4) };
    let now = now_ns();
    let key = EdgeKey {
        // SAFETY: the helper takes the context of this program type.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        // The only cgroup that this hook knows is that of the caller, who holds the socket.
        // SAFETY: no precondition.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        window: window(now),
        local_address: bytes(local),
        remote_address: bytes(remote),
        netns_inode: 0,
        epoch: control(control::EPOCH) as u32,
        local_port: sk.src_port as u16,
        remote_port: u16::from_be(address.user_port as u16),
        error: 0,
        error_soft: 0,
        kind: 0,
        role: 0,
        transport: UDP,
        start_known: 1,
        _pad: 0,
    };
    datagram(&key, now, is_sent, None);
    Some(())
}
