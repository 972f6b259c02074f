//! What an agent does with a collector that does what collectors do on a bad day. Each fault ends with every flow either
//! taken by the collector or counted as lost, and none twice after deduplication.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use delivery::otlp::{self, Decoder};
use schemas::table::TimestampMs;
use testdata::sender::Sender;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::{
    harness::Ran,
    support::{small_disk, wait_until},
};

tests![
    a_collector_that_throttles_is_left_alone_for_as_long_as_it_says,
    a_collector_that_is_unavailable_or_lies_gets_everything_later,
    what_a_collector_refuses_is_counted_and_never_sent_again,
    a_collector_that_restarts_again_and_again_gets_everything,
    the_oldest_is_dropped_and_counted_where_too_much_waits,
    a_full_disk_under_the_spool_costs_the_oldest_and_is_counted,
    what_waits_is_sent_by_the_next_process_and_two_do_not_share_it,
];

/// What the collector does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// 429, and so many seconds.
    Throttle(u64),
    /// 503 without a word of when.
    Unavailable,
    /// Takes all log records but so many.
    Partial(i64),
    /// 400.
    Refuse,
    /// Takes it, and never answers.
    BlackHole,
    /// Takes it, and answers 502 even so.
    TakeAndFail,
}

/// A collector of the test's own, which does as it is told.
struct Collector {
    address: SocketAddr,
    runtime: Option<Runtime>,
    state: Arc<Mutex<Seen>>,
}

struct Seen {
    mood: Mood,
    seqs: BTreeSet<(String, i64)>,
    times: Vec<Instant>,
}

impl Collector {
    fn start() -> Self {
        let state = Arc::new(Mutex::new(Seen { mood: Mood::Well, seqs: BTreeSet::new(), times: Vec::new() }));
        let mut collector = Self { address: ([127, 0, 0, 1], 0).into(), runtime: None, state };
        collector.come_back();
        collector
    }

    /// Listens, on the port that it had.
    fn come_back(&mut self) {
        let runtime = Runtime::new().expect("a runtime");
        let routes = Router::new().route(otlp::HTTP_PATH, post(export)).with_state(Arc::clone(&self.state));
        let listener = runtime.block_on(TcpListener::bind(self.address)).expect("the port is free");
        self.address = listener.local_addr().expect("it has an address");
        runtime.spawn(async move { axum::serve(listener, routes).await });
        self.runtime = Some(runtime);
    }

    /// Ends all connections, and listens no more.
    fn go_away(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    fn is(&self, mood: Mood) {
        self.state.lock().expect("no panic").mood = mood;
    }

    fn requests(&self) -> usize {
        self.state.lock().expect("no panic").times.len()
    }

    fn taken(&self) -> i64 {
        self.state.lock().expect("no panic").seqs.len() as i64
    }
}

async fn export(State(state): State<Arc<Mutex<Seen>>>, body: Bytes) -> axum::response::Response {
    let mood = {
        let mut seen = state.lock().expect("no panic");
        seen.times.push(Instant::now());
        let rows = Decoder::default().decode(&body).expect("the agent sends OTLP").flows;
        let refused = match seen.mood {
            Mood::Throttle(_) | Mood::Unavailable | Mood::Refuse => rows.len(),
            Mood::Partial(refused) => refused as usize,
            Mood::Well | Mood::BlackHole | Mood::TakeAndFail => 0,
        };
        seen.seqs.extend(rows.iter().skip(refused).map(|row| (row.run_id.to_string(), row.seq)));
        seen.mood
    };
    match mood {
        Mood::Well => otlp::response(0, "").into_response(),
        Mood::Partial(refused) => otlp::response(refused, "not these").into_response(),
        Mood::Throttle(seconds) => {
            (StatusCode::TOO_MANY_REQUESTS, [("Retry-After", seconds.to_string())]).into_response()
        }
        Mood::Unavailable => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mood::TakeAndFail => StatusCode::BAD_GATEWAY.into_response(),
        Mood::Refuse => StatusCode::BAD_REQUEST.into_response(),
        Mood::BlackHole => std::future::pending().await,
    }
}

/// A sender to a collector, both new.
struct Pair {
    collector: Collector,
    sender: Sender,
    _directory: tempfile::TempDir,
}

impl Pair {
    fn new(spool_bytes: u64) -> Self {
        Self::waiting(spool_bytes, 500)
    }

    /// A sender that waits so many milliseconds for an answer.
    fn waiting(spool_bytes: u64, timeout_ms: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let collector = Collector::start();
        let mut sender = Sender::new("node-a", &directory.path().join("spool"), spool_bytes).expect("a spool");
        let timeout = [("OTEL_EXPORTER_OTLP_TIMEOUT", timeout_ms.to_string())];
        sender.start(&format!("http://{}", collector.address), "http/protobuf", &timeout).expect("it sends");
        sender.send(10, NOW);
        wait_until("the first delivery", || collector.taken() == 10);
        Self { collector, sender, _directory: directory }
    }

    fn wait(&self) {
        wait_until("delivery of everything", || self.sender.outbox.stats().waiting == 0);
    }

    /// Asserts that every flow was taken or is counted as lost.
    fn assert_accounted(&self, lost: i64) {
        assert_eq!(self.sender.outbox.take_lost_ends(), lost, "{:?}", self.sender.outbox.stats());
        assert_eq!(self.collector.taken() + lost, self.sender.flows(), "{:?}", self.sender.outbox.stats());
    }
}

const NOW: TimestampMs = TimestampMs(1_795_000_000_000);
const SPOOL_BYTES: u64 = 64 << 20;

fn a_collector_that_throttles_is_left_alone_for_as_long_as_it_says() {
    // On a busy machine the answer may take long: who does not wait for it does not know what it says.
    let mut pair = Pair::waiting(SPOOL_BYTES, 60_000);
    pair.collector.is(Mood::Throttle(3));
    let before = pair.collector.requests();
    pair.sender.send(10, NOW);
    wait_until("the first refusal", || pair.collector.requests() > before);
    pair.sender.send(10, NOW);
    pair.collector.is(Mood::Well);
    wait_until("the next attempt", || pair.collector.requests() > before + 1);
    let times = pair.collector.state.lock().expect("no panic").times[before..before + 2].to_vec();
    assert!(times[1] - times[0] > Duration::from_millis(2900), "{times:?}");
    pair.wait();
    pair.assert_accounted(0);
}

fn a_collector_that_is_unavailable_or_lies_gets_everything_later() {
    let mut pair = Pair::new(SPOOL_BYTES);
    for mood in [Mood::Unavailable, Mood::BlackHole, Mood::TakeAndFail] {
        pair.collector.is(mood);
        let before = pair.sender.outbox.stats().retries;
        for _ in 0..20 {
            pair.sender.send(10, NOW);
        }
        wait_until("two attempts", || pair.sender.outbox.stats().retries >= before + 2);
        assert!(pair.sender.outbox.stats().spooled_bytes > 0, "meanwhile it is on disk");
        pair.collector.is(Mood::Well);
        pair.wait();
        pair.assert_accounted(0);
    }
}

fn what_a_collector_refuses_is_counted_and_never_sent_again() {
    let mut pair = Pair::new(SPOOL_BYTES);
    pair.collector.is(Mood::Partial(3));
    let before = pair.collector.requests();
    pair.sender.send(10, NOW);
    wait_until("the answer", || pair.sender.outbox.stats().rejected_rows == 3);
    pair.assert_accounted(3);
    pair.collector.is(Mood::Refuse);
    pair.sender.send(10, NOW);
    wait_until("the answer", || pair.sender.outbox.stats().refused == 1);
    pair.collector.is(Mood::Well);
    pair.sender.send(10, NOW);
    pair.wait();
    assert_eq!(pair.sender.outbox.take_lost_ends(), 10);
    assert_eq!(pair.collector.requests(), before + 3, "each once");
    assert_eq!(pair.collector.taken() + 13, pair.sender.flows());
}

fn a_collector_that_restarts_again_and_again_gets_everything() {
    let mut pair = Pair::new(SPOOL_BYTES);
    for _ in 0..6 {
        pair.collector.go_away();
        let retries = pair.sender.outbox.stats().retries;
        for _ in 0..10 {
            pair.sender.send(10, NOW);
        }
        wait_until("an attempt while it is away", || pair.sender.outbox.stats().retries > retries);
        let taken = pair.collector.taken();
        pair.collector.come_back();
        wait_until("a delivery", || pair.collector.taken() > taken);
    }
    pair.wait();
    pair.assert_accounted(0);
    assert!(pair.sender.outbox.stats().retries > 0, "it was away");
}

fn the_oldest_is_dropped_and_counted_where_too_much_waits() {
    let mut pair = Pair::new(200 << 10);
    pair.collector.go_away();
    for _ in 0..200 {
        pair.sender.send(100, NOW);
    }
    wait_until("the first failure", || pair.sender.outbox.stats().retries > 0);
    for _ in 0..200 {
        pair.sender.send(100, NOW);
    }
    let stats = pair.sender.outbox.stats();
    assert!(stats.dropped > 0 && stats.spooled_bytes <= 200 << 10, "{stats:?}");
    let lost = pair.sender.outbox.take_lost_ends();
    assert_eq!(lost, stats.dropped as i64 * 100);
    pair.collector.come_back();
    pair.wait();
    let (taken, run) = (pair.collector.taken(), pair.sender.run_id().to_owned());
    assert_eq!(taken + lost, pair.sender.flows());
    let seen = pair.collector.state.lock().expect("no panic");
    assert!(seen.seqs.contains(&(run, pair.sender.flows() - 1)), "the newest is there");
}

fn a_full_disk_under_the_spool_costs_the_oldest_and_is_counted() -> Ran {
    let disk = small_disk(256 << 10)?;
    let mut collector = Collector::start();
    let mut sender = Sender::new("node-a", &disk.path().join("spool"), SPOOL_BYTES).expect("a spool");
    sender.start(&format!("http://{}", collector.address), "http/protobuf", &[]).expect("it sends");
    collector.go_away();
    for _ in 0..50 {
        sender.send(100, NOW);
    }
    wait_until("the first failure", || sender.outbox.stats().retries > 0);
    for _ in 0..100 {
        sender.send(100, NOW);
    }
    assert!(sender.outbox.stats().dropped > 0, "{:?}", sender.outbox.stats());
    collector.come_back();
    wait_until("delivery of everything", || sender.outbox.stats().waiting == 0);
    assert_eq!(collector.taken() + sender.outbox.take_lost_ends(), sender.flows(), "{:?}", sender.outbox.stats());
    Ok(())
}

fn what_waits_is_sent_by_the_next_process_and_two_do_not_share_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("spool");
    let mut collector = Collector::start();
    collector.go_away();
    let endpoint = format!("http://{}", collector.address);
    let mut sender = Sender::new("node-a", &spool, SPOOL_BYTES).expect("a spool");
    sender.start(&endpoint, "http/protobuf", &[]).expect("it sends");
    for _ in 0..30 {
        sender.send(10, NOW);
    }
    let second = Sender::new("node-b", &spool, SPOOL_BYTES);
    assert!(second.is_err_and(|error| error.to_string().contains("in use by another process")));
    sender.outbox.settle(Duration::from_secs(5));
    assert!(sender.outbox.close(), "all of it is kept");
    // As a process does that ends; its thread would hold the directory.
    let kept = directory.path().join("kept");
    std::fs::rename(&spool, &kept).expect("moved");
    std::fs::remove_file(kept.join(".lock")).expect("it was there");
    collector.come_back();
    let mut next = Sender::new("node-b", &kept, SPOOL_BYTES).expect("another spool");
    next.start(&endpoint, "http/protobuf", &[]).expect("it sends");
    next.send(10, NOW);
    wait_until("delivery of everything", || next.outbox.stats().waiting == 0);
    assert_eq!(collector.taken(), sender.flows() + next.flows());
    assert!(std::fs::read_dir(&kept).expect("it is there").flatten().all(|entry| entry.file_name() == ".lock"));
}
