//! Selecting a workload's pods, all of them and no others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemas::{
    index::Index,
    inventory::{InventoryRecord, Labels, ObjectKind},
};

use super::finding::Finding;
use crate::{
    communication::Workload,
    netpol::population::{Member, Population},
};

/// A label selector; what [`Selectors::of`] gives selects something and not everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    labels: BTreeMap<String, String>,
    /// Key, operator and values.
    expressions: Vec<(String, String, Vec<String>)>,
}

/// Finds the selectors of workloads.
pub(super) struct Selectors<'a> {
    owners: HashMap<Workload, &'a InventoryRecord>,
    /// The stable labels that all pods of a workload ever had in common.
    common: HashMap<Workload, Labels>,
    /// By namespace.
    members: HashMap<&'a str, Vec<&'a Member>>,
    found: HashMap<Workload, Option<Arc<Selector>>>,
}

impl<'a> Selectors<'a> {
    pub(super) fn new(index: &'a Index, population: &'a Population) -> Self {
        let mut common: HashMap<Workload, Labels> = HashMap::new();
        for (pod, labels) in index.pod_versions().filter(|(pod, _)| pod.host_network != Some(true)) {
            let workload = Workload::of(pod, index);
            match common.get_mut(&workload) {
                Some(known) => known.retain(|key, value| labels.get(key) == Some(value)),
                None => {
                    let stable = labels.iter().filter(|(key, _)| !is_volatile(key));
                    let stable = stable.map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect();
                    common.insert(workload, stable);
                }
            }
        }
        let mut members: HashMap<&str, Vec<&Member>> = HashMap::new();
        for member in &population.members {
            members.entry(&member.workload.namespace).or_default().push(member);
        }
        let owner = |record: &'a InventoryRecord| {
            let kind = record.workload_kind.clone()?;
            let namespace = record.namespace.clone().unwrap_or_default();
            Some((Workload { namespace, name: Arc::clone(&record.name), kind }, record))
        };
        let owners = index.latest(ObjectKind::Workload).filter_map(|(record, _)| owner(record)).collect();
        Self { owners, common, members, found: HashMap::new() }
    }

    /// The selector of a workload: its owner's own, or the fewest labels that only its pods have in common; in both cases
    /// without what changes from one rollout, replica or place to the next. Where the owner's own selects pods of others
    /// too, with as many of the pods' common labels as keep those out. `None` when nothing is left.
    pub(super) fn of(&mut self, workload: &Workload) -> Option<Arc<Selector>> {
        if let Some(found) = self.found.get(workload) {
            return found.clone();
        }
        let own = self.owners.get(workload).and_then(|owner| Selector::from_json(owner.selector.as_deref()?));
        let selector = match own {
            Some(own) => self.narrowed(workload, own),
            None => self.narrowed(workload, Selector::default()),
        };
        let selector = selector.map(Arc::new);
        self.found.insert(workload.clone(), selector.clone());
        selector
    }

    /// What is wrong with the selector of a workload: whom else it selects, and which pods of its own it does not.
    pub(super) fn judge(&self, workload: &Workload, selector: &Selector) -> BTreeSet<Finding> {
        let mut findings = BTreeSet::new();
        for member in self.members_of(&workload.namespace).filter(|member| member.is_current) {
            let is_own = member.workload == *workload;
            match (is_own, selector.matches(&member.subject.labels)) {
                (true, false) => {
                    let pod = Arc::clone(&member.pod);
                    findings.insert(Finding::MissesOwnPod { workload: workload.clone(), pod });
                }
                (false, true) => {
                    let (workload, other) = (workload.clone(), member.workload.clone());
                    findings.insert(Finding::SelectsAnother { workload, other });
                }
                _ => {}
            }
        }
        findings
    }

    /// The selector with the fewest labels added that keep out as many pods of others as labels can; `None` where that
    /// selects everything.
    fn narrowed(&self, workload: &Workload, selector: Selector) -> Option<Selector> {
        let others = self.members_of(&workload.namespace).filter(|member| member.is_current);
        let mut others: Vec<&Labels> = others
            .filter(|member| member.workload != *workload && selector.matches(&member.subject.labels))
            .map(|member| &member.subject.labels)
            .collect();
        let mut narrowed = selector;
        if others.is_empty() && narrowed.selects_something() {
            return Some(narrowed);
        }
        let none = Labels::new();
        let common = self.common.get(workload).unwrap_or(&none);
        let mut candidates: Vec<(&Arc<str>, &Arc<str>)> =
            common.iter().filter(|(key, _)| !narrowed.labels.contains_key(&***key)).collect();
        candidates.sort_by_key(|(key, _)| rank(key));
        while !others.is_empty() || !narrowed.selects_something() {
            let has = |(key, value): (&Arc<str>, &Arc<str>)| {
                others.iter().filter(|labels| labels.get(&**key) == Some(value)).count()
            };
            let left = candidates.iter().map(|label| has(*label)).enumerate().min_by_key(|(_, left)| *left);
            let Some((at, left)) = left else { break };
            if left == others.len() && narrowed.selects_something() {
                break; // no label tells them apart
            }
            let (key, value) = candidates.remove(at);
            narrowed.labels.insert(key.to_string(), value.to_string());
            others.retain(|labels| labels.get(&**key) == Some(value));
        }
        narrowed.selects_something().then_some(narrowed)
    }

    fn members_of(&self, namespace: &str) -> impl Iterator<Item = &Member> {
        self.members.get(namespace).into_iter().flatten().copied()
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
        self.selects_something().then_some(self)
    }

    /// Whether it asks for a label: what only excludes would select every other pod of the namespace.
    fn selects_something(&self) -> bool {
        !self.labels.is_empty() || self.expressions.iter().any(|(_, op, _)| op == "In" || op == "Exists")
    }
}

/// How well a label tells what a workload is: first those that are made for it, last those that change with its version.
fn rank(key: &str) -> usize {
    let known = IDENTITY_LABELS.iter().position(|label| *label == key);
    known.unwrap_or(if VERSION_LABELS.contains(&key) { IDENTITY_LABELS.len() + 1 } else { IDENTITY_LABELS.len() })
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
/// Kubernetes' recommended labels, and those that were usual before them.
const IDENTITY_LABELS: [&str; 9] = [
    "app",
    "app.kubernetes.io/name",
    "k8s-app",
    "app.kubernetes.io/component",
    "component",
    "app.kubernetes.io/instance",
    "name",
    "role",
    "tier",
];
const VERSION_LABELS: [&str; 4] = ["app.kubernetes.io/version", "helm.sh/chart", "chart", "version"];
const VOLATILE_PREFIXES: [&str; 2] = ["topology.kubernetes.io/", "failure-domain.beta.kubernetes.io/"];
/// Kubernetes leaves out empty lists.
pub(super) fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}
