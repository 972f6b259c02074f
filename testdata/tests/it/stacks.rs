//! Where what passes on the wire is not what a socket of a pod's own shows: proxies within pods, load balancers of sockets,
//! stacks that are not the kernel's, networks within pods, and ports that nobody chose.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
};

use schemas::flow::FlowRecord;
use serde_json::{Value, json};
use testdata::{
    lab::{Lab, PodId, PodSpec},
    neighbour::Neighbour,
    own_stack::Transport,
    pod::{Exchange, Order},
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{documents, executable, flowscribe, lab, pod, rows, spec},
};

tests![
    what_a_proxy_takes_is_allowed_on_the_port_that_was_dialled,
    what_a_proxy_answers_for_others_is_not_established,
    what_a_load_balancer_of_sockets_turns_is_not_reversed,
    what_has_a_stack_of_its_own_is_not_observed_and_its_peers_are,
    what_a_network_within_a_pod_sends_is_the_pods,
    ports_that_the_kernel_chose_are_named_once,
    an_answer_from_a_port_that_the_kernel_chose_is_no_rule_for_the_one_that_asked,
    datagrams_that_nobody_receives_are_no_rules,
];

const CALL: Exchange = Exchange::new(10, 20);

/// What a capture's report says: its policies, and its findings.
struct Report {
    policies: Vec<Value>,
    said: String,
}

impl Report {
    fn of(capture: &Path) -> Self {
        let output = flowscribe(&["report", "--input", &capture.to_string_lossy(), "--min-coverage", "0"]);
        let [text, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
        println!("{text}\n{said}");
        Self { policies: documents(&text), said }
    }

    /// The ports of a workload's rules in one direction, `None` where that is left open.
    fn ports(&self, workload: &str, direction: &str) -> Option<BTreeSet<u64>> {
        let is_its = |policy: &&Value| policy["spec"]["podSelector"]["matchLabels"]["app"] == workload;
        let spec = &self.policies.iter().find(is_its)?["spec"];
        let types = spec["policyTypes"].as_array().expect("a list");
        let named = if direction == "ingress" { "Ingress" } else { "Egress" };
        if !types.iter().any(|kind| kind == named) {
            return None;
        }
        let rules = spec[direction].as_array().into_iter().flatten();
        Some(
            rules
                .flat_map(|rule| rule["ports"].as_array().into_iter().flatten())
                .filter_map(|port| port["port"].as_u64())
                .collect(),
        )
    }
}

fn record(lab: &mut Lab, cgroup: Option<&Path>, meanwhile: impl FnOnce(&mut Lab)) -> (Report, Vec<FlowRecord>) {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let cgroup = cgroup.unwrap_or(lab.cgroup()).to_owned();
    let recording =
        Recording::of_cgroup(executable(), lab, &cgroup, &output, &["--window", "1s"]).expect("the exporter records");
    meanwhile(lab);
    recording.stop().expect("the exporter ends well");
    (Report::of(&output), rows(&output))
}

/// As the init container of a mesh has it: what comes to a pod, or leaves it, goes to a port of its proxy.
fn redirect(lab: &mut Lab, pod: PodId, hook: &str, port: u16) {
    let (matches, link) = match hook {
        "prerouting" => ("tcp dport != 22", "iifname"),
        _ => ("tcp dport != 22 meta mark != 1", "oifname"),
    };
    let rules = format!(
        "nft add table ip mesh; nft add chain ip mesh {hook} '{{ type nat hook {hook} priority -100; }}'; \
         nft add rule ip mesh {hook} {link} eth0 {matches} redirect to :{port}"
    );
    lab.shell(pod, &rules).expect("nftables takes the rules");
}

fn what_a_proxy_takes_is_allowed_on_the_port_that_was_dialled() -> Ran {
    // Of Istio, of Linkerd, of one that nobody knows, and none.
    for proxy in [Some(15_006), Some(4143), Some(17_777), None] {
        for ports in [Value::Null, json!([{ "containerPort": 8080 }])] {
            let is_known = proxy != Some(17_777);
            let mut lab = lab()?;
            let server = lab.pod(PodSpec { ports, ..spec("server") }).expect("another pod");
            let client = lab.pod(PodSpec { external: true, ..spec("client") }).expect("another pod");
            lab.listen(server, 8080, CALL).expect("the port is free");
            if let Some(port) = proxy {
                redirect(&mut lab, server, "prerouting", port);
                let relay = Order::Relay { port, from: Some(Ipv4Addr::new(127, 0, 0, 6)) };
                lab.order(server, &relay).expect("the port is free");
            }
            let watched = lab.cgroup_of_pod(server).to_owned();
            let (report, flows) = record(&mut lab, Some(&watched), |lab| {
                lab.dial(client, (lab.ipv4(server), 8080), 3, CALL).expect("the proxy hands it on");
            });
            assert!(proxy.is_none_or(|port| flows.iter().any(|row| row.destination_port == port)), "{flows:?}");
            assert_eq!(report.ports("server", "ingress"), is_known.then(|| [8080].into()), "{proxy:?}");
            assert_eq!(report.ports("server", "egress"), Some(BTreeSet::new()));
            assert_eq!(report.said.contains("demo/server: ingress withheld"), !is_known, "{}", report.said);
        }
    }
    Ok(())
}

fn what_a_proxy_answers_for_others_is_not_established() -> Ran {
    for is_redirected in [true, false] {
        let mut lab = lab()?;
        let (app, server) = (pod(&mut lab, "app"), pod(&mut lab, "server"));
        lab.listen(server, 7001, CALL).expect("the port is free");
        if is_redirected {
            redirect(&mut lab, app, "output", 15_001);
            lab.order(app, &Order::Relay { port: 15_001, from: None }).expect("the port is free");
        }
        let nobody = SocketAddr::new(Ipv4Addr::new(203, 0, 113, 99).into(), 443);
        let (report, _) = record(&mut lab, None, |lab| {
            lab.dial(app, (lab.ipv4(server), 7001), 3, CALL).expect("the server answers");
            let address = lab.ipv4(server);
            let closed = (9001..9021).map(|port| SocketAddr::new(address.into(), port));
            for to in closed.chain([nobody]) {
                let dial = Order::Dial { to, times: 1, exchange: Exchange::new(0, 0) };
                let dialled = lab.order(app, &dial);
                assert_eq!(dialled.is_ok(), is_redirected, "a proxy answers at once: {to} {dialled:?}");
            }
        });
        assert_eq!(report.ports("app", "egress"), Some([7001].into()));
        assert_eq!(report.ports("server", "ingress"), Some([7001].into()));
    }
    Ok(())
}

fn what_a_load_balancer_of_sockets_turns_is_not_reversed() -> Ran {
    for is_first in [true, false] {
        let mut lab = lab()?;
        let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
        lab.order(server, &Order::ListenUdp { port: 7001 }).expect("the port is free");
        lab.listen(server, 7002, CALL).expect("the port is free");
        let service = Ipv4Addr::new(10, 96, 0, 10);
        let ports = json!([
            { "name": "ask", "port": 7001, "targetPort": 7001, "protocol": "UDP" },
            { "name": "call", "port": 7002, "targetPort": 7002 },
        ]);
        let entry = json!({ "namespace": "demo", "name": "server", "selector": { "app": "server" }, "ports": ports });
        // Nobody but the programs turns its address.
        lab.service(entry, service, &[], &[]).expect("a Service");
        let balance =
            |lab: &Lab| Neighbour::balancing(lab.cgroup(), service, lab.ipv4(server)).expect("the kernel takes it");
        let before = is_first.then(|| balance(&lab));
        let (report, flows) = record(&mut lab, None, |lab| {
            let _after = (!is_first).then(|| balance(lab));
            let asked = SocketAddr::new(service.into(), 7001);
            let ask = |connected| Order::DialUdp { to: asked, times: 3, bytes: 5, connected };
            lab.order(client, &ask(false)).expect("the server answers");
            lab.order(client, &ask(true)).expect("the server answers");
            let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 5999);
            let socket = lab.order(client, &Order::OpenUdp { at, connected_to: None }).expect("the port is free");
            assert_eq!(lab.order(client, &Order::SendOn { socket, to: Some(asked) }).expect("it is sent"), 1);
            lab.order(client, &Order::ReceiveOn { socket }).expect("the server answers");
            lab.dial(client, (service, 7002), 1, CALL).expect("the server answers");
        });
        drop(before);
        let turned: Vec<_> = flows.iter().filter(|row| !matches!(row.destination_port, 7001 | 7002)).collect();
        assert!(turned.iter().all(|row| !row.direction_known), "{turned:?}");
        assert_eq!(report.ports("client", "egress"), Some([7001, 7002].into()));
        assert_eq!(report.ports("server", "ingress"), Some([7001, 7002].into()));
        assert_eq!(report.ports("server", "egress"), Some(BTreeSet::new()));
    }
    Ok(())
}

fn what_has_a_stack_of_its_own_is_not_observed_and_its_peers_are() -> Ran {
    for is_sandbox in [true, false] {
        let mut lab = lab()?;
        let [sandbox, server, client] = ["sandbox", "server", "client"].map(|name| pod(&mut lab, name));
        lab.order(server, &Order::ListenUdp { port: 53 }).expect("the port is free");
        lab.listen(server, 7001, CALL).expect("the port is free");
        let address = lab.ipv4(sandbox);
        if is_sandbox {
            lab.shell(sandbox, "ip -4 address flush dev eth0").expect("it can be taken away");
        }
        let (report, _) = record(&mut lab, None, |lab| {
            lab.dial(client, (lab.ipv4(server), 7001), 1, CALL).expect("the server answers");
            for (transport, port) in [(Transport::Udp, 53), (Transport::Tcp, 7001)] {
                let to = SocketAddrV4::new(lab.ipv4(server), port);
                let order = match transport {
                    _ if is_sandbox => Order::DialOwnStack { address, to, transport, exchange: CALL },
                    Transport::Udp => Order::DialUdp { to: to.into(), times: 1, bytes: 10, connected: false },
                    Transport::Tcp => Order::Dial { to: to.into(), times: 1, exchange: CALL },
                };
                lab.order(sandbox, &order).expect("the server answers");
            }
        });
        assert_eq!(report.ports("server", "ingress"), Some([53, 7001].into()));
        assert_eq!(report.ports("client", "egress"), Some([7001].into()));
        let closed = (!is_sandbox).then(|| BTreeSet::from([53, 7001]));
        assert_eq!(report.ports("sandbox", "egress"), closed);
        assert_eq!(report.ports("sandbox", "ingress"), (!is_sandbox).then(BTreeSet::new));
        assert_eq!(report.said.contains("demo/sandbox: ingress and egress withheld"), is_sandbox, "{}", report.said);
    }
    Ok(())
}

fn what_a_network_within_a_pod_sends_is_the_pods() -> Ran {
    let mut lab = lab()?;
    let (builder, server) = (pod(&mut lab, "builder"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(0, 1)).expect("the port is free");
    let at = lab.ipv4(server);
    // As docker does it within a container.
    let nested = format!(
        "unshare --net sleep 600 & inner=$!; \
         until [ $(readlink /proc/$inner/ns/net) != $(readlink /proc/self/ns/net) ]; do sleep 0.05; done; \
         ip link add docker0 type veth peer name eth0 netns $inner; \
         ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up; \
         echo 1 > /proc/sys/net/ipv4/ip_forward; \
         nft add table ip d; nft add chain ip d out '{{ type nat hook postrouting priority 100; }}'; \
         nft add rule ip d out oifname eth0 ip saddr 172.17.0.0/16 masquerade; \
         within=\"nsenter --net=/proc/$inner/ns/net\"; \
         $within ip address add 172.17.0.2/16 dev eth0; $within ip link set eth0 up; \
         $within ip route add default via 172.17.0.1; \
         $within bash -c 'exec 3<>/dev/tcp/{at}/7001; head -c 1 <&3 > /dev/null'; \
         kill $inner"
    );
    let (report, flows) = record(&mut lab, None, |lab| lab.shell(builder, &nested).expect("the server answers"));
    assert!(flows.iter().any(|row| &*row.observer == "client"), "{flows:?}");
    assert_eq!(report.ports("builder", "egress"), Some([7001].into()));
    assert_eq!(report.ports("server", "ingress"), Some([7001].into()));
    assert!(!report.policies.iter().any(|policy| policy.to_string().contains("172.17.")), "{:?}", report.policies);
    Ok(())
}

fn ports_that_the_kernel_chose_are_named_once() -> Ran {
    for is_chosen in [true, false] {
        let mut lab = lab()?;
        let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
        lab.listen(server, 2121, CALL).expect("the port is free");
        let (report, flows) = record(&mut lab, None, |lab| {
            for _ in 0..8 {
                lab.dial(client, (lab.ipv4(server), 2121), 1, CALL).expect("the server answers");
                if is_chosen {
                    let listen = Order::ListenAnywhere { exchange: CALL };
                    let port = lab.order(server, &listen).expect("there is a port") as u16;
                    lab.dial(client, (lab.ipv4(server), port), 1, CALL).expect("the server answers");
                }
            }
        });
        let seen: BTreeSet<u16> = flows.iter().map(|row| row.destination_port).collect();
        assert_eq!(seen.len(), if is_chosen { 9 } else { 1 });
        let closed = (!is_chosen).then(|| BTreeSet::from([2121]));
        assert_eq!(report.ports("client", "egress"), closed);
        assert_eq!(report.ports("server", "ingress"), closed);
        assert_eq!(report.said.contains("differ"), is_chosen, "{}", report.said);
    }
    Ok(())
}

fn an_answer_from_a_port_that_the_kernel_chose_is_no_rule_for_the_one_that_asked() -> Ran {
    for is_transfer in [true, false] {
        let mut lab = lab()?;
        let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
        let open = |lab: &mut Lab, pod, port| {
            let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            lab.order(pod, &Order::OpenUdp { at, connected_to: None }).expect("the port is free")
        };
        let send = |lab: &mut Lab, pod, socket, to| {
            assert_eq!(lab.order(pod, &Order::SendOn { socket, to: Some(to) }).expect("it is sent"), 1);
        };
        let (report, _) = record(&mut lab, None, |lab| {
            let (of_client, of_server) = (lab.ipv4(client).into(), lab.ipv4(server).into());
            let (asks, serves) = (open(lab, client, 0), open(lab, server, 69));
            send(lab, client, asks, SocketAddr::new(of_server, 69));
            let from = lab.order(server, &Order::ReceiveOn { socket: serves }).expect("it comes") as u16;
            let sends = if is_transfer { open(lab, server, 0) } else { serves };
            for _ in 0..3 {
                send(lab, server, sends, SocketAddr::new(of_client, from));
                let port = lab.order(client, &Order::ReceiveOn { socket: asks }).expect("it comes") as u16;
                send(lab, client, asks, SocketAddr::new(of_server, port));
                lab.order(server, &Order::ReceiveOn { socket: sends }).expect("it comes");
            }
        });
        assert_eq!(report.ports("client", "egress"), Some([69].into()));
        assert_eq!(report.ports("server", "ingress"), Some([69].into()));
        assert_eq!(report.ports("client", "ingress"), (!is_transfer).then(BTreeSet::new));
        assert_eq!(report.ports("server", "egress"), (!is_transfer).then(BTreeSet::new));
        assert_eq!(
            report.said.matches("differ each time (1 seen in").count(),
            usize::from(is_transfer),
            "{}",
            report.said
        );
    }
    Ok(())
}

fn datagrams_that_nobody_receives_are_no_rules() -> Ran {
    let mut lab = lab()?;
    let (scanner, server) = (pod(&mut lab, "scanner"), pod(&mut lab, "server"));
    lab.order(server, &Order::ListenUdp { port: 7001 }).expect("the port is free");
    let address = lab.ipv4(server).into();
    let (report, flows) = record(&mut lab, None, |lab| {
        let to = SocketAddr::new(address, 7001);
        lab.order(scanner, &Order::DialUdp { to, times: 1, bytes: 5, connected: false }).expect("the server answers");
        for port in 8000..8040 {
            let to = SocketAddr::new(address, port);
            lab.order(scanner, &Order::SendUdp { to, connected_to: None }).expect("it is sent");
        }
    });
    assert_eq!(flows.iter().filter(|row| row.destination_port >= 8000).count(), 40, "the kernel refuses each");
    assert_eq!(report.ports("scanner", "egress"), Some([7001].into()));
    assert_eq!(report.ports("server", "ingress"), Some([7001].into()));
    assert!(
        report.said.contains("demo/scanner: left out, never established: demo/server 8000/UDP (1 × unanswered)"),
        "{}",
        report.said
    );
    Ok(())
}
