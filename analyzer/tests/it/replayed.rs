//! Policies against captures and against one another: what `verify`, `diff` and `explain` tell, and what is left in a
//! directory.

use std::{fs, path::Path, process::Output};

use serde_yaml::Value;
use tempfile::TempDir;

use crate::support::{Capture, DB, WEB, flowscribe, web_and_db};

/// Policies in a file, in a directory of its own.
fn file(yaml: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("policies.yaml");
    fs::write(&path, yaml).expect("written");
    let path = path.to_string_lossy().into_owned();
    (directory, path)
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn verify(capture: &Capture, policies: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let ((_kept, path), input) = (file(policies), capture.write());
    let arguments = ["verify", "--policies", &path, "--input", &input.path().to_string_lossy()];
    text(&flowscribe(&[&arguments[..], more].concat()))
}

fn diff(old: &str, new: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let ((_old, old), (_new, new)) = (file(old), file(new));
    text(&flowscribe(&[&["diff", &old, &new], more].concat()))
}

#[test]
fn what_a_report_writes_denies_nothing_that_was_observed() {
    let capture = web_and_db();
    let (code, found, said) = verify(&capture, &capture.report().yaml, &["--strict"]);
    assert_eq!(code, Some(0), "{found}{said}");
    let all = "1 observed edges allowed, 0 denied (0 of them stable and unexplained); 0 edges allowed and never seen\n";
    assert_eq!(found, all);
}

#[test]
fn what_policies_would_deny_is_named_with_the_policy() {
    let capture = web_and_db();
    let tampered = capture.report().yaml.replace("port: 5432", "port: 5433");
    let (code, found, _) = verify(&capture, &tampered, &["--strict"]);
    assert_eq!(code, Some(1));
    let denied = "demo/web → demo/db 5432/TCP: denied by ingress of demo/db-network, egress of demo/web-network; learning, 1 connections";
    assert!(found.contains(denied), "{found}");
    assert!(found.contains("allowed and never seen:\n  demo/web → demo/db TCP 5433\n"), "{found}");
    assert_eq!(verify(&capture, &tampered, &[]).0, Some(0), "nothing is stable after a minute");
    let (_, json, _) = verify(&capture, &tampered, &["--format", "json"]);
    let json: Value = serde_yaml::from_str(&json).expect("JSON");
    assert_eq!(json["denied"][0]["edge"].as_str(), Some("demo/web → demo/db 5432/TCP"));
    assert_eq!(json["unseen"][0]["reason"].as_str(), Some("unseen"));
    assert_eq!(json["workloads"][0]["denied"].as_u64(), Some(1));
}

#[test]
fn denials_that_have_a_reason_do_not_count() {
    let mut capture = web_and_db();
    capture.accept(DB, "192.0.2.1", 8080);
    capture.dial(WEB, "10.244.9.9", 443);
    let decisions = tempfile::NamedTempFile::new().expect("a file");
    fs::write(decisions.path(), "forbid: [{ from: demo/web, to: demo/db, reason: it moved }]").expect("written");
    let decisions = ["--decisions", &*decisions.path().to_string_lossy()];
    // The forbidden edge was all that there was: it is denied.
    let report = capture.report_with(&decisions);
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(
        ["demo/db-network", "demo/web-network"].iter().all(|name| report.allows(name).is_empty()),
        "{}",
        report.yaml
    );
    let (code, found, _) = verify(&capture, &report.yaml, &decisions);
    assert!(code == Some(0) && found.contains("forbidden: it moved"), "{found}");
    let open = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: open, namespace: demo}, \
        spec: {podSelector: {matchLabels: {app: other}}}}";
    let (code, found, _) = verify(&capture, open, &decisions);
    assert!(
        code == Some(1) && found.contains("FORBIDDEN, and allowed all the same:\n  demo/web → demo/db 5432/TCP"),
        "{found}"
    );
    assert!(found.contains("2 of 2 workloads are limited by no policy"), "{found}");
    let deny = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: demo}, \
        spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}";
    let (code, found, _) = verify(&capture, deny, &[&decisions[..], &["--strict"]].concat());
    assert_eq!(code, Some(0), "{found}");
    assert!(found.contains("demo/web → demo/db 5432/TCP: denied by "), "{found}");
    assert!(found.contains("forbidden: it moved") && found.contains("an end is not known"), "{found}");
    let (code, found, _) = verify(&capture, deny, &[&decisions[..], &["--no-own-node"]].concat());
    assert_eq!(code, Some(0));
    assert!(found.contains("node node-a (192.0.2.1) → demo/db 8080/TCP: denied by ingress of demo/deny; learning, 1 connections; own node"), "{found}");
}

#[test]
fn what_can_not_be_judged_is_not_said_to_be_allowed() {
    let mut capture = web_and_db();
    let policies = capture.report().yaml;
    capture.inventory.clear();
    let (code, found, _) = verify(&capture, &policies, &[]);
    assert!(code == Some(2) && found.contains("0 observed edges allowed, 0 denied"), "{found}");
    assert!(found.contains("1 observed edges are not judged: no pods of an end are known"), "{found}");
}

#[test]
fn policies_that_are_no_policies_are_an_error() {
    let capture = web_and_db();
    let (code, _, said) = verify(&capture, "{apiVersion: v1, kind: Service, metadata: {name: x}}", &[]);
    assert_eq!(code, Some(2));
    assert!(said.starts_with("flowscribe: no policies in "), "{said}");
    let bad = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: demo}, \
        spec: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}}";
    let (code, _, said) = verify(&capture, bad, &[]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains(
            "NetworkPolicy demo/bad: spec.ingress[0].ports[0].endPort: endPort 70 needs a port that is a number"
        ),
        "{said}"
    );
}

#[test]
fn the_same_however_it_is_written_is_no_difference() {
    let mut capture = web_and_db();
    capture.talk(WEB, DB, 9187);
    let policies = capture.report().yaml;
    let reordered = {
        let mut documents: Vec<&str> = policies.split("---\n").collect();
        documents.reverse();
        documents.join("---\n").replace(
            "    - port: 5432\n      protocol: TCP\n    - port: 9187\n",
            "    - port: 9187\n      protocol: TCP\n    - port: 5432\n",
        )
    };
    assert_ne!(policies, reordered);
    let (code, found, said) = diff(&policies, &reordered, &[]);
    assert_eq!(
        (code, &*found),
        (Some(0), "0 edges added, 0 removed, 2 unchanged; 0 directions closed, 0 opened; 0 workloads affected\n"),
        "{said}"
    );
}

#[test]
fn differences_are_edges_and_directions_in_every_format() {
    let mut capture = web_and_db();
    let old = capture.report().yaml;
    capture.pod("demo/cache", "10.244.0.31");
    capture.talk(WEB, "10.244.0.31", 6379);
    capture.dial(WEB, "198.51.100.7", 443);
    let new = capture.report().yaml;
    let (code, found, _) = diff(&old, &new, &[]);
    assert_eq!(code, Some(1));
    let expected = "~ demo/app=cache: ingress closed\n~ demo/app=cache: egress closed\n\
        + demo/app=web → 198.51.100.7 TCP 443\n\
        2 edges added, 0 removed, 1 unchanged; 2 directions closed, 0 opened; 2 workloads affected\n";
    assert_eq!(found.replace("+ demo/app=web → demo/app=cache TCP 6379\n", ""), expected);
    let input = capture.write();
    let (_, named, _) = diff(&new, &old, &["--input", &input.path().to_string_lossy(), "--format", "markdown"]);
    let lost = named.split("#### No longer allowed\n\n").nth(1).expect("it has the section");
    assert!(lost.contains("- `demo/web → 198.51.100.7 TCP 443`\n"), "{named}");
    assert!(named.contains("- `demo/cache: ingress opened`\n"), "{named}");
    let (_, json, _) = diff(&old, &new, &["--format", "json"]);
    let json: Value = serde_yaml::from_str(&json).expect("JSON");
    let ports = json["added"].as_sequence().into_iter().flatten().map(|edge| edge["connections"][0]["port"].as_u64());
    assert_eq!(ports.collect::<Vec<_>>(), [Some(6379), Some(443)]);
    assert_eq!(json["closed"].as_sequence().map(Vec::len), Some(2));
    let (code, _, said) = diff(&old, "{", &[]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn a_rule_is_explained_by_what_is_behind_it_and_so_is_what_is_missing() {
    let mut capture = web_and_db();
    let row = capture.dial(WEB, DB, 22);
    (row.connections, row.closed, row.failed, row.failure) = (0, 0, 3, Some("refused".into()));
    let input = capture.write();
    let input = input.path().to_string_lossy();
    let (code, found, said) = text(&flowscribe(&["explain", "demo/web-network", "--input", &input]));
    assert_eq!(code, Some(0), "{said}");
    insta::assert_snapshot!("explain", found);
    let by_workload = text(&flowscribe(&["explain", "demo/web", "--input", &input]));
    assert_eq!(by_workload.1, found, "a workload is its policy");
    let (code, _, said) = text(&flowscribe(&["explain", "demo/wbe", "--input", &input]));
    assert_eq!(code, Some(2));
    assert_eq!(said, "flowscribe: no policy or workload demo/wbe: there are demo/db-network, demo/web-network\n");
    let (_, _, said) = text(&flowscribe(&["report", "--explain", "--input", &input]));
    assert!(said.ends_with(&found), "{said}");
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("readable")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_directory_has_a_file_per_policy_and_loses_only_what_is_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("policies");
    let report = |capture: &Capture| capture.report_with(&["--output", &format!("{}/", output.display())]);
    let mut capture = web_and_db();
    capture.pod("demo/cache", "10.244.0.31");
    capture.talk(WEB, "10.244.0.31", 6379);
    report(&capture);
    let all = [
        "demo.cache-network.yaml",
        "demo.db-network.yaml",
        "demo.web-network.yaml",
        "evidence.json",
        "kustomization.yaml",
    ];
    assert_eq!(names(&output), all);
    let evidence: Value =
        serde_yaml::from_str(&fs::read_to_string(output.join("evidence.json")).expect("it is there")).expect("JSON");
    assert_eq!(evidence["policies"][0]["rules"][0]["observed"][0]["connections"].as_u64(), Some(1));
    // Somebody's own, beside what was written, even with a policy of ours copied into it.
    fs::write(output.join("mine.yaml"), "kind: ConfigMap\n").expect("written");
    fs::write(output.join("README.md"), "mine").expect("written");
    let time = |name: &str| fs::metadata(output.join(name)).and_then(|file| file.modified()).expect("it is there");
    let before = time("demo.db-network.yaml");
    report(&web_and_db());
    let left = [
        "README.md",
        "demo.db-network.yaml",
        "demo.web-network.yaml",
        "evidence.json",
        "kustomization.yaml",
        "mine.yaml",
    ];
    assert_eq!(names(&output), left);
    let kustomization = fs::read_to_string(output.join("kustomization.yaml")).expect("it is there");
    assert!(
        kustomization.ends_with("resources:\n- demo.db-network.yaml\n- demo.web-network.yaml\n"),
        "{kustomization}"
    );
    assert_eq!(time("demo.db-network.yaml"), before, "what is the same is not written again");
    // What is in the way and not ours stays, and is named.
    fs::write(output.join("kustomization.yaml"), "resources: [mine.yaml]\n").expect("written");
    let input = web_and_db().write();
    let refused = text(&flowscribe(&[
        "report",
        "--input",
        &input.path().to_string_lossy(),
        "--output",
        &output.to_string_lossy(),
    ]));
    assert_eq!(refused.0, Some(2));
    assert!(refused.2.contains("kustomization.yaml is not one that flowscribe wrote"), "{}", refused.2);
    assert_eq!(fs::read_to_string(output.join("kustomization.yaml")).expect("it is there"), "resources: [mine.yaml]\n");
}

#[test]
fn an_input_without_a_capture_leaves_a_directory_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = format!("{}/policies/", directory.path().display());
    web_and_db().report_with(&["--output", &output]);
    let before = names(Path::new(&output));
    let empty = tempfile::tempdir().expect("a directory");
    let input = empty.path().to_string_lossy();
    let (code, _, said) = text(&flowscribe(&["report", "--input", &input, "--output", &output]));
    assert_eq!(code, Some(2));
    assert!(said.starts_with("flowscribe: no capture in "), "{said}");
    assert_eq!(names(Path::new(&output)), before);
}

#[test]
fn what_only_pods_can_tell_is_not_guessed_by_a_comparison() {
    let policy = |port: &str, selector: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}}, \
             spec: {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {selector}}}], ports: [{{port: {port}}}]}}]}}}}"
        )
    };
    let values = |values: &str| format!("{{matchExpressions: [{{key: app, operator: In, values: {values}}}]}}");
    let (code, found, _) = diff(&policy("80", &values("[x, w]")), &policy("80", &values("[x, z]")), &[]);
    assert_eq!(code, Some(1), "{found}");
    assert!(found.contains("+ a/app=z → a/app=x TCP 80") && found.contains("- a/app=w → a/app=x TCP 80"), "{found}");
    let (code, _, said) = diff(&policy("http", "{}"), &policy("admin", "{}"), &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("the policies select ports by name: say which workloads there are, with --input"), "{said}");
    let others = "{matchExpressions: [{key: app, operator: NotIn, values: [x]}]}";
    assert_eq!(diff(&policy("80", others), &policy("80", "{}"), &[]).0, Some(2));
}

#[test]
fn evidence_and_policies_can_be_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let (policies, evidence) = (directory.path().join("p.yaml"), directory.path().join("e.json"));
    let report =
        web_and_db().report_with(&["--output", &policies.to_string_lossy(), "--evidence", &evidence.to_string_lossy()]);
    assert_eq!(report.yaml, "");
    assert_eq!(fs::read_to_string(policies).expect("it is there"), web_and_db().report().yaml);
    let evidence = fs::read_to_string(evidence).expect("it is there");
    assert!(
        evidence.contains("\"verification\": {\n    \"allowed\": 1,\n    \"denied\": [],\n    \"unseen\": {}"),
        "{evidence}"
    );
}

#[test]
fn what_a_block_may_allow_is_named_where_it_is_denied() {
    let wide = |cidr: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: wide, namespace: demo}}, spec: \
             {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}}}"
        )
    };
    let capture = web_and_db();
    let (_, found, _) = verify(&capture, &wide("10.244.0.0/16"), &[]);
    let named = "its ipBlock 10.244.0.0/16 holds the pod's address, which some network plugins allow";
    assert!(found.contains(named), "{found}");
    let (_, found, _) = verify(&capture, &wide("192.0.2.0/24"), &[]);
    assert!(found.contains("denied by egress of demo/wide") && !found.contains("ipBlock"), "{found}");
}

/// A policy of a hostile size: blocks, of which each has a port of its own, and expressions of ten values each.
fn of_size(blocks: u32, expressions: u32, last_port: u32) -> String {
    let block = |number: u32| {
        let port = if number + 1 == blocks { last_port } else { 1 + number };
        let (high, low) = (number / 100, 2 * (number % 100));
        format!("- from: [{{ipBlock: {{cidr: 10.0.{high}.{low}/32}}}}]\n    ports: [{{port: {port}}}]\n")
    };
    let values: Vec<String> = (0..10).map(|value| format!("v{value}")).collect();
    let expression = |key| format!("- {{key: k{key}, operator: In, values: [{}]}}\n", values.join(", "));
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\n  namespace: demo\nspec:\n  \
         podSelector:\n    matchExpressions:\n    {}  ingress:\n  {}",
        (0..expressions).map(expression).collect::<Vec<_>>().join("    "),
        (0..blocks).map(block).collect::<Vec<_>>().join("  "),
    )
}

#[test]
fn whoever_writes_policies_does_not_decide_how_long_comparing_takes() {
    // One by one that would be a million kinds of pods, and 4,000 ranges of addresses with 2,000 rules each.
    let [old, new] = [6000, 6001].map(|port| of_size(2000, 6, port));
    let (code, found, said) = diff(&old, &new, &[]);
    assert_eq!(code, Some(1), "{said}");
    let lines: Vec<&str> = found.lines().collect();
    let pods = "v0,v1,v2,v3,v4,v5,v6,v7,v8,v9";
    let pods: Vec<String> = (0..6).map(|key| format!("k{key} in ({pods})")).collect();
    let pods = format!("demo/{}", pods.join(","));
    assert_eq!(lines[0], format!("+ 10.0.19.198 → {pods} TCP 6001"));
    assert_eq!(lines[1], format!("- 10.0.19.198 → {pods} TCP 6000"));
    assert!(lines[2].starts_with("1 edges added, 1 removed, 1999 unchanged;"), "{found}");
    // Values that are distinguished somewhere are compared apart from the others.
    let other = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: q, namespace: demo}, \
        spec: {podSelector: {matchLabels: {k0: v3}}, policyTypes: [Egress]}}\n";
    let (_, found, _) = diff(&(of_size(1, 1, 80) + other), &(of_size(1, 1, 81) + other), &[]);
    assert!(found.contains("+ 10.0.0.0 → demo/k0=v3 TCP 81\n"), "{found}");
    assert!(found.contains("+ 10.0.0.0 → demo/k0 in (v0,v1,v2,v4,v5,v6,v7,v8,v9) TCP 81\n"), "{found}");
    // Where too many are, that is said.
    let apart: String = (0..6)
        .flat_map(|key| (0..10).map(move |value| (key, value)))
        .map(|(key, value)| {
            other.replace("k0: v3", &format!("k{key}: v{value}")).replace("name: q", &format!("name: q{key}-{value}"))
        })
        .collect();
    let (code, _, said) = diff(&(of_size(1, 6, 80) + &apart), &(of_size(1, 6, 81) + &apart), &[]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("by too many combinations of labels: say which workloads there are, with --input or --manifests"),
        "{said}"
    );
}
