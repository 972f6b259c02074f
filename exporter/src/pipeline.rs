//! The whole graph of a run, and the only file that knows it.
//!
//! ```text
//!  observe (task)                                          record (thread)
//!  Probe ──FlowEvent, EdgeCounts──► FlowTable ──Message──► [bounded] ──► Enricher ──FlowRecord──► ParquetSink
//!                                                           Inventory ──InventoryRecord──┘
//! ```
//!
//! Nothing is dropped between the stages: where recording is slower than observing, the channel fills, observing waits,
//! and what does not fit the kernel's ring buffer is summed in the kernel. At shutdown the upstream ends first and the
//! rest drains.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
};
use schemas::{
    capture::Origin,
    event::{CgroupEvent, Record},
    health::HealthRecord,
    inventory::InventoryRecord,
    table::TimestampMs,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    args::Args,
    enrich::{Enricher, Filter, HostNetns, file::InventoryError, inode},
    flow::{Clock, Flow, FlowTable, FlowTableLimits, Role, TableLoss},
    inventory::Inventory,
    probe::{self, Degraded, Probe, ProbeCounters, ProbeError, ProbeOptions, cgroup2_mount, netns},
    sink::{AGENT_VERSION, ParquetSink},
    telemetry::{self, Telemetry},
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
    /// The metrics can't be served.
    #[error("cannot serve metrics on {address}: name another one with --metrics-address")]
    Metrics {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
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
    /// A cgroup was made.
    Cgroup(CgroupEvent),
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
    datagram_ends: u64,
    ring_bytes: usize,
    open_connections: usize,
    edges: usize,
    /// Ends of connections that were gone before they could be told of, at the end of the run.
    lost_end: u64,
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
    let output = args.output.clone().unwrap_or_default();
    let telemetry = Arc::new(Telemetry::new());
    if let Some(address) = args.metrics_address {
        let served = telemetry::serve(address, Arc::clone(&telemetry)).await;
        served.map_err(|source| RunError::Metrics { address, source })?;
    }
    let host = host_netns(args.host_netns.as_deref())?;
    let inventory = Inventory::open(args.inventory.clone(), &origin.node)?;
    let sink = ParquetSink::new(&output, &origin, args.roll());
    // From here on the kernel collects; what it sees waits in the ring buffer until everything stands.
    let run_start = now()?;
    let clock = clock()?;
    let limits = FlowTableLimits { edges: args.max_edges, conversations: args.max_conversations };
    let table = FlowTable::new(args.window, limits, run_start);
    let probe = Probe::attach(ProbeOptions {
        cgroup: args.cgroup.as_deref(),
        ring_bytes: args.ring_size_mib << 20,
        kernel_edges: args.kernel_edges,
        connections: args.max_connections,
        window_ns: args.summed_window_ms() as u64 * 1_000_000,
        utc_offset_ns: clock.offset_ns as u64,
    })?;
    for Degraded { cost, reason } in probe.degraded() {
        tracing::warn!(cost, reason, "a part of the capture can't be had here");
    }
    let Args { labels, cidrs, ports, loopback, .. } = args.clone();
    let filter = Filter { namespaces: args.namespaces(), labels, cidrs, ports, loopback };
    let _measuring = args.bpf_stats.then(probe::measure_run_time).transpose()?;
    let enricher = Enricher::new(origin.clone(), filter, host, cgroup2_mount()?);
    let mut recorder = Recorder::new(&args, origin, run_start, enricher, inventory, sink)?;
    recorder.programs = probe.attached().iter().copied().map(Arc::from).collect();
    // The run and who is who are on disk before the first flow, so that even a run that is killed at once is named.
    if !recorder.begin() {
        return Err(RunError::Unwritable { path: output });
    }
    recorder.telemetry = Some(Arc::clone(&telemetry));
    telemetry.ready();
    tracing::info!(output = %output.display(), window = ?args.window, "recording, stop with Ctrl-C");

    let (sender, receiver) = mpsc::channel(CHANNEL_MESSAGES);
    let recording = tokio::task::spawn_blocking(move || recorder.run(receiver));
    let observer = Observer::new(probe, table, clock, run_start, sender, telemetry, args.window.is_zero());
    let observed = observer.run(args.roll_interval, shutdown).await;
    let (summary, is_durable) = recording.await.map_err(|error| RunError::Recorder(io::Error::other(error)))?;
    observed?;
    if is_durable { Ok(summary) } else { Err(RunError::EndUnwritten { path: output, lost: summary.lost }) }
}

/// Drains the kernel, sums flows, and sends what is complete downstream.
struct Observer {
    probe: Probe,
    table: FlowTable,
    clock: Clock,
    sender: mpsc::Sender<Message>,
    telemetry: Arc<Telemetry>,
    is_per_connection: bool,
    /// Of the report before.
    start: TimestampMs,
    counters: ProbeCounters,
    lost: TableLoss,
    datagram_ends: u64,
    /// Most bytes that waited in the ring buffer at once since the last report.
    ring_bytes: usize,
    cgroups: Vec<CgroupEvent>,
}

impl Observer {
    fn new(
        probe: Probe,
        table: FlowTable,
        clock: Clock,
        run_start: TimestampMs,
        sender: mpsc::Sender<Message>,
        telemetry: Arc<Telemetry>,
        is_per_connection: bool,
    ) -> Self {
        Self {
            probe,
            table,
            clock,
            sender,
            telemetry,
            is_per_connection,
            start: run_start,
            counters: ProbeCounters::default(),
            lost: TableLoss::default(),
            datagram_ends: 0,
            ring_bytes: 0,
            cgroups: Vec::new(),
        }
    }

    /// Observes until `shutdown` completes, and then what is left.
    async fn run(mut self, roll_interval: Duration, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut drain = interval(DRAIN_INTERVAL);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_tick = Instant::now();
        let mut next_roll = Instant::now() + roll_interval;
        let mut is_closing = false;
        loop {
            tokio::select! {
                () = &mut shutdown => return self.finish().await,
                _ = drain.tick() => {}
            }
            self.clock = self.clock.follow(clock()?);
            self.drain();
            let mut is_open = true;
            // Events are handed over a moment after they happen, and edges of the kernel a generation later.
            let complete = TimestampMs(now()?.0 - GRACE_MS);
            if is_closing {
                is_closing = false;
                is_open &= self.close(complete).await?;
            } else if complete >= self.table.next_end() {
                is_closing = true;
                self.probe.next_epoch()?;
            }
            if self.is_per_connection && Instant::now() >= next_roll {
                next_roll += roll_interval;
                self.scan(now()?).await?;
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.take_edges()?;
                self.probe.next_epoch()?;
                let lag = now()?.0 - self.table.next_end().0;
                self.telemetry.tick(self.table.edges(), Duration::from_millis(lag.max(0) as u64));
                is_open &= self.send(Message::Tick).await;
            }
            is_open &= self.hand_on().await;
            if !is_open {
                return Ok(()); // the recorder has failed, which `run` reports
            }
        }
    }

    /// Closes the windows that are complete, and reports.
    async fn close(&mut self, complete: TimestampMs) -> Result<bool, RunError> {
        let window_ms = self.table.next_end().0 - self.table.closed_until().0;
        let until = TimestampMs(complete.0 - complete.0.rem_euclid(window_ms));
        self.take_edges()?;
        if !self.is_per_connection {
            self.scan(until).await?;
            self.probe.forget_older(self.table.older_ended());
        }
        let flows = self.table.close_windows(until);
        let is_open = self.send(Message::Flows(flows)).await;
        let report = self.report(until, 0)?;
        let (programs, map_bytes) = self.probe.stats();
        self.telemetry.programs(&programs, map_bytes);
        Ok(is_open && self.send(Message::Window(report)).await)
    }

    /// Detaches, and hands on everything.
    async fn finish(mut self) -> Result<(), RunError> {
        self.scan(now()?).await?;
        self.probe.detach();
        // What happened between the scan and the detaching.
        self.table.begin_finish();
        self.scan(now()?).await?;
        let now = now()?;
        let flows = self.table.finish(now);
        let counters = self.probe.counters()?;
        let lost_end = counters.seen.saturating_sub(counters.reported);
        let report = self.report(now, lost_end)?;
        let _ = self.send(Message::Flows(flows)).await && self.send(Message::Window(report)).await;
        Ok(())
    }

    /// Has the kernel tell what is open, and takes it in as it comes.
    async fn scan(&mut self, until: TimestampMs) -> Result<(), RunError> {
        let scan = self.probe.prepare_scan(self.clock.boottime_ns(until))?;
        self.table.begin_scan();
        let mut walk = tokio::task::spawn_blocking(move || scan.run());
        let walked = loop {
            tokio::select! {
                walked = &mut walk => break walked,
                () = sleep(SCAN_DRAIN_INTERVAL) => { self.drain(); }
            }
        };
        match walked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what is open can't be told"),
            Err(error) => return Err(RunError::Recorder(io::Error::other(error))),
        }
        self.drain();
        self.probe.next_epoch()?;
        sleep(SCAN_DRAIN_INTERVAL).await;
        self.take_edges()
    }

    fn drain(&mut self) {
        let Self { probe, table, clock, cgroups, .. } = self;
        let bytes = probe.drain(|record| match record {
            Record::Flow(event) => table.step(event, *clock),
            Record::Cgroup(event) => cgroups.push(*event),
        });
        self.ring_bytes = self.ring_bytes.max(bytes);
    }

    fn take_edges(&mut self) -> Result<(), RunError> {
        let Self { probe, table, clock, .. } = self;
        probe.take_edges(|edge, counts| table.step_edge(edge, counts, *clock))?;
        Ok(())
    }

    /// Sends what does not wait for the end of a window; whether anybody listens.
    async fn hand_on(&mut self) -> bool {
        let mut is_open = true;
        for cgroup in std::mem::take(&mut self.cgroups) {
            is_open &= self.send(Message::Cgroup(cgroup)).await;
        }
        let flows = self.table.take_ended();
        is_open & self.send(Message::Flows(flows)).await
    }

    async fn send(&self, message: Message) -> bool {
        match message {
            Message::Flows(flows) if flows.is_empty() => true,
            message => self.sender.send(message).await.is_ok(),
        }
    }

    /// What happened since the report before.
    fn report(&mut self, end: TimestampMs, lost_end: u64) -> Result<WindowReport, RunError> {
        let (counters, lost) = (self.probe.counters()?, self.table.lost());
        let datagram_ends = self.table.datagram_ends();
        let report = WindowReport {
            start: self.start,
            end,
            counters: counters.since(self.counters),
            lost: TableLoss { ends: lost.ends - self.lost.ends, closings: lost.closings - self.lost.closings },
            datagram_ends: datagram_ends - self.datagram_ends,
            ring_bytes: std::mem::take(&mut self.ring_bytes),
            open_connections: self.table.open_connections(),
            edges: self.table.edges(),
            lost_end,
        };
        (self.start, self.counters, self.lost, self.datagram_ends) = (end, counters, lost, datagram_ends);
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
    filters: Vec<Arc<str>>,
    telemetry: Option<Arc<Telemetry>>,
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
            filters: args.filters(),
            telemetry: None,
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
                Message::Cgroup(event) => self.enricher.learn_cgroup(&event, now),
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
        let WindowReport { start, end, counters, lost, datagram_ends, ring_bytes, open_connections, edges, lost_end } =
            *report;
        let (lost_queue, lost_map) = (lost.ends as i64, (counters.lost_storage + counters.lost_datagrams) as i64);
        let lost_end = lost_end as i64;
        let filtered = std::mem::take(&mut self.filtered);
        self.summary.ends += exported;
        self.summary.filtered += filtered;
        self.summary.lost +=
            counters.lost_ring as i64 + counters.malformed as i64 + lost_queue + lost_sink + lost_map + lost_end;
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
            filters: self.filters.clone(),
            window_ms: self.window_ms,
            seen: (counters.seen + datagram_ends + counters.lost_datagrams) as i64,
            exported,
            filtered,
            lost_ring: counters.lost_ring as i64,
            lost_map,
            lost_recursion: counters.skipped as i64,
            lost_parse: counters.malformed as i64,
            lost_queue,
            lost_sink,
            lost_end,
            lost_closed: (counters.lost_closed + lost.closings) as i64,
            unidentified: std::mem::take(&mut self.unidentified),
            open_connections: open_connections as i64,
            flow_table_entries: edges as i64,
            ring_bytes: ring_bytes as i64,
            ring_full: counters.ring_full as i64,
            flows_next_seq: self.enricher.next_seq(),
            inventory_next_seq: self.inventory.next_seq(),
            clean_shutdown,
        };
        self.health_seq += 1;
        if let Some(telemetry) = &self.telemetry {
            telemetry.health(&record);
        }
        self.sink.health(record, now);
    }
}

/// 128 random bits in hexadecimal.
fn random_id() -> Result<Arc<str>, RunError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(RunError::Random)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)).into())
}

/// The node's own network namespace.
fn host_netns(path: Option<&Path>) -> Result<HostNetns, RunError> {
    let candidates: Vec<&Path> = path.map_or_else(|| HOST_NETNS.map(Path::new).to_vec(), |path| vec![path]);
    let found = candidates.iter().find_map(|path| Some((inode(path)?, netns::cookie(path))));
    let (inode, cookie) = found.ok_or_else(|| RunError::HostNetns { path: candidates[0].into() })?;
    Ok(HostNetns { inode: inode as u32, cookie })
}

/// The node's name where none is given: its host name.
fn node_name() -> Result<String, nix::Error> {
    Ok(uname()?.nodename().to_string_lossy().into_owned())
}

fn now() -> Result<TimestampMs, nix::Error> {
    Ok(TimestampMs(clock_ns(ClockId::CLOCK_REALTIME)? / 1_000_000))
}

fn clock() -> Result<Clock, nix::Error> {
    Ok(Clock { offset_ns: clock_ns(ClockId::CLOCK_REALTIME)? - clock_ns(ClockId::CLOCK_BOOTTIME)? })
}

fn clock_ns(clock: ClockId) -> Result<i64, nix::Error> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// How long events may wait in the ring buffer: 100 ms at 300 K events per second are 3.6 MB of the default 4 MiB.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_secs(1);
/// How often the ring buffer is drained while a scan fills it.
const SCAN_DRAIN_INTERVAL: Duration = Duration::from_millis(1);
const GRACE_MS: i64 = 200;
const HOST_NETNS: [&str; 2] = ["/proc/1/ns/net", "/proc/self/ns/net"];
const CHANNEL_MESSAGES: usize = 64;
