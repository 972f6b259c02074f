//! The whole graph of a run, and the only file that knows it.
//!
//! ```text
//!  observe (task)                                          record (thread)
//!  Probe ──FlowEvent, EdgeCounts──► FlowTable ──Message──► [bounded] ──► Enricher ──FlowRecord──► Sinks
//!  watch (tasks)                                               │
//!  API server ──Change──────────────────────Message──► [bounded] ──► Inventory ──InventoryRecord──┘
//! ```
//!
//! Nothing is dropped between the stages: where recording is slower than observing, the channel fills, observing waits,
//! and what does not fit the kernel's ring buffer is summed in the kernel. At shutdown the upstream ends first and the
//! rest drains.

mod observe;
mod record;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use delivery::{
    DestinationError, FileDestination, RequestDestination, SpoolConfig,
    collector::{CollectorConfig, without_user},
    listen::ListenError,
};
use kubernetes::{Access, Change, ConnectError, Resource, Start};
use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
};
use schemas::{capture::Origin, event::CgroupEvent, table::TimestampMs};
use tokio::{sync::mpsc, task::JoinSet};

use observe::Observer;
use record::Recorder;

use crate::{
    args::{Args, RemoteMetadata},
    chain,
    enrich::{
        Enricher, Filter, HostNetns,
        cluster::Cluster,
        file::InventoryError,
        inode,
        labels::{Keys, LabelPolicy},
    },
    flow::{Clock, Flow, FlowTable, FlowTableLimits, TableLoss},
    inventory::{Interfaces, Inventory},
    live::{self, Admission},
    probe::{
        self, Degraded, NodeNetns, Probe, ProbeCounters, ProbeError, ProbeOptions,
        host::{cgroup1_mount, cgroup2_mount},
        netns,
    },
    sink::{Account, Hub, LiveSink, OtlpSink, ParquetSink, Sink, Sinks},
    telemetry::{self, Telemetry},
};

/// Why a run could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel's sockets can't be watched.
    #[error("cannot watch the kernel's sockets")]
    Probe(#[from] ProbeError),
    /// The inventory file can't be used.
    #[error("cannot learn who the pods are")]
    Inventory(#[from] InventoryError),
    /// There is no Kubernetes API.
    #[error("cannot ask the Kubernetes API who the pods are")]
    Kubernetes(#[from] ConnectError),
    /// The end of the run could not be written.
    #[error(
        "cannot write to {to}, as told above: the end of the recording is missing, {lost} ends of connections are lost"
    )]
    EndUnwritten { to: String, lost: i64 },
    /// Not even the beginning could be written.
    #[error("cannot write to {to}, as told above: make room, or name another directory with --output")]
    Unwritable { to: String },
    /// What is to be written to can't be used.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The node's own network namespace can't be told.
    #[error("cannot read {path}: name the node's network namespace with --host-netns")]
    HostNetns { path: PathBuf },
    /// The metrics, or the live stream, can't be served.
    #[error("cannot serve metrics, or the live stream")]
    Metrics(#[from] ListenError),
    /// The system refused something that always works.
    #[error("cannot read the system's clock or name")]
    System(#[from] nix::Error),
    /// The system has no randomness.
    #[error("cannot draw a random identifier")]
    Random(#[source] getrandom::Error),
    /// The recording thread ended before its time.
    #[error("the recording thread ended unexpectedly")]
    Recorder(#[source] io::Error),
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunSummary {
    /// Rows of `flows`.
    pub rows: i64,
    /// Ends of connections in them.
    pub ends: i64,
    /// Ends of connections that the filter left out.
    pub filtered: i64,
    /// Ends of connections lost, for any reason.
    pub lost: i64,
}

/// From observing to recording.
enum Message {
    Flows(Vec<Flow>),
    /// A cgroup was made.
    Cgroup(Box<CgroupEvent>),
    /// What the API server says of this node's pods.
    OwnPods(Change),
    /// What the API server says of the rest of the cluster.
    Cluster(Change),
    /// A second has passed.
    Tick,
    Window(WindowReport),
}

/// What observing a window came to, since the report before.
#[derive(Clone, Copy, Debug, Default)]
struct WindowReport {
    start: TimestampMs,
    end: TimestampMs,
    counters: ProbeCounters,
    lost: TableLoss,
    datagram_ends: u64,
    ring_bytes: usize,
    open_connections: usize,
    edges: usize,
    /// Ends of connections that were gone before they could be told of, at the end of the run.
    lost_end: u64,
    /// The run has come to its end.
    is_last: bool,
}

/// Records until `shutdown` completes, then flushes everything. It is made a future of once there is something to finish.
///
/// # Errors
/// The run can't start, or the kernel takes the programs away.
pub async fn run(args: Args, shutdown: impl IntoFuture<Output = ()>) -> Result<RunSummary, RunError> {
    let name = args.node.clone().map_or_else(node_name, Ok)?;
    let origin = Origin::new(&args.cluster, &name).map_err(RunError::Random)?;
    let to = receivers(&args);
    let telemetry = Arc::new(Telemetry::new());
    if let Some(address) = args.metrics_address {
        telemetry::serve(address, &args.metrics_security(), Arc::clone(&telemetry)).await?;
    }
    if args.host_netns.is_some() {
        host_netns(args.host_netns.as_deref(), None)?; // a wrong one is an error before anything is written
    }
    let interfaces = Interfaces::new(args.host_netns.as_deref(), &origin.node);
    let inventory = match args.inventory.clone() {
        Some(path) => Inventory::of_file(path, &origin, interfaces)?,
        None => Inventory::of_node(&origin, interfaces),
    };
    let client = if args.kubernetes { Some(kubernetes::connect().await?) } else { None };
    let (mut serving, mut live) = (None, None);
    if let Some(address) = args.live_address {
        let (hub, account) = (Arc::new(Hub::new(Arc::clone(&telemetry))), Account::default());
        let admission = client.clone().map_or(Admission::Token, |client| Admission::Cluster(Access::new(client)));
        serving = Some(live::serve(address, &args.live_security(), admission, Arc::clone(&hub), &origin).await?);
        live = Some((LiveSink::new(hub, account.clone()), account));
    }
    let sinks =
        Sinks::start(sinks(&args, &origin)?, live, args.roll_interval, &telemetry).map_err(RunError::Recorder)?;
    // From here on there is something to finish.
    let shutdown = shutdown.into_future();
    // And the kernel collects; what it sees waits in the ring buffer until everything stands.
    let run_start = now()?;
    let clock = clock()?;
    let limits = FlowTableLimits { edges: args.max_edges, conversations: args.max_conversations };
    let table = FlowTable::new(args.window, limits, run_start);
    let probe = Probe::attach(ProbeOptions {
        cgroup: args.cgroup.as_deref(),
        ring_bytes: args.ring_size_mib << 20,
        kernel_edges: args.kernel_edges,
        connections: args.max_connections,
        window_ns: args.summed_window_ms() as u64 * 1_000_000,
        utc_offset_ns: clock.offset_ns as u64,
    })?;
    for Degraded { program, cost, reason, since, log } in probe.degraded() {
        tracing::warn!(program, cost, reason, linux = since, "a part of the capture can't be had here");
        if let Some(log) = log.as_ref().filter(|_| args.verbose) {
            crate::say(log);
        }
    }
    let host = host_netns(args.host_netns.as_deref(), probe.node_netns())?;
    let Args { labels, cidrs, ports, loopback, .. } = args.clone();
    let filter = Filter { namespaces: args.namespaces(), labels, cidrs, ports, loopback };
    let _measuring = args.bpf_stats.then(probe::measure_run_time).and_then(|measuring| {
        let refused = |error: &ProbeError| tracing::warn!(error = chain(error), "--bpf-stats needs CAP_SYS_ADMIN");
        measuring.inspect_err(refused).ok()
    });
    let choice = LabelPolicy::new(Keys::new(&args.record_labels), Keys::new(&args.omit_labels), args.max_label_bytes);
    let window_ms = args.summed_window_ms();
    let mut enricher = Enricher::new(origin.clone(), filter, choice, host, cgroup2_mount()?, window_ms);
    if args.kubernetes {
        let remote = others(&args);
        let cluster = || Cluster::new(Arc::clone(&origin.run_id), remote.iter().map(|(of, _)| of.clone()).collect());
        enricher.use_kubernetes((!remote.is_empty()).then(cluster), cgroup1_mount());
    }
    let node = Arc::clone(&origin.node);
    let mut recorder = Recorder::new(&args, origin, run_start, enricher, inventory, sinks)?;
    recorder.programs = probe.programs().iter().copied().map(Arc::from).collect();
    // The run and who is who are on disk before the first flow, so that even a run that is killed at once is named.
    if !recorder.begin() {
        return Err(RunError::Unwritable { to });
    }
    recorder.telemetry = Some(Arc::clone(&telemetry));
    if client.is_none() {
        telemetry.ready(); // otherwise once the pods are known
    }
    tracing::info!(to, window = ?args.window, "recording, stop with Ctrl-C");

    let (sender, receiver) = mpsc::channel(CHANNEL_MESSAGES);
    // They end with the observer: dropping the set ends its tasks.
    let mut watches = JoinSet::new();
    if let Some(client) = client {
        let own = Start { delay: jitter(OWN_JITTER)?, fields: Some(format!("spec.nodeName={node}")), is_cached: true };
        watches.spawn(kubernetes::watch(client.clone(), Resource::pods(), own, sender.clone(), Message::OwnPods));
        for (resource, fields) in others(&args) {
            let start = Start { delay: jitter(OTHERS_JITTER)?, fields, is_cached: false };
            watches.spawn(kubernetes::watch(client.clone(), resource, start, sender.clone(), Message::Cluster));
        }
    }
    let recording = tokio::task::spawn_blocking(move || recorder.run(receiver));
    let observer = Observer::new(&args, probe, table, clock, run_start, sender, telemetry);
    let observed = observer.run(shutdown).await;
    drop(watches);
    let (summary, is_durable) = recording.await.map_err(|error| RunError::Recorder(io::Error::other(error)))?;
    if let Some(serving) = serving {
        serving.end().await;
    }
    observed?;
    if is_durable { Ok(summary) } else { Err(RunError::EndUnwritten { to, lost: summary.lost }) }
}

/// Where records go, for people.
fn receivers(args: &Args) -> String {
    let output = args.output.iter().map(|output| output.display().to_string());
    let output = output.chain(args.sends_otlp().then(|| "an OpenTelemetry collector".into()));
    output.chain(args.live_address.map(|_| "whoever listens".into())).collect::<Vec<_>>().join(" and ")
}

/// The sinks that are asked for, ready to be started.
fn sinks(args: &Args, origin: &Origin) -> Result<Vec<(Sink, Account)>, RunError> {
    let mut sinks = Vec::new();
    let spool = SpoolConfig { path: &args.spool, size_bytes: args.spool_size_mib << 20 };
    if let Some(output) = &args.output {
        let account = Account::default();
        let sink = ParquetSink::new(FileDestination::open(output, spool)?, origin, args.roll(), account.clone());
        sinks.push((Sink::Parquet(Box::new(sink)), account));
    }
    if args.sends_otlp() {
        let (endpoint, protocol) = (args.otlp_endpoint.as_deref(), args.otlp_protocol.as_deref());
        let config = CollectorConfig::new(endpoint, protocol, |name| std::env::var(name).ok());
        let config = config.map_err(DestinationError::from)?;
        let account = Account::default();
        let endpoint = without_user(&config.endpoint);
        tracing::info!(endpoint, protocol = ?config.protocol, "sending OTLP logs");
        let destination = RequestDestination::open(config, "flowscribe-exporter", spool)?;
        sinks.push((Sink::Otlp(Box::new(OtlpSink::new(destination, account.clone()))), account));
    }
    Ok(sinks)
}

/// What is watched beside the node's own pods, with field selectors.
fn others(args: &Args) -> Vec<(Resource, Option<String>)> {
    if args.remote_metadata == RemoteMetadata::Local {
        return Vec::new();
    }
    // Without those that are on no node yet: their going to one would look like their end.
    let others = args.node.as_ref().map(|node| format!("spec.nodeName!={node},spec.nodeName!="));
    let rest = [Resource::services(), Resource::endpoint_slices(), Resource::nodes()];
    std::iter::once((Resource::pods(), others)).chain(rest.map(|resource| (resource, None))).collect()
}

/// A random part of a time, so that the agents of a cluster do not ask all at once.
fn jitter(longest: Duration) -> Result<Duration, RunError> {
    let random = getrandom::u32().map_err(RunError::Random)?;
    Ok(longest.mul_f64(f64::from(random) / f64::from(u32::MAX)))
}

/// The node's own network namespace: the one that is named, or that of process 1, as the probe found it; where it could not,
/// this process's own.
///
/// # Errors
/// The file that is named is none of a namespace.
pub(crate) fn host_netns(named: Option<&Path>, found: Option<NodeNetns>) -> Result<HostNetns, RunError> {
    let of = |path: &Path| {
        let inode = inode(path).ok_or_else(|| RunError::HostNetns { path: path.into() })?;
        Ok(HostNetns { inode: inode as u32, cookie: netns::cookie(path) })
    };
    match (named, found) {
        (Some(path), _) => of(path),
        (None, Some(NodeNetns { inode, cookie })) => Ok(HostNetns { inode, cookie: Some(cookie) }),
        (None, None) => of(Path::new("/proc/1/ns/net")).or_else(|_| {
            let own = of(Path::new("/proc/self/ns/net"))?;
            Ok(HostNetns { cookie: own.cookie.or_else(netns::own_cookie), ..own })
        }),
    }
}

/// The node's name where none is given: its host name.
fn node_name() -> Result<String, nix::Error> {
    Ok(uname()?.nodename().to_string_lossy().into_owned())
}

fn now() -> Result<TimestampMs, nix::Error> {
    Ok(TimestampMs(clock_ns(ClockId::CLOCK_REALTIME)? / 1_000_000))
}

fn clock() -> Result<Clock, nix::Error> {
    Ok(Clock { offset_ns: clock_ns(ClockId::CLOCK_REALTIME)? - clock_ns(ClockId::CLOCK_BOOTTIME)? })
}

fn clock_ns(clock: ClockId) -> Result<i64, nix::Error> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

const CHANNEL_MESSAGES: usize = 8;
const OWN_JITTER: Duration = Duration::from_secs(1);
const OTHERS_JITTER: Duration = Duration::from_secs(3);
