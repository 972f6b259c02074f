//! What a generated policy must be, case by case: the behaviour that users of policy advisors rely on, and what those
//! get wrong.

use schemas::{
    health::HealthRecord,
    inventory::ObjectKind,
    table::{Port, TimestampMs},
};

use crate::support::{Capture, DB, START_MS, WEB, limits, lines, tcp, web_and_db};

const WEB_2: &str = "10.244.0.12";
const OTHER: &str = "10.244.0.31";

#[test]
fn an_accepted_connection_is_ingress_at_the_server_and_egress_at_the_client() {
    let report = web_and_db().report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    assert_eq!(report.selector("demo/db-network"), "app=db");
    assert!(report.yaml.contains("policyTypes:\n  - Ingress\n  - Egress\n"), "both directions are closed");
    assert_eq!(report.yaml.matches("---\n").count(), 1, "documents are separated");
}

#[test]
fn one_observed_end_is_enough_for_both_policies() {
    for keep_client in [true, false] {
        let mut capture = web_and_db();
        capture.flows.retain(|row| (&*row.observer == "client") == keep_client);
        capture.flows[0].seq = 0;
        // Either end was seen at something else, and the other row may be among what was lost.
        for pod in [WEB, DB] {
            let row = capture.dial(pod, "198.51.100.9", 443);
            (row.connections, row.closed, row.failed) = (0, 0, 1);
        }
        capture.health = vec![HealthRecord { seen: 1_000, lost_ring: 1, ..capture.clean_end() }];
        let report = capture.report();
        assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
        assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
        assert!(report.said.contains("1 communications (1 seen from one end only)"), "{}", report.said);
    }
}

#[test]
fn a_dialled_service_becomes_its_pods_and_their_port() {
    let mut capture = web_and_db();
    capture.flows.clear();
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"app":"db"}"#));
    capture.talk_through(WEB, ("10.96.0.5", 80), (DB, 5432));
    let report = capture.report();
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert!(!report.yaml.contains("10.96.0.5") && !report.yaml.contains("port: 80\n"), "{}", report.yaml);
}

#[test]
fn a_named_target_port_is_the_number_of_the_pods_port() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("demo/db", DB).ports = vec![Port { name: Some("sql".into()), ..tcp(15432, None) }];
    capture.service("demo/db", "10.96.0.5", 80, "sql", Some(r#"{"app":"db"}"#));
    capture.dial(WEB, "10.96.0.5", 80);
    assert_eq!(capture.report().allows("demo/web-network"), lines(["egress app=db 15432/TCP"]));
}

#[test]
fn a_service_over_two_workloads_is_egress_to_both_and_ingress_where_it_was_seen() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    for (workload, address) in [("demo/blue", DB), ("demo/green", OTHER)] {
        let (_, name) = workload.split_once('/').expect("a path");
        capture.pod(workload, address).labels = Some(format!(r#"{{"app":"{name}","tier":"db"}}"#).into());
    }
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"tier":"db"}"#));
    capture.talk_through(WEB, ("10.96.0.5", 80), (DB, 5432));
    let report = capture.report();
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=blue 5432/TCP", "egress app=green 5432/TCP"]));
    assert_eq!(report.allows("demo/blue-network"), lines(["ingress app=web 5432/TCP"]));
    assert!(!report.names().contains(&"demo/green-network".to_owned()), "nobody saw it answer: {:?}", report.names());
}

#[test]
fn a_service_without_selector_becomes_the_addresses_of_its_endpoints() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.service("default/kubernetes", "10.96.0.1", 443, "6443", None);
    let slice = capture.object(ObjectKind::EndpointSlice, Some("default"), "kubernetes");
    slice.owner_kind = Some("Service".into());
    slice.owner = Some("kubernetes".into());
    slice.addresses = vec!["192.0.2.1".into(), "198.51.100.9".into()];
    slice.ports = vec![tcp(6443, None)];
    capture.dial(WEB, "10.96.0.1", 443);
    let report = capture.report();
    let expected = lines(["egress 192.0.2.1/32 6443/TCP", "egress 198.51.100.9/32 6443/TCP"]);
    assert_eq!(report.allows("demo/web-network"), expected);
    assert!(report.said.contains("allowed by the node's address, which may change"), "{}", report.said);
}

#[test]
fn a_service_without_endpoints_is_named_and_makes_no_rule_but_closes_nothing() {
    let mut capture = web_and_db();
    capture.service("demo/gone", "10.96.0.6", 80, "80", Some(r#"{"app":"gone"}"#));
    capture.dial(WEB, "10.96.0.6", 80);
    let report = capture.report();
    assert_eq!(limits(&report, "web-network"), ["Ingress"]);
    assert_eq!(report.blocks().len(), 0, "{}", report.yaml);
    assert!(report.said.contains("demo/web → 10.96.0.6 (no_endpoints) 80/TCP: left out"), "{}", report.said);
}

#[test]
fn replicas_and_rollouts_collapse_into_one_policy_and_one_peer() {
    let mut capture = web_and_db();
    capture.pod("demo/web", WEB_2);
    capture.talk(WEB_2, DB, 5432);
    capture.talk(WEB_2, DB, 5432);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert!(!report.yaml.contains("pod-template-hash"), "{}", report.yaml);
}

#[test]
fn a_peer_of_another_namespace_is_selected_with_its_namespace() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("data/db", DB);
    capture.talk(WEB, DB, 5432);
    let report = capture.report();
    assert_eq!(report.allows("demo/web-network"), lines(["egress [ns data] app=db 5432/TCP"]));
    assert_eq!(report.allows("data/db-network"), lines(["ingress [ns demo] app=web 5432/TCP"]));
}

#[test]
fn policies_are_written_for_the_wanted_namespaces_only() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("data/db", DB);
    capture.pod("else/other", OTHER);
    capture.talk(WEB, DB, 5432);
    capture.dial(OTHER, "198.51.100.7", 443);
    assert_eq!(capture.report_with(&["--namespaces", "demo"]).names(), ["demo/web-network"]);
    let both = capture.report_with(&["--namespaces", "demo,data"]);
    assert_eq!(both.names(), ["data/db-network", "demo/web-network"]);
    assert_eq!(both.allows("demo/web-network"), lines(["egress [ns data] app=db 5432/TCP"]));
    assert_eq!(capture.report().names().len(), 3);
}

#[test]
fn external_addresses_become_exact_blocks_of_both_families() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.dial(WEB, "198.51.100.7", 443);
    capture.dial(WEB, "2001:db8::7", 443);
    capture.accept(WEB, "203.0.113.9", 8080);
    let expected =
        lines(["egress 198.51.100.7/32 443/TCP", "egress 2001:db8::7/128 443/TCP", "ingress 203.0.113.9/32 8080/TCP"]);
    assert_eq!(capture.report().allows("demo/web-network"), expected);
}

#[test]
fn an_address_of_the_cluster_that_nobody_had_is_reported_and_never_becomes_a_block() {
    let mut capture = web_and_db();
    capture.dial(WEB, "10.244.7.7", 443);
    let report = capture.report();
    assert_eq!(limits(&report, "web-network"), ["Ingress"]);
    assert_eq!(report.blocks().len(), 0, "{}", report.yaml);
    assert!(report.said.contains("demo/web → 10.244.7.7 (no_owner) 443/TCP: left out"), "{}", report.said);
}

#[test]
fn loopback_and_a_pods_talk_with_itself_make_no_rule() {
    let mut capture = web_and_db();
    for address in ["127.0.0.1", "::1"] {
        let row = capture.dial(WEB, address, 9000);
        row.source_address = address.into();
    }
    capture.talk(WEB, WEB, 9001);
    assert_eq!(capture.report().allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    // Nor where pods have no UID, as on hosts without Kubernetes: the exporter then writes their name.
    capture.inventory.iter_mut().for_each(|record| record.uid = None);
    for row in &mut capture.flows {
        row.source_pod_uid = row.source_pod.as_ref().map(|name| format!("demo/{name}").into());
        row.destination_pod_uid = row.destination_pod.as_ref().map(|name| format!("demo/{name}").into());
    }
    assert_eq!(capture.report().allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
}

#[test]
fn a_probe_of_the_own_node_makes_no_rule_and_that_of_another_node_is_its_address() {
    let mut capture = web_and_db();
    capture.accept(DB, "192.0.2.1", 8080);
    let other = capture.object(ObjectKind::Node, None, "node-b");
    other.addresses = vec!["192.0.2.2".into()];
    capture.accept(DB, "192.0.2.2", 8081);
    let expected = lines(["ingress app=web 5432/TCP", "ingress 192.0.2.2/32 8081/TCP"]);
    assert_eq!(capture.report().allows("demo/db-network"), expected);
}

#[test]
fn the_own_node_is_known_through_a_service_and_by_an_address_that_only_it_knows() {
    let mut capture = web_and_db();
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"app":"db"}"#));
    // The node dials a Service, and a pod from an address of its bridge, which no inventory has.
    for (from, to, port) in [("192.0.2.1", "10.96.0.5", 80), ("10.244.0.1", DB, 5432)] {
        let row = capture.row("client", from, to, port);
        (row.source_kind, row.source_node) = ("node".into(), Some("node-a".into()));
        capture.accept(DB, from, 5432);
    }
    let report = capture.report();
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert_eq!(report.said.lines().count(), 4, "no DNS, learning, completeness, and what it came to: {}", report.said);
}

#[test]
fn a_host_network_pod_is_no_subject_and_is_allowed_by_its_nodes_address() {
    let mut capture = Capture::new();
    capture.pod("demo/db", DB);
    let agent = capture.pod("demo/agent", "192.0.2.1");
    agent.host_network = Some(true);
    let other = capture.object(ObjectKind::Node, None, "node-b");
    other.addresses = vec!["192.0.2.2".into()];
    capture.pod("demo/agent", "192.0.2.2").host_network = Some(true);
    let pod = capture.inventory.last_mut().expect("the agent's pod");
    pod.object_node = Some("node-b".into());
    let row = capture.dial("192.0.2.2", DB, 5432);
    row.node = "node-b".into();
    capture.accept(DB, "192.0.2.2", 5432);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network"]);
    assert_eq!(report.allows("demo/db-network"), lines(["ingress 192.0.2.2/32 5432/TCP"]));
}

#[test]
fn several_ports_of_a_peer_and_several_peers_of_a_port_share_rules() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("demo/api", WEB_2);
    capture.pod("demo/db", DB);
    for (client, port) in [(WEB, 5432), (WEB, 9187), (WEB_2, 5432), (WEB_2, 9187)] {
        capture.talk(client, DB, port);
    }
    let report = capture.report();
    let expected = lines([
        "ingress app=api 5432/TCP",
        "ingress app=api 9187/TCP",
        "ingress app=web 5432/TCP",
        "ingress app=web 9187/TCP",
    ]);
    assert_eq!(report.allows("demo/db-network"), expected);
    assert_eq!(report.rules("demo/db-network", "ingress"), 1, "{}", report.yaml);
    assert_eq!(report.rules("demo/web-network", "egress"), 1, "{}", report.yaml);
}

#[test]
fn the_protocol_is_part_of_the_port() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("kube-system/dns", DB);
    capture.talk(WEB, DB, 53);
    capture.talk(WEB, DB, 53);
    capture.flows[2..].iter_mut().for_each(|row| row.transport = "udp".into());
    let expected = lines(["egress [ns kube-system] app=dns 53/TCP", "egress [ns kube-system] app=dns 53/UDP"]);
    assert_eq!(capture.report().allows("demo/web-network"), expected);
}

#[test]
fn what_never_succeeded_makes_no_rule_and_is_listed_by_who_tried() {
    let mut capture = web_and_db();
    for (port, failure) in [(22, "refused"), (23, "timeout")] {
        let row = capture.dial(WEB, DB, port);
        (row.connections, row.closed, row.failed, row.failure) = (0, 0, 4, Some(failure.into()));
    }
    let report = capture.report();
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    let tried = "demo/web: left out, never established: demo/db 22/TCP (4 × refused), demo/db 23/TCP (4 × timeout)\n";
    assert!(report.said.contains(tried), "{}", report.said);
}

#[test]
fn a_scan_is_one_line() {
    let mut capture = web_and_db();
    for last in 0..200 {
        let row = capture.dial(WEB, &format!("198.51.100.{last}"), 22);
        (row.connections, row.closed, row.failed, row.failure) = (0, 0, 1, Some("timeout".into()));
    }
    let report = capture.report();
    assert_eq!(report.said.lines().count(), 5, "{}", report.said);
    assert!(report.said.contains("(1 × timeout) and 195 more (flowscribe sql: failed_attempts)\n"), "{}", report.said);
}

#[test]
fn a_connection_that_is_only_open_makes_a_rule() {
    let mut capture = web_and_db();
    for row in &mut capture.flows {
        (row.connections, row.closed, row.active) = (0, 0, 1);
    }
    assert_eq!(capture.report().allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
}

#[test]
fn topology_and_replica_labels_are_not_selected_by() {
    let mut capture = Capture::new();
    let volatile = r#"{"app":"db","controller-revision-hash":"db-5","statefulset.kubernetes.io/pod-name":"db-0",
        "apps.kubernetes.io/pod-index":"0","topology.kubernetes.io/zone":"z1"}"#;
    capture.pod("demo/web", WEB);
    let pod = capture.bare_pod("demo/db-0", DB, volatile);
    (pod.owner_kind, pod.owner) = (Some("StatefulSet".into()), Some("db".into()));
    capture.talk(WEB, DB, 5432);
    let report = capture.report();
    assert_eq!(report.selector("demo/db-network"), "app=db");
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
}

#[test]
fn the_owners_own_selector_is_used_with_its_expressions() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.workload(
        "StatefulSet",
        "demo/db",
        r#"{"matchLabels":{"app":"db"},"matchExpressions":[{"key":"tier","operator":"In","values":["b","a"]}]}"#,
    );
    let pod = capture.bare_pod("demo/db-0", DB, r#"{"app":"db","tier":"a","extra":"x"}"#);
    (pod.owner_kind, pod.owner) = (Some("StatefulSet".into()), Some("db".into()));
    capture.talk(WEB, DB, 5432);
    let report = capture.report();
    assert_eq!(report.selector("demo/db-network"), "app=db,tier In a|b");
    assert!(!report.said.contains("its selector"), "{}", report.said);
}

#[test]
fn the_pods_of_a_cron_jobs_runs_share_a_policy_by_what_they_have_in_common() {
    let mut capture = Capture::new();
    capture.pod("demo/db", DB);
    for (run, address) in [("1", WEB), ("2", WEB_2)] {
        let labels =
            format!(r#"{{"app":"backup","job-name":"backup-{run}","batch.kubernetes.io/controller-uid":"u{run}"}}"#);
        let pod = capture.bare_pod(&format!("demo/backup-{run}"), address, &labels);
        (pod.owner_kind, pod.owner) = (Some("CronJob".into()), Some("backup".into()));
        capture.talk(address, DB, 5432);
    }
    let report = capture.report();
    assert_eq!(report.names(), ["demo/backup-network", "demo/db-network"]);
    assert_eq!(report.selector("demo/backup-network"), "app=backup");
}

#[test]
fn pods_without_usable_labels_get_no_policy_and_are_listed_on_both_sides() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.bare_pod("demo/naked", DB, "{}");
    capture.talk(WEB, DB, 5432);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/web-network"]);
    assert_eq!(report.allows("demo/web-network"), lines([]));
    assert!(
        report.yaml.contains("policyTypes:\n  - Ingress\n") && !report.yaml.contains("- Egress"),
        "{}",
        report.yaml
    );
    assert!(report.said.contains("demo/naked: no policy, its pods have no usable labels"), "{}", report.said);
    let withheld = "demo/web: egress withheld and left open, demo/naked has no usable labels to select it by";
    assert!(report.said.contains(withheld), "{}", report.said);
}

#[test]
fn a_selector_that_takes_in_another_workload_is_named() {
    let mut capture = web_and_db();
    capture.bare_pod("demo/web-canary", OTHER, r#"{"app":"web"}"#);
    let report = capture.report();
    assert!(report.said.contains("demo/web: its selector also selects pods of demo/web-canary"), "{}", report.said);
}

#[test]
fn a_peers_selector_is_judged_too() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("data/db", DB);
    capture.bare_pod("data/late", OTHER, r#"{"app":"db"}"#);
    capture.talk(WEB, DB, 5432);
    let report = capture.report_with(&["--namespaces", "demo"]);
    assert!(report.said.contains("data/db: its selector also selects pods of data/late"), "{}", report.said);
}

#[test]
fn a_selector_that_misses_one_of_its_own_pods_is_named() {
    let mut capture = web_and_db();
    let pod = capture.bare_pod("demo/web-odd", OTHER, r#"{"app":"odd"}"#);
    (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some("web".into()));
    let report = capture.report();
    assert!(report.said.contains("demo/web: its selector does not select its pod web-odd"), "{}", report.said);
}

#[test]
fn a_workload_without_traffic_that_makes_a_rule_gets_no_policy_and_is_listed() {
    let mut capture = web_and_db();
    capture.pod("demo/idle", OTHER);
    capture.pod("demo/probed", WEB_2);
    capture.accept(WEB_2, "192.0.2.1", 8080);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    for workload in ["idle", "probed"] {
        let listed = format!("demo/{workload}: no policy, no traffic that makes a rule was observed");
        assert!(report.said.contains(&listed), "{}", report.said);
    }
}

#[test]
fn a_namespace_that_nobody_knows_is_named() {
    let report = web_and_db().report_with(&["--namespaces", "demo, dmeo,"]);
    assert_eq!(report.names().len(), 2);
    assert!(report.said.contains("namespace dmeo: no pod of it is known"), "{}", report.said);
}

#[test]
fn the_ports_of_services_are_allowed_too_where_that_is_wanted() {
    let mut capture = web_and_db();
    capture.flows.clear();
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"app":"db"}"#));
    capture.talk_through(WEB, ("10.96.0.5", 80), (DB, 5432));
    let report = capture.report_with(&["--service-ports"]);
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP", "egress app=db 80/TCP"]));
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]), "the server has its own port");
}

#[test]
fn names_are_unique_dns_labels() {
    let mut capture = Capture::new();
    capture.pod("demo/db", DB);
    let long = "a".repeat(80);
    for (kind, name, address) in [
        ("Deployment", "web", WEB),
        ("StatefulSet", "web", WEB_2),
        ("Pod", "v1.web", "10.244.0.13"),
        ("Deployment", long.as_str(), "10.244.0.14"),
    ] {
        let pod = capture.bare_pod(
            &format!("demo/{kind}-{address}"),
            address,
            &format!(r#"{{"kind":"{kind}","n":"{address}"}}"#),
        );
        (pod.owner_kind, pod.owner) = (Some(kind.into()), Some(name.into()));
        capture.talk(address, DB, 5432);
    }
    let report = capture.report();
    let names = report.names();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(names.contains(&"demo/web-deployment-network".into()), "{names:?}");
    assert!(names.contains(&"demo/web-statefulset-network".into()), "{names:?}");
    for name in &names {
        let label = &name["demo/".len()..];
        let valid = label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(valid && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-'), "{label}");
    }
    assert_eq!(report.names(), capture.report().names(), "the same every time");
}

#[test]
fn an_odd_row_is_left_out_and_the_rest_comes_out() {
    let mut capture = web_and_db();
    capture.dial(WEB, "not an address", 1);
    let row = capture.dial(WEB, "198.51.100.7", 443);
    row.source_workload = None;
    row.source_pod_uid = Some("nobody".into());
    let report = capture.report();
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    assert!(report.said.contains("left out, an end is not known"), "{}", report.said);
}

#[test]
fn a_later_run_does_not_change_who_was_who_in_an_earlier_one() {
    let first = web_and_db();
    // A day later the agent is back, and the two addresses are the other way round.
    let mut second = Capture::new();
    second.pod("demo/db", WEB);
    second.pod("demo/web", DB);
    let later = 24 * 3_600_000;
    for record in &mut second.inventory {
        (record.observed_at, record.run_id) = (TimestampMs(START_MS + later), "run-2".into());
    }
    let mut end = second.clean_end();
    (end.run_id, end.run_start) = ("run-2".into(), TimestampMs(START_MS + later));
    (end.window_start, end.window_end) = (end.run_start, TimestampMs(START_MS + later + 60_000));
    second.health.push(end);
    let (first, second) = (first.write(), second.write());
    let second = second.path().to_string_lossy().into_owned();
    let report = crate::support::report(first.path(), &["--input", &second, "--min-coverage", "0"]);
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    let gap = "node node-a was not watched for 23h 59m: from 2026-03-01T10:01:00Z to 2026-03-02T10:00:00Z (no news)";
    assert_eq!(report.said.lines().next(), Some(gap));
    assert_eq!(report.said.lines().count(), 5, "no DNS, learning, completeness, and what it came to: {}", report.said);
}

#[test]
fn an_address_names_its_owner_at_the_time_of_the_flow() {
    let mut capture = web_and_db();
    // db's address goes to cache a minute later, and web talks to that as well.
    let db = capture.inventory.iter().find(|r| &*r.kind == "Pod" && &*r.name == "db-10.244.0.21").expect("it").clone();
    let mut gone = db;
    (gone.event, gone.observed_at, gone.seq) = ("delete".into(), TimestampMs(START_MS + 60_000), 100);
    capture.inventory.push(gone);
    capture.pod("demo/cache", DB);
    let count = capture.inventory.len();
    for (offset, record) in capture.inventory[count - 2..].iter_mut().enumerate() {
        (record.event, record.observed_at) = ("upsert".into(), TimestampMs(START_MS + 70_000));
        record.seq = 101 + offset as i64;
    }
    capture.dial(WEB, DB, 6379);
    let row = capture.flows.last_mut().expect("the row");
    (row.window_start, row.window_end) = (TimestampMs(START_MS + 60_000), TimestampMs(START_MS + 120_000));
    (row.first_seen, row.last_seen) = (TimestampMs(START_MS + 90_000), TimestampMs(START_MS + 91_000));
    let expected = lines(["egress app=cache 6379/TCP", "egress app=db 5432/TCP"]);
    assert_eq!(capture.report().allows("demo/web-network"), expected);
}

#[test]
fn who_asks_names_may_ask_over_both_transports_and_who_does_not_is_named() {
    let mut capture = web_and_db();
    let report = capture.report();
    assert!(report.said.contains("demo/web: sends, but was not seen to ask any DNS"), "{}", report.said);
    let dns = "10.244.0.53";
    capture.pod("kube-system/coredns", dns);
    capture.dial(WEB, dns, 53).transport = "udp".into();
    capture.accept(dns, WEB, 53).transport = "udp".into();
    let report = capture.report();
    assert!(!report.said.contains("any DNS"), "{}", report.said);
    let web = report.allows("demo/web-network");
    assert!(
        web.iter().any(|line| line.contains("53/UDP")) && web.iter().any(|line| line.contains("53/TCP")),
        "{web:?}"
    );
    assert_eq!(web.len(), 3, "and the database: {web:?}");
    assert_eq!(report.allows("kube-system/coredns-network").len(), 2, "both at the other end too");
}
