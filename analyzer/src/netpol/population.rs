//! Who policies are about: the pods of every workload, those alike as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use schemas::{
    index::Index,
    inventory::{InventoryRecord, Labels, ObjectKind},
};

use super::{NamedPort, Subject};
use crate::communication::Workload;

/// Pods, and the namespaces that they are in.
#[derive(Debug, Default)]
pub(crate) struct Population {
    /// In order of workload.
    pub(crate) members: Vec<Member>,
    /// Labels of namespaces, by name.
    pub(crate) namespaces: BTreeMap<Arc<str>, Labels>,
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
}

impl Population {
    /// The pods of an inventory that have a network of their own, as they were last seen: of a workload all that are
    /// there, and where none is, the latest that were.
    pub(crate) fn of_index(index: &Index) -> Self {
        let mut found: BTreeMap<(Workload, Subject), (Arc<str>, bool)> = BTreeMap::new();
        for (pod, labels, is_there) in index.pods().filter(|(pod, ..)| pod.host_network != Some(true)) {
            let workload = Workload::of(pod, index);
            let ports = pod.ports.iter().filter_map(|port| {
                let (name, transport) = (Arc::clone(port.name.as_ref()?), port.protocol.parse().ok()?);
                Some(NamedPort { name, transport, port: port.port })
            });
            let subject =
                Subject { namespace: Arc::clone(&workload.namespace), labels: labels.clone(), ports: ports.collect() };
            let known = found.entry((workload, subject));
            known.or_insert_with(|| (Arc::clone(&pod.name), false)).1 |= is_there;
        }
        let there: BTreeSet<Workload> =
            found.iter().filter(|(_, (_, is_there))| *is_there).map(|((workload, _), _)| workload.clone()).collect();
        let member = |((workload, subject), (pod, is_there)): ((Workload, Subject), (Arc<str>, bool))| {
            let Workload { namespace, name, kind } = &workload;
            // A job that is scheduled makes pods like those that it made.
            let may_return = || !there.contains(&workload) && index.is_there(kind, namespace, name);
            let is_current = is_there || may_return();
            let is_last = is_current || !there.contains(&workload);
            is_last.then_some(Member { workload, subject, pod, is_there, is_current })
        };
        let labels = |(namespace, labels): (&InventoryRecord, &Labels)| (Arc::clone(&namespace.name), labels.clone());
        Self {
            members: found.into_iter().filter_map(member).collect(),
            namespaces: index.latest(ObjectKind::Namespace).map(labels).collect(),
        }
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
