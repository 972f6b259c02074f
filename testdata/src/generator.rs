//! Captures of any size whose truth is known: what agents would have written of a made-up cluster over days to months.
//!
//! ```text
//! Plan ──world──► who runs where, and when ──traffic──► flows, inventory, health (by the shipped writer)
//!                                                   └──► Truth: every edge with what was observable of it
//! ```
//!
//! The cluster has Deployments that call each other, through Services and directly, an API server, DNS, the outside; pods
//! that move to addresses that others just left; nodes without agents, and agents that fail. [`Story`] tells of the rest.

mod agent;
mod traffic;
mod truth;
mod world;

use std::path::Path;

use anyhow::Result;
use schemas::table::TimestampMs;

pub use truth::{TrueEdge, TrueEvidence, Truth};

/// What to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The same seed makes the same capture.
    pub seed: u64,
    /// When it begins: the start of an hour.
    pub start: TimestampMs,
    /// How long it is.
    pub hours: u32,
    /// Nodes that run pods.
    pub nodes: u16,
    /// The last so many of them have no agent.
    pub without_agent: u16,
    /// Deployments that call each other.
    pub workloads: u16,
    /// Pods of each.
    pub replicas: u16,
    /// How many others each calls.
    pub calls: u16,
    /// Of a hundred windows of a pair of pods, so many have traffic.
    pub busy_percent: u8,
    /// Every so many hours a Deployment's pods are replaced; 0 for never.
    pub rollout_hours: u32,
    /// Whether servers tell of connections too.
    pub both_observers: bool,
    /// Times at which the agent of a node is away: its number, first hour, and first hour of its return.
    pub gaps: Vec<(u16, u32, u32)>,
    /// Whether every hour's traffic is that of the first, which is fast; of it, there is no truth but for the first hour.
    pub repeats: bool,
    /// What happens besides.
    pub stories: Vec<Story>,
}

/// Something that a communication set has to get right. Hours count from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    /// `batch/nightly`, a CronJob, calls `shop/app-0` every day at 02:10 UTC.
    Nightly,
    /// `batch/weekly`, a CronJob, calls `shop/app-0` every Sunday at 04:10 UTC.
    Weekly,
    /// `batch/month-end`, a CronJob, calls `shop/app-1` on the last day of every month at 23:10 UTC.
    MonthEnd,
    /// `tools/scanner`, a bare pod, tries everything for 20 minutes from this hour on, and reaches `shop/app-0`.
    Scan(u32),
    /// `tools/debug`, a bare pod, calls `shop/app-2` for a quarter of an hour.
    Debug(u32),
    /// `shop/ledger`, which `shop/app-3` calls, is removed.
    Decommission(u32),
    /// All of `shop/app-4` call `shop/app-5` on port 9999, for two hours.
    Burst(u32),
    /// `shop/app-6` calls `shop/app-7` on port 7070 from then on.
    Newcomer(u32),
}

impl Plan {
    /// A month of a small cluster, with every story.
    pub fn month(seed: u64) -> Self {
        Self {
            seed,
            start: TimestampMs(1_772_323_200_000), // 2026-03-01, 00:00 UTC, a Sunday
            hours: 31 * 24,
            nodes: 4,
            without_agent: 1,
            workloads: 10,
            replicas: 3,
            calls: 2,
            busy_percent: 4,
            rollout_hours: 60,
            both_observers: true,
            gaps: vec![(1, 240, 276)],
            repeats: false,
            stories: vec![
                Story::Nightly,
                Story::Weekly,
                Story::MonthEnd,
                Story::Scan(274),
                Story::Debug(192),
                Story::Decommission(360),
                Story::Burst(120),
                Story::Newcomer(700),
            ],
        }
    }

    /// An hour of so many Deployments of one pod, each of which calls fifty others, for measuring policies.
    pub fn wide(workloads: u16) -> Self {
        Self { hours: 1, nodes: 20, workloads, replicas: 1, calls: 50, busy_percent: 8, ..Self::bench(0) }
    }

    /// 30 days with about so many rows of flows for measuring: the cluster of [`Self::bench`], in which everybody talks
    /// more.
    pub fn long(rows: u64) -> Self {
        let percent = rows * 2 / (720 * BENCH_ROWS_PER_HOUR);
        let busy_percent = u8::try_from(percent).unwrap_or(100).clamp(1, 100);
        Self { hours: 720, busy_percent, rollout_hours: 0, repeats: true, ..Self::bench(0) }
    }

    /// About so many rows of flows for measuring: 200 Deployments on ten nodes, 28,000 rows an hour.
    pub fn bench(rows: u64) -> Self {
        Self {
            hours: u32::try_from(rows / BENCH_ROWS_PER_HOUR).unwrap_or(u32::MAX).max(1),
            nodes: 10,
            without_agent: 0,
            workloads: 200,
            replicas: 3,
            calls: 18,
            busy_percent: 2,
            rollout_hours: 168,
            gaps: Vec::new(),
            stories: Vec::new(),
            ..Self::month(1)
        }
    }
}

/// Writes a capture below a directory, and returns its truth.
///
/// # Errors
/// The directory can't be written.
pub fn generate(plan: &Plan, directory: &Path) -> Result<Truth> {
    generate_while(plan, directory, |_| Ok(()))
}

/// As [`generate`]; `watch` is told before each hour is written, when the files of all hours before it are there.
///
/// # Errors
/// As [`generate`], or `watch` fails.
pub fn generate_while(plan: &Plan, directory: &Path, mut watch: impl FnMut(u32) -> Result<()>) -> Result<Truth> {
    let mut traffic = traffic::Traffic::new(plan, directory)?;
    for hour in 0..plan.hours {
        watch(hour)?;
        traffic.hour(hour)?;
        traffic.finish_files()?;
    }
    traffic.finish()
}

/// Rows of flows that [`Plan::bench`] makes in an hour.
const BENCH_ROWS_PER_HOUR: u64 = 28_000;
const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;
