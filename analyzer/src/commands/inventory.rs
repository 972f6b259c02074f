//! `flowscribe inventory`: the one writer of what is known of the whole cluster.
//!
//! ```text
//! API server ──Change──► InventoryLog ──InventoryRecord──► Ledger ──► capture/inventory, OTLP
//! Lease ──who writes──┘        └──────────HealthRecord──► Ledger ──► capture/health, OTLP
//! ```
//!
//! Agents tell of their own nodes' pods; this tells of all pods too, because an agent that dies with its node can't tell
//! of their end, and nodes may have no agent. The same pod told by two writers is one pod.

mod pulse;

use std::{collections::HashSet, io, path::Path, sync::Arc, time::Duration};

use delivery::{
    DestinationError, Destinations, FileDestination, GivenUp, RecordWriter, RequestDestination, SpoolConfig,
    collector::CollectorConfig, listen::ListenError,
};
use ipnet::IpNet;
use kubernetes::{
    Change, ConnectError, News, Problem, Resource, Start, Trouble, Troubles, inventory_log::InventoryLog,
};
use schemas::{
    capture::{CaptureError, Origin, Roll},
    health::HealthRecord,
    inventory::{InventoryRecord, ObjectKind, Scope, WRITER},
    table::TimestampMs,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{cli::InventoryArgs, interrupt, logging::log_to_stderr};
use kubernetes::lease::{self, Lease};
use pulse::Pulse;

/// Why the inventory can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot write the inventory: make room, or name another directory with --output")]
    Write(#[source] CaptureError),
    #[error("the API server did not tell of {missing} within {}s: {reason}", ONCE_TIMEOUT.as_secs())]
    Silent { missing: String, reason: String },
    #[error("nowhere to write to: give --output, --otlp, or both")]
    NoOutput,
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot catch signals")]
    Signal(#[source] io::Error),
    #[error("the system tells no time, name or randomness")]
    System(#[source] io::Error),
}

impl From<GivenUp> for InventoryError {
    fn from(lost: GivenUp) -> Self {
        Self::Write(lost.source)
    }
}

/// One term of writing.
struct Term {
    log: InventoryLog,
    origin: Origin,
    rows: RecordWriter<InventoryRecord>,
    health: RecordWriter<HealthRecord>,
    /// Resources of which nothing has been heard yet.
    awaited: HashSet<Resource>,
    troubles: Troubles,
    /// Everything has to be told again: a file was given up, or more or less is known than before.
    is_broken: bool,
    run_start: TimestampMs,
    /// End of the window that health was last told of.
    told_until: TimestampMs,
    health_seq: i64,
    pulse: Arc<Pulse>,
}

/// Writes until Ctrl-C or SIGTERM, or with `--once` what there is.
///
/// # Errors
/// There is no API, or the directory can't be written to.
pub(crate) async fn run(args: &InventoryArgs) -> Result<(), InventoryError> {
    log_to_stderr();
    let (destinations, shown) = destinations(args)?;
    let client = kubernetes::connect().await?;
    let mut stop = std::pin::pin!(stopped()?);
    if args.once {
        return tokio::select! {
            written = once(args, &destinations, &shown, client) => {
                close(&destinations).await;
                written
            }
            () = &mut stop => Ok(()),
        };
    }
    let mut lease = Lease::new(
        client.clone(),
        &args.lease,
        args.lease_namespace.as_deref(),
        &lease::identity().map_err(InventoryError::System)?,
    );
    let pulse = Arc::new(Pulse::new());
    if let Some(address) = args.health_address {
        pulse::serve(address, Arc::clone(&pulse)).await?;
    }
    loop {
        tracing::info!("waiting for the lease {lease}");
        pulse.set_ready(true);
        tokio::select! {
            () = lease.acquire() => {}
            () = pulse.wait() => {}
            () = &mut stop => return Ok(()),
        }
        pulse.set_ready(false);
        let mut term = Term::new(&args.cluster, &args.cluster_cidrs, args.roll_interval, &destinations)?;
        term.pulse = Arc::clone(&pulse);
        tracing::info!("writing the inventory of cluster {} to {}", args.cluster, shown);
        let is_stopped = term.write(client.clone(), lease.keep(), stop.as_mut()).await?;
        if is_stopped {
            // A server that does not answer sees it run out.
            let _ = timeout(RELEASE_TIMEOUT, lease.release()).await;
            close(&destinations).await;
            return Ok(());
        }
        tracing::warn!("the lease {lease} is lost: another one writes");
    }
}

/// Writes into a directory until `stop` completes, as the one writer of a recording.
///
/// # Errors
/// The directory can't be written to.
pub(crate) async fn record(
    output: &Path,
    cluster: &str,
    client: kube::Client,
    stop: impl Future<Output = ()> + Unpin,
) -> Result<(), InventoryError> {
    let files = FileDestination { root: output.into(), outbox: None };
    let destinations = Destinations { files: Some(files), requests: None };
    let mut term = Term::new(cluster, &[], RECORD_ROLL, &destinations)?;
    term.write(client, std::future::pending(), stop).await.map(drop)
}

/// Writes one snapshot.
async fn once(
    args: &InventoryArgs,
    destinations: &Destinations,
    shown: &str,
    client: kube::Client,
) -> Result<(), InventoryError> {
    let mut term = Term::new(&args.cluster, &args.cluster_cidrs, args.roll_interval, destinations)?;
    let (_watches, mut changes) = watch_all(client);
    let told = timeout(ONCE_TIMEOUT, async {
        let mut tick = interval(TICK);
        while !term.log.has_begun() {
            tokio::select! {
                Some(change) = changes.recv() => term.learn(change, now()?)?,
                _ = tick.tick() => term.tick(now()?)?,
            }
        }
        Ok::<_, InventoryError>(())
    });
    match told.await {
        Ok(told) => told?,
        Err(_) => return Err(term.silent()),
    }
    term.finish(now()?)?;
    tracing::info!("the inventory of cluster {} is in {}", args.cluster, shown);
    Ok(())
}

/// The destinations that are asked for, and how people know them.
fn destinations(args: &InventoryArgs) -> Result<(Destinations, String), InventoryError> {
    let spool = SpoolConfig { path: &args.spool, size_bytes: args.spool_size_mib << 20 };
    let mut destinations = Destinations::default();
    let mut shown = Vec::new();
    if let Some(output) = &args.output {
        destinations.files = Some(FileDestination::open(output, spool)?);
        shown.push(output.display().to_string());
    }
    if args.otlp || args.otlp_endpoint.is_some() {
        let (endpoint, protocol) = (args.otlp_endpoint.as_deref(), args.otlp_protocol.as_deref());
        let config = CollectorConfig::new(endpoint, protocol, |name| std::env::var(name).ok());
        let config = config.map_err(DestinationError::from)?;
        destinations.requests = Some(RequestDestination::open(config, "flowscribe-inventory", spool)?);
        shown.push("an OTLP receiver".into());
    }
    if shown.is_empty() { Err(InventoryError::NoOutput) } else { Ok((destinations, shown.join(" and "))) }
}

/// Waits a while for receivers; what they do not take stays in the spool.
async fn close(destinations: &Destinations) {
    let destinations = destinations.clone();
    let _ = tokio::task::spawn_blocking(move || destinations.close(SETTLE)).await;
}

/// Watches everything; the watches end with the set.
fn watch_all(client: kube::Client) -> (JoinSet<()>, mpsc::Receiver<Change>) {
    let (sender, receiver) = mpsc::channel(CHANGES);
    let mut watches = JoinSet::new();
    for resource in Resource::cluster() {
        watches.spawn(kubernetes::watch(client.clone(), resource, Start::default(), sender.clone(), |change| change));
    }
    (watches, receiver)
}

impl Term {
    fn new(
        cluster: &str,
        cluster_cidrs: &[IpNet],
        roll_interval: Duration,
        destinations: &Destinations,
    ) -> Result<Self, InventoryError> {
        let now = now()?;
        let origin = Origin::new(cluster, WRITER).map_err(|error| InventoryError::System(error.into()))?;
        let roll = Roll { size_bytes: ROLL_SIZE_BYTES, age: roll_interval };
        let mut log = InventoryLog::new(origin.clone(), Scope::Part);
        if !cluster_cidrs.is_empty() {
            log.upsert(ranges(cluster_cidrs), now);
        }
        let mut term = Self {
            log,
            rows: destinations.writer(&origin, VERSION, roll),
            health: destinations.writer(&origin, VERSION, roll),
            origin,
            awaited: Resource::cluster().into_iter().collect(),
            troubles: Troubles::default(),
            is_broken: false,
            run_start: now,
            told_until: now,
            health_seq: 0,
            pulse: Arc::new(Pulse::new()),
        };
        // The run is on record before its first row; that the directory can't be written to is known at once.
        term.tell_health(now, false)?;
        term.health.finish()?;
        Ok(term)
    }

    /// Writes until told to stop, or until the lease is lost. Returns whether it was told.
    async fn write(
        &mut self,
        client: kube::Client,
        lost: impl Future<Output = ()>,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Result<bool, InventoryError> {
        let (_watches, mut changes) = watch_all(client);
        let mut lost = std::pin::pin!(lost);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_stopped = loop {
            tokio::select! {
                Some(change) = changes.recv() => self.learn(change, now()?)?,
                _ = tick.tick() => self.tick(now()?)?,
                () = &mut lost => break false,
                () = &mut stop => break true,
            }
        };
        self.finish(now()?)?;
        Ok(is_stopped)
    }

    fn learn(&mut self, change: Change, now: TimestampMs) -> Result<(), InventoryError> {
        let knew_all = self.knows_all();
        let news = self.troubles.learn(&change, now);
        tell(news, self.troubles.failures());
        match &change {
            // A server that only fails will tell; what was known of a resource must not end for it.
            Change::Unreadable(_, Problem::Failed(_)) => {}
            Change::Unreadable(resource, _) | Change::Listed(resource) => drop(self.awaited.remove(resource)),
            _ => {}
        }
        if self.log.opens_with(&change, self.rows.is_open(), now) {
            self.snapshot(now)?;
        }
        let rows = self.log.learn(change, now);
        self.push(rows, now)?;
        if self.awaited.is_empty() && (!self.log.has_begun() || knew_all != self.knows_all()) {
            self.snapshot(now)?;
        }
        Ok(())
    }

    fn tick(&mut self, now: TimestampMs) -> Result<(), InventoryError> {
        self.pulse.beat();
        self.pulse.set_ready(self.log.has_begun() && self.knows_all());
        let knew_all = self.knows_all();
        let news = self.troubles.expire(now);
        tell(news, self.troubles.failures());
        self.is_broken |= knew_all != self.knows_all();
        if !self.log.has_begun() && now.0 - self.run_start.0 > OPTIONAL_TIMEOUT.as_millis() as i64 {
            // What is not needed must not keep the rest from being told.
            self.awaited.retain(|resource| resource.is_needed);
            if self.awaited.is_empty() {
                self.snapshot(now)?;
            }
        }
        if self.log.is_due(self.is_broken, now) {
            self.snapshot(now)?;
        }
        self.rows.send();
        if now.0 - self.told_until.0 >= WINDOW.as_millis() as i64 {
            let told = self.tell_health(now, false);
            self.judge_health(told);
        }
        if self.rows.is_due(now) || self.log.is_new_hour(now) {
            let finished = self.rows.finish();
            self.judge_rows(finished);
        }
        if self.health.is_due(now) {
            let finished = self.health.finish();
            self.judge_health(finished);
        }
        Ok(())
    }

    /// Whether addresses that are not known are outside the cluster.
    fn knows_all(&self) -> bool {
        self.awaited.is_empty() && !self.troubles.iter().any(|trouble| trouble.resource.is_needed)
    }

    fn snapshot(&mut self, now: TimestampMs) -> Result<(), InventoryError> {
        self.is_broken = false;
        self.log.set_scope(if self.knows_all() { Scope::Cluster } else { Scope::Part });
        let is_first = !self.log.has_begun();
        let rows = self.log.snapshot(now);
        self.push(rows, now)?;
        if is_first {
            // What a crash from here on may lose is only what changes.
            let finished = self.rows.finish();
            self.judge_rows(finished);
            tracing::info!("{} objects are known", self.log.known().count());
        }
        Ok(())
    }

    fn push(&mut self, rows: Vec<InventoryRecord>, now: TimestampMs) -> Result<(), InventoryError> {
        // What follows a failure would look like all there is: nothing more until it is told anew.
        for row in rows {
            let pushed = self.rows.push(row, now);
            self.judge_rows(pushed);
            if self.is_broken {
                break;
            }
        }
        Ok(())
    }

    /// A file that can't be written is given up; once there is room again, everything is told anew.
    fn judge_rows(&mut self, written: Result<(), GivenUp>) {
        if let Err(error) = written {
            tracing::error!(
                "a file of the inventory is given up, all is told again: {:#}",
                anyhow::Error::new(error.source)
            );
            self.is_broken = true;
        }
    }

    fn judge_health(&mut self, written: Result<(), GivenUp>) {
        if let Err(error) = written {
            tracing::error!("a file of health is given up: {:#}", anyhow::Error::new(error.source));
        }
    }

    fn tell_health(&mut self, now: TimestampMs, is_last: bool) -> Result<(), GivenUp> {
        let row = HealthRecord {
            cluster: Arc::clone(&self.origin.cluster),
            node: Arc::clone(&self.origin.node),
            run_id: Arc::clone(&self.origin.run_id),
            seq: self.health_seq,
            window_start: self.told_until,
            window_end: now,
            run_start: self.run_start,
            agent_version: VERSION.into(),
            window_ms: WINDOW.as_millis() as i64,
            unreadable: self.troubles.names(),
            inventory_next_seq: self.log.next_seq(),
            clean_shutdown: is_last,
            ..HealthRecord::default()
        };
        (self.health_seq, self.told_until) = (self.health_seq + 1, now);
        self.health.push(row, now)?;
        self.health.send();
        Ok(())
    }

    fn finish(&mut self, now: TimestampMs) -> Result<(), InventoryError> {
        self.rows.finish()?;
        self.tell_health(now, true)?;
        self.health.finish()?;
        Ok(())
    }

    /// What was not told of in time.
    fn silent(&self) -> InventoryError {
        let mut missing: Vec<String> = self.awaited.iter().map(Resource::to_string).collect();
        missing.sort();
        let trouble = self.troubles.iter().find(|trouble| self.awaited.contains(&trouble.resource));
        let reason = trouble.map_or("no answer".into(), |t| t.problem.remedy(&t.resource).into_owned());
        InventoryError::Silent { missing: missing.join(", "), reason }
    }
}

/// Tells what can't be watched and what that costs, and when it can be again. A server that is away fails all at once.
fn tell(news: Option<News>, failures: usize) {
    let is_told = |trouble: &Trouble| trouble.problem != Problem::NotServed || trouble.resource.is_needed;
    match news {
        Some(News::Began(Trouble { problem: Problem::Failed(error), .. })) if failures == 1 => {
            tracing::warn!("asking the API server again and again: {error}");
        }
        Some(News::Over(Trouble { problem: Problem::Failed(_), .. })) if failures == 0 => {
            tracing::info!("the API server answers again");
        }
        Some(News::Began(trouble) | News::Over(trouble)) if matches!(trouble.problem, Problem::Failed(_)) => {}
        // That a custom resource is not installed is as it should be.
        Some(News::Began(trouble)) if is_told(&trouble) => {
            let Trouble { resource, problem, .. } = trouble;
            let cost = match resource.kind {
                ObjectKind::Pod | ObjectKind::Node | ObjectKind::Service | ObjectKind::EndpointSlice => {
                    "an address that is not known counts as unknown, not as outside the cluster"
                }
                ObjectKind::Workload => "pods count as those of what owns them at first hand",
                _ => "what it tells is missing",
            };
            tracing::warn!("cannot watch {resource}: {}; it costs: {cost}", problem.remedy(&resource));
        }
        Some(News::Over(trouble)) if is_told(&trouble) => tracing::info!("{} can be watched again", trouble.resource),
        _ => {}
    }
}

/// Ranges that an operator names, as a record.
fn ranges(cidrs: &[IpNet]) -> InventoryRecord {
    InventoryRecord {
        kind: ObjectKind::ServiceCidr.into(),
        name: "--cluster-cidrs".into(),
        cidrs: cidrs.iter().map(|cidr| cidr.to_string().into()).collect(),
        ..InventoryRecord::default()
    }
}

/// Completes with Ctrl-C, SIGTERM or SIGHUP.
fn stopped() -> Result<impl Future<Output = ()>, InventoryError> {
    let catch = |kind| signal(kind).map_err(InventoryError::Signal);
    let (mut interrupt, mut terminate, mut hangup) =
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?);
    interrupt::records();
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

fn now() -> Result<TimestampMs, InventoryError> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.map_err(|error| InventoryError::System(io::Error::other(error)))?;
    Ok(TimestampMs(since.as_millis() as i64))
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
const WINDOW: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(1);
/// How long what is not needed may fail before the rest is told.
const OPTIONAL_TIMEOUT: Duration = Duration::from_secs(30);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
const ONCE_TIMEOUT: Duration = Duration::from_secs(60);
const ROLL_SIZE_BYTES: u64 = 64 << 20;
/// How often a file is finished while a person records.
const RECORD_ROLL: Duration = Duration::from_secs(60);
const CHANGES: usize = 1024;
/// How long the end waits for a receiver.
const SETTLE: Duration = Duration::from_secs(10);
