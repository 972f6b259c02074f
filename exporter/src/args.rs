//! The command line, parsed into types.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{
    Parser, Subcommand, ValueEnum,
    builder::{FalseyValueParser, NonEmptyStringValueParser},
};
use delivery::listen::Security;
use ipnet::IpNet;
use schemas::capture::Roll;

use crate::flow::SUMMED_WINDOW_MS;

/// Records who talks to whom on this node: watches TCP and UDP sockets with eBPF and writes flow records with pod
/// identity as Parquet. Runs until Ctrl-C or SIGTERM, then flushes everything.
///
/// Of a setting given more than once, the command line counts before the environment, and that before the file.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "flowscribe-exporter",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// What to do instead of recording.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// YAML file of settings, named as the flags are, without the dashes: `window: 5m`.
    #[arg(long, env = "FLOWSCRIBE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Directory of the capture; made if it is not there, added to if it is. Or an object store, such as
    /// s3://bucket/prefix, with credentials and settings from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT and so on).
    /// This, --otlp, or both.
    #[arg(long, env = "FLOWSCRIBE_OUTPUT", value_name = "DIR|URL")]
    pub output: Option<PathBuf>,

    /// Send records to an OpenTelemetry collector, as logs over OTLP. Endpoint, protocol, headers, certificates,
    /// compression and timeout are those of the OTEL_EXPORTER_OTLP_* variables, and OTEL_RESOURCE_ATTRIBUTES is added.
    #[arg(long, env = "FLOWSCRIBE_OTLP", value_parser = FalseyValueParser::new())]
    pub otlp: bool,

    /// Send them there, such as http://collector:4317 for gRPC; implies --otlp.
    #[arg(long, env = "FLOWSCRIBE_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// How to send them, grpc or http/protobuf; by default gRPC to port 4317, and else HTTP.
    #[arg(long, env = "FLOWSCRIBE_OTLP_PROTOCOL", value_name = "PROTOCOL")]
    pub otlp_protocol: Option<String>,

    /// Directory for what a collector or an object store has not taken yet: it is sent when they do, also by the next run.
    #[arg(long, env = "FLOWSCRIBE_SPOOL", value_name = "DIR", default_value = "/var/lib/flowscribe/spool")]
    pub spool: PathBuf,

    /// Most that waits there for each of them, in MiB; beyond it, the oldest is dropped and counted as lost.
    #[arg(long, env = "FLOWSCRIBE_SPOOL_SIZE_MIB", value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    pub spool_size_mib: u64,

    /// Length of the windows that connections are summed over, such as 60s or 5m: a divisor of an hour. 0 writes a row
    /// per connection, and one per file for as long as it is open.
    #[arg(long, env = "FLOWSCRIBE_WINDOW", value_name = "DURATION", default_value = "60s", value_parser = window)]
    pub window: Duration,

    /// Keep a flow if either end is in one of these namespaces or unresolved; all by default.
    #[arg(long, env = "FLOWSCRIBE_NAMESPACES", value_name = "NAME,…", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Keep a flow if the pod at either end has all of these labels, or is unresolved; all by default.
    #[arg(long, env = "FLOWSCRIBE_LABELS", value_name = "KEY=VALUE,…", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,

    /// Keep a flow if either address is in one of these networks; all by default.
    #[arg(long, env = "FLOWSCRIBE_CIDRS", value_name = "CIDR,…", value_delimiter = ',')]
    pub cidrs: Vec<IpNet>,

    /// Keep a flow if the port dialled, or that behind the Service, is one of these; all by default.
    #[arg(long, env = "FLOWSCRIBE_PORTS", value_name = "PORT,…", value_delimiter = ',')]
    pub ports: Vec<u16>,

    /// YAML file that says who is who: pods, Services and nodes. Read again whenever it changes.
    #[arg(long, env = "FLOWSCRIBE_INVENTORY", value_name = "FILE")]
    pub inventory: Option<PathBuf>,

    /// Learn who the pods of this node are from the Kubernetes API: that of KUBECONFIG, or of the service account of the
    /// pod this runs in. Pods' sockets are told by the cgroups and network namespaces that kubelet made.
    #[arg(long, env = "FLOWSCRIBE_KUBERNETES", value_parser = FalseyValueParser::new())]
    pub kubernetes: bool,

    /// With --kubernetes, what is known of the remote end of a flow when it is recorded.
    #[arg(long, env = "FLOWSCRIBE_REMOTE_METADATA", value_enum, default_value_t = RemoteMetadata::Local)]
    pub remote_metadata: RemoteMetadata,

    /// With --kubernetes, how long a flow waits for the name of a pod that is not known yet, before it is recorded
    /// without; 0 for not at all.
    #[arg(long, env = "FLOWSCRIBE_METADATA_WAIT", value_name = "DURATION", default_value = "5s", value_parser = wait)]
    pub metadata_wait: Duration,

    /// Record only these labels of pods in flows; `app*` stands for all that begin so. All by default. The inventory,
    /// which policies are made from, has all of them in any case.
    #[arg(long, env = "FLOWSCRIBE_RECORD_LABELS", value_name = "KEY,…", value_delimiter = ',')]
    pub record_labels: Vec<String>,

    /// Leave these labels of pods out of flows; `app*` stands for all that begin so.
    #[arg(long, env = "FLOWSCRIBE_OMIT_LABELS", value_name = "KEY,…", value_delimiter = ',')]
    pub omit_labels: Vec<String>,

    /// Most bytes of labels of a pod in a flow, as JSON: of more, the last keys are left out.
    #[arg(long, env = "FLOWSCRIBE_MAX_LABEL_BYTES", value_name = "BYTES", default_value_t = 4096)]
    pub max_label_bytes: usize,

    /// Name of the cluster, written on every row.
    #[arg(long, env = "FLOWSCRIBE_CLUSTER", value_name = "NAME", default_value = "default", value_parser = NonEmptyStringValueParser::new())]
    pub cluster: String,

    /// Name of this node, written on every row; the host's name by default. With --kubernetes the spec.nodeName of its
    /// pods, which a pod has from the downward API.
    #[arg(long, env = "FLOWSCRIBE_NODE", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub node: Option<String>,

    /// Finish a file of the capture this long after its first row. A killed run loses at most this much.
    #[arg(long, env = "FLOWSCRIBE_ROLL_INTERVAL", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub roll_interval: Duration,

    /// Finish a file of the capture at about this size, in MiB.
    #[arg(long, env = "FLOWSCRIBE_ROLL_SIZE_MIB", value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub roll_size_mib: u64,

    /// Keep flows that stay on the loopback interface.
    #[arg(long, env = "FLOWSCRIBE_LOOPBACK", value_parser = FalseyValueParser::new())]
    pub loopback: bool,

    /// Serve what is recorded, while it is, to `kubectl flowscribe monitor`, on this address of the loopback interface,
    /// which a port-forward reaches: usually 127.0.0.1:9465. With --kubernetes to those who may get the pods of the
    /// namespaces that they ask for, else to those who have the token. Enough without --output and --otlp.
    #[arg(long, env = "FLOWSCRIBE_LIVE_ADDRESS", value_name = "ADDRESS:PORT")]
    pub live_address: Option<SocketAddr>,

    /// Without --kubernetes, file with the token that listening takes, as `Authorization: Bearer TOKEN`.
    #[arg(long, env = "FLOWSCRIBE_LIVE_TOKEN_FILE", value_name = "FILE")]
    pub live_token_file: Option<PathBuf>,

    /// Serve /metrics (Prometheus), /livez and /readyz here, such as 0.0.0.0:9464; not at all by default.
    #[arg(long, env = "FLOWSCRIBE_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<SocketAddr>,

    /// Certificate chain in PEM, to serve them by HTTPS. Read again when it changes, as the key and the token are.
    #[arg(long, env = "FLOWSCRIBE_METRICS_TLS_CERT", value_name = "FILE", requires = "metrics_tls_key")]
    pub metrics_tls_cert: Option<PathBuf>,

    /// Private key in PEM.
    #[arg(long, env = "FLOWSCRIBE_METRICS_TLS_KEY", value_name = "FILE", requires = "metrics_tls_cert")]
    pub metrics_tls_key: Option<PathBuf>,

    /// File with the token that /metrics wants, as `Authorization: Bearer TOKEN`.
    #[arg(long, env = "FLOWSCRIBE_METRICS_TOKEN_FILE", value_name = "FILE")]
    pub metrics_token_file: Option<PathBuf>,

    /// Print all that the kernel's verifier says of a program that it refuses, instead of the reason alone.
    #[arg(long, env = "FLOWSCRIBE_VERBOSE", value_parser = FalseyValueParser::new())]
    pub verbose: bool,

    /// Have the kernel measure how long the eBPF programs run, for /metrics. Needs CAP_SYS_ADMIN, and costs about 50 ns
    /// per run of any eBPF program on the node.
    #[arg(long, env = "FLOWSCRIBE_BPF_STATS", value_parser = FalseyValueParser::new())]
    pub bpf_stats: bool,

    /// Cgroup v2 directory to watch, with all below it; the root of the hierarchy by default.
    #[arg(long, env = "FLOWSCRIBE_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Network namespace of the node itself, where sockets are told apart by their cgroup. By default that of process 1,
    /// as the kernel knows it.
    #[arg(long, env = "FLOWSCRIBE_HOST_NETNS", value_name = "FILE")]
    pub host_netns: Option<PathBuf>,

    /// Size of the ring buffer between kernel and agent, in MiB: a power of two. An event takes 120 bytes.
    #[arg(long, env = "FLOWSCRIBE_RING_SIZE_MIB", value_name = "MIB", default_value = "1", value_parser = ring_size)]
    pub ring_size_mib: u32,

    /// Most edges that the kernel sums at once: UDP, and TCP while the ring buffer is full. More are counted as lost.
    #[arg(long, env = "FLOWSCRIBE_KERNEL_EDGES", value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub kernel_edges: u32,

    /// Most edges that a window may have; more are counted as lost.
    #[arg(long, env = "FLOWSCRIBE_MAX_EDGES", value_name = "N", default_value_t = 100_000)]
    pub max_edges: usize,

    /// Most open TCP connections that are remembered; the ends of more are counted as lost.
    #[arg(long, env = "FLOWSCRIBE_MAX_CONNECTIONS", value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    /// Most UDP conversations whose direction is remembered, those of late.
    #[arg(long, env = "FLOWSCRIBE_MAX_CONVERSATIONS", value_name = "N", default_value_t = 65_536)]
    pub max_conversations: usize,
}

/// Where the remote end of a flow gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RemoteMetadata {
    /// From all pods, Services, EndpointSlices and nodes, which the agent watches: for those who read flows as they
    /// come, such as over OpenTelemetry.
    Cluster,
    /// From the pods of this node alone. Reports lose nothing by it: they look every remote end up in the inventory.
    Local,
}

/// What else the program does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show what can be recorded with the kernel, capabilities and mounts here, and what is lost for want of the rest.
    Doctor(DoctorArgs),
}

/// Flags of `doctor`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DoctorArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = DoctorFormat::Text)]
    pub format: DoctorFormat,

    /// Print all that the kernel's verifier says of a program that it refuses; JSON always has it.
    #[arg(long)]
    pub verbose: bool,
}

/// How `doctor` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// A line or more per finding, for people.
    Text,
    /// For programs.
    Json,
}

impl Args {
    /// The namespaces to keep, without what empty variables and stray commas leave.
    pub(crate) fn namespaces(&self) -> BTreeSet<Arc<str>> {
        self.namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).map(Arc::from).collect()
    }

    /// Who may read the metrics.
    pub(crate) fn metrics_security(&self) -> Security {
        let certificate = self.metrics_tls_cert.clone().zip(self.metrics_tls_key.clone());
        Security { certificate, client_authority: None, token: self.metrics_token_file.clone() }
    }

    /// The token that listening takes without a cluster.
    pub(crate) fn live_security(&self) -> Security {
        Security { token: self.live_token_file.clone().filter(|_| !self.kubernetes), ..Security::default() }
    }

    /// Whether records go to a collector.
    pub(crate) const fn sends_otlp(&self) -> bool {
        self.otlp || self.otlp_endpoint.is_some()
    }

    /// When files are finished.
    pub const fn roll(&self) -> Roll {
        Roll { size_bytes: self.roll_size_mib << 20, age: self.roll_interval }
    }

    /// Length of the windows that UDP is summed and health is reported over.
    pub const fn summed_window_ms(&self) -> i64 {
        if self.window.is_zero() { SUMMED_WINDOW_MS } else { self.window.as_millis() as i64 }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().into(), value.trim().into())),
        _ => Err("must be KEY=VALUE, such as app=web".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        Ok(_) => Err("must be at least 1s".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text).map_err(|error| error.to_string()) }
}

fn window(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let window = duration(text)?;
    if !HOUR.as_millis().is_multiple_of(window.as_millis()) {
        return Err("must divide an hour, such as 10s, 60s or 5m, so that windows never span two partitions".into());
    }
    Ok(window)
}

fn ring_size(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(mib) if mib.is_power_of_two() && mib <= 1024 => Ok(mib),
        _ => Err("must be a power of two from 1 to 1024".into()),
    }
}

impl Args {
    /// The filter in words, for the health of the recording: what was left out was not unseen.
    pub(crate) fn filters(&self) -> Vec<Arc<str>> {
        let labels = self.labels.iter().map(|(key, value)| format!("labels={key}={value}"));
        let cidrs = self.cidrs.iter().map(|cidr| format!("cidrs={cidr}"));
        let ports = self.ports.iter().map(|port| format!("ports={port}"));
        labels.chain(cidrs).chain(ports).map(Arc::from).collect()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_divide_the_hour() {
        assert_eq!(window("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(window("0"), Ok(Duration::ZERO));
        assert!(window("7s").is_err_and(|error| error.contains("divide an hour")));
        assert!(window("500ms").is_err_and(|error| error.contains("at least 1s")));
        assert!(window("soon").is_err());
        assert_eq!(ring_size("3"), Err("must be a power of two from 1 to 1024".into()));
    }
}
