//! A ConfigMap of ours, as files by name.

use std::fmt;

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use kubernetes::reason;

use super::{cluster::FIELD_MANAGER, directory::Files};
use crate::netpol::{is_marked, marks};

/// Why a ConfigMap can't be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use ConfigMap {name}: {reason}")]
pub(crate) struct ConfigMapError {
    name: String,
    reason: String,
}

/// A ConfigMap that only we write.
pub(crate) struct OwnConfigMap {
    api: Api<ConfigMap>,
    namespace: String,
    name: String,
}

impl OwnConfigMap {
    pub(crate) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.into(), name: name.into() }
    }

    /// What is in it; nothing where there is none.
    ///
    /// # Errors
    /// It can't be read, or is somebody else's.
    pub(crate) async fn read(&self) -> Result<Files, ConfigMapError> {
        let found = self.api.get_opt(&self.name).await.map_err(|error| self.refused(&error))?;
        let Some(ConfigMap { metadata, data, .. }) = found else { return Ok(Files::new()) };
        let data = data.unwrap_or_default();
        if !is_marked(metadata.labels.as_ref()) && !data.is_empty() {
            let reason = "it is not one that flowscribe wrote: name another one".into();
            return Err(ConfigMapError { name: self.path(), reason });
        }
        Ok(data)
    }

    /// Makes it hold these files, which have to fit: see [`size`].
    ///
    /// # Errors
    /// The server refuses; then it stays as it was.
    pub(crate) async fn write(&self, files: Files) -> Result<(), ConfigMapError> {
        let metadata = ObjectMeta { name: Some(self.name.clone()), labels: Some(marks()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, data: Some(files), ..ConfigMap::default() };
        let how = PatchParams::apply(FIELD_MANAGER).force();
        self.api.patch(&self.name, &how, &Patch::Apply(&map)).await.map_err(|error| self.refused(&error))?;
        Ok(())
    }

    /// As arguments of kubectl.
    pub(crate) fn arguments(&self) -> String {
        format!("--namespace {} {}", self.namespace, self.name)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn refused(&self, error: &kube::Error) -> ConfigMapError {
        let reason = match error {
            kube::Error::Api(status) if status.code == 403 => "who runs this needs \
                { apiGroups: [\"\"], resources: [configmaps], verbs: [get, create, patch] } in its namespace"
                .into(),
            kube::Error::Api(status) if status.code == 404 => format!("{}: create the namespace", status.message),
            error => reason(error),
        };
        ConfigMapError { name: self.path(), reason }
    }
}

impl fmt::Display for OwnConfigMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigMap {}", self.path())
    }
}

/// What files take of a ConfigMap, in bytes.
pub(crate) fn size(files: &Files) -> usize {
    files.iter().map(|(name, text)| name.len() + text.len()).sum()
}

/// Most bytes of names and texts that a ConfigMap takes (`MaxSecretSize` of the API server).
pub(crate) const CONFIG_MAP_BYTES: usize = 1 << 20;
