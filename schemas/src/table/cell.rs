//! Columns as arrays: the Arrow type of each Rust type, and the way to it and back.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, FixedSizeListArray, Float64Array, Int64Array, ListBuilder,
        StringBuilder, StringDictionaryBuilder, StructArray, TimestampMillisecondArray, UInt16Array, UInt16Builder,
    },
    buffer::OffsetBuffer,
    datatypes::{
        DataType, Field, Fields, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType, UInt16Type,
    },
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
primitive_cell!(u16, DataType::UInt16, UInt16Array, |v| *v, |a| a.as_primitive::<UInt16Type>(), |v| v);
primitive_cell!(f64, DataType::Float64, Float64Array, |v| *v, |a| a.as_primitive::<Float64Type>(), |v| v);
primitive_cell!(bool, DataType::Boolean, BooleanArray, |v| *v, |a| a.as_boolean(), |v| v);

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

fn item(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, false))
}

impl Cell for RttHistogram {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::FixedSizeList(item(DataType::Int64), RTT_BUCKETS as i32)
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let counts: Vec<i64> = values.flat_map(|histogram| histogram.0).collect();
        let counts = Arc::new(Int64Array::from(counts));
        Arc::new(FixedSizeListArray::new(item(DataType::Int64), RTT_BUCKETS as i32, counts, None))
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
        DataType::List(item(DataType::Utf8))
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8));
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
        DataType::List(item(DataType::UInt16))
    }
    fn encode<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let mut builder = ListBuilder::new(UInt16Builder::new()).with_field(item(DataType::UInt16));
        for list in values {
            builder.values().append_slice(list);
            builder.append(true);
        }
        Arc::new(builder.finish())
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        let lists = array.as_list::<i32>();
        lists.iter().map(|list| list.map(|numbers| numbers.as_primitive::<UInt16Type>().values().to_vec())).collect()
    }
}

fn port_fields() -> Fields {
    Fields::from(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("protocol", DataType::Utf8, false),
        Field::new("port", DataType::UInt16, false),
        Field::new("target", DataType::Utf8, true),
        Field::new("node_port", DataType::UInt16, true),
    ])
}

impl Cell for Vec<Port> {
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::List(item(DataType::Struct(port_fields())))
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
            Arc::new(ports().map(|port| port.port).collect::<UInt16Array>()),
            texts(|port| port.target.as_ref()),
            Arc::new(ports().map(|port| port.node_port).collect::<UInt16Array>()),
        ];
        let ports = Arc::new(StructArray::new(port_fields(), columns, None));
        let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.len()));
        Arc::new(arrow::array::ListArray::new(item(DataType::Struct(port_fields())), offsets, ports, None))
    }
    fn decode(array: &ArrayRef) -> Vec<Option<Self>> {
        array.as_list::<i32>().iter().map(|list| list.map(|ports| decode_ports(ports.as_struct()))).collect()
    }
}

fn decode_ports(ports: &StructArray) -> Vec<Port> {
    let text = |column: usize, row: usize| {
        let texts = ports.column(column).as_string::<i32>();
        texts.is_valid(row).then(|| Arc::from(texts.value(row)))
    };
    let number = |column: usize, row: usize| {
        let numbers = ports.column(column).as_primitive::<UInt16Type>();
        numbers.is_valid(row).then(|| numbers.value(row))
    };
    (0..ports.len())
        .map(|row| Port {
            name: text(0, row),
            protocol: text(1, row).unwrap_or_default(),
            port: number(2, row).unwrap_or_default(),
            target: text(3, row),
            node_port: number(4, row),
        })
        .collect()
}
