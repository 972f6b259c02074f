//! Identity from a YAML file, for hosts without Kubernetes: pods, Services and nodes as an operator knows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use kubernetes::ALLOWED_ANNOTATIONS;
use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::Port,
    untrusted::{Unbounded, check_yaml},
    vocabulary::Transport,
};
use serde::{Deserialize, Serialize};

use super::Observation;

/// Why an inventory file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It can't be read.
    #[error("cannot read inventory {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is made to take long.
    #[error("inventory {path} is not valid")]
    Unbounded {
        path: PathBuf,
        #[source]
        source: Unbounded,
    },
    /// It is not YAML of the expected shape.
    #[error("inventory {path} is not valid")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_yaml::Error,
    },
}

/// The file: every list may be absent, unknown keys are refused. Names are those of Kubernetes manifests.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct InventoryFile {
    nodes: Vec<Node>,
    #[serde(rename = "serviceCIDRs")]
    service_cidrs: Vec<IpNet>,
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    name: Arc<str>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    #[serde(default)]
    zone: Option<Arc<str>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Namespace {
    name: Arc<str>,
    #[serde(default)]
    labels: Map,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pod {
    namespace: Arc<str>,
    name: Arc<str>,
    #[serde(default)]
    uid: Option<Arc<str>>,
    #[serde(default)]
    labels: Map,
    #[serde(default)]
    owner: Option<Owner>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<IpAddr>,
    #[serde(default)]
    node: Option<Arc<str>>,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    runtime_class_name: Option<Arc<str>>,
    /// Names and IDs of the pod's containers: the cgroup of each has its ID in its name.
    #[serde(default)]
    containers: Map,
    #[serde(default)]
    ephemeral_containers: BTreeSet<Arc<str>>,
    /// All but those that the inventory keeps are left out.
    #[serde(default)]
    annotations: Map,
    #[serde(default)]
    ports: Vec<ContainerPort>,
    /// Path of the pod's network namespace, such as `/proc/4711/ns/net` or `/run/netns/web`.
    #[serde(default)]
    netns: Option<PathBuf>,
    /// Path of the pod's cgroup v2 directory.
    #[serde(default)]
    cgroup: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Owner {
    kind: Arc<str>,
    name: Arc<str>,
    /// The owner's LabelSelector (`matchLabels`, `matchExpressions`).
    #[serde(default)]
    selector: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ContainerPort {
    #[serde(default)]
    name: Option<Arc<str>>,
    container_port: u16,
    #[serde(default)]
    protocol: Protocol,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Service {
    namespace: Arc<str>,
    name: Arc<str>,
    #[serde(default)]
    selector: Map,
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
    #[serde(default)]
    ports: Vec<ServicePort>,
    /// Addresses behind a Service without a selector.
    #[serde(default)]
    endpoints: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServicePort {
    #[serde(default)]
    name: Option<Arc<str>>,
    port: u16,
    #[serde(default)]
    target_port: Option<Target>,
    #[serde(default)]
    protocol: Protocol,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Target {
    Number(u16),
    Name(Arc<str>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
}

type Map = BTreeMap<Arc<str>, Arc<str>>;

/// Reads an inventory file. Pods whose sockets are here are on `node`, unless it says otherwise.
///
/// # Errors
/// It can't be read or is not valid; the message names the place.
pub(crate) fn read(path: &Path, node: &Arc<str>) -> Result<Vec<Observation>, InventoryError> {
    let text = fs::read_to_string(path).map_err(|source| InventoryError::Read { path: path.into(), source })?;
    check_yaml(&text).map_err(|source| InventoryError::Unbounded { path: path.into(), source })?;
    let file = parse(&text).map_err(|source| InventoryError::Parse { path: path.into(), source })?;
    Ok(observations(file, node))
}

fn parse(text: &str) -> Result<InventoryFile, serde_yaml::Error> {
    // A file with nothing but comments is null, not a map.
    serde_yaml::from_str::<Option<InventoryFile>>(text).map(Option::unwrap_or_default)
}

fn observations(file: InventoryFile, here: &Arc<str>) -> Vec<Observation> {
    let InventoryFile { nodes, service_cidrs, namespaces, pods, services } = file;
    let mut records: Vec<InventoryRecord> = Vec::new();
    records.extend(nodes.into_iter().map(node_record));
    if !service_cidrs.is_empty() {
        records.push(InventoryRecord {
            cidrs: service_cidrs.into_iter().map(|cidr| cidr.to_string().into()).collect(),
            ..record(ObjectKind::ServiceCidr, None, "services")
        });
    }
    for Namespace { name, labels } in namespaces {
        records.push(InventoryRecord { labels: json(&labels), ..record(ObjectKind::Namespace, None, &name) });
    }
    for service in services {
        service_records(service, &mut records);
    }
    let mut workloads = BTreeMap::new();
    let mut observations = Vec::new();
    for pod in pods {
        if let Some(Owner { kind, name, selector: Some(selector) }) = &pod.owner {
            let workload = InventoryRecord {
                workload_kind: Some(Arc::clone(kind)),
                selector: Some(selector.to_string().into()),
                ..record(ObjectKind::Workload, Some(&pod.namespace), name)
            };
            workloads.insert((Arc::clone(&pod.namespace), Arc::clone(kind), Arc::clone(name)), workload);
        }
        observations.push(pod_observation(pod, here));
    }
    records.extend(workloads.into_values());
    observations.extend(records.into_iter().map(|record| Observation { record, netns: None, cgroup: None }));
    observations
}

fn node_record(Node { name, addresses, pod_cidrs, zone }: Node) -> InventoryRecord {
    InventoryRecord {
        addresses: texts(&addresses),
        cidrs: pod_cidrs.into_iter().map(|cidr| cidr.to_string().into()).collect(),
        zone,
        ..record(ObjectKind::Node, None, &name)
    }
}

fn service_records(service: Service, records: &mut Vec<InventoryRecord>) {
    let Service { namespace, name, selector, cluster_ips, ports, endpoints } = service;
    let ports: Vec<Port> = ports
        .into_iter()
        .map(|ServicePort { name, port, target_port, protocol }| Port {
            name,
            protocol: Transport::from(protocol).into(),
            port,
            target: target_port.map(|target| match target {
                Target::Number(number) => number.to_string().into(),
                Target::Name(name) => name,
            }),
            node_port: None,
        })
        .collect();
    if !endpoints.is_empty() {
        let target = |port: &Port| port.target.as_deref().and_then(|target| target.parse().ok()).unwrap_or(port.port);
        records.push(InventoryRecord {
            owner_kind: Some(ObjectKind::Service.into()),
            owner: Some(Arc::clone(&name)),
            addresses: texts(&endpoints),
            ports: ports.iter().map(|port| Port { port: target(port), target: None, ..port.clone() }).collect(),
            ..record(ObjectKind::EndpointSlice, Some(&namespace), &name)
        });
    }
    records.push(InventoryRecord {
        addresses: texts(&cluster_ips),
        ports,
        selector: if selector.is_empty() { None } else { json(&selector) },
        ..record(ObjectKind::Service, Some(&namespace), &name)
    });
}

fn pod_observation(pod: Pod, here: &Arc<str>) -> Observation {
    let Pod { namespace, name, uid, labels, owner, pod_ips, node, host_network, ports, netns, cgroup, .. } = pod;
    let (runtime_class, mut annotations) = (pod.runtime_class_name, pod.annotations);
    let (containers, ephemeral_containers) = (pod.containers, pod.ephemeral_containers);
    annotations.retain(|key, _| ALLOWED_ANNOTATIONS.contains(&&**key));
    let ports = ports.into_iter().map(|ContainerPort { name, container_port, protocol }| Port {
        name,
        protocol: Transport::from(protocol).into(),
        port: container_port,
        target: None,
        node_port: None,
    });
    let record = InventoryRecord {
        uid,
        addresses: texts(&pod_ips),
        ports: ports.collect(),
        labels: json(&labels),
        owner_kind: owner.as_ref().map(|owner| Arc::clone(&owner.kind)),
        owner: owner.map(|owner| owner.name),
        object_node: node.or_else(|| (netns.is_some() || cgroup.is_some()).then(|| Arc::clone(here))),
        annotations: if annotations.is_empty() { None } else { json(&annotations) },
        host_network: Some(host_network),
        runtime_class,
        containers: if containers.is_empty() { None } else { json(&containers) },
        ephemeral_containers: if ephemeral_containers.is_empty() { None } else { json(&ephemeral_containers) },
        phase: Some("Running".into()),
        ..record(ObjectKind::Pod, Some(&namespace), &name)
    };
    Observation { record, netns, cgroup }
}

fn record(kind: ObjectKind, namespace: Option<&Arc<str>>, name: &str) -> InventoryRecord {
    InventoryRecord {
        kind: kind.into(),
        namespace: namespace.cloned(),
        name: name.into(),
        ..InventoryRecord::default()
    }
}

/// Canonical JSON, of what is sorted.
fn json(sorted: &impl Serialize) -> Option<Arc<str>> {
    serde_json::to_string(sorted).ok().map(Arc::from)
}

fn texts(addresses: &[IpAddr]) -> Vec<Arc<str>> {
    addresses.iter().map(|address| address.to_canonical().to_string().into()).collect()
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVENTORY: &str = r"
nodes: [{ name: node-a, addresses: [192.0.2.1], podCIDRs: [10.244.0.0/24], zone: z1 }]
serviceCIDRs: [10.96.0.0/16]
namespaces: [{ name: demo, labels: { team: a } }]
pods:
  - namespace: demo
    name: web-0
    labels: { z: last, app: web }
    owner: { kind: Deployment, name: web, selector: { matchLabels: { app: web } } }
    podIPs: [10.244.0.5, '::ffff:10.244.0.6']
    ports: [{ name: http, containerPort: 8080 }]
    netns: /run/netns/web
services:
  - { namespace: demo, name: web, selector: { app: web }, clusterIPs: [10.96.0.5], ports: [{ port: 80, targetPort: http }] }
  - { namespace: demo, name: ext, endpoints: [198.51.100.1], ports: [{ name: x, port: 53, targetPort: 5353, protocol: UDP }] }
";

    fn find<'a>(observations: &'a [Observation], kind: ObjectKind, name: &str) -> &'a Observation {
        let wanted = |o: &&Observation| *o.record.kind == kind && &*o.record.name == name;
        observations.iter().find(wanted).expect("the inventory has it")
    }

    #[test]
    fn every_object_of_the_file_becomes_a_record() {
        let all = observations(parse(INVENTORY).expect("it is valid"), &"here".into());
        let pod = find(&all, ObjectKind::Pod, "web-0");
        assert_eq!(pod.record.labels.as_deref(), Some(r#"{"app":"web","z":"last"}"#), "keys are sorted");
        assert_eq!(pod.record.addresses, [Arc::from("10.244.0.5"), Arc::from("10.244.0.6")], "mapped is IPv4");
        assert_eq!(pod.record.owner.as_deref(), Some("web"));
        assert_eq!(pod.netns.as_deref(), Some(Path::new("/run/netns/web")));
        assert_eq!(pod.record.object_node.as_deref(), Some("here"), "its sockets are");
        let workload = find(&all, ObjectKind::Workload, "web");
        assert_eq!(workload.record.selector.as_deref(), Some(r#"{"matchLabels":{"app":"web"}}"#));
        assert_eq!(find(&all, ObjectKind::Node, "node-a").record.cidrs, [Arc::from("10.244.0.0/24")]);
        assert_eq!(find(&all, ObjectKind::Service, "web").record.ports[0].target.as_deref(), Some("http"));
        assert_eq!(find(&all, ObjectKind::Service, "ext").record.selector, None);
        let slice = find(&all, ObjectKind::EndpointSlice, "ext");
        assert_eq!((slice.record.ports[0].port, &*slice.record.ports[0].protocol), (5353, "udp"));
        assert_eq!(all.len(), 8, "and nothing else");
    }

    #[test]
    fn the_example_of_the_readme_is_valid() {
        let readme = include_str!("../../../README.md");
        let section = readme.split("### The inventory file\n").nth(1).expect("it has the section");
        let example = section.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
        let all = observations(parse(example.expect("it has an example")).expect("it is valid"), &"here".into());
        assert_eq!(find(&all, ObjectKind::EndpointSlice, "legacy").record.ports[0].port, 5432);
    }

    #[test]
    fn a_wrong_file_is_refused_by_the_place_of_the_mistake() {
        let error = |text: &str| parse(text).expect_err("it is wrong").to_string();
        assert_eq!(
            error("pods: [{ namespace: a, name: b, ip: 1.2.3.4 }]").split(',').next(),
            Some("pods[0]: unknown field `ip`")
        );
        assert!(error("nodes: [{ name: a, podCIDRs: [10.0.0.0] }]").contains("nodes[0].podCIDRs[0]"));
        assert!(error("nodes: [{ name: a, addresses: [300.0.0.1] }]").contains("invalid IP address"));
        assert!(error("services: [{ namespace: a, name: b, ports: [{ port: 70000 }] }]").contains("u16"));
        assert!(parse("# nothing yet\n").expect("an empty file is an empty inventory").pods.is_empty());
    }
}
