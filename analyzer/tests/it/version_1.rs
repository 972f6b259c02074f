//! What version 1 of the schema called things over OTLP is read for ever.

use serde_json::Value;

use crate::support::flowscribe;

/// A row of each dataset with all of its attributes, as version 1.2 had them, and the same as columns. Beside it is the same
/// with the marks of a collector of today, whose attributes of Kubernetes must not be taken for ours.
const ROWS: &str = include_str!("../captures/version-1.jsonl");

fn columns(otlp: &str) -> Vec<Value> {
    let directory = tempfile::tempdir().expect("a directory");
    let (input, capture) = (directory.path().join("rows.jsonl"), directory.path().join("capture"));
    std::fs::write(&input, otlp).expect("written");
    let (input, capture) = (input.to_string_lossy().into_owned(), capture.to_string_lossy().into_owned());
    let imported = flowscribe(&["import", "--input", &input, "--output", &capture]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let rows = ["flows", "inventory", "health"].map(|dataset| {
        let query = format!("select * from {dataset}");
        let output = flowscribe(&["sql", "--input", &capture, &query, "--format", "json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    });
    rows.into()
}

#[test]
fn every_attribute_of_version_1_is_its_column() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&columns(ROWS)).expect("JSON"));
}

#[test]
fn without_its_version_a_row_of_flows_is_known_by_its_event_name() {
    let attribute = r#"{"key":"flowscribe.schema_version","value":{"stringValue":"1.2"}}"#;
    let flows = ROWS.lines().next().expect("a row").replace(attribute, "");
    assert_ne!(flows, ROWS.lines().next().expect("a row"), "the version is there");
    assert_eq!(columns(&flows)[0], columns(ROWS)[0]);
}

#[test]
fn what_a_collector_adds_to_rows_of_version_2_is_not_ours() {
    let own = |key: &str, value: &str| format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#);
    let attributes = |more: &str| {
        let keys = [
            ("flowscribe.inventory.scope", "cluster"),
            ("flowscribe.inventory.event", "upsert"),
            ("flowscribe.inventory.kind", "Node"),
            ("flowscribe.inventory.name", "node-a"),
        ];
        let keys = keys.map(|(key, value)| own(key, value)).join(",");
        let numbers = r#"{"key":"flowscribe.seq","value":{"intValue":"0"}},{"key":"flowscribe.inventory.observed_at","value":{"intValue":"1772359200000"}}"#;
        format!(
            r#"{{"resourceLogs":[{{"resource":{{"attributes":[{},{},{}]}},"scopeLogs":[{{"scope":{{"name":"flowscribe","attributes":[{}]}},"logRecords":[{{"eventName":"flowscribe.inventory","attributes":[{keys},{numbers}{more}]}}]}}]}}]}}"#,
            own("k8s.cluster.name", "lab"),
            own("k8s.node.name", "node-a"),
            own("service.instance.id", "0123456789abcdef"),
            own("flowscribe.schema_version", "2.0"),
        )
    };
    let added = format!(
        ",{},{},{}",
        own("k8s.namespace.name", "monitoring"),
        own("k8s.node.name", "collectors"),
        own("cloud.availability_zone", "x")
    );
    assert_eq!(columns(&attributes(&added)), columns(&attributes("")));
}
