//! A made-up agent that sends rows by OTLP as the exporter does, for tests and measurements of what receives them.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use delivery::{
    Outbox, Parcel, Target,
    collector::{Collector, CollectorConfig},
    otlp::Encoder,
};
use schemas::{
    capture::Origin,
    flow::FlowRecord,
    health::HealthRecord,
    table::{Record, RttHistogram, TimestampMs},
};

/// Makes rows of one run and sends them.
pub struct Sender {
    origin: Origin,
    /// What delivers them.
    pub outbox: Outbox,
    flows: i64,
    health: i64,
}

impl Sender {
    /// A run on a node, whose undelivered requests wait below `spool`, up to so many bytes.
    ///
    /// # Errors
    /// The directory can't be used.
    pub fn new(node: &str, spool: &Path, spool_bytes: u64) -> Result<Self> {
        let origin = Origin::new("made-up", node)?;
        Ok(Self { origin, outbox: Outbox::open(spool, spool_bytes)?, flows: 0, health: 0 })
    }

    /// Begins to send to an endpoint, as `variables` of OpenTelemetry say.
    ///
    /// # Errors
    /// They are wrong.
    pub fn start(&self, endpoint: &str, protocol: &str, variables: &[(&str, String)]) -> Result<()> {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        let config = CollectorConfig::new(Some(endpoint), Some(protocol), variable)?;
        self.outbox.start(Target::Collector(Collector::new(config)?))?;
        Ok(())
    }

    /// The run.
    pub fn run_id(&self) -> &str {
        &self.origin.run_id
    }

    /// Rows of flows so far.
    pub const fn flows(&self) -> i64 {
        self.flows
    }

    /// Sends a request of so many flows, each of one end of a connection.
    pub fn send(&mut self, flows: usize, time: TimestampMs) {
        let body = self.request(flows, time);
        let rows = flows as i64;
        self.outbox.put(Parcel { dataset: FlowRecord::DATASET, rows, ends: rows, body: body.into() });
    }

    /// Sends the account of all flows so far.
    pub fn tell_health(&mut self, time: TimestampMs, clean_shutdown: bool) {
        let body = Bytes::from(self.health_request(time, clean_shutdown));
        self.outbox.put(Parcel { dataset: HealthRecord::DATASET, rows: 1, ends: 0, body });
    }

    /// Encodes the account of all flows so far.
    pub fn health_request(&mut self, time: TimestampMs, clean_shutdown: bool) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), VERSION);
        let Origin { cluster, node, run_id } = self.origin.clone();
        let row = HealthRecord {
            cluster,
            node,
            run_id,
            seq: self.health,
            window_end: time,
            flows_next_seq: self.flows,
            clean_shutdown,
            ..HealthRecord::default()
        };
        self.health += 1;
        encoder.push(&row, time);
        encoder.finish().unwrap_or_default()
    }

    /// Encodes the next flows.
    pub fn request(&mut self, flows: usize, time: TimestampMs) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), VERSION);
        for _ in 0..flows {
            encoder.push(&flow(&self.origin, self.flows, time), time);
            self.flows += 1;
        }
        encoder.finish().unwrap_or_default()
    }
}

/// A row such as an agent in a cluster of some hundred workloads writes.
pub fn flow(origin: &Origin, seq: i64, time: TimestampMs) -> FlowRecord {
    let Origin { cluster, node, run_id } = origin.clone();
    let (client, server) = (seq * 7919 % 211, seq * 104_729 % 199);
    let text = |text: String| Some(Arc::<str>::from(text));
    let labels = |app: i64| {
        let version = format!(r#""app.kubernetes.io/name":"app-{app}","app.kubernetes.io/version":"1.4.{}""#, app % 9);
        text(format!(r#"{{{version},"pod-template-hash":"{app:x}7c9b8d","team":"team-{}"}}"#, app % 12))
    };
    FlowRecord {
        cluster,
        node: Arc::clone(&node),
        run_id,
        seq,
        window_start: TimestampMs(time.0 - 60_000),
        window_end: time,
        observer: "client".into(),
        direction_known: true,
        start_known: true,
        transport: "tcp".into(),
        source_address: format!("10.244.{}.{}", client / 64, client % 64 + 2).into(),
        destination_address: format!("10.96.{}.{}", server / 64, server % 64 + 1).into(),
        destination_port: 8080,
        destination_target_port: Some(8080),
        source_kind: "pod".into(),
        source_namespace: text(format!("team-{}", client % 12)),
        source_pod: text(format!("app-{client}-{client:x}7c9b8d-x2k9{}", client % 10)),
        source_pod_uid: text(format!("{client:08x}-5f1d-4c3e-9f60-7a1b2c3d4e5f")),
        source_node: Some(node),
        source_workload_kind: text("Deployment".into()),
        source_workload: text(format!("app-{client}")),
        source_labels: labels(client),
        source_host_network: Some(false),
        destination_kind: "service".into(),
        destination_service_namespace: text(format!("team-{}", server % 12)),
        destination_service: text(format!("app-{server}")),
        connections: 1,
        closed: 1,
        bytes_sent: Some(512 + seq % 1000),
        bytes_received: Some(2048 + seq % 5000),
        duration_ms_sum: 15 + seq % 90,
        rtt_us_hist: RttHistogram([0, 1, 0, 0, 0, 0, 0, 0]),
        first_seen: TimestampMs(time.0 - 50_000 + seq % 1000),
        last_seen: TimestampMs(time.0 - 1000 + seq % 1000),
        ..FlowRecord::default()
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
