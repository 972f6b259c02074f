//! Where records go: a capture on disk, an object store, an OpenTelemetry collector, or several of them.
//!
//! ```text
//! Recorder ──Order──► [bounded] ──► ParquetSink ──► files ( ──► Outbox ──► object store )
//!                ├──► [bounded] ──► OtlpSink ──requests──► Outbox ──► collector
//!                └──► [bounded] ──► LiveSink ──frames──► whoever listens
//! ```
//!
//! Each sink has a thread and a queue, so that none waits for another. One that is the only one may take its time: then
//! observing waits, and the kernel sums. One beside others may keep them waiting for a tenth of the time; what does not
//! fit its queue is lost to it alone, and counted in its own health rows. Nobody ever waits for those who listen.

mod capture_files;
mod live;
mod otlp;

pub(crate) use capture_files::ParquetSink;
pub(crate) use live::{ClientScope, Hub, Line, LiveSink};
pub(crate) use otlp::OtlpSink;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord, table::TimestampMs};

use crate::telemetry::Telemetry;

/// What a sink is to do.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Write a flow, with the ends of connections in it.
    Flow(Box<FlowRecord>, i64),
    Inventory(Box<InventoryRecord>),
    /// Make the inventory durable; its next row begins anew.
    FinishInventory,
    /// Write a health row, after what it tells of.
    Health(Box<HealthRecord>),
    /// A second has passed.
    Tick,
    /// Make everything durable, and say whether it is; receivers have so long to take it.
    Sync(SyncSender<bool>, Duration),
    /// As that, and end.
    End(SyncSender<bool>),
}

/// One way that records go.
pub(crate) enum Sink {
    Parquet(Box<ParquetSink>),
    Otlp(Box<OtlpSink>),
    Live(Box<LiveSink>),
}

/// What a sink and the recorder share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Ends of connections in rows that the sink lost for good.
    lost_ends: Arc<AtomicI64>,
    /// Inventory was lost: it has to be told from the start.
    is_inventory_broken: Arc<AtomicBool>,
}

impl Account {
    fn lose(&self, ends: i64) {
        self.lost_ends.fetch_add(ends, Ordering::Relaxed);
    }

    fn lose_inventory(&self) {
        self.is_inventory_broken.store(true, Ordering::Relaxed);
    }

    fn lost_ends(&self) -> i64 {
        self.lost_ends.load(Ordering::Relaxed)
    }
}

/// All sinks of a run.
pub(crate) struct Sinks {
    handles: Vec<Handle>,
    /// Of those who listen: what they lose is in their own accounts alone, and nobody waits for them.
    live: Option<Handle>,
    roll_age: Duration,
    /// When the first inventory row was written that is not durable.
    inventory_since: Option<TimestampMs>,
    told_lost: i64,
}

struct Handle {
    batch: Vec<Order>,
    sender: SyncSender<(TimestampMs, Vec<Order>)>,
    account: Account,
    /// How long the others may be kept waiting; `None` where there are no others.
    patience: Option<Patience>,
}

/// How long somebody may be kept waiting: a tenth of the time.
struct Patience {
    left: Duration,
    most: Duration,
    /// When it was last added to.
    since: Instant,
}

impl Sinks {
    /// Starts a thread for each sink, and for those who listen if anybody may.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn start(
        sinks: impl IntoIterator<Item = (Sink, Account)>,
        live: Option<(LiveSink, Account)>,
        roll_age: Duration,
        telemetry: &Arc<Telemetry>,
    ) -> io::Result<Self> {
        let start = |(sink, account), most| Handle::start(sink, account, most, telemetry);
        let handles: io::Result<Vec<Handle>> = sinks.into_iter().map(|sink| start(sink, PATIENCE)).collect();
        let mut handles = handles?;
        if let [only] = &mut *handles {
            only.patience = None;
        }
        let live =
            live.map(|(sink, account)| start((Sink::Live(Box::new(sink)), account), Duration::ZERO)).transpose()?;
        Ok(Self { handles, live, roll_age, inventory_since: None, told_lost: 0 })
    }

    pub(crate) fn flow(&mut self, record: Box<FlowRecord>, ends: i64) {
        self.order(Order::Flow(record, ends));
    }

    pub(crate) fn inventory(&mut self, record: InventoryRecord, now: TimestampMs) {
        self.inventory_since.get_or_insert(now);
        self.order(Order::Inventory(Box::new(record)));
    }

    /// Whether inventory is under way; the first row after that has to be a snapshot's.
    pub(crate) const fn has_open_inventory(&self) -> bool {
        self.inventory_since.is_some()
    }

    /// Makes the inventory durable, so that the next row begins anew.
    pub(crate) fn finish_inventory(&mut self) {
        self.inventory_since = None;
        self.order(Order::FinishInventory);
    }

    pub(crate) fn health(&mut self, record: HealthRecord) {
        self.order(Order::Health(Box::new(record)));
    }

    /// A second has passed: what is large or old enough is made durable.
    pub(crate) fn tick(&mut self, now: TimestampMs) {
        // Where the clock was set back, how old it is can't be told.
        let fresh = 0..self.roll_age.as_millis() as i64;
        if self.inventory_since.is_some_and(|since| !fresh.contains(&(now.0 - since.0))) {
            self.finish_inventory();
        }
        self.order(Order::Tick);
        self.send(now);
    }

    /// Hands over what was ordered.
    pub(crate) fn send(&mut self, now: TimestampMs) {
        self.handles.iter_mut().chain(&mut self.live).for_each(|handle| handle.send(now));
    }

    /// Makes everything durable; whether it is.
    pub(crate) fn sync(&mut self, now: TimestampMs) -> bool {
        self.ask(|answer| Order::Sync(answer, Duration::ZERO), now)
    }

    /// As [`Self::sync`], and gives receivers the time to take it: what they refuse is known to the row of health after it.
    pub(crate) fn settle(&mut self, now: TimestampMs) -> bool {
        self.ask(|answer| Order::Sync(answer, SETTLE), now)
    }

    /// Makes everything durable and ends; whether it is.
    pub(crate) fn end(&mut self, now: TimestampMs) -> bool {
        if let Some(live) = &mut self.live {
            let (sender, answer) = sync_channel(1);
            live.batch.push(Order::End(sender));
            // It waits for nobody, so that this does not take long.
            live.patience = None;
            live.send(now);
            let _ = answer.recv_timeout(ANSWER_TIMEOUT);
        }
        self.ask(Order::End, now)
    }

    /// Whether a sink lost inventory, since the last call.
    pub(crate) fn take_inventory_broken(&self) -> bool {
        let take = |handle: &Handle| handle.account.is_inventory_broken.swap(false, Ordering::Relaxed);
        self.handles.iter().chain(&self.live).filter(|handle| take(handle)).count() > 0
    }

    /// Ends of connections that were lost since the last call, by the sink that lost most.
    pub(crate) fn take_lost_ends(&mut self) -> i64 {
        let lost = self.handles.iter().map(|handle| handle.account.lost_ends()).max().unwrap_or_default();
        lost - std::mem::replace(&mut self.told_lost, lost)
    }

    fn order(&mut self, order: Order) {
        let mut handles = self.handles.iter_mut().chain(&mut self.live);
        if let Some(last) = handles.next_back() {
            handles.for_each(|handle| handle.batch.push(order.clone()));
            last.batch.push(order);
        }
    }

    /// Those who listen keep nothing, and are not asked.
    fn ask(&mut self, question: fn(SyncSender<bool>) -> Order, now: TimestampMs) -> bool {
        let mut answers = Vec::new();
        for handle in &mut self.handles {
            let (sender, answer) = sync_channel(1);
            handle.batch.push(question(sender));
            handle.send(now);
            answers.push(answer);
        }
        // One that does not answer is stuck in a write that does not return.
        answers.iter().filter(|answer| !answer.recv_timeout(ANSWER_TIMEOUT).unwrap_or_default()).count() == 0
    }
}

impl Handle {
    fn start(mut sink: Sink, account: Account, most: Duration, telemetry: &Arc<Telemetry>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE_BATCHES);
        let telemetry = Arc::clone(telemetry);
        thread::Builder::new().name(sink.name().into()).spawn(move || sink.run(&receiver, &telemetry))?;
        let patience = Some(Patience { left: most, most, since: Instant::now() });
        Ok(Self { batch: Vec::new(), sender, account, patience })
    }

    fn send(&mut self, now: TimestampMs) {
        if self.batch.is_empty() {
            return;
        }
        let mut message = (now, std::mem::take(&mut self.batch));
        let Some(Patience { left, most, since }) = &mut self.patience else {
            // Nobody else waits. A sink that is gone has told why.
            return drop(self.sender.send(message));
        };
        *left = (*left + since.elapsed() / 10).min(*most);
        *since = Instant::now();
        loop {
            match self.sender.try_send(message) {
                Ok(()) => return,
                Err(TrySendError::Full(back)) if *left > PAUSE => {
                    message = back;
                    *left -= PAUSE;
                    thread::sleep(PAUSE);
                }
                Err(TrySendError::Full((_, lost)) | TrySendError::Disconnected((_, lost))) => {
                    return self.lose(lost);
                }
            }
        }
    }

    fn lose(&mut self, orders: Vec<Order>) {
        let mut rows = 0;
        for order in orders {
            match order {
                Order::Flow(_, ends) => (self.account.lose(ends), rows += 1).1,
                Order::Inventory(_) | Order::FinishInventory => self.account.lose_inventory(),
                // Somebody waits for the answer to these.
                Order::Sync(..) | Order::End(_) => self.batch.push(order),
                Order::Health(_) | Order::Tick => {}
            }
        }
        tracing::error!(rows, "a sink does not keep up, rows are lost to it");
    }
}

impl Sink {
    const fn name(&self) -> &'static str {
        match self {
            Self::Parquet(_) => "parquet",
            Self::Otlp(_) => "otlp",
            Self::Live(_) => "live",
        }
    }

    fn run(&mut self, receiver: &Receiver<(TimestampMs, Vec<Order>)>, telemetry: &Telemetry) {
        let mut told = delivery::Stats::default();
        while let Ok((now, orders)) = receiver.recv() {
            for order in orders {
                if matches!(order, Order::Tick)
                    && let Some(stats) = self.stats()
                {
                    telemetry.shipped(self.name(), &stats, &std::mem::replace(&mut told, stats));
                }
                match self {
                    Self::Parquet(sink) => sink.take(order, now),
                    Self::Otlp(sink) => sink.take(order, now),
                    Self::Live(sink) => sink.take(order, now),
                }
            }
        }
    }

    fn stats(&self) -> Option<delivery::Stats> {
        match self {
            Self::Parquet(sink) => sink.stats(),
            Self::Otlp(sink) => Some(sink.stats()),
            Self::Live(_) => None,
        }
    }
}

/// A health row as a sink writes it: what it lost since its last one is not exported.
fn own_account(mut row: HealthRecord, account: &Account, told: &mut i64) -> HealthRecord {
    let lost = account.lost_ends();
    let since = lost - std::mem::replace(told, lost);
    row.exported -= since;
    row.lost_sink += since;
    row
}

/// Messages of the recorder that wait for a sink, each of up to some hundred rows of a kilobyte.
const QUEUE_BATCHES: usize = 32;
/// How long a sink may keep the others waiting at once.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
/// How long a sink may take to make everything durable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end of a run waits for a receiver that is there, and then for its last row of health.
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_LAST: Duration = Duration::from_secs(2);
/// Version of the agent, as it stands in every file.
pub(crate) const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");
