//! Recording: flows named and written, and the account of the run.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use kubernetes::{Change, News, Problem, Trouble, Troubles};
use nix::sys::utsname::uname;
use schemas::{capture::Origin, health::HealthRecord, inventory::InventoryRecord, table::TimestampMs};
use tokio::sync::mpsc;

use super::{Message, RunError, RunSummary, WindowReport, now};
use crate::{
    args::Args,
    enrich::{Enricher, Step},
    flow::{Flow, Role},
    inventory::Inventory,
    probe::return_memory,
    sink::{AGENT_VERSION, Sinks},
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
    sinks: Sinks,
    health_seq: i64,
    /// Flows that wait for the name of an end, and until when they do.
    waiting: VecDeque<(TimestampMs, Flow)>,
    metadata_wait: Duration,
    /// Windows that are told of once none of their flows waits any more, and when that is.
    reports: VecDeque<(TimestampMs, WindowReport)>,
    troubles: Troubles,
    since: Since,
    summary: RunSummary,
}

/// What was counted since the last health row, in ends of connections.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    exported: i64,
    filtered: i64,
    unidentified: i64,
    unnamed: i64,
    contradicted: i64,
}

impl Recorder {
    pub(super) fn new(
        args: &Args,
        origin: Origin,
        run_start: TimestampMs,
        enricher: Enricher,
        inventory: Inventory,
        sinks: Sinks,
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
            sinks,
            health_seq: 0,
            waiting: VecDeque::new(),
            metadata_wait: args.metadata_wait,
            reports: VecDeque::new(),
            troubles: Troubles::default(),
            since: Since::default(),
            summary: RunSummary::default(),
        })
    }

    /// Returns what it came to, and whether the end of it is durable.
    pub(super) fn run(mut self, mut receiver: mpsc::Receiver<Message>) -> (RunSummary, bool) {
        let mut last_report = None;
        while let Some(message) = receiver.blocking_recv() {
            let now = now().unwrap_or(self.run_start);
            match message {
                Message::Flows(flows) => flows.into_iter().for_each(|flow| self.record_or_wait(flow, now)),
                Message::OwnPods(change) => self.record_own_pods(change, now),
                Message::Cluster(change) => self.learn_cluster(change, now),
                Message::Cgroup(event) => self.enricher.learn_cgroup(&event, now),
                Message::Tick => {
                    self.record_inventory_changes(now);
                    self.enricher.tick(now);
                    self.record_waiting(now);
                    self.record_reports(now);
                    let over = self.troubles.expire(now);
                    self.tell(over, "");
                    self.sinks.tick(now);
                }
                // Written when everything else is.
                Message::Window(report) if report.is_last => last_report = Some(report),
                Message::Window(report) => {
                    self.reports.push_back((self.waiting.back().map_or(now, |(until, _)| *until), report));
                    self.record_reports(now);
                    return_memory();
                }
            }
            self.sinks.send(now);
        }
        let now = now().unwrap_or(self.run_start);
        for (_, flow) in std::mem::take(&mut self.waiting) {
            self.record_flow(&flow, false, now);
        }
        self.record_reports(TimestampMs(i64::MAX));
        self.sinks.finish_inventory();
        self.sinks.settle(now);
        if let Some(report) = last_report {
            self.record_health(&report);
        }
        self.summary.rows = self.enricher.next_seq();
        let is_durable = self.sinks.end(now);
        (self.summary, is_durable)
    }

    fn record_or_wait(&mut self, flow: Flow, now: TimestampMs) {
        let may_wait = !self.metadata_wait.is_zero() && self.waiting.len() < WAITING_FLOWS;
        if !self.record_flow(&flow, may_wait, now) {
            self.waiting.push_back((TimestampMs(now.0 + self.metadata_wait.as_millis() as i64), flow));
        }
    }

    fn record_waiting(&mut self, now: TimestampMs) {
        for (until, flow) in std::mem::take(&mut self.waiting) {
            if !self.record_flow(&flow, now < until, now) {
                self.waiting.push_back((until, flow));
            }
        }
    }

    /// Tells of the windows of which no flow waits longer than until `due`.
    fn record_reports(&mut self, due: TimestampMs) {
        while let Some((_, report)) = self.reports.pop_front_if(|(until, _)| *until <= due) {
            self.record_health(&report);
        }
    }

    /// Whether the flow is done with; otherwise it waits.
    fn record_flow(&mut self, flow: &Flow, may_wait: bool, now: TimestampMs) -> bool {
        let ends = flow.ends();
        match self.enricher.step(flow, may_wait, now) {
            Step::Wait => return false,
            Step::Filtered => self.since.filtered += ends,
            Step::Record { record, is_unnamed, is_contradicted } => {
                let local_reason = match flow.key.role {
                    Role::Server => &record.destination_unknown_reason,
                    Role::Client | Role::Unknown => &record.source_unknown_reason,
                };
                self.since.unidentified += if local_reason.is_some() { ends } else { 0 };
                self.since.unnamed += if is_unnamed { ends } else { 0 };
                self.since.contradicted += if is_contradicted { ends } else { 0 };
                self.since.exported += ends;
                self.sinks.flow(record, ends);
            }
        }
        true
    }

    /// Puts the run on record: who is who, and that it has begun. Returns whether that is durable.
    pub(super) fn begin(&mut self) -> bool {
        // With Kubernetes, the pods are told once they are known.
        if !self.inventory.is_of_node() {
            self.record_snapshot(self.run_start);
        }
        self.enricher.locate(self.inventory.observations(), self.run_start);
        self.sinks.finish_inventory();
        let report = WindowReport { start: self.run_start, end: self.run_start, ..WindowReport::default() };
        self.record_health(&report);
        self.sinks.sync(self.run_start)
    }

    fn record_snapshot(&mut self, now: TimestampMs) {
        let rows = self.inventory.log.snapshot(now);
        self.write_inventory(rows, now);
    }

    fn record_inventory_changes(&mut self, now: TimestampMs) {
        if self.inventory.log.is_new_hour(now) && self.sinks.has_open_inventory() {
            self.sinks.finish_inventory();
        }
        let is_broken = self.sinks.take_inventory_broken();
        let changed = self.inventory.reload();
        // A file opens with what was known before the change.
        let opens_file = changed.is_some() && !self.sinks.has_open_inventory();
        if self.inventory.log.is_due(opens_file || is_broken, now) {
            self.record_snapshot(now);
        }
        if let Some(observations) = changed {
            let rows = self.inventory.replace(observations, now);
            self.write_inventory(rows, now);
        }
        if let Some(change) = self.inventory.look_at_interfaces(now) {
            self.record_change(change, now);
        }
        if !self.inventory.is_of_node() {
            // Namespaces and cgroups come and go without a change of the file.
            self.enricher.locate(self.inventory.observations(), now);
        }
    }

    /// What the API server says of this node's pods.
    fn record_own_pods(&mut self, change: Change, now: TimestampMs) {
        let is_listed = matches!(change, Change::Listed(_));
        self.enricher.learn_own(&change, now);
        let news = self.troubles.learn(&change, now);
        self.tell(news, "pods of this node have no names, only UIDs");
        self.record_change(change, now);
        if is_listed && !self.inventory.log.has_begun() {
            self.record_snapshot(now);
            if self.inventory.log.next_seq() == 0 {
                let node = &self.origin.node;
                tracing::warn!(%node, "no pod has this spec.nodeName: is --node the node's name in Kubernetes?");
            }
        }
        self.judge_readiness();
    }

    /// Learns of a change, and writes what is news.
    fn record_change(&mut self, change: Change, now: TimestampMs) {
        if self.inventory.log.opens_with(&change, self.sinks.has_open_inventory(), now) {
            self.record_snapshot(now);
        }
        let rows = self.inventory.log.learn(change, now);
        self.write_inventory(rows, now);
    }

    /// Ready is who knows all that it is to know.
    fn judge_readiness(&self) {
        if let Some(telemetry) = &self.telemetry
            && self.inventory.log.has_begun()
            && self.enricher.knows_cluster()
        {
            telemetry.ready();
        }
    }

    /// What the API server says of the rest of the cluster.
    fn learn_cluster(&mut self, change: Change, now: TimestampMs) {
        let news = self.troubles.learn(&change, now);
        self.tell(news, "remote ends in flows have no names; reports look them up in the inventory");
        self.enricher.learn_cluster(change, now);
        self.judge_readiness();
    }

    /// Tells what can't be watched, and when it can be again.
    fn tell(&self, news: Option<News>, cost: &str) {
        match news {
            Some(News::Began(Trouble { resource, problem, .. })) => {
                let remedy = problem.remedy(&resource);
                match problem {
                    Problem::Failed(_) if self.troubles.failures() > 1 => {}
                    Problem::Forbidden => tracing::warn!(%resource, cost, %remedy, "missing permission"),
                    Problem::NotServed => tracing::warn!(%resource, cost, "not served by this API server"),
                    Problem::Failed(error) => tracing::warn!(error, "asking the API server again and again"),
                }
            }
            Some(News::Over(Trouble { problem: Problem::Failed(_), .. })) if self.troubles.failures() > 0 => {}
            Some(News::Over(Trouble { problem: Problem::Failed(_), .. })) => {
                tracing::info!("the API server answers again");
            }
            Some(News::Over(Trouble { resource, .. })) => tracing::info!(%resource, "can be watched again"),
            None => {}
        }
    }

    /// Writes rows and learns from them.
    fn write_inventory(&mut self, rows: Vec<InventoryRecord>, now: TimestampMs) {
        for row in rows {
            self.enricher.learn(row.clone());
            self.sinks.inventory(row, now);
        }
    }

    fn record_health(&mut self, report: &WindowReport) {
        // Of all sinks; in what each writes, its own are counted.
        let lost_sink = self.sinks.take_lost_ends();
        let since = std::mem::take(&mut self.since);
        let exported = since.exported;
        let WindowReport { start, end, counters, lost, datagram_ends, ring_bytes, open_connections, edges, .. } =
            *report;
        let lost_map = (counters.lost_connections + counters.lost_datagrams) as i64;
        let (lost_queue, lost_end) = (lost.ends as i64, report.lost_end as i64);
        let filtered = since.filtered;
        self.summary.ends += exported - lost_sink;
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
            lost_sink: 0,
            lost_end,
            lost_closed: (counters.lost_closed + lost.closings) as i64,
            lost_cgroups: counters.lost_cgroups as i64,
            unidentified: since.unidentified,
            contradicted: since.contradicted,
            unnamed: since.unnamed,
            unreadable: self.troubles.names(),
            open_connections: open_connections as i64,
            flow_table_entries: edges as i64,
            ring_bytes: ring_bytes as i64,
            ring_full: counters.ring_full as i64,
            flows_next_seq: self.enricher.next_seq(),
            inventory_next_seq: self.inventory.log.next_seq(),
            clean_shutdown: report.is_last,
        };
        self.health_seq += 1;
        if let Some(telemetry) = &self.telemetry {
            telemetry.health(&record, lost_sink);
        }
        self.sinks.health(record);
    }
}

/// Most flows that wait for names; more are recorded without.
const WAITING_FLOWS: usize = 20_000;
