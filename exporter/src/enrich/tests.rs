//! Naming the two ends of a flow: the local one by its socket, the remote one by its address.

use std::fs;

use schemas::{inventory::ObjectKind, table::TimestampMs};

use super::{
    labels::Keys,
    sockets::{Located, REMEMBERED_MS},
    *,
};
use crate::{
    flow::{FlowKey, Sums, Transport},
    probe::netns,
};

const HOST: u32 = 1;
const POD_NETNS: &str = "/proc/self/ns/net";

fn origin() -> Origin {
    Origin { cluster: "test".into(), node: "node-a".into(), run_id: "run".into() }
}

fn record(kind: ObjectKind, name: &str, address: &str) -> InventoryRecord {
    InventoryRecord {
        event: "snapshot".into(),
        kind: kind.into(),
        namespace: Some("demo".into()),
        name: name.into(),
        addresses: vec![address.into()],
        ..InventoryRecord::default()
    }
}

fn pod(name: &str, address: &str) -> InventoryRecord {
    InventoryRecord { uid: Some(format!("uid-{name}").into()), ..record(ObjectKind::Pod, name, address) }
}

/// An enricher that knows these objects; the first pod's network namespace is this process's.
fn enricher(filter: Filter, records: Vec<InventoryRecord>) -> (Enricher, u32) {
    let netns = inode(Path::new(POD_NETNS)).expect("this process has a network namespace") as u32;
    let host = HostNetns { inode: HOST, cookie: None };
    let labels = LabelPolicy::new(Keys::default(), Keys::default(), 4096);
    let mut enricher = Enricher::new(origin(), filter, labels, host, "/cgroup".into(), 60_000);
    let observations: Vec<Observation> = records
        .into_iter()
        .enumerate()
        .map(|(at, record)| Observation { record, netns: (at == 0).then(|| POD_NETNS.into()), cgroup: None })
        .collect();
    observations.iter().for_each(|observation| enricher.learn(observation.record.clone()));
    enricher.locate(&observations, TimestampMs(0));
    (enricher, netns)
}

/// The record of a flow, if the filter keeps it.
fn named(enricher: &mut Enricher, flow: &Flow) -> Option<FlowRecord> {
    match enricher.step(flow, false, TimestampMs(i64::MAX)) {
        Step::Record { record, .. } => Some(*record),
        Step::Filtered | Step::Wait => None,
    }
}

fn flow(netns_inode: u32, role: Role, local: &str, remote: &str, server_port: u16) -> Flow {
    let address = |text: &str| text.parse().expect("a test address");
    let is_own = inode(Path::new(POD_NETNS)) == Some(netns_inode.into());
    let netns_cookie = netns::cookie(Path::new(POD_NETNS)).filter(|_| is_own).unwrap_or(7);
    Flow {
        key: FlowKey {
            socket: SocketOwner { netns_inode, netns_cookie, cgroup_id: 0 },
            role,
            transport: Transport::Tcp,
            local_address: address(local),
            remote_address: address(remote),
            server_port,
            local_port: 0,
            failure: None,
            start_known: true,
        },
        window_start: TimestampMs(0),
        window_end: TimestampMs(60_000),
        client_port: None,
        sums: Sums {
            connections: 1,
            failed: 0,
            closed: 1,
            active: 0,
            bytes_sent: None,
            bytes_received: None,
            retransmits: 0,
            duration_ms_sum: 0,
            rtt: [0; 8],
            first_seen: TimestampMs(1_000),
            last_seen: TimestampMs(2_000),
        },
    }
}

#[test]
fn the_local_end_is_its_sockets_pod_and_the_remote_one_has_the_address() {
    let (mut enricher, netns) = enricher(Filter::default(), vec![pod("web", "10.0.0.1"), pod("db", "10.0.0.2")]);
    // An address that the inventory does not know does not make it another pod.
    let row = named(&mut enricher, &flow(netns, Role::Client, "10.0.0.77", "10.0.0.2", 80)).expect("it is kept");
    assert_eq!((row.source_pod.as_deref(), row.destination_pod.as_deref()), (Some("web"), Some("db")));
    let row = named(&mut enricher, &flow(netns, Role::Server, "10.0.0.1", "10.0.0.2", 80)).expect("it is kept");
    assert_eq!((row.source_pod.as_deref(), row.destination_pod.as_deref()), (Some("db"), Some("web")));
    assert_eq!((&*row.source_address, &*row.destination_address), ("10.0.0.2", "10.0.0.1"));
    assert_eq!((row.seq, enricher.next_seq()), (1, 2));
}

#[test]
fn without_a_cookie_a_namespace_number_that_was_reused_names_nobody() {
    let (mut enricher, netns) = enricher(Filter::default(), vec![pod("new", "10.0.0.1"), pod("old", "10.0.0.2")]);
    let by_inode = Located { uid: "uid-new".into(), container: None, last: TimestampMs(0) };
    enricher.sockets.by_inode.insert(netns, by_inode);
    let mut flow = flow(netns, Role::Client, "10.0.0.2", "10.0.0.9", 80);
    flow.key.socket.netns_cookie = 1;
    let row = named(&mut enricher, &flow).expect("it is kept");
    assert_eq!(row.source_pod, None, "the address was old's, the namespace is new's");
    assert_eq!(row.source_unknown_reason.as_deref(), Some("unmapped_socket"));
}

#[test]
fn a_pod_that_is_gone_is_still_named_in_its_last_flows() {
    let (mut enricher, netns) = enricher(Filter::default(), vec![pod("web", "10.0.0.1")]);
    let flow = flow(netns, Role::Client, "10.0.0.1", "10.0.0.2", 80);
    enricher.locate(&[], TimestampMs(60_000));
    assert_eq!(named(&mut enricher, &flow).expect("it is kept").source_pod.as_deref(), Some("web"));
    enricher.locate(&[], TimestampMs(REMEMBERED_MS));
    assert_eq!(named(&mut enricher, &flow).expect("it is kept").source_pod, None, "and then forgotten");
}

#[test]
fn a_socket_of_no_known_pod_is_the_node_in_its_namespace_and_unknown_elsewhere() {
    let (mut enricher, _) = enricher(Filter::default(), vec![pod("web", "10.0.0.1")]);
    let row = named(&mut enricher, &flow(HOST, Role::Client, "192.0.2.1", "10.0.0.1", 80)).expect("it is kept");
    assert_eq!((&*row.source_kind, row.source_node.as_deref()), ("node", Some("node-a")));
    let row = named(&mut enricher, &flow(99, Role::Client, "10.0.0.1", "10.0.0.1", 80)).expect("it is kept");
    assert_eq!((&*row.source_kind, row.source_unknown_reason.as_deref()), ("unknown", Some("unmapped_socket")));
}

#[test]
fn a_host_network_pod_is_told_by_the_cgroup_of_its_container() {
    let directory = tempfile::tempdir().expect("a directory");
    let container = directory.path().join("container");
    fs::create_dir(&container).expect("made");
    let host_pod = InventoryRecord { host_network: Some(true), ..pod("proxy", "192.0.2.1") };
    let (mut enricher, _) = enricher(Filter::default(), vec![]);
    enricher.learn(host_pod.clone());
    enricher.locate(
        &[Observation { record: host_pod, netns: None, cgroup: Some(directory.path().into()) }],
        TimestampMs(0),
    );
    let mut flow = flow(HOST, Role::Client, "192.0.2.1", "198.51.100.1", 443);
    flow.key.socket.cgroup_id = inode(&container).expect("it is there");
    let row = named(&mut enricher, &flow).expect("it is kept");
    assert_eq!((row.source_pod.as_deref(), row.source_host_network), (Some("proxy"), Some(true)));
}

#[test]
fn networks_of_containers_within_a_pod_are_the_pods_also_without_cgroups_of_version_2() {
    let start = || std::process::Command::new("unshare").args(["--net", "sleep", "60"]).spawn();
    let Ok(mut processes) = (0..3).map(|_| start()).collect::<Result<Vec<_>, _>>() else { return };
    let own = inode(Path::new(POD_NETNS)).expect("this process has one");
    let netns = |process: &std::process::Child| inode(Path::new(&format!("/proc/{}/ns/net", process.id())));
    for process in &mut processes {
        while netns(process) == Some(own) {
            if process.try_wait().is_ok_and(|ended| ended.is_some()) {
                eprintln!("SKIPPED: network namespaces need root");
                return;
            }
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let uids = ["1f0c9a2e-7c0f-4a52-9b1d-0123456789ab", "2f0c9a2e-7c0f-4a52-9b1d-0123456789ab"];
    let (mut enricher, _) = enricher(Filter::default(), vec![]);
    enricher.use_kubernetes(None, Some(directory.path().into()));
    // The first pod has a network within it, and a process in the network of the second.
    for (uid, members) in uids.iter().zip([&[0, 1, 2][..], &[2]]) {
        let cgroup = directory.path().join(format!("kubepods/pod{uid}"));
        fs::create_dir_all(&cgroup).expect("made");
        let ids: Vec<String> = members.iter().map(|member: &usize| processes[*member].id().to_string()).collect();
        fs::write(cgroup.join("cgroup.procs"), ids.join("\n")).expect("written");
    }
    enricher.tick(TimestampMs(1_000_000));
    let owners: Vec<Option<String>> = processes
        .iter()
        .map(|process| {
            let netns_inode = netns(process).expect("it runs") as u32;
            let cookie = netns::cookie(Path::new(&format!("/proc/{}/ns/net", process.id())));
            let socket = SocketOwner { netns_inode, netns_cookie: cookie.unwrap_or(0), cgroup_id: 0 };
            enricher.sockets.pod(socket).map(|(uid, _)| uid.to_string())
        })
        .collect();
    for process in &mut processes {
        let _ = process.kill();
        let _ = process.wait();
    }
    assert_eq!(owners, [uids[0], uids[0], uids[1]].map(|uid| Some(uid.to_owned())));
}

#[test]
fn a_container_is_told_by_its_id_in_the_path_of_its_cgroup() {
    let directory = tempfile::tempdir().expect("a directory");
    let id = "4fa6c0e1b5d2".repeat(5) + "4fa6";
    let container = directory.path().join(format!("cri-containerd-{id}.scope/nested"));
    fs::create_dir_all(&container).expect("made");
    let pod = InventoryRecord {
        containers: Some(format!(r#"{{"app":"{}","debugger":"{id}"}}"#, "0".repeat(64)).into()),
        ..pod("web", "10.0.0.1")
    };
    let (mut enricher, _) = enricher(Filter::default(), vec![]);
    enricher.learn(pod.clone());
    let observation = Observation { record: pod, netns: None, cgroup: Some(directory.path().into()) };
    enricher.locate(&[observation], TimestampMs(0));
    for (cgroup, name) in [(container.as_path(), Some("debugger")), (directory.path(), None)] {
        let mut flow = flow(99, Role::Server, "10.0.0.1", "198.51.100.1", 443);
        flow.key.socket.cgroup_id = inode(cgroup).expect("it is there");
        let row = named(&mut enricher, &flow).expect("it is kept");
        assert_eq!((row.destination_pod.as_deref(), row.destination_container.as_deref()), (Some("web"), name));
        assert_eq!(row.source_container, None);
    }
}

#[test]
fn what_a_pods_process_does_in_the_nodes_network_is_not_of_the_pods_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut enricher, _) = enricher(Filter::default(), vec![]);
    enricher.learn(pod("debug", "10.0.0.1"));
    let observation =
        Observation { record: pod("debug", "10.0.0.1"), netns: None, cgroup: Some(directory.path().into()) };
    enricher.locate(&[observation], TimestampMs(0));
    for (netns, is_host) in [(HOST, true), (99, false)] {
        let mut flow = flow(netns, Role::Client, "192.0.2.1", "198.51.100.1", 443);
        flow.key.socket.cgroup_id = inode(directory.path()).expect("it is there");
        let row = named(&mut enricher, &flow).expect("it is kept");
        assert_eq!((row.source_pod.as_deref(), row.source_host_network), (Some("debug"), Some(is_host)));
    }
}

#[test]
fn a_cgroup_that_is_made_anew_is_found_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let cgroup = directory.path().join("service");
    let host_pod = InventoryRecord { host_network: Some(true), ..pod("service", "192.0.2.1") };
    let (mut enricher, _) = enricher(Filter::default(), vec![]);
    enricher.learn(host_pod.clone());
    let observations = [Observation { record: host_pod, netns: None, cgroup: Some(cgroup.clone()) }];
    enricher.locate(&observations, TimestampMs(0));
    let mut flow = flow(HOST, Role::Client, "192.0.2.1", "198.51.100.1", 443);
    for _ in 0..2 {
        fs::create_dir(&cgroup).expect("made");
        flow.key.socket.cgroup_id = inode(&cgroup).expect("it is there");
        enricher.locate(&observations, TimestampMs(0));
        let row = named(&mut enricher, &flow).expect("it is kept");
        assert_eq!(row.source_pod.as_deref(), Some("service"));
        fs::remove_dir(&cgroup).expect("removed");
    }
}

#[test]
fn a_dialled_service_is_named_with_its_target_port() {
    let mut service = record(ObjectKind::Service, "web", "10.96.0.5");
    service.selector = Some(r#"{"app":"web"}"#.into());
    let port = |port, target: &str| schemas::table::Port {
        protocol: "tcp".into(),
        port,
        target: Some(target.into()),
        ..schemas::table::Port::default()
    };
    service.ports = vec![port(80, "8080")];
    let web = InventoryRecord { labels: Some(r#"{"app":"web"}"#.into()), ..pod("web", "10.0.0.1") };
    let (mut enricher, netns) = enricher(Filter::default(), vec![web, service]);
    let row = named(&mut enricher, &flow(netns, Role::Client, "10.0.0.1", "10.96.0.5", 80)).expect("it is kept");
    assert_eq!((&*row.destination_kind, row.destination_service.as_deref()), ("service", Some("web")));
    assert_eq!(row.destination_service_namespace.as_deref(), Some("demo"));
    assert_eq!((row.destination_port, row.destination_target_port), (80, Some(8080)));
}

#[test]
fn what_stays_on_loopback_is_left_out_unless_asked_for() {
    let (mut without, netns) = enricher(Filter::default(), vec![pod("web", "10.0.0.1")]);
    let local = flow(netns, Role::Client, "127.0.0.1", "127.0.0.1", 80);
    assert_eq!(named(&mut without, &local), None);
    for (unbound, to) in [("0.0.0.0", "127.0.0.1"), ("::", "::1")] {
        let datagram = flow(netns, Role::Client, unbound, to, 80);
        assert_eq!(named(&mut without, &datagram), None, "of a socket that is bound to no address");
        let datagram = flow(netns, Role::Server, to, unbound, 80);
        assert_eq!(named(&mut without, &datagram), None, "whose receiver does not ask from whom");
        let datagram = flow(netns, Role::Client, unbound, unbound, 80);
        assert_eq!(named(&mut without, &datagram), None, "to the unspecified address, which is this host");
    }
    let (mut with, netns) = enricher(Filter { loopback: true, ..Filter::default() }, vec![pod("web", "10.0.0.1")]);
    let local = flow(netns, Role::Client, "127.0.0.1", "127.0.0.1", 80);
    let row = named(&mut with, &local).expect("it is kept");
    assert_eq!(row.destination_pod.as_deref(), Some("web"), "the other end is the same pod");
    assert_eq!((without.next_seq(), with.next_seq()), (0, 1), "what is left out takes no number");
}

#[test]
fn who_sent_is_unknown_where_the_receiver_did_not_ask() {
    let (mut enricher, netns) = enricher(Filter::default(), vec![pod("web", "10.0.0.1")]);
    for (bound, nobody) in [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("10.0.0.1", "0.0.0.0")] {
        let row = named(&mut enricher, &flow(netns, Role::Server, bound, nobody, 514)).expect("it is kept");
        let source = (&*row.source_kind, row.source_unknown_reason.as_deref(), &*row.source_address);
        assert_eq!(source, ("unknown", Some("sender_not_asked"), nobody));
        assert_eq!(row.destination_pod.as_deref(), Some("web"));
    }
}

#[test]
fn a_namespace_is_kept_by_either_end_and_so_is_what_is_not_known() {
    let filter = || Filter { namespaces: BTreeSet::from(["demo".into()]), ..Filter::default() };
    let elsewhere = InventoryRecord { namespace: Some("else".into()), ..pod("other", "10.0.0.9") };
    let (mut enricher, netns) = enricher(filter(), vec![elsewhere, pod("web", "10.0.0.1")]);
    assert!(named(&mut enricher, &flow(netns, Role::Client, "10.0.0.9", "10.0.0.1", 80)).is_some(), "web is in demo");
    assert!(named(&mut enricher, &flow(netns, Role::Client, "10.0.0.9", "198.51.100.1", 80)).is_none());
    assert!(named(&mut enricher, &flow(99, Role::Client, "10.0.0.9", "198.51.100.1", 80)).is_some(), "whose socket?");
}

const UID: &str = "1f0c9a2e-7c0f-4a52-9b1d-0123456789ab";

/// An enricher of a node whose pods are kubelet's; one of them is in cgroup 9.
fn on_kubernetes(cluster: Option<Cluster>) -> Enricher {
    let (mut enricher, _) = enricher(Filter::default(), Vec::new());
    enricher.use_kubernetes(cluster, None);
    let mut event = CgroupEvent { id: 9, path: [0; schemas::event::CGROUP_PATH_BYTES] };
    let path = format!("/kubepods/burstable/pod{UID}/container");
    event.path[..path.len()].copy_from_slice(path.as_bytes());
    enricher.learn_cgroup(&event, TimestampMs(0));
    enricher
}

fn from_cgroup(cgroup_id: u64) -> Flow {
    let mut flow = flow(5, Role::Client, "10.0.0.1", "10.0.0.2", 80);
    flow.key.socket.cgroup_id = cgroup_id;
    flow
}

#[test]
fn a_pod_that_the_api_does_not_tell_of_yet_waits_and_is_recorded_by_its_uid() {
    let mut enricher = on_kubernetes(None);
    let now = TimestampMs(10_000);
    assert!(matches!(enricher.step(&from_cgroup(9), true, now), Step::Wait));
    let Step::Record { record, is_unnamed, .. } = enricher.step(&from_cgroup(9), false, now) else {
        panic!("it need not wait for ever")
    };
    assert_eq!((&*record.source_kind, record.source_pod_uid.as_deref(), record.source_pod), ("pod", Some(UID), None));
    assert!(is_unnamed);
    assert_eq!(record.destination_unknown_reason.as_deref(), Some("no_inventory"), "that is left to the report");
    enricher.learn(InventoryRecord { uid: Some(UID.into()), scope: "part".into(), ..pod("web", "10.0.0.1") });
    let Step::Record { record, is_unnamed: false, .. } = enricher.step(&from_cgroup(9), true, now) else {
        panic!("it has a name now")
    };
    assert_eq!(record.source_pod.as_deref(), Some("web"));
}

#[test]
fn a_cgroup_of_another_pod_than_the_network_namespaces_counts_as_a_contradiction() {
    let mut enricher = on_kubernetes(None);
    enricher.learn(InventoryRecord { uid: Some(UID.into()), scope: "part".into(), ..pod("web", "10.0.0.1") });
    enricher.learn(InventoryRecord { scope: "part".into(), ..pod("entered", "10.0.0.3") });
    let located = Located { uid: "uid-entered".into(), container: None, last: TimestampMs(0) };
    enricher.sockets.by_cookie.insert(7, located);
    let Step::Record { record, is_contradicted, .. } = enricher.step(&from_cgroup(9), false, TimestampMs(10_000))
    else {
        panic!("it is kept")
    };
    assert_eq!((record.source_pod.as_deref(), is_contradicted), (Some("entered"), true), "the network decides");
}

#[test]
fn an_agent_that_names_remote_ends_waits_for_the_news_that_an_address_has_moved_on() {
    let resources = vec![kubernetes::Resource::pods()];
    let mut enricher = on_kubernetes(Some(Cluster::new("run".into(), resources)));
    enricher.learn(InventoryRecord { uid: Some(UID.into()), scope: "part".into(), ..pod("web", "10.0.0.1") });
    let there = |name: &str| Change::There(pod(name, "10.0.0.2"));
    enricher.learn_cluster(there("old"), TimestampMs(0));
    assert!(matches!(enricher.step(&from_cgroup(9), true, TimestampMs(3_999)), Step::Wait), "seen 2 s ago");
    enricher.learn_cluster(Change::Gone(pod("old", "10.0.0.2")), TimestampMs(2_500));
    enricher.learn_cluster(there("new"), TimestampMs(2_600));
    let Step::Record { record, .. } = enricher.step(&from_cgroup(9), false, TimestampMs(5_000)) else {
        panic!("it is kept")
    };
    assert_eq!((record.destination_pod, record.destination_unknown_reason.as_deref()), (None, Some("ambiguous")));
}
