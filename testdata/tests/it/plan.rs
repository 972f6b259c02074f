//! A known plan of traffic comes back from the capture exactly: every edge, count and byte, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
};

use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord};
use serde_json::json;
use testdata::{
    lab::{Lab, PodId},
    pod::{Close, Exchange},
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{
        executable, flowscribe, lab, let_connections_end, let_windows_pass, pod, rows, rows_so_far, spec, wait_until,
    },
};

tests![
    every_planned_edge_comes_back_with_exact_counts_and_bytes,
    open_connections_are_active_in_every_window_they_outlive,
    namespaces_keep_what_touches_them_and_count_the_rest,
    pods_that_come_and_go_are_learned_from_the_changed_file,
    an_address_that_moves_to_another_pod_never_names_the_wrong_one,
    rows_that_can_not_be_written_are_counted_and_the_run_goes_on,
    an_end_that_can_not_be_written_is_a_failure,
    a_lab_leaves_nothing_behind,
    a_lab_that_is_killed_leaves_nothing_behind,
];

/// One line of the plan: who is dialled how often, and what passes.
struct Line {
    to: IpAddr,
    port: u16,
    times: u32,
    exchange: Exchange,
}

/// What one end should have seen of one edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    connections: i64,
    failed: i64,
    closed: i64,
    bytes_sent: Option<i64>,
    bytes_received: Option<i64>,
}

/// Observer, source, destination, port and failure.
type Edge = (String, String, String, u16, Option<String>);

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn plan(lab: &Lab, server: PodId) -> Vec<Line> {
    let (ipv4, ipv6): (IpAddr, IpAddr) = (lab.ipv4(server).into(), lab.ipv6(server).into());
    let line = |to, port, times, to_server, to_client, close| Line {
        to,
        port,
        times,
        exchange: Exchange { to_server, to_client, close },
    };
    vec![
        line(ipv4, 7001, 3, 1000, 2000, Close::Client),
        line(ipv4, 7002, 2, 10, 70_000, Close::Server),
        line(ipv4, 7003, 2, 300, 40, Close::Reset),
        line(ipv4, 7004, 4, 0, 0, Close::Client),
        line(ipv4, 7005, 1, 5_000_000, 1, Close::Server),
        line(ipv6, 7001, 2, 1000, 2000, Close::Client),
        line(ipv6, 7002, 1, 10, 70_000, Close::Server),
        line(ipv6, 7003, 3, 300, 40, Close::Reset),
        line(ipv6, 7004, 1, 0, 0, Close::Client),
    ]
}

/// Plays the plan, refused connects and a Service included, with the exporter running.
fn record(lab: &mut Lab, window: &str, output: &Path) -> (Vec<Line>, PodId, PodId) {
    let (client, server) = (pod(lab, "client"), pod(lab, "server"));
    let plan = plan(lab, server);
    for line in &plan {
        lab.listen(server, line.port, line.exchange).expect("the port is free");
    }
    let entry = json!({ "namespace": "demo", "name": "server", "selector": { "app": "server" },
        "ports": [{ "port": 80, "targetPort": 7001 }] });
    lab.service(entry, SERVICE, &[(80, 7001)], &[server]).expect("nftables takes the service");

    let recording = Recording::start(executable(), lab, output, &["--window", window]).expect("the exporter records");
    let mut served = 0;
    for Line { to, port, times, exchange } in &plan {
        lab.dial(client, (*to, *port), *times, *exchange).expect("the plan can be played");
        served += u64::from(*times);
    }
    lab.dial(client, (SERVICE, 80), 2, plan[0].exchange).expect("the service answers");
    for to in [IpAddr::from(lab.ipv4(server)), IpAddr::from(lab.ipv6(server))] {
        lab.dial(client, (to, 7999), 1, Exchange::new(0, 0)).expect_err("nobody listens there");
    }
    wait_until("every connection is served", || lab.served(server).expect("the server lives") == served + 2);
    let_connections_end(lab, &[client, server]);
    recording.stop().expect("the exporter ends well");
    (plan, client, server)
}

fn expected(lab: &Lab, plan: &[Line], client: PodId, server: PodId) -> BTreeMap<Edge, Seen> {
    let mut expected: BTreeMap<Edge, Seen> = BTreeMap::new();
    let from = |to: &IpAddr| if to.is_ipv4() { lab.ipv4(client).to_string() } else { lab.ipv6(client).to_string() };
    let mut add = |observer: &str, to: IpAddr, port, times: u32, exchange: Exchange| {
        let seen = expected.entry((observer.into(), from(&to), to.to_string(), port, None)).or_default();
        let times = i64::from(times);
        seen.connections += times;
        seen.closed += times;
        *seen.bytes_sent.get_or_insert(0) += times * exchange.to_server as i64;
        *seen.bytes_received.get_or_insert(0) += times * exchange.to_client as i64;
    };
    for Line { to, port, times, exchange } in plan {
        add("client", *to, *port, *times, *exchange);
        add("server", *to, *port, *times, *exchange);
    }
    // Through the Service: the client knows what it dialled, the server what it answered on.
    add("client", SERVICE.into(), 80, 2, plan[0].exchange);
    add("server", lab.ipv4(server).into(), 7001, 2, plan[0].exchange);
    for to in [IpAddr::from(lab.ipv4(server)), IpAddr::from(lab.ipv6(server))] {
        let edge = ("client".into(), from(&to), to.to_string(), 7999, Some("refused".into()));
        expected.insert(edge, Seen { failed: 1, ..Seen::default() });
    }
    expected
}

fn observed(flows: &[FlowRecord]) -> BTreeMap<Edge, Seen> {
    let mut observed: BTreeMap<Edge, Seen> = BTreeMap::new();
    for flow in flows {
        let edge = (
            flow.observer.to_string(),
            flow.source_address.to_string(),
            flow.destination_address.to_string(),
            flow.destination_port,
            flow.failure.as_deref().map(str::to_owned),
        );
        let seen = observed.entry(edge).or_default();
        seen.connections += flow.connections;
        seen.failed += flow.failed;
        seen.closed += flow.closed;
        let add = |sum: &mut Option<i64>, bytes: Option<i64>| {
            if let Some(bytes) = bytes {
                *sum.get_or_insert(0) += bytes;
            }
        };
        add(&mut seen.bytes_sent, flow.bytes_sent);
        add(&mut seen.bytes_received, flow.bytes_received);
    }
    observed
}

fn every_planned_edge_comes_back_with_exact_counts_and_bytes() -> Ran {
    for window in ["1s", "60s", "0"] {
        let mut lab = lab()?;
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("capture");
        let (plan, client, server) = record(&mut lab, window, &output);
        let flows = rows::<FlowRecord>(&output);
        assert_eq!(observed(&flows), expected(&lab, &plan, client, server), "with --window {window}");
        check_rows(&flows, window);

        let health = rows::<HealthRecord>(&output);
        let seen: i64 = health.iter().map(|row| row.seen).sum();
        let exported: i64 = health.iter().map(|row| row.exported).sum();
        assert_eq!(seen, exported, "with --window {window}: nothing was filtered or lost");
        assert_eq!(exported, flows.iter().map(|row| row.connections + row.failed).sum::<i64>());
        assert!(health.iter().all(|row| row.clean_shutdown == (row.seq == health.len() as i64 - 1)), "{health:?}");
        assert!(rows::<InventoryRecord>(&output).iter().all(|row| &*row.event == "snapshot"));
    }
    Ok(())
}

/// What holds for every row of the plan, whatever edge it tells of.
fn check_rows(flows: &[FlowRecord], window: &str) {
    let seqs: BTreeSet<i64> = flows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, (0..flows.len() as i64).collect(), "numbers have no gap");
    for row in flows {
        assert_eq!((row.source_workload.as_deref(), row.source_namespace.as_deref()), (Some("client"), Some("demo")));
        let destination = row.destination_workload.as_deref().or(row.destination_service.as_deref());
        assert_eq!(destination, Some("server"));
        assert_eq!(row.source_pod_uid.as_deref(), Some("uid-demo-client-0"));
        assert_eq!(row.source_labels.as_deref(), Some(r#"{"app":"client"}"#));
        assert!(row.direction_known && row.start_known, "{row:?}");
        assert!(row.first_seen <= row.last_seen && row.window_start <= row.first_seen, "{row:?}");
        assert_eq!(row.source_port.is_some(), window == "0", "a client's port is told per connection only: {row:?}");
        let measured: i64 = row.rtt_us_hist.0.iter().sum();
        assert_eq!(measured, row.closed, "every connection that ended has a round-trip time: {row:?}");
        if &*row.destination_kind == "service" {
            assert_eq!(row.destination_target_port, Some(7001));
        }
    }
}

fn open_connections_are_active_in_every_window_they_outlive() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    for window in ["1s", "0"] {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("capture");
        let arguments = ["--window", window, "--roll-interval", "1s"];
        let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
        for _ in 0..2 {
            lab.hold(client, (lab.ipv4(server), 7001), Exchange::new(1, 1)).expect("the server answers");
        }
        let windows = || {
            let flows = rows_so_far::<FlowRecord>(&output);
            let of = |observer| flows.iter().filter(|row| &*row.observer == observer).count();
            of("client").min(of("server"))
        };
        if window == "1s" {
            wait_until("three windows", || windows() >= 3);
        }
        recording.stop().expect("the exporter ends well");
        let flows = rows::<FlowRecord>(&output);
        for observer in ["client", "server"] {
            let rows: Vec<_> = flows.iter().filter(|row| &*row.observer == observer).collect();
            assert_eq!(rows.iter().map(|row| row.connections).sum::<i64>(), 2, "counted once: {rows:?}");
            assert!(rows.iter().all(|row| row.closed == 0), "{rows:?}");
            let bytes = |pick: fn(&FlowRecord) -> Option<i64>| rows.iter().filter_map(|row| pick(row)).sum::<i64>();
            assert_eq!((bytes(|row| row.bytes_sent), bytes(|row| row.bytes_received)), (2, 2), "told once: {rows:?}");
            if window == "0" {
                assert_eq!(rows.iter().map(|row| row.active).collect::<Vec<_>>(), [1, 1], "one row each: {rows:?}");
            } else {
                assert!(rows.len() >= 3, "in every window: {rows:?}");
                let mut rows = rows;
                rows.sort_by_key(|row| row.window_start);
                // The two may have begun in different windows.
                let begun = rows.iter().scan(0, |begun, row| {
                    *begun += row.connections;
                    Some(*begun)
                });
                assert!(begun.zip(&rows).all(|(begun, row)| row.active == begun), "{rows:?}");
            }
        }
        lab.release(client).expect("the client lives");
    }
    Ok(())
}

fn namespaces_keep_what_touches_them_and_count_the_rest() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    for (namespaces, kept) in [("demo,other", true), ("other", false)] {
        let output = directory.path().join(namespaces);
        let recording =
            Recording::start(executable(), &lab, &output, &["--namespaces", namespaces]).expect("the exporter records");
        lab.dial(client, (lab.ipv4(server), 7001), 2, Exchange::new(1, 1)).expect("the server answers");
        recording.stop().expect("the exporter ends well");
        let flows = rows::<FlowRecord>(&output);
        assert_eq!(!flows.is_empty(), kept, "--namespaces {namespaces}: {flows:?}");
        let health = rows::<HealthRecord>(&output);
        let filtered: i64 = health.iter().map(|row| row.filtered).sum();
        assert_eq!(filtered, if kept { 0 } else { 4 }, "--namespaces {namespaces}: {health:?}");
        assert!(!rows::<InventoryRecord>(&output).is_empty(), "inventory is never filtered");
    }
    Ok(())
}

fn pods_that_come_and_go_are_learned_from_the_changed_file() -> Ran {
    let mut lab = lab()?;
    let server = pod(&mut lab, "server");
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let arguments = ["--window", "1s", "--roll-interval", "1s"];
    let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
    let late = pod(&mut lab, "late");
    lab.write_inventory(&output.with_extension("inventory.yaml")).expect("the file is written");
    wait_until("news of the pod", || rows_so_far::<InventoryRecord>(&output).iter().any(|row| &*row.name == "late-0"));
    lab.dial(late, (lab.ipv4(server), 7001), 1, Exchange::new(1, 1)).expect("the server answers");
    // A file that can't be used leaves what was known as it was.
    std::fs::write(output.with_extension("inventory.yaml"), "pods: nonsense").expect("the file is written");
    // The file is looked at in every window.
    let_windows_pass(&output, 3);
    lab.dial(late, (lab.ipv4(server), 7001), 1, Exchange::new(1, 1)).expect("the server answers");
    let log = recording.terminate().expect("the exporter ends well");
    assert!(log.contains("keeping the inventory as it was"), "{log}");
    let flows = rows::<FlowRecord>(&output);
    assert!(flows.iter().all(|row| row.source_workload.as_deref() == Some("late")), "{flows:?}");
    let inventory = rows::<InventoryRecord>(&output);
    let events: BTreeSet<(&str, &str)> =
        inventory.iter().filter(|row| &*row.kind == "Pod").map(|row| (&*row.event, &*row.name)).collect();
    assert_eq!(events, BTreeSet::from([("snapshot", "server-0"), ("upsert", "late-0")]));
    Ok(())
}

fn an_address_that_moves_to_another_pod_never_names_the_wrong_one() -> Ran {
    let mut lab = lab()?;
    let (moving, server) = (pod(&mut lab, "first"), pod(&mut lab, "server"));
    for port in [7001, 7002] {
        lab.listen(server, port, Exchange::new(1, 1)).expect("the port is free");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let arguments = ["--roll-interval", "1s"];
    let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
    lab.dial(moving, (lab.ipv4(server), 7001), 1, Exchange::new(1, 1)).expect("the server answers");
    lab.replace(moving, spec("second")).expect("the lab takes the new pod");
    lab.dial(moving, (lab.ipv4(server), 7002), 1, Exchange::new(1, 1)).expect("the server answers");
    // The news comes after the fact, as news does.
    lab.write_inventory(&output.with_extension("inventory.yaml")).expect("the file is written");
    let is_news = |row: &InventoryRecord| &*row.name == "second-0";
    wait_until("news of the pod", || rows_so_far::<InventoryRecord>(&output).iter().any(is_news));
    recording.stop().expect("the exporter ends well");

    let flows = rows::<FlowRecord>(&output);
    let clients: BTreeSet<_> = flows
        .iter()
        .filter(|row| &*row.observer == "client")
        .map(|row| (row.destination_port, row.source_workload.as_deref()))
        .collect();
    assert_eq!(clients, BTreeSet::from([(7001, Some("first")), (7002, Some("second"))]));
    let edges = "select source_workload, port, seen_by from edges order by port";
    let asked = flowscribe(&["sql", "--input", &output.to_string_lossy(), edges, "--format", "csv"]);
    let text = String::from_utf8_lossy(&asked.stdout);
    assert_eq!(text, "source_workload,port,seen_by\nfirst,7001,both\nsecond,7002,both\n", "{flows:?}");
    Ok(())
}

fn rows_that_can_not_be_written_are_counted_and_the_run_goes_on() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    std::fs::create_dir(&output).expect("made");
    std::fs::write(output.join("flows"), "in the way").expect("written");
    let arguments = ["--window", "1s", "--roll-interval", "1s"];
    let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
    lab.dial(client, (lab.ipv4(server), 7001), 3, Exchange::new(1, 1)).expect("the server answers");
    let lost = || rows_so_far::<HealthRecord>(&output).iter().map(|row| row.lost_sink).sum::<i64>();
    wait_until("the loss of what can't be written", || lost() == 6);
    std::fs::remove_file(output.join("flows")).expect("it can be removed");
    lab.dial(client, (lab.ipv4(server), 7001), 2, Exchange::new(1, 1)).expect("the server answers");
    let log = recording.stop().expect("the exporter ends well");
    assert!(log.contains("a file is given up") && log.contains("cannot write"), "{log}");
    let health = rows::<HealthRecord>(&output);
    let sum = |pick: fn(&HealthRecord) -> i64| health.iter().map(pick).sum::<i64>();
    assert_eq!((sum(|row| row.seen), sum(|row| row.exported), sum(|row| row.lost_sink)), (10, 4, 6));
    assert_eq!(rows::<FlowRecord>(&output).iter().map(|row| row.connections).sum::<i64>(), 4);
    Ok(())
}

fn an_end_that_can_not_be_written_is_a_failure() -> Ran {
    let lab = lab()?;
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    std::fs::remove_dir_all(output.join("health")).expect("it was begun");
    std::fs::write(output.join("health"), "in the way").expect("written");
    let error = recording.stop().expect_err("its last word can't be written").to_string();
    assert!(error.contains("exit status: 1") && error.contains("the end of the recording is missing"), "{error}");
    Ok(())
}

fn a_lab_leaves_nothing_behind() -> Ran {
    let mut lab = lab()?;
    pod(&mut lab, "client");
    let (cgroup, netns) = (lab.cgroup().to_path_buf(), lab.node_netns());
    assert!(cgroup.is_dir() && netns.exists());
    drop(lab);
    assert!(!cgroup.exists(), "{} is still there", cgroup.display());
    assert!(!netns.exists(), "the node's process is still there");
    Ok(())
}

fn a_lab_that_is_killed_leaves_nothing_behind() -> Ran {
    let lab = lab()?;
    let mount = lab.cgroup().parent().expect("a lab's cgroup is in the hierarchy").to_path_buf();
    let directory = tempfile::tempdir().expect("a directory");
    let mut demo = Command::new(executable())
        .args(["demo", "--capture"])
        .arg(directory.path().join("capture"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the demo starts");
    let prefix = format!("flowscribe-lab-{}-", demo.id());
    let cgroups = || {
        let entries = std::fs::read_dir(&mount).expect("it can be read").flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()).next()
    };
    wait_until("a pod of the demo", || cgroups().is_some_and(|lab| lab.join("pod5").exists()));
    demo.kill().expect("it was running");
    demo.wait().expect("it was started here");
    wait_until("the end of the lab's cgroups", || cgroups().is_none());
    Ok(())
}
