//! `flowscribe regenerate`: the scheduled run that keeps a set of policies up to date.
//!
//! ```text
//! capture ──► Proposal ──► Files ─┐
//! Destination (directory, ConfigMap, Git) ──► last Files ─┴─ the same: silence
//!                                                   └─ not: new Files, Difference ──► Destination, Events, cluster (--apply)
//! ```
//!
//! What there is in the place is the last set: nothing else remembers it. A set is written whole, with the evidence of its
//! time and with what it allows that the last one did not; where policies say the same as before, nothing is.

mod hold_back;
mod notify;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::SystemTime};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kubernetes::lease::{self, EXPIRY, Lease};
use tokio::{task::AbortHandle, time::timeout};

use super::{
    apply::{self, ApplyError},
    shared::capture::{Capture, CaptureError, Proposal, ProposalError, check_readable},
};
use crate::policy::explanation::Explanation;
use crate::{
    cli::{Applied, PolicyFormat, RegenerateArgs},
    exit::Exit,
    netpol::{self, DifferenceError, manifests::Manifests, replay::Terms},
    output::{self, OutputError, note, notes},
    policy::Wish,
    publish::{
        cluster::{self, ClusterError, Manner, Plan, Reach},
        config_map::OwnConfigMap,
        destination::{Destination, DestinationError},
        directory::{self, Files, TreeError},
        git::Branch,
        rollback::Rollback,
    },
    sets::Sets,
};
use notify::{Metrics, MetricsError};

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegenerateError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("cannot compare with the last set")]
    Compare(#[source] DifferenceError),
    #[error("cannot compare with the cluster")]
    CompareCluster(#[source] DifferenceError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the set is written, but not all of it is applied, as told above")]
    NotApplied,
    #[error("cannot hold the lease {lease}: {problem}")]
    NoLease { lease: String, problem: String },
    #[error("the lease {0} was lost while this ran: another run has taken over")]
    LeaseLost(String),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the system tells no name or randomness")]
    System(#[source] std::io::Error),
}

/// Makes the set anew, and tells what is different.
///
/// # Errors
/// The capture can't be read, the last set not be compared with, or the new one not be written; then the last one stays.
pub(crate) async fn run(args: &RegenerateArgs) -> Result<Exit, RegenerateError> {
    let began = SystemTime::now();
    let metrics = Metrics::new(began);
    let ended = alone(args, &metrics).await;
    if matches!(ended, Ok(Exit::Busy)) {
        return ended;
    }
    let is_well = matches!(ended, Ok(Exit::Done | Exit::Changed));
    let told = metrics.tell(is_well, args.metrics_file.as_deref(), args.push_gateway.as_deref()).await;
    match (ended, told) {
        (Ok(Exit::Changed), told) if !args.exit_code => Ok(told.map(|()| Exit::Done)?),
        (Ok(ended), told) => Ok(told.map(|()| ended)?),
        (Err(error), told) => {
            // What failed first is what the run ends with.
            if let Err(untold) = told {
                note!("{:#}", anyhow::Error::new(untold));
            }
            Err(error)
        }
    }
}

/// Runs while holding the lease, if one is asked for.
async fn alone(args: &RegenerateArgs, metrics: &Metrics) -> Result<Exit, RegenerateError> {
    let needs_cluster =
        args.cluster || args.apply.is_some() || args.events || args.config_map.is_some() || args.lease.is_some();
    let client = if needs_cluster { Some(args.of.connect().await?) } else { None };
    let (Some(name), Some(of)) = (&args.lease, &client) else {
        return regenerate(args, client.as_ref(), metrics, None).await;
    };
    let identity = lease::identity().map_err(RegenerateError::System)?;
    let mut lease = Lease::new(of.clone(), name, args.lease_namespace.as_deref(), &identity);
    // That of a run that was killed is there for a while.
    if timeout(EXPIRY, lease.acquire()).await.is_err() {
        if let Some(problem) = lease.problem() {
            return Err(RegenerateError::NoLease { lease: lease.to_string(), problem: problem.into() });
        }
        note!("another run holds the lease {lease}: nothing is done");
        return Ok(Exit::Busy);
    }
    // A task of its own, since making a set may take longer than the lease lasts.
    let mut keeping = tokio::spawn(lease.keep());
    let held = Held { lease: lease.to_string(), keeping: keeping.abort_handle() };
    let ended = tokio::select! {
        ended = Box::pin(regenerate(args, client.as_ref(), metrics, Some(&held))) => ended,
        _ = &mut keeping => Err(RegenerateError::LeaseLost(held.lease)),
    };
    keeping.abort();
    lease.release().await;
    ended
}

/// A lease that a task keeps.
struct Held {
    lease: String,
    keeping: AbortHandle,
}

/// Whether this run is still the one that may change anything, if there is to be one only.
///
/// # Errors
/// Another one may have begun.
fn check(held: Option<&Held>) -> Result<(), RegenerateError> {
    match held {
        Some(held) if held.keeping.is_finished() => Err(RegenerateError::LeaseLost(held.lease.clone())),
        _ => Ok(()),
    }
}

async fn regenerate(
    args: &RegenerateArgs,
    client: Option<&Client>,
    metrics: &Metrics,
    held: Option<&Held>,
) -> Result<Exit, RegenerateError> {
    let place = place(args, client)?;
    let last = place.read().await?;
    let capture = Capture::read(&args.input, &args.learn).await?;
    output::skipped(&capture.open.problems);
    if capture.open.files.is_empty() {
        note!("the last set stays");
        return Err(CaptureError::NoCapture(args.input.told()).into());
    }
    // What is not seen would be taken for gone.
    if !last.is_empty() && capture.is_read_in_part() {
        note!("a part of the capture can't be read, as listed above: the last set stays");
        return Ok(Exit::Kept);
    }
    check_readable(&capture.open)?;
    let wish = args.policy.wish();
    // Without, the set would be empty: the last one stays.
    capture.check(&args.input, &wish.namespaces)?;
    let Proposal { set, verdict } = capture.propose(&wish)?;
    let policies: Vec<NetworkPolicy> = set.policies.iter().map(|written| written.policy.clone()).collect();
    let documents = capture.documents(&set, PolicyFormat::Kubernetes).map_err(OutputError::Yaml)?;
    let named = set.policies.iter().map(|written| &written.policy.metadata).zip(documents);
    let evidence = Explanation::new(capture.sets(), &set, &verdict, &wish).json();
    let mut files = directory::files(named, evidence)?;

    let before = parsed(&last);
    let population = netpol::with_former(&capture.population, &before);
    let difference = netpol::compare(&population, &before, &policies).map_err(RegenerateError::Compare)?;
    metrics.set(policies.len(), &difference);
    let is_changed = is_changed(&last, &files);
    check(held)?;
    if is_changed {
        files.insert(directory::DIFFERENCE.into(), difference.markdown());
        place.write(&last, &files, &difference).await?;
        output::write(&format!("{difference}written to {place}\n"), None)?;
        notes!("{}", capture.open.overlaps.text());
        for finding in &set.findings {
            note!("{finding}");
        }
        for edge in &verdict.let_through {
            note!("{edge}: forbidden, and allowed all the same");
        }
        if let Some(client) = client.filter(|_| args.events) {
            notify::changed(client, &before, &policies, &difference).await;
        }
    }
    if let Some(client) = client
        && (args.cluster || args.apply.is_some())
    {
        let there = cluster::policies(client).await?;
        let mut reach =
            Reach { namespaces: reached(&wish, capture.sets(), before.iter().chain(&policies)), ..Reach::default() };
        let mut plan = Plan::new(policies.clone(), there.clone(), &reach);
        compare_cluster(&capture, &plan, args.compare_others, metrics)?;
        if args.events {
            notify::drifted(client, &plan, &before).await;
        }
        if args.apply == Some(Applied::Stable) {
            reach.held = match hold_back::too_short(capture.sets(), args.learn.stable_after) {
                Some(why) => {
                    if !plan.is_in_force() {
                        note!("nothing is applied: {why} (--apply=all applies the set all the same)");
                    }
                    there.iter().chain(&policies).map(cluster::name).collect()
                }
                None => hold_back::held(&capture, &set, &wish, &there),
            };
            tell_held(&plan, &reach);
            plan = Plan::new(policies, there, &reach);
        }
        if args.apply.is_some() && !plan.is_in_force() {
            let terms = Terms { own_node_exempt: true, overlaps: set.overlaps.clone() };
            apply::verify(&plan, &capture, &terms)?;
            check(held)?;
            if wish.namespaces.is_empty() && reach.held.is_empty() {
                apply::tell_left(&plan, "no workload was recorded in");
            }
            let manner = Manner { is_dry: false, takes_over: false };
            let (rollback, kubectl) = (rollback(args, client), args.of.kubectl());
            if !apply::carry_out(&plan, client, manner, &rollback, &kubectl).await? {
                return Err(RegenerateError::NotApplied);
            }
        }
    }
    Ok(if is_changed { Exit::Changed } else { Exit::Done })
}

/// The namespaces that a set is about: those that are asked for, or else those that anything is known of, and those of the
/// last set.
fn reached<'a>(wish: &Wish, sets: &Sets, policies: impl Iterator<Item = &'a NetworkPolicy>) -> BTreeSet<Arc<str>> {
    if !wish.namespaces.is_empty() {
        return wish.namespaces.clone();
    }
    let known = sets.workloads.keys().map(|workload| Arc::clone(&workload.namespace));
    policies.map(|policy| cluster::name(policy).0).chain(known).collect()
}

/// Tells what of a plan is not carried out.
fn tell_held(plan: &Plan, reach: &Reach) {
    let held = cluster::told(plan.unmet().chain(plan.unwanted()).filter(|name| reach.held.contains(name)));
    if !held.is_empty() {
        note!(
            "left as it is, as not enough was seen of its pods, or of others of its namespace (--apply=all changes it all \
             the same): {held}"
        );
    }
}

/// Where what is there is kept before it is changed.
fn rollback(args: &RegenerateArgs, client: &Client) -> Rollback {
    match (&args.rollback, &args.config_map) {
        (None, Some((namespace, name))) => {
            Rollback::ConfigMap(Box::new(OwnConfigMap::new(client.clone(), namespace, &format!("{name}-rollback"))))
        }
        (directory, _) => Rollback::Directory(directory.clone().unwrap_or_else(|| PathBuf::from("."))),
    }
}

/// The policies of files. What is not valid was damaged, or is of somebody else, and counts as not there.
fn parsed(files: &Files) -> Vec<NetworkPolicy> {
    let mut manifests = Manifests::default();
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".yaml")) {
        manifests.read_text(text, name);
    }
    manifests.policies.retain(netpol::is_valid);
    manifests.policies
}

/// Whether policies are different, were added, or are to be removed. Evidence grows with every hour, and alone is no
/// change.
fn is_changed(last: &Files, new: &Files) -> bool {
    let is_news = |(name, text): (&String, &String)| name.ends_with(".yaml") && last.get(name) != Some(text);
    match directory::removed(last, new) {
        // Writing will say what is in the way.
        Err(_) => true,
        Ok(removed) => !removed.is_empty() || new.iter().any(is_news),
    }
}

/// Says how the cluster differs from the set, if it does; where nothing of it was ever applied, to metrics alone.
fn compare_cluster(
    capture: &Capture,
    plan: &Plan,
    compare_others: bool,
    metrics: &Metrics,
) -> Result<(), RegenerateError> {
    // The server took them; what only we can't read is no reason to say nothing.
    let is_compared =
        |policy: &&NetworkPolicy| (compare_others || cluster::has_label(policy)) && netpol::is_valid(policy);
    let there: Vec<NetworkPolicy> = plan.now().filter(is_compared).cloned().collect();
    let after: Vec<NetworkPolicy> = plan.after().filter(is_compared).cloned().collect();
    let drift = netpol::compare(&capture.population, &there, &after).map_err(RegenerateError::CompareCluster)?;
    metrics.set_cluster(&drift, plan);
    if !plan.was_applied() {
        return Ok(());
    }
    let missing = cluster::told(plan.missing().map(cluster::name));
    if !missing.is_empty() {
        note!("not in the cluster: {missing}");
    }
    let drifted = cluster::told(plan.drifted().map(|(policy, _)| cluster::name(policy)));
    if !drifted.is_empty() {
        note!("in the cluster, not as they should be: {drifted}");
    }
    if !drift.is_none() {
        notes!("the set would change what the cluster allows:\n{drift}");
    }
    Ok(())
}

/// The place that is asked for: one of them has to be.
///
/// # Errors
/// It is no Git repository.
fn place(args: &RegenerateArgs, client: Option<&Client>) -> Result<Destination, DestinationError> {
    if let Some(repository) = &args.git {
        return Ok(Destination::Git(Branch::open(repository, &args.git_branch, &args.git_path)?));
    }
    match (&args.config_map, client) {
        (Some((namespace, name)), Some(client)) => {
            Ok(Destination::ConfigMap(Box::new(OwnConfigMap::new(client.clone(), namespace, name))))
        }
        _ => Ok(Destination::Directory(args.output.clone().unwrap_or_default())),
    }
}
