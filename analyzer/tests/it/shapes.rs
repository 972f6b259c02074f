//! Applications of different shapes, each with the policies that it must end in.

use schemas::inventory::ObjectKind;

use crate::support::{Capture, Report, tcp};

const DNS: &str = "10.244.0.53";

/// A cluster with its DNS.
fn cluster() -> Capture {
    let mut capture = Capture::new();
    capture.bare_pod("kube-system/coredns-1", DNS, r#"{"k8s-app":"kube-dns","pod-template-hash":"x"}"#);
    let pod = capture.inventory.last_mut().expect("it was made");
    (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some("coredns".into()));
    capture.workload("Deployment", "kube-system/coredns", r#"{"matchLabels":{"k8s-app":"kube-dns"}}"#);
    capture.service("kube-system/kube-dns", "10.96.0.10", 53, "53", Some(r#"{"k8s-app":"kube-dns"}"#));
    capture.inventory.last_mut().expect("the Service").ports[0].protocol = "udp".into();
    capture
}

/// Has pods ask for names.
fn ask_names<const N: usize>(capture: &mut Capture, clients: [&str; N]) {
    for client in clients {
        let before = capture.flows.len();
        capture.talk_through(client, ("10.96.0.10", 53), (DNS, 53));
        capture.flows[before..].iter_mut().for_each(|row| row.transport = "udp".into());
    }
}

/// The policies and everything said about them, but for what is the same for all.
fn golden(name: &str, capture: &Capture, more: &[&str]) {
    let Report { yaml, said, .. } = capture.report_with(&[&["--namespaces", "app"], more].concat());
    let said = said.lines().filter(|line| !line.starts_with("not stable yet")).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(format!("shape_{name}"), format!("{yaml}# {}\n", said.replace('\n', "\n# ")));
}

#[test]
fn a_stateful_set_whose_pods_talk_with_one_another() {
    let mut capture = cluster();
    capture.workload("StatefulSet", "app/etcd", r#"{"matchLabels":{"app.kubernetes.io/name":"etcd"}}"#);
    let addresses = ["10.244.1.1", "10.244.1.2", "10.244.1.3"];
    for (number, address) in addresses.iter().enumerate() {
        let labels = format!(
            r#"{{"app.kubernetes.io/name":"etcd","apps.kubernetes.io/pod-index":"{number}","controller-revision-hash":"e-1","statefulset.kubernetes.io/pod-name":"etcd-{number}"}}"#
        );
        let pod = capture.bare_pod(&format!("app/etcd-{number}"), address, &labels);
        (pod.owner_kind, pod.owner) = (Some("StatefulSet".into()), Some("etcd".into()));
    }
    capture.pod("app/api", "10.244.1.9");
    for from in addresses {
        addresses.iter().filter(|to| **to != from).for_each(|to| capture.talk(from, to, 2380));
    }
    addresses.iter().for_each(|to| capture.talk("10.244.1.9", to, 2379));
    ask_names(&mut capture, [addresses[0], "10.244.1.9"]);
    golden("stateful_set", &capture, &[]);
}

#[test]
fn a_cron_job_whose_pods_come_and_go() {
    let mut capture = cluster();
    capture.pod("app/db", "10.244.2.1");
    capture.workload("CronJob", "app/backup", "");
    for (run, address) in [("1", "10.244.2.7"), ("2", "10.244.2.8")] {
        let job = format!("backup-{run}");
        capture.workload(
            "Job",
            &format!("app/{job}"),
            &format!(r#"{{"matchLabels":{{"batch.kubernetes.io/controller-uid":"u{run}"}}}}"#),
        );
        let owned = capture.inventory.last_mut().expect("the Job");
        (owned.owner_kind, owned.owner) = (Some("CronJob".into()), Some("backup".into()));
        let labels = format!(
            r#"{{"app":"backup","batch.kubernetes.io/controller-uid":"u{run}","batch.kubernetes.io/job-name":"{job}","controller-uid":"u{run}","job-name":"{job}"}}"#
        );
        let pod = capture.bare_pod(&format!("app/{job}-x"), address, &labels);
        (pod.owner_kind, pod.owner) = (Some("Job".into()), Some(job.into()));
        capture.talk(address, "10.244.2.1", 5432);
        capture.dial(address, "198.51.100.20", 443);
    }
    ask_names(&mut capture, ["10.244.2.7"]);
    golden("cron_job", &capture, &[]);
}

#[test]
fn a_daemon_set_in_the_nodes_network_that_scrapes_pods() {
    let mut capture = cluster();
    for (node, address) in [("node-b", "192.0.2.2"), ("node-c", "192.0.2.3")] {
        capture.object(ObjectKind::Node, None, node).addresses = vec![address.into()];
        let agent = capture.bare_pod(&format!("app/agent-{node}"), address, r#"{"app":"agent"}"#);
        (agent.owner_kind, agent.owner) = (Some("DaemonSet".into()), Some("agent".into()));
        (agent.host_network, agent.object_node) = (Some(true), Some(node.into()));
    }
    capture.pod("app/web", "10.244.3.1");
    for address in ["192.0.2.2", "192.0.2.3"] {
        capture.accept("10.244.3.1", address, 9100);
    }
    // Its own node's, which nobody can cut.
    capture.accept("10.244.3.1", "192.0.2.1", 8080);
    golden("host_network", &capture, &[]);
    golden("host_network_range", &capture, &["--node-cidr", "192.0.2.0/24"]);
}

#[test]
fn an_operator_that_calls_the_api_server() {
    let mut capture = cluster();
    capture.service("default/kubernetes", "10.96.0.1", 443, "6443", None);
    let slice = capture.object(ObjectKind::EndpointSlice, Some("default"), "kubernetes");
    (slice.owner_kind, slice.owner) = (Some("Service".into()), Some("kubernetes".into()));
    slice.addresses = vec!["203.0.113.1".into(), "203.0.113.2".into()];
    slice.ports = vec![tcp(6443, None)];
    capture.pod("app/operator", "10.244.4.1");
    capture.pod("app/managed", "10.244.4.2");
    capture.dial("10.244.4.1", "10.96.0.1", 443);
    capture.talk("10.244.4.1", "10.244.4.2", 8443);
    // The API server calls the operator's webhook.
    capture.accept("10.244.4.1", "203.0.113.1", 9443);
    ask_names(&mut capture, ["10.244.4.1"]);
    golden("operator", &capture, &[]);
}

#[test]
fn an_application_that_lives_on_services_outside() {
    let mut capture = cluster();
    capture.pod("app/web", "10.244.5.1");
    for last in 1..=40 {
        let row = capture.dial("10.244.5.1", &format!("198.51.100.{last}"), 443);
        row.destination_name = (last == 7).then(|| "api.example.com".into());
    }
    capture.dial("10.244.5.1", "203.0.113.25", 587);
    let refused = capture.dial("10.244.5.1", "203.0.113.26", 587);
    (refused.connections, refused.closed, refused.failed, refused.failure) = (0, 0, 3, Some("timeout".into()));
    ask_names(&mut capture, ["10.244.5.1"]);
    golden("outside", &capture, &["--max-cidrs", "8"]);
}

#[test]
fn an_application_of_both_families() {
    let mut capture = cluster();
    for (name, v4, v6) in [("app/web", "10.244.6.1", "fd00:10:244::61"), ("app/db", "10.244.6.2", "fd00:10:244::62")] {
        capture.pod(name, v4).addresses.push(v6.into());
    }
    capture.talk("10.244.6.1", "10.244.6.2", 5432);
    capture.talk("fd00:10:244::61", "fd00:10:244::62", 5432);
    capture.dial("10.244.6.1", "198.51.100.7", 443);
    capture.dial("fd00:10:244::61", "2001:db8::7", 443);
    golden("dual_stack", &capture, &[]);
}
