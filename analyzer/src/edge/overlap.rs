//! Runs that recorded one node at the same time: two agents that write for one node into one capture.
//!
//! Both record every connection of the node, so that the sum of their counts is twice what there was. A restart or a
//! rolling update overlaps too, but only for as long as one agent takes over from another: that is no finding.
//!
//! Runs of a node that follow one another are a *series*. Where a node has several series in an hour, what counts is the
//! largest of them: within a series the counts add up. No edge is lost by that, and where the agents were limited to
//! different namespaces, each edge has the counts of the agent that recorded it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    hash::{DefaultHasher, Hasher},
    sync::Arc,
    time::Duration,
};

use roaring::RoaringBitmap;
use schemas::{
    capture,
    hour::{Hour, HourRange},
    index::Span,
    table::TimestampMs,
};

/// When one agent's run recorded a node.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) node: Arc<str>,
    pub(crate) run_id: Arc<str>,
    /// In order, apart from each other, and not empty.
    pub(crate) watched: Vec<Span>,
}

/// Two runs that recorded one node at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Overlap {
    node: Arc<str>,
    runs: [Arc<str>; 2],
    /// From the first to the last moment that both recorded.
    span: Span,
    /// How long that was.
    time_ms: i64,
}

/// Which runs overlap, and in which hours that matters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlaps {
    /// By node, then in order of time.
    found: Vec<Overlap>,
    by_run: HashMap<Arc<str>, Series>,
}

/// The series that a run is of.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// A number among all series of nodes with overlaps, from 1.
    pub(crate) number: u32,
    /// The number of its node.
    pub(crate) node: u32,
    /// Its place among the series of its node.
    place: u32,
    /// Hours since the Unix epoch in which runs of the node overlap.
    pub(crate) hours: Arc<RoaringBitmap>,
}

impl Overlaps {
    pub(crate) fn new(runs: &[Recorded]) -> Self {
        let mut by_node: BTreeMap<&Arc<str>, Vec<&Recorded>> = BTreeMap::new();
        for run in runs.iter().filter(|run| !run.watched.is_empty()) {
            by_node.entry(&run.node).or_default().push(run);
        }
        let mut overlaps = Self::default();
        let (mut next, mut next_node) = (1, 0);
        for (node, mut runs) in by_node {
            runs.sort_by_key(|run| (extent(run).from, &run.run_id));
            let found = find(node, &runs);
            if found.is_empty() {
                continue;
            }
            let mut hours = RoaringBitmap::new();
            for Overlap { span, .. } in &found {
                hours.insert_range(Hour::of(span.from).bit()..=Hour::ending(span.to).bit());
            }
            let hours = Arc::new(hours);
            let places = places(&runs, &found);
            for (run, place) in runs.iter().zip(&places) {
                let series = Series { number: next + place, node: next_node, place: *place, hours: Arc::clone(&hours) };
                overlaps.by_run.insert(Arc::clone(&run.run_id), series);
            }
            next += places.iter().max().map_or(0, |last| last + 1);
            next_node += 1;
            overlaps.found.extend(found);
        }
        overlaps
    }

    /// Whether no node was recorded twice.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The series of a run; `None` if nothing overlaps on its node.
    pub(crate) fn of(&self, run_id: &str) -> Option<&Series> {
        self.by_run.get(run_id)
    }

    /// What counts of some runs in some hours depend on; empty where nothing overlaps.
    pub(crate) fn fingerprint(&self, runs: &capture::Runs, hours: HourRange) -> String {
        // With fixed keys.
        let mut hasher = DefaultHasher::new();
        let mut is_empty = true;
        for run_id in runs.0.keys() {
            let Some(series) = self.by_run.get(run_id.as_str()) else { continue };
            let [first, last] = [hours.first, hours.last].map(|hour| u32::try_from(hour.0.max(0)).unwrap_or(u32::MAX));
            for hour in series.hours.range(first..=last) {
                is_empty = false;
                hasher.write(run_id.as_bytes());
                hasher.write_u32(series.place);
                hasher.write_u32(hour);
            }
        }
        if is_empty { String::new() } else { format!("-{:016x}", hasher.finish()) }
    }

    /// A line per node that several agents recorded at the same time.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for found in self.found.chunk_by(|a, b| a.node == b.node) {
            let Some(longest) = found.iter().max_by_key(|overlap| overlap.time_ms) else { continue };
            let Overlap { node, runs: [first, second], span: Span { from, to }, time_ms } = longest;
            let time = humantime::format_duration(Duration::from_secs(time_ms.unsigned_abs() / 1000));
            let more = match found.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more pairs of runs"),
            };
            let _ = writeln!(
                text,
                "node {node} was recorded by several agents at the same time: runs {first} and {second} for {time}, from \
                 {from} to {to}{more}; what both saw counts once: run one agent per node, each with its own --node, or \
                 have each write to a directory of its own"
            );
        }
        text
    }
}

/// The pairs of runs of a node, in order of their beginning, that overlap for longer than a hand-over.
fn find(node: &Arc<str>, runs: &[&Recorded]) -> Vec<Overlap> {
    let mut found = Vec::new();
    let mut open: Vec<&Recorded> = Vec::new();
    for run in runs {
        open.retain(|earlier| extent(earlier).to > extent(run).from);
        for earlier in &open {
            let both: Vec<Span> =
                earlier.watched.iter().flat_map(|a| run.watched.iter().filter_map(|b| intersection(*a, *b))).collect();
            let time_ms = both.iter().map(|span| span.to.0 - span.from.0).sum();
            let shorter_ms = watched_ms(earlier).min(watched_ms(run));
            if time_ms > HAND_OVER_MS || time_ms * 2 > shorter_ms {
                let runs = [&earlier.run_id, &run.run_id].map(Arc::clone);
                let span = both.into_iter().reduce(Span::hull);
                found.extend(span.map(|span| Overlap { node: Arc::clone(node), runs, span, time_ms }));
            }
        }
        open.push(run);
    }
    found
}

/// To which series of its node each run belongs: the first one in which it overlaps none.
fn places(runs: &[&Recorded], found: &[Overlap]) -> Vec<u32> {
    let mut earlier: HashMap<&Arc<str>, Vec<&Arc<str>>> = HashMap::new();
    for Overlap { runs: [first, second], .. } in found {
        earlier.entry(second).or_default().push(first);
    }
    let mut known: HashMap<&Arc<str>, u32> = HashMap::new();
    let mut places = Vec::with_capacity(runs.len());
    for run in runs {
        let taken: BTreeSet<u32> = earlier.get(&run.run_id).into_iter().flatten().map(|other| known[other]).collect();
        let place = (0..).find(|place| !taken.contains(place)).unwrap_or_default();
        known.insert(&run.run_id, place);
        places.push(place);
    }
    places
}

/// From when until when a run recorded.
fn extent(run: &Recorded) -> Span {
    run.watched.iter().copied().reduce(Span::hull).unwrap_or(Span::at(TimestampMs::default()))
}

fn watched_ms(run: &Recorded) -> i64 {
    run.watched.iter().map(|span| span.to.0 - span.from.0).sum()
}

fn intersection(a: Span, b: Span) -> Option<Span> {
    let both = Span { from: a.from.max(b.from), to: a.to.min(b.to) };
    (both.from < both.to).then_some(both)
}

/// One agent takes over from another within this time, and within half the time of either: a DaemonSet that is updated
/// with `maxSurge` runs both until the new one is ready and the old one has ended.
const HAND_OVER_MS: i64 = 5 * 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(node: &str, run_id: &str, minutes: &[(i64, i64)]) -> Recorded {
        let span = |(from, to): &(i64, i64)| Span { from: TimestampMs(from * 60_000), to: TimestampMs(to * 60_000) };
        Recorded { node: node.into(), run_id: run_id.into(), watched: minutes.iter().map(span).collect() }
    }

    #[test]
    fn runs_that_follow_one_another_do_not_overlap_and_take_their_time_to_take_over() {
        let runs = [
            run("a", "1", &[(0, 100)]),
            run("a", "2", &[(95, 200)]),
            run("a", "3", &[(200, 300)]),
            run("b", "4", &[(0, 300)]),
        ];
        assert!(Overlaps::new(&runs).is_empty());
        assert!(!Overlaps::new(&[run("a", "1", &[(0, 100)]), run("a", "2", &[(94, 200)])]).is_empty());
        assert!(!Overlaps::new(&[run("a", "1", &[(0, 2)]), run("a", "2", &[(0, 2)])]).is_empty(), "short ones too");
    }

    #[test]
    fn series_are_made_of_runs_that_do_not_overlap_and_matter_only_where_others_do() {
        let runs = [
            run("a", "alone", &[(0, 70)]),
            run("a", "long", &[(120, 600)]),
            run("a", "short", &[(190, 230)]),
            run("a", "shorter", &[(232, 239)]),
            run("b", "other", &[(190, 230)]),
        ];
        let overlaps = Overlaps::new(&runs);
        let of = |run: &str| overlaps.of(run).map(|series| (series.number, series.hours.iter().collect::<Vec<_>>()));
        assert_eq!(of("alone"), Some((1, vec![3])));
        assert_eq!(of("long"), Some((1, vec![3])));
        assert_eq!(of("short"), Some((2, vec![3])));
        assert_eq!(of("shorter"), Some((2, vec![3])));
        assert_eq!(of("other"), None);
        assert_eq!(overlaps.text().lines().count(), 1);
        assert!(overlaps.text().contains("runs long and short for 40m"), "{}", overlaps.text());
    }
}
