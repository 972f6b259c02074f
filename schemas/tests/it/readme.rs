//! `schemas/README.md` is made from the tables: `UPDATE_README=1 cargo test --workspace readme` writes it.

use std::{env, fmt::Write, fs, path::Path};

use schemas::{
    SCHEMA_VERSION,
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    programs::{OBSERVE_TCP, PROGRAMS, Pods, Program},
    rollup::RollupRow,
    table::{Column, Record, Table},
};

#[test]
fn readme_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let expected = readme();
    if env::var_os("UPDATE_README").is_some() {
        fs::write(&path, &expected).expect("the README can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == expected, "schemas/README.md is stale: run UPDATE_README=1 cargo test --workspace readme");
}

fn readme() -> String {
    let (major, minor) = SCHEMA_VERSION;
    let mut text = format!(
        "# The capture's schema, version {major}.{minor}\n\n\
         A capture is a directory of three datasets, each a tree of Parquet files partitioned by UTC date and hour:\n\n\
         \x20   DIR/flows/date=YYYY-MM-DD/hour=HH/<node>-<start>-<run>-<number>.parquet\n\
         \x20   DIR/inventory/…\n\
         \x20   DIR/health/…\n\n\
         and, once it was compacted, of `merged-….parquet` in the place of many files, and `DIR/rollups/…` beside them.\n\n\
         The files are ordinary Parquet (zstd, dictionaries, page statistics): DuckDB, Spark, pandas and polars read\n\
         them as they are. Each file names its schema version, dataset, run and range of `seq` in its key-value\n\
         metadata (`flowscribe.*`). Readers take every minor version of the majors they know and refuse a newer major.\n\
         Rows are delivered at least once: (cluster, node, run_id, seq) of a dataset tells repetitions, and a gap in\n\
         `seq` is a loss. Timestamps are in milliseconds, UTC. Counters are signed 64-bit integers, ports 32-bit ones, and\n\
         elements of lists are called `element`. Names that begin with a dot are not of the capture: a file is below\n\
         `DIR/.unfinished` until it is whole.\n\n\
         A file says which rows it has: `flowscribe.run_id` and `flowscribe.seqs` (ranges of `seq`), or of a merged file\n\
         and a rollup `flowscribe.runs`, the same by run. One whose rows are all in another one is passed over. Who reads\n\
         `flows` without Flowscribe, beside a compaction, should tell rows by (run_id, seq); `flowscribe.inputs` names the\n\
         files that one was made of. `forgotten-….parquet` has no rows: it says which ones were given up.\n\n\
         Over OTLP a row is a log record, its dataset the EventName, its time `flowscribe.window.end` or\n\
         `flowscribe.inventory.observed_at`, its columns the attributes below. Those that say `resource` are of the resource;\n\
         the scope is `flowscribe` with the attribute `flowscribe.schema_version`. The body is a line for people, and is not\n\
         read. Null and empty lists have no attribute, nor has a histogram of zeros; times are integers of milliseconds since\n\
         the Unix epoch; `<key>` is a label's key, one attribute each.\n\n\
         Version 1, of which every minor is read, had ports as UInt16, elements of lists called `item`, the EventName\n\
         `network.flow`, attributes without the prefix `flowscribe.`, and the name of a workload in an attribute of its kind,\n\
         such as `source.k8s.deployment.name`. Its files of the inventory began with `_`, which many readers pass over, and\n\
         those that were being written lay beside the others: `flowscribe compact` makes files of version 2 of them.\n\n\
         This page is made from the tables in `src/flow.rs`, `src/inventory.rs`, `src/health.rs`, `src/programs.rs` and\n\
         `src/rollup.rs`; the Arrow schema and the OpenTelemetry mapping come from the same tables.\n"
    );
    dataset::<FlowRecord>(&mut text);
    dataset::<InventoryRecord>(&mut text);
    dataset::<HealthRecord>(&mut text);
    programs(&mut text);
    let (name, meaning) = (RollupRow::NAME, RollupRow::MEANING.trim());
    let _ = write!(
        text,
        "\n## `{name}`\n\n{meaning} It is made by `flowscribe compact`, and never sent. Its metadata has\n\
         `flowscribe.runs`, the rows of flows that it sums up, and `flowscribe.summary`: hours, rows, rows without a\n\
         direction by run, and a fingerprint of what the inventory said of that time.\n\n\
         | column | type | unit | meaning |\n|---|---|---|---|\n"
    );
    for column in RollupRow::columns() {
        let (name, data_type, meaning) = told(column);
        let _ = writeln!(text, "| `{name}` | {data_type} | {} | {meaning} |", column.unit);
    }
    text
}

/// Name, type and meaning of a column.
fn told(column: &Column) -> (&str, String, String) {
    let nullable = if column.nullable { ", nullable" } else { "" };
    let data_type = short_type(&(column.data_type)().to_string());
    (&column.name, format!("{data_type}{nullable}"), column.meaning.trim().replace('|', "\\|"))
}

fn dataset<R: Record>(text: &mut String) {
    let _ = write!(
        text,
        "\n## `{}` (EventName `{}`)\n\n{}\n\n| column | type | attribute | unit | meaning |\n|---|---|---|---|---|\n",
        R::DATASET,
        R::EVENT_NAME,
        R::MEANING.trim(),
    );
    for column in R::columns() {
        let (name, data_type, meaning) = told(column);
        let _ = writeln!(text, "| `{name}` | {data_type} | `{}` | {} | {meaning} |", column.attribute, column.unit);
    }
}

/// What is not recorded where a program is missing.
fn programs(text: &mut String) {
    *text += "\n### Programs\n\n\
        What is not recorded where `programs` lacks one: it counts as not observed for the pods of the node that have an\n\
        address of that kind. A list without `observe_tcp`, without which no agent starts, says nothing; `list_open` and\n\
        `adopt_sockets` are judged where one of them is listed, as older agents listed neither. A socket is *unconnected*\n\
        where every datagram names its address, and its receiver asks for the sender.\n\n\
        | program | not recorded without it | of | pods | instead of it |\n|---|---|---|---|---|\n";
    for Program { name, traffic, ingress, egress, pods, substitutes } in &PROGRAMS {
        let traffic = match (*name, *traffic) {
            (OBSERVE_TCP, _) => "TCP; no agent starts without it",
            (_, "") => "nothing that would be a gap",
            (_, traffic) => traffic,
        };
        let directions = match (ingress, egress) {
            (true, true) => "ingress, egress",
            (true, false) => "ingress",
            (false, true) => "egress",
            (false, false) => "",
        };
        let pods = match pods {
            Pods::All => "all",
            Pods::Ipv4 => "with IPv4",
            Pods::Ipv6 => "with IPv6",
        };
        let substitutes = substitutes.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
        let _ = writeln!(text, "| `{name}` | {traffic} | {directions} | {pods} | {substitutes} |");
    }
}

/// Arrow's own names of types, shortened where they are long.
fn short_type(data_type: &str) -> String {
    match data_type {
        "Dictionary(Int32, Utf8)" => "text (dictionary)".into(),
        "Timestamp(ms, \"UTC\")" => "timestamp (ms, UTC)".into(),
        other if other.contains("node_port") => "list of (name, protocol, port, target, node_port)".into(),
        other if other.starts_with("FixedSizeList") => "list of 8 Int64".into(),
        other if other.contains("Int32") && other.starts_with("List") => "list of Int32".into(),
        other if other.starts_with("List") => "list of text".into(),
        other => other.into(),
    }
}
