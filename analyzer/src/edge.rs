//! Edges: who talked to whom, per hour, both ends resolved at the time of the flow, the two observers of an edge made one.
//!
//! ```text
//! files of flows ──unit──► units of hours ──work, fold──► HourEdges ──► rows of the table `edges`, rows of rollups
//! rollups ─────────┘                                       └──► Total of every edge over all hours ──► Block
//! ```
//!
//! A connection between two recorded pods is seen from both ends. Its client knows the address it dialled, its server
//! the pod that answered; resolved, both name the same edge, and the counts are the larger of the two sums, never their
//! sum. Likewise for two agents that recorded one node at the same time. A Service that was dialled becomes an edge to every workload that may have answered (`via_service`).
//! Left out is what stays on loopback or within one pod, and rows whose direction the kernel could not tell.
//!
//! This is the one place where rows of flows are not left to SQL: a plan of joins and distinct counts took five times as
//! long, and memory by the row.

mod all_hours;
mod dictionary;
mod flows;
mod fold;
mod hour;
mod hour_cache;
mod overlap;
mod overlap_counts;
mod resolve;
mod rollup;
mod row;
mod row_cache;
mod summing_up;
mod work_unit;

use std::sync::Arc;

use schemas::{hour::Hour, table::TimestampMs};

use crate::communication::seen_by;
pub(crate) use flows::{Flows, Undirected, WorkError};
use fold::{EdgeKey, Folder};
use hour::{HourEdge, HourEdges};
pub(crate) use hour_cache::Block;
pub(crate) use overlap::{Overlaps, Recorded};
pub(crate) use work_unit::repeats;

schemas::table! {
    /// Who talked to whom, one row per edge and hour: both ends are looked up at the time of the flow, and where both
    /// ends were recorded, they are one row. Of what several agents of one node recorded at the same time, the larger counts
    /// are taken. What was dialled by a Service's address is an edge to every workload with an
    /// endpoint behind it.
    EdgeRow, "edges";

    /// Start of the hour.
    hour: TimestampMs => "", "";
    /// Cluster.
    cluster: Arc<str> => "", "";
    /// `tcp` or `udp`.
    transport: Arc<str> => "", "";
    /// What the source, who initiated, is: `pod`, `node`, `external` or `unknown`.
    source_kind: Arc<str> => "", "";
    /// Namespace of the source.
    source_namespace: Option<Arc<str>> => "", "";
    /// Kind of the source's workload: Deployment, StatefulSet and so on.
    source_workload_kind: Option<Arc<str>> => "", "";
    /// Name of the source's workload: of its top owner.
    source_workload: Option<Arc<str>> => "", "";
    /// Node that the source is; null for a pod.
    source_node: Option<Arc<str>> => "", "";
    /// Address of the source; null for a pod.
    source_address: Option<Arc<str>> => "", "";
    /// Why the source is `unknown`: `ambiguous`, `no_owner`, `no_inventory`, `service_address`.
    source_unknown_reason: Option<Arc<str>> => "", "";
    /// What the destination, who was dialled, is: `pod`, `node`, `external` or `unknown`.
    destination_kind: Arc<str> => "", "";
    /// Namespace of the destination.
    destination_namespace: Option<Arc<str>> => "", "";
    /// Kind of the destination's workload.
    destination_workload_kind: Option<Arc<str>> => "", "";
    /// Name of the destination's workload.
    destination_workload: Option<Arc<str>> => "", "";
    /// Node that the destination is; null for a pod.
    destination_node: Option<Arc<str>> => "", "";
    /// Address of the destination; null for a pod.
    destination_address: Option<Arc<str>> => "", "";
    /// Why the destination is `unknown`: as for the source, or `no_endpoints`.
    destination_unknown_reason: Option<Arc<str>> => "", "";
    /// Port of the destination itself: behind a Service, the endpoint's.
    port: u16 => "", "";
    /// The source is the node that the destination runs on: its kubelet, or what shares its network.
    own_node: bool => "", "";
    /// A Service was dialled.
    via_service: bool => "", "";
    /// The destination surely answered: it saw the connection itself, or is the only one behind what was dialled.
    answered: bool => "", "";
    /// Which ends saw it: `client`, `server` or `both`.
    seen_by: Arc<str> => "", "";
    /// Services that were dialled, as namespace/name.
    services: Vec<Arc<str>> => "", "";
    /// Ports that clients dialled.
    dialled_ports: Vec<u16> => "", "";
    /// Why connections failed.
    failures: Vec<Arc<str>> => "", "";
    /// Distinct pods of the source.
    source_pods: i64 => "", "{pod}";
    /// Distinct pods of the destination; those behind a Service count where they saw the connection themselves.
    destination_pods: i64 => "", "{pod}";
    /// UIDs of the source's pods.
    source_pod_uids: Vec<Arc<str>> => "", "";
    /// UIDs of the destination's pods.
    destination_pod_uids: Vec<Arc<str>> => "", "";
    /// Connections established. UDP: distinct pairs of addresses and ports per window.
    connections: i64 => "", "{connection}";
    /// Connections that failed to establish.
    failed: i64 => "", "{connection}";
    /// Connections that ended.
    closed: i64 => "", "{connection}";
    /// Most connections that one pair of addresses had open at the end of a window.
    max_active: i64 => "", "{connection}";
    /// Payload bytes from source to destination; null when unknown.
    bytes_sent: Option<i64> => "", "By";
    /// Payload bytes from destination to source; null when unknown.
    bytes_received: Option<i64> => "", "By";
    /// Payload bytes both ways between nodes of different zones, as far as the nodes of both ends are known.
    cross_zone_bytes: i64 => "", "By";
    /// TCP segments that either end sent again.
    retransmits: i64 => "", "{segment}";
    /// Sum of the durations of the connections in `closed`.
    duration_ms_sum: i64 => "", "ms";
    /// First observation in the hour.
    first_seen: TimestampMs => "", "";
    /// Last observation in the hour.
    last_seen: TimestampMs => "", "";
}

/// The rows of an hour.
fn rows(folder: &Folder<'_>, cluster: &Arc<str>, hour: &HourEdges) -> Vec<EdgeRow> {
    let some = |number| folder.texts.text(number).cloned();
    let text = |number| some(number).unwrap_or_default();
    let all = |numbers: &[u32]| -> Vec<Arc<str>> {
        let mut texts: Vec<_> = numbers.iter().map(|number| text(*number)).collect();
        texts.sort();
        texts
    };
    let row = |edge: &HourEdge| {
        let EdgeKey { transport, source, destination, port, own_node } = folder.edges.values[edge.edge as usize];
        let (source, destination) = (folder.ends.values[source as usize], folder.ends.values[destination as usize]);
        let counts = edge.counts();
        EdgeRow {
            hour: Hour(hour.number).start(),
            cluster: Arc::clone(cluster),
            transport: text(transport),
            source_kind: text(source.kind),
            source_namespace: some(source.namespace),
            source_workload_kind: some(source.workload_kind),
            source_workload: some(source.workload),
            source_node: some(source.node),
            source_address: some(source.address),
            source_unknown_reason: some(source.unknown_reason),
            destination_kind: text(destination.kind),
            destination_namespace: some(destination.namespace),
            destination_workload_kind: some(destination.workload_kind),
            destination_workload: some(destination.workload),
            destination_node: some(destination.node),
            destination_address: some(destination.address),
            destination_unknown_reason: some(destination.unknown_reason),
            port,
            own_node,
            via_service: edge.via_service,
            answered: edge.answered,
            seen_by: seen_by(edge.client.is_seen, edge.server.is_seen).into(),
            services: all(&edge.services),
            dialled_ports: edge.dialled_ports.to_vec(),
            failures: all(&edge.failures),
            source_pods: edge.source_pods.len() as i64,
            destination_pods: edge.destination_pods.len() as i64,
            source_pod_uids: all(&edge.source_pods),
            destination_pod_uids: all(&edge.destination_pods),
            connections: counts.connections,
            failed: counts.failed,
            closed: counts.closed,
            max_active: counts.max_active,
            bytes_sent: counts.bytes_sent,
            bytes_received: counts.bytes_received,
            cross_zone_bytes: counts.cross_zone_bytes,
            retransmits: counts.retransmits,
            duration_ms_sum: counts.duration_ms_sum,
            first_seen: TimestampMs(edge.first_seen),
            last_seen: TimestampMs(edge.last_seen),
        }
    };
    hour.edges.iter().map(row).collect()
}
