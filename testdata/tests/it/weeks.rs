//! Weeks of capture that change while they are read: compacted, pruned, remembered, late, killed. Whatever happens to the
//! files, what is learned of them stays the same.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    months::{bytes_read, flowscribe, month},
    support::{executable, wait_until},
};

tests![
    day_by_day_what_is_remembered_compacted_and_pruned_gives_what_all_files_give,
    who_reads_while_files_come_and_are_merged_sees_every_edge_once,
    what_is_forgotten_is_not_missed,
    a_back_test_denies_what_is_new_by_the_truth_and_names_what_is_not_used_any_more,
];

/// A file of the month: where it belongs, and the hour that it is of.
struct Part {
    name: PathBuf,
    hour: i64,
}

/// All files of the month, in order of hour and name.
fn parts() -> Vec<Part> {
    let root = &month().directory;
    let listing = schemas::capture::list(std::slice::from_ref(root)).expect("the month is there");
    assert!(listing.problems.is_empty() && listing.superseded.is_empty());
    let part = |file: &schemas::capture::CaptureFile| {
        let name = file.path.strip_prefix(root).expect("below it").to_path_buf();
        // What a snapshot at a full hour says is of the hour that begins then.
        let first = file.first_time().0.div_euclid(HOUR_MS);
        let last = file.last_time().0.saturating_sub(1).div_euclid(HOUR_MS);
        Part { name, hour: first.max(last) - month_start() }
    };
    let mut parts: Vec<Part> = listing.files.iter().map(part).collect();
    parts.sort_by(|a, b| (a.hour, &a.name).cmp(&(b.hour, &b.name)));
    assert!(parts.len() > 5000, "{}", parts.len());
    parts
}

/// The month's first hour.
fn month_start() -> i64 {
    1_772_323_200_000 / HOUR_MS
}

/// Puts files of the month into a directory.
fn deliver<'a>(parts: impl IntoIterator<Item = &'a Part>, directory: &Path) {
    for part in parts {
        let target = directory.join(&part.name);
        fs::create_dir_all(target.parent().expect("a folder")).expect("made");
        fs::hard_link(month().directory.join(&part.name), target).expect("linked");
    }
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(executable());
    command.arg("flowscribe").args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("flowscribe starts")
}

/// Kills a process once it has read so many bytes, and returns whether it still ran.
fn kill_after(mut child: Child, bytes: u64) -> bool {
    wait_until("its work or its end", || {
        child.try_wait().expect("it can be asked").is_some() || bytes_read(&child).is_some_and(|read| read >= bytes)
    });
    kill_hard(child)
}

/// Kills a process as nobody can refuse, and returns whether it still ran.
fn kill_hard(mut child: Child) -> bool {
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    child.wait().expect("it ends").signal() == Some(9)
}

/// What a report says, but for how many files it is from: policies, evidence, and remarks.
fn report(directory: &Path, state: Option<&Path>, scratch: &Path) -> (String, String, String) {
    let evidence = scratch.join("evidence.json");
    let [input, evidence_path] = [directory, &evidence].map(|path| path.to_string_lossy().into_owned());
    let mut arguments = vec!["report", "--min-coverage", "0", "--input", &input, "--evidence", &evidence_path];
    let state = state.map(|state| state.to_string_lossy().into_owned());
    arguments.extend(state.iter().flat_map(|state| ["--state", state]));
    let (policies, said) = flowscribe(&arguments);
    let said = said.split(" rows of flows in ").next().expect("a part").to_owned();
    (policies, fs::read_to_string(evidence).expect("evidence"), said)
}

fn day_by_day_what_is_remembered_compacted_and_pruned_gives_what_all_files_give() {
    let parts = parts();
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let [whole, changing, state, scratch] =
        ["whole", "changing", "state", "scratch"].map(|name| root.path().join(name));
    for directory in [&whole, &changing, &scratch] {
        fs::create_dir(directory).expect("made");
    }
    // Some files come late, as those that were spooled.
    let delay = |number: usize| if number % 41 == 7 { 3 } else { 0 };
    let input = changing.to_string_lossy().into_owned();
    let state_path = state.to_string_lossy().into_owned();
    let compact = ["compact", "--keep", "0s", "--input", &*input];
    let mut kills = 0;
    for day in 0..31 {
        let due = parts.iter().enumerate().filter(|(number, part)| part.hour / 24 + delay(*number) == day);
        let due: Vec<&Part> = due.map(|(_, part)| part).collect();
        assert!(!due.is_empty());
        deliver(due.iter().copied(), &whole);
        deliver(due, &changing);
        if day == 12 {
            for megabytes in [0, 1, 5, 10] {
                let child = spawn(&["report", "--input", &input, "--state", &state_path]);
                kills += usize::from(kill_after(child, megabytes << 20));
            }
        }
        if day % 10 == 8 {
            for megabytes in [2, 10] {
                kills += usize::from(kill_after(spawn(&compact), megabytes << 20));
            }
            flowscribe(&compact);
        }
        if day == 24 {
            // Everything but the last two weeks.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
            let age = format!("{}s", now - (month_start() + 10 * 24) * HOUR_MS / 1000);
            let (_, said) = flowscribe(&["prune", "--older-than", &age, "--input", &input]);
            assert!(said.starts_with("removed 2"), "hours of ten days: {said}");
        }
        let remembered = report(&changing, Some(&state), &scratch);
        if day % 4 == 0 || [9, 13, 19, 25, 30].contains(&day) {
            let from_scratch = report(&whole, None, &scratch);
            assert_eq!(remembered.2, from_scratch.2, "day {day}");
            assert!(remembered == from_scratch, "day {day}: policies or evidence differ");
            let again = report(&changing, None, &scratch);
            assert!(again == from_scratch, "day {day}: without what is remembered, it differs");
        }
    }
    assert!(kills > 0, "some were killed at work");
    let raw = |directory: &Path| {
        let listing = schemas::capture::list(&[directory.join("flows")]).expect("listed");
        (listing.files.len(), listing.problems)
    };
    assert!(raw(&changing).0 * 2 < raw(&whole).0, "it was compacted");
    assert_eq!(raw(&changing).1, [], "and nothing unfinished was left");
}

fn who_reads_while_files_come_and_are_merged_sees_every_edge_once() {
    let parts: Vec<Part> = parts().into_iter().filter(|part| part.hour < HOURS).collect();
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let [whole, changing] = ["whole", "changing"].map(|name| root.path().join(name));
    deliver(&parts, &whole);
    let edges = |directory: &Path| -> BTreeMap<i64, (i64, i64)> {
        let query = "select cast(extract(epoch from hour) / 3600 as bigint) as hour, count(*) as edges, \
            sum(connections) as connections from edges group by 1 order by 1";
        let (out, _) = flowscribe(&["sql", "--input", &directory.to_string_lossy(), "--format", "jsonl", query]);
        let row = |line: &str| {
            let row: Value = serde_json::from_str(line).expect("JSON");
            let number = |name: &str| row[name].as_i64().expect("a number");
            (number("hour") - month_start(), (number("edges"), number("connections")))
        };
        out.lines().map(row).collect()
    };
    let expected = edges(&whole);
    assert_eq!(expected.len() as i64, HOURS);

    let input = changing.to_string_lossy().into_owned();
    let (delivered, is_over) = (Mutex::new(-1), AtomicBool::new(false));
    // How often was looked, and merged, and the hours up to which was looked.
    let (looks, rounds) = (AtomicI64::new(0), AtomicI64::new(0));
    let mut last = 0;
    deliver(parts.iter().filter(|part| part.hour == 0), &changing);
    thread::scope(|scope| {
        scope.spawn(|| {
            for hour in 1..HOURS {
                // Some hours come while it is looked, and some while it is merged, however fast either is.
                wait_until("the next look and the next merge", || {
                    let (looks, rounds) = (looks.load(Ordering::Acquire), rounds.load(Ordering::Acquire));
                    looks.min(rounds) > hour / HOURS_PER_LOOK
                });
                deliver(parts.iter().filter(|part| part.hour == hour), &changing);
                *delivered.lock().expect("no panic") = hour;
            }
            is_over.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut removed_at = 0;
            while !is_over.load(Ordering::Acquire) {
                // Who looks begins again where what it reads is removed, but not forever: once in two looks is enough.
                let look = looks.load(Ordering::Acquire);
                let keep = if look >= removed_at + 2 { "0s" } else { "1h" };
                removed_at = if keep == "0s" { look } else { removed_at };
                let mut child = spawn(&["compact", "--settle", "0s", "--keep", keep, "--input", &input]);
                let round = rounds.fetch_add(1, Ordering::AcqRel) + 1;
                if round % 3 == 0 {
                    kill_after(child, (round.unsigned_abs() % 7) << 18);
                } else {
                    assert!(child.wait().expect("it ends").success(), "compaction failed");
                }
            }
        });
        while !is_over.load(Ordering::Acquire) {
            // The newest hours are not told of in full yet.
            let until = *delivered.lock().expect("no panic") - 2;
            looks.fetch_add(1, Ordering::AcqRel);
            let found = edges(&changing);
            for hour in 0..=until {
                assert_eq!(found.get(&hour), expected.get(&hour), "hour {hour} of {until}");
            }
            last = until;
        }
    });
    assert!(last > HOURS / 2, "the last look was at hour {last}");
    flowscribe(&["compact", "--settle", "0s", "--keep", "0s", "--input", &input]);
    let listing = schemas::capture::list(std::slice::from_ref(&changing)).expect("listed");
    assert_eq!((listing.superseded.len(), listing.problems.len()), (0, 0), "nothing is left over");
    assert_eq!(listing.files.len() as i64, 4 * HOURS, "a file per dataset and hour, and a rollup");
    assert_eq!(edges(&changing), expected);
}

fn what_is_forgotten_is_not_missed() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let capture = root.path().join("capture");
    let parts = parts();
    deliver(parts.iter().filter(|part| part.hour < HOURS), &capture);
    let input = capture.to_string_lossy().into_owned();
    let hours = || -> Vec<i64> {
        let query = "select distinct cast(extract(epoch from hour) / 3600 as bigint) as hour from edges order by 1";
        let (out, _) = flowscribe(&["sql", "--input", &input, "--format", "csv", query]);
        out.lines().skip(1).map(|hour| hour.parse::<i64>().expect("a number") - month_start()).collect()
    };
    let forget = |from: i64| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        let age = format!("{}s", now - (month_start() + from) * HOUR_MS / 1000);
        flowscribe(&["prune", "--older-than", "1s", "--forget-after", &age, "--input", &input]).1
    };
    let said = forget(0);
    assert!(said.contains("files of flows that no rollup sums up: run flowscribe compact first"), "{said}");
    assert_eq!(hours().len() as i64, HOURS, "nothing is lost by mistake");
    flowscribe(&["compact", "--keep", "0s", "--input", &input]);
    for from in [10, 24] {
        forget(from);
        assert_eq!(hours(), (from..HOURS).collect::<Vec<_>>());
        let (_, said) = flowscribe(&["report", "--input", &input]);
        assert!(!said.contains("missing"), "what was given up is not missed: {said}");
        let listing = schemas::capture::list(std::slice::from_ref(&capture)).expect("listed");
        assert_eq!(listing.problems, []);
        let notes = listing.files.iter().filter(|file| file.rows == 0).count();
        assert_eq!(notes, 3, "one of each dataset says what was given up");
    }
}

fn a_back_test_denies_what_is_new_by_the_truth_and_names_what_is_not_used_any_more() {
    let truth = &month().truth;
    let split = 19 * 24;
    let (out, _) = flowscribe(&[
        "backtest",
        "--input",
        &month().directory.to_string_lossy(),
        "--split",
        "2026-03-20",
        "--min-coverage",
        "0",
        "--format",
        "json",
    ]);
    let tried: Value = serde_json::from_str(&out).expect("JSON");
    let tried = &tried[0];
    assert_eq!(
        (&tried["learned_hours"], &tried["replayed_hours"]),
        (&Value::from(split), &Value::from(31 * 24 - split))
    );
    let list = |name: &str| -> std::collections::BTreeSet<String> {
        let of = |tried: &Value| tried[name].as_array().cloned().unwrap_or_default();
        let workloads = tried["workloads"].as_array().expect("workloads");
        workloads.iter().flat_map(of).filter_map(|edge| Some(edge["edge"].as_str()?.to_owned())).collect()
    };
    // By the truth: edges between workloads whose hours are all after, or all before the split.
    let start = u32::try_from(month_start() + split).expect("an hour");
    let mut new = std::collections::BTreeSet::new();
    let mut gone = 0;
    for (edge, evidence) in &truth.edges {
        let is_between_workloads = edge.source.contains('/') && edge.destination.contains('/');
        let (Some(first), Some(last)) = (evidence.hours.first(), evidence.hours.last()) else { continue };
        if *first >= start && is_between_workloads {
            let transport = edge.transport.to_uppercase();
            new.insert(format!("{} → {} {}/{transport}", edge.source, edge.destination, edge.port));
        }
        gone += usize::from(*last < start && is_between_workloads);
    }
    assert!(!new.is_empty() && gone > 0, "the month has both");
    assert_eq!(list("denied_edges"), new);
    let unused = list("unused_edges");
    assert!(unused.contains("ingress from shop/app-3 8080/TCP"), "the ledger is gone: {unused:?}");
    let total = &tried["total"];
    assert_eq!(total["denied"].as_u64(), Some(new.len() as u64), "{total}");
    let learned = total["learned"].as_u64().expect("a number") - total["used_again"].as_u64().expect("a number");
    assert!(learned <= gone as u64, "what was held was not learned: {total}");
    let later = truth.edges.values().filter(|e| e.hours.last().is_some_and(|hour| *hour >= start)).count() as u64;
    assert_eq!(total["later"].as_u64(), Some(later), "{total}");
}

const HOUR_MS: i64 = 3_600_000;
/// Hours of the capture that is changed while it is read.
const HOURS: i64 = 40;
/// How many of them come during one look.
const HOURS_PER_LOOK: i64 = 5;
