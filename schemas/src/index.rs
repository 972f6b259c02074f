//! Who had an address at a given time, and what stood behind a Service: pure, in memory, fed by inventory records.
//!
//! ```text
//! InventoryRecord ──apply──► Index ──resolve(address, span), dialled(address, port, span)──► Owner
//!                                  ──backends(service, port, span)──► Vec<Backend>
//! ```
//!
//! The index never guesses: an address that two objects held in the asked span is [`UnknownReason::Ambiguous`], and
//! one that nobody is known to have held is [`Owner::External`] only outside every known range and only while the
//! inventory covered that time.

mod coverage;
mod fingerprint;
mod lookup;
mod workload;

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, HashSet},
    iter::Peekable,
    net::IpAddr,
    sync::{Arc, OnceLock},
    vec,
};

use coverage::{Coverage, Ranges, SILENCE_MS};
pub use fingerprint::Fingerprints;
use ipnet::IpNet;
use workload::Alike;

use crate::{
    inventory::{InventoryEvent, InventoryRecord, Labels, ObjectKind, Scope, parse_labels},
    table::TimestampMs,
};

/// A closed interval of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Span {
    /// First moment.
    pub from: TimestampMs,
    /// Last moment, not before `from`.
    pub to: TimestampMs,
}

/// Who had an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner<'a> {
    /// A pod with a network of its own.
    Pod(&'a InventoryRecord),
    /// A node, or any of its host-network pods.
    Node(&'a InventoryRecord),
    /// A Service.
    Service(&'a InventoryRecord),
    /// Outside everything the cluster is known to be made of.
    External,
    /// Cannot be told.
    Unknown(UnknownReason),
}

/// Why an owner cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnknownReason {
    /// More than one object had the address in that span.
    Ambiguous,
    /// The address belongs to the cluster, but nobody is known to have had it in that span.
    NoOwner,
    /// No inventory covers that time.
    NoInventory,
    /// A Service without a ready endpoint behind the port.
    NoEndpoints,
    /// The local socket belongs to no known pod and not to the host.
    UnmappedSocket,
    /// A datagram's receiver did not ask for the sender's address, which stands as unspecified.
    SenderNotAsked,
    /// The other end is in the same pod, or is it: what passes stays within it.
    WithinPod,
}

impl UnknownReason {
    /// The value of the `…_unknown_reason` columns.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::NoOwner => "no_owner",
            Self::NoInventory => "no_inventory",
            Self::NoEndpoints => "no_endpoints",
            Self::UnmappedSocket => "unmapped_socket",
            Self::SenderNotAsked => "sender_not_asked",
            Self::WithinPod => "within_pod",
        }
    }
}

/// One endpoint behind a Service's port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backend<'a> {
    /// Address of the endpoint.
    pub address: IpAddr,
    /// Port of the endpoint.
    pub port: u16,
    /// Whose endpoint it is.
    pub owner: Owner<'a>,
}

/// The index. Records of one writer have to be applied in the order of their `observed_at` and `seq`.
#[derive(Debug, Default)]
pub struct Index {
    objects: Vec<Object>,
    /// Places in `objects` that are free.
    free: Vec<usize>,
    ids: HashMap<ObjectKey, usize>,
    pods_by_uid: HashMap<Arc<str>, usize>,
    slices_by_service: HashMap<(Arc<str>, Arc<str>), Vec<usize>>,
    services_by_node_port: HashMap<u16, Vec<usize>>,
    leases: HashMap<IpAddr, Vec<Lease>>,
    ranges: Ranges,
    /// The first addresses of nodes' pod ranges, and the last ones.
    pod_ranges: BTreeSet<IpAddr>,
    pod_range_ends: BTreeSet<IpAddr>,
    /// Addresses of nodes' own interfaces, and the nodes: some addresses are on several, such as that of a local resolver.
    interfaces: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    /// The ranges of Services: with IPVS, every node has all of their addresses on an interface.
    service_ranges: BTreeSet<IpNet>,
    snapshots: HashMap<Arc<str>, Snapshot>,
    last_heard: HashMap<Arc<str>, TimestampMs>,
    coverage: Coverage,
    alike: Alike,
    tolerance_ms: i64,
}

/// A moment at which a writer was there and had said all it knew, as the ends of `health` windows are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Heard {
    /// The moment.
    pub time: TimestampMs,
    /// The writer's node.
    pub writer: Arc<str>,
    /// Its run.
    pub run_id: Arc<str>,
}

/// Kind, namespace, name and UID (two pods of the same name are two objects), or a Workload's own kind.
type ObjectKey = (Arc<str>, Option<Arc<str>>, Arc<str>, Option<Arc<str>>);

/// What was observed of one object, oldest first.
#[derive(Debug, Default)]
struct Object {
    /// Who told of it and has not told of its end.
    writers: Vec<Arc<str>>,
    versions: Vec<Version>,
    ended: Option<TimestampMs>,
}

#[derive(Debug)]
struct Version {
    from: TimestampMs,
    record: Arc<InventoryRecord>,
    /// Read when they are asked for.
    labels: OnceLock<Box<Labels>>,
}

#[derive(Debug)]
struct Lease {
    object: usize,
    start: TimestampMs,
    end: TimestampMs,
}

/// The objects that a writer's latest snapshot named.
#[derive(Debug)]
struct Snapshot {
    run_id: Arc<str>,
    observed_at: TimestampMs,
    /// When the writer was last heard before it: whatever the snapshot names anew began after that.
    heard_before: TimestampMs,
    named: HashSet<usize>,
    /// Of a writer that knows a part: of the kinds that it names, it names all.
    is_part: bool,
    settled: bool,
}

impl Span {
    /// A single moment.
    pub const fn at(time: TimestampMs) -> Self {
        Self { from: time, to: time }
    }

    /// The span and so much more on either side; less, where the margin is negative.
    #[must_use]
    pub const fn widened(self, margin_ms: i64) -> Self {
        Self {
            from: TimestampMs(self.from.0.saturating_sub(margin_ms)),
            to: TimestampMs(self.to.0.saturating_add(margin_ms)),
        }
    }

    /// Whether two spans share a moment.
    pub const fn overlaps(self, other: Self) -> bool {
        self.from.0 <= other.to.0 && other.from.0 <= self.to.0
    }

    /// The shortest span that contains both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }

    /// Whether all of another span is in this one.
    pub const fn contains(self, other: Self) -> bool {
        self.from.0 <= other.from.0 && other.to.0 <= self.to.0
    }
}

/// For which spans an answer of the index holds: for every one within [`Self::span`]. It learns from being asked, and
/// starts with all of time.
#[derive(Debug)]
pub struct Holds(Cell<Span>);

impl Default for Holds {
    fn default() -> Self {
        Self(Cell::new(Span { from: TimestampMs(i64::MIN), to: FOREVER }))
    }
}

impl Holds {
    /// What is known so far. The span that was asked for is not in it where the answer is of a moment of change.
    pub const fn span(&self) -> Span {
        self.0.get()
    }

    /// Asks for a span that is wider by a margin on either side.
    pub fn ask_near<T>(&self, margin_ms: i64, ask: impl FnOnce(&Self) -> T) -> T {
        let near = Self::default();
        let answer = ask(&near);
        let Span { from, to } = near.span().widened(-margin_ms);
        self.narrow(from, to);
        answer
    }

    fn narrow(&self, from: TimestampMs, to: TimestampMs) {
        let Span { from: first, to: last } = self.0.get();
        self.0.set(Span { from: first.max(from), to: last.min(to) });
    }

    /// Whether `span`, give or take a tolerance, overlaps with what was from `start` to `end`; for how long that is so.
    fn overlaps(&self, span: Span, tolerance_ms: i64, start: TimestampMs, end: TimestampMs) -> bool {
        let Span { from: earliest, .. } = Span::at(start).widened(tolerance_ms);
        let Span { to: latest, .. } = Span::at(end).widened(tolerance_ms);
        let (always, never) = (TimestampMs(i64::MIN), FOREVER);
        if span.to < earliest {
            self.narrow(always, TimestampMs(earliest.0.saturating_sub(1)));
            return false;
        }
        if span.from > latest {
            self.narrow(TimestampMs(latest.0.saturating_add(1)), never);
            return false;
        }
        self.narrow(earliest, latest);
        true
    }
}

/// Makes an index of a log that comes in parts, so that it never has to be in memory whole.
pub struct IndexBuilder {
    index: Index,
    heard: Peekable<vec::IntoIter<Heard>>,
}

impl IndexBuilder {
    /// A builder that knows when the log's writers were there.
    pub fn new(mut heard: Vec<Heard>, tolerance_ms: i64) -> Self {
        heard.sort();
        Self { index: Index::new(tolerance_ms), heard: heard.into_iter().peekable() }
    }

    /// Takes in a part of one cluster's log: its records in any order, with repetitions, none of them older than any of
    /// the parts before.
    pub fn add(&mut self, mut records: Vec<InventoryRecord>) {
        records.sort_by(|a, b| (a.observed_at, &a.run_id, a.seq).cmp(&(b.observed_at, &b.run_id, b.seq)));
        records.dedup_by(|a, b| (&a.node, &a.run_id, a.seq) == (&b.node, &b.run_id, b.seq));
        for record in records {
            while let Some(heard) = self.heard.next_if(|heard| heard.time < record.observed_at) {
                self.index.hear(heard);
            }
            self.index.apply(record);
        }
    }

    /// Takes in that a writer was there, and that nothing is new.
    pub fn hear(&mut self, heard: Heard) {
        self.index.hear(heard);
    }

    /// The index of all parts.
    pub fn finish(mut self) -> Index {
        self.heard.for_each(|heard| self.index.hear(heard));
        self.index.settle();
        self.index
    }
}

impl Index {
    /// An empty index. Clocks of two nodes, or a flow and the news of its pod, may be `tolerance_ms` apart: an owner is
    /// then not missed, and one of two is not taken for the other.
    pub fn new(tolerance_ms: i64) -> Self {
        Self { tolerance_ms, ..Self::default() }
    }

    /// How far clocks may be apart, in milliseconds.
    pub const fn tolerance_ms(&self) -> i64 {
        self.tolerance_ms
    }

    /// Builds an index from one cluster's log in any order, with repetitions, and from when its writers were there.
    pub fn from_log(records: Vec<InventoryRecord>, heard: Vec<Heard>, tolerance_ms: i64) -> Self {
        let mut builder = IndexBuilder::new(heard, tolerance_ms);
        builder.add(records);
        builder.finish()
    }

    /// Takes in that a writer was there.
    pub fn hear(&mut self, Heard { time, writer, run_id }: Heard) {
        self.coverage.hear(&writer, &run_id, time);
        let last = self.last_heard.entry(writer).or_insert(time);
        *last = time.max(*last);
    }

    /// Takes in one observation.
    pub fn apply(&mut self, record: InventoryRecord) {
        let record = Arc::new(record);
        let is_snapshot = *record.event == InventoryEvent::Snapshot;
        self.begin_or_settle_snapshot(&record, is_snapshot);
        self.coverage.hear(&record.node, &record.run_id, record.observed_at);
        let heard = self.last_heard.entry(Arc::clone(&record.node)).or_insert(record.observed_at);
        *heard = record.observed_at.max(*heard);
        for cidr in record.cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()) {
            self.ranges.add(cidr);
            if *record.kind == ObjectKind::ServiceCidr {
                self.service_ranges.insert(cidr);
            }
            if *record.kind == ObjectKind::Node {
                self.pod_ranges.insert(cidr.network());
                self.pod_range_ends.insert(cidr.broadcast());
            }
        }
        if *record.kind == ObjectKind::NodeInterfaces {
            for address in addresses(&record) {
                self.interfaces.entry(address).or_default().insert(Arc::clone(&record.name));
            }
        }
        if *record.kind == ObjectKind::Pod {
            self.alike.apply(&record);
        }
        let id = self.object_id(&record);
        if is_snapshot && let Some(snapshot) = self.snapshots.get_mut(&record.node) {
            snapshot.named.insert(id);
        }
        if *record.event == InventoryEvent::Delete {
            self.end(id, record.lease_end.unwrap_or(record.observed_at).min(record.observed_at));
            return;
        }
        let since = self.since(&record, is_snapshot);
        self.move_leases(id, &record, since);
        let object = &mut self.objects[id];
        if !object.writers.contains(&record.node) {
            object.writers.reserve_exact(1);
            object.writers.push(Arc::clone(&record.node));
        }
        object.ended = None;
        if object.versions.last().is_none_or(|version| !same_object(&version.record, &record)) {
            let from = if object.versions.is_empty() { since } else { record.observed_at };
            // Most objects never change, and there are many.
            object.versions.reserve_exact(usize::from(object.versions.is_empty()));
            object.versions.push(Version { from, record, labels: OnceLock::new() });
        }
    }

    /// Forgets what was over before a time: objects that ended, leases, and what an object was until it changed.
    pub fn forget(&mut self, before: TimestampMs) {
        let mut gone = HashSet::new();
        for (id, object) in self.objects.iter_mut().enumerate() {
            let current = object.versions.partition_point(|version| version.from < before);
            object.versions.drain(..current.saturating_sub(1));
            if object.ended.is_some_and(|end| end < before) {
                *object = Object::default();
                gone.insert(id);
            }
        }
        self.leases.retain(|_, leases| {
            leases.retain(|lease| lease.end >= before && !gone.contains(&lease.object));
            !leases.is_empty()
        });
        if gone.is_empty() {
            return;
        }
        let is_kept = |ids: &mut Vec<usize>| {
            ids.retain(|id| !gone.contains(id));
            !ids.is_empty()
        };
        self.ids.retain(|_, id| !gone.contains(id));
        self.pods_by_uid.retain(|_, id| !gone.contains(id));
        self.slices_by_service.retain(|_, ids| is_kept(ids));
        self.services_by_node_port.retain(|_, ids| is_kept(ids));
        self.free.extend(gone);
    }

    /// A writer's full list begins: what `snapshot` records of this run and time do not name ends with
    /// [`Self::settle`]. A list that is under way is given up.
    pub fn begin_list(&mut self, Heard { time, writer, run_id }: Heard) {
        let heard_before = self.last_heard.get(&writer).copied().unwrap_or(time);
        let snapshot =
            Snapshot { run_id, observed_at: time, heard_before, named: HashSet::new(), is_part: false, settled: false };
        self.snapshots.insert(writer, snapshot);
    }

    /// A writer knows the whole cluster from now on, for as long as it is heard.
    pub fn begin_coverage(&mut self, Heard { time, writer, run_id }: Heard) {
        self.coverage.begin(&writer, &run_id, time);
    }

    /// Ends what the latest snapshots no longer named; called by itself when a writer goes on.
    pub fn settle(&mut self) {
        let writers: Vec<_> = self.snapshots.keys().cloned().collect();
        for writer in writers {
            self.settle_writer(&writer);
        }
    }

    fn begin_or_settle_snapshot(&mut self, record: &Arc<InventoryRecord>, is_snapshot: bool) {
        let goes_on = self.snapshots.get(&record.node).is_some_and(|snapshot| {
            is_snapshot && snapshot.run_id == record.run_id && snapshot.observed_at == record.observed_at
        });
        if goes_on {
            return;
        }
        self.settle_writer(&record.node);
        if is_snapshot {
            let InventoryRecord { observed_at: time, node: writer, run_id, scope, .. } = (**record).clone();
            let heard = Heard { time, writer, run_id };
            let is_part = *scope == Scope::Part;
            if is_part {
                self.coverage.pause(&heard.writer, &heard.run_id, heard.time);
            } else {
                self.begin_coverage(heard.clone());
            }
            let writer = Arc::clone(&heard.writer);
            self.begin_list(heard);
            if let Some(snapshot) = self.snapshots.get_mut(&writer) {
                snapshot.is_part = is_part;
            }
        }
    }

    /// Ends what a writer's latest list did not name, which [`Self::begin_list`] began.
    pub fn settle_writer(&mut self, writer: &Arc<str>) {
        let Some(snapshot) = self.snapshots.get_mut(writer).filter(|snapshot| !snapshot.settled) else { return };
        snapshot.settled = true;
        let (named, ended_at, is_part) = (std::mem::take(&mut snapshot.named), snapshot.observed_at, snapshot.is_part);
        let kind = |object: &Object| object.versions.last().map(|version| Arc::clone(&version.record.kind));
        let kinds: HashSet<_> = named.iter().filter_map(|id| kind(&self.objects[*id])).collect();
        let is_silent =
            |other: &Arc<str>| self.last_heard.get(other).is_none_or(|heard| heard.0 + SILENCE_MS < ended_at.0);
        let mut gone = Vec::new();
        for (id, object) in self.objects.iter_mut().enumerate().filter(|(id, _)| !named.contains(id)) {
            if is_part && kind(object).is_none_or(|kind| !kinds.contains(&kind)) {
                continue;
            }
            // What another writer goes on to tell of is there, unless who knows all finds that one silent.
            let told = object.writers.len();
            object.writers.retain(|other| other != writer && (is_part || !is_silent(other)));
            if object.writers.is_empty() && told > 0 {
                gone.push(id);
            }
        }
        for id in gone {
            self.end(id, ended_at);
        }
    }

    /// Since when a newly seen object is what it is: as it says itself; when it does not, a snapshot may tell of anything
    /// since its writer was heard before (a writer's first one: of that very moment), and another event of its moment.
    fn since(&self, record: &InventoryRecord, is_snapshot: bool) -> TimestampMs {
        let snapshot = self.snapshots.get(&record.node).filter(|_| is_snapshot);
        record.lease_start.unwrap_or(snapshot.map_or(record.observed_at, |snapshot| snapshot.heard_before))
    }

    fn object_id(&mut self, record: &Arc<InventoryRecord>) -> usize {
        // Workloads of two kinds may share a name.
        let told_apart = if *record.kind == ObjectKind::Workload { &record.workload_kind } else { &record.uid };
        let key = (Arc::clone(&record.kind), record.namespace.clone(), Arc::clone(&record.name), told_apart.clone());
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.objects.push(Object::default());
            self.objects.len() - 1
        });
        if *record.kind == ObjectKind::Pod {
            // Where there are no UIDs, as on hosts without Kubernetes, the name takes their place.
            let uid = record.uid.clone().unwrap_or_else(|| pod_name_as_uid(record));
            self.pods_by_uid.insert(uid, id);
            if let Some(hash) = static_pod_hash(record) {
                self.pods_by_uid.insert(hash, id);
            }
        }
        if *record.kind == ObjectKind::EndpointSlice
            && let Some(service) = &record.owner
        {
            let service = (record.namespace.clone().unwrap_or_default(), Arc::clone(service));
            self.slices_by_service.entry(service).or_default().push(id);
        }
        self.ids.insert(key, id);
        id
    }

    fn object(&self, id: usize) -> &Object {
        &self.objects[id]
    }

    /// Opens leases for addresses that are new to the object and closes those it no longer has.
    fn move_leases(&mut self, id: usize, record: &InventoryRecord, since: TimestampMs) {
        let holds = match record.kind.parse() {
            Ok(ObjectKind::Pod) => record.host_network != Some(true),
            Ok(ObjectKind::Node | ObjectKind::Service) => true,
            _ => false,
        };
        for port in record.ports.iter().filter_map(|port| port.node_port) {
            let services = self.services_by_node_port.entry(port).or_default();
            if !services.contains(&id) {
                services.push(id);
            }
        }
        let over = is_over(record) || record.lease_end.is_some();
        let end = match record.lease_end {
            Some(end) => end,
            None if over => record.observed_at,
            None => FOREVER,
        };
        let new: BTreeSet<IpAddr> = if holds { addresses(record).collect() } else { BTreeSet::new() };
        let first = self.objects[id].versions.is_empty();
        let old: Vec<IpAddr> =
            self.objects[id].versions.last().map(|v| addresses(&v.record).collect()).unwrap_or_default();
        for address in old.iter().filter(|address| !new.contains(address)) {
            self.close_lease(*address, id, record.observed_at);
        }
        for address in new {
            let leases = self.leases.entry(address).or_default();
            if let Some(lease) = leases.iter_mut().find(|lease| lease.object == id && lease.end == FOREVER) {
                lease.end = end.max(lease.start);
                continue;
            }
            if over && !first {
                continue; // it ended before, and is only told again
            }
            let told = record.lease_start.filter(|start| *start <= record.observed_at);
            let start = if first { since } else { told.unwrap_or(record.observed_at) };
            leases.reserve_exact(usize::from(leases.is_empty()));
            leases.push(Lease { object: id, start, end: end.max(start) });
        }
    }

    fn close_lease(&mut self, address: IpAddr, id: usize, end: TimestampMs) {
        let leases = self.leases.get_mut(&address).into_iter().flatten();
        for lease in leases.filter(|lease| lease.object == id && lease.end == FOREVER) {
            lease.end = end.max(lease.start);
        }
    }

    fn end(&mut self, id: usize, time: TimestampMs) {
        self.objects[id].ended = Some(time);
        self.objects[id].writers.clear();
        let held: Vec<IpAddr> =
            self.objects[id].versions.last().map(|version| addresses(&version.record).collect()).unwrap_or_default();
        for address in held {
            self.close_lease(address, id, time);
        }
    }
}

impl Object {
    /// The version at `time`, or the first one when it is older than that, with the times between which it is the answer.
    fn version_at(&self, time: TimestampMs) -> Option<(&Version, TimestampMs, TimestampMs)> {
        let next = self.versions.partition_point(|version| version.from <= time).max(1);
        let from = if next == 1 { TimestampMs(i64::MIN) } else { self.versions.get(next - 1)?.from };
        let to = self.versions.get(next).map_or(FOREVER, |version| TimestampMs(version.from.0 - 1));
        self.versions.get(next - 1).map(|version| (version, from, to))
    }

    /// The versions, each with its first and last moment.
    fn intervals(&self) -> impl Iterator<Item = (&Version, TimestampMs, TimestampMs)> {
        let end = self.ended.unwrap_or(FOREVER);
        let until =
            move |at: usize| self.versions.get(at + 1).map_or(end, |next| TimestampMs(next.from.0 - 1).min(end));
        self.versions.iter().enumerate().map(move |(at, version)| (version, version.from, until(at)))
    }
}

impl Version {
    fn labels(&self) -> &Labels {
        self.labels.get_or_init(|| Box::new(self.record.labels.as_deref().map(parse_labels).unwrap_or_default()))
    }
}

/// What stands for a pod's UID where it has none: `namespace/name`.
pub fn pod_name_as_uid(pod: &InventoryRecord) -> Arc<str> {
    format!("{}/{}", pod.namespace.as_deref().unwrap_or_default(), pod.name).into()
}

/// The hash of a static pod's manifest, which names its cgroups in place of the UID that the API server gave it.
pub fn static_pod_hash(pod: &InventoryRecord) -> Option<Arc<str>> {
    parse_labels(pod.annotations.as_deref()?).get(CONFIG_HASH).cloned()
}

/// Whether a pod has ended, and given up its addresses.
fn is_over(pod: &InventoryRecord) -> bool {
    matches!(pod.phase.as_deref(), Some("Succeeded" | "Failed"))
}

fn addresses(record: &InventoryRecord) -> impl Iterator<Item = IpAddr> {
    record.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()).map(|address| address.to_canonical())
}

/// Whether two observations say the same of the object.
fn same_object(a: &InventoryRecord, b: &InventoryRecord) -> bool {
    let comparable = |record: &InventoryRecord| InventoryRecord {
        cluster: Arc::clone(&a.cluster),
        node: Arc::clone(&a.node),
        run_id: Arc::clone(&a.run_id),
        seq: 0,
        scope: Arc::clone(&a.scope),
        observed_at: TimestampMs(0),
        event: Arc::clone(&a.event),
        // A container that begins anew has another ID, and is the same to all who ask.
        containers: None,
        ..record.clone()
    };
    comparable(a) == comparable(b)
}

/// Annotation of a static pod's mirror in the API (`k8s.io/kubernetes/pkg/kubelet/types`).
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const FOREVER: TimestampMs = TimestampMs(i64::MAX);

#[cfg(test)]
mod tests;
