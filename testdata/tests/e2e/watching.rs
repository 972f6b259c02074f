//! An API server, a lab in it, and the programs that watch it.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};
use serde_json::{Value, json};
use testdata::{
    cluster::{Cluster, object},
    lab::Lab,
    recording::Recording,
};

use crate::support::{documents, executable, flowscribe, free_address, rows_so_far, wait_until};

/// A cluster with a lab's node in it.
pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) cluster: Arc<Cluster>,
    /// Where captures go.
    pub(crate) directory: tempfile::TempDir,
}

/// A program that is killed when it is dropped.
pub(crate) struct Running(Child);

impl Site {
    pub(crate) fn new() -> Self {
        if let Some(missing) = Lab::missing().or_else(Cluster::missing) {
            panic!("these tests were asked for, and can't run: {missing}");
        }
        let cluster = Arc::new(Cluster::start().expect("the API server starts"));
        allow(&cluster);
        let lab = Lab::in_cluster(executable(), &cluster).expect("the lab starts");
        Self { lab, cluster, directory: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts an agent and waits until it knows its pods.
    pub(crate) fn agent(&self, name: &str, extra: &[&str]) -> Recording {
        let (recording, address) = self.agent_alone(name, extra);
        wait_until("knowing the pods", || get(&address, "/readyz").starts_with("HTTP/1.1 200"));
        recording
    }

    /// Starts an agent, which may not know its pods yet, and tells where its metrics are.
    pub(crate) fn agent_alone(&self, name: &str, extra: &[&str]) -> (Recording, String) {
        let address = free_address();
        let quick = ["--window", "1s", "--roll-interval", "1s"];
        let extra = [&["--metrics-address", &address], &quick[..], extra].concat();
        let kubeconfig = self.cluster.kubeconfig("agent");
        let started = Recording::in_cluster(executable(), &self.lab, &kubeconfig, &self.path(name), &extra);
        (started.expect("the agent starts"), address)
    }

    /// Starts `flowscribe inventory`, and waits until everything is on disk.
    pub(crate) fn inventory(&self, name: &str) -> Running {
        let (running, log) = self.inventory_waiting(name);
        wait_until("knowing the cluster", || read(&log).contains("objects are known"));
        running
    }

    /// Starts `flowscribe inventory`, which may have to wait for its turn, and tells where its words are.
    pub(crate) fn inventory_waiting(&self, name: &str) -> (Running, PathBuf) {
        let log = self.path(&format!("{name}.log"));
        let file = std::fs::File::create(&log).expect("a log");
        let child = self.inventory_command(name).stderr(file).spawn();
        (Running(child.expect("flowscribe starts")), log)
    }

    /// Runs `flowscribe inventory --once`; what it said, or what it failed with.
    pub(crate) fn inventory_once(&self, name: &str) -> Result<String, String> {
        let output = self.inventory_command(name).arg("--once").output().expect("flowscribe starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    fn inventory_command(&self, name: &str) -> Command {
        let mut command = Command::new(executable());
        command.args(["flowscribe", "inventory", "--cluster", "lab", "--output"]).arg(self.path(name));
        command.args(["--cluster-cidrs", "172.31.0.0/16", "--roll-interval", "1s"]);
        command.env("KUBECONFIG", self.cluster.kubeconfig("inventory")).stdin(Stdio::null());
        command
    }

    /// Waits until so many ends of connections are in the files of a capture.
    pub(crate) fn wait_for_ends(&self, name: &str, ends: i64) {
        let written = || rows_so_far::<FlowRecord>(&self.path(name)).iter().map(|row| row.connections).sum::<i64>();
        wait_until(&format!("{ends} ends of connections in {name}"), || written() >= ends);
    }

    /// Waits until an object is in the files of a capture.
    pub(crate) fn wait_for_object(&self, name: &str, is_it: impl Fn(&InventoryRecord) -> bool) {
        wait_until(&format!("news of an object in {name}"), || {
            rows_so_far::<InventoryRecord>(&self.path(name)).iter().any(&is_it)
        });
    }

    /// The policies of some captures, and what is said beside them.
    pub(crate) fn report(&self, names: &[&str], extra: &[&str]) -> (String, String) {
        let inputs: Vec<String> = names.iter().map(|name| self.path(name).to_string_lossy().into_owned()).collect();
        let mut arguments = vec!["report"];
        arguments.extend(inputs.iter().flat_map(|input| ["--input", input]));
        arguments.extend(extra);
        let output = flowscribe(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(output.stdout), text(output.stderr))
    }

    /// The result of a query over some captures, as CSV without its header.
    pub(crate) fn sql(&self, names: &[&str], query: &str) -> Vec<String> {
        let inputs: Vec<String> = names.iter().map(|name| self.path(name).to_string_lossy().into_owned()).collect();
        let mut arguments = vec!["sql", "--format", "csv", query];
        arguments.extend(inputs.iter().flat_map(|input| ["--input", input]));
        let output = flowscribe(&arguments);
        assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().skip(1).map(str::to_owned).collect()
    }
}

impl Running {
    /// Ends it as an init system does, and waits for it.
    pub(crate) fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).expect("it runs");
        let status = self.0.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a capture has the windows of the agents of these nodes up to now, with all that belongs to them.
pub(crate) fn wait_for_agents(capture: &Path, nodes: &[&str]) {
    let now = TimestampMs::now();
    for node in nodes {
        wait_until(&format!("word of the agent of {node}"), || {
            let health = rows_so_far::<HealthRecord>(capture);
            let of_node = health.iter().filter(|row| *row.node == **node && row.window_end > now);
            of_node.max_by_key(|row| row.window_end).is_some_and(|last| {
                has_all::<FlowRecord>(capture, &last.run_id, last.flows_next_seq)
                    && has_all::<InventoryRecord>(capture, &last.run_id, last.inventory_next_seq)
            })
        });
    }
}

/// Whether all rows of a run before this number are in a capture.
fn has_all<R: Record>(capture: &Path, run: &str, next_seq: i64) -> bool {
    let rows = rows_so_far::<R>(capture);
    let of_run = rows.iter().map(Record::origin).filter(|(of, seq)| ***of == *run && *seq < next_seq);
    of_run.map(|(_, seq)| seq).collect::<BTreeSet<i64>>().len() as i64 == next_seq
}

/// The permissions that the manifests install, and no others.
pub(crate) fn allow(cluster: &Cluster) {
    for object in installed("receive") {
        let kind = object["kind"].as_str().unwrap_or_default();
        if ["Namespace", "ServiceAccount"].contains(&kind) || object["apiVersion"] == "rbac.authorization.k8s.io/v1" {
            cluster.create(&object).expect("the API server takes the rules");
        }
    }
    // And what the chart adds with remote-metadata: cluster.
    let role = object("rbac.authorization.k8s.io/v1", "ClusterRole", None, "flowscribe-exporter");
    let mut rules = cluster.read(&role).expect("it answers").expect("it is there")["rules"].clone();
    for (group, resource) in [("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")] {
        let rule = json!({ "apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"] });
        rules.as_array_mut().expect("it has some").push(rule);
    }
    cluster.change(&role, &json!({ "rules": rules })).expect("the API server takes the rules");
    wait_for_rules(cluster, &installed("receive"));
}

/// Waits until the API server goes by the bindings among some objects, of which it hears a moment after it took them.
pub(crate) fn wait_for_rules(cluster: &Cluster, objects: &[Value]) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for binding in objects.iter().filter(|object| text(&object["kind"]).ends_with("RoleBinding")) {
        let (kind, namespace) = (text(&binding["roleRef"]["kind"]), text(&binding["metadata"]["namespace"]));
        let of_role = Some(&*namespace).filter(|_| kind == "Role");
        let role = object("rbac.authorization.k8s.io/v1", &kind, of_role, &text(&binding["roleRef"]["name"]));
        let role = cluster.read(&role).expect("it answers").expect("the role is there");
        let account = &binding["subjects"][0];
        let account = (text(&account["namespace"]), text(&account["name"]));
        for rule in role["rules"].as_array().into_iter().flatten() {
            let [verb, group, resource, name] =
                ["verbs", "apiGroups", "resources", "resourceNames"].map(|list| text(&rule[list][0]));
            let asked = [&*verb, &*group, &*resource, &*name, &*namespace];
            wait_until(&format!("that {account:?} may {asked:?}"), || {
                cluster.may((&account.0, &account.1), asked).expect("it answers")
            });
        }
    }
}

/// The objects of a setup.
pub(crate) fn installed(setup: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/manifests/{setup}.yaml"));
    let manifests = std::fs::read_to_string(path).expect("the manifests are there");
    documents(&manifests)
}

/// What an HTTP server answers, with its headers; nothing when it is not there.
pub(crate) fn get(address: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer.replacen("HTTP/1.0", "HTTP/1.1", 1)
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
