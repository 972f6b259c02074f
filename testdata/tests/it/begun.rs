//! What began before the recording, and what is seen of one end alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use schemas::flow::FlowRecord;
use testdata::{
    lab::Lab,
    neighbour::Neighbour,
    pod::{Exchange, Order},
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{balance, executable, lab, pod, rows},
};

tests![
    a_connect_that_is_under_way_when_the_recording_begins_is_recorded_when_it_is_answered,
    what_no_process_has_a_file_of_is_found,
    multipath_connections_that_are_older_have_a_direction,
    a_connection_that_was_restored_has_no_direction,
    who_receives_datagrams_without_asking_from_whom_is_recorded_as_such,
    who_asks_from_whom_is_not_mistaken_while_agents_come_and_go,
];

const CALL: Exchange = Exchange::new(10, 20);
/// An operation that there is not.
const NEVER: u32 = 99;

fn a_connect_that_is_under_way_when_the_recording_begins_is_recorded_when_it_is_answered() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, CALL).expect("the port is free");
    let addresses = [IpAddr::from(lab.ipv4(server)), lab.ipv6(server).into()];
    // A first connection each, so that neither waits for the other's link address later.
    for address in addresses {
        lab.dial(client, (address, 7001), 1, CALL).expect("the server answers");
    }
    let rules = "table inet late { chain input { type filter hook input priority 0; tcp dport 7001 drop; }; }";
    let nft = |arguments: &[&str], input: &str| Order::Run {
        program: "nft".into(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        input: input.into(),
    };
    lab.order(server, &nft(&["-f", "-"], rules)).expect("nftables takes it");
    for address in addresses {
        let dial = Order::BeginDial { to: SocketAddr::new(address, 7001), exchange: CALL };
        lab.order(client, &dial).expect("it begins");
    }
    lab.shell(client, "until [ $(ss -Htn state syn-sent | wc -l) = 2 ]; do sleep 0.05; done")
        .expect("both are under way");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    // Of another program that takes no flags away, nothing is said.
    let _innocent = Neighbour::overwriting(lab.cgroup(), NEVER).expect("the kernel takes another program");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    lab.order(server, &nft(&["delete", "table", "inet", "late"], "")).expect("nftables takes it");
    assert_eq!(lab.order(client, &Order::AwaitDials).expect("both are answered"), 2);
    let said = recording.stop().expect("the exporter ends well");
    assert!(!said.contains("sock_ops program"), "{said}");
    balance(&output);
    let flows = rows::<FlowRecord>(&output);
    let mut found = BTreeMap::new();
    for row in &flows {
        assert_eq!((row.destination_port, row.direction_known, row.start_known), (7001, true, true), "{row:?}");
        let counts = (row.connections, row.closed, row.bytes_sent, row.bytes_received);
        assert!(found.insert((row.destination_address.to_string(), &*row.observer), counts).is_none(), "{flows:?}");
    }
    let once = (1, 1, Some(10), Some(20));
    let ends = addresses.iter().flat_map(|address| ["client", "server"].map(|end| ((address.to_string(), end), once)));
    assert_eq!(found, ends.collect(), "{flows:?}");
    Ok(())
}

/// What a recording has during which something happens: observer, port of the destination, and whether the direction is
/// known.
fn seen(lab: &mut Lab, meanwhile: impl FnOnce(&mut Lab)) -> BTreeSet<(String, u16, bool)> {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), lab, &output, &[] as &[&str]).expect("the exporter records");
    meanwhile(lab);
    recording.stop().expect("the exporter ends well");
    balance(&output);
    let flows = rows::<FlowRecord>(&output);
    let of = |row: FlowRecord| (row.observer.to_string(), row.destination_port, row.direction_known);
    flows.into_iter().map(of).collect()
}

fn what_no_process_has_a_file_of_is_found() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.order(server, &Order::ListenIdle { port: 7001 }).expect("the port is free");
    let to = SocketAddr::new(lab.ipv4(server).into(), 7001);
    lab.order(client, &Order::Hold { to, exchange: Exchange::new(0, 0) }).expect("the kernel answers");
    let both = ["client", "server"].map(|end| (end.to_owned(), 7001, true));
    assert_eq!(seen(&mut lab, |_| ()), both.into());
    Ok(())
}

fn multipath_connections_that_are_older_have_a_direction() -> Ran {
    let mut lab = lab()?;
    let [client, multipath, server] = ["client", "multipath", "server"].map(|name| pod(&mut lab, name));
    lab.order(server, &Order::ListenMultipath { port: 7001, exchange: CALL }).expect("the kernel has MPTCP");
    let to = SocketAddr::new(lab.ipv4(server).into(), 7001);
    lab.order(client, &Order::Hold { to, exchange: CALL }).expect("the server answers");
    lab.order(multipath, &Order::HoldMultipath { to, exchange: CALL }).expect("the server answers");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    recording.stop().expect("the exporter ends well");
    balance(&output);
    let flows = rows::<FlowRecord>(&output);
    let seen: BTreeSet<_> = flows
        .iter()
        .map(|row| (row.source_workload.as_deref(), &*row.observer, row.destination_port, row.direction_known))
        .collect();
    let pairs =
        ["client", "multipath"].into_iter().flat_map(|of| ["client", "server"].map(|end| (Some(of), end, 7001, true)));
    assert_eq!(seen, pairs.collect(), "{flows:?}");
    assert!(flows.iter().all(|row| row.active == 1 && row.connections == 0), "{flows:?}");
    Ok(())
}

fn a_connection_that_was_restored_has_no_direction() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    let [at, to] = [(server, 7001), (client, 47_650)].map(|(pod, port)| SocketAddr::new(lab.ipv4(pod).into(), port));
    let restore = |lab: &mut Lab| {
        lab.order(server, &Order::Restore { at, to }).expect("the kernel may restore");
    };
    assert_eq!(seen(&mut lab, restore), [("client".to_owned(), 47_650, false)].into());
    // It serves the port: then it was accepted.
    lab.order(server, &Order::Release).expect("it is held");
    lab.order(server, &Order::Listen { port: 7001, exchange: CALL }).expect("the port is free");
    assert_eq!(seen(&mut lab, restore), [("server".to_owned(), 7001, true)].into());
    Ok(())
}

fn who_receives_datagrams_without_asking_from_whom_is_recorded_as_such() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.order(server, &Order::TakeUdp { port: 514 }).expect("the port is free");
    lab.order(server, &Order::ListenUdp { port: 515 }).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    for address in [IpAddr::from(lab.ipv4(server)), lab.ipv6(server).into()] {
        let send = Order::SendUdp { to: SocketAddr::new(address, 514), connected_to: None };
        lab.order(client, &send).expect("it is sent");
        let ask = Order::DialUdp { to: SocketAddr::new(address, 515), times: 1, bytes: 9, connected: true };
        lab.order(client, &ask).expect("the server answers");
    }
    recording.stop().expect("the exporter ends well");
    balance(&output);
    let flows = rows::<FlowRecord>(&output);
    let at_the_server: Vec<_> = flows.iter().filter(|row| &*row.observer == "server").collect();
    let unasked: Vec<_> = at_the_server.iter().filter(|row| row.destination_port == 514).collect();
    assert!(!unasked.is_empty(), "{flows:?}");
    for row in unasked {
        assert_eq!((&*row.source_kind, row.source_unknown_reason.as_deref()), ("unknown", Some("sender_not_asked")));
        assert_eq!(row.destination_workload.as_deref(), Some("server"));
        assert!(row.direction_known && row.connections > 0, "{row:?}");
    }
    for row in at_the_server.iter().filter(|row| row.destination_port == 515) {
        assert_eq!(row.source_workload.as_deref(), Some("client"), "who asks is told: {row:?}");
    }
    Ok(())
}

fn who_asks_from_whom_is_not_mistaken_while_agents_come_and_go() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.order(server, &Order::ListenUdp { port: 515 }).expect("the port is free");
    let to = SocketAddr::new(lab.ipv4(server).into(), 515);
    lab.order(client, &Order::FloodUdp { to }).expect("it begins");
    for _ in 0..5 {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("capture");
        let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
        recording.stop().expect("the exporter ends well");
        let flows = rows::<FlowRecord>(&output);
        assert!(flows.iter().any(|row| row.connections > 0), "they were busy: {flows:?}");
        assert!(flows.iter().all(|row| row.source_unknown_reason.is_none()), "{flows:?}");
    }
    Ok(())
}
