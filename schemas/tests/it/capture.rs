//! Files: whole when they have their name, sorted, complete, and judged rightly when they are broken.

use std::{
    fs::{self, File, OpenOptions},
    path::Path,
    time::Duration,
};

use parquet::{arrow::ArrowWriter, file::metadata::KeyValue, file::properties::WriterProperties};
use schemas::{
    capture::{self, DatasetWriter, Origin, ProblemKind, Roll, Runs, Seqs},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Table, TimestampMs},
};

const HOUR_MS: i64 = 3_600_000;
const ROLL: Roll = Roll { size_bytes: u64::MAX, age: Duration::from_secs(60) };

fn row(seq: i64, window_end: i64) -> FlowRecord {
    FlowRecord {
        run_id: "0123456789abcdef".into(),
        seq,
        window_start: TimestampMs(window_end - 60_000),
        window_end: TimestampMs(window_end),
        ..FlowRecord::default()
    }
}

fn writer(root: &Path) -> DatasetWriter<FlowRecord> {
    let origin = Origin { cluster: "c".into(), node: "node/a".into(), run_id: "0123456789abcdef".into() };
    DatasetWriter::new(root, &origin, "0.1.0", ROLL)
}

#[test]
fn what_a_killed_writer_left_in_the_same_second_is_in_nobodys_way() {
    let root = tempfile::tempdir().expect("a directory");
    let mut killed = writer(root.path());
    killed.push(row(0, 120_000), TimestampMs(0)).expect("the row is taken");
    std::mem::forget(killed);
    let mut next = writer(root.path());
    next.push(row(0, 120_000), TimestampMs(0)).expect("the row is taken");
    let file = next.finish().expect("the file is finished").expect("there is a file");
    assert!(file.ends_with("node_a-19700101T000000Z-01234567-1.parquet"), "{file:?}");
}

#[test]
fn rows_come_back_from_the_partition_of_their_hour() {
    let root = tempfile::tempdir().expect("a directory");
    let mut writer = writer(root.path());
    assert_eq!(writer.finish().expect("nothing fails"), None, "nothing was written");
    // Out of order within the hour; the window that ends at the full hour belongs to the hour before.
    for (seq, end) in [(1, 180_000), (0, 120_000), (2, HOUR_MS), (3, HOUR_MS + 60_000)] {
        writer.push(row(seq, end), TimestampMs(0)).expect("the row is taken");
    }
    let last = writer.finish().expect("the file is finished").expect("there is a file");
    assert!(last.ends_with("flows/date=1970-01-01/hour=01/node_a-19700101T000000Z-01234567-1.parquet"), "{last:?}");

    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    assert_eq!(listing.problems, []);
    assert!(listing.files.iter().all(|file| file.cluster == "c"));
    let runs: Vec<_> = listing.files.iter().map(|file| (file.rows, file.runs.clone())).collect();
    let run = |first, last| Runs::of("0123456789abcdef".into(), "node/a".into(), Seqs::from_iter([first..=last]));
    assert_eq!(runs, [(3, run(0, 2)), (1, run(3, 3))]);
    let seqs: Vec<i64> =
        capture::read::<FlowRecord>(&listing.files[0]).expect("readable").iter().map(|r| r.seq).collect();
    assert_eq!(seqs, [0, 1, 2], "rows are sorted by time");
}

#[test]
fn a_file_says_whether_a_destination_has_a_name() {
    for name in [None, Some("api.example.com".into())] {
        let root = tempfile::tempdir().expect("a directory");
        let mut writer = writer(root.path());
        writer.push(FlowRecord { destination_name: name.clone(), ..row(0, 60_000) }, TimestampMs(0)).expect("taken");
        writer.push(row(1, 60_000), TimestampMs(0)).expect("taken");
        writer.finish().expect("the file is finished");
        let listing = capture::list(&[root.path().into()]).expect("the directory is there");
        assert_eq!(listing.files[0].has_names, name.is_some());
    }
}

#[test]
fn a_file_is_due_by_age_and_has_no_name_before_it_is_whole() {
    let root = tempfile::tempdir().expect("a directory");
    let mut writer = writer(root.path());
    writer.push(row(0, 1), TimestampMs(1_000)).expect("the row is taken");
    assert!(!writer.is_due(TimestampMs(60_999)));
    assert!(writer.is_due(TimestampMs(61_000)));
    assert!(writer.is_due(TimestampMs(999)), "a clock that was set back must not keep it open for long");
    drop(writer);
    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    assert_eq!(listing.files, [], "what was not finished has no final name");
    assert_eq!(listing.problems.len(), 1);
    assert_eq!(listing.problems[0].kind, ProblemKind::Unfinished);
}

#[test]
fn what_is_given_up_frees_its_room_and_the_next_row_begins_anew() {
    let root = tempfile::tempdir().expect("a directory");
    let mut writer = writer(root.path());
    writer.push(row(0, 1), TimestampMs(0)).expect("the row is taken");
    writer.abandon();
    writer.push(row(1, 1), TimestampMs(0)).expect("the row is taken");
    writer.finish().expect("finished").expect("a file");
    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    assert_eq!((listing.files.len(), listing.problems.len()), (1, 0), "{:?}", listing.problems);
    assert_eq!(capture::read::<FlowRecord>(&listing.files[0]).expect("readable")[0].seq, 1);
}

#[test]
fn a_directory_that_can_not_be_written_is_named() {
    let root = tempfile::tempdir().expect("a directory");
    fs::write(root.path().join("flows"), "in the way").expect("a file");
    let error = writer(root.path()).push(row(0, 1), TimestampMs(0)).expect_err("a file is in the way");
    assert!(error.to_string().contains("flows"), "{error}");
}

#[test]
fn what_can_not_be_read_is_named_and_the_rest_is_listed() {
    let root = tempfile::tempdir().expect("a directory");
    let mut writer = writer(root.path());
    writer.push(row(0, 1), TimestampMs(0)).expect("the row is taken");
    let good = writer.finish().expect("finished").expect("a file");
    let whole = fs::read(&good).expect("readable");
    let folder = good.parent().expect("it lies in a folder");
    fs::write(folder.join("short.parquet"), &whole[..whole.len() / 2]).expect("written");
    fs::write(folder.join("empty.parquet"), "").expect("written");
    fs::write(folder.join("notes.txt"), "hello").expect("written");
    fs::create_dir(root.path().join("nothing")).expect("made");
    fs::create_dir(root.path().join("flows/_delta_log")).expect("made");
    fs::write(root.path().join("flows/_delta_log/0.json"), "{}").expect("written");
    foreign(&folder.join("newer.parquet"), &[("flowscribe.schema_version", "3.0"), ("flowscribe.dataset", "flows")]);
    foreign(&folder.join("foreign.parquet"), &[]);
    foreign(&folder.join("other.parquet"), &[("flowscribe.schema_version", "1.7"), ("flowscribe.dataset", "health")]);

    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    let files: Vec<_> = listing.files.iter().map(|file| &file.path).collect();
    assert_eq!(files, [&good]);
    let mut problems: Vec<String> = listing.problems.iter().map(ToString::to_string).collect();
    problems.iter_mut().for_each(|text| *text = text.replace(&format!("{}/", folder.display()), ""));
    assert!(problems[0].starts_with("empty.parquet: truncated or damaged ("), "{problems:?}");
    assert_eq!(problems[1], "foreign.parquet: not written by Flowscribe (no flowscribe.schema_version in it)");
    assert_eq!(
        problems[2],
        "newer.parquet: has schema version 3.0, this build reads up to 2.x: use a newer flowscribe"
    );
    assert_eq!(problems[3], "notes.txt: not a Parquet file");
    assert_eq!(problems[4], "other.parquet: column `window_start` of dataset `health` is missing");
    assert!(problems[5].starts_with("short.parquet: truncated or damaged ("), "{problems:?}");
    assert!(problems[6].ends_with("nothing: empty directory"), "{problems:?}");
    assert_eq!(problems.len(), 7);
    capture::list(&[root.path().join("missing")]).expect_err("an input that is not there is the user's mistake");
}

#[test]
fn damage_within_a_file_is_found_by_reading_it() {
    let root = tempfile::tempdir().expect("a directory");
    let mut writer = writer(root.path());
    for seq in 0..1000 {
        writer.push(row(seq, 60_000), TimestampMs(0)).expect("the row is taken");
    }
    let path = writer.finish().expect("finished").expect("a file");
    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    capture::verify(&listing.files[0]).expect("it is whole");
    let mut bytes = fs::read(&path).expect("readable");
    bytes[4..200].fill(0xff);
    fs::write(&path, bytes).expect("writable");
    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    let problem = capture::verify(&listing.files[0]).expect_err("its first pages are damaged");
    assert!(matches!(problem.kind, ProblemKind::Damaged { .. }), "{problem}");
}

/// A Parquet file of one column with the given metadata.
fn foreign(path: &Path, metadata: &[(&str, &str)]) {
    let batch = FlowRecord::encode(&[row(0, 1)]).project(&[0, 1, 2, 3]).expect("four columns");
    let metadata = metadata.iter().map(|(key, value)| KeyValue::new((*key).into(), (*value).to_owned())).collect();
    let properties = WriterProperties::builder().set_key_value_metadata(Some(metadata)).build();
    let file: File = OpenOptions::new().create_new(true).write(true).open(path).expect("made");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("closed");
}

/// Rows of a run, from a number to another, in files of so many rows.
fn write_run(root: &Path, run: &str, seqs: std::ops::Range<i64>, per_file: usize) {
    let origin = Origin { cluster: "c".into(), node: "node/a".into(), run_id: run.into() };
    let mut writer: DatasetWriter<FlowRecord> = DatasetWriter::new(root, &origin, "0.1.0", ROLL);
    for (number, seq) in seqs.enumerate() {
        let run_id = run.into();
        writer.push(FlowRecord { run_id, ..row(seq, 60_000 + seq) }, TimestampMs(0)).expect("taken");
        if (number + 1) % per_file == 0 {
            writer.finish().expect("finished");
        }
    }
    writer.finish().expect("finished");
}

/// All rows below a directory, by run and number, and how often each is there.
fn rows_below(root: &Path) -> std::collections::BTreeMap<(String, i64), usize> {
    let listing = capture::list(&[root.into()]).expect("the directory is there");
    assert_eq!(listing.problems, []);
    let mut rows = std::collections::BTreeMap::new();
    for file in &listing.files {
        for row in capture::read::<FlowRecord>(file).expect("readable") {
            *rows.entry((row.run_id.to_string(), row.seq)).or_default() += 1;
        }
    }
    rows
}

#[test]
fn merged_files_have_the_same_rows_and_those_they_were_made_of_are_passed_over() {
    let root = tempfile::tempdir().expect("a directory");
    // Small row groups are written anew, large ones are copied.
    for (per_file, rows) in [(10, 35), (9_000, 20_000)] {
        let root = root.path().join(per_file.to_string());
        write_run(&root, "run-a", 0..rows, per_file);
        write_run(&root, "run-b", 7..rows, per_file);
        let before = rows_below(&root);
        let listing = capture::list(std::slice::from_ref(&root)).expect("listed");
        let files: Vec<_> = listing.files.iter().collect();
        assert!(files.len() > 4, "{}", files.len());
        let folder = files[0].path.parent().expect("a folder").to_path_buf();
        let merged = capture::merge(&files, &folder, "0.1.0").expect("merged");
        assert_eq!(capture::merge(&files, &folder, "0.1.0").expect("merged again"), merged, "it is the same file");
        let after = capture::list(std::slice::from_ref(&root)).expect("listed");
        assert_eq!(after.files.iter().map(|file| &file.path).collect::<Vec<_>>(), [&merged]);
        assert_eq!(after.superseded.len(), files.len());
        assert_eq!(rows_below(&root), before);
        assert_eq!(after.files[0].first_time(), TimestampMs(60_000), "page statistics are kept");
        for file in &after.superseded {
            fs::remove_file(&file.path).expect("removed");
        }
        assert_eq!(rows_below(&root), before);
        // A late file, some rows of which are there.
        write_run(&root, "run-b", 0..10, 100);
        let listing = capture::list(std::slice::from_ref(&root)).expect("listed");
        let files: Vec<_> = listing.files.iter().collect();
        assert_eq!(files.len(), 2, "it has rows that nobody else has");
        capture::merge(&files, &folder, "0.1.0").expect("merged");
        let all = rows_below(&root);
        assert_eq!(all.len() as i64, 2 * rows);
        assert!(all.values().all(|times| *times == 1), "each is there once");
    }
}

#[test]
fn files_of_a_newer_version_are_not_merged_as_their_columns_would_be_lost() {
    let root = tempfile::tempdir().expect("a directory");
    write_run(root.path(), "run-a", 0..10, 5);
    let listing = capture::list(&[root.path().into()]).expect("listed");
    // The same file with a column more.
    let file = &listing.files[0];
    let rows = capture::read::<FlowRecord>(file).expect("readable");
    let batch = FlowRecord::encode(&rows);
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(std::sync::Arc::new(arrow::datatypes::Field::new("news", arrow::datatypes::DataType::Int64, true)));
    let mut columns = batch.columns().to_vec();
    columns.push(std::sync::Arc::new(arrow::array::Int64Array::from(vec![1; rows.len()])));
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(fields));
    let batch = arrow::array::RecordBatch::try_new(schema, columns).expect("a batch");
    replace(&file.path, "1.9", &batch);

    let listing = capture::list(&[root.path().into()]).expect("listed");
    let files: Vec<_> = listing.files.iter().collect();
    assert_eq!(files.len(), 2, "{:?}", listing.problems);
    let folder = files[0].path.parent().expect("a folder");
    let error = capture::merge(&files, folder, "0.1.0").expect_err("not merged").to_string();
    assert!(error.contains("has other columns than this version writes"), "{error}");
    assert_eq!(rows_below(root.path()).len(), 10);
}

#[test]
fn a_column_that_an_older_version_did_not_have_is_null_and_its_files_are_merged_with_new_ones() {
    let root = tempfile::tempdir().expect("a directory");
    write_run(root.path(), "run-a", 0..10, 5);
    let listing = capture::list(&[root.path().into()]).expect("listed");
    let file = &listing.files[0];
    let rows = capture::read::<FlowRecord>(file).expect("readable");
    let mut named = rows.clone();
    named.iter_mut().for_each(|row| row.destination_name = Some("db.example".into()));
    let mut batch = FlowRecord::encode(&named);
    let at = batch.schema().index_of("destination_name").expect("a column that may be null");
    batch.remove_column(at);
    replace(&file.path, "1.0", &batch);

    let listing = capture::list(&[root.path().into()]).expect("listed");
    assert_eq!(listing.problems, []);
    assert_eq!(capture::read::<FlowRecord>(&listing.files[0]).expect("readable"), rows, "without the column");
    let files: Vec<_> = listing.files.iter().collect();
    let folder = files[0].path.parent().expect("a folder");
    let merged = capture::merge(&files, folder, "0.1.0").expect("merged");
    let listing = capture::list(&[merged]).expect("listed");
    assert_eq!(capture::read::<FlowRecord>(&listing.files[0]).expect("readable").len(), 10);
    // Without one that is never null nothing can be understood.
    let at = batch.schema().index_of("observer").expect("a column");
    batch.remove_column(at);
    replace(&files[0].path, "1.0", &batch);
    let problems = capture::list(&[files[0].path.clone()]).expect("listed").problems;
    assert!(problems[0].to_string().contains("column `observer` of dataset `flows` is missing"), "{problems:?}");
}

/// Replaces the file of the first rows of a run by one of another version.
fn replace(path: &Path, version: &str, batch: &arrow::array::RecordBatch) {
    let pair = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
    let metadata = vec![
        pair("flowscribe.schema_version", version),
        pair("flowscribe.dataset", "flows"),
        pair("flowscribe.cluster", "c"),
        pair("flowscribe.run_id", "run-a"),
        pair("flowscribe.first_seq", "0"),
        pair("flowscribe.last_seq", "4"),
    ];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(metadata)).build();
    let written = File::create(path).expect("made");
    let mut writer = ArrowWriter::try_new(written, batch.schema(), Some(properties)).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("closed");
}

#[test]
fn files_of_two_datasets_in_one_folder_are_merged_apart() {
    let root = tempfile::tempdir().expect("a directory");
    let scratch = tempfile::tempdir().expect("a directory");
    write_run(scratch.path(), "run-a", 0..4, 2);
    let origin = Origin { cluster: "c".into(), node: "node/a".into(), run_id: "run-a".into() };
    let mut writer: DatasetWriter<HealthRecord> = DatasetWriter::new(scratch.path(), &origin, "0.1.0", ROLL);
    for seq in 0..4 {
        let health =
            HealthRecord { run_id: "run-a".into(), seq, window_end: TimestampMs(60_000), ..HealthRecord::default() };
        writer.push(health, TimestampMs(0)).expect("taken");
        if seq == 1 {
            writer.finish().expect("finished");
        }
    }
    writer.finish().expect("finished");
    // Somebody put all of them into one folder.
    let listing = capture::list(&[scratch.path().into()]).expect("listed");
    for (number, file) in listing.files.iter().enumerate() {
        fs::copy(&file.path, root.path().join(format!("{number}.parquet"))).expect("copied");
    }
    let listing = capture::list(&[root.path().into()]).expect("listed");
    assert_eq!(listing.files.len(), 4);
    for dataset in ["flows", "health"] {
        let of_dataset: Vec<_> = listing.files.iter().filter(|file| file.dataset == dataset).collect();
        capture::merge(&of_dataset, root.path(), "0.1.0").expect("merged");
    }
    let after = capture::list(&[root.path().into()]).expect("listed");
    let rows: Vec<_> = after.files.iter().map(|file| file.rows).collect();
    assert_eq!((rows, after.superseded.len()), (vec![4, 4], 4), "neither took the other's place");
}

/// The committed capture's files, in memory.
fn committed() -> Vec<(String, Vec<u8>)> {
    fn read(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(folder).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                read(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                let mut dataset = ["flows", "inventory", "health"].into_iter();
                let is_in = |dataset: &&str| path.components().any(|part| part.as_os_str() == *dataset);
                let dataset = dataset.rfind(is_in).expect("it is of a dataset");
                found.push((dataset.into(), fs::read(&path).expect("readable")));
            }
        }
    }
    let mut found = Vec::new();
    read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/captures/demo")), &mut found);
    assert!(found.len() >= 3, "flows, inventory and health");
    found
}

proptest::proptest! {
    #[test]
    fn whatever_happened_to_a_file_it_is_read_or_named(
        file in proptest::arbitrary::any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((proptest::arbitrary::any::<proptest::sample::Index>(), proptest::arbitrary::any::<u8>(), proptest::bool::ANY), 1..6),
    ) {
        let files = committed();
        let (dataset, bytes) = file.get(&files);
        let mut bytes = bytes.clone();
        for (at, value, in_footer) in changes {
            // Footers are small, and say where everything is.
            let from = if in_footer { bytes.len().saturating_sub(3000) } else { 0 };
            let length = bytes.len() - from;
            bytes[from + at.index(length)] = value;
        }
        let root = tempfile::tempdir().expect("a directory");
        let folder = root.path().join(dataset);
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("x.parquet"), &bytes).expect("written");
        let listing = capture::list(&[root.path().into()]).expect("the directory is there");
        proptest::prop_assert_eq!(listing.files.len() + listing.problems.len(), 1);
        for file in &listing.files {
            let read = match file.dataset {
                "flows" => capture::read::<FlowRecord>(file).map(|rows| rows.len()),
                "inventory" => capture::read::<InventoryRecord>(file).map(|rows| rows.len()),
                _ => capture::read::<HealthRecord>(file).map(|rows| rows.len()),
            };
            if let Err(problem) = read {
                proptest::prop_assert!(problem.path.ends_with("x.parquet"));
            }
            let _ = capture::verify(file);
        }
    }
}

#[test]
fn links_to_a_folder_above_end() {
    let root = tempfile::tempdir().expect("a directory");
    let mut writer = writer(root.path());
    writer.push(row(0, 120_000), TimestampMs(0)).expect("the row is taken");
    writer.finish().expect("the file is finished");
    for name in ["a", "b"] {
        std::os::unix::fs::symlink(".", root.path().join(name)).expect("linked");
        std::os::unix::fs::symlink(root.path(), root.path().join("flows").join(name)).expect("linked");
    }
    let listing = capture::list(&[root.path().into()]).expect("the directory is there");
    assert_eq!((listing.files.len(), listing.problems), (1, vec![]));
}

#[test]
fn a_file_that_claims_rows_it_does_not_have_hides_no_others() {
    let root = tempfile::tempdir().expect("a directory");
    write_run(root.path(), "0123456789abcdef", 0..4, 2);
    let own = capture::list(&[root.path().into()]).expect("the directory is there").files;
    assert_eq!(own.len(), 2);
    let file = File::open(&own[0].path).expect("it is there");
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
    let batches: Vec<_> = reader.build().expect("Parquet").map(|batch| batch.expect("rows")).collect();
    for (name, claims) in [("all", "0-1000000"), ("negative", "-5-9"), ("huge", "0-9223372036854775807"), ("odd", "x")]
    {
        let keys = [
            ("flowscribe.dataset", "flows"),
            ("flowscribe.schema_version", "2.0"),
            ("flowscribe.cluster", "c"),
            ("flowscribe.run_id", "0123456789abcdef"),
            ("flowscribe.first_seq", "0"),
            ("flowscribe.last_seq", "1000000"),
            ("flowscribe.seqs", claims),
        ];
        let keys = keys.map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned())).to_vec();
        let properties = WriterProperties::builder().set_key_value_metadata(Some(keys)).build();
        let path = root.path().join(format!("flows/{name}.parquet"));
        let mut writer =
            ArrowWriter::try_new(File::create(&path).expect("made"), batches[0].schema(), Some(properties))
                .expect("a writer");
        batches.iter().for_each(|batch| writer.write(batch).expect("written"));
        writer.close().expect("closed");
        let listing = capture::list(&[root.path().into()]).expect("the directory is there");
        assert!(listing.superseded.iter().all(|file| file.path == path), "{name}: {:?}", listing.superseded);
        assert!(own.iter().all(|file| listing.files.iter().any(|of| of.path == file.path)), "{name}");
        fs::remove_file(path).expect("it is there");
    }
}
