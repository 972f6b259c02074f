//! What the tests in a real cluster share: the chart, a person who monitors, and somebody outside.

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::Child,
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
        nodes.wait_for_pods("flowscribe", object).expect("its pods are ready");
    }
}

/// Records a namespace into `capture` of a directory, as a person who has an account that may, until enough is in it.
pub(crate) fn record(nodes: &Nodes, namespace: &str, directory: &Path, is_enough: impl Fn(&str) -> bool) {
    nodes.kubectl(&["create", "serviceaccount", "--namespace", "flowscribe", "me"]).expect("an account");
    let may = ["create", "clusterrolebinding", "me", "--clusterrole=view", "--serviceaccount=flowscribe:me"];
    nodes.kubectl(&may).expect("it may look");
    let capture = within(directory, "capture");
    let mut command = nodes.user("kubectl");
    command.args(["flowscribe", "monitor", "--namespaces", namespace, "--output", &capture]);
    command.args(["--service-account", "flowscribe/me", "--roll-interval", "5s"]);
    let monitor = Monitor::spawn(command).expect("it finds the agents");
    wait_until("all that is to be recorded", || is_enough(&capture));
    let (said, is_well) = monitor.stop(1).expect("it runs");
    assert!(is_well, "{said}");
}

/// Whether a capture suffices for policies of these names: a recording of some seconds that began late does not.
pub(crate) fn suffices<'n>(
    nodes: &Nodes,
    namespace: &str,
    capture: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> bool {
    let mut report = nodes.user("flowscribe");
    let policies = run(report.args(["report", "--input", capture, "--namespaces", namespace])).unwrap_or_default();
    names.into_iter().all(|name| policies.contains(&format!("name: {name}-network\n")))
}

/// Makes policies of a namespace from the capture of a directory, and keeps them in `policies.yaml` beside it.
pub(crate) fn report(nodes: &Nodes, namespace: &str, directory: &Path) -> String {
    let mut report = nodes.user("flowscribe");
    report.args(["report", "--input", &within(directory, "capture"), "--namespaces", namespace]);
    let policies = run(&mut report).expect("policies");
    fs::write(directory.join("policies.yaml"), &policies).expect("a file");
    policies
}

/// Applies the policies of a directory, and waits until they are in force.
pub(crate) fn apply(nodes: &Nodes, directory: &Path) {
    let apply = |extra: &[&str]| {
        let mut apply = nodes.user("kubectl");
        apply.args(["flowscribe", "apply", "--policies", &within(directory, "policies.yaml")]);
        apply.args(["--input", &within(directory, "capture")]).args(extra);
        run(apply.current_dir(directory)).expect("they are applied")
    };
    apply(&["--dry-run"]);
    apply(&[]);
    nodes.wait_for_policies();
}

fn within(directory: &Path, name: &str) -> String {
    directory.join(name).to_string_lossy().into_owned()
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
