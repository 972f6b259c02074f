//! What is open: the sockets that were there before the run, and once a window all that are watched.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_sock_from_file,
};
use schemas::event::{EVENT_LISTENING, EVENT_OPEN, ROLE_CLIENT, ROLE_UNKNOWN, control, counter};

use crate::{
    event::{empty, report},
    maps::{
        CROSSING, Connection, FREE, OLDER, OLDER_SOCKETS, OWN, UNFLAGGED_SOCKETS, control, count, field,
        is_own_process, load_first, now_ns, remember_new, remembered, remove, replace,
    },
    memory::load,
    socket::{CLOSE, LISTEN, SYN_SENT, Socket, TCP, UDP, cookie, is_open, tell},
};

/// Takes the sockets of all processes into account that are open when the run begins, tells which listen, and remembers
/// which of UDP others may have sent to before.
///
/// Runs once per open file of every process that the exporter's PID namespace holds, when the exporter reads it.
///
/// # Minimum kernel version
/// 5.11 (`bpf_sock_from_file`).
///
/// # Drops
/// A socket that is in no process's file table (not yet accepted, or passed and not yet received) is not found.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn adopt_sockets(ctx: *mut c_void) -> i32 {
    let _ = try_adopt(argument(ctx, 1), argument(ctx, 3));
    0
}

#[inline(always)]
fn try_adopt(task: *const u8, file: *const u8) -> Option<()> {
    if task.is_null() || file.is_null() {
        return None;
    }
    // SAFETY: a file of the iterator's.
    let file_socket: *const u8 = unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast_const().cast();
    if file_socket.is_null() {
        return None;
    }
    let sk: *const u8 = load(file_socket, field!(OFFSETS.socket_sk));
    if sk.is_null() {
        return None;
    }
    let socket = Socket::<false>::new(sk);
    if !socket.is_internet() || !socket.is_watched() {
        return None;
    }
    if socket.protocol() == u16::from(UDP) && socket.has_chosen_port() {
        let _ = OLDER_SOCKETS.insert(cookie(sk), 1, BPF_ANY as u64);
    }
    if socket.protocol() != u16::from(TCP) {
        return None;
    }
    let state = socket.state();
    if state == SYN_SENT {
        let is_own = is_own_process(load(task, field!(OFFSETS.task_group)));
        let reason = if is_own { OWN } else { OLDER };
        if !Socket::tcp(sk)?.has_state_callbacks() {
            let _ = UNFLAGGED_SOCKETS.insert(cookie(sk), reason, BPF_NOEXIST as u64);
        }
        return None;
    }
    let now = now_ns();
    if state == LISTEN {
        let mut event = empty(EVENT_LISTENING, TCP, now);
        socket.describe(&mut event);
        report(&event);
        return None;
    }
    if !is_open(state) || remembered(sk).is_some() {
        return None;
    }
    let socket = Socket::tcp(sk)?;
    let role = if socket.has_port_by_connect() { ROLE_CLIENT } else { ROLE_UNKNOWN };
    let mut connection = Connection::new(0, role, (socket.local_port(), socket.remote_port()));
    connection.told_ns = now;
    (connection.told_sent, connection.told_received) = socket.bytes();
    if !remember_new(sk, &connection) {
        if remembered(sk).is_none() {
            count(counter::LOST_CLOSED); // there is no room
        }
        return None;
    }
    count(counter::ADOPTED);
    if !is_open(socket.state()) {
        // It ended meanwhile, and was perhaps not found here.
        if remove(sk, &connection) {
            count(counter::ADOPTED_ENDED);
        }
    }
    Some(())
}

/// Tells of every connection that was open at the moment the exporter asks for ([`control::SCAN_UNTIL_NS`]), and what
/// passed on it since it was told of last.
///
/// Runs once per remembered connection, in one walk, when the exporter reads it.
///
/// # Minimum kernel version
/// 5.10 (iterators over hash maps).
///
/// # Drops
/// See [`crate::maps::EVENTS`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn list_open(ctx: *mut c_void) -> i32 {
    let _ = try_list(argument(ctx, 2));
    0
}

#[inline(always)]
fn try_list(key: *const u8) -> Option<()> {
    if key.is_null() {
        return None;
    }
    // SAFETY: the iterator's key is a socket's address.
    let address = unsafe { ptr::read_volatile(key.cast::<u64>()) };
    let sk = address as *const u8;
    let connection = remembered(sk)?;
    // The rest is of the moment that this one is of, unless it has changed when it is replaced below.
    // SAFETY: a valid map value.
    let told_ns = load_first(unsafe { &raw mut (*connection).told_ns });
    // SAFETY: as above.
    let known = Connection { told_ns, ..unsafe { ptr::read_volatile(connection) } };
    let socket = Socket::<true>::new(sk);
    let state = socket.state();
    let ports = (socket.local_port(), socket.remote_port());
    // An end leaves its entry free: what is not, though the socket is no more, ended without a call of the programs.
    let is_left = state == CLOSE || (known.is_open() && is_open(state) && ports != known.ports);
    if known.told_ns == FREE || (is_left && known.told_ns >= CROSSING) {
        if remove(sk, &known) {
            known.count_left();
        }
        return None;
    }
    let until = control(control::SCAN_UNTIL_NS);
    if !known.is_open() || known.told_ns >= until || !is_open(state) {
        return None;
    }
    if known.start_ns != 0 && !socket.has_state_callbacks() {
        count(counter::FLAG_MISSING);
    }
    let mut found = empty(EVENT_OPEN, TCP, until - 1);
    socket.describe(&mut found);
    let bytes = socket.bytes();
    // The memory of a socket that ended meanwhile may be another one's by now. Then the entry is gone, free, or of a
    // connection that was told of at another moment.
    let connection = remembered(sk)?;
    // SAFETY: a valid map value.
    if !replace(unsafe { &raw mut (*connection).told_ns }, known.told_ns, until) {
        return None;
    }
    tell(bytes, &known, connection, &mut found);
    report(&found);
    Some(())
}

/// An argument of an iterator: its context is a struct of pointers.
#[inline(always)]
pub(super) fn argument(ctx: *mut c_void, number: usize) -> *const u8 {
    // SAFETY: the verifier knows the context's fields by their offsets.
    unsafe { ptr::read_volatile(ctx.cast::<*const u8>().add(number)) }
}
