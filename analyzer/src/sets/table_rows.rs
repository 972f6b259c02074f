//! The sets as tables.

use std::{net::IpAddr, sync::Arc};

use schemas::{edge_columns::EdgeEnd, table::TimestampMs, vocabulary::EndKind};

use super::{Entry, Estimate, Set, Sets};
use crate::communication::{Direction, Edge, Endpoint, Evidence, Workload};

schemas::table! {
    /// Who talked to whom over the whole capture, one row per edge: what `edges` has per hour, with what became of it.
    CommunicationRow, "communications";

    /// `tcp` or `udp`.
    transport: Arc<str> => "", "";
    /// Who initiated.
    source: EdgeEnd as "source_";
    /// Who was dialled.
    destination: EdgeEnd as "destination_";
    /// Port of the destination itself: behind a Service, the endpoint's.
    port: u16 => "", "";
    /// What became of it: `learned`, `held` for review, `pinned`, `forbidden`, `failed` (nothing passed), or `own_node`
    /// (a pod's own node, which needs no rule).
    fate: Arc<str> => "", "";
    /// Why it is held, pinned or forbidden.
    fate_reason: Option<Arc<str>> => "", "";
    /// A Service was dialled.
    via_service: bool => "", "";
    /// The destination surely answered: it saw the connection itself, or is the only one behind what was dialled.
    answered: bool => "", "";
    /// Which ends saw it: `client`, `server` or `both`.
    seen_by: Arc<str> => "", "";
    /// Services that were dialled, as namespace/name.
    services: Vec<Arc<str>> => "", "";
    /// Why connections failed.
    failures: Vec<Arc<str>> => "", "";
    /// Distinct hours in which data could pass.
    hours: i64 => "", "h";
    /// Distinct days (UTC) in which data could pass.
    days: i64 => "", "d";
    /// Distinct pods of the source.
    source_pods: i64 => "", "{pod}";
    /// Distinct pods of the destination; those behind a Service count where they saw the connection themselves.
    destination_pods: i64 => "", "{pod}";
    /// Connections established.
    connections: i64 => "", "{connection}";
    /// Connections that failed to establish.
    failed: i64 => "", "{connection}";
    /// Payload bytes from source to destination, as far as they are known.
    bytes_sent: i64 => "", "By";
    /// Payload bytes from destination to source, as far as they are known.
    bytes_received: i64 => "", "By";
    /// Payload bytes both ways between nodes of different zones, as far as the nodes of both ends are known.
    cross_zone_bytes: i64 => "", "By";
    /// First observation.
    first_seen: TimestampMs => "", "";
    /// Last observation.
    last_seen: TimestampMs => "", "";
}

schemas::table! {
    /// With whom every workload talks: one row per workload, direction, peer, transport and port, with the evidence and
    /// how sure it is. What only failed is in `failed_attempts`.
    SetRow, "communication_sets";

    /// Namespace of the workload.
    namespace: Arc<str> => "", "";
    /// Its kind: Deployment, StatefulSet, DaemonSet, CronJob and so on.
    workload_kind: Arc<str> => "", "";
    /// Its name.
    workload: Arc<str> => "", "";
    /// `ingress` or `egress`, as the workload sees it.
    direction: Arc<str> => "", "";
    /// What the peer is: `pod`, `node`, `external` or `unknown`.
    peer_kind: Arc<str> => "", "";
    /// Namespace of the peer.
    peer_namespace: Option<Arc<str>> => "", "";
    /// Kind of the peer's workload.
    peer_workload_kind: Option<Arc<str>> => "", "";
    /// Name of the peer's workload.
    peer_workload: Option<Arc<str>> => "", "";
    /// Address of the peer; null for a pod.
    peer_address: Option<Arc<str>> => "", "";
    /// `tcp` or `udp`.
    transport: Arc<str> => "", "";
    /// Port of whoever answered.
    port: u16 => "", "";
    /// `learning`, `stabilizing`, `stable` or `decaying`.
    status: Arc<str> => "", "";
    /// Why, in words.
    reason: Arc<str> => "", "";
    /// What became of it: `learned`, `held` for review, `pinned` or `forbidden`.
    fate: Arc<str> => "", "";
    /// Why it is held, pinned or forbidden.
    fate_reason: Option<Arc<str>> => "", "";
    /// `daily`, `weekly` or `monthly`, if it comes back by the calendar.
    recurrence: Option<Arc<str>> => "", "";
    /// Hours in which it was seen.
    seen_hours: i64 => "", "h";
    /// Hours in which it could have been: the workload ran, and was watched.
    observable_hours: i64 => "", "h";
    /// Distinct days (UTC) in which it was seen.
    days: i64 => "", "d";
    /// Distinct pods of the workload.
    pods: i64 => "", "{pod}";
    /// Distinct pods of the peer.
    peer_pods: i64 => "", "{pod}";
    /// Connections established.
    connections: i64 => "", "{connection}";
    /// Connections that failed to establish.
    failed: i64 => "", "{connection}";
    /// Payload bytes that the workload sent.
    bytes_out: i64 => "", "By";
    /// Payload bytes that the workload received.
    bytes_in: i64 => "", "By";
    /// Which ends saw it: `client`, `server` or `both`; null if it is pinned and was never seen.
    seen_by: Option<Arc<str>> => "", "";
    /// A Service was dialled.
    via_service: bool => "", "";
    /// First observation; null if it is pinned and was never seen.
    first_seen: Option<TimestampMs> => "", "";
    /// Last observation.
    last_seen: Option<TimestampMs> => "", "";
}

schemas::table! {
    /// Every workload whose pods ran or talked, with how sure its communication set is.
    WorkloadRow, "workloads";

    /// Namespace.
    namespace: Arc<str> => "", "";
    /// Kind: Deployment, StatefulSet, DaemonSet, CronJob and so on.
    workload_kind: Arc<str> => "", "";
    /// Name.
    workload: Arc<str> => "", "";
    /// Of its set: `learning`, `stabilizing`, `stable` or `decaying`.
    status: Arc<str> => "", "";
    /// Why, in words.
    reason: Arc<str> => "", "";
    /// When the set last changed; null if nothing was learned.
    since: Option<TimestampMs> => "", "";
    /// Edges that are learned or pinned.
    edges: i64 => "", "";
    /// Edges that are held for review.
    held: i64 => "", "";
    /// Distinct pods.
    pods: i64 => "", "{pod}";
    /// Time that its pods ran, by the inventory, summed over pods.
    pod_ms: i64 => "", "ms";
    /// That part of it in which the pod's node was watched.
    observed_ms: i64 => "", "ms";
    /// `observed_ms` over `pod_ms`; null if no pod ran.
    coverage: Option<f64> => "", "1";
    /// Hours in which its pods ran.
    ran_hours: i64 => "", "h";
    /// Those of them that are observable: at least half of the pods' time was watched.
    observable_hours: i64 => "", "h";
    /// Of all that its edges will do in another period of the same length, the part that known edges will do: an
    /// estimate; null if that can't be told.
    completeness: Option<f64> => "", "1";
    /// From where to where it is with 95 %.
    completeness_low: Option<f64> => "", "1";
    /// See completeness_low.
    completeness_high: Option<f64> => "", "1";
    /// Edges that are there and were not seen, at least; null if that can't be told.
    unseen_edges: Option<f64> => "", "";
    /// From where to where that is with 95 %.
    unseen_edges_low: Option<f64> => "", "";
    /// See unseen_edges_low.
    unseen_edges_high: Option<f64> => "", "";
    /// Why completeness can't be told.
    completeness_unknown: Option<Arc<str>> => "", "";
}

/// An end as columns.
fn end(endpoint: &Endpoint) -> EdgeEnd {
    let text = |address: &IpAddr| Some(address.to_string().into());
    let of = |kind: EndKind| EdgeEnd { kind: kind.into(), ..EdgeEnd::default() };
    match endpoint {
        Endpoint::Workload(Workload { namespace, name, kind }) => {
            let [namespace, workload_kind, workload] = [namespace, kind, name].map(|text| Some(Arc::clone(text)));
            EdgeEnd { namespace, workload_kind, workload, ..of(EndKind::Pod) }
        }
        Endpoint::Node { name, address } => EdgeEnd { node: name.clone(), address: text(address), ..of(EndKind::Node) },
        Endpoint::External { address } => EdgeEnd { address: text(address), ..of(EndKind::External) },
        Endpoint::Unknown { address, reason, node } => {
            let (address, node) = (address.as_ref().and_then(text), node.clone());
            EdgeEnd { address, node, unknown_reason: Some(Arc::clone(reason)), ..of(EndKind::Unknown) }
        }
    }
}

impl Sets {
    /// The rows of table `communications`.
    pub(crate) fn communications(&self) -> Vec<CommunicationRow> {
        let row = |(edge, (evidence, fate)): (&Edge, &(Evidence, super::Fate))| {
            let (fate, fate_reason) = fate.told();
            CommunicationRow {
                transport: edge.transport.clone().into(),
                source: end(&edge.source),
                destination: end(&edge.destination),
                port: edge.port,
                fate: fate.into(),
                fate_reason: fate_reason.map(Into::into),
                via_service: evidence.via_service,
                answered: evidence.answered,
                seen_by: evidence.seen_by().into(),
                services: evidence.services.iter().cloned().collect(),
                failures: evidence.failures.iter().cloned().collect(),
                hours: evidence.hours.len() as i64,
                days: evidence.days() as i64,
                source_pods: evidence.source_pods.len() as i64,
                destination_pods: evidence.destination_pods.len() as i64,
                connections: evidence.connections,
                failed: evidence.failed,
                bytes_sent: evidence.bytes_sent,
                bytes_received: evidence.bytes_received,
                cross_zone_bytes: evidence.cross_zone_bytes,
                first_seen: evidence.first_seen,
                last_seen: evidence.last_seen,
            }
        };
        let seen = self.edges.iter().filter(|(_, (evidence, _))| evidence.first_seen <= evidence.last_seen);
        seen.map(row).collect()
    }

    /// The rows of table `communication_sets`.
    pub(crate) fn rows(&self) -> Vec<SetRow> {
        let rows =
            self.workloads.iter().flat_map(|(workload, set)| set.entries.iter().map(move |entry| (workload, entry)));
        rows.filter_map(|(workload, entry)| self.row(workload, entry)).collect()
    }

    fn row(&self, workload: &Workload, entry: &Entry) -> Option<SetRow> {
        let (evidence, fate) = self.edges.get(&entry.edge)?;
        let is_egress = entry.direction == Direction::Egress;
        let peer = if is_egress { &entry.edge.destination } else { &entry.edge.source };
        let peer = end(peer);
        let (fate, fate_reason) = fate.told();
        let pods = (evidence.source_pods.len() as i64, evidence.destination_pods.len() as i64);
        let bytes = (evidence.bytes_sent, evidence.bytes_received);
        let turned = |(source, destination)| if is_egress { (source, destination) } else { (destination, source) };
        let ((pods, peer_pods), (bytes_out, bytes_in)) = (turned(pods), turned(bytes));
        let was_seen = evidence.first_seen <= evidence.last_seen;
        Some(SetRow {
            namespace: Arc::clone(&workload.namespace),
            workload_kind: Arc::clone(&workload.kind),
            workload: Arc::clone(&workload.name),
            direction: entry.direction.as_str().into(),
            peer_kind: peer.kind,
            peer_namespace: peer.namespace,
            peer_workload_kind: peer.workload_kind,
            peer_workload: peer.workload,
            peer_address: peer.address,
            transport: entry.edge.transport.clone().into(),
            port: entry.edge.port,
            status: entry.status.as_str().into(),
            reason: entry.reason.as_str().into(),
            fate: fate.into(),
            fate_reason: fate_reason.map(Into::into),
            recurrence: entry.recurrence.map(|recurrence| recurrence.as_str().into()),
            seen_hours: entry.seen_hours as i64,
            observable_hours: entry.observable_hours as i64,
            days: evidence.days() as i64,
            pods,
            peer_pods,
            connections: evidence.connections,
            failed: evidence.failed,
            bytes_out,
            bytes_in,
            seen_by: was_seen.then(|| evidence.seen_by().into()),
            via_service: evidence.via_service,
            first_seen: was_seen.then_some(evidence.first_seen),
            last_seen: was_seen.then_some(evidence.last_seen),
        })
    }

    /// The rows of table `workloads`.
    pub(crate) fn workload_rows(&self) -> Vec<WorkloadRow> {
        let row = |(workload, set): (&Workload, &Set)| {
            let fates = || set.entries.iter().filter_map(|entry| self.edges.get(&entry.edge)).map(|(_, fate)| fate);
            let time = self.exposure.of(workload);
            let (pod_ms, observed_ms) = time.map(super::exposure::Time::sums).unwrap_or_default();
            let known = |value: fn(&Estimate) -> f64| set.completeness.known().map(value);
            WorkloadRow {
                namespace: Arc::clone(&workload.namespace),
                workload_kind: Arc::clone(&workload.kind),
                workload: Arc::clone(&workload.name),
                status: set.status.as_str().into(),
                reason: set.reason.as_str().into(),
                since: set.since,
                edges: fates().filter(|fate| fate.is_allowed()).count() as i64,
                held: fates().filter(|fate| matches!(fate, super::Fate::Held(_))).count() as i64,
                pods: time.map_or(0, |time| time.pods as i64),
                pod_ms,
                observed_ms,
                coverage: time.and_then(super::exposure::Time::coverage),
                ran_hours: time.map_or(0, |time| time.ran.len() as i64),
                observable_hours: time.map_or(0, |time| time.observable.len() as i64),
                completeness: known(|estimate| estimate.coverage),
                completeness_low: known(|estimate| estimate.coverage_interval.0),
                completeness_high: known(|estimate| estimate.coverage_interval.1),
                unseen_edges: known(|estimate| estimate.unseen),
                unseen_edges_low: known(|estimate| estimate.unseen_interval.0),
                unseen_edges_high: known(|estimate| estimate.unseen_interval.1),
                completeness_unknown: set.completeness.unknown().map(Into::into),
            }
        };
        self.workloads.iter().map(row).collect()
    }
}
