//! Where a set of policies is kept: a directory, a ConfigMap, or a branch of a Git repository.

use std::{fmt, path::PathBuf};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use schemas::kubernetes::reason;

use super::git::{Branch, GitError};
use crate::{
    args::RegenerateArgs,
    cluster::FIELD_MANAGER,
    diff::Difference,
    policy::{is_marked, marks},
    tree::{self, Files, TreeError},
};

/// Why a place can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("cannot use ConfigMap {name}: {reason}")]
    ConfigMap { name: String, reason: String },
    #[error(
        "the set is {size_kib} KiB, and a ConfigMap holds {} at most: write to a directory (--output) or to Git \
         (--git), or make several sets with --namespaces",
        CONFIG_MAP_BYTES >> 10
    )]
    TooLarge { size_kib: usize },
    #[error(transparent)]
    Git(#[from] GitError),
}

/// A place.
pub(super) enum Place {
    Directory(PathBuf),
    ConfigMap { api: Box<Api<ConfigMap>>, namespace: String, name: String },
    Git(Branch),
}

impl Place {
    /// The place that is asked for: one of them has to be.
    ///
    /// # Errors
    /// It is no Git repository.
    pub(super) fn new(args: &RegenerateArgs, client: Option<&Client>) -> Result<Self, PlaceError> {
        if let Some(repository) = &args.git {
            return Ok(Self::Git(Branch::open(repository, &args.git_branch, &args.git_path)?));
        }
        match (&args.config_map, client) {
            (Some((namespace, name)), Some(client)) => Ok(Self::ConfigMap {
                api: Box::new(Api::namespaced(client.clone(), namespace)),
                namespace: namespace.clone(),
                name: name.clone(),
            }),
            _ => Ok(Self::Directory(args.output.clone().unwrap_or_default())),
        }
    }

    /// What is there.
    ///
    /// # Errors
    /// It can't be read.
    pub(super) async fn read(&self) -> Result<Files, PlaceError> {
        match self {
            Self::Directory(path) => Ok(tree::read(path)?),
            Self::Git(branch) => Ok(branch.read()?),
            Self::ConfigMap { api, name, .. } => {
                let found = api.get_opt(name).await.map_err(|error| self.refused(&error))?;
                let Some(ConfigMap { metadata, data, .. }) = found else { return Ok(Files::new()) };
                let data = data.unwrap_or_default();
                if !is_marked(metadata.labels.as_ref()) && !data.is_empty() {
                    return Err(PlaceError::ConfigMap {
                        name: self.to_string(),
                        reason: "it is not one that flowscribe wrote: name another one".into(),
                    });
                }
                Ok(data)
            }
        }
    }

    /// Makes the place hold these files, in place of the last.
    ///
    /// # Errors
    /// It refuses, or something is in the way: then it stays as it was.
    pub(super) async fn write(&self, last: &Files, files: &Files, difference: &Difference) -> Result<(), PlaceError> {
        match self {
            Self::Directory(path) => tree::write(path, files)?,
            Self::Git(branch) => branch.commit(last, files, difference)?,
            Self::ConfigMap { api, name, .. } => {
                let bytes: usize = files.iter().map(|(name, text)| name.len() + text.len()).sum();
                if bytes > CONFIG_MAP_BYTES {
                    return Err(PlaceError::TooLarge { size_kib: bytes.div_ceil(1 << 10) });
                }
                let metadata = ObjectMeta { name: Some(name.clone()), labels: Some(marks()), ..ObjectMeta::default() };
                let map = ConfigMap { metadata, data: Some(files.clone()), ..ConfigMap::default() };
                let how = PatchParams::apply(FIELD_MANAGER).force();
                api.patch(name, &how, &Patch::Apply(&map)).await.map_err(|error| self.refused(&error))?;
            }
        }
        Ok(())
    }

    fn refused(&self, error: &kube::Error) -> PlaceError {
        let reason = match error {
            kube::Error::Api(status) if status.code == 403 => "who runs this needs \
                { apiGroups: [\"\"], resources: [configmaps], verbs: [get, create, patch] } in its namespace"
                .into(),
            kube::Error::Api(status) if status.code == 404 => format!("{}: create the namespace", status.message),
            error => reason(error),
        };
        PlaceError::ConfigMap { name: self.to_string(), reason }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::ConfigMap { namespace, name, .. } => write!(f, "ConfigMap {namespace}/{name}"),
            Self::Git(branch) => write!(f, "{branch}"),
        }
    }
}

/// Most bytes of names and texts that a ConfigMap takes (`MaxSecretSize` of the API server).
const CONFIG_MAP_BYTES: usize = 1 << 20;
