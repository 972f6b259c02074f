//! A set of policies as files: one per policy, the evidence beside them, and a kustomization.
//!
//! What a former run wrote and this one does not is removed; nothing else is ever touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemas::untrusted::check_yaml;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    netpol::{MANAGED_BY, MANAGER},
    output::{self, Appearing, Output, OutputError},
    yaml,
};

/// Files by name, with their text.
pub(crate) type Files = BTreeMap<String, String>;

/// Why files can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("cannot use directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{name} is not one that flowscribe wrote: move it away, or name another place")]
    NotOurs { name: String },
    #[error("cannot write the kustomization")]
    Kustomization(#[from] serde_yaml::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// The files of policies, each given with its metadata, and of the evidence for them.
///
/// # Errors
/// The kustomization can't be written as YAML.
pub(crate) fn files<'a>(
    policies: impl IntoIterator<Item = (&'a ObjectMeta, String)>,
    evidence: String,
) -> Result<Files, TreeError> {
    let mut files = Files::new();
    for (metadata, document) in policies {
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        // Neither has a dot: that both are DNS labels was checked.
        files.insert(format!("{}.{}.yaml", namespace.unwrap_or_default(), name.unwrap_or_default()), document);
    }
    let kustomization = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": files.keys().collect::<Vec<_>>(),
    });
    files.insert(KUSTOMIZATION.into(), format!("{MARK}{}", yaml::to_string(&kustomization)?));
    files.insert(EVIDENCE.into(), evidence);
    Ok(files)
}

/// What of files as they were is to be removed when these take their place: policies of ours that are no longer wanted.
///
/// # Errors
/// One that is in the way is not ours.
pub(crate) fn removed<'a>(last: &'a Files, new: &Files) -> Result<BTreeSet<&'a str>, TreeError> {
    if let Some((name, _)) = last.iter().find(|(name, text)| new.contains_key(*name) && !is_ours(name, text)) {
        return Err(TreeError::NotOurs { name: name.clone() });
    }
    let is_over = |name: &str, text: &str| name.ends_with(".yaml") && !new.contains_key(name) && is_ours(name, text);
    Ok(last.iter().filter(|(name, text)| is_over(name, text)).map(|(name, _)| name.as_str()).collect())
}

/// The files of a directory that may be of a set; none if there is no directory.
///
/// # Errors
/// It can't be read.
pub(crate) fn read(directory: &Path) -> Result<Files, TreeError> {
    let refused = |path: &Path, source| TreeError::Directory { path: path.into(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Files::new()),
        entries => entries.map_err(|source| refused(directory, source))?,
    };
    let mut files = Files::new();
    for entry in entries {
        let path = entry.map_err(|source| refused(directory, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && is_of_set(&name) {
            // What is no text is not ours.
            let bytes = fs::read(&path).map_err(|source| refused(&path, source))?;
            files.insert(name, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(files)
}

/// Whether a directory has policies that an earlier run wrote.
///
/// # Errors
/// It can't be read.
pub(crate) fn has_policies(directory: &Path) -> Result<bool, TreeError> {
    let is_policy = |name: &str, text: &str| name.ends_with(".yaml") && name != KUSTOMIZATION && is_ours(name, text);
    Ok(read(directory)?.iter().any(|(name, text)| is_policy(name, text)))
}

/// Makes a directory hold these files: all are written before the first takes the place of an older one, so that a full disk
/// leaves those that were there.
///
/// # Errors
/// The directory can't be made, a file in the way is not ours, or the disk refuses.
pub(crate) fn write(directory: &Path, files: &Files) -> Result<(), TreeError> {
    let refused = |path: &Path, source| TreeError::Directory { path: path.into(), source };
    fs::create_dir_all(directory).map_err(|source| refused(directory, source))?;
    let last = read(directory)?;
    let removed = removed(&last, files)?;
    let in_the_way = |name: &&String| directory.join(name).metadata().is_ok_and(|metadata| !metadata.is_file());
    if let Some(name) = files.keys().find(in_the_way) {
        return Err(TreeError::NotOurs { name: name.clone() });
    }
    let mut written = Vec::new();
    // What is the same is left alone, with its time.
    for (name, text) in files.iter().filter(|(name, text)| last.get(*name) != Some(*text)) {
        written.push(output::written(text, &directory.join(name))?);
    }
    let _appearing = Appearing::new();
    replace(directory, written)?;
    for name in removed {
        let path = directory.join(name);
        fs::remove_file(&path).map_err(|source| refused(&path, source))?;
    }
    Ok(())
}

/// Puts files in the place of older ones, all of them or none.
fn replace(directory: &Path, written: Vec<Output>) -> Result<(), TreeError> {
    let refused = |path: &Path, source| TreeError::Directory { path: path.into(), source };
    // Where what was there is kept until all are.
    let kept = tempfile::Builder::new().prefix(".flowscribe-").tempdir_in(directory);
    let kept = kept.map_err(|source| refused(directory, source))?;
    let mut places = Vec::new();
    for (number, output) in written.iter().enumerate() {
        let Some(target) = output.target().map(Path::to_path_buf) else { continue };
        let copy = kept.path().join(number.to_string());
        let is_there = match fs::hard_link(&target, &copy) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(_) => fs::copy(&target, &copy).map(|_| true).map_err(|source| refused(&target, source))?,
        };
        places.push((target, is_there.then_some(copy)));
    }
    for (number, output) in written.into_iter().enumerate() {
        if let Err(error) = output.finish() {
            for (target, copy) in &places[..number] {
                let _ = match copy {
                    Some(copy) => fs::rename(copy, target).or_else(|_| fs::copy(copy, target).map(drop)),
                    None => fs::remove_file(target),
                };
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Whether a file may be of a set, by its name.
pub(crate) fn is_of_set(name: &str) -> bool {
    name.ends_with(".yaml") || [EVIDENCE, DIFFERENCE].contains(&name)
}

/// Whether a file is one that we wrote.
fn is_ours(name: &str, text: &str) -> bool {
    match name {
        KUSTOMIZATION => text.starts_with(MARK),
        DIFFERENCE => text.starts_with(DIFFERENCE_MARK),
        EVIDENCE => serde_json::from_str::<Value>(text).is_ok_and(|evidence| evidence["verification"].is_object()),
        _ => {
            let mut documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
            let ours = |document: Result<Value, _>| {
                document.is_ok_and(|document| document["metadata"]["labels"][MANAGED_BY] == MANAGER)
            };
            check_yaml(text).is_ok() && documents.next().is_some_and(ours) && documents.all(ours)
        }
    }
}

const KUSTOMIZATION: &str = "kustomization.yaml";
pub(crate) const EVIDENCE: &str = "evidence.json";
/// What `flowscribe regenerate` says has changed.
pub(crate) const DIFFERENCE: &str = "diff.md";
/// How that begins.
const DIFFERENCE_MARK: &str = "### Network policies\n";
const MARK: &str = "# Written by flowscribe report: what it no longer lists is removed.\n";
