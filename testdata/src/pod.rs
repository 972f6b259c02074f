//! The process inside a pod of the lab: real sockets in a network namespace and cgroup of its own.
//!
//! It takes commands as JSON lines on standard input and answers each with a JSON line on standard output. It ends with
//! its standard input, and the kernel ends it with its parent.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufRead, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    libc::{MSG_FASTOPEN, linger},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        socket::{
            setsockopt,
            sockopt::{Linger, TcpRepair},
        },
    },
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    cgroup::{join, remove_cgroups},
    names, own_stack, relay,
};

/// What a pod's process can be told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Run a program in the pod's network namespace, with text on its standard input.
    Run { program: String, arguments: Vec<String>, input: String },
    /// Listen on a port of all addresses, IPv4 and IPv6, and treat every connection alike.
    Listen { port: u16, exchange: Exchange },
    /// The same on a port that the kernel chooses; answers which.
    ListenAnywhere { exchange: Exchange },
    /// The same with a listener of MPTCP, as servers in Go have it.
    ListenMultipath { port: u16, exchange: Exchange },
    /// Listen on a port and accept nobody: what is connected is in no process's file table.
    ListenIdle { port: u16 },
    /// Make a connection without a word to the other end (`TCP_REPAIR`), as the restorer of a container does, and keep it.
    Restore { at: SocketAddr, to: SocketAddr },
    /// Connect a number of times, one after the other.
    Dial { to: SocketAddr, times: u32, exchange: Exchange },
    /// Answer every datagram on a UDP port of all addresses, IPv4 and IPv6, with as many bytes, from a socket that is
    /// not connected.
    ListenUdp { port: u16 },
    /// Receive every datagram on a UDP port of all addresses, without asking who sent it.
    TakeUdp { port: u16 },
    /// Send datagrams from a new port each time and wait for the answers; from a socket that is connected, or to an
    /// address.
    DialUdp { to: SocketAddr, times: u32, bytes: usize, connected: bool },
    /// Ask one question after the other from one socket, until the pod ends.
    FloodUdp { to: SocketAddr },
    /// Send a datagram to an address from a new socket, which may be connected to that one or to another, and leave the
    /// answer unread until [`Order::ReceiveUdp`].
    SendUdp { to: SocketAddr, connected_to: Option<SocketAddr> },
    /// Wait until every socket that waits for an answer has it, and leave it unread.
    AwaitUdp,
    /// Read the answer on every socket that waits for one, and close them.
    ReceiveUdp,
    /// Open a UDP socket on an address and port (0 for one of the kernel's), which others may share, and keep it; answers
    /// its number.
    OpenUdp { at: SocketAddr, connected_to: Option<SocketAddr> },
    /// Send a datagram on a socket that was opened; answers whether the call succeeded.
    SendOn { socket: u64, to: Option<SocketAddr> },
    /// Wait for a datagram on a socket that was opened; answers from which port it came.
    ReceiveOn { socket: u64 },
    /// Connect a UDP socket and send nothing.
    ConnectUdp { to: SocketAddr },
    /// Answer questions on UDP and TCP port 53 with these addresses by name.
    ServeNames { names: BTreeMap<String, Ipv4Addr> },
    /// Ask this resolver from now on, for names below these domains.
    Resolve { resolver: Ipv4Addr, search: String },
    /// Look a name up with the system's resolver and connect to its first address a number of times.
    DialName { name: String, port: u16, times: u32, exchange: Exchange },
    /// Connect where nobody answers: wait for as long as TCP does, or give up after a while.
    DialInVain { to: SocketAddr, give_up_after_ms: Option<u64> },
    /// Try to connect to each, all at once; answers how many were not dropped: connected, or refused.
    Probe { to: Vec<SocketAddr>, within_ms: u64 },
    /// Connect with Fast Open: the first bytes go with the SYN.
    DialFastOpen { to: SocketAddr, exchange: Exchange },
    /// Connect, and let another process send this many bytes and close.
    DialAndPass { to: SocketAddr, bytes: usize },
    /// Connect a socket to itself, which takes the path of a simultaneous open.
    DialSelf { at: SocketAddr },
    /// Begin to connect, and do not wait for it.
    BeginDial { to: SocketAddr, exchange: Exchange },
    /// Wait until every connect that was begun is answered and its exchange is over.
    AwaitDials,
    /// Take the connections that are redirected to a port, and hand them on to where they were sent, from an address or from
    /// any: what a service mesh has in each pod.
    Relay { port: u16, from: Option<Ipv4Addr> },
    /// Talk to somebody from a TCP/IP stack of this process's own, over the pod's link and with an address that the kernel
    /// does not have: what a sandbox does.
    DialOwnStack { address: Ipv4Addr, to: SocketAddrV4, transport: own_stack::Transport, exchange: Exchange },
    /// Connect and stay connected until [`Order::Release`].
    Hold { to: SocketAddr, exchange: Exchange },
    /// The same from a socket of MPTCP.
    HoldMultipath { to: SocketAddr, exchange: Exchange },
    /// Talk on all held connections and close them.
    Finish { exchange: Exchange },
    /// Close all held connections.
    Release,
    /// How many connections the listeners have served to their end.
    Served,
}

/// What happens on a connection: who sends how much, and who ends it how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Payload bytes from the client to the server.
    pub to_server: usize,
    /// Payload bytes from the server to the client, sent after the server has received all of the client's.
    pub to_client: usize,
    /// Which end closes first, and how.
    pub close: Close,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Close {
    /// The client sends the first FIN.
    Client,
    /// The server sends the first FIN.
    Server,
    /// The client resets the connection.
    Reset,
}

/// The answer to an order: a number (connections made or served) or why it failed.
pub type Answer = Result<u64, String>;

/// Runs the process of a pod: joins the cgroup, makes a network namespace or joins one, and obeys.
///
/// # Errors
/// The process may not do that, or standard output is closed.
pub fn run(cgroup: &Path, netns: Option<&Path>, dies_with_parent: bool) -> Result<()> {
    if dies_with_parent {
        set_pdeathsig(Signal::SIGKILL).context("ask for the parent's death")?;
    }
    join(cgroup)?;
    match netns {
        Some(path) => setns(File::open(path)?, CloneFlags::CLONE_NEWNET).context("join a network namespace")?,
        None => {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            run_program("ip", &["link", "set", "lo", "up"], "")?;
        }
    }
    let mut pod = Pod::default();
    answer(&Ok(0))?;
    for line in io::stdin().lock().lines() {
        let order = serde_json::from_str(&line?).context("understand an order")?;
        answer(&pod.obey(order).map_err(|error| format!("{error:#}")))?;
    }
    Ok(())
}

/// Runs the process of the lab's node. It outlives a lab that is killed until the pods are gone, and then removes the
/// lab's cgroups.
///
/// # Errors
/// As [`run`]; or a cgroup stays in use.
pub fn run_node(cgroup: &Path) -> Result<()> {
    let ran = run(cgroup, None, false);
    let lab = cgroup.parent().context("the node's cgroup is in the lab's")?;
    let mount = lab.parent().context("the lab's cgroup is in the hierarchy")?;
    join(mount)?;
    remove_cgroups(lab).with_context(|| format!("remove {}", lab.display()))?;
    ran
}

#[derive(Default)]
struct Pod {
    held: Vec<TcpStream>,
    begun: Vec<thread::JoinHandle<io::Result<()>>>,
    asking: Vec<UdpSocket>,
    opened: Vec<UdpSocket>,
    idle: Vec<TcpListener>,
    served: Arc<AtomicU64>,
    listeners: HashMap<u16, Exchange>,
}

impl Pod {
    fn obey(&mut self, order: Order) -> Result<u64> {
        match order {
            Order::Run { program, arguments, input } => {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                run_program(&program, &arguments, &input).map(|()| 0)
            }
            Order::Listen { port, exchange } => self.listen(port, exchange, None),
            Order::ListenAnywhere { exchange } => self.listen(0, exchange, None),
            Order::ListenMultipath { port, exchange } => self.listen(port, exchange, Some(Protocol::MPTCP)),
            Order::ListenIdle { port } => {
                self.idle.push(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?);
                Ok(1)
            }
            Order::Restore { at, to } => {
                let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
                setsockopt(&socket, TcpRepair, &1)?;
                socket.bind(&at.into())?;
                socket.connect(&to.into())?;
                setsockopt(&socket, TcpRepair, &0)?;
                self.held.push(socket.into());
                Ok(1)
            }
            Order::Dial { to, times, exchange } => {
                for _ in 0..times {
                    exchange.as_client(TcpStream::connect_timeout(&to, TIMEOUT)?)?;
                }
                Ok(times.into())
            }
            Order::ListenUdp { port } => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
                thread::spawn(move || names::echo(&socket));
                Ok(1)
            }
            Order::TakeUdp { port } => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
                thread::spawn(move || while socket.recv(&mut [0; 2048]).is_ok() {});
                Ok(1)
            }
            Order::DialUdp { to, times, bytes, connected } => {
                // All at once, so that each has a port of its own.
                let asked: io::Result<Vec<UdpSocket>> =
                    (0..times).map(|_| names::ask(to, &vec![b'd'; bytes], connected)).collect();
                Ok(asked?.len() as u64)
            }
            Order::FloodUdp { to } => {
                let socket = names::client(to)?;
                thread::spawn(move || {
                    while socket.send_to(b"question", to).is_ok() {
                        let _ = socket.recv_from(&mut [0; 16]);
                    }
                });
                Ok(1)
            }
            Order::SendUdp { to, connected_to } => {
                let socket = names::client(to)?;
                connected_to.map_or(Ok(()), |other| socket.connect(other))?;
                socket.send_to(b"question", to)?;
                self.asking.push(socket);
                Ok(1)
            }
            Order::AwaitUdp => {
                self.asking.iter().try_for_each(|socket| socket.peek_from(&mut [0; 16]).map(drop))?;
                Ok(self.asking.len() as u64)
            }
            Order::ReceiveUdp => {
                let asking = std::mem::take(&mut self.asking);
                asking.iter().try_for_each(|socket| socket.recv_from(&mut [0; 16]).map(drop))?;
                Ok(asking.len() as u64)
            }
            Order::OpenUdp { at, connected_to } => {
                let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
                socket.set_reuse_address(true)?;
                socket.set_read_timeout(Some(TIMEOUT))?;
                socket.bind(&at.into())?;
                connected_to.map_or(Ok(()), |other| socket.connect(&other.into()))?;
                self.opened.push(socket.into());
                Ok(self.opened.len() as u64 - 1)
            }
            Order::SendOn { socket, to } => {
                let socket = self.opened.get(socket as usize).context("it was opened")?;
                let sent = to.map_or_else(|| socket.send(b"datagram"), |to| socket.send_to(b"datagram", to));
                Ok(sent.is_ok().into())
            }
            Order::ReceiveOn { socket } => {
                let socket = self.opened.get(socket as usize).context("it was opened")?;
                Ok(socket.recv_from(&mut [0; 16])?.1.port().into())
            }
            Order::ConnectUdp { to } => names::client(to)?.connect(to).map(|()| 1).map_err(Into::into),
            Order::ServeNames { names } => names::serve(names).map(|()| 1),
            Order::Resolve { resolver, search } => names::resolve_with(resolver, &search).map(|()| 1),
            Order::DialName { name, port, times, exchange } => {
                for _ in 0..times {
                    let to = (name.as_str(), port).to_socket_addrs()?.next().context("the name has an address")?;
                    exchange.as_client(TcpStream::connect_timeout(&to, TIMEOUT)?)?;
                }
                Ok(times.into())
            }
            Order::BeginDial { to, exchange } => {
                self.begun.push(thread::spawn(move || exchange.as_client(TcpStream::connect(to)?)));
                Ok(1)
            }
            Order::AwaitDials => {
                let begun = std::mem::take(&mut self.begun);
                let count = begun.len() as u64;
                for dial in begun {
                    dial.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?;
                }
                Ok(count)
            }
            Order::Hold { to, exchange } => {
                let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
                exchange.talk_as_client(&stream)?;
                self.held.push(stream);
                Ok(1)
            }
            Order::HoldMultipath { to, exchange } => {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP))?;
                socket.connect(&to.into())?;
                let stream = socket.into();
                exchange.talk_as_client(&stream)?;
                self.held.push(stream);
                Ok(1)
            }
            Order::DialInVain { to, give_up_after_ms } => {
                let tried = match give_up_after_ms {
                    Some(after) => TcpStream::connect_timeout(&to, Duration::from_millis(after)),
                    None => TcpStream::connect(to),
                };
                match tried {
                    Ok(_) => bail!("{to} answered"),
                    Err(_) => Ok(1),
                }
            }
            Order::Probe { to, within_ms } => {
                let within = Duration::from_millis(within_ms);
                let passes = move |to: SocketAddr| match TcpStream::connect_timeout(&to, within) {
                    Ok(_) => true,
                    // What may not be sent, and what nobody answers.
                    Err(error) => !matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::TimedOut),
                };
                #[expect(clippy::needless_collect, reason = "all begin before the first is waited for")]
                let tries: Vec<_> = to.into_iter().map(|to| thread::spawn(move || passes(to))).collect();
                Ok(tries.into_iter().map(|tried| u64::from(tried.join().unwrap_or(true))).sum())
            }
            Order::DialFastOpen { to, exchange } => {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                let sent = socket.send_to_with_flags(&vec![b'c'; exchange.to_server], &to.into(), MSG_FASTOPEN)?;
                let rest = Exchange { to_server: exchange.to_server - sent, ..exchange };
                rest.as_client(socket.into()).map(|()| 1).map_err(Into::into)
            }
            Order::DialAndPass { to, bytes } => {
                let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
                let sends = format!("head -c {bytes} /dev/zero");
                let other = Command::new("sh").args(["-c", &sends]).stdout(OwnedFd::from(stream)).status()?;
                if !other.success() {
                    bail!("{sends}: {other}");
                }
                Ok(1)
            }
            Order::DialSelf { at } => {
                let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
                socket.bind(&at.into())?;
                socket.connect(&at.into()).map(|()| 1).map_err(Into::into)
            }
            Order::Relay { port, from } => relay::serve(port, from).map(|()| 1).map_err(Into::into),
            Order::DialOwnStack { address, to, transport, exchange } => {
                own_stack::dial(address, to, transport, (exchange.to_server, exchange.to_client)).map(|()| 1)
            }
            Order::Finish { exchange } => {
                let held = std::mem::take(&mut self.held);
                let count = held.len() as u64;
                held.into_iter().try_for_each(|stream| exchange.as_client(stream))?;
                Ok(count)
            }
            Order::Release => Ok(self.held.drain(..).count() as u64),
            Order::Served => Ok(self.served.load(Ordering::SeqCst)),
        }
    }

    fn listen(&mut self, port: u16, exchange: Exchange, protocol: Option<Protocol>) -> Result<u64> {
        if port != 0
            && let Some(known) = self.listeners.insert(port, exchange)
        {
            if known != exchange {
                bail!("port {port} listens already, for another exchange");
            }
            return Ok(0);
        }
        // Linux maps IPv4 onto an IPv6 listener; that the port is dual-stack is part of what the lab tests.
        let socket = Socket::new(Domain::IPV6, Type::STREAM, protocol)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let port = listener.local_addr()?.port();
        let served = Arc::clone(&self.served);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                thread::spawn(move || {
                    // What fails here shows in what the client sees.
                    let _ = exchange.as_server(stream);
                    served.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Ok(port.into())
    }
}

impl Exchange {
    /// An exchange that the client ends.
    pub const fn new(to_server: usize, to_client: usize) -> Self {
        Self { to_server, to_client, close: Close::Client }
    }

    fn talk_as_client(self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(&vec![b'c'; self.to_server])?;
        stream.read_exact(&mut vec![0; self.to_client])
    }

    fn as_client(self, mut stream: TcpStream) -> io::Result<()> {
        self.talk_as_client(&stream)?;
        match self.close {
            Close::Client => {
                // Half-closing and waiting for the other FIN makes the order of the two certain.
                stream.shutdown(Shutdown::Write)?;
                read_to_end(&mut stream)
            }
            Close::Server => read_to_end(&mut stream),
            Close::Reset => Ok(setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?),
        }
    }

    fn as_server(self, mut stream: TcpStream) -> io::Result<()> {
        stream.read_exact(&mut vec![0; self.to_server])?;
        stream.write_all(&vec![b's'; self.to_client])?;
        if self.close == Close::Server {
            stream.shutdown(Shutdown::Write)?;
        }
        read_to_end(&mut stream)
    }
}

fn read_to_end(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

fn answer(answer: &Answer) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Runs a program to its end; its standard error becomes ours if it fails.
///
/// # Errors
/// It is not there, or does not exit with 0.
fn run_program(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    child.stdin.take().context("its standard input is piped")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} {}: {}\n{input}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// As the standard library has it.
const BACKLOG: i32 = 128;
/// Nothing takes so long on the slowest machine.
const TIMEOUT: Duration = Duration::from_secs(180);
