//! Connections of which it is not known which end initiated.

use crate::support::{Capture, DB, WEB, flowscribe, limits, lines, tcp, web_and_db};

const OUTSIDE: &str = "198.51.100.7";
const SAID: &str =
    "withheld and left open, connections were open before the recording (1), and who dialled is not known";

/// A connection of a pod that was open before the recording: its own port, whose it is on the other side, and that port.
fn open(capture: &mut Capture, pod: &str, own_port: Option<u16>, other: &str, port: u16) {
    let row = capture.dial(pod, other, port);
    (row.direction_known, row.start_known, row.source_port) = (false, false, own_port);
    (row.connections, row.closed, row.active) = (0, 0, 1);
}

#[test]
fn what_could_be_a_visitor_leaves_ingress_open_and_is_named() {
    let mut capture = web_and_db();
    open(&mut capture, DB, Some(9002), OUTSIDE, 40_123);
    let report = capture.report();
    assert_eq!(limits(&report, "db-network"), ["Egress"]);
    assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"], "nobody else is concerned");
    let said = format!("demo/db: ingress {SAID}: demo/db port 9002 ↔ {OUTSIDE} port 40123/TCP\n");
    assert!(report.said.contains(&said), "{}", report.said);
    assert!(!report.yaml.contains(OUTSIDE) && !report.yaml.contains("40123"), "{}", report.yaml);
}

#[test]
fn what_could_be_either_leaves_both_open_at_both_ends() {
    let mut capture = web_and_db();
    open(&mut capture, DB, Some(9002), WEB, 9003);
    let report = capture.report();
    assert_eq!(report.names(), Vec::<String>::new(), "{}", report.said);
    for workload in ["demo/db", "demo/web"] {
        assert!(report.said.contains(&format!("{workload}: ingress and egress {SAID}")), "{}", report.said);
    }
}

#[test]
fn of_an_older_recording_the_other_port_tells() {
    let mut capture = web_and_db();
    open(&mut capture, WEB, None, OUTSIDE, 443);
    let report = capture.report();
    assert_eq!(limits(&report, "web-network"), ["Ingress"]);
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
}

#[test]
fn an_edge_that_is_known_besides_needs_nobody_to_tell() {
    let mut capture = web_and_db();
    let plain = capture.report();
    // The two ends of one older connection, and what one end alone saw of another one.
    open(&mut capture, DB, Some(5432), WEB, 40_123);
    open(&mut capture, WEB, Some(40_123), DB, 5432);
    open(&mut capture, WEB, Some(40_124), DB, 5432);
    let report = capture.report();
    assert_eq!(report.yaml, plain.yaml);
    assert!(!report.said.contains("not known"), "{}", report.said);
}

#[test]
fn whoever_declares_or_serves_a_port_was_dialled_there() {
    let mut capture = web_and_db();
    capture.inventory.iter_mut().filter(|object| object.addresses.iter().any(|own| &**own == DB)).for_each(|pod| {
        pod.ports = vec![tcp(9002, None)];
    });
    open(&mut capture, DB, Some(9002), OUTSIDE, 40_123);
    open(&mut capture, DB, Some(5432), "198.51.100.8", 40_124);
    open(&mut capture, WEB, Some(41_000), DB, 9002);
    let report = capture.report();
    let expected = [
        "ingress 198.51.100.7/32 9002/TCP",
        "ingress 198.51.100.8/32 5432/TCP",
        "ingress app=web 5432/TCP",
        "ingress app=web 9002/TCP",
    ];
    assert_eq!(report.allows("demo/db-network"), lines(expected));
    assert_eq!(report.allows("demo/web-network"), lines(["egress app=db 5432/TCP", "egress app=db 9002/TCP"]));
    assert!(!report.said.contains("not known"), "{}", report.said);
}

#[test]
fn a_person_who_pins_it_has_said_who_dialled() {
    let mut capture = web_and_db();
    open(&mut capture, DB, Some(9002), OUTSIDE, 40_123);
    let report = capture.report_decided("pin:\n- { from: 198.51.100.7, to: demo/db, port: 9002, reason: visitors }\n");
    let expected = ["ingress 198.51.100.7/32 9002/TCP", "ingress app=web 5432/TCP"];
    assert_eq!(report.allows("demo/db-network"), lines(expected));
    assert!(!report.said.contains("not known"), "{}", report.said);
}

#[test]
fn a_rollup_keeps_what_has_no_direction() {
    let mut capture = web_and_db();
    open(&mut capture, DB, Some(9002), OUTSIDE, 40_123);
    let directory = capture.write();
    let path = directory.path().to_string_lossy();
    let before = flowscribe(&["report", "--input", &path]);
    let compacted = flowscribe(&["compact", "--keep", "0s", "--input", &path]);
    assert!(compacted.status.success(), "{}", String::from_utf8_lossy(&compacted.stderr));
    std::fs::remove_dir_all(directory.path().join("flows")).expect("the rollup has it all");
    let after = flowscribe(&["report", "--input", &path]);
    assert_eq!(String::from_utf8_lossy(&after.stdout), String::from_utf8_lossy(&before.stdout));
    let said = String::from_utf8_lossy(&after.stderr);
    assert!(said.contains(&format!("demo/db: ingress {SAID}: demo/db port 9002")), "{said}");
}
