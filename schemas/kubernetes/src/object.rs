//! What an object of the API says, as an inventory record.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::{
    apis::meta::v1::{ObjectMeta, OwnerReference, Time},
    util::intstr::IntOrString,
};
use kube::core::{ApiResource, DynamicResourceScope};
use serde::{Deserialize, Deserializer};

use super::Resource;
use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::{Port, TimestampMs},
};

/// The parts of any object that the inventory needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Object {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
    /// Of an EndpointSlice.
    endpoints: Option<Vec<Endpoint>>,
    /// Of an EndpointSlice.
    ports: Option<Vec<PortSpec>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    // Of pods.
    node_name: Option<String>,
    host_network: bool,
    runtime_class_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    // Of Services.
    r#type: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Vec<String>,
    external_name: Option<String>,
    ports: Vec<PortSpec>,
    /// Of Services a map of labels, of what owns pods a LabelSelector.
    selector: Option<serde_json::Value>,
    /// Of ReplicaSets.
    replicas: Option<i64>,
    // Of nodes.
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    /// Of ServiceCIDRs.
    cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<PortSpec>,
}

/// A port of a container, a Service or an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortSpec {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
    container_port: Option<u16>,
    target_port: Option<IntOrString>,
    node_port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    // Of pods.
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
    /// Of ReplicaSets.
    replicas: i64,
    /// Of nodes.
    addresses: Vec<NodeAddress>,
    /// Of Services.
    load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    /// `RUNTIME://ID`.
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<Moments>,
    terminated: Option<Moments>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Moments {
    started_at: Option<Time>,
    finished_at: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    r#type: String,
    address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Vec<String>,
    conditions: EndpointConditions,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct EndpointConditions {
    ready: Option<bool>,
    serving: Option<bool>,
}

/// Texts that many records share are in memory once.
#[derive(Debug, Default)]
pub struct Texts(HashSet<Arc<str>>);

impl kube::Resource for Object {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn group(api: &ApiResource) -> std::borrow::Cow<'_, str> {
        api.group.as_str().into()
    }

    fn version(api: &ApiResource) -> std::borrow::Cow<'_, str> {
        api.version.as_str().into()
    }

    fn kind(api: &ApiResource) -> std::borrow::Cow<'_, str> {
        api.kind.as_str().into()
    }

    fn plural(api: &ApiResource) -> std::borrow::Cow<'_, str> {
        api.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Texts {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        if self.0.len() >= SHARED_TEXTS {
            self.0.retain(|text| Arc::strong_count(text) > 1);
        }
        let text: Arc<str> = text.into();
        self.0.insert(Arc::clone(&text));
        text
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) -> Option<Arc<str>> {
        serde_json::to_string(labels).ok().map(|json| self.share(&json))
    }
}

impl Object {
    /// Whether it tells of anything: a ReplicaSet of an earlier revision, which has no pods, does not.
    pub fn is_of_use(&self, resource: &Resource) -> bool {
        let has_no_pods = self.spec.replicas == Some(0) && self.status.replicas == 0;
        resource.api.kind != "ReplicaSet" || !has_no_pods || self.metadata.owner_references.is_none()
    }
}

/// The record of an object; its writer, number and time are filled in by who writes it.
pub fn record(resource: &Resource, object: Object, texts: &mut Texts) -> InventoryRecord {
    let Object { metadata, spec, status, endpoints, ports } = object;
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    // A static pod is owned by its node, which is no workload.
    let owner = owner.filter(|owner| owner.kind != "Node");
    let base = InventoryRecord {
        kind: texts.share(resource.kind.as_str()),
        namespace: metadata.namespace.as_deref().map(|namespace| texts.share(namespace)),
        name: metadata.name.as_deref().unwrap_or_default().into(),
        uid: metadata.uid.as_deref().map(Arc::from),
        labels: texts.labels(&metadata.labels.clone().unwrap_or_default()),
        annotations: annotations(&metadata, texts),
        owner_kind: owner.map(|owner| texts.share(&owner.kind)),
        owner: owner.map(|owner| texts.share(&owner.name)),
        ..InventoryRecord::default()
    };
    let created = metadata.creation_timestamp.as_ref().map(moment);
    let mut record = match resource.kind {
        ObjectKind::Pod => pod(base, spec, &status, texts),
        ObjectKind::Service => InventoryRecord {
            addresses: addresses(
                spec.cluster_ips
                    .iter()
                    .chain(&spec.external_ips)
                    .chain(status.load_balancer.ingress.iter().map(|ingress| &ingress.ip)),
            ),
            ports: spec.ports.iter().filter_map(|port| port.to_port(texts)).collect(),
            selector: spec
                .selector
                .filter(|selector| selector.as_object().is_some_and(|map| !map.is_empty()))
                .map(json),
            service_type: spec.r#type.map(|text| texts.share(&text)),
            external_name: spec.external_name.map(Arc::from),
            lease_start: created,
            ..base
        },
        ObjectKind::EndpointSlice => InventoryRecord {
            addresses: addresses(endpoints.iter().flatten().filter(|e| e.is_used()).flat_map(|e| &e.addresses)),
            ports: ports.iter().flatten().filter_map(|port| port.to_port(texts)).collect(),
            owner_kind: Some(texts.share(ObjectKind::Service.as_str())),
            owner: metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).map(|name| texts.share(name)),
            labels: None,
            ..base
        },
        ObjectKind::Node => {
            let is_ip = |address: &&NodeAddress| address.r#type.ends_with("IP");
            let zone = metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
            InventoryRecord {
                addresses: addresses(status.addresses.iter().filter(is_ip).map(|address| &address.address)),
                cidrs: spec.pod_cidrs.into_iter().map(Arc::from).collect(),
                zone: zone.map(|zone| texts.share(zone)),
                labels: None,
                lease_start: created,
                ..base
            }
        }
        ObjectKind::ServiceCidr => {
            InventoryRecord { cidrs: spec.cidrs.into_iter().map(Arc::from).collect(), labels: None, ..base }
        }
        ObjectKind::PodDisruptionBudget => InventoryRecord { selector: spec.selector.map(json), labels: None, ..base },
        ObjectKind::Workload => InventoryRecord {
            workload_kind: Some(texts.share(&resource.api.kind)),
            selector: spec.selector.map(|selector| json(as_label_selector(selector))),
            ..base
        },
        _ => base,
    };
    record.ports.shrink_to_fit();
    record
}

/// When a pod got its addresses, and gave them up, is told by its sandbox and its containers, in whole seconds: it began
/// at that second's start at the earliest, and ended at its end at the latest.
fn pod(base: InventoryRecord, spec: Spec, status: &Status, texts: &mut Texts) -> InventoryRecord {
    let statuses = || status.container_statuses.iter().chain(&status.init_container_statuses);
    let states = || statuses().map(|container| &container.state);
    let sandbox = status.conditions.iter().find(|condition| condition.r#type == SANDBOX_READY);
    let sandbox_time = |wanted: &str| sandbox.filter(|c| c.status == wanted)?.last_transition_time.as_ref().map(moment);
    let started = states().filter_map(|s| s.running.as_ref().or(s.terminated.as_ref())?.started_at.as_ref());
    let have_all_ended = states().all(|state| state.terminated.is_some());
    let finished = states().filter_map(|s| s.terminated.as_ref()?.finished_at.as_ref()).map(moment).max();
    let finished = finished.filter(|_| have_all_ended);
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let end = if is_over { finished.or(sandbox_time("False")) } else { sandbox_time("False") };
    let pod_ips = status.pod_ips.iter().map(|pod_ip| &pod_ip.ip).chain(&status.pod_ip);
    let addresses = addresses(pod_ips);
    let has_network = !addresses.is_empty();
    let added = &status.ephemeral_container_statuses;
    let id = |container: &ContainerStatus| Some(container.container_id.as_deref()?.rsplit_once("://")?.1.to_owned());
    let ids: BTreeMap<&str, String> =
        statuses().chain(added).filter_map(|container| Some((&*container.name, id(container)?))).collect();
    InventoryRecord {
        ports: [&spec.containers, &spec.init_containers]
            .into_iter()
            .flatten()
            .flat_map(|container| &container.ports)
            .filter_map(|port| port.to_port(texts))
            .collect(),
        object_node: spec.node_name.as_deref().filter(|node| !node.is_empty()).map(|node| texts.share(node)),
        host_network: Some(spec.host_network),
        containers: if ids.is_empty() { None } else { serde_json::to_string(&ids).ok().map(Arc::from) },
        ephemeral_containers: names(added),
        runtime_class: spec.runtime_class_name.as_deref().map(|class| texts.share(class)),
        phase: status.phase.as_deref().map(|phase| texts.share(phase)),
        // kubelet may report the sandbox later than what runs in it.
        lease_start: started.map(moment).chain(sandbox_time("True")).min().filter(|_| has_network),
        lease_end: end.filter(|_| has_network).map(|TimestampMs(ms)| TimestampMs(ms + SECOND_MS - 1)),
        addresses,
        ..base
    }
}

/// Names of containers as JSON, in order; `None` of none.
fn names(containers: &[ContainerStatus]) -> Option<Arc<str>> {
    let names: BTreeSet<&str> = containers.iter().map(|container| &*container.name).collect();
    if names.is_empty() { None } else { serde_json::to_string(&names).ok().map(Arc::from) }
}

impl PortSpec {
    fn to_port(&self, texts: &mut Texts) -> Option<Port> {
        let Self { name, protocol, port, container_port, target_port, node_port } = self;
        Some(Port {
            name: name.as_deref().filter(|name| !name.is_empty()).map(|name| texts.share(name)),
            protocol: texts.share(&protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase()),
            port: (*port).or(*container_port)?,
            target: target_port.as_ref().map(|target| match target {
                IntOrString::Int(number) => texts.share(&number.to_string()),
                IntOrString::String(name) => texts.share(name),
            }),
            node_port: node_port.filter(|port| *port != 0),
        })
    }
}

impl Endpoint {
    /// Whether traffic may be sent to it: when it is ready, or on its way out and still serving. What is not said is so.
    fn is_used(&self) -> bool {
        self.conditions.ready != Some(false) || self.conditions.serving == Some(true)
    }
}

/// Metadata without what may be long: who manages which field, and most annotations.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
        creation_timestamp: Option<Time>,
    }
    let Slim { name, namespace, uid, resource_version, labels, mut annotations, owner_references, creation_timestamp } =
        Slim::deserialize(deserializer)?;
    if let Some(annotations) = &mut annotations {
        annotations.retain(|key, _| ALLOWED_ANNOTATIONS.contains(&key.as_str()));
    }
    Ok(ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        labels,
        annotations,
        owner_references,
        creation_timestamp,
        ..ObjectMeta::default()
    })
}

fn annotations(metadata: &ObjectMeta, texts: &mut Texts) -> Option<Arc<str>> {
    texts.labels(metadata.annotations.as_ref().filter(|annotations| !annotations.is_empty())?)
}

/// A ReplicationController's selector is a map of labels, as that of a Service.
fn as_label_selector(selector: serde_json::Value) -> serde_json::Value {
    let is_map =
        selector.as_object().is_some_and(|map| !map.is_empty() && map.values().all(serde_json::Value::is_string));
    if is_map { serde_json::json!({ "matchLabels": selector }) } else { selector }
}

fn json(value: serde_json::Value) -> Arc<str> {
    value.to_string().into()
}

/// What is an IP address, once, in canonical form; Services without one say `None`.
fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<Arc<str>> {
    let mut addresses: Vec<Arc<str>> = Vec::new();
    for address in texts.filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address: Arc<str> = address.to_canonical().to_string().into();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.shrink_to_fit();
    addresses
}

fn moment(time: &Time) -> TimestampMs {
    TimestampMs(time.0.as_millisecond())
}

/// Annotations that are recorded.
pub const ALLOWED_ANNOTATIONS: [&str; 2] = [schemas::index::CONFIG_HASH, schemas::inventory::NETWORKS];
/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Condition of a pod whose sandbox and network are there (since Kubernetes 1.28).
const SANDBOX_READY: &str = "PodReadyToStartContainers";
const SHARED_TEXTS: usize = 65_536;
const SECOND_MS: i64 = 1000;

#[cfg(test)]
mod tests;
