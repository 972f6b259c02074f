//! What NetworkPolicies allow, whoever wrote them: the semantics of `networking.k8s.io/v1`.
//!
//! ```text
//! NetworkPolicies ┐
//! Subjects (pods) ┴──Enforcement──► connections(from, to), denials(from, to, port)
//! ```
//!
//! A pod that no policy selects for a direction is open in it; otherwise what any selecting policy allows is allowed, and
//! a connection needs the egress of its source and the ingress of its destination. An ipBlock is about addresses outside
//! of the cluster, and never matches a pod: whether it does differs between network plugins.

mod addresses;
mod blocks;
mod connections;
mod difference;
mod ends;
mod expressible;
mod label_index;
pub(crate) mod lasting;
pub(crate) mod manifests;
mod ownership;
pub(crate) mod population;
pub(crate) mod replay;
mod supposed;
pub(crate) mod validation;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use roaring::RoaringBitmap;
use schemas::inventory::Labels;
use serde::Serialize;

use crate::communication::{Direction, PerDirection};
pub(crate) use addresses::Ranges;
pub(crate) use blocks::{may_hold_pods, size};
pub(crate) use connections::{Connections, Transport};
pub(crate) use difference::{Allowed, Difference, DifferenceError, compare, is_valid};
pub(crate) use ends::{End, Pairs, join};
pub(crate) use expressible::{is_dns_label, is_expressible, stays_on_link};
pub(crate) use label_index::LabelIndex;
pub(crate) use ownership::{MANAGED_BY, MANAGER, is_marked, marks};
pub(crate) use supposed::{supposed, with_former};

/// Pods that are alike: of one namespace, with the same labels and named ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) ports: Vec<NamedPort>,
}

/// A port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamedPort {
    pub(crate) name: Arc<str>,
    pub(crate) transport: Transport,
    pub(crate) port: u16,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// A subject by its number.
    Subject(usize),
    /// An address that is no pod's.
    Address(IpAddr),
}

/// Policies in force among subjects.
pub(crate) struct Enforcement<'a> {
    subjects: &'a [Subject],
    policies: Vec<Policy>,
    /// By subject: the policies that isolate it, for ingress and for egress.
    isolating: Vec<PerDirection<Vec<usize>>>,
}

/// A policy that isolates a subject in a direction, or a rule of it that names one, by numbers.
pub(crate) type Concern = (usize, Direction, Option<usize>);

/// Why a policy can't be in force: the API server would refuse it.
#[derive(Debug, thiserror::Error)]
#[error("policy {policy}: {reason}")]
pub(crate) struct InvalidPolicy {
    /// As namespace/name.
    pub(crate) policy: String,
    pub(crate) reason: String,
}

/// A side that refuses a connection, and the policies that could have allowed it there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Denial {
    pub(crate) direction: Direction,
    /// As namespace/name.
    pub(crate) policies: Vec<Arc<str>>,
}

struct Policy {
    path: Arc<str>,
    rules: PerDirection<Vec<Rule>>,
}

struct Rule {
    /// `None` for everybody.
    peers: Option<Peers>,
    /// `None` for all ports.
    ports: Option<Vec<Port>>,
}

struct Peers {
    subjects: RoaringBitmap,
    blocks: Vec<Block>,
}

struct Block {
    cidr: IpNet,
    except: Vec<IpNet>,
}

enum Port {
    Range(Transport, u16, u16),
    Named(Transport, Arc<str>),
}

impl<'a> Enforcement<'a> {
    /// Puts policies in force; those that are not valid are returned. Namespaces need no labels to be selected by name.
    pub(crate) fn new<'p>(
        policies: impl IntoIterator<Item = &'p NetworkPolicy>,
        subjects: &'a [Subject],
        namespaces: &BTreeMap<Arc<str>, Labels>,
    ) -> (Self, Vec<InvalidPolicy>) {
        let names: Vec<Arc<str>> = {
            let mut names: Vec<_> = subjects.iter().map(|subject| Arc::clone(&subject.namespace)).collect();
            names.sort();
            names.dedup();
            names
        };
        let of_namespace = |name: &Arc<str>| {
            let mut labels = namespaces.get(name).cloned().unwrap_or_default();
            labels.entry(NAMESPACE_NAME.into()).or_insert_with(|| Arc::clone(name));
            labels
        };
        let namespace_labels: Vec<Labels> = names.iter().map(of_namespace).collect();
        let mut members: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
        for (number, subject) in subjects.iter().enumerate() {
            members.entry(&subject.namespace).or_default().insert(number as u32);
        }
        let scope = Scope {
            pods: LabelIndex::new(subjects.iter().map(|subject| &subject.labels)),
            namespaces: LabelIndex::new(&namespace_labels),
            names: &names,
            members,
        };
        let mut enforcement =
            Self { subjects, policies: Vec::new(), isolating: vec![Default::default(); subjects.len()] };
        let mut invalid = Vec::new();
        for policy in policies {
            match scope.compile(policy) {
                Ok((compiled, selected, directions)) => {
                    for direction in directions {
                        for subject in &selected {
                            let number = enforcement.policies.len();
                            enforcement.isolating[subject as usize][direction].push(number);
                        }
                    }
                    enforcement.policies.push(compiled);
                }
                Err(reason) => invalid.push(InvalidPolicy { policy: path_of(policy), reason }),
            }
        }
        (enforcement, invalid)
    }

    /// The policies that select none of the subjects.
    pub(crate) fn of_nobody(&self) -> impl Iterator<Item = &Arc<str>> {
        let mut selecting = vec![false; self.policies.len()];
        for policy in self.isolating.iter().flat_map(PerDirection::values).flatten() {
            selecting[*policy] = true;
        }
        self.policies.iter().zip(selecting).filter(|(_, selects)| !selects).map(|(policy, _)| &policy.path)
    }

    /// Every connection that may be made from one party to another.
    pub(crate) fn connections(&self, from: Party, to: Party) -> Connections {
        let egress = self.side(Direction::Egress, from, to, to);
        if egress.is_none() {
            return egress;
        }
        &egress & &self.side(Direction::Ingress, to, from, to)
    }

    /// The sides that refuse a connection to a port; none where it is allowed.
    pub(crate) fn denials(&self, from: Party, to: Party, transport: Transport, port: u16) -> Vec<Denial> {
        let sides = [(Direction::Egress, from, to), (Direction::Ingress, to, from)];
        let denial = |(direction, own, peer): (Direction, Party, Party)| {
            let isolating = self.isolating(direction, own);
            let mut rules = isolating.iter().flat_map(|policy| &self.policies[*policy].rules[direction]);
            let allows = |rule: &Rule| {
                rule.concerns(peer)
                    && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|p| p.has(transport, port, self.of(to))))
            };
            if isolating.is_empty() || rules.any(allows) {
                return None;
            }
            let policies = isolating.iter().map(|policy| Arc::clone(&self.policies[*policy].path)).collect();
            Some(Denial { direction, policies })
        };
        sides.into_iter().filter_map(denial).collect()
    }

    /// Pairs of source and destination, of which at least one is isolated, and whose isolated sides name the other.
    pub(crate) fn limited_pairs(&self) -> BTreeSet<(usize, usize)> {
        let named = |direction: Direction| (0..self.subjects.len()).map(move |subject| self.named(subject, direction));
        let (sources, destinations): (Vec<_>, Vec<_>) =
            (named(Direction::Ingress).collect(), named(Direction::Egress).collect());
        let mut pairs = BTreeSet::new();
        for (destination, sources) in sources.iter().enumerate() {
            for source in sources.iter().flatten() {
                let is_named = destinations[source as usize].as_ref().is_none_or(|to| to.contains(destination as u32));
                if is_named {
                    pairs.insert((source as usize, destination));
                }
            }
        }
        for (source, destinations) in destinations.iter().enumerate() {
            let open = |destination: &u32| sources[*destination as usize].is_none();
            pairs.extend(destinations.iter().flatten().filter(open).map(|destination| (source, destination as usize)));
        }
        pairs
    }

    /// The subjects that some rule about an isolated subject names as peers in a direction; `None` where it is open.
    fn named(&self, subject: usize, direction: Direction) -> Option<RoaringBitmap> {
        let isolating = &self.isolating[subject][direction];
        if isolating.is_empty() {
            return None;
        }
        let mut peers = RoaringBitmap::new();
        for rule in isolating.iter().flat_map(|policy| &self.policies[*policy].rules[direction]) {
            match &rule.peers {
                Some(named) => peers |= &named.subjects,
                None => return Some((0..self.subjects.len() as u32).collect()),
            }
        }
        Some(peers)
    }

    /// What policies make of each of some subjects, by number: those that isolate it, and rules that name it. Two of whom it is
    /// the same may do the same, and the same may be done to them.
    pub(crate) fn concerns(&self, wanted: &RoaringBitmap) -> BTreeMap<u32, Vec<Concern>> {
        let mut concerns: BTreeMap<u32, Vec<Concern>> = BTreeMap::new();
        for subject in wanted {
            for direction in Direction::ALL {
                let isolating = self.isolating[subject as usize][direction].iter();
                let isolating = isolating.map(|policy| (*policy, direction, None));
                concerns.entry(subject).or_default().extend(isolating);
            }
        }
        for (number, policy) in self.policies.iter().enumerate() {
            for direction in Direction::ALL {
                for (rule, Rule { peers, .. }) in policy.rules[direction].iter().enumerate() {
                    let named = peers.as_ref().map(|peers| &peers.subjects & wanted).unwrap_or_default();
                    for subject in named {
                        concerns.entry(subject).or_default().push((number, direction, Some(rule)));
                    }
                }
            }
        }
        concerns
    }

    /// The directions in which any policy isolates a subject.
    pub(crate) fn isolated(&self, subject: usize) -> PerDirection<bool> {
        PerDirection::new(|direction| !self.isolating[subject][direction].is_empty())
    }

    /// The policies that limit a subject, as namespace/name; those that do so in both directions twice.
    pub(crate) fn selecting(&self, subject: usize) -> impl Iterator<Item = &str> {
        self.isolating[subject].values().flatten().map(|policy| &*self.policies[*policy].path)
    }

    /// The address blocks, without their exceptions, that the rules about a subject name in a direction.
    pub(crate) fn blocks_of(&self, subject: usize, direction: Direction) -> impl Iterator<Item = IpNet> {
        let isolating = self.isolating[subject][direction].iter();
        let rules = isolating.flat_map(move |policy| &self.policies[*policy].rules[direction]);
        rules.filter_map(|rule| rule.peers.as_ref()).flat_map(|peers| peers.blocks.iter().map(|block| block.cidr))
    }

    /// The blocks of all policies, without their exceptions, with the policy's path.
    pub(crate) fn blocks_by_policy(&self) -> impl Iterator<Item = (&str, IpNet)> {
        self.policies.iter().flat_map(|policy| {
            let rules = policy.rules.values().flatten().filter_map(|rule| rule.peers.as_ref());
            rules.flat_map(|peers| &peers.blocks).map(|block| (&*policy.path, block.cidr))
        })
    }

    fn isolating(&self, direction: Direction, party: Party) -> &[usize] {
        match party {
            Party::Subject(subject) => &self.isolating[subject][direction],
            Party::Address(_) => &[],
        }
    }

    /// What one side lets through, of connections to `to`.
    fn side(&self, direction: Direction, own: Party, peer: Party, to: Party) -> Connections {
        let isolating = self.isolating(direction, own);
        if isolating.is_empty() {
            return Connections::all();
        }
        let mut allowed = Connections::default();
        for rule in isolating.iter().flat_map(|policy| &self.policies[*policy].rules[direction]) {
            if rule.concerns(peer) {
                allowed |= &rule.allowed(self.of(to));
            }
        }
        allowed
    }

    fn of(&self, party: Party) -> Option<&Subject> {
        match party {
            Party::Subject(subject) => self.subjects.get(subject),
            Party::Address(_) => None,
        }
    }
}

impl Rule {
    /// What it lets through to a destination, of those whom it concerns.
    fn allowed(&self, to: Option<&Subject>) -> Connections {
        let Some(ports) = &self.ports else { return Connections::all() };
        let mut allowed = Connections::default();
        for (transport, first, last) in ports.iter().flat_map(|port| port.ranges(to)) {
            allowed.insert(transport, first, last);
        }
        allowed
    }

    fn concerns(&self, peer: Party) -> bool {
        let Some(peers) = &self.peers else { return true };
        match peer {
            Party::Subject(subject) => peers.subjects.contains(subject as u32),
            Party::Address(address) => peers.blocks.iter().any(|block| block.contains(address)),
        }
    }
}

impl Block {
    fn new(block: &IPBlock) -> Result<Self, String> {
        let parse = |text: &String| validation::cidr(text).ok_or_else(|| format!("`{text}` is not a CIDR"));
        let except = block.except.iter().flatten().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { cidr: parse(&block.cidr)?, except })
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|except| except.contains(&address))
    }
}

impl Port {
    fn new(port: &NetworkPolicyPort) -> Result<Self, String> {
        let NetworkPolicyPort { port, end_port, protocol } = port;
        let protocol = protocol.as_deref().unwrap_or("TCP");
        let transport = Transport::of_protocol(protocol);
        let transport = transport.ok_or_else(|| format!("`{protocol}` is not a protocol of policies"))?;
        let number = |number: &i32| u16::try_from(*number).map_err(|_| format!("{number} is not a port"));
        Ok(match port {
            None => Self::Range(transport, 1, u16::MAX),
            Some(IntOrString::Int(first)) => {
                Self::Range(transport, number(first)?, number(end_port.as_ref().unwrap_or(first))?)
            }
            Some(IntOrString::String(name)) => Self::Named(transport, name.as_str().into()),
        })
    }

    /// The ports that it stands for at a destination: of a name each that has it there, or none.
    fn ranges(&self, to: Option<&Subject>) -> impl Iterator<Item = (Transport, u16, u16)> {
        let (range, named) = match self {
            Self::Range(transport, first, last) => (Some((*transport, *first, *last)), None),
            Self::Named(transport, name) => (None, Some((*transport, name))),
        };
        let ports = to.zip(named).into_iter().flat_map(|(to, (transport, name))| {
            let named = to.ports.iter().filter(move |port| port.name == *name && port.transport == transport);
            named.map(move |port| (transport, port.port, port.port))
        });
        range.into_iter().chain(ports)
    }

    fn has(&self, transport: Transport, port: u16, to: Option<&Subject>) -> bool {
        self.ranges(to).any(|(of, first, last)| of == transport && (first..=last).contains(&port))
    }
}

/// Whom selectors can select.
struct Scope<'a> {
    pods: LabelIndex,
    namespaces: LabelIndex,
    names: &'a [Arc<str>],
    members: BTreeMap<&'a str, RoaringBitmap>,
}

impl Scope<'_> {
    /// The policy, whom it selects, and in which directions it isolates them.
    ///
    /// # Errors
    /// The API server would refuse it.
    fn compile(&self, policy: &NetworkPolicy) -> Result<(Policy, RoaringBitmap, Vec<Direction>), String> {
        if let Some(refusal) = validation::refusals(policy).into_iter().next() {
            return Err(refusal);
        }
        let namespace = policy.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let empty = NetworkPolicySpec::default();
        let spec = policy.spec.as_ref().unwrap_or(&empty);
        let none = LabelSelector::default();
        let selected = &self.pods.select(spec.pod_selector.as_ref().unwrap_or(&none))? & &self.members_of(namespace);
        let ingress = spec.ingress.iter().flatten().map(|rule| (&rule.from, &rule.ports));
        let egress = spec.egress.iter().flatten().map(|rule| (&rule.to, &rule.ports));
        let rule =
            |(peers, ports): (&Option<Vec<_>>, &Option<Vec<_>>)| self.rule(namespace, peers.as_ref(), ports.as_ref());
        let rules: PerDirection<Vec<Rule>> =
            PerDirection::of(ingress.map(rule).collect::<Result<_, _>>()?, egress.map(rule).collect::<Result<_, _>>()?);
        // What the API server fills in where the types are left out.
        let directions = match spec.policy_types.as_deref() {
            None | Some([]) if rules[Direction::Egress].is_empty() => vec![Direction::Ingress],
            None | Some([]) => vec![Direction::Ingress, Direction::Egress],
            Some(types) => {
                let has =
                    |direction: &Direction| types.iter().any(|name| name.eq_ignore_ascii_case(direction.as_str()));
                Direction::ALL.into_iter().filter(has).collect()
            }
        };
        Ok((Policy { path: path_of(policy).into(), rules }, selected, directions))
    }

    fn rule(
        &self,
        namespace: &str,
        peers: Option<&Vec<NetworkPolicyPeer>>,
        ports: Option<&Vec<NetworkPolicyPort>>,
    ) -> Result<Rule, String> {
        let peers = peers.filter(|peers| !peers.is_empty());
        let ports = ports.filter(|ports| !ports.is_empty());
        let peers = peers.map(|peers| self.peers(namespace, peers)).transpose()?;
        let ports = ports.map(|ports| ports.iter().map(Port::new).collect()).transpose()?;
        Ok(Rule { peers, ports })
    }

    fn peers(&self, namespace: &str, peers: &[NetworkPolicyPeer]) -> Result<Peers, String> {
        let mut all = Peers { subjects: RoaringBitmap::new(), blocks: Vec::new() };
        for NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } in peers {
            if let Some(block) = ip_block {
                all.blocks.push(Block::new(block)?);
                continue;
            }
            let within = match namespace_selector {
                None => self.members_of(namespace),
                Some(selector) => {
                    let names = self.namespaces.select(selector)?;
                    let members = names.iter().map(|name| self.members_of(&self.names[name as usize]));
                    members.fold(RoaringBitmap::new(), |all, more| all | more)
                }
            };
            let selected = pod_selector.as_ref().map(|selector| self.pods.select(selector)).transpose()?;
            all.subjects |= selected.map_or_else(|| within.clone(), |pods| &pods & &within);
        }
        Ok(all)
    }

    fn members_of(&self, namespace: &str) -> RoaringBitmap {
        self.members.get(namespace).cloned().unwrap_or_default()
    }
}

fn path_of(policy: &NetworkPolicy) -> String {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    format!("{namespace}/{}", policy.metadata.name.as_deref().unwrap_or("(no name)"))
}

/// Where objects are that name no namespace.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";
/// The label that every namespace has, with its name (Kubernetes 1.22 and newer).
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
