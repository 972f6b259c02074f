//! Connections of sockets that belong to no known pod, with addresses that are none of the cluster's: those of networks
//! within pods, as containers in a pod have (docker in docker, runners of CI). On the wire they are the pod's. Whose they
//! are shows where the other end saw the pod; otherwise they may be of any pod of their node.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;
use schemas::{
    index::{Index, UnknownReason},
    inventory::ObjectKind,
};

use crate::communication::{Communications, Direction, Edge, Endpoint, Evidence, Workload};

/// Connections that may belong to a direction of a workload, and the hours in which there were any.
pub(crate) type Unattributed = BTreeMap<(Workload, Direction), (RoaringBitmap, BTreeSet<Edge>)>;

/// Finds whose the connections of sockets of no known pod may be.
pub(super) fn find(communications: &Communications, index: &Index) -> Unattributed {
    let ends: Vec<(Direction, &Edge, &Evidence)> = communications
        .iter()
        .filter(|(_, evidence)| evidence.is_established())
        .flat_map(|(edge, evidence)| {
            let is_within = |direction: &Direction| network_within(edge.ends(*direction).0).is_some();
            Direction::ALL.into_iter().filter(is_within).map(move |direction| (direction, edge, evidence))
        })
        .collect();
    if ends.is_empty() {
        return Unattributed::new();
    }
    let by_node = workloads_by_node(index);
    // Whom others saw in place of a network within a pod: that network, and the workloads.
    let mut seen: BTreeMap<(Direction, &Endpoint), BTreeSet<&Workload>> = BTreeMap::new();
    for (direction, edge, _) in &ends {
        let (own, other) = edge.ends(*direction);
        let Some(on_node) = network_within(own).and_then(|node| by_node.get(node)) else { continue };
        for (same, evidence) in communications.iter().filter(|(same, _)| same.transport == edge.transport) {
            let (end, same_other) = same.ends(*direction);
            let [own_hours, other_hours] = [*direction, direction.opposite()].map(|of| evidence.hours_of(of));
            let is_port = *direction == Direction::Ingress || same.port == edge.port;
            if let Endpoint::Workload(workload) = end
                && is_port
                && same_other == other
                && own_hours.is_empty()
                && !other_hours.is_empty()
                && on_node.contains(workload)
            {
                seen.entry((*direction, own)).or_default().insert(workload);
            }
        }
    }
    let mut unattributed = Unattributed::new();
    for (direction, edge, evidence) in &ends {
        let (own, _) = edge.ends(*direction);
        let on_node = network_within(own).and_then(|node| by_node.get(node)).into_iter().flatten();
        let whose: Vec<&Workload> = match seen.get(&(*direction, own)) {
            Some(seen) => seen.iter().copied().collect(),
            None => on_node.collect(),
        };
        for workload in whose {
            let (hours, edges) = unattributed.entry((workload.clone(), *direction)).or_default();
            *hours |= &evidence.hours;
            edges.insert((*edge).clone());
        }
    }
    unattributed
}

/// Whether an edge of a workload is one of those that containers of its pods, in a network of their own, are taken to have.
pub(super) fn explains(unattributed: &Unattributed, workload: &Workload, direction: Direction, edge: &Edge) -> bool {
    let is_same = |other: &Edge| {
        let is_port = direction == Direction::Ingress || other.port == edge.port;
        is_port && other.transport == edge.transport && other.ends(direction).1 == edge.ends(direction).1
    };
    unattributed.get(&(workload.clone(), direction)).is_some_and(|(_, edges)| edges.iter().any(is_same))
}

/// The node of a socket in a network within some pod; `None` for other ends.
fn network_within(end: &Endpoint) -> Option<&str> {
    match end {
        Endpoint::Unknown { node: Some(node), .. } if end.is_unknown_as(UnknownReason::UnmappedSocket) => Some(node),
        _ => None,
    }
}

/// The workloads with pods on each node that have a network of their own.
fn workloads_by_node(index: &Index) -> BTreeMap<&str, BTreeSet<Workload>> {
    let mut by_node: BTreeMap<&str, BTreeSet<Workload>> = BTreeMap::new();
    for (pod, _) in index.intervals(ObjectKind::Pod).filter(|(pod, _)| pod.host_network != Some(true)) {
        if let Some(node) = pod.object_node.as_deref() {
            by_node.entry(node).or_default().insert(Workload::of(pod, index));
        }
    }
    by_node
}
