//! What two sets of policies allow differently, whatever way they are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{
    Connections, Enforcement, Party, Ranges,
    addresses::overlay,
    ends::{End, Pairs, join},
    population::Population,
};
use crate::communication::{Direction, Workload};

/// Why policies can't be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DifferenceError {
    #[error("the policies select {0}: say which workloads there are, with --input or --manifests")]
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
    let mut add = |from: End, to: End, allowed: &[Connections; 2]| {
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
        add(End::Workload(workload(from).clone()), End::Workload(workload(to).clone()), &allowed);
    }
    for direction in Direction::ALL {
        let has_v6 = old.names_v6(direction) || new.names_v6(direction);
        // Pods of which the same policies are in force do the same.
        let mut known: BTreeMap<_, Ranges<[Connections; 2]>> = BTreeMap::new();
        for (number, subject) in subjects.iter().enumerate() {
            let [was, is] = [&old, &new].map(|enforcement| &*enforcement.isolating[number][direction]);
            if was.is_empty() || is.is_empty() {
                continue;
            }
            let ranges = known.entry((was, is, &subject.ports)).or_insert_with(|| {
                let [was, is] = [&old, &new].map(|e| e.with_addresses(number, direction, has_v6));
                overlay(&was, &is)
            });
            for ((first, last), allowed) in ranges {
                let (own, outside) = (End::Workload(workload(number).clone()), End::Addresses(*first, *last));
                match direction {
                    Direction::Ingress => add(outside, own, allowed),
                    Direction::Egress => add(own, outside, allowed),
                }
            }
        }
    }
    let mut unchanged = Pairs::new();
    for (ends, [was, is]) in ends {
        let lists =
            [(&mut unchanged, &was & &is), (&mut difference.added, &is - &was), (&mut difference.removed, &was - &is)];
        for (list, connections) in lists {
            if !connections.is_none() {
                list.insert(ends.clone(), connections);
            }
        }
    }
    for list in [&mut unchanged, &mut difference.added, &mut difference.removed] {
        *list = join(std::mem::take(list));
    }
    difference.unchanged += count(&unchanged);
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

/// Ranges of ports between two ends.
fn count(list: &Pairs) -> usize {
    list.values().map(|connections| connections.ranges().count()).sum()
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
