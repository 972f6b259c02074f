//! Where a set of policies is kept: a directory, a ConfigMap, or a branch of a Git repository.

use std::{fmt, path::PathBuf};

use super::git::{Branch, GitError};
use super::{
    config_map::{CONFIG_MAP_BYTES, ConfigMapError, OwnConfigMap, size},
    directory::{self, Files, TreeError},
};
use crate::netpol::Difference;

/// Why a destination can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DestinationError {
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

/// Where a set is kept.
pub(crate) enum Destination {
    Directory(PathBuf),
    ConfigMap(Box<OwnConfigMap>),
    Git(Branch),
}

impl Destination {
    /// What is there.
    ///
    /// # Errors
    /// It can't be read.
    pub(crate) async fn read(&self) -> Result<Files, DestinationError> {
        match self {
            Self::Directory(path) => Ok(directory::read(path)?),
            Self::Git(branch) => Ok(branch.read()?),
            Self::ConfigMap(map) => Ok(map.read().await?),
        }
    }

    /// Makes the place hold these files, in place of the last.
    ///
    /// # Errors
    /// It refuses, or something is in the way: then it stays as it was.
    pub(crate) async fn write(
        &self,
        last: &Files,
        files: &Files,
        difference: &Difference,
    ) -> Result<(), DestinationError> {
        match self {
            Self::Directory(path) => directory::write(path, files)?,
            Self::Git(branch) => branch.commit(last, files, difference)?,
            Self::ConfigMap(map) => {
                if size(files) > CONFIG_MAP_BYTES {
                    return Err(DestinationError::TooLarge { size_kib: size(files).div_ceil(1 << 10) });
                }
                map.write(files.clone()).await?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::ConfigMap(map) => write!(f, "{map}"),
            Self::Git(branch) => write!(f, "{branch}"),
        }
    }
}
