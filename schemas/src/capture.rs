//! A capture: a directory of three datasets as Parquet files, partitioned by UTC date and hour.
//!
//! ```text
//! DIR/flows/date=2026-01-31/hour=07/node-a-20260131T070000Z-1f0c9a2e-0.parquet
//! DIR/inventory/…
//! DIR/health/…
//! ```
//!
//! A file appears under its name only when it is whole: it is written below `DIR/.unfinished`, synced and renamed. Each
//! file names its dataset, schema version, writer and range of rows in its key-value metadata.

mod contained;
mod merge;
mod pages;
mod reader;
mod runs;
mod writer;

pub use crate::table::Origin;
pub use merge::{MergeError, merge, partition, write_forgotten, write_rollup};
pub use pages::Pages;
pub use reader::{
    CaptureFile, JOURNAL, JOURNAL_LOCK, Listing, Problem, ProblemKind, SEGMENT, columns, list, list_known, read,
    read_columns, read_where, set_apart, verify,
};
pub use runs::{RunRows, Runs, Seqs};
pub use writer::{CaptureError, DatasetWriter, Roll};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    flow::FlowRecord,
    health::HealthRecord,
    hour::HourRange,
    inventory::InventoryRecord,
    table::{Record, TimestampMs},
};

impl Origin {
    /// A new run of a writer, with 128 random bits in hexadecimal to tell it by.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(cluster: &str, node: &str) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        let run_id = format!("{:032x}", u128::from_ne_bytes(bytes)).into();
        Ok(Self { cluster: cluster.into(), node: node.into(), run_id })
    }
}

/// What a rollup sums up, beside which rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// First and last hour, since the Unix epoch.
    pub hours: HourRange,
    /// First and last moment that was looked up in the inventory.
    pub looked_up: (TimestampMs, TimestampMs),
    /// What the inventory said of that, as a number.
    pub fingerprint: String,
    /// Rows of flows.
    pub rows: i64,
    /// Of them those that are no edge, as their direction was not known, by run.
    pub undirected: BTreeMap<String, i64>,
}

/// Names of the datasets, which are their folders.
pub const DATASETS: [&str; 3] = [FlowRecord::DATASET, InventoryRecord::DATASET, HealthRecord::DATASET];

/// Keys of a file's metadata.
mod key {
    pub(super) const SCHEMA_VERSION: &str = "flowscribe.schema_version";
    pub(super) const AGENT_VERSION: &str = "flowscribe.agent_version";
    pub(super) const DATASET: &str = "flowscribe.dataset";
    pub(super) const CLUSTER: &str = "flowscribe.cluster";
    pub(super) const NODE: &str = "flowscribe.node";
    pub(super) const RUN_ID: &str = "flowscribe.run_id";
    pub(super) const FIRST_SEQ: &str = "flowscribe.first_seq";
    pub(super) const LAST_SEQ: &str = "flowscribe.last_seq";
    /// All of them, as `first-last,…`: in rows that came by other ways there are gaps.
    pub(super) const SEQS: &str = "flowscribe.seqs";
    /// Of a merged file, instead of these: `{run: {node, seqs}}`.
    pub(super) const RUNS: &str = "flowscribe.runs";
    /// Of a merged file and of a rollup: the names of the files that it was made of.
    pub(super) const INPUTS: &str = "flowscribe.inputs";
    /// Of a rollup: [`Summary`](super::Summary).
    pub(super) const SUMMARY: &str = "flowscribe.summary";
}

const PARQUET: &str = "parquet";
const UNFINISHED: &str = "tmp";
/// Directory of a capture with the files that are not whole.
pub const UNFINISHED_FILES: &str = ".unfinished";

/// A moment broken down in UTC, as file names and partitions spell it.
struct Utc {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Utc {
    /// Converts by the civil-from-days algorithm (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    fn new(time: TimestampMs) -> Self {
        let seconds = time.0.div_euclid(1000);
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * march_month + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// `date=YYYY-MM-DD/hour=HH`.
    fn partition(&self) -> String {
        let Self { year, month, day, hour, .. } = self;
        format!("date={year:04}-{month:02}-{day:02}/hour={hour:02}")
    }

    /// `YYYYMMDDTHHMMSSZ`.
    fn compact(&self) -> String {
        let Self { year, month, day, hour, minute, second } = self;
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
    }
}

impl std::fmt::Display for TimestampMs {
    /// RFC 3339 with seconds: `2026-01-31T07:00:00Z`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Utc { year, month, day, hour, minute, second } = Utc::new(*self);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_the_utc_calendar() {
        let partition = |seconds: i64| Utc::new(TimestampMs(seconds * 1000)).partition();
        assert_eq!(partition(0), "date=1970-01-01/hour=00");
        assert_eq!(partition(-1), "date=1969-12-31/hour=23");
        assert_eq!(partition(951_782_400), "date=2000-02-29/hour=00");
        assert_eq!(partition(1_772_323_199), "date=2026-02-28/hour=23");
        assert_eq!(TimestampMs(1_772_323_200_123).to_string(), "2026-03-01T00:00:00Z");
    }
}
