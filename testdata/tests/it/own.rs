//! The policies of our own pods: a recording of ourselves asks for exactly what they allow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use schemas::health::HealthRecord;
use serde_json::{Value, json};
use testdata::{
    lab::{Lab, PodId, PodSpec},
    pod::{Exchange, Order},
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{documents, executable, flowscribe, lab, rows_so_far, wait_until},
};

tests![our_policies_allow_what_a_recording_of_ourselves_asks_for,];

const CALL: Exchange = Exchange::new(300, 900);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
const API_PORT: u16 = 6443;

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/receive.yaml")
}

/// Labels of the pods that the manifests make, by name and kind of what makes them.
fn templates() -> BTreeMap<(String, String), Value> {
    let text = fs::read_to_string(manifests()).expect("they are there");
    let mut templates = BTreeMap::new();
    for object in documents(&text) {
        let spec = if object["kind"] == "CronJob" { &object["spec"]["jobTemplate"]["spec"] } else { &object["spec"] };
        if let (Some(kind), Some(name)) = (object["kind"].as_str(), object["metadata"]["name"].as_str())
            && spec["template"]["metadata"]["labels"].is_object()
        {
            templates.insert((name.into(), kind.into()), spec["template"]["metadata"]["labels"].clone());
        }
    }
    templates
}

/// A program in a pod's network and cgroup.
fn within(lab: &Lab, pod: PodId, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let enter = r#"echo 0 > "$1/cgroup.procs"; net=$2; shift 2; exec nsenter --net="$net" "$@""#;
    command
        .args(["-ec", enter, "sh"])
        .arg(lab.cgroup_of_pod(pod))
        .arg(lab.netns(pod))
        .arg(executable())
        .args(arguments);
    command
}

fn our_policies_allow_what_a_recording_of_ourselves_asks_for() -> Ran {
    let mut lab = lab()?;
    let mut pods = BTreeMap::new();
    for ((name, kind), labels) in templates() {
        for replica in 0..if kind == "DaemonSet" { 2 } else { 1 } {
            let owner = json!({ "kind": kind, "name": name, "selector": { "matchLabels": labels } });
            let (namespace, labels) = ("flowscribe".to_owned(), labels.clone());
            let spec = PodSpec { namespace, name: format!("{name}-{replica}"), labels, owner, ..PodSpec::default() };
            pods.insert(format!("{name}-{replica}"), lab.pod(spec).expect("the lab takes another pod"));
        }
    }
    let of = |name: &str| pods[&format!("flowscribe-{name}")];
    assert_eq!(pods.len(), 5, "two agents, inventory, receive and regenerate: {:?}", pods.keys());
    let labels = json!({ "k8s-app": "kube-dns" });
    let owner = json!({ "kind": "Deployment", "name": "coredns", "selector": { "matchLabels": labels } });
    let (namespace, name) = ("kube-system".to_owned(), "coredns-0".to_owned());
    let dns = lab.pod(PodSpec { namespace, name, labels: labels.clone(), owner, ..PodSpec::default() }).expect("a pod");
    let api = lab.pod(PodSpec { name: "api".into(), external: true, ..PodSpec::default() }).expect("a pod");
    lab.listen(api, API_PORT, CALL).expect("the port is free");
    let address = lab.ipv4(api);
    let names = [("kubernetes.default.svc.cluster.local".to_owned(), address)].into();
    lab.order(dns, &Order::ServeNames { names }).expect("it serves");
    let entry = json!({ "namespace": "kube-system", "name": "kube-dns", "selector": labels,
        "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }] });
    lab.service(entry, RESOLVER, &[(53, 53)], &[dns]).expect("a Service");

    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let observer =
        Recording::start(executable(), &lab, Path::new(&at("capture")), &["--window", "1s"]).expect("it records");
    // The receiver and the agents are the real ones; agents' API server, and what only talks to it, are not.
    let receive =
        ["flowscribe", "receive", "--insecure", "--grpc-address", "0.0.0.0:4317", "--http-address", "0.0.0.0:4318"];
    let store = at("store");
    let receive = [&receive[..], &["--roll-interval", "1s", "--output", &store]].concat();
    let receive = within(&lab, of("receive-0"), &receive);
    let receive = Recording::spawn_until(receive, "receiving OTLP/gRPC on").expect("it receives");
    let endpoint = format!("http://{}:4317", lab.ipv4(of("receive-0")));
    let inventory = at("inventory.yaml");
    lab.write_inventory(Path::new(&inventory)).expect("written");
    let (cgroup, netns) = (lab.cgroup().display().to_string(), lab.node_netns().display().to_string());
    let mut agents = Vec::new();
    for replica in ["exporter-0", "exporter-1"] {
        let arguments = [
            "exporter",
            "--otlp-endpoint",
            &endpoint,
            "--inventory",
            &inventory,
            "--cgroup",
            &cgroup,
            "--host-netns",
            &netns,
            "--window",
            "1s",
            "--spool",
            &at(replica),
        ];
        agents.push(Recording::spawn(within(&lab, of(replica), &arguments)).expect("it records"));
    }
    for name in ["exporter-0", "exporter-1", "inventory-0", "regenerate-0"] {
        lab.order(of(name), &Order::Resolve { resolver: RESOLVER, search: "svc.cluster.local".into() })
            .expect("it resolves");
        let call = Order::DialName { name: "kubernetes.default".into(), port: API_PORT, times: 2, exchange: CALL };
        lab.order(of(name), &call).expect("it is answered");
    }
    let within_receive = (lab.ipv4(of("receive-0")), 4317);
    let probe = Exchange::new(0, 0);
    lab.dial(of("inventory-0"), within_receive, 1, probe).expect("it listens");
    let heard = || {
        let health = rows_so_far::<HealthRecord>(Path::new(&store));
        health.into_iter().map(|row| row.run_id).collect::<BTreeSet<_>>().len()
    };
    wait_until("word of both agents", || heard() == 2);
    agents.into_iter().for_each(|agent| drop(agent.stop().expect("it ends well")));
    receive.terminate().expect("it ends well");
    observer.stop().expect("it ends well");

    let manifests = manifests().to_string_lossy().into_owned();
    let capture = at("capture");
    let verified =
        flowscribe(&["verify", "--strict", "--format", "json", "--policies", &manifests, "--input", &capture]);
    let told: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}{told:#}");
    assert_eq!(told["denied"], json!([]), "{told:#}");
    let allowed = told["allowed"].as_u64().expect("a number");
    assert!(allowed >= 4 + 4 + 2, "names, the API server, and the receiver: {told:#}");
    // Between pods, nothing is allowed that was not seen, but the other transport of DNS.
    for edge in told["unseen"].as_array().expect("a list") {
        let is_dns = edge["connections"].as_str().is_some_and(|ports| ports.ends_with(" 53"));
        assert!(is_dns, "{edge:#}");
    }
    Ok(())
}
