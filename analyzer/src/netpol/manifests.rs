//! Kubernetes manifests in files: policies, and the pods that they are about, given as such or by what makes them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Pod, PodTemplateSpec},
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
};
use crate::communication::Workload;

/// What some files hold.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) policies: Vec<NetworkPolicy>,
    pub(crate) population: Population,
    /// What is in the files and can't be used, a line each.
    pub(crate) problems: Vec<String>,
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
    /// Reads a file, or all YAML and JSON files below a directory. What is not valid is left out and told.
    ///
    /// # Errors
    /// The path is not there.
    pub(crate) fn read(path: &Path) -> Result<Self, ManifestsError> {
        let mut files = Vec::new();
        find(path, &mut files).map_err(|source| ManifestsError { path: path.into(), source })?;
        files.sort();
        let mut manifests = Self::default();
        for file in files {
            match fs::read_to_string(&file) {
                Ok(text) => manifests.read_text(&text, &file.display().to_string()),
                Err(error) => manifests.problems.push(format!("{}: {error}", file.display())),
            }
        }
        manifests.population.join();
        Ok(manifests)
    }

    /// Takes in the text of a file.
    pub(crate) fn read_text(&mut self, text: &str, file: &str) {
        for document in serde_yaml::Deserializer::from_str(text) {
            match Value::deserialize(document) {
                Ok(object) => self.add(object, file),
                // The rest of the file can't be told apart.
                Err(error) => return self.problems.push(format!("{file}: {error}")),
            }
        }
    }

    fn add(&mut self, mut object: Value, file: &str) {
        if object.is_null() {
            return;
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
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if let Err(error) = self.add_object(object, &kind, &version) {
            self.problems.push(format!("{file}: {kind} {name}: {error}"));
        }
    }

    fn add_object(&mut self, object: Value, kind: &str, version: &str) -> Result<(), serde_json::Error> {
        match kind {
            "NetworkPolicy" if version == "networking.k8s.io/v1" => {
                self.policies.push(serde_json::from_value(object)?);
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
                let namespace: Namespace = serde_json::from_value(object)?;
                let labels = labels(&namespace.metadata);
                self.population.namespaces.insert(namespace.metadata.name.unwrap_or_default().into(), labels);
            }
            "Pod" => {
                let pod: Pod = serde_json::from_value(object)?;
                let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
                let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
                let (kind, name) = owner.map_or(("", None), |owner| (&*owner.kind, Some(owner.name.clone())));
                let kind = if kind.is_empty() { "Pod" } else { kind };
                let name = name.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
                self.add_pod(kind, &name, &pod.metadata, &pod.metadata, &containers);
            }
            kind if kind.ends_with("NetworkPolicy") => {
                self.problems
                    .push(format!("{kind} of {version} is not considered, only those of networking.k8s.io/v1"));
            }
            // Whatever makes pods, of any kind, has their template.
            _ => {
                let spec = &object["spec"];
                let template = if spec["jobTemplate"].is_null() { spec } else { &spec["jobTemplate"]["spec"] };
                if !template["template"]["spec"]["containers"].is_array() {
                    return Ok(());
                }
                let template = PodTemplateSpec::deserialize(&template["template"])?;
                let metadata = ObjectMeta::deserialize(&object["metadata"])?;
                let containers = template.spec.map(|spec| spec.containers).unwrap_or_default();
                let name = metadata.name.clone().unwrap_or_default();
                self.add_pod(kind, &name, &metadata, &template.metadata.unwrap_or_default(), &containers);
            }
        }
        Ok(())
    }

    fn add_pod(&mut self, kind: &str, name: &str, place: &ObjectMeta, pod: &ObjectMeta, containers: &[Container]) {
        let namespace: Arc<str> = place.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE).into();
        let workload = Workload { namespace: Arc::clone(&namespace), name: name.into(), kind: kind.into() };
        let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
        let named = ports.filter_map(|port| {
            let transport = Transport::of_protocol(port.protocol.as_deref().unwrap_or("TCP"))?;
            let number = u16::try_from(port.container_port).ok()?;
            Some(NamedPort { name: port.name.as_deref()?.into(), transport, port: number })
        });
        let subject = Subject { namespace, labels: labels(pod), ports: named.collect() };
        let pod = pod.name.as_deref().unwrap_or(name).into();
        self.population.members.push(Member { workload, subject, pod, is_there: true, is_current: true });
    }
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
