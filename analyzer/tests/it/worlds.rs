//! Worlds in which agents do not see what passes on the wire as it is: whatever they see of it, no policy closes a direction
//! over what passed, none names a port that was never on the wire, and what has nothing to do with it is closed as ever.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use schemas::inventory::ObjectKind;
use serde_yaml::Value;

use crate::support::{Capture, Report, limits, tcp};

/// Somebody at an end of a connection, as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Pod(usize),
    Address(&'static str),
}

/// A connection on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    client: Who,
    server: Who,
    port: u16,
    is_udp: bool,
}

/// What keeps agents from seeing calls as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// A server receives datagrams without asking who sent them.
    NeverAsks,
    /// The kernel shows nothing of what connected UDP sockets do.
    NoLengths,
    /// The sockets of a pod are not its node's.
    Sandbox,
    /// Connections were open before the recording, and the kernel did not keep who dialled.
    Older,
    /// A proxy in a pod accepts on a port of its own what was sent to others.
    Redirected,
    /// A proxy in a pod takes all that the pod dials, also what nobody answers.
    Intercepted,
    /// Containers of a pod have a network of their own.
    Nested,
    /// Who calls from outside comes by an address that nobody is known to have.
    Tunnel,
    /// The same by the bridge of the node, whose agent knows it.
    Bridge,
    /// A server is reached by a port of its node.
    HostPort,
    /// A server listens where the kernel lets it.
    DynamicPorts,
    /// A server is called by SCTP, which it declares.
    Sctp,
}

const CAUSES: [Cause; 12] = [
    Cause::NeverAsks,
    Cause::NoLengths,
    Cause::Sandbox,
    Cause::Older,
    Cause::Redirected,
    Cause::Intercepted,
    Cause::Nested,
    Cause::Tunnel,
    Cause::Bridge,
    Cause::HostPort,
    Cause::DynamicPorts,
    Cause::Sctp,
];

#[derive(Clone, Debug)]
struct World {
    pods: usize,
    calls: BTreeSet<Call>,
    cause: Option<Cause>,
    /// The pod that the cause is about.
    subject: usize,
    /// Whether servers declare their ports.
    are_declared: bool,
}

/// Directions of workloads.
type Directions = BTreeSet<(String, &'static str)>;

impl World {
    /// Calls as they are on the wire, with what the cause adds and whose address it takes.
    fn truth(&self) -> BTreeSet<Call> {
        let mut truth: BTreeSet<Call> = self.calls.iter().map(|call| self.on_the_wire(*call)).collect();
        let from_outside =
            |port, is_udp| Call { client: Who::Address(VISITOR), server: Who::Pod(self.subject), port, is_udp };
        if self.cause == Some(Cause::HostPort) {
            let by_host = |call: &Call| Call { server: Who::Address(NODE), port: HOST_PORT, ..*call };
            truth.extend(self.calls.iter().filter(|call| self.is_by_host(**call)).map(by_host));
        }
        if self.cause == Some(Cause::DynamicPorts) {
            truth.extend(DYNAMIC.map(|port| from_outside(port, false)));
        }
        truth
    }

    /// Whether a pod calls the subject by a port of the node.
    fn is_by_host(&self, call: Call) -> bool {
        self.cause == Some(Cause::HostPort)
            && call.server == Who::Pod(self.subject)
            && matches!(call.client, Who::Pod(_))
            && !call.is_udp
    }

    fn on_the_wire(&self, call: Call) -> Call {
        let client = match self.cause {
            Some(Cause::Tunnel) => Who::Address(TUNNEL),
            Some(Cause::Bridge) => Who::Address(BRIDGE),
            _ => return call,
        };
        let is_of_it = call.client == Who::Address(VISITOR) && call.server == Who::Pod(self.subject);
        if is_of_it { Call { client, ..call } } else { call }
    }

    /// What agents record.
    fn capture(&self) -> Capture {
        let mut capture = Capture::new();
        for pod in 0..self.pods {
            let ports: BTreeSet<u16> =
                self.calls.iter().filter(|call| call.server == Who::Pod(pod)).map(|call| call.port).collect();
            let (is_subject, declares) = (pod == self.subject, self.are_declared);
            let object = capture.pod(&format!("demo/{}", name(pod)), &address(pod));
            object.ports = ports.into_iter().filter(|_| declares).map(|port| tcp(port, None)).collect();
            if is_subject && self.cause == Some(Cause::Sctp) {
                let mut sctp = tcp(38_412, None);
                sctp.protocol = "sctp".into();
                object.ports.push(sctp);
            }
        }
        if self.cause == Some(Cause::Bridge) {
            capture.object(ObjectKind::NodeInterfaces, None, "node-a").addresses = vec![BRIDGE.into()];
        }
        // Of a call by a port of the node, the client's end has the node and that port.
        for (number, call) in self.truth().into_iter().enumerate() {
            self.record(&mut capture, call, number as u16);
        }
        self.record_more(&mut capture);
        if self.cause == Some(Cause::NoLengths) {
            let mut end = capture.clean_end();
            end.programs = LENGTHLESS.map(Into::into).into();
            capture.health = vec![end];
        }
        capture
    }

    /// The rows of a call.
    fn record(&self, capture: &mut Capture, call: Call, number: u16) {
        let Call { client, server, port, is_udp } = call;
        let transport = if is_udp { "udp" } else { "tcp" };
        let of_subject = |who: Who| who == Who::Pod(self.subject);
        let (from, to) = (text(client), text(server));
        let is_older = self.cause == Some(Cause::Older) && !is_udp && (of_subject(client) || of_subject(server));
        let is_connected = self.cause == Some(Cause::NoLengths) && is_udp;
        if let Who::Pod(_) = client
            && !self.is_by_host(call)
            && !(is_connected || self.cause == Some(Cause::Sandbox) && of_subject(client))
        {
            let row = match self.cause {
                Some(Cause::Nested) if of_subject(client) => capture.row("client", WITHIN, &to, port),
                _ => capture.dial(&from, &to, port),
            };
            row.transport = transport.into();
            if is_older {
                (row.direction_known, row.source_port) = (false, Some(EPHEMERAL + number));
                (row.connections, row.active) = (0, 1);
            }
            let never_answers = self.cause == Some(Cause::NeverAsks) && of_subject(server) && is_udp;
            row.bytes_received = if never_answers { Some(0) } else { row.bytes_received };
        }
        if let Who::Pod(_) = server
            && !(self.cause == Some(Cause::Sandbox) && of_subject(server))
        {
            let row = match self.cause {
                _ if is_older => {
                    let row = capture.dial(&to, &from, EPHEMERAL + number);
                    (row.direction_known, row.source_port) = (false, Some(port));
                    (row.connections, row.active) = (0, 1);
                    row
                }
                Some(Cause::NeverAsks) if of_subject(server) && is_udp => {
                    let row = capture.accept(&to, "0.0.0.0", port);
                    (row.source_kind, row.source_unknown_reason) = ("unknown".into(), Some("sender_not_asked".into()));
                    row
                }
                Some(Cause::Redirected) if of_subject(server) && !is_udp => capture.accept(&to, &from, PROXY),
                _ => capture.accept(&to, &from, port),
            };
            row.transport = transport.into();
        }
        // Undeclared, the application is reached by a socket that is no port of the pod.
        if self.cause == Some(Cause::Redirected) && of_subject(server) && !is_udp && self.are_declared {
            capture.accept(&to, "127.0.0.6", port);
        }
        if self.cause == Some(Cause::Intercepted) && of_subject(client) && !is_udp {
            capture.accept(&from, &from, 15_001);
            capture.dial(&from, &to, port);
        }
    }

    /// Rows of what never was on the wire.
    fn record_more(&self, capture: &mut Capture) {
        let (subject, other) = (address(self.subject), address((self.subject + 1) % self.pods));
        if self.cause == Some(Cause::Intercepted) {
            for port in 7000..7005 {
                capture.dial(&subject, &other, port);
                capture.accept(&subject, &subject, 15_001);
                let row = capture.dial(&subject, &other, port);
                (row.connections, row.closed, row.failed, row.failure) = (0, 0, 1, Some("refused".into()));
            }
        }
    }

    /// The directions that the cause is about.
    fn touched(&self) -> Directions {
        let mut touched = Directions::new();
        let mut touch = |who: Who, direction| {
            if let Who::Pod(pod) = who {
                touched.insert((name(pod), direction));
            }
        };
        let subject = Who::Pod(self.subject);
        let everybody = (0..self.pods).map(Who::Pod);
        match self.cause {
            None | Some(Cause::Intercepted | Cause::Bridge | Cause::HostPort) => {}
            Some(Cause::NeverAsks | Cause::Redirected | Cause::Tunnel | Cause::DynamicPorts | Cause::Sctp) => {
                touch(subject, "Ingress");
            }
            Some(Cause::Sandbox) => ["Ingress", "Egress"].into_iter().for_each(|direction| touch(subject, direction)),
            Some(Cause::NoLengths) => {
                for who in everybody {
                    ["Ingress", "Egress"].into_iter().for_each(|direction| touch(who, direction));
                }
            }
            Some(Cause::Older) => {
                for call in
                    self.calls.iter().filter(|call| [call.client, call.server].contains(&subject) && !call.is_udp)
                {
                    touch(call.client, "Egress");
                    touch(call.server, "Ingress");
                }
            }
            // What nobody else saw may be any pod's of the node.
            Some(Cause::Nested) => everybody.for_each(|who| touch(who, "Egress")),
        }
        touched
    }
}

fn name(pod: usize) -> String {
    format!("w{pod}")
}

fn address(pod: usize) -> String {
    format!("10.244.0.{}", 11 + pod)
}

fn text(who: Who) -> String {
    match who {
        Who::Pod(pod) => address(pod),
        Who::Address(address) => address.into(),
    }
}

/// What a policy's rules of a direction allow: peers by address or label, and ports.
fn allowed(report: &Report, workload: &str, direction: &str) -> Vec<(Value, u64, u64, String)> {
    let policy =
        report.policies.iter().find(|policy| policy["metadata"]["name"] == format!("{workload}-network").as_str());
    let (rules, ends) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
    let rules = policy.and_then(|policy| policy["spec"][rules].as_sequence()).into_iter().flatten();
    let mut allowed = Vec::new();
    for rule in rules {
        for peer in rule[ends].as_sequence().into_iter().flatten() {
            for port in rule["ports"].as_sequence().into_iter().flatten() {
                let first = port["port"].as_u64().expect("a number");
                let last = port["endPort"].as_u64().unwrap_or(first);
                allowed.push((peer.clone(), first, last, port["protocol"].as_str().expect("a text").to_lowercase()));
            }
        }
    }
    allowed
}

fn is_peer(peer: &Value, who: Who) -> bool {
    match who {
        Who::Pod(pod) => peer["podSelector"]["matchLabels"]["app"].as_str() == Some(&name(pod)),
        Who::Address(address) => peer["ipBlock"]["cidr"].as_str().is_some_and(|cidr| {
            let (cidr, address): (IpNet, IpAddr) =
                (cidr.parse().expect("a CIDR"), address.parse().expect("an address"));
            cidr.contains(&address)
        }),
    }
}

fn is_allowed(rule: &(Value, u64, u64, String), peer: Who, call: &Call) -> bool {
    let (of, first, last, protocol) = rule;
    let is_port = (*first..=*last).contains(&call.port.into()) && (protocol == "udp") == call.is_udp;
    is_port && is_peer(of, peer)
}

/// The directions that policies close.
fn closed(report: &Report, world: &World) -> Directions {
    let closes =
        |pod: usize, direction: &str| limits(report, &format!("{}-network", name(pod))).contains(&direction.to_owned());
    let all = (0..world.pods).flat_map(|pod| ["Ingress", "Egress"].map(|direction| (pod, direction)));
    all.filter(|(pod, direction)| closes(*pod, direction)).map(|(pod, direction)| (name(pod), direction)).collect()
}

/// What was found of all worlds of a cause.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    closed: usize,
    withheld: usize,
    cut: usize,
    over_allowed: usize,
    needlessly_open: usize,
}

fn judge(world: &World, closed_without: &Directions) -> (Tally, String) {
    let report = world.capture().report();
    let closed = closed(&report, world);
    let mut tally = Tally { closed: closed.len(), ..Tally::default() };
    let touched = world.touched();
    let open: Directions = closed_without.difference(&closed).cloned().collect();
    tally.withheld = open.len();
    tally.needlessly_open = open.difference(&touched).count();
    let truth = world.truth();
    let mut said = report.said.clone();
    for call in &truth {
        for (own, direction, peer) in [(call.client, "Egress", call.server), (call.server, "Ingress", call.client)] {
            let Who::Pod(pod) = own else { continue };
            let is_closed = closed.contains(&(name(pod), direction));
            if is_closed && !allowed(&report, &name(pod), direction).iter().any(|rule| is_allowed(rule, peer, call)) {
                tally.cut += 1;
                said += &format!("CUT {direction} of {}: {call:?}\n", name(pod));
            }
        }
    }
    for (workload, direction) in &closed {
        for rule in allowed(&report, workload, direction) {
            let was_there = truth.iter().any(|call| {
                let (own, peer) =
                    if *direction == "Egress" { (call.client, call.server) } else { (call.server, call.client) };
                // Who asks for names over UDP may ask again over TCP.
                let call = Call { is_udp: if call.port == 53 { rule.3 == "udp" } else { call.is_udp }, ..*call };
                own == Who::Pod(workload[1..].parse().expect("a number")) && is_allowed(&rule, peer, &call)
            });
            if !was_there {
                tally.over_allowed += 1;
                said += &format!("NEVER ON THE WIRE {direction} of {workload}: {rule:?}\n");
            }
        }
    }
    (tally, format!("{said}{}", report.yaml))
}

fn worlds() -> impl Strategy<Value = World> {
    let call = |pods: usize| {
        let port = prop_oneof![Just((5432, false)), Just((8080, false)), Just((53, true)), Just((8125, true))];
        (0..pods + 1, 0..pods + 1, port).prop_filter_map(
            "two ends, of which one is a pod",
            move |(client, server, port)| {
                let who = |number: usize, other| if number == pods { Who::Address(other) } else { Who::Pod(number) };
                let (client, server) = (who(client, VISITOR), who(server, PROVIDER));
                let (port, is_udp) = port;
                let is_of_pods = client != server && [client, server].iter().any(|who| matches!(who, Who::Pod(_)));
                is_of_pods.then_some(Call { client, server, port, is_udp })
            },
        )
    };
    (3..6_usize).prop_flat_map(move |pods| {
        let calls = proptest::collection::btree_set(call(pods), 4..12);
        (calls, 0..pods, any::<bool>()).prop_map(move |(calls, subject, are_declared)| World {
            pods,
            calls,
            cause: None,
            subject,
            are_declared,
        })
    })
}

#[test]
fn whatever_agents_see_nothing_that_passed_is_cut_and_nothing_else_is_allowed_or_left_open() {
    let tallies: RefCell<BTreeMap<Cause, Tally>> = RefCell::default();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(WORLDS);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let ran = TestRunner::new_with_rng(config, proptest::test_runner::TestRng::deterministic_rng(Default::default()))
        .run(&worlds(), |world| {
            let without = closed(&world.capture().report(), &world);
            for cause in CAUSES {
                let (tally, said) = judge(&World { cause: Some(cause), ..world.clone() }, &without);
                prop_assert_eq!(
                    (tally.cut, tally.over_allowed, tally.needlessly_open),
                    (0, 0, 0),
                    "{:?}\n{}",
                    cause,
                    said
                );
                let mut tallies = tallies.borrow_mut();
                let sum = tallies.entry(cause).or_default();
                (sum.closed, sum.withheld) = (sum.closed + tally.closed, sum.withheld + tally.withheld);
            }
            Ok(())
        });
    if let Err(error) = ran {
        panic!("{error}");
    }
    for (cause, Tally { closed, withheld, cut, over_allowed, .. }) in &*tallies.borrow() {
        println!("{cause:?}: {closed} directions closed, {withheld} withheld, {cut} cut, {over_allowed} over-allowed");
        // A cause that never leaves anything open, or always everything, is not what these worlds are about.
        let leaves_open = !matches!(cause, Cause::Intercepted | Cause::Bridge | Cause::HostPort);
        assert!(*closed > 0 || *cause == Cause::NoLengths, "{cause:?}");
        assert_eq!(*withheld > 0, leaves_open, "{cause:?}");
    }
}

const VISITOR: &str = "198.51.100.9";
const PROVIDER: &str = "198.51.100.50";
const TUNNEL: &str = "10.244.219.64";
const NODE: &str = "192.0.2.1";
const HOST_PORT: u16 = 18_080;
const BRIDGE: &str = "10.244.0.1";
/// A container's address in a network of its own.
const WITHIN: &str = "172.17.0.2";
/// The port of the proxy in a pod.
const PROXY: u16 = 15_006;
const EPHEMERAL: u16 = 40_000;
const DYNAMIC: [u16; 4] = [33_011, 41_207, 47_650, 59_020];
/// Programs of a kernel that shows nothing of connected UDP sockets.
const LENGTHLESS: [&str; 10] = [
    "observe_tcp",
    "observe_sendmsg4",
    "observe_sendmsg6",
    "observe_recvmsg4",
    "observe_recvmsg6",
    "observe_cgroups",
    "observe_close",
    "list_open",
    "adopt_sockets",
    "adopt_connections",
];
/// How many worlds are made, unless `PROPTEST_CASES` says it; each is tried with every cause.
const WORLDS: u32 = 24;
