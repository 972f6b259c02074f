//! What policies cut off in a real cluster without a word, and what is said of a recording that is not so: each has a number,
//! and its mark until it is mended.

use serde_json::{Value, json};
use testdata::nodes::{Nodes, run};

use crate::{
    apps::{SERVES, cron_job, deployment, service},
    demo::OUTSIDE_PORT,
    support::{
        Chart, Marks, apply, ask, ask_receiver, call, outside, record, report, suffices, visitor, wait_until, within,
    },
};

tests![who_is_cut_off_and_what_is_said_of_a_recording];

const NAMESPACE: &str = "more";
/// The same Service at either node; its pod is on the first.
const NODE_PORTS: [&str; 2] = ["192.168.77.11:30081", "192.168.77.12:30081"];

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
    Chart::new(&nodes, "receive").with("receive.extraArgs={--roll-interval=5s}").install();
    let _visitors = NODE_PORTS.map(|address| visitor(&nodes, address));
    let own_node = format!("{}1", range(&nodes, "n1"));
    record(&nodes, NAMESPACE, directory, |capture| recorded(&nodes, &own_node, capture));
    let own = nodes.get(&["service", "--namespace", NAMESPACE, "solo"]).expect("its Service");
    let own = format!("{}:80", own["spec"]["clusterIP"].as_str().unwrap_or_default());
    let calls = |name: &str, to: &str| call(&nodes, NAMESPACE, name, to);
    let visits = || NODE_PORTS.map(|address| visits(&nodes, address)) == [true; 2];
    assert!(visits() && calls("solo", "solo:80") && calls("early", "solo:80"), "nothing is enforced");

    let (policies, said) = report(&nodes, NAMESPACE, directory);
    let mut marks = Marks::default();
    // What a rule allows is not left out.
    assert!(policies.contains("203.0.113.10/32"), "{policies}");
    marks.note(9, !said.contains("→ 203.0.113.10 (no_inventory)"));
    // What pods of another node ask is not this node's.
    let asks = format!("transport = 'udp' and observer = 'client' and source_address like '{}%'", range(&nodes, "n2"));
    let count =
        |node: &str| ask_receiver(&nodes, &format!("select count(*) from flows where node = '{node}' and {asks}"));
    assert!(count("n2").is_some_and(|count| count > 0), "they ask for names");
    marks.note(5, count("n1") == Some(0));
    // A job whose pods failed is named.
    assert!(policies.contains("name: failing-network\n"), "{policies}{said}");
    let is_named =
        |line: &str| line.strip_prefix("more/failing").is_some_and(|rest| rest.to_lowercase().contains("fail"));
    marks.note(12, said.lines().any(is_named));
    // All pods of a job count that sent anything, though kubelet calls few of them running that live for a moment.
    let capture = within(directory, "capture");
    let sent = ask(&nodes, &capture, "select count(distinct source_pod) from flows where source_pod like 'brief-%'");
    let counted = ask(&nodes, &capture, "select sum(pods) from workloads where workload = 'brief'");
    marks.note(3, counted == sent && policies.contains("name: brief-network\n"));
    apply(&nodes, NAMESPACE, directory, &policies);
    // What the policies allow passes: they are no more than policies.
    wait_until("what is allowed", || calls("solo", OUTSIDE) && calls("early", &own));
    assert!(visits(), "visitors by NodePort pass, whatever address they come with");
    assert!(calls("solo", &own), "who calls its own Service is not cut off");
    // Who asked for names before the recording can ask again.
    marks.note(8, calls("early", "solo:80"));
    marks.end();
}

/// Whether a capture has what is to go on.
fn recorded(nodes: &Nodes, own_node: &str, capture: &str) -> bool {
    let has = |of: &str| count(nodes, capture, of) > 0;
    let runs = "select count(distinct source_workload) from flows \
        where source_workload like 'brief-%' and destination_port = 80";
    // A visitor of the pod's own node has the address of the node's end of its link, one of the other has that node's.
    has(&format!("destination_workload = 'solo' and source_workload is null and source_address = '{own_node}'"))
        && has("destination_workload = 'solo' and source_address = '192.168.77.12'")
        && has("source_workload = 'solo' and destination_port = 80")
        && has("source_workload like 'failing-%' and destination_port = 53")
        && ask(nodes, capture, runs).is_some_and(|runs| runs != "0" && runs != "1")
        && suffices(nodes, NAMESPACE, capture, ["solo", "early", "failing"])
}

/// What the addresses of a node's pods begin with.
fn range(nodes: &Nodes, node: &str) -> String {
    let node = nodes.get(&["node", node]).expect("a node");
    let range = node["spec"]["podCIDR"].as_str().expect("it has a range");
    range.strip_suffix("0/24").expect("of three bytes").to_owned()
}

/// How many rows of flows there are of some kind.
fn count(nodes: &Nodes, capture: &str, of: &str) -> u64 {
    let count = ask(nodes, capture, &format!("select count(*) from flows where {of}"));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Whether somebody outside gets an answer at a node's port.
fn visits(nodes: &Nodes, address: &str) -> bool {
    run(nodes.user("traffic").args(["call", address])).expect("they try").starts_with("passes")
}

/// `solo` calls somebody outside and its own Service, which has a port of every node; `early` called it before anything is
/// recorded, and keeps its connection; `brief` is a job of a moment each minute, and `failing` one that fails after two
/// seconds, which somebody who does not answer is waited for.
fn objects() -> [Value; 5] {
    let mut solo = deployment("solo", SERVES, &["solo:80", OUTSIDE]);
    solo["spec"]["template"]["spec"]["nodeName"] = json!("n1");
    let mut own = service("solo");
    own["spec"]["type"] = json!("NodePort");
    own["spec"]["ports"][0]["nodePort"] = json!(30081);
    [
        solo,
        own,
        deployment("early", &["service", "--keep"], &["solo:80"]),
        cron_job("brief", &["call", "solo:80"]),
        cron_job("failing", &["call", "--strict", "nowhere.example.com:80", "192.168.77.99:9"]),
    ]
}

const OUTSIDE: &str = "outside.example.com:8443";
