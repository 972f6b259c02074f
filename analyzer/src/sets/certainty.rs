//! What one end alone says of a connection, and whether that is enough: the other end's agent may not have watched, or may
//! not see that end's sockets; or it watched, and nothing came.
//!
//! | seen by | the other end | then |
//! |---|---|---|
//! | the client | certainly recorded, and nothing came; a proxy in the client's own pod answered, or nobody did | not answered |
//! | the client | otherwise | a rule, seen from one end |
//! | the server | certainly recorded, and nothing else explains it | held |
//! | the server | its sockets are not its node's | a rule; it is not observed |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use roaring::RoaringBitmap;
use schemas::{
    index::{Index, Span, UnknownReason},
    vocabulary::Transport,
};

use super::{
    Unattributed,
    exposure::{Exposure, Runtime},
    redirect::{Redirects, WithinPods},
    unattributed,
};
use crate::communication::{Communications, Direction, Edge, Endpoint, Evidence, Workload};

/// What is known of the ends of connections, for those that one end alone saw.
pub(super) struct Certainty<'a> {
    exposure: &'a Exposure,
    redirects: &'a Redirects,
    own: &'a OwnHours,
    unattributed: &'a Unattributed,
    tolerance_ms: i64,
    /// Ports on which datagrams came whose sender was not asked for.
    unasked: BTreeSet<(&'a Workload, u16)>,
    /// Workloads and transports of connections to addresses that may stand for anything, such as a load balancer's, or a node's
    /// with ports of its own for pods and Services.
    elsewhere: BTreeSet<(&'a Workload, Option<Transport>)>,
}

/// The hours in which sockets of each workload were seen by the agents of its own nodes.
pub(super) struct OwnHours(BTreeMap<Workload, RoaringBitmap>);

impl OwnHours {
    /// Those of all connections, within pods too.
    pub(super) fn new(communications: &Communications, within: &WithinPods) -> Self {
        let mut own: BTreeMap<Workload, RoaringBitmap> = BTreeMap::new();
        for (edge, evidence) in communications {
            for (direction, workload) in edge.workloads() {
                let hours = evidence.hours_of(direction);
                if !hours.is_empty() {
                    *own.entry(workload.clone()).or_default() |= hours;
                }
            }
        }
        for (workload, ports) in within {
            let known = own.entry(workload.clone()).or_default();
            ports.values().for_each(|evidence| *known |= &evidence.client_hours | &evidence.server_hours);
        }
        Self(own)
    }

    /// Those of a workload, and the hours beside them: windows of two agents end at different times.
    fn near(&self, workload: &Workload) -> RoaringBitmap {
        let own = self.0.get(workload).into_iter().flatten();
        own.flat_map(|hour| hour.saturating_sub(1)..=hour.saturating_add(1)).collect()
    }

    /// Finds the workloads that others saw have connections while the agents of their own nodes saw nothing of them, and
    /// those that run in something that hides it.
    pub(super) fn find_unseen(
        &self,
        communications: &Communications,
        redirects: &Redirects,
        unattributed: &Unattributed,
        index: &Index,
        exposure: &mut Exposure,
    ) {
        // A proxy of the node may go on with what it took from a pod under the pod's address (Cilium's, for rules above TCP).
        let is_the_nodes = |edge: &Edge, workload: &Workload| {
            let has = |address: &IpAddr| index.pods_with(*address).any(|pod| Workload::of(pod, index) == *workload);
            communications.iter().any(|(other, evidence)| {
                let is_same = (&other.destination, &other.transport, other.port)
                    == (&edge.destination, &edge.transport, edge.port);
                is_same
                    && !evidence.client_hours.is_empty()
                    && matches!(&other.source, Endpoint::Node { address, .. } if has(address))
            })
        };
        let mut unseen: BTreeMap<Workload, (RoaringBitmap, BTreeSet<Edge>)> = BTreeMap::new();
        for (edge, evidence) in communications {
            let by_server = (Direction::Egress, &edge.source, &evidence.server_hours);
            // What was dialled through several Services' pods may have been answered by another one.
            let is_answered = evidence.answered && !evidence.is_unanswered(edge, redirects);
            let by_client = (Direction::Ingress, &edge.destination, &evidence.client_hours);
            let seen = [Some(by_server), Some(by_client).filter(|_| is_answered)];
            for (direction, end, hours) in seen.into_iter().flatten() {
                let Endpoint::Workload(workload) = end else { continue };
                let Some(time) = exposure.of(workload) else { continue };
                let mut hours = hours & &evidence.hours & &time.observable;
                if self.0.get(workload).is_some_and(|own| hours.is_subset(own)) {
                    continue; // as nearly all are
                }
                hours -= self.near(workload);
                if hours.is_empty() || unattributed::explains(unattributed, workload, direction, edge) {
                    continue;
                }
                if direction == Direction::Ingress || !is_the_nodes(edge, workload) {
                    let (all, edges) = unseen.entry(workload.clone()).or_default();
                    *all |= hours;
                    edges.insert(edge.clone());
                }
            }
        }
        for (workload, (hours, edges)) in unseen {
            exposure.doubt(&workload, &hours, edges);
        }
        let hides = |workload: &&Workload| match exposure.of(workload).and_then(|time| time.runtime.as_ref()) {
            Some(Runtime::Machine | Runtime::Sandbox(_)) => true,
            Some(Runtime::Class(_)) => !self.0.contains_key(*workload),
            None => false,
        };
        let hidden: Vec<Workload> = exposure.workloads().filter(hides).cloned().collect();
        hidden.iter().for_each(|workload| exposure.doubt_all(workload));
    }
}

impl<'a> Certainty<'a> {
    pub(super) fn new(
        communications: &'a Communications,
        exposure: &'a Exposure,
        redirects: &'a Redirects,
        own: &'a OwnHours,
        unattributed: &'a Unattributed,
        tolerance_ms: i64,
    ) -> Self {
        let (mut unasked, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
        for (Edge { source, destination, transport, port, .. }, evidence) in communications {
            match (source, destination) {
                (_, Endpoint::Workload(workload)) if source.is_unknown_as(UnknownReason::SenderNotAsked) => {
                    unasked.insert((workload, *port));
                }
                (Endpoint::Workload(workload), other)
                    if evidence.is_established() && !matches!(other, Endpoint::Workload(_)) =>
                {
                    elsewhere.insert((workload, transport.known()));
                }
                _ => {}
            }
        }
        Self { exposure, redirects, own, unattributed, tolerance_ms, unasked, elsewhere }
    }

    /// Whether nobody answered what a client sent.
    pub(super) fn is_unanswered(&self, edge: &Edge, evidence: &Evidence) -> bool {
        let Endpoint::Workload(workload) = &edge.destination else { return false };
        evidence.answered
            && evidence.server_hours.is_empty()
            // Older ones may be of a kind that is not found again.
            && evidence.connections > 0
            && evidence.is_unanswered(edge, self.redirects)
            && !self.unasked.contains(&(workload, edge.port))
            && self.is_certain(workload, Direction::Ingress, &evidence.client_hours, evidence)
    }

    /// Why what one end alone saw has to be looked at by a person first, if it has.
    pub(super) fn doubt(&self, edge: &Edge, evidence: &Evidence) -> Option<String> {
        let Endpoint::Workload(workload) = &edge.source else { return None };
        self.doubt_client(workload, edge, evidence).or_else(|| self.doubt_server(workload, edge, evidence))
    }

    /// What only a proxy in the client's own pod is known to have accepted.
    fn doubt_client(&self, workload: &Workload, edge: &Edge, evidence: &Evidence) -> Option<String> {
        let is_doubtful = !evidence.client_hours.is_empty()
            && evidence.server_hours.is_empty()
            && matches!(edge.destination, Endpoint::External { .. } | Endpoint::Workload(_))
            && evidence.is_intercepted(edge, self.redirects)
            && evidence.failed >= evidence.connections;
        is_doubtful.then(|| {
            format!("a proxy in the pods of {workload} takes their connections, and none of its own is known to have succeeded")
        })
    }

    /// What only a server saw, of a client whose own connections were all recorded.
    fn doubt_server(&self, workload: &Workload, edge: &Edge, evidence: &Evidence) -> Option<String> {
        let is_doubtful = evidence.client_hours.is_empty()
            && evidence.connections > 0
            && !self.elsewhere.contains(&(workload, edge.transport.known()))
            && self.is_certain(workload, Direction::Egress, &evidence.server_hours, evidence);
        is_doubtful.then(|| {
            format!(
                "seen by its server alone, though all that {workload} did was recorded: its address was used by another, or \
                 the clocks of the nodes differ"
            )
        })
    }

    /// Whether all that happened at a workload in the hours of some evidence was recorded.
    fn is_certain(
        &self,
        workload: &Workload,
        direction: Direction,
        hours: &RoaringBitmap,
        evidence: &Evidence,
    ) -> bool {
        let span = Span { from: evidence.first_seen, to: evidence.last_seen }.widened(self.tolerance_ms);
        self.own.0.get(workload).is_some_and(|own| hours.is_subset(own))
            && !self.unattributed.contains_key(&(workload.clone(), direction))
            && self
                .exposure
                .of(workload)
                .is_some_and(|time| time.unseen.is_empty() && time.is_certain(direction, hours, span))
    }
}

impl Evidence {
    /// Whether what the client alone saw says nothing of the other end: a proxy in its own pod accepted for it, or it sent
    /// datagrams and got none.
    fn is_unanswered(&self, edge: &Edge, redirects: &Redirects) -> bool {
        match edge.transport.known() {
            Some(Transport::Udp) => self.bytes_received == 0,
            _ => self.is_intercepted(edge, redirects) || self.failed >= self.connections.max(1),
        }
    }

    fn is_intercepted(&self, edge: &Edge, redirects: &Redirects) -> bool {
        edge.transport.known() == Some(Transport::Tcp)
            && matches!(&edge.source, Endpoint::Workload(workload) if redirects.intercepting.contains(workload))
    }
}
