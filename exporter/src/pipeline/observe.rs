//! Observing: what the kernel saw, summed and handed on.

use std::{io, sync::Arc, time::Duration};

use schemas::{
    event::{CgroupEvent, Record},
    table::TimestampMs,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Message, RunError, WindowReport, clock, now};
use crate::{
    args::Args,
    flow::{Clock, Flow, FlowTable, TableLoss},
    probe::{Probe, ProbeCounters, Suspects},
    telemetry::Telemetry,
};

/// Drains the kernel, sums flows, and sends what is complete downstream.
pub(super) struct Observer {
    probe: Probe,
    table: FlowTable,
    clock: Clock,
    sender: mpsc::Sender<Message>,
    telemetry: Arc<Telemetry>,
    is_per_connection: bool,
    roll_interval: Duration,
    /// Size of the ring buffer in bytes.
    ring_size: usize,
    /// Entries of the kernel's map of connections beyond those open, from which on what is over is removed.
    max_left: u64,
    /// When the map of connections is walked next, if no scan does so before.
    next_walk: Instant,
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
    pub(super) fn new(
        args: &Args,
        probe: Probe,
        table: FlowTable,
        clock: Clock,
        run_start: TimestampMs,
        sender: mpsc::Sender<Message>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            probe,
            table,
            clock,
            sender,
            telemetry,
            is_per_connection: args.window.is_zero(),
            roll_interval: args.roll_interval,
            ring_size: (args.ring_size_mib as usize) << 20,
            max_left: u64::from(args.max_connections) / 4,
            next_walk: Instant::now() + WALK_INTERVAL,
            start: run_start,
            counters: ProbeCounters::default(),
            lost: TableLoss::default(),
            datagram_ends: 0,
            ring_bytes: 0,
            cgroups: Vec::new(),
        }
    }

    /// Observes until `shutdown` completes, and then what is left.
    pub(super) async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut next_tick = Instant::now();
        let mut next_roll = Instant::now() + self.roll_interval;
        let mut is_closing = false;
        let mut pause = DRAIN_INTERVAL;
        loop {
            tokio::select! {
                () = &mut shutdown => return self.finish().await,
                () = sleep(pause) => {}
            }
            self.clock = self.clock.follow(clock()?);
            pause = if self.drain() > self.ring_size / 8 { BUSY_DRAIN_INTERVAL } else { DRAIN_INTERVAL };
            let mut is_open = true;
            // Events are handed over a moment after they happen, and edges of the kernel a generation later.
            let complete = TimestampMs(now()?.0 - GRACE_MS);
            is_open &= self.send_cgroups().await;
            if is_closing {
                is_closing = false;
                is_open &= self.close(complete).await?;
            } else if complete >= self.table.next_end() {
                is_closing = true;
                self.probe.next_epoch()?;
            }
            if self.is_per_connection && Instant::now() >= next_roll {
                next_roll += self.roll_interval;
                self.scan(now()?).await?;
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.take_edges().await?;
                self.probe.next_epoch()?;
                self.heed_neighbours()?;
                let lag = now()?.0 - self.table.next_end().0;
                let entries = self.probe.map_entries()?;
                self.telemetry.tick(self.table.edges(), entries, Duration::from_millis(lag.max(0) as u64));
                let left = entries.connections.saturating_sub(self.table.open_connections() as u64);
                if left > self.max_left || Instant::now() >= self.next_walk {
                    self.walk(0).await?;
                }
                is_open &= self.send(Message::Tick).await;
            }
            let flows = self.table.take_ended();
            is_open &= self.send_flows(flows.into_iter()).await;
            if !is_open {
                return Ok(()); // the recorder has failed, which `run` reports
            }
        }
    }

    /// Closes the windows that are complete, and reports.
    async fn close(&mut self, complete: TimestampMs) -> Result<bool, RunError> {
        let window_ms = self.table.next_end().0 - self.table.closed_until().0;
        let until = TimestampMs(complete.0 - complete.0.rem_euclid(window_ms));
        self.take_edges().await?;
        if !self.is_per_connection {
            self.scan(until).await?;
        }
        self.probe.forget_older()?;
        let flows = self.table.close_windows(until);
        let is_open = self.send_cgroups().await && self.send_flows(flows).await;
        let report = self.report(until)?;
        let (programs, map_bytes) = self.probe.stats();
        self.telemetry.programs(&programs, map_bytes);
        Ok(is_open && self.send(Message::Window(report)).await)
    }

    /// Names programs that overwrite the callback flags of sockets, or may do so, when it is news.
    fn heed_neighbours(&mut self) -> Result<(), RunError> {
        match self.probe.heed_neighbours()? {
            Some(Suspects { programs, overwrite: true }) => tracing::warn!(
                programs,
                "another sock_ops program overwrites the callback flags of sockets (bpf_sock_ops_cb_flags_set), which may \
                 be one of these: it has to keep the flags that are set. Ends of connections that were missed are counted \
                 as lost, connects that failed may be missing; from now on they are found at a higher cost"
            ),
            Some(Suspects { programs, overwrite: false }) => tracing::info!(
                programs,
                "another sock_ops program runs after this agent's and may overwrite the callback flags of sockets: as long \
                 as this agent runs, the ends of connections are watched by other means too, at a higher cost"
            ),
            None => {}
        }
        Ok(())
    }

    /// Detaches, and hands on everything.
    async fn finish(mut self) -> Result<(), RunError> {
        let until = now()?;
        self.table.begin_finish(until);
        self.scan(until).await?;
        self.probe.detach();
        // What happened between the scan and the detaching.
        self.scan(now()?).await?;
        let now = now()?;
        let flows = self.table.finish(now);
        let counters = self.probe.counters()?;
        let accounted = self.table.ends() + counters.lost_ring + counters.lost_connections + counters.malformed;
        let lost_end = counters.seen.saturating_sub(accounted);
        let report = WindowReport { lost_end, is_last: true, ..self.report(now)? };
        let _ = self.send_cgroups().await && self.send_flows(flows).await && self.send(Message::Window(report)).await;
        Ok(())
    }

    /// Has the kernel tell what is open, and takes it in as it comes.
    async fn scan(&mut self, until: TimestampMs) -> Result<(), RunError> {
        self.table.begin_scan();
        self.walk(self.clock.boottime_ns(until)).await?;
        self.probe.next_epoch()?;
        self.take_edges().await
    }

    /// Walks over what the kernel remembers of connections: see [`Probe::prepare_scan`].
    async fn walk(&mut self, until_ns: u64) -> Result<(), RunError> {
        self.next_walk = Instant::now() + WALK_INTERVAL;
        let scan = self.probe.prepare_scan(until_ns)?;
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
        Ok(())
    }

    /// Takes in the events that wait, and returns how many bytes they took in the ring buffer.
    fn drain(&mut self) -> usize {
        let Self { probe, table, clock, cgroups, .. } = self;
        let bytes = probe.drain(|record| match record {
            Record::Flow(event) => table.step(event, *clock),
            Record::Cgroup(event) => cgroups.push(*event),
        });
        self.ring_bytes = self.ring_bytes.max(bytes);
        bytes
    }

    /// Takes in what the kernel summed, up to the generation that began last.
    async fn take_edges(&mut self) -> Result<(), RunError> {
        sleep(self.probe.settled()).await;
        let Self { probe, table, clock, .. } = self;
        probe.take_edges(|edge, counts| table.step_edge(edge, counts, *clock))?;
        Ok(())
    }

    /// Sends which cgroups were made, before the flows of their sockets; whether anybody listens.
    async fn send_cgroups(&mut self) -> bool {
        let mut is_open = true;
        for cgroup in std::mem::take(&mut self.cgroups) {
            is_open &= self.send(Message::Cgroup(Box::new(cgroup))).await;
        }
        is_open
    }

    /// Sends flows, some at a time, so that few of them are held at once; whether anybody listens.
    async fn send_flows(&mut self, mut flows: impl Iterator<Item = Flow>) -> bool {
        loop {
            let some: Vec<Flow> = flows.by_ref().take(FLOWS_PER_MESSAGE).collect();
            if some.is_empty() {
                return true;
            }
            if !self.send(Message::Flows(some)).await {
                return false;
            }
        }
    }

    /// Sends a message; whether anybody listens. While the recorder is busy, windows go on being summed; single
    /// connections wait in the kernel, which has a way to deal with too many of them.
    async fn send(&mut self, message: Message) -> bool {
        let sender = self.sender.clone();
        let mut sending = std::pin::pin!(sender.send(message));
        loop {
            tokio::select! {
                sent = &mut sending => return sent.is_ok(),
                () = sleep(BUSY_DRAIN_INTERVAL), if !self.is_per_connection => drop(self.drain()),
            }
        }
    }

    /// What happened since the report before.
    fn report(&mut self, end: TimestampMs) -> Result<WindowReport, RunError> {
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
            lost_end: 0,
            is_last: false,
        };
        (self.start, self.counters, self.lost, self.datagram_ends) = (end, counters, lost, datagram_ends);
        Ok(report)
    }
}

/// How long events may wait in the ring buffer. Waking up is what an idle agent costs.
const DRAIN_INTERVAL: Duration = Duration::from_millis(200);
/// And where an eighth of it was full: 20 ms at 400 K events per second are the default 1 MiB.
const BUSY_DRAIN_INTERVAL: Duration = Duration::from_millis(20);
/// What is over is removed from the kernel's map of connections at least so often.
const WALK_INTERVAL: Duration = Duration::from_secs(60);
const FLOWS_PER_MESSAGE: usize = 256;
const TICK: Duration = Duration::from_secs(1);
/// How often the ring buffer is drained while a scan fills it.
const SCAN_DRAIN_INTERVAL: Duration = Duration::from_millis(1);
const GRACE_MS: i64 = 200;
