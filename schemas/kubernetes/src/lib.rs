//! The Kubernetes API as a source of inventory: what is watched, which permission that takes, and what is heard.
//!
//! ```text
//! API server ──list, watch──► Object ──object.rs──► InventoryRecord ──Change──► [bounded] ──► agent | flowscribe inventory
//! ```
//!
//! Of each object only what the inventory needs is ever in memory: the rest of the JSON is passed over while it is read.

mod access;
pub mod lease;
pub mod log;
mod object;
mod trouble;
mod watch;

use std::{borrow::Cow, fmt};

use kube::{
    Client, Config,
    core::{ApiResource, GroupVersionKind},
};

pub use access::{Access, AccessError, UserInfo};
pub use object::{ALLOWED_ANNOTATIONS, Object, Texts, record};
pub use trouble::{News, Trouble, Troubles};
pub use watch::{Start, watch};

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

/// What is heard of a resource.
#[derive(Clone, Debug)]
pub enum Change {
    /// A full list begins: what was known and is not named until [`Self::Listed`] is gone.
    Listing(Resource),
    /// An object is there, as it is now.
    There(InventoryRecord),
    /// An object is gone; as it was at the end.
    Gone(InventoryRecord),
    /// The list is complete.
    Listed(Resource),
    /// The resource can't be watched for now. What was heard of it stays.
    Unreadable(Resource, Problem),
}

/// Why a resource can't be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The server refuses; the rule that would allow it is [`Resource::rule`].
    Forbidden,
    /// The server does not know it: a custom resource that is not installed, or an older server.
    NotServed,
    /// The server is not there, or fails.
    Failed(String),
}

/// Why there can't be a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No configuration is found.
    #[error("no Kubernetes API is configured: set KUBECONFIG, or run in a pod with a service account ({0})")]
    NoConfig(kube::config::InferConfigError),
    /// The configuration can't be used.
    #[error("cannot use the configuration of the Kubernetes API: {}", reason(.0))]
    BadConfig(kube::Error),
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

impl Problem {
    /// What to do about it.
    pub fn remedy(&self, resource: &Resource) -> Cow<'static, str> {
        match self {
            Self::Forbidden => format!("add to the ClusterRole: {}", resource.rule()).into(),
            Self::NotServed => "the API server does not serve it".into(),
            Self::Failed(error) => error.clone().into(),
        }
    }
}

/// What a request failed for, in a line: what the server says, or with its first cause what kept it from being asked.
pub fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let (text, first) = (error.to_string(), causes.last().map(ToString::to_string).unwrap_or_default());
    if text.contains(&first) { text } else { format!("{text}: {first}") }
}

/// A client for the API of `KUBECONFIG`, of `~/.kube/config` or of the pod's service account, in this order. Nothing is
/// sent yet.
///
/// # Errors
/// Nothing is configured, or it can't be used.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer().await.map_err(ConnectError::NoConfig)?;
    Client::try_from(config).map_err(ConnectError::BadConfig)
}
