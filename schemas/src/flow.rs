//! The `flows` dataset: who talked to whom, as one end of the connection saw it.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use crate::table::{RttHistogram, TimestampMs, dataset};

dataset! {
    /// One row per observed edge and window, or per connection with `--window 0`.
    /// The source initiated the communication (client), the destination responded (server).
    FlowRecord, "flows", "flowscribe.flow";

    /// Cluster the agent was told it runs in.
    cluster: Arc<str> => "resource k8s.cluster.name", "";
    /// Node whose agent observed the row.
    node: Arc<str> => "resource k8s.node.name", "";
    /// Random identifier of the agent's run, new at every start.
    run_id: Arc<str> => "resource service.instance.id", "";
    /// Number of the row in this dataset and run, from 0 without gaps: a gap is a loss, a repetition a second delivery.
    seq: i64 => "flowscribe.seq", "";
    /// Start of the window; with `--window 0` of the connection.
    window_start: TimestampMs => "flowscribe.window.start", "";
    /// End of the window, exclusive; with `--window 0` of the connection.
    window_end: TimestampMs => "flowscribe.window.end", "";
    /// Which end was local to the observer: `client` or `server`.
    observer: Arc<str> => "flowscribe.flow.observer", "";
    /// Whether the kernel could tell which end initiated; where false, source is the local end.
    direction_known: bool => "flowscribe.flow.direction_known", "";
    /// Whether the agent saw the connections begin; false for those open before it started.
    start_known: bool => "flowscribe.flow.start_known", "";
    /// `tcp` or `udp`.
    transport: Arc<str> => "network.transport", "";
    /// Address of the source, as the observing socket saw it; IPv4-mapped IPv6 is written as IPv4.
    source_address: Arc<str> => "source.address", "";
    /// Address of the destination, as the observing socket saw it: a client of a Service sees the Service's address.
    destination_address: Arc<str> => "destination.address", "";
    /// Port of the source; only with `--window 0`, since it is ephemeral, and where `direction_known` is false.
    source_port: Option<u16> => "source.port", "";
    /// Port of the destination as dialled: the Service's port when a Service was dialled.
    destination_port: u16 => "destination.port", "";
    /// Port of the endpoint behind the Service, when all endpoints have the same one.
    destination_target_port: Option<u16> => "flowscribe.flow.destination.target_port", "";
    /// What the source is: `pod`, `node`, `service`, `external` or `unknown`.
    source_kind: Arc<str> => "flowscribe.source.kind", "";
    /// Why the source is `unknown`: `ambiguous`, `no_owner`, `no_inventory`, `no_endpoints`, `unmapped_socket`,
    /// `sender_not_asked` (a datagram's receiver did not ask for its address, which stands as unspecified).
    source_unknown_reason: Option<Arc<str>> => "flowscribe.source.unknown_reason", "";
    /// Namespace of the source.
    source_namespace: Option<Arc<str>> => "flowscribe.source.k8s.namespace.name", "";
    /// Pod of the source.
    source_pod: Option<Arc<str>> => "flowscribe.source.k8s.pod.name", "";
    /// UID of the source's pod.
    source_pod_uid: Option<Arc<str>> => "flowscribe.source.k8s.pod.uid", "";
    /// Node the source is or runs on.
    source_node: Option<Arc<str>> => "flowscribe.source.k8s.node.name", "";
    /// Kind of the source's top owner: Deployment, StatefulSet, DaemonSet, CronJob, Job, Pod and so on.
    source_workload_kind: Option<Arc<str>> => "flowscribe.source.k8s.workload.kind", "";
    /// Name of the source's top owner.
    source_workload: Option<Arc<str>> => "flowscribe.source.k8s.workload.name", "";
    /// Labels of the source's pod as canonical JSON, keys sorted. Policies read labels from `inventory` only.
    source_labels: Option<Arc<str>> => "flowscribe.source.k8s.pod.label.<key>", "";
    /// Whether the source's pod shares its node's network.
    source_host_network: Option<bool> => "flowscribe.source.k8s.pod.host_network", "";
    /// What the destination is: `pod`, `node`, `service`, `external` or `unknown`.
    destination_kind: Arc<str> => "flowscribe.destination.kind", "";
    /// Why the destination is `unknown`; the values of `source_unknown_reason`.
    destination_unknown_reason: Option<Arc<str>> => "flowscribe.destination.unknown_reason", "";
    /// Namespace of the destination.
    destination_namespace: Option<Arc<str>> => "flowscribe.destination.k8s.namespace.name", "";
    /// Pod of the destination.
    destination_pod: Option<Arc<str>> => "flowscribe.destination.k8s.pod.name", "";
    /// UID of the destination's pod.
    destination_pod_uid: Option<Arc<str>> => "flowscribe.destination.k8s.pod.uid", "";
    /// Node the destination is or runs on.
    destination_node: Option<Arc<str>> => "flowscribe.destination.k8s.node.name", "";
    /// Kind of the destination's top owner.
    destination_workload_kind: Option<Arc<str>> => "flowscribe.destination.k8s.workload.kind", "";
    /// Name of the destination's top owner.
    destination_workload: Option<Arc<str>> => "flowscribe.destination.k8s.workload.name", "";
    /// Labels of the destination's pod as canonical JSON, keys sorted.
    destination_labels: Option<Arc<str>> => "flowscribe.destination.k8s.pod.label.<key>", "";
    /// Whether the destination's pod shares its node's network.
    destination_host_network: Option<bool> => "flowscribe.destination.k8s.pod.host_network", "";
    /// Namespace of the Service whose address was dialled.
    destination_service_namespace: Option<Arc<str>> => "flowscribe.destination.k8s.service.namespace", "";
    /// Service whose address was dialled.
    destination_service: Option<Arc<str>> => "flowscribe.destination.k8s.service.name", "";
    /// DNS name that the client had resolved to the destination's address.
    destination_name: Option<Arc<str>> => "flowscribe.destination.dns.name", "";
    /// Connections established in the window. UDP: distinct pairs of addresses and ports on which a datagram passed.
    connections: i64 => "flowscribe.flow.connections", "{connection}";
    /// Connections that failed to establish in the window.
    failed: i64 => "flowscribe.flow.failed", "{connection}";
    /// Connections that ended in the window.
    closed: i64 => "flowscribe.flow.closed", "{connection}";
    /// Connections open at the end of the window: a gauge, never to be summed over time.
    active: i64 => "flowscribe.flow.active", "{connection}";
    /// Why connections failed: `refused`, `timeout`, `unreachable`, `reset` or `aborted` (closed while connecting).
    failure: Option<Arc<str>> => "error.type", "";
    /// Payload bytes from source to destination that passed since the row before told of the connections; null when
    /// unknown.
    bytes_sent: Option<i64> => "flowscribe.flow.bytes", "By";
    /// Payload bytes from destination to source, likewise; null when unknown.
    bytes_received: Option<i64> => "flowscribe.flow.reverse.bytes", "By";
    /// TCP segments that the observing end sent again.
    retransmits: i64 => "flowscribe.flow.tcp.retransmits", "{segment}";
    /// Sum of the durations of the connections counted in `closed`.
    duration_ms_sum: i64 => "flowscribe.flow.duration_sum", "ms";
    /// Connections that ended, by the least round-trip time that TCP measured of late: below 64 µs, 256 µs, 1 ms, 4 ms, 16 ms, 64 ms, 256 ms,
    /// and the rest (bounds are 64 µs times powers of four).
    rtt_us_hist: RttHistogram => "flowscribe.flow.tcp.rtt", "{connection}";
    /// First moment in the window at which the edge was observed.
    first_seen: TimestampMs => "flowscribe.flow.first_seen", "";
    /// Last moment in the window at which the edge was observed.
    last_seen: TimestampMs => "flowscribe.flow.last_seen", "";
    /// Container of the source's pod whose socket it is; null at the other end, and where it is not known.
    source_container: Option<Arc<str>> => "flowscribe.source.k8s.pod.container.name", "";
    /// Container of the destination's pod, likewise.
    destination_container: Option<Arc<str>> => "flowscribe.destination.k8s.pod.container.name", "";

    // A window that ends at the full hour belongs to the hour it lies in.
    partition by window_end, |row| TimestampMs(row.window_end.0 - 1);
    sort by |a, b| {
        (a.window_start, &a.source_workload, &a.destination_address, a.destination_port, &a.source_address, a.seq)
            .cmp(&(b.window_start, &b.source_workload, &b.destination_address, b.destination_port, &b.source_address, b.seq))
    };
    summarize by |row, out| {
        end(out, &row.source_namespace, &row.source_workload, &row.source_address)?;
        out.push_str(" → ");
        end(out, &row.destination_namespace, &row.destination_workload, &row.destination_address)?;
        write!(out, " {}/{}: {} connections", row.destination_port, row.transport, row.connections)?;
        match (&row.failure, row.failed) {
            (_, 0) => Ok(()),
            (None, failed) => write!(out, ", {failed} failed"),
            (Some(failure), failed) => write!(out, ", {failed} failed ({failure})"),
        }
    };
}

/// Writes an end: the workload's namespace and name, or else the address.
fn end(out: &mut String, namespace: &Option<Arc<str>>, workload: &Option<Arc<str>>, address: &str) -> fmt::Result {
    match (namespace, workload) {
        (Some(namespace), Some(workload)) => write!(out, "{namespace}/{workload}"),
        (None, Some(workload)) => out.write_str(workload),
        (_, None) => out.write_str(address),
    }
}
