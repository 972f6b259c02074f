//! Connections of which it is not known which end initiated: they were open before the recording, and the kernel did not
//! keep who dialled. What else is known of their ends often says it. Where nothing does, nothing is guessed, and the
//! directions that they could belong to are not closed.

use std::collections::{BTreeMap, BTreeSet};

use schemas::vocabulary::Transport;

use super::{
    decision::{Concerned, Decisions},
    declared::Declared,
};
use crate::communication::{Communications, Direction, Edge, Endpoint, Evidence, Workload};

/// Edges without a direction, by workload and direction that they could belong to, each with how many connections it had at
/// least.
pub(crate) type Undirected = BTreeMap<(Workload, Direction), BTreeMap<Edge, i64>>;

/// A port of a workload.
type Served = BTreeSet<(Workload, Transport, u16)>;

/// Takes edges without a direction out of communications; those whose direction follows from the rest come back with it.
///
/// A person who pins or forbids one of the two edges has said which it is.
pub(super) fn settle(
    communications: &mut Communications,
    declared: &Declared<'_>,
    decisions: &Decisions,
    concerned: &mut Concerned,
) -> Undirected {
    let undirected: Vec<(Edge, Evidence)> = communications
        .extract_if(.., |edge, _| edge.source_port.is_some())
        .filter(|(_, e)| e.is_established())
        .collect();
    if undirected.is_empty() {
        return Undirected::new();
    }
    let served = served(communications);
    let mut unsettled = Undirected::new();
    for (edge, evidence) in undirected {
        let known = |edge: &Edge| {
            communications.get(edge).is_some_and(Evidence::is_established) || decisions.of(edge, concerned).is_some()
        };
        match direct(&edge, known, &served, declared) {
            Some(Direction::Egress) => add(communications, Edge { source_port: None, ..edge }, evidence),
            Some(Direction::Ingress) => add(communications, turned(edge), Evidence::turned(evidence)),
            None => {
                let connections = evidence.max_active.max(evidence.connections).max(evidence.closed);
                for (workload, direction) in possible(&edge) {
                    unsettled.entry((workload, direction)).or_default().insert(edge.clone(), connections);
                }
            }
        }
    }
    unsettled
}

/// Ports at which somebody was seen to reach workloads.
fn served(communications: &Communications) -> Served {
    let seen = communications.iter().filter(|(_, evidence)| evidence.is_established()).filter_map(|(edge, _)| {
        let Endpoint::Workload(workload) = &edge.destination else { return None };
        Some((workload.clone(), edge.transport.known()?, edge.port))
    });
    seen.collect()
}

/// The direction of an edge as its source sees it, from what else is known: the same edge was seen with it, or of the two
/// ports one is served, or declared, and the other is not.
fn direct(
    edge: &Edge,
    mut is_known: impl FnMut(&Edge) -> bool,
    served: &Served,
    declared: &Declared<'_>,
) -> Option<Direction> {
    let own_port = edge.source_port.unwrap_or_default();
    let (out, back) = (Edge { source_port: None, ..edge.clone() }, turned(edge.clone()));
    let serves = |end: &Endpoint, port| match (end, edge.transport.known()) {
        (Endpoint::Workload(workload), Some(transport)) => {
            served.contains(&(workload.clone(), transport, port)) || declared.has(workload, transport, port)
        }
        _ => false,
    };
    match (is_known(&out), is_known(&back)) {
        (true, false) => return Some(Direction::Egress),
        (false, true) => return Some(Direction::Ingress),
        _ => {}
    }
    match (serves(&edge.source, own_port), serves(&edge.destination, edge.port)) {
        (true, false) => Some(Direction::Ingress),
        (false, true) => Some(Direction::Egress),
        _ => None,
    }
}

/// The directions of workloads that an edge could belong to. Of two ports, the one from which the kernel chooses by itself
/// is the client's, where only one of them is such; this decides what is left open, never what is allowed.
fn possible(edge: &Edge) -> Vec<(Workload, Direction)> {
    let (own, other) = (edge.source_port.unwrap_or_default(), edge.port);
    let is_other_chosen = other >= FIRST_EPHEMERAL;
    let is_own_chosen = if own == 0 { !is_other_chosen } else { own >= FIRST_EPHEMERAL };
    let mut possible = Vec::new();
    let directions = [
        (Direction::Ingress, Direction::Egress, is_own_chosen && !is_other_chosen),
        (Direction::Egress, Direction::Ingress, is_other_chosen && !is_own_chosen),
    ];
    for (of_source, of_destination, is_unlikely) in directions {
        if is_unlikely {
            continue;
        }
        for (end, direction) in [(&edge.source, of_source), (&edge.destination, of_destination)] {
            if let Endpoint::Workload(workload) = end {
                possible.push((workload.clone(), direction));
            }
        }
    }
    possible
}

/// The edge the other way round.
fn turned(edge: Edge) -> Edge {
    let port = edge.source_port.unwrap_or_default();
    Edge { source: edge.destination, destination: edge.source, port, own_node: false, source_port: None, ..edge }
}

/// Adds what was seen of an edge by one of its ends. Of connections that both ends saw, the larger counts are taken.
fn add(communications: &mut Communications, edge: Edge, evidence: Evidence) {
    match communications.get_mut(&edge) {
        Some(known) => known.join(evidence),
        None => drop(communications.insert(edge, evidence)),
    }
}

impl Evidence {
    /// What the end that was dialled recorded, if it was taken for the one that dialled.
    fn turned(self) -> Self {
        Self {
            answered: true,
            client_hours: self.server_hours,
            server_hours: self.client_hours,
            source_pods: self.destination_pods,
            destination_pods: self.source_pods,
            source_containers: self.destination_containers,
            destination_containers: self.source_containers,
            bytes_sent: self.bytes_received,
            bytes_received: self.bytes_sent,
            via_service: false,
            services: BTreeSet::new(),
            service_ports: BTreeSet::new(),
            ..self
        }
    }

    /// Takes in what else was recorded of connections that may be the same.
    fn join(&mut self, other: Self) {
        let counts = [self.connections, self.failed, self.closed, self.bytes_sent, self.bytes_received];
        let others = [other.connections, other.failed, other.closed, other.bytes_sent, other.bytes_received];
        self.add(other);
        let larger = |at: usize| counts[at].max(others[at]);
        (self.connections, self.failed, self.closed) = (larger(0), larger(1), larger(2));
        (self.bytes_sent, self.bytes_received) = (larger(3), larger(4));
    }
}

/// The first port that Linux chooses by itself, by default (`net.ipv4.ip_local_port_range`).
pub(super) const FIRST_EPHEMERAL: u16 = 32_768;
