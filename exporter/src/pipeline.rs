//! The whole graph of a run, and the only file that knows it.
//!
//! ```text
//!  observe (task)                                record (thread)
//!  Probe ──FlowEvent──► FlowTable ──Message──► [bounded] ──► Enricher ──FlowRecord──► ParquetSink
//!                                                 Inventory ──InventoryRecord──┘
//! ```
//!
//! Nothing is dropped between the stages: where recording is slower than observing, the channel fills, observing waits,
//! and what does not fit the kernel's ring buffer is counted there. At shutdown the upstream ends first and the rest
//! drains.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use schemas::{capture::CaptureError, health::HealthRecord, inventory::InventoryRecord, table::TimestampMs};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use uuid::Uuid;

use crate::{
    args::Args,
    enrich::{Enricher, Filter, Origin, file::InventoryError, inode},
    flow::{Clock, Flow, FlowTable, FlowTableLimits},
    inventory::Inventory,
    probe::{Probe, ProbeCounters, ProbeError},
    sink::{AGENT_VERSION, ParquetSink},
};

/// Why a run could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel's sockets can't be watched.
    #[error("cannot watch the kernel's sockets")]
    Probe(#[from] ProbeError),
    /// The inventory file can't be used.
    #[error("cannot learn who the pods are")]
    Inventory(#[from] InventoryError),
    /// The capture can't be written.
    #[error("cannot write the capture")]
    Capture(#[from] CaptureError),
    /// The node's own network namespace can't be told.
    #[error("cannot read {path}: name the node's network namespace with --host-netns")]
    HostNetns { path: PathBuf },
    /// The system refused something that always works.
    #[error("cannot read the system's clock or name")]
    System(#[from] nix::Error),
    /// The recording thread ended before its time.
    #[error("the recording thread ended unexpectedly")]
    Recorder(#[source] io::Error),
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunSummary {
    /// Rows of `flows`.
    pub rows: i64,
    /// Ends of connections in them.
    pub ends: i64,
    /// Ends of connections lost, for any reason.
    pub lost: i64,
}

/// From observing to recording.
enum Message {
    Flows(Vec<Flow>),
    /// A second has passed.
    Tick,
    Window(WindowReport),
}

/// What observing a window came to, since the report before.
#[derive(Clone, Copy, Debug, Default)]
struct WindowReport {
    start: TimestampMs,
    end: TimestampMs,
    counters: ProbeCounters,
    lost_queue: u64,
    open_connections: usize,
    edges: usize,
}

/// Records until `shutdown` completes, then flushes everything.
///
/// # Errors
/// The run can't start, or the kernel takes the programs away.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<RunSummary, RunError> {
    let origin = Origin {
        cluster: args.cluster.as_str().into(),
        node: args.node.clone().map_or_else(|| node_name().map(Arc::from), |name| Ok(name.into()))?,
        run_id: Uuid::new_v4().simple().to_string().into(),
    };
    let host_netns = host_netns(args.host_netns.as_deref())?;
    let inventory = Inventory::open(args.inventory.clone())?;
    let sink = ParquetSink::new(&args.output, &origin, args.roll())?;
    // Who is who is known, and on disk, from before the first connection.
    let run_start = now()?;
    let filter = Filter {
        namespaces: args.namespaces.iter().map(|name| name.as_str().into()).collect(),
        loopback: args.loopback,
    };
    let enricher = Enricher::new(origin.clone(), filter, host_netns);
    let mut recorder = Recorder::new(&args, origin, run_start, enricher, inventory, sink)?;
    recorder.record_snapshot(run_start);

    let probe = Probe::attach(args.cgroup.as_deref(), args.ring_size_mib << 20)?;
    recorder.programs = probe.programs().map(Arc::from).to_vec();
    tracing::info!(output = %args.output.display(), window = ?args.window, "recording, stop with Ctrl-C");
    let limits = FlowTableLimits { edges: args.max_edges, connections: args.max_connections };
    let table = FlowTable::new(args.window, limits, host_netns, run_start);

    let (sender, receiver) = mpsc::channel(CHANNEL_MESSAGES);
    let recording = tokio::task::spawn_blocking(move || recorder.run(receiver));
    let observed = observe(probe, table, &args, run_start, sender, shutdown).await;
    let summary = recording.await.map_err(|error| RunError::Recorder(io::Error::other(error)))?;
    observed.map(|()| summary)
}

/// Drains the kernel, sums flows, and sends what is complete downstream.
async fn observe(
    mut probe: Probe,
    mut table: FlowTable,
    args: &Args,
    run_start: TimestampMs,
    sender: mpsc::Sender<Message>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut drain = interval(DRAIN_INTERVAL);
    drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut report =
        Reporter { period_ms: args.health_window_ms(), start: run_start, counters: ProbeCounters::default(), lost: 0 };
    let mut next_tick = Instant::now();
    let mut next_roll = Instant::now() + args.roll_interval;
    loop {
        let stopping = tokio::select! {
            () = &mut shutdown => true,
            _ = drain.tick() => false,
        };
        let clock = Clock { offset_ns: clock_ns(ClockId::CLOCK_REALTIME)? - clock_ns(ClockId::CLOCK_BOOTTIME)? };
        probe.drain(|event| table.step(event, clock));
        let now = now()?;
        if stopping {
            send(&sender, table.finish(now)).await;
            let window = report.take(now, &probe, &table)?;
            let _ = sender.send(Message::Window(window)).await;
            return Ok(());
        }
        // Events reach the ring a moment after they happen; windows are closed when theirs are certainly in.
        send(&sender, table.close_windows(TimestampMs(now.0 - GRACE_MS))).await;
        if args.window.is_zero() && Instant::now() >= next_roll {
            next_roll += args.roll_interval;
            send(&sender, table.open_flows(now)).await;
        }
        if report.is_due(TimestampMs(now.0 - GRACE_MS)) {
            let window = report.take(TimestampMs(report.due_at()), &probe, &table)?;
            let _ = sender.send(Message::Window(window)).await;
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            let _ = sender.send(Message::Tick).await;
        }
    }
}

/// A closed channel means that the recorder has failed, which `run` reports.
async fn send(sender: &mpsc::Sender<Message>, flows: Vec<Flow>) {
    if !flows.is_empty() {
        let _ = sender.send(Message::Flows(flows)).await;
    }
}

/// Turns running counters into a report per window.
struct Reporter {
    period_ms: i64,
    start: TimestampMs,
    counters: ProbeCounters,
    lost: u64,
}

impl Reporter {
    const fn due_at(&self) -> i64 {
        self.start.0 - self.start.0.rem_euclid(self.period_ms) + self.period_ms
    }

    const fn is_due(&self, now: TimestampMs) -> bool {
        now.0 >= self.due_at()
    }

    fn take(&mut self, end: TimestampMs, probe: &Probe, table: &FlowTable) -> Result<WindowReport, ProbeError> {
        let (counters, lost) = (probe.counters()?, table.lost());
        let before = self.counters;
        let report = WindowReport {
            start: self.start,
            end,
            counters: ProbeCounters {
                seen: counters.seen - before.seen,
                lost_ring: counters.lost_ring - before.lost_ring,
                lost_closed: counters.lost_closed - before.lost_closed,
                lost_storage: counters.lost_storage - before.lost_storage,
                malformed: counters.malformed - before.malformed,
            },
            lost_queue: lost - self.lost,
            open_connections: table.open_connections(),
            edges: table.edges(),
        };
        (self.start, self.counters, self.lost) = (end, counters, lost);
        Ok(report)
    }
}

/// Names flows and writes everything.
struct Recorder {
    origin: Origin,
    run_start: TimestampMs,
    kernel_release: Arc<str>,
    programs: Vec<Arc<str>>,
    namespaces: Vec<Arc<str>>,
    window_ms: i64,
    enricher: Enricher,
    inventory: Inventory,
    sink: ParquetSink,
    health_seq: i64,
    /// Since the last health row.
    exported: i64,
    filtered: i64,
    unidentified: i64,
    summary: RunSummary,
}

impl Recorder {
    fn new(
        args: &Args,
        origin: Origin,
        run_start: TimestampMs,
        enricher: Enricher,
        inventory: Inventory,
        sink: ParquetSink,
    ) -> Result<Self, RunError> {
        Ok(Self {
            origin,
            run_start,
            kernel_release: nix::sys::utsname::uname()?.release().to_string_lossy().into(),
            programs: Vec::new(),
            namespaces: args.namespaces.iter().map(|name| name.as_str().into()).collect(),
            window_ms: args.window.as_millis() as i64,
            enricher,
            inventory,
            sink,
            health_seq: 0,
            exported: 0,
            filtered: 0,
            unidentified: 0,
            summary: RunSummary::default(),
        })
    }

    fn run(mut self, mut receiver: mpsc::Receiver<Message>) -> RunSummary {
        // A report is written when the next message shows that it is not the last one.
        let mut last_report = None;
        while let Some(message) = receiver.blocking_recv() {
            let now = now().unwrap_or(self.run_start);
            if let Some(report) = last_report.take() {
                self.record_health(&report, false, now);
            }
            match message {
                Message::Flows(flows) => self.record_flows(&flows, now),
                Message::Tick => {
                    self.record_inventory_changes(now);
                    self.sink.roll(now);
                }
                Message::Window(report) => last_report = Some(report),
            }
        }
        let now = now().unwrap_or(self.run_start);
        self.sink.finish_data();
        if let Some(report) = last_report {
            self.record_health(&report, true, now);
        }
        self.sink.finish_health();
        self.summary.rows = self.enricher.next_seq();
        self.summary
    }

    fn record_flows(&mut self, flows: &[Flow], now: TimestampMs) {
        for flow in flows {
            let Some(record) = self.enricher.step(flow) else {
                self.filtered += flow.ends();
                continue;
            };
            let local_reason = match &*record.observer {
                "server" => &record.destination_unknown_reason,
                _ => &record.source_unknown_reason,
            };
            if local_reason.is_some() {
                self.unidentified += flow.ends();
            }
            self.exported += flow.ends();
            self.sink.flow(flow, record, now);
        }
    }

    fn record_snapshot(&mut self, now: TimestampMs) {
        let rows = self.inventory.snapshot(&self.origin, now);
        self.write_inventory(rows, now);
        self.enricher.locate(self.inventory.observations());
    }

    fn record_inventory_changes(&mut self, now: TimestampMs) {
        if self.inventory.is_new_hour(now) {
            self.sink.finish_inventory();
        }
        let is_new_day = self.inventory.is_new_day(now);
        let changed = self.inventory.reload();
        // Every file and every day opens with what was known before the change.
        if is_new_day || (changed.is_some() && !self.sink.has_open_inventory()) {
            self.record_snapshot(now);
        }
        if let Some(observations) = changed {
            let rows = self.inventory.replace(observations, &self.origin, now);
            self.write_inventory(rows, now);
            self.enricher.locate(self.inventory.observations());
        }
    }

    fn write_inventory(&mut self, rows: Vec<InventoryRecord>, now: TimestampMs) {
        for row in rows {
            self.enricher.learn(row.clone());
            self.sink.inventory(row, now);
        }
    }

    fn record_health(&mut self, report: &WindowReport, clean_shutdown: bool, now: TimestampMs) {
        let lost_sink = self.sink.take_lost_ends();
        let exported = std::mem::take(&mut self.exported) - lost_sink;
        let WindowReport { start, end, counters, lost_queue, open_connections, edges } = *report;
        let lost_queue = lost_queue as i64;
        self.summary.ends += exported;
        self.summary.lost += counters.lost_ring as i64 + counters.malformed as i64 + lost_queue + lost_sink;
        let record = HealthRecord {
            cluster: Arc::clone(&self.origin.cluster),
            node: Arc::clone(&self.origin.node),
            run_id: Arc::clone(&self.origin.run_id),
            seq: self.health_seq,
            window_start: start,
            window_end: end,
            run_start: self.run_start,
            agent_version: AGENT_VERSION.into(),
            kernel_release: Arc::clone(&self.kernel_release),
            programs: self.programs.clone(),
            namespaces: self.namespaces.clone(),
            window_ms: self.window_ms,
            seen: counters.seen as i64,
            exported,
            filtered: std::mem::take(&mut self.filtered),
            lost_ring: counters.lost_ring as i64,
            lost_map: 0,
            lost_recursion: 0,
            lost_parse: counters.malformed as i64,
            lost_queue,
            lost_sink,
            lost_closed: counters.lost_closed as i64,
            unidentified: std::mem::take(&mut self.unidentified),
            open_connections: open_connections as i64,
            flow_table_entries: edges as i64,
            ring_bytes: 0,
            flows_next_seq: self.enricher.next_seq(),
            inventory_next_seq: self.inventory.next_seq(),
            clean_shutdown,
        };
        self.health_seq += 1;
        self.sink.health(record, now);
    }
}

/// Inode of the node's own network namespace.
fn host_netns(path: Option<&Path>) -> Result<u32, RunError> {
    let found = match path {
        Some(path) => inode(path),
        None => HOST_NETNS.iter().find_map(|path| inode(Path::new(path))),
    };
    let path = || path.unwrap_or(Path::new(HOST_NETNS[0])).into();
    found.map(|inode| inode as u32).ok_or_else(|| RunError::HostNetns { path: path() })
}

/// The node's name where none is given: its host name.
fn node_name() -> Result<String, RunError> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() {
        return Ok(nix::sys::utsname::uname()?.nodename().to_string_lossy().into_owned());
    }
    Ok(name.trim().into())
}

fn now() -> Result<TimestampMs, nix::Error> {
    Ok(TimestampMs(clock_ns(ClockId::CLOCK_REALTIME)? / 1_000_000))
}

fn clock_ns(clock: ClockId) -> Result<i64, nix::Error> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// How long events may wait in the ring buffer: 100 ms at 300 K events per second are 3.6 MB of the default 8 MiB.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_secs(1);
const GRACE_MS: i64 = 300;
const HOST_NETNS: [&str; 2] = ["/proc/1/ns/net", "/proc/self/ns/net"];
const CHANNEL_MESSAGES: usize = 64;
