//! What was received and acknowledged, and is not in files of the capture yet.
//!
//! Requests are appended to a segment as they came, compressed, and made durable together with those that came
//! meanwhile: one sync for many. A segment that is old or large enough is read again and becomes files, and is removed
//! once they are durable. A process that finds segments of an earlier one does the same with them first.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use delivery::{
    Outbox,
    otlp::{Decoded, Decoder, Malformed},
    private,
};
use schemas::{
    capture::{CaptureError, JOURNAL, JOURNAL_LOCK, Origin, SEGMENT},
    hour::Hour,
    table::TimestampMs,
};
use tokio::sync::oneshot;

use super::filing::{RunFiles, Sorted};

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

/// Whose rows a request has, and of which hour the first is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Of {
    origins: BTreeSet<Origin>,
    hour: i64,
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

impl Of {
    /// Of rows that are sorted.
    pub(crate) fn new(rows: &Decoded) -> Self {
        let time = rows.flows.first().map(|row| row.window_end);
        let time = time.or(rows.inventory.first().map(|row| row.observed_at));
        let time = time.or(rows.health.first().map(|row| row.window_end)).unwrap_or_default();
        // Mostly all rows are of one run: no need to share more than one.
        let mut origins = BTreeSet::new();
        let mut last: Option<Origin> = None;
        let mut add = |origin: (&Arc<str>, &Arc<str>, &Arc<str>)| {
            let is_last = last
                .as_ref()
                .is_some_and(|last| (&last.run_id, &last.node, &last.cluster) == (origin.2, origin.1, origin.0));
            if !is_last {
                let origin =
                    Origin { cluster: Arc::clone(origin.0), node: Arc::clone(origin.1), run_id: Arc::clone(origin.2) };
                last = Some(origin.clone());
                origins.insert(origin);
            }
        };
        rows.flows.iter().for_each(|row| add((&row.cluster, &row.node, &row.run_id)));
        rows.inventory.iter().for_each(|row| add((&row.cluster, &row.node, &row.run_id)));
        rows.health.iter().for_each(|row| add((&row.cluster, &row.node, &row.run_id)));
        Self { origins, hour: Hour::of(time).0 }
    }
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

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packed<'a> {
    /// A protobuf message.
    Plain(&'a [u8]),
    /// One that is compressed with gzip.
    Gzip(&'a [u8]),
    /// One that is compressed with zstd.
    Zstd(&'a [u8]),
}

impl Packed<'_> {
    /// An entry of a segment: length, checksum, how it is compressed, and the request.
    fn frame(self) -> io::Result<Vec<u8>> {
        let compressed;
        let (how, body) = match self {
            Self::Gzip(body) => (GZIP, body),
            Self::Zstd(body) => (ZSTD, body),
            Self::Plain(body) => {
                compressed = zstd::bulk::compress(body, ZSTD_LEVEL)?;
                (ZSTD, &*compressed)
            }
        };
        let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        frame.extend(length.to_le_bytes());
        frame.extend(crc32fast::hash(body).to_le_bytes());
        frame.push(how);
        frame.extend(body);
        Ok(frame)
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

struct SegmentReader {
    file: File,
    /// Bytes of entries that were acknowledged and that the disk has damaged.
    lost_bytes: u64,
}

impl SegmentReader {
    const fn new(file: File) -> Self {
        Self { file, lost_bytes: 0 }
    }

    /// Finds the whole entries of a segment of an earlier process. What was cut at its end was never acknowledged; what is
    /// damaged before that was.
    fn find(&mut self) -> io::Result<Vec<(u64, Of)>> {
        let length = self.file.metadata()?.len();
        let (mut at, mut entries) = (0, Vec::new());
        while at < length {
            match self.entry(at) {
                Ok((rows, next)) => {
                    entries.push((at, Of::new(&rows)));
                    at = next;
                }
                Err(error) => match self.next_after(at, length)? {
                    Some(next) => {
                        tracing::error!(%error, at, bytes = next - at, "a part of the journal is damaged, it is lost");
                        self.lost_bytes += next - at;
                        at = next;
                    }
                    None => {
                        tracing::warn!(%error, at, length, "a segment ends in a request that was not acknowledged");
                        break;
                    }
                },
            }
        }
        Ok(entries)
    }

    /// Where, after an entry that can't be read, the next one begins that can be; or the end, where it is as long as it says.
    fn next_after(&mut self, at: u64, length: u64) -> io::Result<Option<u64>> {
        let by_length = match self.head(at) {
            Ok(head) => at + HEAD_BYTES as u64 + u64::from(head.length),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        if by_length == length || by_length < length && self.entry(by_length).is_ok() {
            return Ok(Some(by_length));
        }
        // Its length is what is damaged.
        let mut rest = Vec::new();
        self.file.seek(SeekFrom::Start(at))?;
        (&mut self.file).take(length - at).read_to_end(&mut rest)?;
        let mut budget = SEARCHED_BYTES;
        for start in 1..rest.len().saturating_sub(HEAD_BYTES) {
            let (head, bodies) = rest[start..].split_at(HEAD_BYTES);
            let head = Head::of(head);
            let Some(body) = bodies.get(..head.length as usize).filter(|_| [ZSTD, GZIP].contains(&head.how)) else {
                continue;
            };
            budget = budget.saturating_sub(body.len() as u64);
            if budget == 0 {
                break;
            }
            if crc32fast::hash(body) == head.checksum && self.entry(at + start as u64).is_ok() {
                return Ok(Some(at + start as u64));
            }
        }
        Ok(None)
    }

    /// The rows of the entry at a place; none where the disk has damaged it.
    fn read_or_skip(&mut self, at: u64) -> io::Result<Decoded> {
        match self.entry(at) {
            Ok((rows, _)) => Ok(rows),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%error, at, "a request in the journal is damaged, it is lost");
                self.lost_bytes += self.head(at).map_or(0, |head| HEAD_BYTES as u64 + u64::from(head.length));
                Ok(Decoded::default())
            }
            Err(error) => Err(error),
        }
    }

    fn head(&mut self, at: u64) -> io::Result<Head> {
        let mut head = [0; HEAD_BYTES];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut head)?;
        Ok(Head::of(&head))
    }

    /// The rows of the entry at a place, and where the next one is.
    fn entry(&mut self, at: u64) -> io::Result<(Decoded, u64)> {
        let damaged = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
        let Head { length, checksum, how } = self.head(at)?;
        let mut body = Vec::new();
        (&mut self.file).take(length.into()).read_to_end(&mut body)?;
        if body.len() != length as usize || crc32fast::hash(&body) != checksum {
            return Err(damaged("cut short or altered"));
        }
        let request = match how {
            ZSTD => zstd::stream::decode_all(&*body)?,
            GZIP => {
                let mut request = Vec::new();
                flate2::read::MultiGzDecoder::new(&*body).read_to_end(&mut request)?;
                request
            }
            _ => return Err(damaged("compressed in an unknown way")),
        };
        let rows = decode(&request).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((rows, at + HEAD_BYTES as u64 + u64::from(length)))
    }
}

/// What is said of an entry before it.
struct Head {
    length: u32,
    checksum: u32,
    how: u8,
}

impl Head {
    /// From [`HEAD_BYTES`] bytes.
    fn of(bytes: &[u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { length: number(0), checksum: number(4), how: bytes[8] }
    }
}

/// Reads a request with what this thread knows of earlier ones.
pub(crate) fn decode(request: &[u8]) -> Result<Decoded, Malformed> {
    thread_local! {
        static DECODER: RefCell<Decoder> = RefCell::default();
    }
    DECODER.with_borrow_mut(|decoder| decoder.decode(request))
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
const HEAD_BYTES: usize = 9;
const ZSTD: u8 = 1;
const GZIP: u8 = 2;
const ZSTD_LEVEL: i32 = 1;
/// Requests that wait to be written, and that are written at once.
const QUEUE_ENTRIES: usize = 256;
/// Size of a segment: a file of a busy run has some ten thousand rows.
const SEGMENT_BYTES: u64 = 256 << 20;
const RETRY_SECONDS: u64 = 5;
/// How segments end that are kept because the disk has damaged them.
const DAMAGED: &str = "damaged";
/// Most bytes that are looked through for the next entry after one whose length is damaged.
const SEARCHED_BYTES: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use delivery::otlp::Encoder;
    use proptest::prelude::*;
    use schemas::flow::FlowRecord;

    use super::*;

    fn request(seqs: std::ops::Range<i64>) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), "1");
        seqs.for_each(|seq| {
            encoder.push(&FlowRecord { seq, run_id: "run".into(), ..FlowRecord::default() }, TimestampMs(0))
        });
        encoder.finish().expect("there are rows")
    }

    fn segment(bytes: &[u8]) -> SegmentReader {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        SegmentReader::new(file)
    }

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
        bytes[frames[0].len() + HEAD_BYTES + 5] ^= 1;
        fs::write(&path, bytes).expect("written");
        roll(&config, &Closed { path: path.clone(), entries: None }, &AtomicU64::new(1 << 20), &AtomicBool::new(true));
        assert!(!path.exists() && path.with_extension(DAMAGED).exists());
        let files = schemas::capture::list(&[directory.path().into()]).expect("it is there").files;
        assert_eq!(files.iter().map(|file| file.rows).sum::<i64>(), 20);
        assert!(segments(&config.folder).expect("readable").is_empty(), "what is kept aside is not tried again");
    }

    proptest! {
        #[test]
        fn of_a_segment_that_is_cut_the_whole_requests_are_found(cut in 0.0..1.0) {
            let frames: Vec<Vec<u8>> = (0..4)
                .map(|number| Packed::Plain(&request(number * 10..number * 10 + 10)).frame().expect("it is compressed"))
                .collect();
            let bytes = frames.concat();
            let end = (bytes.len() as f64 * cut) as usize;
            let mut reader = segment(&bytes[..end]);
            let found = reader.find().expect("it is read");
            let whole = (1..=4).filter(|count| frames[..*count].concat().len() <= end).count();
            prop_assert_eq!(found.len(), whole);
            let rows = found.iter().map(|(at, _)| reader.read_or_skip(*at).expect("it is read").flows.len());
            prop_assert_eq!(rows.sum::<usize>(), whole * 10);
        }

        #[test]
        fn of_a_segment_that_is_altered_all_other_requests_are_found(
            damaged in 0..9_usize, at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let frames: Vec<Vec<u8>> = (0..10)
                .map(|number| Packed::Plain(&request(number * 10..number * 10 + 10)).frame().expect("it is compressed"))
                .collect();
            let mut bytes = frames.concat();
            let begin = frames[..damaged].concat().len();
            bytes[begin + at.index(frames[damaged].len())] ^= 1 << bit;
            let mut reader = segment(&bytes);
            let found = reader.find().expect("it is read");
            let rows = |reader: &mut SegmentReader, at| reader.read_or_skip(at).expect("it is read").flows.len();
            let rows: usize = found.iter().map(|(at, _)| rows(&mut reader, *at)).sum();
            prop_assert_eq!((rows, reader.lost_bytes), (90, frames[damaged].len() as u64));
        }

        #[test]
        fn garbage_is_no_request(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(segment(&bytes).find().expect("it is read"), []);
        }
    }
}
