//! What must never be written is refused, whatever made it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::Written;
use crate::netpol::is_dns_label;

/// A rule or policy that must not be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("policy `{name}` has no namespace, or one that is no DNS label")]
    NoNamespace { name: String },
    #[error("policy `{name}` selects all pods of its namespace")]
    SelectsAll { name: String },
    #[error("policy `{name}` has a rule without a peer or without a port")]
    OpenRule { name: String },
    #[error("policy name `{name}` is not a DNS label, or not unique in its namespace")]
    BadName { name: String },
}

/// Refuses policies that would select or allow more than intended.
///
/// # Errors
/// One of them does: a defect of ours.
pub(super) fn check(policies: &[Written<'_>]) -> Result<(), PolicyError> {
    let mut taken = BTreeSet::new();
    for Written { workload, policy, .. } in policies {
        let NetworkPolicy { metadata, spec } = policy;
        let name = || metadata.name.clone().unwrap_or_default();
        if !metadata.namespace.as_deref().is_some_and(is_dns_label) {
            return Err(PolicyError::NoNamespace { name: name() });
        }
        if !is_dns_label(&name()) || !taken.insert((&metadata.namespace, name())) {
            return Err(PolicyError::BadName { name: name() });
        }
        let Some(spec) = spec else { return Err(PolicyError::SelectsAll { name: name() }) };
        // What is of a whole namespace says so.
        if workload.is_some() && spec.pod_selector.as_ref().is_none_or(selects_all) {
            return Err(PolicyError::SelectsAll { name: name() });
        }
        let ingress = spec.ingress.iter().flatten().map(|rule| (&rule.from, &rule.ports));
        let egress = spec.egress.iter().flatten().map(|rule| (&rule.to, &rule.ports));
        for (peers, ports) in ingress.chain(egress) {
            let no_peers = peers.as_ref().is_none_or(|peers| peers.is_empty() || peers.iter().any(is_open));
            let no_ports =
                ports.as_ref().is_none_or(|ports| ports.is_empty() || ports.iter().any(|p| p.port.is_none()));
            if no_peers || no_ports {
                return Err(PolicyError::OpenRule { name: name() });
            }
        }
    }
    Ok(())
}

fn is_open(peer: &NetworkPolicyPeer) -> bool {
    peer.ip_block.is_none() && peer.pod_selector.as_ref().is_none_or(selects_all)
}

fn selects_all(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::{NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec};

    use super::*;
    use crate::communication::Workload;

    const SOUND: &str =
        "{metadata: {name: web-network, namespace: demo}, spec: {podSelector: {matchLabels: {app: web}},
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 80, protocol: TCP}]}]}}";

    fn sound() -> NetworkPolicy {
        serde_yaml::from_str(SOUND).expect("a policy")
    }

    fn checked(policies: Vec<NetworkPolicy>) -> Result<(), PolicyError> {
        let workload = Workload { namespace: "demo".into(), name: "web".into(), kind: "Deployment".into() };
        let written = |policy| Written { workload: Some(workload.clone()), policy, rules: Vec::new() };
        check(&policies.into_iter().map(written).collect::<Vec<_>>())
    }

    fn spec(policy: &mut NetworkPolicy) -> &mut NetworkPolicySpec {
        policy.spec.as_mut().expect("it has one")
    }

    fn rule(policy: &mut NetworkPolicy) -> &mut NetworkPolicyIngressRule {
        &mut spec(policy).ingress.as_mut().expect("it has ingress")[0]
    }

    #[test]
    fn a_sound_policy_passes() {
        assert_eq!(checked(vec![sound()]), Ok(()));
    }

    #[test]
    fn open_or_homeless_policies_are_refused() {
        let broken = |change: fn(&mut NetworkPolicy)| {
            let mut policy = sound();
            change(&mut policy);
            checked(vec![policy]).expect_err("it is not safe")
        };
        let name = || "web-network".to_owned();
        assert_eq!(broken(|p| p.metadata.namespace = Some(String::new())), PolicyError::NoNamespace { name: name() });
        assert_eq!(broken(|p| p.metadata.namespace = None), PolicyError::NoNamespace { name: name() });
        assert_eq!(
            broken(|p| spec(p).pod_selector = Some(LabelSelector::default())),
            PolicyError::SelectsAll { name: name() }
        );
        assert_eq!(broken(|p| spec(p).pod_selector = None), PolicyError::SelectsAll { name: name() });
        assert_eq!(broken(|p| rule(p).from = None), PolicyError::OpenRule { name: name() });
        assert_eq!(broken(|p| rule(p).from = Some(vec![])), PolicyError::OpenRule { name: name() });
        assert_eq!(
            broken(|p| rule(p).from = Some(vec![NetworkPolicyPeer::default()])),
            PolicyError::OpenRule { name: name() }
        );
        assert_eq!(broken(|p| rule(p).ports = None), PolicyError::OpenRule { name: name() });
        assert_eq!(
            broken(|p| rule(p).ports = Some(vec![NetworkPolicyPort::default()])),
            PolicyError::OpenRule { name: name() }
        );
        assert_eq!(broken(|p| p.metadata.name = Some("Web_1".into())), PolicyError::BadName { name: "Web_1".into() });
        assert_eq!(checked(vec![sound(), sound()]), Err(PolicyError::BadName { name: name() }), "a name stands once");
    }
}
