//! Where the agent learns who the pods are: from a file, or from the Kubernetes API; and what it knows of its node by itself.

mod interfaces;

use std::{fs, path::PathBuf, sync::Arc, time::SystemTime};

pub(crate) use interfaces::Interfaces;
use kubernetes::{Change, inventory_log::InventoryLog};
use schemas::{
    capture::Origin,
    inventory::{InventoryRecord, Scope},
    table::TimestampMs,
};

use crate::enrich::{
    Observation,
    file::{self, InventoryError},
};

/// What is known of the objects around, and the rows that tell it.
pub(crate) struct Inventory {
    /// What was told of it.
    pub(crate) log: InventoryLog,
    file: Option<InventoryFile>,
    /// With a file: where the sockets of this node's pods are.
    observations: Vec<Observation>,
    /// Where the node's own interfaces are looked up, and when they are next.
    interfaces: Interfaces,
}

struct InventoryFile {
    path: PathBuf,
    node: Arc<str>,
    read_at: Option<SystemTime>,
}

impl Inventory {
    /// Reads a file.
    ///
    /// # Errors
    /// It can't be read or is not valid.
    pub(crate) fn of_file(path: PathBuf, origin: &Origin, interfaces: Interfaces) -> Result<Self, InventoryError> {
        let read_at = fs::metadata(&path).ok().and_then(|metadata| metadata.modified().ok());
        let observations = file::read(&path, &origin.node)?;
        let mut log = InventoryLog::new(origin.clone(), Scope::Cluster);
        let known = records(&observations).into_iter().chain(interfaces.record());
        log.replace(known.collect(), TimestampMs(0));
        let file = Some(InventoryFile { path, node: Arc::clone(&origin.node), read_at });
        Ok(Self { log, file, observations, interfaces })
    }

    /// Knows what it is told of this node's pods.
    pub(crate) fn of_node(origin: &Origin, interfaces: Interfaces) -> Self {
        let log = InventoryLog::new(origin.clone(), Scope::Part);
        Self { log, file: None, observations: Vec::new(), interfaces }
    }

    /// Whether it is told of this node's pods, rather than reading a file.
    pub(crate) const fn is_of_node(&self) -> bool {
        self.file.is_none()
    }

    /// All that is known of where sockets are.
    pub(crate) fn observations(&self) -> &[Observation] {
        &self.observations
    }

    /// Reads the file again if it was written since. One that can't be used is reported once, and what was known stays.
    pub(crate) fn reload(&mut self) -> Option<Vec<Observation>> {
        let InventoryFile { path, node, read_at } = self.file.as_mut()?;
        let modified = fs::metadata(&path).ok()?.modified().ok()?;
        if *read_at == Some(modified) {
            return None;
        }
        *read_at = Some(modified);
        match file::read(path, node) {
            Ok(observations) => Some(observations),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "keeping the inventory as it was");
                None
            }
        }
    }

    /// Looks at the node's interfaces again, now and then; what changed, if anything did.
    pub(crate) fn look_at_interfaces(&mut self, now: TimestampMs) -> Option<Change> {
        let record = self.interfaces.look(now).then(|| self.interfaces.record())?;
        record.map(Change::There).filter(|change| self.log.is_news(change))
    }

    /// Takes over what a file says now, and returns rows that tell the difference.
    pub(crate) fn replace(&mut self, new: Vec<Observation>, now: TimestampMs) -> Vec<InventoryRecord> {
        let known = records(&new).into_iter().chain(self.interfaces.record());
        let rows = self.log.replace(known.collect(), now);
        self.observations = new;
        rows
    }
}

fn records(observations: &[Observation]) -> Vec<InventoryRecord> {
    observations.iter().map(|observation| observation.record.clone()).collect()
}
