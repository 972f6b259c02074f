//! A plan of traffic whose connections and bytes are known.
//!
//! The program `traffic` plays it, in a guest with another kernel or on this machine, and whoever compares a recording
//! with it reads the same lines. Every line has a port of its own, so that a row of a recording belongs to one line.

use std::time::Duration;

/// Connections, or datagrams, to one port.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Where the server listens.
    pub port: u16,
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// How many connections, or UDP sockets, one after the other.
    pub times: u32,
    /// What passes on each of them.
    pub kind: Kind,
}

/// What passes between a client and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    Tcp(Exchange, Ending),
    /// A TCP connection that carries an exchange every [`PAUSE`].
    Slow { exchange: Exchange, rounds: u32 },
    /// A TCP connection that carries one exchange when it is made, and another when the scene says so.
    Held { before: Exchange, after: Exchange, is_closed: bool },
    /// A TCP connect that is not answered until the scene says so, and carries one exchange then.
    Late(Exchange),
    /// A TCP connect to a port on which nobody listens.
    Refused,
    /// A TCP connect to an address that nobody has.
    Unreachable,
    /// UDP: [`ROUNDS`] datagrams of so many bytes from one socket, each answered with as many.
    Udp { bytes: u32, client: Client },
    /// UDP: [`ROUNDS`] datagrams of so many bytes that the server reads without asking who sent them, and does not answer.
    UdpUnanswered { bytes: u32, client: Client },
}

/// Payload of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Bytes from the client.
    pub to_server: u32,
    /// Bytes from the server, which it sends when it has all of the client's.
    pub to_client: u32,
}

/// How a TCP connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client sends the first FIN.
    ClientCloses,
    /// The server sends the first FIN.
    ServerCloses,
    /// The client sends RST.
    ClientResets,
    /// The server sends RST.
    ServerResets,
}

/// How a UDP client uses its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// It connects the socket, and names no address when it sends.
    pub is_connected: bool,
    /// It asks from whom an answer is (`recvfrom` rather than `recv` or `read`).
    pub asks: bool,
}

/// How long a slow connection rests between two exchanges.
pub const PAUSE: Duration = Duration::from_secs(3);
/// Datagrams per UDP socket.
pub const ROUNDS: u32 = 2;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Between two network namespaces, with so many short connections.
    Pods { short: u32 },
    /// From the first network namespace to one of a pod.
    Node,
    /// Within one network namespace.
    Loopback,
}

impl Plan {
    /// The lines, in the order in which they are played.
    pub fn lines(self) -> Vec<Line> {
        match self {
            Self::Pods { short } => [pods_tcp(short), failures(), udp(7051)].concat(),
            Self::Node => {
                let connections = [
                    tcp(7101, false, 8, (100, 200), Ending::ClientCloses),
                    tcp(7102, true, 4, (50, 60), Ending::ServerCloses),
                    line(7103, false, 3, Kind::Refused),
                ];
                let datagrams = [
                    line(7151, false, 3, Kind::Udp { bytes: 21, client: UNCONNECTED }),
                    line(7152, false, 3, Kind::Udp { bytes: 22, client: CONNECTED }),
                ];
                [connections.as_slice(), &datagrams].concat()
            }
            Self::Loopback => {
                let connections = [
                    tcp(7201, false, 12, (10, 20), Ending::ClientCloses),
                    tcp(7202, true, 6, (30, 40), Ending::ServerCloses),
                    tcp(7203, false, 4, (50, 60), Ending::ClientResets),
                    line(7204, false, 3, Kind::Refused),
                ];
                let datagrams = [
                    line(7251, false, 3, Kind::Udp { bytes: 23, client: UNCONNECTED }),
                    line(7252, true, 3, Kind::Udp { bytes: 24, client: CONNECTED }),
                ];
                [connections.as_slice(), &datagrams].concat()
            }
        }
    }

    /// Every line that a server has to answer.
    pub fn served() -> Vec<Line> {
        let all = [Self::Pods { short: 0 }, Self::Node, Self::Loopback].map(Self::lines).concat();
        let is_served = |line: &Line| !matches!(line.kind, Kind::Refused | Kind::Unreachable);
        all.into_iter().filter(is_served).collect()
    }
}

impl Line {
    /// Whether the scene starts it by itself, since it begins before the agent does.
    pub const fn is_older(&self) -> bool {
        matches!(self.kind, Kind::Held { .. } | Kind::Late(_))
    }

    /// Whether it is TCP.
    pub const fn is_tcp(&self) -> bool {
        !matches!(self.kind, Kind::Udp { .. } | Kind::UdpUnanswered { .. })
    }
}

fn pods_tcp(short: u32) -> Vec<Line> {
    let exchange = |to_server, to_client| Exchange { to_server, to_client };
    let held = |before, after, is_closed| Kind::Held { before, after, is_closed };
    vec![
        line(7010, false, 1, held(exchange(5, 10), exchange(7, 14), true)),
        line(7011, true, 1, held(exchange(6, 9), exchange(8, 15), false)),
        line(7012, false, 1, Kind::Late(exchange(9, 11))),
        tcp(7001, false, 60, (1000, 2000), Ending::ClientCloses),
        tcp(7002, false, 30, (10, 3000), Ending::ServerCloses),
        tcp(7003, false, 20, (700, 1400), Ending::ClientResets),
        tcp(7004, false, 10, (300, 40), Ending::ServerResets),
        tcp(7005, false, short, (4, 8), Ending::ClientCloses),
        tcp(7006, true, 30, (333, 666), Ending::ClientCloses),
        tcp(7007, true, 10, (20, 70_000), Ending::ServerCloses),
        tcp(7008, true, 10, (500, 5), Ending::ClientResets),
        line(7009, false, 1, Kind::Slow { exchange: exchange(100, 200), rounds: 4 }),
    ]
}

fn failures() -> Vec<Line> {
    vec![
        line(7021, false, 20, Kind::Refused),
        line(7022, true, 5, Kind::Refused),
        line(7023, false, 1, Kind::Unreachable),
    ]
}

fn udp(first_port: u16) -> Vec<Line> {
    let silent = |client| Client { asks: false, ..client };
    let kinds = [
        (false, Kind::Udp { bytes: 11, client: UNCONNECTED }),
        (false, Kind::Udp { bytes: 12, client: CONNECTED }),
        (false, Kind::Udp { bytes: 13, client: silent(CONNECTED) }),
        (false, Kind::Udp { bytes: 14, client: silent(UNCONNECTED) }),
        (true, Kind::Udp { bytes: 15, client: UNCONNECTED }),
        (true, Kind::Udp { bytes: 16, client: CONNECTED }),
        (false, Kind::UdpUnanswered { bytes: 17, client: UNCONNECTED }),
        (true, Kind::UdpUnanswered { bytes: 18, client: CONNECTED }),
    ];
    (first_port..).zip(kinds).map(|(port, (ipv6, kind))| line(port, ipv6, 5, kind)).collect()
}

fn tcp(port: u16, ipv6: bool, times: u32, (to_server, to_client): (u32, u32), ending: Ending) -> Line {
    line(port, ipv6, times, Kind::Tcp(Exchange { to_server, to_client }, ending))
}

const fn line(port: u16, ipv6: bool, times: u32, kind: Kind) -> Line {
    Line { port, ipv6, times, kind }
}

const UNCONNECTED: Client = Client { is_connected: false, asks: true };
const CONNECTED: Client = Client { is_connected: true, asks: true };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_line_has_a_port_of_its_own() {
        let all = [Plan::Pods { short: 9 }, Plan::Node, Plan::Loopback].map(Plan::lines).concat();
        let ports: BTreeSet<u16> = all.iter().map(|line| line.port).collect();
        assert_eq!(ports.len(), all.len(), "{all:?}");
    }
}
