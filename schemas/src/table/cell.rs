//! Columns as arrays: the Arrow type of each Rust type, and the way to it and back.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, FixedSizeListArray, Float64Array, Int32Array, Int32Builder, Int64Array,
        ListBuilder, StringBuilder, StringDictionaryBuilder, StructArray, TimestampMillisecondArray,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Fields, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType},
};

use crate::{
    event::RTT_BUCKETS,
    value::{Port, RttHistogram, TimestampMs},
};

/// A Rust type that is the value of a column.
pub trait Cell: Sized {
    /// Whether the column may hold nulls.
    const NULLABLE: bool;
    /// The column's Arrow type.
    fn data_type() -> DataType;
    /// Builds the column.
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
    /// Reads a column that has [`Self::data_type`]; `None` where a null is not allowed.
    fn decode(array: &ArrayRef) -> Vec<Option<Self>>;
}

fn text_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

impl Cell for Option<Arc<str>> {
    const NULLABLE: bool = true;
    fn data_type() -> DataType {
        text_type()
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let mut builder = StringDictionaryBuilder::<Int32Type>::new();
        for value in values {
            builder.append_option(value.as_deref());
        }
        Arc::new(builder.finish())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        let dictionary = array.as_dictionary::<Int32Type>();
        // One allocation per distinct value, not per row.
        let texts: Vec<Self> = dictionary.values().as_string::<i32>().iter().map(|text| text.map(Arc::from)).collect();
        dictionary.keys().iter().map(|key| Some(key.and_then(|key| texts[key as usize].clone()))).collect()
    }
}

impl Cell for Arc<str> {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        text_type()
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let mut builder = StringDictionaryBuilder::<Int32Type>::new();
        for value in values {
            builder.append_value(value);
        }
        Arc::new(builder.finish())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        Option::<Self>::decode(array).into_iter().flatten().collect()
    }
}

/// Implements [`Cell`] for a primitive and for its option.
macro_rules! primitive_cell {
    ($type:ty, $data_type:expr, $array:ty, |$cell:ident| $encode:expr, |$column:ident| $iter:expr, |$raw:ident| $decode:expr) => {
        impl Cell for $type {
            const NULLABLE: bool = false;
            fn data_type() -> DataType {
                $data_type
            }
            fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
                Arc::new(<$array>::from(values.map(|$cell| $encode).collect::<Vec<_>>()))
            }
            fn decode($column: &ArrayRef) -> Vec<Option<Self>> {
                $iter.iter().map(|value| value.map(|$raw| $decode)).collect()
            }
        }
        impl Cell for Option<$type> {
            const NULLABLE: bool = true;
            fn data_type() -> DataType {
                $data_type
            }
            fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
                Arc::new(<$array>::from(values.map(|value| value.as_ref().map(|$cell| $encode)).collect::<Vec<_>>()))
            }
            fn decode($column: &ArrayRef) -> Vec<Option<Self>> {
                $iter.iter().map(|value| Some(value.map(|$raw| $decode))).collect()
            }
        }
    };
}

primitive_cell!(i64, DataType::Int64, Int64Array, |v| *v, |a| a.as_primitive::<Int64Type>(), |v| v);
primitive_cell!(f64, DataType::Float64, Float64Array, |v| *v, |a| a.as_primitive::<Float64Type>(), |v| v);
primitive_cell!(bool, DataType::Boolean, BooleanArray, |v| *v, |a| a.as_boolean(), |v| v);

// Ports are wider than they need: many readers have no unsigned numbers (Spark, Athena, Delta Lake).
impl Cell for u16 {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::Int32
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(|port| Some(i32::from(*port))).collect::<Int32Array>())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        array.as_primitive::<Int32Type>().iter().map(|port| port?.try_into().ok()).collect()
    }
}

impl Cell for Option<u16> {
    const NULLABLE: bool = true;
    fn data_type() -> DataType {
        DataType::Int32
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(|port| port.map(i32::from)).collect::<Int32Array>())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        array.as_primitive::<Int32Type>().iter().map(|port| port.map(u16::try_from).transpose().ok()).collect()
    }
}

fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

impl Cell for Option<TimestampMs> {
    const NULLABLE: bool = true;
    fn data_type() -> DataType {
        timestamp_type()
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let values: Vec<_> = values.map(|value| value.map(|time| time.0)).collect();
        Arc::new(TimestampMillisecondArray::from(values).with_timezone("UTC"))
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        array.as_primitive::<TimestampMillisecondType>().iter().map(|value| Some(value.map(TimestampMs))).collect()
    }
}

impl Cell for TimestampMs {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        timestamp_type()
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let values: Vec<_> = values.map(|time| time.0).collect();
        Arc::new(TimestampMillisecondArray::from(values).with_timezone("UTC"))
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        array.as_primitive::<TimestampMillisecondType>().iter().map(|value| value.map(TimestampMs)).collect()
    }
}

/// The elements of a list, by the name that the Parquet format gives them.
fn element(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", data_type, false))
}

impl Cell for RttHistogram {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::FixedSizeList(element(DataType::Int64), RTT_BUCKETS as i32)
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let counts: Vec<i64> = values.flat_map(|histogram| histogram.0).collect();
        let counts = Arc::new(Int64Array::from(counts));
        Arc::new(FixedSizeListArray::new(element(DataType::Int64), RTT_BUCKETS as i32, counts, None))
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        let lists = array.as_fixed_size_list();
        (0..lists.len())
            .map(|row| {
                let counts = lists.is_valid(row).then(|| lists.value(row))?;
                let counts = counts.as_primitive::<Int64Type>().values().as_ref().try_into().ok()?;
                Some(Self(counts))
            })
            .collect()
    }
}

impl Cell for Vec<Arc<str>> {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::List(element(DataType::Utf8))
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new()).with_field(element(DataType::Utf8));
        for list in values {
            for text in list {
                builder.values().append_value(text);
            }
            builder.append(true);
        }
        Arc::new(builder.finish())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        let lists = array.as_list::<i32>();
        lists
            .iter()
            .map(|list| list.map(|texts| texts.as_string::<i32>().iter().flatten().map(Arc::from).collect()))
            .collect()
    }
}

impl Cell for Vec<u16> {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::List(element(DataType::Int32))
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let mut builder = ListBuilder::new(Int32Builder::new()).with_field(element(DataType::Int32));
        for list in values {
            list.iter().for_each(|port| builder.values().append_value((*port).into()));
            builder.append(true);
        }
        Arc::new(builder.finish())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        let ports = |list: ArrayRef| {
            list.as_primitive::<Int32Type>().iter().map(|port| port?.try_into().ok()).collect::<Option<_>>()
        };
        array.as_list::<i32>().iter().map(|list| list.and_then(ports)).collect()
    }
}

fn port_fields() -> Fields {
    Fields::from(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("protocol", DataType::Utf8, false),
        Field::new("port", DataType::Int32, false),
        Field::new("target", DataType::Utf8, true),
        Field::new("node_port", DataType::Int32, true),
    ])
}

impl Cell for Vec<Port> {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::List(element(DataType::Struct(port_fields())))
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let lists: Vec<&Self> = values.collect();
        let ports = || lists.iter().flat_map(|list| list.iter());
        let texts = |pick: fn(&Port) -> Option<&Arc<str>>| -> ArrayRef {
            let mut builder = StringBuilder::new();
            for port in ports() {
                builder.append_option(pick(port));
            }
            Arc::new(builder.finish())
        };
        let columns: Vec<ArrayRef> = vec![
            texts(|port| port.name.as_ref()),
            texts(|port| Some(&port.protocol)),
            Arc::new(ports().map(|port| Some(i32::from(port.port))).collect::<Int32Array>()),
            texts(|port| port.target.as_ref()),
            Arc::new(ports().map(|port| port.node_port.map(i32::from)).collect::<Int32Array>()),
        ];
        let ports = Arc::new(StructArray::new(port_fields(), columns, None));
        let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.len()));
        Arc::new(arrow::array::ListArray::new(element(DataType::Struct(port_fields())), offsets, ports, None))
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        array.as_list::<i32>().iter().map(|list| decode_ports(list?.as_struct())).collect()
    }
}

/// The ports of a list; `None` where a number is none.
fn decode_ports(ports: &StructArray) -> Option<Vec<Port>> {
    let text = |column: usize, row: usize| {
        let texts = ports.column(column).as_string::<i32>();
        texts.is_valid(row).then(|| Arc::from(texts.value(row)))
    };
    let number = |column: usize, row: usize| {
        let numbers = ports.column(column).as_primitive::<Int32Type>();
        numbers.is_valid(row).then(|| u16::try_from(numbers.value(row))).transpose().ok()
    };
    let port = |row: usize| {
        Some(Port {
            name: text(0, row),
            protocol: text(1, row).unwrap_or_default(),
            port: number(2, row)?.unwrap_or_default(),
            target: text(3, row),
            node_port: number(4, row)?,
        })
    };
    (0..ports.len()).map(port).collect()
}
