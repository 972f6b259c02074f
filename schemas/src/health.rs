//! The `health` dataset: what an agent saw, exported and lost. A claim that something was *not* seen counts only where
//! capture was healthy.

use std::{fmt::Write as _, sync::Arc};

use crate::table::{TimestampMs, dataset};

dataset! {
    /// One row per agent and window: what it saw, exported, filtered and lost, in ends of connections (one per
    /// established or failed transition of TCP, one per window and pair of addresses and ports of UDP). Over a whole
    /// run, seen = exported + filtered + lost_ring + lost_map + lost_parse + lost_queue + lost_sink + lost_end; within
    /// a window, what is under way makes them differ: a connection counts as exported when it ends or the window does.
    /// A run whose last row has no clean_shutdown was killed, or still runs.
    HealthRecord, "health", "flowscribe.health";

    /// Cluster the agent was told it runs in.
    cluster: Arc<str> => "resource k8s.cluster.name", "";
    /// Node of the agent.
    node: Arc<str> => "resource k8s.node.name", "";
    /// Random identifier of the agent's run, new at every start.
    run_id: Arc<str> => "resource service.instance.id", "";
    /// Number of the row in this dataset and run, from 0 without gaps.
    seq: i64 => "flowscribe.seq", "";
    /// Start of the window the row tells of.
    window_start: TimestampMs => "flowscribe.window.start", "";
    /// End of the window, exclusive; the last row of a run ends when the run ended.
    window_end: TimestampMs => "flowscribe.window.end", "";
    /// When the run began to capture.
    run_start: TimestampMs => "flowscribe.health.run.start", "";
    /// Version of the agent.
    agent_version: Arc<str> => "resource service.version", "";
    /// Kernel release of the node, as `uname -r` prints it.
    kernel_release: Arc<str> => "resource os.version", "";
    /// Kernel programs that were attached, and iterators that were loaded. What is not recorded without each of them is in
    /// `schemas/README.md`, Programs.
    programs: Vec<Arc<str>> => "flowscribe.health.programs", "";
    /// Namespaces that recording was limited to; empty for all.
    namespaces: Vec<Arc<str>> => "flowscribe.health.namespaces", "";
    /// What else recording was limited to: labels, cidrs and ports, each as the flag's name and its value.
    filters: Vec<Arc<str>> => "flowscribe.health.filters", "";
    /// Length of the agent's windows; 0 for a row per connection.
    window_ms: i64 => "flowscribe.health.window", "ms";
    /// Ends of connections seen by the kernel programs.
    seen: i64 => "flowscribe.health.seen", "{end}";
    /// Ends of connections that are in exported rows.
    exported: i64 => "flowscribe.health.exported", "{end}";
    /// Ends of connections left out because a filter said so.
    filtered: i64 => "flowscribe.health.filtered", "{end}";
    /// Lost: the ring buffer to the agent and the kernel's map of edges were full.
    lost_ring: i64 => "flowscribe.health.lost.ring", "{end}";
    /// Lost: the kernel's map of connections had no room for one, or its map of edges none for a datagram's; or a
    /// connection ended unseen, because another program took the callbacks of its socket away.
    lost_map: i64 => "flowscribe.health.lost.map", "{end}";
    /// Runs of a tracing program that the kernel skipped because it was running already: at most as many ends of
    /// connections that were open before the run, and datagrams on connected sockets. Not in seen.
    lost_recursion: i64 => "flowscribe.health.lost.recursion", "{run}";
    /// Lost: an event could not be read.
    lost_parse: i64 => "flowscribe.health.lost.parse", "{end}";
    /// Lost: the agent's flow table or record queue was full.
    lost_queue: i64 => "flowscribe.health.lost.queue", "{end}";
    /// Lost: a sink failed for good.
    lost_sink: i64 => "flowscribe.health.lost.sink", "{end}";
    /// Lost: established, and not told of when the run ended: the kernel has no iterator to tell what is open, or it
    /// ended while the programs were detached.
    lost_end: i64 => "flowscribe.health.lost.end", "{end}";
    /// Closings and progress lost: connections whose end, or bytes of a window, are not known. They were counted when
    /// established, or are older than the run.
    lost_closed: i64 => "flowscribe.health.lost.closed", "{connection}";
    /// Cgroups whose making is not known: a pod in the node's network that is gone before its cgroup is looked for
    /// stays unidentified.
    lost_cgroups: i64 => "flowscribe.health.lost.cgroups", "{cgroup}";
    /// Ends of connections exported without an identity for the local end.
    unidentified: i64 => "flowscribe.health.unidentified", "{end}";
    /// Ends of connections whose cgroup is of another pod than their network namespace: of a process that entered
    /// the namespace. They count as the namespace's.
    contradicted: i64 => "flowscribe.health.contradicted", "{end}";
    /// Ends of connections exported without the name of an end, because its metadata did not come in time.
    unnamed: i64 => "flowscribe.health.unnamed", "{end}";
    /// Resources of the Kubernetes API that should be watched and can't be.
    unreadable: Vec<Arc<str>> => "flowscribe.health.unreadable", "";
    /// Connections open at the end of the window.
    open_connections: i64 => "flowscribe.health.open_connections", "{connection}";
    /// Edges in the flow table at the end of the window.
    flow_table_entries: i64 => "flowscribe.health.flow_table.entries", "{edge}";
    /// Most bytes that waited in the ring buffer at once during the window.
    ring_bytes: i64 => "flowscribe.health.ring.size", "By";
    /// Events that found the ring buffer full and were summed per edge in the kernel: none is lost, but with
    /// `--window 0` they have no row per connection.
    ring_full: i64 => "flowscribe.health.ring.full", "{event}";
    /// Numbers of the rows of dataset `flows` written so far: from 0 to this, exclusive.
    flows_next_seq: i64 => "flowscribe.health.flows.next_seq", "";
    /// Numbers of the rows of dataset `inventory` written so far: from 0 to this, exclusive.
    inventory_next_seq: i64 => "flowscribe.health.inventory.next_seq", "";
    /// Whether this is the last row of a run that ended as it should.
    clean_shutdown: bool => "flowscribe.health.clean_shutdown", "";

    partition by window_end, |row| TimestampMs(row.window_end.0 - 1);
    sort by |a, b| (a.window_start, a.seq).cmp(&(b.window_start, b.seq));
    summarize by |row, out| {
        let HealthRecord { seen, exported, filtered, .. } = row;
        write!(out, "{seen} ends of connections seen, {exported} exported, {filtered} filtered, {} lost", row.lost())
    };
}

impl HealthRecord {
    /// Ends of connections lost, for any reason.
    pub const fn lost(&self) -> i64 {
        self.lost_ring + self.lost_map + self.lost_parse + self.lost_queue + self.lost_sink + self.lost_end
    }
}
