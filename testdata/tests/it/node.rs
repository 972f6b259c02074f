//! Which network is the node's own, also where the node is a container.

use std::{fs, process::Command};

use schemas::inventory::{InventoryRecord, ObjectKind};
use serde_json::Value;
use testdata::{pod::Exchange, recording::Recording};

use crate::{
    harness::{Ran, require},
    support::{executable, lab, pod, rows},
};

tests![
    the_nodes_own_network_is_that_of_its_first_process_without_cap_sys_ptrace,
    what_a_nodes_own_interfaces_have_is_in_the_inventory,
];

/// What `doctor` finds, run by a shell after these words.
fn findings(before: &str) -> Value {
    let doctor = format!("{before} {} exporter doctor --format json", executable().display());
    let output = Command::new("sh").args(["-c", &doctor]).output().expect("a shell starts");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {output:?}"))
}

fn finding<'a>(report: &'a Value, what: &str) -> (&'a str, bool) {
    let found = report["findings"].as_array().expect("a list").iter().find(|finding| finding["what"] == what);
    let found = found.unwrap_or_else(|| panic!("no {what}: {report:#}"));
    (found["detail"].as_str().expect("text"), found["ok"].as_bool().expect("a truth"))
}

fn what_a_nodes_own_interfaces_have_is_in_the_inventory() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    // As a CNI's tunnel has it.
    let add = |address: &str| {
        let within = format!("--net={}", lab.node_netns().display());
        let arguments = [&within, "ip", "address", "add", address, "dev", "lo"];
        let added = Command::new("nsenter").args(arguments).status().expect("nsenter starts");
        assert!(added.success(), "{address}: {added}");
    };
    add("10.244.219.64/32");
    add("fd00:10:244:219::64/128");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    lab.dial(client, (lab.ipv4(server), 7001), 1, Exchange::new(1, 1)).expect("the server answers");
    recording.stop().expect("the exporter ends well");
    let known = rows::<InventoryRecord>(&output);
    let interfaces: Vec<_> = known.iter().filter(|row| *row.kind == ObjectKind::NodeInterfaces).collect();
    let [found] = interfaces[..] else { panic!("one row tells of them: {interfaces:?}") };
    let is_its_node = |row: &InventoryRecord| *row.kind == ObjectKind::Node && row.name == found.name;
    assert!(known.iter().any(is_its_node) && found.node == found.name, "{found:?}");
    for address in ["10.244.219.64", "fd00:10:244:219::64"] {
        assert!(found.addresses.iter().any(|known| &**known == address), "{found:?}");
    }
    assert!(!found.addresses.iter().any(|known| known.starts_with("127.") || known.starts_with("fe80")), "{found:?}");
    Ok(())
}

fn the_nodes_own_network_is_that_of_its_first_process_without_cap_sys_ptrace() -> Ran {
    require(nix::unistd::geteuid().is_root(), "it needs root")?;
    let as_root = findings("");
    let (of_the_machine, _) = finding(&as_root, "the node's own network");
    // As in the chart: a network of its own, and none of the capabilities that could look at process 1.
    let as_in_the_chart = "unshare --net setpriv --bounding-set=-all,+bpf,+net_admin,+perfmon --";
    let report = findings(as_in_the_chart);
    let (detail, ok) = finding(&report, "the node's own network");
    assert_eq!((detail, ok), (of_the_machine, true), "{report:#}");
    assert_eq!(finding(&report, "the node's PID namespace"), ("shared with the node", true), "{report:#}");
    assert_eq!(report["records"], true, "{report:#}");

    // A node that is a container: its process 1 is not the kernel's, nor is its network.
    let node = tempfile::tempdir().expect("a directory");
    let file = node.path().join("net").to_string_lossy().into_owned();
    let container = "unshare --pid --fork --kill-child --net --mount-proc sh -c";
    let report = findings(&format!("{container} 'readlink /proc/self/ns/net > {file}; {as_in_the_chart} \"$@\"' sh"));
    let of_node = fs::read_to_string(&file).expect("the shell wrote it");
    let (detail, ok) = finding(&report, "the node's own network");
    assert!(ok && detail.contains(of_node.trim()), "{of_node} {report:#}");
    assert_eq!(finding(&report, "the node's PID namespace"), ("shared with the node", true), "{report:#}");
    assert_ne!(detail, of_the_machine);

    // A container that shares the node's network, but not its processes.
    let report = findings("unshare --pid --fork --kill-child --mount-proc");
    assert_eq!(finding(&report, "the node's PID namespace"), ("missing", false), "{report:#}");
    Ok(())
}
