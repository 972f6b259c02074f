//! Ends of connections of which only an address is known, and traffic that agents do not record.

use schemas::{inventory::ObjectKind, table::Port};

use crate::support::{Capture, DB, WEB, limits, lines, tcp, web_and_db};

const TUNNEL: &str = "10.244.219.64";
const BUILDER: &str = "10.244.0.60";
const WITHIN: &str = "172.17.0.2";

#[test]
fn whoever_is_reached_from_an_address_that_nobody_is_known_to_have_is_left_open_and_named() {
    let mut capture = web_and_db();
    let plain = capture.report();
    capture.accept(DB, TUNNEL, 9443);
    let report = capture.report();
    assert_eq!(limits(&report, "db-network"), ["Egress"]);
    assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"]);
    assert_eq!(report.allows("demo/web-network"), plain.allows("demo/web-network"));
    let said = format!(
        "demo/db: ingress withheld and left open, {TUNNEL} (no_owner) → demo/db 9443/TCP passed, and whose address {TUNNEL} is, \
         is not known: pin or forbid it (--decisions)"
    );
    assert!(report.said.contains(&said), "{}", report.said);
    let pinned = capture.report_decided("pin: [{ from: 10.244.219.64, to: demo/db, port: 9443 }]");
    let expected = ["ingress 10.244.219.64/32 9443/TCP", "ingress app=web 5432/TCP"];
    assert_eq!(pinned.allows("demo/db-network"), lines(expected));
    let forbidden = capture.report_decided("forbid: [{ from: 10.244.219.0/24, to: demo/db }]");
    assert_eq!(forbidden.allows("demo/db-network"), plain.allows("demo/db-network"));
    assert_eq!(limits(&forbidden, "db-network"), ["Ingress", "Egress"]);
}

#[test]
fn so_is_whoever_reaches_one() {
    let mut capture = web_and_db();
    capture.dial(WEB, TUNNEL, 9443);
    let report = capture.report();
    assert_eq!(limits(&report, "web-network"), ["Ingress"]);
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
}

#[test]
fn what_is_allowed_whoever_had_the_address_leaves_nothing_open() {
    let mut capture = web_and_db();
    // Two pods of one workload had it, and a second workload never did.
    for name in ["10.244.0.12", "10.244.0.13"] {
        capture.pod("demo/web", name).addresses = vec!["10.244.0.12".into()];
    }
    let plain = capture.report();
    capture.accept(DB, "10.244.0.12", 5432);
    let report = capture.report();
    assert_eq!(report.yaml, plain.yaml);
    assert!(report.said.contains("10.244.0.12 (ambiguous) → demo/db 5432/TCP: left out"), "{}", report.said);
    capture.pod("demo/other", "10.244.0.14").addresses = vec!["10.244.0.12".into()];
    assert_eq!(limits(&capture.report(), "db-network"), ["Egress"]);
}

#[test]
fn what_was_tried_in_vain_leaves_nothing_open() {
    let mut capture = web_and_db();
    let plain = capture.report();
    for row in 0..2 {
        let row = if row == 0 { capture.accept(DB, TUNNEL, 9443) } else { capture.dial(WEB, TUNNEL, 9443) };
        (row.connections, row.closed, row.failed) = (0, 0, 1);
    }
    assert_eq!(capture.report().yaml, plain.yaml);
}

#[test]
fn a_nodes_overlay_device_is_allowed_by_its_address() {
    let mut capture = web_and_db();
    let node = capture.object(ObjectKind::Node, None, "cp");
    (node.addresses, node.cidrs) = (vec!["192.0.2.10".into()], vec!["10.244.9.0/24".into()]);
    capture.accept(DB, "10.244.9.0", 9443);
    let report = capture.report();
    assert_eq!(report.allows("demo/db-network"), lines(["ingress 10.244.9.0/32 9443/TCP", "ingress app=web 5432/TCP"]));
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
}

/// A container in the pod of `ci/builder` has a network of its own; on the wire, its connections are the pod's.
fn builder() -> Capture {
    let mut capture = web_and_db();
    capture.pod("ci/builder", BUILDER);
    capture.talk(BUILDER, DB, 5432);
    capture.row("client", WITHIN, DB, 5000);
    capture.accept(DB, BUILDER, 5000);
    capture.row("client", WITHIN, "198.51.100.50", 443);
    capture
}

#[test]
fn containers_with_a_network_of_their_own_leave_the_pod_open_that_others_saw_in_their_place() {
    let report = builder().report();
    assert_eq!(limits(&report, "builder-network"), ["Ingress"]);
    for policy in ["db-network", "web-network"] {
        assert_eq!(limits(&report, policy), ["Ingress", "Egress"]);
    }
    assert!(report.allows("demo/db-network").contains("ingress [ns ci] app=builder 5000/TCP"), "{}", report.yaml);
    assert!(!report.yaml.contains(WITHIN), "{}", report.yaml);
    let said = format!(
        "ci/builder: egress withheld and left open, it may be one of its pods whose containers have a network of their own: \
         {WITHIN} on node-a (unmapped_socket) → demo/db 5000/TCP, {WITHIN} on node-a (unmapped_socket) → 198.51.100.50 443/TCP"
    );
    assert!(report.said.contains(&said), "{}", report.said);
}

#[test]
fn where_nobody_saw_them_they_may_be_any_pod_of_the_node() {
    let mut capture = web_and_db();
    capture.row("client", WITHIN, "198.51.100.50", 443);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    for policy in ["db-network", "web-network"] {
        assert_eq!(limits(&report, policy), ["Ingress"], "{}", report.said);
    }
    // One hour of many is no reason.
    let mut capture = web_and_db();
    for day in 0..20 {
        for row in 0..2 {
            let mut again = capture.flows[row].clone();
            let shift = (day + 1) * 3_600_000;
            (again.seq, again.window_start.0) = (capture.flows.len() as i64, again.window_start.0 + shift);
            again.window_end.0 += shift;
            again.first_seen.0 += shift;
            again.last_seen.0 += shift;
            capture.flows.push(again);
        }
    }
    capture.row("client", WITHIN, "198.51.100.50", 443);
    capture.health = vec![capture.clean_end()];
    capture.health[0].window_end.0 += 20 * 3_600_000;
    let report = capture.report();
    for policy in ["db-network", "web-network"] {
        assert_eq!(limits(&report, policy), ["Ingress", "Egress"], "{}", report.said);
    }
    assert!(
        report.said.contains("172.17.0.2 on node-a (unmapped_socket) → 198.51.100.50 443/TCP: left out"),
        "{}",
        report.said
    );
}

/// `demo/db` declares a port over SCTP, by its container or by a Service.
fn sctp(by_service: bool) -> Capture {
    let mut capture = web_and_db();
    let port = Port { protocol: "sctp".into(), ..tcp(38_412, Some("38412")) };
    if by_service {
        capture.service("demo/db", "10.96.0.7", 1, "1", Some(r#"{"app":"db"}"#));
        let service = capture.inventory.last_mut().expect("the Service");
        service.ports = vec![port];
    } else {
        let pod = capture.inventory.iter_mut().find(|object| object.addresses.iter().any(|own| &**own == DB));
        pod.expect("the pod of demo/db").ports = vec![port, tcp(5432, None)];
    }
    capture
}

#[test]
fn who_declares_sctp_is_left_open_until_somebody_decides() {
    for by_service in [true, false] {
        let capture = sctp(by_service);
        let report = capture.report();
        assert_eq!(limits(&report, "db-network"), ["Egress"]);
        assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"]);
        let said = "demo/db: ingress withheld and left open, it declares 38412/SCTP, which is not recorded";
        assert!(report.said.contains(said), "{}", report.said);
        let pinned = capture.report_decided("pin: [{ from: demo/web, to: demo/db, port: 38412/sctp }]");
        assert_eq!(pinned.allows("demo/db-network"), lines(["ingress app=web 38412/SCTP", "ingress app=web 5432/TCP"]));
        assert_eq!(pinned.allows("demo/web-network"), lines(["egress app=db 38412/SCTP", "egress app=db 5432/TCP"]));
        let forbidden = capture.report_decided("forbid: [{ from: demo/web, to: demo/db, port: 38412/sctp }]");
        assert_eq!(limits(&forbidden, "db-network"), ["Ingress", "Egress"]);
        assert!(!forbidden.said.contains("concerns nothing"), "{}", forbidden.said);
    }
}
