//! Policies of random clusters: every observed connection passes, and nothing else does.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;
use schemas::inventory::ObjectKind;

use crate::{
    oracle::{self, End},
    support::Capture,
};

/// A cluster and what was observed in it.
#[derive(Clone, Debug)]
struct Scene {
    workloads: Vec<Workload>,
    /// Client, server, port (index), and whether it dialled a Service.
    calls: Vec<(usize, usize, usize, bool)>,
    /// Workload, address outside, port (index), and whether it is the client.
    outside: Vec<(usize, u8, usize, bool)>,
}

#[derive(Clone, Debug)]
struct Workload {
    in_second_namespace: bool,
    /// Its labels beside `app`.
    tier: u8,
    /// The owner's selector asks for `tier` alone, which others may have.
    loose: bool,
    /// It has the labels of the workload before it.
    twin: bool,
    replicas: u8,
}

const PORTS: [(u16, &str); 4] = [(80, "tcp"), (5432, "tcp"), (53, "udp"), (8080, "tcp")];

fn scenes() -> impl Strategy<Value = Scene> {
    let workload = (any::<bool>(), 0_u8..3, any::<bool>(), proptest::bool::weighted(0.15), 1_u8..3).prop_map(
        |(in_second_namespace, tier, loose, twin, replicas)| Workload {
            in_second_namespace,
            tier,
            loose,
            twin,
            replicas,
        },
    );
    proptest::collection::vec(workload, 2..7).prop_flat_map(|workloads| {
        let count = workloads.len();
        let calls = proptest::collection::vec((0..count, 0..count, 0..PORTS.len(), any::<bool>()), 1..12);
        let outside = proptest::collection::vec((0..count, any::<u8>(), 0..PORTS.len(), any::<bool>()), 0..12);
        (calls, outside).prop_map(move |(calls, outside)| Scene { workloads: workloads.clone(), calls, outside })
    })
}

/// A workload as the oracle sees it, and the addresses of its pods.
struct Known {
    end: End,
    addresses: Vec<String>,
}

impl Scene {
    fn known(&self) -> Vec<Known> {
        let mut known: Vec<Known> = Vec::new();
        for (number, workload) in self.workloads.iter().enumerate() {
            let twin = known.last().filter(|_| workload.twin).map(|known| known.end.clone());
            let namespace = if workload.in_second_namespace { "two" } else { "one" };
            let labels =
                [("app".to_owned(), format!("app-{number}")), ("tier".to_owned(), format!("t{}", workload.tier))];
            let end = End { namespace: namespace.into(), labels: labels.into(), address: None };
            let addresses = (0..workload.replicas).map(|replica| format!("10.244.{number}.{}", replica + 10)).collect();
            known.push(Known { end: twin.unwrap_or(end), addresses });
        }
        known
    }

    fn capture(&self, known: &[Known]) -> Capture {
        let mut capture = Capture::new();
        for (number, (workload, Known { end, addresses })) in self.workloads.iter().zip(known).enumerate() {
            let (tier, app) = (&end.labels["tier"], &end.labels["app"]);
            let selector = if workload.loose {
                format!(r#"{{"matchLabels":{{"tier":"{tier}"}}}}"#)
            } else {
                format!(r#"{{"matchLabels":{{"app":"{app}"}}}}"#)
            };
            let path = format!("{}/app-{number}", end.namespace);
            capture.workload("Deployment", &path, &selector);
            for address in addresses {
                let labels = format!(r#"{{"app":"{app}","pod-template-hash":"{address}","tier":"{tier}"}}"#);
                let pod = capture.bare_pod(&format!("{path}-{address}"), address, &labels);
                (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some(format!("app-{number}").into()));
            }
            for (port, (target, protocol)) in PORTS.iter().enumerate() {
                let slice =
                    capture.object(ObjectKind::EndpointSlice, Some(&end.namespace), &format!("app-{number}-{port}"));
                (slice.owner_kind, slice.owner) = (Some("Service".into()), Some(format!("app-{number}-{port}").into()));
                slice.addresses = addresses.iter().map(|address| address.as_str().into()).collect();
                slice.ports = vec![crate::support::tcp(*target, None)];
                slice.ports[0].protocol = (*protocol).into();
                let service = format!("10.96.{number}.{}", port + 1);
                capture.service(&format!("{path}-{port}"), &service, 1000 + port as u16, &target.to_string(), None);
                capture.inventory.last_mut().expect("the Service").ports[0].protocol = (*protocol).into();
            }
        }
        for (turn, (client, server, port, by_service)) in self.calls.iter().enumerate() {
            let address = |of: usize, turn: usize| known[of].addresses[turn % known[of].addresses.len()].clone();
            let (from, to) = (address(*client, turn), address(*server, turn + 1));
            let (number, protocol) = PORTS[*port];
            let before = capture.flows.len();
            if *by_service {
                let service = format!("10.96.{server}.{}", port + 1);
                capture.talk_through(&from, (&service, 1000 + *port as u16), (&to, number));
            } else {
                capture.talk(&from, &to, number);
            }
            capture.flows[before..].iter_mut().for_each(|row| row.transport = protocol.into());
        }
        for (workload, low, port, is_client) in &self.outside {
            let (own, (number, protocol)) = (&known[*workload].addresses[0], PORTS[*port]);
            let row = if *is_client {
                capture.accept(own, &outside(*low).to_string(), number)
            } else {
                capture.dial(own, &outside(*low).to_string(), number)
            };
            row.transport = protocol.into();
        }
        capture
    }
}

fn outside(low: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, low])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn what_was_observed_passes_and_nothing_else_does(scene in scenes(), max_cidrs in 2_u8..12) {
        let known = scene.known();
        let report = scene.capture(&known).report_with(&["--max-cidrs", &max_cidrs.to_string()]);
        let policies = &report.policies;
        let same = |a: usize, b: usize| known[a].end.labels == known[b].end.labels && known[a].end.namespace == known[b].end.namespace;
        let mut seen = BTreeSet::new();
        for (client, server, port, _) in &scene.calls {
            // A pod that talks with itself needs no rule.
            let is_itself = client == server && known[*client].addresses.len() == 1;
            if !is_itself {
                seen.insert((*client, *server, *port));
            }
        }
        for (a, from) in known.iter().enumerate() {
            for (b, to) in known.iter().enumerate() {
                for (port, (number, protocol)) in PORTS.iter().enumerate() {
                    let protocol = protocol.to_uppercase();
                    let passes = oracle::allows(policies, &from.end, &to.end, &protocol, *number);
                    let was_seen = seen.contains(&(a, b, port));
                    let is_limited = oracle::isolates(policies, "egress", &from.end) || oracle::isolates(policies, "ingress", &to.end);
                    // What no label tells apart.
                    let is_collateral = || seen.iter().any(|(x, y, p)| *p == port && same(*x, a) && same(*y, b));
                    if was_seen {
                        prop_assert!(passes, "{a} → {b} {number}: observed\n{}\n{}", report.yaml, report.said);
                    } else if is_limited && !is_collateral() {
                        prop_assert!(!passes, "{a} → {b} {number}: never observed\n{}\n{}", report.yaml, report.said);
                    }
                    let twin = known.iter().enumerate().any(|(other, _)| other != a && same(other, a));
                    if passes && is_limited && !was_seen {
                        prop_assert!(twin || known.iter().enumerate().any(|(o, _)| o != b && same(o, b)));
                    }
                }
            }
        }
        for (workload, low, port, is_client) in &scene.outside {
            let (own, (number, protocol)) = (&known[*workload].end, PORTS[*port]);
            let end = End { address: Some(outside(*low)), ..End::default() };
            let (from, to) = if *is_client { (&end, own) } else { (own, &end) };
            prop_assert!(oracle::allows(policies, from, to, &protocol.to_uppercase(), number), "{low}\n{}", report.yaml);
        }
        for block in report.blocks() {
            let inside = known.iter().flat_map(|known| &known.addresses).map(String::as_str).chain(["192.0.2.1", "10.96.0.1"]);
            for address in inside {
                prop_assert!(!oracle::contains(&block, address.parse().expect("an address")), "{block} holds {address}");
            }
        }
        // The program's own replay says the same.
        prop_assert!(!report.said.contains("without a reason"), "{}", report.said);
    }
}
