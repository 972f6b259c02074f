//! A directory of parcels that are not delivered yet.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use crate::private;

/// Why a directory can't keep parcels.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It can't be made, read or written.
    #[error("cannot keep undelivered records in {path}: make it writable, or name another directory with --spool")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another process uses it.
    #[error("{path} is in use by another process: give each its own directory with --spool")]
    InUse { path: PathBuf },
}

/// The directory, held by this process alone.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// Held until it is dropped.
    _lock: File,
}

impl Spool {
    /// Opens the directory, removes what was never finished, and finds what an earlier process left, oldest first: paths
    /// within the directory, with sizes in bytes.
    pub(super) fn open(folder: &Path) -> Result<(Self, Vec<(String, u64)>), SpoolError> {
        let io_error = |source| SpoolError::Io { path: folder.into(), source };
        private::create_folder(folder).map_err(io_error)?;
        let lock = private::create(&folder.join(LOCK)).map_err(io_error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::InUse { path: folder.into() }),
            Err(TryLockError::Error(error)) => return Err(io_error(error)),
        }
        let mut found = Vec::new();
        walk(folder, folder, &mut found).map_err(io_error)?;
        found.sort();
        let files = found.into_iter().map(|(_, name, size_bytes)| (name, size_bytes)).collect();
        Ok((Self { folder: folder.into(), _lock: lock }, files))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a file durable under its name.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let unfinished = self.path(&format!("{name}.{UNFINISHED}"));
        let write = || {
            let mut file = private::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        let written = write();
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(name))
    }

    /// Removes a file. Its folder stays: somebody may be about to write there.
    pub(super) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }
}

/// Finds files with their times of writing, in nanoseconds; removes what was never finished, and empty folders.
fn walk(root: &Path, folder: &Path, found: &mut Vec<(u128, String, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() {
            walk(root, &path, found)?;
            // What an earlier process left empty.
            let _ = fs::remove_dir(&path);
        } else if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            fs::remove_file(&path)?;
        } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str).filter(|name| *name != LOCK) {
            let written = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            found.push((written.as_nanos(), name.into(), metadata.len()));
        }
    }
    Ok(())
}

const LOCK: &str = ".lock";
const UNFINISHED: &str = "tmp";
