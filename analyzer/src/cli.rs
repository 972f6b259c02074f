//! The command line, parsed into types: commands that ask here, those that write captures in `writing`, those for a
//! cluster in `cluster`, and what is asked and believed in `input`.

mod cluster;
mod input;
mod split;
mod writing;

#[cfg(feature = "ballista")]
use std::net::SocketAddr;
use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use crate::output::Format;
use crate::{exit::Exit, interrupt::Meaning};
pub(crate) use cluster::{Applied, ApplyArgs, ClusterArgs, MonitorArgs, RegenerateArgs};
pub(crate) use input::{InputArgs, LearnArgs, PolicyArgs};
pub(crate) use split::Split;
pub(crate) use writing::{CompactArgs, ImportArgs, InventoryArgs, PruneArgs, ReceiveArgs};

/// Turns captures of flowscribe-exporter into NetworkPolicies, and answers questions about them in SQL.
#[derive(Debug, Parser)]
#[command(name = "flowscribe", version, after_help = Exit::help())]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// Parses a command line, by the name that the program was called by: kubectl runs it as one of its own commands.
    ///
    /// # Errors
    /// It is wrong, or help was asked for.
    pub(crate) fn parse_named(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let name = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
        let command = match name == "kubectl-flowscribe" {
            true => Self::command().bin_name("kubectl flowscribe"),
            false => Self::command(),
        };
        Self::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Record what the agents of a cluster see, until Ctrl-C, into a capture here.
    Monitor(Box<MonitorArgs>),
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
    /// is denied without explanation, or if what is forbidden is allowed.
    Verify(VerifyArgs),
    /// Learn from a capture's past, and tell what of the rest the policies of then would have denied, and what they allowed
    /// that was never used again.
    Backtest(BacktestArgs),
    /// Tell what two sets of policies allow differently. Exits with 0 if it is the same, 1 if not, and 2 if that can't be
    /// told.
    Diff(DiffArgs),
    /// Make a set of policies anew, and tell what is different: to be run on a schedule. Silent where nothing is. Exits with
    /// 4 if another run holds the lease.
    Regenerate(Box<RegenerateArgs>),
    /// Apply policies to a cluster, once what was recorded shows that they deny nothing of it; remove those that an earlier
    /// run applied and that are no longer there.
    Apply(ApplyArgs),
    /// Run the scheduler of a Ballista cluster, for sql --ballista.
    #[cfg(feature = "ballista")]
    BallistaScheduler(SchedulerArgs),
    /// Run an executor of a Ballista cluster.
    #[cfg(feature = "ballista")]
    BallistaExecutor(ExecutorArgs),
    /// List the connections that the NetworkPolicies of manifests allow between workloads and with the outside.
    Connectivity(ConnectivityArgs),
}

impl Command {
    /// What Ctrl-C means for it.
    pub(crate) const fn on_interrupt(&self) -> Meaning {
        match self {
            Self::Inventory(_) | Self::Receive(_) => Meaning::Finish(1),
            // At the second it does not wait for the agents' windows.
            Self::Monitor(_) => Meaning::Finish(2),
            Self::Apply(_) | Self::Regenerate(_) => Meaning::GiveUpChanges,
            _ => Meaning::GiveUp,
        }
    }
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
#[group(id = "which", args = ["policies", "cluster"], required = true, multiple = false)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    /// File of policies, or directory of such files.
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) policies: Option<PathBuf>,

    /// Verify the policies that are in the cluster.
    #[arg(long)]
    pub(crate) cluster: bool,

    #[command(flatten)]
    pub(crate) of: ClusterArgs,

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyFormat {
    /// NetworkPolicy of networking.k8s.io/v1.
    #[value(name = "k8s", alias = "kubernetes")]
    Kubernetes,
    /// CiliumNetworkPolicy of cilium.io/v2, with the same meaning.
    Cilium,
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

/// Names as they were given, without what stray commas leave.
pub(crate) fn names(given: &[String]) -> BTreeSet<Arc<str>> {
    given.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).map(Arc::from).collect()
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("it is not NAME=VALUE")?;
    Ok((name.trim_start_matches('$').to_owned(), value.to_owned()))
}
