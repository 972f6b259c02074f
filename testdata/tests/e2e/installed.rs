//! From the manifests to policies: what they allow and no more, two agents that record the demo, the scheduled run, its
//! policies in the cluster, and a person who monitors. Agents are processes here; the API server forwards their ports by
//! a kubelet that does nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use kubernetes::Resource;
use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord};
use serde_json::{Value, json};
use testdata::{
    app::{App, RunningApp},
    cluster::{self, Cluster},
    demo::{MICROSERVICES, NAMESPACE},
    generator::{self, Plan},
    lab::Lab,
    pod::Exchange,
    recording::{Monitor, Receiver, Recording},
};

use crate::{
    kubelet::Kubelet,
    support::{executable, free_address, rows, rows_so_far, wait_until},
    watching::{get, installed, wait_for_agents, wait_for_rules},
};

tests![
    each_account_may_do_what_it_does_and_nothing_else,
    policies_are_kept_up_to_date_and_applied,
    who_may_get_pods_may_monitor_them_by_port_forward,
];

const NODES: [&str; 2] = ["lab", "lab-b"];
const TOKEN: &str = "l0ngAndR4ndom";
const PLACE: &str = "flowscribe/flowscribe-policies";

fn kubectl(api: &Cluster, arguments: &[&str]) -> Output {
    let mut command = Command::new("kubectl");
    command.args(arguments).env("KUBECONFIG", api.kubeconfig("admin")).stdin(Stdio::null());
    command.output().expect("kubectl is installed")
}

/// Standard output of a program that ends well.
fn well(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{text}");
    text
}

fn manifests(setup: &str) -> String {
    format!("{}/../deploy/manifests/{setup}.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// An API server with the default setup in it.
fn install() -> Arc<Cluster> {
    if let Some(missing) = Lab::missing().or_else(Cluster::missing) {
        panic!("these tests were asked for, and can't run: {missing}");
    }
    let api = Arc::new(Cluster::start().expect("the API server starts"));
    api.create(&cluster::object("v1", "Namespace", None, "flowscribe")).expect("a namespace");
    for setup in ["receive", "collector", "object-store"] {
        let told = well(&kubectl(&api, &["apply", "--dry-run=server", "-f", &manifests(setup)]));
        assert!(told.lines().count() > 10, "{told}");
        assert!(told.lines().all(|line| line.contains("(server dry run)")), "{told}");
    }
    well(&kubectl(&api, &["apply", "--server-side", "-f", &manifests("receive")]));
    wait_for_rules(&api, &installed("receive"));
    api
}

fn each_account_may_do_what_it_does_and_nothing_else() {
    let api = install();
    let watched = || {
        Resource::cluster().into_iter().flat_map(|of| {
            let (group, plural) = (of.api.group.clone(), of.api.plural);
            ["list", "watch"].map(|verb| (verb.to_owned(), group.clone(), plural.clone()))
        })
    };
    let of = |verb: &str, group: &str, resource: &str| (verb.to_owned(), group.to_owned(), resource.to_owned());
    // Everywhere; in the own namespace whatever the name; and there with a name.
    let exporter: BTreeSet<_> = [
        of("list", "", "pods"),
        of("watch", "", "pods"),
        of("create", "authentication.k8s.io", "tokenreviews"),
        of("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]
    .into();
    let regenerate: BTreeSet<_> = [
        of("list", "networking.k8s.io", "networkpolicies"),
        of("create", "events.k8s.io", "events"),
        of("patch", "events.k8s.io", "events"),
    ]
    .into();
    let create_lease = of("create", "coordination.k8s.io", "leases");
    let lease = ["get", "update"].map(|verb| of(verb, "coordination.k8s.io", "leases"));
    let map = ["get", "patch"].map(|verb| of(verb, "", "configmaps"));
    let none = BTreeSet::new;
    let accounts = [
        ("flowscribe-exporter", exporter, none(), none()),
        ("flowscribe-inventory", watched().collect(), [create_lease.clone()].into(), lease.clone().into()),
        ("flowscribe-receive", none(), none(), none()),
        (
            "flowscribe-regenerate",
            regenerate,
            [create_lease, of("create", "", "configmaps")].into(),
            lease.into_iter().chain(map).collect(),
        ),
    ];
    let mut resources: BTreeSet<(String, String)> = watched().map(|(_, group, resource)| (group, resource)).collect();
    let others = [
        ("", "secrets"),
        ("", "configmaps"),
        ("", "events"),
        ("", "pods/exec"),
        ("", "pods/log"),
        ("", "pods/portforward"),
        ("", "serviceaccounts"),
        ("", "serviceaccounts/token"),
        ("", "nodes/proxy"),
        ("", "persistentvolumeclaims"),
        ("events.k8s.io", "events"),
        ("coordination.k8s.io", "leases"),
        ("networking.k8s.io", "networkpolicies"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("authentication.k8s.io", "tokenreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
        ("apps", "deployments/scale"),
    ];
    resources.extend(others.map(|(group, resource)| (group.to_owned(), resource.to_owned())));
    let mut asked = 0;
    for (account, everywhere, own, named) in accounts {
        for (group, resource) in &resources {
            for verb in ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"] {
                let what = (verb.to_owned(), group.clone(), resource.clone());
                let name = if resource == "configmaps" { "flowscribe-policies" } else { account };
                for (namespace, name) in
                    [("", ""), ("flowscribe", ""), ("flowscribe", name), ("flowscribe", "x"), ("demo", name)]
                {
                    let expected = everywhere.contains(&what)
                        || namespace == "flowscribe" && own.contains(&what)
                        || namespace == "flowscribe" && !["", "x"].contains(&name) && named.contains(&what);
                    let may = api.may(("flowscribe", account), [verb, group, resource, name, namespace]);
                    assert_eq!(
                        may.expect("it answers"),
                        expected,
                        "{account}: {verb} {group} {resource} {name} in {namespace:?}"
                    );
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 3000, "{asked} questions");
}

/// The demo in a cluster with the default setup: programs as its pods would run them, each with its own account.
struct Installation {
    api: Arc<Cluster>,
    lab: Lab,
    app: RunningApp,
    kubelet: Kubelet,
    agents: BTreeMap<&'static str, Recording>,
    receiver: Receiver,
    inventory: Recording,
    directory: tempfile::TempDir,
}

impl Installation {
    fn new() -> Self {
        let api = install();
        let directory = tempfile::tempdir().expect("a directory");
        let kubelet = Kubelet::start();
        let mut lab = Lab::on_nodes(executable(), &api, &NODES).expect("the lab starts");
        cluster::add_node(&api, "without-agent", &["10.244.0.99"], &[]).expect("a node");
        let app = App::parse(MICROSERVICES).expect("the manifest").start(&mut lab, NAMESPACE).expect("it starts");
        let token = directory.path().join("token");
        fs::write(&token, TOKEN).expect("written");
        let limited = ["--roll-interval", "1s", "--token-file", &token.to_string_lossy()];
        let receiver = Receiver::start(executable(), &directory.path().join("store"), &limited);
        let receiver = receiver.expect("the receiver starts");
        let mut inventory = Command::new(executable());
        inventory.args(["flowscribe", "inventory", "--cluster", "lab", "--otlp-endpoint", &receiver.grpc]);
        inventory
            .args(["--lease", "flowscribe-inventory", "--lease-namespace", "flowscribe", "--spool"])
            .arg(directory.path().join("spool"));
        inventory.env("KUBECONFIG", api.account("flowscribe", "flowscribe-inventory").expect("it is there"));
        inventory.env("OTEL_EXPORTER_OTLP_HEADERS", format!("Authorization=Bearer%20{TOKEN}"));
        let health = free_address();
        inventory.args(["--health-address", &health]);
        let inventory = Recording::spawn_until(inventory, "objects are known").expect("it starts");
        let known = inventory.wait_for("objects are known");
        let known: usize = known.split(' ').find_map(|word| word.parse().ok()).expect("it says how many");
        let stored = || rows_so_far::<InventoryRecord>(&directory.path().join("store")).len();
        wait_until("all of them in the store", || stored() >= known);
        for path in ["/livez", "/readyz"] {
            wait_until("being well", || get(&health, path).starts_with("HTTP/1.1 200"));
        }
        let mut site = Self { api, lab, app, kubelet, agents: BTreeMap::new(), receiver, inventory, directory };
        NODES.iter().for_each(|node| site.start_agent(node));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the agent of a node, and its pod in the API if that is not there yet.
    fn start_agent(&mut self, node: &'static str) {
        let name = format!("flowscribe-exporter-{node}");
        let mut pod = cluster::object("v1", "Pod", Some("flowscribe"), &name);
        let daemon_set =
            installed("receive").into_iter().find(|object| object["kind"] == "DaemonSet").expect("it is there");
        pod["metadata"]["labels"] = daemon_set["spec"]["template"]["metadata"]["labels"].clone();
        pod["spec"] = cluster::pod_spec();
        pod["spec"]["nodeName"] = node.into();
        self.api.create(&pod).expect("a pod");
        self.api.set_status(&pod, &json!({ "phase": "Running" })).expect("its status");
        let addresses = json!([{ "type": "InternalIP", "address": format!("10.244.0.{}", 1 + u8::from(node != NODES[0])) },
            { "type": "Hostname", "address": "127.0.0.1" }]);
        let kubelet = json!({ "kubeletEndpoint": { "Port": self.kubelet.port } });
        let of = cluster::object("v1", "Node", None, node);
        self.api.set_status(&of, &json!({ "addresses": addresses, "daemonEndpoints": kubelet })).expect("its status");
        let (live, metrics) = (free_address(), free_address());
        self.kubelet.forward(&name, &live);
        let account = self.api.account("flowscribe", "flowscribe-exporter").expect("it is there");
        let mut command = Recording::on_node(executable(), &self.lab, node, &account);
        command.args(["--window", "1s", "--otlp-endpoint", &self.receiver.grpc, "--live-address", &live]);
        command.args(["--metrics-address", &metrics]).arg("--spool").arg(self.path(&format!("spool-{node}")));
        command.env("OTEL_EXPORTER_OTLP_HEADERS", format!("Authorization=Bearer%20{TOKEN}"));
        let recording = Recording::spawn(command).expect("the agent starts");
        wait_until("knowing the pods", || get(&metrics, "/readyz").starts_with("HTTP/1.1 200"));
        self.agents.insert(node, recording);
    }

    /// Waits until what was played is in a capture.
    fn wait_for_flows(&self, capture: &str) {
        wait_for_agents(&self.path(capture), &NODES);
    }

    fn flowscribe(&self, kubeconfig: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(executable());
        command.arg("flowscribe").args(arguments).env("KUBECONFIG", kubeconfig).current_dir(self.directory.path());
        command.output().expect("it starts")
    }

    /// The scheduled run, as its account; what it printed, and said beside it.
    fn regenerate(&self, more: &[&str], code: i32) -> (String, String) {
        let account = self.api.account("flowscribe", "flowscribe-regenerate").expect("it is there");
        let arguments = [
            "regenerate",
            "--input",
            "store",
            "--state",
            "state",
            "--namespaces",
            NAMESPACE,
            "--lease",
            "flowscribe-regenerate",
            "--min-coverage",
            "0",
            "--lease-namespace",
            "flowscribe",
            "--cluster",
            "--events",
            "--exit-code",
        ];
        let output = self.flowscribe(&account, &[&arguments, more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{} {}", said.0, said.1);
        said
    }

    fn config_map(&self) -> Value {
        let map = cluster::object("v1", "ConfigMap", Some("flowscribe"), "flowscribe-policies");
        self.api.read(&map).expect("it answers").expect("it is there")
    }

    /// Events of policies in the demo's namespace, by reason, with the policies' names.
    fn events(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut events = BTreeMap::<String, BTreeSet<String>>::new();
        for event in self.api.list("events.k8s.io/v1", "Event", NAMESPACE).expect("it answers") {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            // The server has some of its own, of Services.
            if event["reportingController"] != "flowscribe.io/regenerate" {
                continue;
            }
            assert_eq!(event["regarding"]["kind"], "NetworkPolicy");
            events.entry(text(&event["reason"])).or_default().insert(text(&event["regarding"]["name"]));
        }
        events
    }

    fn policies(&self) -> BTreeMap<String, Value> {
        let listed = self.api.list("networking.k8s.io/v1", "NetworkPolicy", NAMESPACE).expect("it answers");
        listed.into_iter().map(|of| (of["metadata"]["name"].as_str().unwrap_or_default().to_owned(), of)).collect()
    }

    fn end(self) {
        for (_, agent) in self.agents {
            let said = agent.terminate().expect("it ends well");
            assert!(!said.contains("missing permission") && !said.contains("not allowed"), "{said}");
        }
        let said = self.inventory.terminate().expect("it ends well");
        assert!(!said.contains("cannot watch"), "{said}");
        self.receiver.stop().expect("it ends well");
    }
}

fn policies_are_kept_up_to_date_and_applied() {
    let mut site = Installation::new();
    // Without probes: to pods of the other node, they would come from a node that is not theirs.
    site.app.play(&mut site.lab, 4).expect("calls are answered");
    site.wait_for_flows("store");

    // The first set is the demo's.
    let (told, said) = site.regenerate(&["--config-map", PLACE], 3);
    assert!(
        told.contains("24 directions closed") && told.contains(&format!("written to ConfigMap {PLACE}")),
        "{told}{said}"
    );
    let map = site.config_map();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/apps/microservices-demo.policies.yaml");
    let golden = fs::read_to_string(golden).expect("the golden policies are committed");
    let data = map["data"].as_object().expect("it has data");
    let is_policy = |name: &&String| name.ends_with("-network.yaml");
    let written: Vec<&str> =
        data.iter().filter(|(name, _)| is_policy(name)).filter_map(|(_, text)| text.as_str()).collect();
    assert!(written.join("---\n") == golden, "with two agents too: {}", written.join("---\n"));
    assert!(
        data.contains_key("evidence.json") && data.contains_key("diff.md") && data.contains_key("kustomization.yaml")
    );
    assert_eq!(site.events()["PolicyAdded"].len(), 12);

    // Nothing changed: silence, and the same bytes.
    site.app.play(&mut site.lab, 1).expect("calls are answered");
    site.wait_for_flows("store");
    assert_eq!(site.regenerate(&["--config-map", PLACE], 0), (String::new(), String::new()), "nothing is new");
    assert_eq!(site.config_map(), map);

    // A new edge: exactly that.
    let pods = |name: &str| site.app.pods(name)[0];
    let (caller, callee) = (pods("adservice"), pods("redis-cart"));
    let to = (site.lab.ipv4(callee), 6379);
    site.lab.dial(caller, to, 1, Exchange::new(120, 900)).expect("it is answered");
    site.wait_for_flows("store");
    let (told, _) = site.regenerate(&["--config-map", PLACE], 3);
    let lines: Vec<&str> = told.lines().filter(|line| line.starts_with(['+', '-', '~'])).collect();
    assert_eq!(lines, ["+ demo/adservice → demo/redis-cart TCP 6379"], "{told}");
    let changed = &site.events()["PolicyChanged"];
    assert_eq!(changed, &["adservice-network", "redis-cart-network"].map(str::to_owned).into());

    apply(&site);
    apply_by_schedule(&site);

    // What does not fit into a ConfigMap is refused, and the last set stays.
    let large = site.path("large");
    generator::generate(&Plan::wide(150), &large).expect("a capture");
    let account = site.api.account("flowscribe", "flowscribe-regenerate").expect("it is there");
    let before = site.config_map();
    let output = site.flowscribe(&account, &["regenerate", "--input", "large", "--config-map", PLACE]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("a ConfigMap holds 1024 at most: write to a directory"),
        "{said}"
    );
    assert_eq!(site.config_map(), before);

    // Somebody has the lease.
    let lease = cluster::object("coordination.k8s.io/v1", "Lease", Some("flowscribe"), "flowscribe-regenerate");
    let held = json!({ "spec": { "holderIdentity": "somebody", "leaseDurationSeconds": 3600,
        "renewTime": "2099-01-01T00:00:00.000000Z" } });
    site.api.change(&lease, &held).expect("it is there");
    let (_, said) = site.regenerate(&["--config-map", PLACE], 4);
    assert!(said.contains("another run holds the lease flowscribe/flowscribe-regenerate"), "{said}");
    site.end();
}

/// Applies the set, as a person does.
fn apply(site: &Installation) {
    let admin = site.api.kubeconfig("admin");
    let run = |more: &[&str]| {
        let arguments = ["apply", "--policies", "policies", "--input", "store"];
        let output = site.flowscribe(&admin, &[&arguments, more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let count = |text: &str, word: &str| text.lines().filter(|line| line.split(' ').any(|of| of == word)).count();
    site.regenerate(&["--output", "policies"], 3);
    let (is_well, told, said) = run(&["--dry-run"]);
    assert!(is_well && count(&told, "created") == 12 && told.contains("(dry run)"), "{told}{said}");
    assert!(site.policies().is_empty(), "nothing was changed");
    let foreign = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "theirs", "namespace": NAMESPACE, "labels": { "app.kubernetes.io/managed-by": "flowscribe" } },
        "spec": { "podSelector": { "matchLabels": { "app": "nothing" } } } });
    site.api.create(&foreign).expect("it is taken");

    let (is_well, told, said) = run(&[]);
    assert!(is_well && count(&told, "created") == 12, "{told}{said}");
    assert!(
        said.contains("kubectl delete networkpolicy --ignore-not-found --namespace demo adservice-network"),
        "{said}"
    );
    assert_eq!(site.policies().len(), 13);
    let (is_well, told, said) = run(&[]);
    assert!(is_well && count(&told, "unchanged") == 12 && said.is_empty(), "{told}{said}");
    assert_eq!(
        site.regenerate(&["--config-map", PLACE], 0),
        (String::new(), String::new()),
        "now all is as it should be"
    );

    // Somebody changes a policy: the next run tells, and applying mends it.
    let email = cluster::object("networking.k8s.io/v1", "NetworkPolicy", Some(NAMESPACE), "emailservice-network");
    site.api.change(&email, &json!({ "spec": { "ingress": [{}] } })).expect("it is there");
    let (_, said) = site.regenerate(&["--config-map", PLACE], 0);
    assert!(said.contains("in the cluster, not as they should be: demo/emailservice-network"), "{said}");
    assert_eq!(site.events()["PolicyDrift"], ["emailservice-network".to_owned()].into());
    // What others allow all the same counts only where that is asked for.
    let mut open = cluster::object("networking.k8s.io/v1", "NetworkPolicy", Some(NAMESPACE), "open");
    open["spec"] = json!({ "podSelector": { "matchLabels": { "app": "emailservice" } }, "ingress": [{}] });
    site.api.create(&open).expect("it is taken");
    let changes = "the set would change what the cluster allows";
    let (_, said) = site.regenerate(&["--config-map", PLACE], 0);
    assert!(said.contains(changes), "{said}");
    let (_, said) = site.regenerate(&["--config-map", PLACE, "--compare-others"], 0);
    assert!(said.contains("not as they should be: demo/emailservice-network") && !said.contains(changes), "{said}");
    site.api.delete(&open).expect("it is there");
    let (is_well, _, said) = run(&[]);
    assert!(!is_well && said.contains("demo/emailservice-network: ") && said.contains("--force-conflicts"), "{said}");
    let (is_well, told, said) = run(&["--force-conflicts"]);
    assert!(is_well && count(&told, "changed") == 1 && count(&told, "unchanged") == 11, "{told}{said}");
    // And back, as it says.
    let back = said.lines().find(|line| line.contains("kubectl apply")).expect("it says how").trim().to_owned();
    let shell =
        Command::new("sh").args(["-c", &back]).current_dir(site.directory.path()).env("KUBECONFIG", &admin).output();
    well(&shell.expect("it starts"));
    assert_eq!(site.policies()["emailservice-network"]["spec"]["ingress"], json!([{}]), "as it was before");
    assert!(run(&["--force-conflicts"]).0);

    // What would deny is not applied.
    let file = site.path("policies/demo.emailservice-network.yaml");
    let text = fs::read_to_string(&file).expect("it is there");
    fs::write(&file, text.replace("port: 8080", "port: 8081")).expect("written");
    let version = site.policies()["emailservice-network"]["metadata"]["resourceVersion"].clone();
    let (is_well, _, said) = run(&[]);
    assert!(!is_well && said.contains("nothing is applied") && said.contains("demo/emailservice"), "{said}");
    assert_eq!(site.policies()["emailservice-network"]["metadata"]["resourceVersion"], version);
    fs::write(&file, text).expect("written");

    // What is no longer wanted is removed, if it is ours.
    fs::remove_file(site.path("policies/demo.adservice-network.yaml")).expect("it is there");
    // Not where that would leave it to others who deny.
    let mut deny = cluster::object("networking.k8s.io/v1", "NetworkPolicy", Some(NAMESPACE), "deny");
    deny["spec"] = json!({ "podSelector": { "matchLabels": { "app": "adservice" } } });
    site.api.create(&deny).expect("it is taken");
    let (is_well, _, said) = run(&[]);
    assert!(
        !is_well && said.contains("nothing is applied") && said.contains("demo/frontend → demo/adservice"),
        "{said}"
    );
    site.api.delete(&deny).expect("it is there");
    let (is_well, told, said) = run(&[]);
    assert!(is_well && count(&told, "pruned") == 1, "{told}{said}");
    let names: BTreeSet<String> = site.policies().into_keys().collect();
    assert!(!names.contains("adservice-network") && names.contains("theirs") && names.len() == 12, "{names:?}");
    // What others deny already keeps nothing from being applied.
    site.api.create(&deny).expect("it is taken");
    let (is_well, _, said) = run(&[]);
    assert!(is_well && said.contains("already so, and left so: demo/frontend → demo/adservice"), "{said}");
    site.api.delete(&deny).expect("it is there");
    site.regenerate(&["--output", "policies"], 3);
    assert!(run(&[]).0);

    // Where the namespace is not, or the argument names another one.
    let text = fs::read_to_string(site.path("policies/demo.emailservice-network.yaml")).expect("it is there");
    fs::write(site.path("nowhere.yaml"), text.replace("namespace: demo", "namespace: nowhere")).expect("written");
    let elsewhere = |more: &[&str]| {
        let arguments = ["apply", "--policies", "nowhere.yaml", "--input", "store"];
        let output = site.flowscribe(&admin, &[&arguments, more].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_well, said) = elsewhere(&[]);
    assert!(!is_well && said.contains("no pod of nowhere is known, only some of demo"), "{said}");
    let beside = site.path("policies/nowhere.yaml");
    fs::copy(site.path("nowhere.yaml"), &beside).expect("written");
    let (is_well, told, said) = run(&[]);
    assert!(is_well && count(&told, "unchanged") == 12, "one does not keep the rest: {told}{said}");
    assert!(said.contains("skipped what is of nowhere: there is no such namespace"), "{said}");
    fs::remove_file(beside).expect("it is there");
    let (is_well, said) = elsewhere(&["--namespaces", NAMESPACE]);
    assert!(!is_well && said.contains("no policies of demo in nowhere.yaml, those there are of nowhere"), "{said}");

    // As it is in its ConfigMap, too.
    let map =
        kubectl(&site.api, &["get", "configmap", "--namespace", "flowscribe", "flowscribe-policies", "-o", "yaml"]);
    fs::write(site.path("set.yaml"), well(&map)).expect("written");
    let output = site.flowscribe(&admin, &["apply", "--policies", "set.yaml", "--input", "store", "--dry-run"]);
    assert_eq!(count(&well(&output), "unchanged"), 12);
}

/// Applies the set, as a scheduled run may: what is stable, unless it is told otherwise.
fn apply_by_schedule(site: &Installation) {
    let admin = site.api.kubeconfig("admin");
    let run = |more: &[&str]| {
        let arguments = ["regenerate", "--input", "store", "--config-map", PLACE];
        let output = site.flowscribe(&admin, &[&arguments, more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let demo = ["--min-coverage", "0", "--namespaces", NAMESPACE];
    let remove = |name: &str| {
        let policy = cluster::object("networking.k8s.io/v1", "NetworkPolicy", Some(NAMESPACE), name);
        site.api.delete(&policy).expect("it is there");
    };
    // The recording is too short for anything to be stable.
    remove("emailservice-network");
    let metrics = site.path("metrics.prom");
    let (is_well, _, said) =
        run(&[&demo[..], &["--cluster", "--events", "--metrics-file", &metrics.to_string_lossy()]].concat());
    assert!(is_well && said.contains("not in the cluster: demo/emailservice-network"), "{said}");
    let told = fs::read_to_string(&metrics).expect("metrics");
    assert!(told.contains("flowscribe_regenerate_cluster_policies_missing 1\n"), "{told}");
    let (is_well, _, said) = run(&[&demo[..], &["--apply"]].concat());
    assert!(is_well && said.contains("nothing is applied: the capture spans "), "{said}");
    assert!(said.contains("(--apply=all changes it all the same): demo/emailservice-network"), "{said}");
    assert!(!site.policies().contains_key("emailservice-network"));
    // Long enough, but nothing was watched for long enough.
    let (is_well, _, said) = run(&[&demo[..], &["--apply", "--stable-after", "1s"]].concat());
    assert!(is_well && !said.contains("nothing is applied"), "{said}");
    assert!(said.contains("left as it is, as not enough was seen of its pods"), "{said}");
    assert!(!site.policies().contains_key("emailservice-network"));

    // What the set would open for not knowing enough stays closed.
    let before: BTreeSet<String> = site.policies().into_keys().collect();
    let (is_well, told, said) = run(&[&demo[..], &["--apply", "--stable-after", "1s", "--only-stable"]].concat());
    assert!(is_well && told.contains("~ demo/frontend: egress opened"), "{told}{said}");
    assert_eq!(site.policies().into_keys().collect::<BTreeSet<_>>(), before, "{told}{said}");
    // Watched for long enough.
    let short = ["--apply", "--stable-after", "1s", "--learn-for", "1s"];
    let (is_well, told, said) = run(&[&demo[..], &short].concat());
    assert!(is_well && told.contains("/emailservice-network created"), "{told}{said}");
    remove("emailservice-network");

    // All of it; and what is ours and not wanted goes, with a way back.
    let mut over = cluster::object("networking.k8s.io/v1", "NetworkPolicy", Some(NAMESPACE), "over");
    over["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "flowscribe" });
    over["spec"] = json!({ "podSelector": { "matchLabels": { "app": "nothing" } } });
    fs::write(site.path("over.yaml"), over.to_string()).expect("written");
    let file = site.path("over.yaml").to_string_lossy().into_owned();
    well(&kubectl(&site.api, &["apply", "--server-side", "--field-manager=flowscribe", "-f", &file]));
    let (is_well, told, said) = run(&[&demo[..], &short].concat());
    assert!(is_well && told.contains("/emailservice-network created") && said.contains("demo/over"), "{told}{said}");
    assert!(site.policies().contains_key("over"), "of nobody that is known");
    remove("emailservice-network");
    let (is_well, told, said) = run(&[&demo[..], &["--apply=all"]].concat());
    assert!(is_well && told.contains("/emailservice-network created") && told.contains("/over pruned"), "{told}{said}");
    assert!(!site.policies().contains_key("over"));
    let back = said.lines().find(|line| line.contains("flowscribe-policies-rollback")).expect("it says how").to_owned();
    let shell = Command::new("sh").args(["-c", back.trim()]).env("KUBECONFIG", &admin).output();
    well(&shell.expect("it starts"));
    assert!(site.policies().contains_key("over"), "as it was before: {back}");

    // Without --namespaces, what the last set was about is reached too, though nothing of it is left.
    let (is_well, told, said) = run(&["--apply=all", "--only-stable"]);
    assert!(is_well, "{told}{said}");
    let left: BTreeSet<String> = site.policies().into_keys().collect();
    assert_eq!(left, ["theirs".to_owned()].into(), "left open, and so it is in the cluster: {told}{said}");
    assert!(run(&[&demo[..], &["--apply=all"]].concat()).0);
}

fn who_may_get_pods_may_monitor_them_by_port_forward() {
    let mut site = Installation::new();
    let watcher = json!({ "kind": "ServiceAccount", "name": "watcher", "namespace": NAMESPACE });
    site.api.create(&cluster::object("v1", "ServiceAccount", Some(NAMESPACE), "watcher")).expect("an account");
    let bind = |kind: &str, namespace: Option<&str>, role: (&str, &str)| {
        let mut binding =
            cluster::object("rbac.authorization.k8s.io/v1", kind, namespace, &format!("watcher-{}", role.1));
        binding["roleRef"] = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1 });
        binding["subjects"] = json!([watcher]);
        site.api.create(&binding).expect("a binding");
        wait_for_rules(&site.api, &[binding]);
    };
    let account = site.api.account(NAMESPACE, "watcher").expect("it is there");
    let monitor = |name: &str, more: &[&str]| {
        let mut command = Command::new(executable());
        command.args(["flowscribe", "monitor", "--roll-interval", "1s", "--output"]).arg(site.path(name)).args(more);
        command.env("KUBECONFIG", &account);
        Monitor::spawn(command)
    };
    let refused = |more: &[&str], why: &str| match monitor("refused", more) {
        Ok(monitor) => drop(monitor.wait_for(why)),
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
    };
    refused(&["--namespaces", NAMESPACE], "cannot list the agents' pods in namespace flowscribe");
    bind("RoleBinding", Some("flowscribe"), ("Role", "flowscribe-monitor"));
    bind("ClusterRoleBinding", None, ("ClusterRole", "flowscribe-monitor"));
    refused(&["--namespaces", NAMESPACE], "may not get the pods of namespace demo, nor record them");
    // What `view` includes, which a controller that is not here puts together.
    let mut role = cluster::object("rbac.authorization.k8s.io/v1", "Role", Some(NAMESPACE), "sees-pods");
    role["rules"] = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] }]);
    site.api.create(&role).expect("a role");
    bind("RoleBinding", Some(NAMESPACE), ("Role", "sees-pods"));
    refused(&[], "may not get the pods of all namespaces");

    let watching = monitor("capture", &["--namespaces", NAMESPACE]).expect("it starts");
    let capture = site.path("capture");
    let streams = || {
        let health = rows_so_far::<HealthRecord>(&capture).into_iter();
        health.filter(|row| NODES.contains(&&*row.node)).map(|row| row.run_id).collect::<BTreeSet<_>>().len()
    };
    wait_until("both streams", || streams() == 2);
    let written = || rows_so_far::<InventoryRecord>(&capture);
    wait_until("the inventory", || written().iter().any(|row| &*row.node == "_cluster"));
    site.app.play(&mut site.lab, 4).expect("calls are answered");
    site.wait_for_flows("capture");
    // One agent is killed and started again.
    site.agents.remove(NODES[1]).expect("it is there").kill().expect("it runs");
    watching.wait_for("flowscribe-exporter-lab-b on lab-b is away");
    let forgotten = &mut site;
    forgotten.start_agent(NODES[1]);
    wait_until("the agent's second stream", || streams() == 3);
    let (said, is_well) = watching.stop(1).expect("it runs");
    assert!(is_well && said.contains("flows of 2 agents are in"), "{said}");
    for text in ["node without-agent: it has no agent", "flowscribe-exporter-lab-b on lab-b is away", "is there again"]
    {
        assert!(said.contains(text), "{text}: {said}");
    }
    let flows = rows::<FlowRecord>(&capture);
    let is_demo = |namespace: &Option<Arc<str>>| namespace.as_deref() == Some(NAMESPACE);
    assert!(flows.iter().all(|row| is_demo(&row.source_namespace) || is_demo(&row.destination_namespace)), "no others");
    let arguments = ["report", "--input", "capture", "--namespaces", NAMESPACE, "--min-coverage", "0"];
    let output = site.flowscribe(&account, &arguments);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/apps/microservices-demo.policies.yaml");
    assert_eq!(well(&output), fs::read_to_string(golden).expect("they are committed"), "the demo's policies");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("on node lab-b has not ended cleanly"), "{said}");
    site.end();
}
