//! The columns of flows that edges are made of.

use arrow::{
    array::{Array as _, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch},
    datatypes::{Int32Type, Int64Type, TimestampMillisecondType},
};

use schemas::edge_columns::ConnectionCounts;

/// The columns of a batch that are not text.
pub(super) struct Rows<'a> {
    direction_known: &'a BooleanArray,
    pub(super) host_network: [&'a BooleanArray; 2],
    port: &'a Int32Array,
    source_port: &'a Int32Array,
    pub(super) seq: &'a [i64],
    pub(super) window_end: &'a [i64],
    pub(super) first_seen: &'a [i64],
    pub(super) last_seen: &'a [i64],
    counts: [&'a [i64]; 6],
    bytes: [&'a Int64Array; 2],
}

impl<'a> Rows<'a> {
    pub(super) fn new(batch: &'a RecordBatch) -> Self {
        let column = |name: &str| batch.column_by_name(name).expect("every column in NUMBERS is read");
        let time = |name: &str| column(name).as_primitive::<TimestampMillisecondType>().values().as_ref();
        let number = |name: &str| column(name).as_primitive::<Int64Type>().values().as_ref();
        let [
            direction,
            port,
            source_port,
            source_host,
            destination_host,
            seq,
            end,
            first,
            last,
            sent,
            received,
            counts @ ..,
        ] = NUMBERS;
        Self {
            direction_known: column(direction).as_boolean(),
            host_network: [source_host, destination_host].map(|name| column(name).as_boolean()),
            port: column(port).as_primitive::<Int32Type>(),
            source_port: column(source_port).as_primitive::<Int32Type>(),
            seq: number(seq),
            window_end: time(end),
            first_seen: time(first),
            last_seen: time(last),
            bytes: [sent, received].map(|name| column(name).as_primitive()),
            counts: counts.map(number),
        }
    }

    /// The port that was dialled. Who reads the file refuses numbers that are none.
    pub(super) fn port(&self, row: usize) -> u16 {
        self.port.value(row) as u16
    }

    /// Where it is not known which end of a row initiated, the port of the source, or 0.
    pub(super) fn undirected_port(&self, row: usize) -> Option<u16> {
        let port = || if self.source_port.is_valid(row) { self.source_port.value(row) as u16 } else { 0 };
        (!self.direction_known.value(row)).then(port)
    }

    pub(super) fn counts(&self, row: usize) -> ConnectionCounts {
        let [connections, failed, closed, max_active, retransmits, duration_ms_sum] = self.counts.map(|c| c[row]);
        let [bytes_sent, bytes_received] = self.bytes.map(|c| c.is_valid(row).then(|| c.value(row)));
        ConnectionCounts {
            connections,
            failed,
            closed,
            max_active,
            bytes_sent,
            bytes_received,
            cross_zone_bytes: 0,
            retransmits,
            duration_ms_sum,
        }
    }
}

/// The columns that are read.
pub(super) fn columns() -> impl Iterator<Item = &'static str> {
    TEXTS.into_iter().chain(NUMBERS)
}

/// Places in [`TEXTS`].
#[derive(Clone, Copy)]
pub(super) enum Text {
    Observer,
    Transport,
    SourceAddress,
    DestinationAddress,
    Node,
    RunId,
    Failure,
    SourceKind,
    SourceNamespace,
    SourceWorkloadKind,
    SourceWorkload,
    SourcePodUid,
    SourceNode,
    SourceContainer,
    DestinationKind,
    DestinationNamespace,
    DestinationWorkloadKind,
    DestinationWorkload,
    DestinationPodUid,
    DestinationNode,
    DestinationContainer,
}

pub(super) const SOURCE: [Text; 7] = [
    Text::SourceKind,
    Text::SourceNamespace,
    Text::SourceWorkloadKind,
    Text::SourceWorkload,
    Text::SourcePodUid,
    Text::SourceNode,
    Text::SourceContainer,
];
pub(super) const DESTINATION: [Text; 7] = [
    Text::DestinationKind,
    Text::DestinationNamespace,
    Text::DestinationWorkloadKind,
    Text::DestinationWorkload,
    Text::DestinationPodUid,
    Text::DestinationNode,
    Text::DestinationContainer,
];
/// In the order of [`Text`].
pub(super) const TEXTS: [&str; 21] = [
    "observer",
    "transport",
    "source_address",
    "destination_address",
    "node",
    "run_id",
    "failure",
    "source_kind",
    "source_namespace",
    "source_workload_kind",
    "source_workload",
    "source_pod_uid",
    "source_node",
    "source_container",
    "destination_kind",
    "destination_namespace",
    "destination_workload_kind",
    "destination_workload",
    "destination_pod_uid",
    "destination_node",
    "destination_container",
];
const NUMBERS: [&str; 17] = [
    "direction_known",
    "destination_port",
    "source_port",
    "source_host_network",
    "destination_host_network",
    "seq",
    "window_end",
    "first_seen",
    "last_seen",
    "bytes_sent",
    "bytes_received",
    "connections",
    "failed",
    "closed",
    "active",
    "retransmits",
    "duration_ms_sum",
];
