//! The labels of workloads that stay: what selects pods of tomorrow as those of today, where no owner says it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use schemas::{
    index::Index,
    inventory::{InventoryRecord, Labels},
    labels::{self, BUILT_IN_KINDS, JOB_NAMES, nature},
    table::TimestampMs,
};

use super::validation::{is_label_value, is_qualified_name};
use crate::communication::Workload;

/// By workload, the labels that all pods of it have but for odd ones, and that stay; and the name of the Job that made them.
#[derive(Debug, Default)]
pub(crate) struct Lasting {
    labels: HashMap<Workload, Labels>,
    /// Workloads of which there was one pod ever.
    single: HashSet<Workload>,
    /// By kind of owner, the labels that were seen to move between pods of one, or on living pods.
    moving: HashSet<(Arc<str>, Arc<str>)>,
}

/// The pods of a workload.
#[derive(Default)]
struct Pods<'a> {
    count: usize,
    there: Vec<&'a Labels>,
    gone: Vec<(Reverse<TimestampMs>, &'a Labels)>,
    /// By key, how many pods ever had each value.
    values: BTreeMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
    /// By key, how many pods had something of themselves in it: their names, or numbers of theirs.
    of_pods: HashMap<Arc<str>, usize>,
}

impl Lasting {
    /// Learns from the pods of an inventory that have a network of their own, and all that they ever were.
    pub(crate) fn of(index: &Index) -> Self {
        let mut all: HashMap<Workload, Pods<'_>> = HashMap::new();
        for (versions, since, is_there) in index.pod_histories() {
            let mut of_pod: BTreeMap<Workload, BTreeMap<Arc<str>, HashSet<Arc<str>>>> = BTreeMap::new();
            let mut own: HashSet<(Workload, Arc<str>)> = HashSet::new();
            for (pod, labels) in versions.iter().filter(|(pod, _)| pod.host_network != Some(true)) {
                let workload = Workload::of(pod, index);
                let values = of_pod.entry(workload.clone()).or_default();
                for (key, value) in *labels {
                    if is_of_pod(pod, &workload, value) {
                        own.insert((workload.clone(), Arc::clone(key)));
                    }
                    values.entry(Arc::clone(key)).or_default().insert(Arc::clone(value));
                }
            }
            for (workload, key) in own {
                *all.entry(workload).or_default().of_pods.entry(key).or_default() += 1;
            }
            for (workload, values) in of_pod {
                let pods = all.entry(workload).or_default();
                pods.count += 1;
                for (key, value) in
                    values.into_iter().flat_map(|(key, of)| of.into_iter().map(move |v| (Arc::clone(&key), v)))
                {
                    *pods.values.entry(key).or_default().entry(value).or_default() += 1;
                }
            }
            if let Some((pod, labels)) = versions.last().filter(|(pod, _)| pod.host_network != Some(true)) {
                let pods = all.entry(Workload::of(pod, index)).or_default();
                if is_there { pods.there.push(labels) } else { pods.gone.push((Reverse(since), labels)) }
            }
        }
        let mut lasting = Self::default();
        for (workload, mut pods) in all {
            if !BUILT_IN_KINDS.contains(&&*workload.kind) {
                let moves =
                    |(key, values): &(&Arc<str>, &BTreeMap<_, _>)| values.len() > 1 && labels::rank(key) == usize::MAX;
                let moving =
                    pods.values.iter().filter(moves).map(|(key, _)| (Arc::clone(&workload.kind), Arc::clone(key)));
                lasting.moving.extend(moving);
            }
            if pods.count == 1 {
                lasting.single.insert(workload.clone());
            }
            pods.gone.sort();
            lasting.labels.insert(workload, pods.common());
        }
        lasting
    }

    /// The labels of a workload; `None` where none of its pods was ever seen.
    pub(crate) fn labels(&self, workload: &Workload) -> Option<&Labels> {
        self.labels.get(workload)
    }

    /// Whether a label was not seen to move between pods of one owner of that kind, or on one of them.
    pub(crate) fn stays(&self, workload: &Workload, key: &Arc<str>) -> bool {
        !self.moving.contains(&(Arc::clone(&workload.kind), Arc::clone(key)))
    }

    /// Whether one pod of a workload was ever seen: what distinguishes it from others of the same may be of it alone.
    pub(crate) fn is_single(&self, workload: &Workload) -> bool {
        self.single.contains(workload)
    }

    /// Whether pods with these labels lack some that those of their workload have.
    pub(crate) fn lacks(&self, workload: &Workload, labels: &Labels) -> bool {
        let common = self.labels.get(workload).into_iter().flatten();
        common.into_iter().any(|(key, value)| labels.get(key) != Some(value))
    }
}

impl Pods<'_> {
    /// What two thirds of those that are there, or were last, have, and none has otherwise: that may be what moves. But what they
    /// are called does not.
    fn common(&self) -> Labels {
        let last = self.gone.iter().take(NEWEST.saturating_sub(self.there.len())).map(|(_, labels)| *labels);
        let newest: Vec<&Labels> = self.there.iter().copied().chain(last).collect();
        let mut common = Labels::new();
        let labels = newest.iter().flat_map(|labels| labels.iter().map(|(key, value)| (key, value, *labels)));
        for (key, value, of) in labels {
            let is_of_pods = self.of_pods.get(key).is_some_and(|pods| 4 * pods > self.count);
            let stays = nature(of, key).stays() && !is_of_pods || JOB_NAMES.contains(&&**key);
            if !stays || !is_qualified_name(key) || !is_label_value(value) || common.contains_key(key) {
                continue;
            }
            let having = newest.iter().filter(|labels| labels.get(key) == Some(value)).count();
            let is_other = |labels: &&Labels| labels.get(key).is_some_and(|other| other != value);
            let is_contradicted = self.there.iter().any(is_other) && !NAMES.contains(&&**key);
            // What only some have, and nobody knows, may be what moves as well.
            let are_enough = match nature(of, key).is_identity() {
                true => 3 * having >= 2 * newest.len(),
                false => having == newest.len(),
            };
            if are_enough && !is_contradicted && !self.changed(key, value, of) {
                common.insert(Arc::clone(key), Arc::clone(value));
            }
        }
        common
    }

    /// Whether a label's value is not always the same: of what tells what pods are, a quarter of those that were may have been
    /// odd; of anything else none, as it may be what moves.
    fn changed(&self, key: &Arc<str>, value: &Arc<str>, labels: &Labels) -> bool {
        let Some(values) = self.values.get(key) else { return false };
        let others: usize = values.iter().filter(|(other, _)| *other != value).map(|(_, pods)| pods).sum();
        let odd =
            if nature(labels, key).is_identity() { values.get(value).copied().unwrap_or_default() / 3 } else { 0 };
        others > odd
    }
}

/// Whether a value repeats the name of a pod, or of an owner that was made for one run, or counts pods.
fn is_of_pod(pod: &InventoryRecord, workload: &Workload, value: &Arc<str>) -> bool {
    let number = value.strip_prefix(&*workload.name).and_then(|rest| rest.strip_prefix('-'));
    let is_run = Some(value) == pod.owner.as_ref() && value.starts_with(&*workload.name);
    let is_name = *value == pod.name || is_run;
    is_name && *value != workload.name || number.is_some_and(|rest| labels::is_made_up(&format!("x-{rest}")))
}

/// Labels that say what pods are called, whatever they are for now.
const NAMES: [&str; 4] = ["app", "app.kubernetes.io/name", "k8s-app", "name"];
/// So many pods say what those of tomorrow are like, at least.
const NEWEST: usize = 4;
