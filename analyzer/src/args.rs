//! The command line, parsed into types.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use ipnet::IpNet;

use crate::{
    backtest::Split,
    communication::Direction,
    sets::{Decisions, Thresholds},
    state::State,
    tables::{Learning, LearningError},
};

/// Turns captures of flowscribe-exporter into NetworkPolicies, and answers questions about them in SQL.
#[derive(Debug, Parser)]
#[command(name = "flowscribe", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the NetworkPolicies that allow what was recorded and nothing else, as YAML. Everything that needs a
    /// person's eye is told on standard error.
    Report(ReportArgs),
    /// Write what the Kubernetes API knows of the whole cluster into a capture: who had which address when, what owns
    /// it, and what stands behind Services. Of several that run, one writes.
    Inventory(InventoryArgs),
    /// Receive flows, inventory and health by OTLP, from agents or through a collector, and write them into a capture.
    Receive(ReceiveArgs),
    /// Write what a collector's file exporter wrote, OTLP as JSON lines, into a capture.
    Import(ImportArgs),
    /// Merge the small files of a capture, and sum its hours up into rollups, from which the same is learned. To be run now
    /// and then, beside those that write and read.
    Compact(CompactArgs),
    /// Remove flows from a capture that rollups sum up.
    Prune(PruneArgs),
    /// List the communication sets of all workloads with their evidence, those first that need attention.
    Sets(SetsArgs),
    /// Run a SQL query over a capture; --tables explains the tables.
    Sql(SqlArgs),
    /// Tell what is behind every rule of a policy, and why something is not in it.
    Explain(ExplainArgs),
    /// Tell what of a capture policies would deny, and what they allow that was never seen. Exits with 1 if anything stable
    /// is denied without explanation.
    Verify(VerifyArgs),
    /// Learn from a capture's past, and tell what of the rest the policies of then would have denied, and what they allowed
    /// that was never used again.
    Backtest(BacktestArgs),
    /// Tell what two sets of policies allow differently. Exits with 0 if it is the same, 1 if not, and 2 if that can't be
    /// told.
    Diff(DiffArgs),
    /// Run the scheduler of a Ballista cluster, for sql --ballista.
    #[cfg(feature = "ballista")]
    BallistaScheduler(SchedulerArgs),
    /// Run an executor of a Ballista cluster.
    #[cfg(feature = "ballista")]
    BallistaExecutor(ExecutorArgs),
    /// List the connections that the NetworkPolicies of manifests allow between workloads and with the outside.
    Connectivity(ConnectivityArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// What kind of policies to write.
    #[arg(long, value_enum, default_value_t = PolicyFormat::Kubernetes)]
    pub(crate) format: PolicyFormat,

    /// File to write the policies to, instead of standard output; or a directory, or a name that ends with /, for one file
    /// per policy, a kustomization.yaml and evidence.json. What an earlier run wrote there and this one does not is removed.
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) output: Option<PathBuf>,

    /// File to write the evidence for every rule to, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) evidence: Option<PathBuf>,

    /// Tell on standard error what every rule rests on, and why something is in none.
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Which policies are wanted.
#[derive(Debug, ClapArgs)]
pub(crate) struct PolicyArgs {
    /// Namespaces to write policies for; all by default.
    #[arg(long, env = "FLOWSCRIBE_NAMESPACES", value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) namespaces: Vec<String>,

    /// Directions that policies limit; the other is left open.
    #[arg(
        long,
        env = "FLOWSCRIBE_DIRECTIONS",
        value_enum,
        value_name = "DIRECTION,…",
        value_delimiter = ',',
        default_value = "ingress,egress"
    )]
    pub(crate) directions: Vec<DirectionName>,

    /// Allow the port of a dialled Service too, beside the port of the pods behind it: for network plugins that judge
    /// before the Service's address is translated.
    #[arg(long, env = "FLOWSCRIBE_SERVICE_PORTS")]
    pub(crate) service_ports: bool,

    /// Leave a direction open that is not stable yet, instead of denying what may still come.
    #[arg(long, env = "FLOWSCRIBE_ONLY_STABLE")]
    pub(crate) only_stable: bool,

    /// Leave both directions of a workload open if less of its pods' time was observed, from 0 to 1: the rest of its pods
    /// may talk to others.
    #[arg(long, env = "FLOWSCRIBE_MIN_COVERAGE", value_name = "SHARE", default_value_t = 0.95, value_parser = share)]
    pub(crate) min_coverage: f64,

    /// Addresses outside of the cluster are named one by one; if a rule has more, those next to one another become blocks.
    /// Ingress that has more even so is left open.
    #[arg(long, env = "FLOWSCRIBE_MAX_CIDRS", value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_cidrs: u32,

    /// Blocks of IPv4 addresses are never wider than this prefix length.
    #[arg(long, env = "FLOWSCRIBE_MIN_PREFIX", value_name = "BITS", default_value_t = 24, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) min_prefix: u8,

    /// Blocks of IPv6 addresses are never wider than this prefix length.
    #[arg(long, env = "FLOWSCRIBE_MIN_PREFIX_IPV6", value_name = "BITS", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    pub(crate) min_prefix_ipv6: u8,

    /// Ranges that stand for the addresses of nodes in them, which autoscaling changes.
    #[arg(long, env = "FLOWSCRIBE_NODE_CIDR", value_name = "CIDR,…", value_delimiter = ',')]
    pub(crate) node_cidr: Vec<IpNet>,

    /// Service that everybody outside of the cluster may reach; may be repeated.
    #[arg(long, env = "FLOWSCRIBE_OPEN_INGRESS", value_name = "NAMESPACE/SERVICE,…", value_delimiter = ',')]
    pub(crate) open_ingress: Vec<String>,

    /// Write one policy per namespace that allows DNS, and one that denies by default where that cuts nothing off, instead
    /// of repeating DNS in every policy.
    #[arg(long, env = "FLOWSCRIBE_NAMESPACE_DEFAULTS")]
    pub(crate) namespace_defaults: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// The policy, or its workload, as NAMESPACE/NAME.
    #[arg(value_name = "POLICY")]
    pub(crate) policy: String,

    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    #[command(flatten)]
    pub(crate) wish: PolicyArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    /// File of policies, or directory of such files.
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "cluster", conflicts_with = "cluster")]
    pub(crate) policies: Option<PathBuf>,

    /// Verify the policies that are in the cluster: that of KUBECONFIG, or of the pod that this runs in.
    #[arg(long)]
    pub(crate) cluster: bool,

    /// Judge what a pod's own node sends to it as any other traffic: for network plugins that do not let it always pass.
    #[arg(long)]
    pub(crate) no_own_node: bool,

    /// Exit with 1 for whatever is denied without explanation, stable or not: in a short capture nothing is stable.
    #[arg(long)]
    pub(crate) strict: bool,

    /// How to print the result.
    #[arg(long, value_enum, default_value_t = VerifyFormat::Text)]
    pub(crate) format: VerifyFormat,

    /// File to write the result to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DiffArgs {
    /// Policies as they were: a file, or a directory of files.
    #[arg(value_name = "OLD")]
    pub(crate) old: PathBuf,

    /// Policies as they are to be.
    #[arg(value_name = "NEW")]
    pub(crate) new: PathBuf,

    /// Capture whose inventory tells which workloads there are; without it, those that the policies' selectors ask for. May
    /// be repeated.
    #[arg(long, value_name = "DIR")]
    pub(crate) input: Vec<PathBuf>,

    /// Cluster to look at, where the input holds several.
    #[arg(long, env = "FLOWSCRIBE_CLUSTER", value_name = "NAME")]
    pub(crate) cluster_name: Option<String>,

    /// Directory of manifests that tell which workloads there are.
    #[arg(long, value_name = "DIR", conflicts_with = "input")]
    pub(crate) manifests: Option<PathBuf>,

    /// How to print the difference.
    #[arg(long, value_enum, default_value_t = DiffFormat::Text)]
    pub(crate) format: DiffFormat,

    /// File to write the difference to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SetsArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    /// Namespaces to list; all by default.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) namespaces: Vec<String>,

    /// How to print the sets.
    #[arg(long, value_enum, default_value_t = SetsFormat::Table)]
    pub(crate) format: SetsFormat,

    /// File to write the sets to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SqlArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    /// The query, such as 'select * from edges limit 10', or several that semicolons separate. What it calls $NAME is given
    /// with --param.
    #[arg(value_name = "QUERY", required_unless_present = "query_file")]
    pub(crate) query: Option<String>,

    /// File with the query; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "query")]
    pub(crate) query_file: Option<PathBuf>,

    /// A value for $NAME in the query: a number, true or false, or else text; may be repeated.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    pub(crate) params: Vec<(String, String)>,

    /// How to write the result.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,

    /// File to write the result to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Run the queries on a Ballista cluster, such as df://scheduler:50050, whose executors are those of this program and
    /// see the files of the capture under the same paths.
    #[cfg(feature = "ballista")]
    #[arg(long, env = "FLOWSCRIBE_BALLISTA", value_name = "URL")]
    pub(crate) ballista: Option<String>,

    /// Directory that the executors see too, for what is derived of flows; that for temporary files by default.
    #[cfg(feature = "ballista")]
    #[arg(long, env = "FLOWSCRIBE_BALLISTA_SHARE", value_name = "DIR")]
    pub(crate) ballista_share: Option<PathBuf>,

    /// Explain every table, column and function, and end.
    #[arg(long, exclusive = true)]
    pub(crate) tables: bool,
}

#[cfg(feature = "ballista")]
#[derive(Debug, ClapArgs)]
pub(crate) struct SchedulerArgs {
    /// Where executors and clients find it.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50050")]
    pub(crate) address: SocketAddr,
}

#[cfg(feature = "ballista")]
#[derive(Debug, ClapArgs)]
pub(crate) struct ExecutorArgs {
    /// Its scheduler.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50050", value_parser = host_and_port)]
    pub(crate) scheduler: (String, u16),

    /// Where others fetch its results.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50051")]
    pub(crate) address: SocketAddr,

    /// Where the scheduler reaches it, at the same address.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50052")]
    pub(crate) control_address: SocketAddr,

    /// Tasks at once; by default, one per processor.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) tasks: usize,

    /// Directory for results that are under way; a temporary one by default.
    #[arg(long, value_name = "DIR")]
    pub(crate) work_dir: Option<PathBuf>,
}

#[cfg(feature = "ballista")]
fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("it is not HOST:PORT")?;
    Ok((host.to_owned(), port.parse().map_err(|_| "its port is no number")?))
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConnectivityArgs {
    /// Directory of YAML and JSON files with NetworkPolicies, and with pods or what makes them; or one such file.
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: PathBuf,

    /// How to print the connections.
    #[arg(long, value_enum, default_value_t = ConnectivityFormat::Text)]
    pub(crate) format: ConnectivityFormat,

    /// File to write the connections to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// What communication sets are learned by. Times count hours in which the workload ran and was watched.
#[derive(Debug, ClapArgs)]
pub(crate) struct LearnArgs {
    /// YAML file with edges that are pinned or forbidden, whatever was recorded: lists `pin` and `forbid` of
    /// {from, to, port, reason}.
    #[arg(long, env = "FLOWSCRIBE_DECISIONS", value_name = "FILE")]
    pub(crate) decisions: Option<PathBuf>,

    /// Directory that keeps what is known of files and hours for the next time, so that only what is new is read. The
    /// result is the same without it.
    #[arg(long, env = "FLOWSCRIBE_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// A workload observed for less is learning.
    #[arg(long, env = "FLOWSCRIBE_LEARN_FOR", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) learn_for: Duration,

    /// A set without a change for so long is stable.
    #[arg(long, env = "FLOWSCRIBE_STABLE_AFTER", value_name = "DURATION", default_value = "3d", value_parser = humantime::parse_duration)]
    pub(crate) stable_after: Duration,

    /// An edge that was not seen for so long, and for two of its periods if it recurs, is decaying.
    #[arg(long, env = "FLOWSCRIBE_DECAY_AFTER", value_name = "DURATION", default_value = "7d", value_parser = humantime::parse_duration)]
    pub(crate) decay_after: Duration,

    /// What one pod did once, and what was gone within 3 hours, is held for review if it did not come again for so long,
    /// or three times so long.
    #[arg(long, env = "FLOWSCRIBE_HOLD_AFTER", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) hold_after: Duration,
}

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
pub(crate) struct BacktestArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Where the past ends, by the hour: a time such as 2026-03-20T08:00:00Z, a time before the end such as 7d, or a share
    /// of the capture such as 70%; may be repeated.
    #[arg(long, value_name = "TIME|DURATION|SHARE", default_value = "70%")]
    pub(crate) split: Vec<Split>,

    /// How to print what came of it.
    #[arg(long, value_enum, default_value_t = BacktestFormat::Table)]
    pub(crate) format: BacktestFormat,

    /// File to write it to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
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

#[derive(Debug, ClapArgs)]
pub(crate) struct InputArgs {
    /// Directory of a capture, or a file of one, or an object store such as s3://bucket/prefix; may be repeated.
    #[arg(long, value_name = "DIR|URL", required = true)]
    pub(crate) input: Vec<PathBuf>,

    /// Directory that keeps what is fetched from an object store for the next time; else it is removed.
    #[arg(long, env = "FLOWSCRIBE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,

    /// Cluster to look at, where the input holds several.
    #[arg(long, env = "FLOWSCRIBE_CLUSTER", value_name = "NAME")]
    pub(crate) cluster_name: Option<String>,

    /// How far a flow and the news of its pod may be apart, by late news or different clocks, in milliseconds. An address
    /// that changed hands within it is not resolved.
    #[arg(long, env = "FLOWSCRIBE_CLOCK_SKEW_MS", value_name = "MS", default_value_t = CLOCK_SKEW_MS)]
    pub(crate) clock_skew_ms: u32,

    /// Memory that sorts, joins and groups of a query may take before they use temporary files, in MiB.
    #[arg(long, env = "FLOWSCRIBE_MEMORY_MIB", value_name = "MIB", default_value_t = MEMORY_MIB)]
    pub(crate) memory_mib: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects.
    Json,
    /// A JSON object per line.
    Jsonl,
    /// Parquet.
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyFormat {
    /// NetworkPolicy of networking.k8s.io/v1.
    #[value(name = "k8s", alias = "kubernetes")]
    Kubernetes,
    /// CiliumNetworkPolicy of cilium.io/v2, with the same meaning.
    Cilium,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionName {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum VerifyFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DiffFormat {
    /// A line per edge.
    Text,
    /// For a pull request.
    Markdown,
    /// One JSON object.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SetsFormat {
    /// For people.
    Table,
    /// One JSON array, an object per workload.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BacktestFormat {
    /// For people.
    Table,
    /// One JSON array, an object per split.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ConnectivityFormat {
    /// A line per pair of workloads or address ranges.
    Text,
    /// One JSON array, an object per pair.
    Json,
}

impl LearnArgs {
    /// What sets are learned by.
    ///
    /// # Errors
    /// The decisions can't be read, or are not valid; the state can't be used.
    pub(crate) fn learning(&self, input: &InputArgs) -> Result<Learning, LearningError> {
        let Self { decisions, state, learn_for, stable_after, decay_after, hold_after } = self;
        let hours = |duration: &Duration| duration.as_secs().div_ceil(3600);
        let thresholds = Thresholds {
            learn_hours: hours(learn_for),
            stable_hours: hours(stable_after),
            decay_hours: hours(decay_after),
            hold_hours: hours(hold_after),
        };
        let state = state.as_deref().map(|state| State::open(state, input.clock_skew_ms)).transpose()?;
        Ok(Learning {
            decisions: Decisions::read(decisions.as_deref())?.into(),
            thresholds,
            state: state.map(Arc::new),
        })
    }
}

impl InputArgs {
    /// Some captures, with all else as it is by default.
    pub(crate) const fn of(input: Vec<PathBuf>, cluster_name: Option<String>) -> Self {
        Self { input, cache: None, cluster_name, clock_skew_ms: CLOCK_SKEW_MS, memory_mib: MEMORY_MIB }
    }
}

impl From<DirectionName> for Direction {
    fn from(name: DirectionName) -> Self {
        match name {
            DirectionName::Ingress => Self::Ingress,
            DirectionName::Egress => Self::Egress,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "it is not a number")?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("it is not between 0 and 1".into()) }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("it is not NAME=VALUE")?;
    Ok((name.trim_start_matches('$').to_owned(), value.to_owned()))
}

const CLOCK_SKEW_MS: u32 = 2000;
const MEMORY_MIB: u32 = 512;
