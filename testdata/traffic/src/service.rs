//! A service of an application in a cluster: it answers, and calls others by name again and again.

use std::{
    env,
    io::{Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Answers on TCP ports, and calls every `service:port` that a variable named `…_ADDR` has, until the process is killed:
/// again and again, or, to `keep` a connection, once.
///
/// # Errors
/// A port can't be had.
pub(crate) fn run(ports: &[u16], pause: Duration, keep: bool) -> Result<()> {
    for port in ports {
        let anywhere = (Ipv6Addr::UNSPECIFIED, *port);
        let listener = TcpListener::bind(anywhere).with_context(|| format!("listen on port {port}"))?;
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| answer(stream)))));
    }
    // Kubernetes has variables of such names too, whose addresses have no port.
    let named = env::vars().filter(|(name, address)| name.ends_with("_ADDR") && address.contains(':'));
    let called: Vec<String> = named.map(|(_, address)| address).collect();
    println!("serving {ports:?}, calling {called:?}");
    if keep {
        thread::scope(|scope| called.iter().for_each(|address| drop(scope.spawn(move || send(address, pause)))));
    }
    loop {
        for address in &called {
            if let Err(error) = call(address) {
                eprintln!("traffic: {error:#}");
            }
        }
        thread::sleep(pause);
    }
}

/// Sends to a service on one connection for ever; another is made only if it ends.
fn send(address: &str, pause: Duration) {
    loop {
        match TcpStream::connect(address) {
            Ok(mut stream) => {
                while stream.write_all(b"?").is_ok() {
                    thread::sleep(pause);
                }
            }
            Err(error) => eprintln!("traffic: call {address}: {error}"),
        }
        thread::sleep(pause);
    }
}

/// Asks services once, prints of each what came of it, and returns how many did not answer.
pub(crate) fn call_all(addresses: &[String]) -> usize {
    let cut = AtomicUsize::new(0);
    let cut_off = &cut;
    thread::scope(|scope| {
        for address in addresses {
            scope.spawn(move || match call(address) {
                Ok(()) => println!("passes {address}"),
                Err(error) => {
                    println!("cut {address} {error:#}");
                    cut_off.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    cut.into_inner()
}

/// Asks a service once, by name or address.
///
/// # Errors
/// It can't be reached, or does not answer in [`PATIENCE`].
fn call(address: &str) -> Result<()> {
    let found = address.to_socket_addrs().with_context(|| format!("resolve {address}"))?;
    let mut refused = None;
    for to in found {
        match ask(&to) {
            Ok(()) => return Ok(()),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.with_context(|| format!("{address} has no address"))?.context(format!("call {address}")))
}

fn ask(to: &SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[b'?'; QUESTION])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.len() != ANSWER {
        bail!("{} of {ANSWER} bytes were answered", answer.len());
    }
    Ok(())
}

/// Answers who asks; who only connects, as a kubelet that probes, is not answered.
fn answer(mut stream: TcpStream) {
    let mut question = Vec::new();
    if stream.read_to_end(&mut question).is_ok() && !question.is_empty() {
        let _ = stream.write_all(&[b'!'; ANSWER]);
    }
}

const QUESTION: usize = 120;
const ANSWER: usize = 900;
/// What a packet that a policy drops is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
