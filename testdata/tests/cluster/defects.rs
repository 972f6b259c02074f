//! What policies cut off in a real cluster without a word: each has a number, and its mark until it is mended.

use serde_json::{Value, json};
use testdata::nodes::{Nodes, run};

use crate::support::{apply, install, known, record, report, suffices, visitor};

tests![visitors_by_node_port_who_calls_its_own_service_and_brief_jobs_go_on];

const NAMESPACE: &str = "more";
const NODE_PORT: &str = "192.168.77.11:30081";

fn visitors_by_node_port_who_calls_its_own_service_and_brief_jobs_go_on() {
    let nodes = Nodes::start().expect("a cluster starts");
    let directory = tempfile::tempdir().expect("a directory");
    nodes.kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    nodes.apply(NAMESPACE, &objects()).expect("they are deployed");
    nodes.wait_for_pods(NAMESPACE, "deployment/solo").expect("it is ready");
    install(&nodes, "receive");
    let _visitor = visitor(&nodes, NODE_PORT);
    record(&nodes, NAMESPACE, directory.path(), |capture| recorded(&nodes, capture));
    assert!(visits(&nodes) && calls_itself(&nodes), "nothing is enforced");

    let policies = report(&nodes, NAMESPACE, directory.path());
    apply(&nodes, directory.path());
    known(1, || assert!(visits(&nodes), "a visitor by node port is cut off"));
    known(2, || assert!(calls_itself(&nodes), "a pod that calls its own Service is cut off"));
    known(3, || assert!(policies.contains("name: brief-network"), "a job of a second has no policy"));
}

/// Whether a capture has what is to go on.
fn recorded(nodes: &Nodes, capture: &str) -> bool {
    let has = |of: &str| {
        let query = format!("select count(*) > 0 from flows where {of}");
        let mut ask = nodes.user("flowscribe");
        run(ask.args(["sql", "--input", capture, "--format", "csv", &query])).is_ok_and(|text| text.contains("true"))
    };
    // A visitor has the address of the node's end of the pod's link.
    has("destination_workload = 'solo' and source_workload is null and observer = 'server'")
        && has("source_workload = 'solo' and destination_port = 80")
        && has("source_workload like 'brief-%' and destination_port = 80")
        && suffices(nodes, NAMESPACE, capture, ["solo"])
}

/// Whether somebody outside gets an answer at a node's port.
fn visits(nodes: &Nodes) -> bool {
    run(nodes.user("traffic").args(["call", NODE_PORT])).expect("they try").starts_with("passes")
}

/// Whether a pod gets an answer of its own by way of its Service.
fn calls_itself(nodes: &Nodes) -> bool {
    let call = ["exec", "--namespace", NAMESPACE, "deployment/solo", "--", "/traffic", "call", "solo:80"];
    nodes.kubectl(&call).expect("it tries").starts_with("passes")
}

/// A Deployment of one pod that calls its own Service, which is at a port of every node, and a job of a second each minute.
fn objects() -> [Value; 3] {
    let labels = |app: &str| json!({ "app": app });
    let container = |arguments: &[&str]| {
        json!({ "name": "app", "image": "localhost/app:1", "imagePullPolicy": "Never", "args": arguments,
            "ports": [{ "containerPort": 8080 }], "env": [{ "name": "SOLO_ADDR", "value": "solo:80" }] })
    };
    let solo = json!({ "terminationGracePeriodSeconds": 1, "nodeName": "n1",
        "containers": [container(&["service", "--listen", "8080"])] });
    let brief = json!({ "restartPolicy": "Never", "containers": [container(&["call", "solo:80"])] });
    [
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "solo" }, "spec": {
            "selector": { "matchLabels": labels("solo") },
            "template": { "metadata": { "labels": labels("solo") }, "spec": solo },
        } }),
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "solo" }, "spec": {
            "type": "NodePort", "selector": labels("solo"),
            "ports": [{ "port": 80, "targetPort": 8080, "nodePort": 30081 }],
        } }),
        json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "brief" }, "spec": {
            "schedule": "* * * * *",
            "jobTemplate": { "spec": { "template": { "metadata": { "labels": labels("brief") }, "spec": brief } } },
        } }),
    ]
}
