//! Delivery of what was recorded to where it may not arrive at once, an OpenTelemetry collector or an object store; and the
//! other ways out and in: the live stream ([`live`]), and listening ([`listen`]).
//!
//! ```text
//! rows ──Encoder──► parcel ──► Outbox ──────────────────► Collector (OTLP/gRPC, OTLP/HTTP)
//! files of a capture ────────►   └─ spool directory ────► Store (S3 and others)
//! ```
//!
//! An [`Outbox`] takes parcels at any time and sends them from a thread of its own, so that whoever records never waits
//! for a network. While the receiver is away, parcels are files in a directory, oldest dropped first once they are too
//! many, and are sent when it is back, or by the next process. Delivery is at least once.

pub mod collector;
mod destination;
pub mod listen;
pub mod live;
pub mod otlp;
mod outbox;
pub mod private;
mod spool;
pub mod store;
mod writer;

pub use destination::{DestinationError, Destinations, FileDestination, RequestDestination, SpoolConfig};
pub use outbox::{Outbox, Parcel, Stats};
pub use spool::SpoolError;
pub use writer::{FileWriter, GivenUp, REQUEST_BYTES, RecordWriter, RequestWriter};

use std::time::Duration;

use bytes::Bytes;

use collector::Collector;
use store::Store;

/// Where parcels go.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub enum Target {
    /// A receiver of OTLP.
    Collector(Collector),
    /// An object store.
    Store(Store),
}

/// What a receiver said of a parcel that it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Log records that it refused, of those in the parcel.
    pub rejected: i64,
    /// Why, or a warning.
    pub message: String,
}

/// Why a parcel was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may be taken later; after this time, where the receiver said so.
    Retry { after: Option<Duration>, reason: String },
    /// It will never be taken.
    Refused { reason: String },
}

impl Target {
    /// Parcels that are under way at once. Files can be large, and are in memory while they are.
    const fn lanes(&self) -> usize {
        match self {
            Self::Collector(_) => 4,
            Self::Store(_) => 1,
        }
    }

    async fn send(&self, name: &str, body: Bytes) -> Result<Receipt, Failure> {
        match self {
            Self::Collector(collector) => collector.send(body).await,
            Self::Store(store) => store.put(name, body).await,
        }
    }
}

/// Waits between attempts: exponential, with jitter, and never shorter than the receiver asks for.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure; `random` is a fraction of one.
    fn next(&mut self, after: Option<Duration>, random: f64) -> Duration {
        let exponential = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures += 1;
        match after {
            // What the receiver asks for, and up to a tenth more, so that not all come back at once.
            Some(after) => after.min(LONGEST_THROTTLE).mul_f64(1.0 + random / 10.0),
            None => exponential.mul_f64(0.5 + random),
        }
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A receiver that asks for more is asked again even so.
const LONGEST_THROTTLE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_half_a_minute_and_obey_the_receiver() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..7).map(|_| backoff.next(None, 0.5).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff.next(Some(Duration::from_secs(100)), 0.0), Duration::from_secs(100));
        assert_eq!(backoff.next(Some(Duration::from_secs(100)), 1.0), Duration::from_secs(110));
        backoff.reset();
        assert!(backoff.next(None, 0.0) < FIRST_WAIT && backoff.next(None, 1.0) > FIRST_WAIT, "jitter");
    }
}
