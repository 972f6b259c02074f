//! What is left open because too little, or too much, is known; what is decided by flags; and what a policy says of itself.

use schemas::{flow::FlowRecord, inventory::ObjectKind, table::TimestampMs};

use crate::support::{Capture, DB, Report, START_MS, WEB, flowscribe, later, lines, tcp, web_and_db};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// `demo/web` talks to `demo/db` in every hour of some days that were watched throughout.
fn watched(days: i64) -> Capture {
    let mut capture = web_and_db();
    let rows = std::mem::take(&mut capture.flows);
    for hour in 0..days * 24 {
        for row in &rows {
            let mut row = row.clone();
            later(&mut row, hour * HOUR_MS);
            row.seq = capture.flows.len() as i64;
            capture.flows.push(row);
        }
    }
    watch(&mut capture, days * DAY_MS);
    capture
}

/// Has the capture's node watched for so long.
fn watch(capture: &mut Capture, time_ms: i64) {
    let mut end = capture.clean_end();
    end.window_end = TimestampMs(START_MS + time_ms);
    capture.health.push(end);
}

fn annotation(report: &Report, policy: &str, key: &str) -> Option<String> {
    let name = policy.split_once('/').expect("a path").1;
    let policy = report.policies.iter().find(|policy| policy["metadata"]["name"].as_str() == Some(name));
    let key = format!("flowscribe.io/{key}");
    policy.expect("it is there")["metadata"]["annotations"][key.as_str()].as_str().map(str::to_owned)
}

#[test]
fn a_policy_says_of_itself_what_changes_with_its_set_only() {
    let (five, six) = (watched(5).report(), watched(6).report());
    assert_eq!(five.yaml, six.yaml, "more of the same is the same");
    assert_eq!(annotation(&five, "demo/web-network", "status").as_deref(), Some("stable"));
    assert_eq!(annotation(&five, "demo/web-network", "since").as_deref(), Some("2026-03-01T10:00:00Z"));
    assert_eq!(annotation(&five, "demo/web-network", "schema-version").as_deref(), Some("1.0"));
    let digest = |report: &Report| annotation(report, "demo/web-network", "set-digest").expect("it has one");
    let mut more = watched(5);
    let before = more.flows.len();
    more.talk(WEB, DB, 9187);
    more.flows[before..].iter_mut().for_each(|row| later(row, 4 * DAY_MS));
    more.health.clear();
    watch(&mut more, 5 * DAY_MS);
    assert_eq!(digest(&five), digest(&six));
    assert_ne!(digest(&five), digest(&more.report()), "another edge");
    let short = web_and_db().report();
    assert_eq!(annotation(&short, "demo/web-network", "since"), None, "nothing is known while it learns");
}

#[test]
fn a_workload_of_which_too_little_was_watched_is_left_open() {
    let mut capture = web_and_db();
    let node = capture.object(ObjectKind::Node, None, "node-b");
    node.addresses = vec!["192.0.2.2".into()];
    let pod = capture.pod("demo/web", "10.244.0.12");
    pod.object_node = Some("node-b".into());
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network"], "half of web ran where no agent did");
    let said = "demo/web: ingress and egress withheld and left open, 50 % of its pods' time was observed, of 95 % (--min-coverage)";
    assert!(report.said.contains(said), "{}", report.said);
    assert_eq!(capture.report_with(&["--min-coverage", "0.5"]).names().len(), 2);
    let mut capture = web_and_db();
    capture.object(ObjectKind::Node, None, "node-b").addresses = vec!["192.0.2.2".into()];
    capture.pod("demo/far", "10.244.0.13").object_node = Some("node-b".into());
    let report = capture.report();
    assert!(report.said.contains("demo/far: no policy, it was never observed"), "{}", report.said);
}

#[test]
fn a_direction_that_is_not_stable_is_named_and_can_be_left_open() {
    let mut capture = watched(5);
    // The day before the end, web dials something new.
    later(capture.dial(WEB, "198.51.100.7", 443), 4 * DAY_MS);
    capture.health.clear();
    watch(&mut capture, 5 * DAY_MS);
    let report = capture.report();
    let named = "not stable yet: egress of demo/web: stabilizing, changed 24 hours ago (+ egress to 198.51.100.7 443/TCP), of 72";
    assert!(report.said.contains(named), "{}", report.said);
    assert!(report.yaml.contains("198.51.100.7/32"), "{}", report.yaml);
    let report = capture.report_with(&["--only-stable"]);
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(!report.yaml.contains("198.51.100.7"), "{}", report.yaml);
    let web = report.yaml.split("---\n").find(|policy| policy.contains("name: web-network")).expect("it is there");
    assert!(web.contains("policyTypes:\n  - Ingress\n") && !web.contains("- Egress"), "{web}");
    assert!(report.said.contains("demo/web: egress withheld and left open, it is stabilizing: "), "{}", report.said);
}

#[test]
fn only_the_directions_that_are_wanted_are_limited() {
    let report = web_and_db().report_with(&["--directions", "ingress"]);
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert_eq!(report.allows("demo/web-network"), lines([]));
    assert!(!report.yaml.contains("- Egress") && !report.yaml.contains("egress:"), "{}", report.yaml);
}

#[test]
fn addresses_of_nodes_can_be_ranges() {
    let mut capture = web_and_db();
    for (name, address) in [("node-b", "192.0.2.2"), ("node-c", "192.0.2.130")] {
        capture.object(ObjectKind::Node, None, name).addresses = vec![address.into()];
        capture.accept(DB, address, 5432);
    }
    let report = capture.report_with(&["--node-cidr", "192.0.2.0/25"]);
    let expected = ["ingress 192.0.2.0/25 5432/TCP", "ingress 192.0.2.130/32 5432/TCP", "ingress app=web 5432/TCP"];
    assert_eq!(report.allows("demo/db-network"), lines(expected));
    let marked =
        report.said.lines().filter(|line| line.contains("allowed by the node's address, which may change")).count();
    assert_eq!(marked, 1, "only that which no range stands for: {}", report.said);
}

#[test]
fn many_addresses_outside_become_blocks_that_hold_few_others_and_none_of_the_cluster() {
    let mut capture = web_and_db();
    capture.object(ObjectKind::Node, None, "node-b").addresses = vec!["198.51.100.70".into()];
    for last in [1, 2, 3, 64, 71, 200] {
        capture.dial(WEB, &format!("198.51.100.{last}"), 443);
    }
    let exact = capture.report();
    assert_eq!(exact.blocks().len(), 6, "{}", exact.yaml);
    let report = capture.report_with(&["--max-cidrs", "4"]);
    let blocks: Vec<String> = report.blocks().into_iter().collect();
    assert_eq!(blocks, ["198.51.100.0/30", "198.51.100.200/32", "198.51.100.64/32", "198.51.100.71/32"]);
    assert!(report.said.contains("1 addresses outside beside the 6 seen"), "{}", report.said);
    let report = capture.report_with(&["--max-cidrs", "1", "--min-prefix", "16"]);
    assert_eq!(report.blocks().len(), 4, "a node is among the rest: {}", report.yaml);
    assert!(report.said.contains("demo/web: 4 addresses outside on 443/TCP that can't be merged"), "{}", report.said);
}

/// `demo/web`, behind a Service of type LoadBalancer, is reached from everywhere.
fn public() -> Capture {
    let mut capture = web_and_db();
    capture.service("demo/front", "10.96.0.7", 80, "8080", Some(r#"{"app":"web"}"#));
    capture.inventory.last_mut().expect("the Service").service_type = Some("LoadBalancer".into());
    for net in 1..60 {
        capture.accept(WEB, &format!("203.0.{net}.9"), 8080);
    }
    capture
}

#[test]
fn ingress_from_all_over_is_left_open_until_somebody_decides() {
    let report = public().report();
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    let decide = "demo/web: ingress withheld and left open, 59 addresses outside on 8080/TCP are more than a rule should \
                  have: decide with --open-ingress demo/front";
    assert!(report.said.contains(decide), "{}", report.said);
    let report = public().report_with(&["--open-ingress", "demo/front,demo/none"]);
    let expected = ["egress app=db 5432/TCP", "ingress 0.0.0.0/0 8080/TCP", "ingress ::/0 8080/TCP"];
    assert_eq!(report.allows("demo/web-network"), lines(expected));
    assert!(report.yaml.contains("except:\n        - 10.96.0.0/16\n        - 10.244.0.0/16"), "{}", report.yaml);
    assert!(report.yaml.contains("except:\n        - fd00:10:244::/64"), "{}", report.yaml);
    assert!(report.said.contains("--open-ingress demo/none: no such Service is known"), "{}", report.said);
    let few = public().report_with(&["--max-cidrs", "100"]);
    assert_eq!(few.blocks().len(), 59, "exact where that many are wanted");
}

#[test]
fn a_policy_that_would_hold_for_another_workload_waits_for_it() {
    let mut capture = public();
    // The same labels: whatever holds for web holds for its twin.
    let twin = capture.bare_pod("demo/twin", "10.244.0.40", r#"{"app":"web"}"#);
    (twin.owner_kind, twin.owner) = (Some("StatefulSet".into()), Some("twin".into()));
    capture.dial("10.244.0.40", DB, 5432);
    let report = capture.report();
    let twin =
        "demo/twin: ingress withheld and left open, its policy would hold for demo/web too, where it is withheld";
    assert!(report.said.contains(twin), "{}", report.said);
}

#[test]
fn a_selector_gets_the_label_that_keeps_others_out() {
    let mut capture = web_and_db();
    let canary = capture.bare_pod("demo/canary", "10.244.0.40", r#"{"app":"web","track":"canary"}"#);
    (canary.owner_kind, canary.owner) = (Some("StatefulSet".into()), Some("canary".into()));
    capture.workload("StatefulSet", "demo/canary", r#"{"matchLabels":{"app":"web"}}"#);
    capture.dial("10.244.0.40", DB, 9187);
    let report = capture.report();
    assert_eq!(report.selector("demo/canary-network"), "app=web,track=canary");
    assert_eq!(report.selector("demo/web-network"), "app=web", "nothing that all its pods have keeps the canary out");
    assert!(report.said.contains("demo/web: its selector also selects pods of demo/canary"), "{}", report.said);
}

#[test]
fn names_that_were_seen_stand_beside_the_addresses() {
    let mut capture = web_and_db();
    let row = capture.dial(WEB, "198.51.100.7", 443);
    row.destination_name = Some("api.example.com".into());
    let report = capture.report();
    let names = annotation(&report, "demo/web-network", "names");
    assert_eq!(names.as_deref(), Some(r#"{"198.51.100.7/32":["api.example.com"]}"#));
    assert_eq!(annotation(&report, "demo/db-network", "names"), None);
}

#[test]
fn defaults_of_a_namespace_stand_once_and_cut_nothing_off() {
    let mut capture = web_and_db();
    capture.pod("kube-system/dns", "10.244.0.53");
    for client in [WEB, DB] {
        let before = capture.flows.len();
        capture.talk(client, "10.244.0.53", 53);
        capture.flows[before..].iter_mut().for_each(|row| row.transport = "udp".into());
    }
    let plain = capture.report();
    assert_eq!(plain.yaml.matches("k8s-app").count() + plain.yaml.matches("app: dns").count(), 3, "{}", plain.yaml);
    let report = capture.report_with(&["--namespace-defaults", "--namespaces", "demo"]);
    assert_eq!(report.names(), ["demo/allow-dns", "demo/db-network", "demo/default-deny", "demo/web-network"]);
    assert_eq!(report.yaml.matches("app: dns").count(), 1, "{}", report.yaml);
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP"]));
    assert!(report.yaml.contains("podSelector: {}\n  policyTypes:\n  - Ingress\n  - Egress\n"), "{}", report.yaml);
    // Somebody whose egress is left open would be cut off.
    capture.bare_pod("demo/naked", "10.244.0.60", "{}");
    capture.talk("10.244.0.60", DB, 5432);
    let report = capture.report_with(&["--namespace-defaults", "--namespaces", "demo"]);
    let whole = ["demo/default-deny".to_owned(), "demo/allow-dns".to_owned()];
    assert!(
        !whole.iter().any(|name| report.names().contains(name)),
        "both would close its egress: {:?}",
        report.names()
    );
    assert!(report.allows("demo/web-network").contains("egress [ns kube-system] app=dns 53/UDP"), "{}", report.yaml);
    assert!(
        report.said.contains("namespace demo: no default-deny, it would cut off demo/db, demo/naked"),
        "{}",
        report.said
    );
}

#[test]
fn the_apis_service_becomes_the_address_of_its_endpoint_in_every_dialect() {
    let mut capture = web_and_db();
    capture.service("default/kubernetes", "10.96.0.1", 443, "6443", None);
    let slice = capture.object(ObjectKind::EndpointSlice, Some("default"), "kubernetes");
    (slice.owner_kind, slice.owner) = (Some("Service".into()), Some("kubernetes".into()));
    slice.addresses = vec!["192.0.2.1".into()];
    slice.ports = vec![tcp(6443, None)];
    capture.dial(WEB, "10.96.0.1", 443);
    capture.dial(WEB, "198.51.100.7", 443);
    let report = capture.report_with(&["--format", "cilium"]);
    insta::assert_snapshot!("cilium", report.yaml);
}

#[test]
fn what_is_forbidden_is_not_allowed_for_the_sake_of_dns_either() {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("kube-system/dns", "10.244.0.53");
    capture.talk(WEB, "10.244.0.53", 53);
    capture.flows.iter_mut().for_each(|row| row.transport = "udp".into());
    let report = capture.report_decided("forbid: [{ from: demo/web, to: kube-system/dns, port: 53/tcp }]");
    assert_eq!(report.allows("demo/web-network"), lines(["egress [ns kube-system] app=dns 53/UDP"]));
    assert!(!report.said.contains("concerns nothing"), "{}", report.said);
}

#[test]
fn dns_of_a_namespace_closes_no_egress_that_is_to_stay_open() {
    let mut capture = web_and_db();
    capture.pod("kube-system/dns", "10.244.0.53");
    capture.talk(WEB, "10.244.0.53", 53);
    let report = capture.report_with(&["--namespace-defaults", "--directions", "ingress", "--namespaces", "demo"]);
    assert_eq!(report.names(), ["demo/db-network", "demo/default-deny", "demo/web-network"]);
    assert!(!report.yaml.contains("Egress"), "{}", report.yaml);
}

#[test]
fn a_pinned_workload_that_nobody_has_seen_run_is_left_open() {
    let mut capture = web_and_db();
    capture.pod("demo/new", "10.244.0.70").phase = Some("Pending".into());
    let report = capture.report_decided("pin: [{ from: demo/web, to: demo/new, port: 80 }]");
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(report.allows("demo/web-network").contains("egress app=new 80/TCP"), "{}", report.yaml);
    let open = "demo/new: ingress and egress withheld and left open, none of its pods was there to be observed";
    assert!(report.said.contains(open), "{}", report.said);
}

#[test]
fn rows_that_no_policy_can_speak_of_are_named_and_the_rest_comes_out() {
    let mut capture = web_and_db();
    capture.dial(WEB, "198.51.100.9", 0);
    capture.dial(WEB, "198.51.100.9", 443).transport = "quic".into();
    let odd = capture.pod("../elsewhere/odd", "10.244.0.71");
    odd.namespace = Some("../../elsewhere".into());
    capture.talk("10.244.0.71", DB, 5432);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert_eq!(report.said.matches("left out, an end is not known").count(), 3, "{}", report.said);
    assert_eq!(report.blocks().len(), 0, "{}", report.yaml);
}

#[test]
fn a_backend_that_nobody_saw_answer_is_no_reason_to_refuse() {
    let mut capture = watched(9);
    for row in &mut capture.flows {
        if &*row.observer == "client" {
            (row.destination_address, row.destination_port) = ("10.96.0.5".into(), 80);
        }
    }
    for (name, address) in [("demo/db", DB), ("demo/idle", "10.244.0.72")] {
        if name != "demo/db" {
            capture.pod(name, address);
        }
        let pod = capture.inventory.iter_mut().rfind(|r| r.addresses.iter().any(|a| &**a == address)).expect("a pod");
        let app = name.trim_start_matches("demo/");
        pod.labels = Some(format!(r#"{{"app":"{app}","tier":"db"}}"#).into());
    }
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"tier":"db"}"#));
    // What else it does closes its ingress.
    later(capture.dial("10.244.0.72", "198.51.100.7", 443), 8 * DAY_MS);
    capture.health.clear();
    watch(&mut capture, 9 * DAY_MS);
    let report = capture.report();
    assert!(report.names().contains(&"demo/idle-network".into()), "{}", report.said);
    assert!(report.allows("demo/web-network").contains("egress app=idle 5432/TCP"), "{}", report.yaml);
    assert!(!report.said.contains("denied by"), "it is explained: {}", report.said);
}

#[test]
fn an_odd_pod_is_named_and_refuses_the_report_of_nobody() {
    let plain = watched(9).report();
    let mut capture = watched(9);
    // A pod of web that web's own selector does not select: what it sends is denied at db.
    let pod = capture.bare_pod("demo/web-odd", "10.244.0.73", r#"{"app":"odd"}"#);
    (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some("web".into()));
    capture.health.clear();
    watch(&mut capture, 9 * DAY_MS);
    let report = capture.report();
    assert_eq!(report.allows("demo/db-network"), plain.allows("demo/db-network"));
    assert_eq!(report.allows("demo/web-network"), plain.allows("demo/web-network"));
    assert!(report.said.contains("demo/web: its selector does not select its pod web-odd"), "{}", report.said);
    let input = capture.write();
    let policies = input.path().join("policies.yaml");
    std::fs::write(&policies, &report.yaml).expect("written");
    let [input, policies] = [input.path(), &policies].map(|path| path.to_string_lossy().into_owned());
    let verified = flowscribe(&["verify", "--strict", "--policies", &policies, "--input", &input]);
    let found = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success(), "{found}");
    let explained = "an odd pod: demo/web does not select its pod web-odd, by the labels that it has";
    assert!(found.contains(explained), "{found}");
}

#[test]
fn a_selector_that_selects_none_of_its_pods_is_a_mistake_and_not_used() {
    let mut capture = watched(9);
    for owner in capture.inventory.iter_mut().filter(|row| *row.kind == ObjectKind::Workload && &*row.name == "web") {
        owner.selector = Some(r#"{"matchLabels":{"app":"wbe"}}"#.into());
    }
    let report = capture.report();
    assert_eq!(report.allows("demo/db-network"), watched(9).report().allows("demo/db-network"));
    let said = "demo/web: its selector, as it was recorded, selects none of its pods; their labels are used instead";
    assert!(report.said.contains(said), "{}", report.said);
    // That its pods are odd explains nothing, where all are.
    let input = capture.write();
    let policies = input.path().join("policies.yaml");
    let closed = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed, namespace: demo}, \
        spec: {podSelector: {matchLabels: {app: db}}}}";
    std::fs::write(&policies, closed).expect("written");
    let [input, policies] = [input.path(), &policies].map(|path| path.to_string_lossy().into_owned());
    let verified = flowscribe(&["verify", "--policies", &policies, "--input", &input]);
    let found = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.code() == Some(1) && !found.contains("an odd pod"), "{found}");
}

#[test]
fn an_odd_row_that_comes_back_every_hour_is_no_reason_to_refuse() {
    let mut capture = watched(9);
    let rows: Vec<FlowRecord> = capture.flows.iter().filter(|row| &*row.observer == "client").cloned().collect();
    for mut row in rows {
        (row.destination_port, row.seq) = (0, capture.flows.len() as i64);
        capture.flows.push(row);
    }
    capture.health.clear();
    watch(&mut capture, 9 * DAY_MS);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(report.said.contains("demo/web → demo/db 0/TCP: left out, an end is not known"), "{}", report.said);
}

/// `demo/client` sends datagrams to `demo/log` on 514, whose receiver asks for the sender or does not; `demo/web` and
/// `demo/db` are beside them.
fn logged(asks: bool) -> Capture {
    let (client, log) = ("10.244.0.31", "10.244.0.32");
    let mut capture = web_and_db();
    capture.pod("demo/client", client);
    capture.pod("demo/log", log);
    capture.dial(client, log, 514).transport = "udp".into();
    let row = capture.accept(log, if asks { client } else { "0.0.0.0" }, 514);
    row.transport = "udp".into();
    if !asks {
        (row.source_kind, row.source_unknown_reason) = ("unknown".into(), Some("sender_not_asked".into()));
    }
    capture
}

#[test]
fn a_receiver_that_does_not_ask_for_the_sender_leaves_its_ingress_open_and_nothing_else() {
    let asking = logged(true).report();
    assert_eq!(asking.allows("demo/log-network"), lines(["ingress app=client 514/UDP"]));
    assert!(!asking.said.contains("withheld"), "{}", asking.said);

    let report = logged(false).report();
    let withheld =
        "demo/log: ingress withheld and left open, it receives on 514/UDP without asking for the sender (recv)";
    assert!(report.said.contains(withheld), "{}", report.said);
    assert!(!report.yaml.contains("0.0.0.0"), "nobody has that address: {}", report.yaml);
    let of_log = report.policies.iter().find(|policy| policy["metadata"]["name"] == "log-network");
    let closed = of_log.and_then(|policy| policy["spec"]["policyTypes"].as_sequence()).expect("it has a policy");
    assert!(closed.len() == 1 && closed[0] == "Egress", "{}", report.yaml);
    // The rest is closed exactly as it was.
    for policy in ["demo/client-network", "demo/web-network", "demo/db-network"] {
        assert_eq!(report.allows(policy), asking.allows(policy));
    }
    assert_eq!(report.said.matches("withheld").count(), 1, "{}", report.said);
}
