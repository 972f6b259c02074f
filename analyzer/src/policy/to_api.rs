//! Rules to policies, as the API has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicySpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{
    rule::{Peer, Port, Rule, Rules, api_ports, shortest},
    selector::non_empty,
};
use crate::{
    capture::Names,
    communication::{Direction, Edge, PerDirection},
    netpol::marks,
};

/// Whom a policy is about.
pub(super) struct Subject<'s> {
    pub(super) name: &'s str,
    pub(super) namespace: &'s Arc<str>,
    pub(super) selector: LabelSelector,
}

/// A policy of some directions, and what was observed for each of its rules.
pub(super) fn policy<'a>(
    subject: Subject<'_>,
    rules: &PerDirection<Rules<'a>>,
    directions: &[Direction],
    annotations: BTreeMap<String, String>,
) -> (NetworkPolicy, Vec<(Direction, BTreeSet<&'a Edge>)>) {
    let Subject { name, namespace, selector } = subject;
    let mut observed = Vec::new();
    let mut list = |direction: Direction| -> Vec<_> {
        let rules = Some(&rules[direction]).filter(|_| directions.contains(&direction));
        let mut written = Vec::new();
        for Rule { ports, peers } in rules.map(shortest).unwrap_or_default() {
            let edges = rules.into_iter().flatten().filter(|(peer, _)| peers.contains(peer)).flat_map(|(_, of)| of);
            let edges = edges.filter(|(port, _)| ports.contains(port)).flat_map(|(_, edges)| edges.iter().copied());
            observed.push((direction, edges.collect()));
            let peers = peers.iter().map(|peer| peer.to_api(namespace)).collect();
            written.push((Some(peers), Some(api_ports(&ports))));
        }
        written
    };
    let ingress = list(Direction::Ingress).into_iter().map(|(from, ports)| NetworkPolicyIngressRule { from, ports });
    let ingress = non_empty(ingress.collect());
    let egress = list(Direction::Egress).into_iter().map(|(to, ports)| NetworkPolicyEgressRule { to, ports });
    let egress = non_empty(egress.collect());
    let types = directions.iter().map(|direction| match direction {
        Direction::Ingress => "Ingress".into(),
        Direction::Egress => "Egress".into(),
    });
    let policy = NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_string()),
            labels: Some(marks()),
            annotations: if annotations.is_empty() { None } else { Some(annotations) },
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector),
            ingress,
            egress,
            policy_types: Some(types.collect()),
        }),
    };
    (policy, observed)
}

/// Takes some peers' ports out of rules.
pub(super) fn take<'a>(rules: &mut Rules<'a>, wanted: &BTreeSet<(Peer, Port)>) -> Rules<'a> {
    let mut taken = Rules::new();
    for (peer, port) in wanted {
        if let Some(edges) = rules.get_mut(peer).and_then(|ports| ports.remove(port)) {
            taken.entry(peer.clone()).or_default().insert(*port, edges);
        }
    }
    rules.retain(|_, ports| !ports.is_empty());
    taken
}

pub(super) fn add<'a>(rules: &mut Rules<'a>, more: Rules<'a>) {
    for (peer, ports) in more {
        let known = rules.entry(peer).or_default();
        for (port, edges) in ports {
            known.entry(port).or_default().extend(edges);
        }
    }
}

/// The names that were seen for the blocks of rules.
pub(super) fn names_of(rules: &PerDirection<Rules<'_>>, names: &Names) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for peer in rules.values().flat_map(BTreeMap::keys) {
        let Peer::Block { cidr, is_node: false } = peer else { continue };
        let within = names.range(cidr.network()..=cidr.broadcast()).flat_map(|(_, names)| names.iter().cloned());
        let within: BTreeSet<String> = within.collect();
        if !within.is_empty() {
            found.insert(cidr.to_string(), within);
        }
    }
    found
}
