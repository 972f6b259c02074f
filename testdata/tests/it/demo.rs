//! The demo, live: exactly twelve policies, and the same bytes however often and from whatever order they are made.

use std::{collections::BTreeSet, fs, path::Path, process::Command, sync::Arc, time::Duration};

use schemas::{
    capture::{self, DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

use crate::{
    harness::Ran,
    readers::committed,
    support::{executable, flowscribe, require_lab, rows},
};

tests![
    the_demo_ends_in_the_twelve_policies_of_its_workloads,
    the_golden_policies_are_what_the_manifest_asks_for,
    the_committed_capture_gives_the_golden_policies_in_any_order,
    what_is_of_version_1_gives_the_same_policies_alone_mixed_and_compacted,
    without_a_lab_the_demo_says_so_and_replays_the_committed_capture,
    the_demo_clears_nothing_but_a_capture,
];

/// The policies that the demo must end in, whoever runs it.
fn golden() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/microservices-demo.policies.yaml");
    fs::read_to_string(path).expect("the golden policies are committed")
}

fn report(capture: &Path) -> String {
    let output = flowscribe(&["report", "--input", &capture.to_string_lossy(), "--namespaces", "demo"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("YAML is text")
}

fn the_demo_ends_in_the_twelve_policies_of_its_workloads() -> Ran {
    require_lab()?;
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    let demo = Command::new(executable()).args(["demo", "--capture"]).arg(&capture).output().expect("the demo starts");
    let summary = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{summary}");
    assert!(!summary.contains("not live here"), "{summary}");
    assert!(summary.contains("lab: 12 workloads, 15 pods"), "{summary}");
    assert!(summary.contains("12 policies from"), "{summary}");
    assert!(summary.contains("(0 seen from one end only)"), "{summary}");
    let policies = String::from_utf8(demo.stdout).expect("YAML is text");
    assert_eq!(policies, golden(), "UPDATE: cargo demo > testdata/apps/microservices-demo.policies.yaml");
    assert_eq!(report(&capture), policies, "a second report gives the same bytes");
    let again = Command::new(executable()).args(["demo", "--capture"]).arg(&capture).output().expect("it starts");
    assert!(again.status.success(), "it takes the place of the capture: {}", String::from_utf8_lossy(&again.stderr));
    Ok(())
}

fn the_golden_policies_are_what_the_manifest_asks_for() {
    let golden = golden();
    let policy = |workload: &str| {
        let named = |document: &&str| document.contains(&format!("\n  name: {workload}-network\n"));
        golden.split("---\n").find(named).unwrap_or_else(|| panic!("{workload} has a policy"))
    };
    assert_eq!(golden.split("---\n").count(), 12);
    let cart = policy("cartservice");
    assert!(
        cart.contains(
            "  egress:\n  - ports:\n    - port: 53\n      protocol: TCP\n    - port: 53\n      protocol: UDP\n    to:\n\
             \x20   - namespaceSelector:\n        matchLabels:\n          kubernetes.io/metadata.name: kube-system\n\
             \x20     podSelector:\n        matchLabels:\n          k8s-app: kube-dns\n  - ports:\n    - port: 6379\n\
             \x20     protocol: TCP\n    to:\n    - podSelector:\n        matchLabels:\n          app: redis-cart\n\
             \x20 ingress:\n  - from:\n    - podSelector:\n        matchLabels:\n\
             \x20         app: checkoutservice\n    - podSelector:\n        matchLabels:\n          app: frontend\n    \
             ports:\n    - port: 7070\n      protocol: TCP\n"
        ),
        "{cart}"
    );
    let email = policy("emailservice");
    assert!(email.contains("port: 8080\n") && !golden.contains("port: 5000\n"), "dialled on 5000, listening on 8080");
    let ports: BTreeSet<&str> = golden.lines().filter_map(|line| line.trim().strip_prefix("- port: ")).collect();
    let listening = ["53", "3550", "5050", "6379", "7000", "7070", "8080", "9555", "50051"];
    assert_eq!(ports, listening.into_iter().collect(), "no other port, above all no ephemeral one");
    assert!(!golden.contains("ipBlock"), "every peer is a selector");
}

fn the_committed_capture_gives_the_golden_policies_in_any_order() {
    assert_eq!(report(&committed()), golden());
    let flows = rows::<FlowRecord>(&committed());
    assert!(flows.len() > 50, "the capture is there: {}", flows.len());
    let run = &flows[0].run_id;
    let directory = tempfile::tempdir().expect("a directory");
    // The same rows, dealt to seven files, each from the other end.
    for (number, deal) in (0..7).map(|part| (part, flows.iter().rev().skip(part).step_by(7))) {
        write(directory.path(), &format!("dealt-{number}"), run, deal.cloned().collect::<Vec<_>>());
    }
    write(directory.path(), "inventory", run, rows::<InventoryRecord>(&committed()));
    write(directory.path(), "health", run, rows::<HealthRecord>(&committed()));
    assert_eq!(report(directory.path()), golden());
    // Delivered twice: every row is there a second time.
    write(directory.path(), "again", run, flows.clone());
    assert_eq!(report(directory.path()), golden());
}

fn what_is_of_version_1_gives_the_same_policies_alone_mixed_and_compacted() {
    let files = |capture: &Path| capture::list(&[capture.into()]).expect("the capture is there").files;
    assert!(files(&committed()).iter().all(|file| file.version == 1), "it is kept as it was written");
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    let copied = Command::new("cp").arg("-r").arg(committed()).arg(&capture).status().expect("cp starts");
    assert!(copied.success());
    // The same inventory, as another writer of now has it.
    write(&capture, "again", &"another-run".into(), rows::<InventoryRecord>(&committed()));
    assert!(files(&capture).iter().any(|file| file.version == 2));
    assert_eq!(report(&capture), golden());
    let path = capture.to_string_lossy();
    for _ in 0..2 {
        let compacted = flowscribe(&["compact", "--input", &path, "--settle", "0s", "--keep", "0s"]);
        assert!(compacted.status.success(), "{}", String::from_utf8_lossy(&compacted.stderr));
    }
    assert!(files(&capture).iter().all(|file| file.version == 2), "{:?}", files(&capture));
    assert_eq!(report(&capture), golden());
    assert_eq!(rows::<FlowRecord>(&capture).len(), rows::<FlowRecord>(&committed()).len());
}

fn without_a_lab_the_demo_says_so_and_replays_the_committed_capture() {
    // Neither `ip` nor `nft` is on an empty path; without root, that is said first.
    let demo = Command::new(executable()).arg("demo").env("PATH", "").output().expect("the demo starts");
    let summary = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{summary}");
    let reason = summary.lines().next().expect("it says something");
    assert!(reason.starts_with("not live here: it needs"), "{reason}");
    assert_eq!(String::from_utf8_lossy(&demo.stdout), golden());
}

fn write<R: Record>(root: &Path, file: &str, run: &Arc<str>, rows: Vec<R>) {
    let roll = Roll { size_bytes: u64::MAX, age: Duration::MAX };
    let origin = Origin { cluster: "lab".into(), node: file.into(), run_id: Arc::clone(run) };
    let mut writer = DatasetWriter::new(root, &origin, "test", roll);
    for row in rows {
        writer.push(row, TimestampMs(0)).expect("the row is taken");
    }
    writer.finish().expect("the file is finished");
}

fn the_demo_clears_nothing_but_a_capture() -> Ran {
    require_lab()?;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("precious");
    fs::write(&file, "mine").expect("written");
    let demo =
        Command::new(executable()).args(["demo", "--capture"]).arg(directory.path()).output().expect("it starts");
    assert_eq!(demo.status.code(), Some(1));
    let said = String::from_utf8_lossy(&demo.stderr);
    assert!(said.contains("precious is not of a capture: name another directory"), "{said}");
    assert!(file.exists());
    Ok(())
}
