//! The demo's application as real pods, and every try of every pod: those that it makes, and those that nobody does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use testdata::{
    app::App,
    demo::{MICROSERVICES, NAMESPACE},
    nodes::{Nodes, run},
};

use crate::{apps::deployment, support::suffices};

/// A pod that plays a part of the application, or a stranger.
#[derive(Debug)]
struct Pod {
    name: String,
    workload: String,
    address: String,
}

/// The application, and a stranger, in a cluster.
pub(crate) struct Demo {
    calls: Vec<(String, String, u16)>,
    /// Ports by workload.
    ports: BTreeMap<String, Vec<u16>>,
    pods: Vec<Pod>,
}

/// Tries of one pod: those that the application makes, by name, and those that nobody makes, by address.
#[derive(Debug, Default)]
struct Tries {
    planned: BTreeSet<String>,
    others: BTreeSet<String>,
}

impl Demo {
    pub(crate) fn deploy(nodes: &Nodes) -> Self {
        let app = App::parse(MICROSERVICES).expect("the manifest is read");
        let objects = app.objects().expect("it is written");
        for namespace in [NAMESPACE, STRANGERS] {
            nodes.kubectl(&["create", "namespace", namespace]).expect("a namespace");
        }
        nodes.apply(NAMESPACE, &objects).expect("the application is deployed");
        nodes.apply(STRANGERS, &[deployment(STRANGER, &["service"], &[])]).expect("a stranger is deployed");
        let ports = objects.iter().filter(|object| object["kind"] == "Deployment").map(ports).collect();
        for (namespace, workload) in workloads(&ports) {
            nodes.wait_for_pods(namespace, &format!("deployment/{workload}")).expect("its pods are ready");
        }
        let pods = [NAMESPACE, STRANGERS].into_iter().flat_map(|namespace| pods(nodes, namespace)).collect();
        Self { calls: app.calls(), ports, pods }
    }

    fn tries(&self, of: &Pod) -> Tries {
        let mut tries = Tries::default();
        let mut called = BTreeSet::new();
        for (_, callee, port) in self.calls.iter().filter(|(caller, ..)| *caller == of.workload) {
            tries.planned.insert(format!("{callee}:{port}"));
            called.insert(callee.as_str());
        }
        for other in self.pods.iter().filter(|other| other.name != of.name) {
            let ports = self.ports.get(&other.workload).into_iter().flatten();
            if !called.contains(other.workload.as_str()) {
                tries.others.extend(ports.map(|port| format!("{}:{port}", other.address)));
            }
        }
        // A stranger has no policy of its own, and may leave the cluster.
        if of.workload != STRANGER {
            tries.others.insert(format!("{OUTSIDE}:{OUTSIDE_PORT}"));
        }
        tries
    }

    /// Whether a capture has every call of the application, and suffices for policies of all workloads.
    pub(crate) fn recorded(&self, nodes: &Nodes, capture: &str) -> bool {
        let query = "select distinct source_workload || ' ' || destination_workload from edges";
        let mut ask = nodes.user("flowscribe");
        let Ok(seen) = run(ask.args(["sql", "--input", capture, "--format", "csv", query])) else { return false };
        let seen: BTreeSet<&str> = seen.lines().collect();
        self.calls.iter().all(|(caller, callee, _)| seen.contains(&*format!("{caller} {callee}")))
            && suffices(nodes, NAMESPACE, capture, self.ports.keys().map(String::as_str))
    }

    /// Has every pod make all tries, and returns how many there were of the application's and of others, and how many of
    /// each passed.
    pub(crate) fn probe(&self, nodes: &Nodes) -> Probed {
        let mut probed = Probed::default();
        for pod in &self.pods {
            let tries = self.tries(pod);
            let namespace = if pod.workload == STRANGER { STRANGERS } else { NAMESPACE };
            let mut arguments = vec!["exec", "--namespace", namespace, &pod.name, "--", "/traffic", "call"];
            arguments.extend(tries.planned.iter().chain(&tries.others).map(String::as_str));
            for line in nodes.kubectl(&arguments).expect("it tries").lines() {
                let (result, what) = line.split_once(' ').expect("what came of it");
                let to = what.split(' ').next().unwrap_or_default();
                let (all, wrong) = if tries.planned.contains(to) {
                    (&mut probed.planned, result != "passes")
                } else {
                    (&mut probed.others, result == "passes")
                };
                *all += 1;
                if wrong {
                    probed.unexpected.insert(format!("{} → {line}", pod.name));
                }
            }
        }
        probed
    }
}

/// What came of all tries.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) planned: usize,
    pub(crate) others: usize,
    /// Calls of the application that were cut, and others that passed.
    pub(crate) unexpected: BTreeSet<String>,
}

/// Name of a Deployment, and the ports of its containers.
fn ports(deployment: &Value) -> (String, Vec<u16>) {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let ports = ports.filter_map(|port| port["containerPort"].as_u64()).map(|port| port as u16).collect();
    (deployment["metadata"]["name"].as_str().unwrap_or_default().to_owned(), ports)
}

fn workloads(ports: &BTreeMap<String, Vec<u16>>) -> Vec<(&str, &str)> {
    ports.keys().map(|name| (NAMESPACE, name.as_str())).chain([(STRANGERS, STRANGER)]).collect()
}

fn pods(nodes: &Nodes, namespace: &str) -> Vec<Pod> {
    let list = nodes.get(&["pods", "--namespace", namespace]).expect("its pods");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().into_iter().flatten();
    pods.map(|pod| Pod {
        name: text(&pod["metadata"]["name"]),
        workload: text(&pod["metadata"]["labels"]["app"]),
        address: text(&pod["status"]["podIP"]),
    })
    .collect()
}

const STRANGERS: &str = "strangers";
const STRANGER: &str = "stranger";
/// Something outside of the cluster that answers: see `testdata/cluster/env`.
const OUTSIDE: &str = "203.0.113.10";
pub(crate) const OUTSIDE_PORT: u16 = 8443;
