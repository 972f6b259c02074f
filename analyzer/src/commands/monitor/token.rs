//! With what token agents are asked: the user's own, or one that is made for this alone.

use std::{fs, future, io, path::PathBuf, time::Duration};

use delivery::live;
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    client::{Body, ConfigExt},
};
use kubernetes::reason;
use tokio::{sync::Mutex, time::Instant};
use tower::{BoxError, Layer, ServiceExt, service_fn, util::BoxService};

use crate::cli::MonitorArgs;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error(
        "agents ask who you are by a token, and your kubeconfig has none (a client certificate can't be passed on): name \
         a ServiceAccount with --service-account, or a file with --token-file"
    )]
    None,
    #[error("cannot get the token that your kubeconfig tells of: {0}")]
    Config(String),
    #[error("cannot get a token of ServiceAccount {name}: {reason}")]
    ServiceAccount { name: String, reason: String },
    #[error(
        "{0} would be told your cluster's token in clear text: reach it by a loopback address, such as of a tunnel, or name \
         a token that is for agents alone with --token-file or --service-account"
    )]
    Exposed(String),
    #[error("cannot read the token in {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The token, got anew now and then, since tokens run out; not for every one of many agents.
pub(super) struct Token {
    source: Source,
    last: Mutex<Option<(Instant, HeaderValue)>>,
}

/// Where a token comes from.
enum Source {
    File(PathBuf),
    ServiceAccount(Client, String, String),
    Config(Box<Config>),
    None,
}

impl Token {
    pub(super) fn new(args: &MonitorArgs, config: Option<Config>, client: Option<Client>) -> Self {
        let source = match (&args.token_file, &args.service_account, client, config) {
            (Some(path), ..) => Source::File(path.clone()),
            (None, Some((namespace, name)), Some(client), _) => {
                Source::ServiceAccount(client, namespace.clone(), name.clone())
            }
            (.., Some(config)) => Source::Config(Box::new(config)),
            _ => Source::None,
        };
        Self { source, last: Mutex::default() }
    }

    /// Whether it is the user's own, with which all can be done that they may.
    pub(super) const fn is_of_user(&self) -> bool {
        matches!(self.source, Source::Config(_))
    }

    /// What to send as `Authorization`.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn header(&self) -> Result<HeaderValue, TokenError> {
        // Who comes meanwhile waits for the one that is got.
        let mut last = self.last.lock().await;
        if let Some((since, header)) = &*last
            && since.elapsed() < KEPT
        {
            return Ok(header.clone());
        }
        let header = self.source.header().await?;
        *last = Some((Instant::now(), header.clone()));
        Ok(header)
    }
}

impl Source {
    async fn header(&self) -> Result<HeaderValue, TokenError> {
        let bearer = |token: &str, error: TokenError| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| error)?;
            value.set_sensitive(true);
            Ok(value)
        };
        match self {
            Self::None => Err(TokenError::None),
            Self::File(path) => {
                let unreadable = |source| TokenError::File { path: path.clone(), source };
                let token = fs::read_to_string(path).map_err(unreadable)?;
                bearer(token.trim(), unreadable(io::ErrorKind::InvalidData.into()))
            }
            Self::ServiceAccount(client, namespace, name) => {
                let failed =
                    |reason: String| TokenError::ServiceAccount { name: format!("{namespace}/{name}"), reason };
                let spec = TokenRequestSpec {
                    audiences: vec![live::AUDIENCE.into()],
                    expiration_seconds: Some(EXPIRATION_SECONDS),
                    ..TokenRequestSpec::default()
                };
                let request = TokenRequest { spec, ..TokenRequest::default() };
                let api = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
                let made = api.create_token_request(name, &PostParams::default(), &request).await;
                let made = made.map_err(|error| failed(reason(&error)))?;
                let made = made.status.ok_or_else(|| failed("there is none in the answer".into()))?;
                bearer(&made.token, failed("it is not one".into()))
            }
            Self::Config(config) => of_config(config).await,
        }
    }
}

/// What a request to the API server would carry: however a kubeconfig says to get it, its layer knows.
async fn of_config(config: &Config) -> Result<HeaderValue, TokenError> {
    let layer = config.auth_layer().map_err(|error| TokenError::Config(reason(&error)))?;
    let seen = service_fn(|request: Request<Body>| {
        future::ready(Ok::<_, BoxError>(Response::new(request.headers().get(AUTHORIZATION).cloned())))
    });
    let layer = layer.ok_or(TokenError::None)?;
    let service: BoxService<_, Response<Option<HeaderValue>>, BoxError> = BoxService::new(layer.layer(seen));
    let asked = service.oneshot(Request::new(Body::empty())).await;
    let value = asked.map_err(|error| TokenError::Config(error.to_string()))?.into_body();
    value.filter(|value| value.as_bytes().starts_with(b"Bearer ")).ok_or(TokenError::None)
}

/// How long a token is sent before it is got again: shorter than any is valid.
const KEPT: Duration = Duration::from_secs(30);
/// How long a token made for this is valid; it is needed when a stream begins, and once a minute after.
const EXPIRATION_SECONDS: i64 = 86_400;
