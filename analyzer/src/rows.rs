//! Reading a query's result by column name.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type},
    error::ArrowError,
};

/// A result's columns by name; text and numbers are brought to one type each.
pub(crate) struct Rows<'a> {
    batch: &'a RecordBatch,
    columns: Vec<Arc<dyn Array>>,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(batch: &'a RecordBatch) -> Result<Self, ArrowError> {
        let plain = |column: &Arc<dyn Array>| {
            let target = match column.data_type() {
                DataType::Boolean => DataType::Boolean,
                data_type if data_type.is_numeric() || data_type.is_temporal() => DataType::Int64,
                _ => DataType::Utf8,
            };
            cast(column, &target)
        };
        Ok(Self { batch, columns: batch.columns().iter().map(plain).collect::<Result<_, _>>()? })
    }

    fn column(&self, name: &str) -> &dyn Array {
        let at = self.batch.schema_ref().index_of(name).expect("the queries select every column that is read");
        &*self.columns[at]
    }

    pub(crate) fn text(&self, name: &str, row: usize) -> Option<Arc<str>> {
        let column = self.column(name).as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).into())
    }

    pub(crate) fn number(&self, name: &str, row: usize) -> i64 {
        let column = self.column(name).as_primitive::<Int64Type>();
        if column.is_valid(row) { column.value(row) } else { 0 }
    }

    pub(crate) fn flag(&self, name: &str, row: usize) -> bool {
        let column = self.column(name).as_boolean();
        column.is_valid(row) && column.value(row)
    }
}
