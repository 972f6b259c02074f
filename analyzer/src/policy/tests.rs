//! What must never be written is refused, whatever made it.

use super::*;

/// A policy as [`synthesize`] makes them.
fn sound() -> NetworkPolicy {
    let workload = Workload { namespace: "demo".into(), name: "web".into(), kind: "Deployment".into() };
    let selector = Selector::from_labels(&[("app".into(), "web".into())].into()).expect("a label");
    let mut rules = Rules::default();
    rules.ingress.insert(Peer::Address(IpAddr::from([192, 0, 2, 1])), BTreeSet::from([("tcp".into(), 80)]));
    policy("web-network", &workload, &selector, &rules)
}

fn spec(policy: &mut NetworkPolicy) -> &mut NetworkPolicySpec {
    policy.spec.as_mut().expect("it has one")
}

fn rule(policy: &mut NetworkPolicy) -> &mut NetworkPolicyIngressRule {
    &mut spec(policy).ingress.as_mut().expect("it has ingress")[0]
}

#[test]
fn a_sound_policy_passes() {
    assert_eq!(check(&[sound()]), Ok(()));
}

#[test]
fn open_or_homeless_policies_are_refused() {
    let broken = |change: fn(&mut NetworkPolicy)| {
        let mut policy = sound();
        change(&mut policy);
        check(&[policy]).expect_err("it is not safe")
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
    assert_eq!(check(&[sound(), sound()]), Err(PolicyError::BadName { name: name() }), "a name stands once");
}

#[test]
fn odd_names_become_labels_that_stay_apart() {
    assert_eq!(dns_label("web-network"), "web-network");
    let (dotted, dashed) = (dns_label("v1.web-network"), dns_label("v1-web-network"));
    assert_ne!(dotted, dashed);
    assert!(dotted.starts_with("v1-web-network-"), "{dotted}");
    let (one, two) = (dns_label(&"a".repeat(70)), dns_label(&"a".repeat(71)));
    assert_ne!(one, two);
    assert_eq!((one.len(), two.len()), (63, 63));
    assert_eq!(dns_label(&one), one, "a label stays what it is");
}
