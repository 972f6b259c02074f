//! What writing and verifying policies takes, beside reading and learning from the same capture.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{agent, edges::measure};

/// Makes a capture of many workloads, and prints what learning its sets takes, and what a report with verified policies.
///
/// # Errors
/// A program fails.
pub(crate) fn run(workloads: u16, runs: usize) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (lab, capture) = (agent::beside("testdata", "lab")?, scratch.path().join("capture"));
    let program = agent::beside("analyzer", "flowscribe")?;
    let made = Command::new(&lab)
        .args(["generate", "--workloads", &workloads.to_string(), "--output"])
        .arg(&capture)
        .status()
        .context("cannot run lab generate")?;
    ensure!(made.success(), "the capture could not be made");
    let learn = ["sql", "select count(*) as edges from communications", "--format", "csv"];
    let report = ["report"];
    let mut best = [f64::INFINITY; 2];
    let mut peak_mib = [0.0f64; 2];
    for _ in 0..runs {
        for (number, arguments) in [&learn[..], &report[..]].into_iter().enumerate() {
            let taken = measure(&mut flowscribe(&program, arguments, &capture, scratch.path()), scratch.path())?;
            best[number] = best[number].min(taken.seconds);
            peak_mib[number] = peak_mib[number].max(taken.peak_mib);
        }
    }
    let (learned, reported) = (best[0], best[1]);
    println!("| {workloads} workloads | best of {runs} | peak memory |\n|---|---|---|");
    println!("| read and learn | {learned:.2} s | {:.0} MiB |", peak_mib[0]);
    println!("| read, learn, write policies, replay | {reported:.2} s | {:.0} MiB |", peak_mib[1]);
    println!("| so that policies take | {:.2} s | |", reported - learned);
    Ok(())
}

fn flowscribe(program: &Path, arguments: &[&str], capture: &Path, scratch: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg("--input").arg(capture).arg("--output").arg(scratch.join("out"));
    command
}
