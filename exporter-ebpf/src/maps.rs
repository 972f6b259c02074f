//! The maps the programs share with the exporter, and the globals it sets before load.

use core::{arch::asm, ptr};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, generated::bpf_get_current_task},
    macros::btf_map,
};
use schemas::event::{EdgeCounts, EdgeKey, FlowEvent, Settings, SocketOffsets, control, counter};

use crate::memory::copied;

/// Events on their way to the exporter, which polls: records are submitted without a wake-up.
///
/// The exporter sets the size at load (`--ring-size-mib`).
///
/// # Minimum kernel version
/// 5.8.
///
/// # Drops
/// None: what finds it full goes to [`EDGES`].
#[btf_map]
pub(crate) static EVENTS: RingBuf<FlowEvent, { 4 << 20 }> = RingBuf::new();

/// Sums per edge: UDP always, TCP when [`EVENTS`] is full. Memory is taken when an entry is made.
///
/// The exporter sets the size at load (`--kernel-edges`).
///
/// # Minimum kernel version
/// 4.6.
///
/// # Drops
/// A full map drops and counts: [`counter::LOST_MAP`], [`counter::LOST_CLOSED`], [`counter::LOST_DATAGRAMS`].
#[btf_map]
pub(crate) static EDGES: HashMap<EdgeKey, EdgeCounts, { 1 << 16 }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What is remembered of a socket between its first transition and its last, by the socket's address in the kernel.
///
/// Chosen over socket storage, which costs an allocation and a deferred free more per socket. The exporter sets the
/// size at load (`--max-connections`).
///
/// # Minimum kernel version
/// 4.6.
///
/// # Drops
/// A full map is counted as [`counter::LOST_CONNECTIONS`].
#[btf_map]
pub(crate) static CONNECTIONS: HashMap<u64, Connection, { 1 << 16 }> = HashMap::new();

/// How many datagrams each connected UDP socket is about to send to another address than its own remote one, by the
/// socket's address in the kernel.
///
/// # Minimum kernel version
/// 4.10.
///
/// # Drops
/// What was used least lately: a datagram is then counted for the remote address too.
#[btf_map]
pub(crate) static STRAYS: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Cookies of TCP sockets that connect without a callback flag, and why: [`OWN`] or [`OLDER`]. Where no reason is known,
/// another program has taken the flag away.
///
/// # Minimum kernel version
/// 4.10.
///
/// # Drops
/// The least recently used: the exporter's own connection is then recorded as anybody's, an older one is counted as if its
/// flag had been taken away.
#[btf_map]
pub(crate) static UNFLAGGED_SOCKETS: LruHashMap<u64, u8, 4096> = LruHashMap::new();

/// The exporter's own, which is not to be watched.
pub(crate) const OWN: u8 = 1;
/// It began to connect before the programs were attached.
pub(crate) const OLDER: u8 = 2;

/// Cookies of TCP sockets whose connect failed, and that were reported: another program may take their flag away before
/// the tracepoint sees the same end.
///
/// # Minimum kernel version
/// 4.10.
///
/// # Drops
/// The least recently used: a connect that failed is then reported twice, if its flag was overwritten.
#[btf_map]
pub(crate) static FAILED_SOCKETS: LruHashMap<u64, u8, 4096> = LruHashMap::new();

/// Cookies of unconnected UDP sockets whose receivers ask for the sender's address.
///
/// # Minimum kernel version
/// 4.10.
///
/// # Drops
/// The least recently used: one datagram more is then counted as of an unknown sender.
#[btf_map]
pub(crate) static ASKING_SOCKETS: LruHashMap<u64, u8, 8192> = LruHashMap::new();

/// Cookies of UDP sockets on chosen ports that were open when the run began.
///
/// # Minimum kernel version
/// 4.10.
///
/// # Drops
/// The least recently used: what such a socket sends first is then taken for a question.
#[btf_map]
pub(crate) static OLDER_SOCKETS: LruHashMap<u64, u8, 16384> = LruHashMap::new();

/// What was sent last on each CPU to an address, if it began an edge: it is taken back where the call fails.
///
/// # Minimum kernel version
/// 4.6.
///
/// # Drops
/// What a sender had just begun that lost the CPU to another one: where its call fails, the edge stays.
#[btf_map]
pub(crate) static LAST_ADDRESSED: PerCpuArray<Addressed, 1> = PerCpuArray::new();

/// The value of [`LAST_ADDRESSED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Addressed {
    /// The socket's address in the kernel; 0 for none.
    pub(crate) sk: u64,
    pub(crate) edge: EdgeKey,
}

/// Counts by [`counter`] index.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

/// Numbers by [`control`] index, written by the exporter.
///
/// # Minimum kernel version
/// 3.19.
#[btf_map]
pub(crate) static CONTROL: Array<u64, { control::COUNT as usize }> = Array::new();

/// Where the running kernel keeps the fields that are read.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: SocketOffsets = SocketOffsets {
    family: 0,
    local_port: 0,
    source_port: 0,
    remote_port: 0,
    local_ipv4: 0,
    remote_ipv4: 0,
    local_ipv6: 0,
    remote_ipv6: 0,
    net: 0,
    net_inode: 0,
    net_cookie: 0,
    cgroup: 0,
    cgroup_node: 0,
    node_id: 0,
    flags: 0,
    error: 0,
    error_soft: 0,
    bytes_sent: 0,
    bytes_retrans: 0,
    bytes_received: 0,
    total_retrans: 0,
    rtt_min: 0,
    state: 0,
    protocol: 0,
    callback_flags: 0,
    bind_bucket: 0,
    fast_reuse: 0,
    socket_sk: 0,
    cgroup_root: 0,
    hierarchy_id: 0,
    cgroup_level: 0,
    cgroup_ancestors: 0,
    user_locks: 0,
    user_locks_shift: 0,
    segments_out: 0,
    task_group: 0,
    task_namespaces: 0,
    namespaces_net: 0,
    program_aux: 0,
    aux_id: 0,
    aux_name: 0,
    repair: 0,
    repair_shift: 0,
    mptcp_subflows: 0,
    subflow_node: 0,
    subflow_socket: 0,
};

/// What the exporter wants.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = Settings { window_ns: 1, utc_offset_ns: 0, watched_cgroup: 0 };

/// The value of [`CONNECTIONS`].
///
/// A socket's own events come one after the other, under its lock; beside them runs the scan, which tells of what is
/// open and removes what is free. Whoever changes an entry says so in `told_ns` first, atomically: then the other finds
/// it changed and leaves it alone.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connection {
    /// The moment up to which events told of an open connection, `start_ns` while none has; or else [`FREE`],
    /// [`TAKEN`], [`REMOVED`] or [`CROSSING`].
    pub(crate) told_ns: u64,
    /// When it was established; 0 for before the programs were attached.
    pub(crate) start_ns: u64,
    /// Payload bytes that events told of.
    pub(crate) told_sent: u64,
    /// Payload bytes that events told of.
    pub(crate) told_received: u64,
    /// Local and remote port.
    pub(crate) ports: (u16, u16),
    pub(crate) role: u8,
    pub(crate) _pad: [u8; 3],
}

/// The connection is over. The kernel reuses the memory of sockets soon, and so entries are left to the next socket at
/// their address rather than removed, which costs 0.6 µs less per connection.
pub(crate) const FREE: u64 = 0;
/// Whoever said so is changing the entry.
pub(crate) const TAKEN: u64 = 1;
/// The scan is removing the entry.
pub(crate) const REMOVED: u64 = 2;
/// The SYN of a connect met another one on its way: it will be established as if it had been dialled.
pub(crate) const CROSSING: u64 = 3;

impl Connection {
    #[inline(always)]
    pub(crate) const fn new(start_ns: u64, role: u8, ports: (u16, u16)) -> Self {
        Self { told_ns: start_ns, start_ns, told_sent: 0, told_received: 0, ports, role, _pad: [0; 3] }
    }

    #[inline(always)]
    pub(crate) const fn is_open(&self) -> bool {
        self.told_ns > CROSSING
    }

    /// Accounts for a connection that has ended without telling so, because another program has taken the callbacks of
    /// its socket away.
    #[inline(always)]
    pub(crate) fn count_left(&self) {
        if !self.is_open() {
            return;
        }
        if self.told_ns == self.start_ns {
            count(counter::LOST_CONNECTIONS);
        } else {
            count(counter::LOST_CLOSED);
        }
    }
}

/// Reads one field of a global that the exporter sets; a volatile read, since the compiler would fold the value above
/// into the code, and of one field, since the stack has no room for all.
macro_rules! field {
    ($global:ident.$field:ident) => {
        // SAFETY: a reference to a static is valid for reads.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::$global.$field) }
    };
}
pub(crate) use field;

/// Writes a number.
#[inline(always)]
pub(crate) fn set_control(index: u32, value: u64) {
    if let Some(number) = CONTROL.get_ptr_mut(index) {
        // SAFETY: a valid map value.
        unsafe { *number = value };
    }
}

/// Reads a number of the exporter's.
#[inline(always)]
pub(crate) fn control(index: u32) -> u64 {
    CONTROL.get(index).copied().unwrap_or(0)
}

/// What is remembered of a socket, by a pointer of any kind to it.
#[inline(always)]
pub(crate) fn remembered<T>(sk: *const T) -> Option<*mut Connection> {
    CONNECTIONS.get_ptr_mut(sk as u64)
}

/// Remembers a connection from now on; whatever was left at the same address is over. `None` when there is no room.
#[inline(always)]
pub(crate) fn remember<T>(sk: *const T, connection: &Connection) -> Option<()> {
    // Again, while the scan is removing what is there.
    for _ in 0..4 {
        let Some(entry) = remembered(sk) else {
            if remember_new(sk, connection) {
                return Some(());
            }
            continue;
        };
        // SAFETY: a valid map value.
        unsafe {
            let left = ptr::read(entry);
            let told_ns = &raw mut (*entry).told_ns;
            if left.told_ns == REMOVED || !replace(told_ns, left.told_ns, TAKEN) {
                continue;
            }
            left.count_left();
            *entry = Connection { told_ns: TAKEN, ..*connection };
            exchange(told_ns, connection.told_ns);
        }
        return Some(());
    }
    None
}

/// Remembers a connection where nothing is; whether that was so, and there was room.
#[inline(always)]
pub(crate) fn remember_new<T>(sk: *const T, connection: &Connection) -> bool {
    let is_done = CONNECTIONS.insert(sk as u64, connection, BPF_NOEXIST as u64).is_ok();
    if is_done {
        count(counter::ENTRIES_MADE);
    }
    is_done
}

/// Removes an entry that is as it was `known`; whether it was.
#[inline(always)]
pub(crate) fn remove<T>(sk: *const T, known: &Connection) -> bool {
    let Some(entry) = remembered(sk) else { return false };
    // SAFETY: a valid map value.
    let told_ns = unsafe { &raw mut (*entry).told_ns };
    if !replace(told_ns, known.told_ns, REMOVED) {
        return false;
    }
    if CONNECTIONS.remove(sk as u64).is_ok() {
        count(counter::ENTRIES_REMOVED);
    } else {
        exchange(told_ns, FREE); // the kernel was busy with the map
    }
    true
}

/// Why a TCP socket connects without a callback flag, where that is known.
#[inline(always)]
pub(crate) fn unflagged(cookie: u64) -> Option<u8> {
    // SAFETY: a valid map value.
    UNFLAGGED_SOCKETS.get_ptr(cookie).map(|reason| unsafe { *reason })
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // Atomic, since a softirq may interrupt the addition.
        add(value, 1);
    }
}

/// Atomic addition; in assembly, since the target has no atomic types.
#[inline(always)]
pub(crate) fn add(value: *mut u64, addend: u64) {
    // SAFETY: callers pass pointers into map values, aligned and valid for the program.
    unsafe { asm!("lock *(u64 *)({slot} + 0) += {addend}", slot = in(reg) value, addend = in(reg) addend) };
}

/// Atomic exchange: sets the value and returns what it was.
///
/// # Minimum kernel version
/// 5.12.
#[inline(always)]
pub(crate) fn exchange(value: *mut u64, new: u64) -> u64 {
    let mut old = new;
    // SAFETY: as in `add`.
    unsafe { asm!("{old} = xchg_64({slot} + 0, {old})", slot = in(reg) value, old = inout(reg) old) };
    old
}

/// Atomic comparison: sets the value if it is as expected, and returns whether it was.
///
/// # Minimum kernel version
/// 5.12.
#[inline(always)]
pub(crate) fn replace(value: *mut u64, expected: u64, new: u64) -> bool {
    compare_exchange(value, expected, new) == expected
}

/// Reads a value before anything that is read after it.
///
/// # Minimum kernel version
/// 5.12.
#[inline(always)]
pub(crate) fn load_first(value: *mut u64) -> u64 {
    compare_exchange(value, 0, 0)
}

#[inline(always)]
fn compare_exchange(value: *mut u64, expected: u64, new: u64) -> u64 {
    let mut old = expected;
    // SAFETY: as in `add`.
    unsafe { asm!("r0 = cmpxchg_64({slot} + 0, r0, {new})", slot = in(reg) value, new = in(reg) new, inout("r0") old) };
    old
}

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whether the current task is of the exporter; to be asked in system calls only.
#[inline(always)]
pub(crate) fn is_own() -> bool {
    is_own_process((bpf_get_current_pid_tgid() >> 32) as u32)
}

/// As [`is_own`], for programs that may not call `bpf_get_current_pid_tgid`: those of `sock_ops` before Linux 6.10.
#[inline(always)]
pub(crate) fn is_own_task() -> bool {
    // SAFETY: the helper has no precondition.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    is_own_process(copied(task, field!(OFFSETS.task_group)))
}

/// Whether a process is the exporter.
#[inline(always)]
pub(crate) fn is_own_process(process: u32) -> bool {
    let own = control(control::OWN_PROCESS) as u32;
    own != 0 && own == process
}
