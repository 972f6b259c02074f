//! Servers that listen where the kernel lets them, and the next time elsewhere.

use std::path::Path;

use schemas::table::TimestampMs;

use crate::support::{Capture, DB, START_MS, WEB, flowscribe, later, limits, lines, tcp, web_and_db};

const HOUR_MS: i64 = 3_600_000;

/// A connection that both ends saw, some hours after the start.
fn talk(capture: &mut Capture, client: &str, server: &str, port: u16, hours: i64) {
    later(capture.dial(client, server, port), hours * HOUR_MS);
    later(capture.accept(server, client, port), hours * HOUR_MS);
}

/// As FTP has it: the ports of passive mode are the server's choice, from 1024 on.
fn ftp() -> Capture {
    let mut capture = web_and_db();
    for port in [5_303, 16_794, 54_218, 5_432] {
        capture.talk(WEB, DB, port);
    }
    capture
}

#[test]
fn ports_that_differ_each_time_are_named_once_and_leave_their_direction_open() {
    let report = ftp().report();
    assert_eq!(limits(&report, "db-network"), ["Egress"]);
    assert_eq!(limits(&report, "web-network"), ["Ingress"]);
    let once = "demo/db was dialled by demo/web on ports that differ each time (3 seen in 3 connections, from 5303 to 54218/TCP): \
                pin or forbid a range (--decisions), such as port: 1024-65535/tcp";
    assert_eq!(report.said.matches(once).count(), 1, "{}", report.said);
    assert!(!report.said.contains("held for review"), "{}", report.said);
    let withheld =
        "demo/db: ingress withheld and left open, its ports differ each time (3 seen, from 5303 to 54218/TCP)";
    assert!(report.said.contains(withheld), "{}", report.said);
    let withheld = "demo/web: egress withheld and left open, the ports of demo/db differ each time (3 seen, from 5303 to 54218/TCP)";
    assert!(report.said.contains(withheld), "{}", report.said);
}

#[test]
fn a_range_that_a_person_pins_is_the_rule_for_them() {
    let capture = ftp();
    let pinned = capture.report_decided("pin: [{ from: demo/web, to: demo/db, port: 1024-65535/tcp }]");
    let expected = lines(["ingress app=web 1024-65535/TCP"]);
    assert_eq!(pinned.allows("demo/db-network"), expected, "5432 is within the range");
    assert_eq!(pinned.allows("demo/web-network"), lines(["egress app=db 1024-65535/TCP"]));
    assert_eq!(limits(&pinned, "db-network"), ["Ingress", "Egress"]);
    assert!(!pinned.said.contains("differ each time") && !pinned.said.contains("without a reason"), "{}", pinned.said);
    // What is forbidden of it is not in it.
    let parted = capture.report_decided(
        "{pin: [{ from: demo/web, to: demo/db, port: 5000-65535/tcp }], forbid: [{ from: demo/web, to: demo/db, port: 6000 }]}",
    );
    let expected = lines(["ingress app=web 5000-5999/TCP", "ingress app=web 6001-65535/TCP"]);
    assert_eq!(parted.allows("demo/db-network"), expected);
    let forbidden = capture.report_decided(
        "{forbid: [{ from: demo/web, to: demo/db, port: 5433-65535 }, { from: demo/web, to: demo/db, port: 1-5431 }]}",
    );
    assert_eq!(forbidden.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert_eq!(limits(&forbidden, "db-network"), ["Ingress", "Egress"]);
}

#[test]
fn a_range_that_nothing_was_seen_of_can_be_pinned() {
    let pinned = web_and_db().report_decided("pin: [{ from: demo/web, to: demo/db, port: 30000-32767/tcp }]");
    let expected = lines(["ingress app=web 30000-32767/TCP", "ingress app=web 5432/TCP"]);
    assert_eq!(pinned.allows("demo/db-network"), expected);
    assert!(pinned.said.contains("pinned") && !pinned.said.contains("without a reason"), "{}", pinned.said);
}

#[test]
fn who_is_answered_from_another_port_is_named_for_its_own() {
    let tftp = |answered: u16, asks: u16| {
        let mut capture = web_and_db();
        for (client, server, port) in [(WEB, DB, asks), (DB, WEB, answered)] {
            capture.dial(client, server, port).transport = "udp".into();
            capture.accept(server, client, port).transport = "udp".into();
        }
        capture.report()
    };
    let report = tftp(45_639, 69);
    assert_eq!(limits(&report, "web-network"), ["Egress"]);
    assert_eq!(limits(&report, "db-network"), ["Ingress"]);
    let said = "demo/web was dialled by demo/db on ports that differ each time (1 seen in 1 connections, 45639/UDP): pin or forbid";
    assert!(report.said.contains(said), "{}", report.said);
    // Who asks from where it is asked, or is asked where everybody may choose, has fixed ports for all that is known.
    for (answered, asks) in [(51_820, 51_820), (5_060, 69)] {
        let report = tftp(answered, asks);
        assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"]);
        let allowed = report.allows("demo/web-network");
        assert!(allowed.contains(&format!("ingress app=db {answered}/UDP")), "{allowed:?}");
    }
}

#[test]
fn fixed_ports_are_rules_wherever_they_are_and_however_seldom_they_are_used() {
    // Declared.
    let mut declared = ftp();
    let pod = declared.inventory.iter_mut().find(|object| object.addresses.iter().any(|address| &**address == DB));
    pod.expect("it is there").ports = [5_303, 16_794, 54_218].map(|port| tcp(port, None)).into();
    let report = declared.report();
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
    assert_eq!(report.allows("demo/db-network").len(), 4);
    // Low ones, that a client tried once each.
    let mut low = web_and_db();
    for port in [8_080, 8_081, 9_090, 9_091] {
        low.talk(WEB, DB, port);
    }
    assert_eq!(limits(&low.report(), "db-network"), ["Ingress", "Egress"]);
    assert_eq!(low.report().allows("demo/db-network").len(), 5);
    // Those of the kernel's range that come again, at whatever pod.
    let mut again = web_and_db();
    again.pod("demo/db", "10.244.0.22");
    for hours in [0, 5, 30] {
        for port in [40_001, 40_002, 40_003] {
            talk(&mut again, WEB, DB, port, hours);
            talk(&mut again, WEB, "10.244.0.22", port, hours);
        }
    }
    assert_eq!(again.report_with(&["--min-coverage", "0"]).allows("demo/db-network").len(), 4);
    let mut one = web_and_db();
    for hours in [0, 5, 30] {
        [40_001, 40_002, 40_003].into_iter().for_each(|port| talk(&mut one, WEB, DB, port, hours));
    }
    assert_eq!(one.report_with(&["--min-coverage", "0"]).allows("demo/db-network").len(), 4);
    // Connections that stay, as those of gRPC and of scrapers.
    let mut kept = web_and_db();
    for port in [8_080, 9_090, 50_051, 50_052, 50_053] {
        let row = kept.dial(WEB, DB, port);
        (row.closed, row.active) = (0, 1);
        let row = kept.accept(DB, WEB, port);
        (row.closed, row.active) = (0, 1);
    }
    assert_eq!(kept.report().allows("demo/db-network").len(), 6);
    // One alone, as of a node of Erlang.
    let mut single = web_and_db();
    single.talk(WEB, DB, 39_241);
    assert_eq!(single.report().allows("demo/db-network").len(), 2);
}

#[test]
fn who_is_not_meant_by_a_decision_is_left_open_as_before() {
    let mut capture = ftp();
    capture.pod("demo/other", "10.244.0.41");
    for port in [41_001, 47_002] {
        capture.talk("10.244.0.41", DB, port);
    }
    let pinned = capture.report_decided("pin: [{ from: demo/web, to: demo/db, port: 1024-65535/tcp }]");
    assert_eq!(limits(&pinned, "other-network"), ["Ingress"], "{}", pinned.said);
    assert_eq!(limits(&pinned, "web-network"), ["Ingress", "Egress"]);
    assert!(
        pinned.said.contains("demo/db was dialled by demo/other on ports that differ each time (2 seen"),
        "{}",
        pinned.said
    );
}

#[test]
fn several_pins_are_one_range_each_and_what_is_forbidden_at_its_start_is_left_out() {
    let capture = ftp();
    let both = capture.report_decided(
        "pin: [{ from: demo/web, to: demo/db }, { from: demo/web, to: demo/db, port: 5000-65535/tcp }]",
    );
    assert_eq!(both.allows("demo/db-network"), lines(["ingress app=web 5000-65535/TCP"]));
    let unseen = web_and_db().report_decided(
        "{pin: [{ from: demo/web, to: demo/db, port: 30000-30010/tcp }], forbid: [{ from: demo/web, to: demo/db, port: 30000 }]}",
    );
    let expected = lines(["ingress app=web 30001-30010/TCP", "ingress app=web 5432/TCP"]);
    assert_eq!(unseen.allows("demo/db-network"), expected);
    assert!(!unseen.said.contains("concerns nothing"), "{}", unseen.said);
}

#[test]
fn a_scan_is_a_scan_wherever_its_ports_are() {
    // A trace of a route, by datagrams that nobody answers.
    let mut capture = web_and_db();
    for port in 33_434..33_464 {
        let row = capture.dial(WEB, "198.51.100.7", port);
        (row.transport, row.closed, row.bytes_received) = ("udp".into(), 0, Some(0));
    }
    assert_eq!(limits(&capture.report(), "web-network"), ["Ingress", "Egress"]);
}

#[test]
fn each_pod_that_listens_elsewhere_is_of_that_kind() {
    let mut capture = web_and_db();
    for (pod, port) in [("10.244.0.31", 33_001), ("10.244.0.32", 41_017), ("10.244.0.33", 57_777)] {
        capture.pod("demo/worker", pod);
        for _ in 0..4 {
            capture.talk(WEB, pod, port);
        }
    }
    let report = capture.report();
    assert_eq!(limits(&report, "worker-network"), ["Egress"]);
    assert!(report.said.contains("such as port: 32768-60999/tcp"), "{}", report.said);
    // Who has nothing to do with it stays closed.
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
}

#[test]
fn outside_too() {
    let mut capture = web_and_db();
    for port in [35_023, 45_973, 53_297] {
        capture.dial(WEB, "198.51.100.7", port);
    }
    let report = capture.report();
    assert_eq!(limits(&report, "web-network"), ["Ingress"]);
    assert!(
        report.said.contains("demo/web: egress withheld and left open, the ports of 198.51.100.7 differ"),
        "{}",
        report.said
    );
    let pinned = capture.report_decided("pin: [{ from: demo/web, to: 198.51.100.7, port: 32768-60999/tcp }]");
    assert!(pinned.allows("demo/web-network").contains("egress 198.51.100.7/32 32768-60999/TCP"), "{}", pinned.yaml);
}

#[test]
fn a_back_test_says_what_each_choice_would_have_denied() {
    let mut capture = web_and_db();
    for hour in 0..48 {
        talk(&mut capture, WEB, DB, 5_432, hour);
        talk(&mut capture, WEB, DB, 33_000 + hour as u16 * 97, hour);
    }
    let mut end = capture.clean_end();
    end.window_end = TimestampMs(START_MS + 48 * HOUR_MS);
    capture.health = vec![end];
    let directory = capture.write();
    let backtest = |input: &Path| {
        let input = input.to_string_lossy();
        let output = flowscribe(&["backtest", "--input", &input, "--split", "24h", "--min-coverage", "0"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let said = backtest(directory.path());
    let expected = "demo/db: 24 later connections on TCP ports that differ each time\n  allowing the 24 ports seen before would \
                    have denied 24 of them\n  pinning 32768-60999 would have denied 0; left open, none is denied";
    assert!(said.contains(expected), "{said}");
    assert!(!said.contains("  denied  "), "{said}");
}
