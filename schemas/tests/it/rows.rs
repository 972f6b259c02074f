//! Rows of any content that rows may have, for property tests.

use std::sync::Arc;

use proptest::prelude::*;
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Port, RttHistogram, TimestampMs},
};

fn text() -> impl Strategy<Value = Arc<str>> {
    "\\PC{0,12}".prop_map(Arc::from)
}

fn maybe_text() -> impl Strategy<Value = Option<Arc<str>>> {
    prop::option::of(text())
}

fn time() -> impl Strategy<Value = TimestampMs> {
    (0..4_102_444_800_000_i64).prop_map(TimestampMs)
}

/// What a row may count.
fn number() -> impl Strategy<Value = i64> {
    0..1_i64 << 53
}

fn run() -> impl Strategy<Value = Arc<str>> {
    "[0-9a-f]{1,32}".prop_map(Arc::from)
}

prop_compose! {
    pub(crate) fn flow()(
        texts in (text(), run(), text(), maybe_text(), maybe_text(), maybe_text()),
        numbers in prop::array::uniform6(number()),
        ports in (any::<Option<u16>>(), any::<u16>(), any::<Option<u16>>()),
        flags in (any::<bool>(), any::<bool>(), any::<Option<bool>>()),
        bytes in (prop::option::of(number()), prop::option::of(number())),
        rtt in prop::array::uniform8(number()),
        times in (time(), time(), time()),
    ) -> FlowRecord {
        FlowRecord {
            cluster: texts.0, run_id: texts.1, source_address: texts.2,
            source_labels: texts.3, destination_workload: texts.4, failure: texts.5,
            seq: numbers[0], connections: numbers[1], failed: numbers[2], active: numbers[3],
            retransmits: numbers[4], duration_ms_sum: numbers[5],
            source_port: ports.0, destination_port: ports.1, destination_target_port: ports.2,
            direction_known: flags.0, start_known: flags.1, destination_host_network: flags.2,
            bytes_sent: bytes.0, bytes_received: bytes.1,
            rtt_us_hist: RttHistogram(rtt),
            window_start: times.0, window_end: times.1, last_seen: times.2,
            ..FlowRecord::default()
        }
    }
}

fn port() -> impl Strategy<Value = Port> {
    (maybe_text(), text(), any::<u16>(), maybe_text(), any::<Option<u16>>())
        .prop_map(|(name, protocol, port, target, node_port)| Port { name, protocol, port, target, node_port })
}

prop_compose! {
    pub(crate) fn inventory()(
        texts in (text(), text(), maybe_text(), maybe_text()),
        run in run(),
        addresses in prop::collection::vec(text(), 0..4),
        ports in prop::collection::vec(port(), 0..4),
        host_network in any::<Option<bool>>(),
        times in (time(), prop::option::of(time()), prop::option::of(time())),
    ) -> InventoryRecord {
        InventoryRecord {
            run_id: run, kind: texts.0, name: texts.1, namespace: texts.2, selector: texts.3,
            addresses, ports, host_network,
            observed_at: times.0, lease_start: times.1, lease_end: times.2,
            ..InventoryRecord::default()
        }
    }
}

prop_compose! {
    pub(crate) fn health()(
        programs in prop::collection::vec(text(), 0..3),
        numbers in prop::array::uniform3(number()),
        run in run(),
        clean_shutdown in any::<bool>(),
    ) -> HealthRecord {
        HealthRecord {
            run_id: run, programs, seen: numbers[0], exported: numbers[1], lost_ring: numbers[2], clean_shutdown,
            ..HealthRecord::default()
        }
    }
}
