//! The `inventory` dataset: who was who, over time. An append-only log of observations.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use crate::table::{Port, TimestampMs, dataset};

pub use crate::vocabulary::{InventoryEvent, ObjectKind, Scope};

/// Name of the writer that knows the whole cluster, in place of a node's: no node can have it.
pub const WRITER: &str = "_cluster";

/// The annotation of a pod that names its networks beside the cluster's own, as CNI's network plumbing group has it.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// Labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Reads labels, or a Service's selector, from canonical JSON; anything else than a map of texts is no label.
pub fn parse_labels(json: &str) -> Labels {
    serde_json::from_str(json).unwrap_or_default()
}

dataset! {
    /// One row per observation of an object: who had which address, labels and owner, and from when to when.
    /// A full snapshot of its writer opens every file and every day; what a snapshot no longer lists is gone.
    InventoryRecord, "inventory", "flowscribe.inventory";

    /// Cluster the writer was told it runs in.
    cluster: Arc<str> => "resource k8s.cluster.name", "";
    /// The writer: the node of the agent that wrote the row.
    node: Arc<str> => "resource k8s.node.name", "";
    /// Random identifier of the writer's run, new at every start.
    run_id: Arc<str> => "resource service.instance.id", "";
    /// Number of the row in this dataset and run, from 0 without gaps.
    seq: i64 => "flowscribe.seq", "";
    /// When the writer learned it; the same for all rows of one snapshot.
    observed_at: TimestampMs => "flowscribe.inventory.observed_at", "";
    /// What the writer knows: `cluster`, all pods, nodes and Services; `part`, less.
    scope: Arc<str> => "flowscribe.inventory.scope", "";
    /// `upsert`, `delete` or `snapshot`.
    event: Arc<str> => "flowscribe.inventory.event", "";
    /// `Pod`, `Service`, `EndpointSlice`, `Node`, `NodeInterfaces`, `Namespace`, `Workload` or `ServiceCIDR`.
    kind: Arc<str> => "flowscribe.inventory.kind", "";
    /// Namespace of the object; null for objects of cluster scope.
    namespace: Option<Arc<str>> => "flowscribe.inventory.namespace", "";
    /// Name of the object.
    name: Arc<str> => "flowscribe.inventory.name", "";
    /// UID of the object.
    uid: Option<Arc<str>> => "flowscribe.inventory.uid", "";
    /// Its addresses: a pod's, a node's, those of a node's own interfaces, a Service's cluster, external and load-balancer
    /// ones, a slice's ready endpoints.
    addresses: Vec<Arc<str>> => "flowscribe.inventory.addresses", "";
    /// Address ranges it stands for, in CIDR notation: a node's pod ranges, the range of a ServiceCIDR.
    cidrs: Vec<Arc<str>> => "flowscribe.inventory.cidrs", "";
    /// Its ports: a pod's container ports, a Service's ports with their targets, a slice's ports.
    ports: Vec<Port> => "flowscribe.inventory.ports", "";
    /// Labels as canonical JSON, keys sorted.
    labels: Option<Arc<str>> => "flowscribe.inventory.labels", "";
    /// Allow-listed annotations as canonical JSON, keys sorted.
    annotations: Option<Arc<str>> => "flowscribe.inventory.annotations", "";
    /// Kind of what controls it: of a pod ReplicaSet, Job and so on, of such a Workload Deployment, CronJob and so on;
    /// of an EndpointSlice `Service`.
    owner_kind: Option<Arc<str>> => "flowscribe.inventory.owner.kind", "";
    /// Name of what controls it; of an EndpointSlice's Service.
    owner: Option<Arc<str>> => "flowscribe.inventory.owner.name", "";
    /// Of a Workload, its kind: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob, Rollout and so on.
    workload_kind: Option<Arc<str>> => "flowscribe.inventory.workload.kind", "";
    /// Selector as JSON: a Workload's LabelSelector, a Service's map of labels.
    selector: Option<Arc<str>> => "flowscribe.inventory.selector", "";
    /// Node a pod runs on.
    object_node: Option<Arc<str>> => "flowscribe.inventory.node", "";
    /// Zone of a node (`topology.kubernetes.io/zone`).
    zone: Option<Arc<str>> => "flowscribe.inventory.zone", "";
    /// Whether a pod shares its node's network; its addresses are then its node's.
    host_network: Option<bool> => "flowscribe.inventory.host_network", "";
    /// Phase of a pod: Pending, Running, Succeeded, Failed or Unknown.
    phase: Option<Arc<str>> => "flowscribe.inventory.phase", "";
    /// Type of a Service: ClusterIP, NodePort, LoadBalancer or ExternalName.
    service_type: Option<Arc<str>> => "flowscribe.inventory.service.type", "";
    /// DNS name that a Service of type ExternalName stands for.
    external_name: Option<Arc<str>> => "flowscribe.inventory.service.external_name", "";
    /// Since when the object has its addresses; null when that is not known.
    lease_start: Option<TimestampMs> => "flowscribe.inventory.lease.start", "";
    /// Until when the object had its addresses; null while it has them.
    lease_end: Option<TimestampMs> => "flowscribe.inventory.lease.end", "";
    /// Name of a pod's RuntimeClass; null for its node's default runtime.
    runtime_class: Option<Arc<str>> => "flowscribe.inventory.runtime_class", "";
    /// A pod's containers that run or ran last, as canonical JSON: names, and the IDs that their runtime gave them.
    containers: Option<Arc<str>> => "flowscribe.inventory.containers", "";
    /// Names of a pod's ephemeral containers, which somebody added to look into it, as canonical JSON; null if there are none.
    ephemeral_containers: Option<Arc<str>> => "flowscribe.inventory.ephemeral_containers", "";

    partition by observed_at, |row| row.observed_at;
    sort by |a, b| (a.observed_at, a.seq).cmp(&(b.observed_at, b.seq));
    summarize by |row, out| {
        write!(out, "{} {} ", row.event, row.kind)?;
        if let Some(namespace) = &row.namespace {
            write!(out, "{namespace}/")?;
        }
        out.write_str(&row.name)?;
        row.addresses.iter().try_for_each(|address| write!(out, " {address}"))
    };
}
