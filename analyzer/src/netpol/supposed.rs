//! Pods that selectors of policies ask for, where nobody says which there are: an example for all that no selector
//! distinguishes.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use roaring::RoaringBitmap;
use schemas::inventory::Labels;

use super::{
    DEFAULT_NAMESPACE, LabelIndex, NAMESPACE_NAME, Subject,
    difference::DifferenceError,
    population::{Member, Population},
};
use crate::communication::Workload;

/// Pods that selectors of policies ask for.
///
/// # Errors
/// Policies name ports, select by what pods do not have, or distinguish too many: only pods can tell what that means.
pub(crate) fn supposed(policies: &[&NetworkPolicy]) -> Result<Population, DifferenceError> {
    supposed_beside(policies, &[])
}

/// The pods that there are, and those that policies ask for and that are not there any more, as far as that can be said.
pub(crate) fn with_former(population: &Population, policies: &[NetworkPolicy]) -> Population {
    let Population { members, namespaces, addresses, lasting: _ } = population;
    let (namespaces, addresses) = (namespaces.clone(), addresses.clone());
    let mut all = Population { members: members.clone(), namespaces, addresses, ..Population::default() };
    let policies: Vec<&NetworkPolicy> = policies.iter().collect();
    let Ok(supposed) = supposed_beside(&policies, members) else { return all };
    let index = LabelIndex::new(members.iter().map(|member| &member.subject.labels));
    let mut of_namespace: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
    for (number, member) in members.iter().enumerate() {
        of_namespace.entry(&member.subject.namespace).or_default().insert(number as u32);
    }
    let is_there = |supposed: &Subject| {
        let labels = supposed.labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let selector = LabelSelector { match_labels: Some(labels.collect()), ..LabelSelector::default() };
        let known = of_namespace.get(&*supposed.namespace);
        known.zip(index.select(&selector).ok()).is_some_and(|(known, selected)| !known.is_disjoint(&selected))
    };
    all.members.extend(supposed.members.into_iter().filter(|member| !is_there(&member.subject)));
    for (name, labels) in supposed.namespaces {
        all.namespaces.entry(name).or_insert(labels);
    }
    all.join();
    all
}

/// Pods that selectors ask for, those that are there apart from those that are not.
fn supposed_beside(policies: &[&NetworkPolicy], there: &[Member]) -> Result<Population, DifferenceError> {
    let alike = Alike::new(policies, there);
    let mut population = Population::default();
    for policy in policies {
        let own: Arc<str> = policy.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE).into();
        let Some(spec) = &policy.spec else { continue };
        let mut suppose = |namespace: &Arc<str>, selector: Option<&LabelSelector>| {
            for (name, labels) in alike.examples(selector.unwrap_or(&LabelSelector::default()))? {
                let workload = Workload { namespace: Arc::clone(namespace), name: name.into(), kind: "".into() };
                let subject = Subject { namespace: Arc::clone(namespace), labels, ports: Vec::new() };
                let pod = Arc::clone(&workload.name);
                population.members.push(Member::there(workload, subject, pod));
            }
            Ok::<(), DifferenceError>(())
        };
        suppose(&own, spec.pod_selector.as_ref())?;
        let ingress = spec.ingress.iter().flatten().map(|rule| (&rule.from, &rule.ports));
        let egress = spec.egress.iter().flatten().map(|rule| (&rule.to, &rule.ports));
        for (peers, ports) in ingress.chain(egress) {
            let is_named = |port: &NetworkPolicyPort| matches!(port.port, Some(IntOrString::String(_)));
            if ports.iter().flatten().any(is_named) {
                return Err(DifferenceError::Supposed("ports by name"));
            }
            for peer in peers.iter().flatten().filter(|peer| peer.ip_block.is_none()) {
                let Some(selector) = &peer.namespace_selector else {
                    suppose(&own, peer.pod_selector.as_ref())?;
                    continue;
                };
                for (example, labels) in alike.examples(selector)? {
                    let name = labels.get(NAMESPACE_NAME).cloned().unwrap_or_else(|| example.into());
                    suppose(&name, peer.pod_selector.as_ref())?;
                    population.namespaces.entry(name).or_default().extend(labels);
                }
            }
        }
    }
    population.join();
    Ok(population)
}

/// Values of labels by key that no selector distinguishes, by the first of them.
struct Alike<'a> {
    values: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a str>>>,
    /// How many examples may be made for all selectors beside the first of each.
    budget: Cell<usize>,
}

impl<'a> Alike<'a> {
    fn new(policies: &[&'a NetworkPolicy], there: &'a [Member]) -> Self {
        // What is asked of each key: lists of values, each once.
        let mut lists: BTreeMap<&str, BTreeSet<BTreeSet<&str>>> = BTreeMap::new();
        for selector in policies.iter().flat_map(|policy| selectors(policy)) {
            for (key, value) in selector.match_labels.iter().flatten() {
                lists.entry(key).or_default().insert(BTreeSet::from([value.as_str()]));
            }
            for expression in selector.match_expressions.iter().flatten() {
                let values = expression.values.iter().flatten().map(String::as_str);
                lists.entry(&expression.key).or_default().insert(values.collect());
            }
        }
        let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (key, value) in there.iter().flat_map(|member| &member.subject.labels) {
            known.entry(key).or_default().insert(value);
        }
        for (key, values) in known {
            if let Some(lists) = lists.get_mut(key) {
                lists.insert(values);
            }
        }
        let classes = |lists: BTreeSet<BTreeSet<&'a str>>| {
            let mut in_lists: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for (number, values) in lists.into_iter().enumerate() {
                values.into_iter().for_each(|value| in_lists.entry(value).or_default().push(number));
            }
            let mut classes: BTreeMap<Vec<usize>, Vec<&str>> = BTreeMap::new();
            in_lists.into_iter().for_each(|(value, lists)| classes.entry(lists).or_default().push(value));
            classes.into_values().map(|values| (values[0], values)).collect()
        };
        let values = lists.into_iter().map(|(key, lists)| (key, classes(lists))).collect();
        Self { values, budget: Cell::new(MOST) }
    }

    /// Labels that a selector selects, each with words for it: an example for all values that are alike.
    fn examples(&self, selector: &LabelSelector) -> Result<Vec<(String, Labels)>, DifferenceError> {
        let labels = selector.match_labels.iter().flatten();
        let labels: Labels = labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        let mut examples = vec![labels];
        for expression in selector.match_expressions.iter().flatten() {
            let values: Vec<&str> = match expression.operator.as_str() {
                "In" => {
                    let values: BTreeSet<&str> = expression.values.iter().flatten().map(String::as_str).collect();
                    let is_example = |value: &&str| {
                        // Namespaces have a name each.
                        expression.key == NAMESPACE_NAME || self.class(&expression.key, value).is_some()
                    };
                    values.into_iter().filter(is_example).collect()
                }
                "Exists" => vec![""],
                _ => return Err(DifferenceError::Supposed("pods by labels that they do not have")),
            };
            // What is asked of a key before holds too.
            let key = expression.key.as_str();
            if examples.iter().all(|labels| labels.contains_key(key)) {
                let any_value = expression.operator == "Exists";
                examples.retain(|labels| any_value || labels.get(key).is_some_and(|value| values.contains(&&**value)));
                continue;
            }
            let budget = self.budget.get().checked_sub(examples.len().saturating_mul(values.len()).saturating_sub(1));
            let Some(budget) = budget else {
                return Err(DifferenceError::Supposed("by too many combinations of labels"));
            };
            let with = |labels: &Labels| {
                let with = |value: &&str| {
                    let mut labels = labels.clone();
                    labels.insert(key.into(), (*value).into());
                    labels
                };
                values.iter().map(with).collect::<Vec<_>>()
            };
            examples = examples.iter().flat_map(with).collect();
            self.budget.set(budget);
        }
        let words = |labels: Labels| (self.words(&labels), labels);
        Ok(examples.into_iter().map(words).collect())
    }

    /// The values that are like one that is the first of them.
    fn class(&self, key: &str, first: &str) -> Option<&[&'a str]> {
        self.values.get(key)?.get(first).map(Vec::as_slice)
    }

    fn words(&self, labels: &Labels) -> String {
        let word = |(key, value): (&Arc<str>, &Arc<str>)| match self.class(key, value) {
            Some(values) if values.len() > 1 && **key != *NAMESPACE_NAME => format!("{key} in ({})", values.join(",")),
            _ => format!("{key}={value}"),
        };
        let words: Vec<String> = labels.iter().map(word).collect();
        if words.is_empty() { "(any pod)".into() } else { words.join(",") }
    }
}

/// All selectors of a policy.
fn selectors(policy: &NetworkPolicy) -> impl Iterator<Item = &LabelSelector> {
    let spec = policy.spec.iter();
    spec.flat_map(|spec| {
        let from = spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
        let to = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
        let of_peers = from.chain(to).flat_map(|peer| peer.pod_selector.iter().chain(&peer.namespace_selector));
        spec.pod_selector.iter().chain(of_peers)
    })
}

/// The most kinds of pods that are compared one by one beside one for each selector: who writes policies does not decide how
/// long that takes.
const MOST: usize = 1000;
