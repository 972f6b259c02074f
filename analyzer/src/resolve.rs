//! SQL functions that say who is at each end of a flow, from the inventory at the time of the flow.
//!
//! The local end of a row is certain, since its socket told it; the remote end is looked up again here, because the
//! agent that wrote the row may have known less than the whole inventory does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, ListArray, StringBuilder, StructArray, UInt16Builder,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Fields, Int32Type, TimestampMillisecondType, UInt16Type},
};
use datafusion::{
    error::Result as DataFusionResult,
    logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf},
};
use schemas::{
    index::{Index, Owner, Span, UnknownReason, pod_name_as_uid},
    inventory::InventoryRecord,
    table::{Cell, TimestampMs},
};

/// The functions `source_end`, `destination_ends` and `is_loopback`.
pub(crate) fn functions(index: &Arc<Index>) -> [ScalarUDF; 3] {
    let text = <Arc<str> as Cell>::data_type;
    let time = <TimestampMs as Cell>::data_type;
    let end = vec![
        text(),            // observer
        text(),            // kind
        text(),            // namespace
        text(),            // workload kind
        text(),            // workload
        text(),            // pod UID
        text(),            // node of the pod
        DataType::Boolean, // host network
        text(),            // node of the observer
        text(),            // address
        time(),            // first seen
        time(),            // last seen
    ];
    let mut destination = end.clone();
    destination.extend([text(), DataType::UInt16]); // transport, port
    let (for_source, for_destination) = (Arc::clone(index), Arc::clone(index));
    [
        create_udf(
            "source_end",
            end,
            DataType::Struct(end_fields()),
            Volatility::Stable,
            Arc::new(move |args| source_end(&for_source, args)),
        ),
        create_udf(
            "destination_ends",
            destination,
            DataType::List(destination_item()),
            Volatility::Stable,
            Arc::new(move |args| destination_ends(&for_destination, args)),
        ),
        create_udf("is_loopback", vec![text()], DataType::Boolean, Volatility::Immutable, Arc::new(is_loopback)),
    ]
}

/// One end of an edge. What is reached by address has one; what is reached by label has a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    kind: &'static str,
    namespace: Option<Arc<str>>,
    workload_kind: Option<Arc<str>>,
    workload: Option<Arc<str>>,
    pod_uid: Option<Arc<str>>,
    node: Option<Arc<str>>,
    address: Option<Arc<str>>,
    unknown_reason: Option<&'static str>,
}

/// One end that was dialled: who answers, on which port, and through which Service.
#[derive(Clone, Debug)]
struct Destination {
    end: End,
    port: u16,
    service: Option<Arc<str>>,
    /// No other end can have answered.
    sole: bool,
}

/// UID and node of one of the pods behind a Service.
type Replica = (Option<Arc<str>>, Option<Arc<str>>);

/// A row's arguments, as [`functions`] declares them.
struct Rows {
    arrays: Vec<ArrayRef>,
}

impl Rows {
    fn new(args: &[ColumnarValue]) -> DataFusionResult<Self> {
        ColumnarValue::values_to_arrays(args).map(|arrays| Self { arrays })
    }

    fn len(&self) -> usize {
        self.arrays.first().map_or(0, |array| array.len())
    }

    fn text(&self, column: usize, row: usize) -> Option<&str> {
        let array = self.arrays[column].as_dictionary::<Int32Type>();
        array.is_valid(row).then(|| array.values().as_string::<i32>().value(array.keys().value(row) as usize))
    }

    fn owned(&self, column: usize, row: usize) -> Option<Arc<str>> {
        self.text(column, row).map(Arc::from)
    }

    fn span(&self, row: usize) -> Span {
        let time =
            |column: usize| TimestampMs(self.arrays[column].as_primitive::<TimestampMillisecondType>().value(row));
        Span { from: time(10), to: time(11) }
    }

    fn address(&self, row: usize) -> Option<IpAddr> {
        self.text(9, row)?.parse().ok()
    }

    /// The end that the row's own socket told; `None` where the observer was at the other end, or did not know.
    fn local(&self, row: usize, observer: &str, index: &Index) -> Option<End> {
        if self.text(0, row) != Some(observer) {
            return None;
        }
        let address = || self.owned(9, row);
        let observer_node = || self.owned(8, row);
        match self.text(1, row)? {
            "pod" if self.arrays[7].as_boolean().is_valid(row) && self.arrays[7].as_boolean().value(row) => {
                Some(End::node(self.owned(6, row).or_else(observer_node), address()))
            }
            "pod" => {
                let uid = self.owned(5, row);
                // The whole inventory knows owners of owners, and names of pods, that the agent may not have known.
                let known = uid.as_deref().and_then(|uid| index.pod(uid, self.span(row).to));
                let told = self.owned(3, row).zip(self.owned(4, row));
                let (workload_kind, workload) = known.map(|pod| index.workload_of(pod)).or(told).unzip();
                if known.is_some_and(|pod| pod.host_network == Some(true)) {
                    return Some(End::node(self.owned(6, row).or_else(observer_node), address()));
                }
                Some(End {
                    kind: "pod",
                    namespace: Some(known.and_then(|pod| pod.namespace.clone()).or_else(|| self.owned(2, row))?),
                    workload_kind,
                    workload,
                    pod_uid: known.and_then(|pod| pod.uid.clone()).or(uid),
                    node: self.owned(6, row).or_else(observer_node),
                    ..End::default()
                })
            }
            "node" => Some(End::node(self.owned(6, row).or_else(observer_node), address())),
            _ => None,
        }
    }

    /// The end that has to be looked up by its address. One that is local to the observer, but whose socket was of no
    /// known pod, was there before the news of it: its address tells only where it did not change hands around that time.
    fn remote(&self, row: usize, observer: &str, index: &Index) -> End {
        let Span { from, to } = self.span(row);
        let margin_ms = if self.text(0, row) == Some(observer) { UNMAPPED_MARGIN_MS } else { 0 };
        let span = Span { from: TimestampMs(from.0 - margin_ms), to: TimestampMs(to.0 + margin_ms) };
        match self.address(row) {
            Some(address) => End::of(index, index.resolve(address, span), address),
            None => End { address: self.owned(9, row), ..End::unknown("not_an_address") },
        }
    }
}

impl End {
    fn of(index: &Index, owner: Owner<'_>, address: IpAddr) -> Self {
        let text: Arc<str> = address.to_string().into();
        match owner {
            Owner::Pod(pod) => Self::pod(index, pod),
            Owner::Node(node) => Self::node(Some(Arc::clone(&node.name)), Some(text)),
            // Only what is dialled can be a Service; one that dials is a node that hides behind its address.
            Owner::Service(_) => Self { address: Some(text), ..Self::unknown("service_address") },
            Owner::External => Self { kind: "external", address: Some(text), ..Self::default() },
            Owner::Unknown(reason) => Self { address: Some(text), ..Self::unknown(reason.as_str()) },
        }
    }

    fn pod(index: &Index, pod: &InventoryRecord) -> Self {
        let (workload_kind, workload) = index.workload_of(pod);
        Self {
            kind: "pod",
            namespace: pod.namespace.clone(),
            workload_kind: Some(workload_kind),
            workload: Some(workload),
            pod_uid: Some(pod.uid.clone().unwrap_or_else(|| pod_name_as_uid(pod))),
            node: pod.object_node.clone(),
            ..Self::default()
        }
    }

    /// A node, or a pod that shares its network: from outside they are one.
    fn node(node: Option<Arc<str>>, address: Option<Arc<str>>) -> Self {
        Self { kind: "node", node, address, ..Self::default() }
    }

    fn unknown(reason: &'static str) -> Self {
        Self { kind: "unknown", unknown_reason: Some(reason), ..Self::default() }
    }
}

fn source_end(index: &Index, args: &[ColumnarValue]) -> DataFusionResult<ColumnarValue> {
    let rows = Rows::new(args)?;
    let mut ends = EndBuilder::default();
    for row in 0..rows.len() {
        ends.push(&rows.local(row, "client", index).unwrap_or_else(|| rows.remote(row, "client", index)));
    }
    Ok(ColumnarValue::Array(Arc::new(ends.finish())))
}

fn destination_ends(index: &Index, args: &[ColumnarValue]) -> DataFusionResult<ColumnarValue> {
    let rows = Rows::new(args)?;
    let (mut ends, mut lengths) = (EndBuilder::default(), Vec::with_capacity(rows.len()));
    let mut ports = UInt16Builder::new();
    let mut services = StringBuilder::new();
    let (mut via_service, mut sole) = (BooleanBuilder::new(), BooleanBuilder::new());
    for row in 0..rows.len() {
        let port = rows.arrays[13].as_primitive::<UInt16Type>().value(row);
        let direct = |end| vec![Destination { end, port, service: None, sole: true }];
        let destinations = match rows.local(row, "server", index) {
            Some(end) => direct(end),
            None => rows
                .address(row)
                .and_then(|address| through_service(index, address, rows.text(12, row)?, port, rows.span(row)))
                .unwrap_or_else(|| direct(rows.remote(row, "server", index))),
        };
        lengths.push(destinations.len());
        for destination in destinations {
            ends.push(&destination.end);
            ports.append_value(destination.port);
            services.append_option(destination.service.as_deref());
            via_service.append_value(destination.service.is_some());
            sole.append_value(destination.sole);
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ends.finish()),
        Arc::new(ports.finish()),
        Arc::new(services.finish()),
        Arc::new(via_service.finish()),
        Arc::new(sole.finish()),
    ];
    let values = Arc::new(StructArray::new(destination_fields(), columns, None));
    let list = ListArray::new(destination_item(), OffsetBuffer::from_lengths(lengths), values, None);
    Ok(ColumnarValue::Array(Arc::new(list)))
}

/// Everyone who may have answered when a Service's address was dialled; `None` when it was not a Service's.
fn through_service(index: &Index, address: IpAddr, transport: &str, port: u16, span: Span) -> Option<Vec<Destination>> {
    let Owner::Service(service) = index.dialled(address, transport, port, span) else { return None };
    let name: Arc<str> = format!("{}/{}", service.namespace.as_deref().unwrap_or_default(), service.name).into();
    // Replicas are one destination: a connection must not count once for each. Of their pods and nodes, what all share
    // is known of the one that answered.
    let mut found: BTreeMap<(End, u16), BTreeSet<Replica>> = BTreeMap::new();
    for backend in index.backends(service, transport, port, span) {
        let mut end = End::of(index, backend.owner, backend.address);
        let replica = if end.kind == "pod" { (end.pod_uid.take(), end.node.take()) } else { (None, end.node.clone()) };
        found.entry((end, backend.port)).or_default().insert(replica);
    }
    if found.is_empty() {
        let reason = UnknownReason::NoEndpoints.as_str();
        let end = End { address: Some(address.to_string().into()), ..End::unknown(reason) };
        return Some(vec![Destination { end, port, service: Some(name), sole: true }]);
    }
    let sole = found.len() == 1;
    let destination = |((end, port), replicas): ((End, u16), BTreeSet<Replica>)| {
        let (pods, nodes): (BTreeSet<_>, BTreeSet<_>) = replicas.into_iter().unzip();
        let only = |mut values: BTreeSet<Option<Arc<str>>>| values.pop_first().flatten().filter(|_| values.is_empty());
        let end = End { pod_uid: only(pods), node: only(nodes), ..end };
        Destination { end, port, service: Some(Arc::clone(&name)), sole }
    };
    Some(found.into_iter().map(destination).collect())
}

fn is_loopback(args: &[ColumnarValue]) -> DataFusionResult<ColumnarValue> {
    let rows = Rows::new(args)?;
    let loopback = |row| rows.text(0, row)?.parse::<IpAddr>().ok().map(|address| address.to_canonical().is_loopback());
    let answers: BooleanArray = (0..rows.len()).map(|row| Some(loopback(row).unwrap_or(false))).collect();
    Ok(ColumnarValue::Array(Arc::new(answers)))
}

/// How late the news of a pod may be for its own node: a window, at the longest that is usual.
const UNMAPPED_MARGIN_MS: i64 = 60_000;

/// Builds the columns of [`end_fields`].
#[derive(Default)]
struct EndBuilder {
    columns: [StringBuilder; 8],
}

impl EndBuilder {
    fn push(&mut self, end: &End) {
        let End { kind, namespace, workload_kind, workload, pod_uid, node, address, unknown_reason } = end;
        let values = [
            Some(*kind),
            namespace.as_deref(),
            workload_kind.as_deref(),
            workload.as_deref(),
            pod_uid.as_deref(),
            node.as_deref(),
            address.as_deref(),
            *unknown_reason,
        ];
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.append_option(value);
        }
    }

    fn finish(mut self) -> StructArray {
        let columns = self.columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        StructArray::new(end_fields(), columns, None)
    }
}

fn end_fields() -> Fields {
    let names = ["kind", "namespace", "workload_kind", "workload", "pod_uid", "node", "address", "unknown_reason"];
    names.iter().map(|name| Field::new(*name, DataType::Utf8, *name != "kind")).collect()
}

fn destination_fields() -> Fields {
    Fields::from(vec![
        Field::new("end", DataType::Struct(end_fields()), false),
        Field::new("port", DataType::UInt16, false),
        Field::new("service", DataType::Utf8, true),
        Field::new("via_service", DataType::Boolean, false),
        Field::new("sole", DataType::Boolean, false),
    ])
}

fn destination_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(destination_fields()), true))
}
