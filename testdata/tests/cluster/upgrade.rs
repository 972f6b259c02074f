//! From a release before this one: nothing that was recorded is lost, whichever of the two an agent is of.

use std::{path::Path, process::Command};

use testdata::nodes::{Nodes, run};

use crate::{
    apps::{SERVES, deployment, service},
    support::{Chart, RELEASE, ask_receiver, regenerate, wait_until},
};

tests![nothing_is_lost_over_an_upgrade];

/// What is upgraded from, whose image `.ci/cluster` makes: it wrote captures of schema version 1.
const BEFORE: &str = "1293d0a";
const NOW: &str = env!("CARGO_PKG_VERSION");
const NAMESPACE: &str = "calls";

fn nothing_is_lost_over_an_upgrade() {
    let nodes = Nodes::start().expect("a cluster starts");
    let directory = tempfile::tempdir().expect("a directory");
    nodes.kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    let app = [deployment("server", SERVES, &[]), service("server"), deployment("client", &["service"], &[])];
    nodes.apply(NAMESPACE, &app).expect("it is deployed");
    for name in ["server", "client"] {
        nodes.wait_for_pods(NAMESPACE, &format!("deployment/{name}")).expect("it is ready");
    }
    extract_chart(directory.path());
    let settings = "receive.extraArgs={--roll-interval=5s}";
    let old = Chart::at(directory.path().join("deploy/chart"), &nodes, "receive").with(settings);
    old.with(&format!("image.tag={BEFORE}")).install();
    call_times(&nodes, CALLS);
    wait_until("what was called before", || recorded(&nodes) == [CALLS; 2]);
    let before = whole_set(&nodes);

    // Agents of the old release go on, and what receives and reads is of the new one.
    let new = Chart::new(&nodes, "receive").with(settings);
    new.with("exporter.updateStrategy.type=OnDelete,exporter.updateStrategy.rollingUpdate=null").upgrade();
    call_times(&nodes, CALLS);
    let new = Chart::new(&nodes, "receive").with(settings);
    new.wait();
    call_times(&nodes, CALLS);
    wait_until("what old agents saw", || recorded(&nodes) == [3 * CALLS; 2]);
    assert_eq!(tags(&nodes, "exporter"), [BEFORE, BEFORE]);
    assert_eq!(tags(&nodes, "receive"), [NOW]);

    // Agents of the new release, one after the other: what the old ones have yet to send is sent, by them or in their place.
    call_times(&nodes, CALLS);
    new.upgrade();
    new.wait();
    call_times(&nodes, CALLS);
    wait_until("what new agents saw", || recorded(&nodes) == [5 * CALLS; 2]);
    assert_eq!(tags(&nodes, "exporter"), [NOW, NOW]);
    let after = whole_set(&nodes);
    assert_eq!(spec(&after), spec(&before), "the same is learned of what both recorded");
}

/// The policies of both, once a set has them.
fn whole_set(nodes: &Nodes) -> String {
    let mut set = String::new();
    wait_until("policies of both", || {
        let run = regenerate(nodes);
        assert!(run.is_complete, "{}", run.log);
        set = run.set;
        ["client", "server"].iter().all(|name| set.contains(&format!("name: {name}-network\n")))
    });
    set
}

/// What the server's policy says.
fn spec(set: &str) -> &str {
    let policy = set.split("---\n").find(|policy| policy.contains("name: server-network\n")).expect("it has one");
    policy.split_once("\nspec:").expect("it says something").1
}

/// Has the client call the server so many times.
fn call_times(nodes: &Nodes, times: u64) {
    let mut call = vec!["exec", "--namespace", NAMESPACE, "deployment/client", "--", "/traffic", "call", "--strict"];
    call.resize(call.len() + times as usize, "server:80");
    nodes.kubectl(&call).expect("it answers");
}

/// How many connections from the client to the server the receiver has, as their nodes recorded each end.
fn recorded(nodes: &Nodes) -> [u64; 2] {
    let sum = |of: &str| {
        let sum = ask_receiver(nodes, &format!("select coalesce(sum(connections), 0) from flows where {of}"));
        sum.unwrap_or(0)
    };
    [
        "observer = 'client' and source_workload = 'client' and destination_port = 80",
        "observer = 'server' and destination_workload = 'server' and destination_port = 8080",
    ]
    .map(sum)
}

/// Tags of the images of the pods of a component.
fn tags(nodes: &Nodes, component: &str) -> Vec<String> {
    let selector = format!("app.kubernetes.io/component={component}");
    let image = "jsonpath={.items[*].spec.containers[0].image}";
    let pods = ["get", "pods", "--namespace", RELEASE, "--selector", &selector, "--output", image];
    let images = nodes.kubectl(&pods).expect("its pods");
    images.split(' ').filter_map(|image| Some(image.rsplit_once(':')?.1.to_owned())).collect()
}

/// Puts the chart of the release before into a directory.
fn extract_chart(directory: &Path) {
    let (archive, root) = (directory.join("chart.tar"), Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let mut git = Command::new("git");
    git.arg("-C").arg(root).args(["archive", "--output"]).arg(&archive).args([BEFORE, "deploy/chart"]);
    run(&mut git).expect("the history has it");
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(directory)).expect("it is extracted");
}

const CALLS: u64 = 20;
