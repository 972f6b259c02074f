//! Rollups: the flows of an hour summed up by edge, from which what is learned of them comes out the same.
//!
//! A rollup says in its metadata which rows of flows it sums up, so that readers know when they are all that there is of
//! an hour, and what of the inventory the answer to who is who rests on.

use std::sync::Arc;

use crate::{
    edge_columns::{ConnectionCounts, EdgeEnd},
    table::TimestampMs,
};

crate::table! {
    /// One row per edge and hour, as in table `edges`, with what the client's end and the server's end saw apart: so that
    /// rows which come late can still be added. The source initiated, the destination was dialled.
    RollupRow, "rollups";

    /// Start of the hour.
    hour: TimestampMs => "", "";
    /// `tcp` or `udp`.
    transport: Arc<str> => "", "";
    /// Who initiated.
    source: EdgeEnd as "source_";
    /// Who was dialled.
    destination: EdgeEnd as "destination_";
    /// Port of the destination itself: behind a Service, the endpoint's.
    port: u16 => "", "";
    /// The source is the node that the destination runs on.
    own_node: bool => "", "";
    /// Port of the source where it is not known which end initiated, and source is the end that was recorded; 0 where it
    /// was not recorded.
    source_port: Option<u16> => "", "";
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
    /// Containers of the source's pods, as their own node's agent told, with commas between their names; an empty name
    /// where it did not know.
    source_containers: Option<Arc<str>> => "", "";
    /// Containers of the destination's pods, likewise.
    destination_containers: Option<Arc<str>> => "", "";
    /// Whether the client's end was recorded.
    client_seen: bool => "", "";
    /// What the client's end counted.
    client: ConnectionCounts as "client_";
    /// Whether the server's end was recorded.
    server_seen: bool => "", "";
    /// What the server's end counted.
    server: ConnectionCounts as "server_";
    /// First observation in the hour.
    first_seen: TimestampMs => "", "";
    /// Last observation in the hour.
    last_seen: TimestampMs => "", "";
}
