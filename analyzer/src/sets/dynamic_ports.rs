//! Ports that a server did not choose: passive FTP, RPC, Spark, RTP and their like listen where the kernel lets them, and
//! the next time elsewhere. Rules for the ports that were seen would allow what never comes again and deny what comes next,
//! so none is learned: a person pins a range, or forbids it.
//!
//! Undeclared ports of one destination are taken for such if there are several of them and
//!
//! - each had one connection that was soon over, and they are of the range of which the kernel chooses, or one peer's, some
//!   of that range or many and far from each other; or
//! - each is of that range (from 32768 on, `ip_local_port_range`), and each was another pod's, or they were in use one after
//!   the other.
//!
//! One is enough, over UDP, if all who sent to it had been asked by its own end before, on a port below that range: then
//! they answered from another port, as TFTP does (RFC 1350, section 4).

use std::collections::{BTreeMap, BTreeSet};

use schemas::{table::TimestampMs, vocabulary::Transport};

use super::{Fate, declared::Declared, undirected::FIRST_EPHEMERAL};
use crate::communication::{Direction, Edge, Endpoint, Evidence, Workload};

/// Destinations with ports that differ each time.
pub(crate) type DynamicPorts = BTreeMap<(Endpoint, Transport), Dynamic>;

/// Ports of one destination that differ each time, and who dials them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dynamic {
    pub(crate) ports: BTreeSet<u16>,
    pub(crate) sources: BTreeSet<Endpoint>,
    pub(crate) connections: i64,
}

/// What was seen of one port of a destination.
struct Seen<'a> {
    /// The workload that dialled it first; `None` for all who are none.
    source: Option<&'a Workload>,
    sources: BTreeSet<&'a Endpoint>,
    pods: BTreeSet<&'a str>,
    connections: i64,
    /// All of them were over before the next look at what is open.
    are_short: bool,
    first: TimestampMs,
    last: TimestampMs,
}

/// Finds the destinations whose undeclared ports differ each time, among some edges, and those ports.
pub(super) fn find<'a>(
    communications: impl Iterator<Item = (&'a Edge, &'a Evidence)>,
    declared: &Declared<'_>,
) -> DynamicPorts {
    let mut seen: BTreeMap<(&Endpoint, Transport), BTreeMap<u16, Seen<'_>>> = BTreeMap::new();
    let mut asked: BTreeSet<(&Endpoint, &Endpoint)> = BTreeSet::new();
    for (edge, evidence) in communications {
        let Some(transport) = edge.transport.known() else { continue };
        if transport == Transport::Udp && edge.port < FIRST_EPHEMERAL {
            asked.insert((&edge.source, &edge.destination));
        }
        if !may_be(edge, evidence) {
            continue;
        }
        let ports = seen.entry((&edge.destination, transport)).or_default();
        let port = ports.entry(edge.port).or_insert_with(|| Seen {
            source: match &edge.source {
                Endpoint::Workload(workload) => Some(workload),
                _ => None,
            },
            sources: BTreeSet::new(),
            pods: BTreeSet::new(),
            connections: 0,
            are_short: true,
            first: evidence.first_seen,
            last: evidence.last_seen,
        });
        port.sources.insert(&edge.source);
        port.pods.extend(evidence.destination_pods.iter().map(|uid| &**uid));
        port.connections += evidence.connections.max(evidence.max_active);
        port.are_short &= evidence.max_active == 0;
        port.first = port.first.min(evidence.first_seen);
        port.last = port.last.max(evidence.last_seen);
    }
    let mut found = DynamicPorts::new();
    for ((destination, transport), mut ports) in seen {
        if let Endpoint::Workload(workload) = destination {
            ports.retain(|port, _| !declared.has(workload, transport, *port));
        }
        let has_asked = |seen: &Seen<'_>| seen.sources.iter().all(|source| asked.contains(&(destination, source)));
        let answers = ports.iter().filter(|(port, seen)| **port >= FIRST_EPHEMERAL && has_asked(seen));
        let answers = answers.filter(|_| transport == Transport::Udp).map(|(port, _)| *port);
        let ports: BTreeSet<u16> = answers.chain(differing(&ports)).collect();
        if !ports.is_empty() {
            found.insert((destination.clone(), transport), Dynamic { ports, ..Dynamic::default() });
        }
    }
    found
}

/// Whether an edge may be to a port that was not chosen: nobody can declare what is dialled through a Service otherwise.
fn may_be(edge: &Edge, evidence: &Evidence) -> bool {
    // Of a node, nobody declares the lower ports; what no datagram came back from, nobody may serve.
    let first = if matches!(edge.destination, Endpoint::Node { .. }) { FIRST_EPHEMERAL } else { FIRST_UNPRIVILEGED };
    let is_answered = edge.transport.known() != Some(Transport::Udp)
        || evidence.bytes_received > 0
        || !evidence.server_hours.is_empty();
    edge.port >= first
        && is_answered
        && !edge.own_node
        && edge.source_port.is_none()
        && evidence.is_established()
        && evidence.service_ports.is_empty()
        && !matches!(edge.destination, Endpoint::Unknown { .. })
}

/// Of the ports of a destination those that differ each time.
fn differing(ports: &BTreeMap<u16, Seen<'_>>) -> BTreeSet<u16> {
    let is_chosen_by_kernel = |port: u16| port >= FIRST_EPHEMERAL;
    let of_one_pod = || ports.iter().filter(|(_, seen)| seen.pods.len() <= 1);
    let mut once: BTreeMap<Option<&Workload>, BTreeSet<u16>> = BTreeMap::new();
    for (port, seen) in of_one_pod().filter(|(_, seen)| seen.connections == 1 && seen.are_short) {
        once.entry(seen.source).or_default().insert(*port);
    }
    let of_kernel: BTreeSet<u16> = once.values().flatten().copied().filter(|port| is_chosen_by_kernel(*port)).collect();
    let mut differing = if of_kernel.len() >= FEWEST { of_kernel } else { BTreeSet::new() };
    for ports in once.into_values().filter(|ports| ports.len() >= FEWEST) {
        let of_kernel = ports.iter().filter(|port| is_chosen_by_kernel(**port)).count();
        let far = ports.iter().zip(ports.iter().skip(1)).filter(|(port, next)| **next - **port >= FAR).count();
        let is_scattered = ports.len() >= MANY && 2 * far >= ports.len();
        // Fixed ports that were tried once each look alike, were it not for where they are.
        if is_scattered || of_kernel * 4 >= ports.len() {
            differing.extend(ports);
        }
    }
    let kernel: BTreeMap<u16, &Seen<'_>> =
        of_one_pod().filter(|(port, _)| is_chosen_by_kernel(**port)).map(|(port, seen)| (*port, seen)).collect();
    let pods: BTreeSet<&str> = kernel.values().flat_map(|seen| seen.pods.iter().copied()).collect();
    if kernel.len() >= FEWEST && (pods.len() >= FEWEST || one_after_the_other(kernel.values().copied()) >= FEWEST) {
        differing.extend(kernel.keys());
    }
    differing
}

/// How many ports there are, at the most, of which one was not in use before another one's end.
fn one_after_the_other<'s>(ports: impl Iterator<Item = &'s Seen<'s>>) -> usize {
    let mut times: Vec<_> = ports.map(|seen| (seen.last, seen.first)).collect();
    times.sort_unstable();
    let (mut count, mut until) = (0, None);
    for (last, first) in times {
        if until.is_none_or(|until| first > until) {
            (count, until) = (count + 1, Some(last));
        }
    }
    count
}

/// Why an edge is held, if its port is one that differs each time.
pub(super) fn doubt(dynamic: &DynamicPorts, edge: &Edge) -> Option<String> {
    let found = of(dynamic, edge)?;
    Some(format!("dynamic port: one of {} of {} that differ each time", found.ports.len(), edge.destination))
}

/// What an edge's port is one of.
fn of<'a>(dynamic: &'a DynamicPorts, edge: &Edge) -> Option<&'a Dynamic> {
    let found = dynamic.get(&(edge.destination.clone(), edge.transport.known()?))?;
    found.ports.contains(&edge.port).then_some(found)
}

/// Leaves what nobody decided on, with who dials it.
pub(super) fn undecided(dynamic: DynamicPorts, edges: &BTreeMap<Edge, (Evidence, Fate)>) -> DynamicPorts {
    let mut undecided = DynamicPorts::new();
    if dynamic.is_empty() {
        return undecided;
    }
    for (edge, (evidence, fate)) in edges {
        let is_held_for_it = matches!(fate, Fate::Held(reason) if doubt(&dynamic, edge).as_ref() == Some(reason));
        if let Some(transport) = edge.transport.known().filter(|_| is_held_for_it) {
            let found = undecided.entry((edge.destination.clone(), transport)).or_default();
            found.ports.insert(edge.port);
            found.sources.insert(edge.source.clone());
            found.connections += evidence.connections;
        }
    }
    undecided
}

impl super::Sets {
    /// Whether an edge is held because its port is one that differs each time: it is named with the others.
    pub(crate) fn is_dynamic(&self, edge: &Edge) -> bool {
        of(&self.dynamic_ports, edge).is_some_and(|found| found.sources.contains(&edge.source))
    }

    /// Destinations with ports that differ each time, as one of the ends that they concern has them.
    pub(crate) fn dynamic_ports_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = (Direction, &'a (Endpoint, Transport), &'a Dynamic)> {
        let is = move |end: &Endpoint| matches!(end, Endpoint::Workload(other) if other == workload);
        self.dynamic_ports.iter().flat_map(move |(server, found)| {
            let ingress = is(&server.0).then_some((Direction::Ingress, server, found));
            let egress = found.sources.iter().any(is).then_some((Direction::Egress, server, found));
            ingress.into_iter().chain(egress)
        })
    }
}

impl Dynamic {
    /// The range that allows those to come: the kernel's, or all that need no privilege.
    pub(crate) fn range(&self) -> (u16, u16) {
        let (first, last) = self.bounds();
        match first {
            FIRST_EPHEMERAL.. => (FIRST_EPHEMERAL, if last <= LAST_EPHEMERAL { LAST_EPHEMERAL } else { u16::MAX }),
            _ => (FIRST_UNPRIVILEGED, u16::MAX),
        }
    }

    /// The lowest and the highest of the ports.
    fn bounds(&self) -> (u16, u16) {
        (self.ports.first().copied().unwrap_or_default(), self.ports.last().copied().unwrap_or_default())
    }

    /// Why a direction of one of its ends is not closed.
    pub(crate) fn reason(&self, (destination, transport): &(Endpoint, Transport), direction: Direction) -> String {
        let (whose, of) = match direction {
            Direction::Ingress => ("its", String::new()),
            Direction::Egress => ("the", format!(" of {destination}")),
        };
        let (seen, protocol) = (self.seen(), transport.protocol());
        format!("{whose} ports{of} differ each time ({} seen, {seen}/{protocol})", self.ports.len())
    }

    /// In words, of a destination.
    pub(crate) fn described(&self, (destination, transport): &(Endpoint, Transport)) -> String {
        let Self { ports, sources, connections } = self;
        let mut named: Vec<String> = sources.iter().take(NAMED_SOURCES).map(ToString::to_string).collect();
        let more = sources.len().saturating_sub(NAMED_SOURCES);
        named.extend((more > 0).then(|| format!("{more} more")));
        let (from, to) = self.range();
        format!(
            "{destination} was dialled by {} on ports that differ each time ({} seen in {connections} connections, {}/{}): pin or \
             forbid a range (--decisions), such as port: {from}-{to}/{}",
            named.join(", "),
            ports.len(),
            self.seen(),
            transport.protocol(),
            transport.protocol().to_lowercase(),
        )
    }

    /// Where its ports are.
    fn seen(&self) -> String {
        match self.bounds() {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("from {first} to {last}"),
        }
    }
}

/// So many ports differ.
const FEWEST: usize = 3;
/// So many ports with a connection each differ wherever they are, if most are far from the next one.
const MANY: usize = 8;
/// Far from the next one is who has so many numbers to it.
const FAR: u16 = 16;
/// The first port that everybody may listen on (`ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED: u16 = 1024;
/// The last port of which Linux chooses by itself (`ip_local_port_range`).
const LAST_EPHEMERAL: u16 = 60999;
/// Sources that a description names.
const NAMED_SOURCES: usize = 3;
