//! Values that columns have, beside numbers and texts.

use std::sync::Arc;

use crate::event::{RTT_BUCKETS, rtt_bucket};

/// Who writes: the same on every row of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Cluster name.
    pub cluster: Arc<str>,
    /// Node name.
    pub node: Arc<str>,
    /// Random identifier of the run.
    pub run_id: Arc<str>,
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimestampMs(pub i64);

impl TimestampMs {
    /// This moment, by the system's clock; 1970 where that is set to before.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as i64)
    }
}

/// Histogram of round-trip times: bucket `i` counts connections below `64 µs × 4^i`, the last one all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RttHistogram(pub [i64; RTT_BUCKETS]);

impl RttHistogram {
    /// Counts one connection. A round-trip time of `u32::MAX` is unknown and not counted.
    pub fn add(&mut self, rtt_us: u32) {
        if rtt_us < u32::MAX {
            self.0[rtt_bucket(rtt_us)] += 1;
        }
    }
}

/// A port of a pod's container, a Service or an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Port {
    /// Name, where it has one.
    pub name: Option<Arc<str>>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: Arc<str>,
    /// Port number.
    pub port: u16,
    /// A Service's target port: a number or the name of a container's port. `None` means the same as `port`.
    pub target: Option<Arc<str>>,
    /// A Service's port on every node.
    pub node_port: Option<u16>,
}
