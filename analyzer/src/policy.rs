//! From communications to NetworkPolicies: one per workload, allowing what was observed and nothing else.

mod selector;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use schemas::{index::Index, inventory::kind};

use crate::communication::{Communications, Edge, Endpoint, Evidence, Workload};
use selector::{Selector, Selectors};

/// Policies, and what a person should know about them.
#[derive(Debug, Default)]
pub(crate) struct PolicySet {
    /// Sorted by namespace and name.
    pub(crate) policies: Vec<NetworkPolicy>,
    /// Sorted by kind and subject.
    pub(crate) findings: BTreeSet<Finding>,
}

/// Something that the policies can't say, or should not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finding {
    /// No policy can be written for a workload.
    NoUsableLabels { workload: Workload },
    /// A rule is left out because its peer can't be selected.
    PeerWithoutLabels { rule: String, peer: Workload },
    /// A workload's selector selects pods of another one too.
    SelectsAnother { workload: Workload, other: Workload },
    /// A workload's selector misses one of its pods.
    MissesOwnPod { workload: Workload, pod: Arc<str> },
    /// A rule is left out because an end can't be told.
    Unresolved { rule: String },
    /// A rule that names a node's address, which autoscaling may change.
    AddressOfNode { rule: String },
    /// A workload that sends, but was not seen to ask for names: it may yet need to.
    NoNames { workload: Workload },
    /// What was tried and never succeeded makes no rule: who tried, and what.
    FailedOnly { source: String, attempts: Vec<String> },
    /// A workload without traffic that makes a rule gets no policy.
    NoTraffic { workload: Workload },
    /// A namespace to write policies for that the inventory does not know.
    NoSuchNamespace { namespace: Arc<str> },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUsableLabels { workload } => {
                write!(f, "{workload}: no policy, its pods have no usable labels")
            }
            Self::PeerWithoutLabels { rule, peer } => {
                write!(f, "{rule}: left out, {peer} has no usable labels to select it by")
            }
            Self::SelectsAnother { workload, other } => {
                write!(f, "{workload}: its selector also selects pods of {other}")
            }
            Self::MissesOwnPod { workload, pod } => write!(f, "{workload}: its selector does not select its pod {pod}"),
            Self::Unresolved { rule } => write!(f, "{rule}: left out, an end is not known"),
            Self::AddressOfNode { rule } => write!(f, "{rule}: allowed by the node's address, which may change"),
            Self::NoNames { workload } => {
                write!(f, "{workload}: sends, but was not seen to ask any DNS: its policy allows none")
            }
            Self::FailedOnly { source, attempts } => {
                let told = attempts.iter().take(ATTEMPTS_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
                write!(f, "{source}: left out, never established: {told}")?;
                match attempts.len().saturating_sub(ATTEMPTS_TOLD) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more (flowscribe sql: failed_attempts)"),
                }
            }
            Self::NoTraffic { workload } => {
                write!(f, "{workload}: no policy, no traffic that makes a rule was observed")
            }
            Self::NoSuchNamespace { namespace } => write!(f, "namespace {namespace}: no pod of it is known"),
        }
    }
}

/// A rule or policy that must not be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("policy `{name}` has no namespace")]
    NoNamespace { name: String },
    #[error("policy `{name}` selects all pods of its namespace")]
    SelectsAll { name: String },
    #[error("policy `{name}` has a rule without a peer or without a port")]
    OpenRule { name: String },
    #[error("policy name `{name}` is not a DNS label, or not unique in its namespace")]
    BadName { name: String },
}

/// What policies are wanted.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// Namespaces to write policies for; all when empty.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// Whether to allow the ports of dialled Services too.
    pub(crate) service_ports: bool,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Pods { namespace: Arc<str>, selector: Selector },
    Address(IpAddr),
}

type Port = (Arc<str>, u16);

/// The rules of one workload: peers and the ports they share, per direction.
#[derive(Debug, Default)]
struct Rules {
    ingress: BTreeMap<Peer, BTreeSet<Port>>,
    egress: BTreeMap<Peer, BTreeSet<Port>>,
}

/// Writes the policies that are wanted.
///
/// # Errors
/// A policy would allow or select more than intended: a defect of ours, never of the input.
pub(crate) fn synthesize(
    communications: &Communications,
    index: &Index,
    wish: &Wish,
) -> Result<PolicySet, PolicyError> {
    let mut draft = Draft {
        wish,
        selectors: Selectors::new(index),
        findings: BTreeSet::new(),
        failed: BTreeMap::new(),
        asks_names: BTreeSet::new(),
        rules: BTreeMap::new(),
    };
    for (edge, evidence) in communications {
        let ends = [&edge.source, &edge.destination];
        let is_concerned = ends.iter().any(|end| matches!(end, Endpoint::Workload(workload) if wish.wants(workload)));
        if wish.namespaces.is_empty() || is_concerned {
            draft.add(edge, evidence);
        }
    }
    draft.add_without_rules(index);
    draft.finish()
}

impl Wish {
    fn wants(&self, workload: &Workload) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(&workload.namespace)
    }
}

struct Draft<'a> {
    wish: &'a Wish,
    selectors: Selectors<'a>,
    findings: BTreeSet<Finding>,
    /// Attempts that never succeeded, by who tried.
    failed: BTreeMap<&'a Endpoint, Vec<String>>,
    asks_names: BTreeSet<Workload>,
    rules: BTreeMap<Workload, Rules>,
}

impl<'a> Draft<'a> {
    fn add(&mut self, edge: &'a Edge, evidence: &Evidence) {
        let Edge { source, destination, transport, port, own_node } = edge;
        let what = format!("{destination} {port}/{}", transport.to_uppercase());
        let rule = edge.to_string();
        if !evidence.is_established() && !evidence.is_pinned {
            if evidence.failed > 0 {
                let failures = evidence.failures.iter().map(|failure| &**failure).collect::<Vec<_>>().join(", ");
                let failures = if failures.is_empty() { "failed" } else { &failures };
                let attempt = format!("{what} ({} × {failures})", evidence.failed);
                self.failed.entry(source).or_default().push(attempt);
            }
            return;
        }
        if *own_node {
            return; // a pod's own node may always reach it
        }
        if [source, destination].iter().any(|end| matches!(end, Endpoint::Unknown { .. })) {
            self.findings.insert(Finding::Unresolved { rule });
            return;
        }
        let is_dns = *port == DNS_PORT || evidence.service_ports.contains(&DNS_PORT);
        // Who asks over UDP asks again over TCP when the answer is too long (RFC 7766).
        let transports: &[&str] = match destination {
            Endpoint::Workload(_) | Endpoint::Node { .. } if is_dns => &["tcp", "udp"],
            _ => &[transport],
        };
        let allowed = |port: u16| transports.iter().map(move |transport| (Arc::from(*transport), port));
        if let Endpoint::Workload(workload) = source
            && self.wish.wants(workload)
        {
            if is_dns {
                self.asks_names.insert(workload.clone());
            }
            let peer = self.peer(destination, &rule);
            let rules = self.rules.entry(workload.clone()).or_default();
            if let Some(peer) = peer {
                let ports = rules.egress.entry(peer).or_default();
                ports.extend(allowed(*port));
                if self.wish.service_ports {
                    ports.extend(evidence.service_ports.iter().flat_map(|port| allowed(*port)));
                }
            }
        }
        if let Endpoint::Workload(workload) = destination
            && self.wish.wants(workload)
            && (evidence.answered || evidence.is_pinned)
        {
            let peer = self.peer(source, &rule);
            let rules = self.rules.entry(workload.clone()).or_default();
            if let Some(peer) = peer {
                rules.ingress.entry(peer).or_default().extend(allowed(*port));
            }
        }
    }

    fn peer(&mut self, end: &Endpoint, rule: &str) -> Option<Peer> {
        match end {
            Endpoint::Workload(workload) => match self.selectors.of(workload) {
                Some(selector) => {
                    self.findings.extend(self.selectors.judge(workload, &selector));
                    Some(Peer::Pods { namespace: Arc::clone(&workload.namespace), selector })
                }
                None => {
                    let peer = workload.clone();
                    self.findings.insert(Finding::PeerWithoutLabels { rule: rule.to_owned(), peer });
                    None
                }
            },
            Endpoint::Node { address, .. } => {
                self.findings.insert(Finding::AddressOfNode { rule: rule.to_owned() });
                Some(Peer::Address(*address))
            }
            Endpoint::External { address } => Some(Peer::Address(*address)),
            Endpoint::Unknown { .. } => None,
        }
    }

    fn add_without_rules(&mut self, index: &Index) {
        let mut known = BTreeSet::new();
        for (pod, _) in index.latest(kind::POD).filter(|(pod, _)| pod.host_network != Some(true)) {
            let (kind, name) = index.workload_of(pod);
            let workload = Workload { namespace: pod.namespace.clone().unwrap_or_default(), name, kind };
            known.insert(Arc::clone(&workload.namespace));
            if self.wish.wants(&workload) && !self.rules.contains_key(&workload) {
                self.findings.insert(Finding::NoTraffic { workload });
            }
        }
        for namespace in self.wish.namespaces.difference(&known) {
            self.findings.insert(Finding::NoSuchNamespace { namespace: Arc::clone(namespace) });
        }
    }

    fn finish(mut self) -> Result<PolicySet, PolicyError> {
        let mut policies = Vec::new();
        for (source, attempts) in std::mem::take(&mut self.failed) {
            self.findings.insert(Finding::FailedOnly { source: source.to_string(), attempts });
        }
        let senders = self.rules.iter().filter(|(_, rules)| !rules.egress.is_empty()).map(|(workload, _)| workload);
        let unasked = senders.filter(|workload| !self.asks_names.contains(workload));
        self.findings.extend(unasked.map(|workload| Finding::NoNames { workload: workload.clone() }));
        let names = names(self.rules.keys());
        for (workload, rules) in &self.rules {
            let Some(selector) = self.selectors.of(workload) else {
                self.findings.insert(Finding::NoUsableLabels { workload: workload.clone() });
                continue;
            };
            self.findings.extend(self.selectors.judge(workload, &selector));
            policies.push(policy(&names[workload], workload, &selector, rules));
        }
        policies
            .sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
        check(&policies)?;
        Ok(PolicySet { policies, findings: self.findings })
    }
}

fn policy(name: &str, workload: &Workload, selector: &Selector, rules: &Rules) -> NetworkPolicy {
    let namespace = &workload.namespace;
    let ingress = merged(&rules.ingress).into_iter().map(|(ports, peers)| NetworkPolicyIngressRule {
        from: Some(api_peers(&peers, namespace)),
        ports: Some(api_ports(ports)),
    });
    let egress = merged(&rules.egress).into_iter().map(|(ports, peers)| NetworkPolicyEgressRule {
        to: Some(api_peers(&peers, namespace)),
        ports: Some(api_ports(ports)),
    });
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_string()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), "flowscribe".to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector.to_api()),
            ingress: non_empty(ingress.collect()),
            egress: non_empty(egress.collect()),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
        }),
    }
}

/// Kubernetes leaves out empty lists.
fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

/// Peers that may use the same ports share a rule.
fn merged(peers: &BTreeMap<Peer, BTreeSet<Port>>) -> BTreeMap<&BTreeSet<Port>, BTreeSet<&Peer>> {
    let mut merged: BTreeMap<&BTreeSet<Port>, BTreeSet<&Peer>> = BTreeMap::new();
    for (peer, ports) in peers {
        merged.entry(ports).or_default().insert(peer);
    }
    merged
}

fn api_peers(peers: &BTreeSet<&Peer>, own_namespace: &str) -> Vec<NetworkPolicyPeer> {
    let peer = |peer: &&Peer| match peer {
        Peer::Pods { namespace, selector } => NetworkPolicyPeer {
            pod_selector: Some(selector.to_api()),
            namespace_selector: (&**namespace != own_namespace).then(|| LabelSelector {
                match_labels: Some(BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.to_string())])),
                ..LabelSelector::default()
            }),
            ip_block: None,
        },
        Peer::Address(address) => {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let ip_block = IPBlock { cidr: format!("{address}/{bits}"), except: None };
            NetworkPolicyPeer { ip_block: Some(ip_block), ..NetworkPolicyPeer::default() }
        }
    };
    peers.iter().map(peer).collect()
}

fn api_ports(ports: &BTreeSet<Port>) -> Vec<NetworkPolicyPort> {
    let port = |(transport, port): &Port| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(*port))),
        protocol: Some(transport.to_uppercase()),
        end_port: None,
    };
    ports.iter().map(port).collect()
}

/// Names of policies: `<workload>-network`, with the kind where two workloads share a name.
fn names<'a>(workloads: impl Iterator<Item = &'a Workload> + Clone) -> BTreeMap<Workload, String> {
    let mut shared: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for workload in workloads.clone() {
        *shared.entry((&workload.namespace, &workload.name)).or_default() += 1;
    }
    let mut taken: BTreeSet<(Arc<str>, String)> = BTreeSet::new();
    let mut name = |workload: &Workload| {
        let Workload { namespace, name, kind } = workload;
        let full = if shared[&(&**namespace, &**name)] > 1 {
            format!("{name}-{}-network", kind.to_lowercase())
        } else {
            format!("{name}-network")
        };
        let mut label = dns_label(&full);
        // A workload may be called what another one's policy is named.
        while !taken.insert((Arc::clone(namespace), label.clone())) {
            label = dns_label(&format!("{label}-{:08x}", fnv1a(&format!("{kind}/{full}"))));
        }
        label
    };
    workloads.map(|workload| (workload.clone(), name(workload))).collect()
}

/// A DNS label (RFC 1123): what is too long or has other characters gets a digest, so that it stays unique.
fn dns_label(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    if plain == text && text.len() <= LABEL_LENGTH {
        return text.to_owned();
    }
    let digest = format!("-{:08x}", fnv1a(text));
    let kept: String = plain.chars().take(LABEL_LENGTH - digest.len()).collect();
    format!("{}{digest}", kept.trim_end_matches('-'))
}

/// FNV-1a, 32 bits (RFC 9923): a digest that never changes between builds.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Refuses what must never be written, whatever made it.
fn check(policies: &[NetworkPolicy]) -> Result<(), PolicyError> {
    let mut taken = BTreeSet::new();
    for NetworkPolicy { metadata, spec } in policies {
        let name = || metadata.name.clone().unwrap_or_default();
        if metadata.namespace.as_deref().is_none_or(str::is_empty) {
            return Err(PolicyError::NoNamespace { name: name() });
        }
        if name().is_empty() || dns_label(&name()) != name() || !taken.insert((&metadata.namespace, name())) {
            return Err(PolicyError::BadName { name: name() });
        }
        let Some(spec) = spec else { return Err(PolicyError::SelectsAll { name: name() }) };
        if spec.pod_selector.as_ref().is_none_or(selects_all) {
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

/// Says who wrote a policy (Kubernetes' recommended labels).
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label that every namespace has, with its name (Kubernetes 1.22 and newer).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
const LABEL_LENGTH: usize = 63;
const DNS_PORT: u16 = 53;
/// Failed attempts of one source that are told one by one; a scan has thousands.
const ATTEMPTS_TOLD: usize = 5;

#[cfg(test)]
mod tests;
