//! Communication sets: of every workload, with whom it talks on which port, and how sure that is.
//!
//! ```text
//! Communications ──judge──► what is held for review     ┐
//! Index, Runs ──exposure──► when it could have been seen ├──► Sets: one entry per workload, direction, peer and port
//! Decisions (pin, forbid)                               ┘
//! ```
//!
//! The unit of time is the hour. An hour is *observable* for a workload when its pods ran in it and at least half of their
//! time was watched; silence in other hours says nothing.

mod certainty;
mod completeness;
mod decision;
mod declared;
mod dynamic_ports;
mod exposure;
mod judge;
mod learn;
mod recurrence;
mod redirect;
mod table_rows;
mod text;
mod unattributed;
mod undirected;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use roaring::RoaringBitmap;
use schemas::{
    index::Index,
    table::TimestampMs,
    vocabulary::{Transport, Word},
};
use serde::Serialize;

pub(crate) use completeness::{Completeness, Estimate};
pub(crate) use decision::{Decisions, DecisionsError};
pub(crate) use declared::behind;
pub(crate) use dynamic_ports::{Dynamic, DynamicPorts};
pub(crate) use exposure::{CoverageRow, GapRow, Unrecorded, named};
pub(crate) use learn::{Learn, Learned, Learning, learn};
pub(crate) use redirect::Redirects;
pub(crate) use table_rows::{CommunicationRow, SetRow, WorkloadRow};
pub(crate) use text::EncodeError;
pub(crate) use unattributed::Unattributed;
pub(crate) use undirected::Undirected;

use crate::{
    capture::health::Run,
    communication::{Communications, Direction, Edge, Endpoint, Evidence, PerDirection, Workload},
};
use certainty::{Certainty, OwnHours};
use declared::Declared;
use exposure::Exposure;

/// How much has to be observed before something is believed, in hours that are observable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Thresholds {
    /// Fewer: the workload is learning.
    pub(crate) learn_hours: u64,
    /// So many without a change: its set is stable.
    pub(crate) stable_hours: u64,
    /// So many without being seen: an edge is decaying.
    pub(crate) decay_hours: u64,
    /// So many in which a passing edge did not come again: it is held.
    pub(crate) hold_hours: u64,
}

/// Everything that was learned.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) workloads: BTreeMap<Workload, Set>,
    /// All communications, and of those that could be learned what became of them.
    pub(crate) edges: BTreeMap<Edge, (Evidence, Fate)>,
    pub(crate) exposure: Exposure,
    /// Of those on which names are asked, those whose other transport a person forbade.
    pub(crate) narrow: BTreeSet<Edge>,
    /// Of all that was learned.
    pub(crate) completeness: Completeness,
    /// Decisions that concern nothing.
    pub(crate) idle_decisions: Vec<String>,
    /// Connections whose direction is not known, by what they could belong to.
    pub(crate) undirected: Undirected,
    /// Connections of sockets of no known pod, by whose they may be.
    pub(crate) unattributed: Unattributed,
    /// Declared ports of transports that are not recorded, on which nobody has decided.
    pub(crate) unrecorded_ports: BTreeMap<Workload, BTreeSet<(Transport, u16)>>,
    /// Ports that are dialled, where a proxy accepts on another one.
    pub(crate) redirects: Redirects,
    /// Destinations with ports that differ each time, on which nobody has decided.
    pub(crate) dynamic_ports: DynamicPorts,
    /// Of edges that a person pinned with a range of ports, that range without what was forbidden.
    pub(crate) pinned_ports: BTreeMap<Edge, Vec<RangeInclusive<u16>>>,
}

/// What a workload talks to.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) status: Status,
    pub(crate) reason: String,
    /// The same of its ingress and of its egress.
    pub(crate) directions: PerDirection<(Status, String)>,
    /// How much of what it does has been seen.
    pub(crate) completeness: Completeness,
    /// Since when the set is what it is.
    pub(crate) since: Option<TimestampMs>,
    pub(crate) entries: Vec<Entry>,
}

/// One edge as one of its ends sees it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) direction: Direction,
    pub(crate) edge: Edge,
    /// The first hour in which it was seen, or was seen again after it had decayed; none if it never was.
    pub(crate) since: Option<u32>,
    pub(crate) status: Status,
    pub(crate) reason: String,
    pub(crate) recurrence: Option<recurrence::Recurrence>,
    /// Hours in which it was seen, and hours in which it could have been.
    pub(crate) seen_hours: u64,
    pub(crate) observable_hours: u64,
}

/// How sure an edge or a set is; in order of how much it needs attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Not seen any more.
    Decaying,
    /// Not observed for long enough to tell.
    Learning,
    /// Changed lately.
    Stabilizing,
    /// The same for long.
    Stable,
}

/// What becomes of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is learned.
    Learned,
    /// A person said that it is to be allowed.
    Pinned(String),
    /// A person said that it is not.
    Forbidden(String),
    /// It is not learned before a person has looked at it.
    Held(String),
    /// Nothing passed.
    Failed,
    /// What was sent did not arrive, which its client could not see.
    Unanswered,
    /// A pod's own node may always reach it.
    OwnNode,
}

impl Entry {
    /// Direction, peer and port in words.
    pub(crate) fn told(&self) -> String {
        let Edge { source, destination, transport, port, .. } = &self.edge;
        let transport = transport.protocol();
        match self.direction {
            Direction::Ingress => format!("ingress from {source} {port}/{transport}"),
            Direction::Egress => format!("egress to {destination} {port}/{transport}"),
        }
    }
}

impl Status {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Learning => "learning",
            Self::Stabilizing => "stabilizing",
            Self::Stable => "stable",
            Self::Decaying => "decaying",
        }
    }
}

impl Fate {
    /// Whether policies allow it.
    pub(crate) const fn is_allowed(&self) -> bool {
        matches!(self, Self::Learned | Self::Pinned(_))
    }

    /// In a word, and why.
    pub(crate) fn told(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Learned => ("learned", None),
            Self::Pinned(reason) => ("pinned", Some(reason)),
            Self::Forbidden(reason) => ("forbidden", Some(reason)),
            Self::Held(reason) => ("held", Some(reason)),
            Self::Failed => ("failed", None),
            Self::Unanswered => ("unanswered", None),
            Self::OwnNode => ("own_node", None),
        }
    }
}

impl Sets {
    /// Learns the sets of a capture.
    pub(crate) fn learn(
        mut communications: Communications,
        index: &Index,
        runs: &[Run],
        decisions: &Decisions,
        thresholds: Thresholds,
    ) -> Self {
        let (mut concerned, mut narrow) = (BTreeSet::new(), BTreeSet::new());
        let declared = Declared::new(index);
        let within = redirect::take_within_pods(&mut communications);
        decisions.settle_unknown(&mut communications);
        let own = OwnHours::new(&communications, &within);
        let undirected = undirected::settle(&mut communications, &declared, decisions, &mut concerned);
        let redirects = redirect::settle(&mut communications, &within, &declared);
        let unattributed = unattributed::find(&communications, index);
        let mut exposure = Exposure::new(index, runs, &communications);
        own.find_unseen(&communications, &redirects, &unattributed, index, &mut exposure);
        // What is certain of an edge by itself, and by what a person decided.
        let certain: Vec<Option<Fate>> = {
            let certainty =
                Certainty::new(&communications, &exposure, &redirects, &own, &unattributed, index.tolerance_ms());
            let fate = |(edge, evidence): (&Edge, &Evidence)| match decisions.of(edge, &mut concerned) {
                _ if edge.own_node && !is_visitor(index, edge, evidence) => Some(Fate::OwnNode),
                Some(fate) if evidence.is_established() => Some(fate),
                Some(fate @ Fate::Pinned(_)) => Some(fate),
                _ if !evidence.is_established() => Some(Fate::Failed),
                _ if certainty.is_unanswered(edge, evidence) => Some(Fate::Unanswered),
                _ => certainty.doubt(edge, evidence).map(Fate::Held),
            };
            communications.iter().map(fate).collect()
        };
        let ephemeral = judge::ephemeral_containers(index);
        let judge = judge::Judge { index, exposure: &exposure, thresholds, ephemeral };
        let suspects: Vec<Option<String>> =
            communications.iter().map(|(edge, evidence)| judge.suspect(edge, evidence)).collect();
        let dynamic_ports = {
            // What a person decided on shows how the rest is, too.
            let may_tell = |fate: &Option<Fate>| matches!(fate, None | Some(Fate::Pinned(_) | Fate::Forbidden(_)));
            let open = communications
                .iter()
                .zip(certain.iter().zip(&suspects))
                .filter(|(_, (fate, suspect))| may_tell(fate) && suspect.is_none());
            dynamic_ports::find(open.map(|(communication, _)| communication), &declared)
        };
        let fates: Vec<Fate> = communications
            .iter()
            .zip(certain.into_iter().zip(suspects))
            .map(|((edge, evidence), (certain, suspect))| {
                let held = || {
                    let held = suspect.or_else(|| dynamic_ports::doubt(&dynamic_ports, edge));
                    held.or_else(|| judge.held(edge, evidence)).map(Fate::Held)
                };
                certain.or_else(held).unwrap_or(Fate::Learned)
            })
            .collect();
        let mut edges: BTreeMap<Edge, (Evidence, Fate)> = BTreeMap::new();
        for ((edge, evidence), fate) in communications.into_iter().zip(fates) {
            if evidence.asks_names(&edge) {
                let is_udp = edge.transport.known() == Some(Transport::Udp);
                let transport = Word::Known(if is_udp { Transport::Tcp } else { Transport::Udp });
                let other = Edge { transport, ..edge.clone() };
                if matches!(decisions.of(&other, &mut concerned), Some(Fate::Forbidden(_))) {
                    narrow.insert(edge.clone());
                }
            }
            edges.insert(edge, (evidence, fate));
        }
        // What a person pinned is there even when this capture has not seen it.
        for (edge, fate) in decisions.pinned_edges(index, &mut concerned) {
            edges.entry(edge).or_insert_with(|| (Evidence::default(), fate));
        }
        let dynamic_ports = dynamic_ports::undecided(dynamic_ports, &edges);
        let pinned = edges.iter().filter(|(_, (_, fate))| matches!(fate, Fate::Pinned(_)));
        let pinned_ports = pinned.filter_map(|(edge, _)| Some((edge.clone(), decisions.range_of(edge)?))).collect();
        let mut entries: BTreeMap<Workload, Vec<Entry>> = BTreeMap::new();
        for (edge, (evidence, fate)) in &edges {
            if matches!(fate, Fate::Failed | Fate::Unanswered | Fate::OwnNode) {
                continue;
            }
            for (direction, workload) in edge.workloads() {
                // Behind a Service with several workloads, who answered is not told.
                if direction == Direction::Ingress && !evidence.answered && !matches!(fate, Fate::Pinned(_)) {
                    continue;
                }
                let entry = judge.entry(workload, direction, edge, evidence);
                entries.entry(workload.clone()).or_default().push(entry);
            }
        }
        for workload in exposure.workloads() {
            entries.entry(workload.clone()).or_default();
        }
        let set = |(workload, entries): (Workload, Vec<Entry>)| {
            let set = judge.set(&workload, entries, &edges);
            (workload, set)
        };
        let workloads = entries.into_iter().map(set).collect();
        let unrecorded_ports = decisions.undecided(declared.unrecorded(), &mut concerned);
        let idle_decisions = decisions.idle(&concerned);
        let learned = edges.values().filter(|(evidence, fate)| fate.is_allowed() && evidence.is_established());
        let completeness = Completeness::of(exposure.watched(), learned.map(|(evidence, _)| &evidence.hours));
        Self {
            workloads,
            edges,
            exposure,
            narrow,
            completeness,
            idle_decisions,
            undirected,
            unattributed,
            unrecorded_ports,
            redirects,
            dynamic_ports,
            pinned_ports,
        }
    }
}

/// Whether the source hides behind the address of its destination's node: a bridge has the address that the node takes for
/// what comes through it, and the node's own processes are recorded by its agent.
fn is_visitor(index: &Index, edge: &Edge, evidence: &Evidence) -> bool {
    evidence.client_hours.is_empty()
        && matches!(&edge.source, Endpoint::Node { address, .. } if index.is_interface_alone(*address))
}

/// Of some hours, how many there are from one on.
fn hours_from(hours: &RoaringBitmap, first: u32) -> u64 {
    hours.len() - hours.range_cardinality(..first)
}

/// The kind of workload that runs only now and then.
pub(crate) const CRON_JOB: &str = "CronJob";
