//! The maps the programs share with the exporter, and the globals it sets before load.

use core::{arch::asm, ptr};

use aya_ebpf::{
    btf_maps::{PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use schemas::event::{FlowEvent, SocketOffsets, counter};

/// Events on their way to the exporter, which polls: records are submitted without a wake-up.
///
/// The exporter sets the size at load (`--ring-size`).
///
/// # Minimum kernel version
/// 5.8.
///
/// # Drops
/// A full ring drops the event and counts it in [`COUNTERS`].
#[btf_map]
pub(crate) static EVENTS: RingBuf<FlowEvent, { 8 << 20 }> = RingBuf::new();

/// What is remembered of a socket between its first transition and its last; freed by the kernel with the socket.
///
/// # Minimum kernel version
/// 5.2.
///
/// # Drops
/// An allocation that fails is counted as [`counter::LOST_STORAGE`]; the socket's role is then unknown.
#[btf_map]
pub(crate) static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// Counts by [`counter`] index.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

/// Where the running kernel keeps the fields that are read.
#[unsafe(no_mangle)]
static OFFSETS: SocketOffsets = SocketOffsets {
    family: 0,
    local_port: 0,
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
    srtt: 0,
    _pad: 0,
};

/// The value of [`CONNECTIONS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) start_ns: u64,
    pub(crate) srtt_us: u32,
    pub(crate) role: u8,
    pub(crate) established: u8,
    pub(crate) _pad: [u8; 2],
}

/// Reads the offsets; a volatile read, since the compiler would fold the zeros above into the code.
#[inline(always)]
pub(crate) fn offsets() -> SocketOffsets {
    // SAFETY: a reference to a static is valid for reads.
    unsafe { ptr::read_volatile(&OFFSETS) }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer is to this CPU's own slot, aligned and valid for the program. Atomic, since a softirq may
        // interrupt the addition; in assembly, since the target has no atomic types.
        unsafe { asm!("lock *(u64 *)({slot} + 0) += {one}", slot = in(reg) value, one = in(reg) 1_u64) };
    }
}
