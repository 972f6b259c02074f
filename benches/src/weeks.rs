//! Weeks of capture: what compaction takes, what is left, and what a report takes from that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Result, ensure};
use testdata::generator::{Plan, generate_while};

use crate::{
    agent,
    edges::{Taken, measure},
};

/// What was measured on the way.
#[derive(Default)]
struct Sums {
    raw_bytes: u64,
    flow_files: u64,
    compact_seconds: f64,
    generate_seconds: f64,
    peak_mib: f64,
}

/// Writes 30 days, which are compacted and pruned on the way, and prints what a report from the rest takes: from rollups,
/// and after one more hour, from what the last one remembers.
///
/// # Errors
/// A program fails, or a report from what is remembered is not the same.
pub(crate) fn run(rows: u64, every_hours: u32, keep: Option<&Path>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let directory = keep.unwrap_or(scratch.path()).join("weeks");
    ensure!(!directory.exists(), "{} is there already", directory.display());
    let (state, scratch) = (scratch.path().join("state"), scratch.path());
    let program = &agent::beside("analyzer", "flowscribe")?;
    let report = |arguments: &[PathBuf]| {
        let mut command = Command::new(program);
        command.args(["report", "--input"]).arg(&directory).arg("--output").arg(scratch.join("out")).args(arguments);
        measure(&mut command, scratch)
    };
    let remembering = || report(&["--state".into(), state.clone()]);
    let plan = Plan::long(rows);
    // One hour more than 30 days: it comes when a report was made.
    let plan = Plan { hours: plan.hours + 1, ..plan };
    let mut sums = Sums::default();
    let (mut from_rollups, mut before) = (None, None);
    let mut last = Instant::now();
    let truth = generate_while(&plan, &directory, |hour| {
        let is_last = hour + 1 == plan.hours;
        if hour > 1 && (hour % every_hours == 0 || is_last) {
            sums.generate_seconds += last.elapsed().as_secs_f64();
            sums.compact(program, &directory, scratch)?;
            last = Instant::now();
        }
        if is_last {
            from_rollups = Some(best(3, || report(&[]))?);
            before = Some(remembering()?);
            last = Instant::now();
        }
        Ok(())
    })?;
    let rows = truth.rows * u64::from(plan.hours);
    let copy = scratch.join("state-before");
    fs::create_dir_all(&copy)?;
    fs::copy(state.join("state.bin"), copy.join("state.bin"))?;
    let next = best(3, || {
        fs::copy(copy.join("state.bin"), state.join("state.bin"))?;
        remembering()
    })?;
    let remembered = fs::read(scratch.join("out"))?;
    let whole = report(&[])?;
    ensure!(remembered == fs::read(scratch.join("out"))?, "what is remembered gives another report");
    let rollup_bytes = size(&directory.join("rollups"))?.0;
    println!("| {rows} rows of flows, {} hours, {} edges | |\n|---|---|", plan.hours, truth.edges.len());
    println!("| flows as they are written | {} MB in {} files |", sums.raw_bytes / 1_000_000, sums.flow_files);
    println!(
        "| rollups | {} MB, {:.2} % of that |",
        rollup_bytes / 1_000_000,
        100.0 * rollup_bytes as f64 / sums.raw_bytes as f64
    );
    println!(
        "| compaction | {:.0} s, {:.2} M rows/s, {:.0} MiB |",
        sums.compact_seconds,
        rows as f64 / sums.compact_seconds / 1e6,
        sums.peak_mib
    );
    let tell = |what: &str, taken: Option<Taken>| {
        if let Some(Taken { seconds, peak_mib, .. }) = taken {
            println!("| {what} | {seconds:.2} s, {peak_mib:.0} MiB |");
        }
    };
    tell("report from rollups", from_rollups);
    tell("report that begins to remember", before);
    tell("report after one more hour, remembering", Some(next));
    tell("report after one more hour, from rollups", Some(whole));
    println!("\nThe generator took {:.0} s.", sums.generate_seconds + last.elapsed().as_secs_f64());
    Ok(())
}

impl Sums {
    /// Compacts what is finished, and removes flows that are summed up.
    fn compact(&mut self, program: &Path, directory: &Path, scratch: &Path) -> Result<()> {
        let (bytes, files) = size(&directory.join("flows"))?;
        self.raw_bytes += bytes;
        self.flow_files += files;
        let arguments = ["compact", "--settle", "0s", "--keep", "0s", "--input"];
        let taken = measure(Command::new(program).args(arguments).arg(directory), scratch)?;
        self.compact_seconds += taken.seconds;
        self.peak_mib = self.peak_mib.max(taken.peak_mib);
        measure(Command::new(program).args(["prune", "--older-than", "1s", "--input"]).arg(directory), scratch)?;
        Ok(())
    }
}

fn best(runs: usize, run: impl Fn() -> Result<Taken>) -> Result<Taken> {
    let mut best = run()?;
    for _ in 1..runs {
        let taken = run()?;
        if taken.seconds < best.seconds {
            best = taken;
        }
    }
    Ok(best)
}

/// Bytes and number of the finished files below a folder.
fn size(folder: &Path) -> Result<(u64, u64)> {
    let mut sums = (0, 0);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let (bytes, files) = size(&entry.path())?;
            sums = (sums.0 + bytes, sums.1 + files);
        } else if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            sums = (sums.0 + entry.metadata()?.len(), sums.1 + 1);
        }
    }
    Ok(sums)
}
