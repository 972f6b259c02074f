//! Flows by way of a real OpenTelemetry Collector and of a real S3 gateway: what comes out is what went in.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use schemas::{
    capture::{self, CaptureFile},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};
use testdata::{
    app::{App, RunningApp},
    demo::{MICROSERVICES, NAMESPACE},
    generator::{Plan, generate},
    lab::Lab,
    recording::{Receiver, Recording},
};

use crate::{
    support::{balance, executable, flowscribe, free_address, let_windows_pass, rows, rows_so_far, wait_until},
    watching::get,
};

tests![
    policies_are_the_same_by_way_of_a_collector_and_every_row_is_accounted_for,
    a_collector_that_is_down_for_a_minute_and_restarts_gets_everything,
    a_clock_that_is_set_back_loses_nothing,
    an_object_store_is_compacted_and_pruned_as_a_directory_is,
    an_object_store_that_is_killed_and_comes_back_has_everything,
];

/// A program of others; killed when it is dropped.
struct Program(Child);

impl Program {
    fn start(variable: &str, arguments: &[&str], variables: &[(&str, &str)], log: &Path) -> Self {
        let path = env::var(variable).unwrap_or_else(|_| panic!("{variable} has to name the program: run .ci/e2e"));
        let log = fs::File::options().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new(path);
        command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().expect("a log")).stderr(log).spawn();
        Self(child.expect("it starts"))
    }

    fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("it runs");
        self.0.wait().expect("it ends");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lab() -> Lab {
    if let Some(missing) = Lab::missing() {
        panic!("these tests were asked for, and can't run: {missing}");
    }
    Lab::new(executable()).expect("the lab starts")
}

fn app(lab: &mut Lab) -> RunningApp {
    App::parse(MICROSERVICES).expect("the manifest").start(lab, NAMESPACE).expect("it starts")
}

fn report(input: &str) -> String {
    let report = flowscribe(&["report", "--input", input, "--namespaces", NAMESPACE]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    String::from_utf8_lossy(&report.stdout).into_owned()
}

fn golden() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/apps/microservices-demo.policies.yaml");
    fs::read_to_string(path).expect("the golden policies are committed")
}

/// Numbers of the rows of a dataset; of those that came twice, once.
fn numbers<R: Record>(capture: &Path) -> BTreeSet<(String, i64)> {
    rows_so_far::<R>(capture).iter().map(|row| (row.origin().0.to_string(), row.origin().1)).collect()
}

/// The files of a capture, as they are now.
fn files(capture: &Path) -> Vec<CaptureFile> {
    capture::list(&[capture.into()]).expect("it can be listed").files
}

/// Asserts that all rows of one capture are in another.
fn assert_all(written: &Path, arrived: &Path) {
    assert!(numbers::<FlowRecord>(written).len() > 50, "there are flows");
    assert_eq!(numbers::<FlowRecord>(written), numbers::<FlowRecord>(arrived), "every flow is accounted for");
    assert_eq!(numbers::<InventoryRecord>(written), numbers::<InventoryRecord>(arrived));
    assert_eq!(numbers::<HealthRecord>(written), numbers::<HealthRecord>(arrived));
}

/// A collector that writes to a file and sends on to a receiver.
struct Pipeline {
    directory: tempfile::TempDir,
    grpc: String,
    http: String,
    config: String,
}

impl Pipeline {
    fn new(receiver: &Receiver) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (grpc, http) = (free_address(), free_address());
        let out = directory.path().join("out.jsonl");
        let config = format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: '{grpc}' }}, http: {{ endpoint: '{http}' }} }} }} }}\n\
             processors: {{ batch: {{ timeout: 100ms, send_batch_size: 300 }} }}\n\
             exporters:\n  file: {{ path: '{}', append: true }}\n  debug: {{}}\n\
             \x20 otlp: {{ endpoint: '{}', tls: {{ insecure: true }} }}\n\
             service:\n  telemetry: {{ metrics: {{ level: none }} }}\n  pipelines:\n\
             \x20   logs: {{ receivers: [otlp], processors: [batch], exporters: [file, debug, otlp] }}\n",
            out.display(),
            receiver.addresses().0
        );
        let path = directory.path().join("config.yaml");
        fs::write(&path, config).expect("written");
        Self { directory, grpc, http, config: path.to_string_lossy().into_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self) -> Program {
        let log = self.path("collector.log");
        let begun = || fs::read_to_string(&log).unwrap_or_default().matches("Everything is ready").count();
        let before = begun();
        let program = Program::start("FLOWSCRIBE_OTELCOL", &["--config", &self.config], &[], &log);
        wait_until("a collector", || begun() > before);
        program
    }

    /// Imports what the collector wrote.
    fn import(&self) -> PathBuf {
        let imported = self.path("imported");
        let (input, output) = (self.path("out.jsonl"), imported.to_string_lossy().into_owned());
        let done = flowscribe(&["import", "--input", &input.to_string_lossy(), "--output", &output]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        imported
    }
}

fn policies_are_the_same_by_way_of_a_collector_and_every_row_is_accounted_for() {
    for protocol in ["grpc", "http/protobuf"] {
        let mut lab = lab();
        let app = app(&mut lab);
        let directory = tempfile::tempdir().expect("a directory");
        let (written, arrived) = (directory.path().join("written"), directory.path().join("arrived"));
        let receiver = Receiver::start(executable(), &arrived, &["--roll-interval", "1s"]).expect("it receives");
        let pipeline = Pipeline::new(&receiver);
        let collector = pipeline.start();
        let endpoint = format!("http://{}", if protocol == "grpc" { &pipeline.grpc } else { &pipeline.http });
        let spool = directory.path().join("spool").to_string_lossy().into_owned();
        let sending = ["--spool", &spool, "--otlp-protocol", protocol, "--otlp-endpoint", &endpoint];
        let recording = Recording::start(executable(), &lab, &written, &sending).expect("the exporter records");
        app.probe(&mut lab).expect("probes are answered");
        app.play(&mut lab, 4).expect("calls are answered");
        recording.stop().expect("it ends well");
        collector.end(Signal::SIGTERM);
        receiver.stop().expect("it ends well");
        let imported = pipeline.import();
        assert_all(&written, &imported);
        assert_all(&written, &arrived);
        for capture in [&written, &imported, &arrived] {
            assert_eq!(report(&capture.to_string_lossy()), golden(), "{protocol}, {}", capture.display());
        }
    }
}

fn a_collector_that_is_down_for_a_minute_and_restarts_gets_everything() {
    let mut lab = lab();
    let app = app(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let (written, arrived) = (directory.path().join("written"), directory.path().join("arrived"));
    let receiver = Receiver::start(executable(), &arrived, &["--roll-interval", "1s"]).expect("it receives");
    let pipeline = Pipeline::new(&receiver);
    let spool = directory.path().join("spool").to_string_lossy().into_owned();
    let endpoint = format!("http://{}", pipeline.grpc);
    let windows = ["--window", "5s", "--roll-interval", "1s"];
    let sending = ["--spool", &spool, "--otlp-protocol", "grpc", "--otlp-endpoint", &endpoint];
    let sending = [&windows[..], &sending].concat();
    let recording = Recording::start(executable(), &lab, &written, &sending).expect("the exporter records");
    app.probe(&mut lab).expect("probes are answered");
    app.play(&mut lab, 2).expect("calls are answered");
    // A minute, as the exporter counts it.
    for _ in 0..12 {
        let_windows_pass(&written, 1);
    }
    let taken = || fs::metadata(pipeline.path("out.jsonl")).map_or(0, |file| file.len());
    for _ in 0..4 {
        let before = taken();
        let collector = pipeline.start();
        app.play(&mut lab, 1).expect("calls are answered");
        wait_until("the collector's taking something", || taken() > before);
        collector.end(Signal::SIGTERM);
    }
    let collector = pipeline.start();
    let kept = || fs::read_dir(format!("{spool}/otlp")).map_or(0, |entries| entries.flatten().count());
    wait_until("an empty spool", || kept() == 1);
    let log = recording.stop().expect("it ends well");
    assert!(log.contains("trying again") && log.contains("answers again"), "{log}");
    collector.end(Signal::SIGTERM);
    receiver.stop().expect("it ends well");
    assert_all(&written, &pipeline.import());
    assert_all(&written, &arrived);
}

fn a_clock_that_is_set_back_loses_nothing() {
    let library = env::var("FLOWSCRIBE_FAKETIME").expect("FLOWSCRIBE_FAKETIME names libfaketime: run .ci/e2e");
    let mut lab = lab();
    let app = app(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let (written, arrived) = (directory.path().join("written"), directory.path().join("arrived"));
    let receiver = Receiver::start(executable(), &arrived, &["--roll-interval", "1s"]).expect("it receives");
    let (clock, inventory) = (directory.path().join("clock"), directory.path().join("inventory.yaml"));
    lab.write_inventory(&inventory).expect("written");
    fs::write(&clock, "+0").expect("written");
    let mut command = Command::new(executable());
    command.args(["exporter", "--node", "lab", "--cluster", "lab", "--window", "1s", "--roll-interval", "2s"]);
    let metrics = free_address();
    command.args(["--otlp-endpoint", &receiver.grpc, "--otlp-protocol", "grpc", "--metrics-address", &metrics]);
    command.arg("--output").arg(&written).arg("--spool").arg(directory.path().join("spool"));
    command.arg("--inventory").arg(&inventory).arg("--cgroup").arg(lab.cgroup());
    command.arg("--host-netns").arg(lab.node_netns());
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock);
    command.env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1");
    let recording = Recording::spawn(command).expect("the exporter records");
    app.probe(&mut lab).expect("probes are answered");
    app.play(&mut lab, 1).expect("calls are answered");
    let_windows_pass(&written, 3);
    // From now on, as the library reads it whenever it is asked for the time.
    fs::write(&clock, "-7200").expect("written");
    app.play(&mut lab, 2).expect("calls are answered");
    // What is of an earlier time waits for its window's end, or is written with the window that was about to be.
    let waiting = || {
        let text = get(&metrics, "/metrics");
        text.lines().find_map(|line| line.strip_prefix("flowscribe_exporter_edges ")?.parse::<u64>().ok())
    };
    let hour_ago = TimestampMs(TimestampMs::now().0 - 3_600_000);
    let is_written = || rows_so_far::<FlowRecord>(&written).iter().any(|row| row.last_seen < hour_ago);
    wait_until("flows of an earlier time", || waiting() > Some(0) || is_written());
    recording.stop().expect("it ends well");
    receiver.stop().expect("it ends well");
    assert_all(&written, &arrived);
    balance(&written);
    balance(&arrived);
    let hours: BTreeSet<i64> = rows::<HealthRecord>(&written).iter().map(|row| row.window_end.0 / 3_600_000).collect();
    assert!(hours.len() > 1, "it was set back: {hours:?}");
    let health = rows::<HealthRecord>(&written);
    let last = health.iter().max_by_key(|row| row.seq).expect("there is health");
    assert_eq!(numbers::<FlowRecord>(&written).len() as i64, last.flows_next_seq, "no number is missing");
}

const KEYS: [(&str, &str); 2] = [("ROOT_ACCESS_KEY", "e2e-access"), ("ROOT_SECRET_KEY", "e2e-secret-key")];

/// A gateway with a bucket `captures`, whose objects are files below `data` in a directory.
fn gateway(directory: &Path, address: &str) -> Program {
    let data = directory.join("data");
    fs::create_dir_all(data.join("captures")).expect("a bucket");
    let arguments = ["--port", address, "posix", &data.to_string_lossy()];
    let program = Program::start("FLOWSCRIBE_S3_GATEWAY", &arguments, &KEYS, &directory.join("gateway.log"));
    wait_until("a gateway", || std::net::TcpStream::connect(address).is_ok());
    program
}

/// What a client of the gateway needs in its environment.
fn settings(endpoint: &str) -> [(&str, &str); 5] {
    [
        ("AWS_ENDPOINT", endpoint),
        ("AWS_ACCESS_KEY_ID", KEYS[0].1),
        ("AWS_SECRET_ACCESS_KEY", KEYS[1].1),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ]
}

fn an_object_store_is_compacted_and_pruned_as_a_directory_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = free_address();
    let running = gateway(directory.path(), &address);
    let endpoint = format!("http://{address}");
    let capture = directory.path().join("data/captures/month");
    generate(&Plan { hours: 30, ..Plan::month(1) }, &capture).expect("written");
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let flowscribe = |arguments: &[&str]| {
        let mut command = Command::new(executable());
        command.arg("flowscribe").args(arguments).args(["--input", "s3://captures/month"]).envs(settings(&endpoint));
        let output = command.output().expect("flowscribe starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    let report = ["report", "--min-coverage", "0"];
    let remembering = ["report", "--min-coverage", "0", "--state", &state];
    let before = flowscribe(&report).0;
    assert!(before.lines().count() > 100, "{before}");
    assert_eq!(flowscribe(&remembering).0, before);
    let count = || files(&capture).len();
    assert_eq!(count(), 30 * 11 + 4, "the last word of each run is a file of its own");
    // One that is killed leaves whole objects, or none.
    let mut killed = Command::new(executable());
    killed.args(["flowscribe", "compact", "--keep", "0s", "--input", "s3://captures/month"]);
    let mut killed = killed.envs(settings(&endpoint)).spawn().expect("flowscribe starts");
    wait_until("its first object", || files(&capture).iter().any(|file| file.summary.is_some()));
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    assert_eq!(flowscribe(&report).0, before);
    let said = flowscribe(&["compact", "--keep", "0s"]).1;
    assert_eq!(count(), 30 * 4, "a file per dataset and hour, and a rollup: {said}");
    assert_eq!(flowscribe(&report).0, before);
    let said = flowscribe(&["prune", "--older-than", "1d"]).1;
    assert!(said.starts_with("removed 30 files"), "{said}");
    assert_eq!(count(), 30 * 3);
    assert_eq!(flowscribe(&report).0, before);
    assert_eq!(flowscribe(&remembering).0, before);
    drop(running);
}

fn an_object_store_that_is_killed_and_comes_back_has_everything() {
    let mut lab = lab();
    let app = app(&mut lab);
    let directory = tempfile::tempdir().expect("a directory");
    let stored = || numbers::<FlowRecord>(&directory.path().join("data/captures/demo"));
    let address = free_address();
    let gateway = |address: &str| gateway(directory.path(), address);
    let running = gateway(&address);
    let endpoint = format!("http://{address}");
    let settings = settings(&endpoint);
    let spool = directory.path().join("spool");
    let inventory = directory.path().join("inventory.yaml");
    lab.write_inventory(&inventory).expect("written");
    let exporter = || {
        let mut command = Command::new(executable());
        command.args(["exporter", "--output", "s3://captures/demo", "--node", "lab", "--cluster", "lab"]);
        command.args(["--window", "1s", "--roll-interval", "1s"]).arg("--spool").arg(&spool).envs(settings);
        command.arg("--inventory").arg(&inventory).arg("--cgroup").arg(lab.cgroup());
        command.arg("--host-netns").arg(lab.node_netns());
        command
    };
    let (first, second) = (exporter(), exporter());
    let recording = Recording::spawn(first).expect("the exporter records");
    app.probe(&mut lab).expect("probes are answered");
    app.play(&mut lab, 2).expect("calls are answered");
    wait_until("flows in the store", || !stored().is_empty());
    running.end(Signal::SIGKILL);
    let left = || -> BTreeSet<PathBuf> {
        let flows = files(&spool.join("store")).into_iter().filter(|file| file.dataset == FlowRecord::DATASET);
        flows.map(|file| file.path).collect()
    };
    let before = left();
    app.play(&mut lab, 2).expect("calls are answered");
    wait_until("flows that the store does not take", || !left().is_subset(&before));
    // The agent ends while the store is away; the next one sends what it left.
    recording.stop().expect("nobody to send to is no failure");
    let staged = numbers::<FlowRecord>(&spool.join("store"));
    assert!(!staged.is_empty(), "what was not taken is in the spool");
    let running = gateway(&address);
    let recording = Recording::spawn(second).expect("the exporter records");
    app.play(&mut lab, 1).expect("calls are answered");
    wait_until("what was left", || staged.is_subset(&stored()));
    recording.stop().expect("it ends well");
    drop(running);
    let stored = stored();
    let runs = rows::<HealthRecord>(&directory.path().join("data/captures/demo"));
    for last in runs.iter().filter(|row| row.clean_shutdown) {
        let of_run = stored.iter().filter(|(run, _)| **run == *last.run_id).count() as i64;
        assert_eq!(of_run, last.flows_next_seq, "every row of run {}", last.run_id);
    }
    assert_eq!(runs.iter().filter(|row| row.clean_shutdown).count(), 2, "both runs ended well");

    let running = gateway(&address);
    // Between the runs nobody watched, for a good part of so short a time.
    let arguments = ["--input", "s3://captures/demo", "--namespaces", NAMESPACE, "--min-coverage", "0"];
    let report = Command::new(executable())
        .args(["flowscribe", "report"])
        .args(arguments)
        .envs(settings)
        .output()
        .expect("flowscribe starts");
    assert_eq!(String::from_utf8_lossy(&report.stdout), golden(), "{}", String::from_utf8_lossy(&report.stderr));
    drop(running);
}
