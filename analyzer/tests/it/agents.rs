//! Two agents that record one node into one capture: what both saw counts once, and the report says so.

use std::{fs, path::Path};

use schemas::{flow::FlowRecord, health::HealthRecord, inventory::ObjectKind, table::TimestampMs};

use crate::support::{Capture, DB, Report, START_MS, WEB, flowscribe, report};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// A run of an agent of `node-a`: its name, and the minutes that it recorded.
type Run = (&'static str, i64, i64);

/// Both pods, and a connection from `demo/web` to `demo/db` in every minute, recorded by these runs.
fn recorded_by(runs: &[Run]) -> Capture {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("demo/db", DB);
    for (run_id, from, to) in runs {
        record(&mut capture, "node-a", run_id, (*from, *to), |capture| capture.talk(WEB, DB, 5432));
    }
    capture
}

/// Has a run of an agent see something in every minute from one to another.
fn record(capture: &mut Capture, node: &str, run_id: &str, minutes: (i64, i64), see: impl Fn(&mut Capture)) {
    let at = |minute: i64| TimestampMs(START_MS + minute * MINUTE_MS);
    let mut seq = 0;
    for minute in minutes.0..minutes.1 {
        let before = capture.flows.len();
        see(capture);
        for row in &mut capture.flows[before..] {
            (row.node, row.run_id, row.seq) = (node.into(), run_id.into(), seq);
            move_to(row, minute);
            seq += 1;
        }
    }
    let inventory_next_seq = if run_id == "run-1" { capture.inventory.len() as i64 } else { 0 };
    capture.health.push(HealthRecord {
        node: node.into(),
        run_id: run_id.into(),
        run_start: at(minutes.0),
        window_start: at(minutes.0),
        window_end: at(minutes.1),
        flows_next_seq: seq,
        inventory_next_seq,
        ..capture.clean_end()
    });
}

fn move_to(row: &mut FlowRecord, minute: i64) {
    let later = |time: TimestampMs| TimestampMs(time.0 + minute * MINUTE_MS);
    (row.window_start, row.window_end) = (later(row.window_start), later(row.window_end));
    (row.first_seen, row.last_seen) = (later(row.first_seen), later(row.last_seen));
}

/// Connections, bytes and duration by hour and edge, and which ends saw it.
fn edges(input: &Path) -> Vec<String> {
    let query = "select extract(hour from hour) as hour, destination_workload, port, seen_by, connections, bytes_sent, \
                 retransmits from edges order by 1, 2, 3";
    let output = flowscribe(&["sql", "--input", &input.to_string_lossy(), query, "--format", "csv"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().skip(1).map(str::to_owned).collect()
}

fn edges_of(capture: &Capture) -> Vec<String> {
    edges(capture.write().path())
}

/// What a report says of it, but for the numbers of rows and files.
fn said(report: &Report) -> (&str, &str) {
    (
        &report.yaml,
        report.said.split(" rows of flows in ").next().unwrap_or_default().trim_end_matches(char::is_numeric),
    )
}

#[test]
fn what_two_agents_of_a_node_saw_at_once_counts_once_and_is_named() {
    let twice = recorded_by(&[("run-1", 0, 120), ("run-2", 0, 120)]);
    assert_eq!(edges_of(&twice), edges_of(&recorded_by(&[("run-1", 0, 120)])));
    let report = twice.report();
    let named = "node node-a was recorded by several agents at the same time: runs run-1 and run-2 for 2h, from \
                 2026-03-01T10:00:00Z to 2026-03-01T12:00:00Z; what both saw counts once: run one agent per node, each with \
                 its own --node, or have each write to a directory of its own\n";
    assert!(report.said.contains(named), "{}", report.said);
    let directory = twice.write();
    let input = directory.path().to_string_lossy().into_owned();
    for arguments in [&["sets"][..], &["explain", "demo/db-network"]] {
        let output = flowscribe(&[arguments, &["--input", &input]].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{arguments:?}");
    }
    let sets = String::from_utf8(flowscribe(&["sets", "--input", &input]).stdout).expect("text");
    assert!(sets.contains("2 of 2 h, 120 connections, seen by both"), "{sets}");
}

#[test]
fn runs_that_follow_one_another_add_up_and_take_their_time_to_take_over() {
    let one = edges_of(&recorded_by(&[("run-1", 0, 60)]));
    let follow = recorded_by(&[("run-1", 0, 30), ("run-2", 30, 60)]);
    assert_eq!(edges_of(&follow), one);
    let overlap = recorded_by(&[("run-1", 0, 30), ("run-2", 28, 60)]);
    assert_eq!(edges_of(&overlap), ["10,db,5432,both,62,6200,0"], "two minutes are nobody's mistake");
    for capture in [follow, overlap] {
        let report = capture.report();
        assert!(!report.said.contains("several agents"), "{}", report.said);
    }
}

#[test]
fn restarts_of_one_of_two_agents_change_nothing() {
    let runs = [("run-1", 0, 60), ("run-2", 0, 20), ("run-3", 20, 40), ("run-4", 40, 60)];
    assert_eq!(edges_of(&recorded_by(&runs)), edges_of(&recorded_by(&[("run-1", 0, 60)])));
}

#[test]
fn hours_in_which_one_agent_recorded_are_counted_as_ever() {
    let capture = recorded_by(&[("run-1", 0, 180), ("run-2", 60, 90)]);
    assert_eq!(edges_of(&capture), edges_of(&recorded_by(&[("run-1", 0, 180)])));
    let capture = recorded_by(&[("run-1", 0, 80), ("run-2", 60, 120), ("run-3", 120, 180)]);
    assert_eq!(edges_of(&capture), edges_of(&recorded_by(&[("run-1", 0, 180)])));
}

#[test]
fn no_edge_is_lost_and_other_nodes_add_up() {
    let mut capture = recorded_by(&[("run-1", 0, 60)]);
    capture.object(ObjectKind::Node, None, "node-b").addresses = vec!["192.0.2.2".into()];
    capture.pod("demo/web", "10.244.0.12").object_node = Some("node-b".into());
    // The second agent of node-a sees another port only, and one on node-b a replica of the client.
    record(&mut capture, "node-a", "run-2", (0, 60), |capture| capture.talk(WEB, DB, 9187));
    record(&mut capture, "node-b", "run-3", (0, 60), |capture| {
        capture.dial("10.244.0.12", DB, 5432);
    });
    capture.health[0].inventory_next_seq = capture.inventory.len() as i64;
    assert_eq!(edges_of(&capture), ["10,db,5432,both,120,12000,0", "10,db,9187,both,60,6000,0"]);
    assert!(capture.report().allows("demo/db-network").contains("ingress app=web 9187/TCP"));
}

#[test]
fn an_end_that_its_other_end_names_counts_once_too() {
    let make = |runs: &[Run]| {
        let mut capture = recorded_by(runs);
        // For a moment both db and cache hold the address; the server itself knows who it is.
        capture.pod("demo/cache", DB);
        for row in capture.flows.iter_mut().filter(|row| &*row.observer == "server") {
            row.destination_workload = Some("cache".into());
            row.destination_pod = Some(format!("cache-{DB}").into());
            row.destination_pod_uid = Some(format!("uid-cache-{DB}").into());
        }
        capture.health[0].inventory_next_seq += 2;
        capture
    };
    let once = edges_of(&make(&[("run-1", 0, 60)]));
    assert_eq!(once, ["10,cache,5432,both,60,6000,0"]);
    assert_eq!(edges_of(&make(&[("run-1", 0, 60), ("run-2", 0, 60)])), once);
}

/// Sums up; and removes the flows that are.
fn compact(input: &Path, is_pruned: bool) {
    let input = input.to_string_lossy().into_owned();
    let compact = ["compact", "--keep", "0s", "--input", &input];
    let prune = ["prune", "--older-than", "1s", "--input", &input];
    for arguments in [&compact[..], &prune].into_iter().take(1 + usize::from(is_pruned)) {
        let output = flowscribe(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Puts the files of a capture with those of another one.
fn deliver(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("made");
            deliver(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn rollups_give_what_the_flows_gave() {
    let capture = recorded_by(&[("run-1", 0, 180), ("run-2", 60, 180), ("run-3", 30, 45)]);
    let expected = (edges_of(&capture), capture.report());
    for is_pruned in [false, true] {
        let directory = capture.write();
        compact(directory.path(), is_pruned);
        assert_eq!(edges(directory.path()), expected.0);
        assert_eq!(said(&report(directory.path(), &[])), said(&expected.1), "pruned: {is_pruned}");
    }
}

#[test]
fn an_agent_that_is_heard_of_late_is_counted_once_all_the_same() {
    let both = recorded_by(&[("run-1", 0, 120), ("run-2", 60, 120)]);
    let expected = edges_of(&both);
    let (mut first, mut second) = (both.clone(), both.clone());
    first.flows.retain(|row| &*row.run_id == "run-1");
    first.health.retain(|row| &*row.run_id == "run-1");
    second.inventory.clear();
    second.flows.retain(|row| &*row.run_id == "run-2");
    second.health.retain(|row| &*row.run_id == "run-2");
    let state = tempfile::tempdir().expect("a directory");
    for is_pruned in [false, true] {
        let directory = first.write();
        let state = state.path().join(is_pruned.to_string()).to_string_lossy().into_owned();
        report(directory.path(), &["--state", &state]);
        compact(directory.path(), is_pruned);
        report(directory.path(), &["--state", &state]);
        deliver(second.write().path(), directory.path());
        assert_eq!(edges(directory.path()), expected, "pruned: {is_pruned}");
        let remembered = report(directory.path(), &["--state", &state, "--explain"]);
        assert_eq!(said(&remembered), said(&both.report_with(&["--explain"])), "pruned: {is_pruned}");
        compact(directory.path(), is_pruned);
        assert_eq!(edges(directory.path()), expected, "pruned: {is_pruned}, summed up again");
    }
    // Only what says that they overlap comes late.
    let directory = first.write();
    let flows = Capture { health: vec![second.health[0].clone()], ..second.clone() }.write();
    deliver(&flows.path().join("flows"), &directory.path().join("flows"));
    assert_ne!(edges(directory.path()), expected, "nobody can know");
    compact(directory.path(), false);
    deliver(&flows.path().join("health"), &directory.path().join("health"));
    assert_eq!(edges(directory.path()), expected);
}

#[test]
fn a_capture_of_hours_far_apart_is_no_trouble() {
    let mut capture = recorded_by(&[("run-1", 0, 60), ("run-2", 0, 60)]);
    let mut row = capture.flows[0].clone();
    (row.seq, row.first_seen, row.last_seen) = (120, TimestampMs(-HOUR_MS), TimestampMs(-HOUR_MS));
    (row.window_start, row.window_end) = (TimestampMs(-HOUR_MS), TimestampMs(1 - HOUR_MS));
    capture.flows.push(row);
    assert!(capture.report().said.contains("several agents"));
    assert_eq!(edges_of(&capture).len(), 2);
}
