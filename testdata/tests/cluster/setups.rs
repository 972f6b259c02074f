//! The chart's other setups: agents that send to an OpenTelemetry collector, or write to an object store.

use std::fs;

use serde::Deserialize;
use serde_json::{Value, json};
use testdata::nodes::{Nodes, run};

use crate::{
    apps::{SERVES, deployment, service},
    support::{Chart, RELEASE, regenerate, report, suffices, wait_until, within},
};

tests![policies_come_of_a_collectors_files, policies_come_of_an_object_store];

const NAMESPACE: &str = "calls";

fn policies_come_of_a_collectors_files() {
    let nodes = Nodes::start().expect("a cluster starts");
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    start_app(&nodes);
    nodes.kubectl(&["create", "namespace", "observability"]).expect("a namespace");
    let [config, collector, service] = collector();
    nodes.apply("observability", &[config, collector, service]).expect("a collector");
    nodes.wait_for_pods("observability", "deployment/collector").expect("it runs");
    Chart::new(&nodes, "collector").install();
    let (log, capture) = (directory.join("flows.jsonl"), within(directory, "capture"));
    wait_until("policies of all", || {
        let written = run(nodes.on("n1", "cat").arg(format!("{KEPT}/flows.jsonl"))).unwrap_or_default();
        // Its last line may be half of one.
        let whole = written.rfind('\n').map_or("", |end| &written[..=end]);
        fs::write(&log, whole).expect("a file");
        let _ = fs::remove_dir_all(&capture);
        let mut import = nodes.user("flowscribe");
        import.arg("import").arg("--input").arg(&log).args(["--output", &capture]);
        run(&mut import).is_ok() && suffices(&nodes, NAMESPACE, &capture, ["client", "server"])
    });
    assert_closed(&report(&nodes, NAMESPACE, directory).0);
}

fn policies_come_of_an_object_store() {
    let nodes = Nodes::start().expect("a cluster starts");
    start_app(&nodes);
    nodes.kubectl(&["create", "namespace", "store"]).expect("a namespace");
    run(nodes.on("n1", "mkdir").args(["--parents", &format!("{KEPT}/flows")])).expect("a bucket");
    nodes.apply("store", &store()).expect("a store");
    nodes.wait_for_pods("store", "deployment/store").expect("it runs");
    nodes.kubectl(&["create", "namespace", RELEASE]).expect("a namespace");
    let secret = ["create", "secret", "generic", "flowscribe-object-store", "--namespace", RELEASE];
    let settings = [
        "--from-literal=AWS_ENDPOINT=http://store.store",
        "--from-literal=AWS_ALLOW_HTTP=true",
        "--from-literal=AWS_REGION=us-east-1",
        "--from-literal=AWS_ACCESS_KEY_ID=access",
        "--from-literal=AWS_SECRET_ACCESS_KEY=secret",
    ];
    nodes.kubectl(&[&secret[..], &settings].concat()).expect("a secret");
    Chart::new(&nodes, "object-store")
        .with("exporter.config.roll-interval=5s,inventory.extraArgs={--roll-interval=5s}")
        .install();
    let mut set = String::new();
    wait_until("policies of all", || {
        // Until there is something in the store, a run fails.
        set = regenerate(&nodes).set;
        ["client", "server"].iter().all(|name| set.contains(&format!("name: {name}-network\n")))
    });
    assert_closed(&set);
}

/// Asserts that policies allow the one call that there is, and nothing else into the server.
fn assert_closed(policies: &str) {
    let documents = serde_yaml::Deserializer::from_str(policies);
    let mut documents = documents.map(|document| Value::deserialize(document).expect("YAML"));
    let policy = documents.find(|policy| policy["metadata"]["name"] == "server-network").expect("it has one");
    let client = json!({ "podSelector": { "matchLabels": { "app": "client" } } });
    let ingress = json!([{ "from": [client], "ports": [{ "port": 8080, "protocol": "TCP" }] }]);
    assert_eq!(policy["spec"]["ingress"], ingress, "{policy:#}");
}

fn start_app(nodes: &Nodes) {
    nodes.kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    let app =
        [deployment("server", SERVES, &[]), service("server"), deployment("client", &["service"], &["server:80"])];
    nodes.apply(NAMESPACE, &app).expect("it is deployed");
}

/// A collector as the chart's example names it, which writes what it gets to a file of its node.
fn collector() -> [Value; 3] {
    let config = "
receivers: { otlp: { protocols: { grpc: { endpoint: '0.0.0.0:4317' } } } }
processors: { batch: { timeout: 1s } }
exporters: { file: { path: /kept/flows.jsonl, append: true } }
service:
  telemetry: { metrics: { level: none } }
  pipelines: { logs: { receivers: [otlp], processors: [batch], exporters: [file] } }
";
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "collector" },
        "data": { "config.yaml": config } });
    let mut deployment = keeper("collector", "localhost/otelcol:1", &["--config=/config/config.yaml"]);
    let pod = &mut deployment["spec"]["template"]["spec"];
    add(&mut pod["volumes"], json!({ "name": "config", "configMap": { "name": "collector" } }));
    add(&mut pod["containers"][0]["volumeMounts"], json!({ "name": "config", "mountPath": "/config" }));
    let mut service = service("collector");
    service["spec"]["ports"] = json!([{ "port": 4317 }]);
    [map, deployment, service]
}

/// A server of S3's protocol, whose buckets are directories of its node.
fn store() -> [Value; 2] {
    let mut deployment = keeper("store", "localhost/versitygw:1", &["--port", ":8080", "posix", "/kept"]);
    deployment["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{ "name": "ROOT_ACCESS_KEY", "value": "access" }, { "name": "ROOT_SECRET_KEY", "value": "secret" }]);
    [deployment, service("store")]
}

/// A Deployment on n1 that has a directory of the node.
fn keeper(name: &str, image: &str, arguments: &[&str]) -> Value {
    let mut deployment = deployment(name, arguments, &[]);
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["nodeName"] = json!("n1");
    pod["volumes"] = json!([{ "name": "kept", "hostPath": { "path": KEPT, "type": "DirectoryOrCreate" } }]);
    pod["containers"][0]["image"] = json!(image);
    pod["containers"][0]["volumeMounts"] = json!([{ "name": "kept", "mountPath": "/kept" }]);
    deployment
}

fn add(list: &mut Value, entry: Value) {
    list.as_array_mut().expect("a list").push(entry);
}

const KEPT: &str = "/var/lib/kept";
