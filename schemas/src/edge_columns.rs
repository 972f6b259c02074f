//! Columns that tables of edges share: what an end is, and what is counted.

use std::sync::Arc;

crate::columns! {
    /// An end of an edge.
    EdgeEnd;

    /// What the {} is: `pod`, `node`, `external` or `unknown`.
    kind: Arc<str> => "", "";
    /// Namespace of the {}.
    namespace: Option<Arc<str>> => "", "";
    /// Kind of the {}'s workload: Deployment, StatefulSet and so on.
    workload_kind: Option<Arc<str>> => "", "";
    /// Name of the {}'s workload: of its top owner.
    workload: Option<Arc<str>> => "", "";
    /// Node that the {} is; null for a pod.
    node: Option<Arc<str>> => "", "";
    /// Address of the {}; null for a pod.
    address: Option<Arc<str>> => "", "";
    /// Why the {} is `unknown`: `ambiguous`, `no_owner`, `no_inventory`, `service_address`, or behind a Service
    /// `no_endpoints`.
    unknown_reason: Option<Arc<str>> => "", "";
}

crate::columns! {
    /// What is counted of the connections of an edge in an hour.
    #[derive(Copy)]
    ConnectionCounts;

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
    /// TCP segments that were sent again.
    retransmits: i64 => "", "{segment}";
    /// Sum of the durations of the connections in `closed`.
    duration_ms_sum: i64 => "", "ms";
}

impl ConnectionCounts {
    /// Adds what was counted of other connections; sums end at the largest number there is.
    pub fn add(&mut self, counts: &Self) {
        let Self {
            connections,
            failed,
            closed,
            max_active,
            bytes_sent,
            bytes_received,
            cross_zone_bytes,
            retransmits,
            duration_ms_sum,
        } = counts;
        self.connections = self.connections.saturating_add(*connections);
        self.failed = self.failed.saturating_add(*failed);
        self.closed = self.closed.saturating_add(*closed);
        self.max_active = self.max_active.max(*max_active);
        self.bytes_sent = add(self.bytes_sent, *bytes_sent);
        self.bytes_received = add(self.bytes_received, *bytes_received);
        self.cross_zone_bytes = self.cross_zone_bytes.saturating_add(*cross_zone_bytes);
        self.retransmits = self.retransmits.saturating_add(*retransmits);
        self.duration_ms_sum = self.duration_ms_sum.saturating_add(*duration_ms_sum);
    }

    /// The larger of each of two counts of the same connections.
    #[must_use]
    pub fn larger(&self, other: &Self) -> Self {
        let (a, b) = (self, other);
        Self {
            connections: a.connections.max(b.connections),
            failed: a.failed.max(b.failed),
            closed: a.closed.max(b.closed),
            max_active: a.max_active.max(b.max_active),
            bytes_sent: a.bytes_sent.max(b.bytes_sent),
            bytes_received: a.bytes_received.max(b.bytes_received),
            cross_zone_bytes: a.cross_zone_bytes.max(b.cross_zone_bytes),
            retransmits: a.retransmits.max(b.retransmits),
            duration_ms_sum: a.duration_ms_sum.max(b.duration_ms_sum),
        }
    }

    /// The same of an edge that crosses zones, or does not.
    #[must_use]
    pub fn across(mut self, crosses_zones: bool) -> Self {
        if crosses_zones {
            let sent = self.bytes_sent.unwrap_or_default();
            self.cross_zone_bytes = sent.saturating_add(self.bytes_received.unwrap_or_default());
        }
        self
    }

    /// Whether data could pass: a connection was established, was open, or ended.
    pub const fn is_established(&self) -> bool {
        self.connections > 0 || self.closed > 0 || self.max_active > 0
    }
}

fn add(sum: Option<i64>, more: Option<i64>) -> Option<i64> {
    match (sum, more) {
        (Some(sum), Some(more)) => Some(sum.saturating_add(more)),
        (sum, more) => sum.or(more),
    }
}
