//! Kernel programs that an agent lacks: what they would have seen counts as not observed, of the workloads and directions
//! concerned alone.

use schemas::{health::HealthRecord, inventory::ObjectKind, programs::PROGRAMS, table::TimestampMs};

use crate::support::{Capture, DB, START_MS, WEB, flowscribe, lines, report, web_and_db};

const MINUTE_MS: i64 = 60_000;

/// All programs of a kernel that has everything, but some.
fn all_but(missing: &[&str]) -> Vec<&'static str> {
    let is_substitute = |name| PROGRAMS.iter().any(|program| program.substitutes.contains(&name));
    let names = PROGRAMS.iter().map(|program| program.name);
    names.filter(|name| !is_substitute(name) && !missing.contains(name)).collect()
}

/// Has the agent of `node-a` record for so many minutes more, with some programs.
fn record(capture: &mut Capture, programs: &[&str], minutes: i64) {
    let end = capture.clean_end();
    let last = capture.health.iter_mut().rfind(|row| row.node == end.node);
    let (seq, start) = last.map_or((0, end.window_start), |last| {
        last.clean_shutdown = false;
        (last.seq + 1, last.window_end)
    });
    capture.health.push(HealthRecord {
        seq,
        window_start: start,
        window_end: TimestampMs(start.0 + minutes * MINUTE_MS),
        programs: programs.iter().map(|name| (*name).into()).collect(),
        ..end
    });
}

/// `demo/web` talks to `demo/db`; both were recorded with these programs.
fn recorded_with(programs: &[&str]) -> Capture {
    let mut capture = web_and_db();
    record(&mut capture, programs, 1);
    capture
}

/// The directions that the policies of `demo/web` and `demo/db` close.
fn closed(yaml: &str) -> [Vec<&str>; 2] {
    ["web-network", "db-network"].map(|name| {
        let policy = yaml.split("---\n").find(|policy| policy.contains(&format!("name: {name}\n"))).unwrap_or_default();
        ["Ingress", "Egress"].into_iter().filter(|direction| policy.contains(&format!("  - {direction}\n"))).collect()
    })
}

const BOTH: [&str; 2] = ["Ingress", "Egress"];

#[test]
fn what_a_missing_program_would_have_seen_sent_leaves_egress_open_and_nothing_else() {
    let whole = recorded_with(&all_but(&[])).report();
    assert_eq!(whole.yaml, web_and_db().report().yaml, "nothing is missing: closed as ever");
    assert_eq!(closed(&whole.yaml), [BOTH, BOTH]);
    assert!(!whole.said.contains("was missing"), "{}", whole.said);

    let report = recorded_with(&all_but(&["observe_sendmsg4"])).report();
    assert_eq!(closed(&report.yaml), [["Ingress"], ["Ingress"]]);
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    for said in [
        "observe_sendmsg4 was missing on node-a from 2026-03-01T10:00:00Z to 2026-03-01T10:01:00Z: UDP sent by \
         unconnected sockets over IPv4 was not seen, which counts as egress of the pods there with IPv4 not observed\n",
        "demo/web: egress withheld and left open, UDP sent by unconnected sockets over IPv4 was not seen for 100 % of its \
         pods' time: observe_sendmsg4 was missing on node-a\n",
    ] {
        assert!(report.said.contains(said), "{}", report.said);
    }
    assert!(!report.said.contains("ingress withheld") && !report.said.contains("was not watched"), "{}", report.said);
}

#[test]
fn what_a_missing_program_would_have_seen_received_leaves_ingress_open() {
    for name in ["observe_recvmsg4", "observe_recvmsg6", "observe_received"] {
        let report = recorded_with(&all_but(&[name])).report();
        assert_eq!(closed(&report.yaml), [["Egress"], ["Egress"]], "{name}");
        assert!(report.said.contains(&format!("{name} was missing on node-a")), "{}", report.said);
    }
}

#[test]
fn a_program_that_was_missing_for_a_moment_opens_nothing() {
    let mut capture = web_and_db();
    record(&mut capture, &all_but(&[]), 50);
    record(&mut capture, &all_but(&["observe_sendmsg4"]), 1);
    record(&mut capture, &all_but(&[]), 49);
    let report = capture.report();
    assert_eq!(closed(&report.yaml), [BOTH, BOTH]);
    assert!(!report.said.contains("withheld"), "{}", report.said);
    let strict = capture.report_with(&["--min-coverage", "0.995"]);
    assert_eq!(closed(&strict.yaml), [["Ingress"], ["Ingress"]]);
    assert!(strict.said.contains("was not seen for 1 % of its pods' time"), "{}", strict.said);
    let status = |said: &str| said.lines().filter(|line| line.contains("stable yet")).count();
    assert_eq!((status(&report.said), status(&strict.said)), (1, 1), "{}", strict.said);
}

#[test]
fn a_workload_whose_pods_run_elsewhere_is_not_concerned() {
    let mut capture = web_and_db();
    capture.object(ObjectKind::Node, None, "node-b").addresses = vec!["192.0.2.2".into()];
    let web = capture.inventory.iter_mut().find(|record| record.addresses.iter().any(|address| &**address == WEB));
    web.expect("the pod").object_node = Some("node-b".into());
    let mut other = capture.clean_end();
    (other.node, other.run_id, other.flows_next_seq, other.inventory_next_seq) =
        ("node-b".into(), "run-2".into(), 0, 0);
    other.programs = all_but(&[]).into_iter().map(Into::into).collect();
    capture.health.push(other);
    record(&mut capture, &all_but(&["observe_sent"]), 1);
    let report = capture.report();
    assert_eq!(closed(&report.yaml), [&BOTH[..], &["Ingress"]]);
    assert!(report.said.contains("demo/db: egress withheld and left open, UDP sent by connected"), "{}", report.said);
}

#[test]
fn connected_sockets_are_seen_by_the_programs_of_older_kernels_too() {
    let mut programs = all_but(&["observe_sent", "observe_received"]);
    programs.extend(["observe_send4", "observe_send6", "observe_receive4"]);
    let report = recorded_with(&programs).report();
    assert_eq!(closed(&report.yaml), [["Egress"], ["Egress"]], "IPv6 sockets receive IPv4 too");
    programs.push("observe_receive6");
    assert_eq!(closed(&recorded_with(&programs).report().yaml), [BOTH, BOTH]);
}

#[test]
fn what_goes_over_ipv6_concerns_pods_that_have_it() {
    let mut capture = recorded_with(&all_but(&["observe_sendmsg6"]));
    assert_eq!(closed(&capture.report().yaml), [BOTH, BOTH]);
    let db = capture.inventory.iter_mut().find(|record| record.addresses.iter().any(|address| &**address == DB));
    db.expect("the pod").addresses.push("fd00:10:244::21".into());
    assert_eq!(closed(&capture.report().yaml), [&BOTH[..], &["Ingress"]]);
}

#[test]
fn connections_older_than_the_run_are_missed_where_the_agent_could_have_told() {
    let report = recorded_with(&all_but(&["adopt_sockets"])).report();
    assert_eq!(closed(&report.yaml), [[""; 0], [""; 0]]);
    let said = "demo/web: ingress and egress withheld and left open, traffic of connections that were open when the agent \
                started was not seen for 100 % of its pods' time: adopt_sockets was missing on node-a";
    assert!(report.said.contains(said), "{}", report.said);
    let older = recorded_with(&all_but(&["adopt_sockets", "list_open"])).report();
    assert_eq!(closed(&older.yaml), [BOTH, BOTH], "older agents listed neither");
    let other = recorded_with(&["sock_ops"]).report();
    assert_eq!(closed(&other.yaml), [BOTH, BOTH], "nothing is known of such a list");
}

#[test]
fn every_command_says_what_was_not_seen() {
    let mut capture = recorded_with(&all_but(&[]));
    record(&mut capture, &all_but(&["observe_sendmsg4"]), 2);
    let directory = capture.write();
    let input = directory.path().to_string_lossy().into_owned();
    let run = |arguments: &[&str]| {
        let output = flowscribe(&[arguments, &["--input", &input]].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let (out, said) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
        out
    };
    let query = "select node, gap_start, gap_end, reason from capture_gaps";
    let gaps = run(&["sql", "--format", "csv", query]);
    let gap = "node-a,2026-03-01T10:01:00Z,2026-03-01T10:03:00Z,UDP sent by unconnected sockets over IPv4 was not seen: \
               observe_sendmsg4 was missing";
    assert_eq!(gaps.lines().skip(1).collect::<Vec<_>>(), [gap]);
    let coverage = run(&["sql", "--format", "csv", "select sum(pod_ms), sum(observed_ms) from coverage"]);
    assert_eq!(coverage.lines().nth(1), Some("360000,360000"), "all else was watched");
    let sets = run(&["sets"]);
    assert!(sets.contains("100 % observed, all of its egress 33 % (missing: observe_sendmsg4); "), "{sets}");
    let explained = run(&["explain", "demo/web-network"]);
    assert!(
        explained.contains("  egress is withheld: UDP sent by unconnected sockets over IPv4 was not"),
        "{explained}"
    );
    let policies = tempfile::tempdir().expect("a directory");
    let place = policies.path().join("policies/").to_string_lossy().into_owned() + "/";
    run(&["regenerate", "--output", &place]);
    let text = std::fs::read_to_string(policies.path().join("policies/demo.web-network.yaml")).expect("the policy");
    assert!(text.contains("- Ingress\n") && !text.contains("Egress"), "{text}");
    let verified = run(&["verify", "--policies", &place]);
    assert!(verified.contains("1 observed edges allowed, 0 denied"), "{verified}");
    // What is remembered of health says the same.
    let state = tempfile::tempdir().expect("a directory");
    let state = state.path().to_string_lossy().into_owned();
    let remembered = || report(directory.path(), &["--state", &state]);
    assert_eq!([remembered().said, remembered().said], [(); 2].map(|()| report(directory.path(), &[]).said));
}

#[test]
fn two_agents_of_a_node_see_what_one_of_them_lacks() {
    let mut capture = recorded_with(&all_but(&["observe_sendmsg4"]));
    let mut other = capture.clean_end();
    (other.run_id, other.flows_next_seq, other.inventory_next_seq) = ("run-2".into(), 0, 0);
    other.programs = all_but(&["observe_recvmsg4"]).into_iter().map(Into::into).collect();
    capture.health.push(other);
    let report = capture.report();
    assert_eq!(closed(&report.yaml), [BOTH, BOTH]);
    assert!(!report.said.contains("was missing"), "{}", report.said);
    capture.health[1].window_end = TimestampMs(START_MS + MINUTE_MS / 2);
    let report = capture.report();
    assert_eq!(closed(&report.yaml), [["Ingress"], ["Ingress"]], "for half of the time");
    assert!(report.said.contains("was missing on node-a from 2026-03-01T10:00:30Z to "), "{}", report.said);
}
