//! Pods whose sockets are not their node's: sandboxes, virtual machines, networks beside the cluster's.

use crate::support::{Capture, DB, WEB, limits, lines, web_and_db};

const SANDBOX: &str = "10.244.0.60";

/// A pod of `demo/sandbox` asks `demo/db`, whose node's agent sees it; its own sees nothing.
fn sandbox(change: impl FnOnce(&mut schemas::inventory::InventoryRecord)) -> Capture {
    let mut capture = web_and_db();
    change(capture.pod("demo/sandbox", SANDBOX));
    capture.accept(DB, SANDBOX, 5432);
    capture
}

#[test]
fn what_runs_in_a_sandbox_is_not_observed_and_its_peers_are() {
    let plain = web_and_db().report();
    for class in ["gvisor", "kata-qemu", "confidential"] {
        let report = sandbox(|pod| pod.runtime_class = Some(class.into())).report();
        assert_eq!(limits(&report, "sandbox-network"), [""; 0], "{}", report.said);
        let said =
            format!("its pods run in RuntimeClass {class}, and the agents of their nodes see nothing of what they do");
        assert!(report.said.contains(&said), "{}", report.said);
        let expected = lines(["ingress app=sandbox 5432/TCP", "ingress app=web 5432/TCP"]);
        assert_eq!(report.allows("demo/db-network"), expected);
        for policy in ["db-network", "web-network"] {
            assert_eq!(limits(&report, policy), ["Ingress", "Egress"], "{}", report.said);
        }
        assert_eq!(report.allows("demo/web-network"), plain.allows("demo/web-network"));
    }
}

#[test]
fn a_sandbox_of_which_nobody_saw_anything_has_no_policy() {
    let mut capture = web_and_db();
    capture.pod("demo/idle", SANDBOX).runtime_class = Some("gvisor".into());
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    let said = "demo/idle: ingress and egress withheld and left open, its pods run in RuntimeClass gvisor";
    assert!(report.said.contains(said), "{}", report.said);
}

#[test]
fn a_virtual_machine_is_not_observed_whatever_its_launcher_does() {
    let mut capture = sandbox(|pod| pod.labels = Some(r#"{"app":"sandbox","kubevirt.io":"virt-launcher"}"#.into()));
    capture.talk(SANDBOX, DB, 5432);
    let report = capture.report();
    assert_eq!(limits(&report, "sandbox-network"), [""; 0], "{}", report.said);
    assert!(report.said.contains("its pods run in a virtual machine"), "{}", report.said);
}

#[test]
fn runtimes_whose_containers_are_the_nodes_processes_close_as_ever() {
    for class in ["nvidia", "crun", "confidential"] {
        let mut capture = web_and_db();
        capture.pod("demo/sandbox", SANDBOX);
        capture.talk(SANDBOX, DB, 5432);
        let plain = capture.report();
        for object in capture.inventory.iter_mut().filter(|object| object.addresses.iter().any(|a| &**a == SANDBOX)) {
            object.runtime_class = Some(class.into());
        }
        // Of a class that nobody knows, its own sockets were seen.
        assert_eq!(capture.report().yaml, plain.yaml, "{class}");
    }
}

#[test]
fn a_workload_that_moves_into_a_sandbox_is_not_observed_any_more() {
    let mut capture = web_and_db();
    capture.pod("demo/moved", SANDBOX);
    capture.talk(SANDBOX, DB, 5432);
    capture.pod("demo/moved", "10.244.0.61").runtime_class = Some("kata-qemu".into());
    assert_eq!(limits(&capture.report(), "moved-network"), [""; 0]);
}

#[test]
fn networks_beside_the_clusters_are_named() {
    let mut capture = web_and_db();
    let plain = capture.report();
    for object in capture.inventory.iter_mut().filter(|object| object.addresses.iter().any(|a| &**a == WEB)) {
        object.annotations = Some(r#"{"k8s.v1.cni.cncf.io/networks":"sriov-a"}"#.into());
    }
    let report = capture.report();
    assert_eq!(report.yaml, plain.yaml);
    let said = "demo/web: its pods have other networks (sriov-a), which no NetworkPolicy limits";
    assert!(report.said.contains(said), "{}", report.said);
}
