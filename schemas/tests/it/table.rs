//! Records survive the way to Arrow and back, whatever they hold.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Field, Schema},
};
use proptest::prelude::*;
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Port, Record, RttHistogram, SchemaError, Table, TimestampMs},
};

fn text() -> impl Strategy<Value = Arc<str>> {
    "\\PC{0,12}".prop_map(Arc::from)
}

fn maybe_text() -> impl Strategy<Value = Option<Arc<str>>> {
    prop::option::of(text())
}

fn time() -> impl Strategy<Value = TimestampMs> {
    any::<i64>().prop_map(TimestampMs)
}

prop_compose! {
    pub(crate) fn flow()(
        texts in (text(), text(), text(), maybe_text(), maybe_text(), maybe_text()),
        numbers in any::<[i64; 6]>(),
        ports in (any::<Option<u16>>(), any::<u16>(), any::<Option<u16>>()),
        flags in (any::<bool>(), any::<bool>(), any::<Option<bool>>()),
        bytes in any::<(Option<i64>, Option<i64>)>(),
        rtt in any::<[i64; 8]>(),
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
        addresses in prop::collection::vec(text(), 0..4),
        ports in prop::collection::vec(port(), 0..4),
        host_network in any::<Option<bool>>(),
        times in (time(), prop::option::of(time()), prop::option::of(time())),
    ) -> InventoryRecord {
        InventoryRecord {
            kind: texts.0, name: texts.1, namespace: texts.2, selector: texts.3,
            addresses, ports, host_network,
            observed_at: times.0, lease_start: times.1, lease_end: times.2,
            ..InventoryRecord::default()
        }
    }
}

prop_compose! {
    pub(crate) fn health()(
        programs in prop::collection::vec(text(), 0..3),
        numbers in any::<[i64; 3]>(),
        clean_shutdown in any::<bool>(),
    ) -> HealthRecord {
        HealthRecord {
            programs, seen: numbers[0], exported: numbers[1], lost_ring: numbers[2], clean_shutdown,
            ..HealthRecord::default()
        }
    }
}

fn round_trip<R: Record + PartialEq + std::fmt::Debug>(rows: &[R]) {
    let batch = R::encode(rows);
    assert_eq!(batch.schema(), R::schema());
    assert_eq!(R::decode(&batch).expect("a batch of our own can be read"), rows);
}

proptest! {
    #[test]
    fn flows_survive_the_way_through_arrow(rows in prop::collection::vec(flow(), 0..20)) {
        round_trip(&rows);
    }

    #[test]
    fn inventory_survives_the_way_through_arrow(rows in prop::collection::vec(inventory(), 0..20)) {
        round_trip(&rows);
    }

    #[test]
    fn health_survives_the_way_through_arrow(rows in prop::collection::vec(health(), 0..20)) {
        round_trip(&rows);
    }
}

fn with_column(batch: &RecordBatch, name: &str, column: Option<ArrayRef>) -> RecordBatch {
    let schema = batch.schema();
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        if field.name() != name {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(array));
        } else if let Some(column) = &column {
            fields.push(Field::new(name, column.data_type().clone(), true));
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns fit their fields")
}

#[test]
fn a_batch_of_another_shape_is_refused_by_the_name_of_the_column() {
    let batch = FlowRecord::encode(&[FlowRecord::default()]);
    let missing = FlowRecord::decode(&with_column(&batch, "transport", None));
    assert!(matches!(missing, Err(SchemaError::MissingColumn { column: "transport", .. })), "{missing:?}");
    let null = FlowRecord::decode(&with_column(&batch, "seq", Some(Arc::new(Int64Array::from(vec![None])))));
    assert!(matches!(null, Err(SchemaError::UnexpectedNull { column: "seq", .. })), "{null:?}");
    let null = Arc::new(StringArray::from(vec![None::<&str>]));
    let null = FlowRecord::decode(&with_column(&batch, "transport", Some(null)));
    assert!(matches!(null, Err(SchemaError::UnexpectedNull { column: "transport", .. })), "{null:?}");
    let wrong = Arc::new(StringArray::from(vec!["x"]));
    let wrong = FlowRecord::decode(&with_column(&batch, "rtt_us_hist", Some(wrong)));
    assert!(matches!(wrong, Err(SchemaError::WrongType { column: "rtt_us_hist", .. })), "{wrong:?}");
}

#[test]
fn plain_text_and_unknown_columns_are_read_as_well() {
    let row = FlowRecord { transport: "udp".into(), ..FlowRecord::default() };
    let batch = FlowRecord::encode(std::slice::from_ref(&row));
    let plain = cast(batch.column_by_name("transport").expect("it has the column"), &DataType::Utf8).expect("text");
    let batch = with_column(&batch, "transport", Some(plain));
    let mut fields = batch.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("added_in_1_1", DataType::Int64, false)));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(vec![1])));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns fit their fields");
    assert_eq!(FlowRecord::decode(&batch).expect("it can be read"), [row]);
}
