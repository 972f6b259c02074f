//! `flowscribe connectivity`: what policies allow between the workloads of manifests, and with the outside.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use crate::{
    cli::{ConnectivityArgs, ConnectivityFormat},
    communication::{Direction, Workload},
    netpol::{
        Allowed, Connections, Enforcement, Party,
        manifests::{Manifests, ManifestsError},
        ranges,
    },
    output::{self, OutputError},
};

/// Why connectivity can't be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectivityError {
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    #[error("some of the manifests are not valid: what is listed may be wrong")]
    Invalid,
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// One end of a listed connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// First and last address of a range outside of the cluster.
    Range(IpAddr, IpAddr),
    Workload(Workload),
}

/// Lists what is allowed.
///
/// # Errors
/// The manifests can't be read; or some are not valid, after the rest was listed.
pub(crate) fn run(args: &ConnectivityArgs) -> Result<(), ConnectivityError> {
    let ConnectivityArgs { manifests, format, output } = args;
    let manifests = Manifests::read(manifests)?;
    let (list, invalid) = list(&manifests);
    let text = match format {
        ConnectivityFormat::Text => {
            let mut lines: Vec<String> = list.iter().map(|(ends, allowed)| line(ends, allowed)).collect();
            lines.sort();
            lines.concat()
        }
        ConnectivityFormat::Json => output::json(&Allowed::list(&list))?,
    };
    output::write(&text, output.as_deref())?;
    output::skipped(manifests.problems.iter().chain(&invalid));
    if invalid.is_empty() && manifests.problems.is_empty() { Ok(()) } else { Err(ConnectivityError::Invalid) }
}

/// Everything that is allowed between two different ends; and the policies that are not valid, in words.
fn list(manifests: &Manifests) -> (BTreeMap<(Peer, Peer), Connections>, Vec<String>) {
    let Manifests { policies, population, .. } = manifests;
    let subjects = population.subjects();
    let (enforcement, invalid) = Enforcement::new(policies, &subjects, &population.namespaces);
    let members = population.members.iter().enumerate();
    let pods = members.map(|(number, member)| (Peer::Workload(member.workload.clone()), Party::Subject(number)));
    let pods: Vec<(Peer, Party)> = pods.collect();
    let with_outside = |direction| {
        let ranges = ranges(enforcement.blocks(direction)).into_iter();
        let outside = ranges.map(|(first, last)| (Peer::Range(first, last), Party::Address(first)));
        pods.iter().cloned().chain(outside).collect::<Vec<_>>()
    };
    let (sources, destinations) = (with_outside(Direction::Ingress), with_outside(Direction::Egress));
    let mut list: BTreeMap<(Peer, Peer), Connections> = BTreeMap::new();
    for (from, source) in &sources {
        for (to, destination) in &destinations {
            let are_outside = matches!((from, to), (Peer::Range(..), Peer::Range(..)));
            if from == to || are_outside {
                continue;
            }
            let allowed = enforcement.connections(*source, *destination);
            if !allowed.is_none() {
                *list.entry((from.clone(), to.clone())).or_default() |= &allowed;
            }
        }
    }
    (list, invalid.iter().map(ToString::to_string).collect())
}

fn line((from, to): &(Peer, Peer), allowed: &Connections) -> String {
    format!("{from} => {to} : {allowed}\n")
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(first, last) => write!(f, "{first}-{last}[External]"),
            Self::Workload(workload) => write!(f, "{workload}[{}]", workload.kind),
        }
    }
}
