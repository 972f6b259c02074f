//! How a dataset is defined: one table of columns, from which everything else about it is derived.
//!
//! `table!` takes the table and makes the type of its rows, its list of [`Column`]s and its conversion to Arrow;
//! `dataset!` makes a table that is kept in captures. A column's Arrow type follows from its Rust type through [`Cell`].

mod cell;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};

use crate::attribute::Accessors;
pub use crate::value::{Origin, Port, RttHistogram, TimestampMs};
pub use cell::Cell;

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
            const ATTRIBUTES: &'static [$crate::attribute::Accessors<Self>] = &[$($crate::attribute::Accessors {
                put: |row, key, out| $crate::attribute::Attribute::put(&row.$field, key, out),
                take: |row, value, texts| {
                    let taken = <$type as $crate::attribute::Attribute>::take(value, texts);
                    taken.map(|value| row.$field = value).is_some()
                },
                text: |row| $crate::attribute::Attribute::as_text(&row.$field),
                is_optional: <$type as $crate::attribute::Attribute>::IS_OPTIONAL,
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
