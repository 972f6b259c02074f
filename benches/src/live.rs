//! Many agents at once, at a rate, to one that keeps what they tell: a monitor that listens to them, and a receiver.

use std::{
    convert::Infallible,
    fs,
    future::pending,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::{Router, body::Body, extract::State, http::Request, routing::post};
use bytes::Bytes;
use delivery::{
    collector::{Collector, CollectorConfig},
    listen::{self, Limits, Security},
    live,
};
use futures::{TryStreamExt, stream};
use nix::{time::clock_getcpuclockid, unistd::Pid};
use schemas::{
    capture::{self, Runs},
    flow::FlowRecord,
    table::{Record, TimestampMs},
};
use testdata::{
    recording::{Monitor, Receiver},
    sender::Sender,
};
use tokio::time::sleep;

use crate::agent::{self, cpu_seconds};

/// What all agents do.
#[derive(Default)]
struct Load {
    rows: AtomicI64,
    /// How late any of them was at most, in milliseconds.
    late_ms: AtomicU64,
    is_over: AtomicBool,
}

/// An agent that makes rows at a rate.
struct Agent {
    sender: Sender,
    per_second: usize,
    begun: Instant,
    made: usize,
    load: Arc<Load>,
}

impl Agent {
    fn new(number: usize, scratch: &Path, per_second: usize, load: &Arc<Load>) -> Result<Self> {
        let sender = Sender::new(&format!("node-{number}"), &scratch.join(format!("spool-{number}")), 1 << 20)?;
        Ok(Self { sender, per_second, begun: Instant::now(), made: 0, load: Arc::clone(load) })
    }

    /// The next request, once it is time for it.
    async fn next(&mut self) -> Vec<u8> {
        let rows = self.per_second / BATCHES_PER_SECOND;
        self.made += rows;
        let due = self.begun + Duration::from_secs_f64(self.made as f64 / self.per_second as f64);
        let late = Instant::now().saturating_duration_since(due);
        self.load.late_ms.fetch_max(late.as_millis() as u64, Ordering::Relaxed);
        tokio::time::sleep_until(due.into()).await;
        self.load.rows.fetch_add(rows as i64, Ordering::Relaxed);
        self.sender.request(rows, TimestampMs::now())
    }
}

/// Measures and prints.
///
/// # Errors
/// A program fails, or a row is missing.
pub(crate) fn run(agents: usize, per_second: usize, seconds: u64) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    println!(
        "| {agents} agents, {per_second} rows/s each, {seconds} s | rows | missing | CPU | resident after 1/4, 1/2, 3/4, at the end | agents late at most |"
    );
    println!("|---|---|---|---|---|---|");
    for by in ["monitor", "receive"] {
        let scratch = tempfile::tempdir()?;
        let load = Arc::new(Load::default());
        let made: Result<Vec<Agent>> =
            (0..agents).map(|number| Agent::new(number, scratch.path(), per_second, &load)).collect();
        let capture = scratch.path().join("capture");
        let measured = match by {
            "monitor" => monitor(made?, &load, &runtime, seconds, scratch.path(), &capture)?,
            _ => receive(made?, &load, &runtime, seconds, &capture)?,
        };
        let Measured { cpu, resident } = measured;
        let rows = load.rows.load(Ordering::Relaxed);
        let missing = rows - distinct(&capture)?;
        let resident: Vec<String> = resident.iter().map(|bytes| format!("{:.0}", *bytes as f64 / 1e6)).collect();
        println!(
            "| {by} | {rows} | {missing} | {:.0} % of a core | {} MB | {} ms |",
            cpu / seconds as f64 * 100.0,
            resident.join(", "),
            load.late_ms.load(Ordering::Relaxed)
        );
        ensure!(missing == 0, "rows are missing");
    }
    Ok(())
}

struct Measured {
    cpu: f64,
    resident: Vec<u64>,
}

fn monitor(
    agents: Vec<Agent>,
    load: &Arc<Load>,
    runtime: &tokio::runtime::Runtime,
    seconds: u64,
    scratch: &Path,
    capture: &Path,
) -> Result<Measured> {
    let mut urls = Vec::new();
    for agent in agents {
        let listener = runtime.block_on(listen::bind("127.0.0.1:0".parse()?))?;
        urls.push(format!("http://{}", listener.local_addr()?));
        let routes = Router::new().route(live::PATH, post(answer)).with_state(Arc::new(Mutex::new(Some(agent))));
        let limits = Limits { connections: 4, streams: 4 };
        let guard = Arc::new(Security::default().guard()?);
        runtime.spawn(listen::serve(listener, routes, guard, limits, pending()));
    }
    let token = scratch.join("token");
    fs::write(&token, "any")?;
    let (urls, token) = (urls.join(","), token.to_string_lossy().into_owned());
    let arguments = ["--agent-url", &urls, "--token-file", &token, "--no-inventory", "--roll-interval", "10s"];
    let monitor = Monitor::at_its_pace(&agent::beside("testdata", "lab")?, capture, &arguments)?;
    let measured = watch(monitor.id(), seconds)?;
    load.is_over.store(true, Ordering::Relaxed);
    let (said, is_well) = monitor.stop(1)?;
    ensure!(is_well, "{said}");
    Ok(measured)
}

/// Streams what an agent makes, until the client has ended its request.
async fn answer(State(agent): State<Arc<Mutex<Option<Agent>>>>, request: Request<Body>) -> Body {
    let agent = agent.lock().ok().and_then(|mut agent| agent.take());
    let Some(mut agent) = agent else { return Body::empty() };
    agent.begun = Instant::now();
    let finishing = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&finishing);
    tokio::spawn(async move {
        let mut pieces = request.into_body().into_data_stream();
        while let Ok(Some(_)) = pieces.try_next().await {}
        asked.store(true, Ordering::Relaxed);
    });
    Body::from_stream(stream::unfold(Some(agent), move |agent| {
        let is_last = finishing.load(Ordering::Relaxed);
        async move {
            let mut agent = agent?;
            let request =
                if is_last { agent.sender.health_request(TimestampMs::now(), true) } else { agent.next().await };
            let frame = live::frame(&request).unwrap_or_default();
            Some((Ok::<Bytes, Infallible>(frame), (!is_last).then_some(agent)))
        }
    }))
}

fn receive(
    agents: Vec<Agent>,
    load: &Arc<Load>,
    runtime: &tokio::runtime::Runtime,
    seconds: u64,
    capture: &Path,
) -> Result<Measured> {
    let receiver = Receiver::start(&agent::beside("testdata", "lab")?, capture, &["--roll-interval", "10s"])?;
    let config = CollectorConfig::new(Some(&receiver.grpc), Some("grpc"), |_| None)?;
    let mut tasks = Vec::new();
    for mut agent in agents {
        let (config, load) = (config.clone(), Arc::clone(load));
        tasks.push(runtime.spawn(async move {
            let collector = Collector::new(config)?;
            agent.begun = Instant::now();
            while !load.is_over.load(Ordering::Relaxed) {
                let request = Bytes::from(agent.next().await);
                while collector.send(request.clone()).await.is_err() {
                    sleep(Duration::from_millis(100)).await;
                }
            }
            anyhow::Ok(())
        }));
    }
    let measured = watch(receiver.id(), seconds)?;
    load.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        runtime.block_on(task)??;
    }
    receiver.stop()?;
    Ok(measured)
}

/// Waits, and looks at a process meanwhile.
fn watch(process: u32, seconds: u64) -> Result<Measured> {
    let clock = clock_getcpuclockid(Pid::from_raw(process as i32))?;
    let mut resident = Vec::new();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(seconds) / 4);
        let statm = fs::read_to_string(format!("/proc/{process}/statm"))?;
        let pages: u64 = statm.split(' ').nth(1).context("statm has two fields")?.parse()?;
        resident.push(pages * 4096);
    }
    Ok(Measured { cpu: cpu_seconds(clock)?, resident })
}

/// Rows of flows in a capture, each counted once.
fn distinct(capture: &Path) -> Result<i64> {
    let mut all = Runs::default();
    let listing = capture::list(&[capture.into()])?;
    listing.files.iter().filter(|file| file.dataset == FlowRecord::DATASET).for_each(|file| all.add(&file.runs));
    Ok(all.rows())
}

const BATCHES_PER_SECOND: usize = 10;
