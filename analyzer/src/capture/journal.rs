//! What was received and acknowledged, and is not in files of the capture yet.
//!
//! Requests are appended to a segment as they came, compressed, and made durable together with those that came
//! meanwhile: one sync for many. A segment that is old or large enough is read again and becomes files, and is removed
//! once they are durable. A process that finds segments of an earlier one does the same with them first.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use delivery::{Outbox, private};
use schemas::{
    capture::{CaptureError, JOURNAL, JOURNAL_LOCK, Origin, SEGMENT},
    table::TimestampMs,
};
use tokio::sync::oneshot;

use super::{
    filing::{RunFiles, Sorted},
    segment::{Of, Packed, SegmentReader},
};

/// Why segments can't be kept, or not become files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("cannot keep what is received in {path}: make it writable, or make room")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is in use by another process: one receives into a capture, or name another directory")]
    InUse { path: PathBuf },
    #[error(transparent)]
    Write(#[from] CaptureError),
}

/// Where requests are made durable.
pub(crate) struct Journal {
    sender: Option<SyncSender<Entry>>,
    bytes: Arc<AtomicU64>,
    max_bytes: u64,
    threads: Vec<JoinHandle<()>>,
    is_ending: Arc<AtomicBool>,
    /// Held until it is dropped.
    _lock: File,
}

/// How the journal is kept.
#[derive(Clone, Debug)]
pub(crate) struct JournalConfig {
    /// Where segments are.
    pub(crate) folder: PathBuf,
    /// Where files go.
    pub(crate) root: PathBuf,
    /// What takes files on to an object store.
    pub(crate) outbox: Option<Outbox>,
    /// How old a segment gets.
    pub(crate) roll_interval: Duration,
    /// Most bytes of all segments.
    pub(crate) max_bytes: u64,
}

/// A request on its way to the disk.
struct Entry {
    frame: Vec<u8>,
    of: Of,
    done: oneshot::Sender<io::Result<()>>,
}

/// Why a request is not taken.
#[derive(Debug)]
pub(crate) enum NotKept {
    /// More is waiting than is allowed: come again.
    Full,
    Failed(io::Error),
}

/// A segment that nothing is added to any more.
struct Closed {
    path: PathBuf,
    /// Of each request: where it is in the file, and what it has. `None` of an earlier process.
    entries: Option<Vec<(u64, Of)>>,
}

impl Journal {
    /// Begins a segment, and makes files of those that an earlier process left.
    ///
    /// # Errors
    /// The directory can't be used.
    pub(crate) fn open(config: JournalConfig) -> Result<Self, JournalError> {
        let io_error = |source| JournalError::Io { path: config.folder.clone(), source };
        private::create_folder(&config.folder).map_err(io_error)?;
        let lock = private::create(&config.folder.join(JOURNAL_LOCK)).map_err(io_error)?;
        let mut attempts = 0;
        while let Err(error) = lock.try_lock() {
            match error {
                // A reader may look for a moment whether anybody holds it.
                TryLockError::WouldBlock if attempts < LOCK_ATTEMPTS => attempts += 1,
                TryLockError::WouldBlock => return Err(JournalError::InUse { path: config.folder.clone() }),
                TryLockError::Error(error) => return Err(io_error(error)),
            }
            thread::sleep(LOCK_PAUSE);
        }
        let bytes = Arc::new(AtomicU64::new(0));
        let (close, closed) = channel();
        let mut left = segments(&config.folder).map_err(io_error)?;
        left.sort();
        for (path, size_bytes) in left {
            bytes.fetch_add(size_bytes, Ordering::Relaxed);
            let _ = close.send(Closed { path, entries: None });
        }
        let segment = Segment::create(&config.folder).map_err(io_error)?;
        let (sender, entries) = sync_channel(QUEUE_ENTRIES);
        let (max_bytes, is_ending) = (config.max_bytes, Arc::new(AtomicBool::new(false)));
        let (writing, counted) = (config.clone(), Arc::clone(&bytes));
        let write = move || write(&writing, segment, &entries, &close, &counted);
        let (rolling, counted, ending) = (config.clone(), Arc::clone(&bytes), Arc::clone(&is_ending));
        let roll = move || closed.iter().for_each(|segment| roll(&rolling, &segment, &counted, &ending));
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map_err(io_error)
        };
        let threads = vec![spawn("journal", Box::new(write))?, spawn("files", Box::new(roll))?];
        Ok(Self { sender: Some(sender), bytes, max_bytes, threads, is_ending, _lock: lock })
    }

    /// Makes a request durable: compressed, and with what it has.
    ///
    /// # Errors
    /// It is not.
    pub(crate) async fn keep(&self, packed: Packed<'_>, of: Of) -> Result<(), NotKept> {
        if self.bytes.load(Ordering::Relaxed) >= self.max_bytes {
            return Err(NotKept::Full);
        }
        let frame = packed.frame().map_err(NotKept::Failed)?;
        let (done, kept) = oneshot::channel();
        let gone = || NotKept::Failed(io::Error::other("the journal has ended"));
        let sender = self.sender.as_ref().ok_or_else(gone)?;
        sender.try_send(Entry { frame, of, done }).map_err(|error| match error {
            TrySendError::Full(_) => NotKept::Full,
            TrySendError::Disconnected(_) => gone(),
        })?;
        kept.await.map_err(|_| gone())?.map_err(NotKept::Failed)
    }

    /// Makes files of what a process that was killed left in the journal of a directory, if there is any.
    ///
    /// # Errors
    /// Somebody receives into it, or the directory can't be used.
    pub(crate) fn finish_left(root: &Path) -> Result<(), JournalError> {
        let config = JournalConfig {
            folder: root.join(JOURNAL),
            root: root.into(),
            outbox: None,
            roll_interval: Duration::MAX,
            max_bytes: 0,
        };
        Self::open(config).map(Self::end)
    }

    /// Makes files of everything. What can't become one stays, for the next process.
    pub(crate) fn end(mut self) {
        self.is_ending.store(true, Ordering::Relaxed);
        self.sender = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A segment that is being written.
struct Segment {
    path: PathBuf,
    file: File,
    length: u64,
    begun: Instant,
    entries: Vec<(u64, Of)>,
}

impl Segment {
    fn create(folder: &Path) -> io::Result<Self> {
        let mut now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        loop {
            let path = folder.join(format!("{now:020}.{SEGMENT}"));
            match private::create_new(&path) {
                Ok(file) => {
                    File::open(folder)?.sync_all()?;
                    return Ok(Self { path, file, length: 0, begun: Instant::now(), entries: Vec::new() });
                }
                // The clock was set back.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => now += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends entries, all of them or none.
    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let frames: Vec<u8> = entries.iter().flat_map(|entry| entry.frame.iter().copied()).collect();
        // Over what an attempt that failed may have left.
        self.file.seek(SeekFrom::Start(self.length))?;
        let written = self.file.write_all(&frames).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Nothing of it is needed; where even this fails, it is at the end, and is not read.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        for entry in entries {
            self.entries.push((self.length, entry.of.clone()));
            self.length += entry.frame.len() as u64;
        }
        Ok(())
    }
}

/// Writes what comes, until nothing more can.
fn write(
    config: &JournalConfig,
    mut segment: Segment,
    entries: &Receiver<Entry>,
    close: &Sender<Closed>,
    bytes: &AtomicU64,
) {
    loop {
        let first = entries.recv_timeout(config.roll_interval.saturating_sub(segment.begun.elapsed()));
        let is_over = matches!(first, Err(RecvTimeoutError::Disconnected));
        let batch: Vec<Entry> = first.into_iter().chain(entries.try_iter()).take(QUEUE_ENTRIES).collect();
        if !batch.is_empty() {
            let before = segment.length;
            let written = segment.append(&batch);
            bytes.fetch_add(segment.length - before, Ordering::Relaxed);
            for entry in batch {
                let copy = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
                let _ = entry.done.send(written.as_ref().copied().map_err(copy));
            }
        }
        let is_due = segment.begun.elapsed() >= config.roll_interval || segment.length >= SEGMENT_BYTES;
        if is_over || is_due {
            if segment.length == 0 {
                segment.begun = Instant::now();
            } else {
                match Segment::create(&config.folder) {
                    Ok(next) => {
                        let Segment { path, entries, .. } = std::mem::replace(&mut segment, next);
                        let _ = close.send(Closed { path, entries: Some(entries) });
                    }
                    Err(error) => {
                        tracing::error!(%error, "cannot begin another segment, going on with the one before");
                        segment.begun = Instant::now();
                    }
                }
            }
        }
        if is_over {
            if segment.length == 0 {
                let _ = fs::remove_file(&segment.path);
            }
            return;
        }
    }
}

/// Makes files of a segment, however often it takes; at the end of the process, once.
fn roll(config: &JournalConfig, segment: &Closed, bytes: &AtomicU64, is_ending: &AtomicBool) {
    loop {
        let size_bytes = segment.path.metadata().map_or(0, |metadata| metadata.len());
        match file(config, segment) {
            Ok((files, lost_bytes)) => {
                if lost_bytes == 0 {
                    let _ = fs::remove_file(&segment.path);
                } else {
                    let aside = segment.path.with_extension(DAMAGED);
                    let _ = fs::rename(&segment.path, &aside);
                    let segment = aside.display();
                    tracing::error!(%segment, lost_bytes, "the disk damaged what was acknowledged: the rest is in files, and the segment is kept aside");
                }
                bytes.fetch_sub(size_bytes, Ordering::Relaxed);
                tracing::debug!(files, size_bytes, "a segment became files");
                return;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "what was received is kept in the journal, and tried again");
            }
        }
        for _ in 0..RETRY_SECONDS {
            if is_ending.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_secs(1));
        }
    }
}

/// Makes files of a segment: how many, and how many bytes of it the disk has damaged.
fn file(config: &JournalConfig, segment: &Closed) -> Result<(usize, u64), JournalError> {
    let JournalConfig { root, outbox, .. } = config;
    let io_error = |source| JournalError::Io { path: segment.path.clone(), source };
    let now = TimestampMs::now();
    let mut reader = SegmentReader::new(File::open(&segment.path).map_err(io_error)?);
    let found;
    let entries = match &segment.entries {
        Some(entries) => entries,
        None => {
            found = reader.find().map_err(io_error)?;
            &found
        }
    };
    // Requests of one run go into its files one after the other, those of several are sorted first.
    let mut runs: BTreeMap<&Origin, Vec<(i64, u64)>> = BTreeMap::new();
    let mut mixed = Vec::new();
    for (at, of) in entries {
        match of.origins.first().filter(|_| of.origins.len() == 1) {
            Some(origin) => runs.entry(origin).or_default().push((of.hour, *at)),
            None => mixed.push(*at),
        }
    }
    let mut files = 0;
    let mut done = |paths: Vec<PathBuf>| {
        files += paths.len();
        if let Some(outbox) = outbox {
            paths.iter().for_each(|path| outbox.adopt(path, 0, 0));
        }
    };
    for (origin, mut requests) in runs {
        requests.sort_unstable();
        let mut writer = RunFiles::new(root, origin);
        for (_, at) in requests {
            writer.add(reader.read_or_skip(at).map_err(io_error)?, now)?;
        }
        done(writer.finish()?);
    }
    let mut sorted = Sorted::default();
    for at in mixed {
        sorted.add(reader.read_or_skip(at).map_err(io_error)?);
        if sorted.is_large() {
            done(sorted.write(root, now)?);
        }
    }
    done(sorted.write(root, now)?);
    Ok((files, reader.lost_bytes))
}

/// The segments in a folder, with their sizes; what is empty is removed.
fn segments(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == SEGMENT) {
            match path.metadata()?.len() {
                0 => fs::remove_file(&path)?,
                size_bytes => found.push((path, size_bytes)),
            }
        }
    }
    Ok(found)
}

const LOCK_ATTEMPTS: usize = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Requests that wait to be written, and that are written at once.
const QUEUE_ENTRIES: usize = 256;
/// Size of a segment: a file of a busy run has some ten thousand rows.
const SEGMENT_BYTES: u64 = 256 << 20;
const RETRY_SECONDS: u64 = 5;
/// How segments end that are kept because the disk has damaged them.
const DAMAGED: &str = "damaged";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::segment::tests::request;

    #[test]
    fn a_damaged_segment_is_kept_aside_once_the_rest_is_in_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = JournalConfig {
            folder: directory.path().join(JOURNAL),
            root: directory.path().into(),
            outbox: None,
            roll_interval: Duration::from_secs(1),
            max_bytes: 1 << 20,
        };
        fs::create_dir(&config.folder).expect("made");
        let path = config.folder.join(format!("1.{SEGMENT}"));
        let frames: Vec<Vec<u8>> =
            [0..10, 10..20, 20..30].map(|rows| Packed::Plain(&request(rows)).frame().expect("it is compressed")).into();
        let mut bytes = frames.concat();
        // Behind what is said of it.
        bytes[frames[0].len() + 14] ^= 1;
        fs::write(&path, bytes).expect("written");
        roll(&config, &Closed { path: path.clone(), entries: None }, &AtomicU64::new(1 << 20), &AtomicBool::new(true));
        assert!(!path.exists() && path.with_extension(DAMAGED).exists());
        let files = schemas::capture::list(&[directory.path().into()]).expect("it is there").files;
        assert_eq!(files.iter().map(|file| file.rows).sum::<i64>(), 20);
        assert!(segments(&config.folder).expect("readable").is_empty(), "what is kept aside is not tried again");
    }
}
