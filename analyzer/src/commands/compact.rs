//! `flowscribe compact` and `flowscribe prune`: a capture in fewer and smaller files, of which the same is learned.
//!
//! ```text
//! flows/date=…/hour=…/{many}.parquet ──merge──► flows/date=…/hour=…/merged-….parquet     the same rows
//!                         └──────────sum up───► rollups/date=…/hour=…/rollup-….parquet   rows of edges
//! ```
//!
//! What a file has is told by the numbers of its rows. A file whose rows are all in another one is superseded: readers
//! pass it over, and it is removed once those who may still read it have had their time. A rollup stands for rows in the
//! same way. So nothing has to happen at once, and to be killed anywhere loses and repeats nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use delivery::{
    Failure,
    store::{self, Store, StoreError},
};
use indicatif::ProgressBar;
use schemas::{
    capture::{self, CaptureError, CaptureFile, Listing, MergeError, ProblemKind, Runs},
    flow::FlowRecord,
    hour::Hour,
    rollup::RollupRow,
    table::{Record, Table, TimestampMs},
};
use tempfile::TempDir;

use crate::output::note;
use crate::{
    capture::{
        health,
        journal::{Journal, JournalError},
        object_store::{self, RemoteError},
        understand,
    },
    cli::{CompactArgs, PruneArgs},
    edge::Flows,
};

/// Why a capture can't be compacted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompactError {
    #[error("cannot read input {path}")]
    Input {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no capture in {path}")]
    Nothing { path: PathBuf },
    #[error("{path} is being compacted by another process")]
    Busy { path: PathBuf },
    #[error("cannot remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write to {url}: {reason}")]
    Put { url: String, reason: String },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] CaptureError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot compact the capture")]
    System(#[from] io::Error),
}

/// A capture that is changed: a directory, or an object store and what was fetched of it.
struct Place {
    root: PathBuf,
    store: Option<Store>,
    modified: BTreeMap<PathBuf, SystemTime>,
    /// One at a time, for as long as this is held.
    _lock: Option<File>,
    _fetched: Option<TempDir>,
}

/// What was done.
#[derive(Debug, Default)]
struct Tally {
    rollups: u64,
    rolled_rows: u64,
    merged: u64,
    inputs: u64,
    removed: u64,
    removed_bytes: u64,
}

/// Sums up, merges, and removes what is superseded for long enough.
///
/// # Errors
/// The capture can't be read or written; what was done until then is done.
pub(crate) async fn run(args: &CompactArgs) -> Result<(), CompactError> {
    let CompactArgs { input, cache, settle, keep, rollups_only, clock_skew_ms } = args;
    let place = Place::open(input, cache.as_deref()).await?;
    let until = hours_before(*settle);
    let mut tally = Tally::default();
    place.tidy()?;
    place.finish_journal().await?;
    let clusters = place.clusters()?;
    if clusters.is_empty() {
        return Err(CompactError::Nothing { path: input.clone() });
    }
    for (cluster, listing) in clusters {
        place.sum_up(&cluster, listing, *clock_skew_ms, until, &mut tally).await?;
    }
    if !rollups_only {
        for (_, listing) in place.clusters()? {
            place.merge(&listing, until, &mut tally).await?;
        }
        for (_, listing) in place.clusters()? {
            place.remove_superseded(&listing, *keep, &mut tally).await?;
        }
    }
    let Tally { rollups, rolled_rows, merged, inputs, removed, removed_bytes } = &tally;
    note!(
        "{rollups} rollups of {rolled_rows} rows of flows; {inputs} files merged into {merged}; {removed} files removed, \
         {} MB",
        removed_bytes / 1_000_000,
    );
    Ok(())
}

/// Removes flows that are summed up and old enough, and everything that is to be forgotten.
///
/// # Errors
/// The capture can't be read, or a file not be removed.
pub(crate) async fn prune(args: &PruneArgs) -> Result<(), CompactError> {
    let PruneArgs { input, cache, older_than, forget_after, dry_run } = args;
    let place = Place::open(input, cache.as_deref()).await?;
    let (flows_until, all_until) = (hours_before(*older_than), forget_after.map(hours_before));
    let clusters = place.clusters()?;
    if clusters.is_empty() {
        return Err(CompactError::Nothing { path: input.clone() });
    }
    let (mut tally, mut unsummed, mut named) = (Tally::default(), 0, 0);
    for (cluster, Listing { files, superseded, problems }) in clusters {
        for problem in problems {
            note!("left {problem}");
        }
        let mut summed = Runs::default();
        files.iter().filter(|file| file.summary.is_some()).for_each(|rollup| summed.add(&rollup.runs));
        let mut forgotten: BTreeMap<&str, Runs> = BTreeMap::new();
        let mut removed: Vec<&CaptureFile> = Vec::new();
        for file in files.iter().chain(&superseded) {
            if all_until.is_some_and(|until| last_hour(file) < until) {
                // A rollup stands for flows.
                let dataset = if file.summary.is_some() { FlowRecord::DATASET } else { file.dataset };
                forgotten.entry(dataset).or_default().add(&file.runs);
                removed.push(file);
            } else if file.dataset == FlowRecord::DATASET && last_hour(file) < flows_until {
                match (file.has_names, !file.runs.is_empty() && summed.covers(&file.runs)) {
                    (true, _) => named += 1,
                    (false, false) => unsummed += 1,
                    (false, true) => removed.push(file),
                }
            }
        }
        if !dry_run {
            // What is forgotten is not missing: first it is said so.
            for (dataset, runs) in &forgotten {
                let known = files.iter().filter(|file| file.dataset == *dataset && file.rows == 0);
                let (mut runs, mut old) = (runs.clone(), Vec::new());
                known.for_each(|file| {
                    runs.add(&file.runs);
                    old.push(file);
                });
                let path = capture::write_forgotten(dataset, &cluster, &runs, &place.root.join(dataset), VERSION)?;
                place.publish(&path).await?;
                removed.extend(old.into_iter().filter(|file| file.path != path));
            }
        }
        for file in removed {
            tally.removed += 1;
            tally.removed_bytes += file.size_bytes;
            if !dry_run {
                place.remove(&file.path).await?;
            }
        }
    }
    let verb = if *dry_run { "would remove" } else { "removed" };
    note!("{verb} {} files, {} MB", tally.removed, tally.removed_bytes / 1_000_000);
    if unsummed > 0 {
        note!("left {unsummed} files of flows that no rollup sums up: run flowscribe compact first");
    }
    if named > 0 {
        note!("left {named} files of flows with DNS names, which rollups do not keep");
    }
    Ok(())
}

impl Place {
    async fn open(input: &Path, cache: Option<&Path>) -> Result<Self, CompactError> {
        let input_error = |source| CompactError::Input { path: input.into(), source };
        if !store::is_url(input) {
            fs::read_dir(input).map_err(input_error)?;
            let lock = File::create(input.join(LOCK)).map_err(input_error)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(CompactError::Busy { path: input.into() }),
                Err(TryLockError::Error(source)) => return Err(input_error(source)),
            }
            let (modified, root) = (BTreeMap::new(), input.to_path_buf());
            return Ok(Self { root, store: None, modified, _lock: Some(lock), _fetched: None });
        }
        let fetched = if cache.is_none() { Some(tempfile::tempdir()?) } else { None };
        let root = cache.or(fetched.as_ref().map(TempDir::path)).unwrap_or(input).to_path_buf();
        let store = Store::open(&input.to_string_lossy())?;
        let (root, objects) = object_store::mirror(&store, input, &root).await?;
        let modified = objects.into_iter().map(|object| (root.join(&object.name), object.modified)).collect();
        Ok(Self { root, store: Some(store), modified, _lock: None, _fetched: fetched })
    }

    /// Makes files of what somebody received who was killed; who still receives does so himself.
    async fn finish_journal(&self) -> Result<(), CompactError> {
        let listing = capture::list(std::slice::from_ref(&self.root))?;
        if self.store.is_none() && listing.problems.iter().any(|problem| problem.kind == ProblemKind::Received) {
            let root = self.root.clone();
            tokio::task::spawn_blocking(move || Journal::finish_left(&root)).await.map_err(io::Error::other)??;
        }
        Ok(())
    }

    /// Removes what a compaction that was killed left unfinished.
    fn tidy(&self) -> Result<(), CompactError> {
        let input_error = |source| CompactError::Input { path: self.root.clone(), source };
        let listing = capture::list(std::slice::from_ref(&self.root)).map_err(input_error)?;
        let is_own = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ["merged-", "rollup-", "forgotten-"].iter().any(|own| name.starts_with(own))
        };
        let unfinished = listing.problems.iter().filter(|problem| problem.kind == ProblemKind::Unfinished);
        for problem in unfinished.filter(|problem| is_own(&problem.path)) {
            fs::remove_file(&problem.path)
                .map_err(|source| CompactError::Remove { path: problem.path.clone(), source })?;
        }
        Ok(())
    }

    /// The files of each cluster.
    fn clusters(&self) -> Result<BTreeMap<String, Listing>, CompactError> {
        let input_error = |source| CompactError::Input { path: self.root.clone(), source };
        let Listing { files, superseded, problems } =
            capture::list(std::slice::from_ref(&self.root)).map_err(input_error)?;
        let mut clusters: BTreeMap<String, Listing> = BTreeMap::new();
        for file in files {
            clusters.entry(file.cluster.clone()).or_default().files.push(file);
        }
        for file in superseded {
            clusters.entry(file.cluster.clone()).or_default().superseded.push(file);
        }
        // What can't be read is of no cluster; one of them tells.
        if let Some(mut first) = clusters.first_entry() {
            first.get_mut().problems = problems;
        }
        Ok(clusters)
    }

    async fn sum_up(
        &self,
        cluster: &str,
        mut listing: Listing,
        clock_skew_ms: u32,
        until: i64,
        tally: &mut Tally,
    ) -> Result<(), CompactError> {
        let (root, cluster) = (self.root.clone(), cluster.to_owned());
        let (sender, receiver) = mpsc::channel();
        let work = move || {
            let (runs, index) = understand(&mut listing, clock_skew_ms, None);
            for problem in &listing.problems {
                note!("left {problem}");
            }
            let overlaps = Arc::new(health::overlaps(&runs));
            let flows = Flows::new(&listing.files, Arc::new(index), overlaps, ProgressBar::hidden());
            let left = flows.sum_up::<CompactError>(until, |batches, summary, runs, inputs| {
                let hour = summary.hours.last.start();
                let folder = root.join(RollupRow::NAME).join(capture::partition(hour));
                let names: Vec<&str> = inputs.iter().filter_map(|file| file.path.file_name()?.to_str()).collect();
                let path = capture::write_rollup(batches, summary, runs, (&names, &cluster), &folder, VERSION)?;
                let _ = sender.send((path, summary.rows));
                Ok(())
            })?;
            for error in left {
                note!("left {:#}", anyhow::Error::from(error));
            }
            Ok::<_, CompactError>(())
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??;
        for (path, rows) in receiver {
            self.publish(&path).await?;
            tally.rollups += 1;
            tally.rolled_rows += rows.unsigned_abs();
        }
        Ok(())
    }

    /// Merges the files of each dataset and hour, and writes those anew that are of a former schema.
    async fn merge(&self, listing: &Listing, until: i64, tally: &mut Tally) -> Result<(), CompactError> {
        let mut folders: BTreeMap<(&Path, &str), Vec<&CaptureFile>> = BTreeMap::new();
        for file in &listing.files {
            let is_wanted = file.size_bytes < LARGE_BYTES || file.is_of_former_schema();
            let is_known = file.summary.is_none() && !file.runs.is_empty() && file.rows > 0;
            let folder = file.path.parent().filter(|_| is_wanted && is_known && last_hour(file) < until);
            if let Some(folder) = folder {
                folders.entry((folder, file.dataset)).or_default().push(file);
            }
        }
        for ((folder, _), mut files) in folders {
            while files.len() > 1 || files.iter().any(|file| file.is_of_former_schema()) {
                let mut bytes = 0;
                let fits = files.iter().take_while(|file| {
                    bytes += file.size_bytes;
                    bytes <= MERGED_BYTES
                });
                let rest = files.split_off(fits.count().max(1).min(files.len()));
                match capture::merge(&files, folder, VERSION) {
                    Ok(path) => {
                        self.publish(&path).await?;
                        tally.merged += 1;
                        tally.inputs += files.len() as u64;
                    }
                    Err(MergeError::Input(problem)) => {
                        note!("left {problem}");
                        files.retain(|file| file.path != problem.path);
                        files.extend(rest);
                        continue;
                    }
                    Err(MergeError::Output(error)) => return Err(error.into()),
                }
                files = rest;
            }
        }
        Ok(())
    }

    /// Removes what was superseded long enough ago.
    async fn remove_superseded(
        &self,
        listing: &Listing,
        keep: Duration,
        tally: &mut Tally,
    ) -> Result<(), CompactError> {
        let is_old = |file: &CaptureFile| {
            let modified = self.modified.get(&file.path).copied();
            let modified = modified.or(file.modified);
            let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
            // What was put into a store by this very run has its time there.
            age.unwrap_or_default() >= keep
        };
        let mut removed: BTreeMap<&Path, &CaptureFile> = BTreeMap::new();
        for file in &listing.superseded {
            let supersedes = |other: &&CaptureFile| other.dataset == file.dataset && other.runs.covers(&file.runs);
            if listing.files.iter().filter(supersedes).any(is_old) {
                removed.insert(&file.path, file);
            }
        }
        let rollups: Vec<&CaptureFile> = listing.files.iter().filter(|file| file.summary.is_some()).collect();
        for rollup in &rollups {
            // Of the same rows, the newest knows best who was who.
            let supersedes = |other: &&&CaptureFile| {
                other.path != rollup.path
                    && other.runs.covers(&rollup.runs)
                    && (!rollup.runs.covers(&other.runs)
                        || (rollup.modified, &rollup.path) < (other.modified, &other.path))
            };
            if rollups.iter().filter(supersedes).any(|other| is_old(other)) {
                removed.insert(&rollup.path, rollup);
            }
        }
        for file in removed.into_values() {
            self.remove(&file.path).await?;
            tally.removed += 1;
            tally.removed_bytes += file.size_bytes;
        }
        Ok(())
    }

    /// Puts a file that was written where it belongs.
    async fn publish(&self, path: &Path) -> Result<(), CompactError> {
        let Some(store) = &self.store else { return Ok(()) };
        let name = self.name(path);
        let put = store.put(&name, fs::read(path)?.into()).await;
        put.map(drop).map_err(|failure| {
            let (Failure::Retry { reason, .. } | Failure::Refused { reason, .. }) = failure;
            CompactError::Put { url: store.url_of(&name), reason }
        })
    }

    async fn remove(&self, path: &Path) -> Result<(), CompactError> {
        if let Some(store) = &self.store {
            store.remove(&self.name(path)).await?;
        }
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CompactError::Remove { path: path.into(), source })
            }
            _ => {
                // The folders too, once nothing is in them.
                let folders = path.ancestors().skip(1).take_while(|folder| *folder != self.root);
                folders.map_while(|folder| fs::remove_dir(folder).ok()).for_each(drop);
                Ok(())
            }
        }
    }

    /// The name of a file in the store.
    fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// The last hour that a file has rows of.
fn last_hour(file: &CaptureFile) -> i64 {
    match &file.summary {
        Some(summary) => summary.hours.last.0,
        None => Hour::ending(file.last_time()).0,
    }
}

/// The first hour that did not end so long ago.
fn hours_before(age: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Hour::of(TimestampMs(i64::try_from(now.saturating_sub(age).as_millis()).unwrap_or(i64::MAX))).0
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Held by who compacts a directory.
const LOCK: &str = ".compact";
/// Files of this size are left as they are.
const LARGE_BYTES: u64 = 128 << 20;
/// What is merged into one file.
const MERGED_BYTES: u64 = 256 << 20;
