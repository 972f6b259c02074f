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
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
};
use schemas::{capture::Origin, health::HealthRecord, inventory::InventoryRecord, table::TimestampMs};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    args::Args,
    enrich::{Enricher, Filter, file::InventoryError, inode},
    flow::{Clock, Flow, FlowTable, FlowTableLimits, Role, TableLoss},
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
    /// The end of the run could not be written.
    #[error(
        "cannot write to {path}, as told above: the end of the recording is missing, {lost} ends of connections are lost"
    )]
    EndUnwritten { path: PathBuf, lost: i64 },
    /// Not even the beginning could be written.
    #[error("cannot write to {path}, as told above: make room, or name another directory with --output")]
    Unwritable { path: PathBuf },
    /// The node's own network namespace can't be told.
    #[error("cannot read {path}: name the node's network namespace with --host-netns")]
    HostNetns { path: PathBuf },
    /// The system refused something that always works.
    #[error("cannot read the system's clock or name")]
    System(#[from] nix::Error),
    /// The system has no randomness.
    #[error("cannot draw a random identifier")]
    Random(#[source] getrandom::Error),
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
    /// Ends of connections that the filter left out.
    pub filtered: i64,
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
    lost: TableLoss,
    ring_bytes: usize,
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
        run_id: random_id()?,
    };
    let host_netns = host_netns(args.host_netns.as_deref())?;
    let inventory = Inventory::open(args.inventory.clone(), &origin.node)?;
    let sink = ParquetSink::new(&args.output, &origin, args.roll());
    // From here on the kernel collects; what it sees waits in the ring buffer until everything stands.
    let run_start = now()?;
    let probe = Probe::attach(args.cgroup.as_deref(), args.ring_size_mib << 20)?;
    let filter = Filter { namespaces: args.namespaces(), loopback: args.loopback };
    let enricher = Enricher::new(origin.clone(), filter, host_netns);
    let mut recorder = Recorder::new(&args, origin, run_start, enricher, inventory, sink)?;
    recorder.programs = probe.programs().map(Arc::from).to_vec();
    // The run and who is who are on disk before the first flow, so that even a run that is killed at once is named.
    if !recorder.begin() {
        return Err(RunError::Unwritable { path: args.output });
    }
    tracing::info!(output = %args.output.display(), window = ?args.window, "recording, stop with Ctrl-C");
    let limits = FlowTableLimits { edges: args.max_edges, connections: args.max_connections };
    let table = FlowTable::new(args.window, limits, host_netns, run_start);

    let (sender, receiver) = mpsc::channel(CHANNEL_MESSAGES);
    let recording = tokio::task::spawn_blocking(move || recorder.run(receiver));
    let observed = observe(probe, table, &args, run_start, sender, shutdown).await;
    let (summary, is_durable) = recording.await.map_err(|error| RunError::Recorder(io::Error::other(error)))?;
    observed?;
    if is_durable { Ok(summary) } else { Err(RunError::EndUnwritten { path: args.output, lost: summary.lost }) }
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
    let mut report = Reporter {
        period_ms: args.health_window_ms(),
        start: run_start,
        counters: ProbeCounters::default(),
        lost: TableLoss::default(),
        ring_bytes: 0,
    };
    let mut next_tick = Instant::now();
    let mut next_roll = Instant::now() + args.roll_interval;
    loop {
        let stopping = tokio::select! {
            () = &mut shutdown => true,
            _ = drain.tick() => false,
        };
        let clock = Clock { offset_ns: clock_ns(ClockId::CLOCK_REALTIME)? - clock_ns(ClockId::CLOCK_BOOTTIME)? };
        if stopping {
            probe.detach();
        }
        let waiting = probe.drain(|event| table.step(event, clock));
        report.ring_bytes = report.ring_bytes.max(waiting);
        let now = now()?;
        if stopping {
            let flows = table.finish(now);
            let window = report.take(now, &probe, &table)?;
            let _ = send(&sender, Message::Flows(flows)).await;
            let _ = send(&sender, Message::Window(window)).await;
            return Ok(());
        }
        // Events reach the ring a moment after they happen; windows are closed when theirs are certainly in.
        let complete = TimestampMs(now.0 - GRACE_MS);
        let mut messages = vec![Message::Flows(table.close_windows(complete))];
        if args.window.is_zero() && Instant::now() >= next_roll {
            next_roll += args.roll_interval;
            messages.push(Message::Flows(table.open_flows(now)));
        }
        if report.is_due(complete) {
            let window = report.take(TimestampMs(report.due_at()), &probe, &table)?;
            if window.counters.lost_closed > 0 {
                tracing::warn!(window.counters.lost_closed, "ends of connections were lost, what is open is not known");
                messages.push(Message::Flows(table.forget_open(now)));
            }
            messages.push(Message::Window(window));
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            messages.push(Message::Tick);
        }
        for message in messages {
            if send(&sender, message).await.is_err() {
                return Ok(()); // the recorder has failed, which `run` reports
            }
        }
    }
}

async fn send(sender: &mpsc::Sender<Message>, message: Message) -> Result<(), mpsc::error::SendError<Message>> {
    match message {
        Message::Flows(flows) if flows.is_empty() => Ok(()),
        message => sender.send(message).await,
    }
}

/// Turns running counters into a report per window.
struct Reporter {
    period_ms: i64,
    start: TimestampMs,
    counters: ProbeCounters,
    lost: TableLoss,
    /// Most bytes that waited in the ring buffer at once since the last report.
    ring_bytes: usize,
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
            lost: TableLoss { ends: lost.ends - self.lost.ends, closings: lost.closings - self.lost.closings },
            ring_bytes: std::mem::take(&mut self.ring_bytes),
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
    /// The inventory on disk is not whole: a file of it was given up.
    is_inventory_broken: bool,
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
            kernel_release: uname()?.release().to_string_lossy().into(),
            programs: Vec::new(),
            namespaces: args.namespaces().into_iter().collect(),
            window_ms: args.window.as_millis() as i64,
            enricher,
            inventory,
            sink,
            health_seq: 0,
            is_inventory_broken: false,
            exported: 0,
            filtered: 0,
            unidentified: 0,
            summary: RunSummary::default(),
        })
    }

    /// Returns what it came to, and whether the end of it is durable.
    fn run(mut self, mut receiver: mpsc::Receiver<Message>) -> (RunSummary, bool) {
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
                    self.is_inventory_broken |= !self.sink.roll(now);
                }
                Message::Window(report) => last_report = Some(report),
            }
        }
        let now = now().unwrap_or(self.run_start);
        self.sink.finish_flows();
        self.sink.finish_inventory();
        if let Some(report) = last_report {
            self.record_health(&report, true, now);
        }
        self.summary.rows = self.enricher.next_seq();
        (self.summary, self.sink.finish_health())
    }

    fn record_flows(&mut self, flows: &[Flow], now: TimestampMs) {
        for flow in flows {
            let Some(record) = self.enricher.step(flow) else {
                self.filtered += flow.ends();
                continue;
            };
            let local_reason = match flow.key.role {
                Role::Server => &record.destination_unknown_reason,
                Role::Client | Role::Unknown => &record.source_unknown_reason,
            };
            if local_reason.is_some() {
                self.unidentified += flow.ends();
            }
            self.exported += flow.ends();
            self.sink.flow(flow, record, now);
        }
    }

    /// Puts the run on record: who is who, and that it has begun. Returns whether that is durable.
    fn begin(&mut self) -> bool {
        self.record_snapshot(self.run_start);
        self.enricher.locate(self.inventory.observations(), self.run_start);
        let has_inventory = self.sink.finish_inventory() && !self.is_inventory_broken;
        let report = WindowReport { start: self.run_start, end: self.run_start, ..WindowReport::default() };
        self.record_health(&report, false, self.run_start);
        self.sink.finish_health() && has_inventory
    }

    fn record_snapshot(&mut self, now: TimestampMs) {
        let rows = self.inventory.snapshot(&self.origin, now);
        self.is_inventory_broken = !self.write_inventory(rows, now);
    }

    fn record_inventory_changes(&mut self, now: TimestampMs) {
        if self.inventory.is_new_hour(now) && self.sink.has_open_inventory() {
            self.is_inventory_broken |= !self.sink.finish_inventory();
        }
        let changed = self.inventory.reload();
        // Every file and every day opens with what was known before the change.
        let opens_file = changed.is_some() && !self.sink.has_open_inventory();
        if opens_file || self.inventory.is_new_day(now) || self.is_inventory_broken {
            self.record_snapshot(now);
        }
        if let Some(observations) = changed {
            let rows = self.inventory.replace(observations, &self.origin, now);
            self.is_inventory_broken |= !self.write_inventory(rows, now);
        }
        // Namespaces and cgroups come and go without a change of the file.
        self.enricher.locate(self.inventory.observations(), now);
    }

    /// Writes rows and learns from them; returns whether they are on their way to disk.
    fn write_inventory(&mut self, rows: Vec<InventoryRecord>, now: TimestampMs) -> bool {
        let is_empty = rows.is_empty();
        for row in rows {
            self.enricher.learn(row.clone());
            self.sink.inventory(row, now);
        }
        is_empty || self.sink.has_open_inventory()
    }

    fn record_health(&mut self, report: &WindowReport, clean_shutdown: bool, now: TimestampMs) {
        let lost_sink = self.sink.take_lost_ends();
        let exported = std::mem::take(&mut self.exported) - lost_sink;
        let WindowReport { start, end, counters, lost, ring_bytes, open_connections, edges } = *report;
        let (lost_queue, lost_map) = (lost.ends as i64, counters.lost_storage as i64);
        let filtered = std::mem::take(&mut self.filtered);
        self.summary.ends += exported;
        self.summary.filtered += filtered;
        self.summary.lost += counters.lost_ring as i64 + counters.malformed as i64 + lost_queue + lost_sink + lost_map;
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
            filtered,
            lost_ring: counters.lost_ring as i64,
            lost_map,
            lost_recursion: 0,
            lost_parse: counters.malformed as i64,
            lost_queue,
            lost_sink,
            lost_closed: (counters.lost_closed + lost.closings) as i64,
            unidentified: std::mem::take(&mut self.unidentified),
            open_connections: open_connections as i64,
            flow_table_entries: edges as i64,
            ring_bytes: ring_bytes as i64,
            flows_next_seq: self.enricher.next_seq(),
            inventory_next_seq: self.inventory.next_seq(),
            clean_shutdown,
        };
        self.health_seq += 1;
        self.sink.health(record, now);
    }
}

/// 128 random bits in hexadecimal.
fn random_id() -> Result<Arc<str>, RunError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(RunError::Random)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)).into())
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
fn node_name() -> Result<String, nix::Error> {
    Ok(uname()?.nodename().to_string_lossy().into_owned())
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
