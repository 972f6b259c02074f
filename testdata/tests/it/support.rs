//! What the tests share: a lab, a small disk, a capture's rows, and waiting.

use std::{
    fmt::Display,
    fs::File,
    net::TcpListener,
    os::fd::AsRawFd,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use schemas::{flow::FlowRecord, health::HealthRecord, table::Record};
use serde::Deserialize;
use serde_json::{Value, json};
use testdata::{
    lab::{Lab, PodId, PodSpec},
    recording,
};

use crate::harness::{Missing, Ran};

/// This crate's program: pods, exporter and analyzer in one.
pub(crate) fn executable() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lab"))
}

/// A lab.
///
/// # Errors
/// The machine lacks something that a lab needs.
pub(crate) fn lab() -> Result<Lab, Missing> {
    require_lab()?;
    Ok(Lab::new(executable()).expect("a lab can be made where nothing is missing"))
}

/// Stops a test where there can be no lab.
///
/// # Errors
/// As [`lab`].
pub(crate) fn require_lab() -> Ran {
    Lab::missing().map_or(Ok(()), |missing| Err(Missing(missing)))
}

/// An address of the loopback interface that nobody listens on.
pub(crate) fn free_address() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has an address").to_string()
}

/// The documents of a text in YAML; a key that is there twice is an error.
pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    // Only this library's own values refuse such a key.
    let documents = serde_yaml::Deserializer::from_str(yaml).map(serde_yaml::Value::deserialize);
    let values = documents.map(|document| serde_json::to_value(document.expect("YAML")).expect("keys are strings"));
    values.filter(|value| !value.is_null()).collect()
}

/// A pod of the Deployment `workload` with the label `app`.
pub(crate) fn pod(lab: &mut Lab, workload: &str) -> PodId {
    lab.pod(spec(workload)).expect("the lab takes another pod")
}

/// What [`pod`] makes.
pub(crate) fn spec(workload: &str) -> PodSpec {
    let labels = json!({ "app": workload });
    let owner = json!({ "kind": "Deployment", "name": workload, "selector": { "matchLabels": labels } });
    let name = format!("{workload}-0");
    PodSpec { namespace: "demo".into(), name, labels, owner, ..PodSpec::default() }
}

/// A file system that does not answer, as one of a network whose server is away; gone when it is dropped.
pub(crate) struct StalledDisk {
    directory: tempfile::TempDir,
    /// Who is asked, and does not answer.
    server: Option<File>,
}

/// A disk that does not answer.
///
/// # Errors
/// Nothing can be mounted on this machine, or its kernel lacks FUSE.
pub(crate) fn stalled_disk() -> Result<StalledDisk, Missing> {
    let missing =
        |error: &dyn Display| Missing(format!("a file system that does not answer needs root and FUSE: {error}"));
    let server = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| missing(&error))?;
    let directory = tempfile::tempdir().expect("a directory");
    // Not even the first request, FUSE_INIT, is answered (Documentation/filesystems/fuse in Linux).
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    mount(Some("stalled"), directory.path(), Some("fuse"), MsFlags::empty(), Some(&*options))
        .map_err(|error| missing(&error))?;
    Ok(StalledDisk { directory, server: Some(server) })
}

impl StalledDisk {
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for StalledDisk {
    fn drop(&mut self) {
        // Whoever waits gets an error.
        self.server.take();
        let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH);
    }
}

/// A file system of its own, of so many bytes; unmounted when it is dropped.
pub(crate) struct SmallDisk(tempfile::TempDir);

/// A disk that is soon full.
///
/// # Errors
/// Nothing can be mounted on this machine.
pub(crate) fn small_disk(bytes: u64) -> Result<SmallDisk, Missing> {
    let directory = tempfile::tempdir().expect("a directory");
    let size = format!("size={bytes}");
    mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(&*size))
        .map_err(|error| Missing(format!("no file system can be mounted: {error}")))?;
    Ok(SmallDisk(directory))
}

impl SmallDisk {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Every row of a dataset.
pub(crate) fn rows<R: Record>(root: &Path) -> Vec<R> {
    recording::rows(root).expect("the capture can be read")
}

/// Every row of a dataset, and none where nothing of it was written yet.
pub(crate) fn rows_so_far<R: Record>(root: &Path) -> Vec<R> {
    if root.join(R::DATASET).is_dir() { rows(root) } else { Vec::new() }
}

/// Waits until a recording that goes on has written so many more rows of health, of which it writes one per window.
pub(crate) fn let_windows_pass(root: &Path, windows: usize) {
    let written = || rows_so_far::<HealthRecord>(root).len();
    let before = written();
    wait_until("the next windows", || written() >= before + windows);
}

/// Waits until no connection of a pod is about to end: the last acknowledgement comes after its program has let go of it.
pub(crate) fn let_connections_end(lab: &mut Lab, pods: &[PodId]) {
    let is_over =
        "until [ -z \"$(ss -Htan exclude listening exclude time-wait exclude established)\" ]; do sleep 0.02; done";
    for pod in pods {
        lab.shell(*pod, is_over).expect("ss (iproute2) is installed");
    }
}

/// Asserts that a recording accounts for every end that it saw, and that its rows hold what it says.
pub(crate) fn balance(root: &Path) {
    let health = rows::<HealthRecord>(root);
    let sum = |pick: fn(&HealthRecord) -> i64| health.iter().map(pick).sum::<i64>();
    let lost = sum(HealthRecord::lost);
    let (seen, exported, filtered) = (sum(|row| row.seen), sum(|row| row.exported), sum(|row| row.filtered));
    assert_eq!(seen, exported + filtered + lost, "seen = exported + filtered + lost: {health:?}");
    let written: i64 = rows::<FlowRecord>(root).iter().map(|row| row.connections + row.failed).sum();
    assert_eq!(exported, written, "what was exported is in the rows");
}

/// Runs `flowscribe` over a capture.
pub(crate) fn flowscribe(arguments: &[&str]) -> Output {
    recording::flowscribe(executable(), arguments).expect("flowscribe starts")
}

/// Waits until a condition holds. Fails after minutes: on the slowest machine, what is waited for comes before that.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
