//! Whether an edge comes back by the calendar: daily, weekly or monthly, found from the hours in which it was seen.

use std::collections::BTreeSet;

use roaring::RoaringBitmap;

use schemas::hour::Hour;

/// How often an edge that is not always there comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recurrence {
    /// On most days, always at about the same hours.
    Daily,
    /// In most weeks, always on the same weekdays and at about the same hours.
    Weekly,
    /// In every month, on about the same day, counted from its beginning or its end.
    Monthly,
}

impl Recurrence {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// Hours from one occurrence to the next, at most.
    pub(crate) const fn period_hours(self) -> u64 {
        match self {
            Self::Daily => 24,
            Self::Weekly => 7 * 24,
            Self::Monthly => 31 * 24,
        }
    }

    /// Finds the recurrence of what was seen in some hours, of those in which it could have been; `None` for what is
    /// there most of the time, or without a pattern.
    pub(crate) fn find(seen: &RoaringBitmap, observable: &RoaringBitmap) -> Option<Self> {
        let (first, last) = (seen.min()?, seen.max()?);
        let between = observable.range_cardinality(first..=last).max(1);
        if seen.len() * 2 > between {
            return None;
        }
        let days: BTreeSet<u32> = seen.iter().map(|hour| hour / 24).collect();
        let could: BTreeSet<u32> = observable.range(first..=last).map(|hour| hour / 24).collect();
        let is_most = |seen: usize, possible: usize| seen * 100 >= possible * MOST_PERCENT;
        let hours_of_day: BTreeSet<u32> = seen.iter().map(|hour| hour % 24).collect();
        if hours_of_day.len() <= HOURS_OF_DAY {
            if days.len() >= OCCURRENCES && is_most(days.len(), could.len()) {
                return Some(Self::Daily);
            }
            // 1970-01-01 was a Thursday; weeks begin on Monday.
            let weekday = |day: u32| (day + 3) % 7;
            let weekdays: BTreeSet<u32> = days.iter().map(|day| weekday(*day)).collect();
            let weeks: BTreeSet<u32> = days.iter().map(|day| (day + 3) / 7).collect();
            let expected = could.iter().filter(|day| weekdays.contains(&weekday(**day))).count();
            if weeks.len() >= OCCURRENCES && weekdays.len() <= WORKDAYS && is_most(days.len(), expected) {
                return Some(Self::Weekly);
            }
        }
        Self::is_monthly(&days).then_some(Self::Monthly)
    }

    fn is_monthly(days: &BTreeSet<u32>) -> bool {
        let dates: Vec<(u32, u32, u32)> = days.iter().map(|day| date(*day)).collect();
        let months: BTreeSet<u32> = dates.iter().map(|(month, ..)| *month).collect();
        let (Some(first), Some(last)) = (months.first(), months.last()) else { return false };
        let is_every_month = last - first + 1 == months.len() as u32 && months.len() >= 2;
        let spread = |day: fn(&(u32, u32, u32)) -> u32| {
            let days = || dates.iter().map(day);
            days().max().unwrap_or_default() - days().min().unwrap_or_default()
        };
        is_every_month && (spread(|(_, day, _)| *day) <= DAYS_OF_MONTH || spread(|(.., left)| *left) <= DAYS_OF_MONTH)
    }
}

/// Month since year 0, day of the month, and how many days the month has left.
fn date(day: u32) -> (u32, u32, u32) {
    let parts = |day: u32| {
        let text = Hour::of_bit(day * 24).start().to_string();
        let number =
            |at: std::ops::Range<usize>| text.get(at).and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(0);
        (number(0..4) * 12 + number(5..7) - 1, number(8..10))
    };
    let (month, day_of_month) = parts(day);
    let left = (1..31).find(|ahead| parts(day + ahead).0 != month).unwrap_or(31) - 1;
    (month, day_of_month, left)
}

/// Occurrences without which there is no pattern of days or weeks.
const OCCURRENCES: usize = 3;
/// Of the days on which it could have been seen, it was on so many.
const MOST_PERCENT: usize = 80;
/// Hours of the day that a job may be seen in, when it runs long or begins late.
const HOURS_OF_DAY: usize = 3;
/// More weekdays would be every day.
const WORKDAYS: usize = 5;
/// By how many days a monthly day may differ.
const DAYS_OF_MONTH: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-01, a Sunday, in hours.
    const START: u32 = 1_772_323_200 / 3600;

    fn find(seen: impl IntoIterator<Item = u32>, days: u32) -> Option<Recurrence> {
        let seen: RoaringBitmap = seen.into_iter().map(|hour| START + hour).collect();
        Recurrence::find(&seen, &(START..START + days * 24).collect())
    }

    #[test]
    fn jobs_recur_as_they_are_scheduled() {
        assert_eq!(find((0..30).map(|day| day * 24 + 2), 30), Some(Recurrence::Daily));
        let late = (0..30).map(|day| day * 24 + 2 + u32::from(day % 5 == 0));
        assert_eq!(find(late, 30), Some(Recurrence::Daily), "one hour late at times");
        let missed = (0..30).filter(|day| day % 10 != 3).map(|day| day * 24 + 2);
        assert_eq!(find(missed, 30), Some(Recurrence::Daily), "three nights are missing");
        assert_eq!(find((0..5).map(|week| week * 168 + 4), 30), Some(Recurrence::Weekly));
        let workdays = (0..30).filter(|day| (1..=5).contains(&(day % 7))).map(|day| day * 24 + 9);
        assert_eq!(find(workdays, 30), Some(Recurrence::Weekly));
        // The ends of March, April and May.
        assert_eq!(find([30 * 24 + 23, 60 * 24 + 23, 91 * 24 + 23], 92), Some(Recurrence::Monthly));
        assert_eq!(find([14 * 24, 45 * 24], 92), Some(Recurrence::Monthly), "the 15th");
    }

    #[test]
    fn what_is_always_there_or_without_a_pattern_does_not_recur() {
        assert_eq!(find(0..720, 30), None);
        assert_eq!(find([50], 30), None, "once");
        assert_eq!(find([50, 74], 30), None, "twice");
        assert_eq!(find([50, 57, 300, 441, 650], 30), None, "at random");
        assert_eq!(find((0..30).map(|day| day * 24 + day * 7 % 24), 30), None, "every day, at any hour");
    }
}
