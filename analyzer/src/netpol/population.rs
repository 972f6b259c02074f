//! Who policies are about: the pods of every workload, those alike as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemas::{
    index::Index,
    inventory::{InventoryRecord, Labels, ObjectKind},
    labels,
};

use super::{Enforcement, LabelIndex, NamedPort, Subject, lasting::Lasting, validation::is_valid_selector};
use crate::communication::Workload;

/// Pods, and the namespaces that they are in.
#[derive(Debug, Default)]
pub(crate) struct Population {
    /// In order of workload.
    pub(crate) members: Vec<Member>,
    /// Labels of namespaces, by name.
    pub(crate) namespaces: BTreeMap<Arc<str>, Labels>,
    /// Addresses of pods that are there, as far as they are known.
    pub(crate) addresses: BTreeMap<Workload, BTreeSet<IpAddr>>,
    /// The labels of workloads that stay.
    pub(crate) lasting: Lasting,
}

/// Pods of a workload that are alike.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) workload: Workload,
    pub(crate) subject: Subject,
    /// The name of one of them.
    pub(crate) pod: Arc<str>,
    /// Whether one of them is there.
    pub(crate) is_there: bool,
    /// Or one like them may be made again.
    pub(crate) is_current: bool,
    /// Whether its workload's own selector does not select it, or where none is known, it lacks labels that the others have.
    pub(crate) is_odd: bool,
}

impl Member {
    /// Pods that are there, as manifests or policies have them.
    pub(crate) const fn there(workload: Workload, subject: Subject, pod: Arc<str>) -> Self {
        Self { workload, subject, pod, is_there: true, is_current: true, is_odd: false }
    }
}

impl Population {
    /// The pods of an inventory that have a network of their own, as they were last seen: of a workload all that are
    /// there, and where none is, the latest that were.
    pub(crate) fn of_index(index: &Index) -> Self {
        let mut found: BTreeMap<(Workload, Subject), (Arc<str>, bool)> = BTreeMap::new();
        let mut addresses: BTreeMap<Workload, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut pods: BTreeMap<Workload, usize> = BTreeMap::new();
        for (pod, labels, is_there) in index.pods() {
            let workload = Workload::of(pod, index);
            *pods.entry(workload.clone()).or_default() += 1;
            if pod.host_network == Some(true) {
                continue;
            }
            let ports = pod.ports.iter().filter_map(|port| {
                let (name, transport) = (Arc::clone(port.name.as_ref()?), port.protocol.parse().ok()?);
                Some(NamedPort { name, transport, port: port.port })
            });
            let subject =
                Subject { namespace: Arc::clone(&workload.namespace), labels: labels.clone(), ports: ports.collect() };
            if is_there {
                let of_pod = pod.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                addresses.entry(workload.clone()).or_default().extend(of_pod);
            }
            let known = found.entry((workload, subject));
            known.or_insert_with(|| (Arc::clone(&pod.name), false)).1 |= is_there;
        }
        let (selectors, lasting) = (Owners::of(index), Lasting::of(index));
        let there: BTreeSet<Workload> =
            found.iter().filter(|(_, (_, is_there))| *is_there).map(|((workload, _), _)| workload.clone()).collect();
        let member = |((workload, subject), (pod, is_there)): ((Workload, Subject), (Arc<str>, bool))| {
            let Workload { namespace, name, kind } = &workload;
            // A job that is scheduled makes pods like those that it made, and so does what makes some for each run.
            let several = || pods.get(&workload).is_some_and(|pods| *pods > 1);
            let comes_again = || is_made_anew(kind, || several() && !index.is_recorded(kind, namespace, name));
            let may_return = || !there.contains(&workload) && (index.is_there(kind, namespace, name) || comes_again());
            let is_current = is_there || may_return();
            let is_last = is_current || !there.contains(&workload);
            let is_selected = selectors.selects(&workload, &subject.labels);
            let is_odd =
                is_selected.map_or_else(|| lasting.lacks(&workload, &subject.labels), |is_selected| !is_selected);
            is_last.then_some(Member { workload, subject, pod, is_there, is_current, is_odd })
        };
        let labels = |(namespace, labels): (&InventoryRecord, &Labels)| (Arc::clone(&namespace.name), labels.clone());
        let members = found.into_iter().filter_map(member).collect();
        Self { members, namespaces: index.latest(ObjectKind::Namespace).map(labels).collect(), addresses, lasting }
    }

    /// The workload of each member, by its name; with the labels that tell it from others of the same, where policies make
    /// another thing of it.
    pub(crate) fn distinguished(&self, enforcements: &[&Enforcement<'_>]) -> Vec<Workload> {
        let mut numbers: BTreeMap<&Workload, Vec<usize>> = BTreeMap::new();
        for (number, member) in self.members.iter().enumerate() {
            numbers.entry(&member.workload).or_default().push(number);
        }
        numbers.retain(|_, numbers| numbers.len() > 1);
        let several = numbers.values().flatten().map(|number| *number as u32).collect();
        let concerns: Vec<_> = enforcements.iter().map(|enforcement| enforcement.concerns(&several)).collect();
        let mut kinds: BTreeMap<&Workload, BTreeMap<_, Vec<usize>>> = BTreeMap::new();
        for (workload, number) in
            numbers.into_iter().flat_map(|(of, numbers)| numbers.into_iter().map(move |number| (of, number)))
        {
            let concern: Vec<_> = concerns.iter().map(|concerns| concerns.get(&(number as u32))).collect();
            let kind = (concern, &self.members[number].subject.ports);
            kinds.entry(workload).or_default().entry(kind).or_default().push(number);
        }
        let mut names: Vec<Workload> = self.members.iter().map(|member| member.workload.clone()).collect();
        for numbers in kinds.into_values().filter(|kinds| kinds.len() > 1).flat_map(BTreeMap::into_values) {
            let own = &self.members[numbers[0]];
            let has = |member: &Member, key: &Arc<str>, value| member.subject.labels.get(key) == Some(value);
            let of_workload = self.members.iter().filter(|member| member.workload == own.workload);
            let differing = own.subject.labels.iter().filter(|(key, value)| {
                numbers.iter().all(|number| has(&self.members[*number], key, value))
                    && !of_workload.clone().all(|member| has(member, key, value))
            });
            let labels: Vec<String> = differing.map(|(key, value)| format!("{key}={value}")).collect();
            let pods: Vec<&str> = numbers.iter().take(3).map(|number| &*self.members[*number].pod).collect();
            let what = match (labels.as_slice(), numbers.len() - pods.len()) {
                ([_, ..], _) => labels.join(","),
                ([], 0) if pods.len() == 1 => format!("pod {}", pods[0]),
                ([], 0) => format!("pods {}", pods.join(", ")),
                ([], more) => format!("pods {} and {more} more", pods.join(", ")),
            };
            for number in numbers {
                names[number].name = format!("{} ({what})", names[number].name).into();
            }
        }
        names
    }

    /// Makes pods that are alike one.
    pub(crate) fn join(&mut self) {
        self.members.sort_by(|a, b| (&a.workload, &a.subject).cmp(&(&b.workload, &b.subject)));
        self.members.dedup_by(|a, b| (&a.workload, &a.subject) == (&b.workload, &b.subject));
    }

    /// The pods as policies select them, in order of members.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        self.members.iter().map(|member| member.subject.clone()).collect()
    }
}

/// The selectors of pods' owners.
struct Owners(BTreeMap<Workload, LabelSelector>);

impl Owners {
    fn of(index: &Index) -> Self {
        let owner = |(record, _): (&InventoryRecord, _)| {
            let selector = serde_json::from_str(record.selector.as_deref()?).ok().filter(is_valid_selector)?;
            Some((Workload::of_owner(record)?, selector))
        };
        Self(index.latest(ObjectKind::Workload).filter_map(owner).collect())
    }

    /// Whether a workload's own selector selects pods with these labels; `None` where it has none, or nobody knows it.
    fn selects(&self, workload: &Workload, labels: &Labels) -> Option<bool> {
        let selected = LabelIndex::new([labels]).select(self.0.get(workload)?);
        selected.ok().map(|selected| !selected.is_empty())
    }
}

/// Whether others like a workload's pods come when those are gone: a controller makes some for each release or run, or there
/// were several without a controller of which there is a record.
fn is_made_anew(kind: &str, were_several: impl FnOnce() -> bool) -> bool {
    const LASTING: [&str; 5] = ["DaemonSet", "Deployment", "ReplicaSet", "ReplicationController", "StatefulSet"];
    labels::is_workload_kind(kind) || !LASTING.contains(&kind) && were_several()
}
