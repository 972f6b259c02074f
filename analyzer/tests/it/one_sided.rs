//! What one end alone saw: where the other end's agent watched, where it can't see, and where a proxy stands between.

use crate::support::{Capture, DB, Report, WEB, limits, lines, tcp, web_and_db};

const OUTSIDE: &str = "198.51.100.9";
const SANDBOX: &str = "10.244.0.40";

/// Both rows of what a pod's own proxy hands over to a port of the pod.
fn hand_over(capture: &mut Capture, pod: &str, port: u16) {
    capture.accept(pod, "127.0.0.6", port);
}

/// A connection of a pod that a proxy in it takes: the pod's own end succeeds, whatever becomes of the proxy's.
fn intercepted(capture: &mut Capture, pod: &str, to: &str, port: u16) {
    capture.dial(pod, to, port);
    capture.accept(pod, pod, 15_001);
}

/// The proxy's own end of it, which failed.
fn refused(capture: &mut Capture, pod: &str, to: &str, port: u16) {
    let row = capture.dial(pod, to, port);
    (row.connections, row.closed, row.failed, row.failure) = (0, 0, 1, Some("refused".into()));
}

fn closed(report: &Report) -> Vec<(String, Vec<String>)> {
    report
        .names()
        .into_iter()
        .map(|path| (path.clone(), limits(report, path.split_once('/').expect("a path").1)))
        .collect()
}

/// `jobs/sandbox` is on the watched node, and only `demo/db` sees it.
fn sandboxed() -> Capture {
    let mut capture = web_and_db();
    capture.pod("jobs/sandbox", SANDBOX);
    capture.accept(DB, SANDBOX, 5432);
    capture
}

#[test]
fn who_is_seen_by_others_only_is_not_closed_and_is_named() {
    let report = sandboxed().report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert_eq!(
        report.allows("demo/db-network"),
        lines(["ingress [ns jobs] app=sandbox 5432/TCP", "ingress app=web 5432/TCP"])
    );
    let said = "jobs/sandbox: ingress and egress withheld and left open, others saw it where the agents of its own nodes saw \
                nothing of it: jobs/sandbox → demo/db 5432/TCP;";
    assert!(report.said.contains(said), "{}", report.said);
}

#[test]
fn so_is_a_server_that_answers_clients_whose_nodes_see_them() {
    let mut capture = web_and_db();
    capture.pod("jobs/sandbox", SANDBOX);
    capture.dial(WEB, SANDBOX, 8080);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(report.allows("demo/web-network").contains("egress [ns jobs] app=sandbox 8080/TCP"), "{}", report.yaml);
    assert!(report.said.contains("jobs/sandbox: ingress and egress withheld"), "{}", report.said);
}

#[test]
fn whom_a_proxy_of_the_node_speaks_for_is_no_sandbox() {
    let mut capture = sandboxed();
    let row = capture.row("client", SANDBOX, DB, 5432);
    (row.source_kind, row.source_node) = ("node".into(), Some("node-a".into()));
    let report = capture.report();
    assert!(report.allows("demo/db-network").contains("ingress [ns jobs] app=sandbox 5432/TCP"), "{}", report.yaml);
    assert!(!report.said.contains("others saw it"), "{}", report.said);
    assert_eq!(limits(&report, "sandbox-network"), ["Ingress", "Egress"]);
}

#[test]
fn what_came_by_a_port_of_the_node_is_a_rule_at_both_ends() {
    let mut capture = web_and_db();
    capture.pod("demo/shop", SANDBOX);
    capture.talk(SANDBOX, DB, 5432);
    // hostPort: the node puts the pod's address and port in the place of its own.
    capture.dial(WEB, "192.0.2.1", 18_080);
    capture.accept(SANDBOX, WEB, 8080);
    let report = capture.report();
    assert_eq!(report.allows("demo/shop-network"), lines(["egress app=db 5432/TCP", "ingress app=web 8080/TCP"]));
    let egress = report.allows("demo/web-network");
    assert!(
        egress.contains("egress app=shop 8080/TCP") && egress.contains("egress 192.0.2.1/32 18080/TCP"),
        "{egress:?}"
    );
}

#[test]
fn whose_own_end_was_seen_is_closed_as_ever() {
    let mut capture = sandboxed();
    capture.dial(SANDBOX, DB, 5432);
    let report = capture.report();
    let both = vec!["Ingress".to_owned(), "Egress".to_owned()];
    let expected = ["demo/db-network", "demo/web-network", "jobs/sandbox-network"];
    assert_eq!(closed(&report), expected.map(|path| (path.to_owned(), both.clone())));
}

/// A mesh: what comes to `demo/db` on 8080 is accepted on 15006, and handed over.
fn mesh(accepting: u16) -> Capture {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("demo/db", DB);
    capture.dial(WEB, DB, 8080);
    capture.accept(DB, WEB, accepting);
    capture.accept(DB, OUTSIDE, accepting);
    capture.accept(DB, "192.0.2.7", accepting);
    hand_over(&mut capture, DB, 8080);
    capture
}

#[test]
fn a_rule_names_the_port_that_was_dialled_not_that_of_a_proxy() {
    for accepting in [15_006, 4143, 20_000, 17_777] {
        let report = mesh(accepting).report();
        let expected =
            ["ingress 192.0.2.7/32 8080/TCP", "ingress 198.51.100.9/32 8080/TCP", "ingress app=web 8080/TCP"];
        assert_eq!(report.allows("demo/db-network"), lines(expected));
        assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 8080/TCP"]));
        let said = format!("demo/db: a proxy in its pods accepts on {accepting}/TCP what was sent to 8080/TCP");
        assert!(report.said.contains(&said), "{}", report.said);
    }
}

/// Nobody is recorded who dials `demo/db`, whose proxy accepts on 15006; its pods declare some ports.
fn visited(declared: &[u16]) -> Capture {
    let mut capture = web_and_db();
    capture.pod("demo/shop", SANDBOX).ports = declared.iter().map(|port| tcp(*port, None)).collect();
    capture.accept(SANDBOX, OUTSIDE, 15_006);
    capture
}

#[test]
fn of_a_visitor_what_is_declared_or_handed_over_tells_the_port() {
    let mut handed_over = visited(&[]);
    hand_over(&mut handed_over, SANDBOX, 8080);
    let mut both = visited(&[8080, 9090, 15_090]);
    hand_over(&mut both, SANDBOX, 8080);
    hand_over(&mut both, SANDBOX, 15_020);
    for capture in [visited(&[8080, 15_090]), handed_over, both] {
        let report = capture.report();
        assert_eq!(report.allows("demo/shop-network"), lines(["ingress 198.51.100.9/32 8080/TCP"]));
        assert_eq!(limits(&report, "shop-network"), ["Ingress", "Egress"]);
    }
}

#[test]
fn where_nothing_tells_the_port_ingress_is_left_open_and_the_port_named() {
    let plain = web_and_db().report();
    let mut suspect = web_and_db();
    suspect.pod("demo/shop", SANDBOX).ports = vec![tcp(8080, None)];
    suspect.accept(SANDBOX, OUTSIDE, 17_777);
    hand_over(&mut suspect, SANDBOX, 8080);
    let mut undeclared = web_and_db();
    undeclared.pod("demo/shop", SANDBOX);
    undeclared.accept(SANDBOX, OUTSIDE, 17_777);
    hand_over(&mut undeclared, SANDBOX, 8080);
    let unknown = [(visited(&[]), 15_006), (visited(&[8080, 9090]), 15_006), (suspect, 17_777), (undeclared, 17_777)];
    for (capture, port) in unknown {
        let report = capture.report();
        assert_eq!(limits(&report, "shop-network"), ["Egress"]);
        assert!(!report.yaml.contains(&port.to_string()), "{}", report.yaml);
        let said = format!(
            "demo/shop: ingress withheld and left open, a proxy may accept there in place of the port that was dialled, which \
             is not known: {OUTSIDE} → demo/shop {port}/TCP"
        );
        assert!(report.said.contains(&said), "{}", report.said);
        for policy in ["demo/db-network", "demo/web-network"] {
            assert_eq!(report.allows(policy), plain.allows(policy), "nobody else is concerned");
        }
    }
}

#[test]
fn a_port_like_a_proxys_that_is_dialled_or_alone_declared_is_a_port_as_any() {
    let mut capture = web_and_db();
    capture.talk(WEB, DB, 15_006);
    capture.pod("demo/game", SANDBOX).ports = vec![tcp(20_000, None)];
    capture.accept(SANDBOX, OUTSIDE, 20_000);
    let report = capture.report();
    assert!(report.allows("demo/db-network").contains("ingress app=web 15006/TCP"), "{}", report.yaml);
    assert_eq!(report.allows("demo/game-network"), lines(["ingress 198.51.100.9/32 20000/TCP"]));
    assert!(!report.said.contains("proxy"), "{}", report.said);
}

#[test]
fn a_server_beside_which_something_else_is_served_within_the_pod_is_a_server_as_any() {
    let mut capture = web_and_db();
    capture.pod("demo/php", SANDBOX).ports = vec![tcp(80, None)];
    capture.accept(SANDBOX, OUTSIDE, 80);
    hand_over(&mut capture, SANDBOX, 9000);
    let report = capture.report();
    assert_eq!(report.allows("demo/php-network"), lines(["ingress 198.51.100.9/32 80/TCP"]));
    assert!(!report.said.contains("proxy"), "{}", report.said);
}

#[test]
fn what_only_the_clients_own_proxy_accepted_is_no_rule_and_is_listed() {
    let mut capture = web_and_db();
    let plain = capture.report();
    for port in 7000..7030 {
        intercepted(&mut capture, WEB, DB, port);
        refused(&mut capture, WEB, DB, port);
    }
    for dead in ["198.51.100.99", "198.51.100.98"] {
        intercepted(&mut capture, WEB, dead, 443);
        refused(&mut capture, WEB, dead, 443);
    }
    let report = capture.report();
    assert_eq!(closed(&report), closed(&plain), "{}", report.said);
    for policy in ["demo/db-network", "demo/web-network"] {
        assert_eq!(report.allows(policy), plain.allows(policy));
    }
    assert!(report.said.contains("demo/web: left out, never established: demo/db 7000/TCP"), "{}", report.said);
    assert!(report.said.contains("demo/web → 198.51.100.98 443/TCP: held for review"), "{}", report.said);
}

#[test]
fn what_a_server_behind_such_a_client_accepted_is_a_rule() {
    let mut capture = web_and_db();
    intercepted(&mut capture, WEB, DB, 7000);
    capture.talk(WEB, DB, 7000);
    intercepted(&mut capture, WEB, OUTSIDE, 443);
    capture.dial(WEB, OUTSIDE, 443);
    let report = capture.report();
    let expected = ["egress 198.51.100.9/32 443/TCP", "egress app=db 5432/TCP", "egress app=db 7000/TCP"];
    assert_eq!(report.allows("demo/web-network"), lines(expected));
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP", "ingress app=web 7000/TCP"]));
}

/// Datagrams to many ports of `demo/db` that nobody answers.
fn scanned() -> Capture {
    let mut capture = web_and_db();
    for port in 7000..7040 {
        let row = capture.dial(WEB, DB, port);
        (row.transport, row.closed, row.bytes_received) = ("udp".into(), 0, Some(0));
    }
    capture
}

#[test]
fn datagrams_that_a_recorded_pod_did_not_get_are_no_rule() {
    let plain = web_and_db().report();
    let report = scanned().report();
    for policy in ["demo/db-network", "demo/web-network"] {
        assert_eq!(report.allows(policy), plain.allows(policy));
    }
    assert!(
        report.said.contains("demo/web: left out, never established: demo/db 7000/UDP (1 × unanswered)"),
        "{}",
        report.said
    );
}

#[test]
fn datagrams_are_a_rule_where_not_all_that_came_was_recorded() {
    let programs = schemas::programs::PROGRAMS.iter().map(|program| program.name);
    let without: Vec<_> = programs.filter(|name| !name.starts_with("observe_receive")).map(Into::into).collect();
    let lose: [&dyn Fn(&mut Capture); 3] =
        [&|capture| capture.health[0].lost_ring = 1, &|capture| capture.health[0].unidentified = 1, &|capture| {
            capture.health[0].programs.clone_from(&without)
        }];
    for lose in lose {
        let mut capture = scanned();
        capture.health = vec![capture.clean_end()];
        capture.health[0].seen = 1_000;
        lose(&mut capture);
        let report = capture.report();
        assert_eq!(report.allows("demo/web-network").len(), 41, "{}", report.said);
        assert!(!report.said.contains("unanswered"), "{}", report.said);
    }
    // What the receiver did not ask the sender of may be theirs.
    let mut capture = scanned();
    let row = capture.accept(DB, "0.0.0.0", 7000);
    row.transport = "udp".into();
    let report = capture.report();
    assert!(report.allows("demo/web-network").contains("egress app=db 7000/UDP"), "{}", report.yaml);
}

#[test]
fn what_a_server_alone_saw_of_a_pod_that_was_recorded_is_held() {
    let mut capture = web_and_db();
    let plain = capture.report();
    capture.accept(DB, WEB, 9999);
    let report = capture.report();
    assert_eq!(report.yaml, plain.yaml);
    let said = "demo/web → demo/db 9999/TCP: held for review, seen by its server alone";
    assert!(report.said.contains(said), "{}", report.said);
    // It may be what was dialled at an address that is nobody's.
    capture.dial(WEB, "203.0.113.80", 443);
    let report = capture.report();
    assert!(report.allows("demo/db-network").contains("ingress app=web 9999/TCP"), "{}", report.yaml);
}
