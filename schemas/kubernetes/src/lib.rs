//! The Kubernetes API as a source of inventory: what is watched, which permission that takes, and what is heard.
//!
//! ```text
//! API server ──list, watch──► Object ──object.rs──► InventoryRecord ──Change──► [bounded] ──► agent | flowscribe inventory
//! ```
//!
//! Of each object only what the inventory needs is ever in memory: the rest of the JSON is passed over while it is read.

mod access;
pub mod inventory_log;
pub mod lease;
mod object;
mod resource;
mod trouble;
mod watch;

use std::borrow::Cow;

use kube::{Client, Config};

pub use access::{Access, AccessError, UserInfo};
pub use object::{ALLOWED_ANNOTATIONS, Object, Texts, record};
pub use resource::Resource;
pub use trouble::{News, Trouble, Troubles};
pub use watch::{Start, watch};

use schemas::inventory::InventoryRecord;

/// What is heard of a resource.
#[derive(Clone, Debug)]
pub enum Change {
    /// A full list begins: what was known and is not named until [`Self::Listed`] is gone.
    Listing(Resource),
    /// An object is there, as it is now.
    There(InventoryRecord),
    /// An object is gone; as it was at the end.
    Gone(InventoryRecord),
    /// The list is complete.
    Listed(Resource),
    /// The resource can't be watched for now. What was heard of it stays.
    Unreadable(Resource, Problem),
}

/// Why a resource can't be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The server refuses; the rule that would allow it is [`Resource::rule`].
    Forbidden,
    /// The server does not know it: a custom resource that is not installed, or an older server.
    NotServed,
    /// The server is not there, or fails.
    Failed(String),
}

/// Why there can't be a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No configuration is found.
    #[error("no Kubernetes API is configured: set KUBECONFIG, or run in a pod with a service account ({0})")]
    NoConfig(kube::config::InferConfigError),
    /// The configuration can't be used.
    #[error("cannot use the configuration of the Kubernetes API: {}", reason(.0))]
    BadConfig(kube::Error),
}

impl Problem {
    /// What to do about it.
    pub fn remedy(&self, resource: &Resource) -> Cow<'static, str> {
        match self {
            Self::Forbidden => format!("add to the ClusterRole: {}", resource.rule()).into(),
            Self::NotServed => "the API server does not serve it".into(),
            Self::Failed(error) => error.clone().into(),
        }
    }
}

/// What a request failed for, in a line: what the server says, or with its first cause what kept it from being asked.
pub fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let (text, first) = (error.to_string(), causes.last().map(ToString::to_string).unwrap_or_default());
    if text.contains(&first) { text } else { format!("{text}: {first}") }
}

/// A client for the API of `KUBECONFIG`, of `~/.kube/config` or of the pod's service account, in this order. Nothing is
/// sent yet.
///
/// # Errors
/// Nothing is configured, or it can't be used.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer().await.map_err(ConnectError::NoConfig)?;
    Client::try_from(config).map_err(ConnectError::BadConfig)
}
