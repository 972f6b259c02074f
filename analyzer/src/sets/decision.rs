//! What people decided: edges that are pinned or forbidden, whatever a capture says. The file is theirs, and survives.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use range_set_blaze::RangeSetBlaze;
use schemas::{
    index::Index,
    inventory::ObjectKind,
    untrusted::{Unbounded, check_yaml},
    vocabulary::{Transport, Word},
};
use serde::Deserialize;

use super::Fate;
use crate::communication::{Communications, Edge, Endpoint, Workload};

/// The decisions of a file.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// What forbids comes before what pins.
    list: Vec<Decision>,
    /// Those between two workloads by their names, so that many are not looked through for every edge.
    between: HashMap<Ends, Between>,
    /// All others.
    others: Vec<usize>,
}

/// Decisions between two workloads.
#[derive(Debug, Default)]
struct Between {
    /// Those that pin one port, by that.
    of_port: HashMap<u16, Vec<usize>>,
    /// All others.
    others: Vec<usize>,
}

/// Namespaces and names of two workloads, the source first.
type Ends = [(Arc<str>, Arc<str>); 2];

/// Which decisions concern anything.
pub(super) type Concerned = BTreeSet<usize>;

#[derive(Debug)]
struct Decision {
    is_pin: bool,
    from: Party,
    to: Party,
    /// `None` for all ports.
    ports: Option<Ports>,
    reason: String,
}

/// Ports that a decision is about: one, or those from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports {
    range: RangeInclusive<u16>,
    /// `None` for any.
    transport: Option<Transport>,
}

/// Whom a decision is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Party {
    /// A workload, or with `*` all of a namespace.
    Workload { namespace: Arc<str>, name: Arc<str> },
    /// Addresses.
    Addresses(IpNet),
}

/// Why decisions can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecisionsError {
    #[error("cannot read decisions {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("decisions {path} are not valid")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_yaml::Error,
    },
    #[error("decisions {path} are not valid")]
    Unbounded {
        path: PathBuf,
        #[source]
        source: Unbounded,
    },
    #[error("decisions {path}: {list}[{number}]: {reason}")]
    Invalid { path: PathBuf, list: &'static str, number: usize, reason: String },
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionFile {
    #[serde(default)]
    pin: Vec<DecisionEntry>,
    #[serde(default)]
    forbid: Vec<DecisionEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionEntry {
    from: String,
    to: String,
    port: Option<PortText>,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortText {
    Number(u16),
    Text(String),
}

impl Decisions {
    /// Reads a file: lists `pin` and `forbid` of `{from, to, port, reason}`. `from` and `to` are `NAMESPACE/NAME` of a
    /// workload, `NAMESPACE/*`, an address or a CIDR; `port` is a number or a range such as `30000-32767`,
    /// also with its transport such as `53/udp`, or is left out for all.
    ///
    /// # Errors
    /// The file can't be read, or says something else.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, DecisionsError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = fs::read_to_string(path).map_err(|source| DecisionsError::Read { path: path.into(), source })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        check_yaml(&text).map_err(|source| DecisionsError::Unbounded { path: path.into(), source })?;
        let DecisionFile { pin, forbid } =
            serde_yaml::from_str(&text).map_err(|source| DecisionsError::Parse { path: path.into(), source })?;
        let mut list = Vec::new();
        for (name, entries) in [("forbid", forbid), ("pin", pin)] {
            for (number, entry) in entries.into_iter().enumerate() {
                let invalid = |reason| DecisionsError::Invalid { path: path.into(), list: name, number, reason };
                list.push(Decision::new(entry, name == "pin").map_err(invalid)?);
            }
        }
        Ok(Self::of_list(list))
    }

    fn of_list(list: Vec<Decision>) -> Self {
        let (mut between, mut others) = (HashMap::<Ends, Between>::new(), Vec::new());
        for (number, decision) in list.iter().enumerate() {
            let Some((from, to)) = decision.from.workload().zip(decision.to.workload()) else {
                others.push(number);
                continue;
            };
            let between = between.entry([from, to]).or_default();
            let ports = decision.ports.as_ref().filter(|_| decision.is_pin);
            match ports.map(|ports| (*ports.range.start(), *ports.range.end())) {
                Some((first, last)) if first == last => between.of_port.entry(first).or_default().push(number),
                _ => between.others.push(number),
            }
        }
        Self { list, between, others }
    }

    /// The decisions that may be about an edge, with their numbers, in order; all that forbid something between its ends.
    fn near(&self, edge: &Edge) -> impl Iterator<Item = (usize, &Decision)> {
        let between = match (&edge.source, &edge.destination) {
            (Endpoint::Workload(from), Endpoint::Workload(to)) if !self.between.is_empty() => {
                let names = |workload: &Workload| (Arc::clone(&workload.namespace), Arc::clone(&workload.name));
                self.between.get(&[names(from), names(to)])
            }
            _ => None,
        };
        let of_port = between.and_then(|between| between.of_port.get(&edge.port)).into_iter().flatten();
        let of_ends = between.into_iter().flat_map(|between| &between.others);
        let mut numbers: Vec<usize> = of_port.chain(of_ends).chain(&self.others).copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| (number, &self.list[number]))
    }

    /// What was decided of an edge: what forbids comes before what pins.
    pub(super) fn of(&self, edge: &Edge, concerned: &mut Concerned) -> Option<Fate> {
        let mut decided = None;
        for (number, decision) in self.near(edge).filter(|(_, decision)| decision.is_about(edge)) {
            concerned.insert(number);
            decided.get_or_insert_with(|| decision.fate());
        }
        decided
    }

    /// Takes an end of which nothing is known but its address for that address, where a decision is about it.
    pub(super) fn settle_unknown(&self, communications: &mut Communications) {
        let settled = |end: &Endpoint| match end {
            Endpoint::Unknown { address: Some(address), .. } => Endpoint::External { address: *address },
            known => known.clone(),
        };
        let has_unknown = |edge: &Edge| {
            [&edge.source, &edge.destination]
                .iter()
                .any(|end| matches!(end, Endpoint::Unknown { address: Some(_), .. }))
        };
        if self.list.is_empty() {
            return;
        }
        let by_address = |edge: &Edge| Edge {
            source: settled(&edge.source),
            destination: settled(&edge.destination),
            ..edge.clone()
        };
        let decided = communications.extract_if(.., |edge, _| {
            has_unknown(edge) && {
                let edge = by_address(edge);
                self.near(&edge).any(|(_, decision)| decision.is_about(&edge))
            }
        });
        for (edge, evidence) in decided.collect::<Vec<_>>() {
            communications.entry(by_address(&edge)).or_default().add(evidence);
        }
    }

    /// Of some ports of workloads, those that no decision is about.
    pub(super) fn undecided(
        &self,
        mut ports: BTreeMap<Workload, BTreeSet<(Transport, u16)>>,
        concerned: &mut Concerned,
    ) -> BTreeMap<Workload, BTreeSet<(Transport, u16)>> {
        let mut by_name: HashMap<_, Vec<_>> = HashMap::new();
        for (workload, ports) in &mut ports {
            let name = (Arc::clone(&workload.namespace), Arc::clone(&workload.name));
            by_name.entry(name).or_default().push((Endpoint::Workload(workload.clone()), ports));
        }
        for (number, decision) in self.list.iter().enumerate() {
            let Some(decided) = &decision.ports else { continue };
            let named = decision.to.workload().map(|name| by_name.get_mut(&name));
            let concerned_ports = match named {
                Some(named) => named.into_iter().flatten().collect::<Vec<_>>(),
                None => by_name.values_mut().flatten().collect(),
            };
            for (workload, ports) in concerned_ports {
                if decision.to.is(workload)
                    && ports.extract_if(.., |(transport, port)| decided.has(Some(*transport), *port)).count() > 0
                {
                    concerned.insert(number);
                }
            }
        }
        ports.retain(|_, ports| !ports.is_empty());
        ports
    }

    /// The range of ports with which an edge is pinned, without what is forbidden of it.
    pub(super) fn range_of(&self, edge: &Edge) -> Option<Vec<RangeInclusive<u16>>> {
        let pins = self.near(edge).filter(|(_, decision)| decision.is_pin && decision.is_about(edge));
        let ranges = pins.filter_map(|(_, pin)| pin.ports.as_ref()).map(|ports| ports.range.clone());
        let left = RangeSetBlaze::from_iter(ranges.filter(|range| range.start() < range.end()));
        if left.is_empty() { None } else { Some(self.allowed_of(edge, left).ranges().collect()) }
    }

    /// Of ports that are pinned for an edge, those that are not forbidden.
    fn allowed_of(&self, edge: &Edge, mut left: RangeSetBlaze<u16>) -> RangeSetBlaze<u16> {
        for (_, forbidden) in self.near(edge).filter(|(_, other)| !other.is_pin && other.is_between(edge)) {
            match &forbidden.ports {
                None => left.clear(),
                Some(ports) => left = left - RangeSetBlaze::from_iter([ports.range.clone()]),
            }
        }
        left
    }

    /// Edges that are pinned by name and port, and that nothing seen is an example of.
    pub(super) fn pinned_edges(&self, index: &Index, concerned: &mut Concerned) -> Vec<(Edge, Fate)> {
        let mut edges = Vec::new();
        let is_unseen = |(number, decision): &(usize, &Decision)| decision.is_pin && !concerned.contains(number);
        let unseen: Vec<_> = self.list.iter().enumerate().filter(is_unseen).collect();
        let workloads = if unseen.is_empty() { Workloads::new() } else { workloads(index) };
        for (number, decision) in unseen {
            let Some(Ports { range, transport }) = &decision.ports else { continue };
            for source in decision.from.endpoints(&workloads) {
                for destination in decision.to.endpoints(&workloads) {
                    let transport = Word::Known(transport.unwrap_or(Transport::Tcp));
                    let mut edge = Edge {
                        source: source.clone(),
                        destination,
                        transport,
                        port: *range.start(),
                        own_node: false,
                        source_port: None,
                    };
                    let allowed = self.allowed_of(&edge, RangeSetBlaze::from_iter([range.clone()]));
                    concerned.insert(number);
                    let overlaps =
                        |ports: &Ports| ports.range.start() <= range.end() && range.start() <= ports.range.end();
                    let forbids = |other: &Decision| {
                        !other.is_pin && other.is_between(&edge) && other.ports.as_ref().is_none_or(overlaps)
                    };
                    concerned.extend(self.near(&edge).filter(|(_, other)| forbids(other)).map(|(at, _)| at));
                    if let Some(port) = allowed.first() {
                        edge.port = port;
                        edges.push((edge, decision.fate()));
                    }
                }
            }
        }
        edges
    }

    /// Decisions that concern nothing, in words.
    pub(super) fn idle(&self, concerned: &Concerned) -> Vec<String> {
        let idle = self.list.iter().enumerate().filter(|(number, _)| !concerned.contains(number));
        idle.map(|(_, decision)| decision.to_string()).collect()
    }
}

impl Decision {
    fn new(entry: DecisionEntry, is_pin: bool) -> Result<Self, String> {
        let DecisionEntry { from, to, port, reason } = entry;
        let ports = match port {
            None => None,
            Some(PortText::Number(port)) => Some(Ports { range: port..=port, transport: None }),
            Some(PortText::Text(text)) => {
                let (numbers, transport) = text.split_once('/').map_or((&*text, None), |(n, t)| (n, Some(t)));
                let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
                let number = |number: &str| number.trim().parse::<u16>();
                let (Ok(first), Ok(last)) = (number(first), number(last)) else {
                    return Err(format!("port `{text}` is neither a number nor a range such as 30000-32767"));
                };
                if first > last {
                    return Err(format!("port `{text}`: the range ends before it begins"));
                }
                let transport = match transport.map(|other| (Transport::of_protocol(other), other)) {
                    None => None,
                    Some((Some(transport), _)) => Some(transport),
                    Some((_, other)) => {
                        let other = other.to_lowercase();
                        return Err(format!("port `{text}`: `{other}` is none of tcp, udp and sctp"));
                    }
                };
                Some(Ports { range: first..=last, transport })
            }
        };
        Ok(Self { is_pin, from: Party::new(&from)?, to: Party::new(&to)?, ports, reason })
    }

    fn is_about(&self, edge: &Edge) -> bool {
        self.is_between(edge) && self.ports.as_ref().is_none_or(|ports| ports.range.contains(&edge.port))
    }

    /// Whether it is about an edge but for its port.
    fn is_between(&self, edge: &Edge) -> bool {
        let is_of_transport = |ports: &Ports| ports.is_of(edge.transport.known());
        self.ports.as_ref().is_none_or(is_of_transport) && self.from.is(&edge.source) && self.to.is(&edge.destination)
    }

    fn fate(&self) -> Fate {
        let reason = self.reason.clone();
        if self.is_pin { Fate::Pinned(reason) } else { Fate::Forbidden(reason) }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} → {}", if self.is_pin { "pin" } else { "forbid" }, self.from, self.to)?;
        self.ports.as_ref().map_or(Ok(()), |ports| write!(f, " {ports}"))
    }
}

impl Ports {
    fn has(&self, transport: Option<Transport>, port: u16) -> bool {
        self.range.contains(&port) && self.is_of(transport)
    }

    fn is_of(&self, transport: Option<Transport>) -> bool {
        self.transport.is_none_or(|of| transport == Some(of))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, transport } = self;
        write!(f, "{}", range.start())?;
        if range.start() < range.end() {
            write!(f, "-{}", range.end())?;
        }
        transport.map_or(Ok(()), |transport| write!(f, "/{transport}"))
    }
}

impl Party {
    fn new(text: &str) -> Result<Self, String> {
        if let Ok(addresses) = text.parse::<IpNet>() {
            return Ok(Self::Addresses(addresses.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Addresses(address.into()));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Workload { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("`{text}` is neither NAMESPACE/NAME, nor an address or a CIDR")),
        }
    }

    fn is(&self, end: &Endpoint) -> bool {
        match (self, end) {
            (Self::Workload { namespace, name }, Endpoint::Workload(workload)) => {
                *namespace == workload.namespace && (&**name == "*" || *name == workload.name)
            }
            (Self::Addresses(addresses), Endpoint::Node { address, .. } | Endpoint::External { address }) => {
                addresses.contains(address)
            }
            _ => false,
        }
    }

    /// The workload that it names, if it is one.
    fn workload(&self) -> Option<(Arc<str>, Arc<str>)> {
        match self {
            Self::Workload { namespace, name } if &**name != "*" => Some((Arc::clone(namespace), Arc::clone(name))),
            _ => None,
        }
    }

    /// The ends that it names: of workloads those with pods, of addresses a single one.
    fn endpoints(&self, workloads: &Workloads) -> BTreeSet<Endpoint> {
        match self {
            Self::Workload { .. } => {
                self.workload().and_then(|named| workloads.get(&named)).cloned().unwrap_or_default()
            }
            Self::Addresses(addresses) if addresses.prefix_len() == addresses.max_prefix_len() => {
                BTreeSet::from([Endpoint::External { address: addresses.addr() }])
            }
            Self::Addresses(_) => BTreeSet::new(),
        }
    }
}

/// Workloads that have pods, by namespace and name.
type Workloads = HashMap<(Arc<str>, Arc<str>), BTreeSet<Endpoint>>;

fn workloads(index: &Index) -> Workloads {
    let mut workloads = Workloads::new();
    for (pod, _) in index.latest(ObjectKind::Pod) {
        if let Some(namespace) = &pod.namespace {
            let (kind, name) = index.workload_of(pod);
            let of = workloads.entry((Arc::clone(namespace), Arc::clone(&name))).or_default();
            of.insert(Endpoint::Workload(Workload { namespace: Arc::clone(namespace), name, kind }));
        }
    }
    workloads
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Addresses(addresses) => write!(f, "{addresses}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(text: &str) -> Result<Decisions, DecisionsError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        Decisions::read(Some(file.path()))
    }

    #[test]
    fn the_example_of_the_readme_is_valid() {
        let readme = include_str!("../../../README.md");
        let section = readme.split("### Communication sets\n").nth(1).expect("it has the section");
        let example = section.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let told: Vec<String> = read(example).expect("it is valid").list.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "forbid tools/* → shop/db",
                "forbid shop/web → 198.51.100.0/24 443",
                "pin shop/migration → shop/db 5432/tcp",
                "pin batch/executor → batch/driver 32768-60999/tcp"
            ]
        );
    }

    #[test]
    fn a_wrong_decision_is_refused_by_its_place() {
        let refused = |text: &str| {
            let error = read(text).expect_err("it is wrong");
            let text = error.to_string();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{} {source}", text.split_once(": ").map_or(&*text, |(_, rest)| rest))
        };
        let party = refused("pin: [{ from: web, to: shop/db }]");
        assert_eq!(party, "pin[0]: `web` is neither NAMESPACE/NAME, nor an address or a CIDR ");
        let port = refused("forbid: [{ from: a/b, to: c/d }, { from: a/b, to: c/d, port: 80/http }]");
        assert_eq!(port, "forbid[1]: port `80/http`: `http` is none of tcp, udp and sctp ");
        let range = refused("pin: [{ from: a/b, to: c/d, port: 30000-20000/tcp }]");
        assert_eq!(range, "pin[0]: port `30000-20000/tcp`: the range ends before it begins ");
        let word = refused("pin: [{ from: a/b, to: c/d, port: http }]");
        assert_eq!(word, "pin[0]: port `http` is neither a number nor a range such as 30000-32767 ");
        assert!(refused("allow: []").contains("unknown field `allow`, expected `pin` or `forbid`"));
        assert!(read("").expect("nothing is decided").list.is_empty());
    }
}
