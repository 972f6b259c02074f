//! The node's own network namespace, and the exporter's own process, as the kernel knows them.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use schemas::event::control;

use super::open::argument;
use crate::{
    maps::{control, field, set_control},
    memory::load,
};

/// Finds the network namespace of process 1, which is the node's own, and the exporter's process: who reads the iterator.
/// Reading them from the kernel takes neither CAP_SYS_PTRACE nor a constant, and is right on nodes that are containers.
///
/// Runs once per task of the exporter's PID namespace, in the order of their numbers; the first one is process 1.
///
/// # Minimum kernel version
/// 5.8 (iterators over tasks).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn find_node(ctx: *mut c_void) -> i32 {
    let task = argument(ctx, 1);
    if task.is_null() || control(control::OWN_PROCESS) != 0 {
        return 0;
    }
    set_control(control::OWN_PROCESS, bpf_get_current_pid_tgid() >> 32);
    let namespaces: *const u8 = load(task, field!(OFFSETS.task_namespaces));
    if namespaces.is_null() {
        return 0;
    }
    let network: *const u8 = load(namespaces, field!(OFFSETS.namespaces_net));
    set_control(control::NODE_NETNS_INODE, load::<u32>(network, field!(OFFSETS.net_inode)).into());
    set_control(control::NODE_NETNS_COOKIE, load(network, field!(OFFSETS.net_cookie)));
    0
}
