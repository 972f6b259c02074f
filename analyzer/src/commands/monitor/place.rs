//! Where agents are, and how they are reached: pods, by the API server's port-forward, or addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};
use kubernetes::reason;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use url::Url;

use super::{Monitor, MonitorError};
use crate::cli::MonitorArgs;

/// What a request's body is.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Where an agent is.
#[derive(Clone)]
pub(super) enum Place {
    Pod { api: Box<Api<Pod>>, name: String, uid: String, node: String, port: u16 },
    Address { host: String, port: u16 },
}

/// How agents are found.
pub(super) enum Discovery {
    Cluster {
        client: Client,
        namespace: String,
        selector: String,
        port: u16,
        /// Found at the last look.
        last: Option<Vec<Place>>,
        /// What was said of nodes, so that it is said once.
        told: BTreeMap<String, String>,
        /// The last look failed, which was said.
        is_blind: bool,
    },
    Addresses(Vec<Place>),
}

impl Discovery {
    /// By what was asked for.
    ///
    /// # Errors
    /// An address is none.
    pub(super) fn new(args: &MonitorArgs, client: Option<Client>) -> Result<Self, MonitorError> {
        if let Some(client) = client.filter(|_| args.agent_url.is_empty()) {
            let (namespace, selector) = (args.agent_namespace.clone(), args.agent_selector.clone());
            let (port, last, told, is_blind) = (args.agent_port, None, BTreeMap::new(), false);
            return Ok(Self::Cluster { client, namespace, selector, port, last, told, is_blind });
        }
        let address = |text: &String| {
            let bad = || MonitorError::BadUrl { url: text.clone() };
            let url = Url::parse(text).map_err(|_| bad())?;
            let host = url.host_str().filter(|_| url.scheme() == "http").ok_or_else(bad)?.to_owned();
            Ok(Place::Address { host, port: url.port().unwrap_or(delivery::live::PORT) })
        };
        Ok(Self::Addresses(args.agent_url.iter().map(address).collect::<Result<_, MonitorError>>()?))
    }

    /// Looks again and again, and tells what is found until nobody listens; an error is the last that is told.
    pub(super) async fn watch(mut self, monitor: Arc<Monitor>, found: mpsc::Sender<Result<Vec<Place>, MonitorError>>) {
        loop {
            let looked = self.look(&monitor).await;
            let is_over = looked.is_err();
            if found.send(looked).await.is_err() || is_over {
                return;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// The first agent to which what is said can be read on its way.
    pub(super) fn exposed(&self) -> Option<&Place> {
        match self {
            Self::Cluster { .. } => None,
            Self::Addresses(places) => places.iter().find(|place| !place.is_private()),
        }
    }

    /// The agents that there are now. Nodes without one that runs are told.
    ///
    /// # Errors
    /// At the first look: there are none, or they can't be listed.
    async fn look(&mut self, monitor: &Monitor) -> Result<Vec<Place>, MonitorError> {
        let Self::Cluster { client, namespace, selector, port, last, told, is_blind } = self else {
            let Self::Addresses(places) = self else { return Ok(Vec::new()) };
            return Ok(places.clone());
        };
        let api = Api::<Pod>::namespaced(client.clone(), namespace);
        // As the server has them in memory: this asks again and again.
        let any = ListParams::default().match_any();
        let listed = timeout(LIST_TIMEOUT, api.list(&any.clone().labels(selector))).await;
        let listed =
            listed.map_or_else(|_| Err("it does not answer".into()), |listed| listed.map_err(|error| refusal(&error)));
        let pods = match (listed, &*last) {
            (Ok(pods), _) => pods.items,
            (Err(reason), None) => return Err(MonitorError::List { namespace: namespace.clone(), reason }),
            // What streams goes on streaming.
            (Err(reason), Some(last)) => {
                if !std::mem::replace(is_blind, true) {
                    monitor.say(&format!("agents can't be listed, new ones are not recorded, trying again: {reason}"));
                }
                return Ok(last.clone());
            }
        };
        if std::mem::take(is_blind) {
            monitor.say("agents can be listed again");
        }
        if pods.is_empty() && last.is_none() {
            return Err(MonitorError::NoAgents { namespace: namespace.clone(), selector: selector.clone() });
        }
        let (mut places, mut says) = (Vec::new(), BTreeMap::new());
        for pod in pods {
            let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
            let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
            if phase == "Running" && pod.metadata.deletion_timestamp.is_none() {
                let (name, uid) = (pod.metadata.name.unwrap_or_default(), pod.metadata.uid.unwrap_or_default());
                places.push(Place::Pod { api: Box::new(api.clone()), name, uid, node, port: *port });
            } else {
                says.insert(node, format!("its agent is {}", phase.to_lowercase()));
            }
        }
        let nodes: BTreeSet<&str> = places.iter().filter_map(Place::node).collect();
        let nodes_api = Api::<Node>::all(client.clone());
        match timeout(LIST_TIMEOUT, nodes_api.list_metadata(&any)).await {
            // Said where the agents are listed.
            Err(_) => {}
            Ok(Ok(all)) => {
                let names = all.items.into_iter().filter_map(|node| node.metadata.name);
                for name in names.filter(|name| !nodes.contains(&**name)) {
                    says.entry(name).or_insert_with(|| "it has no agent".into());
                }
            }
            Ok(Err(error)) => {
                let why = format!("which nodes have no agent is not known: {}", reason(&error));
                says.insert(String::new(), why);
            }
        }
        says.retain(|node, _| !nodes.contains(&**node));
        for (node, why) in says.iter().filter(|(node, why)| told.get(*node) != Some(why)) {
            monitor.say(&match node.is_empty() {
                true => why.clone(),
                false => format!("node {node}: {why}; of its pods only what others see of them is recorded"),
            });
        }
        *told = says;
        *last = Some(places.clone());
        Ok(places)
    }
}

impl Place {
    /// Whether what is said to it stays on this machine, or is encrypted.
    pub(super) fn is_private(&self) -> bool {
        match self {
            Self::Pod { .. } => true,
            Self::Address { host, .. } => {
                let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// What agents are told apart by: one that is made anew is another one.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Pod { uid, .. } => uid.clone(),
            Self::Address { host, port } => format!("{host}:{port}"),
        }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::Pod { node, .. } => Some(node),
            Self::Address { .. } => None,
        }
    }

    /// Reaches the agent.
    ///
    /// # Errors
    /// It can't be reached; why, in words.
    pub(super) async fn connect(&self) -> Result<SendRequest<Body>, String> {
        timeout(CONNECT_TIMEOUT, self.try_connect()).await.unwrap_or_else(|_| Err("it does not answer".into()))
    }

    async fn try_connect(&self) -> Result<SendRequest<Body>, String> {
        match self {
            Self::Address { host, port } => {
                let stream = TcpStream::connect((host.trim_matches(['[', ']']).to_owned(), *port)).await;
                let stream = stream.map_err(|error| error.to_string())?;
                let _ = stream.set_nodelay(true);
                speak(stream).await
            }
            Self::Pod { api, name, port, .. } => {
                let mut forwarder = api.portforward(name, &[*port]).await.map_err(|error| refusal(&error))?;
                let (stream, failed) = (forwarder.take_stream(*port), forwarder.take_error(*port));
                let stream = stream.ok_or("it has no stream")?;
                let spoken = speak(stream).await;
                if spoken.is_err()
                    && let Some(failed) = failed
                    && let Ok(Some(why)) = timeout(ERROR_TIMEOUT, failed).await
                {
                    return Err(why);
                }
                spoken
            }
        }
    }
}

/// Why agents can't be listed or reached.
fn refusal(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; Role flowscribe-monitor in its namespace allows it", status.message)
        }
        error => reason(error),
    }
}

/// HTTP/2 on a connection.
async fn speak<S>(stream: S) -> Result<SendRequest<Body>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { name, node, .. } => write!(f, "{name} on {node}"),
            Self::Address { host, port } => write!(f, "the agent at {host}:{port}"),
        }
    }
}

/// How often agents are looked for; one that is known is asked again by itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// How long the API server may take to list.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a port-forward that failed may take to say why.
const ERROR_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// What an agent may send ahead, in bytes.
const WINDOW: u32 = 1 << 20;
