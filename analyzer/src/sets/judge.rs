//! How sure an edge and a set are, and which edges a person has to look at first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use roaring::RoaringBitmap;
use schemas::{hour::Hour, index::Index, inventory::ObjectKind, table::TimestampMs};

use super::{
    CRON_JOB, Completeness, Entry, Fate, Set, Status, Thresholds, exposure::Exposure, hours_from,
    recurrence::Recurrence,
};
use crate::communication::{Direction, Edge, Endpoint, Evidence, PerDirection, Workload};

pub(super) struct Judge<'a> {
    pub(super) index: &'a Index,
    pub(super) exposure: &'a Exposure,
    pub(super) thresholds: Thresholds,
    /// Names of containers that somebody added to pods, to look into them.
    pub(super) ephemeral: BTreeMap<Workload, BTreeSet<Arc<str>>>,
}

/// The ephemeral containers of all pods, by workload.
pub(super) fn ephemeral_containers(index: &Index) -> BTreeMap<Workload, BTreeSet<Arc<str>>> {
    let mut ephemeral: BTreeMap<Workload, BTreeSet<Arc<str>>> = BTreeMap::new();
    for (pod, _) in index.latest(ObjectKind::Pod) {
        let Some(names) = &pod.ephemeral_containers else { continue };
        let names: BTreeSet<Arc<str>> = serde_json::from_str(names).unwrap_or_default();
        ephemeral.entry(Workload::of(pod, index)).or_default().extend(names);
    }
    ephemeral
}

impl Judge<'_> {
    /// Why who had an edge is not whom policies are for; `None` if there is no sign of that.
    pub(super) fn suspect(&self, edge: &Edge, evidence: &Evidence) -> Option<String> {
        let Evidence { hours, scan_hours, .. } = evidence;
        if hours.is_empty() {
            return None;
        }
        if hours.len() == scan_hours.len() && self.scans_only(&edge.source, scan_hours) {
            return Some(format!("scan: seen only while {} tried many others, and almost all failed", edge.source));
        }
        for (direction, workload) in edge.workloads() {
            let (_, containers) = evidence.pods_of(direction);
            // Of hours in which its own node recorded nothing, nobody knows which container it was.
            let is_known = !containers.is_empty() && hours.is_subset(evidence.hours_of(direction));
            let is_debugged = |added: &BTreeSet<Arc<str>>| is_known && containers.is_subset(added);
            if self.ephemeral.get(workload).is_some_and(is_debugged) {
                let names = containers.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
                return Some(format!(
                    "ephemeral container: only {names} did it, which somebody added to pods of {workload}"
                ));
            }
        }
        let ends = [&edge.source, &edge.destination];
        for end in ends {
            if let Endpoint::Workload(workload) = end
                && let Some(ran) = self.passing(workload)
            {
                return Some(format!(
                    "one-off: {workload} is a pod without an owner, ran for {}, and is gone",
                    hours_told(ran)
                ));
            }
        }
        None
    }

    /// Why an edge is not to be learned before a person has looked at it; `None` if it may be.
    pub(super) fn held(&self, edge: &Edge, evidence: &Evidence) -> Option<String> {
        let ends = [&edge.source, &edge.destination];
        let (first, last) = (evidence.hours.min()?, evidence.hours.max()?);
        // Addresses outside come and go, as those of clients and of content networks do.
        let [Endpoint::Workload(_), Endpoint::Workload(_)] = ends else { return None };
        let since = self.hours_without(edge, last);
        let hold = self.thresholds.hold_hours;
        if evidence.source_pods.len() <= 1 && last - first < SESSION_HOURS && since >= hold {
            return Some(format!(
                "one-off: one pod, at {}, and not in the {} in which it could have been seen again",
                Hour::of_bit(first).start(),
                hours_told(since)
            ));
        }
        if last - first < BURST_HOURS && since >= BURST_PATIENCE * hold {
            return Some(format!(
                "burst: within {} from {}, and not in the {} in which it could have been seen again",
                hours_told(u64::from(last - first) + 1),
                Hour::of_bit(first).start(),
                hours_told(since)
            ));
        }
        None
    }

    /// An edge as one of its ends sees it.
    pub(super) fn entry(&self, workload: &Workload, direction: Direction, edge: &Edge, evidence: &Evidence) -> Entry {
        let seen = &evidence.hours;
        let exposed = self.exposure.observable(workload) | seen;
        let ran = self.exposure.of(workload).map(|time| &time.observable | seen).unwrap_or_else(|| seen.clone());
        let recurrence = Recurrence::find(seen, &exposed);
        let since = self.since(edge, seen, &exposed, recurrence);
        let (status, reason) = self.status(workload, edge, seen, &exposed, recurrence, since);
        Entry {
            direction,
            edge: edge.clone(),
            since,
            status,
            reason,
            recurrence,
            seen_hours: seen.len(),
            observable_hours: ran.len(),
        }
    }

    /// A workload's set.
    pub(super) fn set(
        &self,
        workload: &Workload,
        mut entries: Vec<Entry>,
        edges: &BTreeMap<Edge, (Evidence, Fate)>,
    ) -> Set {
        let allowed = |entry: &&Entry| edges.get(&entry.edge).is_some_and(|(_, fate)| fate.is_allowed());
        let exposed = self.exposure.observable(workload);
        let changes = |entry: &Entry| {
            let appeared = entry.since.map(|hour| (hour, format!("+ {}", entry.told())));
            let last = edges.get(&entry.edge).and_then(|(evidence, _)| evidence.hours.max());
            let decayed = last.filter(|_| entry.status == Status::Decaying).map(|last| {
                // When so many hours had passed without it.
                let patience = self.thresholds.decay_hours.saturating_sub(1) as usize;
                let at = exposed.iter().filter(|hour| *hour > last).nth(patience);
                (at.unwrap_or(last), format!("- {}", entry.told()))
            });
            appeared.into_iter().chain(decayed)
        };
        let changed = PerDirection::new(|direction| {
            let learned = entries.iter().filter(allowed).filter(|entry| entry.direction == direction);
            learned.flat_map(changes).max()
        });
        let directions =
            PerDirection::new(|direction| self.set_status(workload, &exposed, changed[direction].as_ref()));
        let change = changed.values().max().cloned().flatten();
        let since = change.as_ref().map(|(hour, _)| Hour::of_bit(*hour).start());
        let (status, reason) = self.set_status(workload, &exposed, change.as_ref());
        entries.sort_by(|a, b| (a.direction, &a.edge).cmp(&(b.direction, &b.edge)));
        let seen = entries.iter().filter(allowed).filter_map(|entry| edges.get(&entry.edge));
        let completeness = Completeness::of(&exposed, seen.map(|(evidence, _)| &evidence.hours));
        Set { status, reason, directions, completeness, since, entries }
    }

    fn set_status(
        &self,
        workload: &Workload,
        exposed: &RoaringBitmap,
        change: Option<&(u32, String)>,
    ) -> (Status, String) {
        let Thresholds { learn_hours, stable_hours, .. } = self.thresholds;
        if let Some(gone) = self.gone(workload) {
            return (Status::Decaying, gone);
        }
        if exposed.len() < learn_hours {
            return (Status::Learning, format!("observed for {} of {}", exposed.len(), hours_told(learn_hours)));
        }
        let Some((hour, what)) = change else {
            return (Status::Stable, format!("nothing seen in {}", hours_told(exposed.len())));
        };
        let since = hours_from(exposed, *hour);
        if since < stable_hours {
            return (Status::Stabilizing, format!("changed {} ago ({what}), of {stable_hours}", hours_told(since)));
        }
        (Status::Stable, format!("unchanged for {}", hours_told(since)))
    }

    /// Since when an edge is there: its first hour, or the first one after it had decayed.
    fn since(
        &self,
        edge: &Edge,
        seen: &RoaringBitmap,
        exposed: &RoaringBitmap,
        recurrence: Option<Recurrence>,
    ) -> Option<u32> {
        let (mut since, mut last) = (seen.min()?, seen.min()?);
        let patience = self.patience(recurrence);
        let silent = u64::from(seen.max()? - since) + 1 - seen.len();
        if silent < patience || self.scheduled_end(edge).is_some() {
            return Some(since);
        }
        for hour in seen {
            if u64::from(hour - last) > patience && exposed.range_cardinality(last + 1..hour) >= patience {
                since = hour;
            }
            last = hour;
        }
        Some(since)
    }

    fn status(
        &self,
        workload: &Workload,
        edge: &Edge,
        seen: &RoaringBitmap,
        exposed: &RoaringBitmap,
        recurrence: Option<Recurrence>,
        since: Option<u32>,
    ) -> (Status, String) {
        let Thresholds { learn_hours, stable_hours, .. } = self.thresholds;
        let (Some(since), Some(last)) = (since, seen.max()) else {
            return (Status::Learning, "not seen in this capture".into());
        };
        if let Some(gone) = self.gone(workload) {
            return (Status::Decaying, gone);
        }
        let since_last = hours_from(exposed, last + 1);
        if since_last >= self.patience(recurrence) && !self.may_be_due(edge, last) {
            return (
                Status::Decaying,
                format!("not seen in {}, last at {}", hours_told(since_last), Hour::of_bit(last).start()),
            );
        }
        if let Some(recurrence) = recurrence {
            let recurrence = recurrence.as_str();
            return (Status::Stable, format!("comes back {recurrence}, seen in {}", hours_told(seen.len())));
        }
        if exposed.len() < learn_hours {
            return (Status::Learning, format!("observed for {} of {}", exposed.len(), hours_told(learn_hours)));
        }
        let there = hours_from(exposed, since);
        if there < stable_hours {
            let came = if seen.min() == Some(since) { "first seen" } else { "came back" };
            return (Status::Stabilizing, format!("{came} {} ago, of {stable_hours}", hours_told(there)));
        }
        (Status::Stable, format!("seen in {} of {}", hours_from(seen, since), hours_told(there)))
    }

    /// Hours without an edge after which it is missed.
    fn patience(&self, recurrence: Option<Recurrence>) -> u64 {
        self.thresholds.decay_hours.max(recurrence.map_or(0, |recurrence| PERIODS * recurrence.period_hours()))
    }

    /// Since when a workload's pods are gone for so long that it will not come back; `None` if it may.
    fn gone(&self, workload: &Workload) -> Option<String> {
        let until = self.exposure.of(workload)?.until;
        let is_over = self.hours_since(until) >= self.thresholds.decay_hours && !self.is_scheduled(workload);
        is_over.then(|| format!("its last pod is gone since {until}"))
    }

    /// Whether a source that scans has nothing else to do, or was there for long without the edge when it did not scan.
    fn scans_only(&self, source: &Endpoint, scan_hours: &RoaringBitmap) -> bool {
        let Endpoint::Workload(workload) = source else { return true };
        let observable = self.exposure.of(workload).map(|time| &time.observable - scan_hours).unwrap_or_default();
        *workload.kind == ObjectKind::Pod || observable.len() >= self.thresholds.hold_hours
    }

    /// The hours that a pod without an owner ran, if it was there once, for a while, and is gone. Of one that others like it
    /// came before or after, more may come.
    fn passing(&self, workload: &Workload) -> Option<u64> {
        let time = self.exposure.of(workload).filter(|time| *workload.kind == ObjectKind::Pod && time.pods == 1)?;
        let is_gone = self.hours_since(time.until) >= self.thresholds.hold_hours;
        (is_gone && time.ran.len() <= PASSING_HOURS).then(|| time.ran.len())
    }

    /// Hours that the capture goes on after a moment.
    fn hours_since(&self, time: TimestampMs) -> u64 {
        let end = self.exposure.capture.map_or(time, |capture| capture.to);
        u64::from(Hour::of(end).bit().saturating_sub(Hour::of(time).bit()))
    }

    /// Hours after the last one in which both ends were there, and one of them observable.
    fn hours_without(&self, edge: &Edge, last: u32) -> u64 {
        let ends = [&edge.source, &edge.destination];
        let mut hours = RoaringBitmap::new();
        for end in ends {
            if let Endpoint::Workload(workload) = end
                && let Some(time) = self.exposure.of(workload)
            {
                hours |= &time.observable;
            }
        }
        for ran in ends.into_iter().filter_map(|end| self.exposure.ran(end)) {
            hours &= ran;
        }
        hours_from(&hours, last + 1)
    }

    /// Whether an end is a job that is still scheduled, and has not run often without the edge: it comes when its time
    /// comes.
    fn may_be_due(&self, edge: &Edge, last: u32) -> bool {
        self.scheduled_end(edge).is_some_and(|workload| {
            self.exposure.of(workload).map_or(0, |time| hours_from(&time.observable, last + 1)) < RUNS_WITHOUT
        })
    }

    /// The end of an edge that is a job which will run again.
    fn scheduled_end<'e>(&self, edge: &'e Edge) -> Option<&'e Workload> {
        [&edge.source, &edge.destination].into_iter().find_map(|end| match end {
            Endpoint::Workload(workload) if self.is_scheduled(workload) => Some(workload),
            _ => None,
        })
    }

    /// Whether a workload is a job that will run again.
    fn is_scheduled(&self, workload: &Workload) -> bool {
        let Workload { namespace, name, kind } = workload;
        &**kind == CRON_JOB && self.index.is_there(kind, namespace, name)
    }
}

fn hours_told(hours: u64) -> String {
    if hours == 1 { "1 hour".into() } else { format!("{hours} hours") }
}

/// A session is over within so many hours.
const SESSION_HOURS: u32 = 2;
/// A burst is.
const BURST_HOURS: u32 = 3;
/// So many times longer than after a session has to be waited after a burst.
const BURST_PATIENCE: u64 = 3;
/// A pod without an owner that ran for longer is somebody's server.
const PASSING_HOURS: u64 = 24;
/// Hours in which a scheduled job ran without an edge, after which the edge is missed.
const RUNS_WITHOUT: u64 = 10;
/// Periods after which what recurs is missed.
const PERIODS: u64 = 2;
