//! Listening: TLS, a bearer token, and limits that hold whoever connects.

mod slots;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{Router, response::IntoResponse};
use http::{HeaderMap, Request, StatusCode, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier},
};
use tower::ServiceExt;

use slots::{Beginning, Slot, Slots};

/// Who may connect, and how.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Certificate chain and private key in PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Certificate authorities in PEM, one of which has to have signed the client's certificate.
    pub client_authority: Option<PathBuf>,
    /// File with the token that has to come as `Authorization: Bearer …`.
    pub token: Option<PathBuf>,
}

/// Why nobody can be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can't be listened on.
    #[error("cannot listen on {address}: name another address")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// A file can't be read.
    #[error("cannot read {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Certificates, a key or a token that can't be used.
    #[error("cannot use {path}: {reason}")]
    Unusable { path: PathBuf, reason: String },
    /// Anybody could write.
    #[error(
        "{address} can be reached by others: give it TLS and a token or client certificates \
         (--tls-cert, --tls-key, --token-file or --tls-client-ca), or say --insecure"
    )]
    Open { address: SocketAddr },
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// What one listener takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, of one address a quarter of them that have sent nothing that is admitted; more are closed, but for
    /// some that ask for nothing but /livez and /readyz.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
}

/// A file that may change, and what was made of it.
struct Reloaded<T> {
    paths: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, ListenError> + Send + Sync>,
    last: Mutex<(Instant, Vec<Option<SystemTime>>, T)>,
}

impl<T: Clone> Reloaded<T> {
    fn new(
        paths: Vec<PathBuf>,
        make: impl Fn() -> Result<T, ListenError> + Send + Sync + 'static,
    ) -> Result<Self, ListenError> {
        let last = Mutex::new((Instant::now(), times(&paths), make()?));
        Ok(Self { paths, make: Box::new(make), last })
    }

    /// What the files say; where they can't be used any more, what they said before.
    fn get(&self) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() >= RELOAD_INTERVAL {
            last.0 = Instant::now();
            let times = times(&self.paths);
            if times != last.1 {
                match (self.make)() {
                    Ok(new) => (last.1, last.2) = (times, new),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "going on with the one before")
                    }
                }
            }
        }
        last.2.clone()
    }
}

fn times(paths: &[PathBuf]) -> Vec<Option<SystemTime>> {
    paths.iter().map(|path| path.metadata().and_then(|metadata| metadata.modified()).ok()).collect()
}

/// The guard of a listener.
pub struct Guard {
    acceptor: Option<Reloaded<TlsAcceptor>>,
    /// Digest of the token, so that comparing takes as long whatever is sent.
    token: Option<Reloaded<Vec<u8>>>,
}

impl Security {
    /// Reads the files.
    ///
    /// # Errors
    /// One can't be read or used.
    pub fn guard(&self) -> Result<Guard, ListenError> {
        let Self { certificate, client_authority, token } = self.clone();
        let acceptor = certificate.map(|(certificate, key)| {
            let mut paths = vec![certificate.clone(), key.clone()];
            paths.extend(client_authority.clone());
            Reloaded::new(paths, move || acceptor(&certificate, &key, client_authority.as_deref()))
        });
        let token = token.map(|path| Reloaded::new(vec![path.clone()], move || read_token(&path)));
        Ok(Guard { acceptor: acceptor.transpose()?, token: token.transpose()? })
    }

    /// Refuses an address that others can reach and that anybody may use.
    ///
    /// # Errors
    /// It is one.
    pub fn check(&self, address: SocketAddr) -> Result<(), ListenError> {
        let is_safe = self.certificate.is_some() && (self.token.is_some() || self.client_authority.is_some());
        if address.ip().is_loopback() || is_safe { Ok(()) } else { Err(ListenError::Open { address }) }
    }
}

impl Guard {
    /// Whether the headers of a request have the token, if one is needed.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        sent.is_some_and(|sent| digest(&SHA256, sent).as_ref() == token.get())
    }
}

fn acceptor(certificate: &Path, key: &Path, authority: Option<&Path>) -> Result<TlsAcceptor, ListenError> {
    let unusable = |path: &Path, reason: String| ListenError::Unusable { path: path.into(), reason };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = private.map_err(|error| unusable(key, error.to_string()))?;
    let config = ServerConfig::builder();
    let config = match authority {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder(roots.into()).build();
            config.with_client_cert_verifier(verifier.map_err(|error| unusable(path, error.to_string()))?)
        }
    };
    let mut config =
        config.with_single_cert(chain, private).map_err(|error| unusable(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ListenError> {
    let unusable = |reason: String| ListenError::Unusable { path: path.into(), reason };
    let bytes = read(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = read.map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() { Err(unusable("there is no certificate in it".into())) } else { Ok(certificates) }
}

fn read_token(path: &Path) -> Result<Vec<u8>, ListenError> {
    let bytes = read(path)?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(ListenError::Unusable { path: path.into(), reason: "there is no token in it".into() });
    }
    Ok(digest(&SHA256, token).as_ref().to_vec())
}

fn read(path: &Path) -> Result<Vec<u8>, ListenError> {
    fs::read(path).map_err(|source| ListenError::File { path: path.into(), source })
}

/// Listens on an address.
///
/// # Errors
/// It can't be.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })
}

/// Serves HTTP/1.1 and HTTP/2 until `shutdown` completes, then lets requests that have begun end. Requests carry their
/// [`Peer`]; whether they have the token, the routes ask the guard.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    guard: Arc<Guard>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Slots::new(limits.connections);
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No file descriptors, mostly: some will be closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = slots.take(peer.ip().to_canonical()) else {
            tracing::debug!(%peer, "too many connections");
            continue;
        };
        let (routes, guard, graceful) = (routes.clone(), Arc::clone(&guard), graceful.watcher());
        tokio::spawn(async move {
            let limit = slot.limit();
            let served = handle(stream, peer, routes, guard, Arc::new(slot), limits, graceful);
            let served = match limit {
                None => served.await,
                Some(limit) => timeout(limit, served).await.unwrap_or_else(|_| Err("no more time for a probe".into())),
            };
            if let Err(error) = served {
                tracing::debug!(%peer, error, "a connection ended");
            }
        });
    }
    drop(listener);
    let _ = timeout(GRACE, graceful.shutdown()).await;
}

async fn handle(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Router,
    guard: Arc<Guard>,
    slot: Arc<Slot>,
    limits: Limits,
    graceful: hyper_util::server::graceful::Watcher,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let (patience, of_guard) = (slot.patience(), Arc::clone(&guard));
    let service = service_fn(move |mut request: Request<Incoming>| {
        if of_guard.admits(request.headers()) {
            slot.admit();
        }
        request.extensions_mut().insert(Peer(peer.ip().to_canonical()));
        let answer = slot.answers(request.uri().path()).then(|| routes.clone().oneshot(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()),
            }
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams);
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| error.to_string();
    match &guard.acceptor {
        None => {
            let stream = TokioIo::new(Beginning::new(stream, patience));
            graceful.watch(builder.serve_connection(stream, service).into_owned()).await.map_err(failed)
        }
        Some(acceptor) => {
            let accepted = timeout(patience, acceptor.get().accept(stream)).await;
            let stream = accepted.map_err(|_| "no TLS handshake in time".to_owned())?.map_err(|e| e.to_string())?;
            let stream = TokioIo::new(Beginning::new(stream, patience));
            graceful.watch(builder.serve_connection(stream, service).into_owned()).await.map_err(failed)
        }
    }
}

/// Files are looked at again so often.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long requests may take to end once the listener does.
const GRACE: Duration = Duration::from_secs(10);
/// What a client may send ahead, per request and per connection, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
