//! How a dataset is defined: one table of columns, from which everything else about it is derived.
//!
//! `table!` takes the table and makes the type of its rows, its list of [`Column`]s and its conversion to Arrow;
//! `dataset!` makes a table that is kept in captures. A column's Arrow type follows from its Rust type through [`Cell`].

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, FixedSizeListArray, Float64Array, Int64Array, ListBuilder, RecordBatch,
        StringBuilder, StringDictionaryBuilder, StructArray, TimestampMillisecondArray, UInt16Array, UInt16Builder,
    },
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{
        DataType, Field, Fields, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit,
        TimestampMillisecondType, UInt16Type,
    },
    error::ArrowError,
};

use crate::{
    event::{RTT_BUCKETS, rtt_bucket},
    otlp::Accessors,
};

/// One row of a table, whose columns all have a meaning.
pub trait Table: Clone + Sized + Send + 'static {
    /// The table's name in SQL.
    const NAME: &'static str;
    /// What the table holds, in a sentence or two.
    const MEANING: &'static str;
    /// The columns, in order.
    const COLUMNS: &'static [Column];

    /// What makes the array of each column.
    const ENCODERS: &'static [fn(&[Self]) -> ArrayRef];

    /// Converts rows to a batch of [`Self::schema`].
    fn encode(rows: &[Self]) -> RecordBatch {
        let columns = Self::ENCODERS.iter().map(|encode| encode(rows)).collect();
        RecordBatch::try_new(Self::schema(), columns).expect("schema and columns come from the same table")
    }

    /// The Arrow schema of the table.
    fn schema() -> SchemaRef {
        let fields: Vec<Field> =
            Self::COLUMNS.iter().map(|c| Field::new(c.name, (c.data_type)(), c.nullable)).collect();
        Arc::new(Schema::new(fields))
    }
}

/// One row of a dataset: of a table that is kept in a capture.
pub trait Record: Table {
    /// The dataset's name: its table in SQL and its folder in a capture.
    const DATASET: &'static str = Self::NAME;
    /// The OpenTelemetry EventName of a row.
    const EVENT_NAME: &'static str;
    /// The column of time that tells which hour a row is of.
    const TIME: &'static str;
    /// How each column travels as an OpenTelemetry attribute.
    const ATTRIBUTES: &'static [Accessors<Self>];

    /// Converts a batch to rows. Columns are found by name and cast to their type; unknown ones are ignored.
    ///
    /// # Errors
    /// A column is missing, has another type, or has a null where none is allowed.
    fn decode(batch: &RecordBatch) -> Result<Vec<Self>, SchemaError>;

    /// The value of [`Self::TIME`].
    fn time(&self) -> TimestampMs;

    /// The instant that decides which hour's partition a row belongs to.
    fn partition_time(&self) -> TimestampMs;

    /// Orders rows within a batch of a row group, so that equal values lie together and time ranges can be skipped.
    fn sort_rows(rows: &mut [Self]);

    /// The agent run that wrote the row, and the row's number in that run.
    fn origin(&self) -> (&Arc<str>, i64);

    /// Who wrote the row.
    fn writer(&self) -> Origin;
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name in Arrow, Parquet and SQL.
    pub name: &'static str,
    /// Arrow type.
    pub data_type: fn() -> DataType,
    /// Whether the value may be absent.
    pub nullable: bool,
    /// OpenTelemetry attribute that carries it; `resource …` for a resource attribute.
    pub attribute: &'static str,
    /// UCUM unit, empty for none.
    pub unit: &'static str,
    /// What the value means.
    pub meaning: &'static str,
}

/// Why a batch is not of the expected dataset.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A column that has to be there is not.
    #[error("column `{column}` of dataset `{dataset}` is missing")]
    MissingColumn { dataset: &'static str, column: &'static str },
    /// A column that may not be null has a null.
    #[error("column `{column}` of dataset `{dataset}` has a null")]
    UnexpectedNull { dataset: &'static str, column: &'static str },
    /// A column's type can't be converted.
    #[error("column `{column}` of dataset `{dataset}` has an unexpected type")]
    WrongType {
        dataset: &'static str,
        column: &'static str,
        #[source]
        source: ArrowError,
    },
}

/// Who writes: the same on every row of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Cluster name.
    pub cluster: Arc<str>,
    /// Node name.
    pub node: Arc<str>,
    /// Random identifier of the run.
    pub run_id: Arc<str>,
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimestampMs(pub i64);

impl TimestampMs {
    /// This moment, by the system's clock; 1970 where that is set to before.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as i64)
    }
}

/// Histogram of round-trip times: bucket `i` counts connections below `64 µs × 4^i`, the last one all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RttHistogram(pub [i64; RTT_BUCKETS]);

impl RttHistogram {
    /// Counts one connection. A round-trip time of `u32::MAX` is unknown and not counted.
    pub fn add(&mut self, rtt_us: u32) {
        if rtt_us < u32::MAX {
            self.0[rtt_bucket(rtt_us)] += 1;
        }
    }
}

/// A port of a pod's container, a Service or an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Port {
    /// Name, where it has one.
    pub name: Option<Arc<str>>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: Arc<str>,
    /// Port number.
    pub port: u16,
    /// A Service's target port: a number or the name of a container's port. `None` means the same as `port`.
    pub target: Option<Arc<str>>,
    /// A Service's port on every node.
    pub node_port: Option<u16>,
}

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

/// Reads one column of a batch by name; what `dataset!` calls for each field.
///
/// # Errors
/// See [`Record::decode`].
pub fn decode_column<T: Cell>(
    batch: &RecordBatch,
    dataset: &'static str,
    column: &'static str,
) -> Result<Vec<T>, SchemaError> {
    let array = batch.column_by_name(column).ok_or(SchemaError::MissingColumn { dataset, column })?;
    let array = cast(array, &T::data_type()).map_err(|source| SchemaError::WrongType { dataset, column, source })?;
    let cells: Option<Vec<T>> = T::decode(&array).into_iter().collect();
    cells.filter(|cells| cells.len() == batch.num_rows()).ok_or(SchemaError::UnexpectedNull { dataset, column })
}

/// Defines a table: the type of its rows and its [`Table`] from one list of columns.
///
/// A column is `/// meaning`, then `name: type => "OpenTelemetry attribute", "unit";`.
#[macro_export]
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $row:ident, $name:literal;
        $($(#[doc = $meaning:literal])+ $field:ident: $type:ty => $attribute:literal, $unit:literal;)+
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $row {
            $($(#[doc = $meaning])+ pub $field: $type,)+
        }

        impl $crate::table::Table for $row {
            const NAME: &'static str = $name;
            const MEANING: &'static str = concat!($($about),+);
            const COLUMNS: &'static [$crate::table::Column] = &[$($crate::table::Column {
                name: stringify!($field),
                data_type: <$type as $crate::table::Cell>::data_type,
                nullable: <$type as $crate::table::Cell>::NULLABLE,
                attribute: $attribute,
                unit: $unit,
                meaning: concat!($($meaning),+),
            }),+];

            const ENCODERS: &'static [fn(&[Self]) -> arrow::array::ArrayRef] =
                &[$(|rows| <$type as $crate::table::Cell>::encode(rows.iter().map(|row| &row.$field))),+];
        }
    };
}

/// Defines a dataset: a [`table!`](crate::table!), and its [`Record`]. The tail names the functions for what a table
/// cannot say: partition time, with its column, and sort order.
macro_rules! dataset {
    (
        $(#[doc = $about:literal])+
        $record:ident, $name:literal, $event:literal;
        $($(#[doc = $meaning:literal])+ $field:ident: $type:ty => $attribute:literal, $unit:literal;)+
        partition by $time:ident, $partition:expr; sort by $key:expr;
    ) => {
        $crate::table! {
            $(#[doc = $about])+
            $record, $name;
            $($(#[doc = $meaning])+ $field: $type => $attribute, $unit;)+
        }

        impl $crate::table::Record for $record {
            const EVENT_NAME: &'static str = $event;
            const TIME: &'static str = stringify!($time);
            const ATTRIBUTES: &'static [$crate::otlp::Accessors<Self>] = &[$($crate::otlp::Accessors {
                put: |row, key, out| $crate::otlp::Attribute::put(&row.$field, key, out),
                take: |row, value, texts| {
                    let taken = <$type as $crate::otlp::Attribute>::take(value, texts);
                    taken.map(|value| row.$field = value).is_some()
                },
                text: |row| $crate::otlp::Attribute::as_text(&row.$field),
                is_optional: <$type as $crate::otlp::Attribute>::IS_OPTIONAL,
            }),+];

            fn decode(batch: &arrow::array::RecordBatch) -> Result<Vec<Self>, $crate::table::SchemaError> {
                $(let mut $field = $crate::table::decode_column::<$type>(batch, $name, stringify!($field))?.into_iter();)+
                let rows = (0..batch.num_rows()).map(|_| Some(Self { $($field: $field.next()?),+ }));
                Ok(rows.flatten().collect())
            }

            fn time(&self) -> $crate::table::TimestampMs {
                self.$time
            }

            fn partition_time(&self) -> $crate::table::TimestampMs {
                let time: fn(&Self) -> $crate::table::TimestampMs = $partition;
                time(self)
            }

            fn sort_rows(rows: &mut [Self]) {
                rows.sort_unstable_by(|a, b| {
                    let by: fn(&Self, &Self) -> std::cmp::Ordering = $key;
                    by(a, b)
                });
            }

            fn origin(&self) -> (&std::sync::Arc<str>, i64) {
                (&self.run_id, self.seq)
            }

            fn writer(&self) -> $crate::table::Origin {
                let share = std::sync::Arc::clone;
                $crate::table::Origin {
                    cluster: share(&self.cluster),
                    node: share(&self.node),
                    run_id: share(&self.run_id),
                }
            }
        }
    };
}
pub(crate) use dataset;
