//! What every table, column and function means, from the tables that define them.

use std::{fmt::Write, sync::Arc};

use arrow::datatypes::DataType;
use datafusion::{datasource::MemTable, error::DataFusionError, prelude::SessionContext};
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Column, Table},
};

use super::{function::FUNCTIONS, views::VIEWS};
use crate::{
    edge::EdgeRow,
    sets::{CommunicationRow, CoverageRow, GapRow, SetRow, WorkloadRow},
};

/// Explains everything that a query can use.
///
/// # Errors
/// A view is no query over the tables: a defect of ours.
pub(crate) async fn explain() -> Result<String, DataFusionError> {
    let mut text = String::new();
    table::<FlowRecord>(&mut text);
    table::<InventoryRecord>(&mut text);
    table::<HealthRecord>(&mut text);
    table::<EdgeRow>(&mut text);
    table::<CommunicationRow>(&mut text);
    table::<SetRow>(&mut text);
    table::<WorkloadRow>(&mut text);
    table::<CoverageRow>(&mut text);
    table::<GapRow>(&mut text);
    let context = SessionContext::new();
    let nothing = MemTable::try_new(CommunicationRow::schema(), vec![vec![]])?;
    context.register_table(CommunicationRow::NAME, Arc::new(nothing))?;
    for (name, meaning, query) in VIEWS {
        let view = context.sql(query).await?;
        let known = |name: &String| {
            CommunicationRow::columns().iter().chain(SetRow::columns()).find(|column| column.name == *name)
        };
        let columns = view.schema().fields().iter().filter_map(|field| known(field.name()));
        section(&mut text, name, meaning, columns);
    }
    text += "Functions, beside those of DataFusion\n";
    for (call, meaning) in FUNCTIONS {
        let _ = writeln!(text, "  {call}\n      {meaning}");
    }
    Ok(text)
}

fn table<T: Table>(text: &mut String) {
    section(text, T::NAME, T::MEANING, T::columns());
}

fn section<'a>(text: &mut String, name: &str, meaning: &str, columns: impl IntoIterator<Item = &'a Column>) {
    let _ = writeln!(text, "{name}\n  {}\n", sentence(meaning));
    for Column { name, data_type, nullable, unit, meaning, .. } in columns {
        let null = if *nullable { ", may be null" } else { "" };
        let unit = if unit.is_empty() { String::new() } else { format!(", in {unit}") };
        let _ = writeln!(text, "  {name} ({}{unit}{null})\n      {}", type_name(&data_type()), sentence(meaning));
    }
    text.push('\n');
}

fn sentence(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What SQL calls a type.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Dictionary(..) | DataType::Utf8 => "text".into(),
        DataType::Int64 | DataType::Int32 => "integer".into(),
        DataType::Float64 => "number".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::List(item) | DataType::FixedSizeList(item, _) => format!("list of {}", type_name(item.data_type())),
        DataType::Struct(fields) => fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
