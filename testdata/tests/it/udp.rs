//! UDP: an edge for every datagram that passed, from whoever sent first, and none for a mere connect.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use schemas::{flow::FlowRecord, health::HealthRecord};
use testdata::{pod::Order, recording::Recording};

use crate::{
    harness::Ran,
    support::{balance, executable, flowscribe, lab, pod, rows},
};

tests![
    datagrams_are_edges_from_who_sent_first_and_a_connect_is_none,
    an_answer_to_what_was_asked_before_the_recording_makes_nobody_a_server,
    what_a_connected_socket_sends_elsewhere_is_an_edge_to_there,
];

/// Observer, port, family, connections and bytes there and back.
type Told<'a> = BTreeMap<(&'a str, u16, bool), (i64, Option<i64>, Option<i64>)>;

fn datagrams_are_edges_from_who_sent_first_and_a_connect_is_none() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    for port in [7001, 7002, 7003] {
        lab.order(server, &Order::ListenUdp { port }).expect("the port is free");
    }
    for window in ["60s", "1s", "0"] {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("capture");
        let recording =
            Recording::start(executable(), &lab, &output, &["--window", window]).expect("the exporter records");
        for address in [IpAddr::from(lab.ipv4(server)), lab.ipv6(server).into()] {
            let to = |port| SocketAddr::new(address, port);
            let dial = |port, times, connected| Order::DialUdp { to: to(port), times, bytes: 40, connected };
            for order in [dial(7001, 3, true), dial(7002, 2, false), Order::ConnectUdp { to: to(7003) }] {
                lab.order(client, &order).expect("the server answers");
            }
        }
        recording.stop().expect("the exporter ends well");

        let flows = rows::<FlowRecord>(&output);
        let mut told: Told<'_> = BTreeMap::new();
        for row in &flows {
            assert_eq!((&*row.transport, row.direction_known, row.start_known), ("udp", true, true));
            assert_eq!(row.source_workload.as_deref(), Some("client"), "{row:?}");
            assert_eq!(row.destination_workload.as_deref(), Some("server"), "{row:?}");
            assert_eq!((row.closed, row.active, row.failed, row.source_port), (0, 0, 0, None), "{row:?}");
            let ipv6 = row.destination_address.contains(':');
            let server_address = if ipv6 { lab.ipv6(server).to_string() } else { lab.ipv4(server).to_string() };
            assert_eq!(*row.destination_address, server_address, "also of a socket bound to no address");
            let told = told.entry((&row.observer, row.destination_port, ipv6)).or_default();
            told.0 += row.connections;
            told.1 = row.bytes_sent.map(|bytes| bytes + told.1.unwrap_or(0)).or(told.1);
            told.2 = row.bytes_received.map(|bytes| bytes + told.2.unwrap_or(0)).or(told.2);
        }
        let expected: Told<'_> = [false, true]
            .into_iter()
            .flat_map(|ipv6| {
                [
                    (("client", 7001, ipv6), (3, Some(120), Some(120))),
                    (("client", 7002, ipv6), (2, None, None)),
                    (("server", 7001, ipv6), (3, None, None)),
                    (("server", 7002, ipv6), (2, None, None)),
                ]
            })
            .collect();
        assert_eq!(told, expected, "with --window {window}");
        balance(&output);
        let health = rows::<HealthRecord>(&output);
        assert_eq!(health.iter().map(|row| row.exported).sum::<i64>(), 20, "with --window {window}");
        let report = flowscribe(&["report", "--input", &output.to_string_lossy()]);
        let policies = String::from_utf8_lossy(&report.stdout);
        for port in [7001, 7002] {
            assert_eq!(policies.matches(&format!("port: {port}\n      protocol: UDP")).count(), 2, "{policies}");
        }
        assert!(!policies.contains("7003") && !policies.contains("TCP"), "{policies}");
    }
    Ok(())
}

fn an_answer_to_what_was_asked_before_the_recording_makes_nobody_a_server() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    for port in [7001, 7002] {
        lab.order(server, &Order::ListenUdp { port }).expect("the port is free");
    }
    let at = |port| SocketAddr::new(lab.ipv4(server).into(), port);
    let asked = [
        Order::SendUdp { to: at(7001), connected_to: Some(at(7001)) },
        Order::SendUdp { to: at(7002), connected_to: None },
    ];
    for order in asked {
        lab.order(client, &order).expect("it is sent");
    }
    // The first datagram between two hosts can take a second: as long as an address question that is asked again.
    lab.order(client, &Order::AwaitUdp).expect("both are answered before the recording");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    lab.order(client, &Order::ReceiveUdp).expect("both answers are there");
    recording.stop().expect("the exporter ends well");
    let flows = rows::<FlowRecord>(&output);
    let told: BTreeMap<u16, (&str, bool)> =
        flows.iter().map(|row| (row.destination_port, (&*row.observer, row.direction_known))).collect();
    // A port that connect chose is a client's; one that the socket has for all can be a server's.
    assert_eq!(told, BTreeMap::from([(7001, ("client", true)), (7002, ("client", false))]), "{flows:?}");
    balance(&output);
    Ok(())
}

fn what_a_connected_socket_sends_elsewhere_is_an_edge_to_there() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    for port in [7001, 7002, 7003] {
        lab.order(server, &Order::ListenUdp { port }).expect("the port is free");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    for address in [IpAddr::from(lab.ipv4(server)), lab.ipv6(server).into()] {
        let at = |port| SocketAddr::new(address, port);
        for (to, connected_to) in [(7001, 7003), (7001, 7003), (7002, 7002)] {
            let order = Order::SendUdp { to: at(to), connected_to: Some(at(connected_to)) };
            lab.order(client, &order).expect("it is sent");
        }
    }
    recording.stop().expect("the exporter ends well");
    let flows = rows::<FlowRecord>(&output);
    let mut told: BTreeMap<(&str, u16), (i64, i64)> = BTreeMap::new();
    for row in &flows {
        let told = told.entry((&row.observer, row.destination_port)).or_default();
        told.0 += row.connections;
        told.1 += row.bytes_sent.unwrap_or(0);
    }
    let expected = [(("client", 7001), (4, 0)), (("client", 7002), (2, 16))];
    let expected = expected.into_iter().chain([(("server", 7001), (4, 0)), (("server", 7002), (2, 0))]).collect();
    assert_eq!(told, expected, "{flows:?}");
    balance(&output);
    Ok(())
}
