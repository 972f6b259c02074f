//! UDP in a pod of the lab, and what it is mostly used for: names.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use simple_dns::{CLASS, Packet, QTYPE, RCODE, ResourceRecord, TYPE, rdata::RData};

/// Answers every datagram with itself.
pub(crate) fn echo(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        let _ = socket.send_to(&bytes[..length], from); // the client times out
    }
}

/// A UDP socket of the family of an address.
pub(crate) fn client(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = if to.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    }?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Sends one datagram and waits for the answer; the socket it came to, whose port nobody else has while it is kept.
pub(crate) fn ask(to: SocketAddr, question: &[u8], connected: bool) -> io::Result<UdpSocket> {
    let socket = client(to)?;
    let mut answer = vec![0; 2048];
    if connected {
        socket.connect(to)?;
        socket.send(question)?;
        socket.recv(&mut answer)?;
    } else {
        socket.send_to(question, to)?;
        socket.recv_from(&mut answer)?;
    }
    Ok(socket)
}

/// Answers on UDP and TCP port 53.
///
/// # Errors
/// The port is taken.
pub(crate) fn serve(names: BTreeMap<String, Ipv4Addr>) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
    let also = names.clone();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            if let Some(answer) = answer(&names, &bytes[..length]) {
                let _ = socket.send_to(&answer, from); // the client asks again
            }
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = serve_stream(&also, stream); // the client asks again
        }
    });
    Ok(())
}

fn serve_stream(names: &BTreeMap<String, Ipv4Addr>, mut stream: TcpStream) -> io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut question)?;
    let Some(answer) = answer(names, &question) else { return Ok(()) };
    stream.write_all(&(answer.len() as u16).to_be_bytes())?;
    stream.write_all(&answer)
}

/// The answer to a question; `None` to what is none.
fn answer(names: &BTreeMap<String, Ipv4Addr>, bytes: &[u8]) -> Option<Vec<u8>> {
    let asked = Packet::parse(bytes).ok()?;
    let question = asked.questions.first()?.clone();
    let known = names.get(&question.qname.to_string());
    let mut reply = Packet::new_reply(asked.id());
    if let Some(address) = known.filter(|_| question.qtype == QTYPE::TYPE(TYPE::A)) {
        let data = RData::A((*address).into());
        reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 30, data));
    }
    if known.is_none() {
        *reply.rcode_mut() = RCODE::NameError;
    }
    reply.questions.push(question);
    reply.build_bytes_vec().ok()
}

/// Gives this process a `resolv.conf` of its own, as kubelet gives one to every container.
///
/// # Errors
/// The process may not mount.
pub(crate) fn resolve_with(resolver: Ipv4Addr, search: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keep mounts to this process")?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("nameserver {resolver}\nsearch {search}\noptions ndots:5 timeout:30\n"))?;
    mount(Some(file.path()), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).context("mount resolv.conf")
}

const PORT: u16 = 53;
const TIMEOUT: Duration = Duration::from_secs(5);
