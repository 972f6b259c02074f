//! Load: what applications do with sockets, as fast as they can, in a process of its own.
//!
//! Client and server are threads of one process in a network namespace and cgroup of its own. It takes orders as JSON
//! lines on standard input and answers each with one on standard output.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    time::ClockId,
    unistd::{Pid, gettid},
};
use serde::{Deserialize, Serialize};

use crate::agent::cpu_seconds;

/// What to do for how long.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Load {
    /// Connect, 4 bytes each way, close; one client thread, on the server's CPU or on the other one. Counts connections.
    Churn { one_cpu: bool },
    /// 64 bytes to the server, 512 back, on one connection per thread. Counts requests.
    KeepAlive,
    /// 128 KiB writes on one connection. Counts KiB.
    Bulk,
    /// As `Churn`, with so many client threads on all CPUs, until each has made so many connections.
    Storm { threads: u32, connections: u32 },
    /// As `Churn`, at so many connections per second, with a datagram there and back for each tenth.
    Paced { per_second: u32 },
    /// Opens connections to so many addresses, so many each, and keeps them. Counts connections.
    Hold { addresses: u32, each: u32 },
}

/// An order and its duration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) load: Load,
    pub(crate) duration_ms: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) operations: u64,
    /// The median over slices of 50 ms, so that what else runs on the machine for a moment does not count.
    pub(crate) per_second: f64,
    /// CPU time of client and server, in seconds.
    pub(crate) cpu_seconds: f64,
}

/// The process: joins the cgroup, makes a network namespace, and obeys until its standard input ends.
///
/// # Errors
/// The system refuses.
pub(crate) fn run(cgroup: &Path) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("ask for the parent's death")?;
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("join cgroup {}", cgroup.display()))?;
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    ip(&["link", "set", "lo", "up"])?;
    pin(1)?; // the servers
    let servers = Servers::start()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise the limit of open files")?;
    let mut held = Vec::new();
    say(&Done::default())?;
    for line in io::stdin().lock().lines() {
        let Order { load, duration_ms } = serde_json::from_str(&line?).context("understand an order")?;
        let until = Instant::now() + Duration::from_millis(duration_ms);
        // The client.
        pin(if matches!(load, Load::Churn { one_cpu: true }) { 1 } else { 0 })?;
        let before = cpu_seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
        let mut done = match load {
            Load::Churn { .. } => sliced(until, |end| churn(servers.churn, end))?,
            Load::KeepAlive => sliced(until, |end| keep_alive(servers.keep_alive, end))?,
            Load::Bulk => sliced(until, |end| bulk(servers.bulk, end))?,
            Load::Storm { threads, connections } => storm(threads, connections)?,
            Load::Paced { per_second } => sliced(until, |end| paced(&servers, per_second, end))?,
            Load::Hold { addresses, each } => {
                for number in 0..addresses * each {
                    let [_, high, middle, low] = (number % addresses + 2).to_be_bytes();
                    let to = (Ipv4Addr::new(127, high, middle, low), servers.keep_alive.port());
                    held.push(TcpStream::connect(to)?);
                }
                Done { operations: held.len() as u64, ..Done::default() }
            }
        };
        done.cpu_seconds = cpu_seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)? - before;
        say(&done)?;
    }
    Ok(())
}

/// Repeats a load in slices until a moment.
fn sliced(until: Instant, mut load: impl FnMut(Instant) -> io::Result<u64>) -> io::Result<Done> {
    let mut operations = 0;
    let mut rates = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let count = load(begun + SLICE)?;
        rates.push(count as f64 / begun.elapsed().as_secs_f64());
        operations += count;
    }
    rates.sort_by(f64::total_cmp);
    Ok(Done { operations, per_second: rates.get(rates.len() / 2).copied().unwrap_or(0.0), cpu_seconds: 0.0 })
}

fn storm(threads: u32, connections: u32) -> Result<Done> {
    let (named, names) = mpsc::channel();
    let (wired, wire) = mpsc::channel::<()>();
    // The server's end, in a network namespace of its own, as are the threads that it starts.
    let server = thread::spawn(move || -> Result<SocketAddr> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        named.send(gettid())?;
        wire.recv().context("the other end is made")?;
        // An address for each client thread, so that none runs out of ports.
        set_up("server", (0..threads).map(storm_server))?;
        pin(1)?;
        answer_requests(storm_server(0))
    });
    let namespace = names.recv().context("the server has a namespace")?.to_string();
    ip(&["link", "add", "client", "type", "veth", "peer", "name", "server", "netns", &namespace])?;
    set_up("client", [STORM_CLIENT])?;
    wired.send(())?;
    let server = server.join().ok().context("the server panicked")??;
    let begun = Instant::now();
    let clients: Vec<_> = (0..threads)
        .map(|thread| {
            thread::spawn(move || -> Result<()> {
                pin(thread as usize % 2)?;
                let server = SocketAddr::from((storm_server(thread), server.port()));
                (0..connections).try_for_each(|_| request(&mut TcpStream::connect(server)?)).map_err(Into::into)
            })
        })
        .collect();
    for client in clients {
        client.join().ok().context("a client panicked")??;
    }
    let operations = u64::from(threads * connections);
    Ok(Done { operations, per_second: operations as f64 / begun.elapsed().as_secs_f64(), cpu_seconds: 0.0 })
}

fn paced(servers: &Servers, per_second: u32, until: Instant) -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut connections = 0;
    let begun = Instant::now();
    while Instant::now() < until {
        let due = begun + Duration::from_secs(1) * connections as u32 / per_second;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        call(servers.churn)?;
        if connections % 10 == 0 {
            socket.send_to(b"ping", servers.udp)?;
            socket.recv(&mut [0; 4])?;
        }
        connections += 1;
    }
    Ok(connections)
}

fn storm_server(thread: u32) -> Ipv4Addr {
    let [first, second, third, fourth] = STORM_CLIENT.octets();
    Ipv4Addr::new(first, second, third, fourth + 1 + thread as u8)
}

/// Gives an end of a veth its addresses, and lets all CPUs receive there (RPS): softirqs then interrupt what runs on
/// another CPU than the sender's.
fn set_up(device: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Result<()> {
    for address in addresses {
        ip(&["address", "add", &format!("{address}/24"), "dev", device])?;
    }
    ip(&["link", "set", device, "up"])?;
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mount sysfs of the namespace")?;
    fs::write(format!("/sys/class/net/{device}/queues/rx-0/rps_cpus"), "3").context("set rps_cpus")
}

fn ip(arguments: &[&str]) -> Result<()> {
    ensure!(Command::new("ip").args(arguments).status()?.success(), "ip {}", arguments.join(" "));
    Ok(())
}

/// Keeps this thread, and those it starts, on a CPU: where the scheduler puts two that talk to each other decides more
/// than what is measured.
fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

struct Servers {
    churn: SocketAddr,
    keep_alive: SocketAddr,
    bulk: SocketAddr,
    udp: SocketAddr,
}

impl Servers {
    fn start() -> Result<Self> {
        Ok(Self {
            churn: serve(Ipv4Addr::LOCALHOST, |mut stream| {
                let mut bytes = [0; 4];
                stream.read_exact(&mut bytes)?;
                stream.write_all(&bytes)?;
                stream.read(&mut bytes).map(drop)
            })?,
            keep_alive: answer_requests(Ipv4Addr::LOCALHOST)?,
            bulk: serve(Ipv4Addr::LOCALHOST, |mut stream| {
                thread::spawn(move || {
                    let mut bytes = vec![0; 128 << 10];
                    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
                });
                Ok(())
            })?,
            udp: echo()?,
        })
    }
}

/// Answers datagrams with themselves.
fn echo() -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..length], from); // the client times out
        }
    });
    Ok(address)
}

/// Answers every 64 bytes with 512.
fn answer_requests(at: Ipv4Addr) -> Result<SocketAddr> {
    serve(at, |mut stream| {
        thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let mut request = [0; 64];
            while stream.read_exact(&mut request).is_ok() && stream.write_all(&[b'r'; 512]).is_ok() {}
        });
        Ok(())
    })
}

fn serve(at: Ipv4Addr, handle: impl Fn(TcpStream) -> io::Result<()> + Send + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let address = SocketAddr::from((at, listener.local_addr()?.port()));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = handle(stream); // what fails here fails at the client too
        }
    });
    Ok(address)
}

fn churn(server: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut connections = 0;
    while Instant::now() < until {
        call(server)?;
        connections += 1;
    }
    Ok(connections)
}

/// One connection of the churn.
fn call(server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    let mut bytes = *b"ping";
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes)
}

/// One request on a kept connection.
fn request(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[b'q'; 64])?;
    stream.read_exact(&mut [0; 512])
}

fn keep_alive(server: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    let mut requests = 0;
    while Instant::now() < until {
        request(&mut stream)?;
        requests += 1;
    }
    Ok(requests)
}

fn bulk(server: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut stream = TcpStream::connect(server)?;
    let bytes = vec![b'b'; 128 << 10];
    let mut kib = 0;
    while Instant::now() < until {
        stream.write_all(&bytes)?;
        kib += 128;
    }
    Ok(kib)
}

fn say(done: &Done) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, done)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

const SLICE: Duration = Duration::from_millis(50);
const STORM_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
