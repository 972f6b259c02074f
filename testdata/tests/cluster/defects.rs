//! What policies cut off in a real cluster without a word, and what is said of a recording that is not so: each has a number,
//! and its mark until it is mended.

use serde_json::{Value, json};
use testdata::nodes::{Nodes, run};

use crate::{
    apps::{SERVES, cron_job, deployment, service},
    demo::OUTSIDE_PORT,
    support::{Chart, apply, ask, call, known, outside, record, report, suffices, visitor},
};

tests![who_is_cut_off_and_what_is_said_of_a_recording];

const NAMESPACE: &str = "more";
const NODE_PORT: &str = "192.168.77.11:30081";

fn who_is_cut_off_and_what_is_said_of_a_recording() {
    let nodes = Nodes::start().expect("a cluster starts");
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let _outside = outside(&nodes, OUTSIDE_PORT);
    nodes.kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    nodes.apply(NAMESPACE, &objects()).expect("they are deployed");
    for name in ["solo", "early"] {
        nodes.wait_for_pods(NAMESPACE, &format!("deployment/{name}")).expect("it is ready");
    }
    Chart::new(&nodes, "receive").install();
    let _visitor = visitor(&nodes, NODE_PORT);
    record(&nodes, NAMESPACE, directory, |capture| recorded(&nodes, capture));
    let calls_itself = || call(&nodes, NAMESPACE, "solo", "solo:80");
    let resolves = || call(&nodes, NAMESPACE, "early", "solo:80");
    assert!(visits(&nodes) && calls_itself() && resolves(), "nothing is enforced");

    let (policies, said) = report(&nodes, NAMESPACE, directory);
    // What a rule allows is not left out.
    known(9, !(policies.contains("203.0.113.10/32") && said.contains("→ 203.0.113.10 (no_inventory)")));
    // What other nodes send is not this node's.
    known(5, !said.contains("were in no known pod"));
    // A job whose pods failed is named.
    known(12, said.lines().any(|line| line.contains("more/failing") && line.contains("Failed")));
    known(3, policies.contains("name: brief-network\n"));
    apply(&nodes, NAMESPACE, directory, &policies);
    known(1, visits(&nodes));
    known(2, calls_itself());
    // Who asked for names before the recording can ask again.
    known(8, resolves());
}

/// Whether a capture has what is to go on.
fn recorded(nodes: &Nodes, capture: &str) -> bool {
    let has = |of: &str| {
        let count = ask(nodes, capture, &format!("select count(*) from flows where {of}"));
        count.is_some_and(|count| count != "0")
    };
    // A visitor has the address of the node's end of the pod's link.
    has("destination_workload = 'solo' and source_workload is null and observer = 'server'")
        && has("source_workload = 'solo' and destination_port = 80")
        && has("source_workload like 'brief-%' and destination_port = 80")
        && has("source_workload like 'failing-%' and destination_port = 53")
        && suffices(nodes, NAMESPACE, capture, ["solo", "early"])
}

/// Whether somebody outside gets an answer at a node's port.
fn visits(nodes: &Nodes) -> bool {
    run(nodes.user("traffic").args(["call", NODE_PORT])).expect("they try").starts_with("passes")
}

/// A Deployment of one pod that calls somebody outside and its own Service, which is at a port of every node; one that called it before anything
/// is recorded, and keeps its connection; a job of a second each minute, and one that fails.
fn objects() -> [Value; 5] {
    let mut solo = deployment("solo", SERVES, &["solo:80", &format!("outside.example.com:{OUTSIDE_PORT}")]);
    solo["spec"]["template"]["spec"]["nodeName"] = json!("n1");
    let mut own = service("solo");
    own["spec"]["type"] = json!("NodePort");
    own["spec"]["ports"][0]["nodePort"] = json!(30081);
    [
        solo,
        own,
        deployment("early", &["service", "--keep"], &["solo:80"]),
        cron_job("brief", &["call", "solo:80"]),
        cron_job("failing", &["call", "--strict", "nowhere.example.com:80"]),
    ]
}
