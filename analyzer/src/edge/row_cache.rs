//! What is known of rows that say the same: what they are counted for, for as long as that holds.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use schemas::index::Span;
use smallvec::SmallVec;

use super::dictionary::Texts;

/// What rows are told apart by: port and whether the client observed it, in one; both addresses; and the number of what
/// the row says of its transport and its local end.
pub(super) type RowKey = [u32; 4];

/// Everything that was met lately.
#[derive(Default)]
pub(super) struct Known {
    /// Where the shortcut of rows is.
    places: HashMap<RowKey, u32, RandomState>,
    pub(super) shortcuts: Vec<Shortcut>,
    pub(super) memos: Vec<Memo>,
    /// The unit of work that is under way.
    pub(super) unit: u32,
}

/// Most rows are of one edge whose ends are certain for long: what they are counted for, at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortcut {
    /// Spans for which nothing else has to be done; none, where that is never so.
    pub(super) from: i64,
    pub(super) to: i64,
    /// Where the edge's counts are, and of which hour.
    pub(super) hour: i64,
    pub(super) place: u32,
    pub(super) marks: Marks,
    pub(super) crosses_zones: bool,
    /// The unit of work in which it was met last.
    pub(super) unit: u32,
    /// What else is known, in the list of memos.
    pub(super) memo: u32,
}

/// What rows that say the same are counted as, where that takes more than a shortcut.
#[derive(Debug)]
pub(super) struct Memo {
    /// Spans for which it is right.
    pub(super) holds: Span,
    /// Spans for which nobody has to be told who the local end was.
    pub(super) certain: Span,
    pub(super) own: Option<Resolved>,
    /// The other end is not known, unless its own row tells.
    pub(super) is_pending: bool,
    pub(super) targets: SmallVec<[Target; 1]>,
}

/// An edge that rows are counted for.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) marks: Marks,
    /// Both ends' nodes are known, and in different zones.
    pub(super) crosses_zones: bool,
    /// Where its counts are, or what waits to be counted is, and of which hour.
    pub(super) place: (i64, usize),
}

/// What an edge has of all rows that say the same.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    pub(super) edge: u32,
    pub(super) source_pod: u32,
    pub(super) destination_pod: u32,
    /// Of the end that the rows' own agent sees.
    pub(super) source_container: u32,
    pub(super) destination_container: u32,
    pub(super) service: u32,
    pub(super) answered: bool,
}

/// One end of one row: the end's number, and the pod and node that it was, where known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolved {
    pub(super) end: u32,
    pub(super) pod: u32,
    pub(super) host: u32,
}

impl Known {
    /// Looks up the places of the next rows. Tables of this size are not in the processor's caches, and it waits for many
    /// look-ups at once as long as for one, if nothing else stands between them.
    pub(super) fn look_ahead(&self, rows: impl Iterator<Item = RowKey>, places: &mut Vec<u32>) {
        places.clear();
        places.extend(rows.map(|key| self.places.get(&key).copied().unwrap_or(NOT_MET)));
        let shortcuts = places.iter().filter_map(|place| self.shortcuts.get(*place as usize));
        std::hint::black_box(shortcuts.fold(0, |sum, shortcut| sum ^ shortcut.from));
    }

    /// The place of rows that were not met before, or only since it was looked ahead.
    pub(super) fn place_of(&mut self, key: RowKey) -> u32 {
        *self.places.entry(key).or_insert_with(|| {
            self.shortcuts.push(Shortcut::default());
            self.shortcuts.len() as u32 - 1
        })
    }

    /// Keeps what else is known of the rows at a place.
    pub(super) fn remember(&mut self, place: usize, memo: Memo) {
        match self.memos.get_mut(self.shortcuts[place].memo as usize) {
            Some(known) => *known = memo,
            None => {
                self.shortcuts[place].memo = self.memos.len() as u32;
                self.memos.push(memo);
            }
        }
    }

    /// A unit of work is over: what was not met for long may be forgotten.
    pub(super) fn end_unit(&mut self) {
        if self.shortcuts.len() > KNOWN_ROWS {
            self.forget();
        }
        self.unit += 1;
    }

    /// Forgets what was not met for long; where that is not enough, everything.
    fn forget(&mut self) {
        let oldest = self.unit.saturating_sub(FORGOTTEN_AFTER);
        let is_recent = |shortcut: &Shortcut| shortcut.unit >= oldest;
        if self.shortcuts.iter().filter(|shortcut| is_recent(shortcut)).count() > KNOWN_ROWS {
            self.places.clear();
            self.shortcuts.clear();
            self.memos.clear();
            return;
        }
        let mut kept = Vec::with_capacity(KNOWN_ROWS);
        let mut memos: Vec<Option<Memo>> = std::mem::take(&mut self.memos).into_iter().map(Some).collect();
        let Self { shortcuts, memos: kept_memos, .. } = self;
        self.places.retain(|_, place| {
            let mut shortcut = shortcuts[*place as usize];
            if let Some(memo) =
                memos.get_mut(shortcut.memo as usize).and_then(Option::take).filter(|_| is_recent(&shortcut))
            {
                shortcut.memo = kept_memos.len() as u32;
                kept_memos.push(memo);
            }
            *place = kept.len() as u32;
            let is_kept = is_recent(&shortcut);
            kept.extend(is_kept.then_some(shortcut));
            is_kept
        });
        self.shortcuts = kept;
    }
}

impl Memo {
    /// What rows are counted for at once, if they are of one edge and its ends are certain.
    pub(super) fn shortcut(&self) -> Option<Shortcut> {
        let [Target { marks, crosses_zones, place: _ }] = self.targets[..] else { return None };
        let certain = if self.own.is_some() { self.certain } else { self.holds };
        let (from, to) = (self.holds.from.max(certain.from).0, self.holds.to.min(certain.to).0);
        (!self.is_pending).then(|| Shortcut { from, to, marks, crosses_zones, ..Shortcut::default() })
    }
}

impl Default for Shortcut {
    fn default() -> Self {
        Self {
            from: i64::MAX,
            to: i64::MIN,
            hour: i64::MIN,
            place: 0,
            marks: Marks::default(),
            crosses_zones: false,
            unit: 0,
            memo: NOT_MET,
        }
    }
}

impl Resolved {
    /// What tells two ends apart: the pod, or else the node.
    pub(super) const fn identity(self) -> (u32, u32) {
        if self.pod == Texts::NONE { (Texts::NONE, self.host) } else { (self.pod, Texts::NONE) }
    }
}

/// Different rows that are remembered from one unit of work to the next: some 100 bytes each.
const KNOWN_ROWS: usize = 400_000;
/// Units of work after which rows that were not met again may be forgotten.
const FORGOTTEN_AFTER: u32 = 8;
/// The place of rows that were not met, and of memos that are not there.
pub(super) const NOT_MET: u32 = u32::MAX;
