//! A receiver of OTLP logs, over gRPC or HTTP, and how it is configured.
//!
//! Variables, defaults and retries are those of the OpenTelemetry specifications "OpenTelemetry Protocol Exporter" and
//! "OTLP" (1.x). The crate opentelemetry-otlp is not used to send: it logs a partial success without telling the caller,
//! takes only records that its SDK made, and drops what it could not deliver within ten seconds.

use std::{error::Error, fs, io::Write, path::PathBuf, sync::OnceLock, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, uri::PathAndQuery};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;

use super::{Failure, Receipt};
use crate::otlp::{GRPC_PATH, HTTP_PATH, partial_success};

/// How to reach a receiver.
#[derive(Clone)]
pub struct CollectorConfig {
    /// Scheme, host and port; with HTTP, the whole address of the logs.
    pub endpoint: String,
    /// How requests travel.
    pub protocol: Protocol,
    /// Whether they are compressed with gzip.
    pub gzip: bool,
    /// How long an answer may take.
    pub timeout: Duration,
    headers: HeaderMap,
    tls: Tls,
}

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

/// Certificates and keys in PEM, where they are not the system's.
#[derive(Clone, Default)]
struct Tls {
    authority: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why a receiver can't be reached as configured. Secrets are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// A variable has a value that can't be.
    #[error("{name}: {reason}")]
    Variable { name: String, reason: String },
    /// A file that a variable names can't be read.
    #[error("cannot read {path}, which {name} names")]
    File {
        name: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The endpoint is not an address.
    #[error("the OTLP endpoint {endpoint:?} is not an http:// or https:// address")]
    Endpoint { endpoint: String },
    /// The certificates do not fit.
    #[error("cannot use the certificates for {endpoint}")]
    Tls {
        endpoint: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A receiver.
#[derive(Debug)]
pub struct Collector {
    timeout: Duration,
    client: Client,
}

#[expect(clippy::large_enum_variant, reason = "there is one")]
enum Client {
    /// The channel belongs to the runtime that sends first.
    Grpc {
        endpoint: Box<Endpoint>,
        channel: OnceLock<Grpc<Channel>>,
        gzip: bool,
        headers: MetadataMap,
    },
    Http {
        client: reqwest::Client,
        url: String,
        gzip: bool,
    },
}

impl CollectorConfig {
    /// Reads the `OTEL_EXPORTER_OTLP_*` variables through `variable`; those for logs go before those for all signals, and
    /// `endpoint` and `protocol` before both. Where nothing names the protocol, port 4317 is taken for gRPC's.
    ///
    /// # Errors
    /// A variable has a value that can't be, or names a file that can't be read.
    pub fn new(
        endpoint: Option<&str>,
        protocol: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CollectorError> {
        let find = |name: &str| {
            let names = [format!("{PREFIX}LOGS_{name}"), format!("{PREFIX}{name}")];
            names
                .into_iter()
                .find_map(|name| variable(&name).filter(|value| !value.is_empty()).map(|value| (name, value)))
        };
        let wrong = |name: &str, reason: &str| CollectorError::Variable { name: name.into(), reason: reason.into() };
        let of_logs = variable(&format!("{PREFIX}LOGS_ENDPOINT")).filter(|value| !value.is_empty());
        let general = variable(&format!("{PREFIX}ENDPOINT")).filter(|value| !value.is_empty());
        let given = endpoint.map(str::to_owned).or_else(|| of_logs.clone()).or(general);
        let (named_by, protocol) = match protocol {
            Some(protocol) => ("--otlp-protocol".to_owned(), Some(protocol.to_owned())),
            None => find("PROTOCOL").map_or_else(Default::default, |(name, value)| (name, Some(value))),
        };
        let protocol = match protocol.as_deref() {
            Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::Http,
            Some(_) => return Err(wrong(&named_by, "must be grpc or http/protobuf")),
            None if given.as_deref().is_some_and(|endpoint| endpoint.trim_end_matches('/').ends_with(":4317")) => {
                Protocol::Grpc
            }
            None => Protocol::Http,
        };
        let is_insecure = find("INSECURE").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let endpoint = match (given, protocol) {
            (None, Protocol::Grpc) => "http://localhost:4317".to_owned(),
            (None, Protocol::Http) => format!("http://localhost:4318{HTTP_PATH}"),
            // Of gRPC, a bare host and port is known too.
            (Some(given), Protocol::Grpc) if !given.contains("://") => {
                format!("{}://{given}", if is_insecure { "http" } else { "https" })
            }
            (Some(given), Protocol::Grpc) => given,
            // What names logs is taken as it is; anything else is what all signals have in common.
            (Some(given), Protocol::Http) if endpoint.is_none() && of_logs.is_some() => given,
            (Some(given), Protocol::Http) if given.trim_end_matches('/').ends_with(HTTP_PATH) => given,
            (Some(given), Protocol::Http) => format!("{}{HTTP_PATH}", given.trim_end_matches('/')),
        };
        let parsed: Option<Uri> = endpoint.parse().ok();
        if !parsed.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()) {
            return Err(CollectorError::Endpoint { endpoint: without_user(&endpoint) });
        }
        let gzip = match find("COMPRESSION") {
            None => false,
            Some((_, value)) if value == "none" => false,
            Some((_, value)) if value == "gzip" => true,
            Some((name, _)) => return Err(wrong(&name, "must be gzip or none")),
        };
        let timeout = match find("TIMEOUT") {
            None => TIMEOUT,
            Some((name, value)) => {
                let milliseconds = value.parse().ok().filter(|milliseconds| *milliseconds > 0);
                Duration::from_millis(milliseconds.ok_or_else(|| wrong(&name, "must be a number of milliseconds"))?)
            }
        };
        let headers = find("HEADERS").map_or_else(|| Ok(HeaderMap::new()), |(name, value)| headers(&name, &value))?;
        let file = |name: &str| {
            let Some((name, path)) = find(name) else { return Ok(None) };
            fs::read(&path).map(Some).map_err(|source| CollectorError::File { name, path: path.into(), source })
        };
        let client = match (file("CLIENT_CERTIFICATE")?, file("CLIENT_KEY")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(wrong(
                    &format!("{PREFIX}CLIENT_KEY"),
                    "is needed with CLIENT_CERTIFICATE, and it with this",
                ));
            }
        };
        let tls = Tls { authority: file("CERTIFICATE")?, client };
        Ok(Self { endpoint, protocol, gzip, timeout, headers, tls })
    }
}

/// Attributes of the resource, from `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`, read through `variable`.
///
/// # Errors
/// What is there is not `key=value,…` in percent-encoding.
pub fn resource_attributes(
    service_name: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, CollectorError> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut attributes = pairs(ATTRIBUTES, &variable(ATTRIBUTES).unwrap_or_default())?;
    let name = variable("OTEL_SERVICE_NAME").filter(|name| !name.is_empty());
    let has_name = attributes.iter().any(|(key, _)| key == SERVICE_NAME);
    if name.is_some() || !has_name {
        attributes.retain(|(key, _)| key != SERVICE_NAME);
        attributes.insert(0, (SERVICE_NAME.into(), name.unwrap_or_else(|| service_name.into())));
    }
    Ok(attributes)
}

fn headers(name: &str, text: &str) -> Result<HeaderMap, CollectorError> {
    let mut headers = HeaderMap::new();
    for (key, value) in pairs(name, text)? {
        let wrong = || CollectorError::Variable { name: name.into(), reason: format!("{key:?} can't be a header") };
        let key: HeaderName = key.parse().map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

/// Reads `key=value,…`, the W3C Baggage format without properties.
fn pairs(name: &str, text: &str) -> Result<Vec<(String, String)>, CollectorError> {
    let decode = |text: &str| percent_encoding::percent_decode_str(text.trim()).decode_utf8().ok().map(String::from);
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty()).enumerate().map(|(at, pair)| {
        let pair = pair.split_once('=').and_then(|(key, value)| Some((decode(key)?, decode(value)?)));
        pair.filter(|(key, _)| !key.is_empty()).ok_or_else(|| CollectorError::Variable {
            name: name.into(),
            // Not the text, which may be a secret.
            reason: format!("must be KEY=VALUE,…; number {} is not", at + 1),
        })
    });
    pairs.collect()
}

impl Collector {
    /// Prepares to send; nothing is connected before the first request.
    ///
    /// # Errors
    /// The certificates do not fit.
    pub fn new(config: CollectorConfig) -> Result<Self, CollectorError> {
        let CollectorConfig { endpoint, protocol, gzip, timeout, headers, tls } = config;
        let client = match protocol {
            Protocol::Grpc => grpc(&endpoint, gzip, headers, tls),
            Protocol::Http => http(&endpoint, gzip, headers, tls),
        };
        let client = client.map_err(|source| CollectorError::Tls { endpoint: without_user(&endpoint), source })?;
        Ok(Self { timeout, client })
    }

    /// Sends an `ExportLogsServiceRequest`.
    ///
    /// # Errors
    /// It was not taken, or no answer came.
    pub async fn send(&self, request: Bytes) -> Result<Receipt, Failure> {
        let sending = async {
            match &self.client {
                Client::Grpc { endpoint, channel, gzip, headers } => {
                    let connect = || {
                        let channel = Grpc::new(endpoint.connect_lazy());
                        if *gzip { channel.send_compressed(CompressionEncoding::Gzip) } else { channel }
                    };
                    send_grpc(channel.get_or_init(connect).clone(), headers.clone(), request).await
                }
                Client::Http { client, url, gzip } => send_http(client, url, *gzip, request).await,
            }
        };
        tokio::time::timeout(self.timeout, sending).await.unwrap_or_else(|_| {
            Err(Failure::Retry { after: None, reason: format!("no answer within {:?}", self.timeout) })
        })
    }
}

type SetUp = Result<Client, Box<dyn Error + Send + Sync>>;

fn grpc(endpoint: &str, gzip: bool, headers: HeaderMap, tls: Tls) -> SetUp {
    let mut channel = Endpoint::from_shared(endpoint.to_owned())?.connect_timeout(CONNECT_TIMEOUT);
    // A receiver that is gone without a word is noticed, and the connection made anew.
    channel = channel.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    if endpoint.starts_with("https:") {
        let mut config = ClientTlsConfig::new().with_enabled_roots();
        if let Some(authority) = tls.authority {
            config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
        }
        if let Some((certificate, key)) = tls.client {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        channel = channel.tls_config(config)?;
    }
    let (endpoint, headers) = (Box::new(channel), MetadataMap::from_headers(headers));
    Ok(Client::Grpc { endpoint, channel: OnceLock::new(), gzip, headers })
}

fn http(endpoint: &str, gzip: bool, headers: HeaderMap, tls: Tls) -> SetUp {
    let mut client = reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(authority) = tls.authority {
        client = client.tls_built_in_root_certs(false);
        for certificate in reqwest::Certificate::from_pem_bundle(&authority)? {
            client = client.add_root_certificate(certificate);
        }
    }
    if let Some((mut certificate, key)) = tls.client {
        certificate.extend(key);
        client = client.identity(reqwest::Identity::from_pem(&certificate)?);
    }
    Ok(Client::Http { client: client.build()?, url: endpoint.into(), gzip })
}

async fn send_grpc(mut channel: Grpc<Channel>, headers: MetadataMap, body: Bytes) -> Result<Receipt, Failure> {
    let retry = |reason: String| Failure::Retry { after: None, reason };
    channel.ready().await.map_err(|error| retry(chain(&error)))?;
    let mut request = Request::new(body);
    *request.metadata_mut() = headers;
    let sent = channel.unary(request, PathAndQuery::from_static(GRPC_PATH), Plain).await;
    sent.map(|answer| receipt(answer.get_ref())).map_err(|status| judge_grpc(&status))
}

/// What a status means, by the table of the OTLP specification.
fn judge_grpc(status: &Status) -> Failure {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let reason = format!("{:?}: {}", status.code(), status.message());
    // Not an answer, but the connection's end.
    if let Some(source) = status.source() {
        return Failure::Retry { after, reason: chain(source) };
    }
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Failure::Retry { after, reason },
        Code::ResourceExhausted if after.is_some() => Failure::Retry { after, reason },
        _ => Failure::Refused { reason },
    }
}

async fn send_http(client: &reqwest::Client, url: &str, gzip: bool, body: Bytes) -> Result<Receipt, Failure> {
    let mut request = client.post(url).header(header::CONTENT_TYPE, PROTOBUF);
    let body = if gzip { compress(&body) } else { body };
    if gzip {
        request = request.header(header::CONTENT_ENCODING, "gzip");
    }
    let retry = |error: reqwest::Error| Failure::Retry { after: None, reason: chain(&error.without_url()) };
    let mut answer = request.body(body).send().await.map_err(retry)?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(retry)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES {
            break;
        }
    }
    judge_http(status, &headers, &body)
}

/// What an answer means, by the OTLP specification.
fn judge_http(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Receipt, Failure> {
    if status.is_success() {
        return Ok(receipt(body));
    }
    let reason = status.to_string();
    match status.as_u16() {
        429 | 502 | 503 | 504 => {
            let after = headers.get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
            Err(Failure::Retry { after, reason })
        }
        _ => Err(Failure::Refused { reason }),
    }
}

/// Reads a `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str) -> Option<Duration> {
    let seconds = value.trim().parse().ok().map(Duration::from_secs);
    let until = || httpdate::parse_http_date(value).ok();
    seconds.or_else(|| Some(until()?.duration_since(std::time::SystemTime::now()).unwrap_or_default()))
}

fn receipt(answer: &[u8]) -> Receipt {
    let (rejected, message) = partial_success(answer).unwrap_or_default();
    Receipt { rejected, message: message.into() }
}

fn compress(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    // A vector takes everything.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default().into()
}

/// An error with its causes, as one line.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Requests and answers as the bytes that they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

impl std::fmt::Debug for CollectorConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, protocol, gzip, timeout, headers: _, tls: _ } = self;
        let endpoint = without_user(endpoint);
        write!(f, "CollectorConfig({endpoint}, {protocol:?}, gzip: {gzip}, {timeout:?})")
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Grpc { .. }) { "Grpc" } else { "Http" })
    }
}

const PREFIX: &str = "OTEL_EXPORTER_OTLP_";
const SERVICE_NAME: &str = "service.name";
/// Content type of OTLP/HTTP in protobuf.
pub const PROTOBUF: &str = "application/x-protobuf";
/// `OTEL_EXPORTER_OTLP_TIMEOUT` where it is not set.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// What is read of an answer.
const ANSWER_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests;

/// A URL as it may be shown: without the user and the password that it may name.
pub fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}
