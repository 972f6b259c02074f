//! Who had an address at a given time, and what stood behind a Service: pure, in memory, fed by inventory records.
//!
//! ```text
//! InventoryRecord ──apply──► Index ──resolve(address, span)──► Owner
//!                                  ──backends(service, port, span)──► Vec<Backend>
//! ```
//!
//! The index never guesses: an address that two objects held in the asked span is [`UnknownReason::Ambiguous`], and
//! one that nobody is known to have held is [`Owner::External`] only outside every known range and only while the
//! inventory covered that time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    inventory::{EVENT_DELETE, EVENT_SNAPSHOT, InventoryRecord, kind},
    table::{Port, TimestampMs},
};

/// A closed interval of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// The index. Records of one writer have to be applied in the order of their `observed_at` and `seq`.
#[derive(Debug, Default)]
pub struct Index {
    objects: Vec<Object>,
    ids: HashMap<ObjectKey, usize>,
    pods_by_uid: HashMap<Arc<str>, usize>,
    slices_by_service: HashMap<(Arc<str>, Arc<str>), Vec<usize>>,
    leases: HashMap<IpAddr, Vec<Lease>>,
    ranges: BTreeSet<IpNet>,
    snapshots: HashMap<Arc<str>, Snapshot>,
    last_heard: HashMap<Arc<str>, TimestampMs>,
    covered_from: Option<TimestampMs>,
    tolerance_ms: i64,
}

/// Kind, namespace, name and UID (two pods of the same name are two objects), or a Workload's own kind.
type ObjectKey = (Arc<str>, Option<Arc<str>>, Arc<str>, Option<Arc<str>>);

/// What was observed of one object, oldest first.
#[derive(Debug)]
struct Object {
    writer: Arc<str>,
    versions: Vec<Version>,
    ended: Option<TimestampMs>,
}

#[derive(Debug)]
struct Version {
    from: TimestampMs,
    record: Arc<InventoryRecord>,
    labels: Labels,
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
    settled: bool,
}

impl Span {
    /// A single moment.
    pub const fn at(time: TimestampMs) -> Self {
        Self { from: time, to: time }
    }

    fn overlaps(self, start: TimestampMs, end: TimestampMs) -> bool {
        start <= self.to && self.from <= end
    }
}

impl Index {
    /// An empty index. Clocks of two nodes, or a flow and the news of its pod, may be `tolerance_ms` apart: an owner is
    /// then not missed, and one of two is not taken for the other.
    pub fn new(tolerance_ms: i64) -> Self {
        Self { tolerance_ms, ..Self::default() }
    }

    /// Builds an index from one cluster's log in any order, with repetitions. `watched` tells of moments at which a
    /// writer (a node) was there and had said all it knew, as the ends of `health` windows do.
    pub fn from_log(
        mut records: Vec<InventoryRecord>,
        mut watched: Vec<(TimestampMs, Arc<str>)>,
        tolerance_ms: i64,
    ) -> Self {
        records.sort_by(|a, b| (a.observed_at, &a.run_id, a.seq).cmp(&(b.observed_at, &b.run_id, b.seq)));
        records.dedup_by(|a, b| (&a.node, &a.run_id, a.seq) == (&b.node, &b.run_id, b.seq));
        watched.sort();
        let mut watched = watched.into_iter().peekable();
        let mut index = Self::new(tolerance_ms);
        for record in records {
            while let Some((time, writer)) = watched.next_if(|(time, _)| *time < record.observed_at) {
                index.last_heard.insert(writer, time);
            }
            index.apply(record);
        }
        index.settle();
        index
    }

    /// Takes in one observation.
    pub fn apply(&mut self, record: InventoryRecord) {
        let record = Arc::new(record);
        let is_snapshot = &*record.event == EVENT_SNAPSHOT;
        self.begin_or_settle_snapshot(&record, is_snapshot);
        let heard = self.last_heard.entry(Arc::clone(&record.node)).or_insert(record.observed_at);
        *heard = record.observed_at.max(*heard);
        self.ranges.extend(record.cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
        let id = self.object_id(&record);
        if is_snapshot && let Some(snapshot) = self.snapshots.get_mut(&record.node) {
            snapshot.named.insert(id);
        }
        if &*record.event == EVENT_DELETE {
            self.end(id, record.lease_end.unwrap_or(record.observed_at));
            return;
        }
        let since = self.since(&record, is_snapshot);
        self.move_leases(id, &record, since);
        let labels = record.labels.as_deref().map(parse_labels).unwrap_or_default();
        let object = &mut self.objects[id];
        object.writer = Arc::clone(&record.node);
        object.ended = None;
        if object.versions.last().is_none_or(|version| !same_object(&version.record, &record)) {
            let first = object.versions.is_empty();
            let from = if first { since } else { record.observed_at };
            object.versions.push(Version { from, record, labels });
        }
    }

    /// Ends what the latest snapshots no longer named; called by itself when a writer goes on.
    pub fn settle(&mut self) {
        let writers: Vec<_> = self.snapshots.keys().cloned().collect();
        for writer in writers {
            self.settle_writer(&writer);
        }
    }

    /// Who had `address` throughout `span`, give or take the clocks' tolerance.
    pub fn resolve(&self, address: IpAddr, span: Span) -> Owner<'_> {
        let address = address.to_canonical();
        let leases = self.leases.get(&address).map_or(&[][..], Vec::as_slice);
        // An address that changed hands within the tolerance of the span may have been either's.
        let widened = self.widened(span);
        if let Some(owner) = self.owner_within(leases, widened) {
            return owner;
        }
        if self.covered_from.is_none_or(|covered| covered > widened.to) {
            return Owner::Unknown(UnknownReason::NoInventory);
        }
        if !leases.is_empty() || self.ranges.iter().any(|range| range.contains(&address)) {
            return Owner::Unknown(UnknownReason::NoOwner);
        }
        Owner::External
    }

    /// The endpoints that were ready behind a Service's port at some moment of `span`, or within the clocks' tolerance
    /// of it: from its EndpointSlices, or, where there are none, from its selector. Sorted, without repetitions.
    pub fn backends(&self, service: &InventoryRecord, transport: &str, port: u16, span: Span) -> Vec<Backend<'_>> {
        let Some(service_port) = service.ports.iter().find(|p| p.port == port && &*p.protocol == transport) else {
            return Vec::new();
        };
        let found = self.backends_within(service, service_port, span);
        if found.is_empty() { self.backends_within(service, service_port, self.widened(span)) } else { found }
    }

    fn backends_within(&self, service: &InventoryRecord, service_port: &Port, span: Span) -> Vec<Backend<'_>> {
        let mut endpoints: BTreeMap<(IpAddr, u16), Owner<'_>> = BTreeMap::new();
        let namespace = service.namespace.clone().unwrap_or_default();
        let slices = self.slices_by_service.get(&(namespace, Arc::clone(&service.name)));
        for slice in slices.into_iter().flatten().flat_map(|id| self.versions_within(*id, span)) {
            let ports = slice.record.ports.iter();
            for port in ports.filter(|p| p.name == service_port.name && p.protocol == service_port.protocol) {
                endpoints.extend(addresses(&slice.record).map(|at| ((at, port.port), self.resolve(at, span))));
            }
        }
        if slices.is_none()
            && let Some(selector) = service.selector.as_deref().map(parse_labels)
        {
            for pod in self.pods_within(service.namespace.as_ref(), &selector, span) {
                let Some(port) = target_port(service_port, pod) else { continue };
                let shares_node = pod.host_network == Some(true);
                let owner = |at| if shares_node { self.resolve(at, span) } else { Owner::Pod(pod) };
                endpoints.extend(addresses(pod).map(|at| ((at, port), owner(at))));
            }
        }
        endpoints.into_iter().map(|((address, port), owner)| Backend { address, port, owner }).collect()
    }

    /// A pod by its UID, as it was at `time`.
    pub fn pod(&self, uid: &str, time: TimestampMs) -> Option<&InventoryRecord> {
        let object = &self.objects[*self.pods_by_uid.get(uid)?];
        object.version_at(time).map(|version| &*version.record)
    }

    /// Every object of a kind as it was last seen, with its labels, in order of namespace, name and UID.
    pub fn latest<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a InventoryRecord, &'a Labels)> {
        let mut ids: Vec<_> = self.ids.iter().filter(|(key, _)| &*key.0 == kind).collect();
        ids.sort();
        let versions = ids.into_iter().filter_map(|(_, id)| self.objects[*id].versions.last());
        versions.map(|version| (&*version.record, &version.labels))
    }

    /// Every label set that pods had, with the pod, in order of namespace, name, UID and time.
    pub fn pod_versions(&self) -> impl Iterator<Item = (&InventoryRecord, &Labels)> {
        let mut ids: Vec<_> = self.ids.iter().filter(|(key, _)| &*key.0 == kind::POD).collect();
        ids.sort();
        let versions = ids.into_iter().flat_map(|(_, id)| &self.objects[*id].versions);
        versions.map(|version| (&*version.record, &version.labels))
    }

    fn widened(&self, span: Span) -> Span {
        Span {
            from: TimestampMs(span.from.0.saturating_sub(self.tolerance_ms)),
            to: TimestampMs(span.to.0.saturating_add(self.tolerance_ms)),
        }
    }

    fn owner_within(&self, leases: &[Lease], span: Span) -> Option<Owner<'_>> {
        let mut holders = leases.iter().filter(|lease| span.overlaps(lease.start, lease.end)).map(|lease| lease.object);
        let holder = holders.next()?;
        if holders.any(|other| other != holder) {
            return Some(Owner::Unknown(UnknownReason::Ambiguous));
        }
        let record = &*self.objects[holder].version_at(span.to)?.record;
        Some(match &*record.kind {
            kind::POD => Owner::Pod(record),
            kind::NODE => Owner::Node(record),
            _ => Owner::Service(record),
        })
    }

    fn versions_within(&self, id: usize, span: Span) -> impl Iterator<Item = &Version> {
        let object = &self.objects[id];
        let end = object.ended.unwrap_or(TimestampMs(i64::MAX));
        let until =
            move |at: usize| object.versions.get(at + 1).map_or(end, |next| TimestampMs(next.from.0 - 1).min(end));
        let versions = object.versions.iter().enumerate();
        versions.filter(move |(at, version)| span.overlaps(version.from, until(*at))).map(|(_, version)| version)
    }

    fn pods_within(
        &self,
        namespace: Option<&Arc<str>>,
        selector: &Labels,
        span: Span,
    ) -> impl Iterator<Item = &InventoryRecord> {
        let pods = self.pods_by_uid.values().flat_map(move |id| self.versions_within(*id, span));
        pods.filter(move |version| {
            version.record.namespace.as_ref() == namespace
                && !is_over(&version.record)
                && !selector.is_empty()
                && selector.iter().all(|(key, value)| version.labels.get(key) == Some(value))
        })
        .map(|version| &*version.record)
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
            let snapshot = Snapshot {
                run_id: Arc::clone(&record.run_id),
                observed_at: record.observed_at,
                heard_before: self.last_heard.get(&record.node).copied().unwrap_or(record.observed_at),
                named: HashSet::new(),
                settled: false,
            };
            self.snapshots.insert(Arc::clone(&record.node), snapshot);
            self.covered_from = Some(self.covered_from.map_or(record.observed_at, |t| t.min(record.observed_at)));
        }
    }

    fn settle_writer(&mut self, writer: &Arc<str>) {
        let Some(snapshot) = self.snapshots.get_mut(writer).filter(|snapshot| !snapshot.settled) else { return };
        snapshot.settled = true;
        let (named, ended_at) = (std::mem::take(&mut snapshot.named), snapshot.observed_at);
        let gone: Vec<usize> = (0..self.objects.len())
            .filter(|id| {
                let object = &self.objects[*id];
                object.ended.is_none() && object.writer == *writer && !named.contains(id)
            })
            .collect();
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
        let told_apart = if &*record.kind == kind::WORKLOAD { &record.owner_kind } else { &record.uid };
        let key = (Arc::clone(&record.kind), record.namespace.clone(), Arc::clone(&record.name), told_apart.clone());
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = self.objects.len();
        self.objects.push(Object { writer: Arc::clone(&record.node), versions: Vec::new(), ended: None });
        if &*record.kind == kind::POD {
            // Where there are no UIDs, as on hosts without Kubernetes, the name takes their place.
            let uid = record.uid.clone().unwrap_or_else(|| pod_name_as_uid(record));
            self.pods_by_uid.insert(uid, id);
        }
        if &*record.kind == kind::ENDPOINT_SLICE
            && let Some(service) = &record.owner
        {
            let service = (record.namespace.clone().unwrap_or_default(), Arc::clone(service));
            self.slices_by_service.entry(service).or_default().push(id);
        }
        self.ids.insert(key, id);
        id
    }

    /// Opens leases for addresses that are new to the object and closes those it no longer has.
    fn move_leases(&mut self, id: usize, record: &InventoryRecord, since: TimestampMs) {
        let holds = match &*record.kind {
            kind::POD => record.host_network != Some(true),
            kind::NODE | kind::SERVICE => true,
            _ => false,
        };
        let over = is_over(record);
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
                lease.end = end;
                continue;
            }
            if over && !first {
                continue; // it ended before, and is only told again
            }
            let start = if first { since } else { record.observed_at };
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
        let held: Vec<IpAddr> =
            self.objects[id].versions.last().map(|version| addresses(&version.record).collect()).unwrap_or_default();
        for address in held {
            self.close_lease(address, id, time);
        }
    }
}

impl Object {
    /// The version at `time`, or the first one when it is older than that.
    fn version_at(&self, time: TimestampMs) -> Option<&Version> {
        self.versions.iter().rev().find(|version| version.from <= time).or(self.versions.first())
    }
}

/// The workload a pod belongs to: kind and name of its top owner, or itself when it has none.
pub fn workload_of(pod: &InventoryRecord) -> (Arc<str>, Arc<str>) {
    match (&pod.owner_kind, &pod.owner) {
        (Some(kind), Some(name)) => (Arc::clone(kind), Arc::clone(name)),
        _ => (Arc::from(kind::POD), Arc::clone(&pod.name)),
    }
}

/// What stands for a pod's UID where it has none: `namespace/name`.
pub fn pod_name_as_uid(pod: &InventoryRecord) -> Arc<str> {
    format!("{}/{}", pod.namespace.as_deref().unwrap_or_default(), pod.name).into()
}

/// Reads labels, or a Service's selector, from canonical JSON; anything else than a map of texts is no label.
pub fn parse_labels(json: &str) -> Labels {
    serde_json::from_str(json).unwrap_or_default()
}

/// The number of the port that a Service's port leads to on a pod; `None` where it is a name that the pod does not have.
fn target_port(service_port: &Port, pod: &InventoryRecord) -> Option<u16> {
    let Some(target) = service_port.target.as_deref() else { return Some(service_port.port) };
    let named = |port: &&Port| port.name.as_deref() == Some(target) && port.protocol == service_port.protocol;
    target.parse().ok().or_else(|| pod.ports.iter().find(named).map(|port| port.port))
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
        observed_at: TimestampMs(0),
        event: Arc::clone(&a.event),
        ..record.clone()
    };
    comparable(a) == comparable(b)
}

const FOREVER: TimestampMs = TimestampMs(i64::MAX);

#[cfg(test)]
mod tests;
