//! Summing hours up into rollups, and whether a rollup still says what the flows would.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use arrow::array::RecordBatch;
use schemas::{
    capture::{CaptureFile, Runs, Summary},
    index::{Fingerprints, Span},
    rollup::RollupRow,
    table::Table,
};

use super::{
    flows::{Flows, WorkError},
    fold::Folder,
    rollup,
    work_unit::{Source, Unit},
};

impl Flows {
    /// Whether the inventory says what it said when a rollup was made, and the same runs are known to overlap.
    pub(super) fn still_holds(&self, rollup: &CaptureFile, batches: &[RecordBatch]) -> bool {
        let Some(Summary { looked_up: (from, to), hours, fingerprint, .. }) = &rollup.summary else { return false };
        let (pods, outside) = rollup::mentions(batches);
        let known = self.fingerprint(Span { from: *from, to: *to }, pods, outside);
        *fingerprint == known + &self.overlaps.fingerprint(&rollup.runs, *hours)
    }

    /// What the inventory says of a span, and of what was met in it.
    pub(super) fn fingerprint<'a>(
        &self,
        span: Span,
        pods: impl IntoIterator<Item = &'a str>,
        outside: impl IntoIterator<Item = IpAddr>,
    ) -> String {
        let fingerprints = self.fingerprints.get_or_init(|| Fingerprints::new(&self.index));
        format!("{:016x}", fingerprints.of(&self.index, span, pods, outside))
    }

    /// Sums up the hours for which that is not done yet, or not of all rows, until an hour: gives each rollup's rows and
    /// summary, the rows of flows that it is of, and their files. Hours that can't be read are left, and returned.
    ///
    /// # Errors
    /// `write` fails.
    pub(crate) fn sum_up<E: Send>(
        &self,
        until: i64,
        write: impl Fn(&[RecordBatch], &Summary, &Runs, &[&CaptureFile]) -> Result<(), E> + Sync,
    ) -> Result<Vec<WorkError>, E> {
        let is_due = |unit: &&Unit| unit.hours.last.0 < until && !unit.parts.is_empty();
        let units: Vec<&Unit> = self.units.iter().filter(is_due).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut folder, mut left) = (Folder::new(&self.index, &self.overlaps), Vec::new());
            while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.sum_up_unit(&mut folder, unit) {
                    Ok(Some((batches, summary, runs, files))) => write(&batches, &summary, &runs, &files)?,
                    Ok(None) => {}
                    Err(error) => left.push(error),
                }
                folder.finish();
                folder.take_undirected();
            }
            Ok(left)
        };
        let workers = thread::available_parallelism().map_or(1, usize::from).min(units.len()).max(1);
        let parts: Vec<Result<Vec<WorkError>, E>> = thread::scope(|scope| {
            #[expect(clippy::needless_collect, reason = "all begin before the first is waited for")]
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().expect("the fold does not panic")).collect()
        });
        Ok(parts.into_iter().collect::<Result<Vec<_>, E>>()?.into_iter().flatten().collect())
    }

    /// What is to be written of a unit; `None` if it is summed up, or can't be.
    fn sum_up_unit<'a>(&'a self, folder: &mut Folder<'a>, unit: &Unit) -> Result<Option<SummedUp<'a>>, WorkError> {
        let files: Vec<&CaptureFile> = unit.parts.iter().map(|(file, _)| &self.files[*file].file).collect();
        // Of what does not tell its rows, nobody could say later whether it is summed up.
        if files.iter().any(|file| file.runs.is_empty()) {
            return Ok(None);
        }
        // Whether a rollup is right is known when it is read.
        if unit.source == Source::RollupsOrFiles && self.place(folder, unit)? {
            return Ok(None);
        }
        self.fold(folder, unit)?;
        let looked_up = folder.looked_up();
        let hours = folder.finish();
        let undirected = folder.take_undirected();
        let batches: Vec<RecordBatch> =
            hours.iter().map(|hour| RollupRow::encode(&rollup::rows(folder, hour))).collect();
        let mut runs = Runs::default();
        let old = unit.rollups.iter().filter_map(|same| self.rollups.get(*same.first()?));
        let of_rollups: Vec<&CaptureFile> = if unit.source == Source::Rollups { old.collect() } else { Vec::new() };
        files.iter().chain(&of_rollups).for_each(|file| runs.add(&file.runs));
        let spans = of_rollups.iter().filter_map(|rollup| rollup.summary.as_ref()).map(|summary| summary.looked_up);
        let span = spans.fold(looked_up, |span, (from, to)| span.hull(Span { from, to }));
        let (pods, outside) = rollup::mentions(&batches);
        let fingerprint = self.fingerprint(span, pods, outside) + &self.overlaps.fingerprint(&runs, unit.hours);
        let (hours, looked_up, rows) = (unit.hours, (span.from, span.to), runs.rows());
        let summary = Summary { hours, looked_up, fingerprint, rows, undirected };
        Ok(Some((batches, summary, runs, files)))
    }
}

/// A rollup's rows and summary, the rows of flows that it is of, and their files.
type SummedUp<'a> = (Vec<RecordBatch>, Summary, Runs, Vec<&'a CaptureFile>);
