//! What the programs count, and what the kernel says of them.

use std::{
    fs,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// What the kernel says of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramStats {
    /// Its name.
    pub name: &'static str,
    /// How often it ran; only while the kernel measures.
    pub runs: u64,
    /// How long it ran; only while the kernel measures.
    pub run_time: Duration,
    /// How often it was skipped, because it was running already.
    pub skipped: u64,
}

/// What the programs counted since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeCounters {
    /// Ends of connections: established or failed.
    pub seen: u64,
    /// Events that found the ring buffer full and were summed instead.
    pub ring_full: u64,
    /// Ends lost: ring buffer and edge map were full.
    pub lost_ring: u64,
    /// Closings lost in the same way, of connections that were counted before.
    pub lost_closed: u64,
    /// Ends lost: connections that could not be remembered, or that ended without a call of the programs.
    pub lost_connections: u64,
    /// Datagrams whose edge found no room.
    pub lost_datagrams: u64,
    /// Cgroups whose making found the ring buffer full.
    pub lost_cgroups: u64,
    /// Runs of the tracepoint programs that the kernel skipped.
    pub skipped: u64,
    /// Records that could not be read.
    pub malformed: u64,
}

/// How full the maps are, in entries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MapEntries {
    /// Of what is remembered of connections, with what is left of some that are over.
    pub connections: u64,
    /// Of sums per edge, when they were taken out last.
    pub edges: u64,
}

impl ProbeCounters {
    /// What was counted since `before`.
    pub(crate) const fn since(self, before: Self) -> Self {
        Self {
            seen: self.seen - before.seen,
            ring_full: self.ring_full - before.ring_full,
            lost_ring: self.lost_ring - before.lost_ring,
            lost_closed: self.lost_closed - before.lost_closed,
            lost_connections: self.lost_connections - before.lost_connections,
            lost_datagrams: self.lost_datagrams - before.lost_datagrams,
            lost_cgroups: self.lost_cgroups - before.lost_cgroups,
            skipped: self.skipped - before.skipped,
            malformed: self.malformed - before.malformed,
        }
    }
}

/// A number that the kernel tells of an eBPF program or map.
pub(super) fn fdinfo(descriptor: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}
