//! Sets as text for people, those first that need attention, and as JSON.

use std::{collections::BTreeMap, fmt::Write};

use arrow::{error::ArrowError, json::ArrayWriter};
use schemas::table::Table;
use serde_json::{Value, json};

use super::{Entry, Fate, Set, Sets, Status, exposure::Time};
use crate::communication::{Direction, Endpoint, Workload};

/// Why sets can't be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the sets as JSON")]
pub(crate) enum EncodeError {
    Arrow(#[from] ArrowError),
    Json(#[from] serde_json::Error),
}

impl Sets {
    /// What a person should know before trusting policies made of the sets of some workloads, a line each.
    pub(crate) fn remarks(&self, is_wanted: impl Fn(&Workload) -> bool) -> String {
        let mut text = String::new();
        let concerns = |end: &Endpoint| matches!(end, Endpoint::Workload(workload) if is_wanted(workload));
        for (server, found) in &self.dynamic_ports {
            if concerns(&server.0) || found.sources.iter().any(concerns) {
                let _ = writeln!(text, "{}", found.described(server));
            }
        }
        for (edge, (_, fate)) in
            self.edges.iter().filter(|(edge, _)| concerns(&edge.source) || concerns(&edge.destination))
        {
            let _ = match fate {
                Fate::Held(_) if self.is_dynamic(edge) => Ok(()),
                Fate::Held(reason) => writeln!(text, "{edge}: held for review, {reason}"),
                Fate::Forbidden(reason) if reason.is_empty() => writeln!(text, "{edge}: forbidden"),
                Fate::Forbidden(reason) => writeln!(text, "{edge}: forbidden, {reason}"),
                _ => Ok(()),
            };
        }
        for (workload, set) in self.workloads.iter().filter(|(workload, _)| is_wanted(workload)) {
            for entry in set.entries.iter().filter(|entry| entry.status == Status::Decaying) {
                if self.edges.get(&entry.edge).is_some_and(|(_, fate)| fate.is_allowed()) {
                    let _ = writeln!(text, "{workload}: {} is decaying, {}", entry.told(), entry.reason);
                }
            }
        }
        text + &self.idle_remarks()
    }

    /// Decisions that concern nothing, a line each.
    pub(crate) fn idle_remarks(&self) -> String {
        let line = |decision| format!("{decision}: concerns nothing that was seen or is known\n");
        self.idle_decisions.iter().map(line).collect()
    }

    /// The sets as text: first those with something to review, then by how unsure they are.
    pub(crate) fn told(&self, is_wanted: impl Fn(&Workload) -> bool) -> String {
        let mut wanted: Vec<(&Workload, &Set)> = self.workloads.iter().filter(|(name, _)| is_wanted(name)).collect();
        wanted.sort_by_key(|(name, set)| (!self.has_held(set), set.status, *name));
        let mut text = String::new();
        for (workload, set) in wanted {
            let time = self.exposure.of(workload);
            let (ran, observed) = time.map(Time::sums).unwrap_or_default();
            let _ = write!(text, "{workload} ({}): {}, {}", workload.kind, set.status.as_str(), set.reason);
            if let Some(time) = time.filter(|_| ran > 0) {
                let coverage = 100.0 * observed as f64 / ran as f64;
                let _ = write!(text, "; {} pods, {} h, {coverage:.0} % observed", time.pods, time.ran.len());
                for direction in Direction::ALL.into_iter().filter(|direction| time.is_incomplete(*direction)) {
                    let coverage = 100.0 * time.coverage_of(direction).unwrap_or_default();
                    let missing: Vec<&str> =
                        time.unrecorded(direction).map(|(missing, _)| missing.program.name).collect();
                    let (direction, missing) = (direction.as_str(), missing.join(", "));
                    let _ = write!(text, ", all of its {direction} {coverage:.0} % (missing: {missing})");
                }
            }
            let _ = write!(text, "; {}", set.completeness.told());
            text.push('\n');
            for (direction, server, found) in self.dynamic_ports_of(workload) {
                let _ = writeln!(text, "  held        {}: {}", direction.as_str(), found.described(server));
            }
            let mut entries: Vec<&Entry> = set.entries.iter().filter(|entry| !self.is_dynamic(&entry.edge)).collect();
            entries.sort_by_key(|entry| (self.rank(entry), entry.status));
            let width = entries.iter().map(|entry| entry.told().chars().count()).max().unwrap_or(0);
            for entry in entries {
                self.tell_entry(&mut text, entry, width);
            }
            text.push('\n');
        }
        let _ = writeln!(text, "all together: {}", self.completeness.told());
        text
    }

    fn tell_entry(&self, text: &mut String, entry: &Entry, width: usize) {
        let Some((evidence, fate)) = self.edges.get(&entry.edge) else { return };
        let status = match fate {
            Fate::Learned => entry.status.as_str(),
            other => other.told().0,
        };
        let why = fate.told().1.filter(|reason| !reason.is_empty()).unwrap_or(&entry.reason);
        let _ = writeln!(
            text,
            "  {status:<11} {:<width$}  {} of {} h, {} connections, seen by {}; {why}",
            entry.told(),
            entry.seen_hours,
            entry.observable_hours,
            evidence.connections,
            if entry.since.is_some() { evidence.seen_by() } else { "nobody" },
        );
    }

    fn has_held(&self, set: &Set) -> bool {
        set.entries.iter().any(|entry| self.rank(entry) == 0)
    }

    fn rank(&self, entry: &Entry) -> u8 {
        match self.edges.get(&entry.edge) {
            Some((_, Fate::Held(_))) => 0,
            Some((_, Fate::Forbidden(_))) => 1,
            _ => 2,
        }
    }

    /// The sets as JSON: every workload as in table `workloads`, with its rows of `communication_sets`.
    pub(crate) fn json(&self, is_wanted: impl Fn(&Workload) -> bool) -> Result<Value, EncodeError> {
        let key =
            |row: &Value| ["namespace", "workload_kind", "workload"].map(|name| row[name].as_str().map(str::to_owned));
        let mut entries: BTreeMap<_, Vec<Value>> = BTreeMap::new();
        for mut row in objects(&self.rows())? {
            let of = key(&row);
            if let Some(columns) = row.as_object_mut() {
                columns.retain(|name, _| !["namespace", "workload_kind", "workload"].contains(&name.as_str()));
            }
            entries.entry(of).or_default().push(row);
        }
        let mut wanted: Vec<(&Workload, &Set, Value)> = Vec::new();
        for ((workload, set), mut row) in self.workloads.iter().zip(objects(&self.workload_rows())?) {
            row["set"] = json!(entries.remove(&key(&row)).unwrap_or_default());
            if is_wanted(workload) {
                wanted.push((workload, set, row));
            }
        }
        wanted.sort_by_key(|(name, set, _)| (!self.has_held(set), set.status, *name));
        Ok(wanted.into_iter().map(|(.., row)| row).collect())
    }
}

/// Rows of a table as JSON objects.
fn objects<T: Table>(rows: &[T]) -> Result<Vec<Value>, EncodeError> {
    let mut writer = ArrayWriter::new(Vec::new());
    writer.write(&T::encode(rows))?;
    writer.finish()?;
    Ok(serde_json::from_slice(&writer.into_inner())?)
}
