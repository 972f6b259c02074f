//! Others read the capture as it is.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord};

use crate::{
    harness::{Ran, require},
    readers::{assert_all_rows_are_counted, committed},
    support::rows,
};

tests![duckdb_reads_the_capture_as_it_is, other_tools_count_all_rows_of_a_capture_that_is_being_written];

const SCRIPT: &str = "
import duckdb, sys
root, database = sys.argv[1], duckdb.connect()
for dataset in ('flows', 'inventory', 'health'):
    files = f\"read_parquet('{root}/{dataset}/**/*.parquet', hive_partitioning = true)\"
    query = f'select count(*), count(distinct seq), min(date) is not null from {files}'
    print(dataset, *database.execute(query).fetchall()[0])
print(*database.execute(f\"\"\"
    select sum(connections), sum(bytes_sent), count(distinct source_workload), min(typeof(window_start)),
        min(typeof(source_address)), min(typeof(seq)), min(list_sum(rtt_us_hist) = closed)
    from '{root}/flows/**/*.parquet'
\"\"\").fetchall()[0])
";

fn duckdb_reads_the_capture_as_it_is() -> Ran {
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let has_duckdb = quiet(Command::new("python3").args(["-c", "import duckdb"])).is_ok_and(|status| status.success());
    require(has_duckdb, "it needs python3 with the package duckdb")?;
    let capture = committed();
    let output = Command::new("python3").args(["-c", SCRIPT]).arg(&capture).output().expect("python3 starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let flows = rows::<FlowRecord>(&capture);
    let connections: i64 = flows.iter().map(|row| row.connections).sum();
    let bytes: i64 = flows.iter().filter_map(|row| row.bytes_sent).sum();
    let callers = flows.iter().filter_map(|row| row.source_workload.as_ref()).collect::<BTreeSet<_>>().len();
    let (flows, inventory) = (flows.len(), rows::<InventoryRecord>(&capture).len());
    let health = rows::<HealthRecord>(&capture).len();
    let expected = format!(
        "flows {flows} {flows} True\ninventory {inventory} {inventory} True\nhealth {health} {health} True\n\
         {connections} {bytes} {callers} TIMESTAMP WITH TIME ZONE VARCHAR BIGINT True\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    Ok(())
}

fn other_tools_count_all_rows_of_a_capture_that_is_being_written() -> Ran {
    assert_all_rows_are_counted(&[
        ("duckdb", "duckdb"),
        ("pandas", "pandas"),
        ("pyarrow", "pyarrow"),
        ("polars", "polars"),
    ])
}
