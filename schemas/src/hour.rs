//! Hours, in which captures are partitioned, summed up and learned from.

use serde::{Deserialize, Serialize};

use crate::value::TimestampMs;

/// An hour of UTC, by how many full hours of the Unix epoch came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hour(pub i64);

/// Hours that follow one another, from the first to the last, which is included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(Hour, Hour)", into = "(Hour, Hour)")]
pub struct HourRange {
    /// The first hour.
    pub first: Hour,
    /// The last hour.
    pub last: Hour,
}

impl Hour {
    /// How long an hour is, in milliseconds.
    pub const MS: i64 = 3_600_000;

    /// The hour that a moment lies in.
    pub const fn of(time: TimestampMs) -> Self {
        Self(time.0.div_euclid(Self::MS))
    }

    /// The hour of what ends at a moment: at the full hour, the one that ends then.
    pub const fn ending(time: TimestampMs) -> Self {
        Self::of(TimestampMs(time.0.saturating_sub(1)))
    }

    /// Its first moment.
    pub const fn start(self) -> TimestampMs {
        TimestampMs(self.0.saturating_mul(Self::MS))
    }

    /// The hour after it.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its number in a bitmap; 0 for what bitmaps have no number for.
    pub fn bit(self) -> u32 {
        u32::try_from(self.0).unwrap_or_default()
    }

    /// The hour of a number in a bitmap.
    pub const fn of_bit(bit: u32) -> Self {
        Self(bit as i64)
    }
}

impl HourRange {
    /// All hours.
    pub const EVER: Self = Self { first: Hour(i64::MIN), last: Hour(i64::MAX) };

    /// Hours from the first to the last, which is included.
    pub const fn new(first: Hour, last: Hour) -> Self {
        Self { first, last }
    }

    /// Whether an hour is among them.
    pub fn contains(&self, hour: Hour) -> bool {
        (self.first..=self.last).contains(&hour)
    }

    /// All hours from the first of both to the last.
    pub fn hull(&self, other: &Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// Whether both have an hour in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<(Hour, Hour)> for HourRange {
    fn from((first, last): (Hour, Hour)) -> Self {
        Self { first, last }
    }
}

impl From<HourRange> for (Hour, Hour) {
    fn from(HourRange { first, last }: HourRange) -> Self {
        (first, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_at_the_full_hour_is_of_the_hour_before_it() {
        let hour = Hour(3);
        assert_eq!(Hour::of(hour.start()), hour);
        assert_eq!(Hour::ending(hour.start()), Hour(2));
        assert_eq!(Hour::of(TimestampMs(-1)), Hour(-1));
        assert_eq!((Hour::of_bit(hour.bit()), Hour(-5).bit()), (hour, 0));
    }

    #[test]
    fn ranges_have_their_ends_and_are_written_as_pairs() {
        let [early, late] = [(1, 4), (4, 6)].map(|(first, last)| HourRange::new(Hour(first), Hour(last)));
        assert!(early.contains(Hour(1)) && early.contains(Hour(4)) && !early.contains(Hour(5)));
        assert!(early.overlaps(&late) && !early.overlaps(&HourRange::new(Hour(5), Hour(9))));
        assert_eq!(serde_json::to_string(&late).expect("JSON"), "[4,6]");
    }
}
