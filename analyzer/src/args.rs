//! The command line, parsed into types.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

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
    /// Run a SQL query over the tables flows, inventory and health and the view edges.
    Sql(SqlArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    /// Namespaces to write policies for; all by default.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) namespaces: Vec<String>,

    /// Allow the port of a dialled Service too, beside the port of the pods behind it: for network plugins that judge
    /// before the Service's address is translated.
    #[arg(long)]
    pub(crate) service_ports: bool,

    /// File to write the policies to, instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SqlArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,

    /// The query, such as 'select * from edges limit 10'.
    #[arg(value_name = "QUERY")]
    pub(crate) query: String,

    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InventoryArgs {
    /// Directory of the capture; made if it is not there, added to if it is.
    #[arg(long, env = "FLOWSCRIBE_OUTPUT", value_name = "DIR")]
    pub(crate) output: PathBuf,

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
pub(crate) struct InputArgs {
    /// Directory of a capture, or a file of one; may be repeated.
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) input: Vec<PathBuf>,

    /// Cluster to look at, where the input holds several.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,

    /// How far a flow and the news of its pod may be apart, by late news or different clocks, in milliseconds. An address
    /// that changed hands within it is not resolved.
    #[arg(long, env = "FLOWSCRIBE_CLOCK_SKEW_MS", value_name = "MS", default_value_t = 2000)]
    pub(crate) clock_skew_ms: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects.
    Json,
}
