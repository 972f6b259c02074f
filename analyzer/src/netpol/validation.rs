//! What the API server takes for a NetworkPolicy, and what it refuses: strict decoding as kubectl asks for it
//! (`fieldValidation: Strict`), and `ValidateNetworkPolicy` of Kubernetes 1.31 (`pkg/apis/networking/validation`).

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::Value;

use super::expressible::{is_dns_label, is_dns_subdomain};

/// Reads a policy as it stands in a manifest.
///
/// # Errors
/// The API server would refuse it, in so many words.
pub(crate) fn read(object: &Value) -> Result<NetworkPolicy, Vec<String>> {
    let mut problems = Vec::new();
    // API servers of 1.24 to 1.27 wrote a status, so that it is in dumps of theirs.
    let mut unknown = |path: serde_ignored::Path<'_>| match path.to_string() {
        path if path == "status" => {}
        path => problems.push(format!("unknown field {}", as_written(&path))),
    };
    let mut track = serde_path_to_error::Track::new();
    let located = serde_path_to_error::Deserializer::new(object, &mut track);
    let policy: NetworkPolicy = match serde_ignored::deserialize(located, &mut unknown) {
        Ok(policy) => policy,
        Err(error) => return Err(vec![format!("{}: {error}", track.path())]),
    };
    problems.extend(refusals(&policy));
    if problems.is_empty() { Ok(policy) } else { Err(problems) }
}

/// A path of fields as messages have it: `spec.ingress[0].from`, of `spec.?.ingress.?.0.from`.
fn as_written(path: &str) -> String {
    let mut written = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        match part.parse::<usize>() {
            Ok(number) => written += &format!("[{number}]"),
            Err(_) if written.is_empty() => written += part,
            Err(_) => written += &format!(".{part}"),
        }
    }
    written
}

/// Why the API server would refuse a policy; nothing where it takes it.
pub(crate) fn refusals(policy: &NetworkPolicy) -> Vec<String> {
    let mut found = Found::default();
    let NetworkPolicy { metadata, spec } = policy;
    if metadata.name.as_deref().is_none_or(str::is_empty) {
        found.say("metadata.name", "a name is needed");
    }
    found.metadata(metadata);
    for key in metadata.annotations.iter().flat_map(BTreeMap::keys) {
        found.key("metadata.annotations", &key.to_lowercase());
    }
    let annotations = metadata.annotations.iter().flatten().map(|(key, value)| key.len() + value.len());
    if annotations.sum::<usize>() > ANNOTATIONS_BYTES {
        found.say("metadata.annotations", "they have more than 256 KiB");
    }
    for finalizer in metadata.finalizers.iter().flatten() {
        let has_domain = finalizer.contains('/') && is_qualified_name(finalizer);
        if !has_domain && !FINALIZERS.contains(&finalizer.as_str()) {
            found.say("metadata.finalizers", &format!("`{finalizer}` has no domain, as in example.com/name"));
        }
    }
    let owners = metadata.owner_references.iter().flatten();
    for owner in owners.clone().filter(|owner| owner.uid.is_empty()) {
        found.say("metadata.ownerReferences", &format!("{} {} has no uid", owner.kind, owner.name));
    }
    if owners.filter(|owner| owner.controller == Some(true)).count() > 1 {
        found.say("metadata.ownerReferences", "there is more than one controller");
    }
    let Some(spec) = spec else { return found.0 };
    found.selector("spec.podSelector", spec.pod_selector.as_ref());
    let ingress = spec.ingress.iter().flatten().enumerate();
    let ingress = ingress.map(|(number, rule)| (format!("spec.ingress[{number}]"), "from", &rule.from, &rule.ports));
    let egress = spec.egress.iter().flatten().enumerate();
    let egress = egress.map(|(number, rule)| (format!("spec.egress[{number}]"), "to", &rule.to, &rule.ports));
    for (at, side, peers, ports) in ingress.chain(egress) {
        for (number, port) in ports.iter().flatten().enumerate() {
            found.port(&format!("{at}.ports[{number}]"), port);
        }
        for (number, peer) in peers.iter().flatten().enumerate() {
            found.peer(&format!("{at}.{side}[{number}]"), peer);
        }
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        found.say("spec.policyTypes", "there are no more than two");
    }
    for name in types.iter().filter(|name| !matches!(name.as_str(), "Ingress" | "Egress")) {
        found.say("spec.policyTypes", &format!("`{name}` is neither Ingress nor Egress"));
    }
    found.0
}

/// Why the API server would refuse the names and labels of any object; nothing where it takes them.
pub(super) fn refusals_of_metadata(metadata: &ObjectMeta) -> Vec<String> {
    let mut found = Found::default();
    found.metadata(metadata);
    found.0
}

/// Whether the API server takes a selector.
pub(crate) fn is_valid_selector(selector: &LabelSelector) -> bool {
    let mut found = Found::default();
    found.selector("", Some(selector));
    found.0.is_empty()
}

/// What is wrong, and where.
#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn say(&mut self, at: &str, what: &str) {
        self.0.push(format!("{at}: {what}"));
    }

    fn peer(&mut self, at: &str, peer: &NetworkPolicyPeer) {
        let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
        self.selector(&format!("{at}.namespaceSelector"), namespace_selector.as_ref());
        self.selector(&format!("{at}.podSelector"), pod_selector.as_ref());
        let selects = namespace_selector.is_some() || pod_selector.is_some();
        match ip_block {
            None if !selects => self.say(at, "a peer is empty: it needs a selector or an ipBlock"),
            None => {}
            Some(_) if selects => self.say(at, "a peer has an ipBlock and a selector"),
            Some(block) => self.block(&format!("{at}.ipBlock"), block),
        }
    }

    fn block(&mut self, at: &str, IPBlock { cidr, except }: &IPBlock) {
        let Some(cidr) = self.cidr(&format!("{at}.cidr"), cidr) else { return };
        for text in except.iter().flatten() {
            let at = format!("{at}.except");
            let Some(except) = self.cidr(&at, text) else { continue };
            if !cidr.contains(&except.addr()) || except.prefix_len() <= cidr.prefix_len() {
                self.say(&at, &format!("the exception {except} is not a part of {cidr}"));
            }
        }
    }

    fn cidr(&mut self, at: &str, text: &str) -> Option<IpNet> {
        let cidr = cidr(text);
        if cidr.is_none() {
            self.say(at, &format!("`{text}` is not a CIDR"));
        }
        cidr
    }

    fn port(&mut self, at: &str, NetworkPolicyPort { port, end_port, protocol }: &NetworkPolicyPort) {
        if let Some(protocol) = protocol.as_deref().filter(|of| !matches!(*of, "TCP" | "UDP" | "SCTP")) {
            self.say(&format!("{at}.protocol"), &format!("`{protocol}` is not TCP, UDP or SCTP"));
        }
        let is_number = |number: i32| (1..=65_535).contains(&number);
        match port {
            Some(IntOrString::Int(number)) if !is_number(*number) => {
                self.say(&format!("{at}.port"), &format!("{number} is not a port"));
            }
            Some(IntOrString::String(name)) if !is_port_name(name) => {
                let what = format!("`{name}` is not a port's name: at most 15 of a-z, 0-9 and -, with a letter");
                self.say(&format!("{at}.port"), &what);
            }
            _ => {}
        }
        let Some(last) = *end_port else { return };
        let at = format!("{at}.endPort");
        match port {
            _ if !is_number(last) => self.say(&at, &format!("{last} is not a port")),
            Some(IntOrString::Int(first)) if *first <= last => {}
            _ => self.say(&at, &format!("endPort {last} needs a port that is a number and not larger")),
        }
    }

    fn selector(&mut self, at: &str, selector: Option<&LabelSelector>) {
        let Some(LabelSelector { match_labels, match_expressions }) = selector else { return };
        self.labels(&format!("{at}.matchLabels"), match_labels.as_ref());
        for (number, expression) in match_expressions.iter().flatten().enumerate() {
            let at = format!("{at}.matchExpressions[{number}]");
            self.key(&at, &expression.key);
            let values = expression.values.as_deref().unwrap_or_default();
            match expression.operator.as_str() {
                "In" | "NotIn" if values.is_empty() => {
                    self.say(&at, &format!("`{}` needs values", expression.operator));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    self.say(&at, &format!("`{}` takes no values", expression.operator));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => self.say(&at, &format!("`{other}` is not In, NotIn, Exists or DoesNotExist")),
            }
            values.iter().for_each(|value| self.value(&at, value));
        }
    }

    fn metadata(&mut self, metadata: &ObjectMeta) {
        if let Some(name) = metadata.name.as_deref().filter(|name| !name.is_empty() && !is_dns_subdomain(name)) {
            self.say("metadata.name", &format!("`{name}` is no DNS subdomain"));
        }
        let namespace = metadata.namespace.as_deref().filter(|namespace| !is_dns_label(namespace));
        if let Some(namespace) = namespace {
            self.say("metadata.namespace", &format!("`{namespace}` is no DNS label"));
        }
        self.labels("metadata.labels", metadata.labels.as_ref());
    }

    fn labels(&mut self, at: &str, labels: Option<&BTreeMap<String, String>>) {
        for (key, value) in labels.into_iter().flatten() {
            self.key(at, key);
            self.value(at, value);
        }
    }

    fn key(&mut self, at: &str, key: &str) {
        if !is_qualified_name(key) {
            self.say(at, &format!("`{key}` is not the key of a label"));
        }
    }

    fn value(&mut self, at: &str, value: &str) {
        if !is_label_value(value) {
            self.say(at, &format!("`{value}` is not the value of a label"));
        }
    }
}

/// An address block as the API server reads it: with leading zeros, which `ParseCIDRSloppy` takes for decimal.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let is_length = !length.is_empty() && length.len() <= 3 && length.bytes().all(|byte| byte.is_ascii_digit());
    let address = address.parse::<IpAddr>().ok().or_else(|| {
        let numbers: Vec<&str> = address.split('.').collect();
        let numbers: Vec<u8> = numbers.iter().map(|number| number.parse().ok()).collect::<Option<_>>()?;
        Some(IpAddr::from(<[u8; 4]>::try_from(numbers).ok()?))
    })?;
    IpNet::new(address, length.parse().ok().filter(|_| is_length)?).ok()
}

/// A key: perhaps a DNS subdomain and a slash, and a name (`IsQualifiedName`).
pub(super) fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name(name),
        None => is_name(key),
    }
}

/// The value of a label (`IsValidLabelValue`).
pub(super) fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name(value)
}

/// The name in a key, and a value that is not empty.
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = [text.bytes().next(), text.bytes().next_back()];
    let are_outer = ends.into_iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    text.len() <= 63 && are_outer && text.bytes().all(is_inner)
}

/// The name of a port (`IsValidPortName`).
fn is_port_name(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(is_known)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Most bytes of an object's annotations (`TotalAnnotationSizeLimitB`).
const ANNOTATIONS_BYTES: usize = 256 << 10;
/// Finalizers of Kubernetes that have no domain.
const FINALIZERS: [&str; 3] = ["foregroundDeletion", "kubernetes", "orphan"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_are_read_as_the_api_server_does() {
        for text in ["10.0.0.0/8", "10.0.0.1/8", "010.000.0.1/8", "::/0", "2001:db8::1/64"] {
            assert!(cidr(text).is_some(), "{text}");
        }
        for text in
            ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/ 8", "", "/8", "256.0.0.0/8", "::/129"]
        {
            assert!(cidr(text).is_none(), "{text}");
        }
    }

    #[test]
    fn an_unknown_field_is_named_by_where_it_is() {
        let policy = serde_json::json!({ "metadata": { "name": "p" }, "spec": { "ingress": [{ "from": [{ "podSelector": { "matchLabel": {} } }] }] } });
        let problems = read(&policy).expect_err("it is none");
        assert_eq!(problems, ["unknown field spec.ingress[0].from[0].podSelector.matchLabel"]);
    }

    #[test]
    fn a_value_of_another_type_is_named_by_where_it_is() {
        let policy = serde_json::json!({ "metadata": { "name": "p" }, "spec": { "egress": [{ "ports": [{ "endPort": "x" }] }] } });
        let problems = read(&policy).expect_err("it is none");
        assert_eq!(problems, ["spec.egress[0].ports[0].endPort: invalid type: string \"x\", expected i32"]);
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in ".{0,70}") {
            cidr(&text);
            is_port_name(&text);
            is_qualified_name(&text);
        }
    }
}
