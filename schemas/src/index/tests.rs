//! The index against the questions that peers answer wrongly.

use proptest::prelude::*;

use super::*;
use crate::{inventory::InventoryEvent, table::Port};

const POD_A: &str = "10.0.0.1";

#[derive(Default)]
struct Log {
    records: Vec<InventoryRecord>,
    heard: Vec<Heard>,
}

impl Log {
    fn say(&mut self, time: i64, event: InventoryEvent, record: InventoryRecord) -> &mut Self {
        let record = InventoryRecord {
            node: "node-a".into(),
            run_id: "run".into(),
            seq: self.records.len() as i64,
            observed_at: TimestampMs(time),
            event: event.into(),
            ..record
        };
        self.records.push(record);
        self
    }

    fn index(&self, tolerance_ms: i64) -> Index {
        Index::from_log(self.records.clone(), self.heard.clone(), tolerance_ms)
    }
}

fn pod(name: &str, address: &str, labels: &str) -> InventoryRecord {
    InventoryRecord {
        kind: ObjectKind::Pod.into(),
        namespace: Some("demo".into()),
        name: name.into(),
        uid: Some(format!("uid-{name}").into()),
        addresses: vec![address.into()],
        labels: Some(labels.into()),
        phase: Some("Running".into()),
        ..InventoryRecord::default()
    }
}

fn service(address: &str, selector: Option<&str>, ports: Vec<Port>) -> InventoryRecord {
    InventoryRecord {
        kind: ObjectKind::Service.into(),
        namespace: Some("demo".into()),
        name: "web".into(),
        addresses: vec![address.into()],
        selector: selector.map(Into::into),
        ports,
        ..InventoryRecord::default()
    }
}

fn port(port: u16, target: Option<&str>, name: Option<&str>) -> Port {
    Port { name: name.map(Into::into), protocol: "tcp".into(), port, target: target.map(Into::into), node_port: None }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a test address")
}

fn at(time: i64) -> Span {
    Span::at(TimestampMs(time))
}

fn name<'a>(owner: Owner<'a>) -> &'a str {
    match owner {
        Owner::Pod(record) | Owner::Node(record) | Owner::Service(record) => &record.name,
        Owner::External => "external",
        Owner::Unknown(reason) => reason.as_str(),
    }
}

#[test]
fn a_reused_address_names_its_owner_of_that_time_or_nobody() {
    let mut log = Log::default();
    log.say(1_000, InventoryEvent::Snapshot, pod("a", POD_A, "{}"));
    log.say(5_000, InventoryEvent::Delete, pod("a", POD_A, "{}"));
    log.say(6_000, InventoryEvent::Upsert, pod("b", POD_A, "{}"));
    let index = log.index(0);
    assert_eq!(name(index.resolve(ip(POD_A), at(999))), "no_inventory", "nobody watched before the first snapshot");
    assert_eq!(name(index.resolve(ip(POD_A), at(1_000))), "a");
    assert_eq!(name(index.resolve(ip(POD_A), at(5_000))), "a");
    assert_eq!(name(index.resolve(ip(POD_A), at(5_500))), "no_owner");
    assert_eq!(name(index.resolve(ip(POD_A), at(6_000))), "b");
    let both = Span { from: TimestampMs(4_000), to: TimestampMs(7_000) };
    assert_eq!(name(index.resolve(ip(POD_A), both)), "ambiguous");
    assert_eq!(name(log.index(600).resolve(ip(POD_A), at(5_300))), "a", "within the clocks' tolerance of one");
    assert_eq!(name(log.index(600).resolve(ip(POD_A), at(5_500))), "ambiguous", "within the tolerance of both");
}

#[test]
fn a_completed_pod_gives_up_its_address() {
    let mut log = Log::default();
    log.say(1_000, InventoryEvent::Snapshot, pod("job", POD_A, "{}"));
    log.say(
        2_000,
        InventoryEvent::Upsert,
        InventoryRecord { phase: Some("Succeeded".into()), ..pod("job", POD_A, "{}") },
    );
    log.say(3_000, InventoryEvent::Upsert, pod("next", POD_A, "{}"));
    let index = log.index(0);
    assert_eq!(name(index.resolve(ip(POD_A), at(1_500))), "job");
    assert_eq!(name(index.resolve(ip(POD_A), at(3_500))), "next");
}

#[test]
fn what_a_later_snapshot_does_not_name_is_gone() {
    let mut log = Log::default();
    log.say(1_000, InventoryEvent::Snapshot, pod("a", POD_A, "{}"));
    log.say(1_000, InventoryEvent::Snapshot, pod("other", "10.0.0.9", "{}"));
    // The writer was away and comes back: a's address has moved to b in between.
    log.say(9_000, InventoryEvent::Snapshot, pod("b", POD_A, "{}"));
    log.say(9_000, InventoryEvent::Snapshot, pod("other", "10.0.0.9", "{}"));
    let index = log.index(0);
    assert_eq!(name(index.resolve(ip(POD_A), at(5_000))), "ambiguous", "nobody watched when it moved");
    assert_eq!(name(index.resolve(ip(POD_A), at(9_001))), "b");
    assert_eq!(name(index.resolve(ip("10.0.0.9"), at(5_000))), "other");
    // Its health tells how long the writer watched: until then, nothing had moved.
    log.heard = vec![Heard { time: TimestampMs(4_000), writer: "node-a".into(), run_id: "run".into() }];
    let index = log.index(0);
    assert_eq!(name(index.resolve(ip(POD_A), at(3_999))), "a");
    assert_eq!(name(index.resolve(ip(POD_A), at(5_000))), "ambiguous");
    assert_eq!(name(index.resolve(ip(POD_A), at(9_001))), "b");
}

#[test]
fn workloads_of_two_kinds_may_share_a_name() {
    let mut log = Log::default();
    for kind in ["Deployment", "StatefulSet"] {
        let selector = format!(r#"{{"matchLabels":{{"kind":"{kind}"}}}}"#);
        log.say(
            0,
            InventoryEvent::Snapshot,
            InventoryRecord {
                kind: ObjectKind::Workload.into(),
                name: "web".into(),
                workload_kind: Some(kind.into()),
                selector: Some(selector.into()),
                ..InventoryRecord::default()
            },
        );
    }
    assert_eq!(log.index(0).latest(ObjectKind::Workload).count(), 2);
}

#[test]
fn a_backend_learned_a_moment_late_is_found_within_the_tolerance_and_an_ended_one_never() {
    let mut log = Log::default();
    let labels = r#"{"app":"web"}"#;
    log.say(0, InventoryEvent::Snapshot, service("10.96.0.1", Some(labels), vec![port(80, None, None)]));
    log.say(1_000, InventoryEvent::Upsert, pod("late", POD_A, labels));
    log.say(
        1_000,
        InventoryEvent::Upsert,
        InventoryRecord { phase: Some("Succeeded".into()), ..pod("over", "10.0.0.2", labels) },
    );
    let backends = |tolerance_ms, time| -> Vec<String> {
        let index = log.index(tolerance_ms);
        let Owner::Service(web) = index.resolve(ip("10.96.0.1"), at(time)) else { panic!("the service's") };
        index.backends(web, "tcp", 80, at(time)).iter().map(|backend| name(backend.owner).to_owned()).collect()
    };
    assert_eq!(backends(0, 900), Vec::<String>::new());
    assert_eq!(backends(200, 900), ["late"]);
    assert_eq!(backends(0, 2_000), ["late"]);
}

#[test]
fn external_is_only_what_lies_outside_every_range_while_there_was_an_inventory() {
    let mut log = Log::default();
    let node = InventoryRecord {
        kind: ObjectKind::Node.into(),
        name: "node-a".into(),
        addresses: vec!["192.0.2.1".into()],
        cidrs: vec!["10.0.0.0/8".into(), "fd00::/64".into()],
        ..InventoryRecord::default()
    };
    log.say(1_000, InventoryEvent::Snapshot, node);
    let index = log.index(100);
    assert_eq!(name(index.resolve(ip("198.51.100.7"), at(2_000))), "external");
    assert_eq!(name(index.resolve(ip("198.51.100.7"), at(500))), "no_inventory");
    assert_eq!(name(index.resolve(ip("10.1.2.3"), at(2_000))), "no_owner");
    assert_eq!(name(index.resolve(ip("fd00::5"), at(2_000))), "no_owner");
    assert_eq!(name(index.resolve(ip("::ffff:192.0.2.1"), at(2_000))), "node-a", "mapped addresses are IPv4");
    assert_eq!(name(Index::new(0).resolve(ip("198.51.100.7"), at(0))), "no_inventory");
}

#[test]
fn host_network_pods_do_not_own_their_nodes_address() {
    let mut log = Log::default();
    log.say(
        0,
        InventoryEvent::Snapshot,
        InventoryRecord { host_network: Some(true), ..pod("proxy", "192.0.2.1", "{}") },
    );
    log.say(
        0,
        InventoryEvent::Snapshot,
        InventoryRecord {
            kind: ObjectKind::Node.into(),
            name: "node-a".into(),
            addresses: vec!["192.0.2.1".into()],
            ..InventoryRecord::default()
        },
    );
    assert_eq!(name(log.index(0).resolve(ip("192.0.2.1"), at(1))), "node-a");
}

#[test]
fn a_service_leads_to_the_target_ports_of_the_pods_it_selects() {
    let mut log = Log::default();
    let named = Port { port: 9090, ..port(9090, None, Some("admin")) };
    log.say(0, InventoryEvent::Snapshot, InventoryRecord { ports: vec![named], ..pod("a", POD_A, r#"{"app":"web"}"#) });
    log.say(0, InventoryEvent::Snapshot, pod("b", "10.0.0.2", r#"{"app":"web","tier":"x"}"#));
    log.say(0, InventoryEvent::Snapshot, pod("c", "10.0.0.3", r#"{"app":"other"}"#));
    let ports =
        vec![port(80, Some("8080"), Some("http")), port(90, Some("admin"), Some("admin")), port(70, None, None)];
    log.say(0, InventoryEvent::Snapshot, service("10.96.0.1", Some(r#"{"app":"web"}"#), ports));
    let index = log.index(0);
    let Owner::Service(web) = index.resolve(ip("10.96.0.1"), at(1)) else { panic!("the address is the service's") };
    let backends = |port| -> Vec<(String, u16)> {
        let backends = index.backends(web, "tcp", port, at(1));
        backends.iter().map(|backend| (name(backend.owner).to_owned(), backend.port)).collect()
    };
    assert_eq!(backends(80), [("a".into(), 8080), ("b".into(), 8080)]);
    assert_eq!(backends(90), [("a".into(), 9090)], "only a has a port of that name");
    assert_eq!(backends(70), [("a".into(), 70), ("b".into(), 70)]);
    assert_eq!(backends(81), [], "not a port of the service");
    assert!(index.backends(web, "udp", 80, at(1)).is_empty(), "the protocol is part of the port");
}

#[test]
fn endpoint_slices_tell_the_backends_of_their_time() {
    let mut log = Log::default();
    let slice = |address: &str| InventoryRecord {
        kind: ObjectKind::EndpointSlice.into(),
        namespace: Some("demo".into()),
        name: "web-x".into(),
        owner_kind: Some(ObjectKind::Service.into()),
        owner: Some("web".into()),
        addresses: vec![address.into()],
        ports: vec![port(6443, None, Some("https"))],
        ..InventoryRecord::default()
    };
    log.say(0, InventoryEvent::Snapshot, service("10.96.0.1", None, vec![port(443, None, Some("https"))]));
    log.say(0, InventoryEvent::Snapshot, slice("198.51.100.1"));
    log.say(1_000, InventoryEvent::Upsert, slice("198.51.100.2"));
    let index = log.index(0);
    let Owner::Service(web) = index.resolve(ip("10.96.0.1"), at(1)) else { panic!("the address is the service's") };
    let addresses = |span| -> Vec<String> {
        index.backends(web, "tcp", 443, span).iter().map(|b| format!("{}:{}", b.address, b.port)).collect()
    };
    assert_eq!(addresses(at(500)), ["198.51.100.1:6443"]);
    assert_eq!(addresses(at(1_000)), ["198.51.100.2:6443"]);
    let both = Span { from: TimestampMs(500), to: TimestampMs(1_500) };
    assert_eq!(addresses(both), ["198.51.100.1:6443", "198.51.100.2:6443"]);
    // A named port has another number in each slice; a slice of another Service is none of its.
    let more = |name: &str, of: &str, address: &str, number| InventoryRecord {
        name: name.into(),
        owner: Some(of.into()),
        ports: vec![port(number, None, Some("https")), port(9_000, None, Some("other"))],
        ..slice(address)
    };
    log.say(2_000, InventoryEvent::Upsert, more("web-y", "web", "198.51.100.3", 8443));
    log.say(2_000, InventoryEvent::Upsert, more("api-z", "api", "198.51.100.4", 8443));
    log.say(3_000, InventoryEvent::Delete, slice("198.51.100.2"));
    let index = log.index(0);
    let Owner::Service(web) = index.resolve(ip("10.96.0.1"), at(1)) else { panic!("the address is the service's") };
    let addresses = |span| -> Vec<String> {
        index.backends(web, "tcp", 443, span).iter().map(|b| format!("{}:{}", b.address, b.port)).collect()
    };
    assert_eq!(addresses(at(2_500)), ["198.51.100.2:6443", "198.51.100.3:8443"]);
    assert_eq!(addresses(at(3_001)), ["198.51.100.3:8443"]);
}

#[test]
fn a_pod_that_two_writers_tell_of_ends_when_neither_names_it_or_one_tells_its_end() {
    let by = |writer: &str, record| InventoryRecord { node: writer.into(), run_id: writer.into(), ..record };
    let mut index = Index::new(0);
    let mut say = |time, event: InventoryEvent, writer, record| {
        index.apply(by(writer, InventoryRecord { observed_at: TimestampMs(time), event: event.into(), ..record }));
        name(index.resolve(ip(POD_A), at(time))).to_owned()
    };
    assert_eq!(say(1_000, InventoryEvent::Snapshot, "agent", pod("a", POD_A, "{}")), "a");
    assert_eq!(say(2_000, InventoryEvent::Snapshot, "cluster", pod("a", POD_A, "{}")), "a");
    // The agent comes back and does not name it; the other writer goes on to.
    say(3_000, InventoryEvent::Snapshot, "agent", pod("other", "10.0.0.9", "{}"));
    assert_eq!(say(4_000, InventoryEvent::Upsert, "agent", pod("more", "10.0.0.8", "{}")), "a");
    say(5_000, InventoryEvent::Snapshot, "cluster", pod("other", "10.0.0.9", "{}"));
    say(6_000, InventoryEvent::Upsert, "cluster", pod("more", "10.0.0.8", "{}"));
    assert_eq!(name(index.resolve(ip(POD_A), at(6_000))), "no_owner", "nobody names it any more");
    assert_eq!(name(index.resolve(ip(POD_A), at(4_999))), "a");
}

#[test]
fn a_writer_that_knows_less_than_before_ends_nothing_that_it_may_not_see() {
    let mut log = Log::default();
    let node = || InventoryRecord {
        kind: ObjectKind::Node.into(),
        name: "n".into(),
        addresses: vec!["192.0.2.1".into()],
        ..InventoryRecord::default()
    };
    log.say(0, InventoryEvent::Snapshot, pod("a", POD_A, "{}"));
    log.say(0, InventoryEvent::Snapshot, node());
    log.say(1_000, InventoryEvent::Snapshot, InventoryRecord { scope: Scope::Part.into(), ..node() });
    log.say(
        2_000,
        InventoryEvent::Upsert,
        InventoryRecord { scope: Scope::Part.into(), zone: Some("z".into()), ..node() },
    );
    let index = log.index(0);
    assert_eq!(name(index.resolve(ip(POD_A), at(2_000))), "a", "it may not see pods any more");
    assert_eq!(name(index.resolve(ip("198.51.100.7"), at(900))), "external");
    assert_eq!(name(index.resolve(ip("198.51.100.7"), at(2_000))), "no_inventory");
}

#[test]
fn what_only_a_dead_agent_told_of_ends_with_the_next_full_snapshot() {
    let by = |writer: &str, record| InventoryRecord { node: writer.into(), run_id: writer.into(), ..record };
    let mut index = Index::new(0);
    let mut say = |time, writer: &str, scope: Scope, record| {
        let record = InventoryRecord {
            observed_at: TimestampMs(time),
            event: InventoryEvent::Snapshot.into(),
            scope: scope.into(),
            ..record
        };
        index.apply(by(writer, record));
    };
    say(0, "agent", Scope::Part, pod("a", POD_A, "{}"));
    say(500_000, "cluster", Scope::Cluster, pod("other", "10.0.0.9", "{}"));
    say(1_200_000, "cluster", Scope::Cluster, pod("other", "10.0.0.9", "{}"));
    index.settle();
    assert_eq!(name(index.resolve(ip(POD_A), at(600_000))), "a", "the agent was heard of late");
    assert_eq!(name(index.resolve(ip(POD_A), at(1_300_000))), "no_owner");
}

#[test]
fn only_who_knows_the_whole_cluster_can_say_that_an_address_is_outside() {
    let mut log = Log::default();
    log.say(0, InventoryEvent::Snapshot, InventoryRecord { scope: Scope::Part.into(), ..pod("a", POD_A, "{}") });
    assert_eq!(name(log.index(0).resolve(ip("198.51.100.7"), at(1))), "no_inventory");
    log.say(1_000, InventoryEvent::Snapshot, InventoryRecord { scope: "cluster".into(), ..pod("a", POD_A, "{}") });
    assert_eq!(name(log.index(0).resolve(ip("198.51.100.7"), at(999))), "no_inventory");
    assert_eq!(name(log.index(0).resolve(ip("198.51.100.7"), at(1_000))), "external");
    assert_eq!(
        name(log.index(0).resolve(ip("198.51.100.7"), at(99_000_000))),
        "no_inventory",
        "long after it was heard"
    );
}

#[test]
fn a_service_is_dialled_by_address_and_port_whoever_else_has_the_address() {
    let mut log = Log::default();
    let node = InventoryRecord {
        kind: ObjectKind::Node.into(),
        name: "node-a".into(),
        addresses: vec!["192.0.2.1".into()],
        ..InventoryRecord::default()
    };
    log.say(0, InventoryEvent::Snapshot, node);
    let of = |name: &str, ports| InventoryRecord { name: name.into(), ..service("192.0.2.50", None, ports) };
    let exposed = Port { node_port: Some(30_080), ..port(80, Some("8080"), None) };
    // Two load balancers share an address, and one Service has the node's as an external address.
    log.say(0, InventoryEvent::Snapshot, of("web", vec![exposed]));
    log.say(0, InventoryEvent::Snapshot, of("mail", vec![port(25, None, None)]));
    log.say(
        0,
        InventoryEvent::Snapshot,
        InventoryRecord { addresses: vec!["192.0.2.1".into()], ..of("ext", vec![port(443, None, None)]) },
    );
    let index = log.index(0);
    let dialled = |address: &str, port| name(index.dialled(ip(address), "tcp", port, at(1))).to_owned();
    assert_eq!((dialled("192.0.2.50", 80), dialled("192.0.2.50", 25)), ("web".into(), "mail".into()));
    assert_eq!(dialled("192.0.2.50", 26), "ambiguous", "neither has the port");
    assert_eq!((dialled("192.0.2.1", 443), dialled("192.0.2.1", 22)), ("ext".into(), "node-a".into()));
    assert_eq!(dialled("192.0.2.1", 30_080), "web", "by its port on the nodes");
    assert_eq!(name(index.dialled(ip("192.0.2.1"), "udp", 30_080, at(1))), "node-a");
    assert_eq!(name(index.resolve(ip("192.0.2.1"), at(1))), "node-a", "who dials is a node, not a Service");
}

#[test]
fn a_pod_is_of_its_top_owner_as_far_as_owners_are_known() {
    let owned = |kind: &str, name: &str, record: InventoryRecord| InventoryRecord {
        owner_kind: Some(kind.into()),
        owner: Some(name.into()),
        ..record
    };
    let workload = |kind: &str, name: &str| InventoryRecord {
        kind: ObjectKind::Workload.into(),
        namespace: Some("demo".into()),
        name: name.into(),
        workload_kind: Some(kind.into()),
        ..InventoryRecord::default()
    };
    let mut log = Log::default();
    log.say(0, InventoryEvent::Snapshot, owned("Deployment", "web", workload("ReplicaSet", "web-6d5f")));
    log.say(0, InventoryEvent::Snapshot, owned("CronJob", "nightly", workload("Job", "nightly-1")));
    log.say(0, InventoryEvent::Snapshot, workload("ReplicaSet", "bare-6d5f"));
    log.say(0, InventoryEvent::Snapshot, owned("ArgoCD", "argo", workload("Deployment", "argo-server")));
    log.say(
        0,
        InventoryEvent::Snapshot,
        owned("Deployment", "argo-server", workload("ReplicaSet", "argo-server-6d5f")),
    );
    log.say(0, InventoryEvent::Snapshot, owned("Job", "circle", workload("Job", "circle")));
    let index = log.index(0);
    let of = |kind: &str, name: &str, labels: &str| {
        let (kind, name) = index.workload_of(&owned(kind, name, pod("p", POD_A, labels)));
        format!("{kind}/{name}")
    };
    let hash = r#"{"pod-template-hash":"6d5f"}"#;
    assert_eq!(of("ReplicaSet", "web-6d5f", "{}"), "Deployment/web");
    assert_eq!(of("Job", "nightly-1", "{}"), "CronJob/nightly");
    assert_eq!(of("ReplicaSet", "bare-6d5f", hash), "ReplicaSet/bare-6d5f", "known to have no owner");
    assert_eq!(of("ReplicaSet", "gone-6d5f", hash), "Deployment/gone", "not known, but its hash tells");
    assert_eq!(of("ReplicaSet", "gone-6d5f", r#"{"rollouts-pod-template-hash":"6d5f"}"#), "Rollout/gone");
    assert_eq!(of("ReplicaSet", "gone-7777", hash), "ReplicaSet/gone-7777");
    assert_eq!(of("StrimziPodSet", "kafka", "{}"), "StrimziPodSet/kafka", "a controller of any kind");
    assert_eq!(of("ReplicaSet", "argo-server-6d5f", "{}"), "Deployment/argo-server", "whatever made the Deployment");
    assert_eq!(of("Job", "circle", "{}"), "Job/circle", "and nothing goes on for ever");
    assert_eq!(&*index.workload_of(&pod("p", POD_A, "{}")).0, "Pod");
}

#[test]
fn a_lease_begins_when_the_object_says_so_and_what_is_over_is_forgotten() {
    let mut log = Log::default();
    log.say(0, InventoryEvent::Snapshot, InventoryRecord { addresses: vec![], ..pod("a", POD_A, "{}") });
    log.say(
        5_000,
        InventoryEvent::Upsert,
        InventoryRecord { lease_start: Some(TimestampMs(3_000)), ..pod("a", POD_A, "{}") },
    );
    log.say(
        9_000,
        InventoryEvent::Upsert,
        InventoryRecord { labels: Some("{}".into()), ..pod("stays", "10.0.0.2", "{}") },
    );
    log.say(
        9_500,
        InventoryEvent::Delete,
        InventoryRecord { lease_end: Some(TimestampMs(8_000)), ..pod("a", POD_A, "{}") },
    );
    let mut index = log.index(0);
    assert_eq!(name(index.resolve(ip(POD_A), at(2_999))), "no_owner");
    assert_eq!(name(index.resolve(ip(POD_A), at(3_000))), "a", "before the news of it");
    assert_eq!(name(index.resolve(ip(POD_A), at(8_001))), "no_owner", "it ended before the news of that");
    index.forget(TimestampMs(8_000));
    assert!(index.pod("uid-a", TimestampMs(5_000)).is_some());
    index.forget(TimestampMs(10_000));
    assert!(index.pod("uid-a", TimestampMs(5_000)).is_none());
    assert_eq!(name(index.resolve(ip(POD_A), at(5_000))), "external", "as if it had never been");
    assert_eq!(name(index.resolve(ip("10.0.0.2"), at(9_000))), "stays");
    // Its place is taken by another object.
    index.apply(InventoryRecord {
        observed_at: TimestampMs(11_000),
        event: InventoryEvent::Upsert.into(),
        ..pod("b", POD_A, "{}")
    });
    assert_eq!(name(index.resolve(ip(POD_A), at(11_000))), "b");
}

proptest! {
    /// Whatever the order of appearing and disappearing, an answer is the one owner that the history allows.
    #[test]
    fn an_answer_is_never_a_wrong_owner(
        tenancies in prop::collection::vec((1_i64..50, 1_i64..50), 1..12),
        asked in 0_i64..1_000,
        length in 0_i64..60,
    ) {
        let mut log = Log::default();
        log.say(0, InventoryEvent::Snapshot, pod("resident", "10.0.0.99", "{}"));
        let (mut time, mut truth) = (0, Vec::new());
        for (number, (gap, stay)) in tenancies.into_iter().enumerate() {
            let tenant = format!("pod-{number}");
            let (start, end) = (time + gap, time + gap + stay);
            log.say(start, InventoryEvent::Upsert, pod(&tenant, POD_A, "{}"));
            log.say(end, InventoryEvent::Delete, pod(&tenant, POD_A, "{}"));
            truth.push((start, end, tenant));
            time = end;
        }
        let span = Span { from: TimestampMs(asked), to: TimestampMs(asked + length) };
        let holders: Vec<_> =
            truth.iter().filter(|(start, end, _)| *start <= asked + length && asked <= *end).collect();
        let index = log.index(0);
        let answer = name(index.resolve(ip(POD_A), span));
        match holders.as_slice() {
            [] => prop_assert_eq!(answer, "no_owner"),
            [(_, _, tenant)] => prop_assert_eq!(answer, tenant.as_str()),
            _ => prop_assert_eq!(answer, "ambiguous"),
        }
    }
}

proptest! {
    /// An answer is the same for every span within what it is said to hold for.
    #[test]
    fn an_answer_holds_for_as_long_as_it_says(
        tenancies in prop::collection::vec((0_i64..50, 1_i64..50), 1..12),
        asked in 0_i64..600,
        length in 0_i64..30,
        within in (0.0..=1.0_f64, 0.0..=1.0_f64),
        tolerance_ms in 0_i64..8,
    ) {
        let mut log = Log::default();
        log.say(0, InventoryEvent::Snapshot, service("10.96.0.1", Some(r#"{"app":"web"}"#), vec![port(80, Some("8080"), None)]));
        let mut time = 0;
        for (number, (gap, stay)) in tenancies.into_iter().enumerate() {
            let tenant = pod(&format!("pod-{number}"), POD_A, r#"{"app":"web"}"#);
            log.say(time + gap, InventoryEvent::Upsert, tenant.clone());
            log.say(time + gap + stay, InventoryEvent::Delete, tenant);
            time += gap + stay;
        }
        let index = log.index(tolerance_ms);
        let answers = |span: Span| {
            let holds = Holds::default();
            let owners: Vec<_> = [POD_A, "198.51.100.7"].map(|at| name(index.resolve_while(ip(at), span, &holds))).into();
            let dialled = index.dialled_while(ip("10.96.0.1"), "tcp", 80, span, &holds);
            let Owner::Service(service) = dialled else { return (owners, Vec::new(), holds.span()) };
            let backends = index.backends_while(service, "tcp", 80, span, &holds);
            let backends: Vec<_> = backends.into_iter().map(|b| (b.address, b.port, name(b.owner))).collect();
            (owners, backends, holds.span())
        };
        let span = Span { from: TimestampMs(asked), to: TimestampMs(asked + length) };
        let (owners, backends, holds) = answers(span);
        prop_assume!(holds.from <= holds.to);
        let (first, last) = (holds.from.0.max(-50), holds.to.0.min(700));
        prop_assume!(first <= last);
        let pick = |share: f64| first + ((last - first) as f64 * share) as i64;
        let (a, b) = (pick(within.0).min(pick(within.1)), pick(within.0).max(pick(within.1)));
        let other = answers(Span { from: TimestampMs(a), to: TimestampMs(b) });
        prop_assert_eq!((&owners, &backends), (&other.0, &other.1), "{:?} and {}..{}", span, a, b);
    }
}

proptest! {
    /// What is told later changes a fingerprint of a span, or no answer within it.
    #[test]
    fn with_the_same_fingerprint_answers_are_the_same(
        tenancies in prop::collection::vec((0_i64..50, 1_i64..50), 1..12),
        told in 0_usize..24,
        asked in 0_i64..600,
        length in 0_i64..30,
        within in (0.0..=1.0_f64, 0.0..=1.0_f64),
    ) {
        const TICK_MS: i64 = 100_000;
        let (mut log, mut before) = (Log::default(), Log::default());
        let service = service("10.96.0.1", Some(r#"{"app":"web"}"#), vec![port(80, Some("8080"), None)]);
        let (mut time, mut said, mut uids) = (0, 0, Vec::new());
        for log in [&mut log, &mut before] {
            log.say(0, InventoryEvent::Snapshot, service.clone());
        }
        for (number, (gap, stay)) in tenancies.into_iter().enumerate() {
            let tenant = pod(&format!("pod-{number}"), POD_A, r#"{"app":"web"}"#);
            uids.extend(tenant.uid.clone());
            for (at, event) in [(time + gap, InventoryEvent::Upsert), (time + gap + stay, InventoryEvent::Delete)] {
                log.say(at * TICK_MS, event, tenant.clone());
                if said < told {
                    before.say(at * TICK_MS, event, tenant.clone());
                }
                said += 1;
            }
            time += gap + stay;
        }
        let (index, before) = (log.index(2_000), before.index(2_000));
        let span = Span { from: TimestampMs(asked * TICK_MS), to: TimestampMs((asked + length) * TICK_MS) };
        let outside = "198.51.100.7";
        let fingerprint = |index: &Index| {
            Fingerprints::new(index).of(index, span, uids.iter().map(|uid| &**uid), [ip(outside)])
        };
        if told >= said {
            prop_assert_eq!(fingerprint(&index), fingerprint(&before), "nothing was told later");
        }
        if fingerprint(&index) != fingerprint(&before) {
            return Ok(());
        }
        let pick = |share: f64| span.from.0 + ((span.to.0 - span.from.0) as f64 * share) as i64;
        let (a, b) = (pick(within.0).min(pick(within.1)), pick(within.0).max(pick(within.1)));
        let answers = |index: &Index| {
            let span = Span { from: TimestampMs(a), to: TimestampMs(b) };
            let owners = [POD_A, outside].map(|at| name(index.resolve(ip(at), span)).to_owned());
            let pods: Vec<_> = uids.iter().map(|uid| index.pod(uid, span.to).map(|pod| Arc::clone(&pod.name))).collect();
            let Owner::Service(service) = index.dialled(ip("10.96.0.1"), "tcp", 80, span) else {
                return (owners, pods, Vec::new());
            };
            let backends = index.backends(service, "tcp", 80, span);
            (owners, pods, backends.into_iter().map(|b| (b.address, b.port, name(b.owner).to_owned())).collect())
        };
        prop_assert_eq!(answers(&index), answers(&before), "{}..{}", a, b);
    }
}
