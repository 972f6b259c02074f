//! What the tests in a real cluster share: the chart, a person who uses it, and somebody outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use testdata::{
    nodes::{Nodes, run, run_to_hear},
    recording::Monitor,
};

/// The chart, in one of its setups.
pub(crate) struct Chart<'a> {
    nodes: &'a Nodes,
    path: PathBuf,
    setup: &'a str,
    settings: String,
}

impl<'a> Chart<'a> {
    pub(crate) fn new(nodes: &'a Nodes, setup: &'a str) -> Self {
        Self::at(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart"), nodes, setup)
    }

    /// The chart of a directory.
    pub(crate) fn at(path: PathBuf, nodes: &'a Nodes, setup: &'a str) -> Self {
        let settings = "image.repository=localhost/flowscribe,cluster=lab,exporter.config.window=10s".into();
        Self { nodes, path, setup, settings }
    }

    /// With more settings, as `--set` takes them.
    pub(crate) fn with(self, settings: &str) -> Self {
        Self { settings: format!("{},{settings}", self.settings), ..self }
    }

    /// Installs it, and waits until it runs.
    pub(crate) fn install(&self) {
        self.create();
        self.admit();
    }

    /// Installs it, whether or not it can run there.
    pub(crate) fn create(&self) {
        self.helm("install", &["--create-namespace"]);
    }

    /// Says that agents may run in its namespace, and waits until all of it does.
    pub(crate) fn admit(&self) {
        let label = format!("{POD_SECURITY}=privileged");
        self.nodes.kubectl(&["label", "--overwrite", "namespace", RELEASE, &label]).expect("a label");
        self.wait();
    }

    /// Installs this in place of what is installed; [`Self::wait`] waits until it runs.
    pub(crate) fn upgrade(&self) {
        self.helm("upgrade", &[]);
    }

    /// Waits until all of it runs.
    pub(crate) fn wait(&self) {
        let objects = self.nodes.get(&["daemonsets,deployments", "--namespace", RELEASE]).expect("what is to run");
        for object in objects["items"].as_array().into_iter().flatten() {
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            if object["spec"]["updateStrategy"]["type"] != "OnDelete" {
                let name = format!("{}/{}", kind.as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
                self.nodes.wait_for_pods(RELEASE, &name).expect("its pods are ready");
            }
        }
    }

    pub(crate) fn uninstall(&self) {
        run(self.nodes.user("helm").args(["uninstall", RELEASE, "--namespace", RELEASE])).expect("it is uninstalled");
    }

    fn helm(&self, verb: &str, extra: &[&str]) {
        let mut helm = self.nodes.user("helm");
        helm.args([verb, RELEASE]).arg(&self.path).args(["--namespace", RELEASE, "--set", &self.settings]).args(extra);
        helm.arg("--values").arg(self.path.join(format!("examples/{}.yaml", self.setup)));
        run(&mut helm).expect("the chart is installed");
    }
}

/// Makes an account that may look at pods, by which agents know who records.
pub(crate) fn account(nodes: &Nodes) {
    nodes.kubectl(&["create", "serviceaccount", "--namespace", RELEASE, "me"]).expect("an account");
    let may = ["create", "clusterrolebinding", "me", "--clusterrole=view", "--serviceaccount=flowscribe:me"];
    nodes.kubectl(&may).expect("it may look");
}

/// Begins to record a namespace into `capture` of a directory, as that account, while a window of the agents is half over.
pub(crate) fn monitor(nodes: &Nodes, namespace: &str, directory: &Path) -> Monitor {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let of_window = Duration::from_millis((now.as_millis() % WINDOW.as_millis()) as u64);
    thread::sleep((WINDOW / 2).checked_sub(of_window).unwrap_or(WINDOW * 3 / 2 - of_window));
    let mut command = nodes.user("kubectl");
    command.args(["flowscribe", "monitor", "--namespaces", namespace, "--output", &within(directory, "capture")]);
    command.args(["--service-account", "flowscribe/me", "--roll-interval", "5s"]);
    Monitor::spawn(command).expect("it finds the agents")
}

/// Records a namespace into `capture` of a directory until enough is in it.
pub(crate) fn record(nodes: &Nodes, namespace: &str, directory: &Path, is_enough: impl Fn(&str) -> bool) {
    account(nodes);
    let monitor = monitor(nodes, namespace, directory);
    let capture = within(directory, "capture");
    wait_until("all that is to be recorded", || is_enough(&capture));
    let (said, is_well) = monitor.stop(1).expect("it runs");
    assert!(is_well, "{said}");
}

/// The answer to a query of one value over a capture, if there is one yet.
pub(crate) fn ask(nodes: &Nodes, capture: &str, query: &str) -> Option<String> {
    let mut sql = nodes.user("flowscribe");
    let text = run(sql.args(["sql", "--input", capture, "--format", "csv", query])).ok()?;
    text.lines().nth(1).map(str::to_owned)
}

/// The answer to a query of one number over what the receiver has in files, as the documentation asks it.
pub(crate) fn ask_receiver(nodes: &Nodes, query: &str) -> Option<u64> {
    let sql = ["/flowscribe", "sql", "--input", "/var/lib/flowscribe/capture", "--format", "csv", query];
    let receiver = ["exec", "--namespace", RELEASE, "deployment/flowscribe-receive", "--"];
    nodes.kubectl(&[&receiver[..], &sql].concat()).ok()?.lines().nth(1)?.parse().ok()
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

/// Policies of a namespace from the capture of a directory, and what is said with them.
pub(crate) fn report(nodes: &Nodes, namespace: &str, directory: &Path) -> (String, String) {
    let mut report = nodes.user("flowscribe");
    report.args(["report", "--input", &within(directory, "capture"), "--namespaces", namespace]);
    run_to_hear(&mut report).expect("policies")
}

/// A run of `flowscribe regenerate`.
pub(crate) struct Regenerated {
    pub(crate) is_complete: bool,
    pub(crate) log: String,
    /// The policies of the set that there is now.
    pub(crate) set: String,
}

/// Has the set of policies made anew, as the CronJob does.
pub(crate) fn regenerate(nodes: &Nodes) -> Regenerated {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let name = format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed));
    let own = ["--namespace", RELEASE];
    nodes
        .kubectl(&[&own[..], &["create", "job", "--from=cronjob/flowscribe-regenerate", &name]].concat())
        .expect("a job");
    let mut is_complete = false;
    wait_until("the end of a run", || {
        let job = nodes.get(&[&own[..], &["job", &name]].concat()).expect("the job");
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        is_complete = conditions.iter().any(|condition| condition["type"] == "Complete");
        is_complete || conditions.iter().any(|condition| condition["type"] == "Failed")
    });
    let log =
        nodes.kubectl(&[&own[..], &["logs", "--all-containers", &format!("job/{name}")]].concat()).expect("its log");
    let maps = nodes.get(&[&own[..], &["configmaps"]].concat()).expect("ConfigMaps");
    let mut maps = maps["items"].as_array().into_iter().flatten();
    let map = maps.find(|map| map["metadata"]["name"] == "flowscribe-policies").cloned().unwrap_or_default();
    let data = map["data"].as_object().into_iter().flatten();
    let policies = data.filter(|(name, _)| name.ends_with(".yaml") && *name != "kustomization.yaml");
    let set: Vec<&str> = policies.filter_map(|(_, text)| text.as_str()).collect();
    Regenerated { is_complete, log, set: set.join("---\n") }
}

/// Applies policies of a namespace, waits until they are in force, and returns the commands that go back.
pub(crate) fn apply(nodes: &Nodes, namespace: &str, directory: &Path, policies: &str) -> Vec<String> {
    fs::write(directory.join("policies.yaml"), policies).expect("a file");
    let apply = |extra: &[&str]| {
        let mut apply = nodes.user("kubectl");
        apply.args(["flowscribe", "apply", "--policies", "policies.yaml", "--input", "capture"]);
        apply.args(["--namespaces", namespace]).args(extra);
        run_to_hear(apply.current_dir(directory)).expect("they are applied").1
    };
    let there = || nodes.get(&["networkpolicies", "--all-namespaces"]).expect("policies")["items"].clone();
    let before = there();
    apply(&["--dry-run"]);
    assert_eq!(there(), before, "a dry run changes nothing");
    let said = apply(&[]);
    nodes.wait_for_policies();
    let lines = said.lines().skip_while(|line| !line.starts_with("to go back")).skip(1);
    lines.take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect()
}

/// Runs the commands that go back from what was applied.
pub(crate) fn go_back(nodes: &Nodes, directory: &Path, commands: &[String]) {
    assert!(!commands.is_empty(), "there is a way back");
    for command in commands {
        run(nodes.user("bash").args(["-c", command]).current_dir(directory)).expect("it goes back");
    }
    nodes.wait_for_policies();
}

/// Whether a pod of a Deployment gets an answer of `service:port`.
pub(crate) fn call(nodes: &Nodes, namespace: &str, deployment: &str, to: &str) -> bool {
    let pod = format!("deployment/{deployment}");
    let call = ["exec", "--namespace", namespace, &pod, "--", "/traffic", "call", to];
    nodes.kubectl(&call).expect("it tries").starts_with("passes")
}

pub(crate) fn within(directory: &Path, name: &str) -> String {
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

/// Marks of defects that are known.
#[derive(Default)]
pub(crate) struct Marks {
    mended: Vec<u32>,
}

impl Marks {
    /// Notes whether what a defect breaks holds by now.
    pub(crate) fn note(&mut self, defect: u32, holds: bool) {
        println!("defect {defect}: {}", if holds { "mended" } else { "known" });
        if holds {
            self.mended.push(defect);
        }
    }

    /// Fails where a defect is mended: its mark is to go.
    pub(crate) fn end(self) {
        assert!(self.mended.is_empty(), "check these without a mark from now on: {:?}", self.mended);
    }
}

/// The agents' windows, which begin at whole multiples of it.
const WINDOW: Duration = Duration::from_secs(10);

/// Label of a namespace with what Pod Security allows there.
pub(crate) const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Name of the release, and of its namespace.
pub(crate) const RELEASE: &str = "flowscribe";
