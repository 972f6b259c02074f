//! The demo's application as real pods, and every try of every pod: those that it makes, and those that nobody does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use testdata::{
    app::{App, UNDECLARED_PORT},
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
        nodes
            .apply(STRANGERS, &[deployment(STRANGER, &["service", "--listen", "8080,9999"], &[])])
            .expect("a stranger is deployed");
        let mut ports: BTreeMap<_, _> =
            objects.iter().filter(|object| object["kind"] == "Deployment").map(ports).collect();
        ports.insert(STRANGER.into(), vec![8080]);
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
            let declared = self.ports.get(&other.workload).into_iter().flatten();
            let declared = declared.filter(|_| !called.contains(other.workload.as_str()));
            let ports = declared.chain([&UNDECLARED_PORT]);
            tries.others.extend(ports.map(|port| format!("{}:{port}", other.address)));
        }
        if of.workload == STRANGER {
            // Strangers have no policies, and reach one another and whatever is outside.
            let addresses = self.pods.iter().filter(|other| other.workload == STRANGER).map(|other| &other.address);
            let strangers: Vec<&String> = addresses.collect();
            tries.others.retain(|to| !strangers.iter().any(|address| to.starts_with(&format!("{address}:"))));
        } else {
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
            && suffices(
                nodes,
                NAMESPACE,
                capture,
                self.ports.keys().map(String::as_str).filter(|name| *name != STRANGER),
            )
    }

    /// Has every pod make all tries.
    pub(crate) fn probe(&self, nodes: &Nodes) -> Probed {
        let mut probed = Probed::default();
        for pod in &self.pods {
            let Tries { planned, others } = self.tries(pod);
            let mut passed = pod.call(nodes, planned.iter().chain(&others));
            // What is slow once on a busy machine is not cut.
            passed.extend(pod.call(nodes, planned.difference(&passed).cloned().collect::<Vec<_>>().iter()));
            probed.planned.add(&pod.name, &planned, &passed);
            probed.others.add(&pod.name, &others, &passed);
        }
        probed
    }

    /// Asserts that all pods are ready, and none was restarted, as a kubelet does whose probes are cut.
    pub(crate) fn assert_well(&self, nodes: &Nodes) {
        for namespace in [NAMESPACE, STRANGERS] {
            let list = nodes.get(&["pods", "--namespace", namespace]).expect("its pods");
            for pod in list["items"].as_array().into_iter().flatten() {
                let status = &pod["status"]["containerStatuses"][0];
                assert!(status["ready"] == true && status["restartCount"] == 0, "{pod:#}");
            }
        }
    }
}

impl Pod {
    /// Has the pod call addresses at the same time, and returns those that answered.
    fn call<'t>(&self, nodes: &Nodes, to: impl Iterator<Item = &'t String>) -> BTreeSet<String> {
        let to: Vec<&str> = to.map(String::as_str).collect();
        if to.is_empty() {
            return BTreeSet::new();
        }
        let namespace = if self.workload == STRANGER { STRANGERS } else { NAMESPACE };
        let call = ["exec", "--namespace", namespace, &self.name, "--", "/traffic", "call"];
        let text = nodes.kubectl(&[&call[..], &to].concat()).expect("it tries");
        text.lines().filter_map(|line| line.strip_prefix("passes ")).map(str::to_owned).collect()
    }
}

/// What came of all tries.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) planned: Count,
    pub(crate) others: Count,
}

/// Tries that passed, and those that were cut: `pod → address`.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) passed: BTreeSet<String>,
    pub(crate) cut: BTreeSet<String>,
}

impl Probed {
    /// Whether every try passes.
    pub(crate) fn is_open(&self) -> bool {
        self.planned.cut.is_empty() && self.others.cut.is_empty()
    }

    /// Whether what the application does passes, and nothing else.
    pub(crate) fn is_closed(&self) -> bool {
        self.planned.cut.is_empty() && self.others.passed.is_empty()
    }

    /// A row of a table.
    pub(crate) fn print(&self, when: &str) {
        let of =
            |some: &BTreeSet<String>, rest: &BTreeSet<String>| format!("{} of {}", some.len(), some.len() + rest.len());
        let (planned, others) =
            (of(&self.planned.passed, &self.planned.cut), of(&self.others.cut, &self.others.passed));
        println!("| {when} | {planned} planned calls passed | {others} others cut |");
    }
}

impl Count {
    fn add(&mut self, pod: &str, tries: &BTreeSet<String>, passed: &BTreeSet<String>) {
        for to in tries {
            let list = if passed.contains(to) { &mut self.passed } else { &mut self.cut };
            list.insert(format!("{pod} → {to}"));
        }
    }
}

/// Name of a Deployment, and the ports of its containers.
fn ports(deployment: &Value) -> (String, Vec<u16>) {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let ports = ports.filter_map(|port| port["containerPort"].as_u64()).map(|port| port as u16).collect();
    (deployment["metadata"]["name"].as_str().unwrap_or_default().to_owned(), ports)
}

fn workloads(ports: &BTreeMap<String, Vec<u16>>) -> Vec<(&str, &str)> {
    let namespace = |name: &str| if name == STRANGER { STRANGERS } else { NAMESPACE };
    ports.keys().map(|name| (namespace(name), name.as_str())).collect()
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
