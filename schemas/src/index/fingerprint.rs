//! Whether an index still answers as it did: what it says of a span of time, as one number.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use super::{Index, Span, Version, addresses, pod_name_as_uid, static_pod_hash};
use crate::{inventory::ObjectKind, table::TimestampMs};

/// What an index says, by time: two indexes with the same fingerprint of a span answer alike within it.
///
/// The fingerprint is a sum over everything that overlaps with the span, so that it is told from sums over everything
/// that begins, or ends, before a time.
#[derive(Debug, Default)]
pub struct Fingerprints {
    /// What begins and ends when, with the sum up to it.
    starts: Sums,
    ends: Sums,
    /// What each pod was from when on.
    pods: HashMap<Arc<str>, Arc<[(TimestampMs, u64)]>>,
}

/// Moments in order: each with what it says, and what that which begins or ends there says, summed up to it.
#[derive(Debug, Default)]
struct Sums(Vec<(TimestampMs, u64, u64)>);

impl Fingerprints {
    /// Of everything that an index says.
    pub fn new(index: &Index) -> Self {
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut span = |from: TimestampMs, to: TimestampMs, said: u64| {
            starts.push((from, hash((said, "from", from.0)), said));
            ends.push((to, hash((said, "to", to.0)), said));
        };
        for (from, to) in index.coverage.spans() {
            span(from, to, hash("covered"));
        }
        for (address, leases) in &index.leases {
            for lease in leases {
                let holder = index.objects[lease.object].versions.first().map(name);
                span(lease.start, lease.end, hash((address, holder)));
            }
        }
        let mut pods = HashMap::new();
        for object in &index.objects {
            // Zones are those of last.
            let zone = object.versions.last().and_then(|version| version.record.zone.clone());
            for (version, from, to) in object.intervals() {
                span(from, to, hash((said(index, version), &zone)));
            }
            // Before it was first told of, and after it is gone, a pod is taken for what it was then.
            if let Some(first) = object.versions.first()
                && *first.record.kind == ObjectKind::Pod
            {
                let uid = first.record.uid.clone().unwrap_or_else(|| pod_name_as_uid(&first.record));
                let known: Arc<[_]> = object.versions.iter().map(|v| (v.from, said(index, v))).collect();
                let uids = static_pod_hash(&first.record).into_iter().chain([uid]);
                pods.extend(uids.map(|uid| (uid, Arc::clone(&known))));
            }
        }
        Self { starts: Sums::new(starts), ends: Sums::new(ends), pods }
    }

    /// What the index says of a span, and of pods and addresses that were met in it and that it may know of another time.
    pub fn of<'a>(
        &self,
        index: &Index,
        span: Span,
        pods: impl IntoIterator<Item = &'a str>,
        outside: impl IntoIterator<Item = IpAddr>,
    ) -> u64 {
        let Span { from, to } = span.widened(MARGIN_MS);
        let begun = self.starts.until(to);
        let over = self.ends.until(TimestampMs(from.0.saturating_sub(1)));
        let edges = |sums: &Sums| {
            let before = TimestampMs(from.0.saturating_sub(1));
            sums.until(to).0.wrapping_sub(sums.until(before).0)
        };
        let settings = hash((EDGES_VERSION, index.tolerance_ms));
        let mut sum = begun.1.wrapping_sub(over.1).wrapping_add(edges(&self.starts));
        sum = sum.wrapping_add(edges(&self.ends)).wrapping_add(settings);
        let pods: BTreeSet<&str> = pods.into_iter().collect();
        for uid in pods {
            let Some(known) = self.pods.get(uid) else { continue };
            for time in [from, to] {
                let next = known.partition_point(|(since, _)| *since <= time).max(1);
                sum = sum.wrapping_add(hash((uid, known[next - 1].1)));
            }
        }
        let outside: BTreeSet<IpAddr> = outside.into_iter().collect();
        for address in outside {
            // Whose it is where it is one node's alone, and that it is several nodes'.
            let mut nodes = index.interface_of(address);
            if let Some(node) = nodes.next() {
                let only = Some(node).filter(|_| nodes.next().is_none());
                sum = sum.wrapping_add(hash((address, "interface", only)));
            }
            if index.is_of_cluster(address) {
                sum = sum.wrapping_add(hash(address));
            }
        }
        sum
    }
}

impl Sums {
    fn new(mut moments: Vec<(TimestampMs, u64, u64)>) -> Self {
        moments.sort_unstable();
        let mut sum = (0u64, 0u64);
        for (_, moment, said) in &mut moments {
            sum = (sum.0.wrapping_add(*moment), sum.1.wrapping_add(*said));
            (*moment, *said) = sum;
        }
        Self(moments)
    }

    /// Both sums up to a time, inclusive.
    fn until(&self, time: TimestampMs) -> (u64, u64) {
        let next = self.0.partition_point(|(moment, ..)| *moment <= time);
        next.checked_sub(1).map_or((0, 0), |at| (self.0[at].1, self.0[at].2))
    }
}

/// All that answers depend on, of one version of an object.
fn said(index: &Index, version: &Version) -> u64 {
    let record = &*version.record;
    let workload = (*record.kind == ObjectKind::Pod).then(|| index.workload_of(record));
    let addresses: BTreeSet<IpAddr> = addresses(record).collect();
    let ports: Vec<_> = record.ports.iter().map(|p| (&p.name, &p.protocol, p.port, &p.target, p.node_port)).collect();
    hash((
        (name(version), addresses, &record.cidrs, ports, &record.labels, &record.selector, &record.annotations),
        (&record.owner_kind, &record.owner, &record.object_node, record.host_network, &record.phase, workload),
    ))
}

fn name(version: &Version) -> u64 {
    let record = &*version.record;
    hash((&record.kind, &record.namespace, &record.name, &record.uid, &record.workload_kind))
}

fn hash(of: impl Hash) -> u64 {
    // With fixed keys: another version of the library gives other numbers, and what rests on them is made again.
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Raised when edges are derived in another way: what was summed up before is not what would be now.
const EDGES_VERSION: u32 = 6;
/// How far beyond a span the index is asked: who is certain of an address was its holder for ten minutes around.
const MARGIN_MS: i64 = 900_000;
