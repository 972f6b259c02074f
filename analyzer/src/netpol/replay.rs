//! A capture against policies: what of the observed they would deny, and what they allow that was never observed.
//!
//! Nothing here knows how policies are made; what they mean is [`netpol`](crate::netpol)'s.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{
    Connections, Denial, Enforcement, InvalidPolicy, Party, Transport,
    blocks::size,
    expressible::is_expressible,
    population::{Member, Population},
};
use crate::{
    communication::{DNS_PORT, Direction, Edge, Endpoint, Evidence, Workload},
    sets::{Fate, Sets, Status},
};

/// How to judge.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// Whether a pod's own node may always reach it, as Kubernetes' documentation has it.
    pub(crate) own_node_exempt: bool,
    /// Workloads whose selector is known to select pods of another one, and that one.
    pub(crate) overlaps: BTreeSet<(Workload, Workload)>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Verdict<'a> {
    /// Observed edges that are allowed.
    pub(crate) allowed: usize,
    /// Observed edges of pods that were judged, and those that can't be, as no pods of an end are known.
    pub(crate) judged: usize,
    pub(crate) unjudged: usize,
    /// Those of the allowed that a person forbade.
    pub(crate) let_through: Vec<&'a Edge>,
    /// Policies that select no pod that is known, or comes again.
    pub(crate) of_nobody: Vec<Arc<str>>,
    /// Workloads that are there, and those of them that no policy limits.
    pub(crate) workloads: (usize, usize),
    /// Observed edges that are denied, in order.
    pub(crate) denied: Vec<Denied<'a>>,
    /// Allowed between pods and never observed: by source and destination, and why that is so.
    pub(crate) unseen: BTreeMap<(Workload, Workload), BTreeMap<Excuse, Connections>>,
    /// Addresses outside that are allowed, and how many of them were observed, by workload and direction.
    pub(crate) outside: BTreeMap<(Workload, Direction), (u128, u128)>,
}

/// An observed edge that would be denied.
#[derive(Debug)]
pub(crate) struct Denied<'a> {
    pub(crate) edge: &'a Edge,
    pub(crate) evidence: &'a Evidence,
    pub(crate) status: Status,
    pub(crate) by: BTreeSet<Denial>,
    /// Why that is right; `None` where it is not known to be.
    pub(crate) explanation: Option<String>,
    /// An address block by which some network plugins allow it all the same.
    pub(crate) block: Option<IpNet>,
}

/// Why something is allowed that was not observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excuse {
    /// A person wants it.
    Pinned,
    /// A Service was dialled that may lead there.
    ViaService,
    /// The other transport of DNS.
    Names,
    /// The port of a Service that was dialled.
    ServicePort,
    /// A selector takes in another workload.
    Collateral,
    /// There is none.
    None,
}

impl Excuse {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::ViaService => "via_service",
            Self::Names => "dns",
            Self::ServicePort => "service_port",
            Self::Collateral => "selector",
            Self::None => "unseen",
        }
    }
}

impl Verdict<'_> {
    /// Denied edges that nothing explains, and that are stable.
    pub(crate) fn wrong(&self) -> impl Iterator<Item = &Denied<'_>> {
        self.denied.iter().filter(|denied| denied.explanation.is_none() && denied.status == Status::Stable)
    }

    /// Ranges of ports that are allowed between two workloads and were not observed, by excuse.
    pub(crate) fn unseen_edges(&self) -> BTreeMap<Excuse, usize> {
        let mut counts = BTreeMap::new();
        for (excuse, connections) in self.unseen.values().flatten() {
            *counts.entry(*excuse).or_default() += connections.ranges().count();
        }
        counts
    }
}

impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { edge, evidence, status, by, explanation, block } = self;
        let policies = |denial: &Denial| {
            let policies = denial.policies.iter().map(|policy| &**policy).collect::<Vec<_>>().join(" and ");
            format!("{} of {policies}", denial.direction.as_str())
        };
        let by = by.iter().map(policies).collect::<Vec<_>>().join(", ");
        write!(f, "{edge}: denied by {by}; {}, {} connections", status.as_str(), evidence.connections)?;
        if let Some(explanation) = explanation {
            write!(f, "; {explanation}")?;
        }
        match block {
            Some(block) => write!(f, "; its ipBlock {block} holds the pod's address, which some network plugins allow"),
            None => Ok(()),
        }
    }
}

/// Replays what was observed over policies. Those that are not valid are returned.
pub(crate) fn replay<'a, 'p>(
    sets: &'a Sets,
    population: &Population,
    policies: impl IntoIterator<Item = &'p NetworkPolicy>,
    terms: &Terms,
) -> (Verdict<'a>, Vec<InvalidPolicy>) {
    let subjects = population.subjects();
    let (enforcement, invalid) = Enforcement::new(policies, &subjects, &population.namespaces);
    let mut numbers: HashMap<&Workload, Vec<usize>> = HashMap::new();
    for (number, member) in population.members.iter().enumerate() {
        numbers.entry(&member.workload).or_default().push(number);
    }
    let of_nobody = enforcement.of_nobody().cloned().collect();
    let replay = Replay { sets, population, enforcement, numbers, terms };
    let mut verdict = Verdict { of_nobody, ..Verdict::default() };
    let has_passed = |(_, (evidence, fate)): &(&Edge, &(Evidence, Fate))| {
        evidence.is_established() && !matches!(fate, Fate::Unanswered)
    };
    for (edge, (evidence, fate)) in sets.edges.iter().filter(has_passed) {
        let Some(by) = replay.denials(edge) else {
            verdict.unjudged += 1;
            continue;
        };
        let is_of_pods = [&edge.source, &edge.destination].iter().any(|end| matches!(end, Endpoint::Workload(_)));
        verdict.judged += usize::from(is_of_pods && !(edge.own_node && terms.own_node_exempt));
        if by.is_empty() {
            verdict.allowed += 1;
            verdict.let_through.extend(matches!(fate, Fate::Forbidden(_)).then_some(edge));
            continue;
        }
        let status = Status::Learning;
        let explanation = replay.explain(edge, evidence, fate, &by);
        let block = replay.covering_block(edge, &by);
        verdict.denied.push(Denied { edge, evidence, status, by, explanation, block });
    }
    if !verdict.denied.is_empty() {
        let known = replay.status();
        for denied in &mut verdict.denied {
            denied.status = known.get(denied.edge).copied().unwrap_or(denied.status);
        }
    }
    verdict.workloads = replay.workloads();
    verdict.unseen = replay.unseen();
    verdict.outside = replay.outside();
    (verdict, invalid)
}

/// Ports that may be allowed, from the first to the last: they were observed, under `None`, or there is an excuse.
type Reason = (Option<Excuse>, Transport, u16, u16);

struct Replay<'a, 'p> {
    sets: &'a Sets,
    population: &'p Population,
    enforcement: Enforcement<'p>,
    /// The members of each workload.
    numbers: HashMap<&'p Workload, Vec<usize>>,
    terms: &'p Terms,
}

impl<'a> Replay<'a, '_> {
    /// How sure each edge is: as the end that is surer has it.
    fn status(&self) -> BTreeMap<&'a Edge, Status> {
        let mut status: BTreeMap<&Edge, Status> = BTreeMap::new();
        for entry in self.sets.workloads.values().flat_map(|set| &set.entries) {
            let known = status.entry(&entry.edge).or_insert(entry.status);
            *known = entry.status.max(*known);
        }
        status
    }

    fn parties(&self, end: &Endpoint) -> Vec<Party> {
        match end {
            Endpoint::Workload(workload) => {
                self.numbers.get(workload).into_iter().flatten().map(|number| Party::Subject(*number)).collect()
            }
            Endpoint::Node { address, .. }
            | Endpoint::External { address }
            | Endpoint::Unknown { address: Some(address), .. } => vec![Party::Address(*address)],
            Endpoint::Unknown { address: None, .. } => Vec::new(),
        }
    }

    /// Who refuses an edge, of all pods of both ends; `None` where no pods of one are known.
    fn denials(&self, edge: &Edge) -> Option<BTreeSet<Denial>> {
        if edge.own_node && self.terms.own_node_exempt {
            return Some(BTreeSet::new());
        }
        let Some(transport) = edge.transport.known() else { return Some(BTreeSet::new()) };
        let (sources, destinations) = (self.parties(&edge.source), self.parties(&edge.destination));
        if sources.is_empty() || destinations.is_empty() {
            return None;
        }
        Some(self.between(&sources, &destinations, transport, edge.port))
    }

    fn between(&self, sources: &[Party], destinations: &[Party], transport: Transport, port: u16) -> BTreeSet<Denial> {
        let pairs = sources.iter().flat_map(|source| destinations.iter().map(move |to| (*source, *to)));
        pairs.flat_map(|(source, to)| self.enforcement.denials(source, to, transport, port)).collect()
    }

    /// A block, of the rules of a side that refuses an edge, that holds an address of the other end's pods.
    fn covering_block(&self, edge: &Edge, by: &BTreeSet<Denial>) -> Option<IpNet> {
        by.iter().find_map(|denial| {
            let (own, peer) = match denial.direction {
                Direction::Egress => (&edge.source, &edge.destination),
                Direction::Ingress => (&edge.destination, &edge.source),
            };
            let (Endpoint::Workload(own), Endpoint::Workload(peer)) = (own, peer) else { return None };
            let addresses = self.population.addresses.get(peer)?;
            let numbers = self.numbers.get(own)?.iter();
            let mut blocks = numbers.flat_map(|number| self.enforcement.blocks_of(*number, denial.direction));
            blocks.find(|block| addresses.iter().any(|address| block.contains(address)))
        })
    }

    /// A pod without which an edge would be allowed, as its workload does not select it.
    fn odd(&self, edge: &Edge) -> Option<&Member> {
        let transport = edge.transport.known()?;
        let member = |party: &Party| match party {
            Party::Subject(number) => Some(&self.population.members[*number]),
            Party::Address(_) => None,
        };
        let is_odd = |party: &Party| member(party).is_some_and(|member| member.is_odd);
        let (odd, others): (Vec<_>, Vec<_>) = [&edge.source, &edge.destination]
            .map(|end| self.parties(end).into_iter().partition::<Vec<_>, _>(is_odd))
            .into_iter()
            .unzip();
        let [sources, destinations] = &others[..] else { return None };
        // Where all are odd, nothing shows what they may do.
        if sources.is_empty() || destinations.is_empty() {
            return None;
        }
        let is_fault = self.between(sources, destinations, transport, edge.port).is_empty();
        odd.iter().flatten().find_map(member).filter(|_| is_fault)
    }

    /// How many workloads there are, and how many of them no policy limits in any direction.
    fn workloads(&self) -> (usize, usize) {
        let mut limited: BTreeMap<&Workload, bool> = BTreeMap::new();
        for (number, member) in self.population.members.iter().enumerate().filter(|(_, member)| member.is_current) {
            *limited.entry(&member.workload).or_default() |=
                self.enforcement.isolated(number).values().any(|is_isolated| *is_isolated);
        }
        (limited.len(), limited.values().filter(|is_limited| !**is_limited).count())
    }

    fn explain(&self, edge: &Edge, evidence: &Evidence, fate: &Fate, by: &BTreeSet<Denial>) -> Option<String> {
        let with = |word: &str, reason: &str| {
            Some(if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") })
        };
        match fate {
            Fate::Forbidden(reason) => return with("forbidden", reason),
            Fate::Held(reason) => return with("held for review", reason),
            Fate::OwnNode => return with("own node", ""),
            Fate::Learned if evidence.via_service && !evidence.answered => {
                if by.iter().all(|denial| denial.direction == Direction::Ingress) {
                    return with("several stand behind the Service, and nobody saw this one answer", "");
                }
            }
            Fate::Learned | Fate::Pinned(_) | Fate::Failed | Fate::Unanswered => {}
        }
        let unknown = [&edge.source, &edge.destination].into_iter().find(|end| matches!(end, Endpoint::Unknown { .. }));
        match unknown {
            Some(end) => with("an end is not known", &end.to_string()),
            // An odd row is not for policies to allow.
            None if !is_expressible(edge) => with("no policy can speak of it", ""),
            None => self.odd(edge).and_then(|Member { workload, pod, .. }| {
                with("an odd pod", &format!("{workload} does not select its pod {pod}, by the labels that it has"))
            }),
        }
    }

    /// What is allowed between pods that are there, and was not observed. What no policy limits at either end is not of
    /// policies, and does not count.
    fn unseen(&self) -> BTreeMap<(Workload, Workload), BTreeMap<Excuse, Connections>> {
        let mut allowed: HashMap<(&Workload, &Workload), Connections> = HashMap::new();
        for (source, destination) in self.enforcement.limited_pairs() {
            let [from, to] = [source, destination].map(|number| &self.population.members[number]);
            if !from.is_current || !to.is_current {
                continue;
            }
            let connections = self.enforcement.connections(Party::Subject(source), Party::Subject(destination));
            if !connections.is_none() {
                *allowed.entry((&from.workload, &to.workload)).or_default() |= &connections;
            }
        }
        let known = self.known();
        let reasons = |source, destination| known.get(&(source, destination)).map_or(&[][..], Vec::as_slice);
        let mut unseen: BTreeMap<(Workload, Workload), BTreeMap<Excuse, Connections>> = BTreeMap::new();
        for ((source, destination), mut left) in allowed {
            let observed = reasons(source, destination).iter().filter(|(excuse, ..)| excuse.is_none());
            for (_, transport, first, last) in observed {
                left.take(*transport, *first, *last);
            }
            let mut excused: BTreeMap<Excuse, Connections> = BTreeMap::new();
            let mut excuse = |left: &mut Connections, excuse, (transport, first, last)| {
                let taken = left.take(transport, first, last);
                if !taken.is_none() {
                    *excused.entry(excuse).or_default() |= &taken;
                }
            };
            let mut others: Vec<_> =
                reasons(source, destination).iter().filter_map(|(e, t, p, q)| Some(((*e)?, (*t, *p, *q)))).collect();
            others.sort_unstable();
            others.into_iter().for_each(|(of, ports)| excuse(&mut left, of, ports));
            for (other_source, other_destination) in self.alike(source, destination) {
                for (_, transport, first, last) in reasons(other_source, other_destination) {
                    excuse(&mut left, Excuse::Collateral, (*transport, *first, *last));
                }
            }
            if !left.is_none() {
                excused.insert(Excuse::None, left);
            }
            if !excused.is_empty() {
                unseen.insert((source.clone(), destination.clone()), excused);
            }
        }
        unseen
    }

    /// Pairs of workloads that a policy can't tell from a pair, because selectors take in both.
    fn alike<'w>(&'w self, source: &'w Workload, destination: &'w Workload) -> Vec<(&'w Workload, &'w Workload)> {
        let others = |workload: &'w Workload| {
            let of = move |(a, b): &'w (Workload, Workload)| (b == workload).then_some(a);
            std::iter::once(workload).chain(self.terms.overlaps.iter().filter_map(of)).collect::<Vec<_>>()
        };
        if self.terms.overlaps.is_empty() {
            return Vec::new();
        }
        let destinations = others(destination);
        others(source).into_iter().flat_map(|from| destinations.iter().map(move |to| (from, *to))).collect()
    }

    /// What was observed between workloads, under `None`; and what may be allowed for other reasons.
    fn known(&self) -> HashMap<(&'a Workload, &'a Workload), Vec<Reason>> {
        let mut known: HashMap<_, Vec<Reason>> = HashMap::new();
        for (edge, (evidence, fate)) in &self.sets.edges {
            let (Endpoint::Workload(source), Endpoint::Workload(destination)) = (&edge.source, &edge.destination)
            else {
                continue;
            };
            let Some(transport) = edge.transport.known() else { continue };
            let reasons = known.entry((source, destination)).or_default();
            if matches!(fate, Fate::Pinned(_)) {
                let ranges = self.sets.pinned_ports.get(edge).into_iter().flatten();
                reasons.extend(ranges.map(|range| (Some(Excuse::Pinned), transport, *range.start(), *range.end())));
                reasons.push((Some(Excuse::Pinned), transport, edge.port, edge.port));
            }
            if !evidence.is_established() {
                continue;
            }
            let excuse = (evidence.via_service && !evidence.answered).then_some(Excuse::ViaService);
            reasons.push((excuse, transport, edge.port, edge.port));
            let of_services = evidence.service_ports.iter();
            reasons.extend(of_services.map(|port| (Some(Excuse::ServicePort), transport, *port, *port)));
            if evidence.asks_names(edge) {
                for transport in [Transport::Tcp, Transport::Udp] {
                    reasons.push((Some(Excuse::Names), transport, edge.port, edge.port));
                    reasons.push((Some(Excuse::ServicePort), transport, DNS_PORT, DNS_PORT));
                }
            }
        }
        known
    }

    /// How many addresses outside are allowed, and how many of them were observed.
    fn outside(&self) -> BTreeMap<(Workload, Direction), (u128, u128)> {
        let mut seen: BTreeMap<(&Workload, Direction), BTreeSet<IpAddr>> = BTreeMap::new();
        for (edge, (evidence, _)) in &self.sets.edges {
            let ends = [
                (&edge.destination, Direction::Ingress, &edge.source),
                (&edge.source, Direction::Egress, &edge.destination),
            ];
            for (own, direction, peer) in ends {
                if let (Endpoint::Workload(workload), Endpoint::External { address } | Endpoint::Node { address, .. }) =
                    (own, peer)
                    && evidence.is_established()
                {
                    seen.entry((workload, direction)).or_default().insert(*address);
                }
            }
        }
        let mut found = BTreeMap::new();
        for (workload, numbers) in &self.numbers {
            for direction in Direction::ALL {
                let blocks = numbers.iter().flat_map(|number| self.enforcement.blocks_of(*number, direction));
                let blocks: Vec<IpNet> = blocks.collect();
                if blocks.is_empty() {
                    continue;
                }
                let seen = seen.get(&(workload, direction)).into_iter().flatten();
                let seen = seen.filter(|address| blocks.iter().any(|block| block.contains(*address))).count();
                let sum =
                    IpNet::aggregate(&blocks).into_iter().fold(0, |sum: u128, block| sum.saturating_add(size(block)));
                found.insert(((*workload).clone(), direction), (sum, seen as u128));
            }
        }
        found
    }
}
