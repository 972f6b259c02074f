//! What pods of a lab are, and what others know them by.

use std::net::IpAddr;

use serde_json::Value;

/// Number of a pod in its lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodId(pub(super) usize);

/// What a pod is to be.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// Namespace in the sense of Kubernetes.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Value,
    /// Owner: kind, name and LabelSelector; `null` for a bare pod.
    pub owner: Value,
    /// Container ports, as in a manifest.
    pub ports: Value,
    /// Leave it out of the inventory: somebody outside the cluster, with an address of 203.0.113.0/24.
    pub external: bool,
    /// Let it share the node's network.
    pub host_network: bool,
    /// Hash of its manifest, if kubelet runs it from a file: then its cgroup is named after that.
    pub static_hash: Option<String>,
    /// Let its containers be in cgroups of version 1, which its sockets do not tell.
    pub cgroup1: bool,
}

/// A pod, as policies see it.
pub(crate) struct Subject {
    pub(crate) pod: PodId,
    pub(crate) namespace: String,
    pub(crate) labels: Value,
    pub(crate) addresses: [IpAddr; 2],
}

/// The node's addresses, on the bridge.
pub const NODE_IPV4: &str = "10.244.0.1";
/// The other family's.
pub const NODE_IPV6: &str = "fd00:10:244::1";
