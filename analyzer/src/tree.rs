//! A directory of policies for Git: one file per policy, the evidence beside them, and a kustomization.
//!
//! What a former run wrote and this one does not is removed; nothing else is ever touched.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    output::{self, OutputError},
    policy::{MANAGED_BY, MANAGER},
};

/// Why a directory can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("cannot use directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not one that flowscribe wrote: move it away, or name another directory")]
    NotOurs { path: PathBuf },
    #[error("cannot write the kustomization")]
    Kustomization(#[from] serde_yaml::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Writes policies, each with its metadata, and the evidence for them.
///
/// # Errors
/// The directory can't be made, a file in the way is not ours, or the disk refuses; each file is there whole or not at all.
pub(crate) fn write(directory: &Path, policies: &[(&ObjectMeta, String)], evidence: &str) -> Result<(), TreeError> {
    let refused = |path: &Path, source| TreeError::Directory { path: path.into(), source };
    fs::create_dir_all(directory).map_err(|source| refused(directory, source))?;
    let mut files: BTreeSet<String> = BTreeSet::new();
    let mut documents = Vec::new();
    for (metadata, document) in policies {
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        // Neither has a dot: that both are DNS labels was checked.
        let file = format!("{}.{}.yaml", namespace.unwrap_or_default(), name.unwrap_or_default());
        documents.push((directory.join(&file), document.as_str()));
        files.insert(file);
    }
    let resources: Vec<&String> = files.iter().collect();
    let kustomization = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    });
    let kustomization = format!("{MARK}{}", serde_yaml::to_string(&kustomization)?);
    documents.push((directory.join(KUSTOMIZATION), &kustomization));
    documents.push((directory.join("evidence.json"), evidence));
    if let Some((path, _)) = documents.iter().find(|(path, _)| path.exists() && !is_ours(path)) {
        return Err(TreeError::NotOurs { path: path.clone() });
    }
    for (path, text) in &documents {
        // What is the same is left alone, with its time.
        if fs::read_to_string(path).ok().as_deref() != Some(text) {
            output::write(text, Some(path))?;
        }
    }
    for entry in fs::read_dir(directory).map_err(|source| refused(directory, source))? {
        let path = entry.map_err(|source| refused(directory, source))?.path();
        let is_known = documents.iter().any(|(known, _)| *known == path);
        let is_policy = path.extension().is_some_and(|extension| extension == "yaml");
        if is_policy && !is_known && is_ours(&path) {
            fs::remove_file(&path).map_err(|source| refused(&path, source))?;
        }
    }
    Ok(())
}

/// Whether a file is one that we wrote.
fn is_ours(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    let name = path.file_name().unwrap_or_default();
    if name == KUSTOMIZATION {
        return text.starts_with(MARK);
    }
    if name == "evidence.json" {
        return serde_json::from_str::<Value>(&text).is_ok_and(|evidence| evidence["verification"].is_object());
    }
    let mut documents = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize);
    let ours = |document: Result<Value, _>| {
        document.is_ok_and(|document| document["metadata"]["labels"][MANAGED_BY] == MANAGER)
    };
    documents.next().is_some_and(ours) && documents.all(ours)
}

const KUSTOMIZATION: &str = "kustomization.yaml";
const MARK: &str = "# Written by flowscribe report: what it no longer lists is removed.\n";
