//! NetworkPolicies as CiliumNetworkPolicies that mean the same.
//!
//! Cilium knows nodes, its own among them, by entity and never by address; a rule there names either pods, or addresses,
//! or entities; and a direction is closed by the first rule for it, which may name nobody.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use schemas::{index::Index, inventory::ObjectKind};
use serde_json::{Value, json};

use crate::netpol::NAMESPACE_NAME;

/// The addresses that are nodes'.
pub(crate) struct Nodes(BTreeSet<IpAddr>);

impl Nodes {
    pub(crate) fn new(index: &Index) -> Self {
        let addresses = index.latest(ObjectKind::Node).flat_map(|(node, _)| &node.addresses);
        Self(addresses.filter_map(|address| address.parse().ok()).collect())
    }

    fn has_one_in(&self, block: &IPBlock) -> bool {
        let Ok(block) = block.cidr.parse::<IpNet>() else { return false };
        block.prefix_len() > 0 && self.0.range(block.network()..=block.broadcast()).next().is_some()
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
    let (mut endpoints, mut blocks, mut entities) = (Vec::new(), Vec::new(), BTreeSet::new());
    for peer in peers.iter().flatten() {
        match &peer.ip_block {
            Some(block) if nodes.has_one_in(block) => entities.extend(["host", "remote-node"]),
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
