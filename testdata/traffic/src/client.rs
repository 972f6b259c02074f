//! The clients of a plan.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;
use traffic::{Client, Ending, Exchange, Kind, Line, PAUSE, Plan, ROUNDS};

use crate::signals;

/// Whom a plan is played to.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub ipv4: IpAddr,
    pub ipv6: IpAddr,
    /// An address that nobody has.
    pub nobody: IpAddr,
}

/// Plays every line of a plan that the scene does not start by itself.
///
/// # Errors
/// Something does not happen as planned.
pub(crate) fn play(plan: Plan, to: Addresses, window_seconds: u64) -> Result<()> {
    for line in plan.lines().into_iter().filter(|line| !line.is_older()) {
        let begin = Instant::now();
        let address = match line.kind {
            Kind::Unreachable => to.nobody,
            _ if line.ipv6 => to.ipv6,
            _ => to.ipv4,
        };
        for _ in 0..line.times {
            if !line.is_tcp() {
                avoid_end_of_window(window_seconds);
            }
            once(line, (address, line.port).into()).with_context(|| format!("{line:?}"))?;
        }
        println!("{} {:?} in {:?}", line.times, line.kind, begin.elapsed());
    }
    Ok(())
}

/// Makes a connection that is older than the agent, or a connect that is, and ends it when the scene says so.
///
/// # Errors
/// No plan has such a line, or something does not happen as planned.
pub(crate) fn hold(port: u16, to: IpAddr, signals: &Path) -> Result<()> {
    let line = Plan::served().into_iter().find(|line| line.port == port).context("a line of a plan")?;
    let mut stream = TcpStream::connect((to, port))?;
    let after = match line.kind {
        Kind::Held { before, after, .. } => {
            exchange(&mut stream, before)?;
            after
        }
        Kind::Late(after) => after,
        _ => bail!("port {port} is not of a line that is held"),
    };
    println!("open");
    signals::wait(signals, "again");
    exchange(&mut stream, after)?;
    println!("exchanged");
    if matches!(line.kind, Kind::Held { is_closed: false, .. }) {
        loop {
            thread::park();
        }
    }
    signals::wait(signals, "end");
    Ok(())
}

fn once(line: Line, to: SocketAddr) -> Result<()> {
    match line.kind {
        Kind::Tcp(payload, ending) => {
            let mut stream = TcpStream::connect(to)?;
            exchange(&mut stream, payload)?;
            end(stream, ending)
        }
        Kind::Slow { exchange: payload, rounds } => {
            let mut stream = TcpStream::connect(to)?;
            for _ in 0..rounds {
                exchange(&mut stream, payload)?;
                thread::sleep(PAUSE);
            }
            Ok(())
        }
        Kind::Refused => fail(to, ErrorKind::ConnectionRefused),
        Kind::Unreachable => fail(to, ErrorKind::HostUnreachable),
        Kind::Udp { bytes, client } => datagrams(to, bytes, client, true),
        Kind::UdpUnanswered { bytes, client } => datagrams(to, bytes, client, false),
        Kind::Held { .. } | Kind::Late(_) => bail!("the scene starts it"),
    }
}

/// Sends all bytes but one, reads the server's, and says with the last one that they are here.
fn exchange(stream: &mut TcpStream, Exchange { to_server, to_client }: Exchange) -> Result<()> {
    stream.write_all(&vec![0; to_server as usize - 1])?;
    stream.read_exact(&mut vec![0; to_client as usize])?;
    stream.write_all(&[0])?;
    Ok(())
}

fn end(mut stream: TcpStream, ending: Ending) -> Result<()> {
    match ending {
        Ending::ClientCloses => {}
        Ending::ClientResets => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
        Ending::ServerCloses => ensure!(stream.read(&mut [0])? == 0, "the server closes"),
        Ending::ServerResets => match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("the server resets, but {other:?}"),
        },
    }
    Ok(())
}

fn fail(to: SocketAddr, expected: ErrorKind) -> Result<()> {
    match TcpStream::connect(to) {
        Ok(_) => bail!("somebody answers"),
        Err(error) if error.kind() == expected => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Exchanges datagrams from a new socket.
fn datagrams(to: SocketAddr, bytes: u32, client: Client, is_answered: bool) -> Result<()> {
    let from: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_read_timeout(Some(ANSWER))?;
    if client.is_connected {
        socket.connect(to)?;
    }
    let datagram = vec![0; bytes as usize];
    for _ in 0..ROUNDS {
        if client.is_connected { socket.send(&datagram) } else { socket.send_to(&datagram, to) }?;
        if is_answered {
            let length = receive(&socket, client)?;
            ensure!(length == datagram.len(), "{length} of {bytes} bytes come back");
        }
    }
    Ok(())
}

/// Reads an answer: with the address of who sent it, by `read` where the socket is connected, or by `recv`.
fn receive(socket: &UdpSocket, client: Client) -> Result<usize> {
    let mut bytes = [0; 2048];
    let length = match client {
        Client { asks: true, .. } => socket.recv_from(&mut bytes)?.0,
        Client { is_connected: true, .. } => File::from(OwnedFd::from(socket.try_clone()?)).read(&mut bytes)?,
        Client { is_connected: false, .. } => socket.recv(&mut bytes)?,
    };
    Ok(length)
}

/// UDP is counted per window: waits where the present one is about to end. Windows are multiples of their length.
fn avoid_end_of_window(seconds: u64) {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let window = Duration::from_secs(seconds);
    let left = window.saturating_sub(Duration::from_nanos((since_epoch.as_nanos() % window.as_nanos()) as u64));
    if left < MARGIN {
        thread::sleep(left + Duration::from_millis(10));
    }
}

/// How long an answer may take on an emulated machine.
const ANSWER: Duration = Duration::from_secs(20);
/// More than a UDP socket is in use for.
const MARGIN: Duration = Duration::from_secs(1);
