//! `flowscribe connectivity`: what policies allow between the workloads of manifests, and with the outside.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;

use crate::{
    cli::{ConnectivityArgs, ConnectivityFormat},
    communication::Direction,
    netpol::{
        Allowed, Connections, End, Enforcement, Pairs, Party, join,
        manifests::{Manifests, ManifestsError},
        may_hold_pods,
    },
    output::{self, OutputError, notes},
};

/// Why connectivity can't be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectivityError {
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    #[error("some of the manifests are not valid: what is listed may be wrong")]
    Invalid,
    #[error("no manifests of pods, or of what makes them, in {0}")]
    Nothing(std::path::PathBuf),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// One end of a listed connection, in words.
struct Listed<'a>(&'a End);

/// Lists what is allowed.
///
/// # Errors
/// The manifests can't be read; or some are not valid, after the rest was listed.
pub(crate) fn run(args: &ConnectivityArgs) -> Result<(), ConnectivityError> {
    let ConnectivityArgs { manifests: path, format, output } = args;
    let manifests = Manifests::read(path)?;
    let is_empty = manifests.population.members.is_empty() && manifests.remarks.is_empty();
    if is_empty && manifests.problems.is_empty() {
        return Err(ConnectivityError::Nothing(path.clone()));
    }
    let (list, invalid, covering) = list(&manifests);
    let text = match format {
        ConnectivityFormat::Text => {
            let line =
                |((from, to), allowed): (&(End, End), _)| format!("{} => {} : {allowed}\n", Listed(from), Listed(to));
            let mut lines: Vec<String> = list.iter().map(line).collect();
            lines.sort();
            lines.concat()
        }
        ConnectivityFormat::Json => output::json(&Allowed::list(&list, |end| Listed(end).to_string()))?,
    };
    output::write(&text, output.as_deref())?;
    notes!("{}", manifests.remarks.iter().chain(&covering).map(|remark| format!("{remark}\n")).collect::<String>());
    output::skipped(manifests.problems.iter().chain(&invalid));
    if invalid.is_empty() && manifests.problems.is_empty() { Ok(()) } else { Err(ConnectivityError::Invalid) }
}

/// Everything that is allowed between two different ends; the policies that are not valid, and blocks of others that pods may
/// be in, in words.
fn list(manifests: &Manifests) -> (Pairs, Vec<String>, BTreeSet<String>) {
    let Manifests { policies, population, .. } = manifests;
    let subjects = population.subjects();
    let (enforcement, invalid) = Enforcement::new(policies, &subjects, &population.namespaces);
    let names = population.distinguished(&[&enforcement]);
    let ends: Vec<End> = names.into_iter().map(End::Workload).collect();
    let mut list = Pairs::new();
    let mut add = |from: &End, to: &End, allowed: &Connections| {
        if from != to && !allowed.is_none() {
            *list.entry((from.clone(), to.clone())).or_default() |= allowed;
        }
    };
    for (source, from) in ends.iter().enumerate() {
        for (destination, to) in ends.iter().enumerate() {
            add(from, to, &enforcement.connections(Party::Subject(source), Party::Subject(destination)));
        }
    }
    for direction in Direction::ALL {
        let has_v6 = enforcement.names_v6(direction);
        for (number, own) in ends.iter().enumerate() {
            for ((first, last), allowed) in enforcement.with_addresses(number, direction, has_v6) {
                let outside = End::Addresses(first, last);
                match direction {
                    Direction::Ingress => add(&outside, own, &allowed),
                    Direction::Egress => add(own, &outside, &allowed),
                }
            }
        }
    }
    let addresses: BTreeSet<_> = population.addresses.values().flatten().collect();
    let covers = |block: IpNet| match addresses.is_empty() {
        true => may_hold_pods(block),
        false => addresses.iter().any(|address| block.contains(*address)),
    };
    let covering = enforcement.blocks_by_policy().filter(|(_, block)| covers(*block));
    let covering = covering.map(|(policy, block)| {
        format!("{policy}: {block} may cover pods; whether an ipBlock allows them depends on the network plugin, and is not listed")
    });
    let covering = covering.collect();
    (join(list), invalid.iter().map(ToString::to_string).collect(), covering)
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            End::Addresses(first, last) => write!(f, "{first}-{last}[External]"),
            End::Workload(workload) => write!(f, "{workload}[{}]", workload.kind),
        }
    }
}
