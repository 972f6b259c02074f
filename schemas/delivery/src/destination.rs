//! Where a program writes to, as its command line says: a directory or an object store, an OTLP receiver, or both.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use schemas::{
    capture::{Origin, Roll},
    table::Record,
};

use crate::{
    Outbox, SpoolError, Target,
    collector::{Collector, CollectorConfig, CollectorError, resource_attributes},
    otlp::ResourceAttributes,
    store::{self, Store, StoreError},
    writer::{FileWriter, RecordWriter, RequestWriter},
};

/// A directory for what can't be delivered yet, and how much may be in it.
#[derive(Clone, Copy, Debug)]
pub struct SpoolConfig<'a> {
    /// The directory; each destination has one of its own in it.
    pub path: &'a Path,
    /// Most bytes of each of them.
    pub size_bytes: u64,
}

/// Files of a capture.
#[derive(Clone)]
pub struct FileDestination {
    /// The directory that they are made in.
    pub root: PathBuf,
    /// What takes them to an object store.
    pub outbox: Option<Outbox>,
}

/// A receiver of OTLP.
#[derive(Clone)]
pub struct RequestDestination {
    /// What takes requests there.
    pub outbox: Outbox,
    /// Attributes of the resource that rows do not have themselves.
    pub attributes: ResourceAttributes,
}

/// All destinations of a program.
#[derive(Clone, Default)]
pub struct Destinations {
    /// Files, if they are asked for.
    pub files: Option<FileDestination>,
    /// Requests, if they are asked for.
    pub requests: Option<RequestDestination>,
}

/// Why a destination can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// What is kept for it can't be.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The object store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The receiver can't be used.
    #[error("cannot send to the collector")]
    Collector(#[from] CollectorError),
    /// There is no thread.
    #[error("the system has no thread")]
    System(#[source] io::Error),
}

impl FileDestination {
    /// Opens a directory, or an object store by way of the spool.
    ///
    /// # Errors
    /// The store or the spool can't be used.
    pub fn open(output: &Path, spool: SpoolConfig<'_>) -> Result<Self, DestinationError> {
        if !store::is_url(output) {
            return Ok(Self { root: output.to_path_buf(), outbox: None });
        }
        let target = Target::Store(Store::open(&output.to_string_lossy())?);
        let (root, outbox) = outbox(spool, "store", target)?;
        Ok(Self { root, outbox: Some(outbox) })
    }

    /// A writer of one dataset and run.
    pub fn writer<R: Record>(&self, origin: &Origin, version: &'static str, roll: Roll) -> FileWriter<R> {
        FileWriter::new(&self.root, origin, version, roll, self.outbox.clone())
    }
}

impl RequestDestination {
    /// Opens the receiver that a configuration names; `service` is the `service.name` of the sender, unless the environment
    /// has another.
    ///
    /// # Errors
    /// The receiver or the spool can't be used.
    pub fn open(config: CollectorConfig, service: &str, spool: SpoolConfig<'_>) -> Result<Self, DestinationError> {
        let attributes = resource_attributes(service, |name| std::env::var(name).ok())?;
        let (_, outbox) = outbox(spool, "otlp", Target::Collector(Collector::new(config)?))?;
        Ok(Self { outbox, attributes })
    }

    /// A writer of one dataset and run.
    pub fn writer<R: Record>(&self, version: &'static str) -> RequestWriter<R> {
        RequestWriter::new(self.outbox.clone(), &self.attributes, version)
    }
}

impl Destinations {
    /// A writer of one dataset and run.
    pub fn writer<R: Record>(&self, origin: &Origin, version: &'static str, roll: Roll) -> RecordWriter<R> {
        RecordWriter {
            files: self.files.as_ref().map(|files| files.writer(origin, version, roll)),
            requests: self.requests.as_ref().map(|requests| requests.writer(version)),
            is_open: false,
        }
    }

    /// Gives receivers so long to take what there is; the rest stays in the spool.
    pub fn close(&self, patience: Duration) {
        let of_store = self.files.iter().filter_map(|files| files.outbox.as_ref());
        for outbox in of_store.chain(self.requests.iter().map(|requests| &requests.outbox)) {
            outbox.settle(patience);
            outbox.close();
        }
    }
}

/// Opens the part of a spool that is of one destination, and begins to deliver what is in it.
fn outbox(spool: SpoolConfig<'_>, of: &str, target: Target) -> Result<(PathBuf, Outbox), DestinationError> {
    let folder = spool.path.join(of);
    let outbox = Outbox::open(&folder, spool.size_bytes)?;
    outbox.start(target).map_err(DestinationError::System)?;
    Ok((folder, outbox))
}
