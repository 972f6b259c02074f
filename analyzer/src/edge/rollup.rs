//! Hours of edges as rows of rollups, and back.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use arrow::{
    array::{Array as _, AsArray, ListArray, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type, TimestampMillisecondType, UInt16Type},
};
use schemas::{hour::Hour, rollup::RollupRow, table::TimestampMs, vocabulary::EndKind};
use smallvec::SmallVec;

use super::{
    dictionary::{TextColumn, Texts},
    fold::{EdgeKey, EndKey, Folder},
    hour::{Counts, HourEdge, HourEdges},
};

/// The rows of an hour.
pub(super) fn rows(folder: &Folder<'_>, hour: &HourEdges) -> Vec<RollupRow> {
    let some = |number| folder.texts.text(number).cloned();
    let text = |number| some(number).unwrap_or_default();
    let all = |numbers: &[u32]| -> Vec<Arc<str>> {
        let mut texts: Vec<_> = numbers.iter().map(|number| text(*number)).collect();
        texts.sort();
        texts
    };
    let row = |edge: &HourEdge| {
        let EdgeKey { transport, source, destination, port, own_node } = folder.edges.values[edge.edge as usize];
        let (source, destination) = (folder.ends.values[source as usize], folder.ends.values[destination as usize]);
        let HourEdge { client, server, .. } = edge;
        RollupRow {
            hour: Hour(hour.number).start(),
            transport: text(transport),
            source_kind: text(source.kind),
            source_namespace: some(source.namespace),
            source_workload_kind: some(source.workload_kind),
            source_workload: some(source.workload),
            source_node: some(source.node),
            source_address: some(source.address),
            source_unknown_reason: some(source.unknown_reason),
            destination_kind: text(destination.kind),
            destination_namespace: some(destination.namespace),
            destination_workload_kind: some(destination.workload_kind),
            destination_workload: some(destination.workload),
            destination_node: some(destination.node),
            destination_address: some(destination.address),
            destination_unknown_reason: some(destination.unknown_reason),
            port,
            own_node,
            via_service: edge.via_service,
            answered: edge.answered,
            services: all(&edge.services),
            dialled_ports: edge.dialled_ports.to_vec(),
            failures: all(&edge.failures),
            source_pod_uids: all(&edge.source_pods),
            destination_pod_uids: all(&edge.destination_pods),
            client_seen: client.is_seen,
            client_connections: client.connections,
            client_failed: client.failed,
            client_closed: client.closed,
            client_max_active: client.max_active,
            client_bytes_sent: client.bytes_sent,
            client_bytes_received: client.bytes_received,
            client_cross_zone_bytes: client.cross_zone_bytes,
            client_retransmits: client.retransmits,
            client_duration_ms_sum: client.duration_ms_sum,
            server_seen: server.is_seen,
            server_connections: server.connections,
            server_failed: server.failed,
            server_closed: server.closed,
            server_max_active: server.max_active,
            server_bytes_sent: server.bytes_sent,
            server_bytes_received: server.bytes_received,
            server_cross_zone_bytes: server.cross_zone_bytes,
            server_retransmits: server.retransmits,
            server_duration_ms_sum: server.duration_ms_sum,
            first_seen: TimestampMs(edge.first_seen),
            last_seen: TimestampMs(edge.last_seen),
        }
    };
    let mut rows: Vec<RollupRow> = hour.edges.iter().map(row).collect();
    // The same edges lie together in every hour, whoever made the rollup.
    rows.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    rows
}

/// What tells rows of an hour apart.
fn key(row: &RollupRow) -> impl Ord + use<'_> {
    (
        (&row.source_namespace, &row.source_workload, &row.source_workload_kind, &row.source_kind, &row.source_address),
        (&row.destination_namespace, &row.destination_workload, &row.destination_workload_kind),
        (&row.destination_kind, &row.destination_address, row.port, &row.transport, row.own_node),
        (&row.source_node, &row.source_unknown_reason, &row.destination_node, &row.destination_unknown_reason),
    )
}

/// Pods and outside addresses that a rollup knows of.
pub(super) fn mentions(batches: &[RecordBatch]) -> (BTreeSet<&str>, BTreeSet<IpAddr>) {
    let (mut pods, mut outside) = (BTreeSet::new(), BTreeSet::new());
    for batch in batches {
        let column = |name: &str| batch.column_by_name(name).expect("every column of a rollup is read");
        for name in ["source_pod_uids", "destination_pod_uids"] {
            pods.extend(column(name).as_list::<i32>().values().as_string::<i32>().iter().flatten());
        }
        for (kind, address) in [("source_kind", "source_address"), ("destination_kind", "destination_address")] {
            let texts = |name| column(name).as_dictionary::<Int32Type>();
            let (kinds, addresses) = (texts(kind), texts(address));
            let names: Vec<_> = kinds.values().as_string::<i32>().iter().collect();
            let read: Vec<Option<IpAddr>> =
                addresses.values().as_string::<i32>().iter().map(|text| text?.parse().ok()).collect();
            let ends = kinds.keys().iter().zip(addresses.keys());
            let is_outside =
                |kind: Option<i32>| kind.is_some_and(|kind| names[kind as usize] == Some(EndKind::External.as_str()));
            outside
                .extend(ends.filter(|(kind, _)| is_outside(*kind)).filter_map(|(_, address)| read[address? as usize]));
        }
    }
    (pods, outside)
}

/// Takes in the rows of a rollup.
pub(super) fn place(folder: &mut Folder<'_>, batch: &RecordBatch) {
    let column = |name: &str| batch.column_by_name(name).expect("every column of a rollup is read");
    let mut texts = |name: &str| {
        let mut text = TextColumn::default();
        text.load(column(name).as_dictionary(), &mut folder.texts);
        text
    };
    let transports = texts("transport");
    let ends = ["source", "destination"].map(|side| END.map(|name| texts(&format!("{side}_{name}"))));
    let mut lists = |name: &str| Texts::list(column(name).as_list::<i32>(), &mut folder.texts);
    let listed = ["services", "failures", "source_pod_uids", "destination_pod_uids"].map(&mut lists);
    let ports = column("port").as_primitive::<UInt16Type>().values();
    let dialled = column("dialled_ports").as_list::<i32>();
    let dialled_ports = dialled.values().as_primitive::<UInt16Type>().values();
    let flags = ["own_node", "via_service", "answered"].map(|name| column(name).as_boolean());
    let times = ["hour", "first_seen", "last_seen"]
        .map(|name| column(name).as_primitive::<TimestampMillisecondType>().values());
    let sides = ["client", "server"].map(|side| Side::new(batch, side));
    for row in 0..batch.num_rows() {
        let [source, destination] = ends.each_ref().map(|end| {
            let [kind, namespace, workload_kind, workload, node, address, unknown_reason] =
                end.each_ref().map(|column| column.rows()[row]);
            folder.ends.number(EndKey { kind, namespace, workload_kind, workload, node, address, unknown_reason })
        });
        let [own_node, via_service, answered] = flags.map(|flag| flag.value(row));
        let transport = transports.rows()[row];
        let edge = folder.edge_of(EdgeKey { transport, source, destination, port: ports[row], own_node });
        let [services, failures, source_pods, destination_pods] = listed.each_ref().map(|list| list.row(row));
        let offsets = dialled.value_offsets();
        let edge = HourEdge {
            client: sides[0].counts(row),
            server: sides[1].counts(row),
            via_service,
            answered,
            services: sorted(services),
            dialled_ports: SmallVec::from_slice(&dialled_ports[offsets[row] as usize..offsets[row + 1] as usize]),
            failures: sorted(failures),
            source_pods: sorted(source_pods),
            destination_pods: sorted(destination_pods),
            first_seen: times[1][row],
            last_seen: times[2][row],
            ..HourEdge::new(edge)
        };
        folder.place(Hour::of(TimestampMs(times[0][row])).0, edge);
    }
}

/// Numbers are given in the order in which texts are met, which is another one here.
fn sorted<const N: usize>(numbers: &[u32]) -> SmallVec<[u32; N]> {
    let mut numbers = SmallVec::from_slice(numbers);
    numbers.sort_unstable();
    numbers
}

/// The counts of one end.
struct Side<'a> {
    is_seen: &'a arrow::array::BooleanArray,
    numbers: [&'a arrow::array::Int64Array; 9],
}

impl<'a> Side<'a> {
    fn new(batch: &'a RecordBatch, side: &str) -> Self {
        let column =
            |name: &str| batch.column_by_name(&format!("{side}_{name}")).expect("every column of a rollup is read");
        Self {
            is_seen: column("seen").as_boolean(),
            numbers: COUNTS.map(|name| column(name).as_primitive::<Int64Type>()),
        }
    }

    fn counts(&self, row: usize) -> Counts {
        let [bytes_sent, bytes_received] =
            [self.numbers[4], self.numbers[5]].map(|column| column.is_valid(row).then(|| column.value(row)));
        let number = |at: usize| self.numbers[at].value(row);
        Counts {
            is_seen: self.is_seen.value(row),
            connections: number(0),
            failed: number(1),
            closed: number(2),
            max_active: number(3),
            bytes_sent,
            bytes_received,
            cross_zone_bytes: number(6),
            retransmits: number(7),
            duration_ms_sum: number(8),
        }
    }
}

/// A column of lists of texts, as numbers.
pub(super) struct TextLists<'a> {
    lists: &'a ListArray,
    numbers: Vec<u32>,
}

impl Texts {
    fn list<'a>(lists: &'a ListArray, texts: &mut Self) -> TextLists<'a> {
        debug_assert_eq!(lists.value_type(), DataType::Utf8);
        let numbers = lists.values().as_string::<i32>().iter().map(|text| texts.number_of(text)).collect();
        TextLists { lists, numbers }
    }
}

impl TextLists<'_> {
    fn row(&self, row: usize) -> &[u32] {
        let offsets = self.lists.value_offsets();
        &self.numbers[offsets[row] as usize..offsets[row + 1] as usize]
    }
}

/// Of an end, in the order of [`EndKey`].
const END: [&str; 7] = ["kind", "namespace", "workload_kind", "workload", "node", "address", "unknown_reason"];
/// In the order of [`Side::counts`].
const COUNTS: [&str; 9] = [
    "connections",
    "failed",
    "closed",
    "max_active",
    "bytes_sent",
    "bytes_received",
    "cross_zone_bytes",
    "retransmits",
    "duration_ms_sum",
];
