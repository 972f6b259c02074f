//! The pods of a namespace as policies see them: found by selectors, by workload, and by what Services select.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use roaring::RoaringBitmap;
use schemas::inventory::Labels;

use crate::{
    communication::Workload,
    netpol::{LabelIndex, population::Member},
};

/// The pods of a namespace, those alike as one.
pub(super) struct Neighbours<'a> {
    members: Vec<&'a Member>,
    by_labels: LabelIndex,
    by_workload: HashMap<&'a Workload, RoaringBitmap>,
    current: RoaringBitmap,
    /// Keys by which Services and PodDisruptionBudgets select exactly the pods of a workload.
    served: HashMap<&'a Workload, BTreeSet<Arc<str>>>,
}

impl<'a> Neighbours<'a> {
    /// Of the pods of a namespace, and what its Services and PodDisruptionBudgets select.
    pub(super) fn new(members: Vec<&'a Member>, services: &[Labels]) -> Self {
        let mut by_workload: HashMap<&Workload, RoaringBitmap> = HashMap::new();
        let mut current = RoaringBitmap::new();
        for (number, member) in (0..).zip(&members) {
            by_workload.entry(&member.workload).or_default().insert(number);
            if member.is_current {
                current.insert(number);
            }
        }
        let by_labels = LabelIndex::new(members.iter().map(|member| &member.subject.labels));
        let mut neighbours = Self { members, by_labels, by_workload, current, served: HashMap::new() };
        for selected in services {
            if let Some(workload) = neighbours.served_exactly(selected) {
                neighbours.served.entry(workload).or_default().extend(selected.keys().cloned());
            }
        }
        neighbours
    }

    /// All pods of a workload.
    pub(super) fn of(&self, workload: &Workload) -> impl Iterator<Item = &'a Member> {
        self.by_workload.get(workload).into_iter().flatten().map(|number| self.members[number as usize])
    }

    /// The pods that a selector selects, of those that are there or may come again.
    pub(super) fn selected(&self, selector: &LabelSelector) -> impl Iterator<Item = &'a Member> {
        let selected = self.by_labels.select(selector).unwrap_or_default() & &self.current;
        selected.into_iter().map(|number| self.members[number as usize])
    }

    /// Keys by which Services and PodDisruptionBudgets select exactly the pods of a workload.
    pub(super) fn served_by(&self, workload: &Workload) -> impl Iterator<Item = &Arc<str>> {
        self.served.get(workload).into_iter().flatten()
    }

    /// The workload all of whose pods are selected, and nobody else's.
    fn served_exactly(&self, selected: &Labels) -> Option<&'a Workload> {
        let labels = selected.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let selector = LabelSelector { match_labels: Some(labels), match_expressions: None };
        let selected = self.by_labels.select(&selector).ok()? & &self.current;
        let workload = &self.members[selected.min()? as usize].workload;
        (self.by_workload.get(workload)? & &self.current == selected).then_some(workload)
    }
}
