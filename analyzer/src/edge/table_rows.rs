//! The table `edges`, as rows.

use std::sync::Arc;

use schemas::{
    edge_columns::{ConnectionCounts, EdgeEnd},
    hour::Hour,
    table::TimestampMs,
};

use super::{
    fold::{EdgeKey, Folder},
    hour::{HourEdge, HourEdges},
};
use crate::communication::seen_by;

schemas::table! {
    /// Who talked to whom, one row per edge and hour: the source initiated, the destination was dialled. Both ends are
    /// looked up at the time of the flow, and where both ends were recorded, they are one row. Of what several agents of one node recorded at the same time, the larger counts
    /// are taken. What was dialled by a Service's address is an edge to every workload with an
    /// endpoint behind it.
    EdgeRow, "edges";

    /// Start of the hour.
    hour: TimestampMs => "", "";
    /// Cluster.
    cluster: Arc<str> => "", "";
    /// `tcp` or `udp`.
    transport: Arc<str> => "", "";
    /// Who initiated.
    source: EdgeEnd as "source_";
    /// Who was dialled.
    destination: EdgeEnd as "destination_";
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
    /// Of the two ends' counts the larger ones.
    counts: ConnectionCounts as "";
    /// First observation in the hour.
    first_seen: TimestampMs => "", "";
    /// Last observation in the hour.
    last_seen: TimestampMs => "", "";
}

/// The rows of an hour.
pub(super) fn rows(folder: &Folder<'_>, cluster: &Arc<str>, hour: &HourEdges) -> Vec<EdgeRow> {
    let texts = &folder.texts;
    let row = |edge: &HourEdge| {
        let EdgeKey { transport, source, destination, port, own_node, .. } = folder.edges.values[edge.edge as usize];
        EdgeRow {
            hour: Hour(hour.number).start(),
            cluster: Arc::clone(cluster),
            transport: texts.text(transport).cloned().unwrap_or_default(),
            source: folder.end(source),
            destination: folder.end(destination),
            port,
            own_node,
            via_service: edge.via_service,
            answered: edge.answered,
            seen_by: seen_by(edge.seen_by_client, edge.seen_by_server).into(),
            services: texts.sorted(&edge.services),
            dialled_ports: edge.dialled_ports.to_vec(),
            failures: texts.sorted(&edge.failures),
            source_pods: edge.source_pods.len() as i64,
            destination_pods: edge.destination_pods.len() as i64,
            source_pod_uids: texts.sorted(&edge.source_pods),
            destination_pod_uids: texts.sorted(&edge.destination_pods),
            counts: edge.counts(),
            first_seen: TimestampMs(edge.first_seen),
            last_seen: TimestampMs(edge.last_seen),
        }
    };
    let is_listed = |edge: &&HourEdge| {
        let EdgeKey { source, source_port, .. } = folder.edges.values[edge.edge as usize];
        source_port.is_none() && !folder.is_within_pod(source)
    };
    hour.edges.iter().filter(is_listed).map(row).collect()
}
