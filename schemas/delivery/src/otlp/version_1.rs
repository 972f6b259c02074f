//! Attributes as version 1 of the schema had them: it is read for ever, and written no more.

use schemas::table::Record;

use super::Way;

/// The EventName of a row of flows.
pub(super) const FLOW: &str = "network.flow";

/// How each column travelled.
pub(super) fn ways<R: Record>() -> Vec<Way> {
    R::columns().iter().map(|column| way(column.attribute)).collect()
}

fn way(key: &'static str) -> Way {
    let former = FORMER.iter().find(|(known, _)| *known == key).map(|(_, former)| *former);
    // The others had the same name without our prefix, or had none to begin with.
    let former = former.or_else(|| key.strip_prefix("flowscribe.")).unwrap_or(key);
    former.split_once("<kind>").map_or_else(|| Way::of(former), |(prefix, suffix)| Way::Workload(prefix, suffix))
}

/// The kind in the key of a workload that is of none, or of one whose key has another meaning.
pub(super) const WORKLOAD: &str = "workload";
/// Attributes that had other names.
const FORMER: [(&str, &str); 8] = [
    ("flowscribe.seq", "flow.seq"),
    ("flowscribe.window.start", "flow.start"),
    ("flowscribe.window.end", "flow.end"),
    ("flowscribe.source.k8s.workload.name", "source.k8s.<kind>.name"),
    ("flowscribe.destination.k8s.workload.name", "destination.k8s.<kind>.name"),
    ("flowscribe.inventory.namespace", "k8s.namespace.name"),
    ("flowscribe.inventory.node", "k8s.node.name"),
    ("flowscribe.inventory.zone", "cloud.availability_zone"),
];
