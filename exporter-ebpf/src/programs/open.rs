//! What is open: once a window, all connections that are watched.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use schemas::event::{EVENT_OPEN, control, counter};

use crate::{
    event::{empty, report},
    maps::{CONNECTIONS, CROSSING, Connection, FREE, control, count, load_first, remembered, remove, replace},
    socket::{CLOSE, Socket, TCP, is_open, tell},
};

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

/// The same of all connections at once, for kernels that refuse iterators over the elements of maps.
///
/// Runs once per map of the machine and once more when there are no more, which is when it does its work.
///
/// # Minimum kernel version
/// 5.13 (`bpf_for_each_map_elem`).
///
/// # Drops
/// As [`list_open`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map")]
pub extern "C" fn list_open_at_once(ctx: *mut c_void) -> i32 {
    if argument(ctx, 1).is_null() {
        let connections = (&raw const CONNECTIONS).cast_mut().cast();
        // SAFETY: the map's address is relocated to the map itself, and the callback is of the signature that maps ask for.
        unsafe { bpf_for_each_map_elem(connections, list_element as *mut c_void, ptr::null_mut(), 0) };
    }
    0
}

/// What [`list_open_at_once`] does with each connection; goes on to the next.
extern "C" fn list_element(_map: *mut c_void, key: *const u8, _value: *mut c_void, _context: *mut c_void) -> i64 {
    let _ = try_list(key);
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
