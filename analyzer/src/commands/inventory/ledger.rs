//! Where the inventory goes: files of a capture, on disk or on their way to an object store, and an OTLP receiver.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use delivery::{
    Outbox, Parcel, Target,
    collector::{Collector, CollectorConfig, resource_attributes},
    otlp::{Encoder, ResourceAttributes},
    store::{self, Store},
};
use schemas::{
    capture::{CaptureError, DatasetWriter, Origin, Roll},
    table::{Record, TimestampMs},
};

use super::{InventoryError, VERSION};
use crate::cli::InventoryArgs;

/// The ways that are asked for.
pub(super) struct Ways {
    /// The directory that files are in, and what takes them to an object store.
    files: Option<(PathBuf, Option<Outbox>)>,
    otlp: Option<(Outbox, ResourceAttributes)>,
    shown: String,
}

/// One dataset of one term on its ways.
pub(super) struct Ledger<R: Record> {
    files: Option<(DatasetWriter<R>, Option<Outbox>)>,
    otlp: Option<(Encoder<R>, Outbox)>,
    /// Rows were pushed since the last [`Self::finish`].
    is_open: bool,
}

impl Ways {
    pub(super) fn open(args: &InventoryArgs) -> Result<Self, InventoryError> {
        let outbox = |of: &str, target: Target| {
            let outbox = Outbox::open(&args.spool.join(of), args.spool_size_mib << 20)?;
            outbox.start(target).map_err(InventoryError::System)?;
            Ok::<_, InventoryError>(outbox)
        };
        let files = match &args.output {
            Some(output) if store::is_url(output) => {
                let target = Target::Store(Store::open(&output.to_string_lossy())?);
                Some((args.spool.join("store"), Some(outbox("store", target)?)))
            }
            Some(output) => Some((output.clone(), None)),
            None => None,
        };
        let otlp = if args.otlp || args.otlp_endpoint.is_some() {
            let variable = |name: &str| std::env::var(name).ok();
            let (endpoint, protocol) = (args.otlp_endpoint.as_deref(), args.otlp_protocol.as_deref());
            let collector = Collector::new(CollectorConfig::new(endpoint, protocol, variable)?)?;
            let attributes = resource_attributes("flowscribe-inventory", variable)?;
            Some((outbox("otlp", Target::Collector(collector))?, attributes))
        } else {
            None
        };
        if files.is_none() && otlp.is_none() {
            return Err(InventoryError::NoOutput);
        }
        let output = args.output.iter().map(|output| output.display().to_string());
        let shown: Vec<String> = output.chain(otlp.iter().map(|_| "an OTLP receiver".into())).collect();
        Ok(Self { files, otlp, shown: shown.join(" and ") })
    }

    /// Files of a directory.
    pub(super) fn directory(path: &Path) -> Self {
        Self { files: Some((path.into(), None)), otlp: None, shown: path.display().to_string() }
    }

    pub(super) fn ledger<R: Record>(&self, origin: &Origin, roll: Roll) -> Ledger<R> {
        let writer = |root: &Path| DatasetWriter::new(root, origin, VERSION, roll);
        let encoder = |attributes: &ResourceAttributes| Encoder::new(attributes.clone(), VERSION);
        Ledger {
            files: self.files.as_ref().map(|(root, outbox)| (writer(root), outbox.clone())),
            otlp: self.otlp.as_ref().map(|(outbox, attributes)| (encoder(attributes), outbox.clone())),
            is_open: false,
        }
    }

    /// Waits a while for receivers; what they do not take stays in the spool.
    pub(super) async fn close(&self) {
        let store = self.files.iter().filter_map(|(_, outbox)| outbox.clone());
        let outboxes: Vec<Outbox> = store.chain(self.otlp.iter().map(|(outbox, _)| outbox.clone())).collect();
        let close = move || {
            for outbox in outboxes {
                outbox.settle(SETTLE);
                outbox.close();
            }
        };
        let _ = tokio::task::spawn_blocking(close).await;
    }
}

impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl<R: Record> Ledger<R> {
    pub(super) fn push(&mut self, row: R, now: TimestampMs) -> Result<(), CaptureError> {
        self.is_open = true;
        if let Some((encoder, _)) = &mut self.otlp {
            encoder.push(&row, now);
            if encoder.size_bytes() >= REQUEST_BYTES {
                self.send();
            }
        }
        if let Some((writer, outbox)) = &mut self.files {
            let finished = writer.finish_other_hour(&row)?;
            deliver(outbox.as_ref(), finished);
            writer.push(row, now)?;
        }
        Ok(())
    }

    /// Sends what was pushed, where it is sent.
    pub(super) fn send(&mut self) {
        if let Some((encoder, outbox)) = &mut self.otlp {
            let rows = encoder.rows() as i64;
            if let Some(body) = encoder.finish() {
                outbox.put(Parcel { dataset: R::DATASET, rows, ends: 0, body: body.into() });
            }
        }
    }

    /// Makes everything durable.
    pub(super) fn finish(&mut self) -> Result<(), CaptureError> {
        self.send();
        self.is_open = false;
        if let Some((writer, outbox)) = &mut self.files {
            let finished = writer.finish()?;
            deliver(outbox.as_ref(), finished);
        }
        Ok(())
    }

    pub(super) fn abandon(&mut self) {
        if let Some((writer, _)) = &mut self.files {
            writer.abandon();
        }
        self.is_open = false;
    }

    /// Whether rows were pushed that are not in a finished file; without files, that are the beginning of what is told.
    pub(super) const fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn is_due(&self, now: TimestampMs) -> bool {
        self.files.as_ref().is_some_and(|(writer, _)| writer.is_due(now))
    }
}

fn deliver(outbox: Option<&Outbox>, finished: Option<PathBuf>) {
    if let (Some(outbox), Some(path)) = (outbox, finished) {
        outbox.adopt(&path, 0, 0);
    }
}

/// How long the end waits for a receiver.
const SETTLE: Duration = Duration::from_secs(10);
/// A request is sent once it is as large.
const REQUEST_BYTES: usize = delivery::otlp::REQUEST_BYTES / 2;
