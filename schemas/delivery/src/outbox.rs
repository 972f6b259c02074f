//! What waits to be delivered, in memory and on disk.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};

use super::{Backoff, Failure, Receipt, SpoolError, Target, spool::Spool};

/// Takes parcels and sends them from a thread of its own; clones are the same outbox.
#[derive(Clone, Debug)]
pub struct Outbox(Arc<Shared>);

/// A request that is to be delivered.
#[derive(Clone, Debug, Default)]
pub struct Parcel {
    /// Name of the dataset that its rows are of.
    pub dataset: &'static str,
    /// Rows in it.
    pub rows: i64,
    /// Ends of connections in them.
    pub ends: i64,
    /// The request.
    pub body: Bytes,
}

/// What became of parcels, since the outbox was opened; the last two are as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Parcels that were delivered.
    pub sent: u64,
    /// Attempts that failed and were to be repeated.
    pub retries: u64,
    /// Log records that the receiver refused one by one.
    pub rejected_rows: u64,
    /// Parcels that the receiver refused whole.
    pub refused: u64,
    /// Parcels that were dropped because they were too many for the directory, or it can't be written.
    pub dropped: u64,
    /// Parcels that wait.
    pub waiting: u64,
    /// Bytes of them in the directory.
    pub spooled_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    spool: Spool,
    /// Most bytes in the directory.
    max_bytes: u64,
    state: Mutex<State>,
    /// Something is to be sent.
    news: Notify,
    /// Something was sent, or can't be.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    waiting: VecDeque<Item>,
    in_flight: Vec<Item>,
    memory_bytes: usize,
    spooled_bytes: u64,
    /// The last attempt failed.
    is_down: bool,
    backoff: Backoff,
    /// Nothing is sent before.
    not_before: Option<Instant>,
    /// Nothing more is sent: the process ends.
    is_closed: bool,
    numbers: u64,
    lost_ends: i64,
    stats: Stats,
}

#[derive(Clone, Debug)]
struct Item {
    number: u64,
    name: String,
    rows: i64,
    ends: i64,
    load: Load,
}

#[derive(Clone, Debug)]
enum Load {
    Memory(Bytes),
    /// A file of the spool, with its size.
    File(u64),
}

impl Outbox {
    /// Opens a directory, with what an earlier process left there, of which at most `max_bytes` are kept.
    ///
    /// # Errors
    /// The directory can't be used, or another process uses it.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        let (spool, files) = Spool::open(folder)?;
        let mut state = State::default();
        for (name, size_bytes) in files {
            state.numbers += 1;
            state.spooled_bytes += size_bytes;
            // Ends of another run are not of this one's account.
            state.waiting.push_back(Item {
                number: state.numbers,
                name,
                rows: 0,
                ends: 0,
                load: Load::File(size_bytes),
            });
        }
        let (news, progress) = (Notify::new(), Condvar::new());
        let shared = Shared { spool, max_bytes, state: Mutex::new(state), news, progress };
        shared.make_room(&mut shared.lock(), 0);
        Ok(Self(Arc::new(shared)))
    }

    /// Begins to send.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start(&self, target: Target) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&self.0);
        let run = move || {
            let target = Arc::new(target);
            let lanes = tokio::task::LocalSet::new();
            for lane in 0..target.lanes() {
                lanes.spawn_local(Arc::clone(&shared).send_all(Arc::clone(&target), lane));
            }
            runtime.block_on(lanes);
        };
        thread::Builder::new().name("ship".into()).spawn(run).map(drop)
    }

    /// Takes a parcel: sent soon, or kept on disk until it can be. Returns whether it is not lost.
    pub fn put(&self, parcel: Parcel) -> bool {
        let Parcel { dataset, rows, ends, body } = parcel;
        let mut state = self.0.lock();
        state.numbers += 1;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let name = format!("{now_ms:013}-{:06}-{dataset}-{rows}.{PARCEL}", state.numbers);
        let has_room = state.memory_bytes + body.len() <= MEMORY_BYTES && !state.is_down && !state.is_closed;
        let item = Item { number: state.numbers, name, rows, ends, load: Load::Memory(body) };
        let item = if has_room { Some(item) } else { self.0.spool(&mut state, item) };
        let is_kept = item.is_some();
        if let Some(item) = item {
            state.memory_bytes += item.memory_bytes();
            state.waiting.push_back(item);
        }
        drop(state);
        self.0.news.notify_waiters();
        is_kept
    }

    /// Takes over a file that was written below the directory, and removes it once it is delivered.
    pub fn adopt(&self, path: &Path, rows: i64, ends: i64) {
        let Some(name) = path.strip_prefix(self.0.spool.path("")).ok().and_then(Path::to_str) else { return };
        let size_bytes = path.metadata().map_or(0, |metadata| metadata.len());
        let mut state = self.0.lock();
        self.0.make_room(&mut state, size_bytes);
        state.numbers += 1;
        state.spooled_bytes += size_bytes;
        let item = Item { number: state.numbers, name: name.into(), rows, ends, load: Load::File(size_bytes) };
        state.waiting.push_back(item);
        drop(state);
        self.0.news.notify_waiters();
    }

    /// Ends of connections in what was lost for good since the last call.
    pub fn take_lost_ends(&self) -> i64 {
        std::mem::take(&mut self.0.lock().lost_ends)
    }

    /// What became of parcels so far.
    pub fn stats(&self) -> Stats {
        let state = self.0.lock();
        let waiting = (state.waiting.len() + state.in_flight.len()) as u64;
        Stats { waiting, spooled_bytes: state.spooled_bytes, ..state.stats }
    }

    /// Waits until everything is delivered, for so long at most; as soon as the receiver is away, no longer.
    pub fn settle(&self, patience: Duration) {
        let is_busy = |state: &mut State| !(state.is_down || state.waiting.is_empty() && state.in_flight.is_empty());
        let state = self.0.lock();
        drop(self.0.progress.wait_timeout_while(state, patience, is_busy));
    }

    /// Ends sending; what is left is kept on disk. Returns whether nothing of it is lost.
    pub fn close(&self) -> bool {
        let mut state = self.0.lock();
        state.is_closed = true;
        let before = state.stats.dropped;
        // What is on its way may not have arrived.
        let under_way = state.in_flight.clone();
        for item in under_way.into_iter().rev() {
            state.waiting.push_front(item);
        }
        self.0.spool_all(&mut state);
        state.stats.dropped == before
    }
}

impl Item {
    const fn memory_bytes(&self) -> usize {
        match &self.load {
            Load::Memory(body) => body.len(),
            Load::File(_) => 0,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one parcel after the other. While the receiver is away, only the first lane tries.
    async fn send_all(self: Arc<Self>, target: Arc<Target>, lane: usize) {
        loop {
            let item = self.next(lane).await;
            let number = item.number;
            let sent = match self.body(&item) {
                Ok(body) => target.send(&item.name, body).await,
                Err(error) => Err(Failure::Refused { reason: format!("{}: {error}", item.name) }),
            };
            match sent {
                Ok(receipt) => self.delivered(number, &receipt),
                Err(Failure::Refused { reason }) => self.refused(number, &reason),
                Err(Failure::Retry { after, reason }) => self.put_back(number, after, &reason),
            }
        }
    }

    /// The oldest parcel, from now on under way.
    async fn next(&self, lane: usize) -> Item {
        loop {
            let news = self.news.notified();
            let mut news = std::pin::pin!(news);
            // From here on, no news are missed.
            news.as_mut().enable();
            let not_before = {
                let mut state = self.lock();
                let may_send = !state.is_closed && (lane == 0 || !state.is_down);
                let not_before = state.not_before.filter(|until| may_send && *until > Instant::now());
                if may_send
                    && not_before.is_none()
                    && let Some(item) = state.waiting.pop_front()
                {
                    state.in_flight.push(item.clone());
                    return item;
                }
                not_before
            };
            match not_before {
                Some(until) => tokio::time::sleep_until(until).await,
                None => news.await,
            }
        }
    }

    fn body(&self, item: &Item) -> io::Result<Bytes> {
        match &item.load {
            Load::Memory(body) => Ok(body.clone()),
            Load::File(_) if item.name.ends_with(PARCEL) => {
                let file = self.spool.read(&item.name)?;
                Ok(zstd::bulk::decompress(&file, MAX_BODY_BYTES)?.into())
            }
            Load::File(_) => Ok(self.spool.read(&item.name)?.into()),
        }
    }

    /// Takes an item from those under way; `None` if the process ends and has kept it already.
    fn landed(&self, state: &mut State, number: u64) -> Option<Item> {
        let at = state.in_flight.iter().position(|item| item.number == number)?;
        let item = state.in_flight.swap_remove(at);
        (!state.is_closed).then_some(item)
    }

    fn forget(&self, state: &mut State, item: &Item) {
        state.memory_bytes = state.memory_bytes.saturating_sub(item.memory_bytes());
        if let Load::File(size_bytes) = item.load {
            state.spooled_bytes = state.spooled_bytes.saturating_sub(size_bytes);
            self.spool.remove(&item.name);
        }
    }

    fn delivered(&self, number: u64, receipt: &Receipt) {
        let mut state = self.lock();
        let Some(item) = self.landed(&mut state, number) else { return };
        self.forget(&mut state, &item);
        state.stats.sent += 1;
        if receipt.rejected > 0 {
            state.stats.rejected_rows += receipt.rejected as u64;
            // Which ones is not said.
            let share = receipt.rejected.min(item.rows) as f64 / item.rows.max(1) as f64;
            state.lost_ends += (item.ends as f64 * share).ceil() as i64;
        }
        if receipt.rejected > 0 || !receipt.message.is_empty() {
            tracing::warn!(
                parcel = item.name,
                rejected = receipt.rejected,
                message = receipt.message,
                "partial success"
            );
        }
        state.backoff.reset();
        if std::mem::take(&mut state.is_down) {
            tracing::info!(waiting = state.waiting.len(), "the receiver answers again");
            self.news.notify_waiters();
        }
        drop(state);
        self.progress.notify_all();
    }

    fn refused(&self, number: u64, reason: &str) {
        let mut state = self.lock();
        let Some(item) = self.landed(&mut state, number) else { return };
        self.forget(&mut state, &item);
        state.backoff.reset();
        state.is_down = false;
        state.stats.refused += 1;
        state.lost_ends += item.ends;
        tracing::error!(parcel = item.name, rows = item.rows, reason, "the receiver refuses this for good, it is lost");
        drop(state);
        self.news.notify_waiters();
        self.progress.notify_all();
    }

    /// The receiver is away: everything goes to the disk.
    fn put_back(&self, number: u64, after: Option<Duration>, reason: &str) {
        let mut state = self.lock();
        let Some(item) = self.landed(&mut state, number) else { return };
        let random = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
        let until = Instant::now() + state.backoff.next(after, random);
        state.not_before = state.not_before.max(Some(until));
        state.waiting.push_front(item);
        state.stats.retries += 1;
        if !std::mem::replace(&mut state.is_down, true) {
            tracing::warn!(reason, "the receiver does not take it, trying again and again");
        } else {
            tracing::debug!(reason, "still not taken");
        }
        self.spool_all(&mut state);
        drop(state);
        self.progress.notify_all();
    }

    fn spool_all(&self, state: &mut State) {
        for item in std::mem::take(&mut state.waiting) {
            state.memory_bytes = state.memory_bytes.saturating_sub(item.memory_bytes());
            let spooled = self.spool(state, item);
            state.waiting.extend(spooled);
        }
    }

    /// Makes a file of an item; `None` if that can't be, and it is lost.
    fn spool(&self, state: &mut State, item: Item) -> Option<Item> {
        let Load::Memory(body) = &item.load else { return Some(item) };
        let written = zstd::bulk::compress(body, ZSTD_LEVEL).and_then(|file| {
            self.make_room(state, file.len() as u64);
            loop {
                match self.spool.write(&item.name, &file) {
                    // Somebody else has filled the disk: ours that is oldest makes room.
                    Err(error) if is_full(&error) && self.drop_oldest(state) => {}
                    written => return written.map(|()| file.len() as u64),
                }
            }
        });
        match written {
            Ok(size_bytes) => {
                state.spooled_bytes += size_bytes;
                Some(Item { load: Load::File(size_bytes), ..item })
            }
            Err(error) => {
                tracing::error!(%error, parcel = item.name, rows = item.rows, "cannot be kept on disk, it is lost");
                state.stats.dropped += 1;
                state.lost_ends += item.ends;
                None
            }
        }
    }

    fn make_room(&self, state: &mut State, bytes: u64) {
        while state.spooled_bytes + bytes > self.max_bytes && self.drop_oldest(state) {}
    }

    /// Drops the oldest file that is not under way; whether there was one.
    fn drop_oldest(&self, state: &mut State) -> bool {
        let Some(at) = state.waiting.iter().position(|item| matches!(item.load, Load::File(_))) else { return false };
        let Some(item) = state.waiting.remove(at) else { return false };
        self.forget(state, &item);
        state.stats.dropped += 1;
        state.lost_ends += item.ends;
        tracing::error!(parcel = item.name, "too much waits, the oldest is dropped: raise --spool-size-mib");
        true
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Extension of a request that is kept on disk.
const PARCEL: &str = "otlp.zst";
const ZSTD_LEVEL: i32 = 1;
/// What a request can have been, at most.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Requests that are kept in memory while the receiver is there.
const MEMORY_BYTES: usize = 8 << 20;
