//! An agent that sends: what arrives is what it wrote, row for row, and what does not arrive is counted.

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path};

use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord, table::Record};
use testdata::{
    lab::{Lab, PodId},
    pod::Exchange,
    recording::{Receiver, Recording},
};

use crate::{
    harness::Ran,
    support::{balance, executable, flowscribe, lab, let_windows_pass, pod, rows, rows_so_far, small_disk, wait_until},
};

tests![
    what_arrives_by_otlp_is_what_was_written_row_for_row,
    what_a_receiver_did_not_take_is_sent_by_the_next_run_even_after_a_kill,
    a_full_disk_under_the_capture_costs_the_collector_nothing,
];

const CALL: Exchange = Exchange::new(10, 20);
const QUICK: [&str; 2] = ["--roll-interval", "1s"];

/// Rows by their numbers, each once.
fn numbered<R: Record>(capture: &Path) -> BTreeMap<(String, i64), R> {
    let key = |row: &R| (row.origin().0.to_string(), row.origin().1);
    rows::<R>(capture).into_iter().map(|row| (key(&row), row)).collect()
}

fn assert_same<R: Record + PartialEq + Debug>(one: &Path, other: &Path) {
    let (one, other) = (numbered::<R>(one), numbered::<R>(other));
    assert!(!one.is_empty(), "there are rows of {}", R::DATASET);
    assert_eq!(one, other, "{} row for row", R::DATASET);
}

fn ends(lab: &mut Lab) -> (PodId, PodId) {
    let ends = (pod(lab, "client"), pod(lab, "server"));
    lab.listen(ends.1, 7001, CALL).expect("the port is free");
    ends
}

fn dial(lab: &mut Lab, ends: (PodId, PodId), times: u32) {
    lab.dial(ends.0, (lab.ipv4(ends.1), 7001), times, CALL).expect("the server answers");
}

fn sending<'a>(spool: &'a str, protocol: &'a str, endpoint: &'a str) -> Vec<&'a str> {
    let sending = ["--spool", spool, "--otlp-protocol", protocol, "--otlp-endpoint", endpoint];
    [&["--window", "1s"][..], &QUICK, &sending].concat()
}

fn what_arrives_by_otlp_is_what_was_written_row_for_row() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    for (protocol, extra) in [("grpc", ""), ("http/protobuf", ""), ("grpc", "0")] {
        let directory = tempfile::tempdir().expect("a directory");
        let (written, arrived) = (directory.path().join("written"), directory.path().join("arrived"));
        let receiver = Receiver::start(executable(), &arrived, &QUICK).expect("it receives");
        let endpoint = if protocol == "grpc" { &receiver.grpc } else { &receiver.http };
        let spool = directory.path().join("spool").to_string_lossy().into_owned();
        let mut arguments = sending(&spool, protocol, endpoint);
        if extra == "0" {
            arguments[1] = "0";
        }
        let recording = Recording::start(executable(), &lab, &written, &arguments).expect("the exporter records");
        dial(&mut lab, ends, 50);
        wait_until("the first rows", || !rows_so_far::<FlowRecord>(&written).is_empty());
        dial(&mut lab, ends, 50);
        recording.stop().expect("it ends well");
        receiver.stop().expect("it ends well");
        assert_same::<FlowRecord>(&written, &arrived);
        assert_same::<InventoryRecord>(&written, &arrived);
        assert_same::<HealthRecord>(&written, &arrived);
        balance(&arrived);
        let report = |capture: &Path| flowscribe(&["report", "--input", &capture.to_string_lossy()]).stdout;
        let policies = report(&written);
        assert!(String::from_utf8_lossy(&policies).contains("kind: NetworkPolicy"));
        assert_eq!(policies, report(&arrived), "the same policies");
    }
    Ok(())
}

fn what_a_receiver_did_not_take_is_sent_by_the_next_run_even_after_a_kill() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let (written, arrived) = (directory.path().join("written"), directory.path().join("arrived"));
    let receiver = Receiver::start(executable(), &arrived, &QUICK).expect("it receives");
    let (addresses, endpoint) = (receiver.addresses(), receiver.grpc.clone());
    receiver.kill();
    let spool = directory.path().join("spool").to_string_lossy().into_owned();
    let arguments = sending(&spool, "grpc", &endpoint);
    // The first run ends well, the second is killed.
    let first = Recording::start(executable(), &lab, &written, &arguments).expect("the exporter records");
    dial(&mut lab, ends, 20);
    let log = first.stop().expect("nobody to send to is no failure");
    assert!(log.contains("trying again"), "{log}");
    let killed = Recording::start(executable(), &lab, &written, &arguments).expect("the exporter records");
    dial(&mut lab, ends, 20);
    let kept = || fs::read_dir(format!("{spool}/otlp")).map_or(0, |entries| entries.flatten().count());
    let of_first = rows_so_far::<FlowRecord>(&written).len();
    wait_until("flows in a file", || rows_so_far::<FlowRecord>(&written).len() > of_first + 1);
    // They are in the spool before what comes after them.
    let before = kept();
    wait_until("what comes after them", || kept() > before + 2);
    killed.kill().expect("it ran");

    let receiver = Receiver::at(executable(), &arrived, (&addresses.0, &addresses.1), &QUICK).expect("it is back");
    let last = Recording::start(executable(), &lab, &written, &arguments).expect("the exporter records");
    dial(&mut lab, ends, 20);
    wait_until("an empty spool", || kept() == 1);
    last.stop().expect("it ends well");
    receiver.stop().expect("it ends well");
    let (written_rows, arrived_rows) = (numbered::<FlowRecord>(&written), numbered::<FlowRecord>(&arrived));
    let runs = |rows: &BTreeMap<(String, i64), FlowRecord>| {
        rows.keys().map(|(run, _)| run.clone()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((runs(&written_rows).len(), runs(&arrived_rows)), (3, runs(&written_rows)));
    for (key, row) in &written_rows {
        assert_eq!(arrived_rows.get(key), Some(row), "what is on disk has arrived too");
    }
    let report = flowscribe(&["report", "--input", &arrived.to_string_lossy()]);
    let said = String::from_utf8_lossy(&report.stderr);
    assert_eq!(said.matches("has not ended cleanly").count(), 1, "the killed run is named: {said}");
    Ok(())
}

fn a_full_disk_under_the_capture_costs_the_collector_nothing() -> Ran {
    let mut lab = lab()?;
    let disk = small_disk(256 << 10)?;
    let ends = ends(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let (written, arrived) = (disk.path().join("written"), directory.path().join("arrived"));
    let receiver = Receiver::start(executable(), &arrived, &QUICK).expect("it receives");
    let spool = directory.path().join("spool").to_string_lossy().into_owned();
    let recording = Recording::start(executable(), &lab, &written, &sending(&spool, "grpc", &receiver.grpc));
    let recording = recording.expect("the exporter records");
    dial(&mut lab, ends, 10);
    wait_until("flows in a file", || !rows_so_far::<FlowRecord>(&written).is_empty());
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).expect("there is room");
    while std::io::Write::write_all(&mut file, &[7; 4096]).is_ok() {}
    dial(&mut lab, ends, 30);
    // What the collector gets tells of it.
    let arrived_ends = || rows_so_far::<FlowRecord>(&arrived).iter().map(|row| row.connections).sum::<i64>();
    wait_until("what the disk does not take", || arrived_ends() == 80);
    let_windows_pass(&arrived, 3);
    drop(file);
    fs::remove_file(&filler).expect("there was one");
    dial(&mut lab, ends, 10);
    wait_until("what came last", || arrived_ends() == 100);
    let log = recording.stop().expect("it ends well");
    assert!(log.contains("a file is given up"), "{log}");
    receiver.stop().expect("it ends well");
    // Each way has its own account.
    balance(&arrived);
    balance(&written);
    let lost = |capture: &Path| rows::<HealthRecord>(capture).iter().map(|row| row.lost_sink).sum::<i64>();
    assert_eq!(lost(&arrived), 0);
    assert!(lost(&written) > 0, "what the disk did not take");
    let flows: i64 = numbered::<FlowRecord>(&arrived).values().map(|row| row.connections).sum();
    assert_eq!(flows, 100, "both ends of fifty connections");
    Ok(())
}
