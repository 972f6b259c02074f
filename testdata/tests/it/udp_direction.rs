//! Who asks and who answers over UDP, where the first datagram that is seen does not tell.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use schemas::flow::FlowRecord;
use testdata::{
    lab::{Lab, PodId},
    pod::Order,
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{balance, executable, lab, pod, rows},
};

tests![
    what_an_older_socket_sends_first_from_a_known_port_has_no_direction,
    an_answer_from_another_socket_of_the_port_is_an_answer,
    what_was_not_sent_is_no_edge,
    peers_that_send_from_the_port_they_serve_may_both_begin,
];

/// A socket of a pod, by number.
#[derive(Clone, Copy)]
struct Udp(PodId, u64);

impl Udp {
    fn open(lab: &mut Lab, pod: PodId, at: impl Into<IpAddr>, port: u16, connected_to: Option<SocketAddr>) -> Self {
        let at = SocketAddr::new(at.into(), port);
        Self(pod, lab.order(pod, &Order::OpenUdp { at, connected_to }).expect("the port can be had"))
    }

    fn send(self, lab: &mut Lab, to: Option<SocketAddr>) -> bool {
        lab.order(self.0, &Order::SendOn { socket: self.1, to }).expect("the pod is there") == 1
    }

    /// From where the next datagram comes, of the other pod.
    fn receive(self, lab: &mut Lab, from: PodId) -> SocketAddr {
        let port = lab.order(self.0, &Order::ReceiveOn { socket: self.1 }).expect("it arrives");
        SocketAddr::new(lab.ipv4(from).into(), u16::try_from(port).expect("a port"))
    }
}

/// What was recorded: observer, source, destination and its port, the port of the source where it is told, and whether who
/// asked is known.
type Told = BTreeSet<(String, String, String, u16, Option<u16>, bool)>;

fn told(output: &Path) -> Told {
    let row = |row: FlowRecord| {
        let name = |workload: Option<std::sync::Arc<str>>| workload.map_or_else(String::new, |name| name.to_string());
        let (source, destination) = (name(row.source_workload), name(row.destination_workload));
        (row.observer.to_string(), source, destination, row.destination_port, row.source_port, row.direction_known)
    };
    rows::<FlowRecord>(output).into_iter().map(row).collect()
}

fn edge(
    observer: &str,
    source: &str,
    destination: &str,
    port: u16,
) -> (String, String, String, u16, Option<u16>, bool) {
    (observer.into(), source.into(), destination.into(), port, None, true)
}

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn what_an_older_socket_sends_first_from_a_known_port_has_no_direction() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    let at = |lab: &Lab, port| SocketAddr::new(lab.ipv4(server).into(), port);
    let serves = Udp::open(&mut lab, server, ANY, 6001, None);
    let asks = Udp::open(&mut lab, client, ANY, 0, None);
    let to = at(&lab, 6001);
    assert!(asks.send(&mut lab, Some(to)));
    let subscriber = serves.receive(&mut lab, client);
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
    for _ in 0..3 {
        assert!(serves.send(&mut lab, Some(subscriber)));
        asks.receive(&mut lab, server);
    }
    // A socket that is younger than the recording can't have been asked before: it asks.
    let listens = Udp::open(&mut lab, server, ANY, 6003, None);
    let sends = Udp::open(&mut lab, client, ANY, 7003, None);
    let to = at(&lab, 6003);
    assert!(sends.send(&mut lab, Some(to)));
    listens.receive(&mut lab, client);
    recording.stop().expect("the exporter ends well");
    let port = subscriber.port();
    let unknown = |source: &str, destination: &str, from, to| {
        ("client".to_owned(), source.to_owned(), destination.to_owned(), to, Some(from), false)
    };
    let expected = Told::from([
        unknown("server", "client", 6001, port),
        unknown("client", "server", port, 6001),
        edge("client", "client", "server", 6003),
        edge("server", "client", "server", 6003),
    ]);
    assert_eq!(told(&output), expected);
    balance(&output);
    Ok(())
}

fn an_answer_from_another_socket_of_the_port_is_an_answer() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
    let address = lab.ipv4(server);
    let serves = Udp::open(&mut lab, server, ANY, 6002, None);
    for _ in 0..3 {
        let asks = Udp::open(&mut lab, client, ANY, 0, None);
        assert!(asks.send(&mut lab, Some(SocketAddr::new(address.into(), 6002))));
        let from = serves.receive(&mut lab, client);
        let session = Udp::open(&mut lab, server, address, 6002, Some(from));
        assert!(session.send(&mut lab, None));
        asks.receive(&mut lab, server);
    }
    recording.stop().expect("the exporter ends well");
    let expected = Told::from([edge("client", "client", "server", 6002), edge("server", "client", "server", 6002)]);
    assert_eq!(told(&output), expected);
    let connections = |observer: &str| {
        let rows = rows::<FlowRecord>(&output).into_iter().filter(|row| &*row.observer == observer);
        rows.map(|row| row.connections).sum::<i64>()
    };
    assert!((3..=6).contains(&connections("server")), "each once in a window, from whichever socket");
    balance(&output);
    Ok(())
}

fn what_was_not_sent_is_no_edge() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    let refuses = "nft add table ip t; nft add chain ip t o '{ type filter hook output priority 0; }'; \
                   nft add rule ip t o udp dport 6005 drop; \
                   ip route add unreachable 203.0.113.0/24";
    lab.shell(client, refuses).expect("nft is there");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
    let listens = Udp::open(&mut lab, server, ANY, 6004, None);
    let sends = Udp::open(&mut lab, client, ANY, 0, None);
    let at = |lab: &Lab, port| Some(SocketAddr::new(lab.ipv4(server).into(), port));
    for _ in 0..3 {
        let refused = at(&lab, 6005);
        assert!(!sends.send(&mut lab, refused), "the firewall refuses the call");
        let no_route = Some(SocketAddr::new(Ipv4Addr::new(203, 0, 113, 9).into(), 123));
        assert!(!sends.send(&mut lab, no_route), "there is no route");
        let passes = at(&lab, 6004);
        assert!(sends.send(&mut lab, passes));
        listens.receive(&mut lab, client);
    }
    recording.stop().expect("the exporter ends well");
    let expected = Told::from([edge("client", "client", "server", 6004), edge("server", "client", "server", 6004)]);
    assert_eq!(told(&output), expected);
    balance(&output);
    Ok(())
}

fn peers_that_send_from_the_port_they_serve_may_both_begin() -> Ran {
    let mut lab = lab()?;
    let (one, other) = (pod(&mut lab, "one"), pod(&mut lab, "other"));
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s"]).expect("the exporter records");
    let [at_one, at_other] = [one, other].map(|pod| Udp::open(&mut lab, pod, ANY, 9094, None));
    let to = SocketAddr::new(lab.ipv4(other).into(), 9094);
    assert!(at_one.send(&mut lab, Some(to)));
    at_other.receive(&mut lab, one);
    recording.stop().expect("the exporter ends well");
    let expected = Told::from([
        edge("client", "one", "other", 9094),
        edge("server", "other", "one", 9094),
        edge("client", "other", "one", 9094),
        edge("server", "one", "other", 9094),
    ]);
    assert_eq!(told(&output), expected);
    balance(&output);
    Ok(())
}
