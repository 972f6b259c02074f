//! Whether the inventory is at work, for those who start it again where it is not: `/livez` and `/readyz`.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use delivery::listen::{self, Limits, ListenError, Security};
use tokio::time::{Instant, interval};

/// When it was last seen at work.
pub(super) struct Pulse {
    began: Instant,
    /// Since it began.
    last_ms: AtomicU64,
    is_ready: AtomicBool,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), last_ms: AtomicU64::new(0), is_ready: AtomicBool::new(false) }
    }

    /// It is at work.
    pub(super) fn beat(&self) {
        self.last_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether it does all that it is there for: it writes all that it is to know, or stands by.
    pub(super) fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Relaxed);
    }

    /// Beats while there is nothing to do but to wait; never ends.
    pub(super) async fn wait(&self) {
        let mut tick = interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            self.beat();
        }
    }

    fn is_alive(&self) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last) < DEAD_AFTER
    }

    fn is_ready(&self) -> bool {
        self.is_alive() && self.is_ready.load(Ordering::Relaxed)
    }
}

/// Serves until the process ends: kubelet, which asks, has no token, and there is nothing to hide.
///
/// # Errors
/// The address can't be listened on.
pub(super) async fn serve(address: SocketAddr, pulse: Arc<Pulse>) -> Result<(), ListenError> {
    let guard = Arc::new(Security::default().guard()?);
    let listener = listen::bind(address).await?;
    let status = |is_well: bool| if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let routes = Router::new()
        .route("/livez", get(async move |State(pulse): State<Arc<Pulse>>| status(pulse.is_alive())))
        .route("/readyz", get(async move |State(pulse): State<Arc<Pulse>>| status(pulse.is_ready())))
        .with_state(pulse);
    let limits = Limits { connections: CONNECTIONS, streams: CONNECTIONS as u32 };
    tokio::spawn(listen::serve(listener, routes, guard, limits, pending()));
    Ok(())
}

/// Probes are few.
const CONNECTIONS: usize = 16;
/// After so long without a beat it is stuck.
const DEAD_AFTER: Duration = Duration::from_secs(60);
