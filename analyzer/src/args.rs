//! The command line, parsed into types.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

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
