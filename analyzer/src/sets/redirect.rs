//! Ports behind a redirect: a proxy in a pod accepts on its own port what was sent to another one, as the sidecars of
//! service meshes do. Policies are judged outside of the pod, where packets carry the port that was dialled; the socket that
//! accepts has the other one. Who dialled which port is known from clients that were recorded, from what the proxy hands
//! over within its pod, and from what the pod's containers and Services declare.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{index::UnknownReason, vocabulary::Transport};

use super::declared::Declared;
use crate::communication::{Communications, Direction, Edge, Endpoint, Evidence, Workload};

/// What stays within pods of a workload: by transport and port, what was recorded of it.
pub(super) type WithinPods = BTreeMap<Workload, BTreeMap<(Transport, u16), Evidence>>;

/// What is known of redirects.
#[derive(Debug, Default)]
pub(crate) struct Redirects {
    /// By workload and port that its proxy accepts on, the ports that were dialled.
    pub(crate) dialled: BTreeMap<(Workload, u16), BTreeSet<u16>>,
    /// Directions of workloads for whose connections the port that was dialled is not known, with those connections.
    pub(crate) unknown: BTreeMap<(Workload, Direction), BTreeSet<Edge>>,
    /// Workloads whose own connections are taken by a proxy in their pods, so that they are established whatever becomes
    /// of the proxy's.
    pub(crate) intercepting: BTreeSet<Workload>,
}

/// Takes what stays within pods out of communications.
pub(super) fn take_within_pods(communications: &mut Communications) -> WithinPods {
    let mut within = WithinPods::new();
    for (edge, evidence) in communications.extract_if(.., |edge, _| edge.source.is_unknown_as(UnknownReason::WithinPod))
    {
        if let (Endpoint::Workload(workload), Some(transport)) = (edge.destination, edge.transport.known())
            && evidence.is_established()
        {
            within.entry(workload).or_default().insert((transport, edge.port), evidence);
        }
    }
    within
}

/// Puts connections that a proxy accepted on another port under the port that was dialled. Those for which it is not known
/// are taken out.
pub(super) fn settle(communications: &mut Communications, within: &WithinPods, declared: &Declared<'_>) -> Redirects {
    let mut redirects = Redirects::default();
    for (workload, ports) in within {
        // Its own end dialled another address and port.
        let is_taken = |evidence: &Evidence| evidence.client_hours.is_empty() && !evidence.server_hours.is_empty();
        if ports.iter().any(|((transport, _), evidence)| *transport == Transport::Tcp && is_taken(evidence)) {
            redirects.intercepting.insert(workload.clone());
        }
    }
    let mut accepted: BTreeMap<(Workload, u16), Vec<Edge>> = BTreeMap::new();
    let mut others: BTreeMap<Workload, Ports> = BTreeMap::new();
    for (edge, evidence) in communications.iter() {
        let Endpoint::Workload(workload) = &edge.destination else { continue };
        if edge.transport.known() != Some(Transport::Tcp) || !evidence.is_established() || edge.own_node {
            continue;
        }
        let ports = others.entry(workload.clone()).or_default();
        if !evidence.client_hours.is_empty() {
            ports.dialled.entry(edge.source.clone()).or_default().insert(edge.port);
            ports.dialled_by_any.insert(edge.port);
        }
        if !evidence.server_hours.is_empty() {
            ports.accepted.insert(edge.port);
            accepted.entry((workload.clone(), edge.port)).or_default().push(edge.clone());
        }
    }
    for ((workload, port), edges) in accepted {
        let ports = &others[&workload];
        if ports.dialled_by_any.contains(&port) {
            continue;
        }
        let sent = |edge: &Edge| -> BTreeSet<u16> {
            let dialled = ports.dialled.get(&edge.source).into_iter().flatten();
            dialled.copied().filter(|port| !ports.accepted.contains(port)).collect()
        };
        let paired: BTreeSet<u16> = edges.iter().flat_map(sent).collect();
        let handed: BTreeSet<u16> = within.get(&workload).into_iter().flatten().map(|((_, port), _)| *port).collect();
        let of_workload = declared.ports(&workload, Transport::Tcp);
        let own: BTreeSet<u16> = of_workload.iter().copied().filter(|port| !is_of_proxy(*port)).collect();
        let is_named = ACCEPTING_PORTS.contains(&port) && (!of_workload.contains(&port) || !own.is_empty());
        // Something else is served within the pod that visitors were meant to reach, or may be, and nobody reached it.
        let is_meant = |handed: &u16| if own.is_empty() { !is_of_proxy(*handed) } else { own.contains(handed) };
        let is_suspect = !of_workload.contains(&port)
            && handed.iter().any(is_meant)
            && own.union(&handed).all(|port| !ports.accepted.contains(port));
        if paired.is_empty() && !is_named && !is_suspect {
            continue;
        }
        let known: BTreeSet<u16> = if handed.intersection(&own).next().is_some() {
            handed.intersection(&own).copied().collect()
        } else if own.is_empty() {
            handed.into_iter().filter(|port| !is_of_proxy(*port)).collect()
        } else {
            own
        };
        // What some dialled is not all that there is to dial.
        let is_only = known.len() == 1 && paired.is_subset(&known) && (is_named || !paired.is_empty());
        let only = known.first().copied().filter(|_| is_only);
        for edge in edges {
            let Some(evidence) = communications.remove(&edge) else { continue };
            let sent = sent(&edge);
            let targets = if sent.is_empty() { only.into_iter().collect() } else { sent };
            for target in &targets {
                redirects.dialled.entry((workload.clone(), port)).or_default().insert(*target);
                put(communications, Edge { port: *target, ..edge.clone() }, evidence.clone());
            }
            if targets.is_empty() {
                for (direction, workload) in edge.workloads() {
                    redirects.unknown.entry((workload.clone(), direction)).or_default().insert(edge.clone());
                }
            }
        }
    }
    redirects
}

/// Ports of a workload, over TCP.
#[derive(Default)]
struct Ports {
    /// By source, those that its own end dialled.
    dialled: BTreeMap<Endpoint, BTreeSet<u16>>,
    dialled_by_any: BTreeSet<u16>,
    /// Those that the workload's own end accepted on.
    accepted: BTreeSet<u16>,
}

/// Adds what the accepting end saw to what its client saw of the same connections, if it did.
fn put(communications: &mut Communications, edge: Edge, evidence: Evidence) {
    let evidence = Evidence { answered: true, ..evidence };
    match communications.get_mut(&edge) {
        // The counts are those of the client, which knows the port.
        Some(known) if !known.client_hours.is_empty() => {
            known.answered = true;
            known.server_hours |= evidence.server_hours;
            known.hours |= evidence.hours;
            known.destination_pods.extend(evidence.destination_pods);
        }
        Some(known) => known.add(evidence),
        None => drop(communications.insert(edge, evidence)),
    }
}

fn is_of_proxy(port: u16) -> bool {
    ACCEPTING_PORTS.contains(&port) || OTHER_PROXY_PORTS.contains(&port)
}

/// Ports on which the proxies of service meshes accept what comes to a pod, by default: Linkerd's 4143, App Mesh's 15000,
/// Open Service Mesh's 15003, Istio's and Kuma's 15006, Kuma's 15010 for IPv6, Consul's 20000.
const ACCEPTING_PORTS: [u16; 6] = [4143, 15_000, 15_003, 15_006, 15_010, 20_000];
/// Ports on which they take what leaves a pod, or serve health, metrics and administration.
const OTHER_PROXY_PORTS: [u16; 11] = [4140, 4190, 4191, 9901, 15_001, 15_014, 15_020, 15_021, 15_053, 15_090, 19_000];
