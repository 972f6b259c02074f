//! When the inventory tells of the whole cluster, so that what it does not know is outside; and which address ranges are
//! the cluster's.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use ipnet::IpNet;

use super::{FOREVER, Holds, Span};
use crate::table::TimestampMs;

/// Times at which a writer that knows the whole cluster was there.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    /// By writer and run: from its first snapshot to when it was last heard.
    runs: HashMap<(Arc<str>, Arc<str>), (TimestampMs, TimestampMs)>,
    /// Start and end of what they cover together, disjoint.
    covered: BTreeMap<TimestampMs, TimestampMs>,
}

/// Address ranges: disjoint, from first to last address.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<IpAddr, IpAddr>);

impl Coverage {
    /// A writer that knows the cluster told everything.
    pub(super) fn begin(&mut self, writer: &Arc<str>, run_id: &Arc<str>, time: TimestampMs) {
        self.runs.entry((Arc::clone(writer), Arc::clone(run_id))).or_insert((time, time));
        self.hear(writer, run_id, time);
    }

    /// A writer knows less from now on: it has to begin again.
    pub(super) fn pause(&mut self, writer: &Arc<str>, run_id: &Arc<str>, time: TimestampMs) {
        self.hear(writer, run_id, time);
        let Some((_, heard)) = self.runs.remove(&(Arc::clone(writer), Arc::clone(run_id))) else { return };
        if let Some((_, end)) = self.covered.range_mut(..=heard).next_back()
            && *end == TimestampMs(heard.0 + SILENCE_MS)
        {
            *end = heard;
        }
    }

    /// A writer is there: its run has told everything up to now.
    pub(super) fn hear(&mut self, writer: &Arc<str>, run_id: &Arc<str>, time: TimestampMs) {
        let Some((start, end)) = self.runs.get_mut(&(Arc::clone(writer), Arc::clone(run_id))) else { return };
        *end = time.max(*end);
        let (mut start, mut end) = (*start, TimestampMs(end.0 + SILENCE_MS));
        while let Some((&from, &to)) = self.covered.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            self.covered.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.covered.insert(start, end);
    }

    /// What is covered, from start to end.
    pub(super) fn spans(&self) -> impl Iterator<Item = (TimestampMs, TimestampMs)> {
        self.covered.iter().map(|(start, end)| (*start, *end))
    }

    /// Whether nothing is covered.
    pub(super) fn is_empty(&self) -> bool {
        self.covered.is_empty()
    }

    /// Whether the whole span is covered, give or take a tolerance; for how long that is so.
    pub(super) fn covers(&self, span: Span, tolerance_ms: i64, holds: &Holds) -> bool {
        let from = TimestampMs(span.from.0.saturating_add(tolerance_ms));
        let before = self.covered.range(..=from).next_back();
        if let Some((start, end)) = before {
            if span.to <= *end {
                holds.narrow(TimestampMs(start.0.saturating_sub(tolerance_ms)), *end);
                return true;
            }
            holds.narrow(TimestampMs(end.0.saturating_add(1)), FOREVER);
        }
        if let Some((next, _)) = self.covered.range((Bound::Excluded(from), Bound::Unbounded)).next() {
            holds.narrow(TimestampMs(i64::MIN), TimestampMs(next.0.saturating_sub(tolerance_ms).saturating_sub(1)));
        }
        false
    }
}

impl Ranges {
    /// Adds a range; of two, one holds the other or they are disjoint.
    pub(super) fn add(&mut self, range: IpNet) {
        let (first, last) = (range.network(), range.broadcast());
        if self.0.range(..=first).next_back().is_some_and(|(_, end)| last <= *end) {
            return;
        }
        self.0.retain(|from, _| !range.contains(from));
        self.0.insert(first, last);
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// Whether an address is in one of them.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.range(..=address).next_back().is_some_and(|(_, last)| address <= *last)
    }
}

/// How long after a writer was last heard what it told counts as everything: its health comes once a window, and a
/// killed one is missed by then.
pub(super) const SILENCE_MS: i64 = 600_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_covered_ends_with_silence_and_joins_with_the_next_run() {
        let mut coverage = Coverage::default();
        let (writer, [one, two]) = (Arc::from("w"), ["1", "2"].map(Arc::from));
        let covers = |coverage: &Coverage, from, to| {
            coverage.covers(Span { from: TimestampMs(from), to: TimestampMs(to) }, 10, &Holds::default())
        };
        coverage.hear(&writer, &one, TimestampMs(0));
        assert!(!covers(&coverage, 0, 0), "it has not told everything yet");
        coverage.begin(&writer, &one, TimestampMs(100));
        coverage.hear(&writer, &one, TimestampMs(5_000_000));
        assert!(covers(&coverage, 90, 5_000_000 + SILENCE_MS), "a run that goes on was there all the time");
        assert!(!covers(&coverage, 80, 200) && !covers(&coverage, 200, 5_000_001 + SILENCE_MS));
        coverage.begin(&writer, &two, TimestampMs(9_000_000));
        assert!(!covers(&coverage, 5_000_000, 9_000_000) && covers(&coverage, 9_000_000, 9_000_001));
        coverage.hear(&writer, &one, TimestampMs(8_500_000));
        assert!(covers(&coverage, 5_000_000, 9_000_001));
        coverage.pause(&writer, &two, TimestampMs(9_800_000));
        coverage.hear(&writer, &two, TimestampMs(9_900_000));
        assert!(covers(&coverage, 8_999_000, 9_000_000), "the other run's silence");
        assert!(!covers(&coverage, 9_900_000, 9_900_001), "it knows less, and says so");
        coverage.begin(&writer, &two, TimestampMs(9_950_000));
        assert!(covers(&coverage, 9_950_000, 9_950_001) && !covers(&coverage, 9_900_000, 9_950_000));
    }

    proptest! {
        #[test]
        fn ranges_hold_what_one_of_them_holds(
            nets in proptest::collection::vec((any::<[u8; 4]>(), 20_u8..=32), 0..12),
            asked in proptest::collection::vec(any::<[u8; 4]>(), 12),
        ) {
            // Few addresses, so that ranges hold one another.
            let squeeze = |[_, _, c, d]: [u8; 4]| IpAddr::from([10, 0, c & 63, d & 0xF1]);
            let nets: Vec<IpNet> = nets
                .into_iter()
                .filter_map(|(address, length)| Some(IpNet::new(squeeze(address), length).ok()?.trunc()))
                .collect();
            let mut ranges = Ranges::default();
            nets.iter().for_each(|net| ranges.add(*net));
            for address in asked.into_iter().map(squeeze) {
                prop_assert_eq!(ranges.contains(address), nets.iter().any(|net| net.contains(&address)));
            }
        }
    }
}
