//! Our policies before others: the API server takes both dialects, by the schemas that it and Cilium have; and another
//! analyzer reads the same connections out of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use testdata::{
    cluster::{self, Cluster},
    demo::{MICROSERVICES, NAMESPACE},
    generator::{self, Plan},
};

use crate::{
    harness::{Ran, require},
    support::{documents, executable, flowscribe, wait_until},
};

tests![
    the_api_server_takes_both_dialects_by_the_real_schemas,
    the_api_server_takes_and_refuses_what_we_take_and_refuse,
    another_analyzer_reads_the_same_connections,
];

/// What `flowscribe report` writes.
fn report(capture: &Path, more: &[&str]) -> String {
    let input = capture.to_string_lossy();
    let output = flowscribe(&[&["report", "--input", &input, "--min-coverage", "0"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("YAML")
}

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/captures/demo"))
}

fn the_api_server_takes_both_dialects_by_the_real_schemas() {
    let api = Cluster::start().expect("the API server starts");
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan { hours: 30, ..Plan::month(1) };
    generator::generate(&plan, directory.path()).expect("the capture is made");
    let crd = env::var("FLOWSCRIBE_CILIUM_CRD").expect(".ci/e2e says where Cilium's schema is");
    let crd = documents(&fs::read_to_string(crd).expect("it can be read")).remove(0);
    assert_eq!(crd["metadata"]["name"], "ciliumnetworkpolicies.cilium.io");
    api.create(&crd).expect("the schema is taken");
    let mut taken = BTreeMap::<String, usize>::new();
    for (capture, more) in [(demo(), &["--namespaces", "demo"][..]), (directory.path(), &["--namespace-defaults"])] {
        for format in ["k8s", "cilium"] {
            for policy in documents(&report(capture, &[more, &["--format", format]].concat())) {
                let namespace = policy["metadata"]["namespace"].as_str().expect("it has one");
                api.create(&cluster::object("v1", "Namespace", None, namespace)).expect("a namespace");
                let created = create(&api, &policy);
                // What the server does not know it drops.
                assert_eq!(created["spec"], policy["spec"], "{policy:#}");
                *taken.entry(policy["kind"].to_string()).or_default() += 1;
            }
        }
        if capture == demo() {
            verify_cluster(&api);
        }
    }
    assert!(taken.len() == 2 && taken.values().all(|count| *count > 20), "{taken:?}");
    let nonsense = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": "x", "namespace": "demo" },
        "spec": { "endpointSelector": {}, "ingress": [{ "toPorts": [{ "ports": [{ "port": 80 }] }] }] } });
    let refused = api.create(&nonsense).expect_err("a port is a text there");
    assert!(format!("{refused:#}").contains("port"), "the schema is in force: {refused:#}");
}

/// The verdicts on which `analyzer/tests/it/manifests.rs` goes.
fn the_api_server_takes_and_refuses_what_we_take_and_refuse() {
    let api = Cluster::start().expect("the API server starts");
    // Of the policies with odd labels, whose names have to be read as texts too.
    api.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "on" } })).expect("it is taken");
    let is_taken = |document: &str| {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["apply", "--dry-run=server", "--validate=strict", "-f", "-"]);
        kubectl
            .env("KUBECONFIG", api.kubeconfig("admin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut running = kubectl.spawn().expect("kubectl is installed");
        running.stdin.take().expect("it is piped").write_all(document.as_bytes()).expect("it reads");
        let output = running.wait_with_output().expect("it ends");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let corpora = [
        (include_str!("../../../analyzer/tests/policies/refused.yaml"), false),
        (include_str!("../../../analyzer/tests/policies/taken.yaml"), true),
        (include_str!("../../../analyzer/tests/policies/odd-labels.yaml"), true),
    ];
    let mut other = Vec::new();
    for (text, expected) in corpora {
        for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
            let (taken, said) = is_taken(document);
            if taken != expected {
                other.push(format!("{document}{said}"));
            }
        }
    }
    assert!(other.is_empty(), "the server judges otherwise:\n{}", other.join("\n"));
}

/// What `flowscribe verify` finds of the policies that are in the cluster.
fn verify_cluster(api: &Cluster) {
    let verified = Command::new(executable())
        .args(["flowscribe", "verify", "--cluster", "--strict", "--input"])
        .arg(demo())
        .env("KUBECONFIG", api.kubeconfig("admin"))
        .output()
        .expect("it starts");
    let found = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success(), "{found}{}", String::from_utf8_lossy(&verified.stderr));
    assert!(found.contains("32 observed edges allowed, 0 denied"), "what is in the cluster: {found}");
}

/// Creates an object of a kind that the server may have learned of a moment ago.
fn create(api: &Cluster, object: &Value) -> Value {
    let mut created = Value::Null;
    wait_until(&format!("serving {}", object["kind"]), || match api.create(object) {
        Err(error) if format!("{error:#}").contains("404") => false,
        answer => {
            created = answer.unwrap_or_else(|error| panic!("{error:#}"));
            true
        }
    });
    created
}

fn another_analyzer_reads_the_same_connections() -> Ran {
    let version = Command::new("nca").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    require(version.is_ok(), "network-config-analyzer (PyPI) is not installed")?;
    let directory = tempfile::tempdir().expect("a directory");
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).expect("made");
    let mut objects: Vec<Value> =
        documents(MICROSERVICES).into_iter().filter(|object| object["kind"] == "Deployment").collect();
    objects.iter_mut().for_each(|object| object["metadata"]["namespace"] = NAMESPACE.into());
    let labels = json!({ "k8s-app": "kube-dns" });
    objects.push(json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "coredns", "namespace": "kube-system" },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "dns" }] } } } }));
    for namespace in [NAMESPACE, "kube-system"] {
        let mut object = cluster::object("v1", "Namespace", None, namespace);
        object["metadata"]["labels"] = json!({ "kubernetes.io/metadata.name": namespace });
        objects.push(object);
    }
    let workloads: BTreeMap<(String, String), Value> = objects
        .iter()
        .filter(|object| object["kind"] == "Deployment")
        .map(|object| {
            let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            ((text("namespace"), text("name")), object["spec"]["template"]["metadata"]["labels"].clone())
        })
        .collect();
    assert_eq!(workloads.len(), 13);
    let app: Vec<String> = objects.iter().map(|object| serde_yaml::to_string(object).expect("YAML")).collect();
    fs::write(manifests.join("app.yaml"), app.join("---\n")).expect("written");
    fs::write(manifests.join("policies.yaml"), report(demo(), &["--namespaces", NAMESPACE])).expect("written");

    let output = flowscribe(&["connectivity", "--manifests", &manifests.to_string_lossy(), "--format", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let ours: BTreeSet<String> = list.as_array().expect("a list").iter().flat_map(our_lines).collect();

    let found = directory.path().join("found.json");
    let ran = Command::new("nca")
        .arg("--connectivity")
        .arg(manifests.join("policies.yaml"))
        .arg("--resource_list")
        .arg(manifests.join("app.yaml"))
        .args(["--output_format", "json", "--output_endpoints", "deployments", "--file_out"])
        .arg(&found)
        .output()
        .expect("it starts");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let found: Value = serde_json::from_str(&fs::read_to_string(&found).expect("it is there")).expect("JSON");
    let rules = found[0]["explanation"][0]["rules"].as_array().expect("a list");
    let theirs: BTreeSet<String> = rules.iter().flat_map(|rule| their_lines(rule, &workloads)).collect();
    let difference: Vec<&String> = ours.symmetric_difference(&theirs).collect();
    assert!(difference.is_empty() && ours.len() > 20, "{} ours, {} theirs: {difference:#?}", ours.len(), theirs.len());
    Ok(())
}

/// Pairs of workloads and their ports, as `flowscribe connectivity` lists them.
fn our_lines(object: &Value) -> Vec<String> {
    let end = |name: &str| object[name].as_str().expect("an end").trim_end_matches("[Deployment]").to_owned();
    let (source, destination) = (end("source"), end("destination"));
    if [&source, &destination].iter().any(|end| end.ends_with("[External]")) || source == destination {
        return Vec::new();
    }
    let ranges = object["connections"].as_array().expect("a list");
    if ranges.len() == 3 && ranges.iter().all(|range| range["port"] == 1 && range["end_port"] == 65535) {
        return vec![format!("{source} {destination} all")];
    }
    ranges
        .iter()
        .map(|range| format!("{source} {destination} {} {}", range["protocol"].as_str().expect("one"), range["port"]))
        .collect()
}

/// The same of a rule of the other analyzer, which names sets of pods.
fn their_lines(rule: &Value, workloads: &BTreeMap<(String, String), Value>) -> Vec<String> {
    let ends = |side: &str| -> Vec<String> {
        let texts =
            |name: &str| rule[format!("{side}_{name}")].as_array().into_iter().flatten().filter_map(Value::as_str);
        let is_named = |((namespace, name), labels): &(&(String, String), &Value)| {
            texts("ns").any(|ns| ns == namespace) && texts("pods").any(|pods| selects(pods, name, labels))
        };
        workloads.iter().filter(is_named).map(|((namespace, name), _)| format!("{namespace}/{name}")).collect()
    };
    let mut ports = Vec::new();
    for connection in rule["connection"].as_array().into_iter().flatten() {
        if connection == "All connections" {
            ports.push("all".to_owned());
        }
        for protocol in connection["protocols"].as_str().unwrap_or_default().split(", ").filter(|name| !name.is_empty())
        {
            ports.extend(
                connection["dst_ports"].as_array().into_iter().flatten().map(|port| format!("{protocol} {port}")),
            );
        }
    }
    let (sources, destinations) = (ends("src"), ends("dst"));
    let pairs =
        sources.iter().flat_map(|from| destinations.iter().map(move |to| (from, to))).filter(|(from, to)| from != to);
    pairs.flat_map(|(from, to)| ports.iter().map(move |port| format!("{from} {to} {port}"))).collect()
}

/// Whether `*`, a name, `key=value` or `key in (value,…)` names a workload.
fn selects(pods: &str, name: &str, labels: &Value) -> bool {
    let has = |key: &str, value: &str| labels[key] == value;
    match (pods.split_once(" in ("), pods.split_once('=')) {
        (Some((key, values)), _) => values.trim_end_matches(')').split(',').any(|value| has(key, value)),
        (None, Some((key, value))) => has(key, value),
        (None, None) => pods == "*" || pods == name,
    }
}
