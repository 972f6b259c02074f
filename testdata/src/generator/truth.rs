//! What a generated capture holds, told by who made it.

use std::collections::{BTreeMap, BTreeSet};

/// Who talked to whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrueEdge {
    /// `namespace/name` of a workload, or an address.
    pub source: String,
    /// Likewise.
    pub destination: String,
    /// `tcp` or `udp`.
    pub transport: &'static str,
    /// The port of who answered.
    pub port: u16,
}

/// What could be observed of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrueEvidence {
    /// Hours since the Unix epoch in which a connection was established.
    pub hours: BTreeSet<u32>,
    /// UIDs of the pods at either end, of those that an agent could know.
    pub source_pods: BTreeSet<String>,
    /// Likewise.
    pub destination_pods: BTreeSet<String>,
    /// Connections, by the end that saw more of them in each hour.
    pub connections: i64,
    /// Attempts that failed.
    pub failed: i64,
    /// Payload bytes, source to destination.
    pub bytes_sent: i64,
    /// Payload bytes both ways between zones, where both ends' nodes can be known.
    pub cross_zone_bytes: i64,
    /// How long all connections lasted together.
    pub duration_ms: i64,
    /// Whether the client's agent, and the server's, saw any of it.
    pub seen_by: (bool, bool),
    /// Whether a Service was dialled.
    pub via_service: bool,
}

/// Everything that can be known of a generated capture.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Every edge of which something was observable.
    pub edges: BTreeMap<TrueEdge, TrueEvidence>,
    /// Milliseconds that the pods of each workload ran, and those of them in which their node's agent watched.
    pub pod_time_ms: BTreeMap<String, (i64, i64)>,
    /// Connections by day since the Unix epoch.
    pub connections_by_day: BTreeMap<u32, i64>,
    /// Rows of flows.
    pub rows: u64,
    /// Those that the client's agent wrote, by the client's workload.
    pub client_rows: BTreeMap<String, u64>,
    /// Addresses that more than one pod had.
    pub reused_addresses: usize,
    hour: BTreeMap<TrueEdge, [Observed; 2]>,
}

/// What one end saw in an hour.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed {
    pub(super) is_seen: bool,
    pub(super) connections: i64,
    pub(super) failed: i64,
    pub(super) bytes_sent: i64,
    pub(super) cross_zone_bytes: i64,
    pub(super) duration_ms: i64,
}

impl Truth {
    /// Takes in what one end saw: 0 is the client, 1 the server.
    pub(super) fn see(&mut self, edge: TrueEdge, end: usize, seen: Observed) {
        let Observed { is_seen: _, connections, failed, bytes_sent, cross_zone_bytes, duration_ms } = seen;
        let observed = &mut self.hour.entry(edge).or_default()[end];
        observed.is_seen = true;
        observed.connections += connections;
        observed.failed += failed;
        observed.bytes_sent += bytes_sent;
        observed.cross_zone_bytes += cross_zone_bytes;
        observed.duration_ms += duration_ms;
    }

    /// Whose pods an edge has; `None` where nothing could tell.
    pub(super) fn pods(&mut self, edge: &TrueEdge, source: Option<&str>, destination: Option<&str>, via_service: bool) {
        let evidence = self.edges.entry(edge.clone()).or_default();
        let add = |pods: &mut BTreeSet<String>, uid: &str| {
            if !pods.contains(uid) {
                pods.insert(uid.to_owned());
            }
        };
        source.into_iter().for_each(|uid| add(&mut evidence.source_pods, uid));
        destination.into_iter().for_each(|uid| add(&mut evidence.destination_pods, uid));
        evidence.via_service |= via_service;
    }

    /// An hour since the Unix epoch is over.
    pub(super) fn end_hour(&mut self, hour: u32) {
        for (edge, [client, server]) in std::mem::take(&mut self.hour) {
            let evidence = self.edges.entry(edge).or_default();
            let connections = client.connections.max(server.connections);
            if connections > 0 {
                evidence.hours.insert(hour);
            }
            evidence.connections += connections;
            *self.connections_by_day.entry(hour / 24).or_default() += connections;
            evidence.failed += client.failed.max(server.failed);
            evidence.bytes_sent += client.bytes_sent.max(server.bytes_sent);
            evidence.cross_zone_bytes += client.cross_zone_bytes.max(server.cross_zone_bytes);
            evidence.duration_ms += client.duration_ms.max(server.duration_ms);
            evidence.seen_by.0 |= client.is_seen;
            evidence.seen_by.1 |= server.is_seen;
        }
    }
}
