//! The index's answers: who had an address, what stood behind a Service, and what there was.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Backend, Holds, Index, Lease, Owner, Span, UnknownReason, Version, addresses, is_over};
use crate::{
    inventory::{InventoryRecord, Labels, ObjectKind, parse_labels},
    table::{Port, TimestampMs},
};

impl Index {
    /// Who had `address` throughout `span`, give or take the clocks' tolerance. A Service has it only where no pod and
    /// no node does: to ask who was dialled, use [`Self::dialled`].
    pub fn resolve(&self, address: IpAddr, span: Span) -> Owner<'_> {
        self.resolve_while(address, span, &Holds::default())
    }

    /// As [`Self::resolve`]; `holds` learns for which other spans the answer is the same.
    pub fn resolve_while(&self, address: IpAddr, span: Span, holds: &Holds) -> Owner<'_> {
        let address = address.to_canonical();
        if address.is_unspecified() {
            return Owner::Unknown(UnknownReason::SenderNotAsked);
        }
        let (hosts, services) = self.holders(address, span, |_| true, holds);
        hosts.or(services).unwrap_or_else(|| self.nobody(address, span, holds))
    }

    /// Who was dialled at `address` and `port`: the Service that has both, also by its node ports, or else whoever had
    /// the address.
    pub fn dialled(&self, address: IpAddr, transport: &str, port: u16, span: Span) -> Owner<'_> {
        self.dialled_while(address, transport, port, span, &Holds::default())
    }

    /// As [`Self::dialled`]; `holds` learns for which other spans the answer is the same.
    pub fn dialled_while(&self, address: IpAddr, transport: &str, port: u16, span: Span, holds: &Holds) -> Owner<'_> {
        let address = address.to_canonical();
        let offers = |service: &InventoryRecord| service_port(service, transport, port).is_some();
        let (hosts, services) = self.holders(address, span, offers, holds);
        if let Some(service) = services {
            return service;
        }
        match hosts {
            Some(Owner::Node(node)) => self.by_node_port(transport, port, span, holds).unwrap_or(Owner::Node(node)),
            Some(owner) => owner,
            None => self.resolve_while(address, span, holds),
        }
    }

    /// The endpoints that were ready behind a Service's port, or its port on the nodes, at some moment of `span`, or
    /// within the clocks' tolerance of it: from its EndpointSlices, or, where there are none, from its selector. Sorted,
    /// without repetitions.
    pub fn backends(&self, service: &InventoryRecord, transport: &str, port: u16, span: Span) -> Vec<Backend<'_>> {
        self.backends_while(service, transport, port, span, &Holds::default())
    }

    /// As [`Self::backends`]; `holds` learns for which other spans the answer is the same.
    pub fn backends_while(
        &self,
        service: &InventoryRecord,
        transport: &str,
        port: u16,
        span: Span,
        holds: &Holds,
    ) -> Vec<Backend<'_>> {
        let Some(service_port) = service_port(service, transport, port) else { return Vec::new() };
        let found = self.backends_within(service, service_port, span, 0, holds);
        if found.is_empty() {
            self.backends_within(service, service_port, span, self.tolerance_ms, holds)
        } else {
            found
        }
    }

    /// A pod by its UID, or a static one by the hash of its manifest, as it was at `time`.
    pub fn pod(&self, uid: &str, time: TimestampMs) -> Option<&InventoryRecord> {
        self.pod_while(uid, time, &Holds::default())
    }

    /// As [`Self::pod`]; `holds` learns at which other times the answer is the same.
    pub fn pod_while(&self, uid: &str, time: TimestampMs, holds: &Holds) -> Option<&InventoryRecord> {
        let (version, from, to) = self.object(*self.pods_by_uid.get(uid)?).version_at(time)?;
        holds.narrow(from, to);
        Some(&*version.record)
    }

    /// Whether somebody who knows the whole cluster told of it at any time.
    pub fn is_covered(&self) -> bool {
        !self.coverage.is_empty()
    }

    /// Whether there was ever a record of an owner of pods, by kind, namespace and name.
    pub fn is_recorded(&self, workload_kind: &Arc<str>, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        self.last_workload(Some(namespace), &(Arc::clone(workload_kind), Arc::clone(name))).is_some()
    }

    /// Whether an owner of pods, by kind, namespace and name, is there for all that is known.
    pub fn is_there(&self, workload_kind: &Arc<str>, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        let (namespace, told_apart) = (Some(Arc::clone(namespace)), Some(Arc::clone(workload_kind)));
        let key = (Arc::from(ObjectKind::Workload), namespace, Arc::clone(name), told_apart);
        self.ids.get(&key).is_some_and(|id| self.object(*id).ended.is_none())
    }

    /// The namespaces that were deleted, and not made again, for all that is known. There is never none: where that would be
    /// so, somebody may not see them any more.
    pub fn gone_namespaces(&self) -> BTreeSet<Arc<str>> {
        let objects = self.ids.iter().filter(|(key, _)| *key.0 == ObjectKind::Namespace);
        let (gone, there): (Vec<_>, Vec<_>) = objects.partition(|(_, id)| self.object(**id).ended.is_some());
        let there: BTreeSet<&Arc<str>> = there.into_iter().map(|(key, _)| &key.2).collect();
        let gone = gone.into_iter().map(|(key, _)| &key.2);
        gone.filter(|name| !there.is_empty() && !there.contains(name)).cloned().collect()
    }

    /// When every object of a kind was what: each of its versions with the first and last moment of it, in order of
    /// namespace, name, UID and time. One that goes on ends at the end of time.
    pub fn intervals(&self, kind: ObjectKind) -> impl Iterator<Item = (&InventoryRecord, Span)> {
        let mut ids: Vec<_> = self.ids.iter().filter(|(key, _)| *key.0 == kind).collect();
        ids.sort();
        let versions = ids.into_iter().flat_map(|(_, id)| self.object(*id).intervals());
        versions.map(|(version, from, to)| (&*version.record, Span { from, to }))
    }

    /// Every object of a kind as it was last seen, with its labels, in order of namespace, name and UID.
    pub fn latest(&self, kind: ObjectKind) -> impl Iterator<Item = (&InventoryRecord, &Labels)> {
        let mut ids: Vec<_> = self.ids.iter().filter(|(key, _)| *key.0 == kind).collect();
        ids.sort();
        let versions = ids.into_iter().filter_map(|(_, id)| self.object(*id).versions.last());
        versions.map(|version| (&*version.record, version.labels()))
    }

    /// Every pod as it was last seen, with its labels and whether it is still there, neither deleted nor completed; in
    /// order of namespace, name and UID.
    pub fn pods(&self) -> impl Iterator<Item = (&InventoryRecord, &Labels, bool)> {
        let mut ids: Vec<_> = self.ids.iter().filter(|(key, _)| *key.0 == ObjectKind::Pod).collect();
        ids.sort();
        let last = |id: &usize| {
            let object = self.object(*id);
            let version = object.versions.last()?;
            Some((&*version.record, version.labels(), object.ended.is_none() && !is_over(&version.record)))
        };
        ids.into_iter().filter_map(move |(_, id)| last(id))
    }

    /// Every pod with its versions in order of time, and whether it is still there, neither deleted nor completed; in order of
    /// namespace, name and UID.
    pub fn pod_histories(&self) -> impl Iterator<Item = (Vec<(&InventoryRecord, &Labels)>, TimestampMs, bool)> {
        let mut ids: Vec<_> = self.ids.iter().filter(|(key, _)| *key.0 == ObjectKind::Pod).collect();
        ids.sort();
        let history = |id: &usize| {
            let object = self.object(*id);
            let (first, last) = (object.versions.first()?, object.versions.last()?);
            let versions = object.versions.iter().map(|version| (&*version.record, version.labels())).collect();
            Some((versions, first.from, object.ended.is_none() && !is_over(&last.record)))
        };
        ids.into_iter().filter_map(move |(_, id)| history(id))
    }

    /// Every address that a pod, a node or a Service is known to have had, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.leases.keys().copied()
    }

    /// The pods that are known to have had an address, at any time.
    pub fn pods_with(&self, address: IpAddr) -> impl Iterator<Item = &InventoryRecord> {
        let leases = self.leases.get(&address).into_iter().flatten();
        let holders = leases.filter_map(|lease| self.object(lease.object).version_at(lease.start));
        holders.map(|(version, ..)| &*version.record).filter(|holder| *holder.kind == ObjectKind::Pod)
    }

    /// Whether an address is known to be of the cluster: somebody had it at some time, or it is in a range of the cluster.
    pub fn is_of_cluster(&self, address: IpAddr) -> bool {
        self.leases.contains_key(&address) || self.ranges.contains(address)
    }

    /// Whether an address is that of a node's interface, and was nobody's else.
    pub fn is_interface_alone(&self, address: IpAddr) -> bool {
        self.interface_of(address).next().is_some() && !self.leases.contains_key(&address)
    }

    /// Whether an address is the first one of a node's pod range.
    pub fn begins_pod_range(&self, address: IpAddr) -> bool {
        self.pod_ranges.contains(&address)
    }

    /// Whether an address is the last one of a node's pod range, that for all of it (RFC 919).
    pub fn ends_pod_range(&self, address: IpAddr) -> bool {
        self.pod_range_ends.contains(&address)
    }

    /// The nodes that have had an address on an interface of their own, whoever else has it; at any time.
    pub fn interface_of(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        let is_of_service = || self.service_ranges.iter().any(|range| range.contains(&address));
        self.interfaces.get(&address).filter(|_| !is_of_service()).into_iter().flatten()
    }

    /// The address ranges of the cluster, disjoint and in order, from first to last address.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.ranges.iter()
    }

    /// The one pod or node, and the one wanted Service, that had an address.
    fn holders(
        &self,
        address: IpAddr,
        span: Span,
        is_wanted: impl Fn(&InventoryRecord) -> bool,
        holds: &Holds,
    ) -> (Option<Owner<'_>>, Option<Owner<'_>>) {
        // An address that changed hands within the tolerance of the span may have been either's.
        let leases = self.leases.get(&address).map_or(&[][..], Vec::as_slice);
        let mut found: [Option<(usize, Owner<'_>)>; 2] = [None, None];
        for Lease { object, start, end } in leases {
            if !holds.overlaps(span, self.tolerance_ms, *start, *end) {
                continue;
            }
            let Some((version, from, to)) = self.object(*object).version_at(span.to) else { continue };
            holds.narrow(from, to);
            let record = &*version.record;
            let (slot, owner) = match record.kind.parse() {
                Ok(ObjectKind::Pod) => (0, Owner::Pod(record)),
                Ok(ObjectKind::Node) => (0, Owner::Node(record)),
                _ if is_wanted(record) => (1, Owner::Service(record)),
                _ => continue,
            };
            let holder = &mut found[slot];
            match holder {
                Some((other, _)) if other != object => {
                    *holder = Some((*object, Owner::Unknown(UnknownReason::Ambiguous)));
                }
                Some(_) => {}
                None => *holder = Some((*object, owner)),
            }
        }
        let [hosts, services] = found.map(|holder| holder.map(|(_, owner)| owner));
        (hosts, services)
    }

    /// What an address is that nobody had.
    fn nobody(&self, address: IpAddr, span: Span, holds: &Holds) -> Owner<'_> {
        if !self.coverage.covers(span, self.tolerance_ms, holds) {
            return Owner::Unknown(UnknownReason::NoInventory);
        }
        if self.is_of_cluster(address) {
            return Owner::Unknown(UnknownReason::NoOwner);
        }
        Owner::External
    }

    fn by_node_port(&self, transport: &str, port: u16, span: Span, holds: &Holds) -> Option<Owner<'_>> {
        let ids = self.services_by_node_port.get(&port)?;
        let has_port = |record: &InventoryRecord| {
            record.ports.iter().any(|p| p.node_port == Some(port) && &*p.protocol == transport)
        };
        let service = |id: &usize| {
            let versions = self.versions_within(*id, span, self.tolerance_ms, holds);
            versions.map(|version| &*version.record).filter(|record| has_port(record)).last()
        };
        let mut services = ids.iter().filter_map(service);
        let found = services.next()?;
        Some(if services.next().is_some() { Owner::Unknown(UnknownReason::Ambiguous) } else { Owner::Service(found) })
    }

    fn backends_within(
        &self,
        service: &InventoryRecord,
        service_port: &Port,
        span: Span,
        tolerance_ms: i64,
        holds: &Holds,
    ) -> Vec<Backend<'_>> {
        let mut endpoints: BTreeMap<(IpAddr, u16), Owner<'_>> = BTreeMap::new();
        let namespace = service.namespace.clone().unwrap_or_default();
        let slices = self.slices_by_service.get(&(namespace, Arc::clone(&service.name)));
        let near = span.widened(tolerance_ms);
        let resolve = |at| holds.ask_near(tolerance_ms, |holds| self.resolve_while(at, near, holds));
        for slice in slices.into_iter().flatten().flat_map(|id| self.versions_within(*id, span, tolerance_ms, holds)) {
            let ports = slice.record.ports.iter();
            for port in ports.filter(|p| p.name == service_port.name && p.protocol == service_port.protocol) {
                endpoints.extend(addresses(&slice.record).map(|at| ((at, port.port), resolve(at))));
            }
        }
        if slices.is_none()
            && let Some(selector) = service.selector.as_deref().map(parse_labels)
        {
            for pod in self.pods_within(service.namespace.as_ref(), &selector, span, tolerance_ms, holds) {
                let Some(port) = target_port(service_port, pod) else { continue };
                let shares_node = pod.host_network == Some(true);
                let owner = |at| if shares_node { resolve(at) } else { Owner::Pod(pod) };
                for at in addresses(pod) {
                    // Pods are met in no order: of two that may have had the address, none is told.
                    let known = endpoints.entry((at, port)).or_insert_with(|| owner(at));
                    *known = match *known {
                        Owner::Pod(other) if other.uid != pod.uid || other.name != pod.name => {
                            Owner::Unknown(UnknownReason::Ambiguous)
                        }
                        Owner::Pod(_) => owner(at),
                        other => other,
                    };
                }
            }
        }
        endpoints.into_iter().map(|((address, port), owner)| Backend { address, port, owner }).collect()
    }

    fn versions_within(
        &self,
        id: usize,
        span: Span,
        tolerance_ms: i64,
        holds: &Holds,
    ) -> impl Iterator<Item = &Version> {
        let versions = self.object(id).intervals();
        versions
            .filter(move |(_, from, to)| holds.overlaps(span, tolerance_ms, *from, *to))
            .map(|(version, ..)| version)
    }

    fn pods_within(
        &self,
        namespace: Option<&Arc<str>>,
        selector: &Labels,
        span: Span,
        tolerance_ms: i64,
        holds: &Holds,
    ) -> impl Iterator<Item = &InventoryRecord> {
        let versions = self.pods_by_uid.values().flat_map(|id| self.object(*id).intervals());
        let is_selected = move |version: &Version| {
            version.record.namespace.as_ref() == namespace
                && !is_over(&version.record)
                && !selector.is_empty()
                && selector.iter().all(|(key, value)| version.labels().get(key) == Some(value))
        };
        versions
            .filter(move |(version, from, to)| is_selected(version) && holds.overlaps(span, tolerance_ms, *from, *to))
            .map(|(version, ..)| &*version.record)
    }
}
/// A Service's port by its number, or else by its number on the nodes.
fn service_port<'a>(service: &'a InventoryRecord, transport: &str, port: u16) -> Option<&'a Port> {
    let ports = || service.ports.iter().filter(|p| &*p.protocol == transport);
    ports().find(|p| p.port == port).or_else(|| ports().find(|p| p.node_port == Some(port)))
}

/// The number of the port that a Service's port leads to on a pod; `None` where it is a name that the pod does not have.
fn target_port(service_port: &Port, pod: &InventoryRecord) -> Option<u16> {
    let Some(target) = service_port.target.as_deref() else { return Some(service_port.port) };
    let named = |port: &&Port| port.name.as_deref() == Some(target) && port.protocol == service_port.protocol;
    target.parse().ok().or_else(|| pod.ports.iter().find(named).map(|port| port.port))
}
