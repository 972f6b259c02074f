//! Who is at each end of a flow, from the inventory at the time of the flow.
//!
//! The local end of a row is certain, since its socket told it; the remote end is looked up again here, because the
//! agent that wrote the row may have known less than the whole inventory does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use schemas::{
    index::{Holds, Index, Owner, Span, UnknownReason, pod_name_as_uid},
    inventory::InventoryRecord,
    table::TimestampMs,
    vocabulary::EndKind,
};

/// One end of an edge. What is reached by address has one; what is reached by label has a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) kind: EndKind,
    pub(super) namespace: Option<Arc<str>>,
    pub(super) workload_kind: Option<Arc<str>>,
    pub(super) workload: Option<Arc<str>>,
    pub(super) pod_uid: Option<Arc<str>>,
    /// The node it is, or runs on.
    pub(super) node: Option<Arc<str>>,
    pub(super) address: Option<Arc<str>>,
    pub(super) unknown_reason: Option<&'static str>,
}

/// One end that was dialled: who answers, on which port, and through which Service.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) end: End,
    pub(super) port: u16,
    pub(super) service: Option<Arc<str>>,
    /// No other end can have answered.
    pub(super) sole: bool,
}

/// What a row says of an end.
#[derive(Clone, Debug)]
pub(super) struct Told<'a> {
    pub(super) kind: &'a str,
    pub(super) namespace: Option<&'a Arc<str>>,
    pub(super) workload_kind: Option<&'a Arc<str>>,
    pub(super) workload: Option<&'a Arc<str>>,
    pub(super) pod_uid: Option<&'a Arc<str>>,
    pub(super) node: Option<&'a Arc<str>>,
    pub(super) host_network: bool,
    pub(super) address: &'a Arc<str>,
}

/// UID and node of one of the pods behind a Service.
type Replica = (Option<Arc<str>>, Option<Arc<str>>);

/// Looks ends up, for one span of time, and learns for which others the answers hold.
#[derive(Clone, Copy)]
pub(super) struct Resolver<'a> {
    pub(super) index: &'a Index,
    pub(super) span: Span,
    pub(super) holds: &'a Holds,
}

impl Resolver<'_> {
    /// The end that the row's own socket told; `None` where it is of no known pod.
    pub(super) fn local(&self, told: &Told<'_>, observer_node: &Arc<str>) -> Option<End> {
        let node = || Some(Arc::clone(told.node.unwrap_or(observer_node)));
        let address = || Some(Arc::clone(told.address));
        match told.kind.parse() {
            Ok(EndKind::Pod) if told.host_network => Some(End::node(node(), address())),
            Ok(EndKind::Pod) => {
                // The whole inventory knows owners of owners, and names of pods, that the agent may not have known.
                let pod = |uid: &Arc<str>| self.index.pod_while(uid, self.span.to, self.holds);
                let known = told.pod_uid.and_then(pod);
                if known.is_some_and(|pod| pod.host_network == Some(true)) {
                    return Some(End::node(node(), address()));
                }
                let named = told.workload_kind.cloned().zip(told.workload.cloned());
                let (workload_kind, workload) = known.map(|pod| self.index.workload_of(pod)).or(named).unzip();
                Some(End {
                    kind: EndKind::Pod,
                    namespace: Some(known.and_then(|pod| pod.namespace.clone()).or(told.namespace.cloned())?),
                    workload_kind,
                    workload,
                    pod_uid: known.and_then(|pod| pod.uid.clone()).or(told.pod_uid.cloned()),
                    node: node(),
                    ..End::default()
                })
            }
            Ok(EndKind::Node) => Some(End::node(node(), address())),
            _ => None,
        }
    }

    /// The end that has to be looked up by its address.
    pub(super) fn remote(&self, address: &Arc<str>) -> End {
        match address.parse::<IpAddr>() {
            Ok(ip) => self.owner(self.index.resolve_while(ip, self.span, self.holds), ip),
            Err(_) => End { address: Some(Arc::clone(address)), ..End::unknown("not_an_address") },
        }
    }

    /// The end that is local to the observer, but whose socket was of no known pod: it was there before the news of it.
    /// Its address tells only where it did not change hands around that time. One outside of the cluster is that of a
    /// network within some pod of the node.
    pub(super) fn unmapped(&self, address: &Arc<str>, observer_node: &Arc<str>) -> End {
        let end = self.holds.ask_near(UNMAPPED_MARGIN_MS, |holds| {
            Resolver { holds, index: self.index, span: self.span.widened(UNMAPPED_MARGIN_MS) }.remote(address)
        });
        let is_outside = end.kind == EndKind::External
            || end.unknown_reason == Some(UnknownReason::NoInventory.as_str())
                && address.parse().is_ok_and(|address| !self.index.is_of_cluster(address));
        if !is_outside {
            return end;
        }
        let node = Some(Arc::clone(observer_node));
        End { address: end.address, node, ..End::unknown(UnknownReason::UnmappedSocket.as_str()) }
    }

    /// Everyone who may have answered when an address and port were dialled.
    pub(super) fn dialled(&self, address: &Arc<str>, transport: &str, port: u16) -> Vec<Destination> {
        let through_service = |ip| self.through_service(ip, transport, port);
        address.parse().ok().and_then(through_service).unwrap_or_else(|| direct(self.remote(address), port))
    }

    /// For which spans around, up to a margin on either side, an address surely is one and the same known end's, so that
    /// nobody has to be asked who had it.
    pub(super) fn certain(&self, address: &Arc<str>) -> Span {
        let Ok(ip) = address.parse() else { return NEVER };
        let holds = Holds::default();
        match self.index.resolve_while(ip, self.span, &holds) {
            Owner::Unknown(_) => NEVER,
            _ => holds.span().widened(-WITNESS_MARGIN_MS),
        }
    }

    fn owner(&self, owner: Owner<'_>, address: IpAddr) -> End {
        let text: Arc<str> = address.to_string().into();
        let mut interfaces = self.index.interface_of(address);
        match owner {
            Owner::Pod(pod) => self.pod(pod),
            Owner::Node(node) => End::node(Some(Arc::clone(&node.name)), Some(text)),
            // Only what is dialled can be a Service; one that dials is a node that hides behind its address.
            Owner::Service(_) => End { address: Some(text), ..End::unknown("service_address") },
            // Bridges, tunnels and local resolvers have addresses that only the nodes know.
            Owner::External | Owner::Unknown(UnknownReason::NoOwner) if let Some(node) = interfaces.next() => {
                End::node(Some(Arc::clone(node)).filter(|_| interfaces.next().is_none()), Some(text))
            }
            Owner::External => End { kind: EndKind::External, address: Some(text), ..End::default() },
            // The first address of a node's pod range is that of its overlay device (flannel.1), from which its own processes
            // reach pods of other nodes.
            Owner::Unknown(UnknownReason::NoOwner) if self.index.begins_pod_range(address) => {
                End::node(None, Some(text))
            }
            Owner::Unknown(reason) => End { address: Some(text), ..End::unknown(reason.as_str()) },
        }
    }

    fn pod(&self, pod: &InventoryRecord) -> End {
        let (workload_kind, workload) = self.index.workload_of(pod);
        End {
            kind: EndKind::Pod,
            namespace: pod.namespace.clone(),
            workload_kind: Some(workload_kind),
            workload: Some(workload),
            pod_uid: Some(pod.uid.clone().unwrap_or_else(|| pod_name_as_uid(pod))),
            node: pod.object_node.clone(),
            ..End::default()
        }
    }

    /// Everyone who may have answered when a Service's address was dialled; `None` when it was not a Service's.
    fn through_service(&self, address: IpAddr, transport: &str, port: u16) -> Option<Vec<Destination>> {
        let Self { index, span, holds } = *self;
        let Owner::Service(service) = index.dialled_while(address, transport, port, span, holds) else { return None };
        let name: Arc<str> = format!("{}/{}", service.namespace.as_deref().unwrap_or_default(), service.name).into();
        // Replicas are one destination: a connection must not count once for each. Of their pods and nodes, what all
        // share is known of the one that answered.
        let mut found: BTreeMap<(End, u16), BTreeSet<Replica>> = BTreeMap::new();
        for backend in index.backends_while(service, transport, port, span, holds) {
            let mut end = self.owner(backend.owner, backend.address);
            let is_pod = end.kind == EndKind::Pod;
            let replica = if is_pod { (end.pod_uid.take(), end.node.take()) } else { (None, end.node.clone()) };
            found.entry((end, backend.port)).or_default().insert(replica);
        }
        if found.is_empty() {
            let reason = UnknownReason::NoEndpoints.as_str();
            let end = End { address: Some(address.to_string().into()), ..End::unknown(reason) };
            return Some(vec![Destination { end, port, service: Some(name), sole: true }]);
        }
        let sole = found.len() == 1;
        let destination = |((end, port), replicas): ((End, u16), BTreeSet<Replica>)| {
            let (pods, nodes): (BTreeSet<_>, BTreeSet<_>) = replicas.into_iter().unzip();
            let only =
                |mut values: BTreeSet<Option<Arc<str>>>| values.pop_first().flatten().filter(|_| values.is_empty());
            let end = End { pod_uid: only(pods), node: only(nodes), ..end };
            Destination { end, port, service: Some(Arc::clone(&name)), sole }
        };
        Some(found.into_iter().map(destination).collect())
    }
}

impl End {
    /// A node, or a pod that shares its network: from outside they are one.
    fn node(node: Option<Arc<str>>, address: Option<Arc<str>>) -> Self {
        Self { kind: EndKind::Node, node, address, ..Self::default() }
    }

    pub(super) fn unknown(reason: &'static str) -> Self {
        Self { kind: EndKind::Unknown, unknown_reason: Some(reason), ..Self::default() }
    }

    /// Whether the end is one that the other end of the connection may know better.
    pub(super) fn is_uncertain(&self) -> bool {
        let reasons = [UnknownReason::Ambiguous, UnknownReason::NoOwner, UnknownReason::NoInventory];
        self.unknown_reason.is_some_and(|told| reasons.iter().any(|reason| reason.as_str() == told))
    }
}

/// The one end that was dialled by its own address.
pub(super) fn direct(end: End, port: u16) -> Vec<Destination> {
    vec![Destination { end, port, service: None, sole: true }]
}

const NEVER: Span = Span { from: TimestampMs(i64::MAX), to: TimestampMs(i64::MIN) };
/// How late the news of a pod may be for its own node: a window, at the longest that is usual.
const UNMAPPED_MARGIN_MS: i64 = 60_000;
/// How far the spans of two rows that tell of the same connection may reach beyond each other: a window, at the longest.
const WITNESS_MARGIN_MS: i64 = 600_000;
