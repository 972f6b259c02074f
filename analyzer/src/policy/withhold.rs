//! Directions that are left open: what is not sure, what comes from too many addresses, and what would hold for another
//! workload too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use schemas::{index::UnknownReason, inventory::ObjectKind, programs::Program};

use super::{
    Draft, Finding, Wish, path_of,
    rule::{Peer, Port, join},
};
use crate::{
    communication::{Direction, Edge, Endpoint, Evidence, Workload},
    sets::{Status, Unrecorded, named},
};

impl Draft<'_> {
    /// Withholds what was not observed for long enough, or not in enough places, and names what is not stable.
    pub(super) fn withhold_unsure(&mut self) {
        let Wish { only_stable, min_coverage, .. } = *self.wish;
        let mut unsure: BTreeMap<_, BTreeSet<Workload>> = BTreeMap::new();
        for (workload, set) in &self.sets.workloads {
            let time = self.sets.exposure.of(workload);
            if let Some(runtime) = time.and_then(|time| time.hidden_in()) {
                let reason = format!(
                    "its pods run in {runtime}, and the agents of their nodes see nothing of what they do: say what they need \
                     (--decisions), or write their policy by hand"
                );
                for direction in Direction::ALL {
                    self.withhold_seen(workload, direction, reason.clone());
                }
                continue;
            }
            if let Some(unseen) = time.map(|time| &time.unseen).filter(|unseen| !unseen.is_empty()) {
                let reason = format!(
                    "others saw it where the agents of its own nodes saw nothing of it: {}; its sockets are not the node's \
                     (a sandbox, a virtual machine, a network of its own), so that all else it does is not known",
                    some_of(unseen)
                );
                for direction in Direction::ALL {
                    self.withhold_seen(workload, direction, reason.clone());
                }
                continue;
            }
            let coverage = time.and_then(|time| time.coverage());
            if coverage.is_none() && self.sets.exposure.capture.is_some() && self.index.is_covered() {
                for direction in Direction::ALL {
                    self.withhold(workload, direction, "none of its pods was there to be observed".into());
                }
                continue;
            }
            if let Some(coverage) = coverage.filter(|coverage| *coverage < min_coverage) {
                let (share, wanted) = (100.0 * coverage, 100.0 * min_coverage);
                let reason = format!("{share:.0} % of its pods' time was observed, of {wanted:.0} % (--min-coverage)");
                for direction in Direction::ALL {
                    self.withhold(workload, direction, reason.clone());
                }
                continue;
            }
            let mut of_reason: BTreeMap<(&str, &'static str), Vec<Direction>> = BTreeMap::new();
            for direction in Direction::ALL {
                if let Some(reason) = self.unrecorded(workload, direction) {
                    self.withhold(workload, direction, reason);
                    continue;
                }
                let (status, reason) = &set.directions[direction];
                if *status == Status::Stable || !self.wish.directions.contains(&direction) {
                    continue;
                }
                if only_stable {
                    self.withhold(workload, direction, format!("it is {}: {reason}", status.as_str()));
                } else if self.rules.contains_key(workload) {
                    of_reason.entry((reason, status.as_str())).or_default().push(direction);
                }
            }
            for ((reason, status), directions) in of_reason {
                unsure.entry((reason.to_owned(), status, directions)).or_default().insert(workload.clone());
            }
        }
        let finding =
            |((reason, status, directions), workloads)| Finding::NotStable { reason, status, directions, workloads };
        self.findings.extend(unsure.into_iter().map(finding));
    }

    /// Withholds a direction of a workload of which something was seen, also where none of that makes a rule.
    fn withhold_seen(&mut self, workload: &Workload, direction: Direction, reason: String) {
        if self.wants(workload) {
            self.rules.entry(workload.clone()).or_default();
        }
        self.withhold(workload, direction, reason);
    }

    /// Withholds the ingress of a workload that receives datagrams without asking who sends them, so that the senders whose
    /// own end was not recorded are not known.
    pub(super) fn withhold_unasked(&mut self, workload: &Workload, edge: &Edge) {
        let Edge { transport, port, .. } = edge;
        let reason = format!(
            "it receives on {port}/{} without asking for the sender (recv), so that not all senders are known",
            transport.protocol()
        );
        self.withhold_seen(workload, Direction::Ingress, reason);
    }

    /// Withholds what passed between a workload and an address of which it is not known whose it is: no rule can name it.
    pub(super) fn withhold_unknown(&mut self, edge: &Edge, evidence: &Evidence) {
        for (direction, workload) in edge.workloads() {
            let other = edge.ends(direction).1;
            let Endpoint::Unknown { address: Some(address), .. } = other else { continue };
            let is_lost = LOST_ADDRESSES.iter().any(|reason| other.is_unknown_as(*reason));
            let is_lost = is_lost && !evidence.hours_of(direction).is_empty() && self.wants(workload);
            if is_lost && !self.is_allowed_anyway(edge, direction, *address) {
                let reason = format!(
                    "{edge} passed, and whose address {address} is, is not known: pin or forbid it (--decisions)"
                );
                self.withhold_seen(workload, direction, reason);
            }
        }
    }

    /// Whether a connection with an address is allowed whoever had it: the same was learned of all who are known to have had
    /// it at any time, or of the address itself.
    fn is_allowed_anyway(&self, edge: &Edge, direction: Direction, address: IpAddr) -> bool {
        let owners: BTreeSet<Workload> =
            self.index.pods_with(address).map(|pod| Workload::of(pod, self.index)).collect();
        let learned = self.sets.edges.iter().filter(|(same, (evidence, fate))| {
            let is_same = same.transport == edge.transport && same.port == edge.port;
            is_same
                && fate.is_allowed()
                && evidence.is_established()
                && same.ends(direction).0 == edge.ends(direction).0
        });
        let others: Vec<&Endpoint> = learned.map(|(same, _)| same.ends(direction).1).collect();
        let is_other =
            |workload: &Workload| others.iter().any(|end| matches!(end, Endpoint::Workload(w) if w == workload));
        let is_address = |end: &&Endpoint| match end {
            Endpoint::Node { address: known, .. } | Endpoint::External { address: known } => *known == address,
            _ => false,
        };
        if owners.is_empty() { others.iter().any(is_address) } else { owners.iter().all(is_other) }
    }

    /// Withholds what connections of sockets of no known pod may belong to, where they were there for too much of the time.
    pub(super) fn withhold_unattributed(&mut self) {
        for ((workload, direction), (hours, edges)) in &self.sets.unattributed {
            let Some(time) = self.sets.exposure.of(workload) else { continue };
            let share = hours.intersection_len(&time.ran) as f64 / time.ran.len().max(1) as f64;
            if 1.0 - share < self.wish.min_coverage {
                let named = some_of(edges);
                let reason = format!("it may be one of its pods whose containers have a network of their own: {named}");
                self.withhold_seen(workload, *direction, reason);
            }
        }
    }

    /// Withholds the ingress of workloads that declare ports of a transport that is not recorded, unless a person decided
    /// on them.
    pub(super) fn withhold_unrecorded_transports(&mut self) {
        for (workload, ports) in &self.sets.unrecorded_ports {
            let ports = ports.iter().map(|(transport, port)| format!("{port}/{}", transport.protocol()));
            let reason = format!(
                "it declares {}, which is not recorded: pin or forbid it (--decisions)",
                ports.collect::<Vec<_>>().join(", ")
            );
            self.withhold_seen(workload, Direction::Ingress, reason);
        }
    }

    /// Withholds what is dialled on ports that differ each time: those to come are none of those that were seen.
    pub(super) fn withhold_dynamic(&mut self) {
        for workload in self.sets.workloads.keys() {
            for (direction, server, found) in self.sets.dynamic_ports_of(workload) {
                let reason = found.reason(server, direction);
                self.withhold_seen(workload, direction, reason);
            }
        }
    }

    /// Withholds what connections could belong to of which it is not known which end initiated.
    pub(super) fn withhold_undirected(&mut self) {
        for ((workload, direction), edges) in &self.sets.undirected {
            let connections: i64 = edges.values().sum();
            let named = some_of(edges.keys());
            let reason = format!(
                "connections were open before the recording ({connections}), and who dialled is not known: {named}"
            );
            self.withhold_seen(workload, *direction, reason);
        }
    }

    /// Withholds what a proxy in the pods accepted on a port of its own, where the port that was dialled is not known; names
    /// the other ports of that kind.
    pub(super) fn withhold_redirected(&mut self) {
        for ((workload, direction), edges) in &self.sets.redirects.unknown {
            let named = some_of(edges);
            let reason = format!(
                "a proxy may accept there in place of the port that was dialled, which is not known: {named}; declare the ports \
                 that its containers serve, or record those who dial"
            );
            self.withhold_seen(workload, *direction, reason);
        }
        for ((workload, accepting), dialled) in &self.sets.redirects.dialled {
            if self.wants(workload) {
                let (workload, dialled) = (workload.clone(), dialled.clone());
                self.findings.insert(Finding::Redirected { workload, accepting: *accepting, dialled });
            }
        }
    }

    /// What was not recorded of a direction, where too much of its time was observed without all programs.
    fn unrecorded(&self, workload: &Workload, direction: Direction) -> Option<String> {
        let time = self.sets.exposure.of(workload)?;
        time.coverage_of(direction).filter(|coverage| *coverage < self.wish.min_coverage)?;
        let reasons = time.unrecorded(direction).map(|(Unrecorded { program, nodes, .. }, share)| {
            let Program { name, traffic, .. } = program;
            let (share, nodes) = (100.0 * share, named(nodes));
            format!("{traffic} was not seen for {share:.0} % of its pods' time: {name} was missing on {nodes}")
        });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Merges addresses outside where a rule has too many; where that is not enough, the ingress of a workload is withheld.
    pub(super) fn merge_outside(&mut self) {
        let max = self.wish.max_cidrs;
        let mut crowded = Vec::new();
        for (workload, directions) in &mut self.rules {
            for direction in Direction::ALL {
                let rules = &mut directions[direction];
                join(rules);
                let mut by_ports: BTreeMap<BTreeSet<Port>, BTreeSet<IpAddr>> = BTreeMap::new();
                for (peer, ports) in rules.iter() {
                    if let Peer::Block { cidr, is_node: false } = peer {
                        by_ports.entry(ports.keys().cloned().collect()).or_default().insert(cidr.addr());
                    }
                }
                for (ports, addresses) in by_ports.into_iter().filter(|(_, addresses)| addresses.len() > max) {
                    let blocks = self.outside.merged(addresses.iter().copied(), max);
                    if blocks.len() > max {
                        crowded.push((workload.clone(), direction, ports.clone(), blocks.len()));
                    }
                    for address in addresses {
                        let single = IpNet::from(address);
                        // Blocks are disjoint: of those that begin before it, the last one holds it.
                        let Some(block) = blocks.range(..=single).next_back() else { continue };
                        let block = Peer::Block { cidr: *block, is_node: false };
                        let single = Peer::Block { cidr: single, is_node: false };
                        if block == single {
                            continue;
                        }
                        let seen = rules.remove(&single).unwrap_or_default();
                        let known = rules.entry(block).or_default();
                        for (port, edges) in seen {
                            known.entry(port).or_default().extend(edges);
                        }
                    }
                }
            }
        }
        for (workload, direction, ports, blocks) in crowded {
            let told = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if direction == Direction::Egress {
                self.findings.insert(Finding::ManyAddresses { workload, ports: told, blocks });
                continue;
            }
            let services = self.index.latest(ObjectKind::Service).filter(|(service, _)| {
                let behind = self.behind(service);
                ports.iter().any(|port| behind.contains(&(workload.clone(), *port)))
            });
            let services: Vec<String> =
                services.map(|(service, _)| format!("--open-ingress {}", path_of(service))).collect();
            let decide = if services.is_empty() { "raise --max-cidrs".into() } else { services.join(" or ") };
            let reason =
                format!("{blocks} addresses outside on {told} are more than a rule should have: decide with {decide}");
            self.withhold(&workload, direction, reason);
        }
    }

    /// Judges selectors, and withholds what a policy that is withheld for another workload would isolate all the same.
    pub(super) fn overlaps(&mut self) -> BTreeSet<(Workload, Workload)> {
        let workloads: Vec<Workload> =
            self.sets.workloads.keys().filter(|workload| self.is_named(workload)).cloned().collect();
        let mut overlaps = BTreeSet::new();
        for workload in workloads {
            let Some(selector) = self.selectors.of(&workload) else { continue };
            let pods = self.sets.exposure.of(&workload).map_or(0, |time| time.pods);
            if *workload.kind == ObjectKind::Pod && pods > 1 {
                self.findings.insert(Finding::Together { workload: workload.clone(), pods });
            }
            for finding in self.selectors.judge(&workload, &selector) {
                if let Finding::SelectsAnother { workload, other } = &finding {
                    overlaps.insert((workload.clone(), other.clone()));
                }
                self.findings.insert(finding);
            }
        }
        loop {
            let caught = overlaps.iter().flat_map(|pair| Direction::ALL.map(|direction| (pair, direction)));
            let caught = caught.filter(|((workload, other), direction)| {
                let is_withheld = |workload: &Workload| self.withheld.contains_key(&(workload.clone(), *direction));
                !is_withheld(workload) && is_withheld(other)
            });
            let caught: Vec<_> = caught.collect();
            if caught.is_empty() {
                return overlaps;
            }
            for ((workload, other), direction) in caught {
                self.withhold(
                    workload,
                    direction,
                    format!("its policy would hold for {other} too, where it is withheld"),
                );
            }
        }
    }

    /// Whether a policy is about a workload, or names it.
    fn is_named(&self, workload: &Workload) -> bool {
        self.rules.contains_key(workload)
            || self.sets.workloads[workload].entries.iter().any(|entry| {
                [&entry.edge.source, &entry.edge.destination]
                    .iter()
                    .any(|end| matches!(end, Endpoint::Workload(other) if self.rules.contains_key(other)))
            })
    }
}

/// The first of some edges, and how many more there are.
fn some_of<'a>(edges: impl IntoIterator<Item = &'a Edge, IntoIter: ExactSizeIterator>) -> String {
    let edges = edges.into_iter();
    let more = edges.len().saturating_sub(NAMED_EDGES);
    let named: Vec<String> = edges.take(NAMED_EDGES).map(ToString::to_string).collect();
    match more {
        0 => named.join(", "),
        more => format!("{}, and {more} more", named.join(", ")),
    }
}

/// Why it is not known whose address it was that a connection came from or went to.
const LOST_ADDRESSES: [UnknownReason; 4] =
    [UnknownReason::Ambiguous, UnknownReason::NoOwner, UnknownReason::NoInventory, UnknownReason::NoEndpoints];
/// Edges that a reason names.
const NAMED_EDGES: usize = 3;
