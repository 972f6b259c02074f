//! Ports that workloads say they serve: those that their containers declare, and those that Services lead to.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use schemas::{
    index::{Index, Owner, Span},
    inventory::{InventoryRecord, ObjectKind},
    table::TimestampMs,
    vocabulary::Transport,
};

use crate::communication::Workload;

/// The declared ports of all workloads, read when they are asked for first.
pub(crate) struct Declared<'a> {
    index: &'a Index,
    ports: OnceCell<BTreeMap<Workload, BTreeSet<(Transport, u16)>>>,
}

impl<'a> Declared<'a> {
    pub(super) const fn new(index: &'a Index) -> Self {
        Self { index, ports: OnceCell::new() }
    }

    /// Those of a workload.
    pub(super) fn ports(&self, workload: &Workload, transport: Transport) -> BTreeSet<u16> {
        let ports = self.all().get(workload).into_iter().flatten();
        ports.filter(|(of, _)| *of == transport).map(|(_, port)| *port).collect()
    }

    pub(super) fn has(&self, workload: &Workload, transport: Transport, port: u16) -> bool {
        self.all().get(workload).is_some_and(|ports| ports.contains(&(transport, port)))
    }

    /// Workloads that declare ports of transports that agents do not record, and those ports.
    pub(super) fn unrecorded(&self) -> BTreeMap<Workload, BTreeSet<(Transport, u16)>> {
        let declares = |object: &InventoryRecord| {
            object.ports.iter().any(|port| Transport::of_protocol(&port.protocol) == Some(Transport::Sctp))
        };
        let pods = self.index.intervals(ObjectKind::Pod).map(|(pod, _)| pod);
        let services = self.index.latest(ObjectKind::Service).map(|(service, _)| service);
        if !pods.chain(services).any(declares) {
            return BTreeMap::new();
        }
        let is_unrecorded = |(transport, _): &&(Transport, u16)| *transport == Transport::Sctp;
        let of = |(workload, ports): (&Workload, &BTreeSet<(Transport, u16)>)| {
            let ports: BTreeSet<_> = ports.iter().filter(is_unrecorded).copied().collect();
            (!ports.is_empty()).then(|| (workload.clone(), ports))
        };
        self.all().iter().filter_map(of).collect()
    }

    /// All workloads that declare ports, and those ports.
    fn all(&self) -> &BTreeMap<Workload, BTreeSet<(Transport, u16)>> {
        self.ports.get_or_init(|| {
            let mut all: BTreeMap<Workload, BTreeSet<(Transport, u16)>> = BTreeMap::new();
            let pods = self.index.intervals(ObjectKind::Pod).filter(|(pod, _)| pod.host_network != Some(true));
            for (pod, _) in pods.filter(|(pod, _)| !pod.ports.is_empty()) {
                let ports = pod.ports.iter().filter_map(|port| Some((port.protocol.parse().ok()?, port.port)));
                all.entry(Workload::of(pod, self.index)).or_default().extend(ports);
            }
            let always = Span { from: TimestampMs(i64::MIN), to: TimestampMs(i64::MAX) };
            for (service, _) in self.index.latest(ObjectKind::Service) {
                for (workload, port) in behind(self.index, service, always) {
                    all.entry(workload).or_default().insert(port);
                }
            }
            all
        })
    }
}

/// The workloads that a Service leads to in a span, and their ports.
pub(crate) fn behind(index: &Index, service: &InventoryRecord, span: Span) -> BTreeSet<(Workload, (Transport, u16))> {
    let mut found = BTreeSet::new();
    for port in &service.ports {
        let Ok(transport) = port.protocol.parse() else { continue };
        for backend in index.backends(service, &port.protocol, port.port, span) {
            let Owner::Pod(pod) = backend.owner else { continue };
            found.insert((Workload::of(pod, index), (transport, backend.port)));
        }
    }
    found
}
