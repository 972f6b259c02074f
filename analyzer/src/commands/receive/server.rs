//! The two forms of OTLP: what a request may be, and how it is answered.

use std::{
    collections::HashMap,
    io::Read,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use delivery::{
    listen::{Guard, Peer},
    otlp::{self, GRPC_PATH, HTTP_PATH, Rejected},
};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use prometheus_client::{encoding::text::encode, metrics::counter::Counter, registry::Registry};
use prost::Message;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::capture::{
    journal::{Journal, NotKept},
    segment::{Of, Packed, decode},
};

/// What all requests share.
pub(super) struct Server {
    pub(super) journal: Journal,
    pub(super) guard: Arc<Guard>,
    /// A permit is a KiB of memory.
    memory: Arc<Semaphore>,
    max_request_bytes: usize,
    rate: Option<Rate>,
    counts: Counts,
}

/// What a server takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Memory of all requests, in bytes.
    pub(super) memory_bytes: usize,
    /// Size of a request, uncompressed.
    pub(super) request_bytes: usize,
    /// Bytes per second of one client; 0 for any number.
    pub(super) client_rate: u64,
}

#[derive(Default)]
struct Counts {
    registry: Registry,
    requests: Counter,
    rows: Counter,
    rejected: Counter,
    refused: Counter,
    bytes: Counter,
}

/// Why a request is not taken.
#[derive(Debug)]
enum Refusal {
    /// It is not what it should be.
    Malformed(String),
    /// It, or what it holds compressed, is too large.
    TooLarge,
    /// It did not come in time.
    Slow,
    NoToken,
    /// Not encoded in a way that this reads.
    Unsupported(&'static str),
    /// Over a limit: to be tried again.
    Busy(&'static str, Duration),
    /// It can't be kept now.
    Unavailable(String),
}

impl Server {
    pub(super) fn new(journal: Journal, guard: Arc<Guard>, bounds: Bounds) -> Self {
        let Bounds { memory_bytes, request_bytes, client_rate } = bounds;
        let mut counts = Counts { registry: Registry::with_prefix("flowscribe_receive"), ..Counts::default() };
        let all = [
            ("requests", "Requests that were taken", &counts.requests),
            ("rows", "Rows in them", &counts.rows),
            ("rejected_records", "Log records in them that are no rows", &counts.rejected),
            ("refused_requests", "Requests that were not taken", &counts.refused),
            ("received_bytes", "Bytes of requests, as they came", &counts.bytes),
        ];
        for (name, help, counter) in all {
            counts.registry.register(name, help, counter.clone());
        }
        Self {
            journal,
            guard,
            memory: Arc::new(Semaphore::new(memory_bytes >> 10)),
            max_request_bytes: request_bytes,
            rate: (client_rate > 0).then(|| Rate { per_second: client_rate as f64, clients: Mutex::default() }),
            counts,
        }
    }

    /// The routes, the same on both ports.
    pub(super) fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route(HTTP_PATH, post(over_http))
            .route(GRPC_PATH, post(over_grpc))
            .route("/metrics", get(metrics))
            .route("/livez", get(async || StatusCode::OK))
            .route("/readyz", get(async || StatusCode::OK))
            .with_state(Arc::clone(self))
    }

    /// Takes a request and makes it durable; what of it are no rows.
    async fn take(&self, message: Body, kind: Kind, peer: Option<IpAddr>) -> Result<Rejected, Refusal> {
        let mut memory = Memory { of: &self.memory, permits: None, bytes: 0 };
        let reading = self.read(message, &mut memory);
        let body = timeout(BODY_TIMEOUT, reading).await.map_err(|_| Refusal::Slow)??;
        if let (Some(rate), Some(peer)) = (&self.rate, peer) {
            rate.spend(peer, body.len()).map_err(|wait| Refusal::Busy("this client sends too much", wait))?;
        }
        self.counts.bytes.inc_by(body.len() as u64);
        let (packed, is_gzip) = match kind {
            Kind::Grpc { may_be_gzip } => grpc_message(&body, may_be_gzip)?,
            Kind::Http { is_gzip, .. } => (&*body, is_gzip),
        };
        let inflated;
        let message = if is_gzip {
            inflated = self.inflate(packed, &mut memory)?;
            &*inflated
        } else {
            packed
        };
        if message.len() > self.max_request_bytes {
            return Err(Refusal::TooLarge);
        }
        let converted;
        let is_json = matches!(kind, Kind::Http { is_json: true, .. });
        let message = if is_json {
            // In memory, it is some times as large as its text.
            memory.take(message.len() * JSON_FACTOR)?;
            converted = from_json(message).map_err(|error| Refusal::Malformed(error.to_string()))?;
            &*converted
        } else {
            message
        };
        let rows = decode(message).map_err(|error| Refusal::Malformed(error.to_string()))?;
        if rows.rows() > 0 {
            let packed = if is_gzip && !is_json { Packed::Gzip(packed) } else { Packed::Plain(message) };
            let kept = self.journal.keep(packed, Of::new(&rows)).await;
            kept.map_err(|error| match error {
                NotKept::Full => Refusal::Busy("the journal is full", JOURNAL_WAIT),
                NotKept::Failed(error) => Refusal::Unavailable(error.to_string()),
            })?;
        }
        self.counts.requests.inc();
        self.counts.rows.inc_by(rows.rows() as u64);
        self.counts.rejected.inc_by(rows.rejected.records as u64);
        Ok(rows.rejected)
    }

    async fn read(&self, mut body: Body, memory: &mut Memory<'_>) -> Result<Bytes, Refusal> {
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::Malformed(error.to_string()))?;
            let Ok(chunk) = frame.into_data() else { continue };
            if read.len() + chunk.len() > self.max_request_bytes {
                return Err(Refusal::TooLarge);
            }
            memory.take(chunk.len())?;
            read.extend_from_slice(&chunk);
        }
        Ok(read.into())
    }

    /// Decompresses as much as a request may be, and no more.
    fn inflate(&self, packed: &[u8], memory: &mut Memory<'_>) -> Result<Vec<u8>, Refusal> {
        let (mut decoder, mut message) = (MultiGzDecoder::new(packed), Vec::new());
        loop {
            memory.take(INFLATE_BYTES)?;
            let read = (&mut decoder).take(INFLATE_BYTES as u64).read_to_end(&mut message);
            match read {
                Ok(0) => return Ok(message),
                Ok(_) if message.len() > self.max_request_bytes => return Err(Refusal::TooLarge),
                Ok(_) => {}
                Err(_) => return Err(Refusal::Malformed("it is not compressed with gzip, as it says".into())),
            }
        }
    }

    fn refuse(&self, refusal: &Refusal) {
        self.counts.refused.inc();
        tracing::debug!(?refusal, "a request is refused");
    }
}

/// Memory that a request has taken, given back with it.
struct Memory<'a> {
    of: &'a Arc<Semaphore>,
    permits: Option<OwnedSemaphorePermit>,
    /// What the permits are for, to the byte.
    bytes: usize,
}

impl Memory<'_> {
    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let has = self.bytes.div_ceil(KIB);
        self.bytes += bytes;
        let more = self.bytes.div_ceil(KIB) - has;
        let busy = || Refusal::Busy("too many requests at once", MEMORY_WAIT);
        let permits = Arc::clone(self.of).try_acquire_many_owned(more as u32).map_err(|_| busy())?;
        match &mut self.permits {
            Some(all) => all.merge(permits),
            none => *none = Some(permits),
        }
        Ok(())
    }
}

/// How much each client sends: a bucket of ten seconds.
struct Rate {
    per_second: f64,
    clients: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl Rate {
    /// Takes from a client's bucket; how long it has to wait if there is not enough in it.
    fn spend(&self, peer: IpAddr, bytes: usize) -> Result<(), Duration> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, full) = (Instant::now(), self.per_second * RATE_SECONDS);
        if clients.len() >= CLIENTS {
            clients.retain(|_, (_, since)| since.elapsed().as_secs_f64() < RATE_SECONDS);
        }
        let (left, since) = clients.entry(peer).or_insert((full, now));
        *left = (*left + since.elapsed().as_secs_f64() * self.per_second).min(full);
        *since = now;
        // A request that is larger than the bucket has to be taken some day.
        let needed = (bytes as f64).min(full);
        if *left < needed {
            return Err(Duration::from_secs_f64((needed - *left) / self.per_second));
        }
        *left -= bytes as f64;
        Ok(())
    }
}

/// How a request came.
#[derive(Clone, Copy)]
enum Kind {
    Grpc { may_be_gzip: bool },
    Http { is_gzip: bool, is_json: bool },
}

fn peer(request: &Request<Body>) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

async fn over_http(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    let kind = http_kind(request.headers());
    let is_json = matches!(kind, Ok(Kind::Http { is_json: true, .. }));
    let taken = async {
        if !server.guard.admits(request.headers()) {
            return Err(Refusal::NoToken);
        }
        let peer = peer(&request);
        server.take(request.into_body(), kind?, peer).await
    };
    match taken.await {
        Ok(rejected) => {
            let (kind, body) = if is_json {
                (JSON, response_json(&rejected))
            } else {
                (PROTOBUF, otlp::response(rejected.records, &rejected.reason))
            };
            answer(StatusCode::OK, kind, body)
        }
        Err(refusal) => {
            server.refuse(&refusal);
            let status = grpc_status(&refusal);
            let code = match &refusal {
                Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
                Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                Refusal::Slow => StatusCode::REQUEST_TIMEOUT,
                Refusal::NoToken => StatusCode::UNAUTHORIZED,
                Refusal::Unsupported(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Refusal::Busy(..) => StatusCode::TOO_MANY_REQUESTS,
                Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            let body = otlp::status(status.code() as u64, status.message());
            let mut answer = answer(code, PROTOBUF, body);
            if let Some(wait) = refusal.wait() {
                let seconds = HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64);
                answer.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            answer
        }
    }
}

/// An `ExportLogsServiceResponse` in OTLP's JSON.
fn response_json(rejected: &Rejected) -> Vec<u8> {
    let Rejected { records, reason } = rejected;
    let response = match records {
        0 => json!({}),
        _ => json!({ "partialSuccess": { "rejectedLogRecords": records.to_string(), "errorMessage": reason } }),
    };
    response.to_string().into_bytes()
}

fn http_kind(headers: &HeaderMap) -> Result<Kind, Refusal> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_gzip = match text(header::CONTENT_ENCODING) {
        "" | "identity" => false,
        "gzip" => true,
        _ => return Err(Refusal::Unsupported("the content encoding must be gzip or none")),
    };
    let is_json = match text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim() {
        PROTOBUF => false,
        JSON => true,
        _ => return Err(Refusal::Unsupported("the content type must be application/x-protobuf or application/json")),
    };
    Ok(Kind::Http { is_gzip, is_json })
}

fn answer(code: StatusCode, kind: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn over_grpc(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    let encoding = request.headers().get("grpc-encoding").and_then(|value| value.to_str().ok());
    let may_be_gzip = match encoding {
        None | Some("identity") => Ok(false),
        Some("gzip") => Ok(true),
        Some(_) => Err(Refusal::Unsupported("the encoding must be gzip or identity")),
    };
    let taken = async {
        if !server.guard.admits(request.headers()) {
            return Err(Refusal::NoToken);
        }
        let (peer, kind) = (peer(&request), Kind::Grpc { may_be_gzip: may_be_gzip? });
        server.take(request.into_body(), kind, peer).await
    };
    match taken.await {
        Ok(rejected) => {
            let message = otlp::response(rejected.records, &rejected.reason);
            let mut frame = vec![0];
            frame.extend((message.len() as u32).to_be_bytes());
            frame.extend(message);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = Full::new(Bytes::from(frame)).with_trailers(std::future::ready(Some(Ok(trailers))));
            let mut response = Response::new(Body::new(body));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(refusal) => {
            server.refuse(&refusal);
            grpc_status(&refusal).into_http()
        }
    }
}

/// The one message of a unary call (gRPC over HTTP/2, "Length-Prefixed-Message"), and whether it is compressed.
fn grpc_message(body: &[u8], may_be_gzip: bool) -> Result<(&[u8], bool), Refusal> {
    let wrong = || Refusal::Malformed("the body is not one gRPC message".into());
    let (head, message) = body.split_first_chunk::<5>().ok_or_else(wrong)?;
    let [flag, length @ ..] = head;
    if u32::from_be_bytes(*length) as usize != message.len() {
        return Err(wrong());
    }
    match (flag, may_be_gzip) {
        (0, _) => Ok((message, false)),
        (1, true) => Ok((message, true)),
        _ => Err(wrong()),
    }
}

impl Refusal {
    const fn wait(&self) -> Option<Duration> {
        match self {
            Self::Busy(_, wait) => Some(*wait),
            Self::Unavailable(_) => Some(JOURNAL_WAIT),
            _ => None,
        }
    }
}

/// A refusal as gRPC has it.
fn grpc_status(refusal: &Refusal) -> Status {
    let (code, message) = match refusal {
        Refusal::Malformed(reason) => (Code::InvalidArgument, reason.as_str()),
        // Without RetryInfo, this is never tried again.
        Refusal::TooLarge => (Code::ResourceExhausted, "the request is too large"),
        Refusal::Slow => (Code::DeadlineExceeded, "the request did not come in time"),
        Refusal::NoToken => (Code::Unauthenticated, "the bearer token is missing or wrong"),
        Refusal::Unsupported(reason) => (Code::Unimplemented, *reason),
        Refusal::Busy(reason, _) => (Code::ResourceExhausted, *reason),
        Refusal::Unavailable(reason) => (Code::Unavailable, reason.as_str()),
    };
    match refusal.wait() {
        Some(wait) => Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(wait))),
        None => Status::new(code, message),
    }
}

async fn metrics(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    if !server.guard.admits(request.headers()) {
        return answer(StatusCode::UNAUTHORIZED, TEXT, Vec::new());
    }
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = encode(&mut text, &server.counts.registry);
    answer(StatusCode::OK, TEXT, text.into_bytes())
}

/// A request in OTLP's JSON as protobuf.
pub(crate) fn from_json(text: &[u8]) -> serde_json::Result<Vec<u8>> {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    Ok(serde_json::from_slice::<ExportLogsServiceRequest>(text)?.encode_to_vec())
}

const KIB: usize = 1024;
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
/// Content type of the OpenMetrics text format.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long a request may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
const MEMORY_WAIT: Duration = Duration::from_secs(1);
const JOURNAL_WAIT: Duration = Duration::from_secs(5);
const INFLATE_BYTES: usize = 64 << 10;
const JSON_FACTOR: usize = 8;
const RATE_SECONDS: f64 = 10.0;
/// Clients that are remembered.
const CLIENTS: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_body_is_one_message_of_grpc_or_refused(flag in 0u8..3, message: Vec<u8>, more: Vec<u8>) {
            let mut body = vec![flag];
            body.extend((message.len() as u32).to_be_bytes());
            body.extend(&message);
            let read = grpc_message(&body, true);
            match flag {
                0 | 1 => prop_assert_eq!(read.expect("it is one"), (&*message, flag == 1)),
                _ => prop_assert!(read.is_err()),
            }
            prop_assert!(flag != 1 || grpc_message(&body, false).is_err(), "compressed, and not said how");
            prop_assert!(grpc_message(&body[..body.len() - 1], true).is_err() || message.is_empty());
            body.extend(&more);
            prop_assert!(more.is_empty() || grpc_message(&body, true).is_err());
        }

        #[test]
        fn text_that_is_no_json_of_otlp_is_refused(text: Vec<u8>) {
            prop_assert!(from_json(&text).is_err());
        }
    }
}
