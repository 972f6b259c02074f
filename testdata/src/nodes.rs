//! A real cluster of two nodes, whose kubelets, container runtimes and network are those that clusters have: the scripts
//! are in `testdata/cluster`, and `.ci/cluster` makes what they need.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A cluster; dropped, it is removed.
pub struct Nodes(());

impl Nodes {
    /// Starts a cluster, and waits until its nodes are ready and its names are resolved.
    ///
    /// # Errors
    /// Something of it does not start; what its scripts said is in the error.
    pub fn start() -> Result<Self> {
        let nodes = Self(()); // removes what there is, also where starting fails
        run(&mut Command::new(script("up.sh")))?;
        Ok(nodes)
    }

    /// A program that the administrator runs on a machine beside the nodes, where `kubectl` and `flowscribe` are on the path.
    pub fn user(&self, program: &str) -> Command {
        let mut command = Command::new(script("as-user"));
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// A program in the namespaces of a node.
    pub fn on(&self, node: &str, program: &str) -> Command {
        let mut command = Command::new(script("in"));
        command.args([node, program]).stdin(Stdio::null());
        command
    }

    /// What `kubectl` prints.
    ///
    /// # Errors
    /// It does not end well, and says why.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.user("kubectl").args(arguments))
    }

    /// The answer of `kubectl get`.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl prints JSON")
    }

    /// Waits until all pods of an object are ready.
    ///
    /// # Errors
    /// As [`Self::kubectl`], or they are not for five minutes.
    pub fn wait_for_pods(&self, namespace: &str, object: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", "--namespace", namespace, "--timeout=5m", object]).map(drop)
    }

    /// Waits until the engine on every node has taken in all policies that there are.
    ///
    /// # Panics
    /// The nodes don't answer, or it has not for three minutes.
    pub fn wait_for_policies(&self) {
        let policies = self.get(&["networkpolicies", "--all-namespaces"]).expect("the API server answers");
        let names: Vec<String> = policies["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|policy| policy["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(180);
        for node in NODES {
            loop {
                assert!(Instant::now() < deadline, "the engine on {node} does not take the policies in");
                let rules = run(self.on(node, "iptables-save").args(["--table", "filter"])).expect("the node answers");
                if names.iter().all(|name| rules.contains(name.as_str())) {
                    break;
                }
                thread::sleep(Duration::from_millis(200));
            }
        }
    }

    /// Applies objects of a namespace.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn apply(&self, namespace: &str, objects: &[Value]) -> Result<()> {
        let file = tempfile::Builder::new().suffix(".json").tempfile().context("make a file")?;
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        serde_json::to_writer(&file, &list).context("write the objects")?;
        self.kubectl(&["apply", "--namespace", namespace, "--filename", &file.path().to_string_lossy()]).map(drop)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let _ = run(&mut Command::new(script("down.sh")));
    }
}

/// Runs a command that ends well, and returns what it prints.
///
/// # Errors
/// It can't be started, or ends otherwise; what it said is in the error.
pub fn run(command: &mut Command) -> Result<String> {
    Ok(run_to_hear(command)?.0)
}

/// As [`run`], and returns what it says on standard error too.
///
/// # Errors
/// As [`run`].
pub fn run_to_hear(command: &mut Command) -> Result<(String, String)> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{command:?} ended with {}: {said}{text}", output.status);
    }
    Ok((text, said))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name)
}

/// Names of the nodes, of which the first has the control plane.
pub const NODES: [&str; 2] = ["n1", "n2"];
