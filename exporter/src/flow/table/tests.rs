//! The table's arithmetic: windows, connections that outlive them, datagrams, and what finds no room.

use schemas::event::{ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN};

use super::*;
use crate::flow::UDP;

const SECOND_NS: u64 = 1_000_000_000;
const CLOCK: Clock = Clock { offset_ns: 0 };
const LIMITS: FlowTableLimits = FlowTableLimits { edges: 100, conversations: 100 };

const fn ns(seconds: f64) -> u64 {
    (seconds * SECOND_NS as f64) as u64
}

const fn mapped(last: u16) -> [u8; 16] {
    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a00, last).octets()
}

/// An event at `at` seconds of a connection that was established at `start`: the client side of 10.0.0.1:40000 →
/// 10.0.0.2:80.
fn event(kind: u8, start: f64, at: f64) -> FlowEvent {
    FlowEvent {
        time_ns: ns(at),
        start_ns: ns(start),
        reported_ns: 0,
        netns_cookie: 7,
        cgroup_id: 9,
        bytes_sent: 0,
        bytes_received: 0,
        local_address: mapped(1),
        remote_address: mapped(2),
        netns_inode: 2,
        retransmits: 0,
        rtt_us: 100,
        error: 0,
        error_soft: 0,
        local_port: 40_000,
        remote_port: 80,
        kind,
        role: ROLE_CLIENT,
        transport: 6,
        _pad: 0,
    }
}

/// What a scan as of `until` tells, after it was told of until `told` (0 for never).
fn open(start: f64, told: f64, until: f64) -> FlowEvent {
    FlowEvent { reported_ns: ns(told), time_ns: ns(until) - 1, ..event(EVENT_OPEN, start, until) }
}

fn server(event: FlowEvent) -> FlowEvent {
    FlowEvent { role: ROLE_SERVER, local_port: 80, remote_port: 40_000, ..event }
}

fn table(window_seconds: u64) -> FlowTable {
    FlowTable::new(Duration::from_secs(window_seconds), LIMITS, TimestampMs(0))
}

/// Window start in seconds, then connections, closed and active.
fn counts(flows: &[Flow]) -> Vec<(i64, u32, u32, u32)> {
    let mut counts: Vec<_> =
        flows.iter().map(|f| (f.window_start.0 / 1000, f.sums.connections, f.sums.closed, f.sums.active)).collect();
    counts.sort_unstable();
    counts
}

#[test]
fn connections_of_an_edge_are_summed_in_the_window_they_fall_in() {
    let mut table = table(10);
    for (start, end) in [(1.0, 2.0), (3.0, 4.5), (11.0, 12.0)] {
        table.step(&FlowEvent { bytes_sent: 100, bytes_received: 50, ..event(EVENT_CLOSED, start, end) }, CLOCK);
    }
    assert_eq!(table.close_windows(TimestampMs(9_999)).collect::<Vec<_>>(), [], "the window is not over");
    let flows = table.close_windows(TimestampMs(20_000)).collect::<Vec<_>>();
    assert_eq!(counts(&flows), [(0, 2, 2, 0), (10, 1, 1, 0)]);
    let first = flows.iter().find(|flow| flow.window_start.0 == 0).expect("the first window");
    assert_eq!((first.sums.bytes_sent, first.sums.bytes_received), (Some(200), Some(100)));
    assert_eq!(first.sums.duration_ms_sum, 1_000 + 1_500);
    assert_eq!((first.sums.first_seen, first.sums.last_seen), (TimestampMs(1_000), TimestampMs(4_500)));
    assert_eq!(first.window_end, TimestampMs(10_000));
    assert_eq!(first.client_port, None);
    assert_eq!(first.key.local_address.to_string(), "10.0.0.1", "mapped addresses are IPv4");
    assert_eq!(table.edges(), 0);
}

#[test]
fn a_server_tells_bytes_from_the_clients_view_and_its_own_port() {
    let mut table = table(10);
    table.step(&server(FlowEvent { bytes_sent: 7, bytes_received: 3, ..event(EVENT_CLOSED, 1.0, 2.0) }), CLOCK);
    let flows = table.finish(TimestampMs(3_000)).collect::<Vec<_>>();
    assert_eq!((flows[0].sums.bytes_sent, flows[0].sums.bytes_received), (Some(3), Some(7)));
    assert_eq!((flows[0].key.role, flows[0].key.server_port), (Role::Server, 80));
}

#[test]
fn a_connection_is_counted_once_and_active_at_the_end_of_every_window_it_outlives() {
    let mut table = table(10);
    table.begin_scan();
    table.step(&FlowEvent { bytes_sent: 5, ..open(1.0, 0.0, 10.0) }, CLOCK);
    assert_eq!(table.open_connections(), 1);
    let flows = table.close_windows(TimestampMs(10_000)).collect::<Vec<_>>();
    assert_eq!(counts(&flows), [(0, 1, 0, 1)]);
    assert_eq!(flows[0].sums.bytes_sent, Some(5), "what passed so far");
    table.step(&FlowEvent { bytes_sent: 6, ..open(1.0, 10.0, 20.0) }, CLOCK);
    let flows = table.close_windows(TimestampMs(20_000)).collect::<Vec<_>>();
    assert_eq!(counts(&flows), [(10, 0, 0, 1)]);
    assert_eq!(flows[0].sums.bytes_sent, Some(6), "what passed since");
    // The end comes in before the windows it outlived are closed: the agent was stopped.
    table.step(&FlowEvent { reported_ns: ns(20.0), ..event(EVENT_CLOSED, 1.0, 45.0) }, CLOCK);
    assert_eq!(
        counts(&table.close_windows(TimestampMs(50_000)).collect::<Vec<_>>()),
        [(20, 0, 0, 1), (30, 0, 0, 1), (40, 0, 1, 0)]
    );
    assert_eq!(table.close_windows(TimestampMs(90_000)).collect::<Vec<_>>(), [], "and then it is over");
}

#[test]
fn a_connection_that_no_scan_has_told_of_counts_where_it_was_established() {
    let mut table = table(10);
    table.step(&event(EVENT_CLOSED, 8.0, 12.0), CLOCK);
    assert_eq!(counts(&table.close_windows(TimestampMs(20_000)).collect::<Vec<_>>()), [(0, 1, 0, 1), (10, 0, 1, 0)]);
    // That window is handed on already: it counts in the oldest one that is not.
    table.step(&event(EVENT_CLOSED, 8.0, 22.0), CLOCK);
    assert_eq!(counts(&table.close_windows(TimestampMs(30_000)).collect::<Vec<_>>()), [(20, 1, 1, 0)]);
}

#[test]
fn the_last_window_ends_with_the_run_and_its_second_scan_tells_only_what_is_new() {
    let mut table = table(60);
    table.begin_finish(TimestampMs(74_000));
    table.step(&open(61.0, 0.0, 74.0), CLOCK);
    table.step(&FlowEvent { bytes_sent: 3, ..open(61.0, 74.0, 75.0) }, CLOCK);
    table.step(&open(74.5, 0.0, 75.0), CLOCK);
    let flows = table.finish(TimestampMs(75_000)).collect::<Vec<_>>();
    assert_eq!(counts(&flows), [(60, 2, 0, 2)]);
    assert_eq!((flows[0].window_end, flows[0].sums.bytes_sent), (TimestampMs(75_000), Some(3)));
}

#[test]
fn a_window_that_ends_between_the_last_two_scans_counts_what_is_open_once() {
    let mut table = table(10);
    table.begin_finish(TimestampMs(9_950));
    let (first_key, first) = summed(&[open(3.0, 0.0, 9.95)]);
    table.step_edge(&first_key, &first, CLOCK);
    for start in [1.0, 2.0] {
        table.step(&open(start, 0.0, 9.95), CLOCK);
    }
    table.step(&open(1.0, 9.95, 10.05), CLOCK);
    table.step(&FlowEvent { reported_ns: ns(9.95), ..event(EVENT_CLOSED, 2.0, 10.02) }, CLOCK);
    let (second_key, second) = summed(&[open(3.0, 9.95, 10.05)]);
    table.step_edge(&second_key, &second, CLOCK);
    let flows = table.finish(TimestampMs(10_050)).collect::<Vec<_>>();
    assert_eq!(counts(&flows), [(0, 3, 0, 3), (10, 0, 1, 2)]);
}

#[test]
fn without_windows_every_connection_is_a_row_and_is_counted_once() {
    let mut table = table(0);
    table.step(&event(EVENT_CLOSED, 1.0, 3.0), CLOCK);
    let ended = table.take_ended();
    assert_eq!(counts(&ended), [(1, 1, 1, 0)]);
    assert_eq!((ended[0].client_port, ended[0].window_end), (Some(40_000), TimestampMs(3_000)));
    table.step(&open(2.0, 0.0, 4.0), CLOCK);
    assert_eq!(counts(&table.take_ended()), [(2, 1, 0, 1)], "a file is finished");
    table.begin_finish(TimestampMs(5_000));
    table.step(&open(2.0, 4.0, 5.0), CLOCK);
    table.step(&open(2.0, 5.0, 5.1), CLOCK);
    assert_eq!(counts(&table.finish(TimestampMs(5_100)).collect::<Vec<_>>()), [(4, 0, 0, 1)], "and the run ends");
}

#[test]
fn failed_connects_are_an_edge_of_their_own_per_reason() {
    let mut table = table(10);
    let failed = |error, error_soft| FlowEvent { error, error_soft, ..event(EVENT_FAILED, 1.0, 1.0) };
    for event in [failed(111, 0), failed(111, 111), failed(110, 0), failed(113, 113), failed(0, 0), failed(0, 113)] {
        table.step(&event, CLOCK);
    }
    let flows = table.finish(TimestampMs(2_000)).collect::<Vec<_>>();
    let mut reasons: Vec<_> =
        flows.iter().map(|flow| (flow.key.failure.map(Failure::as_str), flow.sums.failed)).collect();
    reasons.sort_unstable();
    let expected = [("aborted", 1), ("refused", 2), ("timeout", 1), ("unreachable", 2)];
    assert_eq!(reasons, expected.map(|(reason, failed)| (Some(reason), failed)));
    assert!(flows.iter().all(|flow| flow.sums.connections == 0 && flow.sums.bytes_sent.is_none()));
}

#[test]
fn a_connection_older_than_the_agent_has_no_start_and_the_listeners_tell_its_direction() {
    let mut table = table(10);
    let older = |role, local_port| FlowEvent {
        role,
        local_port,
        start_ns: 0,
        reported_ns: ns(0.5),
        ..event(EVENT_CLOSED, 0.0, 1.0)
    };
    table.step(&FlowEvent { local_port: 80, ..event(EVENT_LISTENING, 0.0, 0.5) }, CLOCK);
    for event in [older(ROLE_UNKNOWN, 81), older(ROLE_UNKNOWN, 80), older(ROLE_CLIENT, 40_000)] {
        table.step(&event, CLOCK);
    }
    table.begin_scan();
    table.step(&FlowEvent { time_ns: ns(10.0) - 1, kind: EVENT_OPEN, ..older(ROLE_UNKNOWN, 80) }, CLOCK);
    assert_eq!(table.open_connections(), 1);
    let flows = table.close_windows(TimestampMs(10_000)).collect::<Vec<_>>();
    let roles: HashSet<Role> = flows.iter().map(|flow| flow.key.role).collect();
    assert_eq!(roles, HashSet::from([Role::Unknown, Role::Server, Role::Client]));
    assert!(flows.iter().all(|flow| !flow.key.start_known && flow.sums.connections == 0));
    assert_eq!(flows.iter().map(|flow| flow.sums.active).sum::<u32>(), 1);
}

#[test]
fn what_finds_no_room_is_counted_and_the_known_edges_go_on() {
    let limits = FlowTableLimits { edges: 1, conversations: 1 };
    let mut table = FlowTable::new(Duration::from_secs(10), limits, TimestampMs(0));
    for port in [80, 80, 81] {
        table.step(&FlowEvent { remote_port: port, ..event(EVENT_CLOSED, 1.0, 1.0) }, CLOCK);
    }
    assert_eq!((table.lost(), table.edges()), (TableLoss { ends: 1, closings: 1 }, 1));
    assert_eq!(table.finish(TimestampMs(2_000)).next().map(|flow| flow.sums.connections), Some(2));
}

/// What the kernel sums of events that find the ring buffer full.
fn summed(events: &[FlowEvent]) -> (EdgeKey, EdgeCounts) {
    let first = events[0];
    let key = EdgeKey {
        netns_cookie: first.netns_cookie,
        cgroup_id: first.cgroup_id,
        window: first.time_ns / ns(10.0),
        local_address: first.local_address,
        remote_address: first.remote_address,
        epoch: 0,
        local_port: 0,
        remote_port: first.remote_port,
        error: first.error,
        error_soft: first.error_soft,
        kind: first.kind,
        role: first.role,
        transport: first.transport,
        start_known: 1,
    };
    let mut counts = EdgeCounts { first_ns: first.time_ns, netns_inode: first.netns_inode, ..EdgeCounts::default() };
    for event in events {
        counts.last_ns = event.time_ns;
        counts.events += 1;
        counts.connections += u64::from(event.kind != EVENT_FAILED && event.reported_ns == 0);
        counts.bytes_sent += event.bytes_sent;
        counts.bytes_received += event.bytes_received;
        counts.duration_ns += event.time_ns - event.start_ns;
        counts.rtt[schemas::event::rtt_bucket(event.rtt_us)] += 1;
    }
    (key, counts)
}

#[test]
fn events_that_the_kernel_summed_come_to_the_same() {
    let closings: Vec<FlowEvent> = (1..=5)
        .map(|n| FlowEvent { bytes_sent: n, bytes_received: 2 * n, ..event(EVENT_CLOSED, n as f64, n as f64 + 0.5) })
        .collect();
    let failures = vec![FlowEvent { error: 111, ..event(EVENT_FAILED, 2.0, 2.0) }; 3];
    let (mut by_event, mut by_sum) = (table(10), table(10));
    for events in [closings, failures] {
        events.iter().for_each(|event| by_event.step(event, CLOCK));
        let (key, counts) = summed(&events);
        by_sum.step_edge(&key, &counts, CLOCK);
    }
    let sorted = |mut table: FlowTable| {
        let mut flows = table.close_windows(TimestampMs(10_000)).collect::<Vec<_>>();
        // A sum knows when the first event was, but not when its connection began.
        flows.iter_mut().for_each(|flow| flow.sums.first_seen = TimestampMs(0));
        flows.sort_by_key(|flow| flow.sums.failed);
        flows
    };
    let (events, sums) = (sorted(by_event), sorted(by_sum));
    assert_eq!(events, sums);
    assert_eq!((events.len(), events[0].sums.connections, events[1].sums.failed), (2, 5, 3));
}

/// What passed between 10.0.0.1:`port` and 10.0.0.2:53 in the window of second `at`.
fn datagrams(port: u16, role: u8, at: f64) -> (EdgeKey, EdgeCounts) {
    let (key, _) = summed(&[event(0, at, at)]);
    let key = EdgeKey { transport: UDP, kind: 0, role: 0, local_port: port, remote_port: 53, ..key };
    let counts = EdgeCounts {
        first_ns: ns(at),
        last_ns: ns(at) + 1,
        events: 1,
        bytes_sent: 30,
        role,
        has_bytes: 1,
        ..EdgeCounts::default()
    };
    (key, counts)
}

#[test]
fn udp_counts_every_pair_of_ports_once_per_window_and_the_first_datagram_decides() {
    let mut table = table(10);
    for (port, first, at) in
        [(1000, ROLE_CLIENT, 1.0), (1000, ROLE_SERVER, 2.0), (1001, ROLE_CLIENT, 3.0), (1000, ROLE_SERVER, 11.0)]
    {
        let (key, counts) = datagrams(port, first, at);
        table.step_edge(&key, &counts, CLOCK);
    }
    assert_eq!(table.datagram_ends(), 3);
    let flows = table.close_windows(TimestampMs(20_000)).collect::<Vec<_>>();
    assert_eq!(counts(&flows), [(0, 2, 0, 0), (10, 1, 0, 0)]);
    assert!(flows.iter().all(|flow| flow.key.role == Role::Client && flow.key.server_port == 53), "{flows:?}");
    assert_eq!(flows.iter().filter_map(|flow| flow.sums.bytes_sent).sum::<i64>(), 4 * 30);
}

#[test]
fn a_udp_server_is_whoever_received_first_and_unknown_lengths_are_no_bytes() {
    let mut table = table(10);
    let (key, counts) = datagrams(53, ROLE_SERVER, 1.0);
    table.step_edge(&key, &EdgeCounts { has_bytes: 0, bytes_sent: 0, ..counts }, CLOCK);
    let flows = table.finish(TimestampMs(2_000)).collect::<Vec<_>>();
    assert_eq!((flows[0].key.role, flows[0].key.server_port), (Role::Server, 53));
    assert_eq!((flows[0].key.transport, flows[0].sums.bytes_sent), (Transport::Udp, None));
}

#[test]
fn what_is_told_again_at_the_end_of_a_run_is_not_open_twice() {
    let mut table = table(10);
    table.begin_finish(TimestampMs(2_000));
    for event in [open(1.0, 0.0, 2.0), open(1.5, 0.0, 2.0)] {
        table.step(&event, CLOCK);
    }
    // Of three that the kernel summed, one is new.
    let (key, counts) = summed(&[open(1.0, 2.0, 3.0), open(1.5, 2.0, 3.0), open(2.5, 0.0, 3.0)]);
    table.step_edge(&key, &counts, CLOCK);
    assert_eq!(counts_of_all(table.finish(TimestampMs(4_000)).collect::<Vec<_>>()), (3, 3));
}

/// Connections and active.
fn counts_of_all(flows: Vec<Flow>) -> (u32, u32) {
    flows
        .iter()
        .fold((0, 0), |(connections, active), flow| (connections + flow.sums.connections, active + flow.sums.active))
}

#[test]
fn a_socket_of_both_families_has_one_conversation() {
    let mut table = table(10);
    let (key, counts) = datagrams(53, ROLE_SERVER, 1.0);
    let (any, any_ipv4) = ([0; 16], Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    table.step_edge(&EdgeKey { local_address: any, ..key }, &counts, CLOCK);
    let answer = EdgeCounts { role: ROLE_CLIENT, ..counts };
    table.step_edge(&EdgeKey { local_address: any_ipv4, ..key }, &answer, CLOCK);
    let flows = table.finish(TimestampMs(2_000)).collect::<Vec<_>>();
    assert_eq!((flows.len(), flows[0].key.role, flows[0].sums.connections), (1, Role::Server, 1));
}

#[test]
fn a_server_that_answers_from_another_socket_of_its_port_is_the_same_server() {
    let mut table = table(10);
    let (key, counts) = datagrams(53, ROLE_SERVER, 1.0);
    let (key, counts) = (EdgeKey { remote_port: 40_000, ..key }, EdgeCounts { port_is_chosen: 1, ..counts });
    table.step_edge(&EdgeKey { local_address: [0; 16], ..key }, &counts, CLOCK);
    table.step_edge(&key, &EdgeCounts { role: ROLE_CLIENT, first_ns: ns(1.5), ..counts }, CLOCK);
    let flows = table.finish(TimestampMs(2_000)).collect::<Vec<_>>();
    assert!(flows.iter().all(|flow| (flow.key.role, flow.key.server_port) == (Role::Server, 53)), "{flows:?}");
    assert_eq!(flows.iter().map(|flow| flow.sums.connections).sum::<u32>(), 1, "one conversation");
}

#[test]
fn peers_that_send_from_the_port_they_serve_may_both_begin() {
    for first in [ROLE_CLIENT, ROLE_SERVER] {
        let mut table = table(10);
        let (key, counts) = datagrams(9094, first, 1.0);
        let counts = EdgeCounts { port_is_chosen: 1, is_older: 1, ..counts };
        table.step_edge(&EdgeKey { remote_port: 9094, ..key }, &counts, CLOCK);
        let mut flows = table.finish(TimestampMs(2_000)).collect::<Vec<_>>();
        flows.sort_by_key(|flow| flow.key.role == Role::Server);
        let told: Vec<_> =
            flows.iter().map(|f| (f.key.role, f.key.server_port, f.sums.connections, f.sums.active)).collect();
        assert_eq!(told, [(Role::Client, 9094, 1, 0), (Role::Server, 9094, 0, 1)]);
    }
}

#[test]
fn where_it_is_not_known_who_was_dialled_both_ports_are_told() {
    let mut table = table(10);
    let (key, counts) = datagrams(6001, ROLE_CLIENT, 1.0);
    let counts = EdgeCounts { port_is_chosen: 1, is_older: 1, ..counts };
    table.step_edge(&EdgeKey { remote_port: 51_034, ..key }, &counts, CLOCK);
    let flows = table.finish(TimestampMs(2_000)).collect::<Vec<_>>();
    let [flow] = &flows[..] else { panic!("one conversation: {flows:?}") };
    assert_eq!((flow.key.role, flow.key.server_port, flow.client_port), (Role::Unknown, 51_034, Some(6001)));
}
