//! Selecting a workload's pods, all of them and no others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemas::{
    index::{Index, Labels},
    inventory::{InventoryRecord, kind},
};

use super::{Finding, non_empty};
use crate::communication::Workload;

/// A label selector that selects something and not everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    labels: BTreeMap<String, String>,
    /// Key, operator and values.
    expressions: Vec<(String, String, Vec<String>)>,
}

/// Finds the selectors of workloads.
pub(super) struct Selectors<'a> {
    index: &'a Index,
    owners: HashMap<Workload, &'a InventoryRecord>,
    pods: HashMap<Arc<str>, Vec<(&'a InventoryRecord, &'a Labels)>>,
    found: HashMap<Workload, Option<Selector>>,
    judged: HashSet<Workload>,
}

impl<'a> Selectors<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        let mut pods: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        for (pod, labels) in index.pod_versions().filter(|(pod, _)| pod.host_network != Some(true)) {
            pods.entry(pod.namespace.clone().unwrap_or_default()).or_default().push((pod, labels));
        }
        let owner = |record: &'a InventoryRecord| {
            let kind = record.workload_kind.clone()?;
            let namespace = record.namespace.clone().unwrap_or_default();
            Some((Workload { namespace, name: Arc::clone(&record.name), kind }, record))
        };
        let owners = index.latest(kind::WORKLOAD).filter_map(|(record, _)| owner(record)).collect();
        Self { index, owners, pods, found: HashMap::new(), judged: HashSet::new() }
    }

    /// The selector of a workload: its owner's own, or what the labels of all its pods have in common; in both cases
    /// without what changes from one rollout, replica or place to the next. `None` when nothing is left.
    pub(super) fn of(&mut self, workload: &Workload) -> Option<Selector> {
        if let Some(found) = self.found.get(workload) {
            return found.clone();
        }
        let own = self.owners.get(workload).and_then(|owner| Selector::from_json(owner.selector.as_deref()?));
        let selector = own.or_else(|| Selector::from_labels(&self.common_labels(workload)));
        self.found.insert(workload.clone(), selector.clone());
        selector
    }

    /// What is wrong with a workload's selector; told once.
    pub(super) fn judge(&mut self, workload: &Workload, selector: &Selector) -> BTreeSet<Finding> {
        let mut findings = BTreeSet::new();
        if !self.judged.insert(workload.clone()) {
            return findings;
        }
        for (pod, labels) in self.pods.get(&workload.namespace).into_iter().flatten() {
            let (kind, name) = self.index.workload_of(pod);
            let of = Workload { namespace: Arc::clone(&workload.namespace), name, kind };
            match (of == *workload, selector.matches(labels)) {
                (true, false) => {
                    let pod = Arc::clone(&pod.name);
                    findings.insert(Finding::MissesOwnPod { workload: workload.clone(), pod });
                }
                (false, true) => {
                    findings.insert(Finding::SelectsAnother { workload: workload.clone(), other: of });
                }
                _ => {}
            }
        }
        findings
    }

    fn common_labels(&self, workload: &Workload) -> Labels {
        let pods = self.pods.get(&workload.namespace).into_iter().flatten();
        let wanted = (Arc::clone(&workload.kind), Arc::clone(&workload.name));
        let mut own = pods.filter(|(pod, _)| self.index.workload_of(pod) == wanted);
        let Some((_, first)) = own.next() else { return Labels::new() };
        let mut common = (*first).clone();
        for (_, labels) in own {
            common.retain(|key, value| labels.get(key) == Some(value));
        }
        common
    }
}

impl Selector {
    /// Reads a LabelSelector in JSON; `None` when it is not one or selects everything.
    fn from_json(json: &str) -> Option<Self> {
        let LabelSelector { match_labels, match_expressions } = serde_json::from_str(json).ok()?;
        let expressions = match_expressions.unwrap_or_default().into_iter();
        Self {
            labels: match_labels.unwrap_or_default(),
            expressions: expressions.map(|e| (e.key, e.operator, e.values.unwrap_or_default())).collect(),
        }
        .stable()
    }

    pub(super) fn from_labels(labels: &Labels) -> Option<Self> {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Self { labels, expressions: Vec::new() }.stable()
    }

    /// Whether a pod with these labels is selected (Kubernetes' label selector semantics).
    fn matches(&self, labels: &Labels) -> bool {
        let value = |key: &str| labels.get(key).map(|value| &**value);
        self.labels.iter().all(|(key, wanted)| value(key) == Some(wanted))
            && self.expressions.iter().all(|(key, operator, values)| {
                let is_in = value(key).is_some_and(|value| values.iter().any(|wanted| wanted == value));
                match operator.as_str() {
                    "In" => is_in,
                    "NotIn" => !is_in,
                    "Exists" => value(key).is_some(),
                    "DoesNotExist" => value(key).is_none(),
                    _ => false,
                }
            })
    }

    pub(super) fn to_api(&self) -> LabelSelector {
        let expression = |(key, operator, values): &(String, String, Vec<String>)| LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.clone(),
            values: non_empty(values.clone()),
        };
        let expressions = self.expressions.iter().map(expression).collect();
        LabelSelector {
            match_labels: if self.labels.is_empty() { None } else { Some(self.labels.clone()) },
            match_expressions: non_empty(expressions),
        }
    }

    fn stable(mut self) -> Option<Self> {
        self.labels.retain(|key, _| !is_volatile(key));
        self.expressions.retain(|(key, ..)| !is_volatile(key));
        self.expressions.iter_mut().for_each(|(_, _, values)| values.sort());
        self.expressions.sort();
        // What only excludes would select every other pod of the namespace.
        let selects = !self.labels.is_empty() || self.expressions.iter().any(|(_, op, _)| op == "In" || op == "Exists");
        selects.then_some(self)
    }
}

/// Whether a label changes with the rollout, the replica, the run of a job or the place of a pod.
fn is_volatile(key: &str) -> bool {
    VOLATILE_LABELS.contains(&key) || VOLATILE_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

const VOLATILE_LABELS: [&str; 12] = [
    "pod-template-hash",
    "rollouts-pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "job-name",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "kubernetes.io/hostname",
];
const VOLATILE_PREFIXES: [&str; 2] = ["topology.kubernetes.io/", "failure-domain.beta.kubernetes.io/"];
