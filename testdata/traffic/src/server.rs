//! The servers of all lines, each a thread.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, SockAddr, SockFilter, SockRef, Socket, Type};
use traffic::{Ending, Exchange, Kind, Line, Plan};

use crate::signals;

/// Serves every line until the process is killed.
///
/// # Errors
/// A port can't be had.
pub(crate) fn serve(signals: &Path) -> Result<()> {
    for line in Plan::served() {
        let port = line.port;
        if line.is_tcp() {
            let listener = listen(line).with_context(|| format!("listen on TCP port {port}"))?;
            let signals = signals.to_path_buf();
            thread::spawn(move || accept(&listener, line, &signals));
        } else {
            let socket = UdpSocket::from(bind(line, Type::DGRAM).with_context(|| format!("bind UDP port {port}"))?);
            thread::spawn(move || answer(&socket, line));
        }
    }
    println!("serving");
    loop {
        thread::park();
    }
}

fn listen(line: Line) -> Result<TcpListener> {
    let socket = bind(line, Type::STREAM)?;
    if matches!(line.kind, Kind::Late(_)) {
        socket.attach_filter(&[DROP_ALL])?;
    }
    socket.listen(128)?;
    Ok(socket.into())
}

/// A socket that is bound to a line's port on all addresses of its family.
fn bind(line: Line, kind: Type) -> Result<Socket> {
    let domain = if line.ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, kind, None)?;
    if line.ipv6 {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(anywhere(line)))?;
    Ok(socket)
}

fn anywhere(line: Line) -> SocketAddr {
    if line.ipv6 { (Ipv6Addr::UNSPECIFIED, line.port).into() } else { (Ipv4Addr::UNSPECIFIED, line.port).into() }
}

/// Serves one connection after the other, each in a thread of its own.
fn accept(listener: &TcpListener, line: Line, signals: &Path) {
    if matches!(line.kind, Kind::Late(_)) {
        signals::wait(signals, "late");
        SockRef::from(listener).detach_filter().expect("a filter was attached");
    }
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(error) = converse(stream, line) {
                eprintln!("traffic: port {}: {error:#}", line.port);
            }
        });
    }
}

/// What a server does on a connection of a line.
fn converse(mut stream: TcpStream, line: Line) -> Result<()> {
    match line.kind {
        Kind::Tcp(exchange, ending) => {
            respond(&mut stream, exchange)?;
            end(stream, ending)
        }
        Kind::Slow { exchange, rounds } => {
            for _ in 0..rounds {
                respond(&mut stream, exchange)?;
            }
            end(stream, Ending::ClientCloses)
        }
        Kind::Held { before, after, .. } => {
            respond(&mut stream, before)?;
            respond(&mut stream, after)?;
            end(stream, Ending::ClientCloses)
        }
        Kind::Late(exchange) => {
            respond(&mut stream, exchange)?;
            end(stream, Ending::ClientCloses)
        }
        _ => Ok(()),
    }
}

/// Reads all of the client's bytes and sends its own; then the client's last byte says that it has them.
fn respond(stream: &mut TcpStream, Exchange { to_server, to_client }: Exchange) -> Result<()> {
    stream.read_exact(&mut vec![0; to_server as usize - 1])?;
    stream.write_all(&vec![0; to_client as usize])?;
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn end(mut stream: TcpStream, ending: Ending) -> Result<()> {
    match ending {
        Ending::ServerCloses => {}
        Ending::ServerResets => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
        Ending::ClientCloses | Ending::ClientResets => match stream.read(&mut [0]) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error.into()),
            _ => {}
        },
    }
    Ok(())
}

/// Answers every datagram with its own bytes, or reads and forgets it.
fn answer(socket: &UdpSocket, line: Line) {
    let mut bytes = [0; 2048];
    loop {
        let outcome = if matches!(line.kind, Kind::UdpUnanswered { .. }) {
            socket.recv(&mut bytes)
        } else {
            socket.recv_from(&mut bytes).and_then(|(length, from)| socket.send_to(&bytes[..length], from))
        };
        if let Err(error) = outcome {
            eprintln!("traffic: UDP port {}: {error}", line.port);
        }
    }
}

/// The classic BPF program that keeps no byte of a packet (`BPF_RET | BPF_K`, 0): a listener with it answers nobody.
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
