//! What every table, column and function means, from the tables that define them.

use std::fmt::Write;

use arrow::datatypes::DataType;
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Column, Table},
};

use super::function::FUNCTIONS;
use crate::{
    edge::EdgeRow,
    sets::{CommunicationRow, CoverageRow, GapRow, SetRow, WorkloadRow},
};

/// Views that are a query over the tables: name, meaning and query.
pub(super) const VIEWS: [(&str, &str, &str); 2] = [
    (
        "failed_attempts",
        "Edges on which nothing ever passed: who tried what, how often, and why it failed. The columns of \
         `communications` without what only success has.",
        include_str!("../sql/failed_attempts.sql"),
    ),
    (
        "external_peers",
        "Edges with the outside of the cluster: direction, namespace, workload_kind and workload of the inner end, address \
         of the outer one, and the rest as in `communications`.",
        include_str!("../sql/external_peers.sql"),
    ),
];

/// Explains everything that a query can use.
pub(crate) fn explain() -> String {
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
    for (name, meaning, _) in VIEWS {
        let _ = writeln!(text, "{name}\n  {meaning}\n");
    }
    text += "Functions, beside those of DataFusion\n";
    for (call, meaning) in FUNCTIONS {
        let _ = writeln!(text, "  {call}\n      {meaning}");
    }
    text
}

fn table<T: Table>(text: &mut String) {
    let _ = writeln!(text, "{}\n  {}\n", T::NAME, sentence(T::MEANING));
    for Column { name, data_type, nullable, unit, meaning, .. } in T::COLUMNS {
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
        DataType::Int64 | DataType::UInt16 => "integer".into(),
        DataType::Float64 => "number".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::List(item) | DataType::FixedSizeList(item, _) => format!("list of {}", type_name(item.data_type())),
        DataType::Struct(fields) => fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
