//! What the agent learns of the rest of the cluster with `--remote-metadata cluster`: straight into the index, and not
//! written to the inventory, which has one writer for it.

use std::{collections::HashMap, sync::Arc};

use kubernetes::{Change, Problem, Resource, Trouble, Troubles};
use schemas::{
    index::{Heard, Index},
    inventory::{InventoryEvent, InventoryRecord, Scope},
    table::TimestampMs,
};

/// How far each resource is known.
#[derive(Debug)]
pub(crate) struct Cluster {
    run_id: Arc<str>,
    /// Texts that every record has.
    part: Arc<str>,
    events: [Arc<str>; 2],
    /// Resources that were never listed to the end.
    unlisted: Vec<Resource>,
    /// When a list began that is under way, by kind of record.
    listing: HashMap<Arc<str>, TimestampMs>,
    troubles: Troubles,
    /// Whether this node's own pods were listed, and what keeps them from being watched.
    is_own_listed: bool,
    own_troubles: Troubles,
}

impl Cluster {
    /// Nothing is known yet of any of these.
    pub(crate) fn new(run_id: Arc<str>, resources: Vec<Resource>) -> Self {
        let (part, events) = (Scope::Part.into(), [InventoryEvent::Snapshot, InventoryEvent::Upsert].map(Arc::from));
        Self {
            run_id,
            part,
            events,
            unlisted: resources,
            listing: HashMap::new(),
            troubles: Troubles::default(),
            is_own_listed: false,
            own_troubles: Troubles::default(),
        }
    }

    /// Whether every resource was listed once.
    fn is_known(&self) -> bool {
        self.unlisted.is_empty() && self.is_own_listed
    }

    /// Whether every resource was listed once, or may not be.
    pub(crate) fn is_settled(&self) -> bool {
        let is_refused = |trouble: &Trouble| !matches!(trouble.problem, Problem::Failed(_));
        let mut unlisted = self.unlisted.iter();
        unlisted.all(|resource| self.troubles.iter().any(|t| t.resource == *resource && is_refused(t)))
    }

    /// Takes in what was heard.
    pub(crate) fn learn(&mut self, index: &mut Index, change: Change, now: TimestampMs) {
        self.troubles.learn(&change, now);
        match change {
            Change::Listing(resource) => {
                let kind: Arc<str> = resource.kind.into();
                index.begin_list(self.heard(&kind, now));
                self.listing.insert(kind, now);
            }
            Change::There(record) => {
                let listed_at = self.listing.get(&record.kind).copied();
                let event = Arc::clone(&self.events[usize::from(listed_at.is_none())]);
                index.apply(self.slim(record, event, listed_at.unwrap_or(now)));
            }
            Change::Gone(record) => index.apply(self.slim(record, InventoryEvent::Delete.into(), now)),
            Change::Listed(resource) => {
                self.listing.remove(resource.kind.as_str());
                index.settle_writer(&resource.kind.into());
                let was_known = self.is_known();
                self.unlisted.retain(|other| *other != resource);
                self.begin_coverage(index, was_known, now);
            }
            Change::Unreadable(..) => {}
        }
    }

    /// Takes in what was heard of this node's own pods, which the index has from their inventory.
    pub(crate) fn learn_own(&mut self, index: &mut Index, change: &Change, now: TimestampMs) {
        self.own_troubles.learn(change, now);
        let was_known = self.is_known();
        self.is_own_listed |= matches!(change, Change::Listed(_));
        self.begin_coverage(index, was_known, now);
    }

    fn begin_coverage(&self, index: &mut Index, was_known: bool, now: TimestampMs) {
        if self.is_known() && !was_known {
            index.begin_coverage(self.heard(&WRITER.into(), now));
        }
    }

    /// While everything can be watched, what is not known is not there.
    pub(crate) fn tick(&mut self, index: &mut Index, now: TimestampMs) {
        self.troubles.expire(now);
        self.own_troubles.expire(now);
        if self.troubles.iter().chain(self.own_troubles.iter()).next().is_none() {
            index.hear(self.heard(&WRITER.into(), now));
        }
    }

    fn heard(&self, writer: &Arc<str>, time: TimestampMs) -> Heard {
        Heard { time, writer: Arc::clone(writer), run_id: Arc::clone(&self.run_id) }
    }

    /// Of remote objects, what names an end of a flow.
    fn slim(&self, record: InventoryRecord, event: Arc<str>, observed_at: TimestampMs) -> InventoryRecord {
        InventoryRecord {
            node: Arc::clone(&record.kind),
            run_id: Arc::clone(&self.run_id),
            scope: Arc::clone(&self.part),
            observed_at,
            event,
            // Where Services are known, so are their EndpointSlices: container ports decide nothing.
            ports: if record.host_network.is_some() { Vec::new() } else { record.ports },
            annotations: None,
            ..record
        }
    }
}

/// Stands for the watches together.
const WRITER: &str = "cluster";
