//! Who holds a connection, and for how long without saying anything: nobody keeps others out by being silent.
//!
//! Until it has sent a request that is admitted, a connection counts against its peer's address; where that address or the
//! listener has no room left, there is a little for probes alone.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

/// Room for connections.
pub(super) struct Slots {
    all: Arc<Semaphore>,
    of_probes: Arc<Semaphore>,
    /// Connections that were not admitted yet, by address.
    strangers: Mutex<HashMap<IpAddr, usize>>,
    /// The most of one address.
    per_peer: usize,
}

/// A connection's room, until it is dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
    is_stranger: AtomicBool,
    is_for_probes: bool,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub(super) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections)),
            of_probes: Arc::new(Semaphore::new(PROBES_AT_ONCE)),
            strangers: Mutex::default(),
            per_peer: (connections / PEERS).max(1),
        })
    }

    /// Room for a connection from an address, if there is any.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = strangers.entry(peer).or_default();
        let has_room = *of_peer < self.per_peer;
        let permit = Arc::clone(&self.all).try_acquire_owned().ok().filter(|_| has_room);
        let is_for_probes = permit.is_none();
        let slot = permit.or_else(|| Arc::clone(&self.of_probes).try_acquire_owned().ok()).map(|permit| Slot {
            slots: Arc::clone(self),
            peer,
            is_stranger: AtomicBool::new(!is_for_probes),
            is_for_probes,
            _permit: permit,
        });
        if slot.is_some() && !is_for_probes {
            *of_peer += 1;
        } else if *of_peer == 0 {
            strangers.remove(&peer);
        }
        slot
    }
}

impl Slot {
    /// Its peer is known: it has sent what is admitted.
    pub(super) fn admit(&self) {
        if !self.is_stranger.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut strangers = self.slots.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = strangers.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                strangers.remove(&self.peer);
            }
        }
    }

    /// Whether a request is answered: all are, but for where there was room for probes alone.
    pub(super) fn answers(&self, path: &str) -> bool {
        !self.is_for_probes || PROBES.contains(&path)
    }

    /// How long it may stay silent at first.
    pub(super) const fn patience(&self) -> Duration {
        if self.is_for_probes { PROBE_PATIENCE } else { PATIENCE }
    }

    /// How long it may stay, if that is limited.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.is_for_probes.then_some(PROBE_LIMIT)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admit();
    }
}

/// A stream that has to begin in time.
pub(super) struct Beginning<S> {
    stream: S,
    bytes_read: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Beginning<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, bytes_read: 0, deadline: Box::pin(sleep(patience)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Beginning<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && self.bytes_read < BEGINNING_BYTES && self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "it said nothing for too long")));
        }
        ready!(read)?;
        self.bytes_read += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Beginning<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Strangers of so many addresses fill a listener.
const PEERS: usize = 4;
/// Probes that are answered beside all connections.
const PROBES_AT_ONCE: usize = 8;
const PROBES: [&str; 2] = ["/livez", "/readyz"];
/// The preface of HTTP/2 and the head of a frame (RFC 9113, 3.4 and 4.1); fewer than any request of HTTP/1.1 with a header.
const BEGINNING_BYTES: usize = 33;
const PATIENCE: Duration = Duration::from_secs(10);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);
const PROBE_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn strangers_of_one_address_keep_nobody_else_out() {
        let slots = Slots::new(8);
        let [one, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        let mut taken: Vec<Slot> = (0..2).map(|_| slots.take(one).expect("there is room")).collect();
        assert!(taken.iter().all(|slot| slot.answers("/v1/logs")));
        let probe = slots.take(one).expect("for probes");
        assert!(probe.answers("/livez") && !probe.answers("/v1/logs"));
        taken.push(slots.take(other).expect("there is room for others"));
        assert!(taken[2].answers("/v1/logs"));
        // Who is known counts no more, and makes room for another.
        taken[0].admit();
        taken.push(slots.take(one).expect("there is room"));
        assert!(taken[3].answers("/v1/logs"));
        drop((taken, probe));
        assert!(slots.strangers.lock().expect("not poisoned").is_empty());
        assert_eq!((slots.all.available_permits(), slots.of_probes.available_permits()), (8, PROBES_AT_ONCE));
        // All at once, probes get an answer until there are too many of them as well.
        let all: Vec<Slot> = (0..8u8).filter_map(|peer| slots.take([198, 51, 100, peer].into())).collect();
        let probes: Vec<Slot> = (0..8u8).filter_map(|peer| slots.take([203, 0, 113, peer].into())).collect();
        assert!(all.iter().all(|slot| !slot.is_for_probes) && probes.iter().all(|slot| slot.is_for_probes));
        assert_eq!((all.len(), probes.len(), slots.take(one).is_none()), (8, 8, true));
    }

    #[tokio::test]
    async fn a_stream_has_to_begin_in_time_and_may_be_silent_later() {
        let patience = Duration::from_millis(50);
        let (_client, server) = tokio::io::duplex(64);
        let mut silent = Beginning::new(server, patience);
        let error = silent.read_u8().await.expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (mut writer, server) = tokio::io::duplex(64);
        // What is there when it is looked at is read, however late.
        let mut begun = Beginning::new(server, patience);
        writer.write_all(&[b'x'; 40]).await.expect("there is room");
        let mut bytes = [0; 40];
        begun.read_exact(&mut bytes).await.expect("it was sent");
        let late = tokio::spawn(async move { begun.read_u8().await });
        sleep(patience * 3).await;
        writer.write_all(b"y").await.expect("there is room");
        assert_eq!(late.await.expect("it ends").expect("it was sent"), b'y');
    }
}
