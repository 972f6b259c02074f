//! How a dataset is defined: one table of columns, from which everything else about it is derived.
//!
//! `table!` takes the table and makes the type of its rows, its list of [`Column`]s and its conversion to Arrow;
//! `columns!` does so for columns that several tables have, and `dataset!` for a table that is kept in captures. A
//! column's Arrow type follows from its Rust type through [`Cell`].

mod bounds;
mod cell;

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};

use crate::attribute::Accessors;
pub use crate::value::{Origin, Port, RttHistogram, TimestampMs};
pub use bounds::{Bounded, numbers_of, of_length, of_number};
pub use cell::Cell;

/// Columns that belong together, as a value for each row: all columns of a table, or those that several tables have.
pub trait Columns: Sized {
    /// How many there are.
    const WIDTH: usize;

    /// The columns, in order. In a table they are of a part of it: `{}` in their meanings stands for its name, and each of
    /// their names follows a prefix.
    fn list() -> Vec<Column>;

    /// Makes the array of one column, of those that `rows` yields.
    ///
    /// # Panics
    /// There is no such column.
    fn encode_one<'a>(rows: impl Iterator<Item = &'a Self>, column: usize) -> ArrayRef
    where
        Self: 'a;
}

/// One row of a table, whose columns all have a meaning.
pub trait Table: Columns + Clone + Send + 'static {
    /// The table's name in SQL.
    const NAME: &'static str;
    /// What the table holds, in a sentence or two.
    const MEANING: &'static str;

    /// The columns, in order.
    fn columns() -> &'static [Column];

    /// Converts rows to a batch of [`Self::schema`].
    fn encode(rows: &[Self]) -> RecordBatch {
        let columns = (0..Self::WIDTH).map(|column| Self::encode_one(rows.iter(), column)).collect();
        RecordBatch::try_new(Self::schema(), columns).expect("schema and columns come from the same table")
    }

    /// The Arrow schema of the table.
    fn schema() -> SchemaRef {
        let field = |c: &Column| Field::new(&*c.name, (c.data_type)(), c.nullable);
        Arc::new(Schema::new(Self::columns().iter().map(field).collect::<Vec<_>>()))
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
    /// A column is missing, has another type, or has a null or a number where none such is allowed.
    fn decode(batch: &RecordBatch) -> Result<Vec<Self>, SchemaError>;

    /// A column whose value can't be one, and why, of what comes from outside.
    fn refusal(&self) -> Option<(&'static str, &'static str)>;

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

    /// Says in a line what the row says, for people who read logs.
    fn summarize(&self, out: &mut String);
}

/// One column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Name in Arrow, Parquet and SQL.
    pub name: Cow<'static, str>,
    /// Arrow type.
    pub data_type: fn() -> DataType,
    /// Whether the value may be absent.
    pub nullable: bool,
    /// OpenTelemetry attribute that carries it; `resource …` for a resource attribute.
    pub attribute: &'static str,
    /// UCUM unit, empty for none.
    pub unit: &'static str,
    /// What the value means.
    pub meaning: Cow<'static, str>,
}

impl Column {
    /// The same column of a part of a table.
    #[must_use]
    pub fn of(self, part: &str, prefix: &str) -> Self {
        let name = format!("{prefix}{}", self.name).into();
        Self { name, meaning: self.meaning.replace("{}", part).into(), ..self }
    }
}

/// Why a batch is not of the expected dataset.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A column that has to be there is not.
    #[error("column `{column}` of dataset `{dataset}` is missing")]
    MissingColumn { dataset: &'static str, column: &'static str },
    /// A column has a null where none may be, or a number that is none of a port.
    #[error("column `{column}` of dataset `{dataset}` has a null or a number out of range")]
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

/// Defines columns that several tables have: the type of their values, and its [`Columns`].
///
/// A column is `/// meaning`, then `name: type => "OpenTelemetry attribute", "unit";`. A part of a table, whose columns are
/// defined elsewhere, is `name: type as "prefix of the names";`.
#[macro_export]
macro_rules! columns {
    (
        $(#[$about:meta])+
        $row:ident;
        $(
            $(#[doc = $meaning:literal])+
            $field:ident: $type:ty $(=> $attribute:literal, $unit:literal)? $(as $prefix:literal)?;
        )+
    ) => {
        $(#[$about])+
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $row {
            $($(#[doc = $meaning])+ pub $field: $type,)+
        }

        impl $crate::table::Columns for $row {
            const WIDTH: usize = 0 $(+ $crate::part!(@width $type; $($attribute)? $(as $prefix)?))+;

            fn list() -> Vec<$crate::table::Column> {
                let mut list = Vec::with_capacity(Self::WIDTH);
                $($crate::part!(@list list $field $type, concat!($($meaning),+); $($attribute, $unit)? $(as $prefix)?);)+
                list
            }

            fn encode_one<'a>(rows: impl Iterator<Item = &'a Self>, mut column: usize) -> arrow::array::ArrayRef {
                $($crate::part!(@encode rows column $field $type; $($attribute)? $(as $prefix)?);)+
                panic!("{} has no column {column} beyond its last", stringify!($row))
            }
        }
    };
}

/// What [`columns!`] does for a column or a part: lists it, counts it, or makes its array.
#[doc(hidden)]
#[macro_export]
macro_rules! part {
    (@list $list:ident $field:ident $type:ty, $meaning:expr; $attribute:literal, $unit:literal) => {
        $list.push($crate::table::Column {
            name: stringify!($field).into(),
            data_type: <$type as $crate::table::Cell>::data_type,
            nullable: <$type as $crate::table::Cell>::NULLABLE,
            attribute: $attribute,
            unit: $unit,
            meaning: $meaning.into(),
        })
    };
    (@list $list:ident $field:ident $type:ty, $meaning:expr; as $prefix:literal) => {
        let columns = <$type as $crate::table::Columns>::list().into_iter();
        $list.extend(columns.map(|column| column.of(stringify!($field), $prefix)))
    };
    (@encode $rows:ident $column:ident $field:ident $type:ty; $attribute:literal) => {
        if $column == 0 {
            return <$type as $crate::table::Cell>::encode($rows.map(|row| &row.$field));
        }
        $column -= 1
    };
    (@encode $rows:ident $column:ident $field:ident $type:ty; as $prefix:literal) => {
        if $column < <$type as $crate::table::Columns>::WIDTH {
            return <$type as $crate::table::Columns>::encode_one($rows.map(|row| &row.$field), $column);
        }
        $column -= <$type as $crate::table::Columns>::WIDTH
    };
    (@width $type:ty; $attribute:literal) => {
        1
    };
    (@width $type:ty; as $prefix:literal) => {
        <$type as $crate::table::Columns>::WIDTH
    };
}

/// Defines a table: [`columns!`](crate::columns!), and its [`Table`].
#[macro_export]
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $row:ident, $name:literal;
        $($columns:tt)+
    ) => {
        $crate::columns! { $(#[doc = $about])+ $row; $($columns)+ }

        impl $crate::table::Table for $row {
            const NAME: &'static str = $name;
            const MEANING: &'static str = concat!($($about),+);

            fn columns() -> &'static [$crate::table::Column] {
                static LIST: std::sync::LazyLock<Vec<$crate::table::Column>> =
                    std::sync::LazyLock::new(<$row as $crate::table::Columns>::list);
                &LIST
            }
        }
    };
}

/// Defines a dataset: a [`table!`](crate::table!), and its [`Record`]. The tail names the functions for what a table
/// cannot say: partition time, with its column, sort order, and a line for people.
macro_rules! dataset {
    (
        $(#[doc = $about:literal])+
        $record:ident, $name:literal, $event:literal;
        $($(#[doc = $meaning:literal])+ $field:ident: $type:ty => $attribute:literal, $unit:literal;)+
        partition by $time:ident, $partition:expr; sort by $key:expr; summarize by $summary:expr;
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

            fn refusal(&self) -> Option<(&'static str, &'static str)> {
                $(if let Some(reason) = $crate::table::Bounded::refusal(&self.$field, stringify!($field)) {
                    return Some((stringify!($field), reason));
                })+
                None
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

            fn summarize(&self, out: &mut String) {
                let summarize: fn(&Self, &mut String) -> std::fmt::Result = $summary;
                // A text takes whatever is written.
                let _ = summarize(self, out);
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
