//! Addresses that only nodes know, and those that hold on one link alone.

use schemas::inventory::ObjectKind;

use crate::support::{Capture, DB, WEB, limits, lines, web_and_db};

const GATEWAY: &str = "10.244.0.1";

fn interfaces(capture: &mut Capture, node: &str, addresses: &[&str]) {
    let record = capture.object(ObjectKind::NodeInterfaces, None, node);
    record.addresses = addresses.iter().map(|address| (*address).into()).collect();
}

/// A row of the node's agent of what a process of the node does.
fn by_the_node(capture: &mut Capture, from: &str, to: &str, port: u16) {
    let row = capture.row("client", from, to, port);
    row.source_kind = "node".into();
    row.source_node = Some("node-a".into());
}

#[test]
fn a_tunnel_of_another_node_is_allowed_by_its_address() {
    let mut capture = web_and_db();
    capture.accept(DB, "10.244.219.64", 9443);
    assert_eq!(limits(&capture.report(), "db-network"), ["Egress"], "nobody is known to have it");
    interfaces(&mut capture, "node-b", &["10.244.219.64", "192.0.2.2"]);
    let report = capture.report();
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
    let expected = ["ingress 10.244.219.64/32 9443/TCP", "ingress app=web 5432/TCP"];
    assert_eq!(report.allows("demo/db-network"), lines(expected));
    assert!(report.said.contains("node node-b (10.244.219.64) → demo/db 9443/TCP: allowed by"), "{}", report.said);
}

#[test]
fn probes_from_the_own_nodes_bridge_are_the_nodes_and_visitors_through_it_are_not_passed_over() {
    let mut capture = web_and_db();
    interfaces(&mut capture, "node-a", &[GATEWAY]);
    let plain = capture.report();
    capture.accept(DB, GATEWAY, 8080);
    by_the_node(&mut capture, GATEWAY, DB, 8080);
    let probed = capture.report();
    assert_eq!(probed.yaml, plain.yaml);
    assert!(!probed.said.contains(GATEWAY), "{}", probed.said);
    // Nobody on the node dialled this.
    capture.accept(DB, GATEWAY, 30_080);
    let visited = capture.report();
    assert!(visited.allows("demo/db-network").contains("ingress 10.244.0.1/32 30080/TCP"), "{}", visited.yaml);
    assert!(visited.said.contains(GATEWAY), "{}", visited.said);
    assert_eq!(limits(&visited, "db-network"), ["Ingress", "Egress"]);
}

#[test]
fn a_pod_that_has_an_interfaces_address_later_is_the_pod() {
    let mut capture = web_and_db();
    interfaces(&mut capture, "node-b", &[WEB]);
    assert_eq!(capture.report().yaml, web_and_db().report().yaml);
}

#[test]
fn the_address_of_a_service_is_no_nodes_though_every_node_has_it() {
    // As kube-proxy does it with IPVS; the Service is gone since.
    let mut capture = web_and_db();
    let plain = capture.report();
    capture.dial(WEB, "10.96.0.77", 80);
    let unknown = capture.report();
    interfaces(&mut capture, "node-a", &["10.96.0.77"]);
    assert_eq!(capture.report().yaml, unknown.yaml);
    assert_ne!(unknown.yaml, plain.yaml, "its egress is left open");
}

#[test]
fn a_local_resolver_is_named_once_and_not_as_one_that_may_change() {
    let mut capture = web_and_db();
    for (node, transport) in [("node-a", "udp"), ("node-b", "tcp")] {
        interfaces(&mut capture, node, &["169.254.20.10"]);
        capture.dial(WEB, "169.254.20.10", 53).transport = transport.into();
    }
    let report = capture.report();
    let expected =
        lines(["egress 169.254.20.10/32 53/TCP", "egress 169.254.20.10/32 53/UDP", "egress app=db 5432/TCP"]);
    assert_eq!(report.allows("demo/web-network"), expected);
    assert!(!report.said.contains("169.254.20.10"), "{}", report.said);
}

#[test]
fn what_holds_on_one_link_alone_is_no_rule_and_is_named() {
    let mut capture = web_and_db();
    let plain = capture.report();
    let mut node = capture.object(ObjectKind::Node, None, "node-b").clone();
    node.cidrs = vec!["10.244.7.0/24".into()];
    *capture.inventory.last_mut().expect("it was just made") = node;
    let link = ["fe80::8853:c7ff:fe48:c51d", "255.255.255.255", "10.244.7.255"];
    for address in link {
        let row = capture.dial(WEB, address, 6700);
        row.transport = "udp".into();
    }
    let report = capture.report();
    assert_eq!(report.yaml, plain.yaml);
    // A pod that nobody knows may have the last address of a range.
    let mut visited = capture.clone();
    visited.accept(DB, "10.244.7.255", 5432);
    assert_eq!(limits(&visited.report(), "db-network"), ["Egress"]);
    for address in link {
        assert!(report.said.contains(address) && report.said.contains("6700/UDP: left out, it stays on the link"));
    }
    assert_eq!(report.said.matches("stays on the link").count(), link.len(), "{}", report.said);
}

#[test]
fn the_tunnel_of_a_mesh_stands_for_all_ports_and_is_named() {
    let mut capture = web_and_db();
    capture.talk(WEB, DB, 15_008);
    let report = capture.report();
    assert!(report.allows("demo/db-network").contains("ingress app=web 15008/TCP"), "{}", report.yaml);
    assert!(report.said.contains("demo/db: 15008/TCP is the tunnel of an ambient mesh"), "{}", report.said);
    assert!(!web_and_db().report().said.contains("tunnel"));
}

#[test]
fn a_multicast_group_is_a_marked_rule() {
    let mut capture = web_and_db();
    for group in ["224.0.0.251", "ff02::fb"] {
        capture.dial(WEB, group, 5353).transport = "udp".into();
    }
    let report = capture.report();
    for cidr in ["224.0.0.251/32", "ff02::fb/128"] {
        assert!(report.allows("demo/web-network").contains(&format!("egress {cidr} 5353/UDP")), "{}", report.yaml);
    }
    assert_eq!(report.said.matches("allowed by the group's address").count(), 2, "{}", report.said);
    assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"]);
}
