//! Input as it comes: nothing, too little, broken, unknown. Each is named, and the rest is reported.

use std::{fs, path::PathBuf};

use crate::support::{Capture, DB, WEB, flowscribe, lines, report, web_and_db};

#[test]
fn an_empty_capture_is_an_error_of_one_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = flowscribe(&["report", "--input", &directory.path().to_string_lossy()]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b""[..]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("flowscribe: no capture in "), "{said}");
}

#[test]
fn broken_files_are_named_and_the_rest_is_reported() {
    let directory = web_and_db().write();
    let expected = report(directory.path(), &[]);
    let folder = directory.path().join("flows/date=2026-03-01/hour=10");
    let file: PathBuf = fs::read_dir(&folder).expect("flows").flatten().next().expect("a file").path();
    let whole = fs::read(&file).expect("readable");
    fs::write(folder.join("short.parquet"), &whole[..whole.len() - 100]).expect("written");
    fs::write(folder.join("notes.txt"), "hello").expect("written");
    fs::create_dir(directory.path().join("nothing")).expect("made");
    // What a newer version would write: the same length, another major.
    let newer = String::from_utf8_lossy(&whole).contains("flowscribe.schema_version");
    assert!(newer, "the version is in the footer as text");
    fs::write(folder.join("newer.parquet"), with_version(&whole, b"9.0")).expect("written");
    // Whole by its footer, damaged inside.
    let mut damaged = whole;
    damaged[4..400].fill(0xff);
    fs::write(folder.join("damaged.parquet"), damaged).expect("written");

    let found = report(directory.path(), &[]);
    assert_eq!(found.yaml, expected.yaml);
    assert!(found.said.contains("newer.parquet: has schema version 9.0, this build reads up to 2.x"), "{}", found.said);
    assert!(found.said.contains("short.parquet: truncated or damaged ("), "{}", found.said);
    assert!(found.said.contains("damaged.parquet: truncated or damaged ("), "{}", found.said);
    assert!(found.said.contains("notes.txt: not a Parquet file"), "{}", found.said);
    assert!(found.said.contains("nothing: empty directory"), "{}", found.said);
    assert!(found.said.lines().last().expect("a summary").ends_with(", 5 skipped"), "{}", found.said);

    let rows = flowscribe(&[
        "sql",
        "--input",
        &directory.path().to_string_lossy(),
        "select cluster, observer from flows where bytes_sent > 0",
        "--format",
        "csv",
    ]);
    assert!(rows.status.success(), "{}", String::from_utf8_lossy(&rows.stderr));
    assert_eq!(String::from_utf8_lossy(&rows.stdout).lines().count(), 3, "a header and both rows");
    let said = String::from_utf8_lossy(&rows.stderr);
    assert!(said.contains("damaged.parquet"), "{said}");
}

/// Replaces the schema version in a file's footer by one of the same length.
fn with_version(file: &[u8], version: &[u8; 3]) -> Vec<u8> {
    let key = b"flowscribe.schema_version";
    let mut file = file.to_vec();
    let at = file.windows(key.len()).rposition(|window| window == key).expect("the key") + key.len();
    let (major, minor) = schemas::SCHEMA_VERSION;
    let own = format!("{major}.{minor}");
    let value = at + file[at..].windows(3).position(|window| window == own.as_bytes()).expect("the value");
    file[value..value + 3].copy_from_slice(version);
    file
}

#[test]
fn an_input_that_is_not_there_is_an_error_that_names_it() {
    let output = flowscribe(&["report", "--input", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "flowscribe: cannot read input /nowhere/at/all: No such file or directory (os error 2)\n");
}

#[test]
fn several_inputs_are_one_capture() {
    let (one, two) = (web_and_db(), {
        let mut capture = Capture::new();
        capture.pod("demo/web", WEB);
        capture.dial(WEB, "198.51.100.7", 443);
        capture.inventory.clear();
        let mut health = schemas::health::HealthRecord { run_id: "run-2".into(), ..capture.clean_end() };
        // The agent was restarted.
        for time in [&mut health.run_start, &mut health.window_start, &mut health.window_end] {
            time.0 += 60_000;
        }
        for row in &mut capture.flows {
            row.run_id = "run-2".into();
            (row.window_start, row.window_end) = (health.window_start, health.window_end);
            (row.first_seen, row.last_seen) = (health.window_start, health.window_start);
        }
        capture.health.push(health);
        capture
    });
    let (one, two) = (one.write(), two.write());
    let second = two.path().to_string_lossy().into_owned();
    let found = report(one.path(), &["--input", &second]);
    assert_eq!(found.allows("demo/web-network"), lines(["egress 198.51.100.7/32 443/TCP", "egress app=db 5432/TCP"]));
    assert_eq!(found.said.lines().count(), 4, "no DNS, learning, completeness, and what it came to: {}", found.said);
}

#[test]
fn clusters_are_not_mixed() {
    let (one, mut two) = (web_and_db(), web_and_db());
    for record in &mut two.inventory {
        record.cluster = "other".into();
    }
    for row in &mut two.flows {
        (row.cluster, row.destination_port) = ("other".into(), 6379);
    }
    two.health.push(schemas::health::HealthRecord { cluster: "other".into(), ..two.clean_end() });
    let (one, two) = (one.write(), two.write());
    let (first, second) = (one.path().to_string_lossy(), two.path().to_string_lossy());
    let both = ["report", "--input", &first, "--input", &second];
    let output = flowscribe(&both);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "flowscribe: the input holds several clusters (other, test): name one with --cluster-name\n");
    let output = flowscribe(&[&both[..], &["--cluster-name", "third"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "flowscribe: the input holds no cluster `third`, only other, test\n");
    let found = report(one.path(), &["--input", &second, "--cluster-name", "other"]);
    assert_eq!(found.allows("demo/web-network"), lines(["egress app=db 6379/TCP"]));
}

#[test]
fn a_row_of_another_cluster_stops_nobody() {
    let (mut capture, mut stray) = (web_and_db(), web_and_db());
    for _ in 0..300 {
        capture.talk(WEB, DB, 5432);
    }
    stray.inventory.clear();
    stray.flows.truncate(1);
    stray.flows[0].cluster = "strange".into();
    stray.health.push(schemas::health::HealthRecord { cluster: "strange".into(), ..stray.clean_end() });
    let (capture, stray) = (capture.write(), stray.write());
    let found = report(capture.path(), &["--input", &stray.path().to_string_lossy()]);
    assert_eq!(found.names(), ["demo/db-network", "demo/web-network"]);
    assert!(
        found.said.contains("2 rows of cluster \"strange\" are left out, as nearly all are of \"test\""),
        "{}",
        found.said
    );
    let asked = report(capture.path(), &["--input", &stray.path().to_string_lossy(), "--cluster-name", "test"]);
    assert!(!asked.said.contains("strange"), "{}", asked.said);
}

#[test]
fn missing_inventory_and_health_are_told_as_well() {
    let mut capture = web_and_db();
    let mut health = capture.clean_end();
    (health.seq, health.inventory_next_seq) = (3, 100);
    capture.health.push(health);
    let said = capture.report().said;
    assert!(said.contains("run run-1 on node node-a: 94 rows of inventory are missing"), "{said}");
    assert!(said.contains("run run-1 on node node-a: 3 rows of health are missing"), "{said}");
}

#[test]
fn flows_alone_are_named_as_incomplete_from_their_beginning() {
    let capture = web_and_db();
    let directory = capture.write();
    for dataset in ["inventory", "health"] {
        fs::remove_dir_all(directory.path().join(dataset)).expect("it was there");
    }
    let said = report(directory.path(), &[]).said;
    assert!(said.contains("what it saw after 2026-03-01T10:00:00Z is incomplete"), "{said}");
}

#[test]
fn what_a_run_lost_or_left_out_is_told() {
    let mut capture = web_and_db();
    let mut health = capture.clean_end();
    (health.lost_ring, health.unidentified, health.flows_next_seq) = (7, 3, 5);
    capture.health.push(health);
    let said = capture.report().said;
    assert!(said.contains("run run-1 on node node-a lost 7 ends of connections while recording"), "{said}");
    assert!(said.contains("run run-1 on node node-a: 3 ends of connections were in no known pod"), "{said}");
    assert!(said.contains("run run-1 on node node-a: 3 rows of flows are missing"), "{said}");
    assert!(!said.contains("has not ended"), "{said}");
}

#[test]
fn a_run_without_a_clean_end_is_named_with_the_time_from_which_it_is_incomplete() {
    let mut capture = web_and_db();
    let mut health = capture.clean_end();
    health.clean_shutdown = false;
    capture.health.push(health);
    let said = capture.report().said;
    let named = "run run-1 on node node-a has not ended cleanly (killed, or still recording): what it saw after \
                 2026-03-01T10:01:00Z is incomplete";
    assert!(said.contains(named), "{said}");
}

#[test]
fn a_file_of_policies_is_whole_or_not_there() {
    let directory = web_and_db().write();
    let file = directory.path().join("policies.yaml");
    let printed = report(directory.path(), &[]).yaml;
    let written = report(directory.path(), &["--output", &file.to_string_lossy()]);
    assert_eq!(written.yaml, "", "nothing on standard output");
    assert_eq!(fs::read_to_string(&file).expect("written"), printed);
    // What is no ordinary file is written through, not replaced.
    let link = directory.path().join("link.yaml");
    std::os::unix::fs::symlink(&file, &link).expect("made");
    fs::write(&file, "old").expect("written");
    report(directory.path(), &["--output", &link.to_string_lossy()]);
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    assert_eq!(fs::read_to_string(&file).expect("written"), printed);
    let output = flowscribe(&[
        "report",
        "--input",
        &directory.path().to_string_lossy(),
        "--output",
        &directory.path().join("no/such/place.yaml").to_string_lossy(),
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write"), "{output:?}");
}
