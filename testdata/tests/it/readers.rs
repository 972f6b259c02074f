//! Other tools count the rows of a capture that is being written.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use schemas::{
    capture::{DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::{InventoryRecord, WRITER},
    table::{Record, TimestampMs},
};
use tempfile::TempDir;

use crate::{
    harness::{Ran, require},
    support::rows,
};

/// The capture that is committed, of version 1 of the schema.
pub(crate) fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/demo")
}

/// The committed capture's rows as a node's agent writes them, and the cluster's inventory as what watches the API does, while
/// both have another file under way.
fn being_written() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    write::<FlowRecord>(directory.path(), "node-a");
    write::<HealthRecord>(directory.path(), "node-a");
    for writer in ["node-a", WRITER, ".hidden"] {
        write::<InventoryRecord>(directory.path(), writer);
    }
    directory
}

fn write<R: Record>(root: &Path, node: &str) {
    let roll = Roll { size_bytes: u64::MAX, age: Duration::MAX };
    let origin = Origin::new("lab", node).expect("randomness");
    let mut writer = DatasetWriter::<R>::new(root, &origin, "test", roll);
    let rows = rows::<R>(&committed());
    for row in &rows {
        writer.push(row.clone(), TimestampMs(0)).expect("the row is taken");
    }
    writer.finish().expect("the file is finished");
    // It is dropped unfinished, as one that is killed.
    writer.push(rows[0].clone(), TimestampMs(0)).expect("the row is taken");
}

/// Whether all of these count the rows that there are.
///
/// # Errors
/// One of them is not installed.
pub(crate) fn assert_all_rows_are_counted(readers: &[(&str, &str)]) -> Ran {
    for (_, package) in readers {
        let mut imported = Command::new("python3");
        imported.args(["-c", &format!("import {package}")]).stdout(Stdio::null()).stderr(Stdio::null());
        let is_there = imported.status().is_ok_and(|status| status.success());
        require(is_there, &format!("it needs python3 with the package {package}"))?;
    }
    let capture = being_written();
    let expected = [
        (FlowRecord::DATASET, rows::<FlowRecord>(capture.path()).len()),
        (InventoryRecord::DATASET, rows::<InventoryRecord>(capture.path()).len()),
        (HealthRecord::DATASET, rows::<HealthRecord>(capture.path()).len()),
    ];
    assert_eq!(expected[1].1, 3 * rows::<InventoryRecord>(&committed()).len(), "all three writers'");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/count.py");
    let mut count = Command::new("python3");
    count.arg(script).arg(capture.path()).args(readers.iter().map(|(reader, _)| reader));
    let output = count.output().expect("python3 starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = readers.iter().flat_map(|(reader, _)| expected.map(|(of, rows)| format!("{reader} {of} {rows}\n")));
    assert_eq!(String::from_utf8_lossy(&output.stdout), lines.collect::<String>(), "{said}");
    Ok(())
}
