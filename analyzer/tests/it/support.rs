//! Small captures, written as the exporter writes them, and what `flowscribe` makes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use schemas::{
    capture::{DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::{InventoryRecord, ObjectKind},
    table::{Port, Record, TimestampMs},
};
use serde::Deserialize;
use serde_yaml::Value;
use tempfile::TempDir;

/// When everything happens: 2026-03-01, 10:00 UTC and the minutes after.
pub(crate) const START_MS: i64 = 1_772_359_200_000;
const MINUTE_MS: i64 = 60_000;

/// Address of the pod of `demo/web` in [`web_and_db`].
pub(crate) const WEB: &str = "10.244.0.11";
/// Address of the pod of `demo/db` in [`web_and_db`].
pub(crate) const DB: &str = "10.244.0.21";

/// `demo/web` talks to `demo/db` on 5432.
pub(crate) fn web_and_db() -> Capture {
    let mut capture = Capture::new();
    capture.pod("demo/web", WEB);
    capture.pod("demo/db", DB);
    capture.talk(WEB, DB, 5432);
    capture
}

/// A capture in the making. Its one node is `node-a` (192.0.2.1); pods are of 10.244.0.0/16, Services of 10.96.0.0/16.
#[derive(Clone)]
pub(crate) struct Capture {
    pub(crate) flows: Vec<FlowRecord>,
    pub(crate) inventory: Vec<InventoryRecord>,
    pub(crate) health: Vec<HealthRecord>,
}

/// What `flowscribe report` said.
pub(crate) struct Report {
    pub(crate) yaml: String,
    pub(crate) said: String,
    pub(crate) policies: Vec<Value>,
}

impl Capture {
    pub(crate) fn new() -> Self {
        let mut capture = Self { flows: Vec::new(), inventory: Vec::new(), health: Vec::new() };
        let node = capture.object(ObjectKind::Node, None, "node-a");
        node.addresses = vec!["192.0.2.1".into()];
        node.cidrs = vec!["10.244.0.0/16".into(), "fd00:10:244::/64".into()];
        capture.object(ObjectKind::ServiceCidr, None, "services").cidrs = vec!["10.96.0.0/16".into()];
        capture
    }

    /// A row of the snapshot that opens the inventory, to be filled in.
    pub(crate) fn object(&mut self, kind: ObjectKind, namespace: Option<&str>, name: &str) -> &mut InventoryRecord {
        self.inventory.push(InventoryRecord {
            cluster: "test".into(),
            node: "node-a".into(),
            run_id: "run-1".into(),
            seq: self.inventory.len() as i64,
            observed_at: TimestampMs(START_MS),
            event: "snapshot".into(),
            kind: kind.into(),
            namespace: namespace.map(Into::into),
            name: name.into(),
            ..InventoryRecord::default()
        });
        self.inventory.last_mut().expect("it was just pushed")
    }

    /// A pod of a Deployment in `namespace/workload`, with the label `app` and a hash; named after its address.
    pub(crate) fn pod(&mut self, path: &str, address: &str) -> &mut InventoryRecord {
        let (namespace, workload) = split(path);
        self.workload("Deployment", path, &format!(r#"{{"matchLabels":{{"app":"{workload}"}}}}"#));
        let labels = format!(r#"{{"app":"{workload}","pod-template-hash":"{address}"}}"#);
        let pod = self.bare_pod(&format!("{namespace}/{workload}-{address}"), address, &labels);
        pod.owner_kind = Some("Deployment".into());
        pod.owner = Some(workload.into());
        pod
    }

    /// A pod without an owner.
    pub(crate) fn bare_pod(&mut self, path: &str, address: &str, labels: &str) -> &mut InventoryRecord {
        let (namespace, name) = split(path);
        let pod = self.object(ObjectKind::Pod, Some(namespace), name);
        pod.uid = Some(format!("uid-{name}").into());
        pod.addresses = vec![address.into()];
        pod.labels = Some(labels.into());
        pod.object_node = Some("node-a".into());
        pod.host_network = Some(false);
        pod.phase = Some("Running".into());
        pod
    }

    /// A pod owner with its LabelSelector.
    pub(crate) fn workload(&mut self, kind: &str, path: &str, selector: &str) {
        let (namespace, name) = split(path);
        let workload = self.object(ObjectKind::Workload, Some(namespace), name);
        workload.workload_kind = Some(kind.into());
        workload.selector = Some(selector.into());
    }

    /// A Service with one TCP port.
    pub(crate) fn service(&mut self, path: &str, address: &str, port: u16, target: &str, selector: Option<&str>) {
        let (namespace, name) = split(path);
        let service = self.object(ObjectKind::Service, Some(namespace), name);
        service.addresses = vec![address.into()];
        service.ports = vec![tcp(port, Some(target))];
        service.selector = selector.map(Into::into);
    }

    /// A row as the client's node saw it. The client is known by its pod, the rest by address.
    pub(crate) fn dial(&mut self, client: &str, to: &str, port: u16) -> &mut FlowRecord {
        let pod = self.pod_at(client);
        let row = self.row("client", client, to, port);
        row.source_kind = "pod".into();
        row.source_namespace = pod.namespace;
        row.source_pod = Some(pod.name);
        row.source_pod_uid = pod.uid;
        row.source_node = pod.object_node;
        row.source_host_network = pod.host_network;
        (row.source_workload_kind, row.source_workload) = (pod.owner_kind, pod.owner);
        row
    }

    /// A row as the server's node saw it.
    pub(crate) fn accept(&mut self, server: &str, from: &str, port: u16) -> &mut FlowRecord {
        let pod = self.pod_at(server);
        let row = self.row("server", from, server, port);
        row.destination_kind = "pod".into();
        row.destination_namespace = pod.namespace;
        row.destination_pod = Some(pod.name);
        row.destination_pod_uid = pod.uid;
        row.destination_node = pod.object_node;
        row.destination_host_network = pod.host_network;
        (row.destination_workload_kind, row.destination_workload) = (pod.owner_kind, pod.owner);
        row
    }

    /// Both rows of a connection between two pods.
    pub(crate) fn talk(&mut self, client: &str, server: &str, port: u16) {
        self.dial(client, server, port);
        self.accept(server, client, port);
    }

    /// Both rows of a connection through a Service.
    pub(crate) fn talk_through(&mut self, client: &str, service: (&str, u16), server: (&str, u16)) {
        self.dial(client, service.0, service.1);
        self.accept(server.0, client, server.1);
    }

    /// Writes the capture to a directory of its own.
    pub(crate) fn write(&self) -> TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        write_rows(directory.path(), &self.flows);
        write_rows(directory.path(), &self.inventory);
        let mut health = self.health.clone();
        if health.is_empty() {
            health.push(self.clean_end());
        }
        write_rows(directory.path(), &health);
        directory
    }

    /// The health row of a run that ended well and lost nothing.
    pub(crate) fn clean_end(&self) -> HealthRecord {
        HealthRecord {
            cluster: "test".into(),
            node: "node-a".into(),
            run_id: "run-1".into(),
            window_start: TimestampMs(START_MS),
            window_end: TimestampMs(START_MS + MINUTE_MS),
            run_start: TimestampMs(START_MS),
            flows_next_seq: self.flows.len() as i64,
            inventory_next_seq: self.inventory.len() as i64,
            clean_shutdown: true,
            ..HealthRecord::default()
        }
    }

    pub(crate) fn report(&self) -> Report {
        self.report_with(&[])
    }

    pub(crate) fn report_with(&self, arguments: &[&str]) -> Report {
        report(self.write().path(), arguments)
    }

    /// Reports with a file of decisions.
    pub(crate) fn report_decided(&self, decisions: &str) -> Report {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), decisions).expect("written");
        self.report_with(&["--decisions", &file.path().to_string_lossy()])
    }

    pub(crate) fn row(&mut self, observer: &str, from: &str, to: &str, port: u16) -> &mut FlowRecord {
        let seq = self.flows.len() as i64;
        self.flows.push(FlowRecord {
            cluster: "test".into(),
            node: "node-a".into(),
            run_id: "run-1".into(),
            seq,
            window_start: TimestampMs(START_MS),
            window_end: TimestampMs(START_MS + MINUTE_MS),
            observer: observer.into(),
            direction_known: true,
            start_known: true,
            transport: "tcp".into(),
            source_address: from.into(),
            destination_address: to.into(),
            destination_port: port,
            source_kind: "unknown".into(),
            destination_kind: "unknown".into(),
            connections: 1,
            closed: 1,
            bytes_sent: Some(100),
            bytes_received: Some(200),
            first_seen: TimestampMs(START_MS + 1_000),
            last_seen: TimestampMs(START_MS + 2_000),
            ..FlowRecord::default()
        });
        self.flows.last_mut().expect("it was just pushed")
    }

    fn pod_at(&self, address: &str) -> InventoryRecord {
        let has = |record: &&InventoryRecord| {
            *record.kind == ObjectKind::Pod && record.addresses.iter().any(|a| &**a == address)
        };
        self.inventory.iter().rev().find(has).unwrap_or_else(|| panic!("a pod has {address}")).clone()
    }
}

impl Report {
    /// What a policy allows, a line per direction, peer and port; the policy is named `namespace/name`.
    pub(crate) fn allows(&self, path: &str) -> BTreeSet<String> {
        let (namespace, name) = split(path);
        let policy = self.policies.iter().find(|policy| {
            policy["metadata"]["name"].as_str() == Some(name)
                && policy["metadata"]["namespace"].as_str() == Some(namespace)
        });
        let policy = policy.unwrap_or_else(|| panic!("there is a policy {path}:\n{}\n{}", self.yaml, self.said));
        let mut allowed = BTreeSet::new();
        for (direction, end) in [("ingress", "from"), ("egress", "to")] {
            for rule in policy["spec"][direction].as_sequence().into_iter().flatten() {
                for peer in rule[end].as_sequence().expect("a rule has peers") {
                    for port in rule["ports"].as_sequence().expect("a rule has ports") {
                        let (number, protocol) = (port["port"].as_u64(), port["protocol"].as_str());
                        let last = port["endPort"].as_u64().map(|last| format!("-{last}")).unwrap_or_default();
                        let line = format!(
                            "{direction} {} {}{last}/{}",
                            self::peer(peer),
                            number.expect("a number"),
                            protocol.expect("a protocol")
                        );
                        assert!(allowed.insert(line.clone()), "{line} stands twice in\n{}", self.yaml);
                    }
                }
            }
        }
        allowed
    }

    /// Every address block that some rule names.
    pub(crate) fn blocks(&self) -> BTreeSet<String> {
        let rules = self.policies.iter().flat_map(|policy| {
            ["ingress", "egress"]
                .into_iter()
                .flat_map(|direction| policy["spec"][direction].as_sequence().into_iter().flatten())
        });
        let peers = rules
            .flat_map(|rule| ["from", "to"].into_iter().flat_map(|way| rule[way].as_sequence().into_iter().flatten()));
        peers.filter_map(|peer| peer["ipBlock"]["cidr"].as_str()).map(str::to_owned).collect()
    }

    /// The selector of a policy, written as its peers are.
    pub(crate) fn selector(&self, path: &str) -> String {
        let (_, name) = split(path);
        let policy = self.policies.iter().find(|policy| policy["metadata"]["name"].as_str() == Some(name));
        labels(&policy.unwrap_or_else(|| panic!("there is a policy {path}"))["spec"]["podSelector"])
    }

    /// `namespace/name` of every policy, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let text = |policy: &Value, key: &str| policy["metadata"][key].as_str().unwrap_or_default().to_owned();
        self.policies.iter().map(|policy| format!("{}/{}", text(policy, "namespace"), text(policy, "name"))).collect()
    }

    /// Number of rules of a direction in a policy.
    pub(crate) fn rules(&self, path: &str, direction: &str) -> usize {
        let (_, name) = split(path);
        let policy = self.policies.iter().find(|policy| policy["metadata"]["name"].as_str() == Some(name));
        policy.and_then(|policy| policy["spec"][direction].as_sequence().map(Vec::len)).unwrap_or(0)
    }
}

/// The directions that the policy of a workload limits.
pub(crate) fn limits(report: &Report, policy: &str) -> Vec<String> {
    let of = |found: &&Value| found["metadata"]["name"].as_str() == Some(policy);
    let types = report.policies.iter().find(of).map(|found| found["spec"]["policyTypes"].clone());
    let types = types.and_then(|types| types.as_sequence().cloned()).unwrap_or_default();
    types.iter().filter_map(|direction| Some(direction.as_str()?.to_owned())).collect()
}

/// Has what a row tells of happen so much later.
pub(crate) fn later(row: &mut FlowRecord, after_ms: i64) {
    for time in [&mut row.window_start, &mut row.window_end, &mut row.first_seen, &mut row.last_seen] {
        time.0 += after_ms;
    }
}

/// The lines that [`Report::allows`] should give.
pub(crate) fn lines<const N: usize>(lines: [&str; N]) -> BTreeSet<String> {
    lines.into_iter().map(str::to_owned).collect()
}

/// A TCP port, of a Service with a target.
pub(crate) fn tcp(port: u16, target: Option<&str>) -> Port {
    Port { name: None, protocol: "tcp".into(), port, target: target.map(Into::into), node_port: None }
}

/// Reports on a directory that can be reported on.
pub(crate) fn report(directory: &Path, arguments: &[&str]) -> Report {
    let input = directory.to_string_lossy();
    let output = flowscribe(&[&["report", "--input", &*input], arguments].concat());
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{said}");
    let yaml = String::from_utf8(output.stdout).expect("text");
    let documents =
        serde_yaml::Deserializer::from_str(&yaml).map(|document| Value::deserialize(document).expect("YAML"));
    let policies = documents.filter(|document| !document.is_null()).collect();
    Report { yaml, said, policies }
}

/// Runs the program.
pub(crate) fn flowscribe(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowscribe")).args(arguments).output().expect("flowscribe starts")
}

/// Writes rows as each run would.
fn write_rows<R: Record>(root: &Path, rows: &[R]) {
    let roll = Roll { size_bytes: u64::MAX, age: Duration::MAX };
    let mut runs: BTreeMap<Origin, Vec<&R>> = BTreeMap::new();
    for row in rows {
        runs.entry(row.writer()).or_default().push(row);
    }
    for (origin, rows) in runs {
        let mut writer = DatasetWriter::new(root, &origin, "test", roll);
        for row in rows {
            writer.push(row.clone(), TimestampMs(START_MS)).expect("the row is taken");
        }
        writer.finish().expect("the file is finished");
    }
}

fn split(path: &str) -> (&str, &str) {
    path.split_once('/').expect("namespace/name")
}

fn peer(peer: &Value) -> String {
    if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
        let (address, _) = cidr.split_once('/').expect("a CIDR");
        address.parse::<IpAddr>().expect("an address");
        return cidr.to_owned();
    }
    match peer.get("namespaceSelector") {
        Some(namespace) => format!("[{}] {}", labels(namespace), labels(&peer["podSelector"])),
        None => labels(&peer["podSelector"]),
    }
}

fn labels(selector: &Value) -> String {
    let pairs = selector["matchLabels"].as_mapping().into_iter().flatten();
    let mut texts: Vec<String> = pairs.map(|(k, v)| format!("{}={}", text(k), text(v))).collect();
    for expression in selector["matchExpressions"].as_sequence().into_iter().flatten() {
        let values = expression["values"].as_sequence().into_iter().flatten().map(text).collect::<Vec<_>>();
        texts.push(format!("{} {} {}", text(&expression["key"]), text(&expression["operator"]), values.join("|")));
    }
    assert!(!texts.is_empty(), "an empty selector selects everything: {selector:?}");
    texts.join(",").replace("kubernetes.io/metadata.name=", "ns ")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
