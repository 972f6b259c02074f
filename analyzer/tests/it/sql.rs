//! `flowscribe sql`: formats, and what is wrong with a query.

use crate::support::{Capture, flowscribe};

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
fn every_table_and_the_view_can_be_asked() {
    for table in ["flows", "inventory", "health", "edges"] {
        let (code, csv, said) = sql(&format!("select count(*) as n, min(cluster) as cluster from {table}"), "csv");
        assert_eq!(code, Some(0), "{said}");
        assert!(csv.ends_with(",test\n") && !csv.contains("\n0,"), "{table}: {csv}");
    }
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
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(said.starts_with("flowscribe: ") && said.contains("nonsense"), "{said}");
    let (code, _, said) = sql("selec 1", "table");
    assert_eq!(code, Some(1));
    assert!(said.contains("selec"), "{said}");
    let (code, _, said) = sql("create table x as select 1", "table");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("DDL not supported"), "a capture can only be read: {said}");
}
