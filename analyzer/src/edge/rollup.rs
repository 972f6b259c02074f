//! Hours of edges as rows of rollups, and back.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use arrow::{
    array::{Array as _, AsArray, Int64Array, ListArray, RecordBatch},
    datatypes::{DataType, Int32Type, TimestampMillisecondType},
};
use schemas::{
    edge_columns::{ConnectionCounts, EdgeEnd},
    hour::Hour,
    rollup::RollupRow,
    table::{Columns, TimestampMs},
    vocabulary::EndKind,
};
use smallvec::SmallVec;

use super::{
    dictionary::{TextColumn, Texts},
    fold::{EdgeKey, EndKey, Folder},
    hour::{HourEdge, HourEdges},
};

/// The rows of an hour.
pub(super) fn rows(folder: &Folder<'_>, hour: &HourEdges) -> Vec<RollupRow> {
    let texts = &folder.texts;
    let row = |edge: &HourEdge| {
        let EdgeKey { transport, source, destination, port, own_node, source_port } =
            folder.edges.values[edge.edge as usize];
        RollupRow {
            hour: Hour(hour.number).start(),
            transport: texts.text(transport).cloned().unwrap_or_default(),
            source: folder.end(source),
            destination: folder.end(destination),
            port,
            own_node,
            source_port,
            via_service: edge.via_service,
            answered: edge.answered,
            services: texts.sorted(&edge.services),
            dialled_ports: edge.dialled_ports.to_vec(),
            failures: texts.sorted(&edge.failures),
            source_pod_uids: texts.sorted(&edge.source_pods),
            destination_pod_uids: texts.sorted(&edge.destination_pods),
            source_containers: joined(&texts.sorted(&edge.source_containers)),
            destination_containers: joined(&texts.sorted(&edge.destination_containers)),
            client_seen: edge.seen_by_client,
            client: edge.client,
            server_seen: edge.seen_by_server,
            server: edge.server,
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
    const fn end(end: &EdgeEnd) -> impl Ord + use<'_> {
        (&end.namespace, &end.workload, &end.workload_kind, &end.kind, &end.address)
    }
    let RollupRow { source, destination, .. } = row;
    (
        end(source),
        end(destination),
        (row.port, &row.transport, row.own_node, row.source_port),
        (&source.node, &source.unknown_reason, &destination.node, &destination.unknown_reason),
    )
}

/// Pods, and addresses that are no pod's, that a rollup knows of.
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
                |kind: Option<i32>| kind.is_some_and(|kind| names[kind as usize] != Some(EndKind::Pod.as_str()));
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
    let containers = ["source_containers", "destination_containers"].map(&mut texts);
    let ends =
        ["source_", "destination_"].map(|side| names::<EdgeEnd, { EdgeEnd::WIDTH }>(side).map(|name| texts(&name)));
    let mut lists = |name: &str| Texts::list(column(name).as_list::<i32>(), &mut folder.texts);
    let listed = ["services", "failures", "source_pod_uids", "destination_pod_uids"].map(&mut lists);
    let ports = column("port").as_primitive::<Int32Type>().values();
    let source_ports = column("source_port").as_primitive::<Int32Type>();
    let dialled = column("dialled_ports").as_list::<i32>();
    let dialled_ports = dialled.values().as_primitive::<Int32Type>().values();
    let flags =
        ["own_node", "via_service", "answered", "client_seen", "server_seen"].map(|name| column(name).as_boolean());
    let times = ["hour", "first_seen", "last_seen"]
        .map(|name| column(name).as_primitive::<TimestampMillisecondType>().values());
    let sides = ["client_", "server_"].map(|side| Counts::new(batch, side));
    for row in 0..batch.num_rows() {
        let [source, destination] = ends.each_ref().map(|end| {
            let [kind, namespace, workload_kind, workload, node, address, unknown_reason] =
                end.each_ref().map(|column| column.rows()[row]);
            folder.ends.number(EndKey { kind, namespace, workload_kind, workload, node, address, unknown_reason })
        });
        let [own_node, via_service, answered, seen_by_client, seen_by_server] = flags.map(|flag| flag.value(row));
        let transport = transports.rows()[row];
        // Who reads the file refuses numbers that are no ports.
        let source_port = source_ports.is_valid(row).then(|| source_ports.value(row) as u16);
        let port = ports[row] as u16;
        let edge = folder.edge_of(EdgeKey { transport, source, destination, port, own_node, source_port });
        let [services, failures, source_pods, destination_pods] = listed.each_ref().map(|list| list.row(row));
        let [source_containers, destination_containers] =
            containers.each_ref().map(|names| parted(names.rows()[row], &mut folder.texts));
        // Rollups of a time before there were names of containers.
        let unnamed = folder.texts.number("");
        let or_unnamed = |names: SmallVec<[u32; 2]>, is_seen: bool, pods: &[u32]| match names.is_empty() {
            true if is_seen && !pods.is_empty() => SmallVec::from_slice(&[unnamed]),
            _ => names,
        };
        let source_containers = or_unnamed(source_containers, seen_by_client, source_pods);
        let destination_containers = or_unnamed(destination_containers, seen_by_server, destination_pods);
        let offsets = dialled.value_offsets();
        let edge = HourEdge {
            seen_by_client,
            seen_by_server,
            client: sides[0].counts(row),
            server: sides[1].counts(row),
            via_service,
            answered,
            services: sorted(services),
            dialled_ports: dialled_ports[offsets[row] as usize..offsets[row + 1] as usize]
                .iter()
                .map(|port| *port as u16)
                .collect(),
            failures: sorted(failures),
            source_pods: sorted(source_pods),
            destination_pods: sorted(destination_pods),
            source_containers,
            destination_containers,
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

/// Names with commas between them; `None` of none.
fn joined(names: &[Arc<str>]) -> Option<Arc<str>> {
    (!names.is_empty()).then(|| names.join(",").into())
}

/// The numbers of names with commas between them.
fn parted(names: u32, texts: &mut Texts) -> SmallVec<[u32; 2]> {
    let names = texts.text(names).cloned();
    let mut numbers: SmallVec<[u32; 2]> =
        names.iter().flat_map(|names| names.split(',')).map(|name| texts.number(name)).collect();
    numbers.sort_unstable();
    numbers
}

/// What one end counted.
struct Counts<'a>([&'a Int64Array; ConnectionCounts::WIDTH]);

impl<'a> Counts<'a> {
    fn new(batch: &'a RecordBatch, prefix: &str) -> Self {
        let column = |name: String| batch.column_by_name(&name).expect("every column of a rollup is read");
        Self(names::<ConnectionCounts, _>(prefix).map(|name| column(name).as_primitive()))
    }

    fn counts(&self, row: usize) -> ConnectionCounts {
        let [connections, failed, closed, max_active, sent, received, cross_zone_bytes, retransmits, duration_ms_sum] =
            self.0;
        let known = |column: &Int64Array| column.is_valid(row).then(|| column.value(row));
        ConnectionCounts {
            connections: connections.value(row),
            failed: failed.value(row),
            closed: closed.value(row),
            max_active: max_active.value(row),
            bytes_sent: known(sent),
            bytes_received: known(received),
            cross_zone_bytes: cross_zone_bytes.value(row),
            retransmits: retransmits.value(row),
            duration_ms_sum: duration_ms_sum.value(row),
        }
    }
}

/// The names of the columns of a part, in order.
fn names<C: Columns, const WIDTH: usize>(prefix: &str) -> [String; WIDTH] {
    let columns = C::list();
    std::array::from_fn(|column| format!("{prefix}{}", columns[column].name))
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
