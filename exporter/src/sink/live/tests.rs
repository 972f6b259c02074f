//! What a client of the live stream is told: its part, whole, and what of it is missing.

use std::sync::mpsc::sync_channel;

use delivery::{live::Frames, otlp::Decoder};

use super::*;

/// What a client was told.
#[derive(Default)]
struct Told {
    flows: Vec<FlowRecord>,
    inventory: Vec<InventoryRecord>,
    health: Vec<HealthRecord>,
}

/// Takes what waits for a client, as the server does.
fn take(receiver: &mut Receiver<Bytes>, line: &Line) -> Told {
    let (mut frames, mut decoder, mut told) = (Frames::default(), Decoder::default(), Told::default());
    while let Ok(frame) = receiver.try_recv() {
        line.waiting_bytes.fetch_sub(frame.len(), Ordering::Relaxed);
        frames.push(&frame);
    }
    while let Some(packed) = frames.next_frame().expect("it is a stream") {
        let request = live::request(&packed).expect("it is whole");
        let decoded = decoder.decode(&request).expect("it is OTLP");
        told.flows.extend(decoded.flows);
        told.inventory.extend(decoded.inventory);
        told.health.extend(decoded.health);
    }
    told
}

struct Listening {
    sink: LiveSink,
    line: Arc<Line>,
    receiver: Receiver<Bytes>,
}

fn listening(scope: ClientScope) -> Listening {
    let hub = Arc::new(Hub::new(Arc::new(Telemetry::new())));
    let mut sink = LiveSink::new(Arc::clone(&hub), Account::default());
    sink.take(Order::Inventory(Box::new(pod("demo", "web"))), NOW);
    sink.take(Order::Inventory(Box::new(pod("other", "db"))), NOW);
    let line = Arc::new(Line::default());
    let origin = Origin { cluster: "c".into(), node: "n".into(), run_id: "stream".into() };
    let receiver = hub.join(origin, scope, Arc::clone(&line)).expect("there is room");
    sink.take(Order::Tick, NOW);
    Listening { sink, line, receiver }
}

fn pod(namespace: &str, name: &str) -> InventoryRecord {
    let (kind, event, scope) = ("Pod".into(), "upsert".into(), Scope::Cluster.into());
    InventoryRecord {
        kind,
        event,
        scope,
        namespace: Some(namespace.into()),
        name: name.into(),
        ..InventoryRecord::default()
    }
}

/// A flow within a namespace, with a name that does not compress.
fn flow(namespace: &str, number: u64) -> Order {
    // A step of SplitMix64 each.
    let mix = |part: u64| {
        let mixed = (number * 64 + part + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB)
    };
    let noise: String = (0..64).map(|part| format!("{:016x}", mix(part))).collect();
    let record = FlowRecord {
        run_id: "agent".into(),
        seq: number as i64,
        source_namespace: Some(namespace.into()),
        source_pod: Some(noise.into()),
        connections: 1,
        ..FlowRecord::default()
    };
    Order::Flow(Box::new(record), 2)
}

fn health(until: i64) -> Order {
    let (window_start, window_end) = (TimestampMs(NOW.0 - 1000), TimestampMs(until));
    Order::Health(Box::new(HealthRecord { window_start, window_end, filtered: 3, seen: 99, ..HealthRecord::default() }))
}

const NOW: TimestampMs = TimestampMs(1_772_359_200_000);

#[test]
fn what_a_client_does_not_take_is_counted_in_its_own_health() {
    let Listening { mut sink, line, mut receiver } = listening(ClientScope::default());
    let rows = 20_000;
    for number in 0..rows {
        sink.take(flow("demo", number), NOW);
    }
    sink.take(health(NOW.0 + 1000), NOW);
    assert!(line.waiting_bytes.load(Ordering::Relaxed) <= 2 * WAITING_BYTES, "it is bounded");
    let told = take(&mut receiver, &line);
    let row = told.health.last().expect("a row of health");
    assert!(!told.flows.is_empty() && told.flows.len() < rows as usize, "some did not fit: {}", told.flows.len());
    assert_eq!(row.exported, 2 * told.flows.len() as i64);
    assert_eq!(row.lost_queue, 2 * (rows as i64 - told.flows.len() as i64), "both are told");
    assert_eq!(row.seen, row.exported + row.filtered + row.lost());
    assert_eq!(row.flows_next_seq, rows as i64, "what is missing is a gap");
    assert!(told.flows.iter().all(|flow| &*flow.run_id == "stream"), "every stream is a run of its own");
    // Now there is room again.
    sink.take(flow("demo", 1), NOW);
    sink.take(health(NOW.0 + 2000), NOW);
    let told = take(&mut receiver, &line);
    assert_eq!((told.flows.len(), told.health[0].exported, told.health[0].lost_queue), (1, 2, 0));
}

#[test]
fn a_client_sees_its_namespaces_and_no_others() {
    let namespaces = Some(BTreeSet::from(["demo".into()]));
    let Listening { mut sink, line, mut receiver } = listening(ClientScope { namespaces, has_whole_inventory: false });
    sink.take(flow("demo", 0), NOW);
    sink.take(flow("other", 1), NOW);
    sink.take(Order::Inventory(Box::new(pod("other", "late"))), NOW);
    sink.take(Order::Inventory(Box::new(pod("demo", "late"))), NOW);
    sink.take(health(NOW.0 + 1000), NOW);
    let told = take(&mut receiver, &line);
    let names = |rows: &[InventoryRecord]| {
        rows.iter()
            .map(|row| format!("{}/{} {}", row.namespace.as_deref().unwrap_or_default(), row.name, row.event))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&told.inventory), ["demo/web snapshot", "demo/late upsert"]);
    assert_eq!(told.flows.len(), 1);
    let row = told.health.last().expect("a row of health");
    assert_eq!((row.exported, row.filtered), (2, 3 + 2), "what the agent filtered, and what this client may not see");
    assert_eq!(row.namespaces, ["demo".into()]);
    assert_eq!(row.window_start, NOW, "of what was before it came it says nothing");
}

#[test]
fn who_is_told_all_of_the_inventory_knows_all_that_the_agent_does() {
    for (namespaces, has_whole_inventory, expected) in
        [(None, false, Scope::Cluster), (Some("demo"), true, Scope::Cluster), (Some("demo"), false, Scope::Part)]
    {
        let namespaces = namespaces.map(|name| BTreeSet::from([name.into()]));
        let Listening { line, mut receiver, .. } = listening(ClientScope { namespaces, has_whole_inventory });
        let told = take(&mut receiver, &line).inventory;
        assert!(!told.is_empty() && told.iter().all(|row| *row.scope == expected), "{expected}: {told:?}");
    }
}

#[test]
fn a_stream_ends_with_the_window_that_the_client_ended_in() {
    let Listening { mut sink, line, mut receiver } = listening(ClientScope::default());
    line.finish_at_ms.store(NOW.0 + 1500, Ordering::Relaxed);
    sink.take(health(NOW.0 + 1000), NOW);
    sink.take(flow("demo", 0), NOW);
    sink.take(health(NOW.0 + 2000), NOW);
    sink.take(flow("demo", 1), NOW);
    let told = take(&mut receiver, &line);
    assert_eq!(told.flows.len(), 1, "of the window that it ended in, and not of the one after it");
    let clean: Vec<bool> = told.health.iter().map(|row| row.clean_shutdown).collect();
    assert_eq!(clean, [false, false, true]);
    assert!(matches!(receiver.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Disconnected)));
    let (answer, answered) = sync_channel(1);
    sink.take(Order::End(answer), NOW);
    assert_eq!(answered.recv(), Ok(true));
}
