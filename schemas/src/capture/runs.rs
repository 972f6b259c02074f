//! Which rows a file has: of which runs, by their numbers.

use std::collections::BTreeMap;

use range_set_blaze::RangeSetBlaze;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::table::of_number;

/// Numbers of rows.
pub type Seqs = RangeSetBlaze<i64>;

/// Rows of a dataset, by run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs(pub BTreeMap<String, RunRows>);

/// Rows of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRows {
    /// Node of the run.
    pub node: String,
    /// Their numbers.
    #[serde(serialize_with = "write_seqs", deserialize_with = "read_seqs")]
    pub seqs: Seqs,
}

impl Runs {
    /// Rows of one run.
    pub fn of(run_id: String, node: String, seqs: Seqs) -> Self {
        Self(BTreeMap::from([(run_id, RunRows { node, seqs })]))
    }

    /// Whether nothing is told: rows that no file can be asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of some other rows are among these.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(run, rows)| self.0.get(run).is_some_and(|own| rows.seqs.is_subset(&own.seqs)))
    }

    /// Whether there is a row that is among both.
    pub fn overlaps(&self, other: &Self) -> bool {
        other.0.iter().any(|(run, rows)| self.0.get(run).is_some_and(|own| !rows.seqs.is_disjoint(&own.seqs)))
    }

    /// How many there are.
    pub fn rows(&self) -> i64 {
        let of_run = |rows: &RunRows| i64::try_from(rows.seqs.len()).unwrap_or(i64::MAX);
        self.0.values().map(of_run).fold(0, i64::saturating_add)
    }

    /// Adds other rows.
    pub fn add(&mut self, other: &Self) {
        for (run, rows) in &other.0 {
            let own =
                self.0.entry(run.clone()).or_insert_with(|| RunRows { node: rows.node.clone(), ..RunRows::default() });
            own.seqs.extend(rows.seqs.ranges());
        }
    }
}

/// Spells numbers as `first-last,…`.
pub(super) fn told(seqs: &Seqs) -> String {
    let ranges: Vec<String> = seqs.ranges().map(|range| format!("{}-{}", range.start(), range.end())).collect();
    ranges.join(",")
}

/// Reads what [`told`] spells; `None` for anything else.
pub(super) fn parse(text: &str) -> Option<Seqs> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-')?;
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| of_number(*number, "seq").is_none());
        Some(number(first)?..=number(last)?).filter(|range| !range.is_empty())
    };
    text.split(',').map(range).collect()
}

fn write_seqs<S: Serializer>(seqs: &Seqs, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&told(seqs))
}

fn read_seqs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Seqs, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is no list of ranges")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_told_is_read_and_cut_texts_are_not(seqs in proptest::collection::btree_set(0..200_i64, 1..40), cut in 0..40_usize) {
            let seqs: Seqs = seqs.into_iter().collect();
            let text = told(&seqs);
            prop_assert_eq!(parse(&text), Some(seqs));
            // What is cut short is refused or is less, and nothing panics.
            if let Some(part) = text.get(..cut.min(text.len())).and_then(parse) {
                prop_assert!(part.last() <= Some(200));
            }
        }

        #[test]
        fn covering_and_overlapping_are_those_of_sets(
            a in proptest::collection::btree_set((0..3_u8, 0..8_i64), 0..20),
            b in proptest::collection::btree_set((0..3_u8, 0..8_i64), 0..20),
        ) {
            let runs = |rows: &std::collections::BTreeSet<(u8, i64)>| {
                let mut runs = Runs::default();
                for (run, seq) in rows {
                    runs.add(&Runs::of(run.to_string(), "n".into(), Seqs::from_iter([*seq])));
                }
                runs
            };
            let (one, other) = (runs(&a), runs(&b));
            prop_assert_eq!(one.covers(&other), b.is_subset(&a));
            prop_assert_eq!(one.overlaps(&other), !a.is_disjoint(&b));
            let mut both = one;
            both.add(&other);
            prop_assert_eq!(both, runs(&a.union(&b).copied().collect()));
        }
    }
}
