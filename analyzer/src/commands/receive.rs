//! `flowscribe receive`: a receiver of OTLP that writes a capture, so that a small cluster needs no object store.
//!
//! ```text
//! agents, collectors ──OTLP/gRPC, OTLP/HTTP──► server ──► journal ──acknowledged
//!                                                           └──► filing ──► capture/ ( ──► Outbox ──► object store )
//! ```
//!
//! A request is acknowledged once it is durable. What is over a limit is refused, with how long to wait, so that senders
//! keep it; memory and disk that requests take are bounded, whoever sends them.

pub(crate) mod server;

use std::{io, net::SocketAddr, sync::Arc};

use delivery::{
    DestinationError, FileDestination, SpoolConfig,
    listen::{self, Limits, ListenError, Security},
};
use schemas::capture::JOURNAL;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    capture::journal::{Journal, JournalConfig, JournalError},
    cli::ReceiveArgs,
    interrupt,
    logging::log_to_stderr,
};
use server::{Bounds, Server};

/// Why nothing can be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("--tls-cert and --tls-key belong together")]
    HalfTls,
    #[error("the system has no signals, threads or addresses")]
    System(#[source] io::Error),
}

/// Receives until Ctrl-C or SIGTERM, and then makes files of everything.
///
/// # Errors
/// An address can't be listened on, or the directory not be written.
pub(crate) async fn run(args: &ReceiveArgs) -> Result<(), ReceiveError> {
    log_to_stderr();
    let security = security(args)?;
    let (grpc, http) =
        (open(args, &security, args.grpc_address).await?, open(args, &security, args.http_address).await?);
    let guard = Arc::new(security.guard()?);
    let spool = SpoolConfig { path: &args.spool, size_bytes: args.spool_size_mib << 20 };
    let FileDestination { root, outbox } = FileDestination::open(&args.output, spool)?;
    // Beside the files, or in the spool where they are not here.
    let folder = if outbox.is_some() { args.spool.join("journal") } else { args.output.join(JOURNAL) };
    let max_bytes = args.journal_size_mib << 20;
    let config = JournalConfig { folder, root, outbox: outbox.clone(), roll_interval: args.roll_interval, max_bytes };
    let bounds = Bounds {
        memory_bytes: args.buffer_mib << 20,
        request_bytes: args.max_request_mib << 20,
        client_rate: args.client_rate_kib << 10,
    };
    let server = Arc::new(Server::new(Journal::open(config)?, Arc::clone(&guard), bounds));
    let scheme = if security.certificate.is_some() { "https" } else { "http" };
    let address = |listener: &TcpListener| listener.local_addr().map_err(ReceiveError::System);
    tracing::info!(
        "receiving OTLP/gRPC on {scheme}://{} and OTLP/HTTP on {scheme}://{} into {}",
        address(&grpc)?,
        address(&http)?,
        args.output.display()
    );
    let (stop, stopped) = watch::channel(false);
    let serve = |listener: TcpListener| {
        let (routes, guard, mut stopped) = (server.routes(), Arc::clone(&guard), stopped.clone());
        let limits = Limits { connections: args.max_connections, streams: STREAMS };
        let shutdown = async move { drop(stopped.wait_for(|is_stopped| *is_stopped).await) };
        tokio::spawn(listen::serve(listener, routes, guard, limits, shutdown))
    };
    let servers = [serve(grpc), serve(http)];
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ReceiveError::System)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ReceiveError::System)?;
    interrupt::records();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let _ = stop.send(true);
    for server in servers {
        let _ = server.await;
    }
    // Of requests that did not end in time, parts may be left.
    let end = move || {
        if let Some(server) = Arc::into_inner(server) {
            server.journal.end();
        }
        if let Some(outbox) = outbox {
            outbox.settle(SETTLE);
            outbox.close();
        }
    };
    let _ = tokio::task::spawn_blocking(end).await;
    tracing::info!("everything that was acknowledged is in files");
    Ok(())
}

fn security(args: &ReceiveArgs) -> Result<Security, ReceiveError> {
    let ReceiveArgs { tls_cert, tls_key, tls_client_ca, token_file, .. } = args;
    let certificate = match (tls_cert, tls_key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        _ => return Err(ReceiveError::HalfTls),
    };
    Ok(Security { certificate, client_authority: tls_client_ca.clone(), token: token_file.clone() })
}

async fn open(args: &ReceiveArgs, security: &Security, address: SocketAddr) -> Result<TcpListener, ReceiveError> {
    if !args.insecure {
        security.check(address)?;
    }
    Ok(listen::bind(address).await?)
}

/// Requests at once on a connection.
const STREAMS: u32 = 32;
/// How long the end waits for an object store.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(20);
