//! The inventory as it is now, and the rows that tell how it came to be so.
//!
//! A writer tells everything it knows in a snapshot, and from then on what changes: before the first snapshot nothing is
//! told, and what is told again unchanged makes no row.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use schemas::{
    capture::Origin,
    hour::Hour,
    inventory::{InventoryEvent, InventoryRecord, Scope},
    table::TimestampMs,
};

use super::Change;

/// What a writer knows, and what it has told.
#[derive(Debug)]
pub struct InventoryLog {
    origin: Origin,
    scope: Scope,
    known: BTreeMap<Key, InventoryRecord>,
    /// Of a list that is under way: what was known before and has not been named yet.
    unnamed: BTreeSet<Key>,
    /// The first snapshot was told.
    has_begun: bool,
    next_seq: i64,
    written_at: TimestampMs,
}

/// Kind, namespace, name, UID and a Workload's own kind.
type Key = (Arc<str>, Option<Arc<str>>, Arc<str>, Option<Arc<str>>, Option<Arc<str>>);

impl InventoryLog {
    /// The log of a writer that knows nothing yet.
    pub fn new(origin: Origin, scope: Scope) -> Self {
        let (known, unnamed) = (BTreeMap::new(), BTreeSet::new());
        Self { origin, scope, known, unnamed, has_begun: false, next_seq: 0, written_at: TimestampMs(0) }
    }

    /// All that is known, in order of kind, namespace and name.
    pub fn known(&self) -> impl Iterator<Item = &InventoryRecord> {
        self.known.values()
    }

    /// Number of the next row.
    pub const fn next_seq(&self) -> i64 {
        self.next_seq
    }

    /// From now on the writer knows more, or less.
    pub const fn set_scope(&mut self, scope: Scope) {
        self.scope = scope;
    }

    /// Whether rows written now belong to another hour's file than the last ones.
    pub const fn is_new_hour(&self, now: TimestampMs) -> bool {
        Hour::of(now).0 != Hour::of(self.written_at).0
    }

    /// Whether a snapshot is due before rows of a change are written: a file, of which one `is_open` or not, and every hour,
    /// opens with what was known before.
    pub fn opens_with(&self, change: &Change, is_open: bool, now: TimestampMs) -> bool {
        self.has_begun && (!is_open || self.is_new_hour(now)) && self.is_news(change)
    }

    /// Whether a snapshot is due without a change: every day opens with one, and so does what follows a file that
    /// `is_broken`.
    pub const fn is_due(&self, is_broken: bool, now: TimestampMs) -> bool {
        self.has_begun && (is_broken || now.0.div_euclid(DAY_MS) != self.written_at.0.div_euclid(DAY_MS))
    }

    /// Whether the first snapshot was told.
    pub const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Rows that tell of everything.
    pub fn snapshot(&mut self, now: TimestampMs) -> Vec<InventoryRecord> {
        self.has_begun = true;
        let known = std::mem::take(&mut self.known);
        let rows = known.values().map(|record| self.row(InventoryEvent::Snapshot, record.clone(), now)).collect();
        self.known = known;
        rows
    }

    /// An object is there, or has changed; its row if that is news.
    pub fn upsert(&mut self, record: InventoryRecord, now: TimestampMs) -> Option<InventoryRecord> {
        let key = key(&record);
        self.unnamed.remove(&key);
        if self.known.get(&key) == Some(&record) {
            return None;
        }
        self.known.insert(key, record.clone());
        self.has_begun.then(|| self.row(InventoryEvent::Upsert, record, now))
    }

    /// An object is gone; its row if it was known. `last` is what it was at the end.
    pub fn delete(&mut self, last: InventoryRecord, now: TimestampMs) -> Option<InventoryRecord> {
        let key = key(&last);
        self.unnamed.remove(&key);
        self.known.remove(&key)?;
        self.has_begun.then(|| self.row(InventoryEvent::Delete, last, now))
    }

    /// A full list of objects of one sort begins.
    pub fn begin_list(&mut self, is_listed: impl Fn(&InventoryRecord) -> bool) {
        let listed = self.known.iter().filter(|(_, record)| is_listed(record));
        self.unnamed.extend(listed.map(|(key, _)| key.clone()));
    }

    /// The list is complete: what it did not name is gone.
    pub fn end_list(&mut self, is_listed: impl Fn(&InventoryRecord) -> bool, now: TimestampMs) -> Vec<InventoryRecord> {
        let known = &self.known;
        let (gone, others) =
            std::mem::take(&mut self.unnamed).into_iter().partition(|key| known.get(key).is_some_and(&is_listed));
        self.unnamed = others;
        let gone: BTreeSet<Key> = gone;
        let records: Vec<_> = gone.iter().filter_map(|key| self.known.remove(key)).collect();
        if !self.has_begun {
            return Vec::new();
        }
        records.into_iter().map(|record| self.row(InventoryEvent::Delete, record, now)).collect()
    }

    /// Takes in what the API server says, and returns rows that tell what is new.
    pub fn learn(&mut self, change: Change, now: TimestampMs) -> Vec<InventoryRecord> {
        match change {
            Change::Listing(resource) => {
                self.begin_list(|record| resource.is_of(record));
                Vec::new()
            }
            Change::There(record) => self.upsert(record, now).into_iter().collect(),
            Change::Gone(record) => self.delete(record, now).into_iter().collect(),
            Change::Listed(resource) => self.end_list(|record| resource.is_of(record), now),
            Change::Unreadable(..) => Vec::new(),
        }
    }

    /// Whether [`Self::learn`] would, or may, make rows of it.
    pub fn is_news(&self, change: &Change) -> bool {
        match change {
            Change::There(record) => self.known.get(&key(record)) != Some(record),
            Change::Gone(record) => self.known.contains_key(&key(record)),
            Change::Listed(_) => !self.unnamed.is_empty(),
            Change::Listing(_) | Change::Unreadable(..) => false,
        }
    }

    /// Takes over a full list of everything, and returns rows that tell the difference.
    pub fn replace(&mut self, records: Vec<InventoryRecord>, now: TimestampMs) -> Vec<InventoryRecord> {
        self.begin_list(|_| true);
        for record in &records {
            self.unnamed.remove(&key(record));
        }
        // What is gone is told first: its address may have moved on.
        let mut rows = self.end_list(|_| true, now);
        rows.extend(records.into_iter().filter_map(|record| self.upsert(record, now)));
        rows
    }

    fn row(&mut self, event: InventoryEvent, record: InventoryRecord, now: TimestampMs) -> InventoryRecord {
        self.written_at = now;
        let seq = self.next_seq;
        self.next_seq += 1;
        let Origin { cluster, node, run_id } = self.origin.clone();
        let (scope, event) = (self.scope.into(), event.into());
        InventoryRecord { cluster, node, run_id, seq, scope, observed_at: now, event, ..record }
    }
}

fn key(record: &InventoryRecord) -> Key {
    let InventoryRecord { kind, namespace, name, uid, workload_kind, .. } = record;
    (Arc::clone(kind), namespace.clone(), Arc::clone(name), uid.clone(), workload_kind.clone())
}

const DAY_MS: i64 = 24 * Hour::MS;

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::inventory::{ObjectKind, Scope};

    fn record(kind: ObjectKind, name: &str, address: &str) -> InventoryRecord {
        let addresses = vec![address.into()];
        InventoryRecord { kind: kind.into(), name: name.into(), addresses, ..InventoryRecord::default() }
    }

    fn told(rows: impl IntoIterator<Item = InventoryRecord>) -> Vec<String> {
        rows.into_iter().map(|row| format!("{} {} {}", row.seq, row.event, row.name)).collect()
    }

    #[test]
    fn only_news_make_rows() {
        let mut log = InventoryLog::new(Origin::default(), Scope::Part);
        let at = TimestampMs(1);
        assert_eq!(told(log.upsert(record(ObjectKind::Pod, "a", "1.1.1.1"), at)), [""; 0], "not before the snapshot");
        assert_eq!(told(log.snapshot(at)), ["0 snapshot a"]);
        assert_eq!(told(log.upsert(record(ObjectKind::Pod, "a", "1.1.1.1"), at)), [""; 0]);
        assert_eq!(told(log.upsert(record(ObjectKind::Pod, "a", "1.1.1.2"), at)), ["1 upsert a"]);
        assert_eq!(told(log.snapshot(at)), ["2 snapshot a"]);
        assert_eq!(told(log.delete(record(ObjectKind::Pod, "b", ""), at)), [""; 0], "it was never told of");
        assert_eq!(told(log.delete(record(ObjectKind::Pod, "a", ""), at)), ["3 delete a"]);
        assert_eq!((told(log.snapshot(at)).len(), log.next_seq()), (0, 4));
    }

    #[test]
    fn a_list_ends_what_it_does_not_name_and_nothing_of_another_sort() {
        let mut log = InventoryLog::new(Origin::default(), Scope::Part);
        let at = TimestampMs(1);
        let all = [(ObjectKind::Pod, "a"), (ObjectKind::Pod, "b"), (ObjectKind::Pod, "c"), (ObjectKind::Node, "n")];
        log.snapshot(at);
        log.replace(all.map(|(kind, name)| record(kind, name, "1.1.1.1")).to_vec(), at);
        let is_pod = |record: &InventoryRecord| *record.kind == ObjectKind::Pod;
        log.begin_list(is_pod);
        assert_eq!(told(log.upsert(record(ObjectKind::Pod, "a", "1.1.1.1"), at)), [""; 0]);
        assert_eq!(told(log.delete(record(ObjectKind::Pod, "c", "1.1.1.1"), at)), ["4 delete c"]);
        assert_eq!(told(log.end_list(is_pod, at)), ["5 delete b"]);
        assert_eq!(
            told(log.replace(vec![record(ObjectKind::Pod, "d", "1.1.1.1")], at)),
            ["6 delete n", "7 delete a", "8 upsert d"]
        );
    }
}
