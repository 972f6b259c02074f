//! From flows to records: names both ends.
//!
//! The local end is told by its socket and is certain; the remote end is a hint by address, which the analyzer resolves
//! again from the whole inventory.

pub(crate) mod file;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs,
    net::IpAddr,
    ops::Bound,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use schemas::{
    capture::Origin,
    event::CgroupEvent,
    flow::FlowRecord,
    index::{Index, Owner, Span, UnknownReason, pod_name_as_uid, workload_of},
    inventory::InventoryRecord,
    table::{RttHistogram, TimestampMs},
};

use crate::{
    flow::{Flow, FlowKey, Role, SocketOwner},
    probe::netns,
};

/// What is learned about an object: the record, and for a pod of this node where its sockets are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observation {
    /// The inventory record; its origin, number and time are filled in when it is written.
    pub record: InventoryRecord,
    /// The pod's network namespace, as a path to its file.
    pub netns: Option<PathBuf>,
    /// The pod's cgroup v2 directory.
    pub cgroup: Option<PathBuf>,
}

/// Which flows are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Keep a flow if either end is in one of these namespaces, or unresolved; all when empty.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Keep a flow if the pod at either end has all of these labels, or is unresolved; all when empty.
    pub labels: Vec<(String, String)>,
    /// Keep a flow if either address is in one of these networks; all when empty.
    pub cidrs: Vec<IpNet>,
    /// Keep a flow if the port dialled, or that behind the Service, is one of these; all when empty.
    pub ports: Vec<u16>,
    /// Keep what stays on the loopback interface.
    pub loopback: bool,
}

/// The node's own network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostNetns {
    /// Inode number of its file.
    pub inode: u32,
    /// Its cookie, where it can be had.
    pub cookie: Option<u64>,
}

/// Names the ends of flows.
pub(crate) struct Enricher {
    origin: Origin,
    filter: Filter,
    /// Where the cgroup v2 hierarchy is mounted.
    cgroup_root: PathBuf,
    index: Index,
    sockets: SocketMap,
    /// Paths of the inventory that were not there, as far as reported.
    missing: BTreeSet<PathBuf>,
    next_seq: i64,
}

/// Which pod a socket of this node belongs to. What is gone is remembered for a while: its last flows are still to be
/// named, and neither cookies nor cgroup numbers are used again.
#[derive(Debug, Default)]
struct SocketMap {
    host: HostNetns,
    /// By cookie of the network namespace.
    by_cookie: HashMap<u64, Located>,
    /// By inode of the network namespace, where its cookie can't be had.
    by_inode: HashMap<u32, Located>,
    /// By inode of the cgroup.
    by_cgroup: HashMap<u64, Located>,
    /// Cgroups made during the run, by their paths: they may be gone when they are looked for.
    made: BTreeMap<PathBuf, Made>,
    /// What was last asked of each network namespace's file.
    asked: HashMap<PathBuf, Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    inode: u64,
    cookie: Option<u64>,
    last: TimestampMs,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    id: u64,
    last: TimestampMs,
}

#[derive(Debug)]
struct Located {
    uid: Arc<str>,
    last: TimestampMs,
}

/// One end of a flow, named.
#[derive(Clone, Default)]
struct End {
    kind: &'static str,
    unknown_reason: Option<UnknownReason>,
    namespace: Option<Arc<str>>,
    pod: Option<Arc<str>>,
    pod_uid: Option<Arc<str>>,
    node: Option<Arc<str>>,
    workload: Option<(Arc<str>, Arc<str>)>,
    labels: Option<Arc<str>>,
    host_network: Option<bool>,
    service: Option<Arc<str>>,
    target_port: Option<u16>,
}

impl Enricher {
    /// An enricher without any knowledge yet.
    pub(crate) fn new(origin: Origin, filter: Filter, host: HostNetns, cgroup_root: PathBuf) -> Self {
        let sockets = SocketMap { host, ..SocketMap::default() };
        Self { origin, filter, cgroup_root, index: Index::new(0), sockets, missing: BTreeSet::new(), next_seq: 0 }
    }

    /// Learns a record, as it was written to the inventory.
    pub(crate) fn learn(&mut self, record: InventoryRecord) {
        self.index.apply(record);
    }

    /// Learns of a cgroup that was made.
    pub(crate) fn learn_cgroup(&mut self, event: &CgroupEvent, now: TimestampMs) {
        let path = event.path.split(|byte| *byte == 0).next().unwrap_or_default();
        let below_root = Path::new(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
        self.sockets.add_made(self.cgroup_root.join(below_root), event.id, now);
    }

    /// Looks where the sockets of this node's pods are now. What is not there is reported once.
    pub(crate) fn locate(&mut self, observations: &[Observation], now: TimestampMs) {
        for Observation { record, netns, cgroup } in observations {
            let uid = record.uid.clone().unwrap_or_else(|| pod_name_as_uid(record));
            let netns_missing = netns.as_ref().filter(|path| !self.sockets.add_netns(path, &uid, now));
            let cgroup_missing = cgroup.as_ref().filter(|path| !self.sockets.add_cgroups(path, &uid, now));
            for path in [netns_missing, cgroup_missing].into_iter().flatten() {
                if self.missing.insert(path.clone()) {
                    tracing::warn!(pod = %record.name, path = %path.display(), "not there, the pod's sockets are not known");
                }
            }
        }
        self.sockets.forget(now);
    }

    /// Names a flow; `None` when the filter leaves it out.
    pub(crate) fn step(&mut self, flow: &Flow) -> Option<FlowRecord> {
        let key = &flow.key;
        if !self.filter.loopback && key.local_address.is_loopback() && key.remote_address.is_loopback() {
            return None;
        }
        let sums = &flow.sums;
        let span = Span { from: sums.first_seen, to: sums.last_seen };
        let local = self.local(key.socket, key.local_address, span);
        let transport = key.transport.as_str();
        let remote = if key.remote_address.is_loopback() {
            local.clone()
        } else {
            self.remote(key.remote_address, transport, key.server_port, key.role, span)
        };
        if !self.filter.wants(key, &local, &remote) {
            return None;
        }
        // A UDP socket may be bound to no address: then it is the pod's.
        let bound = Some(key.local_address).filter(|address| !address.is_unspecified());
        let local_address = bound.or_else(|| self.address_of(&local, key.remote_address)).unwrap_or(key.local_address);
        let (local_address, remote_address) = (text(local_address), text(key.remote_address));
        let (source, destination, source_address, destination_address) = match key.role {
            Role::Server => (remote, local, remote_address, local_address),
            Role::Client | Role::Unknown => (local, remote, local_address, remote_address),
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        let (source_workload_kind, source_workload) = source.workload.unzip();
        let (destination_workload_kind, destination_workload) = destination.workload.unzip();
        Some(FlowRecord {
            cluster: Arc::clone(&self.origin.cluster),
            node: Arc::clone(&self.origin.node),
            run_id: Arc::clone(&self.origin.run_id),
            seq,
            window_start: flow.window_start,
            window_end: flow.window_end,
            observer: if key.role == Role::Server { "server" } else { "client" }.into(),
            direction_known: key.role != Role::Unknown,
            start_known: key.start_known,
            transport: transport.into(),
            source_address,
            destination_address,
            source_port: flow.client_port,
            destination_port: key.server_port,
            destination_target_port: destination.target_port,
            source_kind: source.kind.into(),
            source_unknown_reason: source.unknown_reason.map(|reason| reason.as_str().into()),
            source_namespace: source.namespace,
            source_pod: source.pod,
            source_pod_uid: source.pod_uid,
            source_node: source.node,
            source_workload_kind,
            source_workload,
            source_labels: source.labels,
            source_host_network: source.host_network,
            destination_kind: destination.kind.into(),
            destination_unknown_reason: destination.unknown_reason.map(|reason| reason.as_str().into()),
            destination_service_namespace: destination.service.as_ref().and(destination.namespace.clone()),
            destination_service: destination.service,
            destination_namespace: destination.namespace,
            destination_pod: destination.pod,
            destination_pod_uid: destination.pod_uid,
            destination_node: destination.node,
            destination_workload_kind,
            destination_workload,
            destination_labels: destination.labels,
            destination_host_network: destination.host_network,
            destination_name: None,
            connections: sums.connections.into(),
            failed: sums.failed.into(),
            closed: sums.closed.into(),
            active: sums.active.into(),
            failure: key.failure.map(|failure| failure.as_str().into()),
            bytes_sent: sums.bytes_sent,
            bytes_received: sums.bytes_received,
            retransmits: sums.retransmits.into(),
            duration_ms_sum: sums.duration_ms_sum,
            rtt_us_hist: RttHistogram(sums.rtt.map(i64::from)),
            first_seen: sums.first_seen,
            last_seen: sums.last_seen,
        })
    }

    /// Number of the next record.
    pub(crate) const fn next_seq(&self) -> i64 {
        self.next_seq
    }

    fn local(&self, socket: SocketOwner, address: IpAddr, span: Span) -> End {
        if let Some((uid, is_certain)) = self.sockets.pod(socket)
            && let Some(pod) = self.index.pod(uid, span.to)
        {
            // The kernel reuses a namespace's inode: an address that was another pod's at that time gives it away.
            return match self.index.resolve(address, span) {
                Owner::Pod(other) if !is_certain && (&other.namespace, &other.name) != (&pod.namespace, &pod.name) => {
                    End::unknown(UnknownReason::UnmappedSocket)
                }
                _ => End::pod(pod),
            };
        }
        if self.sockets.is_host(socket) {
            return End { kind: "node", node: Some(Arc::clone(&self.origin.node)), ..End::default() };
        }
        End::unknown(UnknownReason::UnmappedSocket)
    }

    fn remote(&self, address: IpAddr, transport: &str, port: u16, role: Role, span: Span) -> End {
        match self.index.resolve(address, span) {
            Owner::Pod(pod) => End::pod(pod),
            Owner::Node(node) => End { kind: "node", node: Some(Arc::clone(&node.name)), ..End::default() },
            Owner::Service(service) => End {
                kind: "service",
                namespace: service.namespace.clone(),
                service: Some(Arc::clone(&service.name)),
                target_port: self.target_port(service, transport, port, span).filter(|_| role != Role::Server),
                ..End::default()
            },
            Owner::External => End { kind: "external", ..End::default() },
            Owner::Unknown(reason) => End::unknown(reason),
        }
    }

    /// The one port that all endpoints of a Service have behind its port; `None` when they differ or there is none.
    fn target_port(&self, service: &InventoryRecord, transport: &str, port: u16, span: Span) -> Option<u16> {
        let backends = self.index.backends(service, transport, port, span);
        let first = backends.first()?.port;
        backends.iter().all(|backend| backend.port == first).then_some(first)
    }

    /// A pod's address of the family of another one.
    fn address_of(&self, end: &End, like: IpAddr) -> Option<IpAddr> {
        let pod = self.index.pod(end.pod_uid.as_ref()?, TimestampMs(i64::MAX))?;
        let addresses = pod.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
        addresses.into_iter().find(|address| address.is_ipv4() == like.is_ipv4())
    }
}

impl Filter {
    fn wants(&self, key: &FlowKey, local: &End, remote: &End) -> bool {
        let Self { namespaces, labels, cidrs, ports, loopback: _ } = self;
        let ends = [local, remote];
        let is_of_namespace = |end: &&End| end.namespace.as_ref().is_some_and(|name| namespaces.contains(name));
        let is_unresolved = |end: &&End| end.unknown_reason.is_some();
        let addresses = [key.local_address, key.remote_address];
        let served = [Some(key.server_port), local.target_port, remote.target_port];
        (namespaces.is_empty() || ends.iter().any(|end| is_unresolved(end) || is_of_namespace(end)))
            && (labels.is_empty() || ends.iter().any(|end| is_unresolved(end) || end.has(labels)))
            && (cidrs.is_empty() || cidrs.iter().any(|cidr| addresses.iter().any(|address| cidr.contains(address))))
            && (ports.is_empty() || served.iter().flatten().any(|port| ports.contains(port)))
    }
}

impl SocketMap {
    /// The pod of a socket, and whether that is certain.
    fn pod(&self, socket: SocketOwner) -> Option<(&Arc<str>, bool)> {
        let in_pod = !self.is_host(socket);
        let by_cookie = self.by_cookie.get(&socket.netns_cookie).filter(|_| in_pod).map(|located| (&located.uid, true));
        let by_inode =
            || self.by_inode.get(&socket.netns_inode).filter(|_| in_pod).map(|located| (&located.uid, false));
        let by_cgroup = || self.by_cgroup.get(&socket.cgroup_id).map(|located| (&located.uid, true));
        by_cookie.or_else(by_inode).or_else(by_cgroup)
    }

    fn is_host(&self, socket: SocketOwner) -> bool {
        socket.netns_inode == self.host.inode || self.host.cookie.is_some_and(|cookie| cookie == socket.netns_cookie)
    }

    fn add_made(&mut self, path: PathBuf, id: u64, now: TimestampMs) {
        if self.made.len() >= CGROUPS {
            // Half of them, the older ones, make room.
            let mut times: Vec<i64> = self.made.values().map(|made| made.last.0).collect();
            times.sort_unstable();
            let median = times[times.len() / 2];
            self.made.retain(|_, made| made.last.0 > median);
        }
        self.made.insert(path, Made { id, last: now });
    }

    /// A pod's network namespace; whether it is there.
    fn add_netns(&mut self, path: &Path, uid: &Arc<str>, now: TimestampMs) -> bool {
        let Some(inode) = inode(path) else { return false };
        let asked = self.asked.get(path).filter(|asked| asked.inode == inode);
        let cookie = asked.map_or_else(|| netns::cookie(path), |asked| asked.cookie);
        self.asked.insert(path.to_path_buf(), Asked { inode, cookie, last: now });
        let located = Located { uid: Arc::clone(uid), last: now };
        match cookie {
            Some(cookie) => drop(self.by_cookie.insert(cookie, located)),
            None => drop(self.by_inode.insert(inode as u32, located)),
        }
        true
    }

    /// A pod's cgroup and those of its containers below it; whether it is there.
    fn add_cgroups(&mut self, directory: &Path, uid: &Arc<str>, now: TimestampMs) -> bool {
        let from_here = self.made.range::<Path, _>((Bound::Included(directory), Bound::Unbounded));
        let made: Vec<u64> =
            from_here.take_while(|(path, _)| path.starts_with(directory)).map(|(_, made)| made.id).collect();
        let there = inode(directory);
        for id in made.iter().copied().chain(there) {
            self.by_cgroup.insert(id, Located { uid: Arc::clone(uid), last: now });
        }
        if there.is_none() {
            return !made.is_empty();
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_cgroups(&entry.path(), uid, now);
            }
        }
        true
    }

    fn forget(&mut self, now: TimestampMs) {
        let is_kept = |located: &Located| now.0 - located.last.0 < REMEMBERED_MS;
        self.by_cookie.retain(|_, located| is_kept(located));
        self.by_inode.retain(|_, located| is_kept(located));
        self.by_cgroup.retain(|_, located| is_kept(located));
        // A file that was away may be another namespace's when it is back.
        self.asked.retain(|_, asked| asked.last == now);
        self.made.retain(|_, made| now.0 - made.last.0 < REMEMBERED_MS);
    }
}

impl End {
    fn pod(pod: &InventoryRecord) -> Self {
        Self {
            kind: "pod",
            namespace: pod.namespace.clone(),
            pod: Some(Arc::clone(&pod.name)),
            pod_uid: Some(pod.uid.clone().unwrap_or_else(|| pod_name_as_uid(pod))),
            node: pod.object_node.clone(),
            workload: Some(workload_of(pod)),
            labels: pod.labels.clone(),
            host_network: Some(pod.host_network == Some(true)),
            ..Self::default()
        }
    }

    /// Whether it is a pod with all of these labels.
    fn has(&self, labels: &[(String, String)]) -> bool {
        let own = self.labels.as_deref().and_then(|text| serde_json::from_str::<HashMap<String, String>>(text).ok());
        own.is_some_and(|own| labels.iter().all(|(key, value)| own.get(key) == Some(value)))
    }

    fn unknown(reason: UnknownReason) -> Self {
        Self { kind: "unknown", unknown_reason: Some(reason), ..Self::default() }
    }
}

/// The inode of a namespace file or a cgroup directory; `None` when it is gone.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

fn text(address: IpAddr) -> Arc<str> {
    address.to_string().into()
}

/// How long a pod's sockets are remembered after it is gone: longer than the longest window, an hour.
const REMEMBERED_MS: i64 = 2 * 3_600_000;

/// Most cgroups that are remembered.
const CGROUPS: usize = 16_384;

#[cfg(test)]
mod tests;
