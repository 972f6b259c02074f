//! Who may listen to the live stream, and how it is served: see [`delivery::live`].
//!
//! It is served on a loopback address only, which a port-forward reaches and nobody else. In a cluster, who may get the
//! pods of a namespace may listen to its flows: the API server tells whose a token is, and then, again every minute, what
//! that user may do. Elsewhere, a file has the token.

use std::{
    collections::BTreeSet,
    future::pending,
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use delivery::{
    listen::{self, Guard, Limits, ListenError, Security},
    live,
};
use futures::{TryStreamExt, stream};
use kubernetes::{Access, AccessError, UserInfo};
use schemas::{capture::Origin, table::TimestampMs};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::sink::{ClientScope, Hub, Line};

/// Who says who may listen.
pub(crate) enum Admission {
    /// The API server.
    Cluster(Access),
    /// A file with a token.
    Token,
}

/// What requests share.
struct Server {
    admission: Admission,
    guard: Arc<Guard>,
    hub: Arc<Hub>,
    /// Of the agent; every stream is a run of its own.
    cluster: Arc<str>,
    node: Arc<str>,
}

/// A server that runs until it is told to end.
pub(crate) struct Serving {
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Serving {
    /// Lets streams come to their end, for which recording has to have ended.
    pub(crate) async fn end(self) {
        let _ = self.stop.send(());
        let _ = timeout(END_TIMEOUT, self.served).await;
    }
}

/// Serves streams.
///
/// # Errors
/// The address can't be listened on, or the token not be read.
pub(crate) async fn serve(
    address: SocketAddr,
    security: &Security,
    admission: Admission,
    hub: Arc<Hub>,
    origin: &Origin,
) -> Result<Serving, ListenError> {
    let guard = Arc::new(security.guard()?);
    let listener = listen::bind(address).await?;
    let (cluster, node) = (Arc::clone(&origin.cluster), Arc::clone(&origin.node));
    let server = Arc::new(Server { admission, guard: Arc::clone(&guard), hub, cluster, node });
    let routes = Router::new().route(live::PATH, post(stream_flows)).with_state(server);
    let limits = Limits { connections: CONNECTIONS, streams: CONNECTIONS as u32 };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        // Not told to is not to end.
        if stopped.await.is_err() {
            pending::<()>().await;
        }
    };
    Ok(Serving { stop, served: tokio::spawn(listen::serve(listener, routes, guard, limits, shutdown)) })
}

/// Why somebody may not listen.
type Refusal = (StatusCode, String);

async fn stream_flows(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    let (head, mut body) = request.into_parts();
    let namespaces = live::namespaces(head.uri.query().unwrap_or_default());
    let namespaces: Option<BTreeSet<Arc<str>>> = namespaces.map(|names| names.into_iter().map(Arc::from).collect());
    let user = match server.admit(&head.headers, namespaces.as_ref()).await {
        Ok(user) => user,
        Err((code, reason)) => return (code, format!("{reason}\n")).into_response(),
    };
    let scope = ClientScope { namespaces: namespaces.clone(), has_whole_inventory: user.is_none() };
    let line = Arc::new(Line::default());
    let origin = match Origin::new(&server.cluster, &server.node) {
        Ok(origin) => origin,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    let Some(mut frames) = server.hub.join(origin, scope, Arc::clone(&line)) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many record from this agent at once\n").into_response();
    };
    // The end of the request asks for the end of the answer.
    let asked = Arc::clone(&line);
    tokio::spawn(async move {
        let mut pieces = std::mem::take(&mut body).into_data_stream();
        while let Ok(Some(_)) = pieces.try_next().await {}
        asked.finish_at_ms.store(TimestampMs::now().0, Ordering::Relaxed);
    });
    if let Some(user) = user {
        tokio::spawn(watch_rights(Arc::clone(&server), user, namespaces, Arc::downgrade(&line)));
    }
    let stream = stream::poll_fn(move |context| {
        frames.poll_recv(context).map(|frame| {
            frame.map(|frame| {
                line.waiting_bytes.fetch_sub(frame.len(), Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(frame)
            })
        })
    });
    let headers = [(header::CONTENT_TYPE.as_str(), live::MEDIA_TYPE), (live::CLUSTER, &server.cluster)];
    (headers, Body::from_stream(stream)).into_response()
}

/// Cuts a client off once its rights are taken away. Its token may run out meanwhile: who it is was told.
async fn watch_rights(server: Arc<Server>, user: UserInfo, namespaces: Option<BTreeSet<Arc<str>>>, line: Weak<Line>) {
    loop {
        sleep(ASK_AGAIN).await;
        let Some(line) = line.upgrade() else { return };
        if let Err((StatusCode::FORBIDDEN, reason)) = server.allow(&user, namespaces.as_ref()).await {
            tracing::info!(reason, "a recording is cut off");
            line.is_cut.store(true, Ordering::Relaxed);
            return;
        }
    }
}

impl Server {
    /// Who asks, if that one may listen; without a cluster, nobody in particular who has the token.
    async fn admit(
        &self,
        headers: &HeaderMap,
        namespaces: Option<&BTreeSet<Arc<str>>>,
    ) -> Result<Option<UserInfo>, Refusal> {
        let Admission::Cluster(access) = &self.admission else {
            let no_token = || (StatusCode::UNAUTHORIZED, "the bearer token is missing or wrong".to_owned());
            return if self.guard.admits(headers) { Ok(None) } else { Err(no_token()) };
        };
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = sent.and_then(|value| value.strip_prefix("Bearer "));
        let user = match token {
            Some(token) => access.user(token, live::AUDIENCE).await.map_err(unanswered)?,
            None => None,
        };
        let nobody =
            || (StatusCode::UNAUTHORIZED, "the bearer token is missing, or not one of this cluster".to_owned());
        let user = user.ok_or_else(nobody)?;
        self.allow(&user, namespaces).await?;
        Ok(Some(user))
    }

    /// Whether a user may get the pods of namespaces, and so listen.
    async fn allow(&self, user: &UserInfo, namespaces: Option<&BTreeSet<Arc<str>>>) -> Result<(), Refusal> {
        let Admission::Cluster(access) = &self.admission else { return Ok(()) };
        let asked: Vec<Option<&str>> = match namespaces {
            None => vec![None],
            Some(names) => names.iter().map(|name| Some(&**name)).collect(),
        };
        for namespace in asked {
            if !access.may_get_pods(user, namespace).await.map_err(unanswered)? {
                let name = user.username.as_deref().unwrap_or("this user");
                let of = namespace.map_or("of all namespaces".to_owned(), |name| format!("of namespace {name}"));
                return Err((StatusCode::FORBIDDEN, format!("{name} may not get the pods {of}, nor record them")));
            }
        }
        Ok(())
    }
}

fn unanswered(error: AccessError) -> Refusal {
    (StatusCode::BAD_GATEWAY, error.to_string())
}

/// Connections at once: clients, and those that are refused.
const CONNECTIONS: usize = 32;
/// Rights may be taken away while somebody listens.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long streams may take to come to their end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
