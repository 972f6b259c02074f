//! `flowscribe backtest`: policies of the past, tried on what came later.
//!
//! ```text
//! until the split ──learn──► Sets ──► policies ─┐
//! from the split on ────────► Communications ───┴─replay──► what would have been denied, and what was never used again
//! ```
//!
//! Of the past, only what was known then is used: inventory and health end with it too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use roaring::RoaringBitmap;
use schemas::{
    hour::{Hour, HourRange},
    index::Index,
    table::TimestampMs,
    vocabulary::Transport,
};
use serde::Serialize;

use super::shared::capture::{self, CaptureError};
use crate::{
    capture::{Names, OpenCapture, OpenError},
    cli::{BacktestArgs, BacktestFormat},
    communication::{Direction, Edge, Endpoint, Evidence, Workload},
    edge::WorkError,
    netpol::{
        population::Population,
        replay::{self, Denied, Terms},
    },
    output::{self, OutputError},
    policy::{self, PolicyError, Wish},
    sets::{Dynamic, Estimate, Fate, Sets},
};

/// Why nothing can be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BacktestError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read the capture")]
    Work(#[from] WorkError),
    #[error("there are no flows in the capture")]
    NoFlows,
    #[error("nothing is left on one side of {split}: the capture has flows from {first} to {last}")]
    OneSided { split: TimestampMs, first: TimestampMs, last: TimestampMs },
    #[error("cannot make policies of the past, please report this")]
    Policy(#[from] PolicyError),
    #[error("the policies are not valid, please report this: {0}")]
    Invalid(String),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("cannot write the result as JSON")]
    Json(#[from] serde_json::Error),
}

/// What came of one split.
#[derive(Debug, Serialize)]
struct Backtest {
    /// Learned from what was before, replayed what came from then on.
    split: String,
    learned_hours: i64,
    replayed_hours: i64,
    total: Counts,
    workloads: Vec<WorkloadTried>,
    dynamic_ports: Vec<DynamicPortsTried>,
}

/// What would have become of connections to ports that differ each time, by what a person may decide.
#[derive(Debug, Serialize)]
struct DynamicPortsTried {
    destination: String,
    transport: &'static str,
    /// How many were seen before the split.
    ports: usize,
    later_connections: i64,
    /// Of them those that are denied if the ports that were seen are allowed, and no others.
    denied_by_ports_seen: i64,
    /// A range that allows ports to come, and what is denied all the same.
    range: String,
    denied_by_range: i64,
}

/// Edges and connections of a workload, or of all.
#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    /// Edges that the past's policies allow, as they were learned.
    learned: usize,
    /// Of them those that were seen later.
    used_again: usize,
    /// Edges that were seen later, and what would have become of them.
    later: usize,
    later_connections: i64,
    denied: usize,
    denied_connections: i64,
    /// What was foretold of the part of all that edges did later which known edges did; null where it could not be.
    predicted_coverage: Option<f64>,
    predicted_interval: Option<(f64, f64)>,
    /// That part, as it came; null where nothing came.
    coverage: Option<f64>,
}

#[derive(Debug, Serialize)]
struct WorkloadTried {
    workload: String,
    workload_kind: String,
    /// How sure its set was at the split; null if it was not there yet.
    status: Option<&'static str>,
    /// Directions that its policy left open, and why.
    open: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    counts: Counts,
    denied_edges: Vec<DeniedEdge>,
    /// Allowed, and never used again.
    unused_edges: Vec<UnusedEdge>,
}

#[derive(Debug, Serialize)]
struct DeniedEdge {
    edge: String,
    /// Which side's policy, and whose.
    denied_by: Vec<String>,
    connections: i64,
    hours: u64,
    first_seen: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct UnusedEdge {
    edge: String,
    status: &'static str,
    last_seen: String,
}

/// Tries every split, and prints what came of it.
///
/// # Errors
/// The capture can't be read, or has nothing on one side of a split.
pub(crate) async fn run(args: &BacktestArgs) -> Result<(), BacktestError> {
    let BacktestArgs { input, learn, policy, split, format, output } = args;
    let (mut capture, learning) = capture::open(input, learn).await?;
    let wish = policy.wish();
    let read = async |capture: &OpenCapture| {
        let names = capture.names()?;
        let hours = capture.flows.hours().ok_or(BacktestError::NoFlows)?;
        let HourRange { first, last } = hours;
        let mut tried = Vec::new();
        for split in split {
            let at = split.hour(hours);
            if at <= first || at > last {
                let [split, first, last] = [at, first, last.next()].map(Hour::start);
                return Err(BacktestError::OneSided { split, first, last });
            }
            let time = at.start();
            let (runs, index) = capture.as_of(time);
            let index = Arc::new(index);
            let past =
                capture.flows.as_known(Arc::clone(&index)).communications_in(HourRange::new(first, Hour(at.0 - 1)))?;
            let sets = Sets::learn(past, &index, &runs, &learning.decisions, learning.thresholds);
            let later = capture.flows.communications_in(HourRange::new(at, last))?;
            let later = Sets::learn(later, &capture.index, &capture.runs, &learning.decisions, learning.thresholds);
            let hours = (at.0 - first.0, last.0 + 1 - at.0);
            let trial = Trial { sets: &sets, index: &index, later: &later, wish: &wish, hours };
            tried.push(trial.run(time, &names, &Population::of_index(&capture.index))?);
        }
        Ok(tried)
    };
    let tried = capture.read(read).await?;
    let text = match format {
        BacktestFormat::Table => tried.iter().map(Backtest::text).collect::<Vec<_>>().join("\n"),
        BacktestFormat::Json => serde_json::to_string_pretty(&tried)? + "\n",
    };
    output::write(&text, output.as_deref())?;
    output::skipped(&capture.problems);
    Ok(())
}

/// One split.
struct Trial<'a> {
    /// What was learned before it.
    sets: &'a Sets,
    index: &'a Index,
    /// What came from then on.
    later: &'a Sets,
    wish: &'a Wish,
    hours: (i64, i64),
}

impl Trial<'_> {
    fn run(&self, split: TimestampMs, names: &Names, population: &Population) -> Result<Backtest, BacktestError> {
        let Self { sets, index, later, wish, hours } = self;
        let past_population = Population::of_index(index);
        let set = policy::synthesize(sets, index, &past_population, names, wish)?;
        let policies = set.policies.iter().map(|written| &written.policy);
        let terms = Terms { own_node_exempt: true, overlaps: set.overlaps.clone() };
        let (verdict, invalid) = replay::replay(later, population, policies, &terms);
        if let Some(invalid) = invalid.first() {
            return Err(BacktestError::Invalid(invalid.to_string()));
        }
        let mut tried: BTreeMap<&Workload, WorkloadTried> = BTreeMap::new();
        let mut total = Counts::default();
        let wanted = |end| workload_of(end).filter(|workload| wish.wants(workload));
        let denied: BTreeMap<&Edge, &Denied<'_>> = verdict.denied.iter().map(|denied| (denied.edge, denied)).collect();
        let is_seen = |evidence: &Evidence| evidence.is_established();
        let was_later = |edge: &Edge| later.edges.get(edge).is_some_and(|(evidence, _)| is_seen(evidence));
        let withheld = &set.withheld;
        for (workload, set) in sets.workloads.iter().filter(|(workload, _)| wish.wants(workload)) {
            let tried = tried.entry(workload).or_insert_with(|| WorkloadTried::new(workload));
            tried.status = Some(set.status.as_str());
            tried.counts.predict(set.completeness.known());
            for direction in Direction::ALL {
                if let Some(reason) = withheld.get(&(workload.clone(), direction)) {
                    tried.open.insert(direction.as_str(), reason.clone());
                }
            }
            for entry in &set.entries {
                let Some((evidence, fate)) = sets.edges.get(&entry.edge).filter(|(_, fate)| fate.is_allowed()) else {
                    continue;
                };
                tried.counts.learned += 1;
                if was_later(&entry.edge) {
                    tried.counts.used_again += 1;
                } else if !matches!(fate, Fate::Pinned(_)) {
                    tried.unused_edges.push(UnusedEdge {
                        edge: entry.told(),
                        status: entry.status.as_str(),
                        last_seen: evidence.last_seen.to_string(),
                    });
                }
            }
        }
        for (edge, (_, fate)) in &sets.edges {
            if fate.is_allowed() && (wanted(&edge.source).is_some() || wanted(&edge.destination).is_some()) {
                total.learned += 1;
                total.used_again += usize::from(was_later(edge));
            }
        }
        for (edge, (evidence, fate)) in later.edges.iter().filter(|(_, (evidence, _))| is_seen(evidence)) {
            if matches!(fate, Fate::OwnNode | Fate::Forbidden(_) | Fate::Unanswered) {
                continue;
            }
            let denied = denied.get(edge);
            let ends = [(Direction::Egress, &edge.source), (Direction::Ingress, &edge.destination)];
            let mut is_wanted = false;
            for (direction, end) in ends {
                let Some(workload) = wanted(end) else { continue };
                is_wanted = true;
                let tried = tried.entry(workload).or_insert_with(|| WorkloadTried::new(workload));
                tried.counts.add_later(evidence);
                let Some(denied) = denied.filter(|denied| denied.by.iter().any(|by| by.direction == direction)) else {
                    continue;
                };
                tried.counts.add_denied(evidence);
                let by = denied.by.iter().filter(|by| by.direction == direction).flat_map(|by| &by.policies);
                tried.denied_edges.push(DeniedEdge {
                    edge: edge.to_string(),
                    denied_by: by.map(ToString::to_string).collect::<BTreeSet<_>>().into_iter().collect(),
                    connections: evidence.connections,
                    hours: evidence.hours.len(),
                    first_seen: evidence.first_seen.to_string(),
                    reason: self.reason(edge),
                });
            }
            if is_wanted {
                total.add_later(evidence);
                if denied.is_some() {
                    total.add_denied(evidence);
                }
            }
        }
        total.predict(sets.completeness.known());
        total.coverage = self.came(sets.completeness.known(), |_| true);
        for (workload, tried) in &mut tried {
            let estimate = sets.workloads.get(*workload).and_then(|set| set.completeness.known());
            let is_of =
                |edge: &Edge| [&edge.source, &edge.destination].iter().any(|end| workload_of(end) == Some(workload));
            tried.counts.coverage = self.came(estimate, is_of);
        }
        let mut workloads: Vec<WorkloadTried> = tried.into_values().collect();
        workloads.sort_by_key(|tried| std::cmp::Reverse(tried.counts.denied));
        let (learned_hours, replayed_hours) = *hours;
        let dynamic_ports = self.dynamic_ports();
        Ok(Backtest { split: split.to_string(), learned_hours, replayed_hours, total, workloads, dynamic_ports })
    }

    /// What each choice for ports that differ each time would have denied.
    fn dynamic_ports(&self) -> Vec<DynamicPortsTried> {
        let is_wanted = |end: &Endpoint| workload_of(end).is_some_and(|workload| self.wish.wants(workload));
        let wanted = self.sets.dynamic_ports.iter();
        let wanted = wanted.filter(|((end, _), found)| is_wanted(end) || found.sources.iter().any(is_wanted));
        let tried = |((destination, transport), found): (&(Endpoint, Transport), &Dynamic)| {
            let (first, last) = found.range();
            let known = self.later.dynamic_ports.get(&(destination.clone(), *transport));
            let is_such =
                |port: &u16| found.ports.contains(port) || known.is_some_and(|known| known.ports.contains(port));
            let later = self.later.edges.iter().filter(|(edge, (evidence, _))| {
                let is_to_it = edge.destination == *destination && edge.transport.known() == Some(*transport);
                let was_learned = || self.sets.edges.get(edge).is_some_and(|(_, fate)| fate.is_allowed());
                let may_be = is_such(&edge.port) || (first..=last).contains(&edge.port);
                is_to_it && may_be && evidence.is_established() && !was_learned()
            });
            let later: Vec<(u16, i64)> = later.map(|(edge, (evidence, _))| (edge.port, evidence.connections)).collect();
            let denied = |is_allowed: &dyn Fn(&u16) -> bool| -> i64 {
                later.iter().filter(|(port, _)| !is_allowed(port)).map(|(_, connections)| connections).sum()
            };
            DynamicPortsTried {
                destination: destination.to_string(),
                transport: transport.protocol(),
                ports: found.ports.len(),
                later_connections: denied(&|_| false),
                denied_by_ports_seen: denied(&|port| found.ports.contains(port)),
                range: format!("{first}-{last}"),
                denied_by_range: denied(&|port| (first..=last).contains(port)),
            }
        };
        wanted.map(tried).collect()
    }

    /// Why an edge was not allowed, as it was known then.
    fn reason(&self, edge: &Edge) -> String {
        match self.sets.edges.get(edge) {
            None => "never seen before".into(),
            Some((evidence, _)) if !evidence.is_established() => "never established before".into(),
            Some((_, Fate::Learned | Fate::Pinned(_))) => "seen before, but the policies do not fit it any more".into(),
            Some((_, fate)) => match fate.told() {
                (word, Some(reason)) if !reason.is_empty() => format!("{word}: {reason}"),
                (word, _) => word.into(),
            },
        }
    }

    /// Of all bins of edges that came later, the share of those that were learned.
    fn came(&self, estimate: Option<&Estimate>, is_wanted: impl Fn(&Edge) -> bool) -> Option<f64> {
        let bin_hours = estimate.map_or(1, |estimate| estimate.bin_hours);
        let bins = |hours: &RoaringBitmap| hours.iter().map(|hour| hour / bin_hours).collect::<RoaringBitmap>().len();
        let (mut known, mut all) = (0, 0);
        for (edge, (evidence, fate)) in self.later.edges.iter().filter(|(edge, _)| is_wanted(edge)) {
            if matches!(fate, Fate::OwnNode | Fate::Forbidden(_) | Fate::Failed | Fate::Unanswered) {
                continue;
            }
            let bins = bins(&evidence.hours);
            let is_known = self
                .sets
                .edges
                .get(edge)
                .is_some_and(|(evidence, fate)| fate.is_allowed() && evidence.is_established());
            (known, all) = (known + if is_known { bins } else { 0 }, all + bins);
        }
        (all > 0).then(|| known as f64 / all as f64)
    }
}

fn workload_of(end: &Endpoint) -> Option<&Workload> {
    match end {
        Endpoint::Workload(workload) => Some(workload),
        _ => None,
    }
}

impl Counts {
    fn predict(&mut self, estimate: Option<&Estimate>) {
        self.predicted_coverage = estimate.map(|estimate| estimate.coverage);
        self.predicted_interval = estimate.map(|estimate| estimate.coverage_interval);
    }

    fn add_later(&mut self, evidence: &Evidence) {
        self.later += 1;
        self.later_connections += evidence.connections;
    }

    fn add_denied(&mut self, evidence: &Evidence) {
        self.denied += 1;
        self.denied_connections += evidence.connections;
    }

    fn told(&self) -> String {
        let Self { learned, used_again, later, later_connections, denied, denied_connections, .. } = self;
        let mut text = format!(
            "{learned} edges learned, {used_again} of them used again; {later} seen later, {denied} of them denied \
             ({denied_connections} of {later_connections} connections)"
        );
        if let (Some(coverage), Some(predicted), Some((low, high))) =
            (self.coverage, self.predicted_coverage, self.predicted_interval)
        {
            let [coverage, predicted, low, high] = [coverage, predicted, low, high].map(|share| 100.0 * share);
            let _ = write!(text, "; {coverage:.1} % was known ({predicted:.1} % foretold, {low:.1}–{high:.1} %)");
        }
        text
    }
}

impl WorkloadTried {
    fn new(workload: &Workload) -> Self {
        Self {
            workload: workload.to_string(),
            workload_kind: workload.kind.to_string(),
            status: None,
            open: BTreeMap::new(),
            counts: Counts::default(),
            denied_edges: Vec::new(),
            unused_edges: Vec::new(),
        }
    }
}

impl Backtest {
    fn text(&self) -> String {
        let Self { split, learned_hours, replayed_hours, total, workloads, dynamic_ports } = self;
        let mut text =
            format!("learned from {learned_hours} hours until {split}, tried on {replayed_hours} hours after it\n\n");
        for WorkloadTried { workload, workload_kind, status, open, counts, denied_edges, unused_edges } in workloads {
            let status = status.unwrap_or("not there yet");
            let _ = writeln!(text, "{workload} ({workload_kind}, {status}): {}", counts.told());
            for (direction, reason) in open {
                let _ = writeln!(text, "  open    {direction}: {reason}");
            }
            for DeniedEdge { edge, denied_by, connections, hours, first_seen, reason } in denied_edges {
                let by = denied_by.join(" and ");
                let _ = writeln!(
                    text,
                    "  denied  {edge}: by {by}; {reason}; {connections} connections in {hours} h, first at {first_seen}"
                );
            }
            for UnusedEdge { edge, status, last_seen } in unused_edges {
                let _ = writeln!(text, "  unused  {edge}: {status} then, last seen at {last_seen}");
            }
        }
        for tried in dynamic_ports {
            let DynamicPortsTried { destination, transport, ports, later_connections, range, .. } = tried;
            let (by_seen, by_range) = (tried.denied_by_ports_seen, tried.denied_by_range);
            let _ = writeln!(
                text,
                "\n{destination}: {later_connections} later connections on {transport} ports that differ each time\n  \
                 allowing the {ports} ports seen before would have denied {by_seen} of them\n  pinning {range} would have \
                 denied {by_range}; left open, none is denied"
            );
        }
        let _ = writeln!(text, "\nall together: {}", total.told());
        text
    }
}
