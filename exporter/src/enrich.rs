//! From flows to records: names both ends.
//!
//! The local end is told by its socket and is certain; the remote end is a hint by address, which the analyzer resolves
//! again from the whole inventory.

pub(crate) mod cluster;
pub(crate) mod file;
mod filter;
mod kubelet;
pub(crate) mod labels;
mod sockets;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    net::IpAddr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use kubernetes::Change;
use schemas::{
    capture::Origin,
    event::CgroupEvent,
    flow::FlowRecord,
    index::{Heard, Index, Owner, Span, UnknownReason, pod_name_as_uid},
    inventory::InventoryRecord,
    table::{RttHistogram, TimestampMs},
    vocabulary::EndKind,
};

use cluster::Cluster;
pub(crate) use filter::Filter;
use filter::is_within_loopback;
use kubelet::Kubelet;
use labels::LabelPolicy;
pub(crate) use sockets::{HostNetns, inode};
use sockets::{SocketMap, walk};

use crate::flow::{Flow, Role, SocketOwner};

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

/// What a flow comes to.
pub(crate) enum Step {
    /// Its record.
    Record {
        record: Box<FlowRecord>,
        /// An end has no name, because its metadata did not come in time.
        is_unnamed: bool,
        /// The local socket's cgroup is of another pod than its network namespace.
        is_contradicted: bool,
    },
    /// The filter leaves it out.
    Filtered,
    /// An end has no name yet, and may have one soon.
    Wait,
}

/// Names the ends of flows.
pub(crate) struct Enricher {
    origin: Origin,
    filter: Filter,
    labels: LabelPolicy,
    /// Where the cgroup v2 hierarchy is mounted.
    cgroup_root: PathBuf,
    index: Index,
    sockets: SocketMap,
    /// With Kubernetes: where this node's pods are.
    kubelet: Option<Kubelet>,
    /// The rest of the cluster, where the agent learns of it.
    cluster: Option<Cluster>,
    /// Longest time that a flow may tell of.
    window_ms: i64,
    next_prune: TimestampMs,
    /// Paths of the inventory that were not there, as far as reported.
    missing: BTreeSet<PathBuf>,
    /// UIDs of pods with a network of their own that have a process in the node's, as far as reported.
    in_node_network: BTreeSet<Arc<str>>,
    /// Names of containers by their IDs, of each pod by its UID.
    containers: HashMap<Arc<str>, HashMap<Arc<str>, Arc<str>>>,
    next_seq: i64,
}

/// One end of a flow, named.
#[derive(Clone, Default)]
struct End {
    kind: EndKind,
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
    container: Option<Arc<str>>,
}

impl Enricher {
    /// An enricher without any knowledge yet.
    pub(crate) fn new(
        origin: Origin,
        filter: Filter,
        labels: LabelPolicy,
        host: HostNetns,
        cgroup_root: PathBuf,
        window_ms: i64,
    ) -> Self {
        Self {
            origin,
            filter,
            labels,
            cgroup_root,
            index: Index::new(0),
            sockets: SocketMap::new(host),
            kubelet: None,
            cluster: None,
            window_ms,
            next_prune: TimestampMs(0),
            missing: BTreeSet::new(),
            in_node_network: BTreeSet::new(),
            containers: HashMap::new(),
            next_seq: 0,
        }
    }

    /// From now on the node's pods are those of kubelet; with `cluster`, the rest of the cluster is learned too.
    /// `cgroup1_root` is where a hierarchy of cgroup v1 is, if there is one.
    pub(crate) fn use_kubernetes(&mut self, cluster: Option<Cluster>, cgroup1_root: Option<PathBuf>) {
        self.kubelet = Some(Kubelet::new(cgroup1_root));
        self.index = Index::new(CLOCK_SKEW_MS);
        self.cluster = cluster;
    }

    /// Learns a record, as it was written to the inventory.
    pub(crate) fn learn(&mut self, record: InventoryRecord) {
        if let Some(containers) = &record.containers {
            let uid = record.uid.clone().unwrap_or_else(|| pod_name_as_uid(&record));
            let names: HashMap<Arc<str>, Arc<str>> = serde_json::from_str(containers).unwrap_or_default();
            let known = self.containers.entry(uid).or_default();
            known.extend(names.into_iter().map(|(name, id)| (id, name)));
        }
        self.index.apply(record);
    }

    /// Learns of the rest of the cluster.
    pub(crate) fn learn_cluster(&mut self, change: Change, now: TimestampMs) {
        if let Some(cluster) = &mut self.cluster {
            cluster.learn(&mut self.index, change, now);
        }
    }

    /// Whether all of the cluster that is to be known is, as far as it may be.
    pub(crate) fn knows_cluster(&self) -> bool {
        self.cluster.as_ref().is_none_or(Cluster::is_settled)
    }

    /// What is known of this node's pods, or can't be, is a part of what is known of the cluster.
    pub(crate) fn learn_own(&mut self, change: &Change, now: TimestampMs) {
        if let Some(cluster) = &mut self.cluster {
            cluster.learn_own(&mut self.index, change, now);
        }
    }

    /// Learns of a cgroup that was made.
    pub(crate) fn learn_cgroup(&mut self, event: &CgroupEvent, now: TimestampMs) {
        let path = event.path.split(|byte| *byte == 0).next().unwrap_or_default();
        let below_root = Path::new(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
        let path = self.cgroup_root.join(below_root);
        match &mut self.kubelet {
            Some(kubelet) => {
                if let Some(uid) = kubelet.add(&path, now) {
                    self.sockets.add_cgroup(event.id, &path, uid, now);
                }
            }
            None => self.sockets.add_made(path, event.id, now),
        }
    }

    /// A second has passed: the knowledge so far goes on to hold, and what is too old for any flow is forgotten.
    pub(crate) fn tick(&mut self, now: TimestampMs) {
        match &mut self.cluster {
            Some(cluster) => cluster.tick(&mut self.index, now),
            None => {
                let Origin { node: writer, run_id, .. } = self.origin.clone();
                self.index.hear(Heard { time: now, writer, run_id });
            }
        }
        if now >= self.next_prune {
            self.next_prune = TimestampMs(now.0 + PRUNE_MS);
            self.index.forget(TimestampMs(now.0 - 2 * self.window_ms - PRUNE_MS));
            self.containers.retain(|uid, _| self.index.pod(uid, now).is_some());
        }
        self.locate_pods(now);
    }

    /// Looks where kubelet's pods are.
    fn locate_pods(&mut self, now: TimestampMs) {
        let Some(kubelet) = &mut self.kubelet else { return };
        let is_walk_due = kubelet.is_walk_due(now);
        if is_walk_due {
            walk(&self.cgroup_root, &mut |path| {
                if let Some(uid) = kubelet.add(path, now)
                    && let Some(id) = inode(path)
                {
                    self.sockets.add_cgroup(id, path, uid, now);
                }
            });
            // Their numbers are of another hierarchy than sockets tell; their processes tell the network.
            if let Some(root) = kubelet.cgroup1_root() {
                walk(&root, &mut |path| drop(kubelet.add(path, now)));
            }
        }
        let mut networks = kubelet.networks(now, self.sockets.host_inode());
        // What a pod in the node's network enters is others'.
        networks.retain(|(uid, _)| self.index.pod(uid, now).is_none_or(|pod| pod.host_network != Some(true)));
        for (uid, paths) in &networks {
            if paths.first().is_some_and(|path| self.sockets.add_netns(path, uid, now)) {
                kubelet.found(uid);
            }
        }
        // A process of one pod may be in another one's network, which is that one's.
        for (uid, paths) in &networks {
            paths.iter().skip(1).for_each(|path| self.sockets.add_netns_within(path, uid, now));
        }
        if is_walk_due {
            self.sockets.forget(now);
        }
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

    /// Names a flow. One whose ends may have a name soon has to wait, if it may.
    pub(crate) fn step(&mut self, flow: &Flow, may_wait: bool, now: TimestampMs) -> Step {
        let key = &flow.key;
        if !self.filter.loopback && is_within_loopback(key) {
            return Step::Filtered;
        }
        let sums = &flow.sums;
        let span = Span { from: sums.first_seen, to: sums.last_seen };
        let mut local = self.local(key.socket, key.local_address, span);
        local.container = self.container(&local, key.socket);
        let transport = key.transport.as_str();
        let remote = if key.remote_address.is_loopback() {
            End { container: None, ..local.clone() }
        } else {
            self.remote(key.remote_address, transport, key.server_port, key.role, span)
        };
        let is_unnamed = self.may_come(&local) || (self.cluster.is_some() && self.may_come(&remote));
        // The news that an address has moved on may be on its way.
        let is_fresh =
            self.cluster.is_some() && remote.kind == EndKind::Pod && now.0 - sums.last_seen.0 < CLOCK_SKEW_MS;
        if may_wait && (is_unnamed || is_fresh) {
            return Step::Wait;
        }
        if !self.filter.wants(key, &local, &remote) {
            return Step::Filtered;
        }
        self.note_network(&local, sums.last_seen);
        let is_contradicted = self.sockets.is_contradicted(key.socket);
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
        let source_labels = source.labels.map(|labels| self.labels.choose(&labels));
        let destination_labels = destination.labels.map(|labels| self.labels.choose(&labels));
        let (source_workload_kind, source_workload) = source.workload.unzip();
        let (destination_workload_kind, destination_workload) = destination.workload.unzip();
        let record = Box::new(FlowRecord {
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
            source_labels,
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
            destination_labels,
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
            source_container: source.container,
            destination_container: destination.container,
        });
        Step::Record { record, is_unnamed, is_contradicted }
    }

    /// The name of the container that a pod's socket is of.
    fn container(&self, local: &End, socket: SocketOwner) -> Option<Arc<str>> {
        let names = self.containers.get(local.pod_uid.as_ref()?)?;
        names.get(self.sockets.container(socket)?).cloned()
    }

    /// Reports a pod with a network of its own that has a process in the node's, once.
    fn note_network(&mut self, local: &End, at: TimestampMs) {
        let Some(uid) = local.pod_uid.as_ref().filter(|_| local.host_network == Some(true)) else { return };
        let has_its_own = self.index.pod(uid, at).is_some_and(|pod| pod.host_network != Some(true));
        if has_its_own && self.in_node_network.insert(Arc::clone(uid)) {
            let (namespace, pod) = (local.namespace.as_deref().unwrap_or_default(), local.pod.as_deref());
            tracing::warn!(
                namespace,
                pod,
                "has a process in the node's network: what it does there counts as the node's"
            );
        }
    }

    /// Whether the metadata of an end may be on its way: the API server tells of pods later than they begin.
    fn may_come(&self, end: &End) -> bool {
        use UnknownReason::{NoInventory, NoOwner, UnmappedSocket};
        let is_pod_without_name = end.kind == EndKind::Pod && end.pod.is_none();
        self.kubelet.is_some()
            && (is_pod_without_name || matches!(end.unknown_reason, Some(NoInventory | NoOwner | UnmappedSocket)))
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
                // A process of a pod may have stayed in, or entered, the node's network: on the wire it is the node.
                _ => {
                    let host_network = pod.host_network == Some(true) || self.sockets.is_host(socket);
                    End { host_network: Some(host_network), ..End::pod(&self.index, pod) }
                }
            };
        }
        // Its cgroup tells the UID, by which the analyzer will know it.
        if self.kubelet.is_some()
            && let Some((uid, _)) = self.sockets.pod(socket)
        {
            let (pod_uid, node) = (Some(Arc::clone(uid)), Some(Arc::clone(&self.origin.node)));
            let host_network = Some(self.sockets.is_host(socket));
            return End { kind: EndKind::Pod, pod_uid, node, host_network, ..End::default() };
        }
        if self.sockets.is_host(socket) {
            return End { kind: EndKind::Node, node: Some(Arc::clone(&self.origin.node)), ..End::default() };
        }
        End::unknown(UnknownReason::UnmappedSocket)
    }

    fn remote(&self, address: IpAddr, transport: &str, port: u16, role: Role, span: Span) -> End {
        let owner = match role {
            Role::Server => self.index.resolve(address, span),
            Role::Client | Role::Unknown => self.index.dialled(address, transport, port, span),
        };
        match owner {
            Owner::Pod(pod) => End::pod(&self.index, pod),
            Owner::Node(node) => End { kind: EndKind::Node, node: Some(Arc::clone(&node.name)), ..End::default() },
            Owner::Service(service) => End {
                kind: EndKind::Service,
                namespace: service.namespace.clone(),
                service: Some(Arc::clone(&service.name)),
                target_port: self.target_port(service, transport, port, span).filter(|_| role != Role::Server),
                ..End::default()
            },
            Owner::External => End { kind: EndKind::External, ..End::default() },
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

impl End {
    fn pod(index: &Index, pod: &InventoryRecord) -> Self {
        Self {
            kind: EndKind::Pod,
            namespace: pod.namespace.clone(),
            pod: Some(Arc::clone(&pod.name)),
            pod_uid: Some(pod.uid.clone().unwrap_or_else(|| pod_name_as_uid(pod))),
            node: pod.object_node.clone(),
            workload: Some(index.workload_of(pod)),
            labels: pod.labels.clone(),
            host_network: Some(pod.host_network == Some(true)),
            ..Self::default()
        }
    }

    fn unknown(reason: UnknownReason) -> Self {
        Self { kind: EndKind::Unknown, unknown_reason: Some(reason), ..Self::default() }
    }
}

fn text(address: IpAddr) -> Arc<str> {
    address.to_string().into()
}

/// How far clocks of nodes, or a flow and the news of its pods, may be apart; the analyzer's default.
const CLOCK_SKEW_MS: i64 = 2000;

/// How often what is over is forgotten.
const PRUNE_MS: i64 = 60_000;

#[cfg(test)]
mod tests;
