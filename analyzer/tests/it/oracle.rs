//! What NetworkPolicies mean, by the letter of the API and one pod at a time: to judge what the program writes without any
//! of the program's own code.

use std::{collections::BTreeMap, net::IpAddr};

use serde_yaml::Value;

/// A pod, or an address outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Only of what is no pod.
    pub(crate) address: Option<IpAddr>,
}

/// Whether policies let a connection pass.
pub(crate) fn allows(policies: &[Value], from: &End, to: &End, protocol: &str, port: u16) -> bool {
    side(policies, "egress", from, to, protocol, port) && side(policies, "ingress", to, from, protocol, port)
}

/// Whether any policy isolates a pod in a direction.
pub(crate) fn isolates(policies: &[Value], direction: &str, pod: &End) -> bool {
    policies.iter().any(|policy| is_about(policy, direction, pod))
}

fn side(policies: &[Value], direction: &str, own: &End, peer: &End, protocol: &str, port: u16) -> bool {
    if own.address.is_some() || !isolates(policies, direction, own) {
        return true;
    }
    policies.iter().filter(|policy| is_about(policy, direction, own)).any(|policy| {
        let way = if direction == "ingress" { "from" } else { "to" };
        policy["spec"][direction].as_sequence().into_iter().flatten().any(|rule| {
            let is_peer = rule[way].as_sequence().into_iter().flatten().any(|named| is_named(policy, named, peer));
            let has_port = rule["ports"].as_sequence().into_iter().flatten().any(|named| {
                named["protocol"].as_str() == Some(protocol) && named["port"].as_u64() == Some(u64::from(port))
            });
            is_peer && has_port
        })
    })
}

fn is_about(policy: &Value, direction: &str, pod: &End) -> bool {
    let types = policy["spec"]["policyTypes"].as_sequence().into_iter().flatten();
    let has_type = types.filter_map(Value::as_str).any(|name| name.eq_ignore_ascii_case(direction));
    has_type
        && policy["metadata"]["namespace"].as_str() == Some(&pod.namespace)
        && selects(&policy["spec"]["podSelector"], &pod.labels)
}

fn is_named(policy: &Value, named: &Value, peer: &End) -> bool {
    if let Some(cidr) = named["ipBlock"]["cidr"].as_str() {
        let within = |cidr: &Value, address: IpAddr| contains(cidr.as_str().expect("a CIDR"), address);
        let except = || named["ipBlock"]["except"].as_sequence().into_iter().flatten();
        return peer
            .address
            .is_some_and(|address| contains(cidr, address) && !except().any(|block| within(block, address)));
    }
    let own_namespace = policy["metadata"]["namespace"].as_str() == Some(&peer.namespace);
    let in_namespace = match named.get("namespaceSelector") {
        Some(selector) => {
            let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), peer.namespace.clone())]);
            selects(selector, &labels)
        }
        None => own_namespace,
    };
    peer.address.is_none()
        && in_namespace
        && named.get("podSelector").is_none_or(|selector| selects(selector, &peer.labels))
}

fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    let mut wanted = selector["matchLabels"].as_mapping().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_sequence().into_iter().flatten();
    wanted.all(|(key, value)| labels.get(key.as_str().expect("a key")).map(String::as_str) == value.as_str())
        && expressions.all(|expression| {
            let value = labels.get(expression["key"].as_str().expect("a key"));
            let mut values = expression["values"].as_sequence().into_iter().flatten().filter_map(Value::as_str);
            match expression["operator"].as_str() {
                Some("In") => value.is_some_and(|value| values.any(|wanted| wanted == value)),
                Some("NotIn") => value.is_none_or(|value| values.all(|other| other != value)),
                Some("Exists") => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// Whether a block holds an address: the same first bits.
pub(crate) fn contains(cidr: &str, address: IpAddr) -> bool {
    let (network, bits) = cidr.split_once('/').expect("a CIDR");
    let bits: u32 = bits.parse().expect("a prefix length");
    match (network.parse().expect("an address"), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differ = u32::from(network) ^ u32::from(address);
            bits == 0 || differ >> (32 - bits) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differ = u128::from(network) ^ u128::from(address);
            bits == 0 || differ >> (128 - bits) == 0
        }
        _ => false,
    }
}
