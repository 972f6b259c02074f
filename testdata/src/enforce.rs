//! NetworkPolicies in force in a lab: nftables in every pod's own network namespace, as a network plugin would have it.
//!
//! For tests. What policies mean is put down here once more, on purpose: it has nothing of the analyzer in it.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::lab::{Lab, NODE_IPV4, NODE_IPV6, Subject};

/// Puts policies, as YAML documents, in force.
///
/// # Errors
/// They are no policies, or nftables refuses.
pub fn enforce(lab: &mut Lab, policies: &str) -> Result<()> {
    let documents = serde_yaml::Deserializer::from_str(policies).map(Value::deserialize);
    let policies = documents.collect::<Result<Vec<_>, _>>().context("read the policies")?;
    let subjects = lab.subjects();
    for subject in &subjects {
        let rules = rules(subject, &subjects, &policies)?;
        lab.filter(subject.pod, &rules)?;
    }
    Ok(())
}

/// The rules of a pod: what is of a connection that was let through passes, and so does all from and to its own node.
fn rules(subject: &Subject, subjects: &[Subject], policies: &[Value]) -> Result<String> {
    let mut text = String::from("add table inet policies\nflush table inet policies\n");
    for (direction, hook, way, side, device) in
        [("ingress", "input", "from", "saddr", "iif"), ("egress", "output", "to", "daddr", "oif")]
    {
        let is_about = |policy: &&Value| {
            let types = policy["spec"]["policyTypes"].as_array();
            let has_type =
                types.into_iter().flatten().filter_map(Value::as_str).any(|t| t.eq_ignore_ascii_case(direction));
            has_type
                && policy["metadata"]["namespace"] == subject.namespace.as_str()
                && selects(&policy["spec"]["podSelector"], &subject.labels)
        };
        let isolating: Vec<&Value> = policies.iter().filter(is_about).collect();
        if isolating.is_empty() {
            continue;
        }
        // After the translation of Services, which is at -100.
        writeln!(text, "add chain inet policies {direction} {{ type filter hook {hook} priority 0; }}")?;
        let mut add = |rule: String| writeln!(text, "add rule inet policies {direction} {rule}");
        add(format!("{device} lo accept"))?;
        add("ct state established,related accept".into())?;
        add("meta l4proto ipv6-icmp accept".into())?;
        add(format!("ip {side} {NODE_IPV4} accept"))?;
        add(format!("ip6 {side} {NODE_IPV6} accept"))?;
        for policy in isolating {
            for rule in policy["spec"][direction].as_array().into_iter().flatten() {
                let peers =
                    rule[way].as_array().into_iter().flatten().flat_map(|peer| addresses(peer, policy, subjects));
                for (family, block, except) in peers {
                    for port in rule["ports"].as_array().into_iter().flatten() {
                        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
                        let number = port["port"].as_u64().context("a port has a number")?;
                        let except = except.iter().map(|block| format!("{family} {side} != {block} "));
                        let except: String = except.collect();
                        add(format!("{family} {side} {block} {except}{protocol} dport {number} accept"))?;
                    }
                }
            }
        }
        add("drop".into())?;
    }
    Ok(text)
}

/// Family and block of everything that a peer stands for, with what is excepted.
fn addresses(peer: &Value, policy: &Value, subjects: &[Subject]) -> Vec<(&'static str, String, Vec<String>)> {
    let family = |text: &str| if text.contains(':') { "ip6" } else { "ip" };
    if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
        let except = peer["ipBlock"]["except"].as_array().into_iter().flatten().filter_map(Value::as_str);
        return vec![(family(cidr), cidr.to_owned(), except.map(str::to_owned).collect())];
    }
    let is_named = |subject: &&Subject| {
        let in_namespace = match peer.get("namespaceSelector") {
            Some(selector) => {
                selects(selector, &serde_json::json!({ "kubernetes.io/metadata.name": subject.namespace }))
            }
            None => policy["metadata"]["namespace"] == subject.namespace.as_str(),
        };
        in_namespace && peer.get("podSelector").is_none_or(|selector| selects(selector, &subject.labels))
    };
    let addresses = subjects.iter().filter(is_named).flat_map(|subject| subject.addresses);
    addresses.map(|address| (if address.is_ipv4() { "ip" } else { "ip6" }, address.to_string(), Vec::new())).collect()
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let mut wanted = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    wanted.all(|(key, value)| labels[key] == *value)
        && expressions.all(|expression| {
            let value = &labels[expression["key"].as_str().unwrap_or_default()];
            let is_listed = expression["values"].as_array().is_some_and(|values| values.contains(value));
            match expression["operator"].as_str() {
                Some("In") => is_listed,
                Some("NotIn") => !is_listed,
                Some("Exists") => !value.is_null(),
                _ => value.is_null(),
            }
        })
}
