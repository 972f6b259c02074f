//! Opening captures: which files there are, what agents' runs say of them, and who was who.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use indicatif::ProgressBar;
use schemas::{
    capture::{self, CaptureFile, Listing, Problem, ProblemKind, Runs},
    flow::FlowRecord,
    index::Index,
    table::{Record, TimestampMs, decode_column},
};

use super::{
    cache::State,
    health::{self, Run},
    inventory,
    object_store::{self, Local, RemoteError},
};
use crate::{
    edge::{Flows, Overlaps, WorkError},
    output::note,
};

/// Which capture to open, and how.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// Directories, files and object stores.
    pub(crate) paths: Vec<PathBuf>,
    /// The cluster to look at, where they hold several.
    pub(crate) cluster: Option<String>,
    /// Directory that keeps what is fetched from an object store.
    pub(crate) cache: Option<PathBuf>,
    pub(crate) clock_skew_ms: u32,
    /// What an earlier run remembers of it.
    pub(crate) state: Option<Arc<State>>,
    /// Whether reading flows is shown on a terminal.
    pub(crate) progress: ProgressBar,
}

/// An open capture of one cluster.
#[derive(Clone)]
pub(crate) struct OpenCapture {
    pub(crate) input: Input,
    /// What of the input is used.
    pub(crate) files: Vec<CaptureFile>,
    /// What has only rows that are in `files` too.
    pub(crate) superseded: Vec<CaptureFile>,
    /// What is not used, and why.
    pub(crate) problems: Vec<Problem>,
    /// What agents say of their recording.
    pub(crate) runs: Arc<Vec<Run>>,
    /// Which of them recorded one node at the same time.
    pub(crate) overlaps: Arc<Overlaps>,
    /// Who was who.
    pub(crate) index: Arc<Index>,
    pub(crate) flows: Arc<Flows>,
    /// Holds what came from an object store.
    _fetched: Arc<Local>,
}

/// DNS names that clients had resolved to addresses.
pub(crate) type Names = BTreeMap<IpAddr, BTreeSet<String>>;

/// Why a capture can't be opened or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// An input is not there.
    #[error("cannot read input {path}")]
    Input {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Addresses mean something in one cluster only.
    #[error("the input holds several clusters ({clusters}): name one with --cluster-name")]
    SeveralClusters { clusters: String },
    /// The named cluster is not there.
    #[error("the input holds no cluster `{wanted}`, only {clusters}")]
    NoSuchCluster { wanted: String, clusters: String },
    /// Files are removed while they are read, time and again.
    #[error("{path} was removed while the capture was read: let flowscribe compact keep files for longer (--keep)")]
    Vanished { path: PathBuf },
    /// A capture in an object store can't be fetched.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Its flows can't be read, whichever files are left out.
    #[error("cannot read the capture")]
    Flows(#[from] WorkError),
    /// A file of it can't be read.
    #[error("cannot read the capture: {0}")]
    File(Problem),
    /// There is no thread.
    #[error("cannot read the capture")]
    System(#[from] io::Error),
}

impl OpenCapture {
    /// Opens the inputs; what can't be read is left out, and is among [`Self::problems`]. Files that are removed meanwhile,
    /// as compaction does once what is in them is elsewhere, are looked for again.
    ///
    /// # Errors
    /// An input does not exist, or holds several clusters.
    pub(crate) async fn new(input: Input) -> Result<Self, OpenError> {
        let mut tries = 1;
        loop {
            let opened = Self::once(input.clone()).await?;
            // What was unfinished and has its name by now is of the next time.
            let is_lost = |problem: &&Problem| problem.kind != ProblemKind::Unfinished && is_gone(&problem.path);
            match opened.problems.iter().find(is_lost) {
                None => return Ok(opened),
                Some(problem) if tries == TRIES => return Err(OpenError::Vanished { path: problem.path.clone() }),
                Some(_) => tries += 1,
            }
        }
    }

    /// Reads something of the capture; where a file turns out to be damaged or gone meanwhile, of what is there without it.
    ///
    /// # Errors
    /// What `read` says, if all files are whole; or the capture can't be opened again.
    pub(crate) async fn read<T, E: From<OpenError>>(
        &mut self,
        read: impl AsyncFn(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = 1;
        loop {
            let read = read(self).await;
            self.input.progress.finish_and_clear();
            match read {
                Ok(read) => return Ok(read),
                Err(error) if tries == READS => return Err(error),
                // A file whose footer is whole may still be damaged, or was merged into another one meanwhile.
                Err(error) => *self = self.again().await?.ok_or(error)?,
            }
            tries += 1;
        }
    }

    /// The DNS names that clients had resolved to addresses.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn names(&self) -> Result<Names, OpenError> {
        let mut names = Names::new();
        // Every file says in its footer, which was read, whether it has any.
        for file in self.files.iter().filter(|file| file.has_names) {
            let wrong = |reason: String| OpenError::File(file.problem(ProblemKind::WrongColumns { reason }));
            let columns = ["destination_address", "destination_name"];
            for batch in capture::read_columns::<FlowRecord>(file, &columns).map_err(OpenError::File)? {
                let batch = batch.map_err(OpenError::File)?;
                let read = |name| decode_column::<Option<Arc<str>>>(&batch, FlowRecord::DATASET, name);
                let [addresses, of_them] = columns.map(|name| read(name).map_err(|error| wrong(error.to_string())));
                for (address, name) in addresses?.into_iter().zip(of_them?) {
                    let address = address.and_then(|address| address.parse().ok());
                    if let (Some(address), Some(name)) = (address, name) {
                        names.entry(address).or_default().insert(name.to_string());
                    }
                }
            }
        }
        Ok(names)
    }

    /// Different rows of flows that there are, those that rollups sum up among them.
    pub(crate) fn flow_rows(&self) -> i64 {
        let is_of_flows = |file: &&CaptureFile| file.dataset == FlowRecord::DATASET || file.summary.is_some();
        let mut runs = Runs::default();
        let mut unnumbered = 0;
        for file in self.files.iter().filter(is_of_flows) {
            match (file.runs.is_empty(), file.rows) {
                (true, rows) => unnumbered += rows,
                // Of forgotten rows, only their numbers are there.
                (false, 0) if file.summary.is_none() => {}
                _ => runs.add(&file.runs),
            }
        }
        unnumbered + runs.rows()
    }

    /// What runs had said, and who was known to be who, at a time.
    pub(crate) fn as_of(&self, time: TimestampMs) -> (Vec<Run>, Index) {
        let (runs, _) = health::read(&self.files, None, Some(time));
        let heard = runs.iter().filter_map(Run::heard).collect();
        let (index, _) = inventory::read(&self.files, heard, self.input.clock_skew_ms, None, Some(time));
        (runs, index)
    }

    async fn once(input: Input) -> Result<Self, OpenError> {
        // What is remembered of files is worth little without them.
        let cache = input.cache.clone().or(input.state.as_ref().map(|state| state.cache()));
        let fetched = Arc::new(object_store::fetch(&input.paths, cache.as_deref()).await?);
        let Local { inputs: paths, problems, .. } = &*fetched;
        for path in paths {
            fs::metadata(path).map_err(|source| OpenError::Input { path: path.clone(), source })?;
        }
        let first = input.paths.first().cloned().unwrap_or_default();
        let (paths, known) = (paths.clone(), input.state.clone());
        let list = move || {
            let file = |path: &Path, size, modified| known.as_ref().and_then(|state| state.file(path, size, modified));
            capture::list_known(&paths, file)
        };
        let listing = tokio::task::spawn_blocking(list).await.map_err(io::Error::other)?;
        let mut listing = listing.map_err(|source| OpenError::Input { path: first, source })?;
        listing.problems.extend(problems.iter().cloned());
        let mut clusters: BTreeMap<String, i64> = BTreeMap::new();
        for file in &listing.files {
            let rows = clusters.entry(file.cluster.clone()).or_default();
            *rows = rows.saturating_add(file.rows);
        }
        let named = || clusters.keys().cloned().collect::<Vec<_>>().join(", ");
        let main = main_cluster(&clusters);
        if input.cluster.is_none()
            && let Some(main) = main
        {
            for (other, rows) in clusters.iter().filter(|(other, _)| *other != main) {
                note!(
                    "{rows} rows of cluster {other:?} are left out, as nearly all are of {main:?}: --cluster-name names another"
                );
            }
        }
        match input.cluster.as_ref().or(main) {
            Some(wanted) if !clusters.is_empty() && !clusters.contains_key(wanted) => {
                return Err(OpenError::NoSuchCluster { wanted: wanted.clone(), clusters: named() });
            }
            Some(wanted) => {
                listing.files.retain(|file| file.cluster == *wanted);
                listing.superseded.retain(|file| file.cluster == *wanted);
            }
            None if clusters.len() > 1 => return Err(OpenError::SeveralClusters { clusters: named() }),
            None => {}
        }
        Self::of(input, listing, fetched).await
    }

    /// The same without the files that turned out to be damaged when they were read; `None` when all are whole, so that
    /// what failed must have another cause. Files that are gone are looked for again.
    async fn again(&self) -> Result<Option<Self>, OpenError> {
        if self.files.iter().any(|file| is_gone(&file.path)) {
            return Self::new(self.input.clone()).await.map(Some);
        }
        let damaged: Vec<Problem> = self.files.iter().filter_map(|file| capture::verify(file).err()).collect();
        if damaged.is_empty() {
            return Ok(None);
        }
        let Self { files, superseded, problems, .. } = self;
        let mut listing = Listing { files: files.clone(), superseded: superseded.clone(), problems: problems.clone() };
        leave_out(&mut listing, damaged);
        Self::of(self.input.clone(), listing, Arc::clone(&self._fetched)).await.map(Some)
    }

    /// Reads who was who, and what runs say, from the files of one cluster.
    async fn of(input: Input, mut listing: Listing, fetched: Arc<Local>) -> Result<Self, OpenError> {
        let work = move || {
            let (runs, index) = understand(&mut listing, input.clock_skew_ms, input.state.as_deref());
            let Listing { files, superseded, problems } = listing;
            let (index, overlaps) = (Arc::new(index), Arc::new(health::overlaps(&runs)));
            let flows = Flows::new(&files, Arc::clone(&index), Arc::clone(&overlaps), input.progress.clone());
            let (runs, flows) = (Arc::new(runs), Arc::new(flows));
            Self { input, files, superseded, problems, runs, overlaps, index, flows, _fetched: fetched }
        };
        // In a thread that nobody has to wait for after Ctrl-C.
        Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?)
    }
}

/// Of several clusters the one that nearly all rows are of: some of another, whoever wrote them, are no reason to ask.
fn main_cluster(clusters: &BTreeMap<String, i64>) -> Option<&String> {
    let all = clusters.values().fold(0i64, |sum, rows| sum.saturating_add(*rows));
    let (main, rows) = clusters.iter().max_by_key(|(_, rows)| **rows)?;
    (clusters.len() > 1 && all - rows <= all / FEW).then_some(main)
}

/// Rows of other clusters are few where they are no more than one of so many.
const FEW: i64 = 100;

/// What runs say, and who was who. Files that turn out to be damaged become problems.
pub(crate) fn understand(listing: &mut Listing, clock_skew_ms: u32, state: Option<&State>) -> (Vec<Run>, Index) {
    loop {
        let (runs, mut damaged) = health::read(&listing.files, state, None);
        let heard = runs.iter().filter_map(Run::heard).collect();
        let (index, more) = inventory::read(&listing.files, heard, clock_skew_ms, state, None);
        damaged.extend(more);
        // What a damaged file superseded is read in its place.
        let is_final = damaged.is_empty() || listing.superseded.is_empty();
        leave_out(listing, damaged);
        if is_final {
            return (runs, index);
        }
    }
}

/// Leaves damaged files out; what was in other files too is used from there.
fn leave_out(listing: &mut Listing, damaged: Vec<Problem>) {
    let unusable: HashSet<&PathBuf> = damaged.iter().map(|problem| &problem.path).collect();
    let all = listing.files.drain(..).chain(listing.superseded.drain(..));
    let mut whole: Vec<CaptureFile> = all.filter(|file| !unusable.contains(&file.path)).collect();
    whole.sort_by(|a, b| a.path.cmp(&b.path));
    (listing.files, listing.superseded) = capture::set_apart(whole);
    listing.problems.extend(damaged);
    listing.problems.sort();
}

/// Whether something that was there is not any more. What is in an object store has no path.
fn is_gone(path: &Path) -> bool {
    !delivery::store::is_url(path) && !path.exists()
}

/// How often is looked again, as a compaction removes many files at a time.
const TRIES: usize = 8;
/// How often a capture that changes meanwhile is read.
const READS: usize = 4;
