//! What the machine offers: capabilities, mounts and namespaces.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use super::ProbeError;

/// Whether processes have the same numbers here as in the kernel.
pub(crate) fn is_first_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.ino() == FIRST_PID_NAMESPACE)
}

/// Names the capabilities that loading needs and the process lacks, before the kernel says only "not permitted".
pub(super) fn check_capabilities() -> Result<(), ProbeError> {
    let needed = CAPABILITIES.iter().filter(|(bit, ..)| NEEDED.contains(bit));
    let missing: Vec<&str> = needed.filter(|(bit, ..)| !has_capability(*bit)).map(|(_, name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(ProbeError::NotPermitted { capabilities: missing.join(", ") }) }
}

/// Whether the process has a capability; where that can't be read, the kernel gets to say it.
pub(crate) fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else { return true };
    let has = |bit: u32| effective & (1 << bit) != 0;
    // CAP_SYS_ADMIN includes what was split off it.
    has(bit) || (matches!(bit, CAP_PERFMON | CAP_BPF) && has(CAP_SYS_ADMIN))
}

/// Where cgroup v2 is mounted: the whole hierarchy, whatever the machine calls it.
pub(crate) fn cgroup2_mount() -> Result<PathBuf, ProbeError> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .ok_or(ProbeError::NoCgroup2)
}

/// Where a cgroup v1 hierarchy is mounted that container runtimes put their containers in.
pub(crate) fn cgroup1_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let of = |controller: &str| {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut mounts = fields.filter(|fields| fields.get(2) == Some(&"cgroup"));
        let mount =
            mounts.find(|fields| fields.get(3).is_some_and(|options| options.split(',').any(|o| o == controller)));
        mount.map(|fields| PathBuf::from(fields[1]))
    };
    of("pids").or_else(|| of("memory"))
}

/// `PROC_PID_INIT_INO` of the kernel.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
pub(super) const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// Without these nothing can be recorded.
const NEEDED: [u32; 3] = [CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF];
/// Number and name of each capability, and what it costs to lack it.
pub(crate) const CAPABILITIES: [(u32, &str, &str); 5] = [
    (CAP_NET_ADMIN, "CAP_NET_ADMIN", "nothing can be recorded: programs can't be attached to a cgroup"),
    (CAP_PERFMON, "CAP_PERFMON", "nothing can be recorded: programs can't read kernel structures"),
    (CAP_BPF, "CAP_BPF", "nothing can be recorded: programs can't be loaded"),
    (
        CAP_SYS_ADMIN,
        "CAP_SYS_ADMIN",
        "pods are told by their network namespace's number, not its cookie; sockets that no process has a file of (io_uring) are \
         not found if they are older than the run",
    ),
    (CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "pods whose network namespace is given by a process (/proc/PID/ns/net)"),
];
