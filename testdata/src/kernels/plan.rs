//! What a plan of traffic should have become in a capture.

use std::collections::{BTreeMap, BTreeSet};

use schemas::flow::FlowRecord;
use traffic::{Client, Exchange, Kind, Line, Plan, ROUNDS};

/// Whether the kernel shows UDP of connected sockets, with lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    Known,
    Missing,
}

/// An end of a line: its port, and who observes.
type End = (u16, &'static str);

/// What an end of a line came to, over all its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    transport: String,
    connections: i64,
    failed: i64,
    closed: i64,
    bytes_sent: Option<i64>,
    bytes_received: Option<i64>,
    start_known: BTreeSet<bool>,
    direction_known: BTreeSet<bool>,
    failure: BTreeSet<Option<String>>,
    /// Source and destination by address; the observer's own is left out where its socket has none.
    addresses: BTreeSet<[Option<String>; 2]>,
    /// Source and destination as the agent named them: kind, and node or pod.
    names: BTreeSet<[String; 2]>,
}

/// How a recording differs from the plans that were played.
pub(super) fn differences(plans: &[Plan], flows: &[FlowRecord], lengths: Lengths) -> Vec<String> {
    let expected = expected(plans, lengths);
    let observed = observed(flows, plans);
    let ports: BTreeSet<End> = expected.keys().chain(observed.keys()).copied().collect();
    let different = ports.into_iter().filter(|end| expected.get(end) != observed.get(end));
    different
        .map(|end| match (expected.get(&end), observed.get(&end)) {
            (Some(_), None) => format!("no row of port {} at its {}", end.0, end.1),
            (None, Some(seen)) => format!("port {} at its {} is not in the plan: {seen:?}", end.0, end.1),
            (Some(expected), Some(seen)) => format!("port {} at its {}: {}", end.0, end.1, seen.against(expected)),
            (None, None) => unreachable!("an end is of one of the two"),
        })
        .collect()
}

/// Ends of connections that a plan makes where all is seen.
pub(super) fn ends(plan: Plan) -> i64 {
    expected(&[plan], Lengths::Known).values().map(|seen| seen.connections + seen.failed).sum()
}

fn expected(plans: &[Plan], lengths: Lengths) -> BTreeMap<End, Seen> {
    let lines = plans.iter().flat_map(|plan| plan.lines().into_iter().map(|line| (*plan, line)));
    let ends = lines.flat_map(|(plan, line)| {
        ["client", "server"].map(|observer| ((line.port, observer), end(plan, line, observer, lengths)))
    });
    ends.filter_map(|(end, seen)| Some((end, seen?))).collect()
}

/// What an end of a line should come to; `None` where it is not seen.
fn end(plan: Plan, line: Line, observer: &'static str, lengths: Lengths) -> Option<Seen> {
    let seen = Seen {
        transport: if line.is_tcp() { "tcp" } else { "udp" }.into(),
        connections: i64::from(line.times),
        failed: 0,
        closed: if line.is_tcp() { i64::from(line.times) } else { 0 },
        bytes_sent: None,
        bytes_received: None,
        start_known: [true].into(),
        direction_known: [true].into(),
        failure: [None].into(),
        addresses: [addresses(plan, line)].into(),
        names: [names(plan)].into(),
    };
    let carries = |Exchange { to_server, to_client }: Exchange, times: u32, seen: Seen| Seen {
        bytes_sent: Some(i64::from(to_server) * i64::from(times)),
        bytes_received: Some(i64::from(to_client) * i64::from(times)),
        ..seen
    };
    match line.kind {
        Kind::Tcp(exchange, _) | Kind::Late(exchange) => Some(carries(exchange, line.times, seen)),
        Kind::Slow { exchange, rounds } => Some(carries(exchange, rounds * line.times, seen)),
        Kind::Held { after, is_closed, .. } => {
            let seen = Seen { connections: 0, closed: is_closed.into(), start_known: [false].into(), ..seen };
            Some(carries(after, line.times, seen))
        }
        Kind::Refused => failed(seen, observer, "refused"),
        Kind::Unreachable => failed(seen, observer, "unreachable"),
        Kind::Udp { bytes, client } if observer == "client" => {
            datagrams(seen, Exchange { to_server: bytes, to_client: bytes }, client, lengths)
        }
        Kind::UdpUnanswered { bytes, client } if observer == "client" => {
            let client = Client { asks: false, ..client };
            datagrams(seen, Exchange { to_server: bytes, to_client: 0 }, client, lengths)
        }
        Kind::Udp { .. } => Some(without_own(seen, 1)),
        // Who does not ask from whom a datagram is has one edge, whoever sends: an address that is none, and a window.
        Kind::UdpUnanswered { .. } => (lengths == Lengths::Known).then(|| {
            let unspecified = if line.ipv6 { "::" } else { "0.0.0.0" };
            let source = Some(unspecified.into());
            let addresses = [[source, None]].into();
            Seen { connections: 1, addresses, ..without_own(seen, 1) }
        }),
    }
}

fn failed(seen: Seen, observer: &str, why: &str) -> Option<Seen> {
    let failure = [Some(why.into())].into();
    let seen = Seen { connections: 0, failed: seen.connections, closed: 0, failure, ..seen };
    (observer == "client").then_some(seen)
}

/// A UDP client's end.
fn datagrams(seen: Seen, exchange: Exchange, client: Client, lengths: Lengths) -> Option<Seen> {
    let total = |bytes: u32| Some(i64::from(bytes) * i64::from(ROUNDS) * seen.connections);
    match client {
        Client { is_connected: false, .. } => Some(without_own(seen, 0)),
        Client { is_connected: true, .. } if lengths == Lengths::Known => {
            let (bytes_sent, bytes_received) = (total(exchange.to_server), total(exchange.to_client));
            Some(Seen { bytes_sent, bytes_received, ..seen })
        }
        // Seen by its question from whom the answer is.
        Client { is_connected: true, asks: true } => Some(seen),
        Client { is_connected: true, asks: false } => None,
    }
}

/// Leaves out the address of the observer, whose socket is bound to none.
fn without_own(seen: Seen, own: usize) -> Seen {
    let without = |mut addresses: [Option<String>; 2]| {
        addresses[own] = None;
        addresses
    };
    Seen { addresses: seen.addresses.into_iter().map(without).collect(), ..seen }
}

/// The scene's addresses of a line.
fn addresses(plan: Plan, line: Line) -> [Option<String>; 2] {
    let [source, destination] = match (plan, line.ipv6, line.kind) {
        (_, _, Kind::Unreachable) => ["198.18.77.1", "198.18.77.99"],
        (Plan::Pods { .. }, false, _) => ["198.18.77.1", "198.18.77.2"],
        (Plan::Pods { .. }, true, _) => ["fd00:77::1", "fd00:77::2"],
        (Plan::Node, false, _) => ["198.18.78.1", "198.18.78.2"],
        (Plan::Node, true, _) => ["fd00:78::1", "fd00:78::2"],
        (Plan::Loopback, false, _) => ["127.0.0.1", "127.0.0.1"],
        (Plan::Loopback, true, _) => ["::1", "::1"],
    };
    [Some(source.into()), Some(destination.into())]
}

/// The scene's names of the ends of a plan: without an inventory there are none.
fn names(plan: Plan) -> [String; 2] {
    match plan {
        Plan::Pods { .. } => ["unknown".into(), "unknown".into()],
        Plan::Node => ["node node-a".into(), "pod server-0".into()],
        Plan::Loopback => ["pod client-0".into(), "pod client-0".into()],
    }
}

fn observed(flows: &[FlowRecord], plans: &[Plan]) -> BTreeMap<End, Seen> {
    let lines: BTreeMap<u16, Line> = plans.iter().flat_map(|plan| plan.lines()).map(|line| (line.port, line)).collect();
    let mut observed: BTreeMap<End, Seen> = BTreeMap::new();
    for row in flows {
        let observer = if &*row.observer == "client" { "client" } else { "server" };
        let line = lines.get(&row.destination_port);
        let one = of_row(row, line);
        match observed.get_mut(&(row.destination_port, observer)) {
            Some(seen) => seen.add(one),
            None => {
                observed.insert((row.destination_port, observer), one);
            }
        }
    }
    // Counted once per window, and how many windows there were is left to chance.
    for ((port, observer), seen) in &mut observed {
        if *observer == "server" && lines.get(port).is_some_and(|line| matches!(line.kind, Kind::UdpUnanswered { .. }))
        {
            seen.connections = seen.connections.min(1);
        }
    }
    observed
}

fn of_row(row: &FlowRecord, line: Option<&Line>) -> Seen {
    let name = |kind: &str, node: Option<&str>, pod: Option<&str>| match (kind, node, pod) {
        ("node", Some(name), _) | ("pod", _, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    };
    let addresses = [Some(row.source_address.to_string()), Some(row.destination_address.to_string())];
    let seen = Seen {
        transport: row.transport.to_string(),
        connections: row.connections,
        failed: row.failed,
        closed: row.closed,
        bytes_sent: row.bytes_sent,
        bytes_received: row.bytes_received,
        start_known: [row.start_known].into(),
        direction_known: [row.direction_known].into(),
        failure: [row.failure.as_deref().map(Into::into)].into(),
        addresses: [addresses].into(),
        names: [[
            name(&row.source_kind, row.source_node.as_deref(), row.source_pod.as_deref()),
            name(&row.destination_kind, row.destination_node.as_deref(), row.destination_pod.as_deref()),
        ]]
        .into(),
    };
    match (&*row.observer, line.map(|line| line.kind)) {
        ("client", Some(Kind::Udp { client, .. } | Kind::UdpUnanswered { client, .. })) if !client.is_connected => {
            without_own(seen, 0)
        }
        ("server", Some(Kind::Udp { .. } | Kind::UdpUnanswered { .. })) => without_own(seen, 1),
        _ => seen,
    }
}

impl Seen {
    /// The fields that are not as expected.
    fn against(&self, expected: &Self) -> String {
        let fields = self.fields().into_iter().zip(expected.fields()).filter(|(seen, expected)| seen != expected);
        fields
            .map(|((name, seen), (_, expected))| format!("{name} {seen}, not {expected}"))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Names and values of the fields, for people.
    fn fields(&self) -> [(&'static str, String); 11] {
        let Self { transport, connections, failed, closed, bytes_sent, bytes_received, .. } = self;
        let Self { start_known, direction_known, failure, addresses, names, .. } = self;
        [
            ("transport", transport.clone()),
            ("connections", connections.to_string()),
            ("failed", failed.to_string()),
            ("closed", closed.to_string()),
            ("bytes_sent", format!("{bytes_sent:?}")),
            ("bytes_received", format!("{bytes_received:?}")),
            ("start_known", format!("{start_known:?}")),
            ("direction_known", format!("{direction_known:?}")),
            ("failure", format!("{failure:?}")),
            ("addresses", format!("{addresses:?}")),
            ("names", format!("{names:?}")),
        ]
    }

    /// Adds another row of the same end.
    fn add(&mut self, row: Self) {
        self.connections += row.connections;
        self.failed += row.failed;
        self.closed += row.closed;
        let plus = |one: Option<i64>, other: Option<i64>| match (one, other) {
            (None, None) => None,
            _ => Some(one.unwrap_or(0) + other.unwrap_or(0)),
        };
        self.bytes_sent = plus(self.bytes_sent, row.bytes_sent);
        self.bytes_received = plus(self.bytes_received, row.bytes_received);
        self.start_known.extend(row.start_known);
        self.direction_known.extend(row.direction_known);
        self.failure.extend(row.failure);
        self.addresses.extend(row.addresses);
        self.names.extend(row.names);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change to a recording, by the row that it befalls.
    type Fault = fn(&mut FlowRecord);

    fn faithful(plans: &[Plan], lengths: Lengths) -> Vec<FlowRecord> {
        expected(plans, lengths).into_iter().map(|(end, seen)| row(end, &seen)).collect()
    }

    fn row((port, observer): End, seen: &Seen) -> FlowRecord {
        let (addresses, names) = (seen.addresses.first().expect("one"), seen.names.first().expect("one"));
        let address = |index: usize| addresses[index].as_deref().unwrap_or("0.0.0.0").into();
        let kind = |index: usize| names[index].split(' ').next().expect("a word").into();
        let name = |index: usize, kind: &str| names[index].strip_prefix(kind).map(Into::into);
        FlowRecord {
            observer: observer.into(),
            transport: (&*seen.transport).into(),
            source_address: address(0),
            destination_address: address(1),
            destination_port: port,
            source_kind: kind(0),
            destination_kind: kind(1),
            source_node: name(0, "node "),
            source_pod: name(0, "pod "),
            destination_node: name(1, "node "),
            destination_pod: name(1, "pod "),
            connections: seen.connections,
            failed: seen.failed,
            closed: seen.closed,
            bytes_sent: seen.bytes_sent,
            bytes_received: seen.bytes_received,
            start_known: seen.start_known.contains(&true),
            direction_known: seen.direction_known.contains(&true),
            failure: seen.failure.first().expect("one").as_deref().map(Into::into),
            ..FlowRecord::default()
        }
    }

    #[test]
    fn a_faithful_recording_differs_in_nothing() {
        for lengths in [Lengths::Known, Lengths::Missing] {
            for plans in [vec![Plan::Pods { short: 7 }], vec![Plan::Node, Plan::Loopback]] {
                assert_eq!(differences(&plans, &faithful(&plans, lengths), lengths), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn rows_of_several_windows_are_added_up() {
        let plans = [Plan::Pods { short: 7 }];
        let mut flows = faithful(&plans, Lengths::Known);
        let first = flows.iter_mut().find(|row| row.destination_port == 7001).expect("a row");
        first.connections -= 20;
        first.bytes_sent = Some(40_000);
        let other =
            FlowRecord { connections: 20, closed: 0, bytes_sent: Some(20_000), bytes_received: None, ..first.clone() };
        flows.push(other);
        assert_eq!(differences(&plans, &flows, Lengths::Known), Vec::<String>::new());
    }

    #[test]
    fn every_fault_of_a_row_is_found() {
        let faults: [(u16, Fault); 12] = [
            (7005, |row| row.connections += 1),
            (7001, |row| row.closed -= 1),
            (7006, |row| row.bytes_sent = Some(1)),
            (7052, |row| row.bytes_received = None),
            (7010, |row| row.start_known = true),
            (7010, |row| row.direction_known = false),
            (7021, |row| row.failed -= 1),
            (7022, |row| row.failure = Some("timeout".into())),
            (7004, |row| row.source_address = "198.18.77.9".into()),
            (7057, |row| row.destination_port = 7099),
            (7012, |row| row.transport = "udp".into()),
            (7007, |row| row.source_kind = "external".into()),
        ];
        let plans = [Plan::Pods { short: 7 }];
        for (port, fault) in faults {
            let mut flows = faithful(&plans, Lengths::Known);
            fault(flows.iter_mut().find(|row| row.destination_port == port).expect("a row"));
            assert!(!differences(&plans, &flows, Lengths::Known).is_empty(), "a fault of port {port}");
        }
    }

    #[test]
    fn a_row_that_is_missing_or_too_many_is_found() {
        let plans = [Plan::Node];
        let flows = faithful(&plans, Lengths::Known);
        for index in 0..flows.len() {
            let mut fewer = flows.clone();
            fewer.remove(index);
            assert_eq!(differences(&plans, &fewer, Lengths::Known).len(), 1, "{index}");
        }
        let both = faithful(&[Plan::Node, Plan::Loopback], Lengths::Known);
        assert!(!differences(&plans, &both, Lengths::Known).is_empty());
    }

    #[test]
    fn a_socket_of_the_node_that_is_not_named_so_is_found() {
        let plans = [Plan::Node];
        let mut flows = faithful(&plans, Lengths::Known);
        flows[0].source_kind = "unknown".into();
        assert_eq!(differences(&plans, &flows, Lengths::Known).len(), 1);
    }
}
