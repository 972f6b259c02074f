//! `flowscribe sql`: formats, and what is wrong with a query.

use std::{fs, path::Path, process::Command};

use crate::support::{Capture, flowscribe, web_and_db};

fn sql(query: &str, format: &str) -> (Option<i32>, String, String) {
    let mut capture = Capture::new();
    capture.pod("demo/web", "10.244.0.11");
    capture.dial("10.244.0.11", "198.51.100.7", 443);
    let directory = capture.write();
    let output = flowscribe(&["sql", "--input", &directory.path().to_string_lossy(), query, "--format", format]);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const QUERY: &str = "select source_workload, destination_port as port, connections, failure, rtt_us_hist from flows";

#[test]
fn results_are_printed_as_table_csv_and_json() {
    let (_, table, _) = sql(QUERY, "table");
    insta::assert_snapshot!(table, @r"
    +-----------------+------+-------------+---------+--------------------------+
    | source_workload | port | connections | failure | rtt_us_hist              |
    +-----------------+------+-------------+---------+--------------------------+
    | web             | 443  | 1           |         | [0, 0, 0, 0, 0, 0, 0, 0] |
    +-----------------+------+-------------+---------+--------------------------+
    ");
    let (_, csv, _) = sql(QUERY, "csv");
    insta::assert_snapshot!(csv, @r#"
    source_workload,port,connections,failure,rtt_us_hist
    web,443,1,,"[0, 0, 0, 0, 0, 0, 0, 0]"
    "#);
    let (_, json, _) = sql(QUERY, "json");
    insta::assert_snapshot!(json, @r#"[{"source_workload":"web","port":443,"connections":1,"rtt_us_hist":[0,0,0,0,0,0,0,0]}]"#);
}

#[test]
fn every_table_has_the_columns_that_the_help_explains() {
    let output = flowscribe(&["sql", "--tables"]);
    let help = String::from_utf8(output.stdout).expect("text");
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("TABLES.md");
    let text =
        format!("# Tables and functions of SQL\n\nWhat `flowscribe sql --tables` prints.\n\n```text\n{help}```\n");
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&reference, &text).expect("written");
    }
    let committed = fs::read_to_string(reference).expect("it is there");
    assert!(committed == text, "UPDATE_README=1 cargo test -p analyzer --test it sql");
    let tables =
        ["flows", "inventory", "health", "edges", "communications", "communication_sets", "workloads", "coverage"];
    let explained = |table: &str| {
        let section = help.split_once(&format!("\n{table}\n")).or(help.split_once(&format!("{table}\n")));
        let lines = section.expect("the table is explained").1.lines();
        let own = lines.take_while(|line| line.is_empty() || line.starts_with(' ')).skip(1);
        let columns =
            own.filter(|line| !line.starts_with("      ")).filter_map(|line| line.trim_start().split_once(" ("));
        columns.map(|(name, _)| name).collect::<Vec<_>>().join(",")
    };
    for table in tables {
        let (code, csv, said) = sql(&format!("select * from {table} limit 1"), "csv");
        assert_eq!(code, Some(0), "{table}: {said}");
        assert_eq!(csv.lines().count(), 2, "{table} has a row: {csv}");
        assert_eq!(csv.lines().next(), Some(&*explained(table)), "{table}");
    }
    for table in ["capture_gaps", "failed_attempts", "external_peers"] {
        let (code, csv, said) = sql(&format!("select * from {table} where false"), "csv");
        assert_eq!(code, Some(0), "{table}: {said}");
        assert_eq!(csv.trim_end(), explained(table), "{table}");
    }
}

#[test]
fn results_are_written_as_lines_of_json_and_as_parquet() {
    let (_, jsonl, _) = sql("select * from (values (1, 'a'), (2, null)) as t (number, text)", "jsonl");
    assert_eq!(jsonl, "{\"number\":1,\"text\":\"a\"}\n{\"number\":2}\n");
    let capture = web_and_db().write();
    let (input, file) = (capture.path().to_string_lossy(), capture.path().join("edges.out"));
    let path = file.to_string_lossy();
    let query = "select destination_workload, port from communications where destination_workload = 'db'";
    let output = flowscribe(&["sql", "--input", &*input, query, "--format", "parquet", "--output", &*path]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"");
    let open = fs::File::open(&file).expect("the file is there");
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(open, 100).expect("it is Parquet");
    let batches: Vec<_> = reader.map(|batch| batch.expect("a batch")).collect();
    let table = arrow::util::pretty::pretty_format_batches(&batches).expect("printable").to_string();
    assert!(table.contains("| db                   | 5432 |"), "{table}");
}

#[test]
fn a_query_takes_parameters_and_comes_from_a_file_with_others() {
    let capture = web_and_db().write();
    let file = capture.path().join("questions.sql");
    let queries =
        "select port from communications where destination_workload = $name and port > $above;\nselect $flag as flag";
    fs::write(&file, queries).expect("written");
    let (input, path) = (capture.path().to_string_lossy(), file.to_string_lossy());
    let params = ["--param", "name=db", "--param", "above=5000", "--param", "flag=true"];
    let arguments = ["sql", "--input", &*input, "--query-file", &*path, "--format", "csv"];
    let output = flowscribe(&[&arguments[..], &params].concat());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "port\n5432\n\nflag\ntrue\n", "{output:?}");
    let output = flowscribe(&[&arguments[..], &params[..4]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("flag"), "the parameter without a value is named: {said}");
    let to_file = ["--output", "somewhere"];
    let output = flowscribe(&[&arguments[..], &params, &to_file].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "flowscribe: a file and Parquet take one result: ask one query, or print to standard output\n");
}

#[test]
fn labels_addresses_and_round_trip_times_have_functions() {
    let ask = |query: &str| sql(query, "csv").1.lines().skip(1).collect::<Vec<_>>().join(" ");
    assert_eq!(ask("select label(labels, 'app'), label(labels, 'none') from inventory where kind = 'Pod'"), "web,");
    let in_cidr = "select in_cidr('10.1.2.3', '10.0.0.0/8'), in_cidr('11.1.2.3', '10.0.0.0/8'), in_cidr('x', '10.0.0.0/8'), in_cidr('10.1.2.3', '10.1.2.3')";
    assert_eq!(ask(in_cidr), "true,false,,true");
    assert_eq!(ask("select network('10.1.2.3', 24), network('2001:db8::1', 24)"), "10.1.2.0/24,2001:db8::/64");
    let histogram = |counts: &str| {
        format!("arrow_cast(make_array({counts}), 'FixedSizeList(8 x non-null Int64, field: ''element'')')")
    };
    let quantile = |counts: &str, share| format!("select rtt_quantile_us({}, {share})", histogram(counts));
    assert_eq!(ask(&quantile("0, 9, 0, 1, 0, 0, 0, 0", 0.9)), "256");
    assert_eq!(ask(&quantile("0, 9, 0, 1, 0, 0, 0, 0", 0.95)), "4096");
    assert_eq!(ask(&quantile("0, 0, 0, 0, 0, 0, 0, 1", 0.5)), "\"\"", "the last bucket has no bound");
    assert_eq!(ask(&quantile("0, 0, 0, 0, 0, 0, 0, 0", 0.5)), "\"\"");
    // What is no range, length, share or map of labels is refused: an answer of nothing would be taken for one.
    let refused = [
        ("in_cidr('10.1.2.3', '10.0.0.0/40')", "in_cidr: `10.0.0.0/40` is not a range"),
        ("in_cidr('10.1.2.3', 'foo')", "in_cidr: `foo` is not a range"),
        ("in_cidr('10.1.2.3', '10.244.0.0/16 ')", "in_cidr: `10.244.0.0/16 ` is not a range"),
        ("network('10.1.2.3', 40)", "network: `40` is not a prefix length"),
        ("network('10.1.2.3', -1)", "network: `-1` is not a prefix length"),
        ("label('1', 'app')", "label: `1` is not a map of labels"),
        ("rtt_quantile_us(rtt_us_hist, 95)", "rtt_quantile_us: `95` is not a share"),
    ];
    for (call, said) in refused {
        let (status, _, stderr) = sql(&format!("select {call} from flows"), "csv");
        assert!(status == Some(2) && stderr.contains(said), "{call}: {stderr}");
    }
}

#[test]
fn what_does_not_fit_into_memory_goes_to_files_that_do_not_stay() {
    let capture = web_and_db().write();
    let (input, scratch) = (capture.path().to_string_lossy(), tempfile::tempdir().expect("a directory"));
    let query = "select count(*) from (select distinct value, value * 7 % 1000003 as other, cast(value as varchar) as text \
        from generate_series(1, 600000) as t (value) order by other desc, text)";
    let run = |memory: &str| {
        Command::new(env!("CARGO_BIN_EXE_flowscribe"))
            .args(["sql", "--input", &*input, query, "--format", "csv", "--memory-mib", memory])
            .env("TMPDIR", scratch.path())
            .output()
            .expect("flowscribe starts")
    };
    let output = run("40");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("\n600000\n"));
    assert_eq!(fs::read_dir(scratch.path()).expect("readable").count(), 0, "nothing stays behind");
    let output = run("1");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--memory-mib"), "{said}");
}

#[test]
fn a_result_without_rows_keeps_its_format() {
    let (_, json, _) = sql("select node from flows where false", "json");
    assert_eq!(json, "[]\n");
    let (_, csv, _) = sql("select node from flows where false", "csv");
    assert_eq!(csv, "node\n");
}

#[test]
fn a_wrong_query_is_an_error_that_names_what_is_wrong() {
    let (code, out, said) = sql("select nonsense from flows", "table");
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(said.starts_with("flowscribe: ") && said.contains("nonsense"), "{said}");
    let (code, _, said) = sql("selec 1", "table");
    assert_eq!(code, Some(2));
    assert!(said.contains("selec"), "{said}");
    let (code, _, said) = sql("create table x as select 1", "table");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("DDL not supported"), "a capture can only be read: {said}");
}
