//! A user's way: from installing the chart to policies that are in force, what is new after that, and back.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::Value;
use testdata::{demo::NAMESPACE, nodes::Nodes};

use crate::{
    apps::deployment,
    demo::{Demo, OUTSIDE_PORT, Probed},
    support::{Chart, apply, call, go_back, outside, record, regenerate, report, wait_until},
};

tests![the_demo_is_recorded_reported_and_enforced_and_goes_on_from_there];

fn the_demo_is_recorded_reported_and_enforced_and_goes_on_from_there() {
    let nodes = Nodes::start().expect("a cluster starts");
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let _outside = outside(&nodes, OUTSIDE_PORT);
    let demo = Demo::deploy(&nodes);
    // The engine lets a new pod through in a moment.
    let mut before = Probed::default();
    wait_until("every call to pass", || {
        before = demo.probe(&nodes);
        before.is_open()
    });

    chart(&nodes).install();
    record(&nodes, NAMESPACE, directory, |capture| demo.recorded(&nodes, capture));
    let (policies, _) = report(&nodes, NAMESPACE, directory);
    assert_eq!(specs(&policies), specs(&golden()));
    let way_back = apply(&nodes, NAMESPACE, directory, &policies);
    let after = demo.probe(&nodes);
    before.print("before");
    after.print("after");
    assert!(after.is_closed(), "{after:#?}");

    something_new_is_denied_reported_and_proposed(&nodes, directory);
    // What is probed by kubelet would have been restarted by now.
    demo.assert_well(&nodes);
    assert!(demo.probe(&nodes).is_closed(), "it goes on");
    go_back(&nodes, directory, &way_back);
    let mut back = Probed::default();
    wait_until("what it was before", || {
        back = demo.probe(&nodes);
        back.is_open() && call(&nodes, NAMESPACE, NEWCOMER, DENIED)
    });
    back.print("gone back");
}

/// A workload comes that calls one of the application, which nothing allows, and somebody outside, which nothing denies.
fn something_new_is_denied_reported_and_proposed(nodes: &Nodes, directory: &Path) {
    let outside = format!("outside.example.com:{OUTSIDE_PORT}");
    let newcomer = deployment(NEWCOMER, &["service"], &[DENIED, &outside]);
    nodes.apply(NAMESPACE, &[newcomer]).expect("it is deployed");
    nodes.wait_for_pods(NAMESPACE, &format!("deployment/{NEWCOMER}")).expect("it is ready");
    wait_until("what nothing denies", || call(nodes, NAMESPACE, NEWCOMER, &outside));
    assert!(!call(nodes, NAMESPACE, NEWCOMER, DENIED), "what is new is denied");
    let attempt = format!("{NAMESPACE}/{NEWCOMER}: left out, never established: {NAMESPACE}/emailservice 8080/TCP");
    let own_policy = format!("name: {NEWCOMER}-network\n");
    let mut set = String::new();
    wait_until("a set with what is new", || {
        let run = regenerate(nodes);
        assert!(run.is_complete, "{}", run.log);
        set = run.set;
        run.log.contains(&attempt) && set.contains(&own_policy)
    });
    let ingress = |set: &str| specs(set)[&name("emailservice-network")]["ingress"].to_string();
    assert!(!ingress(&set).contains(NEWCOMER), "what is denied is not proposed before somebody has decided: {set}");

    // Somebody decides that it is right.
    let pin = "regenerate.decisions.pin[0]";
    let decision = format!("{pin}.from={NAMESPACE}/{NEWCOMER},{pin}.to={NAMESPACE}/emailservice,{pin}.port=8080/tcp");
    chart(nodes).with(&decision).upgrade();
    let decided = regenerate(nodes);
    assert!(ingress(&decided.set).contains(NEWCOMER), "{}{}", decided.log, decided.set);
    let events = nodes.get(&["events.events.k8s.io", "--namespace", NAMESPACE]).expect("events");
    let reported =
        |event: &Value| event["reason"] == "PolicyChanged" && event["regarding"]["name"] == "emailservice-network";
    assert!(events["items"].as_array().into_iter().flatten().any(reported), "{events:#}");
    let way_back = apply(nodes, NAMESPACE, directory, &decided.set);
    wait_until("what was decided", || call(nodes, NAMESPACE, NEWCOMER, DENIED));
    go_back(nodes, directory, &way_back);
    wait_until("what it was before", || !call(nodes, NAMESPACE, NEWCOMER, DENIED));
}

fn chart(nodes: &Nodes) -> Chart<'_> {
    Chart::new(nodes, "receive").with("receive.extraArgs={--roll-interval=5s}")
}

/// Policies' specs by their names, of the demo's namespace.
fn specs(policies: &str) -> BTreeMap<String, Value> {
    let documents = serde_yaml::Deserializer::from_str(policies);
    let documents = documents.map(|document| Value::deserialize(document).expect("YAML"));
    let of_the_demo = documents.filter(|policy| policy["metadata"]["namespace"] == NAMESPACE);
    of_the_demo.map(|policy| (policy["metadata"]["name"].to_string(), policy["spec"].clone())).collect()
}

/// A name as [`specs`] has it.
fn name(of: &str) -> String {
    Value::from(of).to_string()
}

fn golden() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/microservices-demo.policies.yaml");
    fs::read_to_string(path).expect("it is there")
}

const NEWCOMER: &str = "newcomer";
/// The Service that it calls, whose pods listen on port 8080.
const DENIED: &str = "emailservice:5000";
