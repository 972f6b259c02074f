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
    table::{Record, SchemaError, Table},
};

use crate::rows::{flow, health, inventory};

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
