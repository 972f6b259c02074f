//! Commands that write captures.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, builder::FalseyValueParser};
use ipnet::IpNet;

use super::input::CLOCK_SKEW_MS;

#[derive(Debug, ClapArgs)]
pub(crate) struct InventoryArgs {
    /// Directory of the capture; made if it is not there, added to if it is. Or an object store, such as
    /// s3://bucket/prefix, with credentials and settings from the environment. This, --otlp, or both.
    #[arg(long, env = "FLOWSCRIBE_OUTPUT", value_name = "DIR|URL")]
    pub(crate) output: Option<PathBuf>,

    /// Send the inventory to an OTLP receiver, as the OTEL_EXPORTER_OTLP_* variables say.
    #[arg(long, env = "FLOWSCRIBE_OTLP", value_parser = FalseyValueParser::new())]
    pub(crate) otlp: bool,

    /// Send it there, such as http://collector:4317 for gRPC; implies --otlp.
    #[arg(long, env = "FLOWSCRIBE_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,

    /// How to send it, grpc or http/protobuf; by default gRPC to port 4317, and else HTTP.
    #[arg(long, env = "FLOWSCRIBE_OTLP_PROTOCOL", value_name = "PROTOCOL")]
    pub(crate) otlp_protocol: Option<String>,

    /// Directory for what a receiver or an object store has not taken yet.
    #[arg(long, env = "FLOWSCRIBE_SPOOL", value_name = "DIR", default_value = "/var/lib/flowscribe/inventory")]
    pub(crate) spool: PathBuf,

    /// Most that waits there for each of them, in MiB; beyond it, the oldest is dropped.
    #[arg(long, env = "FLOWSCRIBE_SPOOL_SIZE_MIB", value_name = "MIB", default_value_t = 1024)]
    pub(crate) spool_size_mib: u64,

    /// Name of the cluster, written on every row: the one that its agents write.
    #[arg(long, env = "FLOWSCRIBE_CLUSTER", value_name = "NAME", default_value = "default")]
    pub(crate) cluster: String,

    /// Write everything once, as it is now, and end.
    #[arg(long)]
    pub(crate) once: bool,

    /// Address ranges of the cluster beside the pod ranges of its nodes and its ServiceCIDRs, such as those that a network
    /// plugin takes pods' addresses from: an unknown address in them is not taken for the outside.
    #[arg(long, env = "FLOWSCRIBE_CLUSTER_CIDRS", value_name = "CIDR,…", value_delimiter = ',')]
    pub(crate) cluster_cidrs: Vec<IpNet>,

    /// Serve /livez and /readyz there: ready is who writes all that it is to know, or waits for the Lease.
    #[arg(long, env = "FLOWSCRIBE_HEALTH_ADDRESS", value_name = "ADDRESS:PORT")]
    pub(crate) health_address: Option<SocketAddr>,

    /// Name of the Lease whose holder writes.
    #[arg(long, env = "FLOWSCRIBE_LEASE", value_name = "NAME", default_value = "flowscribe-inventory")]
    pub(crate) lease: String,

    /// Namespace of the Lease; this pod's, or that of the kubeconfig's context, by default.
    #[arg(long, env = "FLOWSCRIBE_LEASE_NAMESPACE", value_name = "NAME")]
    pub(crate) lease_namespace: Option<String>,

    /// Finish a file of the capture this long after its first row. A killed run loses at most this much.
    #[arg(long, env = "FLOWSCRIBE_ROLL_INTERVAL", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) roll_interval: Duration,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReceiveArgs {
    /// Directory of the capture; made if it is not there, added to if it is. Or an object store, such as
    /// s3://bucket/prefix, with credentials and settings from the environment.
    #[arg(long, env = "FLOWSCRIBE_OUTPUT", value_name = "DIR|URL")]
    pub(crate) output: PathBuf,

    /// Where OTLP/gRPC is received. Both addresses take both.
    #[arg(long, env = "FLOWSCRIBE_GRPC_ADDRESS", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4317")]
    pub(crate) grpc_address: SocketAddr,

    /// Where OTLP/HTTP is received (/v1/logs, protobuf or JSON), and /livez, /readyz and /metrics are served.
    #[arg(long, env = "FLOWSCRIBE_HTTP_ADDRESS", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4318")]
    pub(crate) http_address: SocketAddr,

    /// Certificate chain in PEM. This and the other files are read again when they change.
    #[arg(long, env = "FLOWSCRIBE_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key in PEM.
    #[arg(long, env = "FLOWSCRIBE_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Certificate authorities in PEM; clients have to have a certificate of one of them.
    #[arg(long, env = "FLOWSCRIBE_TLS_CLIENT_CA", value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// File with the token that clients have to send, as `Authorization: Bearer TOKEN`.
    #[arg(long, env = "FLOWSCRIBE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Listen on addresses that others can reach even without TLS, token or client certificates.
    #[arg(long, env = "FLOWSCRIBE_INSECURE")]
    pub(crate) insecure: bool,

    /// Largest request, uncompressed, in MiB.
    #[arg(long, env = "FLOWSCRIBE_MAX_REQUEST_MIB", value_name = "MIB", default_value_t = 16)]
    pub(crate) max_request_mib: usize,

    /// Memory that all requests may take together, in MiB; more are refused until there is room.
    #[arg(long, env = "FLOWSCRIBE_BUFFER_MIB", value_name = "MIB", default_value_t = 256)]
    pub(crate) buffer_mib: usize,

    /// Connections at once on each address; more are closed.
    #[arg(long, env = "FLOWSCRIBE_MAX_CONNECTIONS", value_name = "N", default_value_t = 1024)]
    pub(crate) max_connections: usize,

    /// Most that one client may send, in KiB per second over ten seconds; 0 for any rate.
    #[arg(long, env = "FLOWSCRIBE_CLIENT_RATE_KIB", value_name = "KIB", default_value_t = 0)]
    pub(crate) client_rate_kib: u64,

    /// What was received becomes files of the capture this often; until then it is in its directory .journal.
    #[arg(long, env = "FLOWSCRIBE_ROLL_INTERVAL", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) roll_interval: Duration,

    /// Most that is received and not in files yet, in MiB; beyond it, requests are refused.
    #[arg(long, env = "FLOWSCRIBE_JOURNAL_SIZE_MIB", value_name = "MIB", default_value_t = 4096)]
    pub(crate) journal_size_mib: u64,

    /// With an object store: directory for what it has not taken yet.
    #[arg(long, env = "FLOWSCRIBE_SPOOL", value_name = "DIR", default_value = "/var/lib/flowscribe/receive")]
    pub(crate) spool: PathBuf,

    /// Most that waits there, in MiB; beyond it, the oldest is dropped and said so.
    #[arg(long, env = "FLOWSCRIBE_SPOOL_SIZE_MIB", value_name = "MIB", default_value_t = 4096)]
    pub(crate) spool_size_mib: u64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportArgs {
    /// File of OTLP JSON lines, a directory of such files, or - for standard input; may be repeated.
    #[arg(long, value_name = "FILE|DIR", required = true)]
    pub(crate) input: Vec<PathBuf>,

    /// Directory of the capture; made if it is not there, added to if it is.
    #[arg(long, env = "FLOWSCRIBE_OUTPUT", value_name = "DIR")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CompactArgs {
    /// Directory of the capture, or an object store such as s3://bucket/prefix.
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) input: PathBuf,

    /// Directory that keeps what is fetched from an object store for the next time; else it is removed.
    #[arg(long, env = "FLOWSCRIBE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,

    /// Leave an hour alone until so long after its end, as its last files may not be there yet.
    #[arg(long, env = "FLOWSCRIBE_SETTLE", value_name = "DURATION", default_value = "30m", value_parser = humantime::parse_duration)]
    pub(crate) settle: Duration,

    /// Remove files only so long after what they were merged into was written, for those who read them now.
    #[arg(long, env = "FLOWSCRIBE_KEEP", value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) keep: Duration,

    /// Sum hours up, and leave the files as they are.
    #[arg(long)]
    pub(crate) rollups_only: bool,

    /// How far a flow and the news of its pod may be apart, in milliseconds: as reports are made with.
    #[arg(long, env = "FLOWSCRIBE_CLOCK_SKEW_MS", value_name = "MS", default_value_t = CLOCK_SKEW_MS)]
    pub(crate) clock_skew_ms: u32,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PruneArgs {
    /// Directory of the capture, or an object store such as s3://bucket/prefix.
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) input: PathBuf,

    /// Directory that keeps what is fetched from an object store for the next time; else it is removed.
    #[arg(long, env = "FLOWSCRIBE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,

    /// Remove flows whose hour ended so long ago, such as 14d.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Duration,

    /// Remove everything whose hour ended so long ago, rollups, inventory and health too, such as 1y: what was learned
    /// from it is forgotten.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) forget_after: Option<Duration>,

    /// Tell what would be removed, and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
