//! Rows of flows to edges per hour, a row at a time: the path that every row of a capture goes.
//!
//! Who is at the ends is looked up once for all rows that say the same, for as long as the answer holds; a row then costs
//! one look into a table and some additions.

mod targets;

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use arrow::array::{Array as _, AsArray, RecordBatch};
use foldhash::fast::RandomState;
use roaring::RoaringTreemap;
use schemas::{
    capture::Seqs,
    edge_columns::{ConnectionCounts, EdgeEnd},
    hour::{Hour, HourRange},
    index::{Index, Span, UnknownReason},
    inventory::{InventoryRecord, ObjectKind},
    table::TimestampMs,
};

use super::{
    dictionary::{TextColumn, Texts},
    flow_columns::{DESTINATION, Rows, SOURCE, TEXTS, Text},
    hour::{HourEdge, HourEdges},
    overlap::Overlaps,
    overlap_counts::Apart,
    row_cache::{Known, Marks, NOT_MET, Resolved, RowKey, Shortcut, Target},
};

/// What an edge is, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EdgeKey {
    pub(super) transport: u32,
    pub(super) source: u32,
    pub(super) destination: u32,
    pub(super) port: u16,
    /// The source is the destination's own node.
    pub(super) own_node: bool,
    /// Port of the source where it is not known which end initiated, or 0; `None` where that is known.
    pub(super) source_port: Option<u16>,
}

/// What an end is, by numbers of texts: replicas are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EndKey {
    pub(super) kind: u32,
    pub(super) namespace: u32,
    pub(super) workload_kind: u32,
    pub(super) workload: u32,
    /// Of a node, and of a socket of no known pod.
    pub(super) node: u32,
    pub(super) address: u32,
    pub(super) unknown_reason: u32,
}

/// What a row says of its transport and its local end: transport, whether it shares its node's network, the observer's
/// node, kind, namespace, workload kind, workload, pod, and node; and the port of the source, above a bit that is set, where
/// it is not known which end initiated.
type LocalKey = [u32; 11];

/// Rows that wait for what their other end says: of one conversation, hour and [`Slot`].
#[derive(Debug)]
struct Pending {
    conversation: Conversation,
    own: Option<Resolved>,
    target: Target,
    hour: i64,
    span: Span,
    failure: u32,
    counts: ConnectionCounts,
}

/// The minutes in which rows begin and end. Rows of a conversation whose minutes differ are told apart, as its ends may
/// have changed between them; in which order they are read makes no difference.
type Slot = (i64, i64);

/// Transport, addresses and port of a conversation, and whether its client tells of it.
type Conversation = (u32, u32, u32, u16, bool);

/// Values by number, in the order in which they were met.
pub(super) struct Numbered<K> {
    numbers: HashMap<K, u32, RandomState>,
    pub(super) values: Vec<K>,
}

/// Folds rows into hours. What it learns of names serves all hours; counts are kept for the hours of one unit of work.
pub(super) struct Folder<'a> {
    index: &'a Index,
    pub(super) texts: Texts,
    pub(super) ends: Numbered<EndKey>,
    pub(super) edges: Numbered<EdgeKey>,
    /// Where the counts of each edge were last, and of which hour.
    edge_places: Vec<(i64, u32)>,
    known: Known,
    /// The rows of a batch that count, and what is known of them.
    rows: Vec<(u32, i64, RowKey)>,
    places: Vec<u32>,
    locals: Numbered<LocalKey>,
    hours: Vec<HourEdges>,
    /// Keeps the counts of agents apart that recorded one node at the same time.
    apart: Option<Apart<'a>>,
    pending: Vec<Pending>,
    witnesses: HashMap<Conversation, Vec<(Span, Resolved)>, RandomState>,
    /// Rows of files that may repeat one another, by run.
    seen: HashMap<u32, RoaringTreemap>,
    /// Rows whose direction the kernel could not tell, by run.
    undirected: HashMap<u32, i64>,
    /// First and last moment of the rows of this unit.
    looked_up: Span,
    /// The zone of each node.
    zones: HashMap<u32, Arc<str>>,
    columns: [TextColumn; TEXTS.len()],
    client: u32,
    /// The empty text.
    unnamed: u32,
}

impl<'a> Folder<'a> {
    pub(super) fn new(index: &'a Index, overlaps: &'a Overlaps) -> Self {
        let mut texts = Texts::default();
        let (client, unnamed) = (texts.number("client"), texts.number(""));
        let zone = |(node, _): (&InventoryRecord, _)| Some((texts.number(&node.name), Arc::clone(node.zone.as_ref()?)));
        let zones = index.latest(ObjectKind::Node).filter_map(zone).collect();
        Self {
            index,
            texts,
            ends: Numbered::default(),
            edges: Numbered::default(),
            edge_places: Vec::new(),
            known: Known::default(),
            rows: Vec::new(),
            places: Vec::new(),
            locals: Numbered::default(),
            hours: Vec::new(),
            apart: (!overlaps.is_empty()).then(|| Apart::new(overlaps)),
            pending: Vec::new(),
            witnesses: HashMap::default(),
            seen: HashMap::new(),
            undirected: HashMap::new(),
            looked_up: NOTHING,
            zones,
            columns: Default::default(),
            client,
            unnamed,
        }
    }

    /// Takes in a batch; rows of other hours than `hours` are another unit's. `repeats` tells that rows may have been met
    /// before.
    pub(super) fn add(&mut self, batch: &RecordBatch, hours: HourRange, repeats: bool) {
        for (column, name) in self.columns.iter_mut().zip(TEXTS) {
            let array = batch.column_by_name(name).expect("every column in TEXTS is read");
            column.load(array.as_dictionary(), &mut self.texts);
        }
        let columns = std::mem::take(&mut self.columns);
        let rows = Rows::new(batch);
        let mut counted = std::mem::take(&mut self.rows);
        let mut last_local = (LocalKey::default(), 0);
        counted.clear();
        for row in 0..batch.num_rows() {
            let text = |column: Text| columns[column as usize].rows()[row];
            let hour = Hour::ending(TimestampMs(rows.window_end[row]));
            if !hours.contains(hour) {
                continue;
            }
            if repeats && !self.seen.entry(text(Text::RunId)).or_default().insert(rows.seq[row] as u64) {
                continue;
            }
            self.looked_up.from = self.looked_up.from.min(TimestampMs(rows.first_seen[row]));
            self.looked_up.to = self.looked_up.to.max(TimestampMs(rows.last_seen[row]));
            let hour = match &mut self.apart {
                Some(apart) => apart.place(hour.0, text(Text::RunId), &self.texts),
                None => hour.0,
            };
            let is_client = text(Text::Observer) == self.client;
            let side = if is_client { SOURCE } else { DESTINATION };
            let host_network = &rows.host_network[usize::from(!is_client)];
            let is_host = host_network.is_valid(row) && host_network.value(row);
            let port = rows.port(row);
            let source_port = rows.undirected_port(row);
            let local: LocalKey = [
                text(Text::Transport),
                u32::from(is_host),
                text(Text::Node),
                text(side[0]),
                text(side[1]),
                text(side[2]),
                text(side[3]),
                text(side[4]),
                text(side[5]),
                text(side[6]),
                source_port.map_or(0, |port| u32::from(port) << 1 | 1),
            ];
            // Rows of one pod often follow one another.
            if local != last_local.0 || counted.is_empty() {
                last_local = (local, self.locals.number(local));
            }
            let key = [
                u32::from(port) << 1 | u32::from(is_client),
                text(Text::SourceAddress),
                text(Text::DestinationAddress),
                last_local.1,
            ];
            counted.push((row as u32, hour, key));
        }
        for counted in counted.chunks(AHEAD_ROWS) {
            self.known.look_ahead(counted.iter().map(|(.., key)| *key), &mut self.places);
            for (number, (row, hour, key)) in counted.iter().enumerate() {
                let row = *row as usize;
                let span = Span { from: TimestampMs(rows.first_seen[row]), to: TimestampMs(rows.last_seen[row]) };
                let failure = columns[Text::Failure as usize].rows()[row];
                self.count(*key, self.places[number], span, *hour, failure, &rows.counts(row));
            }
        }
        self.rows = counted;
        self.columns = columns;
    }

    /// The edges of the hours since it was asked before, in order of time.
    pub(super) fn finish(&mut self) -> Vec<HourEdges> {
        let mut waiting = std::mem::take(&mut self.pending);
        waiting.sort_unstable_by_key(Pending::key);
        waiting.dedup_by(|pending, known| {
            let is_same = pending.key() == known.key();
            if is_same {
                known.span = known.span.hull(pending.span);
                known.counts.add(&pending.counts);
            }
            is_same
        });
        for pending in waiting {
            self.settle(pending);
        }
        self.looked_up = NOTHING;
        self.witnesses.clear();
        self.seen.clear();
        self.known.end_unit();
        self.unite();
        let mut hours = std::mem::take(&mut self.hours);
        hours.sort_unstable_by_key(|hour| hour.number);
        hours
    }

    /// Puts the counts that were kept apart into their hours.
    fn unite(&mut self) {
        let Some(apart) = &mut self.apart else { return };
        for (hour, edge, is_counted) in apart.unite(&mut self.hours) {
            let place = hour_of(&mut self.hours, hour).place(
                Marks { edge: edge.edge, ..Marks::default() },
                None,
                &mut self.edge_places[edge.edge as usize],
            );
            let known = &mut hour_of(&mut self.hours, hour).edges[place];
            if is_counted { known.merge_same(edge) } else { known.merge(edge) }
        }
    }

    /// Takes in what a rollup says of an edge and an hour.
    pub(super) fn place(&mut self, hour: i64, edge: HourEdge) {
        let hour = hour_of(&mut self.hours, hour);
        let marks = Marks { edge: edge.edge, ..Marks::default() };
        let place = hour.place(marks, None, &mut self.edge_places[edge.edge as usize]);
        hour.edges[place].merge(edge);
    }

    /// Takes in that rows were met, whose numbers are given.
    pub(super) fn skip(&mut self, run: &str, seqs: &Seqs) {
        if let Some(apart) = &mut self.apart {
            apart.counted(run);
        }
        let seen = self.seen.entry(self.texts.number(run)).or_default();
        for range in seqs.ranges() {
            seen.insert_range(range.start().unsigned_abs()..=range.end().unsigned_abs());
        }
    }

    /// Counts rows that a rollup says had no known direction.
    pub(super) fn add_undirected(&mut self, run: &str, rows: i64) {
        *self.undirected.entry(self.texts.number(run)).or_default() += rows;
    }

    /// First and last moment of the rows of this unit.
    pub(super) const fn looked_up(&self) -> Span {
        self.looked_up
    }

    /// How many rows of each run had no known direction since it was asked before.
    pub(super) fn take_undirected(&mut self) -> BTreeMap<String, i64> {
        let undirected = self.undirected().map(|(run, rows)| (run.to_string(), rows)).collect();
        self.undirected.clear();
        undirected
    }

    /// The number of an edge.
    pub(super) fn edge_of(&mut self, key: EdgeKey) -> u32 {
        let edge = self.edges.number(key);
        self.edge_places.resize(self.edges.values.len(), (i64::MIN, 0));
        edge
    }

    /// An end, by the names that its number stands for.
    pub(super) fn end(&self, number: u32) -> EdgeEnd {
        let EndKey { kind, namespace, workload_kind, workload, node, address, unknown_reason } =
            self.ends.values[number as usize];
        let text = |number| self.texts.text(number).cloned();
        EdgeEnd {
            kind: text(kind).unwrap_or_default(),
            namespace: text(namespace),
            workload_kind: text(workload_kind),
            workload: text(workload),
            node: text(node),
            address: text(address),
            unknown_reason: text(unknown_reason),
        }
    }

    /// Whether a source stands for what is in the same pod as its destination.
    pub(super) fn is_within_pod(&self, source: u32) -> bool {
        let reason = self.ends.values[source as usize].unknown_reason;
        self.texts.text(reason).is_some_and(|reason| **reason == *UnknownReason::WithinPod.as_str())
    }

    /// How many rows of each run had no known direction.
    pub(super) fn undirected(&self) -> impl Iterator<Item = (Arc<str>, i64)> {
        self.undirected.iter().filter_map(|(run, rows)| Some((Arc::clone(self.texts.text(*run)?), *rows)))
    }

    fn count(&mut self, key: RowKey, place: u32, span: Span, hour: i64, failure: u32, counts: &ConnectionCounts) {
        let is_client = is_client(&key);
        let place = if place == NOT_MET { self.known.place_of(key) } else { place } as usize;
        let unit = self.known.unit;
        let shortcut = &mut self.known.shortcuts[place];
        shortcut.unit = unit;
        if shortcut.from <= span.from.0 && span.to.0 <= shortcut.to {
            let of_hour = hour_of(&mut self.hours, hour);
            if shortcut.hour != hour {
                let known = &mut self.edge_places[shortcut.marks.edge as usize];
                let place = of_hour.place(shortcut.marks, is_client.then_some(port_of(&key)), known);
                (shortcut.hour, shortcut.place) = (hour, place as u32);
            }
            let edge = &mut of_hour.edges[shortcut.place as usize];
            if shortcut.crosses_zones {
                edge.add(is_client, &counts.across(true), failure, span);
            } else {
                edge.add(is_client, counts, failure, span);
            }
            return;
        }
        let memo = shortcut.memo;
        if !self.known.memos.get(memo as usize).is_some_and(|memo| memo.holds.contains(span)) {
            let resolved = self.resolve(&key, span);
            if let Some(plain) = resolved.shortcut()
                && plain.from <= span.from.0
                && span.to.0 <= plain.to
            {
                self.known.shortcuts[place] = Shortcut { memo, unit, ..plain };
                return self.count(key, place as u32, span, hour, failure, counts);
            }
            self.known.remember(place, resolved);
        }
        let transport = self.locals.values[key[3] as usize][0];
        let Self { known, edge_places, hours, pending, witnesses, .. } = self;
        let memo = &mut known.memos[known.shortcuts[place].memo as usize];
        if let Some(own) = memo.own
            && !memo.certain.contains(span)
        {
            let told = witnesses.entry(conversation(transport, &key, is_client)).or_default();
            let is_same = |known, other: Resolved| other.identity() == own.identity() && slot(known) == slot(span);
            match told.iter_mut().find(|(known, other)| is_same(*known, *other)) {
                Some((known, _)) => *known = known.hull(span),
                None => told.push((span, own)),
            }
        }
        for target in &mut memo.targets {
            if memo.is_pending {
                // Units share no hour, so that the place is one of this unit.
                let known = pending.get_mut(target.place.1).filter(|_| target.place.0 == hour);
                if let Some(known) = known.filter(|known| known.failure == failure && slot(known.span) == slot(span)) {
                    known.span = known.span.hull(span);
                    known.counts.add(counts);
                    continue;
                }
                target.place = (hour, pending.len());
                let conversation = conversation(transport, &key, !is_client);
                let (own, target, counts) = (memo.own, target.clone(), *counts);
                pending.push(Pending { conversation, own, target, hour, span, failure, counts });
                continue;
            }
            let hour = hour_of(hours, hour);
            if target.place.0 != hour.number {
                let known = &mut edge_places[target.marks.edge as usize];
                target.place = (hour.number, hour.place(target.marks, is_client.then_some(port_of(&key)), known));
            }
            let counts = counts.across(target.crosses_zones);
            hour.edges[target.place.1].add(is_client, &counts, failure, span);
        }
    }

    /// Counts a row whose other end was not known, with what the other end said of itself.
    fn settle(&mut self, pending: Pending) {
        let Pending { conversation, own, mut target, hour, span: pending_span, failure, counts } = pending;
        let is_client = !conversation.4;
        let EdgeKey { transport, source, destination, port, source_port, .. } =
            self.edges.values[target.marks.edge as usize];
        let told = self.witnesses.get(&conversation).map_or(&[][..], Vec::as_slice);
        // The two ends have clocks of their own.
        let span = pending_span.widened(self.index.tolerance_ms());
        let mut told = told.iter().filter(|(known, _)| known.overlaps(span)).map(|(_, end)| *end);
        let other = told.next().filter(|one| told.all(|other| other.identity() == one.identity()));
        if let Some(other) = other {
            let unknown = |end, pod| Resolved { end, pod, host: Texts::NONE };
            let (source, destination) = if is_client {
                (own.unwrap_or(unknown(source, target.marks.source_pod)), other)
            } else {
                (other, own.unwrap_or(unknown(destination, target.marks.destination_pod)))
            };
            if is_same_pod(source, destination) {
                let Some(within) = self.within_pod(transport, destination, port, source_port) else { return };
                target = within;
            } else {
                target.marks.edge = self.edge(transport, source, destination, port, source_port);
                (target.marks.source_pod, target.marks.destination_pod) = (source.pod, destination.pod);
                target.crosses_zones = self.crosses_zones(source, destination);
            }
        }
        let dialled = is_client.then_some(conversation.3);
        let hour = hour_of(&mut self.hours, hour);
        let place = hour.place(target.marks, dialled, &mut self.edge_places[target.marks.edge as usize]);
        hour.edges[place].add(is_client, &counts.across(target.crosses_zones), failure, pending_span);
    }
}

impl Pending {
    /// What has to be the same for rows to be settled as one.
    fn key(&self) -> impl Ord + use<> {
        let Self { conversation, own, target, hour, span, failure, counts: _ } = self;
        let Marks { edge, source_pod, destination_pod, source_container, destination_container, service, answered } =
            target.marks;
        let own = own.map(|own| (own.end, own.pod, own.host));
        let containers = [source_container, destination_container];
        (
            *conversation,
            own,
            [edge, source_pod, destination_pod, service, *failure],
            containers,
            answered,
            *hour,
            slot(*span),
        )
    }
}

impl<K: Copy + Eq + Hash> Numbered<K> {
    pub(super) fn number(&mut self, value: K) -> u32 {
        *self.numbers.entry(value).or_insert_with(|| {
            self.values.push(value);
            self.values.len() as u32 - 1
        })
    }
}

impl<K> Default for Numbered<K> {
    fn default() -> Self {
        Self { numbers: HashMap::default(), values: Vec::new() }
    }
}

fn hour_of(hours: &mut Vec<HourEdges>, number: i64) -> &mut HourEdges {
    // Rows come mostly in order of time.
    let at = hours.iter().rposition(|hour| hour.number == number).unwrap_or_else(|| {
        hours.push(HourEdges::new(number));
        hours.len() - 1
    });
    &mut hours[at]
}

const fn slot(span: Span) -> Slot {
    (span.from.0.div_euclid(SLOT_MS), span.to.0.div_euclid(SLOT_MS))
}

const fn conversation(transport: u32, key: &RowKey, is_client: bool) -> Conversation {
    (transport, key[1], key[2], port_of(key), is_client)
}

const fn is_client(key: &RowKey) -> bool {
    key[0] & 1 != 0
}

const fn port_of(key: &RowKey) -> u16 {
    (key[0] >> 1) as u16
}

const fn is_same_pod(source: Resolved, destination: Resolved) -> bool {
    source.pod != Texts::NONE && source.pod == destination.pod
}

fn is_loopback(address: &str) -> bool {
    address.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// A window, as it usually is.
const SLOT_MS: i64 = 60_000;
const NOTHING: Span = Span { from: TimestampMs(i64::MAX), to: TimestampMs(i64::MIN) };
/// Rows that are looked up at once.
const AHEAD_ROWS: usize = 64;
