//! Selecting a workload's pods, all of them and no others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemas::{
    index::Index,
    inventory::{InventoryRecord, Labels, ObjectKind, parse_labels},
    labels::{self, JOB_NAMES, Nature, is_part_of, nature, rank},
};

use super::{finding::Finding, neighbours::Neighbours};
use crate::{
    communication::Workload,
    netpol::{
        lasting::Lasting,
        population::{Member, Population},
        validation::is_valid_selector,
    },
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
    /// What workloads' owners select.
    owners: HashMap<Workload, Selector>,
    lasting: &'a Lasting,
    /// Workloads of which a pod was ever selected by its owner's selector.
    selected: HashSet<Workload>,
    /// By namespace.
    neighbours: HashMap<&'a str, Neighbours<'a>>,
    found: HashMap<Workload, Option<Arc<Selector>>>,
}

impl<'a> Selectors<'a> {
    pub(super) fn new(index: &'a Index, population: &'a Population) -> Self {
        let owner = |record: &InventoryRecord| {
            Some((Workload::of_owner(record)?, Selector::from_json(record.selector.as_deref()?)?))
        };
        let owners: HashMap<Workload, Selector> =
            index.latest(ObjectKind::Workload).filter_map(|(record, _)| owner(record)).collect();
        let mut selected = HashSet::new();
        for (pod, labels) in index.pod_histories().flat_map(|(versions, ..)| versions) {
            let workload = Workload::of(pod, index);
            let is_selected = owners.get(&workload).is_some_and(|own| own.matches(labels));
            if pod.host_network != Some(true) && is_selected && !selected.contains(&workload) {
                selected.insert(workload);
            }
        }
        let mut members: HashMap<&str, Vec<&Member>> = HashMap::new();
        for member in &population.members {
            members.entry(&member.workload.namespace).or_default().push(member);
        }
        let mut services: HashMap<&str, Vec<Labels>> = HashMap::new();
        let budgets = index.latest(ObjectKind::PodDisruptionBudget).map(|(budget, _)| budget);
        let budgets = budgets.filter_map(|budget| Some((budget, Selector::from_json(budget.selector.as_deref()?)?)));
        let budgets = budgets.filter(|(_, selector)| selector.expressions.is_empty());
        let budgets = budgets.map(|(budget, selector)| {
            let labels = selector.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
            (budget, labels.collect::<Labels>())
        });
        let of_services = index.latest(ObjectKind::Service).map(|(service, _)| service);
        let of_services =
            of_services.map(|service| (service, parse_labels(service.selector.as_deref().unwrap_or_default())));
        for (object, selected) in of_services.chain(budgets) {
            if let Some(namespace) = object.namespace.as_deref().filter(|_| !selected.is_empty()) {
                services.entry(namespace).or_default().push(selected);
            }
        }
        let neighbours = members.into_iter().map(|(namespace, members)| {
            let services = services.get(namespace).map(Vec::as_slice).unwrap_or_default();
            (namespace, Neighbours::new(members, services))
        });
        let neighbours = neighbours.collect();
        Self { owners, lasting: &population.lasting, selected, neighbours, found: HashMap::new() }
    }

    /// The selector of a workload: its owner's own, or else all labels that tell what its pods are and that stay. Where
    /// that selects pods of others too, with as many of the pods' other labels, or of what the others have, as keep those
    /// out; but never with what changes from one release, run, replica or place to the next. `None` when nothing is left.
    pub(super) fn of(&mut self, workload: &Workload) -> Option<Arc<Selector>> {
        if let Some(found) = self.found.get(workload) {
            return found.clone();
        }
        let selector = self.own(workload).or_else(|| self.identity(workload));
        let selector = selector.map(|selector| Arc::new(self.narrowed(workload, selector)));
        self.found.insert(workload.clone(), selector.clone());
        selector
    }

    /// What is wrong with the selector of a workload: whom else it selects, and which pods of its own it does not.
    pub(super) fn judge(&self, workload: &Workload, selector: &Selector) -> BTreeSet<Finding> {
        let mut findings = BTreeSet::new();
        if self.is_mistaken(workload) {
            findings.insert(Finding::SelectsNone { workload: workload.clone() });
        }
        let Some(neighbours) = self.neighbours.get(&*workload.namespace) else { return findings };
        for member in neighbours.of(workload).filter(|member| member.is_current) {
            if !selector.matches(&member.subject.labels) {
                let pod = Arc::clone(&member.pod);
                findings.insert(Finding::MissesOwnPod { workload: workload.clone(), pod });
            }
        }
        for member in neighbours.selected(&selector.to_api()).filter(|member| member.workload != *workload) {
            let (workload, other) = (workload.clone(), member.workload.clone());
            findings.insert(Finding::SelectsAnother { workload, other });
        }
        findings
    }

    /// The selector of a workload's owner, unless it selects none of the workload's pods.
    fn own(&self, workload: &Workload) -> Option<Selector> {
        let is_of_none = self.lasting.labels(workload).is_some() && !self.selected.contains(workload);
        self.owners.get(workload).filter(|_| !is_of_none).cloned()
    }

    /// Whether the selector of a workload's owner selects none of its pods: a mistake of whoever wrote it down.
    fn is_mistaken(&self, workload: &Workload) -> bool {
        self.owners.contains_key(workload) && self.own(workload).is_none()
    }

    /// The labels that tell what a workload's pods are, and stay; where there are none, all that stay.
    fn identity(&self, workload: &Workload) -> Option<Selector> {
        let common = self.lasting.labels(workload)?;
        let stable = || common.iter().filter(|(key, _)| self.stays(workload, key));
        let neighbours = self.neighbours.get(&*workload.namespace);
        let served: BTreeSet<&Arc<str>> =
            neighbours.into_iter().flat_map(|neighbours| neighbours.served_by(workload)).collect();
        let tells = |(key, value): &(&Arc<str>, &Arc<str>)| {
            let nature = nature(common, key);
            let names = || **value == workload.name || nature == Nature::Custom && is_part_of(&workload.name, value);
            // A Service may select one pod of several for what it is for now.
            let is_served = || served.contains(key) && !self.lasting.is_single(workload);
            nature.is_identity() || names() || is_served()
        };
        let select = |labels: Vec<(&Arc<str>, &Arc<str>)>| {
            let labels: BTreeMap<_, _> =
                labels.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            (!labels.is_empty()).then(|| Selector { labels, expressions: Vec::new() })
        };
        let is_custom = |(key, _): &(&Arc<str>, &Arc<str>)| nature(common, key) == Nature::Custom;
        let mut labels: Vec<_> = stable().filter(tells).collect();
        // Hooks of a release, and the releases of a chart, often have no other label that tells them apart.
        labels.extend(self.job_name(workload));
        select(labels).or_else(|| select(stable().filter(is_custom).collect()))
    }

    /// The name of a Job that nothing owns, which is the same at each release, as its pods have it.
    fn job_name(&self, workload: &Workload) -> Option<(&Arc<str>, &Arc<str>)> {
        let common = self.lasting.labels(workload).filter(|_| &*workload.kind == "Job")?;
        let name = JOB_NAMES.iter().find_map(|key| common.get_key_value(*key))?;
        (*name.1 == workload.name).then_some(name)
    }

    /// Whether a label that all pods of a workload have is one that those of tomorrow have too.
    fn stays(&self, workload: &Workload, key: &Arc<str>) -> bool {
        !JOB_NAMES.contains(&&**key) && self.lasting.stays(workload, key)
    }

    /// The selector with what keeps out as many pods of others as can be.
    fn narrowed(&self, workload: &Workload, mut selector: Selector) -> Selector {
        let Some(neighbours) = self.neighbours.get(&*workload.namespace) else { return selector };
        let mut others: Vec<&Member> =
            neighbours.selected(&selector.to_api()).filter(|member| member.workload != *workload).collect();
        if others.is_empty() {
            return selector;
        }
        let labels = self.additions(workload);
        let exclusions = self.exclusions(neighbours.of(workload), &others);
        // What tells who it is goes before what tells who it is not, and that before labels of which nobody knows.
        let (identity, custom): (Vec<_>, Vec<_>) = labels.into_iter().partition(|(is_identity, _)| *is_identity);
        for options in [identity, exclusions, custom] {
            while !others.is_empty() {
                let left =
                    |selector: &Selector| others.iter().filter(|other| selector.matches(&other.subject.labels)).count();
                let tried =
                    options.iter().map(|(_, option)| selector.clone().and(option)).map(|tried| (left(&tried), tried));
                let Some((left, best)) = tried.min_by_key(|(left, _)| *left).filter(|(left, _)| *left < others.len())
                else {
                    break;
                };
                selector = best;
                others.retain(|other| selector.matches(&other.subject.labels));
                debug_assert_eq!(others.len(), left);
            }
        }
        selector
    }

    /// Labels that all of a workload's pods have and that stay, the best first; and whether they tell what it is.
    fn additions(&self, workload: &Workload) -> Vec<(bool, Narrowing)> {
        let none = Labels::new();
        let common = self.lasting.labels(workload).unwrap_or(&none);
        // What nobody knows may be counted.
        let is_plain = |key: &str, value: &str| {
            nature(common, key).is_identity() || !value.bytes().any(|byte| byte.is_ascii_digit())
        };
        let mut labels: Vec<_> =
            common.iter().filter(|(key, value)| self.stays(workload, key) && is_plain(key, value)).collect();
        labels.sort_by_key(|(key, _)| rank(key));
        let label = |(key, value): (&Arc<str>, &Arc<str>)| Narrowing::Label(key.to_string(), value.to_string());
        let mut options: Vec<(bool, Narrowing)> =
            labels.into_iter().map(|(key, value)| (nature(common, key).is_identity(), label((key, value)))).collect();
        options.extend(self.job_name(workload).map(|name| (true, label(name))));
        // Pods of Jobs have it, whoever makes them, and no others do.
        let made_by_jobs = ["CronJob", "Job"].contains(&&*workload.kind);
        let name = JOB_NAMES.iter().find(|key| made_by_jobs && common.contains_key(**key));
        options.extend(name.map(|key| (true, Narrowing::With((*key).to_owned()))));
        options
    }

    /// What pods of others surely have, and none of a workload's.
    fn exclusions<'m>(&self, own: impl Iterator<Item = &'m Member>, others: &[&Member]) -> Vec<(bool, Narrowing)> {
        let own: Vec<&Labels> = own.map(|member| &member.subject.labels).collect();
        let known: BTreeSet<&Workload> = others.iter().map(|other| &other.workload).collect();
        let mut options = Vec::new();
        for other in known {
            let selector = self.own(other).or_else(|| self.identity(other)).unwrap_or_default();
            for (key, value) in selector
                .labels
                .iter()
                .filter(|(key, value)| labels::stays(key, value) || JOB_NAMES.contains(&key.as_str()))
            {
                let values: Vec<Option<&Arc<str>>> = own.iter().map(|labels| labels.get(&**key)).collect();
                if values.iter().all(Option::is_none) && rank(key) == usize::MAX {
                    options.push((false, Narrowing::Without(key.clone())));
                } else if values.iter().all(|own| own.is_none_or(|own| **own != **value)) {
                    options.push((false, Narrowing::Other(key.clone(), value.clone())));
                }
            }
        }
        // Whoever makes Jobs, their pods have this label, and no others do.
        let is_of_job = |labels: &Labels, key: &str| labels.contains_key(key);
        for key in JOB_NAMES {
            if !own.iter().any(|labels| is_of_job(labels, key))
                && others.iter().any(|other| is_of_job(&other.subject.labels, key))
            {
                options.push((false, Narrowing::Without(key.to_owned())));
            }
        }
        options
    }
}

/// What narrows a selector.
enum Narrowing {
    /// Pods that have a label of this value.
    Label(String, String),
    /// Pods that have it, of any value.
    With(String),
    /// Pods that do not have it.
    Without(String),
    /// Pods that do not have it of this value.
    Other(String, String),
}

impl Selector {
    /// Reads a LabelSelector in JSON; `None` when it is not one that the API server takes, or selects everything.
    fn from_json(json: &str) -> Option<Self> {
        let selector: LabelSelector = serde_json::from_str(json).ok()?;
        let LabelSelector { match_labels, match_expressions } = Some(selector).filter(is_valid_selector)?;
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

    /// Whether it asks for nothing that another one does not ask for, so that it selects all that the other does.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.labels.iter().all(|(key, value)| other.labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| other.expressions.contains(expression))
    }

    /// Whether all that it asks for are labels of a Service's selector.
    pub(super) fn is_within(&self, service: &Labels) -> bool {
        self.expressions.is_empty()
            && self.labels.iter().all(|(key, value)| service.get(&**key).is_some_and(|of| **of == **value))
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

    /// This, and something more.
    fn and(mut self, narrowing: &Narrowing) -> Self {
        let expression = match narrowing {
            Narrowing::Label(key, value) => {
                self.labels.insert(key.clone(), value.clone());
                return self;
            }
            Narrowing::With(key) => (key.clone(), "Exists", Vec::new()),
            Narrowing::Without(key) => (key.clone(), "DoesNotExist", Vec::new()),
            Narrowing::Other(key, value) => (key.clone(), "NotIn", vec![value.clone()]),
        };
        let (key, operator, mut values) = expression;
        let same = self.expressions.iter_mut().find(|(known, of, _)| *known == key && *of == operator);
        match same {
            Some((_, _, known)) => {
                known.append(&mut values);
                known.sort();
                known.dedup();
            }
            None => self.expressions.push((key, operator.to_owned(), values)),
        }
        self.expressions.sort();
        self
    }

    fn stable(mut self) -> Option<Self> {
        self.labels.retain(|key, _| !GENERATED.contains(&key.as_str()));
        self.expressions.retain(|(key, ..)| !GENERATED.contains(&key.as_str()));
        self.expressions.iter_mut().for_each(|(_, _, values)| values.sort());
        self.expressions.sort();
        self.selects_something().then_some(self)
    }

    /// Whether it asks for a label: what only excludes would select every other pod of the namespace.
    fn selects_something(&self) -> bool {
        !self.labels.is_empty() || self.expressions.iter().any(|(_, op, _)| op == "In" || op == "Exists")
    }
}

/// Labels that Kubernetes adds to the selectors of ReplicaSets and Jobs.
const GENERATED: [&str; 6] = [
    "pod-template-hash",
    "rollouts-pod-template-hash",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "job-name",
    "batch.kubernetes.io/job-name",
];
/// Kubernetes leaves out empty lists.
pub(super) fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}
