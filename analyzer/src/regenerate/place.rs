//! Where a set of policies is kept: a directory, a ConfigMap, or a branch of a Git repository.

use std::{fmt, path::PathBuf};

use kube::Client;

use super::git::{Branch, GitError};
use crate::{
    args::RegenerateArgs,
    config_map::{CONFIG_MAP_BYTES, ConfigMapError, OwnConfigMap, size},
    diff::Difference,
    tree::{self, Files, TreeError},
};

/// Why a place can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    ConfigMap(#[from] ConfigMapError),
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
    ConfigMap(Box<OwnConfigMap>),
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
            (Some((namespace, name)), Some(client)) => {
                Ok(Self::ConfigMap(Box::new(OwnConfigMap::new(client.clone(), namespace, name))))
            }
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
            Self::ConfigMap(map) => Ok(map.read().await?),
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
            Self::ConfigMap(map) => {
                if size(files) > CONFIG_MAP_BYTES {
                    return Err(PlaceError::TooLarge { size_kib: size(files).div_ceil(1 << 10) });
                }
                map.write(files.clone()).await?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::ConfigMap(map) => write!(f, "{map}"),
            Self::Git(branch) => write!(f, "{branch}"),
        }
    }
}
