//! Which workload a pod is of.

use std::{collections::HashMap, sync::Arc};

use super::Index;
use crate::{
    inventory::{InventoryRecord, Labels, ObjectKind, parse_labels},
    labels,
};

impl Index {
    /// The workload a pod belongs to, by kind and name: what a user made, where a label names it, of which a controller makes
    /// something new for each release or run; or its top owner, as far as owners are known. Pods that nothing owns, or
    /// another pod does, are one workload if nothing but a name that was made up distinguishes them. Where a ReplicaSet is not known, the hash
    /// that its Deployment or Rollout gave it names theirs.
    pub fn workload_of(&self, pod: &InventoryRecord) -> (Arc<str>, Arc<str>) {
        let of_label = pod.labels.as_deref().filter(|json| labels::may_name_workload(json)).and_then(|json| {
            let (kind, name) = labels::workload(&parse_labels(json)).map(|(kind, name)| (kind, Arc::from(name)))?;
            Some((Arc::from(kind), name))
        });
        let (kind, owner) = match pod.owner_kind.clone().zip(pod.owner.clone()) {
            // kubelet runs it from a file, and names it after its node.
            Some((kind, node)) if &*kind == "Node" => {
                let name = pod.name.strip_suffix(&*node).and_then(|name| name.strip_suffix('-'));
                let name = name.map_or_else(|| Arc::clone(&pod.name), Arc::from);
                return of_label.unwrap_or_else(|| (Arc::from(ObjectKind::Pod), name));
            }
            Some((kind, owner)) if &*kind != "Pod" => (kind, owner),
            _ => return of_label.unwrap_or_else(|| self.unowned(pod)),
        };
        let (top, is_known) = self.top_owner(pod, (kind, owner));
        // Whoever wrote a selector by labels that stay made it for good, whatever else its pods are labelled with.
        if let Some(of_label) = of_label.filter(|_| !self.selects_for_good(pod, &top)) {
            return of_label;
        }
        let by_hash = || if is_known { None } else { by_template_hash(pod, &top) };
        by_hash().or_else(|| by_run(pod, &top, is_known)).unwrap_or(top)
    }

    /// The workload of a pod that no controller made: by its name, which somebody chose; but where that is made up, or where a
    /// selector can't distinguish it from others, by its labels.
    fn unowned(&self, pod: &InventoryRecord) -> (Arc<str>, Arc<str>) {
        let labels = lasting_labels(pod);
        let name = labels::identity(&labels).or_else(|| labels::custom(&labels)).map(Arc::from);
        let is_one_of_many = || labels::is_made_up(&pod.name) || self.unowned.are_more(pod.namespace.as_ref(), labels);
        let of_name = || labels::base_of(&pod.name).map_or_else(|| Arc::clone(&pod.name), Arc::from);
        (Arc::from(ObjectKind::Pod), name.filter(|_| is_one_of_many()).unwrap_or_else(of_name))
    }

    /// The last of the owners above one another, and whether there is a record of it.
    fn top_owner(&self, pod: &InventoryRecord, mut top: (Arc<str>, Arc<str>)) -> ((Arc<str>, Arc<str>), bool) {
        let mut is_known = false;
        for _ in 0..OWNERS {
            let workload = self.last_workload(pod.namespace.as_ref(), &top);
            is_known = workload.is_some();
            let Some(owner) = workload.and_then(|of| of.owner_kind.clone().zip(of.owner.clone())) else { break };
            // What an operator made is a workload; the operator's own object, of which there is no record, is none.
            let is_made_for_it = matches!(&*top.0, "ReplicaSet" | "Job");
            if !is_made_for_it && self.last_workload(pod.namespace.as_ref(), &owner).is_none() {
                break;
            }
            top = owner;
        }
        (top, is_known)
    }

    /// The latest record of a workload, by kind and name.
    pub(super) fn last_workload(
        &self,
        namespace: Option<&Arc<str>>,
        (kind, name): &(Arc<str>, Arc<str>),
    ) -> Option<&InventoryRecord> {
        let key = (Arc::from(ObjectKind::Workload), namespace.cloned(), Arc::clone(name), Some(Arc::clone(kind)));
        let id = self.ids.get(&key)?;
        self.object(*id).versions.last().map(|version| &*version.record)
    }

    /// Whether a workload selects a pod by labels that all stay.
    fn selects_for_good(&self, pod: &InventoryRecord, workload: &(Arc<str>, Arc<str>)) -> bool {
        let selector = || {
            let json = self.last_workload(pod.namespace.as_ref(), workload)?.selector.as_deref()?;
            serde_json::from_str::<serde_json::Value>(json).ok()?.get("matchLabels")?.as_object().cloned()
        };
        let labels = parse_labels(pod.labels.as_deref().unwrap_or_default());
        let stays = |key: &String| labels::nature(&labels, key).stays();
        selector().is_some_and(|selector| !selector.is_empty() && selector.keys().all(stays))
    }
}

/// Pods that nothing owns, by namespace and all of their labels that stay.
#[derive(Debug, Default)]
pub(super) struct Unowned(HashMap<(Option<Arc<str>>, Labels), OneOrMore>);

/// Pods that are alike.
#[derive(Debug)]
enum OneOrMore {
    /// The name of the only one.
    One(Arc<str>),
    More,
}

impl Unowned {
    /// Takes in a pod, whether anything owns it or not.
    pub(super) fn apply(&mut self, pod: &InventoryRecord) {
        if pod.owner_kind.as_deref().is_some_and(|kind| kind != ObjectKind::Pod.as_str()) {
            return;
        }
        let (name, labels) = (&pod.name, lasting_labels(pod));
        let alike = self.0.entry((pod.namespace.clone(), labels)).or_insert_with(|| OneOrMore::One(Arc::clone(name)));
        if matches!(alike, OneOrMore::One(known) if known != name) {
            *alike = OneOrMore::More;
        }
    }

    /// Whether there ever were others with the same labels.
    fn are_more(&self, namespace: Option<&Arc<str>>, labels: Labels) -> bool {
        matches!(self.0.get(&(namespace.cloned(), labels)), Some(OneOrMore::More))
    }
}

/// The labels of a pod that nothing owns and that stay, without what repeats a name that was made up.
fn lasting_labels(pod: &InventoryRecord) -> Labels {
    let labels = parse_labels(pod.labels.as_deref().unwrap_or_default());
    let is_made_up = labels::is_made_up(&pod.name);
    let repeats_name = |value: &Arc<str>| is_made_up && *value == pod.name;
    let lasting = labels.iter().filter(|(key, value)| labels::nature(&labels, key).stays() && !repeats_name(value));
    lasting.map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect()
}

/// The owner of a pod's ReplicaSet: a Deployment or Rollout names it after itself and the hash of its template, which
/// is also a label of the pod.
fn by_template_hash(pod: &InventoryRecord, (kind, name): &(Arc<str>, Arc<str>)) -> Option<(Arc<str>, Arc<str>)> {
    if &**kind != "ReplicaSet" {
        return None;
    }
    let labels = parse_labels(pod.labels.as_deref()?);
    TEMPLATE_HASHES.iter().find_map(|(label, owner)| {
        let base = name.strip_suffix(&**labels.get(*label)?)?.strip_suffix('-')?;
        (!base.is_empty()).then(|| (Arc::from(*owner), Arc::from(base)))
    })
}

/// What is made anew for each run or release, by what stands at its name's end: Jobs of a CronJob, where nobody knows who made
/// them (minutes since 1970, as the CronJob controller has it), and what else has a name that is made up, unless its pods have
/// that name in a label by which a selector may distinguish them.
fn by_run(pod: &InventoryRecord, (kind, name): &(Arc<str>, Arc<str>), is_known: bool) -> Option<(Arc<str>, Arc<str>)> {
    let is_job = &**kind == "Job";
    if !is_job && (is_known || labels::BUILT_IN_KINDS.contains(&&**kind)) {
        return None;
    }
    let (base, run) = name.rsplit_once('-').filter(|(base, _)| !base.is_empty())?;
    if is_job && !is_known && run.len() == CRON_RUN_DIGITS && labels::is_number(run) {
        return Some((Arc::from("CronJob"), Arc::from(base)));
    }
    let labels = parse_labels(pod.labels.as_deref().unwrap_or_default());
    let names =
        |(key, value): (&Arc<str>, &Arc<str>)| labels::is_part_of(value, name) && labels::nature(&labels, key).stays();
    if !is_job && labels.iter().any(names) {
        return None;
    }
    // A number may be one that somebody chose: it counts where labels say what it is that is counted.
    let is_counted = labels::is_number(run) || is_job && run.contains('.') && !labels::stays("", run);
    let base = if is_counted && labels::identity(&labels).is_some() { base } else { labels::base_of(name)? };
    Some((Arc::clone(kind), Arc::from(base)))
}

/// Minutes since 1970 have so many digits, until 2160.
const CRON_RUN_DIGITS: usize = 8;
/// The label that holds the hash, and who sets it.
const TEMPLATE_HASHES: [(&str, &str); 2] =
    [("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout")];
/// Owners above one another; a circle must end.
const OWNERS: usize = 8;
