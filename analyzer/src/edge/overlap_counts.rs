//! Keeping the counts of agents apart that recorded one node at the same time, until the larger ones are known.
//!
//! Rows of hours in which that happened are counted in an hour of their own, one for each series of runs; its number has
//! the series' above the hour's. Other hours, and captures without overlaps, are not concerned.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry};

use super::overlap::{Overlaps, Series};
use super::{
    dictionary::Texts,
    hour::{HourEdge, HourEdges},
};

/// The series of the runs that were met in a unit of work.
pub(super) struct Apart<'a> {
    overlaps: &'a Overlaps,
    /// By the number of the run's text.
    met: HashMap<u32, Option<&'a Series>>,
    /// The last run, as rows of one run follow one another.
    last: (u32, Option<&'a Series>),
    /// Node and number of series whose rows a rollup has counted.
    counted: BTreeSet<(u32, u32)>,
}

impl<'a> Apart<'a> {
    pub(super) fn new(overlaps: &'a Overlaps) -> Self {
        Self { overlaps, met: HashMap::new(), last: (Texts::NONE, None), counted: BTreeSet::new() }
    }

    /// The number of the hour in which a row of a run is counted.
    pub(super) fn place(&mut self, hour: i64, run: u32, texts: &Texts) -> i64 {
        if run != self.last.0 {
            let series = || self.overlaps.of(texts.text(run)?);
            self.last = (run, *self.met.entry(run).or_insert_with(series));
        }
        match (self.last.1, u32::try_from(hour)) {
            (Some(series), Ok(number)) if series.hours.contains(number) => hour + i64::from(series.number) * STRIDE,
            _ => hour,
        }
    }

    /// Takes in that a rollup has counted rows of a run.
    pub(super) fn counted(&mut self, run: &str) {
        self.counted.extend(self.overlaps.of(run).map(|series| (series.node, series.number)));
    }

    /// Takes the hours of series out: the edges of each node and hour, with the larger counts of its series, and whether a
    /// rollup has counted the same connections already, as another series of the node saw them.
    pub(super) fn unite(&mut self, hours: &mut Vec<HourEdges>) -> Vec<(i64, HourEdge, bool)> {
        let counted = std::mem::take(&mut self.counted);
        let nodes: HashMap<u32, u32> = self.met.values().flatten().map(|series| (series.number, series.node)).collect();
        let mut by_node: BTreeMap<(i64, u32), Recorded> = BTreeMap::new();
        for hour in hours.extract_if(.., |hour| hour.number >= STRIDE) {
            let number = u32::try_from(hour.number / STRIDE).unwrap_or_default();
            let node = nodes.get(&number).copied().unwrap_or_default();
            let Recorded { series, edges } = by_node.entry((hour.number % STRIDE, node)).or_default();
            series.insert(number);
            for edge in hour.edges {
                match edges.entry(edge.edge) {
                    Entry::Vacant(entry) => drop(entry.insert(edge)),
                    Entry::Occupied(mut entry) => entry.get_mut().merge_same(edge),
                }
            }
        }
        let all = by_node.into_iter().flat_map(|((hour, node), Recorded { series, edges })| {
            let of_node = counted.range((node, 0)..=(node, u32::MAX));
            let is_counted = of_node.into_iter().any(|(_, other)| series.len() > 1 || !series.contains(other));
            edges.into_values().map(move |edge| (hour, edge, is_counted))
        });
        all.collect()
    }
}

/// What the series of a node recorded in an hour.
#[derive(Default)]
struct Recorded {
    series: BTreeSet<u32>,
    edges: BTreeMap<u32, HourEdge>,
}

/// Between the numbers of one hour in different series: more than there are hours in milliseconds of 64 bits.
const STRIDE: i64 = 1 << 44;
