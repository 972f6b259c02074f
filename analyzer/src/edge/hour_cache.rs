//! What is remembered of hours: their communications, for as long as neither rows nor the inventory say anything else.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    mem,
};

use schemas::{capture::Runs, hour::HourRange, index::Span, table::TimestampMs};
use serde::{Deserialize, Serialize};

use super::{
    flows::{Flows, Undirected, WorkError, add},
    work_unit::Unit,
};
use crate::communication::{Communications, Endpoint};

/// What is known of some hours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Block {
    hours: HourRange,
    /// Rows that it is of.
    runs: Runs,
    /// What the inventory said, and which runs were known to overlap.
    fingerprint: String,
    communications: Communications,
    undirected: Undirected,
}

impl Flows {
    /// As [`Self::communications`], from what is known of hours that have not changed, and new hours; what is known then.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn communications_since(
        &self,
        known: Vec<Block>,
    ) -> Result<(Communications, Undirected, Vec<Block>), WorkError> {
        self.begin();
        let mut open: Vec<&Unit> = self.units.iter().collect();
        let mut blocks: BTreeMap<Age, Block> = BTreeMap::new();
        let newest = self.units.last().map_or(0, |unit| unit.hours.last.0);
        let mut keep = |block: Block| match blocks.entry(age(block.hours.last.0, newest)) {
            Entry::Vacant(entry) => drop(entry.insert(block)),
            Entry::Occupied(mut entry) => entry.get_mut().add(block),
        };
        for block in known {
            let (within, others): (Vec<&Unit>, Vec<&Unit>) =
                open.iter().partition(|unit| unit.hours.overlaps(&block.hours));
            let are_same =
                within.iter().all(|unit| block.hours.first <= unit.hours.first && unit.hours.last <= block.hours.last)
                    && self.runs_of(&within).is_some_and(|runs| runs == block.runs);
            if are_same && block.fingerprint == self.fingerprint_of(&block) {
                keep(block);
                open = others;
            }
        }
        let mut groups: BTreeMap<Age, Vec<&Unit>> = BTreeMap::new();
        for unit in open {
            groups.entry(age(unit.hours.last.0, newest)).or_default().push(unit);
        }
        let mut untold = (Communications::new(), Undirected::new());
        for units in groups.into_values() {
            let (communications, undirected) = self.total(&units, HourRange::EVER)?;
            let hours = units.iter().map(|unit| unit.hours).reduce(|a, b| a.hull(&b));
            let Some(hours) = hours else { continue };
            match self.runs_of(&units) {
                Some(runs) => {
                    keep(Block { hours, runs, fingerprint: String::new(), communications, undirected });
                }
                // Of what does not tell its rows, nobody can say next time whether it is the same.
                None => add(&mut untold, (communications, undirected)),
            }
        }
        let mut blocks: Vec<Block> = blocks.into_values().collect();
        let mut all = untold;
        for block in &mut blocks {
            block.fingerprint = self.fingerprint_of(block);
            add(&mut all, (block.communications.clone(), block.undirected.clone()));
        }
        Ok((all.0, all.1, blocks))
    }

    /// All rows of some units; `None` if a file does not tell its own.
    fn runs_of(&self, units: &[&Unit]) -> Option<Runs> {
        let mut runs = Runs::default();
        for unit in units {
            let of_files = unit.parts.iter().map(|(file, _)| &self.files[*file].file.runs);
            let of_rollups = unit.rollups.iter().flatten().map(|rollup| &self.rollups[*rollup].runs);
            for of_one in of_files.chain(of_rollups) {
                if of_one.is_empty() {
                    return None;
                }
                runs.add(of_one);
            }
        }
        Some(runs)
    }

    /// What the inventory says of the time and of the ends of some communications, and which of their runs overlap.
    fn fingerprint_of(&self, block: &Block) -> String {
        let Block { hours, runs, communications, .. } = block;
        let seen = communications.values().map(|evidence| Span { from: evidence.first_seen, to: evidence.last_seen });
        let span = seen.reduce(Span::hull).unwrap_or(Span::at(TimestampMs(0)));
        let pods =
            communications.values().flat_map(|evidence| evidence.source_pods.iter().chain(&evidence.destination_pods));
        let outside =
            communications.keys().flat_map(|edge| [&edge.source, &edge.destination]).filter_map(|end| match end {
                Endpoint::External { address } | Endpoint::Node { address, .. } => Some(*address),
                Endpoint::Unknown { address, .. } => *address,
                Endpoint::Workload(_) => None,
            });
        self.fingerprint(span, pods.map(|uid| &**uid), outside) + &self.overlaps.fingerprint(runs, *hours)
    }
}

impl Block {
    /// Adds what is known of other hours.
    fn add(&mut self, other: Self) {
        self.hours = self.hours.hull(&other.hours);
        self.runs.add(&other.runs);
        let mut all = (mem::take(&mut self.communications), mem::take(&mut self.undirected));
        add(&mut all, (other.communications, other.undirected));
        (self.communications, self.undirected) = all;
    }
}

/// What is remembered together, newest first: hours of late, which still change; days; everything before.
type Age = (u8, i64);

fn age(hour: i64, newest: i64) -> Age {
    match newest - hour {
        ..LATE_HOURS => (0, -hour),
        LATE_HOURS..LATE_DAYS_HOURS => (1, -hour.div_euclid(24)),
        _ => (2, 0),
    }
}

/// Hours and days back from the newest that are remembered apart, as files of theirs may still come.
const LATE_HOURS: i64 = 6;
const LATE_DAYS_HOURS: i64 = 8 * 24;
