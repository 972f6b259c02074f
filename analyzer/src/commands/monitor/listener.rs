//! One agent: its stream, again and again, until the recording ends or the agent is gone for good.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use delivery::live::{self, Frames};
use futures::{StreamExt, future, stream};
use http::{Request, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::time::{sleep, timeout};

use super::{Monitor, MonitorError, Phase, Place, place::Body};
use crate::capture::{
    journal::NotKept,
    segment::{Of, Packed, decode},
};

/// What was heard of an agent.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Rows of flows.
    pub(super) rows: AtomicU64,
    lost: AtomicI64,
    pub(super) streams: AtomicUsize,
    pub(super) is_listening: AtomicBool,
    /// The last stream came to its end.
    pub(super) is_whole: AtomicBool,
    /// Length of its windows.
    pub(super) window_ms: AtomicU64,
}

/// Listens to an agent.
pub(super) struct Listener {
    place: Place,
    monitor: Arc<Monitor>,
    tally: Arc<Tally>,
}

/// Why a stream ended.
enum Broken {
    /// Whoever this is may not listen.
    Refused(String),
    /// It can't be reached, or it was cut off.
    Gone(String),
    /// The recording is over.
    Left,
}

impl Tally {
    /// Ends of connections that are not in the rows.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed).max(0) as u64
    }
}

impl Listener {
    pub(super) const fn new(place: Place, monitor: Arc<Monitor>, tally: Arc<Tally>) -> Self {
        Self { place, monitor, tally }
    }

    /// Listens until the recording ends.
    ///
    /// # Errors
    /// The agent refuses, as no other one has admitted us either.
    pub(super) async fn listen(self) -> Result<(), MonitorError> {
        // Why it is away, as it was told last.
        let (mut pause, mut told) = (FIRST_PAUSE, None);
        let (mut phase, mut there) = (self.monitor.phase.clone(), self.monitor.there.clone());
        loop {
            let heard_before = self.tally.streams.load(Ordering::Relaxed);
            let ended = self.stream(&mut told).await;
            self.tally.is_listening.store(false, Ordering::Relaxed);
            if self.tally.streams.load(Ordering::Relaxed) > heard_before {
                pause = FIRST_PAUSE;
            }
            let place = &self.place;
            let why = match ended {
                Err(Broken::Left) => return Ok(()),
                Err(Broken::Refused(reason)) if !self.monitor.is_admitted.load(Ordering::Relaxed) => {
                    return Err(MonitorError::Refused { agent: place.to_string(), reason });
                }
                Err(Broken::Refused(reason) | Broken::Gone(reason)) => reason,
                Ok(()) => "it ended".into(),
            };
            if *phase.borrow() != Phase::Recording {
                return Ok(());
            }
            if told.as_ref() != Some(&why) {
                self.monitor.say(&format!("{place} is away, trying again: {why}"));
                told = Some(why);
            }
            tokio::select! {
                () = sleep(pause) => {}
                _ = phase.wait_for(|phase| *phase != Phase::Recording) => return Ok(()),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            let key = place.key();
            if !there.borrow_and_update().contains(&key) {
                self.monitor.say(&format!("{place} is gone"));
                return Ok(());
            }
        }
    }

    /// One stream, to its end.
    async fn stream(&self, away: &mut Option<String>) -> Result<(), Broken> {
        let mut phase = self.monitor.phase.clone();
        let over = async move { drop(phase.wait_for(|phase| *phase == Phase::Over).await) };
        let speak = async {
            let body = self.ask().await?;
            if away.take().is_some() {
                self.monitor.say(&format!("{} is there again", self.place));
            }
            self.monitor.is_admitted.store(true, Ordering::Relaxed);
            self.tally.streams.fetch_add(1, Ordering::Relaxed);
            self.tally.is_listening.store(true, Ordering::Relaxed);
            self.tally.is_whole.store(false, Ordering::Relaxed);
            self.read(body).await
        };
        tokio::select! {
            ended = speak => ended,
            () = over => Err(Broken::Left),
        }
    }

    /// Asks the agent; its answer, if it is a stream.
    async fn ask(&self) -> Result<Incoming, Broken> {
        let Monitor { token, query, cluster, .. } = &*self.monitor;
        let token = token.header().await.map_err(|error| Broken::Refused(chain(error)))?;
        let mut sender = self.place.connect().await.map_err(Broken::Gone)?;
        // Whoever is at the other end is asked, whatever its name is.
        let request = Request::post(format!("http://agent{}?{query}", live::PATH)).header(AUTHORIZATION, token);
        let request = request.body(self.request_body()).map_err(|error| Broken::Gone(error.to_string()))?;
        let response = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let response = response.map_err(|_| Broken::Gone("it does not answer".into()))?;
        let (head, body) = response.map_err(|error| Broken::Gone(chain(error)))?.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Broken::Refused(text(body).await)),
            code => return Err(Broken::Gone(format!("{} ({code})", text(body).await))),
        }
        if let Some(name) = head.headers.get(live::CLUSTER).and_then(|name| name.to_str().ok()) {
            cluster.send_if_modified(|known| {
                let is_first = known.is_none();
                known.get_or_insert_with(|| name.into());
                is_first
            });
        }
        Ok(body)
    }

    /// Ends once the recording is to be finished, which asks the agent to.
    fn request_body(&self) -> Body {
        let mut phase = self.monitor.phase.clone();
        let end = async move { drop(phase.wait_for(|phase| *phase != Phase::Recording).await) };
        let nothing = stream::once(end).filter_map(|()| future::ready(None::<Result<Frame<Bytes>, Infallible>>));
        StreamBody::new(nothing).map_err(io::Error::other).boxed_unsync()
    }

    async fn read(&self, mut body: Incoming) -> Result<(), Broken> {
        let mut frames = Frames::default();
        loop {
            let piece = timeout(SILENCE, body.frame()).await;
            let piece = piece.map_err(|_| Broken::Gone(format!("nothing was heard for {} s", SILENCE.as_secs())))?;
            let piece = match piece {
                None => return Ok(()),
                Some(Ok(piece)) => piece.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(Broken::Gone(chain(error))),
            };
            frames.push(&piece);
            let broken = |error: live::BrokenStream| Broken::Gone(chain(error));
            while let Some(packed) = frames.next_frame().map_err(broken)? {
                if !packed.is_empty() {
                    self.take(&packed).await?;
                }
            }
        }
    }

    /// Keeps a request, and counts what is in it.
    async fn take(&self, packed: &[u8]) -> Result<(), Broken> {
        let request = live::request(packed).map_err(|error| Broken::Gone(chain(error)))?;
        let rows = decode(&request).map_err(|error| Broken::Gone(error.to_string()))?;
        let of = Of::new(&rows);
        let mut was_told = false;
        loop {
            match self.monitor.journal.keep(Packed::Zstd(packed), of.clone()).await {
                Ok(()) => break,
                // Meanwhile the agent keeps what it may, and counts what it drops.
                Err(NotKept::Full) => sleep(FULL_PAUSE).await,
                Err(NotKept::Failed(error)) => {
                    if !std::mem::replace(&mut was_told, true) {
                        self.monitor.say(&format!("cannot keep what comes, trying again: {error}"));
                    }
                    sleep(FAILED_PAUSE).await;
                }
            }
        }
        self.tally.rows.fetch_add(rows.flows.len() as u64, Ordering::Relaxed);
        for row in &rows.health {
            self.tally.lost.fetch_add(row.lost(), Ordering::Relaxed);
            self.tally
                .window_ms
                .store((row.window_end.0 - row.window_start.0).max(row.window_ms).max(0) as u64, Ordering::Relaxed);
            self.tally.is_whole.store(row.clean_shutdown, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What an answer says that is no stream.
async fn text(body: Incoming) -> String {
    let read = timeout(ANSWER_TIMEOUT, http_body_util::Limited::new(body, TEXT_BYTES).collect()).await;
    let bytes = read.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// An error with its causes, as one line.
fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Agents say every ten seconds that there is nothing to say.
const SILENCE: Duration = Duration::from_secs(35);
const FULL_PAUSE: Duration = Duration::from_millis(50);
const FAILED_PAUSE: Duration = Duration::from_secs(1);
const TEXT_BYTES: usize = 4096;
