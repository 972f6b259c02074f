//! The table's arithmetic: windows, connections that outlive them, and what finds no room.

use schemas::event::EVENT_FAILED;

use super::*;

const SECOND_NS: u64 = 1_000_000_000;
const CLOCK: Clock = Clock { offset_ns: 0 };
const LIMITS: FlowTableLimits = FlowTableLimits { edges: 100, connections: 100 };
const HOST: u32 = 1;

/// An event of socket `cookie` at `seconds`; the client side of 10.0.0.1:40000 → 10.0.0.2:80.
fn event(kind: u8, cookie: u64, seconds: f64) -> FlowEvent {
    FlowEvent {
        time_ns: (seconds * SECOND_NS as f64) as u64,
        start_ns: SECOND_NS,
        socket_cookie: cookie,
        netns_cookie: 7,
        cgroup_id: 9,
        bytes_sent: 0,
        bytes_received: 0,
        local_address: Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0001]).octets(),
        remote_address: Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0002]).octets(),
        netns_inode: 2,
        retransmits: 0,
        srtt_us: 100,
        error: 0,
        error_soft: 0,
        local_port: 40_000,
        remote_port: 80,
        kind,
        role: ROLE_CLIENT,
        transport: 6,
        _pad: [0; 5],
    }
}

fn table(window_seconds: u64) -> FlowTable {
    FlowTable::new(Duration::from_secs(window_seconds), LIMITS, HOST, TimestampMs(0))
}

/// Window start in seconds, then connections, closed and active.
fn counts(flows: &[Flow]) -> Vec<(i64, i64, i64, i64)> {
    let mut counts: Vec<_> =
        flows.iter().map(|f| (f.window_start.0 / 1000, f.connections, f.closed, f.active)).collect();
    counts.sort_unstable();
    counts
}

#[test]
fn connections_of_an_edge_are_summed_in_the_window_they_fall_in() {
    let mut table = table(10);
    for (cookie, start, end) in [(1, 1.0, 2.0), (2, 3.0, 4.5), (3, 11.0, 12.0)] {
        table.step(&event(EVENT_ESTABLISHED, cookie, start), CLOCK);
        let closed = FlowEvent { bytes_sent: 100, bytes_received: 50, ..event(EVENT_CLOSED, cookie, end) };
        table.step(&closed, CLOCK);
    }
    assert_eq!(table.close_windows(TimestampMs(9_999)), [], "the window is not over");
    let flows = table.close_windows(TimestampMs(20_000));
    assert_eq!(counts(&flows), [(0, 2, 2, 0), (10, 1, 1, 0)]);
    let first = flows.iter().find(|flow| flow.window_start.0 == 0).expect("the first window");
    assert_eq!((first.bytes_sent, first.bytes_received), (Some(200), Some(100)));
    assert_eq!(first.duration_ms_sum, 1_000 + 1_500);
    assert_eq!((first.first_seen, first.last_seen), (TimestampMs(1_000), TimestampMs(4_500)));
    assert_eq!(first.window_end, TimestampMs(10_000));
    assert_eq!(first.client_port, None);
    assert_eq!(first.key.local_address.to_string(), "10.0.0.1", "mapped addresses are IPv4");
    assert_eq!((table.edges(), table.open_connections()), (0, 0));
}

#[test]
fn a_server_tells_bytes_from_the_clients_view_and_its_own_port() {
    let mut table = table(10);
    let server = |event: FlowEvent| FlowEvent { role: ROLE_SERVER, local_port: 80, remote_port: 40_000, ..event };
    table.step(&server(event(EVENT_ESTABLISHED, 1, 1.0)), CLOCK);
    table.step(&server(FlowEvent { bytes_sent: 7, bytes_received: 3, ..event(EVENT_CLOSED, 1, 2.0) }), CLOCK);
    let flows = table.finish(TimestampMs(3_000));
    assert_eq!((flows[0].bytes_sent, flows[0].bytes_received), (Some(3), Some(7)));
    assert_eq!((flows[0].key.role, flows[0].key.server_port), (Role::Server, 80));
}

#[test]
fn a_connection_is_active_at_the_end_of_every_window_it_outlives() {
    let mut table = table(10);
    table.step(&event(EVENT_ESTABLISHED, 1, 1.0), CLOCK);
    assert_eq!(counts(&table.close_windows(TimestampMs(10_100))), [(0, 1, 0, 1)]);
    // The end comes in before the windows it outlived are closed.
    table.step(&event(EVENT_CLOSED, 1, 35.0), CLOCK);
    assert_eq!(counts(&table.close_windows(TimestampMs(40_000))), [(10, 0, 0, 1), (20, 0, 0, 1), (30, 0, 1, 0)]);
    assert_eq!(table.close_windows(TimestampMs(90_000)), [], "and then it is over");
}

#[test]
fn the_last_window_ends_with_the_run() {
    let mut table = table(60);
    table.step(&event(EVENT_ESTABLISHED, 1, 61.0), CLOCK);
    let flows = table.finish(TimestampMs(75_000));
    assert_eq!(counts(&flows), [(60, 1, 0, 1)]);
    assert_eq!(flows[0].window_end, TimestampMs(75_000));
}

#[test]
fn without_windows_every_connection_is_a_row_and_is_counted_once() {
    let mut table = table(0);
    table.step(&event(EVENT_ESTABLISHED, 1, 1.0), CLOCK);
    table.step(&event(EVENT_ESTABLISHED, 2, 2.0), CLOCK);
    table.step(&event(EVENT_CLOSED, 1, 3.0), CLOCK);
    let ended = table.close_windows(TimestampMs(3_100));
    assert_eq!(counts(&ended), [(1, 1, 1, 0)]);
    assert_eq!((ended[0].client_port, ended[0].window_end), (Some(40_000), TimestampMs(3_000)));
    assert_eq!(counts(&table.open_flows(TimestampMs(4_000))), [(2, 1, 0, 1)], "a file is finished");
    assert_eq!(counts(&table.finish(TimestampMs(5_000))), [(2, 0, 0, 1)], "and the run ends");
}

#[test]
fn failed_connects_are_an_edge_of_their_own_per_reason() {
    let mut table = table(10);
    let failed = |error, error_soft| FlowEvent { error, error_soft, ..event(EVENT_FAILED, 1, 1.0) };
    for event in [failed(111, 0), failed(111, 111), failed(110, 0), failed(113, 113), failed(0, 0), failed(0, 113)] {
        table.step(&event, CLOCK);
    }
    let flows = table.finish(TimestampMs(2_000));
    let mut reasons: Vec<_> = flows.iter().map(|flow| (flow.key.failure.map(Failure::as_str), flow.failed)).collect();
    reasons.sort_unstable();
    let expected = [("aborted", 1), ("refused", 2), ("timeout", 1), ("unreachable", 2)];
    assert_eq!(reasons, expected.map(|(reason, failed)| (Some(reason), failed)));
    assert!(flows.iter().all(|flow| flow.connections == 0 && flow.bytes_sent.is_none()));
}

#[test]
fn a_connection_older_than_the_agent_has_no_direction_and_no_start() {
    let mut table = table(10);
    let closed = FlowEvent { role: 0, start_ns: 0, bytes_sent: 5, ..event(EVENT_CLOSED, 1, 1.0) };
    table.step(&closed, CLOCK);
    let flows = table.finish(TimestampMs(2_000));
    assert_eq!(counts(&flows), [(0, 0, 1, 0)]);
    assert_eq!((flows[0].key.role, flows[0].key.start_known), (Role::Unknown, false));
}

#[test]
fn what_finds_no_room_is_counted_and_the_known_edges_go_on() {
    let limits = FlowTableLimits { edges: 1, connections: 1 };
    let mut table = FlowTable::new(Duration::from_secs(10), limits, HOST, TimestampMs(0));
    table.step(&event(EVENT_ESTABLISHED, 1, 1.0), CLOCK);
    table.step(&event(EVENT_ESTABLISHED, 2, 1.0), CLOCK);
    table.step(&FlowEvent { remote_port: 81, ..event(EVENT_ESTABLISHED, 3, 1.0) }, CLOCK);
    assert_eq!((table.lost(), table.edges(), table.open_connections()), (TableLoss::ENDS, 1, 1));
    table.step(&FlowEvent { remote_port: 81, ..event(EVENT_CLOSED, 3, 1.0) }, CLOCK);
    assert_eq!(table.lost(), TableLoss { ends: 1, closings: 1 });
    assert_eq!(table.finish(TimestampMs(2_000))[0].connections, 2);
}

#[test]
fn a_connection_that_is_not_followed_is_counted_at_once() {
    let limits = FlowTableLimits { edges: 10, connections: 1 };
    let mut table = FlowTable::new(Duration::ZERO, limits, HOST, TimestampMs(0));
    for cookie in 1..=3 {
        table.step(&event(EVENT_ESTABLISHED, cookie, 1.0), CLOCK);
    }
    for cookie in 1..=2 {
        table.step(&event(EVENT_CLOSED, cookie, 2.0), CLOCK);
    }
    let flows = table.finish(TimestampMs(3_000));
    assert_eq!(counts(&flows), [(1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0)]);
}

#[test]
fn after_lost_ends_nothing_stays_open_for_ever() {
    let mut table = table(10);
    table.step(&event(EVENT_ESTABLISHED, 1, 1.0), CLOCK);
    assert_eq!(table.forget_open(TimestampMs(2_000)), [], "it was counted when it was established");
    assert_eq!(counts(&table.close_windows(TimestampMs(20_000))), [(0, 1, 0, 0)]);
    let mut table = FlowTable::new(Duration::ZERO, LIMITS, HOST, TimestampMs(0));
    table.step(&event(EVENT_ESTABLISHED, 1, 1.0), CLOCK);
    assert_eq!(counts(&table.forget_open(TimestampMs(2_000))), [(1, 1, 0, 1)]);
    assert_eq!(table.finish(TimestampMs(3_000)), []);
}

#[test]
fn containers_of_a_pod_are_one_socket_owner_and_processes_of_the_host_are_not() {
    let mut table = table(10);
    for cgroup_id in [1, 2] {
        table.step(&FlowEvent { cgroup_id, ..event(EVENT_ESTABLISHED, cgroup_id, 1.0) }, CLOCK);
        let in_host = FlowEvent { cgroup_id, netns_inode: HOST, ..event(EVENT_ESTABLISHED, 10 + cgroup_id, 1.0) };
        table.step(&in_host, CLOCK);
    }
    assert_eq!(table.edges(), 3);
}
