//! Labels that say who wrote an object.

use std::collections::BTreeMap;

/// Labels of what we wrote.
pub(crate) fn marks() -> BTreeMap<String, String> {
    BTreeMap::from([(MANAGED_BY.to_owned(), MANAGER.to_owned())])
}

/// Whether labels say that we wrote it.
pub(crate) fn is_marked(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
}

/// Says who wrote a policy (Kubernetes' recommended labels).
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value on what we wrote.
pub(crate) const MANAGER: &str = "flowscribe";
