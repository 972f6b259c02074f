//! What a person should know about policies.

use std::{collections::BTreeSet, fmt, sync::Arc};

use crate::communication::{Direction, Workload};

/// Something that the policies can't say, or should not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finding {
    /// A direction is left open, because what is known of it would deny too much.
    Withheld { workload: Workload, directions: Vec<Direction>, reason: String },
    /// Directions that may yet change.
    NotStable { reason: String, status: &'static str, directions: Vec<Direction>, workloads: BTreeSet<Workload> },
    /// No policy can be written for a workload.
    NoUsableLabels { workload: Workload },
    /// A workload's selector selects pods of another one too.
    SelectsAnother { workload: Workload, other: Workload },
    /// A workload's selector misses one of its pods.
    MissesOwnPod { workload: Workload, pod: Arc<str> },
    /// A workload's selector, as it was recorded, selects none of its pods.
    SelectsNone { workload: Workload },
    /// Pods that nothing owns, taken for one workload.
    Together { workload: Workload, pods: u64 },
    /// A rule is left out because an end can't be told.
    Unresolved { rule: String },
    /// A rule that names a node's address, which autoscaling may change.
    AddressOfNode { rule: String },
    /// A proxy in a workload's pods accepts on a port what was sent to others, which are those of its rules.
    Redirected { workload: Workload, accepting: u16, dialled: BTreeSet<u16> },
    /// What stays on a link makes no rule.
    OnLink { rule: String },
    /// A rule that names a multicast group.
    Multicast { rule: String },
    /// A workload that is reached through the tunnel of a mesh.
    Tunnel { workload: Workload },
    /// A workload whose pods have other networks beside the cluster's.
    OtherNetworks { workload: Workload, networks: BTreeSet<Arc<str>> },
    /// A Service that leads to a workload by other labels than those of its rule.
    OtherLabels { workload: Workload, service: String, labels: BTreeSet<String> },
    /// More addresses than wanted, that can't be merged.
    ManyAddresses { workload: Workload, ports: String, blocks: usize },
    /// A workload that sends, but was not seen to ask for names: it may yet need to.
    NoNames { workload: Workload },
    /// What was tried and never succeeded makes no rule: who tried, and what.
    FailedOnly { source: String, attempts: Vec<String> },
    /// A workload without traffic that makes a rule gets no policy.
    NoTraffic { workload: Workload },
    /// A workload whose pods ran where nobody watched.
    NeverObserved { workload: Workload },
    /// A namespace to write policies for that the inventory does not know.
    NoSuchNamespace { namespace: Arc<str> },
    /// A namespace that was deleted.
    NamespaceGone { namespace: Arc<str> },
    /// A Service to open that is not there, or has nobody behind it.
    NothingToOpen { service: String },
    /// A namespace where not everything has a policy of both directions.
    NoDefaults { namespace: Arc<str>, workloads: BTreeSet<Workload> },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Withheld { workload, directions, reason } => {
                write!(f, "{workload}: {} withheld and left open, {reason}", both(directions))
            }
            Self::NotStable { reason, status, directions, workloads } => {
                write!(f, "not stable yet: {} of {}: {status}, {reason}", both(directions), told(workloads))
            }
            Self::NoUsableLabels { workload } => {
                write!(f, "{workload}: no policy, its pods have no usable labels")
            }
            Self::SelectsAnother { workload, other } => {
                write!(f, "{workload}: its selector also selects pods of {other}")?;
                let is_namesake = (&workload.namespace, &workload.name) == (&other.namespace, &other.name);
                if is_namesake { write!(f, " ({})", other.kind) } else { Ok(()) }
            }
            Self::MissesOwnPod { workload, pod } => write!(f, "{workload}: its selector does not select its pod {pod}"),
            Self::SelectsNone { workload } => {
                write!(
                    f,
                    "{workload}: its selector, as it was recorded, selects none of its pods; their labels are used instead"
                )
            }
            Self::Together { workload, pods } => {
                write!(
                    f,
                    "{workload}: {pods} pods that nothing owns are taken for one workload, by the labels that they share"
                )
            }
            Self::Unresolved { rule } => write!(f, "{rule}: left out, an end is not known"),
            Self::AddressOfNode { rule } => write!(f, "{rule}: allowed by the node's address, which may change"),
            Self::Redirected { workload, accepting, dialled } => {
                let dialled = dialled.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "{workload}: a proxy in its pods accepts on {accepting}/TCP what was sent to {dialled}/TCP, which its \
                     rules name"
                )
            }
            Self::OnLink { rule } => {
                write!(f, "{rule}: left out, it stays on the link, where pods have other addresses each time")
            }
            Self::Multicast { rule } => {
                write!(f, "{rule}: allowed by the group's address, which not every network plugin heeds")
            }
            Self::Tunnel { workload } => write!(
                f,
                "{workload}: 15008/TCP is the tunnel of an ambient mesh, and stands for all ports: limit them in the mesh"
            ),
            Self::OtherNetworks { workload, networks } => {
                let networks = networks.iter().map(|network| &**network).collect::<Vec<_>>().join(", ");
                write!(f, "{workload}: its pods have other networks ({networks}), which no NetworkPolicy limits")
            }
            Self::OtherLabels { workload, service, labels } => {
                let labels = labels.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "{workload}: rules select it by other labels than its Service {service} does ({labels}); where packets are \
                     judged by the Service's address, as on EKS, that is denied: have both select by the same labels"
                )
            }
            Self::ManyAddresses { workload, ports, blocks } => {
                write!(f, "{workload}: {blocks} addresses outside on {ports} that can't be merged within the limits")
            }
            Self::NoNames { workload } => {
                write!(f, "{workload}: sends, but was not seen to ask any DNS: its policy allows none")
            }
            Self::FailedOnly { source, attempts } => {
                let told = attempts.iter().take(ATTEMPTS_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
                write!(f, "{source}: left out, never established: {told}")?;
                match attempts.len().saturating_sub(ATTEMPTS_TOLD) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more (flowscribe sql: failed_attempts)"),
                }
            }
            Self::NoTraffic { workload } => {
                write!(f, "{workload}: no policy, no traffic that makes a rule was observed")
            }
            Self::NeverObserved { workload } => write!(f, "{workload}: no policy, it was never observed"),
            Self::NoSuchNamespace { namespace } => write!(f, "namespace {namespace}: no pod of it is known"),
            Self::NamespaceGone { namespace } => write!(f, "namespace {namespace}: no policies, it was deleted"),
            Self::NothingToOpen { service } => {
                write!(f, "--open-ingress {service}: no such Service is known with a pod behind it")
            }
            Self::NoDefaults { namespace, workloads } => {
                write!(f, "namespace {namespace}: no default-deny, it would cut off {}", told(workloads))
            }
        }
    }
}

/// Directions in words.
fn both(directions: &[Direction]) -> String {
    directions.iter().map(|direction| direction.as_str()).collect::<Vec<_>>().join(" and ")
}

fn told(workloads: &BTreeSet<Workload>) -> String {
    workloads.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Failed attempts of one source that are told one by one; a scan has thousands.
const ATTEMPTS_TOLD: usize = 5;
