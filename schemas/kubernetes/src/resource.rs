//! Which resources of the API are watched: what the inventory tells of, and what owns that.

use std::fmt;

use kube::core::{ApiResource, GroupVersionKind};
use schemas::inventory::{InventoryRecord, ObjectKind};

/// A resource of the API that tells of objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// Kind of inventory records.
    pub kind: ObjectKind,
    /// Where it is in the API.
    pub api: ApiResource,
    /// Addresses can't be told without it.
    pub is_needed: bool,
}

impl Resource {
    /// Pods.
    pub fn pods() -> Self {
        Self::new(ObjectKind::Pod, "", "v1", "Pod", "pods")
    }

    /// Services.
    pub fn services() -> Self {
        Self::new(ObjectKind::Service, "", "v1", "Service", "services")
    }

    /// EndpointSlices.
    pub fn endpoint_slices() -> Self {
        Self::new(ObjectKind::EndpointSlice, "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
    }

    /// Nodes.
    pub fn nodes() -> Self {
        Self::new(ObjectKind::Node, "", "v1", "Node", "nodes")
    }

    /// Everything of cluster scope that the inventory tells of, with what owns pods and what owns that.
    pub fn cluster() -> Vec<Self> {
        let optional = |resource: Self| Self { is_needed: false, ..resource };
        let owners = [
            ("", "v1", "ReplicationController", "replicationcontrollers"),
            ("apps", "v1", "Deployment", "deployments"),
            ("apps", "v1", "ReplicaSet", "replicasets"),
            ("apps", "v1", "StatefulSet", "statefulsets"),
            ("apps", "v1", "DaemonSet", "daemonsets"),
            ("batch", "v1", "Job", "jobs"),
            ("batch", "v1", "CronJob", "cronjobs"),
            ("argoproj.io", "v1alpha1", "Rollout", "rollouts"),
        ];
        let others = [
            Self::new(ObjectKind::Namespace, "", "v1", "Namespace", "namespaces"),
            Self::new(ObjectKind::PodDisruptionBudget, "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Self::new(ObjectKind::ServiceCidr, "networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs"),
        ];
        let owners = owners.map(|(group, version, kind, plural)| Self::workload(group, version, kind, plural));
        [Self::nodes(), Self::pods(), Self::services(), Self::endpoint_slices()]
            .into_iter()
            .chain(others.into_iter().chain(owners).map(optional))
            .collect()
    }

    /// A resource that owns pods, or what owns pods.
    pub fn workload(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        Self { is_needed: false, ..Self::new(ObjectKind::Workload, group, version, kind, plural) }
    }

    /// Whether a record is of this resource.
    pub fn is_of(&self, record: &InventoryRecord) -> bool {
        // What an operator adds has no UID.
        *record.kind == self.kind
            && record.uid.is_some()
            && (self.kind != ObjectKind::Workload || record.workload_kind.as_deref() == Some(&*self.api.kind))
    }

    /// The rule of a ClusterRole that allows to watch it, in YAML.
    pub fn rule(&self) -> String {
        let ApiResource { group, plural, .. } = &self.api;
        format!("{{ apiGroups: [\"{group}\"], resources: [{plural}], verbs: [list, watch] }}")
    }

    fn new(record_kind: ObjectKind, group: &str, version: &str, kind: &str, plural: &str) -> Self {
        let gvk = GroupVersionKind::gvk(group, version, kind);
        Self { kind: record_kind, api: ApiResource::from_gvk_with_plural(&gvk, plural), is_needed: true }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ApiResource { group, plural, .. } = &self.api;
        if group.is_empty() { write!(f, "{plural}") } else { write!(f, "{plural}.{group}") }
    }
}
