//! What two sets of policies allow differently, whatever way they are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    sync::Arc,
};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use schemas::inventory::Labels;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{
    Connections, DEFAULT_NAMESPACE, Enforcement, NAMESPACE_NAME, Party, Subject,
    blocks::ranges,
    ends::{End, Pairs, join},
    population::{Member, Population},
};
use crate::communication::{Direction, Workload};

/// Why policies can't be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DifferenceError {
    #[error("the policies select {0}: tell which workloads there are, with --input or --manifests")]
    Supposed(&'static str),
    #[error("not valid, so that nothing can be compared: {0}")]
    Invalid(String),
}

/// What is different.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Directions of workloads that any policy isolates now, or no longer.
    closed: BTreeSet<(Workload, Direction)>,
    opened: BTreeSet<(Workload, Direction)>,
    added: Pairs,
    removed: Pairs,
    /// Ranges of ports that both allow.
    unchanged: usize,
}

/// Pods that selectors of policies ask for, where nobody tells which there are.
///
/// # Errors
/// Policies name ports, or select by what pods do not have: only pods can tell what that means.
pub(crate) fn supposed<'a>(policies: impl Iterator<Item = &'a NetworkPolicy>) -> Result<Population, DifferenceError> {
    let mut population = Population::default();
    for policy in policies {
        let own: Arc<str> = policy.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE).into();
        let Some(spec) = &policy.spec else { continue };
        let mut suppose = |namespace: &Arc<str>, selector: Option<&LabelSelector>| {
            let none = LabelSelector::default();
            for (name, labels) in examples(selector.unwrap_or(&none))? {
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
                for (told, labels) in examples(selector)? {
                    let name = labels.get(NAMESPACE_NAME).cloned().unwrap_or_else(|| told.into());
                    suppose(&name, peer.pod_selector.as_ref())?;
                    population.namespaces.entry(name).or_default().extend(labels);
                }
            }
        }
    }
    population.join();
    Ok(population)
}

/// Labels that a selector selects, each in words: one example for every value that it takes.
fn examples(selector: &LabelSelector) -> Result<Vec<(String, Labels)>, DifferenceError> {
    let labels = selector.match_labels.iter().flatten();
    let labels: Labels = labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
    let mut examples = vec![labels];
    for expression in selector.match_expressions.iter().flatten() {
        let values = match expression.operator.as_str() {
            "In" => expression.values.clone().unwrap_or_default(),
            "Exists" => vec![String::new()],
            _ => return Err(DifferenceError::Supposed("pods by labels that they do not have")),
        };
        let with = |labels: &Labels| {
            let with = |value: &String| {
                let mut labels = labels.clone();
                labels.insert(expression.key.as_str().into(), value.as_str().into());
                labels
            };
            values.iter().map(with).collect::<Vec<_>>()
        };
        examples = examples.iter().flat_map(with).collect();
    }
    let told = |labels: Labels| {
        let told = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        (if told.is_empty() { "(any pod)".into() } else { told }, labels)
    };
    Ok(examples.into_iter().map(told).collect())
}

/// The pods that there are, and those that policies ask for and that are not there any more, as far as that can be told.
pub(crate) fn with_former(population: &Population, policies: &[NetworkPolicy]) -> Population {
    let Population { members, namespaces, addresses, lasting: _ } = population;
    let (namespaces, addresses) = (namespaces.clone(), addresses.clone());
    let mut all = Population { members: members.clone(), namespaces, addresses, ..Population::default() };
    let Ok(supposed) = supposed(policies.iter()) else { return all };
    let is_there = |supposed: &Subject| {
        let in_namespace = members.iter().map(|member| &member.subject).filter(|of| of.namespace == supposed.namespace);
        in_namespace.into_iter().any(|of| supposed.labels.iter().all(|(key, value)| of.labels.get(key) == Some(value)))
    };
    all.members.extend(supposed.members.into_iter().filter(|member| !is_there(&member.subject)));
    for (name, labels) in supposed.namespaces {
        all.namespaces.entry(name).or_insert(labels);
    }
    all.join();
    all
}

/// Whether a policy can be judged.
pub(crate) fn is_valid(policy: &NetworkPolicy) -> bool {
    Enforcement::new([policy], &[], &BTreeMap::new()).1.is_empty()
}

/// What two sets of policies allow differently, between these pods and with the outside.
///
/// # Errors
/// A policy is not valid.
pub(crate) fn compare(
    population: &Population,
    old: &[NetworkPolicy],
    new: &[NetworkPolicy],
) -> Result<Difference, DifferenceError> {
    let subjects = population.subjects();
    let enforce = |policies| {
        let (enforcement, invalid) = Enforcement::new(policies, &subjects, &population.namespaces);
        match invalid.first() {
            Some(invalid) => Err(DifferenceError::Invalid(invalid.to_string())),
            None => Ok(enforcement),
        }
    };
    let (old, new) = (enforce(old)?, enforce(new)?);
    let mut difference = Difference::default();
    let names = population.distinguished(&[&old, &new]);
    let workload = |subject: usize| &names[subject];
    for subject in 0..subjects.len() {
        let [was, is] = [&old, &new].map(|enforcement| enforcement.isolated(subject));
        for direction in Direction::ALL {
            let (was, is) = (was[direction], is[direction]);
            if was != is {
                let changed = if is { &mut difference.closed } else { &mut difference.opened };
                changed.insert((workload(subject).clone(), direction));
            }
        }
    }
    let is_open = |enforcement: &Enforcement<'_>, source: usize, destination: usize| {
        !enforcement.isolated(source)[Direction::Egress] && !enforcement.isolated(destination)[Direction::Ingress]
    };
    let mut ends: BTreeMap<(End, End), [Connections; 2]> = BTreeMap::new();
    let mut add = |from: End, to: End, allowed: [Connections; 2]| {
        let [was, is] = ends.entry((from, to)).or_default();
        *was |= &allowed[0];
        *is |= &allowed[1];
    };
    for (from, to) in &old.limited_pairs() | &new.limited_pairs() {
        // What nothing limited before, or limits now, is told once, as closed or opened.
        if is_open(&old, from, to) || is_open(&new, from, to) {
            difference.unchanged += 1;
            continue;
        }
        let allowed = [&old, &new].map(|e| e.connections(Party::Subject(from), Party::Subject(to)));
        add(End::Workload(workload(from).clone()), End::Workload(workload(to).clone()), allowed);
    }
    for direction in Direction::ALL {
        for (first, last) in ranges(old.blocks(direction).chain(new.blocks(direction))) {
            for subject in 0..subjects.len() {
                if [&old, &new].map(|e| e.isolated(subject)[direction]) != [true, true] {
                    continue;
                }
                let own = End::Workload(workload(subject).clone());
                let (address, outside) = (Party::Address(first), End::Addresses(first, last));
                if direction == Direction::Ingress {
                    add(outside, own, [&old, &new].map(|e| e.connections(address, Party::Subject(subject))));
                } else {
                    add(own, outside, [&old, &new].map(|e| e.connections(Party::Subject(subject), address)));
                }
            }
        }
    }
    for (ends, [was, is]) in ends {
        difference.unchanged += (&was & &is).ranges().count();
        for (list, connections) in [(&mut difference.added, &is - &was), (&mut difference.removed, &was - &is)] {
            if !connections.is_none() {
                list.insert(ends.clone(), connections);
            }
        }
    }
    for list in [&mut difference.added, &mut difference.removed] {
        *list = join(std::mem::take(list));
    }
    Ok(difference)
}

impl Difference {
    /// Whether both allow the same.
    pub(crate) fn is_none(&self) -> bool {
        self.closed.is_empty() && self.opened.is_empty() && self.added.is_empty() && self.removed.is_empty()
    }

    /// Workloads that anything is different for.
    fn affected(&self) -> BTreeSet<&Workload> {
        let isolated = self.closed.iter().chain(&self.opened).map(|(workload, _)| workload);
        let ends = self.added.keys().chain(self.removed.keys()).flat_map(|(from, to)| [from, to]);
        let ends = ends.filter_map(|end| match end {
            End::Workload(workload) => Some(workload),
            End::Addresses(..) => None,
        });
        isolated.chain(ends).collect()
    }

    /// Ranges of ports between two ends that are allowed now, and that are no longer.
    pub(crate) fn counts(&self) -> [usize; 2] {
        let count = |list: &Pairs| list.values().map(|of| of.ranges().count()).sum::<usize>();
        [count(&self.added), count(&self.removed)]
    }

    /// How much is different, in a few words.
    pub(crate) fn brief(&self) -> String {
        let [added, removed] = self.counts();
        let parts = [
            (added, "edges added"),
            (removed, "edges removed"),
            (self.closed.len(), "directions closed"),
            (self.opened.len(), "directions opened"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// How much is different, in a line.
    pub(crate) fn summary(&self) -> String {
        let [added, removed] = self.counts();
        format!(
            "{added} edges added, {removed} removed, {} unchanged; {} directions closed, {} opened; {} workloads affected",
            self.unchanged,
            self.closed.len(),
            self.opened.len(),
            self.affected().len()
        )
    }

    /// A line per edge: `+`, `-` or `~`, and the edge.
    pub(crate) fn lines(&self) -> Vec<(char, String)> {
        let mut lines = Vec::new();
        for (list, word) in [(&self.closed, "closed"), (&self.opened, "opened")] {
            lines.extend(
                list.iter().map(|(workload, direction)| ('~', format!("{workload}: {} {word}", direction.as_str()))),
            );
        }
        for (list, sign) in [(&self.added, '+'), (&self.removed, '-')] {
            lines.extend(list.iter().map(|((from, to), connections)| (sign, format!("{from} → {to} {connections}"))));
        }
        lines
    }

    /// The same for a pull request.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("### Network policies\n\n{}\n", self.summary());
        let titles = [('~', "Directions"), ('+', "Allowed now"), ('-', "No longer allowed")];
        for (sign, title) in titles {
            let lines: Vec<String> = self
                .lines()
                .into_iter()
                .filter(|(of, _)| *of == sign)
                .map(|(_, line)| format!("- `{line}`\n"))
                .collect();
            if !lines.is_empty() {
                let _ = write!(text, "\n#### {title}\n\n{}", lines.concat());
            }
        }
        text
    }
}

/// A line per edge, and a summary.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, line) in self.lines() {
            writeln!(f, "{sign} {line}")?;
        }
        writeln!(f, "{}", self.summary())
    }
}

impl Serialize for Difference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let directions = |list: &BTreeSet<(Workload, Direction)>| -> Vec<Isolation> {
            let isolation = |(workload, direction): &(Workload, Direction)| Isolation {
                workload: workload.to_string(),
                direction: *direction,
            };
            list.iter().map(isolation).collect()
        };
        let mut object = serializer.serialize_struct("Difference", 6)?;
        object.serialize_field("closed", &directions(&self.closed))?;
        object.serialize_field("opened", &directions(&self.opened))?;
        object.serialize_field("added", &Allowed::list(&self.added, End::to_string))?;
        object.serialize_field("removed", &Allowed::list(&self.removed, End::to_string))?;
        object.serialize_field("unchanged", &self.unchanged)?;
        let affected: Vec<String> = self.affected().into_iter().map(ToString::to_string).collect();
        object.serialize_field("affected", &affected)?;
        object.end()
    }
}

/// A direction of a workload that policies isolate, or no longer.
#[derive(Serialize)]
struct Isolation {
    workload: String,
    direction: Direction,
}

/// What is allowed from one end to another, for JSON.
#[derive(Serialize)]
pub(crate) struct Allowed<'a> {
    source: String,
    destination: String,
    connections: &'a Connections,
}

impl<'a> Allowed<'a> {
    /// What is allowed, with the ends in words.
    pub(crate) fn list(list: &'a Pairs, in_words: impl Fn(&End) -> String) -> Vec<Self> {
        let allowed = |((from, to), connections): (&(End, End), &'a Connections)| Self {
            source: in_words(from),
            destination: in_words(to),
            connections,
        };
        list.iter().map(allowed).collect()
    }
}
