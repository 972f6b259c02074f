//! The inventory as it is now, and the log of how it came to be so.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::SystemTime};

use schemas::{
    capture::Origin,
    inventory::{EVENT_DELETE, EVENT_SNAPSHOT, EVENT_UPSERT, InventoryRecord},
    table::TimestampMs,
};

use crate::enrich::{
    Observation,
    file::{self, InventoryError},
};

/// What is known of the objects around, and the rows that tell it.
pub(crate) struct Inventory {
    path: Option<PathBuf>,
    node: Arc<str>,
    read_at: Option<SystemTime>,
    observations: Vec<Observation>,
    next_seq: i64,
    written_at: TimestampMs,
}

/// Kind, namespace, name, UID and owner's kind.
type Key<'a> = (&'a str, Option<&'a str>, &'a str, Option<&'a str>, Option<&'a str>);

impl Inventory {
    /// Reads the file; without one, nothing is known.
    ///
    /// # Errors
    /// The file can't be read or is not valid.
    pub(crate) fn open(path: Option<PathBuf>, node: &Arc<str>) -> Result<Self, InventoryError> {
        let read_at = path.as_deref().and_then(|path| fs::metadata(path).ok()?.modified().ok());
        let observations = path.as_deref().map_or_else(|| Ok(Vec::new()), |path| file::read(path, node))?;
        Ok(Self { path, node: Arc::clone(node), read_at, observations, next_seq: 0, written_at: TimestampMs(0) })
    }

    /// All that is known.
    pub(crate) fn observations(&self) -> &[Observation] {
        &self.observations
    }

    /// Number of the next row.
    pub(crate) const fn next_seq(&self) -> i64 {
        self.next_seq
    }

    /// Whether rows written now belong to another hour's file than the last ones.
    pub(crate) const fn is_new_hour(&self, now: TimestampMs) -> bool {
        now.0.div_euclid(HOUR_MS) != self.written_at.0.div_euclid(HOUR_MS)
    }

    /// Whether the last rows are of another day.
    pub(crate) const fn is_new_day(&self, now: TimestampMs) -> bool {
        now.0.div_euclid(DAY_MS) != self.written_at.0.div_euclid(DAY_MS)
    }

    /// Rows that tell of everything.
    pub(crate) fn snapshot(&mut self, origin: &Origin, now: TimestampMs) -> Vec<InventoryRecord> {
        let records: Vec<_> = self.observations.iter().map(|o| (EVENT_SNAPSHOT, o.record.clone())).collect();
        self.rows(records, origin, now)
    }

    /// Reads the file again if it was written since. One that can't be used is reported once, and what was known stays.
    pub(crate) fn reload(&mut self) -> Option<Vec<Observation>> {
        let path = self.path.as_deref()?;
        let modified = fs::metadata(path).ok()?.modified().ok()?;
        if self.read_at == Some(modified) {
            return None;
        }
        self.read_at = Some(modified);
        match file::read(path, &self.node) {
            Ok(observations) => Some(observations),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "keeping the inventory as it was");
                None
            }
        }
    }

    /// Takes over what is known now, and returns rows that tell the difference.
    pub(crate) fn replace(&mut self, new: Vec<Observation>, origin: &Origin, now: TimestampMs) -> Vec<InventoryRecord> {
        let old = std::mem::replace(&mut self.observations, new);
        let known: BTreeMap<Key<'_>, &InventoryRecord> = old.iter().map(|o| (key(&o.record), &o.record)).collect();
        let current: BTreeMap<Key<'_>, &InventoryRecord> =
            self.observations.iter().map(|o| (key(&o.record), &o.record)).collect();
        let deleted =
            known.iter().filter(|(key, _)| !current.contains_key(*key)).map(|(_, r)| (EVENT_DELETE, (*r).clone()));
        let upserted = current
            .iter()
            .filter(|(key, record)| known.get(*key) != Some(record))
            .map(|(_, r)| (EVENT_UPSERT, (*r).clone()));
        // What is gone is told first: its address may have moved on.
        let records = deleted.chain(upserted).collect();
        self.rows(records, origin, now)
    }

    fn rows(
        &mut self,
        records: Vec<(&'static str, InventoryRecord)>,
        origin: &Origin,
        now: TimestampMs,
    ) -> Vec<InventoryRecord> {
        self.written_at = now;
        let first = self.next_seq;
        self.next_seq += records.len() as i64;
        let numbered = records.into_iter().zip(first..);
        numbered
            .map(|((event, record), seq)| InventoryRecord {
                cluster: Arc::clone(&origin.cluster),
                node: Arc::clone(&origin.node),
                run_id: Arc::clone(&origin.run_id),
                seq,
                observed_at: now,
                event: event.into(),
                ..record
            })
            .collect()
    }
}

fn key(record: &InventoryRecord) -> Key<'_> {
    (&record.kind, record.namespace.as_deref(), &record.name, record.uid.as_deref(), record.owner_kind.as_deref())
}

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
