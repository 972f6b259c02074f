//! A generated month against its truth: edges, sets, coverage, and every question of the cookbook.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use serde_json::Value;
use testdata::generator::{Plan, Story, TrueEdge, TrueEvidence, Truth, generate};

use crate::support::{executable, wait_until};

tests![
    a_month_of_edges_is_what_was_observed_and_a_reused_address_names_nobody_else,
    edges_are_what_was_observed_whatever_the_seed_and_with_one_observer,
    sets_keep_what_recurs_hold_what_passes_and_miss_what_is_gone,
    a_gap_lowers_coverage_and_drops_no_edge,
    decisions_are_kept_in_the_sets_and_in_the_policies,
    sets_are_listed_with_those_first_that_need_attention,
    ctrl_c_ends_in_the_middle_of_the_work_and_leaves_nothing_half_written,
    ctrl_c_is_heard_while_a_query_is_typed,
    ctrl_c_takes_back_a_result_that_has_begun,
];

/// A month with every story, made once for all tests.
pub(crate) struct Month {
    pub(crate) directory: PathBuf,
    pub(crate) truth: Truth,
}

/// The month.
pub(crate) fn month() -> &'static Month {
    static MONTH: OnceLock<Month> = OnceLock::new();
    MONTH.get_or_init(|| {
        // Among what the build leaves: nothing drops it when the tests end.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("month");
        let _ = fs::remove_dir_all(&directory);
        let truth = generate(&Plan::month(1), &directory).expect("the month is written");
        Month { directory, truth }
    })
}

/// Runs `flowscribe` and returns what it wrote and said.
pub(crate) fn flowscribe(arguments: &[&str]) -> (String, String) {
    let output = Command::new(executable()).arg("flowscribe").args(arguments).output().expect("flowscribe starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (out, said) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{arguments:?}: {said}");
    (out, said)
}

/// The rows of a query over a capture, as JSON objects.
fn rows(directory: &Path, arguments: &[&str]) -> Vec<Value> {
    let input = directory.to_string_lossy();
    let (out, _) = flowscribe(&[&["sql", "--input", &*input, "--format", "jsonl"], arguments].concat());
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text(row: &Value, column: &str) -> String {
    row[column].as_str().unwrap_or_default().to_owned()
}

fn number(row: &Value, column: &str) -> i64 {
    row[column].as_i64().unwrap_or_else(|| panic!("{column} is a number in {row}"))
}

/// What a capture's table `communications` says, in the words of the truth.
fn communications(directory: &Path) -> BTreeMap<TrueEdge, TrueEvidence> {
    let query = "select coalesce(source_namespace || '/' || source_workload, source_address) as source, \
        coalesce(destination_namespace || '/' || destination_workload, destination_address) as destination, * \
        from communications";
    let by_hour = hours_of_edges(directory);
    let mut found = BTreeMap::new();
    for row in rows(directory, &[query]) {
        let edge = true_edge(&row);
        let seen_by = text(&row, "seen_by");
        let OfHours { hours, source_pods, destination_pods } = by_hour.get(&edge).cloned().unwrap_or_default();
        let sums = ["hours", "source_pods", "destination_pods"].map(|column| number(&row, column) as usize);
        assert_eq!(sums, [hours.len(), source_pods.len(), destination_pods.len()], "{edge:?}: of one kind");
        let evidence = TrueEvidence {
            hours,
            source_pods,
            destination_pods,
            connections: number(&row, "connections"),
            failed: number(&row, "failed"),
            bytes_sent: number(&row, "bytes_sent"),
            cross_zone_bytes: number(&row, "cross_zone_bytes"),
            duration_ms: 0,
            seen_by: (seen_by != "server", seen_by != "client"),
            via_service: row["via_service"].as_bool().expect("a truth"),
        };
        assert!(found.insert(edge.clone(), evidence).is_none(), "{edge:?} is there twice");
    }
    found
}

/// The edge that a row is of.
fn true_edge(row: &Value) -> TrueEdge {
    TrueEdge {
        source: text(row, "source"),
        destination: text(row, "destination"),
        transport: if text(row, "transport") == "udp" { "udp" } else { "tcp" },
        port: number(row, "port") as u16,
    }
}

/// What the hours of an edge say.
#[derive(Clone, Default)]
struct OfHours {
    hours: BTreeSet<u32>,
    source_pods: BTreeSet<String>,
    destination_pods: BTreeSet<String>,
}

/// The hours of every edge, and the UIDs of its pods, from table `edges`.
fn hours_of_edges(directory: &Path) -> BTreeMap<TrueEdge, OfHours> {
    let query = "select coalesce(source_namespace || '/' || source_workload, source_address) as source, \
        coalesce(destination_namespace || '/' || destination_workload, destination_address) as destination, \
        transport, port, connections + closed + max_active > 0 as is_established, \
        cast(extract(epoch from hour) / 3600 as bigint) as hour, source_pod_uids, destination_pod_uids from edges";
    let mut edges: BTreeMap<TrueEdge, OfHours> = BTreeMap::new();
    for row in rows(directory, &[query]) {
        let edge = true_edge(&row);
        let known = edges.entry(edge).or_default();
        if row["is_established"] == true {
            known.hours.insert(number(&row, "hour") as u32);
        }
        let uids =
            |column: &str| row[column].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        known.source_pods.extend(uids("source_pod_uids"));
        known.destination_pods.extend(uids("destination_pod_uids"));
    }
    edges
}

/// The truth, of what `communications` and `edges` have.
fn comparable(truth: &Truth) -> BTreeMap<TrueEdge, TrueEvidence> {
    let evidence = |evidence: &TrueEvidence| TrueEvidence { duration_ms: 0, ..evidence.clone() };
    truth.edges.iter().map(|(edge, told)| (edge.clone(), evidence(told))).collect()
}

fn assert_same(found: &BTreeMap<TrueEdge, TrueEvidence>, expected: &BTreeMap<TrueEdge, TrueEvidence>) {
    for (edge, expected) in expected {
        let found = found.get(edge).unwrap_or_else(|| panic!("{edge:?} was observed"));
        let differ: Vec<_> = found.hours.symmetric_difference(&expected.hours).collect();
        assert!(differ.is_empty(), "{edge:?} differs in the hours {differ:?}");
        let rest = |told: &TrueEvidence| TrueEvidence { hours: BTreeSet::new(), ..told.clone() };
        assert_eq!(rest(found), rest(expected), "{edge:?}");
    }
    let invented: Vec<_> = found.keys().filter(|edge| !expected.contains_key(edge)).collect();
    assert!(invented.is_empty(), "never observed: {invented:?}");
}

fn a_month_of_edges_is_what_was_observed_and_a_reused_address_names_nobody_else() {
    let month = month();
    assert!(month.truth.reused_addresses > 30, "addresses were taken again: {}", month.truth.reused_addresses);
    assert!(month.truth.edges.len() > 200 && month.truth.rows > 100_000, "{} rows", month.truth.rows);
    assert_same(&communications(&month.directory), &comparable(&month.truth));
}

fn edges_are_what_was_observed_whatever_the_seed_and_with_one_observer() {
    for (seed, both_observers) in [(2, true), (3, false)] {
        let plan = Plan {
            hours: 8,
            rollout_hours: 3,
            both_observers,
            gaps: vec![(0, 3, 5)],
            stories: vec![Story::Nightly, Story::Scan(4), Story::Burst(1)],
            ..Plan::month(seed)
        };
        let directory = tempfile::tempdir().expect("a directory");
        let truth = generate(&plan, directory.path()).expect("written");
        assert!(truth.edges.len() > 30);
        assert_same(&communications(directory.path()), &comparable(&truth));
        let again = tempfile::tempdir().expect("a directory");
        assert_eq!(generate(&plan, again.path()).expect("written").edges, truth.edges, "the same seed, the same truth");
    }
}

/// Workload, direction, peer and port of a set's entry.
type EntryKey = (String, String, String, i64);

/// Of every entry of the sets: status, fate, recurrence.
fn sets(directory: &Path, more: &[&str]) -> BTreeMap<EntryKey, (String, String, String)> {
    let query = "select namespace || '/' || workload as workload, direction, port, status, fate, recurrence, \
        coalesce(peer_namespace || '/' || peer_workload, peer_address) as peer from communication_sets";
    let key = |row: &Value| (text(row, "workload"), text(row, "direction"), text(row, "peer"), number(row, "port"));
    let value = |row: &Value| (text(row, "status"), text(row, "fate"), text(row, "recurrence"));
    rows(directory, &[&[query], more].concat()).iter().map(|row| (key(row), value(row))).collect()
}

fn sets_keep_what_recurs_hold_what_passes_and_miss_what_is_gone() {
    let sets = sets(&month().directory, &[]);
    let entry = |workload: &str, direction: &str, peer: &str, port: i64| {
        let key = (workload.to_owned(), direction.to_owned(), peer.to_owned(), port);
        let (status, fate, recurrence) = sets.get(&key).unwrap_or_else(|| panic!("{key:?} is in {sets:#?}"));
        [status.clone(), fate.clone(), recurrence.clone()]
    };
    for (workload, direction, peer) in
        [("batch/nightly", "egress", "shop/app-0"), ("shop/app-0", "ingress", "batch/nightly")]
    {
        assert_eq!(entry(workload, direction, peer, 8080), ["stable", "learned", "daily"]);
    }
    assert_eq!(entry("batch/weekly", "egress", "shop/app-0", 8080), ["stable", "learned", "weekly"]);
    assert_eq!(entry("batch/month-end", "egress", "shop/app-1", 8080)[1], "learned", "it ran once, an hour ago");
    assert_eq!(entry("shop/app-0", "ingress", "tools/scanner", 8080)[1], "held");
    assert_eq!(entry("shop/app-2", "ingress", "tools/debug", 8080)[1], "held");
    assert_eq!(entry("shop/app-4", "egress", "shop/app-5", 9999)[1], "held");
    assert_eq!(entry("shop/app-3", "egress", "shop/ledger", 8080), ["decaying", "learned", ""]);
    assert_eq!(entry("shop/app-6", "egress", "shop/app-7", 7070)[..2], ["stabilizing", "learned"]);
    let odd = ["batch", "tools", "ledger", "9999", "7070", "shop/app-1 ingress batch"];
    for ((workload, direction, peer, port), (status, fate, _)) in &sets {
        let told = format!("{workload} {direction} {peer} {port}");
        if !odd.iter().any(|word| told.contains(word)) {
            assert_eq!((&**status, &**fate), ("stable", "learned"), "{told}");
        }
    }
}

fn a_gap_lowers_coverage_and_drops_no_edge() {
    let month = month();
    let query = "select namespace || '/' || workload as workload, sum(pod_ms) as pod_ms, sum(observed_ms) as observed_ms \
        from coverage group by 1";
    let found: BTreeMap<String, (i64, i64)> = rows(&month.directory, &[query])
        .iter()
        .map(|row| (text(row, "workload"), (number(row, "pod_ms"), number(row, "observed_ms"))))
        .collect();
    assert_eq!(found, month.truth.pod_time_ms);
    let gaps = rows(&month.directory, &["select node, gap_start, gap_end, reason from capture_gaps order by node"]);
    let told = |row: &Value| ["node", "gap_start", "gap_end", "reason"].map(|column| text(row, column)).join(" ");
    assert_eq!(
        gaps.iter().map(told).collect::<Vec<_>>(),
        [
            "control-plane 2026-03-01T00:00:00Z 2026-04-01T00:00:00Z no agent",
            "node-1 2026-03-11T00:00:00Z 2026-03-12T12:00:00Z no news",
            "node-3 2026-03-01T00:00:00Z 2026-04-01T00:00:00Z no agent",
        ]
    );
}

fn decisions_are_kept_in_the_sets_and_in_the_policies() {
    let month = month();
    let input = month.directory.to_string_lossy().into_owned();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let decisions = "pin:\n\
        - { from: shop/app-4, to: shop/app-5, port: 9999/tcp, reason: the quarterly migration }\n\
        - { from: shop/app-9, to: shop/app-0, port: 4444 }\n\
        forbid:\n\
        - { from: 'shop/*', to: shop/ledger, reason: it is gone }\n\
        - { from: shop/nobody, to: shop/ledger }\n";
    fs::write(file.path(), decisions).expect("written");
    let path = file.path().to_string_lossy().into_owned();
    let sets = sets(&month.directory, &["--decisions", &path]);
    let fate = |workload: &str, peer: &str, port: i64| {
        let key = (workload.to_owned(), "egress".to_owned(), peer.to_owned(), port);
        sets.get(&key).map(|(_, fate, _)| fate.clone())
    };
    assert_eq!(fate("shop/app-4", "shop/app-5", 9999).as_deref(), Some("pinned"));
    assert_eq!(fate("shop/app-9", "shop/app-0", 4444).as_deref(), Some("pinned"), "though nobody has seen it");
    assert_eq!(fate("shop/app-3", "shop/ledger", 8080).as_deref(), Some("forbidden"));
    let (policies, said) = flowscribe(&["report", "--input", &input, "--decisions", &path]);
    assert!(!policies.contains("name: app-9-network"), "a part of its pods ran where no agent did: {policies}");
    assert!(said.contains("shop/app-9: ingress and egress withheld and left open, "), "{said}");
    let (policies, said) = flowscribe(&["report", "--input", &input, "--decisions", &path, "--min-coverage", "0.5"]);
    let policy = |name: &str| {
        let of = |policy: &&str| policy.contains(&format!("name: {name}-network\n"));
        policies.split("---\n").find(of).unwrap_or_else(|| panic!("{name} has a policy")).to_owned()
    };
    assert!(policy("app-4").contains("port: 9999") && policy("app-9").contains("port: 4444"));
    assert!(!policy("app-3").contains("app: ledger"), "{}", policy("app-3"));
    assert!(!policy("app-0").contains("app: scanner") && policy("app-0").contains("app: nightly"));
    assert!(said.contains("shop/app-3 → shop/ledger 8080/TCP: forbidden, it is gone\n"), "{said}");
    assert!(said.contains("tools/scanner → shop/app-0 8080/TCP: held for review, scan: "), "{said}");
    assert!(said.contains("forbid shop/nobody → shop/ledger: concerns nothing"), "{said}");
}

fn sets_are_listed_with_those_first_that_need_attention() {
    let input = month().directory.to_string_lossy().into_owned();
    let (table, _) = flowscribe(&["sets", "--input", &input]);
    let position = |what: &str| table.find(what).unwrap_or_else(|| panic!("{what} is in\n{table}"));
    assert!(position("\nshop/app-0 (Deployment)") < position("\nshop/app-7 (Deployment)"), "something of it is held");
    assert!(position("\nbatch/month-end (CronJob)") < position("\nbatch/nightly (CronJob)"), "it is learning");
    let (json, _) = flowscribe(&["sets", "--input", &input, "--format", "json", "--namespaces", "batch"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let names: Vec<&str> = json.as_array().expect("a list").iter().filter_map(|w| w["workload"].as_str()).collect();
    assert_eq!(names, ["month-end", "nightly", "weekly"]);
    assert_eq!(json[1]["set"][0]["recurrence"], "daily", "{json}");
}

/// Bytes that a process has read so far; `None` when it has ended, and its account is not shown to everybody any more.
pub(crate) fn bytes_read(process: &Child) -> Option<u64> {
    let account = fs::read_to_string(format!("/proc/{}/io", process.id())).ok()?;
    let bytes = account.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("the kernel counts");
    Some(bytes.parse().expect("a number"))
}

/// Waits until a process has ended, without taking note of it, and returns how many bytes it was last seen to have read.
fn bytes_until_end(process: &Child) -> u64 {
    let mut bytes = 0;
    loop {
        let state = state(process, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
        bytes = bytes_read(process).unwrap_or(bytes);
        if state != WaitStatus::StillAlive {
            return bytes;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The next change of a process's state, without taking note of its end.
fn state(process: &Child, changes: WaitPidFlag) -> WaitStatus {
    waitid(Id::Pid(Pid::from_raw(process.id() as i32)), changes | WaitPidFlag::WNOWAIT).expect("it is ours")
}

fn ctrl_c_ends_in_the_middle_of_the_work_and_leaves_nothing_half_written() {
    let input = month().directory.to_string_lossy().into_owned();
    let (scratch, target) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let report = || {
        let mut command = Command::new(executable());
        command.args(["flowscribe", "report", "--input", &input, "--output"]).arg(target.path().join("policies.yaml"));
        command.env("TMPDIR", scratch.path()).stderr(Stdio::null()).spawn().expect("flowscribe starts")
    };
    let mut undisturbed = report();
    let all = bytes_until_end(&undisturbed);
    assert!(undisturbed.wait().expect("it has ended").success());
    fs::remove_file(target.path().join("policies.yaml")).expect("it was written");
    // Not sooner than it reads the capture: until a program listens to a signal, that is lost where whoever started the
    // program ignores it, as shells do for what they run in the background.
    for part in [0.02, 0.3, 0.6] {
        let mut child = report();
        let id = Pid::from_raw(child.id() as i32);
        wait_until("a part of the work", || bytes_read(&child).is_some_and(|bytes| bytes as f64 >= part * all as f64));
        // While it is stopped, the signal comes in the middle of the work, however slow this test is.
        kill(id, Signal::SIGSTOP).expect("it is there");
        let stopped = state(&child, WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED);
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "it has work to do: {stopped:?}");
        let before = bytes_read(&child).expect("it is there");
        kill(id, Signal::SIGINT).expect("it is there");
        kill(id, Signal::SIGCONT).expect("it is there");
        let after = bytes_until_end(&child).max(before);
        assert_eq!(child.wait().expect("it has ended").code(), Some(130), "after {before} of {all} bytes");
        assert!(after - before < (all - before) / 2, "it read on, from {before} to {after} of {all} bytes");
        for directory in [&scratch, &target] {
            let left: Vec<_> = fs::read_dir(directory.path()).expect("readable").flatten().collect();
            assert!(left.is_empty(), "after {before} of {all} bytes: {left:?}");
        }
    }
}

fn ctrl_c_is_heard_while_a_query_is_typed() {
    let input = month().directory.to_string_lossy().into_owned();
    for _ in 0..8 {
        let mut child = Command::new(executable())
            .args(["flowscribe", "sql", "--input", &input, "--query-file", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("flowscribe starts");
        // More than fits into the pipe: once it is written, a part was read.
        let mut query = child.stdin.take().expect("it is piped");
        query.write_all(&[b' '; 1 << 20]).expect("it is read");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
        assert_eq!(child.wait().expect("it ends").code(), Some(130));
    }
}

fn ctrl_c_takes_back_a_result_that_has_begun() {
    let input = month().directory.to_string_lossy().into_owned();
    let target = tempfile::tempdir().expect("a directory");
    let unfinished = || {
        let files = fs::read_dir(target.path()).expect("readable").flatten();
        files.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum::<u64>()
    };
    let endless = "select a.value, b.value from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";
    let mut child = Command::new(executable())
        .args(["flowscribe", "sql", endless, "--input", &input, "--format", "csv", "--output"])
        .arg(target.path().join("result.csv"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("flowscribe starts");
    wait_until("the first rows", || unfinished() > 0);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert_eq!(fs::read_dir(target.path()).expect("readable").count(), 0, "nothing stays behind");
}
