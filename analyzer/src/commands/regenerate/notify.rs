//! What a run tells others: Prometheus metrics, and Events of the policies that changed.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::{core::v1::ObjectReference, networking::v1::NetworkPolicy};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use kubernetes::reason;
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};

use crate::{
    netpol::Difference,
    output::{self, OutputError, note},
    publish::cluster::{self, Name, Plan, Step, is_ending, is_same},
};

/// Why metrics can't be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error(transparent)]
    Write(#[from] OutputError),
    #[error("cannot push metrics to {url}")]
    Push {
        url: String,
        #[source]
        source: reqwest::Error,
    },
}

/// What one run came to.
pub(super) struct Metrics {
    began: SystemTime,
    registry: Registry,
    success: Gauge,
    ended: Gauge,
    seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    policies: Gauge,
    edges: [Gauge; 2],
    cluster: [Gauge; 2],
    missing: Gauge,
    different: Gauge,
}

impl Metrics {
    pub(super) fn new(began: SystemTime) -> Self {
        let mut registry = Registry::with_prefix("flowscribe_regenerate");
        let metrics = Self {
            began,
            success: Gauge::default(),
            ended: Gauge::default(),
            seconds: Gauge::default(),
            policies: Gauge::default(),
            edges: Default::default(),
            cluster: Default::default(),
            missing: Gauge::default(),
            different: Gauge::default(),
            registry: Registry::default(),
        };
        let all = [
            ("last_run_success", "Whether the last run went well", &metrics.success),
            ("last_run_timestamp_seconds", "When the last run ended, in Unix time", &metrics.ended),
            ("policies", "Policies of the set", &metrics.policies),
            ("edges_added", "Edges that the set allows and the last one did not", &metrics.edges[0]),
            ("edges_removed", "Edges that the last set allowed and this one does not", &metrics.edges[1]),
            ("cluster_edges_missing", "Edges that the set allows and the cluster does not", &metrics.cluster[0]),
            ("cluster_edges_extra", "Edges that the cluster allows and the set does not", &metrics.cluster[1]),
            ("cluster_policies_missing", "Policies of the set that are not in the cluster", &metrics.missing),
            ("cluster_policies_different", "Policies of ours that are otherwise in the cluster", &metrics.different),
        ];
        for (name, help, gauge) in all {
            registry.register(name, help, gauge.clone());
        }
        registry.register("last_run_duration_seconds", "How long the last run took", metrics.seconds.clone());
        Self { registry, ..metrics }
    }

    /// The set, and how it differs from the last one.
    pub(super) fn set(&self, policies: usize, difference: &Difference) {
        self.policies.set(policies as i64);
        set(&self.edges, difference);
    }

    /// How the set differs from what is in the cluster.
    pub(super) fn set_cluster(&self, difference: &Difference, plan: &Plan) {
        set(&self.cluster, difference);
        self.missing.set(plan.missing().count() as i64);
        self.different.set(plan.drifted().count() as i64);
    }

    /// Tells them, where somebody reads them.
    ///
    /// # Errors
    /// The file can't be written, or the gateway does not take them.
    pub(super) async fn tell(
        &self,
        is_well: bool,
        file: Option<&Path>,
        gateway: Option<&str>,
    ) -> Result<(), MetricsError> {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.success.set(i64::from(is_well));
        self.ended.set(seconds(SystemTime::now()) as i64);
        self.seconds.set(self.began.elapsed().unwrap_or_default().as_secs_f64());
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        if let Some(file) = file {
            output::write(&text, Some(file))?;
        }
        if let Some(gateway) = gateway {
            let url = format!("{}/metrics/job/flowscribe-regenerate", gateway.trim_end_matches('/'));
            let pushed = async {
                let client = reqwest::Client::builder().timeout(PUSH_TIMEOUT).build()?;
                client.put(&url).body(text).send().await?.error_for_status()
            };
            pushed.await.map_err(|source| MetricsError::Push { url: url.clone(), source: source.without_url() })?;
        }
        Ok(())
    }
}

fn set(gauges: &[Gauge; 2], difference: &Difference) {
    for (gauge, count) in gauges.iter().zip(difference.counts()) {
        gauge.set(count as i64);
    }
}

/// Tells of policies that are in the cluster otherwise than in the set; not of what this run changed in the set, `last`
/// being the set before it.
pub(super) async fn drifted(client: &Client, plan: &Plan, last: &[NetworkPolicy]) {
    let last = by_name(last);
    let is_of_last = |policy: &NetworkPolicy| last.get(&cluster::name(policy)).is_some_and(|of| is_same(of, policy));
    let there = plan.drifted().filter(|(policy, _)| !is_of_last(policy)).map(|(policy, step)| match step {
        Step::Pruned => (policy, "the set has no such policy any more"),
        _ => (policy, "it is not what the set has: flowscribe apply makes it so"),
    });
    let missing = plan.missing().filter(|policy| plan.was_applied() && last.contains_key(&cluster::name(policy)));
    let missing = missing.map(|policy| (policy, "it is not in the cluster: flowscribe apply makes it"));
    let told = |(policy, note): (&NetworkPolicy, &str)| {
        (policy.object_ref(&()), "PolicyDrift", EventType::Warning, note.to_owned())
    };
    publish(client, there.chain(missing).map(told).collect()).await;
}

/// Tells of policies that are new, changed or gone, each with its edges that changed.
pub(super) async fn changed(client: &Client, last: &[NetworkPolicy], new: &[NetworkPolicy], difference: &Difference) {
    let (last, new) = (by_name(last), by_name(new));
    let mut told = Vec::new();
    for (name, policy) in &new {
        let reason = match last.get(name) {
            None => "PolicyAdded",
            Some(before) if !is_same(before, policy) => "PolicyChanged",
            Some(_) => continue,
        };
        told.push((policy.object_ref(&()), reason, EventType::Normal, note(name, difference)));
    }
    for (name, policy) in last.iter().filter(|(name, _)| !new.contains_key(*name)) {
        told.push((policy.object_ref(&()), "PolicyRemoved", EventType::Normal, note(name, difference)));
    }
    publish(client, told).await;
}

fn by_name(policies: &[NetworkPolicy]) -> BTreeMap<Name, &NetworkPolicy> {
    policies.iter().map(|policy| (cluster::name(policy), policy)).collect()
}

/// The lines of a difference that a policy is about, as many as an Event takes.
fn note((namespace, name): &Name, difference: &Difference) -> String {
    let workload = format!("{namespace}/{}", name.trim_end_matches("-network"));
    let is_about = |line: &str| line.split([' ', ':']).any(|word| word == workload);
    let mut note = String::new();
    for (sign, line) in difference.lines().iter().filter(|(_, line)| is_about(line)) {
        let line = format!("{sign} {line}");
        if note.len() + line.len() + 2 > NOTE_BYTES {
            note += "; and more";
            break;
        }
        if !note.is_empty() {
            note += "; ";
        }
        note += &line;
    }
    if note.is_empty() { difference.summary() } else { note }
}

/// Publishes Events. One that can't be is told, and keeps nothing else from its work.
async fn publish(client: &Client, events: Vec<(ObjectReference, &'static str, EventType, String)>) {
    let recorder = Recorder::new(client.clone(), Reporter { controller: CONTROLLER.into(), instance: None });
    let dropped = events.len().saturating_sub(MOST_EVENTS);
    for (of, event, type_, note) in events.into_iter().take(MOST_EVENTS) {
        let event =
            Event { type_, reason: event.into(), note: Some(note), action: "Regenerate".into(), secondary: None };
        match recorder.publish(&event, &of).await {
            Ok(()) => {}
            // None of the others can be either.
            Err(kube::Error::Api(status)) if status.code == 403 && !is_ending(&status) => {
                note!("cannot publish Events: who runs this needs {RULE}");
                return;
            }
            Err(error) => {
                let name = of.name.unwrap_or_default();
                note!("cannot publish an Event of {name}: {}", reason(&error));
            }
        }
    }
    if dropped > 0 {
        note!("{dropped} more Events are not published");
    }
}

/// What publishing takes.
const RULE: &str = "{ apiGroups: [\"events.k8s.io\"], resources: [events], verbs: [create, patch] }";
const CONTROLLER: &str = "flowscribe.io/regenerate";
/// What an Event's note may have.
const NOTE_BYTES: usize = 1000;
/// More of a run would bury the others.
const MOST_EVENTS: usize = 100;
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
