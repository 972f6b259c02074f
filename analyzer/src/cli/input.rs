//! Which captures are asked, what is believed of them, and which policies are wanted.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, ValueEnum};
use ipnet::IpNet;

use super::names;
use crate::{communication::Direction, policy::Wish};

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

impl PolicyArgs {
    /// What policies are wanted.
    pub(crate) fn wish(&self) -> Wish {
        let Self {
            namespaces,
            directions,
            service_ports,
            only_stable,
            min_coverage,
            max_cidrs,
            min_prefix,
            min_prefix_ipv6,
            node_cidr,
            open_ingress,
            namespace_defaults,
        } = self;
        Wish {
            namespaces: names(namespaces),
            directions: directions.iter().map(|direction| (*direction).into()).collect(),
            service_ports: *service_ports,
            only_stable: *only_stable,
            min_coverage: *min_coverage,
            max_cidrs: *max_cidrs as usize,
            min_prefix: (*min_prefix, *min_prefix_ipv6),
            node_cidrs: node_cidr.clone(),
            open_ingress: open_ingress.iter().cloned().collect(),
            namespace_defaults: *namespace_defaults,
        }
    }
}

impl InputArgs {
    /// What is read, in words.
    pub(crate) fn told(&self) -> String {
        self.input.iter().map(|input| input.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionName {
    Ingress,
    Egress,
}

impl InputArgs {
    /// Some captures, with all else as it is by default.
    pub(crate) const fn new(input: Vec<PathBuf>, cluster_name: Option<String>) -> Self {
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

pub(super) const CLOCK_SKEW_MS: u32 = 2000;
const MEMORY_MIB: u32 = 512;
