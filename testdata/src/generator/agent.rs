//! The agents of the made-up cluster, which write with the shipped writer.

use std::{path::Path, time::Duration};

use anyhow::Result;
use kubernetes::inventory_log::InventoryLog;
use schemas::{
    capture::{DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::{InventoryRecord, Scope},
    programs::{PROGRAMS, Program},
    table::TimestampMs,
};

use super::{MINUTE_MS, Plan};

/// One run of an agent.
pub(super) struct Agent {
    pub(super) origin: Origin,
    pub(super) log: InventoryLog,
    pub(super) flows: DatasetWriter<FlowRecord>,
    pub(super) inventory: DatasetWriter<InventoryRecord>,
    health: DatasetWriter<HealthRecord>,
    pub(super) flows_next_seq: i64,
    health_next_seq: i64,
    run_start: i64,
    pub(super) seen: i64,
    /// Flows of its first hour, where they are to be repeated.
    pub(super) first_hour: Vec<FlowRecord>,
}

impl Agent {
    pub(super) fn new(plan: &Plan, directory: &Path, node: &str, run: u32, time: i64, scope: Scope) -> Self {
        let run_id = format!("{run:08x}{:024x}", plan.seed).into();
        let origin = Origin { cluster: "generated".into(), node: node.into(), run_id };
        let roll = Roll { size_bytes: u64::MAX, age: Duration::MAX };
        Self {
            log: InventoryLog::new(origin.clone(), scope),
            flows: DatasetWriter::new(directory, &origin, "generated", roll),
            inventory: DatasetWriter::new(directory, &origin, "generated", roll),
            health: DatasetWriter::new(directory, &origin, "generated", roll),
            origin,
            flows_next_seq: 0,
            health_next_seq: 0,
            run_start: time,
            seen: 0,
            first_hour: Vec::new(),
        }
    }

    /// Writes a flow as the next one of the run.
    pub(super) fn write(&mut self, row: FlowRecord) -> Result<()> {
        let Origin { cluster, node, run_id } = self.origin.clone();
        self.seen += row.connections + row.failed;
        let (seq, window) = (self.flows_next_seq, row.window_start);
        self.flows_next_seq += 1;
        self.flows.push(FlowRecord { cluster, node, run_id, seq, ..row }, window)?;
        Ok(())
    }

    /// Writes the first hour's flows once more, at another time, with the health of each minute.
    pub(super) fn repeat_hour(&mut self, first: i64, start: i64) -> Result<()> {
        let later = |time: TimestampMs| TimestampMs(time.0 + start - first);
        let rows = std::mem::take(&mut self.first_hour);
        let mut rest = &rows[..];
        for minute in 0..60 {
            let window = first + minute * MINUTE_MS;
            let (now, others) = rest.split_at(rest.partition_point(|row| row.window_start.0 <= window));
            rest = others;
            for row in now {
                let row = row.clone();
                let (window_start, window_end) = (later(row.window_start), later(row.window_end));
                let (first_seen, last_seen) = (later(row.first_seen), later(row.last_seen));
                self.write(FlowRecord { window_start, window_end, first_seen, last_seen, ..row })?;
            }
            self.tell_health(start + minute * MINUTE_MS, false)?;
        }
        self.first_hour = rows;
        Ok(())
    }

    /// Takes in what became of an object; what is to be written of it.
    pub(super) fn learn(&mut self, record: &InventoryRecord, is_there: bool, time: i64) -> Option<InventoryRecord> {
        let (record, time) = (record.clone(), TimestampMs(time));
        if is_there { self.log.upsert(record, time) } else { self.log.delete(record, time) }
    }

    pub(super) fn tell_health(&mut self, window: i64, clean_shutdown: bool) -> Result<()> {
        let Origin { cluster, node, run_id } = self.origin.clone();
        let (seq, seen) = (self.health_next_seq, std::mem::take(&mut self.seen));
        self.health_next_seq += 1;
        let end = if clean_shutdown { window + 1 } else { window + MINUTE_MS };
        let row = HealthRecord {
            cluster,
            node,
            run_id,
            seq,
            window_start: TimestampMs(window),
            window_end: TimestampMs(end),
            run_start: TimestampMs(self.run_start),
            agent_version: "generated".into(),
            programs: PROGRAMS.iter().filter(|program| !is_substitute(program)).map(|p| p.name.into()).collect(),
            window_ms: MINUTE_MS,
            seen,
            exported: seen,
            flows_next_seq: self.flows_next_seq,
            inventory_next_seq: self.log.next_seq(),
            clean_shutdown,
            ..HealthRecord::default()
        };
        self.health.push(row, TimestampMs(window))?;
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.flows.finish()?;
        self.inventory.finish()?;
        self.health.finish()?;
        Ok(())
    }
}

/// Whether a program is attached only where the kernel can't have another one.
fn is_substitute(program: &Program) -> bool {
    PROGRAMS.iter().any(|other| other.substitutes.contains(&program.name))
}
