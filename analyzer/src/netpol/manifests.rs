//! Kubernetes manifests in files: policies, and the pods that they are about, given as such or by what makes them.

mod documents;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, PodSpec, PodTemplateSpec},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use schemas::inventory::Labels;
use serde::Deserialize;
use serde_json::Value;

use super::{
    DEFAULT_NAMESPACE, NamedPort, Subject, Transport,
    ownership::{MANAGED_BY, MANAGER},
    population::{Member, Population},
    validation,
};
use crate::communication::Workload;

/// What some files hold.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) policies: Vec<NetworkPolicy>,
    pub(crate) population: Population,
    /// What is in the files and can't be used, a line each.
    pub(crate) problems: Vec<String>,
    /// What is in the files and of no concern to policies, a line each.
    pub(crate) remarks: BTreeSet<String>,
    /// What makes pods, and the pods that were made.
    templates: Vec<Made>,
    pods: Vec<Made>,
    owners: BTreeMap<Workload, Workload>,
}

/// Pods, as something makes or made them.
#[derive(Debug)]
struct Made {
    by: Workload,
    name: Arc<str>,
    subject: Subject,
}

/// Why manifests can't be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub(crate) struct ManifestsError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Manifests {
    /// Reads a file, all YAML and JSON files below a directory, or for `-` standard input. What is not valid is left out and listed as a problem.
    ///
    /// # Errors
    /// The path is not there.
    pub(crate) fn read(path: &Path) -> Result<Self, ManifestsError> {
        if path == Path::new("-") {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).map_err(|source| ManifestsError { path: path.into(), source })?;
            let mut manifests = Self::default();
            manifests.add_all(documents::read(&bytes), "standard input");
            manifests.settle();
            return Ok(manifests);
        }
        let mut files = Vec::new();
        find(path, &mut files).map_err(|source| ManifestsError { path: path.into(), source })?;
        files.sort();
        let mut manifests = Self::default();
        for file in files {
            match fs::read(&file) {
                Ok(bytes) => manifests.add_all(documents::read(&bytes), &file.display().to_string()),
                Err(error) => manifests.problems.push(format!("{}: {error}", file.display())),
            }
        }
        manifests.settle();
        Ok(manifests)
    }

    /// Takes in the policies of a text.
    pub(crate) fn read_text(&mut self, text: &str, file: &str) {
        self.add_all(documents::read_text(text), file);
    }

    fn add_all(&mut self, documents: Vec<Result<Value, String>>, file: &str) {
        for document in documents {
            match document {
                Ok(object) => self.add(object, file),
                Err(error) => self.problems.push(format!("{file}: {error}")),
            }
        }
    }

    fn add(&mut self, mut object: Value, file: &str) {
        if object.is_null() {
            return;
        }
        if !object.is_object() {
            return self.problems.push(format!("{file}: it holds a list or a text where an object should be"));
        }
        let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        let (kind, version) = (text("kind"), text("apiVersion"));
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take) {
            for mut item in items {
                // Items of a list of one kind may leave it out.
                if item["kind"].is_null()
                    && let Some(fields) = item.as_object_mut()
                {
                    fields.insert("kind".into(), kind.trim_end_matches("List").into());
                    fields.insert("apiVersion".into(), version.as_str().into());
                }
                self.add(item, file);
            }
            return;
        }
        as_decoded(&mut object);
        let [namespace, name] = ["namespace", "name"].map(|key| object["metadata"][key].as_str().unwrap_or_default());
        let name = if name.is_empty() { "(no name)" } else { name };
        let name = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        for problem in self.add_object(object, &kind, &version).err().unwrap_or_default() {
            self.problems.push(format!("{file}: {kind} {name}: {problem}"));
        }
    }

    fn add_object(&mut self, object: Value, kind: &str, version: &str) -> Result<(), Vec<String>> {
        let refused = |error: serde_json::Error| vec![error.to_string()];
        match kind {
            // A file of something else, such as evidence.
            "" if !["apiVersion", "metadata", "spec"].iter().any(|field| object.get(field).is_some()) => {}
            "" => return Err(vec!["kind is missing".into()]),
            "NetworkPolicy" if version == "networking.k8s.io/v1" => {
                let policy = validation::read(&object)?;
                let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
                let is_known =
                    |known: &NetworkPolicy| known.metadata.namespace == *namespace && known.metadata.name == *name;
                if self.policies.iter().any(is_known) {
                    return Err(vec!["there is another policy of this name in its namespace".into()]);
                }
                self.policies.push(policy);
            }
            // A set that is kept in one: see `crate::commands::regenerate`.
            "ConfigMap" if object["metadata"]["labels"][MANAGED_BY] == MANAGER => {
                for (name, text) in object["data"].as_object().into_iter().flatten() {
                    if let Some(text) = text.as_str().filter(|_| name.ends_with(".yaml")) {
                        self.read_text(text, name);
                    }
                }
            }
            "Namespace" => {
                let namespace = Namespace::deserialize(&object).map_err(refused)?;
                taken(&namespace.metadata)?;
                let labels = labels(&namespace.metadata);
                self.population.namespaces.insert(namespace.metadata.name.unwrap_or_default().into(), labels);
            }
            "Pod" => {
                let metadata = ObjectMeta::deserialize(&object["metadata"]).map_err(refused)?;
                taken(&metadata)?;
                if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                    return Ok(());
                }
                let spec = PodSpec::deserialize(&object["spec"]).map_err(refused)?;
                let namespace = namespace(&metadata);
                let pod = || metadata.name.as_deref().or(metadata.generate_name.as_deref()).unwrap_or_default();
                let of_itself = || workload(&namespace, "Pod", pod().trim_end_matches('-'));
                let by = owner(&metadata, &namespace).unwrap_or_else(of_itself);
                let addresses = object["status"]["podIPs"].as_array().into_iter().flatten();
                let addresses = addresses.filter_map(|address| address["ip"].as_str()?.parse::<IpAddr>().ok());
                self.population.addresses.entry(by.clone()).or_default().extend(addresses);
                self.add_pods(by, &metadata, &metadata, &spec, false);
            }
            kind if kind.ends_with("NetworkPolicy") => {
                let of = if version.is_empty() { "without an apiVersion" } else { &format!("of {version}") };
                return Err(vec![format!("{of} is not considered, only those of networking.k8s.io/v1")]);
            }
            kind if version.starts_with("networking.k8s.io/") && !NETWORKING_KINDS.contains(&kind) => {
                return Err(vec![format!("{version} has no such kind")]);
            }
            // Whatever makes pods, of any kind, has their template.
            _ => {
                let spec = &object["spec"];
                let template = if spec["jobTemplate"].is_null() { spec } else { &spec["jobTemplate"]["spec"] };
                if !template["template"]["spec"]["containers"].is_array() {
                    return Ok(());
                }
                let template = PodTemplateSpec::deserialize(&template["template"]).map_err(refused)?;
                let metadata = ObjectMeta::deserialize(&object["metadata"]).map_err(refused)?;
                taken(&metadata)?;
                template.metadata.as_ref().map_or(Ok(()), taken)?;
                let namespace = namespace(&metadata);
                let by = workload(&namespace, kind, metadata.name.as_deref().unwrap_or_default());
                if let Some(owner) = owner(&metadata, &namespace) {
                    self.owners.insert(by.clone(), owner);
                    // That of a former release.
                    if object["spec"]["replicas"] == 0 {
                        return Ok(());
                    }
                }
                let (pod, spec) = (template.metadata.unwrap_or_default(), template.spec.unwrap_or_default());
                if kind != "StatefulSet" {
                    self.add_pods(by, &metadata, &pod, &spec, true);
                    return Ok(());
                }
                let number = |field: &Value, default| field.as_u64().unwrap_or(default);
                let first = number(&object["spec"]["ordinals"]["start"], 0);
                let replicas = number(&object["spec"]["replicas"], 1).clamp(1, MOST_REPLICAS);
                for ordinal in first..first.saturating_add(replicas) {
                    self.add_pods(by.clone(), &metadata, &numbered(&pod, &by.name, ordinal), &spec, true);
                }
            }
        }
        Ok(())
    }

    fn add_pods(&mut self, by: Workload, place: &ObjectMeta, pod: &ObjectMeta, spec: &PodSpec, is_template: bool) {
        if spec.host_network == Some(true) {
            self.remarks.insert(format!("{by}: its pods are in their node's network, where no policy concerns them"));
            return;
        }
        let subject = Subject { namespace: namespace(place), labels: labels(pod), ports: named_ports(spec) };
        let name: Arc<str> = pod.name.as_deref().unwrap_or(&by.name).into();
        for port in &subject.ports {
            let same =
                subject.ports.iter().filter(|other| (&other.name, other.transport) == (&port.name, port.transport));
            if same.count() > 1 {
                let (port, protocol) = (&port.name, port.transport.protocol());
                self.remarks.insert(format!(
                    "{by}: several of its ports are named {port}/{protocol}, which means each of them"
                ));
            }
        }
        let made = if is_template { &mut self.templates } else { &mut self.pods };
        made.push(Made { by, name, subject });
    }

    /// Makes members of pods: of a workload those that are there, and where none is, those that it would make.
    fn settle(&mut self) {
        let mut there = BTreeSet::new();
        let member = |workload: Workload, Made { name, subject, .. }| Member::there(workload, subject, name);
        let makers: BTreeSet<Workload> = self.templates.iter().map(|made| made.by.clone()).collect();
        for made in std::mem::take(&mut self.pods) {
            if let Some(deployment) = by_template_hash(&made).filter(|deployment| makers.contains(deployment)) {
                self.owners.entry(made.by.clone()).or_insert(deployment);
            }
            let top = self.top(&made.by);
            there.insert(top.clone());
            self.population.members.push(member(top, made));
        }
        let templates = std::mem::take(&mut self.templates);
        // What makes pods itself knows better than what was made by it.
        let own: BTreeSet<Workload> = makers.into_iter().filter(|by| !self.owners.contains_key(by)).collect();
        for made in templates {
            let top = self.top(&made.by);
            if !there.contains(&top) && (top == made.by || !own.contains(&top)) {
                self.population.members.push(member(top, made));
            }
        }
        self.population.join();
    }

    /// What is above all owners of something.
    fn top(&self, workload: &Workload) -> Workload {
        let mut top = workload;
        for _ in 0..OWNERS {
            match self.owners.get(top) {
                Some(owner) => top = owner,
                None => break,
            }
        }
        top.clone()
    }
}

/// What controls an object; a static pod, which its node does, is its own, without its node's name.
fn owner(metadata: &ObjectMeta, namespace: &Arc<str>) -> Option<Workload> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    if owner.kind != "Node" {
        return Some(workload(namespace, &owner.kind, &owner.name));
    }
    let name = metadata.name.as_deref().unwrap_or_default();
    let short = name.strip_suffix(&owner.name).and_then(|name| name.strip_suffix('-'));
    Some(workload(namespace, "Pod", short.unwrap_or(name)))
}

/// The Deployment of a pod whose ReplicaSet may not be in the files, by the hash that it gave both.
fn by_template_hash(Made { by, subject, .. }: &Made) -> Option<Workload> {
    let hash = subject.labels.get("pod-template-hash").filter(|_| &*by.kind == "ReplicaSet")?;
    let name = by.name.strip_suffix(&**hash)?.strip_suffix('-').filter(|name| !name.is_empty())?;
    Some(workload(&by.namespace, "Deployment", name))
}

fn workload(namespace: &Arc<str>, kind: &str, name: &str) -> Workload {
    Workload { namespace: Arc::clone(namespace), name: name.into(), kind: kind.into() }
}

/// A pod of a StatefulSet, with the labels that its controller adds (`k8s.io/api/apps/v1`).
fn numbered(pod: &ObjectMeta, set: &str, ordinal: u64) -> ObjectMeta {
    let name = format!("{set}-{ordinal}");
    let mut labels = pod.labels.clone().unwrap_or_default();
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    ObjectMeta { name: Some(name), labels: Some(labels), ..pod.clone() }
}

/// Makes of an object what the API server decodes: a label without a value has an empty one, and an empty namespace is none.
fn as_decoded(object: &mut Value) {
    if object["metadata"]["namespace"] == ""
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("namespace");
    }
    fill_labels(object);
}

fn fill_labels(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::Object(labels) if matches!(key.as_str(), "annotations" | "labels" | "matchLabels") => {
                        labels.values_mut().filter(|value| value.is_null()).for_each(|value| *value = "".into());
                    }
                    other => fill_labels(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(fill_labels),
        _ => {}
    }
}

/// Whether the API server takes an object with these names and labels.
fn taken(metadata: &ObjectMeta) -> Result<(), Vec<String>> {
    let refusals = validation::refusals_of_metadata(metadata);
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

fn namespace(metadata: &ObjectMeta) -> Arc<str> {
    metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE).into()
}

/// The ports with names of containers, and of init containers that go on beside them (native sidecars).
fn named_ports(spec: &PodSpec) -> Vec<NamedPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let transport = Transport::of_protocol(port.protocol.as_deref().unwrap_or("TCP"))?;
        let number = u16::try_from(port.container_port).ok()?;
        Some(NamedPort { name: port.name.as_deref()?.into(), transport, port: number })
    });
    named.collect()
}

fn labels(metadata: &ObjectMeta) -> Labels {
    metadata.labels.iter().flatten().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// The files below a path.
fn find(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        files.push(path.into());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        let is_manifest = entry.extension().is_some_and(|extension| MANIFESTS.iter().any(|known| extension == *known));
        if entry.is_dir() || is_manifest {
            find(&entry, files)?;
        }
    }
    Ok(())
}

const MANIFESTS: [&str; 3] = ["yaml", "yml", "json"];
/// The kinds of `networking.k8s.io`, but for NetworkPolicy, in any version.
const NETWORKING_KINDS: [&str; 5] = ["ClusterCIDR", "IPAddress", "Ingress", "IngressClass", "ServiceCIDR"];
/// As many pods of a StatefulSet are distinguished by their numbers.
const MOST_REPLICAS: u64 = 100;
/// Owners above one another; a circle must end.
const OWNERS: usize = 8;
