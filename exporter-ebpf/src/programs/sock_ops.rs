//! TCP through `sock_ops` on the root cgroup: every connect, every establishment, every end.
//!
//! Chosen over `tp_btf/inet_sock_set_state` because it has no recursion guard: it runs even where a softirq
//! interrupts a running instance, so that it loses nothing under load.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_NO_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{
        bpf_ktime_get_boot_ns,
        generated::{bpf_get_socket_cookie, bpf_sk_storage_get},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use schemas::event::{
    EVENT_CLOSED, EVENT_ESTABLISHED, EVENT_FAILED, FlowEvent, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN, counter,
};

use crate::{
    maps::{CONNECTIONS, Connection, EVENTS, count},
    socket::TcpSocket,
};

// `BPF_SOCK_OPS_*_CB` and `BPF_TCP_*` of the kernel's user API.
const OP_TCP_CONNECT: u32 = 3;
const OP_ACTIVE_ESTABLISHED: u32 = 4;
const OP_PASSIVE_ESTABLISHED: u32 = 5;
const OP_STATE: u32 = 10;
const STATE_CALLBACK_FLAG: i32 = 1 << 2;
const STATE_ESTABLISHED: u32 = 1;
const STATE_SYN_SENT: u32 = 2;
const STATE_CLOSE: u32 = 7;
const STATE_LISTEN: u32 = 10;

/// What a socket operation must be answered with to go on as usual.
const PROCEED: u32 = 1;

/// Watches TCP sockets of the cgroup it is attached to and of all below.
///
/// # Minimum kernel version
/// 5.9 (`bpf_skc_to_tcp_sock`).
///
/// # Drops
/// See [`EVENTS`] and [`CONNECTIONS`]. Not seen: sockets established before the first attach, and connects that
/// fail before a SYN is sent (no route, no free port).
#[sock_ops]
pub fn observe_tcp(ctx: SockOpsContext) -> u32 {
    // An error means that there is nothing to watch here; it is never the application's concern.
    let _ = try_observe_tcp(&ctx);
    PROCEED
}

#[inline(always)]
fn try_observe_tcp(ctx: &SockOpsContext) -> Result<(), ()> {
    match ctx.op() {
        OP_TCP_CONNECT => begin(ctx, ROLE_CLIENT),
        OP_ACTIVE_ESTABLISHED => establish(ctx, ROLE_CLIENT),
        OP_PASSIVE_ESTABLISHED => establish(ctx, ROLE_SERVER),
        OP_STATE => change_state(ctx, ctx.arg(0), ctx.arg(1)),
        _ => Ok(()),
    }
}

/// A connect begins: remember who dials and when. Overwrites what a reused socket left behind.
#[inline(always)]
fn begin(ctx: &SockOpsContext, role: u8) -> Result<(), ()> {
    watch_state(ctx)?;
    let connection = storage(ctx, BPF_SK_STORAGE_GET_F_CREATE)?;
    // SAFETY: a non-null pointer to this socket's storage, under the socket's lock.
    unsafe { *connection = Connection { start_ns: now_ns(), srtt_us: 0, role, established: 0, _pad: [0; 2] } };
    Ok(())
}

#[inline(always)]
fn establish(ctx: &SockOpsContext, role: u8) -> Result<(), ()> {
    watch_state(ctx)?;
    count(counter::SEEN);
    let mut event_role = role;
    let mut start_ns = now_ns();
    if let Ok(connection) = storage(ctx, BPF_SK_STORAGE_GET_F_CREATE) {
        // SAFETY: as in `begin`.
        let connection = unsafe { &mut *connection };
        // A socket that dialled stays a client, also when it is answered by its own SYN (self-connect).
        if connection.role == ROLE_UNKNOWN {
            connection.role = role;
            connection.start_ns = start_ns;
        }
        connection.established = 1;
        event_role = connection.role;
        start_ns = connection.start_ns;
    }
    emit(ctx, EVENT_ESTABLISHED, event_role, start_ns, 0)
}

#[inline(always)]
fn change_state(ctx: &SockOpsContext, old: u32, new: u32) -> Result<(), ()> {
    if old == new || old == STATE_LISTEN {
        return Ok(());
    }
    if old == STATE_ESTABLISHED && new != STATE_CLOSE {
        // The last moment at which the round-trip time is not yet spoilt by the delayed ACK of the FIN.
        let connection = storage(ctx, 0)?;
        let socket = TcpSocket::new(sk(ctx)?).ok_or(())?;
        // SAFETY: as in `begin`.
        unsafe { (*connection).srtt_us = socket.srtt_us() };
        return Ok(());
    }
    if new != STATE_CLOSE {
        return Ok(());
    }
    // No storage: open since before the programs were attached, with the flag of an earlier run still on it.
    let remembered = match storage(ctx, 0) {
        // SAFETY: as in `begin`.
        Ok(connection) => unsafe { *connection },
        Err(()) => Connection { start_ns: 0, srtt_us: 0, role: ROLE_UNKNOWN, established: 1, _pad: [0; 2] },
    };
    let failed = old == STATE_SYN_SENT || remembered.established == 0;
    let kind = if failed { EVENT_FAILED } else { EVENT_CLOSED };
    if failed {
        count(counter::SEEN);
    }
    emit(ctx, kind, remembered.role, remembered.start_ns, remembered.srtt_us)
}

#[inline(always)]
fn emit(ctx: &SockOpsContext, kind: u8, role: u8, start_ns: u64, srtt_us: u32) -> Result<(), ()> {
    let socket = TcpSocket::new(sk(ctx)?).ok_or(())?;
    let Some(mut entry) = EVENTS.reserve(0) else {
        count(if kind == EVENT_CLOSED { counter::LOST_CLOSED } else { counter::LOST_RING });
        return Err(());
    };
    // SAFETY: a reserved record is as large as the event, and every byte of it is written before it is submitted.
    let event: &mut FlowEvent = unsafe { entry.assume_init_mut() };
    event.time_ns = now_ns();
    event.start_ns = start_ns;
    // SAFETY: the helper takes the context of this program type.
    event.socket_cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    event.srtt_us = if srtt_us == 0 && kind == EVENT_CLOSED { socket.srtt_us() } else { srtt_us };
    event.kind = kind;
    event.role = role;
    event._pad = [0; 5];
    socket.describe(event);
    entry.submit(BPF_RB_NO_WAKEUP as u64);
    Ok(())
}

/// Asks for state callbacks of this socket; the setter replaces, so flags that others set are kept.
#[inline(always)]
fn watch_state(ctx: &SockOpsContext) -> Result<(), ()> {
    ctx.set_cb_flags(ctx.cb_flags() as i32 | STATE_CALLBACK_FLAG).map_err(|_| ())
}

#[inline(always)]
fn sk(ctx: &SockOpsContext) -> Result<*mut bpf_sock, ()> {
    // SAFETY: the context is valid for the whole program.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { Err(()) } else { Ok(sk) }
}

#[inline(always)]
fn storage(ctx: &SockOpsContext, flags: u32) -> Result<*mut Connection, ()> {
    let map = ptr::from_ref(&CONNECTIONS).cast_mut().cast();
    // SAFETY: the map is a socket storage map and the socket is the context's own.
    let value = unsafe { bpf_sk_storage_get(map, sk(ctx)?.cast(), ptr::null_mut(), flags.into()) };
    if value.is_null() {
        if flags != 0 {
            // Counted as an end of its own: what else becomes of the connection is counted beside it.
            count(counter::SEEN);
            count(counter::LOST_STORAGE);
        }
        return Err(());
    }
    Ok(value.cast())
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_boot_ns() }
}
