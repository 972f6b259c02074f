//! Rollups: the flows of an hour summed up by edge, from which what is learned of them comes out the same.
//!
//! A rollup says in its metadata which rows of flows it sums up, so that readers know when they are all that there is of
//! an hour, and what of the inventory the answer to who is who rests on.

use std::sync::Arc;

use crate::table::TimestampMs;

crate::table! {
    /// One row per edge and hour, as in table `edges`, with what each of its two ends saw apart: so that rows which come
    /// late can still be added.
    RollupRow, "rollups";

    /// Start of the hour.
    hour: TimestampMs => "", "";
    /// `tcp` or `udp`.
    transport: Arc<str> => "", "";
    /// What the source, who initiated, is: `pod`, `node`, `external` or `unknown`.
    source_kind: Arc<str> => "", "";
    /// Namespace of the source.
    source_namespace: Option<Arc<str>> => "", "";
    /// Kind of the source's workload.
    source_workload_kind: Option<Arc<str>> => "", "";
    /// Name of the source's workload.
    source_workload: Option<Arc<str>> => "", "";
    /// Node that the source is; null for a pod.
    source_node: Option<Arc<str>> => "", "";
    /// Address of the source; null for a pod.
    source_address: Option<Arc<str>> => "", "";
    /// Why the source is `unknown`.
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
    /// Why the destination is `unknown`.
    destination_unknown_reason: Option<Arc<str>> => "", "";
    /// Port of the destination itself: behind a Service, the endpoint's.
    port: u16 => "", "";
    /// The source is the node that the destination runs on.
    own_node: bool => "", "";
    /// A Service was dialled.
    via_service: bool => "", "";
    /// The destination surely answered.
    answered: bool => "", "";
    /// Services that were dialled, as namespace/name.
    services: Vec<Arc<str>> => "", "";
    /// Ports that clients dialled.
    dialled_ports: Vec<u16> => "", "";
    /// Why connections failed.
    failures: Vec<Arc<str>> => "", "";
    /// UIDs of the source's pods.
    source_pod_uids: Vec<Arc<str>> => "", "";
    /// UIDs of the destination's pods.
    destination_pod_uids: Vec<Arc<str>> => "", "";
    /// Whether the client's end was recorded.
    client_seen: bool => "", "";
    /// Connections established, as the client's end saw it.
    client_connections: i64 => "", "{connection}";
    /// Connections that failed to establish, as the client's end saw it.
    client_failed: i64 => "", "{connection}";
    /// Connections that ended, as the client's end saw it.
    client_closed: i64 => "", "{connection}";
    /// Most connections that one pair of addresses had open at the end of a window, as the client's end saw it.
    client_max_active: i64 => "", "{connection}";
    /// Payload bytes from source to destination; null when unknown, as the client's end saw it.
    client_bytes_sent: Option<i64> => "", "By";
    /// Payload bytes from destination to source; null when unknown, as the client's end saw it.
    client_bytes_received: Option<i64> => "", "By";
    /// Payload bytes both ways between nodes of different zones, as the client's end saw it.
    client_cross_zone_bytes: i64 => "", "By";
    /// TCP segments sent again, as the client's end saw it.
    client_retransmits: i64 => "", "{segment}";
    /// Sum of the durations of the connections that ended, as the client's end saw it.
    client_duration_ms_sum: i64 => "", "ms";
    /// Whether the server's end was recorded.
    server_seen: bool => "", "";
    /// Connections established, as the server's end saw it.
    server_connections: i64 => "", "{connection}";
    /// Connections that failed to establish, as the server's end saw it.
    server_failed: i64 => "", "{connection}";
    /// Connections that ended, as the server's end saw it.
    server_closed: i64 => "", "{connection}";
    /// Most connections that one pair of addresses had open at the end of a window, as the server's end saw it.
    server_max_active: i64 => "", "{connection}";
    /// Payload bytes from source to destination; null when unknown, as the server's end saw it.
    server_bytes_sent: Option<i64> => "", "By";
    /// Payload bytes from destination to source; null when unknown, as the server's end saw it.
    server_bytes_received: Option<i64> => "", "By";
    /// Payload bytes both ways between nodes of different zones, as the server's end saw it.
    server_cross_zone_bytes: i64 => "", "By";
    /// TCP segments sent again, as the server's end saw it.
    server_retransmits: i64 => "", "{segment}";
    /// Sum of the durations of the connections that ended, as the server's end saw it.
    server_duration_ms_sum: i64 => "", "ms";
    /// First observation in the hour.
    first_seen: TimestampMs => "", "";
    /// Last observation in the hour.
    last_seen: TimestampMs => "", "";
}
