//! Captures in object stores: their files are fetched to a directory, and read there like any others.
//!
//! The files of a capture are small and never change, and a report reads most of each: one request for the whole of it
//! costs less than one for its footer and more for its columns. With `--cache` a file is fetched once for all reports.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use delivery::store::{self, Object, Store, StoreError};
use futures::{StreamExt, TryStreamExt, stream};
use schemas::capture::{Problem, ProblemKind};
use tempfile::TempDir;

/// Inputs as directories.
pub(crate) struct Local {
    pub(crate) inputs: Vec<PathBuf>,
    /// Objects that are no files of a capture.
    pub(crate) problems: Vec<Problem>,
    /// Removed with this, where no cache is kept.
    _fetched: Option<TempDir>,
}

/// Why a capture can't be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is nothing at {url}")]
    Nothing { url: String },
    #[error("cannot keep what is fetched in {path}: make room, or name another directory with --cache")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Fetches what is in object stores; what is on disk stays where it is.
///
/// # Errors
/// A store can't be read, has nothing there, or the files can't be written.
pub(crate) async fn fetch(inputs: &[PathBuf], cache: Option<&Path>) -> Result<Local, RemoteError> {
    let mut local = Local { inputs: Vec::new(), problems: Vec::new(), _fetched: None };
    if !inputs.iter().any(|input| store::is_url(input)) {
        local.inputs = inputs.to_vec();
        return Ok(local);
    }
    let root = match cache {
        Some(cache) => cache.to_path_buf(),
        None => {
            let fetched = tempfile::tempdir().map_err(|source| write_error(&std::env::temp_dir(), source))?;
            local._fetched.insert(fetched).path().to_path_buf()
        }
    };
    for input in inputs {
        if !store::is_url(input) {
            local.inputs.push(input.clone());
            continue;
        }
        let store = Store::open(&input.to_string_lossy())?;
        let (folder, objects) = mirror(&store, input, &root).await?;
        let shown = objects.iter().filter(|object| !is_file(object));
        let shown = shown.filter(|object| !object.name.split('/').any(|part| part.starts_with('.')));
        let problem =
            |object: &Object| Problem { path: store.url_of(&object.name).into(), kind: ProblemKind::NotParquet };
        local.problems.extend(shown.map(problem));
        // Of a cache, what is in the store now: what was merged or pruned is not.
        local.inputs.extend(objects.iter().filter(|object| is_file(object)).map(|object| folder.join(&object.name)));
    }
    Ok(local)
}

/// Fetches everything in a store that is not there yet: where to, and everything that the store has.
///
/// # Errors
/// The store can't be read, has nothing there, or the files can't be written.
pub(crate) async fn mirror(store: &Store, url: &Path, root: &Path) -> Result<(PathBuf, Vec<Object>), RemoteError> {
    let url = url.to_string_lossy();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", &url));
    let folder = root.join(scheme).join(rest.trim_matches('/'));
    fs::create_dir_all(&folder).map_err(|source| write_error(&folder, source))?;
    let mut tries = 1;
    loop {
        let objects = store.list().await?;
        if objects.is_empty() {
            return Err(RemoteError::Nothing { url: store.url_of("") });
        }
        match fetch_all(store, &objects, &folder).await {
            Ok(()) => return Ok((folder, objects)),
            Err(error) if tries == TRIES => return Err(error),
            // It may have been merged into another one after it was listed.
            Err(_) => tries += 1,
        }
    }
}

/// Fetches the files that are not there yet.
async fn fetch_all(store: &Store, objects: &[Object], folder: &Path) -> Result<(), RemoteError> {
    stream::iter(objects.iter().filter(|object| is_file(object)))
        .map(Ok)
        .try_for_each_concurrent(FETCHES, |object| async move {
            let path = folder.join(&object.name);
            // Files never change, and a part of one never has its name.
            if path.metadata().is_ok_and(|metadata| metadata.len() == object.size_bytes) {
                return Ok(());
            }
            let bytes = store.get(&object.name).await?;
            keep(&path, &bytes).map_err(|source| write_error(&path, source))
        })
        .await
}

/// Whether an object is a file of a capture.
fn is_file(object: &Object) -> bool {
    object.name.ends_with(".parquet") && is_safe(&object.name)
}

/// Whether a name stays below the directory that it is put in.
fn is_safe(name: &str) -> bool {
    name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let file = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
    fs::write(file.path(), bytes)?;
    file.persist(path)?;
    Ok(())
}

fn write_error(path: &Path, source: io::Error) -> RemoteError {
    RemoteError::Write { path: path.into(), source }
}

/// Objects that are fetched at once.
const FETCHES: usize = 16;
/// How often a store is listed anew, where something could not be fetched.
const TRIES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_the_directory() {
        assert!(is_safe("flows/date=2026-01-01/hour=00/a.parquet"));
        assert!(!is_safe("flows/../../etc/a.parquet") && !is_safe("/etc/a.parquet") && !is_safe("a/./b.parquet"));
    }
}
