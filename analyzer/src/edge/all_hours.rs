//! Every edge over all hours: the evidence that communication sets are learned from.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use schemas::{table::TimestampMs, vocabulary::EndKind};
use smallvec::SmallVec;

use super::{
    dictionary::Texts,
    fold::{EdgeKey, EndKey, Folder},
    hour::{HourEdges, insert},
};
use crate::communication::{Communications, Edge, Endpoint, Evidence, Workload};

/// The edges that one worker has met, by its own numbers.
#[derive(Default)]
pub(super) struct Tally {
    edges: Vec<Option<Box<Sums>>>,
}

/// The evidence of an edge, by numbers of texts.
#[derive(Default)]
struct Sums {
    evidence: Evidence,
    services: BTreeSet<u32>,
    failures: BTreeSet<u32>,
    source_pods: Pods,
    destination_pods: Pods,
    source_containers: Pods,
    destination_containers: Pods,
}

/// Pods, by numbers of their UIDs, sorted. There are few, and they are looked at for every edge and hour.
type Pods = SmallVec<[u32; 8]>;

impl Tally {
    /// Adds the edges of an hour.
    pub(super) fn add(&mut self, folder: &Folder<'_>, hour: &HourEdges) {
        self.edges.resize_with(folder.edges.values.len(), || None);
        let scanning = scanning(folder, hour);
        let number = u32::try_from(hour.number).unwrap_or_default();
        for edge in &hour.edges {
            let sums = self.edges[edge.edge as usize].get_or_insert_default();
            let counts = edge.counts();
            let Sums { evidence, services, failures, source_pods, destination_pods, .. } = &mut **sums;
            evidence.via_service |= edge.via_service;
            evidence.answered |= edge.answered;
            if edge.seen_by_client {
                evidence.client_hours.insert(number);
            }
            if edge.seen_by_server {
                evidence.server_hours.insert(number);
            }
            if edge.via_service {
                evidence.service_ports.extend(&edge.dialled_ports);
            }
            evidence.connections += counts.connections;
            evidence.failed += counts.failed;
            evidence.closed += counts.closed;
            evidence.max_active = evidence.max_active.max(counts.max_active);
            evidence.bytes_sent += counts.bytes_sent.unwrap_or_default();
            evidence.bytes_received += counts.bytes_received.unwrap_or_default();
            evidence.cross_zone_bytes += counts.cross_zone_bytes;
            evidence.first_seen = evidence.first_seen.min(TimestampMs(edge.first_seen));
            evidence.last_seen = evidence.last_seen.max(TimestampMs(edge.last_seen));
            if counts.is_established() {
                evidence.hours.insert(number);
                if scanning.contains(&folder.edges.values[edge.edge as usize].source) {
                    evidence.scan_hours.insert(number);
                }
            }
            services.extend(&edge.services);
            failures.extend(&edge.failures);
            edge.source_pods.iter().for_each(|pod| insert(source_pods, *pod));
            edge.destination_pods.iter().for_each(|pod| insert(destination_pods, *pod));
            edge.source_containers.iter().for_each(|name| insert(&mut sums.source_containers, *name));
            edge.destination_containers.iter().for_each(|name| insert(&mut sums.destination_containers, *name));
        }
    }

    /// What was met, by name.
    pub(super) fn finish(self, folder: &Folder<'_>) -> Communications {
        let texts = &folder.texts;
        let all = |numbers: &mut dyn Iterator<Item = u32>| -> BTreeSet<Arc<str>> {
            numbers.filter_map(|number| texts.text(number).cloned()).collect()
        };
        let ends: Vec<Endpoint> = folder.ends.values.iter().map(|end| endpoint(texts, *end)).collect();
        let met = self.edges.into_iter().zip(&folder.edges.values);
        let communication = |(sums, key): (Option<Box<Sums>>, &EdgeKey)| {
            let Sums {
                evidence,
                services,
                failures,
                source_pods,
                destination_pods,
                source_containers,
                destination_containers,
            } = *sums?;
            let edge = Edge {
                source: ends[key.source as usize].clone(),
                destination: ends[key.destination as usize].clone(),
                transport: texts.text(key.transport).cloned().unwrap_or_default().into(),
                port: key.port,
                own_node: key.own_node,
                source_port: key.source_port,
            };
            let evidence = Evidence {
                services: all(&mut services.into_iter()),
                failures: all(&mut failures.into_iter()),
                source_pods: all(&mut source_pods.into_iter()),
                destination_pods: all(&mut destination_pods.into_iter()),
                source_containers: all(&mut source_containers.into_iter()),
                destination_containers: all(&mut destination_containers.into_iter()),
                ..evidence
            };
            Some((edge, evidence))
        };
        let mut communications = Communications::new();
        for (edge, evidence) in met.filter_map(communication) {
            // Two ends that no policy can tell apart may be one here.
            merge(&mut communications, edge, evidence);
        }
        communications
    }
}

/// Adds an edge to those that are known.
pub(super) fn merge(communications: &mut Communications, edge: Edge, evidence: Evidence) {
    match communications.get_mut(&edge) {
        Some(known) => known.add(evidence),
        None => {
            communications.insert(edge, evidence);
        }
    }
}

/// The sources that scan in an hour: they try many edges, and almost all fail.
fn scanning(folder: &Folder<'_>, hour: &HourEdges) -> BTreeSet<u32> {
    let mut tried: HashMap<u32, (usize, usize)> = HashMap::new();
    for edge in &hour.edges {
        let (all, failed) = tried.entry(folder.edges.values[edge.edge as usize].source).or_default();
        *all += 1;
        *failed += usize::from(!edge.counts().is_established());
    }
    let is_scan = |(all, failed): (usize, usize)| failed >= SCAN_EDGES && failed * 100 >= all * SCAN_FAILED_PERCENT;
    tried.into_iter().filter(|(_, tried)| is_scan(*tried)).map(|(source, _)| source).collect()
}

fn endpoint(texts: &Texts, end: EndKey) -> Endpoint {
    let EndKey { kind, namespace, workload_kind, workload, node, address, unknown_reason } = end;
    let text = |number| texts.text(number).cloned();
    let address = text(address).and_then(|address| address.parse::<IpAddr>().ok());
    match (text(kind).and_then(|kind| kind.parse().ok()), text(namespace), text(workload), text(workload_kind), address)
    {
        (Some(EndKind::Pod), Some(namespace), Some(name), Some(kind), _) => {
            Endpoint::Workload(Workload { namespace, name, kind })
        }
        (Some(EndKind::Node), .., Some(address)) => Endpoint::Node { name: text(node), address },
        (Some(EndKind::External), .., Some(address)) => Endpoint::External { address },
        (.., address) => {
            let reason = text(unknown_reason).unwrap_or_else(|| "no_workload".into());
            Endpoint::Unknown { address, reason, node: text(node) }
        }
    }
}

/// Edges of one source in one hour that have to fail to make it a scan.
const SCAN_EDGES: usize = 20;
/// Of the edges that a scanning source tries in an hour, so many fail.
const SCAN_FAILED_PERCENT: usize = 80;
