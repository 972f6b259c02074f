//! Commands that change a cluster, or keep a set of policies for it.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, ValueEnum, builder::FalseyValueParser};

use super::{InputArgs, LearnArgs, PolicyArgs};

/// Which cluster.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct ClusterArgs {
    /// File that tells of clusters; that of KUBECONFIG, ~/.kube/config, or the service account of the pod by default.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of it; the current one by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl ClusterArgs {
    /// Whether one was named.
    pub(crate) const fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) of: ClusterArgs,

    /// File of policies, or directory of such files.
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) policies: PathBuf,

    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    /// Namespaces to apply policies in, and to remove in those that flowscribe applied and that are no longer there; all
    /// that the policies are of by default.
    #[arg(long, env = "FLOWSCRIBE_NAMESPACES", value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) namespaces: Vec<String>,

    /// Have the server check everything, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Take over policies, and fields of them, that others manage.
    #[arg(long)]
    pub(crate) force_conflicts: bool,

    /// Judge what a pod's own node sends to it as any other traffic: for network plugins that do not let it always pass.
    #[arg(long)]
    pub(crate) no_own_node: bool,

    /// Directory to keep what is changed or removed in, as it was before: a file of each run.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) rollback: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[group(id = "place", args = ["output", "config_map", "git"], required = true, multiple = false)]
pub(crate) struct RegenerateArgs {
    #[command(flatten)]
    pub(crate) of: ClusterArgs,

    #[command(flatten)]
    pub(crate) input: InputArgs,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Directory that the set is kept in: a file per policy, kustomization.yaml, evidence.json and diff.md.
    #[arg(long, env = "FLOWSCRIBE_POLICIES", value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// ConfigMap that the set is kept in, up to 1 MiB.
    #[arg(long, env = "FLOWSCRIBE_CONFIG_MAP", value_name = "NAMESPACE/NAME", value_parser = namespace_and_name)]
    pub(crate) config_map: Option<(String, String)>,

    /// Git repository that the set is kept in: every change is a commit. Pushing it is yours.
    #[arg(long, env = "FLOWSCRIBE_GIT", value_name = "DIR")]
    pub(crate) git: Option<PathBuf>,

    /// Branch to commit to; made of what is checked out if it is not there.
    #[arg(long, env = "FLOWSCRIBE_GIT_BRANCH", value_name = "NAME", default_value = "flowscribe")]
    pub(crate) git_branch: String,

    /// Directory of the repository that the set is in.
    #[arg(long, env = "FLOWSCRIBE_GIT_PATH", value_name = "DIR", default_value = "policies")]
    pub(crate) git_path: PathBuf,

    /// Tell too what is different in the cluster: that of KUBECONFIG, or of the pod that this runs in.
    #[arg(long, env = "FLOWSCRIBE_COMPARE_CLUSTER", value_parser = FalseyValueParser::new())]
    pub(crate) cluster: bool,

    /// With --cluster, compare what is allowed by all policies that are in force, also those of others, instead of flowscribe's
    /// own: how long that takes, whoever may create policies decides.
    #[arg(long, env = "FLOWSCRIBE_COMPARE_OTHERS", value_parser = FalseyValueParser::new())]
    pub(crate) compare_others: bool,

    /// Apply the set to the cluster, as flowscribe apply does: what is stable of it, or all of it.
    #[arg(
        long,
        env = "FLOWSCRIBE_APPLY",
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "stable"
    )]
    pub(crate) apply: Option<Applied>,

    /// With --apply, directory to keep what is changed or removed in, as it was before: a file of each run. With
    /// --config-map it is kept in another ConfigMap by default, whose name ends with -rollback; else in this directory.
    #[arg(long, env = "FLOWSCRIBE_ROLLBACK", value_name = "DIR")]
    pub(crate) rollback: Option<PathBuf>,

    /// Publish Events of policies that changed, and with --cluster of those that are otherwise in the cluster.
    #[arg(long, env = "FLOWSCRIBE_EVENTS", value_parser = FalseyValueParser::new())]
    pub(crate) events: bool,

    /// File to write metrics to, in Prometheus' text format, as the node exporter's textfile collector reads them.
    #[arg(long, env = "FLOWSCRIBE_METRICS_FILE", value_name = "FILE")]
    pub(crate) metrics_file: Option<PathBuf>,

    /// Prometheus Pushgateway to push metrics to, such as http://pushgateway:9091.
    #[arg(long, env = "FLOWSCRIBE_PUSH_GATEWAY", value_name = "URL")]
    pub(crate) push_gateway: Option<String>,

    /// Name of a Lease that a run holds, so that there is one at a time.
    #[arg(long, env = "FLOWSCRIBE_LEASE", value_name = "NAME")]
    pub(crate) lease: Option<String>,

    /// Namespace of the Lease; this pod's, or that of the kubeconfig's context, by default.
    #[arg(long, env = "FLOWSCRIBE_LEASE_NAMESPACE", value_name = "NAME")]
    pub(crate) lease_namespace: Option<String>,

    /// Exit with 3 if the set changed.
    #[arg(long)]
    pub(crate) exit_code: bool,
}

/// What a scheduled run applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Applied {
    /// Policies of which every direction is stable; others stay as they are in the cluster
    Stable,
    /// All, whatever may be seen yet that they deny
    All,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MonitorArgs {
    #[command(flatten)]
    pub(crate) of: ClusterArgs,

    /// Namespaces to record: those whose pods you may get; all by default.
    #[arg(long, short = 'n', env = "FLOWSCRIBE_NAMESPACES", value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) namespaces: Vec<String>,

    /// Directory of the capture; made if it is not there, added to if it is.
    #[arg(long, env = "FLOWSCRIBE_OUTPUT", value_name = "DIR")]
    pub(crate) output: PathBuf,

    /// Namespace that the agents run in.
    #[arg(long, env = "FLOWSCRIBE_AGENT_NAMESPACE", value_name = "NAME", default_value = "flowscribe")]
    pub(crate) agent_namespace: String,

    /// Labels of the agents' pods.
    #[arg(
        long,
        env = "FLOWSCRIBE_AGENT_SELECTOR",
        value_name = "SELECTOR",
        default_value = AGENTS
    )]
    pub(crate) agent_selector: String,

    /// Port on which agents serve what they record, within their pods.
    #[arg(long, env = "FLOWSCRIBE_AGENT_PORT", value_name = "PORT", default_value_t = delivery::live::PORT)]
    pub(crate) agent_port: u16,

    /// Ask this agent, such as http://127.0.0.1:9465, instead of those of a cluster by port-forward; may be repeated. Who is
    /// who in a cluster is recorded then only with --context or --kubeconfig.
    #[arg(long, env = "FLOWSCRIBE_AGENT_URL", value_name = "URL,…", value_delimiter = ',')]
    pub(crate) agent_url: Vec<String>,

    /// ServiceAccount, as NAMESPACE/NAME, in whose name agents are asked: for users without a token of their own, such as
    /// those with a client certificate. You need the verb create on its subresource serviceaccounts/token.
    #[arg(long, env = "FLOWSCRIBE_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME", value_parser = namespace_and_name)]
    pub(crate) service_account: Option<(String, String)>,

    /// File with the token that agents outside of a cluster want.
    #[arg(long, env = "FLOWSCRIBE_TOKEN_FILE", value_name = "FILE", conflicts_with = "service_account")]
    pub(crate) token_file: Option<PathBuf>,

    /// Name of the cluster, written on rows of the inventory: the one that its agents write. What the first one says, by
    /// default.
    #[arg(long, env = "FLOWSCRIBE_CLUSTER", value_name = "NAME")]
    pub(crate) cluster: Option<String>,

    /// Do not record who is who in the cluster: another one does.
    #[arg(long)]
    pub(crate) no_inventory: bool,

    /// Stop by itself after so long.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// What was received becomes files this often; until then it is in directory .journal of the capture.
    #[arg(long, env = "FLOWSCRIBE_ROLL_INTERVAL", value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    pub(crate) roll_interval: Duration,
}

/// The labels that the chart gives agents.
const AGENTS: &str = "app.kubernetes.io/name=flowscribe,app.kubernetes.io/component=exporter";

fn namespace_and_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.into(), name.into()))
        }
        _ => Err("it is not NAMESPACE/NAME".into()),
    }
}
