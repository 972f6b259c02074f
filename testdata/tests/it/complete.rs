//! What is easily missed: connections that were there before, that fail in their ways, and pods that are gone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord};
use testdata::{
    pod::{Exchange, Order},
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{balance, executable, flowscribe, lab, let_connections_end, pod, rows, rows_so_far, wait_until},
};

tests![
    connections_older_than_the_recording_are_found_with_their_direction,
    connects_that_fail_are_named_by_how_they_failed,
    unusual_connections_are_told_exactly,
    a_pod_that_is_gone_before_anybody_looks_is_still_named,
];

fn connections_older_than_the_recording_are_found_with_their_direction() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(5, 7)).expect("the port is free");
    for address in [IpAddr::from(lab.ipv4(server)), lab.ipv6(server).into()] {
        lab.hold(client, (address, 7001), Exchange::new(0, 0)).expect("the server answers");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let arguments = ["--window", "1s", "--roll-interval", "1s"];
    let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
    wait_until("two windows in which both are open, at both ends", || {
        let flows = rows_so_far::<FlowRecord>(&output);
        let active =
            |observer| flows.iter().filter(|row| &*row.observer == observer).map(|row| row.active).sum::<i64>();
        active("client") >= 4 && active("server") >= 4
    });
    lab.order(client, &Order::Finish { exchange: Exchange::new(5, 7) }).expect("the server answers");
    let_connections_end(&mut lab, &[client, server]);
    recording.stop().expect("the exporter ends well");

    let flows = rows::<FlowRecord>(&output);
    for observer in ["client", "server"] {
        let rows: Vec<_> = flows.iter().filter(|row| &*row.observer == observer).collect();
        assert!(rows.iter().all(|row| row.direction_known && !row.start_known), "{rows:?}");
        assert!(rows.iter().all(|row| row.destination_port == 7001 && row.connections == 0), "{rows:?}");
        let sum = |pick: fn(&FlowRecord) -> i64| rows.iter().map(|row| pick(row)).sum::<i64>();
        assert_eq!(sum(|row| row.closed), 2, "{rows:?}");
        assert_eq!(sum(|row| row.bytes_sent.unwrap_or(0)), 2 * 5, "{rows:?}");
        assert_eq!(sum(|row| row.bytes_received.unwrap_or(0)), 2 * 7, "{rows:?}");
        assert!(sum(|row| row.active) >= 4, "open at the end of two windows or more: {rows:?}");
    }
    balance(&output);
    let report = flowscribe(&["report", "--input", &output.to_string_lossy()]);
    let policies = String::from_utf8_lossy(&report.stdout);
    assert_eq!(policies.matches("port: 7001").count(), 2, "allowed at both ends: {policies}");
    Ok(())
}

fn connects_that_fail_are_named_by_how_they_failed() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    let rules = "nft add table inet t; nft add chain inet t in '{ type filter hook input priority 0; }'; \
                 nft add rule inet t in tcp dport 7002 drop; \
                 nft add rule inet t in tcp dport 7003 reject with icmpx host-unreachable";
    lab.shell(server, rules).expect("nftables takes the rules");
    lab.shell(client, "echo 1 > /proc/sys/net/ipv4/tcp_syn_retries").expect("it can be set");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    for address in [IpAddr::from(lab.ipv4(server)), lab.ipv6(server).into()] {
        let mut dial = |port, give_up_after_ms| {
            let to = SocketAddr::new(address, port);
            lab.order(client, &Order::DialInVain { to, give_up_after_ms }).expect("nobody answers");
        };
        dial(7001, None);
        dial(7002, None);
        dial(7002, Some(100));
        dial(7003, None);
    }
    recording.stop().expect("the exporter ends well");
    let flows = rows::<FlowRecord>(&output);
    let mut failures: BTreeMap<(u16, &str), i64> = BTreeMap::new();
    for row in &flows {
        assert_eq!((row.connections, row.observer.as_ref()), (0, "client"), "{row:?}");
        *failures.entry((row.destination_port, row.failure.as_deref().unwrap_or("none"))).or_default() += row.failed;
    }
    let expected = [(7001, "refused"), (7002, "aborted"), (7002, "timeout"), (7003, "unreachable")];
    assert_eq!(failures, expected.map(|failure| (failure, 2)).into());
    balance(&output);
    Ok(())
}

fn unusual_connections_are_told_exactly() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    // Data with the SYN, without the cookie of an earlier connection, at both ends.
    for end in [client, server] {
        lab.shell(end, "echo 1543 > /proc/sys/net/ipv4/tcp_fastopen").expect("it can be set");
    }
    lab.listen(server, 7001, Exchange::new(100, 10)).expect("the port is free");
    lab.listen(server, 7002, Exchange::new(30, 0)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "0"]).expect("the exporter records");
    let at = |port| SocketAddr::new(lab.ipv4(server).into(), port);
    let own = SocketAddr::new(lab.ipv4(client).into(), 7003);
    let orders = [
        Order::DialFastOpen { to: at(7001), exchange: Exchange::new(100, 10) },
        Order::DialAndPass { to: at(7002), bytes: 30 },
        Order::DialSelf { at: own },
    ];
    for order in orders {
        lab.order(client, &order).expect("the server answers");
    }
    wait_until("every connection is served", || lab.served(server).expect("the server lives") == 2);
    let_connections_end(&mut lab, &[client, server]);
    recording.stop().expect("the exporter ends well");
    let flows = rows::<FlowRecord>(&output);
    let mut told: Vec<_> = flows
        .iter()
        .map(|row| {
            (row.destination_port, &*row.observer, row.connections, row.closed, row.bytes_sent, row.bytes_received)
        })
        .collect();
    told.sort_unstable();
    let expected = [
        (7001, "client", 1, 1, Some(100), Some(10)),
        (7001, "server", 1, 1, Some(100), Some(10)),
        (7002, "client", 1, 1, Some(30), Some(0)),
        (7002, "server", 1, 1, Some(30), Some(0)),
        (7003, "client", 1, 1, Some(0), Some(0)),
    ];
    assert_eq!(told, expected);
    balance(&output);
    Ok(())
}

fn a_pod_that_is_gone_before_anybody_looks_is_still_named() -> Ran {
    let mut lab = lab()?;
    let server = pod(&mut lab, "server");
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let arguments = ["--window", "5s", "--roll-interval", "1s"];
    let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
    let job = pod(&mut lab, "job");
    lab.dial(job, (lab.ipv4(server), 7001), 1, Exchange::new(1, 1)).expect("the server answers");
    lab.end(job).expect("its cgroup can be removed");
    lab.write_inventory(&output.with_extension("inventory.yaml")).expect("the file is written");
    wait_until("news of the job", || rows_so_far::<InventoryRecord>(&output).iter().any(|row| &*row.name == "job-0"));
    recording.stop().expect("the exporter ends well");
    let flows = rows::<FlowRecord>(&output);
    let client = flows.iter().find(|row| &*row.observer == "client").expect("the job dialled");
    assert_eq!(client.source_workload.as_deref(), Some("job"), "{client:?}");
    assert_eq!(rows::<HealthRecord>(&output).iter().map(|row| row.unidentified).sum::<i64>(), 0);
    Ok(())
}
