//! Cgroups that are made: their numbers are known even when they are gone by the time their flows are named.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, helpers::bpf_probe_read_kernel_str_bytes, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use schemas::event::{CGROUP_PATH_BYTES, CgroupEvent, counter};

use crate::{
    maps::{EVENTS, count, field},
    memory::load,
    socket::cgroup_id,
};

/// Tells the number and path of every new cgroup.
///
/// # Minimum kernel version
/// 5.8.
///
/// # Drops
/// A full ring buffer drops it and counts [`counter::LOST_CGROUPS`].
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn observe_cgroups(ctx: BtfTracePointContext) -> i32 {
    let _ = try_observe_cgroups(ctx.arg(0), ctx.arg(1));
    0
}

#[inline(always)]
fn try_observe_cgroups(cgroup: *const u8, path: *const u8) -> Option<()> {
    let root: *const u8 = load(cgroup, field!(OFFSETS.cgroup_root));
    if load::<u32>(root, field!(OFFSETS.hierarchy_id)) != 0 {
        return None; // of cgroup v1, whose numbers are its own
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<CgroupEvent>(0) else {
        count(counter::LOST_CGROUPS);
        return None;
    };
    // SAFETY: every byte is written before it is submitted.
    let event: &mut CgroupEvent = unsafe { entry.assume_init_mut() };
    event.id = cgroup_id::<false>(cgroup);
    event.path = [0; CGROUP_PATH_BYTES];
    // SAFETY: `path` is a string of the kernel's; the helper bears any pointer.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(path, &mut event.path) };
    entry.submit(BPF_RB_NO_WAKEUP as u64);
    Some(())
}
