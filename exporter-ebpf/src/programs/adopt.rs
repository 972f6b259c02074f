//! The sockets that were there before the run: those of files, and those that no process has a file of.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_sock_from_file,
};
use schemas::event::{EVENT_LISTENING, ROLE_CLIENT, ROLE_UNKNOWN, counter};

use super::open::argument;
use crate::{
    event::{empty, report},
    maps::{
        Connection, OLDER, OLDER_SOCKETS, OWN, UNFLAGGED_SOCKETS, count, field, is_own_process, now_ns, remember_new,
        remembered, remove,
    },
    memory::{copied, load},
    socket::{LISTEN, MPTCP, SYN_SENT, Socket, TCP, UDP, cookie, is_open},
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
/// A socket that is in no process's file table (not yet accepted, passed and not yet received, or of an io_uring alone) is
/// not found; [`adopt_connections`] and [`adopt_receivers`] find it.
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
    match socket.protocol() {
        UDP_PROTOCOL => remember_older(sk, socket),
        TCP_PROTOCOL if socket.state() == SYN_SENT => {
            let is_own = is_own_process(load(task, field!(OFFSETS.task_group)));
            remember_unflagged(sk, if is_own { OWN } else { OLDER })
        }
        TCP_PROTOCOL => adopt(sk, Socket::tcp(sk)?),
        MPTCP => adopt_subflows(sk),
        _ => None,
    }
}

/// Takes TCP sockets into account that are open when the run begins, whoever has them, in the network namespace of the
/// reader. The subflows of MPTCP are among them.
///
/// # Minimum kernel version
/// 5.9 (iterators over sockets).
///
/// # Drops
/// None.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn adopt_connections(ctx: *mut c_void) -> i32 {
    let sk = argument(ctx, 1);
    let _ = if sk.is_null() { None } else { try_adopt_connection(sk) };
    0
}

#[inline(always)]
fn try_adopt_connection(sk: *const u8) -> Option<()> {
    let socket = Socket::tcp(sk)?;
    if !socket.is_internet() || !socket.is_watched() {
        return None;
    }
    if socket.state() == SYN_SENT { remember_unflagged(sk, OLDER) } else { adopt(sk, socket) }
}

/// Remembers UDP sockets that are open when the run begins, whoever has them, in the network namespace of the reader.
///
/// # Minimum kernel version
/// 5.9 (iterators over sockets).
///
/// # Drops
/// None.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub extern "C" fn adopt_receivers(ctx: *mut c_void) -> i32 {
    let sk = argument(ctx, 1);
    if !sk.is_null() {
        let socket = Socket::<false>::new(sk);
        if socket.is_internet() && socket.is_watched() {
            let _ = remember_older(sk, socket);
        }
    }
    0
}

/// Remembers that others may have sent to a UDP socket before.
#[inline(always)]
fn remember_older(sk: *const u8, socket: Socket<false>) -> Option<()> {
    if socket.has_chosen_port() {
        return OLDER_SOCKETS.insert(cookie(sk), 1, BPF_ANY as u64).ok();
    }
    None
}

/// Remembers that a connect is under way whose end `sock_ops` is not called for, and why.
#[inline(always)]
fn remember_unflagged(sk: *const u8, reason: u8) -> Option<()> {
    if Socket::tcp(sk)?.has_state_callbacks() {
        return None;
    }
    UNFLAGGED_SOCKETS.insert(cookie(sk), reason, BPF_NOEXIST as u64).ok()
}

/// Tells that a TCP socket listens, or remembers its connection.
#[inline(always)]
fn adopt<const COPIED: bool>(sk: *const u8, socket: Socket<COPIED>) -> Option<()> {
    if socket.state() == LISTEN {
        let mut event = empty(EVENT_LISTENING, TCP, now_ns());
        socket.describe(&mut event);
        report(&event);
        return None;
    }
    adopt_open(sk, socket)
}

/// Remembers the connection of a TCP socket, if it is open. Apart, as the verifier walks through it once per subflow.
#[inline(always)]
fn adopt_open<const COPIED: bool>(sk: *const u8, socket: Socket<COPIED>) -> Option<()> {
    if !is_open(socket.state()) || remembered(sk).is_some() {
        return None;
    }
    let now = now_ns();
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

/// Takes into account what an MPTCP socket is on the wire: no process has a file of a subflow, nor of the listener.
#[inline(always)]
fn adopt_subflows(sk: *const u8) -> Option<()> {
    let list = field!(OFFSETS.mptcp_subflows);
    if list == 0 {
        return None;
    }
    let parent = Socket::<true>::of(sk);
    if parent.state() == LISTEN {
        return adopt(sk, parent);
    }
    let head = parent.pointer().wrapping_add(list as usize);
    let mut node: *const u8 = copied(head, 0);
    for _ in 0..SUBFLOWS {
        if node == head || node.is_null() {
            return None;
        }
        let context = node.wrapping_sub(field!(OFFSETS.subflow_node) as usize);
        let subflow: *const u8 = copied(context, field!(OFFSETS.subflow_socket));
        if !subflow.is_null() {
            let _ = adopt_open(subflow, Socket::<true>::new(subflow));
        }
        node = copied(node, 0);
    }
    None
}

/// Most subflows of an MPTCP socket: the kernel's limit on both ends' additional ones (`MPTCP_PM_ADDR_MAX`), and the first.
const SUBFLOWS: usize = 9;
const TCP_PROTOCOL: u16 = TCP as u16;
const UDP_PROTOCOL: u16 = UDP as u16;
