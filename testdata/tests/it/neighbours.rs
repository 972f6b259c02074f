//! Programs of others on the same hooks: nothing is lost without a count, and whose they are is said.

use std::{collections::BTreeMap, path::Path};

use schemas::{flow::FlowRecord, health::HealthRecord};
use serde_json::Value;
use testdata::{
    lab::{Lab, PodId},
    neighbour::{NAME, Neighbour},
    pod::Exchange,
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{balance, documents, executable, flowscribe, lab, pod, rows},
};

tests![
    flags_that_are_overwritten_before_our_programs_run_cost_nothing,
    flags_that_are_overwritten_after_our_programs_ran_are_noticed_counted_and_made_up_for,
    a_connect_that_fails_after_its_flag_was_overwritten_is_recorded_once,
    connects_that_fail_are_recorded_where_nothing_else_shows_who_overwrites_flags,
    a_program_of_a_cgroup_above_is_seen_as_well,
    who_holds_a_hook_for_itself_is_named_and_the_rest_is_recorded,
];

const CALL: Exchange = Exchange::new(10, 20);
const TIMES: u32 = 5;

/// Where another program is, and when it comes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// On the cgroup that the agent watches, attached before the agent's programs, and so run before them.
    Before,
    /// On the same, attached after them.
    After,
    /// On a cgroup below, whose programs run first, whenever they came.
    Below,
}

/// Connections that both ends' rows hold, by observer, and what the run says of them.
#[derive(Debug)]
struct Outcome {
    connections: BTreeMap<String, i64>,
    closed: BTreeMap<String, i64>,
    seen: i64,
    lost: i64,
    said: String,
}

/// Records while a program overwrites callback flags at an operation; dials once as soon as it is there, and again when
/// the agent has noticed, if it is to.
fn record(lab: &mut Lab, (client, server): (PodId, PodId), place: Place, operation: u32, again: bool) -> Outcome {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let below = lab.cgroup_of_pod(if operation == 5 { server } else { client }).to_path_buf();
    let watched = lab.cgroup().to_path_buf();
    let attach = |cgroup| Neighbour::overwriting(cgroup, operation).expect("the kernel takes another program");
    let before = (place == Place::Before).then(|| attach(&watched));
    let recording = Recording::start(executable(), lab, &output, &["--window", "1s"]).expect("the exporter records");
    let after = match place {
        Place::Before => None,
        Place::After => Some(attach(&watched)),
        Place::Below => Some(attach(&below)),
    };
    let to = (lab.ipv4(server), 7001);
    lab.dial(client, to, TIMES, CALL).expect("the server answers");
    if again {
        // Of what stays open, the next scan sees that the flag is missing.
        lab.hold(client, to, CALL).expect("the server answers");
        recording.wait_for(OVERWRITES);
        lab.dial(client, to, TIMES, CALL).expect("the server answers");
        lab.release(client).expect("it lets go");
    }
    let said = recording.stop().expect("the exporter ends well");
    drop((before, after));
    balance(&output);
    let (mut connections, mut closed) = (BTreeMap::new(), BTreeMap::new());
    for row in rows::<FlowRecord>(&output) {
        *connections.entry(row.observer.to_string()).or_default() += row.connections;
        *closed.entry(row.observer.to_string()).or_default() += row.closed;
    }
    let health = rows::<HealthRecord>(&output);
    let sum = |pick: fn(&HealthRecord) -> i64| health.iter().map(pick).sum::<i64>();
    Outcome { connections, closed, seen: sum(|row| row.seen), lost: sum(HealthRecord::lost), said }
}

fn ends(lab: &mut Lab) -> (PodId, PodId) {
    let ends = (pod(lab, "client"), pod(lab, "server"));
    lab.listen(ends.1, 7001, CALL).expect("the port is free");
    ends
}

/// At connect, at either establishment, and at changes of state.
const OPERATIONS: [u32; 4] = [3, 4, 5, 10];

fn flags_that_are_overwritten_before_our_programs_run_cost_nothing() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    let exact: BTreeMap<String, i64> = [("client".into(), TIMES.into()), ("server".into(), TIMES.into())].into();
    for place in [Place::Before, Place::Below] {
        for operation in OPERATIONS {
            let outcome = record(&mut lab, ends, place, operation, false);
            assert_eq!(outcome.connections, exact, "{place:?}, operation {operation}: {outcome:?}");
            assert_eq!(outcome.closed, exact, "{place:?}, operation {operation}: {outcome:?}");
            assert_eq!((outcome.seen, outcome.lost), (10, 0), "{place:?}, operation {operation}: {outcome:?}");
        }
    }
    Ok(())
}

fn flags_that_are_overwritten_after_our_programs_ran_are_noticed_counted_and_made_up_for() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    for operation in OPERATIONS {
        let outcome = record(&mut lab, ends, Place::After, operation, true);
        // Both ends of the first five, of the one that was held, and of the five after it was noticed.
        let all = 2 * (2 * i64::from(TIMES) + 1);
        assert_eq!(outcome.seen, all, "operation {operation}: {outcome:?}");
        let recorded: i64 = outcome.connections.values().sum();
        assert_eq!(recorded + outcome.lost, all, "operation {operation}: {outcome:?}");
        // What was lost began and ended before it was noticed.
        let most = if operation == 3 { 0 } else { 2 * i64::from(TIMES) };
        assert!(outcome.lost <= most, "operation {operation}: {outcome:?}");
        let closed: i64 = outcome.closed.values().sum();
        assert_eq!(closed, recorded, "operation {operation}: {outcome:?}");
        let named = format!("`{NAME}`");
        assert!(outcome.said.contains(&named), "operation {operation}: {outcome:?}");
    }
    Ok(())
}

fn a_connect_that_fails_after_its_flag_was_overwritten_is_recorded_once() -> Ran {
    let mut lab = lab()?;
    let (client, server) = ends(&mut lab);
    // At connect, so that the end is found by the tracepoint alone; at changes of state, so that both are called for it.
    for operation in [3, 10] {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("capture");
        let recording =
            Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
        let other = Neighbour::overwriting(lab.cgroup(), operation).expect("the kernel takes another program");
        lab.hold(client, (lab.ipv4(server), 7001), CALL).expect("the server answers");
        recording.wait_for(OVERWRITES);
        for _ in 0..3 {
            lab.dial(client, (lab.ipv4(server), 7999), 1, CALL).expect_err("nobody listens there");
        }
        lab.release(client).expect("it lets go");
        recording.stop().expect("the exporter ends well");
        drop(other);
        balance(&output);
        let flows = rows::<FlowRecord>(&output);
        let refused = flows.iter().filter(|row| row.failure.as_deref() == Some("refused"));
        let refused: Vec<(u16, i64)> = refused.map(|row| (row.destination_port, row.failed)).collect();
        let failed: i64 = refused.iter().map(|(_, failed)| failed).sum();
        assert_eq!(failed, 3, "operation {operation}: {flows:?}");
        assert!(refused.iter().all(|(port, _)| *port == 7999), "operation {operation}: {refused:?}");
    }
    Ok(())
}

/// Dials a port where nobody listens, three times, and returns how many of these the capture has.
fn fail(lab: &mut Lab, (client, server): (PodId, PodId), recording: Recording, output: &Path) -> (i64, String) {
    for _ in 0..3 {
        lab.dial(client, (lab.ipv4(server), 7999), 1, CALL).expect_err("nobody listens there");
    }
    let said = recording.stop().expect("the exporter ends well");
    balance(output);
    let flows = rows::<FlowRecord>(output);
    assert!(
        flows.iter().all(|row| row.destination_port == 7999 && row.failure.as_deref() == Some("refused")),
        "{flows:?}"
    );
    (flows.iter().map(|row| row.failed).sum(), said)
}

/// What is said of a program that has the last word on callback flags.
const RUNS_AFTER: &str = "runs after this agent's";
const OVERWRITES: &str = "another sock_ops program overwrites";

fn connects_that_fail_are_recorded_where_nothing_else_shows_who_overwrites_flags() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    // One that came before the agent's programs runs before them, and none of it is news.
    for (name, place) in [("after", Place::After), ("before", Place::Before)] {
        let output = directory.path().join(name);
        let attach = || Neighbour::overwriting(lab.cgroup(), 3).expect("the kernel takes another program");
        let before = (place == Place::Before).then(attach);
        let recording =
            Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
        let after = (place == Place::After).then(attach);
        if after.is_some() {
            recording.wait_for(RUNS_AFTER);
        }
        let (failed, said) = fail(&mut lab, ends, recording, &output);
        drop((before, after));
        assert_eq!(failed, 3, "{place:?}: {said}");
        assert!(!said.contains(OVERWRITES), "{place:?}: no connection was answered: {said}");
        assert_eq!(said.contains(&format!("`{NAME}`")), place == Place::After, "{place:?}: {said}");
    }
    Ok(())
}

fn a_program_of_a_cgroup_above_is_seen_as_well() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let other = Neighbour::overwriting(lab.cgroup(), 3).expect("the kernel takes another program");
    let below = lab.cgroup_of_pod(ends.0);
    let recording = Recording::of_cgroup(executable(), &lab, below, &output, &["--window", "1s"]);
    let recording = recording.expect("the exporter records");
    recording.wait_for(RUNS_AFTER);
    let (failed, said) = fail(&mut lab, ends, recording, &output);
    drop(other);
    assert_eq!(failed, 3, "{said}");
    assert!(said.contains(&format!("`{NAME}`")), "{said}");
    Ok(())
}

fn who_holds_a_hook_for_itself_is_named_and_the_rest_is_recorded() -> Ran {
    let mut lab = lab()?;
    let (client, server) = ends(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let other = Neighbour::holding_sendmsg4(lab.cgroup()).expect("the kernel takes another program");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
    lab.dial(client, (lab.ipv4(server), 7001), TIMES, CALL).expect("the server answers");
    let said = recording.stop().expect("the exporter ends well");
    drop(other);
    assert!(said.contains("observe_sendmsg4") && said.contains("held exclusively by program"), "{said}");
    assert!(said.contains(&format!("`{NAME}`")), "{said}");
    let health = rows::<HealthRecord>(&output);
    for row in &health {
        let programs: Vec<&str> = row.programs.iter().map(|name| &**name).collect();
        assert!(!programs.contains(&"observe_sendmsg4") && programs.contains(&"observe_sendmsg6"), "{programs:?}");
    }
    assert_eq!(health.iter().map(|row| row.exported).sum::<i64>(), 10);
    let open = report(&output);
    assert!(open.said.contains("observe_sendmsg4 was missing on"), "{}", open.said);
    assert_eq!(open.closed, ["Ingress", "Ingress"], "{}", open.said);

    // The same without the other program: every direction is closed.
    let output = directory.path().join("whole");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
    lab.dial(client, (lab.ipv4(server), 7001), TIMES, CALL).expect("the server answers");
    recording.stop().expect("the exporter ends well");
    let whole = report(&output);
    assert!(!whole.said.contains("was missing"), "{}", whole.said);
    assert_eq!(whole.closed, ["Egress", "Egress", "Ingress", "Ingress"], "{}", whole.said);
    Ok(())
}

/// What a report closes, in order, and what it says.
struct Report {
    closed: Vec<String>,
    said: String,
}

fn report(capture: &Path) -> Report {
    let output = flowscribe(&["report", "--input", &capture.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let mut closed = Vec::new();
    for policy in documents(&String::from_utf8_lossy(&output.stdout)) {
        let directions = policy["spec"]["policyTypes"].as_array().into_iter().flatten();
        closed.extend(directions.filter_map(Value::as_str).map(str::to_owned));
    }
    closed.sort_unstable();
    Report { closed, said }
}
