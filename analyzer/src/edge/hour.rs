//! What is counted of the edges of one hour.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use schemas::index::Span;
use smallvec::{Array, SmallVec};

use super::{dictionary::Texts, row_cache::Marks};

/// Everything that is counted of an edge, from one of its ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) is_seen: bool,
    pub(super) connections: i64,
    pub(super) failed: i64,
    pub(super) closed: i64,
    pub(super) max_active: i64,
    pub(super) bytes_sent: Option<i64>,
    pub(super) bytes_received: Option<i64>,
    /// Both ways, between nodes of different zones.
    pub(super) cross_zone_bytes: i64,
    pub(super) retransmits: i64,
    pub(super) duration_ms_sum: i64,
}

/// An edge within an hour.
#[derive(Debug)]
pub(super) struct HourEdge {
    pub(super) edge: u32,
    pub(super) client: Counts,
    pub(super) server: Counts,
    pub(super) via_service: bool,
    pub(super) answered: bool,
    pub(super) services: SmallVec<[u32; 2]>,
    pub(super) dialled_ports: SmallVec<[u16; 2]>,
    pub(super) failures: SmallVec<[u32; 2]>,
    pub(super) source_pods: SmallVec<[u32; 6]>,
    pub(super) destination_pods: SmallVec<[u32; 6]>,
    pub(super) first_seen: i64,
    pub(super) last_seen: i64,
}

/// The edges of one hour.
#[derive(Debug)]
pub(super) struct HourEdges {
    /// Hours since the Unix epoch.
    pub(super) number: i64,
    pub(super) edges: Vec<HourEdge>,
    places: HashMap<u32, u32, RandomState>,
}

impl HourEdges {
    pub(super) fn new(number: i64) -> Self {
        Self { number, edges: Vec::new(), places: HashMap::default() }
    }

    /// Where the counts of an edge are, with what is the same for all rows that say the same.
    pub(super) fn place(&mut self, target: Marks, dialled_port: Option<u16>, known: &mut (i64, u32)) -> usize {
        let Self { number, edges, places } = self;
        if known.0 != *number {
            let place = *places.entry(target.edge).or_insert_with(|| {
                edges.push(HourEdge::new(target.edge));
                edges.len() as u32 - 1
            });
            *known = (*number, place);
        }
        let place = known.1 as usize;
        let edge = &mut edges[place];
        edge.answered |= target.answered;
        insert_text(&mut edge.source_pods, target.source_pod);
        insert_text(&mut edge.destination_pods, target.destination_pod);
        if target.service != Texts::NONE {
            edge.via_service = true;
            insert_text(&mut edge.services, target.service);
        }
        if let Some(port) = dialled_port {
            insert(&mut edge.dialled_ports, port);
        }
        place
    }
}

impl HourEdge {
    pub(super) fn new(edge: u32) -> Self {
        Self {
            edge,
            client: Counts::default(),
            server: Counts::default(),
            via_service: false,
            answered: false,
            services: SmallVec::new(),
            dialled_ports: SmallVec::new(),
            failures: SmallVec::new(),
            source_pods: SmallVec::new(),
            destination_pods: SmallVec::new(),
            first_seen: i64::MAX,
            last_seen: i64::MIN,
        }
    }

    pub(super) fn add(&mut self, is_client: bool, counts: &Counts, failure: u32, span: Span) {
        let sums = if is_client { &mut self.client } else { &mut self.server };
        sums.add(counts);
        self.first_seen = self.first_seen.min(span.from.0);
        self.last_seen = self.last_seen.max(span.to.0);
        if failure != Texts::NONE {
            insert(&mut self.failures, failure);
        }
    }

    /// Adds what was counted of other rows of the same edge and hour.
    pub(super) fn merge(&mut self, other: Self) {
        self.client.add(&other.client);
        self.server.add(&other.server);
        self.mark(other);
    }

    /// Takes in what another agent counted of the same connections.
    pub(super) fn merge_same(&mut self, other: Self) {
        self.client = self.client.larger(&other.client);
        self.server = self.server.larger(&other.server);
        self.mark(other);
    }

    /// Takes in what is not counted.
    fn mark(&mut self, other: Self) {
        self.via_service |= other.via_service;
        self.answered |= other.answered;
        other.services.into_iter().for_each(|service| insert(&mut self.services, service));
        other.dialled_ports.into_iter().for_each(|port| insert(&mut self.dialled_ports, port));
        other.failures.into_iter().for_each(|failure| insert(&mut self.failures, failure));
        other.source_pods.into_iter().for_each(|pod| insert(&mut self.source_pods, pod));
        other.destination_pods.into_iter().for_each(|pod| insert(&mut self.destination_pods, pod));
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
    }

    /// The counts of the edge: of the two ends' sums the larger one, never both. Only what each end does itself adds up.
    pub(super) fn counts(&self) -> Counts {
        let retransmits = self.client.retransmits + self.server.retransmits;
        Counts { is_seen: true, retransmits, ..self.client.larger(&self.server) }
    }
}

impl Counts {
    /// Adds what was counted of other rows.
    pub(super) fn add(&mut self, counts: &Self) {
        let Self {
            is_seen,
            connections,
            failed,
            closed,
            max_active,
            bytes_sent,
            bytes_received,
            cross_zone_bytes,
            retransmits,
            duration_ms_sum,
        } = counts;
        self.is_seen |= is_seen;
        self.connections += connections;
        self.failed += failed;
        self.closed += closed;
        self.max_active = self.max_active.max(*max_active);
        self.bytes_sent = add(self.bytes_sent, *bytes_sent);
        self.bytes_received = add(self.bytes_received, *bytes_received);
        self.cross_zone_bytes += cross_zone_bytes;
        self.retransmits += retransmits;
        self.duration_ms_sum += duration_ms_sum;
    }

    /// The larger of each of two counts of the same connections.
    fn larger(&self, other: &Self) -> Self {
        let (a, b) = (self, other);
        Self {
            is_seen: a.is_seen || b.is_seen,
            connections: a.connections.max(b.connections),
            failed: a.failed.max(b.failed),
            closed: a.closed.max(b.closed),
            max_active: a.max_active.max(b.max_active),
            bytes_sent: a.bytes_sent.max(b.bytes_sent),
            bytes_received: a.bytes_received.max(b.bytes_received),
            cross_zone_bytes: a.cross_zone_bytes.max(b.cross_zone_bytes),
            retransmits: a.retransmits.max(b.retransmits),
            duration_ms_sum: a.duration_ms_sum.max(b.duration_ms_sum),
        }
    }

    /// The same of an edge that crosses zones, or does not.
    pub(super) fn across(mut self, crosses_zones: bool) -> Self {
        if crosses_zones {
            self.cross_zone_bytes = self.bytes_sent.unwrap_or_default() + self.bytes_received.unwrap_or_default();
        }
        self
    }

    /// Whether data could pass: a connection was established, was open, or ended.
    pub(super) const fn is_established(&self) -> bool {
        self.connections + self.closed + self.max_active > 0
    }
}

fn add(sum: Option<i64>, more: Option<i64>) -> Option<i64> {
    match (sum, more) {
        (Some(sum), Some(more)) => Some(sum + more),
        (sum, more) => sum.or(more),
    }
}

fn insert_text<A: Array<Item = u32>>(sorted: &mut SmallVec<A>, text: u32) {
    if text != Texts::NONE {
        insert(sorted, text);
    }
}

/// Adds a value to a sorted list, unless it is in it.
pub(super) fn insert<A: Array<Item: Ord>>(sorted: &mut SmallVec<A>, value: A::Item) {
    if let Err(at) = sorted.binary_search(&value) {
        sorted.insert(at, value);
    }
}
