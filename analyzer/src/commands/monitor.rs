//! `flowscribe monitor`: a recording of what all agents see, for as long as a person watches.
//!
//! ```text
//! agents ──port-forward──► Listener (task) ──frame──► Journal ──► capture/flows, inventory, health
//! API server ──Change──► inventory ─────────────────────────────► capture/inventory, health
//! ```
//!
//! Each agent streams on its own, and is asked again when it is gone. Ctrl-C asks all of them to finish the window that is
//! under way; another one does not wait for it. Whatever happens, what was received is in the capture, and what is missing
//! can be told from it.

mod listener;
mod place;
mod token;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use delivery::live;
use indicatif::{HumanCount, HumanDuration, ProgressBar};
use kube::Client;
use schemas::capture::JOURNAL;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use super::inventory::{self, InventoryError};
use crate::output::{note, progress_line};
use crate::{
    capture::journal::{Journal, JournalConfig, JournalError},
    cli::{self, MonitorArgs},
    interrupt,
    logging::log_to_stderr,
    publish::cluster::ClusterError,
};
use listener::{Listener, Tally};
use place::{Discovery, Place};
use token::{Token, TokenError};

/// Why nothing is recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("cannot list the agents' pods in namespace {namespace}: {reason}")]
    List { namespace: String, reason: String },
    #[error(
        "no pod in namespace {namespace} has the labels {selector}: is flowscribe installed there? name its namespace \
         with --agent-namespace"
    )]
    NoAgents { namespace: String, selector: String },
    #[error("{agent} refuses: {reason}")]
    Refused { agent: String, reason: String },
    #[error("{url} is not the address of an agent, such as http://127.0.0.1:9465")]
    BadUrl { url: String },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot catch signals")]
    Signal(#[source] io::Error),
    #[error("nothing was recorded: no agent answered, as told above")]
    Silent,
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Recording,
    /// Agents are asked for the rest of the window that is under way.
    Finishing,
    Over,
}

/// What everything that is under way shares.
struct Monitor {
    journal: Journal,
    token: Token,
    /// What agents are asked for.
    query: String,
    phase: watch::Receiver<Phase>,
    /// Which agents there are, by what they are told apart by.
    there: watch::Receiver<Vec<String>>,
    /// Name of the agents' cluster, once one has said it.
    cluster: watch::Sender<Option<Arc<str>>>,
    line: ProgressBar,
    /// An agent has answered.
    is_admitted: AtomicBool,
}

/// Agents that were found, by what they are told apart by.
type Agents = BTreeMap<String, (Place, Arc<Tally>)>;

/// Records until Ctrl-C, SIGTERM, or the end of the time that was given.
///
/// # Errors
/// There are no agents, they refuse, or the directory can't be written to.
pub(crate) async fn run(args: &MonitorArgs) -> Result<(), MonitorError> {
    log_to_stderr();
    let config = args.of.config().await;
    // Agents that are named need no cluster.
    let config = if args.agent_url.is_empty() { Some(config?) } else { config.ok() };
    let client = config.clone().map(Client::try_from).transpose().map_err(ClusterError::Client)?;
    let token = Token::new(args, config, client.clone());
    // Before anything is asked or written: whoever has none is refused by all.
    token.header().await?;
    let discovery = Discovery::new(args, client.clone())?;
    if let Some(place) = discovery.exposed().filter(|_| token.is_of_user()) {
        return Err(TokenError::Exposed(place.to_string()).into());
    }
    let journal = Journal::open(JournalConfig {
        folder: args.output.join(JOURNAL),
        root: args.output.clone(),
        outbox: None,
        roll_interval: args.roll_interval,
        max_bytes: JOURNAL_BYTES,
    })?;
    let (phases, phase) = watch::channel(Phase::Recording);
    let (cluster, named) = watch::channel(args.cluster.as_deref().map(Arc::from));
    let (listed, there) = watch::channel(Vec::new());
    let line = progress_line();
    let namespaces = cli::names(&args.namespaces);
    let query = live::query(namespaces.iter().map(|name| &**name));
    let monitor =
        Arc::new(Monitor { journal, token, query, phase, there, cluster, line, is_admitted: AtomicBool::new(false) });
    // Who names agents by address may mean others than those of the cluster that is configured.
    let is_of_cluster = args.agent_url.is_empty() || args.of.is_named();
    let inventory = client.filter(|_| is_of_cluster && !args.no_inventory).map(|client| {
        let over = phases.subscribe();
        tokio::spawn(record_inventory(args.output.clone(), client, named, over))
    });
    let recorded = record(args, discovery, &monitor, &phases, &listed).await;
    let _ = phases.send(Phase::Over);
    monitor.line.finish_and_clear();
    if let Some(inventory) = inventory
        && let Ok(Err(error)) = inventory.await
    {
        note!("who is who in the cluster is not in the capture: {:#}", anyhow::Error::new(error));
    }
    if let Some(Monitor { journal, .. }) = Arc::into_inner(monitor) {
        let _ = tokio::task::spawn_blocking(|| journal.end()).await;
    }
    conclude(args, &recorded?)
}

/// Writes who is who in the cluster, from when its name is known until the recording is over.
async fn record_inventory(
    output: PathBuf,
    client: Client,
    mut named: watch::Receiver<Option<Arc<str>>>,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), InventoryError> {
    let mut over = Box::pin(async move { drop(phase.wait_for(|phase| *phase == Phase::Over).await) });
    let name = tokio::select! {
        name = named.wait_for(Option::is_some) => name.ok().and_then(|name| name.clone()),
        () = &mut over => None,
    };
    match name {
        Some(name) => inventory::record(&output, &name, client, over).await,
        None => Ok(()),
    }
}

/// Listens to all agents until told to stop; what came of each.
async fn record(
    args: &MonitorArgs,
    discovery: Discovery,
    monitor: &Arc<Monitor>,
    phases: &watch::Sender<Phase>,
    listed: &watch::Sender<Vec<String>>,
) -> Result<Agents, MonitorError> {
    let catch = |kind| signal(kind).map_err(MonitorError::Signal);
    let (mut interrupt, mut terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    // Nobody is there any more to press Ctrl-C.
    let mut hangup = catch(SignalKind::hangup())?;
    interrupt::records();
    let began = Instant::now();
    let mut until = began + args.duration.unwrap_or(FOREVER);
    let mut agents = Agents::new();
    let mut listening = JoinSet::new();
    let (tell, mut found) = mpsc::channel(1);
    let watching = tokio::spawn(discovery.watch(Arc::clone(monitor), tell));
    let mut tick = interval(TICK);
    let (mut is_recording, mut failed) = (true, None);
    loop {
        let is_told = tokio::select! {
            Some(found) = found.recv(), if is_recording => {
                let found = match found {
                    Ok(found) => found,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                };
                if agents.is_empty() && !found.is_empty() {
                    let (agents, output) = (agents_in_words(found.len()), args.output.display());
                    monitor.say(&format!("recording from {agents} into {output}, stop with Ctrl-C"));
                }
                let _ = listed.send(found.iter().map(Place::key).collect());
                for place in found {
                    if let Entry::Vacant(entry) = agents.entry(place.key()) {
                        let tally = Arc::new(Tally::default());
                        entry.insert((place.clone(), Arc::clone(&tally)));
                        listening.spawn(Listener::new(place, Arc::clone(monitor), tally).listen());
                    }
                }
                false
            }
            Some(ended) = listening.join_next() => {
                if let Ok(Err(error)) = ended {
                    failed = Some(error);
                    break;
                }
                false
            }
            _ = tick.tick() => {
                monitor.line.set_message(status(&agents, began, until, is_recording));
                false
            }
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
            _ = hangup.recv() => true,
            () = sleep_until(until) => true,
        };
        if is_told && is_recording {
            is_recording = false;
            let _ = phases.send(Phase::Finishing);
            let window_ms = agents.values().map(|(_, tally)| tally.window_ms.load(Ordering::Relaxed)).max();
            until = Instant::now() + Duration::from_millis(window_ms.unwrap_or_default()) + FINISH_GRACE;
            if !listening.is_empty() {
                let seconds = (until - Instant::now()).as_secs();
                monitor.say(&format!("finishing the window, at most {seconds} s; Ctrl-C again leaves it out"));
            }
        } else if is_told {
            break;
        }
        if !is_recording && listening.is_empty() {
            break;
        }
    }
    let _ = phases.send(Phase::Over);
    while listening.join_next().await.is_some() {}
    watching.abort();
    let _ = watching.await;
    failed.map_or(Ok(agents), Err)
}

impl Monitor {
    /// Tells something, above the line that moves.
    fn say(&self, text: &str) {
        self.line.suspend(|| note!("{text}"));
    }
}

/// The line that moves.
fn status(agents: &Agents, began: Instant, until: Instant, is_recording: bool) -> String {
    let sum = |of: fn(&Tally) -> u64| agents.values().map(|(_, tally)| of(tally)).sum::<u64>();
    let listening = sum(|tally| u64::from(tally.is_listening.load(Ordering::Relaxed)));
    let (rows, lost) = (sum(|tally| tally.rows.load(Ordering::Relaxed)), sum(Tally::lost));
    let lost = if lost > 0 { format!(", {} connections lost", HumanCount(lost)) } else { String::new() };
    let time = if is_recording {
        format!("{}, Ctrl-C to stop", HumanDuration(began.elapsed()))
    } else {
        format!("finishing, {} s", until.saturating_duration_since(Instant::now()).as_secs())
    };
    format!("{listening} of {}, {} flows{lost}, {time}", agents_in_words(agents.len()), HumanCount(rows))
}

/// Says what the recording came to, and what is missing of it.
fn conclude(args: &MonitorArgs, agents: &Agents) -> Result<(), MonitorError> {
    let rows: u64 = agents.values().map(|(_, tally)| tally.rows.load(Ordering::Relaxed)).sum();
    for (place, tally) in agents.values() {
        let streams = tally.streams.load(Ordering::Relaxed);
        if streams == 0 {
            note!("{place} never answered: nothing that only it saw is in the capture");
        } else if !tally.is_whole.load(Ordering::Relaxed) {
            note!("{place}: the end of what it saw is missing");
        }
        if streams > 1 {
            let times = if streams == 2 { "once".into() } else { format!("{} times", streams - 1) };
            note!("{place} was away {times}: the report tells from when to when");
        }
        if tally.lost() > 0 {
            note!("{place}: {} ends of connections are lost", HumanCount(tally.lost()));
        }
    }
    let heard = agents.values().filter(|(_, tally)| tally.streams.load(Ordering::Relaxed) > 0).count();
    if heard == 0 {
        return Err(MonitorError::Silent);
    }
    let output = args.output.display();
    note!("{} flows of {} are in {output}", HumanCount(rows), agents_in_words(heard));
    note!("their policies: flowscribe report --input {output} > network-policy.yaml");
    Ok(())
}

fn agents_in_words(count: usize) -> String {
    format!("{count} agent{}", if count == 1 { "" } else { "s" })
}

/// What may be received and not be in files yet.
const JOURNAL_BYTES: u64 = 4 << 30;
const TICK: Duration = Duration::from_secs(1);
/// How much later than the end of a window its rows may come.
const FINISH_GRACE: Duration = Duration::from_secs(10);
/// Longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
