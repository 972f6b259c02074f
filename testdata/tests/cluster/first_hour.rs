//! What somebody meets who installs the chart for the first time, looks at once, and removes it again.

use std::{collections::BTreeSet, path::Path};

use testdata::nodes::{NODES, Nodes, run};

use crate::{
    apps::{SERVES, deployment, service},
    demo::OUTSIDE_PORT,
    support::{
        Chart, Marks, POD_SECURITY, RELEASE, account, ask, monitor, outside, regenerate, report, wait_until, within,
    },
};

tests![the_chart_is_installed_looked_at_and_removed];

const NAMESPACE: &str = "first";

fn the_chart_is_installed_looked_at_and_removed() {
    let nodes = Nodes::start().expect("a cluster starts");
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let _outside = outside(&nodes, OUTSIDE_PORT);
    nodes.kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    let calls = ["server:80", &format!("outside.example.com:{OUTSIDE_PORT}")];
    let app = [deployment("server", SERVES, &[]), service("server"), deployment("client", &["service"], &calls)];
    nodes.apply(NAMESPACE, &app).expect("it is deployed");

    let before = objects(&nodes);
    let mut marks = Marks::default();
    agents_that_may_not_run_are_named(&nodes, directory, &mut marks);
    let first = regenerate(&nodes);
    // The look that the chart's notes propose, or when it can be had.
    marks.note(4, first.is_complete || first.log.contains("minutes"));
    the_doctor_knows_nodes_that_are_containers(&nodes, &mut marks);
    a_client_certificate_is_enough(&nodes, directory, &mut marks);
    an_agent_that_restarts_is_a_gap(&nodes, directory, &mut marks);
    without_names_the_agent_says_so(&nodes, &mut marks);
    Chart::new(&nodes, "receive").with("receive.extraArgs={--roll-interval=5s}").upgrade();
    wait_until("a set", || regenerate(&nodes).is_complete);
    nothing_is_left(&nodes, &before, &mut marks);
    marks.end();
}

/// Where Pod Security refuses the agents, `monitor` says what to do.
fn agents_that_may_not_run_are_named(nodes: &Nodes, directory: &Path, marks: &mut Marks) {
    nodes.kubectl(&["create", "namespace", RELEASE]).expect("a namespace");
    nodes.kubectl(&["label", "namespace", RELEASE, &format!("{POD_SECURITY}=restricted")]).expect("a label");
    account(nodes);
    let chart = Chart::new(nodes, "receive");
    chart.create();
    let mut monitor = nodes.user("kubectl");
    monitor.args(["flowscribe", "monitor", "--namespaces", NAMESPACE, "--output", &within(directory, "none")]);
    let refused = run(monitor.args(["--service-account", "flowscribe/me"])).expect_err("no agent runs").to_string();
    assert!(refused.contains("no pod in namespace flowscribe"), "{refused}");
    marks.note(14, refused.contains(POD_SECURITY));
    chart.admit();
}

/// Nodes that are containers themselves have a hierarchy of control groups of their own, and lack nothing.
fn the_doctor_knows_nodes_that_are_containers(nodes: &Nodes, marks: &mut Marks) {
    let agent = ["exec", "--namespace", RELEASE, "daemonset/flowscribe-exporter", "--"];
    let found = nodes.kubectl(&[&agent[..], &["/flowscribe-exporter", "doctor"]].concat()).expect("it looks");
    assert!(found.contains("ok       the node's own network: that of process 1"), "defect 6: {found}");
    marks.note(7, !found.contains("a part of the hierarchy"));
}

/// Whoever has a kubeconfig with a client certificate, as an administrator, can record.
fn a_client_certificate_is_enough(nodes: &Nodes, directory: &Path, marks: &mut Marks) {
    let mut monitor = nodes.user("kubectl");
    monitor.args(["flowscribe", "monitor", "--namespaces", NAMESPACE, "--duration", "1s"]);
    let result = run(monitor.args(["--output", &within(directory, "other")]));
    let is_refused = |refused: &anyhow::Error| refused.to_string().contains("agents ask who you are by a token");
    marks.note(10, !result.as_ref().is_err_and(is_refused));
}

/// An agent that restarts within a short recording leaves a gap, and what it costs is said.
fn an_agent_that_restarts_is_a_gap(nodes: &Nodes, directory: &Path, marks: &mut Marks) {
    let recording = monitor(nodes, NAMESPACE, directory);
    let agents = ["delete", "pod", "--namespace", RELEASE, "--selector", "app.kubernetes.io/component=exporter"];
    nodes.kubectl(&agents).expect("they are replaced");
    Chart::new(nodes, "receive").wait();
    let withheld = format!("{NAMESPACE}/client: ingress and egress withheld and left open");
    let mut said = String::new();
    wait_until("what is withheld for the gap", || {
        said = report(nodes, NAMESPACE, directory).1;
        let gaps = ask(nodes, &within(directory, "capture"), "select count(*) from capture_gaps");
        said.contains(&withheld) && gaps.is_some_and(|gaps| gaps != "0")
    });
    // What can be done about it is said.
    marks.note(11, said.contains("longer"));
    let (said, is_well) = recording.stop(1).expect("it runs");
    assert!(is_well, "{said}");
}

/// Where an agent can't resolve its receiver's name, its log says that.
fn without_names_the_agent_says_so(nodes: &Nodes, marks: &mut Marks) {
    let table = "add table ip names; add chain ip names lost { type filter hook forward priority -10; }; \
        add rule ip names lost udp dport 53 drop";
    for node in NODES {
        run(nodes.on(node, "nft").arg(table)).expect("questions for names are lost");
    }
    let logs = ["logs", "--namespace", RELEASE, "--selector", "app.kubernetes.io/component=exporter", "--tail=-1"];
    let log = || -> BTreeSet<String> { nodes.kubectl(&logs).expect("a log").lines().map(str::to_owned).collect() };
    let before = log();
    let said = |text: &str| {
        let new = &log() - &before;
        new.into_iter().filter(|line| line.contains(text)).collect::<Vec<String>>()
    };
    let receivers = ["delete", "pod", "--namespace", RELEASE, "--selector", "app.kubernetes.io/component=receive"];
    nodes.kubectl(&receivers).expect("it is replaced");
    let mut refused = Vec::new();
    wait_until("agents that can't send", || {
        refused = said("does not take it");
        refused.len() >= 2
    });
    for node in NODES {
        run(nodes.on(node, "nft").arg("delete table ip names")).expect("they are answered again");
    }
    marks.note(15, refused.iter().any(|line| line.contains("lookup")));
    wait_until("all agents to send again", || said("answers again").len() >= 2);
}

/// Once the chart is uninstalled, nothing of it is left but the volume, of which Helm says that it is kept.
fn nothing_is_left(nodes: &Nodes, before: &BTreeSet<String>, marks: &mut Marks) {
    Chart::new(nodes, "receive").uninstall();
    let namespace = [
        "Namespace <none> flowscribe",
        "ServiceAccount flowscribe default",
        "ServiceAccount flowscribe me",
        "ConfigMap flowscribe kube-root-ca.crt",
        "ClusterRoleBinding <none> me",
        "PersistentVolumeClaim flowscribe flowscribe-receive",
    ];
    let set = "ConfigMap flowscribe flowscribe-policies";
    let is_known =
        |left: &str| left == set || left.starts_with("Lease flowscribe ") || left.contains("flowscribe/spool");
    let (mut left, mut tries) = (BTreeSet::new(), 0);
    wait_until("the end of what was installed", || {
        left = &objects(nodes) - before;
        // What the cluster does of its own is not ours.
        left.retain(|object| !namespace.contains(&&**object) && !object.contains(" kube-"));
        tries += 1;
        left.iter().all(|left| is_known(left)) || tries > 60
    });
    for node in NODES {
        let found = run(nodes.on(node, "find").args(["/var/lib/flowscribe", "-mindepth", "1"])).unwrap_or_default();
        left.extend(found.lines().map(|file| format!("{node}:{file}")));
    }
    let unexpected: Vec<&String> = left.iter().filter(|left| !is_known(left)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    marks.note(13, left.is_empty());
}

/// All objects of the cluster but those that come and go by themselves: kind, namespace and name.
fn objects(nodes: &Nodes) -> BTreeSet<String> {
    let kinds = nodes.kubectl(&["api-resources", "--verbs=list", "--output=name"]).expect("kinds of objects");
    let fleeting = ["events", "events.events.k8s.io", "componentstatuses", "endpoints"];
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !fleeting.contains(kind)).collect();
    let columns = "--output=custom-columns=:kind,:metadata.namespace,:metadata.name";
    let found =
        nodes.kubectl(&["get", "--all-namespaces", "--no-headers", columns, &kinds.join(",")]).expect("objects");
    found.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}
