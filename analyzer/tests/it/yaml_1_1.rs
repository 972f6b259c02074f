//! What is written as YAML is read the same by a reader of YAML 1.1, which kubectl and kustomize are.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Capture, flowscribe};

/// Values of labels that YAML 1.1 takes for something else where they are not quoted: truths, numbers in five bases, dates, times
/// of day, nothing.
const ODD: [&str; 24] = [
    "yes",
    "No",
    "on",
    "OFF",
    "y",
    "N",
    "true",
    "null",
    "Null",
    "1_000",
    "0777",
    "0o17",
    "0x1f",
    "0b101",
    "1e3",
    "1.5",
    "2026-11-27",
    "12",
    "007",
    "1_0.5",
    "0.",
    "6e0",
    "Yes",
    "False",
];

/// Readers of 1.1: PyYAML resolves plain texts as libyaml's own examples do.
const AS_1_1: &str = "
import json, sys, yaml
print(json.dumps(list(yaml.safe_load_all(sys.stdin)), default=lambda other: {'is': str(type(other))}))
";

/// Policies of pods whose labels are odd, in a namespace that is too.
fn policies() -> String {
    let mut capture = Capture::new();
    for (number, value) in ODD.into_iter().enumerate() {
        let value = value.trim_end_matches('.');
        let labels = json!({ "app": value, "on": value }).to_string();
        capture.workload(
            "Deployment",
            &format!("on/w{number}"),
            &json!({ "matchLabels": { "app": value, "on": value } }).to_string(),
        );
        let pod = capture.bare_pod(&format!("on/w{number}-0"), &format!("10.244.1.{number}"), &labels);
        (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some(format!("w{number}").into()));
        if number > 0 {
            capture.talk("10.244.1.0", &format!("10.244.1.{number}"), 8080);
        }
    }
    let report = capture.report();
    assert_eq!(report.names().len(), ODD.len(), "{}", report.said);
    report.yaml
}

#[test]
fn labels_that_yaml_1_1_takes_for_something_else_are_quoted() {
    let written = policies();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/odd-labels.yaml");
    if std::env::var_os("UPDATE_POLICIES").is_some() {
        std::fs::write(golden, &written).expect("written");
    }
    // Which the API server takes (.ci/e2e).
    assert_eq!(written, std::fs::read_to_string(golden).expect("it is there"), "UPDATE_POLICIES=1 writes it anew");
    let mut python = Command::new("python3");
    if !python.args(["-c", "import yaml"]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED a reader of YAML 1.1: it needs python3 with the package pyyaml");
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &written).expect("written");
    let read = Command::new("python3")
        .args(["-c", AS_1_1])
        .stdin(std::fs::File::open(file.path()).expect("it is there"))
        .output()
        .expect("python3 starts");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let as_1_1: Value = serde_json::from_slice(&read.stdout).expect("JSON");
    let documents = serde_yaml::Deserializer::from_str(&written);
    let as_1_2: Vec<Value> =
        documents.map(|document| serde::Deserialize::deserialize(document).expect("YAML")).collect();
    assert_eq!(as_1_1, json!(as_1_2));
    assert!(
        written.contains("namespace: 'on'") && written.contains("app: 'yes'") && written.contains("'on': 'yes'"),
        "{written}"
    );
    let path = file.path().to_string_lossy().into_owned();
    assert!(flowscribe(&["diff", &path, &path]).status.success(), "it is read again");
}
