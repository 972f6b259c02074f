//! NetworkPolicies as CiliumNetworkPolicies that mean the same.
//!
//! Cilium knows nodes, its own among them, by entity and never by address; a rule there names either pods, or addresses,
//! or entities; and a direction is closed by the first rule for it, which may name nobody.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use schemas::{index::Index, inventory::ObjectKind};
use serde_json::{Value, json};

use super::locality::is_link_local;
use crate::netpol::NAMESPACE_NAME;

/// The addresses that are nodes'.
#[derive(Default)]
pub(crate) struct Nodes {
    /// By which nodes are known to each other.
    of_any: BTreeSet<IpAddr>,
    /// Those that every node has, or may have: they stand for a pod's own node, as that of a local resolver does.
    of_own: BTreeSet<IpAddr>,
}

impl Nodes {
    /// Those that the inventory names, and those that were seen to be nodes'.
    pub(crate) fn new(index: &Index, seen: impl Iterator<Item = IpAddr>) -> Self {
        let kinds = [ObjectKind::Node, ObjectKind::NodeInterfaces];
        let named = kinds.into_iter().flat_map(|kind| index.latest(kind)).flat_map(|(node, _)| &node.addresses);
        let services = index.latest(ObjectKind::Service).flat_map(|(service, _)| &service.addresses);
        let parse = |address: &Arc<str>| address.parse().ok();
        let services: BTreeSet<IpAddr> = services.filter_map(parse).collect();
        let is_own = |address: &IpAddr| is_link_local(*address) || services.contains(address);
        let (of_own, of_any) = named.filter_map(parse).chain(seen).partition(is_own);
        Self { of_any, of_own }
    }

    /// Which nodes a block stands for, as entities.
    fn entities(&self, block: &IPBlock) -> &'static [&'static str] {
        let Ok(block) = block.cidr.parse::<IpNet>() else { return &[] };
        let has = |known: &BTreeSet<IpAddr>| known.range(block.network()..=block.broadcast()).next().is_some();
        match () {
            () if block.prefix_len() == 0 => &[],
            () if has(&self.of_any) => &["host", "remote-node"],
            () if has(&self.of_own) => &["host"],
            () => &[],
        }
    }
}

/// A CiliumNetworkPolicy (`cilium.io/v2`) that denies the same directions and allows the same in them.
pub(crate) fn translate(policy: &NetworkPolicy, nodes: &Nodes) -> Value {
    let spec = policy.spec.clone().unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    let ingress = spec.ingress.iter().flatten().map(|rule| (&rule.from, &rule.ports));
    let egress = spec.egress.iter().flatten().map(|rule| (&rule.to, &rule.ports));
    let ingress: Vec<Value> = ingress.flat_map(|(peers, ports)| rules("from", peers, ports, nodes)).collect();
    let egress: Vec<Value> = egress.flat_map(|(peers, ports)| rules("to", peers, ports, nodes)).collect();
    let mut translated = json!({ "endpointSelector": selector(&spec.pod_selector.unwrap_or_default()) });
    for (policy_type, direction, rules) in [("Ingress", "ingress", ingress), ("Egress", "egress", egress)] {
        if types.iter().any(|known| known == policy_type) {
            translated[direction] = if rules.is_empty() { json!([{}]) } else { rules.into() };
        }
    }
    json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": policy.metadata,
        "spec": translated,
    })
}

/// A rule as one for each kind of peer.
fn rules(
    way: &str,
    peers: &Option<Vec<NetworkPolicyPeer>>,
    ports: &Option<Vec<NetworkPolicyPort>>,
    nodes: &Nodes,
) -> Vec<Value> {
    let (mut endpoints, mut blocks, mut entities) = (Vec::new(), Vec::new(), BTreeSet::<&str>::new());
    for peer in peers.iter().flatten() {
        match &peer.ip_block {
            Some(block) if !nodes.entities(block).is_empty() => entities.extend(nodes.entities(block)),
            Some(block) => blocks.push(match &block.except {
                Some(except) => json!({ "cidr": block.cidr, "except": except }),
                None => json!({ "cidr": block.cidr }),
            }),
            None => endpoints.push(endpoint(peer)),
        }
    }
    let kinds = [("Endpoints", json!(endpoints)), ("CIDRSet", json!(blocks)), ("Entities", json!(entities))];
    let named = kinds.into_iter().filter(|(_, peers)| peers.as_array().is_some_and(|peers| !peers.is_empty()));
    let rule = |(kind, peers): (&str, Value)| {
        let mut rule = json!({ format!("{way}{kind}"): peers });
        if let Some(ports) = ports {
            let part = |ports: &[NetworkPolicyPort]| json!({ "ports": ports.iter().map(port).collect::<Vec<_>>() });
            rule["toPorts"] = ports.chunks(PORTS).map(part).collect();
        }
        rule
    };
    named.map(rule).collect()
}

fn endpoint(peer: &NetworkPolicyPeer) -> Value {
    let mut endpoint = selector(&peer.pod_selector.clone().unwrap_or_default());
    // Only by its name, which is how ours name namespaces.
    let namespace = peer.namespace_selector.as_ref().and_then(|selector| selector.match_labels.as_ref());
    if let Some(name) = namespace.and_then(|labels| labels.get(NAMESPACE_NAME)) {
        endpoint["matchLabels"]["k8s:io.kubernetes.pod.namespace"] = json!(name);
    }
    endpoint
}

fn selector(selector: &LabelSelector) -> Value {
    serde_json::to_value(selector).unwrap_or_else(|_| json!({}))
}

fn port(port: &NetworkPolicyPort) -> Value {
    let number = match &port.port {
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(name)) => name.clone(),
        None => "0".into(),
    };
    json!({ "port": number, "protocol": port.protocol.as_deref().unwrap_or("TCP") })
}

/// Ports of one list, at most (the schema's `maxItems`).
const PORTS: usize = 40;
