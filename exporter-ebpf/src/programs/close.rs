//! The ends of connections that `sock_ops` is not called for: of those that were open before the run, whose state changes
//! can't be asked for, and of those whose flag another program took away.

use core::ptr;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use schemas::event::{EVENT_CLOSED, EVENT_FAILED, ROLE_CLIENT, counter};

use crate::{
    event::{empty, report},
    maps::{Connection, FAILED_SOCKETS, FREE, OWN, TAKEN, count, exchange, now_ns, remembered, unflagged},
    socket::{CLOSE, SYN_SENT, Socket, TCP, cookie, is_open, tell},
};

/// Watches ends that `sock_ops` is not called for. Attached while connections that are older than the run are open, and
/// once another program may have taken callback flags away.
///
/// # Minimum kernel version
/// 5.12.
///
/// # Drops
/// The kernel skips it where a softirq interrupts it on the same CPU, and counts that (`recursion_misses`).
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn observe_close(ctx: BtfTracePointContext) -> i32 {
    let _ = try_observe_close(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[inline(always)]
fn try_observe_close(sk: *const u8, old: i32, new: i32) -> Option<()> {
    if new != CLOSE as i32 || !(is_open(old as u8) || old == SYN_SENT as i32) {
        return None;
    }
    let socket = Socket::tcp(sk)?;
    if socket.has_state_callbacks() || !socket.is_watched() {
        return None; // `sock_ops` tells of it, or is not asked to
    }
    if old == SYN_SENT as i32 { fail(socket, sk) } else { close(socket, sk) }
}

/// A connect failed.
#[inline(always)]
fn fail(socket: Socket<false>, sk: *const u8) -> Option<()> {
    // As `sock_ops`: what sent nothing is no attempt.
    let cookie = cookie(sk);
    if !socket.has_sent() || unflagged(cookie) == Some(OWN) || FAILED_SOCKETS.get_ptr(cookie).is_some() {
        return None;
    }
    count(counter::SEEN);
    let now = now_ns();
    let mut event = empty(EVENT_FAILED, TCP, now);
    (event.start_ns, event.role) = (now, ROLE_CLIENT);
    socket.describe_end(&mut event);
    event.local_port = socket.source_port();
    report(&event);
    Some(())
}

/// A connection ended.
#[inline(always)]
fn close(socket: Socket<false>, sk: *const u8) -> Option<()> {
    let connection = remembered(sk)?;
    // SAFETY: a valid map value.
    let (known, state) = unsafe { (ptr::read(connection), &raw mut (*connection).told_ns) };
    let ports = (socket.source_port(), socket.remote_port());
    if !known.is_open() || (known.start_ns != 0 && known.ports != ports) {
        return None; // of another socket, that was at this address before
    }
    let mut event = empty(EVENT_CLOSED, TCP, now_ns());
    let known = Connection { told_ns: exchange(state, TAKEN), ..known };
    tell(socket.bytes(), &known, connection, &mut event);
    socket.describe_end(&mut event);
    event.local_port = ports.0;
    report(&event);
    if known.start_ns == 0 {
        count(counter::ADOPTED_ENDED);
    }
    exchange(state, FREE);
    Some(())
}
