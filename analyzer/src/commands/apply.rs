//! `flowscribe apply`: policies into a cluster, once what was recorded shows that they deny nothing of it.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;

use super::shared::capture::{Capture, CaptureError};
use crate::{
    cli::{self, ApplyArgs},
    communication::Edge,
    netpol::{
        manifests::{Manifests, ManifestsError},
        replay::{self, Denied, Terms},
    },
    output::{self, OutputError, note},
    publish::{
        cluster::{self, ClusterError, Manner, Name, Plan, Reach, Step},
        rollback::{Rollback, RollbackError},
    },
};

/// Why nothing is applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("nothing is applied: no policies in {0}")]
    NoPolicies(PathBuf),
    #[error("nothing is applied: no policies of {asked} in {path}, those there are of {there}")]
    NotOfNamespaces { asked: String, path: PathBuf, there: String },
    #[error("nothing is applied: {0}")]
    Invalid(String),
    #[error(
        "nothing is applied: no capture in the input, so that nothing tells whether the policies deny what is needed"
    )]
    NoCapture,
    #[error(
        "nothing is applied: with the policies of the cluster, these would deny what was recorded ({count}); make \
         others of the capture, or forbid it with --decisions:\n{denied}"
    )]
    Denies { count: usize, denied: String },
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Applies policies; whether all of them are in force.
///
/// # Errors
/// They can't be read, are not valid, or would deny what was recorded: then nothing is changed.
pub(crate) async fn run(args: &ApplyArgs) -> Result<bool, ApplyError> {
    let ApplyArgs { of, policies, input, learn, namespaces, dry_run, force_conflicts, no_own_node, rollback } = args;
    let Manifests { policies: wanted, problems, .. } = Manifests::read(policies)?;
    if let Some(problem) = problems.first() {
        return Err(ApplyError::Invalid(problem.clone()));
    }
    let namespaces = cli::names(namespaces);
    if wanted.is_empty() {
        return Err(ApplyError::NoPolicies(policies.clone()));
    }
    let there: BTreeSet<Arc<str>> = wanted.iter().map(|policy| cluster::name(policy).0).collect();
    let is_wanted = |policy: &NetworkPolicy| namespaces.is_empty() || namespaces.contains(&cluster::name(policy).0);
    let wanted: Vec<NetworkPolicy> = wanted.into_iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        let told = |names: BTreeSet<Arc<str>>| names.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
        let path = policies.clone();
        return Err(ApplyError::NotOfNamespaces { asked: told(namespaces), path, there: told(there) });
    }
    let client = of.connect().await?;
    let namespaces = if namespaces.is_empty() { there } else { namespaces };
    let reach = Reach { namespaces, ..Reach::default() };
    let plan = Plan::new(wanted, cluster::policies(&client).await?, &reach);
    let capture = Capture::read(input, learn).await?;
    if capture.open.files.is_empty() {
        return Err(ApplyError::NoCapture);
    }
    output::skipped(&capture.open.problems);
    capture.check(input, &reach.namespaces)?;
    let terms = Terms { own_node_exempt: !no_own_node, ..Terms::default() };
    verify(&plan, &capture, &terms)?;
    let manner = Manner { is_dry: *dry_run, takes_over: *force_conflicts };
    tell_left(&plan, "are not asked for");
    carry_out(&plan, &client, manner, &Rollback::Directory(rollback.clone()), &of.kubectl()).await
}

/// Tells of policies that flowscribe applied in other namespaces.
pub(crate) fn tell_left(plan: &Plan, why: &str) {
    let left = cluster::told(plan.left());
    if !left.is_empty() {
        note!("left as they are, of namespaces that {why}: {left}");
    }
}

/// Replays what was observed over all policies that would be in force.
///
/// # Errors
/// They deny anything without explanation, or one is not valid.
pub(crate) fn verify(plan: &Plan, capture: &Capture, terms: &Terms) -> Result<(), ApplyError> {
    let (verdict, invalid) = replay::replay(capture.sets(), &capture.population, plan.after(), terms);
    if let Some(invalid) = invalid.first() {
        return Err(ApplyError::Invalid(invalid.to_string()));
    }
    if verdict.unjudged > 0 {
        note!("{} observed edges are not judged: no pods of an end are known", verdict.unjudged);
    }
    let unexplained = verdict.denied.iter().filter(|denied| denied.explanation.is_none());
    // What is denied now, and by nothing that changes, is not for this to mend.
    let is_of_others = |denied: &&Denied<'_>| {
        !denied.by.iter().flat_map(|denial| &denial.policies).any(|policy| plan.is_wanted(policy))
    };
    let (others, mut wrong): (Vec<_>, Vec<_>) = unexplained.partition(is_of_others);
    if !others.is_empty() {
        let (now, _) = replay::replay(capture.sets(), &capture.population, plan.now(), terms);
        let is_denied = |edge: &Edge| now.denied.iter().any(|denied| denied.edge == edge);
        let (old, new): (Vec<_>, Vec<_>) = others.into_iter().partition(|denied| is_denied(denied.edge));
        for denied in old {
            note!("already so, and left so: {denied}");
        }
        wrong.extend(new);
    }
    match wrong.len() {
        0 => Ok(()),
        count => {
            let denied = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            Err(ApplyError::Denies { count, denied })
        }
    }
}

/// Carries a plan out, and tells what became of each policy and how to go back; whether all went well.
///
/// # Errors
/// What is needed to go back can't be kept: then nothing is changed.
pub(crate) async fn carry_out(
    plan: &Plan,
    client: &Client,
    manner: Manner,
    rollback: &Rollback,
    kubectl: &str,
) -> Result<bool, ApplyError> {
    let before = plan.before(manner);
    // Before anything is changed, so that it is there whatever happens.
    if !manner.is_dry && (!before.is_empty() || plan.missing().next().is_some()) {
        let back = if before.is_empty() { None } else { Some(rollback.keep(&before, kubectl).await?) };
        note!("to go back from what follows:");
        if let Some(back) = back {
            note!("  {back}");
        }
        for (namespace, name) in plan.missing().map(cluster::name) {
            note!("  {kubectl} delete networkpolicy --ignore-not-found --namespace {namespace} {name}");
        }
    }
    let dry = if manner.is_dry { " (dry run)" } else { "" };
    let (mut is_well, mut skipped) = (true, BTreeSet::new());
    let tell = |(namespace, name): Name, step: Result<Step, String>| {
        match step {
            Ok(Step::Skipped) => drop(skipped.insert(namespace)),
            Ok(step) => {
                let line = format!("networkpolicy.networking.k8s.io/{name} {step} in {namespace}{dry}\n");
                return output::write(&line, None);
            }
            Err(error) => {
                is_well = false;
                note!("{namespace}/{name}: {error}");
            }
        }
        Ok(())
    };
    plan.carry_out(client, manner, tell).await?;
    for namespace in &skipped {
        note!("skipped what is of {namespace}: there is no such namespace");
    }
    // Some may be gone; all are those of another cluster.
    let of_all: BTreeSet<Arc<str>> = plan.wanted().map(|policy| cluster::name(policy).0).collect();
    Ok(is_well && (skipped.is_empty() || skipped != of_all))
}
