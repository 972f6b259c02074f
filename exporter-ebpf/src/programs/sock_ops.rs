//! TCP through `sock_ops` on the root cgroup: every connect, every establishment, every end.
//!
//! Chosen over `tp_btf/inet_sock_set_state` because it has no recursion guard: it runs even where a softirq
//! interrupts a running instance, so that it loses nothing under load.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock},
    macros::sock_ops,
    programs::SockOpsContext,
};
use schemas::event::{EVENT_CLOSED, EVENT_FAILED, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN, counter};

use crate::{
    event::{empty, report},
    maps::{
        CROSSING, Connection, FAILED_SOCKETS, FREE, OWN, TAKEN, UNFLAGGED_SOCKETS, count, exchange, is_own_task,
        now_ns, remember, remembered, unflagged,
    },
    socket::{CLOSE, LISTEN, STATE_CALLBACK_FLAG, SYN_RECV, SYN_SENT, Socket, TCP, cookie, tell},
};

// `BPF_SOCK_OPS_*_CB` of the kernel's user API.
const OP_TCP_CONNECT: u32 = 3;
const OP_ACTIVE_ESTABLISHED: u32 = 4;
const OP_PASSIVE_ESTABLISHED: u32 = 5;
const OP_STATE: u32 = 10;

/// What a socket operation must be answered with to go on as usual.
const PROCEED: u32 = 1;

/// Watches TCP sockets of the cgroup it is attached to and of all below.
///
/// # Minimum kernel version
/// 5.12 (atomic exchange).
///
/// # Drops
/// See [`crate::maps::EVENTS`] and [`crate::maps::CONNECTIONS`]. Not seen: sockets established before the first attach,
/// and connects that fail before a SYN is sent (no route, no free port), or that began before the first attach and fail.
/// Where another program overwrites the callback flags of a socket, its end is found by the next scan, or by
/// [`super::close::observe_close`] if that is attached.
#[sock_ops]
pub fn observe_tcp(ctx: SockOpsContext) -> u32 {
    // `None` means that there is nothing to watch here; it is never the application's concern.
    let _ = try_observe_tcp(&ctx);
    PROCEED
}

#[inline(always)]
fn try_observe_tcp(ctx: &SockOpsContext) -> Option<()> {
    match ctx.op() {
        OP_TCP_CONNECT => begin(ctx),
        OP_ACTIVE_ESTABLISHED => establish(ctx, true),
        OP_PASSIVE_ESTABLISHED => establish(ctx, false),
        OP_STATE => change_state(ctx, ctx.arg(0) as u8, ctx.arg(1) as u8),
        _ => None,
    }
}

/// A connect begins: whatever becomes of it is to be told.
#[inline(always)]
fn begin(ctx: &SockOpsContext) -> Option<()> {
    if is_own_task() {
        return UNFLAGGED_SOCKETS.insert(cookie(ctx.ops), OWN, BPF_ANY as u64).ok();
    }
    watch_state(ctx)
}

#[inline(always)]
fn establish(ctx: &SockOpsContext, is_active: bool) -> Option<()> {
    let sk = sk(ctx)?;
    let is_watched = ctx.cb_flags() as u8 & STATE_CALLBACK_FLAG != 0;
    if is_active && !is_watched {
        match unflagged(cookie(ctx.ops)) {
            Some(OWN) => return None,
            Some(_) => {}
            None => count(counter::FLAG_MISSING), // another program took it away
        }
    }
    // SAFETY: a valid map value; a socket's events come one after the other, under its lock.
    let is_crossing = || remembered(sk).is_some_and(|connection| unsafe { (*connection).told_ns == CROSSING });
    // A socket that dialled stays a client, also when it is answered by a SYN (simultaneous open, self-connect).
    let dialled = is_active || (is_watched && is_crossing());
    if !is_watched {
        watch_state(ctx)?;
    }
    count(counter::SEEN);
    let role = match dialled {
        true if Socket::tcp(sk)?.is_in_repair() => ROLE_UNKNOWN,
        true => ROLE_CLIENT,
        false => ROLE_SERVER,
    };
    if remember(sk, &Connection::new(now_ns(), role, ports(ctx))).is_none() {
        count(counter::LOST_CONNECTIONS);
    }
    None
}

#[inline(always)]
fn change_state(ctx: &SockOpsContext, old: u8, new: u8) -> Option<()> {
    if old == SYN_SENT && new == SYN_RECV {
        let crossing = Connection { told_ns: CROSSING, ..Connection::new(0, ROLE_CLIENT, ports(ctx)) };
        return remember(sk(ctx)?, &crossing);
    }
    if new != CLOSE || old == CLOSE || old == LISTEN {
        // A program that ran before this one may have overwritten the flag.
        if new != CLOSE && ctx.cb_flags() as u8 & STATE_CALLBACK_FLAG == 0 {
            return watch_state(ctx);
        }
        return None;
    }
    let sk = sk(ctx)?;
    let socket = Socket::tcp(sk)?;
    let entry = remembered(sk);
    // SAFETY: as in `establish`.
    let known = entry.map(|entry| unsafe { ptr::read(entry) });
    let now = now_ns();
    // What never left SYN_SENT was not established, whatever is left at its address.
    if old == SYN_SENT || (old == SYN_RECV && known.is_some_and(|known| known.told_ns == CROSSING)) {
        count(counter::SEEN);
        let mut event = empty(EVENT_FAILED, TCP, now);
        (event.start_ns, event.role) = (now, ROLE_CLIENT);
        socket.describe_end(&mut event);
        report(&event);
        let _ = FAILED_SOCKETS.insert(cookie(ctx.ops), 1, BPF_ANY as u64);
        let left = known.filter(|left| left.told_ns >= CROSSING)?;
        left.count_left();
        // SAFETY: as in `establish`.
        exchange(unsafe { &raw mut (*entry?).told_ns }, FREE);
        return None;
    }
    let mut event = empty(EVENT_CLOSED, TCP, now);
    // SAFETY: as in `establish`.
    let state = entry.map(|entry| unsafe { &raw mut (*entry).told_ns });
    match (known.filter(Connection::is_open), state, entry) {
        (Some(known), Some(state), Some(connection)) => {
            let known = Connection { told_ns: exchange(state, TAKEN), ..known };
            tell(socket.bytes(), &known, connection, &mut event);
            if known.start_ns == 0 {
                count(counter::ADOPTED_ENDED);
            }
        }
        _ if old == SYN_RECV => return None, // a listener's child, with the flag of another program on it
        // Not remembered, for want of room, or open since an earlier run, whose flag is still on it.
        _ if socket.has_port_by_connect() => event.role = ROLE_CLIENT,
        _ => event.role = ROLE_UNKNOWN,
    }
    socket.describe_end(&mut event);
    report(&event);
    // SAFETY: as in `establish`; the exchange above was a barrier, and nothing is read after this.
    unsafe { ptr::write_volatile(state?, FREE) };
    Some(())
}

/// Local and remote port.
#[inline(always)]
fn ports(ctx: &SockOpsContext) -> (u16, u16) {
    // The remote one is in network byte order, in the upper half.
    (ctx.local_port() as u16, u16::from_be((ctx.remote_port() >> 16) as u16))
}

/// Asks for state callbacks of this socket; the setter replaces, so flags that others set are kept.
#[inline(always)]
fn watch_state(ctx: &SockOpsContext) -> Option<()> {
    ctx.set_cb_flags(ctx.cb_flags() as i32 | i32::from(STATE_CALLBACK_FLAG)).ok()
}

#[inline(always)]
fn sk(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid for the whole program.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}
