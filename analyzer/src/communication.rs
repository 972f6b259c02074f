//! Communications: who talked to whom on which port, over the whole capture, with the evidence.

mod direction;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use roaring::RoaringBitmap;
use schemas::{
    index::{Index, UnknownReason},
    inventory::InventoryRecord,
    table::TimestampMs,
    untrusted::shown_in_line,
    vocabulary::{Transport, Word},
};
use serde::{Deserialize, Serialize};

pub(crate) use direction::{Direction, PerDirection};

/// All communications of a capture, ordered by who talks to whom.
pub(crate) type Communications = BTreeMap<Edge, Evidence>;

/// Who talks to whom, on which port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Edge {
    /// Who initiated.
    pub(crate) source: Endpoint,
    /// Who answered, or was meant to.
    pub(crate) destination: Endpoint,
    pub(crate) transport: Word<Transport>,
    /// Port at the destination itself, behind any Service.
    pub(crate) port: u16,
    /// The source is the destination's own node.
    pub(crate) own_node: bool,
    /// Port of the source where it is not known which end initiated, or 0 where that was not recorded: then source is the
    /// end that was recorded. `None` where it is known.
    pub(crate) source_port: Option<u16>,
}

/// What was observed of a communication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// A Service was dialled.
    pub(crate) via_service: bool,
    /// The Services that were dialled, as namespace/name.
    pub(crate) services: BTreeSet<Arc<str>>,
    /// Ports of the Services that were dialled.
    pub(crate) service_ports: BTreeSet<u16>,
    /// The destination certainly answered: it saw the connection itself, or is the only one behind what was dialled.
    pub(crate) answered: bool,
    /// Hours since the Unix epoch in which the client's own node recorded it, also in vain.
    pub(crate) client_hours: RoaringBitmap,
    /// Those in which the server's did.
    pub(crate) server_hours: RoaringBitmap,
    /// Hours in which data could pass.
    pub(crate) hours: RoaringBitmap,
    /// Those of them in which the source was scanning.
    pub(crate) scan_hours: RoaringBitmap,
    /// UIDs of the source's pods.
    pub(crate) source_pods: BTreeSet<Arc<str>>,
    /// UIDs of the destination's pods.
    pub(crate) destination_pods: BTreeSet<Arc<str>>,
    /// Containers of the source's pods, as their own node's agent recorded; an empty name where it did not know.
    pub(crate) source_containers: BTreeSet<Arc<str>>,
    /// Containers of the destination's pods, likewise.
    pub(crate) destination_containers: BTreeSet<Arc<str>>,
    /// Connections established.
    pub(crate) connections: i64,
    /// Connections that failed to establish.
    pub(crate) failed: i64,
    /// Connections that ended.
    pub(crate) closed: i64,
    /// Most connections that one pair of addresses had open at the end of a window.
    pub(crate) max_active: i64,
    /// Payload bytes from source to destination, as far as they are known.
    pub(crate) bytes_sent: i64,
    /// Payload bytes from destination to source, as far as they are known.
    pub(crate) bytes_received: i64,
    /// Payload bytes both ways between nodes of different zones, as far as the nodes of both ends are known.
    pub(crate) cross_zone_bytes: i64,
    /// Why connections failed.
    pub(crate) failures: BTreeSet<Arc<str>>,
    /// First observation.
    pub(crate) first_seen: TimestampMs,
    /// Last observation.
    pub(crate) last_seen: TimestampMs,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            via_service: false,
            services: BTreeSet::new(),
            service_ports: BTreeSet::new(),
            answered: false,
            client_hours: RoaringBitmap::new(),
            server_hours: RoaringBitmap::new(),
            hours: RoaringBitmap::new(),
            scan_hours: RoaringBitmap::new(),
            source_pods: BTreeSet::new(),
            destination_pods: BTreeSet::new(),
            source_containers: BTreeSet::new(),
            destination_containers: BTreeSet::new(),
            connections: 0,
            failed: 0,
            closed: 0,
            max_active: 0,
            bytes_sent: 0,
            bytes_received: 0,
            cross_zone_bytes: 0,
            failures: BTreeSet::new(),
            first_seen: TimestampMs(i64::MAX),
            last_seen: TimestampMs(i64::MIN),
        }
    }
}

impl Evidence {
    /// Whether data could pass: a connection was established, was open, or ended.
    pub(crate) const fn is_established(&self) -> bool {
        self.connections + self.closed + self.max_active > 0
    }

    /// Hours in which the end recorded it whose direction it is: of egress the client, of ingress the server.
    pub(crate) const fn hours_of(&self, direction: Direction) -> &RoaringBitmap {
        match direction {
            Direction::Egress => &self.client_hours,
            Direction::Ingress => &self.server_hours,
        }
    }

    /// Pods and containers of the end whose direction it is.
    pub(crate) const fn pods_of(&self, direction: Direction) -> (&BTreeSet<Arc<str>>, &BTreeSet<Arc<str>>) {
        match direction {
            Direction::Egress => (&self.source_pods, &self.source_containers),
            Direction::Ingress => (&self.destination_pods, &self.destination_containers),
        }
    }

    /// Distinct days (UTC) in which data could pass.
    pub(crate) fn days(&self) -> usize {
        self.hours.iter().map(|hour| hour / 24).collect::<BTreeSet<u32>>().len()
    }

    /// Whether names were asked: what was dialled is DNS' port, of the destination itself or of a Service.
    pub(crate) fn asks_names(&self, edge: &Edge) -> bool {
        edge.port == DNS_PORT || self.service_ports.contains(&DNS_PORT)
    }

    /// Which ends saw it: `client`, `server` or `both`.
    pub(crate) fn seen_by(&self) -> &'static str {
        seen_by(!self.client_hours.is_empty(), !self.server_hours.is_empty())
    }

    /// Adds what was observed at other times.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            via_service,
            services,
            service_ports,
            answered,
            client_hours,
            server_hours,
            hours,
            scan_hours,
            source_pods,
            destination_pods,
            source_containers,
            destination_containers,
            connections,
            failed,
            closed,
            max_active,
            bytes_sent,
            bytes_received,
            cross_zone_bytes,
            failures,
            first_seen,
            last_seen,
        } = other;
        self.via_service |= via_service;
        self.services.extend(services);
        self.service_ports.extend(service_ports);
        self.answered |= answered;
        self.client_hours |= client_hours;
        self.server_hours |= server_hours;
        self.hours |= hours;
        self.scan_hours |= scan_hours;
        self.source_pods.extend(source_pods);
        self.destination_pods.extend(destination_pods);
        self.source_containers.extend(source_containers);
        self.destination_containers.extend(destination_containers);
        self.connections += connections;
        self.failed += failed;
        self.closed += closed;
        self.max_active = self.max_active.max(max_active);
        self.bytes_sent += bytes_sent;
        self.bytes_received += bytes_received;
        self.cross_zone_bytes += cross_zone_bytes;
        self.failures.extend(failures);
        self.first_seen = self.first_seen.min(first_seen);
        self.last_seen = self.last_seen.max(last_seen);
    }
}

/// One end of a communication.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    /// Pods that a policy can select.
    Workload(Workload),
    /// A node, or what shares its network: can be reached by address only.
    Node { name: Option<Arc<str>>, address: IpAddr },
    /// Outside the cluster.
    External { address: IpAddr },
    /// It is not known who; of a socket of no known pod, the node is.
    Unknown { address: Option<IpAddr>, reason: Arc<str>, node: Option<Arc<str>> },
}

/// A workload: the top owner of its pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Workload {
    /// Namespace.
    pub(crate) namespace: Arc<str>,
    /// Name of the top owner.
    pub(crate) name: Arc<str>,
    /// Its kind.
    pub(crate) kind: Arc<str>,
}

impl Edge {
    /// The workloads at its ends, each with the direction that it belongs to there.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = (Direction, &Workload)> {
        Direction::ALL.into_iter().filter_map(|direction| match self.ends(direction).0 {
            Endpoint::Workload(workload) => Some((direction, workload)),
            _ => None,
        })
    }

    /// The end whose direction it is, and the other end.
    pub(crate) const fn ends(&self, direction: Direction) -> (&Endpoint, &Endpoint) {
        match direction {
            Direction::Egress => (&self.source, &self.destination),
            Direction::Ingress => (&self.destination, &self.source),
        }
    }
}

impl Endpoint {
    /// Whether it is not known, for a reason.
    pub(crate) fn is_unknown_as(&self, why: UnknownReason) -> bool {
        matches!(self, Self::Unknown { reason, .. } if **reason == *why.as_str())
    }
}

impl Workload {
    /// The workload that a pod is of.
    pub(crate) fn of(pod: &InventoryRecord, index: &Index) -> Self {
        let (kind, name) = index.workload_of(pod);
        Self { namespace: pod.namespace.clone().unwrap_or_default(), name, kind }
    }

    /// The one that a record of an owner of pods is about; `None` for a record of something else.
    pub(crate) fn of_owner(owner: &InventoryRecord) -> Option<Self> {
        let (namespace, name) = (owner.namespace.clone().unwrap_or_default(), Arc::clone(&owner.name));
        Some(Self { namespace, name, kind: owner.workload_kind.clone()? })
    }
}

/// Which ends saw an edge, in a word.
pub(crate) const fn seen_by(client: bool, server: bool) -> &'static str {
    match (client, server) {
        (true, true) => "both",
        (false, true) => "server",
        _ => "client",
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, transport, port, own_node: _, source_port } = self;
        let protocol = transport.protocol();
        match source_port {
            None => write!(f, "{source} → {destination} {port}/{protocol}"),
            Some(own) => write!(f, "{source} port {own} ↔ {destination} port {port}/{protocol}"),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", shown_in_line(&self.namespace), shown_in_line(&self.name))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "{workload}"),
            Self::Node { name: Some(name), address } => write!(f, "node {name} ({address})"),
            Self::Node { name: None, address } => write!(f, "a node ({address})"),
            Self::External { address } => write!(f, "{address}"),
            Self::Unknown { address, reason, node } => {
                match address {
                    Some(address) => write!(f, "{address}")?,
                    None => f.write_str("somebody")?,
                }
                match node {
                    Some(node) => write!(f, " on {node} ({reason})"),
                    None => write!(f, " ({reason})"),
                }
            }
        }
    }
}

/// The port of DNS (RFC 1035).
pub(crate) const DNS_PORT: u16 = 53;
