//! Recording: flows named and written, and the account of the run.

use std::sync::Arc;

use nix::sys::utsname::uname;
use schemas::{capture::Origin, health::HealthRecord, inventory::InventoryRecord, table::TimestampMs};
use tokio::sync::mpsc;

use super::{Message, RunError, RunSummary, WindowReport, now};
use crate::{
    args::Args,
    enrich::Enricher,
    flow::{Flow, Role},
    inventory::Inventory,
    probe::return_memory,
    sink::{AGENT_VERSION, ParquetSink},
    telemetry::Telemetry,
};

/// Names flows and writes everything.
pub(super) struct Recorder {
    origin: Origin,
    run_start: TimestampMs,
    kernel_release: Arc<str>,
    pub(super) programs: Vec<Arc<str>>,
    namespaces: Vec<Arc<str>>,
    filters: Vec<Arc<str>>,
    pub(super) telemetry: Option<Arc<Telemetry>>,
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
    pub(super) fn new(
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
    pub(super) fn run(mut self, mut receiver: mpsc::Receiver<Message>) -> (RunSummary, bool) {
        let mut last_report = None;
        while let Some(message) = receiver.blocking_recv() {
            let now = now().unwrap_or(self.run_start);
            match message {
                Message::Flows(flows) => self.record_flows(&flows, now),
                Message::Cgroup(event) => self.enricher.learn_cgroup(&event, now),
                Message::Tick => {
                    self.record_inventory_changes(now);
                    self.is_inventory_broken |= !self.sink.roll(now);
                }
                // Written when everything else is.
                Message::Window(report) if report.is_last => last_report = Some(report),
                Message::Window(report) => {
                    self.record_health(&report, now);
                    return_memory();
                }
            }
        }
        let now = now().unwrap_or(self.run_start);
        self.sink.finish_flows();
        self.sink.finish_inventory();
        if let Some(report) = last_report {
            self.record_health(&report, now);
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
    pub(super) fn begin(&mut self) -> bool {
        self.record_snapshot(self.run_start);
        self.enricher.locate(self.inventory.observations(), self.run_start);
        let has_inventory = self.sink.finish_inventory() && !self.is_inventory_broken;
        let report = WindowReport { start: self.run_start, end: self.run_start, ..WindowReport::default() };
        self.record_health(&report, self.run_start);
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

    fn record_health(&mut self, report: &WindowReport, now: TimestampMs) {
        let lost_sink = self.sink.take_lost_ends();
        let exported = std::mem::take(&mut self.exported) - lost_sink;
        let WindowReport { start, end, counters, lost, datagram_ends, ring_bytes, open_connections, edges, .. } =
            *report;
        let lost_map = (counters.lost_connections + counters.lost_datagrams) as i64;
        let (lost_queue, lost_end) = (lost.ends as i64, report.lost_end as i64);
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
            lost_cgroups: counters.lost_cgroups as i64,
            unidentified: std::mem::take(&mut self.unidentified),
            open_connections: open_connections as i64,
            flow_table_entries: edges as i64,
            ring_bytes: ring_bytes as i64,
            ring_full: counters.ring_full as i64,
            flows_next_seq: self.enricher.next_seq(),
            inventory_next_seq: self.inventory.next_seq(),
            clean_shutdown: report.is_last,
        };
        self.health_seq += 1;
        if let Some(telemetry) = &self.telemetry {
            telemetry.health(&record);
        }
        self.sink.health(record, now);
    }
}
