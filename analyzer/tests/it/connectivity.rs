//! What policies mean, by the rules of the API. What a third party says of its own cases is compared in testdata.

use std::{fs, path::Path};

use crate::support::flowscribe;

/// Lists the connections of manifests that are all valid.
fn connectivity(manifests: &Path, more: &[&str]) -> String {
    let output = flowscribe(&[&["connectivity", "--manifests", &*manifests.to_string_lossy()], more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", manifests.display());
    String::from_utf8(output.stdout).expect("text")
}

/// Lists the connections of one manifest.
fn of(manifest: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("all.yaml"), manifest).expect("written");
    connectivity(directory.path(), &[]).lines().map(str::to_owned).collect()
}

/// Three pods in two namespaces: `a/web` and `a/db`, and `b/job`.
const PODS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: blue}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: red}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: a},
 spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web}]}}}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db, namespace: a}, spec: {template: {
 metadata: {labels: {app: db}}, spec: {containers: [{name: db, ports: [
  {name: sql, containerPort: 5432}, {name: sql, containerPort: 5433, protocol: UDP}]}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: job, namespace: b}, spec: {jobTemplate: {spec: {template: {
 metadata: {labels: {app: job}}, spec: {containers: [{name: job}]}}}}}}
";

/// What a policy for `a/db` lets in.
fn into_db(spec: &str) -> Vec<String> {
    let policy = format!(
        "{PODS}---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}}, \
         spec: {{podSelector: {{matchLabels: {{app: db}}}}, {spec}}}}}"
    );
    let to_db = " => a/db[StatefulSet] : ";
    of(&policy)
        .iter()
        .filter_map(|line| Some(line.split_once(to_db)?).map(|(from, ports)| format!("{from} {ports}")))
        .collect()
}

#[test]
fn selectors_of_namespaces_and_pods_select_as_the_api_says() {
    let web = "a/web[Deployment] All Connections";
    let job = "b/job[CronJob] All Connections";
    let from = |peers: &str| into_db(&format!("ingress: [{{from: [{peers}]}}]"));
    assert_eq!(from("{podSelector: {}}"), [web], "of the policy's own namespace");
    assert_eq!(from("{namespaceSelector: {}}"), [web, job], "of all namespaces");
    assert_eq!(from("{namespaceSelector: {matchLabels: {team: red}}}"), [job]);
    assert_eq!(
        from("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}"),
        [job],
        "every namespace has it"
    );
    let both =
        "{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [red, blue]}]}, podSelector: ";
    assert_eq!(from(&format!("{both} {{matchLabels: {{app: job}}}}}}")), [job]);
    assert_eq!(from(&format!("{both} {{matchExpressions: [{{key: app, operator: NotIn, values: [job]}}]}}}}")), [web]);
    assert_eq!(from(&format!("{both} {{matchExpressions: [{{key: none, operator: Exists}}]}}}}")), [""; 0]);
    assert_eq!(from(&format!("{both} {{matchExpressions: [{{key: none, operator: DoesNotExist}}]}}}}")), [web, job]);
    assert_eq!(from("{podSelector: {}}, {namespaceSelector: {matchLabels: {team: red}}}"), [web, job], "peers add up");
}

#[test]
fn ports_have_protocols_names_and_ranges() {
    let ports = |ports: &str| into_db(&format!("ingress: [{{from: [{{podSelector: {{}}}}], ports: [{ports}]}}]"));
    let web = |ports: &str| [format!("a/web[Deployment] {ports}")];
    assert_eq!(ports("{port: 80}"), web("TCP 80"), "TCP unless it is told");
    assert_eq!(ports("{port: 80, endPort: 90}, {port: 91}, {port: 53, protocol: UDP}"), web("TCP 80-91,UDP 53"));
    assert_eq!(ports("{protocol: SCTP}, {port: 7, protocol: UDP}"), web("SCTP 1-65535,UDP 7"));
    assert_eq!(ports("{port: sql}"), web("TCP 5432"), "a name is one of the container's");
    assert_eq!(ports("{port: sql, protocol: UDP}"), web("UDP 5433"));
    assert_eq!(ports("{port: none}"), [""; 0], "a name that nobody has");
}

#[test]
fn address_blocks_are_of_both_families_and_have_exceptions() {
    let from =
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 'fd00::/8'}}]}]";
    let all = |range: &str| format!("{range}[External] All Connections");
    let expected =
        ["10.0.0.0-10.0.255.255", "10.2.0.0-10.255.255.255", "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    assert_eq!(into_db(from), expected.map(all));
}

#[test]
fn policies_add_up_and_isolate_only_the_directions_that_they_name() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: a}}, spec: {{{spec}}}}}\n"
        )
    };
    let between = |policies: &[String]| {
        let lines = of(&format!("{PODS}{}", policies.concat()));
        lines.into_iter().filter(|line| !line.contains("External") && !line.contains("b/job")).collect::<Vec<_>>()
    };
    let (to_db, to_web) = ("a/web[Deployment] => a/db[StatefulSet] : ", "a/db[StatefulSet] => a/web[Deployment] : ");
    let line = |of: &str, ports: &str| format!("{of}{ports}");
    let everything = "All Connections";
    let deny = policy("deny", "podSelector: {}, policyTypes: [Egress]");
    assert_eq!(between(&[deny]), [""; 0], "nobody may send");
    let ingress = policy("one", "podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1}]}]");
    assert_eq!(
        between(std::slice::from_ref(&ingress)),
        [line(to_web, everything), line(to_db, "TCP 1")],
        "egress stays open"
    );
    let more = policy("two", "podSelector: {}, ingress: [{ports: [{port: 3}]}], policyTypes: [Ingress]");
    assert_eq!(between(&[ingress.clone(), more]), [line(to_web, "TCP 3"), line(to_db, "TCP 1,3")]);
    let egress = policy("three", "podSelector: {}, egress: [{ports: [{port: 1}, {port: 2}]}], policyTypes: [Egress]");
    assert_eq!(
        between(&[ingress, egress]),
        [line(to_web, "TCP 1-2"), line(to_db, "TCP 1")],
        "both ends have to allow it"
    );
}

#[test]
fn what_is_not_valid_is_named_and_the_rest_is_listed() {
    let directory = tempfile::tempdir().expect("a directory");
    let bad = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: a}, \
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}}";
    fs::write(directory.path().join("bad.yaml"), bad).expect("written");
    fs::write(directory.path().join("broken.json"), "{").expect("written");
    fs::write(directory.path().join("good.yml"), PODS).expect("written");
    fs::write(directory.path().join("notes.txt"), "no manifest").expect("written");
    let output = flowscribe(&["connectivity", "--manifests", &directory.path().to_string_lossy(), "--format", "json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let refused = "NetworkPolicy a/bad: spec.ingress[0].from[0].ipBlock.cidr: `nonsense` is not a CIDR";
    assert!(said.contains(refused) && said.contains("broken.json"), "{said}");
    let list: serde_yaml::Value = serde_yaml::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list[0]["source"].as_str(), Some("a/db[StatefulSet]"));
    assert_eq!(list[0]["connections"][1]["protocol"].as_str(), Some("TCP"));
}
