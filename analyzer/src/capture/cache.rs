//! What a report remembers for the next one: so that it reads only what is new, and comes to the same.
//!
//! Everything in it is what files said, by file, or what is known of hours, by the rows that it is of. What does not fit
//! to the files that are there, or to who was who by now, is read again: to lose it costs time, and nothing else.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use schemas::{
    SCHEMA_VERSION,
    capture::{CaptureFile, Problem},
    index::Heard,
    inventory::InventoryRecord,
};
use serde::{Deserialize, Serialize};

use super::claims::Claims;
use crate::edge::Block;
use crate::output::note;

/// A directory with what is remembered.
#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
    format: String,
    known: HashMap<PathBuf, Known>,
    blocks: Mutex<Vec<Block>>,
    /// Of the files that are there now.
    next: Mutex<HashMap<PathBuf, Known>>,
}

/// What is remembered of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    file: CaptureFile,
    said: Said,
}

/// What a file said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
enum Said {
    /// It was not read, or is of flows.
    #[default]
    Nothing,
    /// Health.
    Claims(Arc<Vec<Claims>>),
    /// Inventory: after what, and what was new then.
    News(Arc<News>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct News {
    /// Of each run that goes on in it, of what scope it was before.
    before: Vec<Option<Arc<str>>>,
    records: Vec<InventoryRecord>,
    heard: Vec<Heard>,
}

/// Everything, as it is kept.
#[derive(Serialize, Deserialize)]
struct Saved {
    format: String,
    files: Vec<Known>,
    blocks: Vec<Block>,
}

/// Why a state can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot use the state in {path}: name another directory with --state")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl State {
    /// Opens a directory, which is made if it is not there. What another version left, or for other settings, is not used.
    ///
    /// # Errors
    /// The directory can't be made or read.
    pub(crate) fn open(directory: &Path, clock_skew_ms: u32) -> Result<Self, StateError> {
        let directory_error = |source| StateError::Directory { path: directory.into(), source };
        delivery::private::create_folder(directory).map_err(directory_error)?;
        let (major, minor) = SCHEMA_VERSION;
        let format = format!("{} {major}.{minor} {FORMAT} {clock_skew_ms}", env!("CARGO_PKG_VERSION"));
        // What was killed while it wrote.
        for entry in fs::read_dir(directory).map_err(directory_error)?.flatten() {
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            let is_old = age.is_ok_and(|age| age.is_ok_and(|age| age > ABANDONED_AFTER));
            if is_old && entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let path = directory.join(FILE);
        let saved = match File::open(&path) {
            Ok(file) => match read(file) {
                Ok(saved) => Some(saved),
                Err(error) => {
                    note!("{} is not used, and everything is read again: {error}", path.display());
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(directory_error(error)),
        };
        let (mut known, mut blocks) = (HashMap::new(), Vec::new());
        if let Some(saved) = saved.filter(|saved| saved.format == format) {
            known = saved.files.into_iter().map(|known| (known.file.path.clone(), known)).collect();
            blocks = saved.blocks;
        }
        let (blocks, next) = (Mutex::new(blocks), Mutex::default());
        Ok(Self { directory: directory.into(), format, known, blocks, next })
    }

    /// Where files of object stores are kept.
    pub(crate) fn cache(&self) -> PathBuf {
        self.directory.join("cache")
    }

    /// A file, if it is known and was not changed.
    pub(crate) fn file(&self, path: &Path, size_bytes: u64, modified: Option<SystemTime>) -> Option<CaptureFile> {
        let known = self.known.get(path)?;
        let is_same = modified.is_some() && known.file.modified == modified && known.file.size_bytes == size_bytes;
        is_same.then(|| known.file.clone())
    }

    /// What a file of health says.
    ///
    /// # Errors
    /// It has to be read, and can't be.
    pub(crate) fn claims(
        &self,
        file: &CaptureFile,
        read: impl FnOnce(&CaptureFile) -> Result<Vec<Claims>, Problem>,
    ) -> Result<Vec<Claims>, Problem> {
        let claims = match self.said(file) {
            Said::Claims(claims) => claims,
            _ => Arc::new(read(file)?),
        };
        self.remember(file, Said::Claims(Arc::clone(&claims)));
        Ok(Arc::unwrap_or_clone(claims))
    }

    /// What a file of inventory adds, after what was told before it.
    ///
    /// # Errors
    /// It has to be read, and can't be.
    pub(crate) fn news(
        &self,
        file: &CaptureFile,
        before: Vec<Option<Arc<str>>>,
        read: impl FnOnce(&CaptureFile) -> Result<(Vec<InventoryRecord>, Vec<Heard>), Problem>,
    ) -> Result<(Vec<InventoryRecord>, Vec<Heard>), Problem> {
        let news = match self.said(file) {
            Said::News(news) if news.before == before => news,
            _ => {
                let (records, heard) = read(file)?;
                Arc::new(News { before, records, heard })
            }
        };
        self.remember(file, Said::News(Arc::clone(&news)));
        let News { records, heard, .. } = Arc::unwrap_or_clone(news);
        Ok((records, heard))
    }

    /// What is known of hours; it has to be given back.
    pub(crate) fn take_blocks(&self) -> Vec<Block> {
        std::mem::take(&mut self.blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what is known for the next time: all of it, or what was kept before.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn save(&self, files: &[CaptureFile], blocks: Vec<Block>) -> Result<(), StateError> {
        let mut next = std::mem::take(&mut *self.next.lock().unwrap_or_else(PoisonError::into_inner));
        let known = |file: &CaptureFile| {
            next.remove(&file.path).unwrap_or_else(|| Known { file: file.clone(), said: Said::Nothing })
        };
        let saved = Saved { format: self.format.clone(), files: files.iter().map(known).collect(), blocks };
        let path = self.directory.join(FILE);
        let written = (|| {
            let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.directory)?;
            let mut encoder = zstd::Encoder::new(file.as_file(), ZSTD_LEVEL)?;
            // What a disk alters is not taken for what was known.
            encoder.include_checksum(true)?;
            let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, encoder);
            postcard::to_io(&saved, &mut buffered).map_err(io::Error::other)?;
            buffered.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            io::Result::Ok(())
        })();
        let Saved { blocks, .. } = saved;
        *self.blocks.lock().unwrap_or_else(PoisonError::into_inner) = blocks;
        written.map_err(|source| StateError::Directory { path: self.directory.clone(), source })
    }

    fn said(&self, file: &CaptureFile) -> Said {
        let known = self.known.get(&file.path).filter(|known| known.file == *file);
        known.map(|known| known.said.clone()).unwrap_or_default()
    }

    fn remember(&self, file: &CaptureFile, said: Said) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.insert(file.path.clone(), Known { file: file.clone(), said });
    }
}

fn read(file: File) -> io::Result<Saved> {
    let mut bytes = Vec::new();
    zstd::Decoder::new(BufReader::new(file))?.read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

const FILE: &str = "state.bin";
/// Raised when what is kept of files or hours has another form or meaning, within one version of the program.
const FORMAT: u32 = 4;
const UNFINISHED: &str = ".state-";
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
const ZSTD_LEVEL: i32 = 1;
const BUFFER_BYTES: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_alters_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = State::open(directory.path(), 5000).expect("it is made");
        let file = |number: i64| CaptureFile {
            path: format!("flows/x-{number}.parquet").into(),
            dataset: "flows",
            version: 2,
            cluster: "c".into(),
            rows: number,
            size_bytes: 100,
            modified: None,
            runs: Default::default(),
            times: Vec::new(),
            has_names: false,
            summary: None,
        };
        state.save(&[file(1), file(2), file(3)], Vec::new()).expect("it is written");
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).expect("it is there");
        let content = |bytes: &[u8]| -> io::Result<Vec<u8>> {
            fs::write(&path, bytes)?;
            postcard::to_stdvec(&read(File::open(&path)?)?).map_err(io::Error::other)
        };
        let expected = content(&whole).expect("it is whole");
        for bit in 0..whole.len() * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            if let Ok(found) = content(&altered) {
                assert_eq!(found, expected, "bit {bit}");
            }
        }
        for length in 0..whole.len() {
            assert!(content(&whole[..length]).is_err(), "cut after {length}");
        }
    }
}
