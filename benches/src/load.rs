//! Load: what applications do with sockets, as fast as they can, in a process of its own.
//!
//! Client and server are threads of one process in a network namespace and cgroup of its own. It takes orders as JSON
//! lines on standard input and answers each with one on standard output.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    libc::linger,
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        socket::{setsockopt, sockopt::Linger},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// What to do for how long.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Load {
    /// Connect, 4 bytes each way, close; one client thread. Counts connections.
    Churn,
    /// 64 bytes to the server, 512 back, on one connection per thread. Counts requests.
    KeepAlive,
    /// 128 KiB writes on one connection. Counts KiB.
    Bulk,
}

/// An order and its duration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) load: Load,
    pub(crate) duration_ms: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
}

/// The process: joins the cgroup, makes a network namespace, and obeys until its standard input ends.
///
/// # Errors
/// The system refuses.
pub(crate) fn run(cgroup: &Path) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("ask for the parent's death")?;
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("join cgroup {}", cgroup.display()))?;
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip link set lo up");
    pin(1)?; // the servers
    let servers = Servers::start()?;
    pin(0)?; // the client
    say(&Done { operations: 0, seconds: 0.0, cpu: 0.0 })?;
    for line in io::stdin().lock().lines() {
        let Order { load, duration_ms } = serde_json::from_str(&line?).context("understand an order")?;
        let cpu0 = cpu()?;
        let begun = Instant::now();
        let until = begun + Duration::from_millis(duration_ms);
        let mut operations = 0;
        let mut rates = Vec::new();
        while Instant::now() < until {
            let slice = Instant::now();
            let end = slice + Duration::from_millis(50);
            let n = match load {
                Load::Churn => churn(servers.churn, end)?,
                Load::KeepAlive => keep_alive(servers.keep_alive, end)?,
                Load::Bulk => bulk(servers.bulk, end)?,
            };
            operations += n;
            rates.push(n as f64 / slice.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        say(&Done { operations, seconds: operations as f64 / rates[rates.len() / 2], cpu: cpu()? - cpu0 })?;
    }
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
}

impl Servers {
    fn start() -> Result<Self> {
        Ok(Self {
            churn: serve(|mut stream| {
                let mut bytes = [0; 4];
                stream.read_exact(&mut bytes)?;
                stream.write_all(&bytes)?;
                stream.read(&mut bytes).map(drop)
            })?,
            keep_alive: serve(|mut stream| {
                thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    let mut request = [0; 64];
                    while stream.read_exact(&mut request).is_ok() && stream.write_all(&[b'r'; 512]).is_ok() {}
                });
                Ok(())
            })?,
            bulk: serve(|mut stream| {
                thread::spawn(move || {
                    let mut bytes = vec![0; 128 << 10];
                    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
                });
                Ok(())
            })?,
        })
    }
}

fn serve(handle: impl Fn(TcpStream) -> io::Result<()> + Send + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
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
        let mut stream = TcpStream::connect(server)?;
        let mut bytes = *b"ping";
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        // An abortive close now and then would not be a churn; a plain one leaves TIME_WAIT, which ports can bear.
        setsockopt(&stream, Linger, &linger { l_onoff: 0, l_linger: 0 })?;
        connections += 1;
    }
    Ok(connections)
}

fn keep_alive(server: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    let mut response = [0; 512];
    let mut requests = 0;
    while Instant::now() < until {
        stream.write_all(&[b'q'; 64])?;
        stream.read_exact(&mut response)?;
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

fn cpu() -> Result<f64> {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}
