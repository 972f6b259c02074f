//! Who had an address: the agent's index of a cluster of 10,000 pods, 2,000 Services and 100 nodes.

use std::{hint::black_box, net::IpAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use schemas::{
    index::{Heard, Index, Span},
    inventory::{InventoryEvent, InventoryRecord, ObjectKind},
    table::{Port, TimestampMs},
};

const NOW: Span = Span::at(TimestampMs(5_000));

fn record(kind: ObjectKind, name: String, address: String) -> InventoryRecord {
    InventoryRecord {
        node: "writer".into(),
        run_id: "run".into(),
        observed_at: TimestampMs(1_000),
        event: InventoryEvent::Snapshot.into(),
        kind: kind.into(),
        namespace: Some("shop".into()),
        uid: Some(format!("uid-{name}").into()),
        name: name.into(),
        addresses: vec![address.into()],
        ..InventoryRecord::default()
    }
}

fn index() -> Index {
    let mut index = Index::new(0);
    for pod in 0..10_000 {
        index.apply(record(ObjectKind::Pod, format!("pod-{pod}"), format!("10.128.{}.{}", pod / 100, pod % 100 + 2)));
    }
    for service in 0..2_000 {
        let port = Port { protocol: "tcp".into(), port: 80, ..Port::default() };
        let address = format!("10.96.{}.{}", service >> 8, service & 255);
        let service = record(ObjectKind::Service, format!("service-{service}"), address);
        index.apply(InventoryRecord { ports: vec![port], ..service });
    }
    for node in 0..100 {
        let cidrs = vec![format!("10.128.{node}.0/24").into()];
        let node = record(ObjectKind::Node, format!("node-{node}"), format!("192.168.0.{node}"));
        index.apply(InventoryRecord { cidrs, ..node });
    }
    index.settle();
    index.hear(Heard { time: TimestampMs(4_000), writer: "writer".into(), run_id: "run".into() });
    index
}

fn resolve(criterion: &mut Criterion) {
    let index = index();
    let mut group = criterion.benchmark_group("resolve");
    for (what, addresses) in [
        ("pod", (0..1_000).map(|n| format!("10.128.{}.{}", n % 100, n % 90 + 2)).collect::<Vec<_>>()),
        ("service", (0..1_000).map(|n| format!("10.96.{}.{}", n % 7, n % 256)).collect()),
        ("node", (0..1_000).map(|n| format!("192.168.0.{}", n % 100)).collect()),
        ("external", (0..1_000).map(|n| format!("203.0.{}.{}", n % 100, n % 256)).collect()),
        ("unknown pod", (0..1_000).map(|n| format!("10.128.{}.{}", n % 100, n % 40 + 200)).collect()),
    ] {
        let addresses: Vec<IpAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let mut turn = addresses.iter().cycle();
        group.bench_function(what, |bencher| {
            bencher.iter(|| {
                let address = turn.next().copied().unwrap_or(addresses[0]);
                black_box(index.dialled(address, "tcp", 80, NOW));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, resolve);
criterion_main!(benches);
