//! What is counted of the edges of one hour.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use schemas::{edge_columns::ConnectionCounts, index::Span};
use smallvec::{Array, SmallVec};

use super::{dictionary::Texts, row_cache::Marks};

/// An edge within an hour.
#[derive(Debug)]
pub(super) struct HourEdge {
    pub(super) edge: u32,
    pub(super) seen_by_client: bool,
    pub(super) seen_by_server: bool,
    pub(super) client: ConnectionCounts,
    pub(super) server: ConnectionCounts,
    pub(super) via_service: bool,
    pub(super) answered: bool,
    pub(super) services: SmallVec<[u32; 2]>,
    pub(super) dialled_ports: SmallVec<[u16; 2]>,
    pub(super) failures: SmallVec<[u32; 2]>,
    pub(super) source_pods: SmallVec<[u32; 6]>,
    pub(super) destination_pods: SmallVec<[u32; 6]>,
    pub(super) source_containers: SmallVec<[u32; 2]>,
    pub(super) destination_containers: SmallVec<[u32; 2]>,
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
        insert_text(&mut edge.source_containers, target.source_container);
        insert_text(&mut edge.destination_containers, target.destination_container);
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
            seen_by_client: false,
            seen_by_server: false,
            client: ConnectionCounts::default(),
            server: ConnectionCounts::default(),
            via_service: false,
            answered: false,
            services: SmallVec::new(),
            dialled_ports: SmallVec::new(),
            failures: SmallVec::new(),
            source_pods: SmallVec::new(),
            destination_pods: SmallVec::new(),
            source_containers: SmallVec::new(),
            destination_containers: SmallVec::new(),
            first_seen: i64::MAX,
            last_seen: i64::MIN,
        }
    }

    pub(super) fn add(&mut self, is_client: bool, counts: &ConnectionCounts, failure: u32, span: Span) {
        let (is_seen, sums) = match is_client {
            true => (&mut self.seen_by_client, &mut self.client),
            false => (&mut self.seen_by_server, &mut self.server),
        };
        *is_seen = true;
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
        self.seen_by_client |= other.seen_by_client;
        self.seen_by_server |= other.seen_by_server;
        self.via_service |= other.via_service;
        self.answered |= other.answered;
        other.services.into_iter().for_each(|service| insert(&mut self.services, service));
        other.dialled_ports.into_iter().for_each(|port| insert(&mut self.dialled_ports, port));
        other.failures.into_iter().for_each(|failure| insert(&mut self.failures, failure));
        other.source_pods.into_iter().for_each(|pod| insert(&mut self.source_pods, pod));
        other.destination_pods.into_iter().for_each(|pod| insert(&mut self.destination_pods, pod));
        other.source_containers.into_iter().for_each(|name| insert(&mut self.source_containers, name));
        other.destination_containers.into_iter().for_each(|name| insert(&mut self.destination_containers, name));
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
    }

    /// The counts of the edge: of the two ends' sums the larger one, never both. Only what each end does itself adds up.
    pub(super) fn counts(&self) -> ConnectionCounts {
        let retransmits = self.client.retransmits + self.server.retransmits;
        ConnectionCounts { retransmits, ..self.client.larger(&self.server) }
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
