//! What is remembered of hours: their communications, for as long as neither rows nor the inventory say anything else.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    mem,
};

use schemas::{capture::Runs, index::Span, table::TimestampMs};
use serde::{Deserialize, Serialize};

use super::{
    unit::Unit,
    work::{EVER, Flows, Undirected, WorkError, add},
};
use crate::communication::{Communications, Endpoint};

/// What is known of some hours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Block {
    hours: (i64, i64),
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
        let newest = self.units.last().map_or(0, |unit| unit.hours.1);
        let mut keep = |block: Block| match blocks.entry(age(block.hours.1, newest)) {
            Entry::Vacant(entry) => drop(entry.insert(block)),
            Entry::Occupied(mut entry) => entry.get_mut().add(block),
        };
        for block in known {
            let (within, others): (Vec<&Unit>, Vec<&Unit>) =
                open.iter().partition(|unit| unit.hours.0 <= block.hours.1 && block.hours.0 <= unit.hours.1);
            let are_same = within.iter().all(|unit| block.hours.0 <= unit.hours.0 && unit.hours.1 <= block.hours.1)
                && self.runs_of(&within).is_some_and(|runs| runs == block.runs);
            if are_same && block.fingerprint == self.fingerprint_of(&block) {
                keep(block);
                open = others;
            }
        }
        let mut groups: BTreeMap<Age, Vec<&Unit>> = BTreeMap::new();
        for unit in open {
            groups.entry(age(unit.hours.1, newest)).or_default().push(unit);
        }
        let mut untold = (Communications::new(), Undirected::new());
        for units in groups.into_values() {
            let (communications, undirected) = self.total(&units, EVER)?;
            let hours =
                units.iter().fold((i64::MAX, i64::MIN), |(a, b), unit| (a.min(unit.hours.0), b.max(unit.hours.1)));
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
                Endpoint::External { address } => Some(*address),
                _ => None,
            });
        self.fingerprint(span, pods.map(|uid| &**uid), outside) + &self.overlaps.fingerprint(runs, *hours)
    }
}

impl Block {
    /// Adds what is known of other hours.
    fn add(&mut self, other: Self) {
        self.hours = (self.hours.0.min(other.hours.0), self.hours.1.max(other.hours.1));
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
