//! What the tests in a real cluster share: the chart, a person who monitors, and somebody outside.

use std::{
    panic::{self, AssertUnwindSafe},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use testdata::{
    nodes::{Nodes, run},
    recording::Monitor,
};

/// Installs the chart in one of its setups, and waits until it runs.
pub(crate) fn install(nodes: &Nodes, setup: &str) {
    nodes.kubectl(&["create", "namespace", "flowscribe"]).expect("a namespace");
    let label = "pod-security.kubernetes.io/enforce=privileged";
    nodes.kubectl(&["label", "namespace", "flowscribe", label]).expect("a label");
    let chart = format!("{}/../deploy/chart", env!("CARGO_MANIFEST_DIR"));
    let mut install = nodes.user("helm");
    install.args(["install", "flowscribe", &chart, "--namespace", "flowscribe"]);
    install.args(["--values", &format!("{chart}/examples/{setup}.yaml")]);
    install.args(["--set", "image.repository=localhost/flowscribe,exporter.config.window=10s,cluster=lab"]);
    run(&mut install).expect("the chart is installed");
    for object in ["daemonset/flowscribe-exporter", "deployment/flowscribe-inventory", "deployment/flowscribe-receive"]
    {
        nodes
            .kubectl(&["rollout", "status", "--namespace", "flowscribe", "--timeout=5m", object])
            .expect("its pods are ready");
    }
}

/// Monitors a namespace, as a person who has an account that may.
pub(crate) fn monitor(nodes: &Nodes, namespace: &str, output: &str) -> Monitor {
    nodes.kubectl(&["create", "serviceaccount", "--namespace", "flowscribe", "me"]).expect("an account");
    let may = ["create", "clusterrolebinding", "me", "--clusterrole=view", "--serviceaccount=flowscribe:me"];
    nodes.kubectl(&may).expect("it may look");
    let mut command: Command = nodes.user("kubectl");
    command.args(["flowscribe", "monitor", "--namespaces", namespace, "--output", output]);
    command.args(["--service-account", "flowscribe/me", "--roll-interval", "5s"]);
    Monitor::spawn(command).expect("it finds the agents")
}

/// Waits until something is so.
///
/// # Panics
/// It is not for ten minutes.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(600);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_secs(1));
    }
}

/// Somebody on a machine beside the nodes; dropped, they go.
pub(crate) struct Outside(Child);

/// Has somebody outside of the cluster answer on a port.
pub(crate) fn outside(nodes: &Nodes, port: u16) -> Outside {
    let mut command = nodes.user("traffic");
    Outside(command.args(["service", "--listen", &port.to_string()]).spawn().expect("somebody outside answers"))
}

/// Has somebody outside of the cluster call an address again and again.
pub(crate) fn visitor(nodes: &Nodes, address: &str) -> Outside {
    let mut command = nodes.user("env");
    command.arg(format!("VISITED_ADDR={address}")).args(["traffic", "service", "--pause", "1"]);
    Outside(command.spawn().expect("somebody visits"))
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks what does not hold yet, and fails when it does: then the defect of this number is mended, and its mark is to go.
pub(crate) fn known(defect: u32, check: impl FnOnce()) {
    let held = panic::catch_unwind(AssertUnwindSafe(check));
    assert!(held.is_err(), "defect {defect} is mended: check it without a mark from now on");
    println!("KNOWN defect {defect}");
}
