//! The view `edges`: two observers of one edge, and what the one knows that the other does not.

use schemas::table::TimestampMs;

use crate::support::{Capture, DB, START_MS, WEB, flowscribe, lines};

/// Runs a query over a capture and returns its CSV without the header.
fn query(capture: &Capture, sql: &str) -> Vec<String> {
    let directory = capture.write();
    let output = flowscribe(&["sql", "--input", &directory.path().to_string_lossy(), sql, "--format", "csv"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().skip(1).map(str::to_owned).collect()
}

/// Both pods, and no traffic yet.
fn pods() -> Capture {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("demo/db", DB);
    capture
}

const COUNTS: &str = "select source_workload, destination_workload, port, seen_by, connections, bytes_sent, retransmits \
    from edges order by 1, 2, 3";

#[test]
fn an_edge_that_both_ends_saw_counts_once() {
    let mut capture = pods();
    capture.talk(WEB, DB, 5432);
    capture.talk(WEB, DB, 5432);
    capture.dial(WEB, DB, 5432).retransmits = 3;
    assert_eq!(query(&capture, COUNTS), ["web,db,5432,both,3,300,3"], "the larger sum of the two, never their sum");
}

#[test]
fn an_edge_through_a_service_is_the_edge_that_its_server_saw() {
    let mut capture = pods();
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"app":"db"}"#));
    capture.talk_through(WEB, ("10.96.0.5", 80), (DB, 5432));
    assert_eq!(query(&capture, COUNTS), ["web,db,5432,both,1,100,0"]);
    let through = "select via_service, answered, services, dialled_ports from edges";
    assert_eq!(query(&capture, through), ["true,true,[demo/db],[80]"]);
}

#[test]
fn replicas_behind_a_service_do_not_multiply_a_connection() {
    let mut capture = pods();
    capture.pod("demo/db", "10.244.0.22");
    capture.service("demo/db", "10.96.0.5", 80, "5432", Some(r#"{"app":"db"}"#));
    capture.dial(WEB, "10.96.0.5", 80).connections = 7;
    assert_eq!(query(&capture, COUNTS), ["web,db,5432,client,7,100,0"]);
}

#[test]
fn an_edge_is_told_per_hour_and_the_last_window_belongs_to_its_own() {
    let mut capture = pods();
    for hour in 0..2 {
        capture.talk(WEB, DB, 5432);
        for row in capture.flows.iter_mut().rev().take(2) {
            let end = START_MS + (hour + 1) * 3_600_000;
            (row.window_start, row.window_end) = (TimestampMs(end - 60_000), TimestampMs(end));
        }
    }
    let hours = query(&capture, "select hour, connections from edges order by hour");
    assert_eq!(hours, ["2026-03-01T10:00:00Z,1", "2026-03-01T11:00:00Z,1"]);
}

#[test]
fn a_repeated_row_counts_once() {
    let mut capture = pods();
    capture.talk(WEB, DB, 5432);
    let mut health = capture.clean_end();
    health.flows_next_seq = 2;
    capture.health.push(health);
    let again = capture.flows.clone();
    capture.flows.extend(again);
    let directory = capture.write();
    let input = directory.path().to_string_lossy().into_owned();
    // The same file again, as a second delivery of it.
    let copy = directory.path().join("again");
    let from = directory.path().join("flows/date=2026-03-01/hour=10");
    std::fs::create_dir_all(&copy).expect("made");
    for file in std::fs::read_dir(from).expect("the flows").flatten() {
        std::fs::copy(file.path(), copy.join(file.file_name())).expect("copied");
    }
    let output = flowscribe(&["sql", "--input", &input, "select sum(connections) from edges", "--format", "csv"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().nth(1), Some("1"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_ambiguous_address_is_what_the_other_end_says_it_is() {
    let mut capture = pods();
    // For a moment both db and cache hold the address.
    capture.pod("demo/cache", DB);
    capture.dial(WEB, DB, 6379);
    assert_eq!(
        query(&capture, "select destination_kind, destination_unknown_reason from edges"),
        ["unknown,ambiguous"],
        "nobody can tell"
    );
    capture.accept(DB, WEB, 6379);
    assert_eq!(query(&capture, COUNTS), ["web,cache,6379,both,1,100,0"], "the server itself knows who it is");
    assert_eq!(capture.report().allows("demo/web-network"), lines(["egress app=cache 6379/TCP"]));
}

#[test]
fn clocks_two_seconds_apart_name_the_right_pod_or_say_that_they_can_not() {
    let at = |ms: i64| TimestampMs(START_MS + ms);
    let dialled = |first_seen_ms: i64| {
        let mut capture = pods();
        // db's address was another pod's until 10 s after the start, by the clock of the node that told of both.
        capture.inventory.retain(|record| &*record.name != "db-10.244.0.20");
        capture.pod("demo/old", DB);
        let (mut gone, mut new) = (capture.pod("demo/old", DB).clone(), capture.pod("demo/db", DB).clone());
        capture.inventory.retain(|record| !record.name.starts_with("db-") && record.event.as_ref() != "upsert");
        (gone.event, gone.observed_at, gone.seq) = ("delete".into(), at(10_000), 900);
        (new.event, new.observed_at, new.seq) = ("upsert".into(), at(10_500), 901);
        capture.inventory.extend([gone, new]);
        // The client's clock is up to 2 s off.
        let row = capture.dial(WEB, DB, 5432);
        (row.first_seen, row.last_seen) = (at(first_seen_ms), at(first_seen_ms + 10));
        query(&capture, "select destination_workload, destination_unknown_reason from edges")
    };
    assert_eq!(dialled(5_000), ["old,"]);
    assert_eq!(dialled(9_000), [",ambiguous"], "it may have been either's");
    assert_eq!(dialled(11_500), [",ambiguous"]);
    assert_eq!(dialled(13_000), ["db,"]);
}
