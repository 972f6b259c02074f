//! Opening captures: which files there are, what agents' runs say of them, and who was who.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::{
    capture::{self, CaptureFile, Listing, Problem, ProblemKind},
    index::Index,
    table::TimestampMs,
};

use super::{
    cache::State,
    health::{self, Run},
    inventory,
    object_store::{self, Local, RemoteError},
};
use crate::cli::InputArgs;

/// An open capture of one cluster.
#[derive(Clone)]
pub(crate) struct Opening {
    /// What of the input is used.
    pub(crate) files: Vec<CaptureFile>,
    /// What has only rows that are in `files` too.
    pub(crate) superseded: Vec<CaptureFile>,
    /// What is not used, and why.
    pub(crate) problems: Vec<Problem>,
    /// What agents say of their recording.
    pub(crate) runs: Arc<Vec<Run>>,
    /// Who was who.
    pub(crate) index: Arc<Index>,
    /// Holds what came from an object store.
    _fetched: Arc<Local>,
}

/// Why a capture can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpeningError {
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
    /// There is no thread.
    #[error("cannot read the capture")]
    System(#[from] io::Error),
}

impl Opening {
    /// Opens the inputs; what can't be read is left out and told in [`Self::problems`]. Files that are removed meanwhile,
    /// as compaction does once what is in them is elsewhere, are looked for again.
    ///
    /// # Errors
    /// An input does not exist, or holds several clusters.
    pub(crate) async fn new(args: &InputArgs, state: Option<&Arc<State>>) -> Result<Self, OpeningError> {
        let mut tries = 1;
        loop {
            let opening = Self::once(args, state).await?;
            // What was unfinished and has its name by now is of the next time.
            let is_lost = |problem: &&Problem| problem.kind != ProblemKind::Unfinished && is_gone(&problem.path);
            match opening.problems.iter().find(is_lost) {
                None => return Ok(opening),
                Some(problem) if tries == TRIES => return Err(OpeningError::Vanished { path: problem.path.clone() }),
                Some(_) => tries += 1,
            }
        }
    }

    async fn once(args: &InputArgs, state: Option<&Arc<State>>) -> Result<Self, OpeningError> {
        let InputArgs { input, cluster_name: cluster, cache, .. } = args;
        // What is remembered of files is worth little without them.
        let cache = cache.clone().or(state.map(|state| state.cache()));
        let fetched = Arc::new(object_store::fetch(input, cache.as_deref()).await?);
        let Local { inputs: paths, problems, .. } = &*fetched;
        for path in paths {
            fs::metadata(path).map_err(|source| OpeningError::Input { path: path.clone(), source })?;
        }
        let first = input.first().cloned().unwrap_or_default();
        let (paths, known) = (paths.clone(), state.cloned());
        let list = move || {
            let file = |path: &Path, size, modified| known.as_ref().and_then(|state| state.file(path, size, modified));
            capture::list_known(&paths, file)
        };
        let listing = tokio::task::spawn_blocking(list).await.map_err(io::Error::other)?;
        let mut listing = listing.map_err(|source| OpeningError::Input { path: first, source })?;
        listing.problems.extend(problems.iter().cloned());
        let clusters: BTreeSet<String> = listing.files.iter().map(|file| file.cluster.clone()).collect();
        let named = || clusters.iter().cloned().collect::<Vec<_>>().join(", ");
        match cluster {
            Some(wanted) if !clusters.is_empty() && !clusters.contains(wanted) => {
                return Err(OpeningError::NoSuchCluster { wanted: wanted.clone(), clusters: named() });
            }
            Some(wanted) => {
                listing.files.retain(|file| file.cluster == *wanted);
                listing.superseded.retain(|file| file.cluster == *wanted);
            }
            None if clusters.len() > 1 => return Err(OpeningError::SeveralClusters { clusters: named() }),
            None => {}
        }
        Self::of(listing, fetched, args.clock_skew_ms, state).await
    }

    /// The same without the files that turned out to be damaged when they were read; `None` when all are whole, so that
    /// what failed must have another cause. Files that are gone are looked for again.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) async fn again(
        &self,
        args: &InputArgs,
        state: Option<&Arc<State>>,
    ) -> Result<Option<Self>, OpeningError> {
        if self.files.iter().any(|file| is_gone(&file.path)) {
            return Self::new(args, state).await.map(Some);
        }
        let damaged: Vec<Problem> = self.files.iter().filter_map(|file| capture::verify(file).err()).collect();
        if damaged.is_empty() {
            return Ok(None);
        }
        let Self { files, superseded, problems, .. } = self.clone();
        let mut listing = Listing { files, superseded, problems };
        leave_out(&mut listing, damaged);
        Self::of(listing, Arc::clone(&self._fetched), args.clock_skew_ms, state).await.map(Some)
    }

    /// What runs had said, and who was known to be who, at a time.
    pub(crate) fn as_of(&self, time: TimestampMs, clock_skew_ms: u32) -> (Vec<Run>, Index) {
        let (runs, _) = health::read(&self.files, None, Some(time));
        let heard = runs.iter().filter_map(Run::heard).collect();
        let (index, _) = inventory::read(&self.files, heard, clock_skew_ms, None, Some(time));
        (runs, index)
    }

    /// Reads who was who, and what runs say, from the files of one cluster.
    async fn of(
        mut listing: Listing,
        fetched: Arc<Local>,
        clock_skew_ms: u32,
        state: Option<&Arc<State>>,
    ) -> Result<Self, OpeningError> {
        let state = state.cloned();
        let understood = move || {
            let (runs, index) = read(&mut listing, clock_skew_ms, state.as_deref());
            let Listing { files, superseded, problems } = listing;
            Self { files, superseded, problems, runs: Arc::new(runs), index: Arc::new(index), _fetched: fetched }
        };
        // In a thread that nobody has to wait for after Ctrl-C.
        Ok(tokio::task::spawn_blocking(understood).await.map_err(io::Error::other)?)
    }
}

/// What runs say, and who was who. Files that turn out to be damaged become problems.
pub(crate) fn read(listing: &mut Listing, clock_skew_ms: u32, state: Option<&State>) -> (Vec<Run>, Index) {
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
    !schemas::ship::store::is_url(path) && !path.exists()
}

/// How often is looked again, as a compaction removes many files at a time.
const TRIES: usize = 8;
