//! The ends of connections that were open before the run: `sock_ops` can't ask for their state changes.

use core::ptr;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use schemas::event::{EVENT_CLOSED, counter};

use super::sock_ops::STATE_CALLBACK_FLAG;
use crate::{
    event::{empty, report},
    maps::{Connection, FREE, TAKEN, count, exchange, now_ns, remembered},
    socket::{CLOSE, Socket, TCP, is_open, tell},
};

/// Tells when a connection ends that was open before the run.
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
    if new != CLOSE as i32 || !is_open(old as u8) {
        return None;
    }
    let socket = Socket::tcp(sk)?;
    if socket.callback_flags() & STATE_CALLBACK_FLAG != 0 {
        return None; // `sock_ops` tells of it
    }
    let connection = remembered(sk)?;
    // SAFETY: a valid map value.
    let (known, state) = unsafe { (ptr::read(connection), &raw mut (*connection).told_ns) };
    if !known.is_open() || known.start_ns != 0 {
        return None; // of another socket, that was at this address before
    }
    let mut event = empty(EVENT_CLOSED, TCP, now_ns());
    let known = Connection { told_ns: exchange(state, TAKEN), ..known };
    tell(socket.bytes(), &known, connection, &mut event);
    socket.describe_end(&mut event);
    event.local_port = socket.source_port();
    report(&event);
    count(counter::ADOPTED_ENDED);
    exchange(state, FREE);
    Some(())
}
