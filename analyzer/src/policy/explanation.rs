//! What every rule rests on, and why something is in no rule: as text for people, and as JSON beside the policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use serde::Serialize;

use super::{PolicySet, Wish, Written};
use crate::{
    communication::{Direction, Edge, Endpoint, Evidence, Workload},
    netpol::{NAMESPACE_NAME, is_expressible, replay::Verdict},
    sets::{Completeness, Entry, Fate, Sets},
};

/// What all policies rest on.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// Of the capture's tables.
    schema_version: &'static str,
    tool_version: &'static str,
    /// The time that the capture tells of.
    from: Option<String>,
    to: Option<String>,
    /// Of all that was learned.
    completeness: CompletenessExplained,
    policies: Vec<PolicyExplained>,
    verification: Verification,
}

#[derive(Clone, Debug, Default, Serialize)]
struct PolicyExplained {
    namespace: String,
    name: String,
    /// As namespace/name; null for a policy of a whole namespace.
    workload: Option<String>,
    workload_kind: Option<String>,
    status: Option<&'static str>,
    reason: Option<String>,
    since: Option<String>,
    /// Observed part of its pods' time; null if none ran.
    coverage: Option<f64>,
    completeness: Option<CompletenessExplained>,
    pods: u64,
    rules: Vec<RuleExplained>,
    withheld: Vec<Withheld>,
    left_out: Vec<LeftOut>,
}

/// How much of what happens has been seen; of numbers, all are null where that can't be told.
#[derive(Clone, Debug, Serialize)]
struct CompletenessExplained {
    /// Of all that edges will do in another period of the same length, the part that known edges will do, from 0 to 1.
    next_period_coverage: Option<f64>,
    /// It is between these with 95 %.
    next_period_coverage_interval: Option<(f64, f64)>,
    /// Edges that are there and were not seen, at least.
    unseen_edges_at_least: Option<f64>,
    /// That is between these with 95 %.
    unseen_edges_interval: Option<(f64, f64)>,
    /// How many bins of time that rests on, and of how many hours each.
    bins: Option<u64>,
    bin_hours: Option<u32>,
    unknown: Option<String>,
}

impl CompletenessExplained {
    fn new(completeness: &Completeness) -> Self {
        let known = completeness.known();
        Self {
            next_period_coverage: known.map(|known| known.coverage),
            next_period_coverage_interval: known.map(|known| known.coverage_interval),
            unseen_edges_at_least: known.map(|known| known.unseen),
            unseen_edges_interval: known.map(|known| known.unseen_interval),
            bins: known.map(|known| known.bins),
            bin_hours: known.map(|known| known.bin_hours),
            unknown: completeness.unknown().map(str::to_owned),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct RuleExplained {
    direction: &'static str,
    peers: Vec<String>,
    ports: Vec<String>,
    observed: Vec<EdgeExplained>,
}

#[derive(Clone, Debug, Serialize)]
struct EdgeExplained {
    edge: String,
    status: &'static str,
    reason: String,
    recurrence: Option<&'static str>,
    connections: i64,
    failed: i64,
    hours: u64,
    days: usize,
    source_pods: usize,
    destination_pods: usize,
    /// Containers at either end, as far as their nodes' agents knew them.
    source_containers: Vec<String>,
    destination_containers: Vec<String>,
    bytes_sent: i64,
    bytes_received: i64,
    seen_by: Option<&'static str>,
    services: Vec<String>,
    first_seen: Option<String>,
    last_seen: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Withheld {
    direction: &'static str,
    reason: String,
}

#[derive(Clone, Debug, Serialize)]
struct LeftOut {
    edge: String,
    reason: String,
}

/// What a replay of the capture over the policies gave.
#[derive(Debug, Serialize)]
struct Verification {
    allowed: usize,
    denied: Vec<LeftOut>,
    /// Ranges of ports that are allowed between two workloads and were never observed, by reason.
    unseen: BTreeMap<&'static str, usize>,
    /// Observed edges of which no pods of an end are known.
    not_judged: usize,
    /// Those of the allowed that a person forbade.
    forbidden_and_allowed: Vec<String>,
}

impl Explanation {
    pub(crate) fn new(sets: &Sets, set: &PolicySet<'_>, verdict: &Verdict<'_>, wish: &Wish) -> Self {
        let mut left_out: BTreeMap<&Workload, Vec<LeftOut>> = BTreeMap::new();
        for (edge, (evidence, fate)) in &sets.edges {
            for end in [&edge.source, &edge.destination] {
                if let Endpoint::Workload(workload) = end
                    && !sets.is_dynamic(edge)
                    && let Some(reason) = why_not(edge, evidence, fate, end)
                {
                    left_out.entry(workload).or_default().push(LeftOut { edge: edge.to_string(), reason });
                }
            }
        }
        let mut explain = |written: &Written<'_>| {
            let left_out = written.workload.as_ref().and_then(|workload| left_out.remove(workload)).unwrap_or_default();
            PolicyExplained::new(sets, set, written, left_out)
        };
        let mut policies: Vec<PolicyExplained> = set.policies.iter().map(&mut explain).collect();
        // Who has no policy is explained too.
        let withheld = set.withheld.keys().map(|(workload, _)| workload);
        let silent: BTreeSet<&Workload> =
            withheld.chain(left_out.keys().copied()).filter(|workload| wish.wants(workload)).collect();
        let has_policy =
            |workload: &Workload| set.policies.iter().any(|written| written.workload.as_ref() == Some(workload));
        for workload in silent.into_iter().filter(|workload| !has_policy(workload)) {
            let left_out = left_out.remove(workload).unwrap_or_default();
            policies.push(PolicyExplained::of_workload(sets, set, workload, left_out));
        }
        let capture = sets.exposure.capture;
        let denied = verdict.denied.iter().map(|denied| LeftOut {
            edge: denied.edge.to_string(),
            reason: denied.explanation.clone().unwrap_or_else(|| denied.to_string()),
        });
        Self {
            schema_version: super::FORM_VERSION,
            tool_version: env!("CARGO_PKG_VERSION"),
            from: capture.map(|capture| capture.from.to_string()),
            to: capture.map(|capture| capture.to.to_string()),
            completeness: CompletenessExplained::new(&sets.completeness),
            policies,
            verification: Verification {
                allowed: verdict.allowed,
                not_judged: verdict.unjudged,
                forbidden_and_allowed: verdict.let_through.iter().map(ToString::to_string).collect(),
                denied: denied.collect(),
                unseen: verdict.unseen_edges().into_iter().map(|(excuse, count)| (excuse.as_str(), count)).collect(),
            },
        }
    }

    /// Of one policy or workload only, by namespace/name.
    ///
    /// # Errors
    /// There is none: the names that there are.
    pub(crate) fn of(mut self, wanted: &str) -> Result<Self, Vec<String>> {
        let is_wanted = |policy: &PolicyExplained| {
            policy.workload.as_deref() == Some(wanted) || format!("{}/{}", policy.namespace, policy.name) == wanted
        };
        if !self.policies.iter().any(is_wanted) {
            return Err(self.policies.iter().map(PolicyExplained::told).collect());
        }
        self.policies.retain(is_wanted);
        Ok(self)
    }

    /// As JSON, with a line feed at the end.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let texts: Vec<String> = self.policies.iter().map(PolicyExplained::text).collect();
        texts.join("\n")
    }
}

impl PolicyExplained {
    fn of_workload(sets: &Sets, set: &PolicySet<'_>, workload: &Workload, left_out: Vec<LeftOut>) -> Self {
        let learned = sets.workloads.get(workload);
        let time = sets.exposure.of(workload);
        let withheld = Direction::ALL.into_iter().filter_map(|direction| {
            let reason = set.withheld.get(&(workload.clone(), direction))?.clone();
            Some(Withheld { direction: direction.as_str(), reason })
        });
        Self {
            namespace: workload.namespace.to_string(),
            name: String::new(),
            workload: Some(workload.to_string()),
            workload_kind: Some(workload.kind.to_string()),
            status: learned.map(|set| set.status.as_str()),
            reason: learned.map(|set| set.reason.clone()),
            since: learned.and_then(|set| Some(set.since?.to_string())),
            coverage: time.and_then(|time| time.coverage()),
            completeness: learned.map(|set| CompletenessExplained::new(&set.completeness)),
            pods: time.map_or(0, |time| time.pods),
            rules: Vec::new(),
            withheld: withheld.collect(),
            left_out,
        }
    }

    fn new(sets: &Sets, set: &PolicySet<'_>, written: &Written<'_>, left_out: Vec<LeftOut>) -> Self {
        let Written { workload, policy, rules: observed } = written;
        let spec = policy.spec.as_ref();
        let ingress =
            spec.into_iter().flat_map(|spec| spec.ingress.iter().flatten()).map(|rule| (&rule.from, &rule.ports));
        let egress = spec.into_iter().flat_map(|spec| spec.egress.iter().flatten()).map(|rule| (&rule.to, &rule.ports));
        let rules =
            observed.iter().zip(ingress.chain(egress)).map(|((direction, edges), (peers, ports))| RuleExplained {
                direction: direction.as_str(),
                peers: peers.iter().flatten().map(peer_told).collect(),
                ports: ports.iter().flatten().map(port_told).collect(),
                observed: edges
                    .iter()
                    .filter_map(|edge| EdgeExplained::new(sets, edge, workload.as_ref(), *direction))
                    .collect(),
            });
        let (namespace, name) = (policy.metadata.namespace.clone(), policy.metadata.name.clone());
        let known = workload.as_ref().map(|workload| Self::of_workload(sets, set, workload, left_out));
        Self {
            namespace: namespace.unwrap_or_default(),
            name: name.unwrap_or_default(),
            rules: rules.collect(),
            ..known.unwrap_or_default()
        }
    }

    fn told(&self) -> String {
        match &self.workload {
            Some(workload) if self.name.is_empty() => workload.clone(),
            _ => format!("{}/{}", self.namespace, self.name),
        }
    }

    fn text(&self) -> String {
        let mut text = self.told();
        if self.name.is_empty() {
            text += " has no policy";
        }
        if let (Some(status), Some(reason)) = (self.status, &self.reason) {
            let _ = write!(text, ": {status}, {reason}");
        }
        if let Some(coverage) = self.coverage {
            let _ = write!(text, "; {} pods, {:.0} % of their time observed", self.pods, 100.0 * coverage);
        }
        text.push('\n');
        for RuleExplained { direction, peers, ports, observed } in &self.rules {
            let way = if *direction == "ingress" { "from" } else { "to" };
            let _ = writeln!(text, "  {direction} {way} {} on {}", peers.join(", "), ports.join(", "));
            for edge in observed {
                let _ = writeln!(text, "    {}", edge.text());
            }
            if observed.is_empty() {
                text += "    not observed\n";
            }
        }
        for Withheld { direction, reason } in &self.withheld {
            let _ = writeln!(text, "  {direction} is withheld: {reason}");
        }
        if !self.left_out.is_empty() {
            text += "  not in it\n";
        }
        for LeftOut { edge, reason } in &self.left_out {
            let _ = writeln!(text, "    {edge}: {reason}");
        }
        text
    }
}

impl EdgeExplained {
    fn new(sets: &Sets, edge: &Edge, workload: Option<&Workload>, direction: Direction) -> Option<Self> {
        let (evidence, fate) = sets.edges.get(edge)?;
        let own = match (workload, direction, &edge.source, &edge.destination) {
            (Some(workload), ..) => workload,
            (None, Direction::Egress, Endpoint::Workload(own), _)
            | (None, Direction::Ingress, _, Endpoint::Workload(own)) => own,
            _ => return None,
        };
        let is_this = |entry: &&Entry| entry.edge == *edge && entry.direction == direction;
        let entry = sets.workloads.get(own).and_then(|set| set.entries.iter().find(is_this));
        let was_seen = evidence.first_seen <= evidence.last_seen;
        Some(Self {
            edge: edge.to_string(),
            status: if matches!(fate, Fate::Pinned(_)) {
                "pinned"
            } else {
                entry.map_or("learning", |e| e.status.as_str())
            },
            reason: fate
                .told()
                .1
                .filter(|reason| !reason.is_empty())
                .map_or_else(|| entry.map(|entry| entry.reason.clone()).unwrap_or_default(), str::to_owned),
            recurrence: entry.and_then(|entry| entry.recurrence).map(|recurrence| recurrence.as_str()),
            connections: evidence.connections,
            failed: evidence.failed,
            hours: evidence.hours.len(),
            days: evidence.days(),
            source_pods: evidence.source_pods.len(),
            destination_pods: evidence.destination_pods.len(),
            source_containers: named(&evidence.source_containers),
            destination_containers: named(&evidence.destination_containers),
            bytes_sent: evidence.bytes_sent,
            bytes_received: evidence.bytes_received,
            seen_by: was_seen.then(|| evidence.seen_by()),
            services: evidence.services.iter().map(ToString::to_string).collect(),
            first_seen: was_seen.then(|| evidence.first_seen.to_string()),
            last_seen: was_seen.then(|| evidence.last_seen.to_string()),
        })
    }

    fn text(&self) -> String {
        let Self { edge, status, reason, connections, failed, hours, days, source_pods, destination_pods, .. } = self;
        let mut text = format!("{edge}: {connections} connections");
        if *failed > 0 {
            let _ = write!(text, ", {failed} failed");
        }
        let _ = write!(text, " in {hours} h of {days} d; {source_pods} → {destination_pods} pods");
        if let (Some(first), Some(last), Some(by)) = (&self.first_seen, &self.last_seen, self.seen_by) {
            let _ = write!(text, "; {first} to {last}, seen by {by}");
        }
        if !self.services.is_empty() {
            let _ = write!(text, "; dialled as {}", self.services.join(", "));
        }
        for (end, containers) in [("from", &self.source_containers), ("to", &self.destination_containers)] {
            if !containers.is_empty() {
                let _ = write!(text, "; {end} container {}", containers.join(", "));
            }
        }
        let _ = write!(text, "; {status}, {reason}");
        text
    }
}

/// The containers that have a name.
fn named(containers: &BTreeSet<Arc<str>>) -> Vec<String> {
    containers.iter().filter(|name| !name.is_empty()).map(ToString::to_string).collect()
}

/// Why an edge is not in the policy of one of its ends.
fn why_not(edge: &Edge, evidence: &Evidence, fate: &Fate, of: &Endpoint) -> Option<String> {
    let with =
        |word: &str, reason: &str| Some(if reason.is_empty() { word.to_owned() } else { format!("{word}, {reason}") });
    match fate {
        Fate::Held(reason) => with("held for review", reason),
        Fate::Forbidden(reason) => with("forbidden", reason),
        Fate::OwnNode => with("its own node may always reach it", ""),
        Fate::Failed if evidence.failed > 0 => {
            let failures = evidence.failures.iter().map(|failure| &**failure).collect::<Vec<_>>().join(", ");
            Some(format!("never established, {} failed ({failures})", evidence.failed))
        }
        Fate::Failed => None,
        Fate::Unanswered => Some("not answered: its destination was recorded, and nothing came".into()),
        Fate::Learned | Fate::Pinned(_) => {
            if !is_expressible(edge) {
                return with("an end is not known", "");
            }
            let is_ambiguous = !evidence.answered && matches!(fate, Fate::Learned) && *of == edge.destination;
            is_ambiguous.then(|| "no ingress: several stand behind the Service, and nobody saw this one answer".into())
        }
    }
}

/// A peer in words.
fn peer_told(peer: &NetworkPolicyPeer) -> String {
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
    if let Some(block) = ip_block {
        let except = block.except.as_deref().unwrap_or_default();
        return if except.is_empty() {
            block.cidr.clone()
        } else {
            format!("{} except {}", block.cidr, except.join(", "))
        };
    }
    let pods = pod_selector.as_ref().map_or_else(|| "all pods".into(), selector_told);
    match namespace_selector {
        None => pods,
        Some(selector) => {
            let of_name = selector.match_labels.as_ref().filter(|labels| labels.len() == 1);
            let name = of_name.and_then(|labels| labels.get(NAMESPACE_NAME).cloned());
            format!("{pods} of namespace {}", name.unwrap_or_else(|| selector_told(selector)))
        }
    }
}

/// A selector in words.
fn selector_told(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let values = e.values.as_deref().unwrap_or_default().join("|");
        format!("{} {} {values}", e.key, e.operator).trim_end().to_owned()
    });
    let told = labels.chain(expressions).collect::<Vec<_>>().join(",");
    if told.is_empty() { "all pods".into() } else { told }
}

fn port_told(port: &NetworkPolicyPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match (&port.port, port.end_port) {
        (None, _) => format!("all of {protocol}"),
        (Some(IntOrString::Int(first)), Some(last)) => format!("{first}-{last}/{protocol}"),
        (Some(IntOrString::Int(first)), None) => format!("{first}/{protocol}"),
        (Some(IntOrString::String(name)), _) => format!("{name}/{protocol}"),
    }
}
