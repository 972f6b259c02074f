//! Which workload a pod is of.

use std::{collections::HashMap, sync::Arc};

use super::Index;
use crate::{
    inventory::{InventoryRecord, Labels, ObjectKind, parse_labels},
    labels::{self, Nature},
};

impl Index {
    /// The workload a pod belongs to, by kind and name: what a user made, where a label names it, of which a controller makes
    /// something new for each release or run; or its top owner, as far as owners are known. Pods that nothing owns, or
    /// another pod does, are one workload if nothing but a name that was made up distinguishes them. Where a ReplicaSet is not
    /// known, the hash that its Deployment or Rollout gave it names theirs.
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
        if let Some(part) = self.part(pod, &top) {
            return part;
        }
        // Whoever wrote a selector by labels that stay made it for good, whatever else its pods are labelled with.
        if let Some(of_label) = of_label.filter(|_| !self.selects_for_good(pod, &top)) {
            return of_label;
        }
        let by_hash = || if is_known { None } else { by_template_hash(pod, &top) };
        by_hash().or_else(|| self.by_run(pod, &top, is_known)).unwrap_or(top)
    }

    /// What is made anew for each run or release, without what distinguishes it from the others: Jobs of a CronJob, where nobody
    /// knows who made them (minutes since 1970, as the CronJob controller has it); what has a name that was made up, or counted;
    /// and what a selector can't distinguish from several others.
    fn by_run(
        &self,
        pod: &InventoryRecord,
        (kind, name): &(Arc<str>, Arc<str>),
        is_known: bool,
    ) -> Option<(Arc<str>, Arc<str>)> {
        let is_job = &**kind == "Job";
        if &**kind == "ReplicaSet" {
            // Spinnaker makes one for each version.
            let (base, version) = name.rsplit_once("-v")?;
            let is_version = version.len() == 3 && labels::is_number(version);
            return is_version.then(|| (Arc::clone(kind), Arc::from(base)));
        }
        if !is_job && (is_known || labels::BUILT_IN_KINDS.contains(&&**kind)) {
            return None;
        }
        let run = name.rsplit_once('-').filter(|(base, run)| {
            let is_minute = run.len() == CRON_RUN_DIGITS && labels::is_number(run);
            is_job && !is_known && is_minute && !base.is_empty()
        });
        if let Some((base, _)) = run {
            return Some((Arc::from("CronJob"), Arc::from(base)));
        }
        let labels = lasting_labels(pod, name);
        let is_of_hash = labels::base_of(&format!("x-{name}")) == Some("x");
        let by_labels = || labels::identity(&labels).or_else(|| labels::custom(&labels));
        let alike = || if maker(pod).1 == *name { self.alike.to(pod, &labels) } else { &[] };
        let several = |least: usize, base: fn(&str) -> Option<&str>| {
            let own = base(name)?;
            (alike().iter().filter(|other| base(other) == Some(own)).count() >= least).then(|| own.to_owned())
        };
        let counted = || {
            let counted = labels::uncounted(name).map(str::to_owned);
            // Somebody may have chosen the number: of a Job that is made for each release, nobody has.
            if is_job && labels::identity(&labels).is_some() { counted } else { several(2, labels::uncounted) }
        };
        let base = labels::base_of(name).map(str::to_owned);
        let base = base.or_else(|| by_labels().filter(|_| is_of_hash));
        let base = base.or_else(counted).or_else(|| several(MANY, labels::prefix_of));
        // Names that have nothing in common may yet be of what is one to every selector.
        let is_of_all = |base: &String| alike().iter().all(|other| other.starts_with(&**base));
        let is_one = alike().len() >= MANY && !base.as_ref().is_some_and(is_of_all);
        let base = if is_one { by_labels().or_else(|| Some(kind.to_lowercase())) } else { base };
        base.map(|base| (Arc::clone(kind), Arc::from(base)))
    }

    /// The workload of a pod that no controller made: by its name, which somebody chose; but where that is made up, or where a
    /// selector can't distinguish it from others, by its labels.
    fn unowned(&self, pod: &InventoryRecord) -> (Arc<str>, Arc<str>) {
        let labels = lasting_labels(pod, &pod.name);
        let name = labels::identity(&labels).or_else(|| labels::custom(&labels)).map(Arc::from);
        let is_one_of_many = || labels::is_made_up(&pod.name) || self.alike.to(pod, &labels).len() > 1;
        let of_name = || labels::base_of(&pod.name).map_or_else(|| Arc::clone(&pod.name), Arc::from);
        (Arc::from(ObjectKind::Pod), name.filter(|_| is_one_of_many()).unwrap_or_else(of_name))
    }

    /// What a pod is that has some of the labels that its owner selects by, and the others of another value: operators make
    /// pods of one part of an application that the Deployment of another part owns.
    fn part(&self, pod: &InventoryRecord, owner: &(Arc<str>, Arc<str>)) -> Option<(Arc<str>, Arc<str>)> {
        let selector = self.match_labels(pod, owner)?;
        let labels = parse_labels(pod.labels.as_deref()?);
        let (mut is_same, mut is_other) = (false, false);
        for (key, wanted) in &selector {
            let value = labels.get(&**key)?;
            let is_wanted = **value == *wanted.as_str()?;
            is_same |= is_wanted;
            is_other |= !is_wanted && labels::nature(&labels, key).is_identity();
        }
        let name = labels::identity(&labels).filter(|_| is_same && is_other)?;
        Some((Arc::from(ObjectKind::Pod), name.into()))
    }

    /// The last of the owners above one another, and whether there is a record of it.
    fn top_owner(&self, pod: &InventoryRecord, mut top: (Arc<str>, Arc<str>)) -> ((Arc<str>, Arc<str>), bool) {
        let mut is_known = false;
        for _ in 0..OWNERS {
            let workload = self.last_workload(pod.namespace.as_ref(), &top);
            is_known = workload.is_some();
            let Some(owner) = workload.and_then(|of| of.owner_kind.clone().zip(of.owner.clone())) else { break };
            // What an operator made is a workload; the operator's own object, of which there is no record, is none, unless it
            // makes one for each release.
            let is_made_for_it = matches!(&*top.0, "ReplicaSet" | "Job")
                || top.1.starts_with(&*owner.1) && self.selects_for_now(pod, &top);
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
        self.selecting(pod, workload).is_some_and(|natures| natures.iter().all(|nature| nature.stays()))
    }

    /// Whether a workload selects a pod by what is of a release or a run.
    fn selects_for_now(&self, pod: &InventoryRecord, workload: &(Arc<str>, Arc<str>)) -> bool {
        let is_of_now = |nature: &Nature| matches!(nature, Nature::Release | Nature::Run);
        self.selecting(pod, workload).is_some_and(|natures| natures.iter().any(is_of_now))
    }

    /// What becomes of the labels that a workload selects a pod by; `None` where it selects by none.
    fn selecting(&self, pod: &InventoryRecord, workload: &(Arc<str>, Arc<str>)) -> Option<Vec<Nature>> {
        let selector = self.match_labels(pod, workload)?;
        let labels = parse_labels(pod.labels.as_deref().unwrap_or_default());
        let keys = selector.keys().filter(|key| *key != "pod-template-hash");
        let natures: Vec<Nature> = keys.map(|key| labels::nature(&labels, key)).collect();
        (!natures.is_empty()).then_some(natures)
    }

    /// The labels that a workload of a pod's namespace selects by.
    fn match_labels(
        &self,
        pod: &InventoryRecord,
        workload: &(Arc<str>, Arc<str>),
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let json = self.last_workload(pod.namespace.as_ref(), workload)?.selector.as_deref()?;
        let selector: serde_json::Value = serde_json::from_str(json).ok()?;
        selector.get("matchLabels")?.as_object().cloned()
    }
}

/// Names of pods without an owner, and of owners that are made for a run, by namespace, kind and all labels of their pods that
/// stay.
#[derive(Debug, Default)]
pub(super) struct Alike(HashMap<AlikeKey, Vec<Arc<str>>>);

/// A namespace, a kind of owner, and labels that stay.
type AlikeKey = (Option<Arc<str>>, Arc<str>, Labels);

impl Alike {
    /// Takes in a pod.
    pub(super) fn apply(&mut self, pod: &InventoryRecord) {
        let (kind, name) = maker(pod);
        if LASTING_KINDS.contains(&&*kind) {
            return;
        }
        let names = self.0.entry((pod.namespace.clone(), Arc::clone(&kind), lasting_labels(pod, &name))).or_default();
        if names.len() < MOST_ALIKE && !names.contains(&name) {
            names.reserve_exact(1);
            names.push(name);
        }
    }

    /// The names of all that a selector can't distinguish from the owner of a pod.
    fn to(&self, pod: &InventoryRecord, labels: &Labels) -> &[Arc<str>] {
        let (kind, _) = maker(pod);
        self.0.get(&(pod.namespace.clone(), kind, labels.clone())).map(Vec::as_slice).unwrap_or_default()
    }
}

/// What controls a pod, by kind and name, or the pod itself.
fn maker(pod: &InventoryRecord) -> (Arc<str>, Arc<str>) {
    let owner = pod.owner_kind.clone().zip(pod.owner.clone()).filter(|(kind, _)| **kind != *ObjectKind::Pod.as_str());
    owner.unwrap_or_else(|| (Arc::from(ObjectKind::Pod), Arc::clone(&pod.name)))
}

/// The labels of a pod that stay, without what repeats a name that was made up, and the name of its Job.
fn lasting_labels(pod: &InventoryRecord, name: &str) -> Labels {
    let labels = parse_labels(pod.labels.as_deref().unwrap_or_default());
    let is_made_up = if pod.name == name.into() { labels::is_made_up(name) } else { labels::base_of(name).is_some() };
    let is_lasting = |key: &str, value: &str| {
        labels::nature(&labels, key).stays() && !(is_made_up && value == name) && !labels::JOB_NAMES.contains(&key)
    };
    let lasting = labels.iter().filter(|(key, value)| is_lasting(key, value));
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

/// Minutes since 1970 have so many digits, until 2160.
const CRON_RUN_DIGITS: usize = 8;
/// The label that holds the hash, and who sets it.
const TEMPLATE_HASHES: [(&str, &str); 2] =
    [("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout")];
/// Kinds of owners that are not made for a run.
const LASTING_KINDS: [&str; 6] =
    ["DaemonSet", "Deployment", "Node", "ReplicaSet", "ReplicationController", "StatefulSet"];
/// So many that nothing distinguishes are one, whatever they are called; of more, the names are not kept.
const MANY: usize = 3;
const MOST_ALIKE: usize = 16;
/// Owners above one another; a circle must end.
const OWNERS: usize = 8;
