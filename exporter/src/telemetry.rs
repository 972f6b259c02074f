//! What the agent tells of itself: `/metrics` in Prometheus' text format, `/livez` and `/readyz`.
//!
//! Counters follow the `health` dataset, which is the record; they exist so that an alert needs no query.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use delivery::{
    Stats,
    listen::{self, Limits, ListenError, Security},
};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use schemas::health::HealthRecord;

use crate::probe::{MapEntries, ProgramStats};

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// The metrics, shared between the stages and the server.
#[derive(Default)]
pub(crate) struct Telemetry {
    registry: Registry,
    started: Option<Instant>,
    /// Milliseconds after `started` at which the kernel was read last.
    last_tick_ms: AtomicU64,
    is_ready: AtomicBool,
    seen: Counter,
    exported: Counter,
    /// Ends that rows took back and the counter has not.
    exported_before: AtomicI64,
    filtered: Counter,
    lost: Family<Label, Counter>,
    lost_closed: Counter,
    skipped: Counter,
    lost_cgroups: Counter,
    unidentified: Counter,
    unnamed: Counter,
    contradicted: Counter,
    unreadable: Gauge,
    ring_full: Counter,
    flow_rows: Counter,
    ring_bytes: Gauge,
    edges: Gauge,
    open_connections: Gauge,
    window_lag: Gauge<f64, AtomicU64>,
    resident_bytes: Gauge,
    bpf_memory_bytes: Gauge,
    bpf_map_entries: Family<Label, Gauge>,
    bpf_runs: Family<Label, Gauge>,
    bpf_run_seconds: Family<Label, Gauge<f64, AtomicU64>>,
    bpf_skipped: Family<Label, Gauge>,
    requests: Family<[(&'static str, &'static str); 2], Counter>,
    rejected_rows: Family<Label, Counter>,
    waiting: Family<Label, Gauge>,
    spooled_bytes: Family<Label, Gauge>,
    rows: AtomicI64,
    live_rows: Family<Label, Counter>,
    live_clients: Gauge,
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        let telemetry = Self { started: Some(Instant::now()), ..Self::default() };
        let mut registry = Registry::with_prefix("flowscribe_exporter");
        let mut put = |name: &str, help: &str, metric: Metric| metric.register(&mut registry, name, help);
        put("ends_seen", "Ends of connections seen by the kernel programs", Metric::Counter(telemetry.seen.clone()));
        put("ends_exported", "Ends of connections in written rows", Metric::Counter(telemetry.exported.clone()));
        put("ends_filtered", "Ends of connections that a filter left out", Metric::Counter(telemetry.filtered.clone()));
        put(
            "ends_unidentified",
            "Ends of connections in no known pod",
            Metric::Counter(telemetry.unidentified.clone()),
        );
        put(
            "ends_unnamed",
            "Ends of connections whose metadata did not come",
            Metric::Counter(telemetry.unnamed.clone()),
        );
        put(
            "ends_contradicted",
            "Ends of connections whose cgroup is of another pod than their network namespace",
            Metric::Counter(telemetry.contradicted.clone()),
        );
        put(
            "api_unreadable",
            "Resources of the API that can't be watched",
            Metric::Gauge(telemetry.unreadable.clone()),
        );
        put("closings_lost", "Connections whose end is not known", Metric::Counter(telemetry.lost_closed.clone()));
        put("cgroups_lost", "Cgroups whose making is not known", Metric::Counter(telemetry.lost_cgroups.clone()));
        put("programs_skipped", "Runs that the kernel skipped", Metric::Counter(telemetry.skipped.clone()));
        put("ring_full", "Events summed in the kernel instead", Metric::Counter(telemetry.ring_full.clone()));
        put("flow_rows", "Rows of the dataset flows", Metric::Counter(telemetry.flow_rows.clone()));
        put("ring_peak_bytes", "Most bytes waiting at once of late", Metric::Gauge(telemetry.ring_bytes.clone()));
        put("edges", "Edges waiting for the end of their window", Metric::Gauge(telemetry.edges.clone()));
        put("open_connections", "Open at the last scan", Metric::Gauge(telemetry.open_connections.clone()));
        put("resident_memory_bytes", "Resident memory", Metric::Gauge(telemetry.resident_bytes.clone()));
        put("bpf_memory_bytes", "Memory of the eBPF maps", Metric::Gauge(telemetry.bpf_memory_bytes.clone()));
        registry.register("ends_lost", "Ends of connections lost, by reason", telemetry.lost.clone());
        let lag = telemetry.window_lag.clone();
        registry.register_with_unit("window_lag", "How late the oldest open window is", Unit::Seconds, lag);
        registry.register("bpf_map_entries", "Entries of an eBPF map", telemetry.bpf_map_entries.clone());
        registry.register("bpf_runs", "Runs of a program, with --bpf-stats", telemetry.bpf_runs.clone());
        let run_time = telemetry.bpf_run_seconds.clone();
        registry.register("bpf_run_seconds", "Time in a program, with --bpf-stats", run_time);
        registry.register("bpf_skipped", "Runs of a program that the kernel skipped", telemetry.bpf_skipped.clone());
        let help = "Requests and files for a receiver, by what became of them";
        registry.register("sink_requests", help, telemetry.requests.clone());
        registry.register("sink_rejected_rows", "Rows that a receiver refused", telemetry.rejected_rows.clone());
        registry.register("sink_waiting", "Requests and files that wait for a receiver", telemetry.waiting.clone());
        registry.register("sink_spooled_bytes", "Bytes of them on disk", telemetry.spooled_bytes.clone());
        let help = "Rows for those who listen to the live stream, by what became of them";
        registry.register("live_rows", help, telemetry.live_rows.clone());
        registry.register("live_clients", "Clients that listen to the live stream", telemetry.live_clients.clone());
        Self { registry, ..telemetry }
    }

    /// The kernel was read: the agent lives.
    pub(crate) fn tick(&self, edges: usize, entries: MapEntries, window_lag: Duration) {
        self.last_tick_ms.store(self.age().as_millis() as u64, Ordering::Relaxed);
        self.edges.set(edges as i64);
        for (map, entries) in [("connections", entries.connections), ("edges", entries.edges)] {
            self.bpf_map_entries.get_or_create(&[("map", map)]).set(entries as i64);
        }
        self.window_lag.set(window_lag.as_secs_f64());
    }

    /// The beginning is on disk, and the programs are attached.
    pub(crate) fn ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// What the kernel says of the programs and maps.
    pub(crate) fn programs(&self, programs: &[ProgramStats], map_bytes: u64) {
        for ProgramStats { name, runs, run_time, skipped } in programs {
            let label = [("program", *name)];
            self.bpf_runs.get_or_create(&label).set(*runs as i64);
            self.bpf_run_seconds.get_or_create(&label).set(run_time.as_secs_f64());
            self.bpf_skipped.get_or_create(&label).set(*skipped as i64);
        }
        self.bpf_memory_bytes.set(map_bytes as i64);
    }

    /// A health row was made.
    pub(crate) fn health(&self, row: &HealthRecord, lost_sink: i64) {
        let add = |counter: &Counter, value: i64| {
            counter.inc_by(value.max(0) as u64);
        };
        add(&self.seen, row.seen);
        // What a sink lost is taken back; a counter waits until that is made up for.
        let exported = row.exported - lost_sink + self.exported_before.swap(0, Ordering::Relaxed);
        self.exported_before.store(exported.min(0), Ordering::Relaxed);
        add(&self.exported, exported);
        add(&self.filtered, row.filtered);
        add(&self.unidentified, row.unidentified);
        add(&self.unnamed, row.unnamed);
        add(&self.contradicted, row.contradicted);
        self.unreadable.set(row.unreadable.len() as i64);
        add(&self.lost_closed, row.lost_closed);
        add(&self.lost_cgroups, row.lost_cgroups);
        add(&self.skipped, row.lost_recursion);
        add(&self.ring_full, row.ring_full);
        add(&self.flow_rows, row.flows_next_seq - self.rows.swap(row.flows_next_seq, Ordering::Relaxed));
        let reasons = [
            ("ring", row.lost_ring),
            ("map", row.lost_map),
            ("parse", row.lost_parse),
            ("queue", row.lost_queue),
            ("sink", lost_sink),
            ("end", row.lost_end),
        ];
        for (reason, lost) in reasons {
            add(&self.lost.get_or_create(&[("reason", reason)]), lost);
        }
        self.ring_bytes.set(row.ring_bytes);
        self.open_connections.set(row.open_connections);
    }

    /// What became of what a sink sent; `before` is what was told last.
    pub(crate) fn shipped(&self, sink: &'static str, now: &Stats, before: &Stats) {
        let told = |stats: &Stats| {
            [("sent", stats.sent), ("retried", stats.retries), ("refused", stats.refused), ("dropped", stats.dropped)]
        };
        for ((outcome, now), (_, before)) in told(now).into_iter().zip(told(before)) {
            self.requests.get_or_create(&[("sink", sink), ("outcome", outcome)]).inc_by(now - before);
        }
        let label = [("sink", sink)];
        self.rejected_rows.get_or_create(&label).inc_by(now.rejected_rows - before.rejected_rows);
        self.waiting.get_or_create(&label).set(now.waiting as i64);
        self.spooled_bytes.get_or_create(&label).set(now.spooled_bytes as i64);
    }

    /// Rows were sent to somebody who listens, or dropped.
    pub(crate) fn live_rows(&self, outcome: &'static str, rows: u64) {
        self.live_rows.get_or_create(&[("outcome", outcome)]).inc_by(rows);
    }

    /// So many listen now.
    pub(crate) fn live_clients(&self, clients: usize) {
        self.live_clients.set(clients as i64);
    }

    fn age(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    fn is_alive(&self) -> bool {
        let last = Duration::from_millis(self.last_tick_ms.load(Ordering::Relaxed));
        self.age().saturating_sub(last) < DEAD_AFTER
    }

    fn text(&self) -> String {
        self.resident_bytes.set(resident_bytes().unwrap_or(0));
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// What is registered in the same way.
enum Metric {
    Counter(Counter),
    Gauge(Gauge),
}

impl Metric {
    fn register(self, registry: &mut Registry, name: &str, help: &str) {
        match self {
            Self::Counter(counter) => registry.register(name, help, counter),
            Self::Gauge(gauge) => registry.register(name, help, gauge),
        }
    }
}

/// Serves until the process ends. Only the metrics need the token, if there is one: kubelet has none.
///
/// # Errors
/// The address can't be listened on, or the certificate or token not be used.
pub(crate) async fn serve(
    address: SocketAddr,
    security: &Security,
    telemetry: Arc<Telemetry>,
) -> Result<(), ListenError> {
    let guard = Arc::new(security.guard()?);
    let listener = listen::bind(address).await?;
    let status = |is_well: bool| if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let asked = Arc::clone(&guard);
    let metrics = async move |State(telemetry): State<Arc<Telemetry>>, headers: HeaderMap| {
        if asked.admits(&headers) {
            Ok(([(CONTENT_TYPE, TEXT)], telemetry.text()))
        } else {
            Err(StatusCode::UNAUTHORIZED)
        }
    };
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route(
            "/livez",
            get(move |State(telemetry): State<Arc<Telemetry>>| async move { status(telemetry.is_alive()) }),
        )
        .route(
            "/readyz",
            get(move |State(telemetry): State<Arc<Telemetry>>| async move {
                status(telemetry.is_ready.load(Ordering::Relaxed) && telemetry.is_alive())
            }),
        )
        .with_state(telemetry);
    let limits = Limits { connections: CONNECTIONS, streams: CONNECTIONS as u32 };
    tokio::spawn(listen::serve(listener, routes, guard, limits, std::future::pending()));
    Ok(())
}

/// Resident memory of this process, from `/proc/self/statm`.
fn resident_bytes() -> Option<i64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * sysconf(SysconfVar::PAGE_SIZE).ok()??)
}

/// Connections at once; scrapers and probes are few.
const CONNECTIONS: usize = 32;
/// After so long without reading the kernel, the agent is stuck.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// Content type of the OpenMetrics text format, which Prometheus reads.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
