//! Communications: who talked to whom on which port, over the whole capture, with the evidence.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use datafusion::error::DataFusionError;
use schemas::table::TimestampMs;

use crate::{rows::Rows, tables::Tables};

/// One communication; sets of them are ordered by who talks to whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Communication {
    /// Who initiated.
    pub(crate) source: Endpoint,
    /// Who answered, or was meant to.
    pub(crate) destination: Endpoint,
    /// `tcp` or `udp`.
    pub(crate) transport: Arc<str>,
    /// Port at the destination itself, behind any Service.
    pub(crate) port: u16,
    /// The source is the destination's own node.
    pub(crate) own_node: bool,
    /// A Service was dialled.
    pub(crate) via_service: bool,
    /// Ports of the Services that were dialled.
    pub(crate) service_ports: Vec<u16>,
    /// The destination certainly answered: it saw the connection itself, or is the only one behind what was dialled.
    pub(crate) answered: bool,
    /// What was observed.
    pub(crate) evidence: Evidence,
}

/// What was observed of a communication.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Evidence {
    /// `client`, `server` or `both`.
    pub(crate) seen_by: Arc<str>,
    /// Connections established.
    pub(crate) connections: i64,
    /// Connections that failed to establish.
    pub(crate) failed: i64,
    /// Connections that ended.
    pub(crate) closed: i64,
    /// Most connections that one pair of addresses had open at the end of a window.
    pub(crate) max_active: i64,
    /// Why connections failed, comma-separated.
    pub(crate) failures: Option<Arc<str>>,
    /// First observation.
    pub(crate) first_seen: TimestampMs,
    /// Last observation.
    pub(crate) last_seen: TimestampMs,
}

/// One end of a communication.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// Pods that a policy can select.
    Workload(Workload),
    /// A node, or what shares its network: can be reached by address only.
    Node { name: Option<Arc<str>>, address: IpAddr },
    /// Outside the cluster.
    External { address: IpAddr },
    /// Cannot be told.
    Unknown { address: Option<IpAddr>, reason: Arc<str> },
}

/// A workload: the top owner of its pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Workload {
    /// Namespace.
    pub(crate) namespace: Arc<str>,
    /// Name of the top owner.
    pub(crate) name: Arc<str>,
    /// Its kind.
    pub(crate) kind: Arc<str>,
}

impl Communication {
    /// Whether data could pass: a connection was established, was open, or ended.
    pub(crate) const fn is_established(&self) -> bool {
        self.evidence.connections + self.evidence.closed + self.evidence.max_active > 0
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "{workload}"),
            Self::Node { name: Some(name), address } => write!(f, "node {name} ({address})"),
            Self::Node { name: None, address } => write!(f, "a node ({address})"),
            Self::External { address } => write!(f, "{address}"),
            Self::Unknown { address: Some(address), reason } => write!(f, "{address} ({reason})"),
            Self::Unknown { address: None, reason } => write!(f, "somebody ({reason})"),
        }
    }
}

/// Derives the communications of a capture.
///
/// # Errors
/// A file can't be read.
pub(crate) async fn derive(tables: &Tables) -> Result<BTreeSet<Communication>, DataFusionError> {
    let batches = tables.sql(COMMUNICATIONS).await?.collect().await?;
    let mut communications = BTreeSet::new();
    for batch in &batches {
        let rows = Rows::new(batch)?;
        communications.extend((0..batch.num_rows()).map(|row| rows.communication(row)));
    }
    Ok(communications)
}

/// Reads a row of `communications.sql`.
impl Rows<'_> {
    fn ports(&self, name: &str, row: usize) -> Vec<u16> {
        self.text(name, row).iter().flat_map(|ports| ports.split(',')).filter_map(|port| port.parse().ok()).collect()
    }

    fn communication(&self, row: usize) -> Communication {
        Communication {
            source: self.endpoint("source", row),
            destination: self.endpoint("destination", row),
            transport: self.text("transport", row).unwrap_or_default(),
            port: u16::try_from(self.number("port", row)).unwrap_or_default(),
            own_node: self.flag("own_node", row),
            via_service: self.flag("via_service", row),
            service_ports: self.ports("service_ports", row),
            answered: self.flag("answered", row),
            evidence: Evidence {
                seen_by: self.text("seen_by", row).unwrap_or_default(),
                connections: self.number("connections", row),
                failed: self.number("failed", row),
                closed: self.number("closed", row),
                max_active: self.number("max_active", row),
                failures: self.text("failures", row).filter(|failures| !failures.is_empty()),
                first_seen: TimestampMs(self.number("first_seen", row)),
                last_seen: TimestampMs(self.number("last_seen", row)),
            },
        }
    }

    fn endpoint(&self, end: &str, row: usize) -> Endpoint {
        let text = |column: &str| self.text(&format!("{end}_{column}"), row);
        let address = text("address").and_then(|address| address.parse::<IpAddr>().ok());
        match (text("kind").as_deref(), text("namespace"), text("workload"), text("workload_kind"), address) {
            (Some("pod"), Some(namespace), Some(name), Some(kind), _) => {
                Endpoint::Workload(Workload { namespace, name, kind })
            }
            (Some("node"), .., Some(address)) => Endpoint::Node { name: text("node"), address },
            (Some("external"), .., Some(address)) => Endpoint::External { address },
            (.., address) => {
                Endpoint::Unknown { address, reason: text("unknown_reason").unwrap_or_else(|| "no_workload".into()) }
            }
        }
    }
}

const COMMUNICATIONS: &str = include_str!("sql/communications.sql");
