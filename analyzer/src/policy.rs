//! From communication sets to NetworkPolicies: one per workload, allowing what was learned and nothing else.
//!
//! ```text
//! Sets ──add──► Rules per workload and direction ──open, withhold, merge──► shortest rules ──check──► PolicySet
//! ```
//!
//! A direction that would deny too much is *withheld*: the policy does not isolate its pods in it, and says so.

mod check;
pub(crate) mod cilium;
pub(crate) mod explanation;
mod finding;
mod locality;
mod name;
mod neighbours;
mod open_ingress;
mod outside;
mod rule;
mod selector;
mod to_api;
mod withhold;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::{api::networking::v1::NetworkPolicy, apimachinery::pkg::apis::meta::v1::LabelSelector};
use schemas::{
    index::{Index, UnknownReason},
    inventory::InventoryRecord,
    vocabulary::Transport,
};

use crate::{
    capture::Names,
    communication::{Direction, Edge, Endpoint, Evidence, PerDirection, Workload},
    netpol::{is_expressible, population::Population},
    sets::{Fate, Sets, Status},
};
pub(crate) use check::PolicyError;
pub(crate) use finding::Finding;
use locality::is_link_local;
pub(crate) use outside::Outside;
use rule::{Peer, Port, Rules};
use selector::Selectors;
use to_api::{Subject, add, names_of, policy, take};

/// Policies, and what a person should know about them.
#[derive(Debug)]
pub(crate) struct PolicySet<'a> {
    /// Sorted by namespace and name.
    pub(crate) policies: Vec<Written<'a>>,
    /// Sorted by kind and subject.
    pub(crate) findings: BTreeSet<Finding>,
    /// Directions that are left open, and why.
    pub(crate) withheld: BTreeMap<(Workload, Direction), String>,
    /// Workloads whose selector selects pods of another one, and that one.
    pub(crate) overlaps: BTreeSet<(Workload, Workload)>,
}

/// A policy, and what it is made of.
#[derive(Debug)]
pub(crate) struct Written<'a> {
    /// Whose it is; `None` for what is of a whole namespace.
    pub(crate) workload: Option<Workload>,
    pub(crate) policy: NetworkPolicy,
    /// What was observed for each rule: those of ingress and of egress, in the policy's order.
    pub(crate) rules: Vec<(Direction, BTreeSet<&'a Edge>)>,
}

/// What policies are wanted.
#[derive(Debug)]
pub(crate) struct Wish {
    /// Namespaces to write policies for; all when empty.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    pub(crate) directions: BTreeSet<Direction>,
    /// Whether to allow the ports of dialled Services too.
    pub(crate) service_ports: bool,
    /// Whether to withhold directions that are not stable.
    pub(crate) only_stable: bool,
    /// Less of a workload's pod time observed: its directions are withheld.
    pub(crate) min_coverage: f64,
    /// Address blocks of a rule, beyond which addresses are merged.
    pub(crate) max_cidrs: usize,
    /// The shortest prefix of a merged block, for IPv4 and IPv6.
    pub(crate) min_prefix: (u8, u8),
    /// Ranges that stand for the addresses of nodes.
    pub(crate) node_cidrs: Vec<IpNet>,
    /// Services that everybody outside may reach, as namespace/name.
    pub(crate) open_ingress: BTreeSet<String>,
    /// Whether to deny by default, and allow DNS, once per namespace.
    pub(crate) namespace_defaults: bool,
}

/// Writes the policies that are wanted.
///
/// # Errors
/// A policy would allow or select more than intended: a defect of ours, never of the input.
pub(crate) fn synthesize<'a>(
    sets: &'a Sets,
    index: &'a Index,
    population: &'a Population,
    names: &'a Names,
    wish: &'a Wish,
) -> Result<PolicySet<'a>, PolicyError> {
    let mut draft = Draft {
        wish,
        sets,
        index,
        population,
        names,
        selectors: Selectors::new(index, population),
        outside: Outside::new(index, wish.min_prefix),
        findings: BTreeSet::new(),
        withheld: BTreeMap::new(),
        failed: BTreeMap::new(),
        dns: BTreeSet::new(),
        asks_names: BTreeSet::new(),
        rules: BTreeMap::new(),
        gone: gone(sets, index, population),
    };
    for (edge, (evidence, fate)) in &sets.edges {
        let ends = [&edge.source, &edge.destination];
        let is_concerned = ends.iter().any(|end| matches!(end, Endpoint::Workload(workload) if draft.wants(workload)));
        if wish.namespaces.is_empty() || is_concerned {
            draft.add(edge, evidence, fate);
        }
    }
    draft.open_ingress();
    draft.withhold_unsure();
    draft.withhold_undirected();
    draft.withhold_redirected();
    draft.withhold_unattributed();
    draft.withhold_dynamic();
    draft.withhold_unrecorded_transports();
    draft.merge_outside();
    draft.finish()
}

/// Namespaces of workloads that were deleted since, and nothing of them is there.
fn gone(sets: &Sets, index: &Index, population: &Population) -> BTreeSet<Arc<str>> {
    let there = population.members.iter().filter(|member| member.is_current).map(|member| &member.workload.namespace);
    let there: BTreeSet<&Arc<str>> = there.collect();
    let gone = index.gone_namespaces();
    let known = sets.workloads.keys().map(|workload| &workload.namespace);
    known.filter(|name| gone.contains(&**name) && !there.contains(name)).cloned().collect()
}

impl Wish {
    pub(crate) fn wants(&self, workload: &Workload) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(&workload.namespace)
    }
}

struct Draft<'a> {
    wish: &'a Wish,
    sets: &'a Sets,
    index: &'a Index,
    population: &'a Population,
    names: &'a Names,
    selectors: Selectors<'a>,
    outside: Outside,
    findings: BTreeSet<Finding>,
    withheld: BTreeMap<(Workload, Direction), String>,
    /// Attempts that never succeeded, by who tried.
    failed: BTreeMap<&'a Endpoint, Vec<String>>,
    /// Whom names are asked of.
    dns: BTreeSet<(Peer, Port)>,
    asks_names: BTreeSet<Workload>,
    rules: BTreeMap<Workload, PerDirection<Rules<'a>>>,
    /// Namespaces that were deleted: no server takes a policy of them.
    gone: BTreeSet<Arc<str>>,
}

impl<'a> Draft<'a> {
    fn wants(&self, workload: &Workload) -> bool {
        self.wish.wants(workload) && !self.gone.contains(&workload.namespace)
    }

    fn add(&mut self, edge: &'a Edge, evidence: &'a Evidence, fate: &Fate) {
        let Edge { source, destination, transport, port, .. } = edge;
        match fate {
            Fate::Learned | Fate::Pinned(_) => {}
            Fate::Failed if evidence.failed > 0 => {
                let failures = evidence.failures.iter().map(|failure| &**failure).collect::<Vec<_>>().join(", ");
                let failures = if failures.is_empty() { "failed" } else { &failures };
                let what = format!("{destination} {port}/{}", transport.protocol());
                let attempt = format!("{what} ({} × {failures})", evidence.failed);
                return self.failed.entry(source).or_default().push(attempt);
            }
            Fate::Unanswered => {
                let sent = evidence.connections + evidence.failed;
                let attempt = format!("{destination} {port}/{} ({sent} × unanswered)", transport.protocol());
                return self.failed.entry(source).or_default().push(attempt);
            }
            // What is forbidden has to be denied, also to those who have nothing else.
            Fate::Forbidden(_) => {
                for end in [source, destination] {
                    if let Endpoint::Workload(workload) = end
                        && self.wants(workload)
                    {
                        self.rules.entry(workload.clone()).or_default();
                    }
                }
                return;
            }
            // A pod's own node may always reach it; what is held is told with the sets.
            Fate::Failed | Fate::OwnNode | Fate::Held(_) => return,
        }
        if let Endpoint::Workload(workload) = destination
            && source.is_unknown_as(UnknownReason::SenderNotAsked)
        {
            if self.wants(workload) {
                self.withhold_unasked(workload, edge);
            }
            return;
        }
        if self.stays_on_link(edge) {
            return;
        }
        let Some(transport) = transport.known().filter(|_| is_expressible(edge)) else {
            self.withhold_unknown(edge, evidence);
            self.findings.insert(Finding::Unresolved { rule: edge.to_string() });
            return;
        };
        let is_dns = evidence.asks_names(edge);
        // Who asks over UDP asks again over TCP when the answer is too long (RFC 7766).
        let transports: &[Transport] = match destination {
            Endpoint::Workload(_) | Endpoint::Node { .. } if is_dns && !self.sets.narrow.contains(edge) => {
                &[Transport::Tcp, Transport::Udp]
            }
            _ => &[transport],
        };
        let allowed = |port: u16| transports.iter().map(move |transport| Port::single(*transport, port));
        // A range that a person pinned stands for the ports of it that were seen.
        let pinned = self.sets.pinned_ports.get(edge);
        let served: Vec<Port> = match pinned {
            Some(ranges) => ranges.iter().map(|range| Port::range(transport, range)).collect(),
            None => allowed(*port).collect(),
        };
        if let Endpoint::Workload(workload) = source
            && self.wants(workload)
        {
            let of_service = evidence.service_ports.iter().filter(|_| self.wish.service_ports);
            let of_service = of_service.flat_map(|port| allowed(*port));
            if self.wish.service_ports {
                self.judge_services(destination, evidence);
            }
            let ports: Vec<Port> = served.iter().copied().chain(of_service).collect();
            if is_dns {
                self.asks_names.insert(workload.clone());
            }
            if let Some(peer) = self.allow(workload, Direction::Egress, destination, edge, &ports)
                && is_dns
            {
                self.dns.extend(ports.into_iter().map(|port| (peer.clone(), port)));
            }
        }
        if let Endpoint::Workload(workload) = destination
            && self.wants(workload)
            && (evidence.answered || matches!(fate, Fate::Pinned(_)))
        {
            self.allow(workload, Direction::Ingress, source, edge, &served);
        }
    }

    /// Adds to the rules of a workload; `None` where the other end can't be named, so that the direction is withheld.
    fn allow(
        &mut self,
        workload: &Workload,
        direction: Direction,
        end: &Endpoint,
        edge: &'a Edge,
        ports: &[Port],
    ) -> Option<Peer> {
        let peer = self.peer(end, edge);
        let rules = self.rules.entry(workload.clone()).or_default();
        let Some(peer) = peer else {
            self.withhold(workload, direction, format!("{end} has no usable labels to select it by"));
            return None;
        };
        let known = rules[direction].entry(peer.clone()).or_default();
        for port in ports {
            known.entry(*port).or_default().insert(edge);
        }
        Some(peer)
    }

    fn peer(&mut self, end: &Endpoint, edge: &Edge) -> Option<Peer> {
        match end {
            Endpoint::Workload(workload) => {
                let selector = self.selectors.of(workload)?;
                Some(Peer::Pods { namespace: Arc::clone(&workload.namespace), selector })
            }
            Endpoint::Node { address, .. } => {
                if let Some(cidr) = self.wish.node_cidrs.iter().find(|cidr| cidr.contains(address)) {
                    return Some(Peer::Block { cidr: cidr.trunc(), is_node: true });
                }
                // One of a link, such as of a local resolver, is the same on all nodes.
                if !is_link_local(*address) {
                    self.findings.insert(Finding::AddressOfNode { rule: edge.to_string() });
                }
                Some(Peer::Block { cidr: (*address).into(), is_node: true })
            }
            Endpoint::External { address } => {
                if address.is_multicast() {
                    self.findings.insert(Finding::Multicast { rule: edge.to_string() });
                }
                Some(Peer::Block { cidr: (*address).into(), is_node: false })
            }
            Endpoint::Unknown { .. } => None,
        }
    }

    fn withhold(&mut self, workload: &Workload, direction: Direction, reason: String) {
        self.withheld.entry((workload.clone(), direction)).or_insert(reason);
    }

    fn finish(mut self) -> Result<PolicySet<'a>, PolicyError> {
        let overlaps = self.overlaps();
        let rules = std::mem::take(&mut self.rules);
        self.tell(&rules);
        let mut policies = Vec::new();
        let names = name::names(rules.keys());
        let mut shared: BTreeMap<Arc<str>, Rules<'a>> = BTreeMap::new();
        let open = self.left_open(&rules);
        for (workload, mut rules) in rules {
            let Some(selector) = self.selectors.of(&workload) else {
                self.findings.insert(Finding::NoUsableLabels { workload });
                continue;
            };
            let directions = self.directions(&workload);
            if directions.is_empty() {
                continue;
            }
            if self.wish.namespace_defaults && !open.contains_key(&workload.namespace) {
                let shared = shared.entry(Arc::clone(&workload.namespace)).or_default();
                if directions.contains(&Direction::Egress) {
                    add(shared, take(&mut rules[Direction::Egress], &self.dns));
                }
            }
            let subject =
                Subject { name: &names[&workload], namespace: &workload.namespace, selector: selector.to_api() };
            let annotations = self.annotations(&workload, &rules, &directions);
            let (policy, rules) = policy(subject, &rules, &directions, annotations);
            policies.push(Written { workload: Some(workload), policy, rules });
        }
        if self.wish.namespace_defaults {
            policies.extend(self.defaults(shared));
            let finding = |(namespace, workloads)| Finding::NoDefaults { namespace, workloads };
            self.findings.extend(open.into_iter().map(finding));
        }
        let order =
            |written: &Written<'_>| (written.policy.metadata.namespace.clone(), written.policy.metadata.name.clone());
        policies.sort_by_key(order);
        check::check(&policies)?;
        Ok(PolicySet { policies, findings: self.findings, withheld: self.withheld, overlaps })
    }

    /// The directions that a workload's policy limits.
    fn directions(&self, workload: &Workload) -> Vec<Direction> {
        let is_written = |direction: &Direction| !self.withheld.contains_key(&(workload.clone(), *direction));
        self.wish.directions.iter().copied().filter(is_written).collect()
    }

    /// The workloads that anything is left open for, by namespace: what holds for all of it would cut them off.
    fn left_open(
        &mut self,
        rules: &BTreeMap<Workload, PerDirection<Rules<'a>>>,
    ) -> BTreeMap<Arc<str>, BTreeSet<Workload>> {
        let silent = self.silent(rules).into_iter().filter(|workload| self.is_unsure(workload));
        let mut open: Vec<Workload> = silent.cloned().collect();
        for workload in rules.keys() {
            if self.selectors.of(workload).is_none() || self.directions(workload).len() < self.wish.directions.len() {
                open.push(workload.clone());
            }
        }
        let mut by_namespace: BTreeMap<Arc<str>, BTreeSet<Workload>> = BTreeMap::new();
        for workload in open {
            by_namespace.entry(Arc::clone(&workload.namespace)).or_default().insert(workload);
        }
        by_namespace
    }

    /// The workloads of wanted namespaces that have no rules.
    fn silent(&self, rules: &BTreeMap<Workload, PerDirection<Rules<'a>>>) -> BTreeSet<&'a Workload> {
        let members = self.population.members.iter().filter(|member| member.is_current);
        let workloads = members.map(|member| &member.workload);
        workloads.filter(|workload| self.wish.wants(workload) && !rules.contains_key(workload)).collect()
    }

    /// Whether nobody can tell that a workload needs nothing.
    fn is_unsure(&self, workload: &Workload) -> bool {
        let mut directions = self.wish.directions.iter();
        self.sets.exposure.of(workload).is_none()
            || directions.any(|direction| self.withheld.contains_key(&(workload.clone(), *direction)))
    }

    /// What a person should know of workloads that have rules, and of those that have none.
    fn tell(&mut self, rules: &BTreeMap<Workload, PerDirection<Rules<'a>>>) {
        for (source, attempts) in std::mem::take(&mut self.failed) {
            self.findings.insert(Finding::FailedOnly { source: source.to_string(), attempts });
        }
        for (workload, directions) in rules {
            let egress = (workload.clone(), Direction::Egress);
            let sends = !directions[Direction::Egress].is_empty() && !self.withheld.contains_key(&egress);
            if sends && !self.asks_names.contains(workload) {
                self.findings.insert(Finding::NoNames { workload: workload.clone() });
            }
            let mut reasons: BTreeMap<&String, Vec<Direction>> = BTreeMap::new();
            for direction in &self.wish.directions {
                if let Some(reason) = self.withheld.get(&(workload.clone(), *direction)) {
                    reasons.entry(reason).or_default().push(*direction);
                }
            }
            let finding = |(reason, directions): (&String, Vec<Direction>)| {
                let (workload, reason) = (workload.clone(), reason.clone());
                Finding::Withheld { workload, directions, reason }
            };
            self.findings.extend(reasons.into_iter().map(finding));
        }
        self.name_tunnels(rules);
        self.name_other_networks();
        for workload in self.silent(rules) {
            let time = self.sets.exposure.of(workload).map(|time| time.sums());
            let workload = workload.clone();
            self.findings.insert(match time {
                Some((ran, 0)) if ran > 0 => Finding::NeverObserved { workload },
                _ => Finding::NoTraffic { workload },
            });
        }
        let is_asked_for = |name: &&Arc<str>| self.wish.namespaces.is_empty() || self.wish.namespaces.contains(*name);
        let gone = self.gone.iter().filter(is_asked_for).cloned();
        self.findings.extend(gone.map(|namespace| Finding::NamespaceGone { namespace }));
        let known: BTreeSet<&Arc<str>> =
            self.population.members.iter().map(|member| &member.workload.namespace).collect();
        for namespace in self.wish.namespaces.iter().filter(|namespace| !known.contains(namespace)) {
            self.findings.insert(Finding::NoSuchNamespace { namespace: Arc::clone(namespace) });
        }
    }

    /// What changes only when the set of a workload changes.
    fn annotations(
        &self,
        workload: &Workload,
        rules: &PerDirection<Rules<'a>>,
        directions: &[Direction],
    ) -> BTreeMap<String, String> {
        let told = directions.iter().flat_map(|direction| {
            let edges: BTreeSet<&Edge> =
                rules[*direction].values().flat_map(BTreeMap::values).flatten().copied().collect();
            let lines = edges.into_iter().map(|edge| format!("{} {edge}\n", direction.as_str()));
            [format!("{}\n", direction.as_str())].into_iter().chain(lines).collect::<Vec<_>>()
        });
        let digest = ring::digest::digest(&ring::digest::SHA256, told.collect::<String>().as_bytes());
        let digest: String = digest.as_ref()[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut annotations = vec![("set-digest", digest), ("schema-version", FORM_VERSION.to_owned())];
        if let Some(set) = self.sets.workloads.get(workload) {
            annotations.push(("status", set.status.as_str().into()));
            if let Some(since) = set.since.filter(|_| set.status != Status::Learning) {
                annotations.push(("since", since.to_string()));
            }
        }
        let names = names_of(rules, self.names);
        if !names.is_empty() {
            annotations.push(("names", serde_json::to_string(&names).unwrap_or_default()));
        }
        annotations.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)).collect()
    }

    /// Policies for whole namespaces, where nothing is left open: names may be asked, and all else is denied.
    fn defaults(&self, shared: BTreeMap<Arc<str>, Rules<'a>>) -> Vec<Written<'a>> {
        let mut policies = Vec::new();
        for (namespace, dns) in shared {
            let of_all = |name| Subject { name, namespace: &namespace, selector: LabelSelector::default() };
            if !dns.is_empty() {
                let both = PerDirection::of(Rules::new(), dns);
                let (policy, rules) = policy(of_all("allow-dns"), &both, &[Direction::Egress], BTreeMap::new());
                policies.push(Written { workload: None, policy, rules });
            }
            let none = PerDirection::default();
            let directions: Vec<Direction> = self.wish.directions.iter().copied().collect();
            let (policy, rules) = policy(of_all("default-deny"), &none, &directions, BTreeMap::new());
            policies.push(Written { workload: None, policy, rules });
        }
        policies
    }
}

fn path_of(record: &InventoryRecord) -> String {
    format!("{}/{}", record.namespace.as_deref().unwrap_or_default(), record.name)
}

const PREFIX: &str = "flowscribe.io/";
const DIGEST_BYTES: usize = 16;
/// Version of what policies and their evidence say of themselves. It is not that of captures, whose new columns are no
/// reason for policies to change.
const FORM_VERSION: &str = "1.0";
