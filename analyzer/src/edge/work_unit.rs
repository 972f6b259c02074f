//! Dividing a capture's flows into units of work, which share no hour.
//!
//! A unit is what is in memory at once. Usually it is an hour, as files are of one hour each; files that overlap in time
//! make longer ones, of a day at most.

use std::cmp::Reverse;

use schemas::capture::{CaptureFile, Runs};
use schemas::hour::{Hour, HourRange};

/// A file of flows.
pub(super) struct FlowFile {
    pub(super) file: CaptureFile,
    /// Another file may hold some of its rows too.
    pub(super) repeats: bool,
    /// First and last hour of each row group.
    pub(super) hours: Vec<HourRange>,
}

/// Hours, and the files and row groups that have rows of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) hours: HourRange,
    pub(super) parts: Vec<(usize, Vec<usize>)>,
    /// Rollups that sum up different rows of these hours, and for each others of the same rows.
    pub(super) rollups: Vec<Vec<usize>>,
    pub(super) source: Source,
}

/// What a unit is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Source {
    /// Files of flows: there are no rollups, or rows that they do not sum up.
    #[default]
    Files,
    /// Rollups, which sum up all rows that there are; else the files.
    RollupsOrFiles,
    /// Rollups, as what they sum up is not there any more, and files for what else there is.
    Rollups,
}

impl Unit {
    /// Rows that are read of it.
    pub(super) fn rows(&self, files: &[FlowFile], rollups: &[CaptureFile]) -> u64 {
        let of_rollups = || self.rollups.iter().filter_map(|same| Some(rollups[*same.first()?].rows)).sum::<i64>();
        let of_files = || self.parts.iter().map(|(file, _)| files[*file].file.rows).sum::<i64>();
        let rows = match self.source {
            Source::Files => of_files(),
            Source::RollupsOrFiles => of_rollups(),
            Source::Rollups => of_rollups() + of_files(),
        };
        rows.unsigned_abs()
    }
}

/// Units in order of time, which share no hour.
pub(super) fn units(files: &[FlowFile], rollups: &[CaptureFile]) -> Vec<Unit> {
    // Runs of hours that files connect. Rollups are numbered after the files.
    let mut groups: Vec<(i64, i64, usize, usize)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        groups.extend(file.hours.iter().enumerate().map(|(group, of)| (of.first.0, of.last.0, number, group)));
    }
    for (number, rollup) in rollups.iter().enumerate() {
        let hours = rollup.summary.as_ref().map(|summary| summary.hours).unwrap_or_default();
        groups.push((hours.first.0, hours.last.0, files.len() + number, 0));
    }
    groups.sort_unstable();
    let mut units = Vec::new();
    let mut rest = &groups[..];
    while let Some((first, last, ..)) = rest.first() {
        let (first, mut last, mut end) = (*first, *last, 0);
        while let Some((from, to, ..)) = rest.get(end).filter(|(from, ..)| *from <= last) {
            debug_assert!(*from >= first);
            (last, end) = (last.max(*to), end + 1);
        }
        let (connected, others) = rest.split_at(end);
        rest = others;
        let of_rollups = connected.iter().filter_map(|(.., number, _)| number.checked_sub(files.len()));
        let of_rollups: Vec<usize> = of_rollups.collect();
        // A row group is read once per unit: where that would be often, everything is one.
        let slices = |(from, to, ..): &(i64, i64, usize, usize)| to.saturating_sub(*from) / UNIT_HOURS;
        let is_divided = of_rollups.is_empty()
            && connected.iter().fold(0i64, |sum, group| sum.saturating_add(slices(group))) <= end as i64;
        let mut from = first;
        while from <= last {
            let to = if is_divided { last.min(from + UNIT_HOURS - 1) } else { last };
            let hours = HourRange::new(Hour(from), Hour(to));
            let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
            let of_files = connected.iter().filter(|(.., number, _)| *number < files.len());
            for (.., file, group) in of_files.filter(|(first, last, ..)| *first <= to && from <= *last) {
                match parts.last_mut().filter(|(last, _)| last == file) {
                    Some((_, groups)) => groups.push(*group),
                    None => parts.push((*file, vec![*group])),
                }
            }
            let (rollups, source) = sources(files, rollups, &mut parts, &of_rollups);
            units.push(Unit { hours, parts, rollups, source });
            let Some(next) = to.checked_add(1) else { break };
            from = next;
        }
    }
    units
}

/// Which rollups of some hours are used, and what else.
fn sources(
    files: &[FlowFile],
    rollups: &[CaptureFile],
    parts: &mut Vec<(usize, Vec<usize>)>,
    found: &[usize],
) -> (Vec<Vec<usize>>, Source) {
    // Those with the most rows first; others of the same rows are alternatives, and what else overlaps is left out.
    let mut found = found.to_vec();
    // Of alternatives, the newest knew best who was who.
    found.sort_by_key(|number| {
        let rollup = &rollups[*number];
        Reverse((rollup.summary.as_ref().map(|summary| summary.rows), rollup.modified, *number))
    });
    let (mut chosen, mut summed): (Vec<Vec<usize>>, Runs) = (Vec::new(), Runs::default());
    for number in found {
        let runs = &rollups[number].runs;
        if let Some(same) = chosen.iter_mut().find(|same| rollups[same[0]].runs == *runs) {
            same.push(number);
        } else if !summed.overlaps(runs) {
            summed.add(runs);
            chosen.push(vec![number]);
        }
    }
    if chosen.is_empty() {
        return (chosen, Source::Files);
    }
    let mut there = Runs::default();
    parts.iter().for_each(|(file, _)| there.add(&files[*file].file.runs));
    let is_told = parts.iter().all(|(file, _)| !files[*file].file.runs.is_empty());
    let source = match (is_told && summed.covers(&there), there.covers(&summed)) {
        (true, true) => Source::RollupsOrFiles,
        (false, true) => Source::Files,
        (false, false) => Source::Rollups,
        (true, false) => {
            parts.clear();
            Source::Rollups
        }
    };
    (chosen, source)
}

/// Which files may hold rows that another one holds too, or do not tell theirs.
pub(crate) fn repeats(files: &[&CaptureFile]) -> Vec<bool> {
    if files.iter().any(|file| file.runs.is_empty()) {
        return vec![true; files.len()];
    }
    let mut repeats: Vec<bool> = files.iter().map(|file| file.repeats_itself()).collect();
    let mut ranges: Vec<(&str, i64, i64, usize)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        ranges.extend(
            file.runs
                .0
                .iter()
                .filter_map(|(run, rows)| Some((run.as_str(), rows.seqs.first()?, rows.seqs.last()?, number))),
        );
    }
    ranges.sort_unstable();
    for (at, (run, _, last, one)) in ranges.iter().enumerate() {
        for (.., other) in ranges[at + 1..].iter().take_while(|(of, first, ..)| of == run && first <= last) {
            if one != other && files[*one].runs.overlaps(&files[*other].runs) {
                (repeats[*one], repeats[*other]) = (true, true);
            }
        }
    }
    repeats
}

/// Hours of a unit at most.
const UNIT_HOURS: i64 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn range((first, last): (i64, i64)) -> HourRange {
        HourRange::new(Hour(first), Hour(last))
    }

    fn file(hours: &[(i64, i64)]) -> FlowFile {
        let hours = hours.iter().copied().map(range).collect();
        FlowFile { file: CaptureFile::default(), repeats: false, hours }
    }

    #[test]
    fn units_share_no_hour_and_have_every_row_group_of_theirs() {
        let files = [file(&[(1, 1), (1, 2)]), file(&[(2, 2)]), file(&[(4, 4)])];
        let unit = |hours, parts: &[(usize, &[usize])]| Unit {
            hours: range(hours),
            parts: parts.iter().map(|(file, groups)| (*file, groups.to_vec())).collect(),
            ..Unit::default()
        };
        assert_eq!(units(&files, &[]), [unit((1, 2), &[(0, &[0, 1]), (1, &[0])]), unit((4, 4), &[(2, &[0])])]);
        let long = units(&[file(&[(0, 30)]), file(&[(25, 25)])], &[]);
        assert_eq!(long, [unit((0, 23), &[(0, &[0])]), unit((24, 30), &[(0, &[0]), (1, &[0])])]);
        for all in [(i64::MIN, i64::MAX), (0, 72)] {
            let one = units(&[file(&[all]), file(&[(5, 5)])], &[]);
            assert_eq!(one.len(), 1, "not read over and over: {one:?}");
        }
    }
}
