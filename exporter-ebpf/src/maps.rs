//! The maps the programs share with the exporter, and the globals it sets before load.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns},
    macros::btf_map,
};
use schemas::event::{EdgeCounts, EdgeKey, FlowEvent, Settings, SocketOffsets, control, counter};

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
/// A full map is counted as [`counter::LOST_STORAGE`].
#[btf_map]
pub(crate) static CONNECTIONS: HashMap<u64, Connection, { 1 << 16 }> = HashMap::new();

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
};

/// What the exporter wants.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings =
    Settings { window_ns: 1, utc_offset_ns: 0, watched_cgroup: 0, own_process: 0, has_lengths: 0 };

/// The value of [`CONNECTIONS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connection {
    /// When it was established; 0 for before the programs were attached.
    pub(crate) start_ns: u64,
    /// The moment up to which events told of it; 0 for none yet.
    pub(crate) reported_ns: u64,
    /// Payload bytes that events told of.
    pub(crate) reported_sent: u64,
    /// Payload bytes that events told of.
    pub(crate) reported_received: u64,
    pub(crate) role: u8,
    /// [`OPEN`], [`CROSSING`] or [`OVER`].
    pub(crate) phase: u8,
    pub(crate) _pad: [u8; 6],
}

/// The connection is established.
pub(crate) const OPEN: u8 = 0;
/// The SYN of a connect met another one on its way: it will be established as if it had been dialled.
pub(crate) const CROSSING: u8 = 1;
/// The connection has ended, and the entry is free for the next socket at this address.
pub(crate) const OVER: u8 = 2;

impl Connection {
    #[inline(always)]
    pub(crate) const fn new(start_ns: u64, role: u8) -> Self {
        Self { start_ns, reported_ns: 0, reported_sent: 0, reported_received: 0, role, phase: OPEN, _pad: [0; 6] }
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

/// Remembers a connection from now on. What was remembered at the same address is over: the kernel reuses the memory
/// of sockets soon, and so the entries here are overwritten rather than removed, which costs half.
#[inline(always)]
pub(crate) fn remember<T>(sk: *const T, connection: &Connection) -> Option<()> {
    match remembered(sk) {
        // SAFETY: a valid map value.
        Some(over) => unsafe { *over = *connection },
        None => CONNECTIONS.insert(sk as u64, connection, BPF_ANY as u64).ok()?,
    }
    Some(())
}

/// Removes what is over.
#[inline(always)]
pub(crate) fn forget<T>(sk: *const T) {
    let _ = CONNECTIONS.remove(sk as u64);
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

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whether the current task is the exporter; to be asked in system calls only.
#[inline(always)]
pub(crate) fn is_own() -> bool {
    let own = field!(SETTINGS.own_process);
    own != 0 && (bpf_get_current_pid_tgid() >> 32) as u32 == own
}
