//! From files of flows to edges with distinct hours and pods: Flowscribe beside polars and DuckDB, on the same files.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::agent;

/// One of the programs.
struct Contestant {
    name: &'static str,
    command: fn(&Path, &Path, &Path) -> Command,
}

/// What a run took.
pub(crate) struct Taken {
    pub(crate) seconds: f64,
    cpu_seconds: f64,
    pub(crate) peak_mib: f64,
}

/// Makes a capture of each size, lets everybody derive its edges, compares what they found, and prints what it took.
///
/// # Errors
/// A program fails, or two of them do not find the same.
pub(crate) fn run(sizes: &[u64], runs: usize, keep: Option<&Path>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let root = keep.unwrap_or(scratch.path());
    println!(
        "| rows | edges | | best of {runs} | processor time | peak memory | × polars |\n|---|---|---|---|---|---|---|"
    );
    for size in sizes {
        let capture = root.join(format!("{size}"));
        if !capture.exists() {
            let made = Command::new(agent::beside("testdata", "lab")?)
                .args(["generate", "--rows", &size.to_string(), "--output"])
                .arg(&capture)
                .status()
                .context("cannot run lab generate")?;
            ensure!(made.success(), "the capture could not be made");
        }
        compare(*size, &capture, scratch.path(), runs)?;
        if keep.is_none() {
            fs::remove_dir_all(&capture)?;
        }
    }
    Ok(())
}

fn compare(size: u64, capture: &Path, scratch: &Path, runs: usize) -> Result<()> {
    let flowscribe = agent::beside("analyzer", "flowscribe")?;
    let mut answers: Vec<(&str, String)> = Vec::new();
    let mut best: Vec<(&str, Taken)> = Vec::new();
    for run in 0..runs {
        for Contestant { name, command } in &CONTESTANTS {
            let output = scratch.join(format!("{name}.csv"));
            let taken = measure(&mut command(&flowscribe, capture, &output), scratch)
                .with_context(|| format!("{name} failed"))?;
            if run == 0 {
                answers.push((name, fs::read_to_string(&output)?));
            }
            match best.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) if known.seconds <= taken.seconds => {}
                Some((_, known)) => *known = taken,
                None => best.push((name, taken)),
            }
        }
    }
    let [(_, first), others @ ..] = &answers[..] else { return Ok(()) };
    for (name, answer) in others {
        let differs = first.lines().zip(answer.lines()).find(|(a, b)| a != b);
        ensure!(answer == first, "{name} found something else: {differs:?}");
    }
    let edges = first.lines().count() - 1;
    let reference = best.iter().find(|(name, _)| *name == "polars").map_or(f64::NAN, |(_, taken)| taken.seconds);
    for (name, Taken { seconds, cpu_seconds, peak_mib }) in best {
        println!(
            "| {size} | {edges} | {name} | {seconds:.2} s | {cpu_seconds:.2} s | {peak_mib:.0} MiB | {:.2} |",
            seconds / reference
        );
    }
    Ok(())
}

/// Runs a program under GNU time.
pub(crate) fn measure(command: &mut Command, scratch: &Path) -> Result<Taken> {
    let report = scratch.join("time");
    let mut timed = Command::new("/usr/bin/time");
    timed.arg("-f").arg("%e %U %S %M").arg("-o").arg(&report).arg(command.get_program()).args(command.get_args());
    let output = timed.output().context("cannot run /usr/bin/time, of the package `time`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}, {}", output.status, said.lines().last().unwrap_or_default());
    let report = fs::read_to_string(&report)?;
    let numbers: Vec<f64> = report.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [seconds, user, system, peak_kib] = numbers[..] else { anyhow::bail!("unexpected report {report:?}") };
    Ok(Taken { seconds, cpu_seconds: user + system, peak_mib: peak_kib / 1024.0 })
}

fn flowscribe(program: &Path, capture: &Path, output: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["sql", "--format", "csv", "--input"]).arg(capture).arg("--output").arg(output).arg(QUERY);
    command
}

fn polars(_: &Path, capture: &Path, output: &Path) -> Command {
    python("polars_edges.py", capture, output)
}

fn duckdb(_: &Path, capture: &Path, output: &Path) -> Command {
    python("duckdb_edges.py", capture, output)
}

fn python(script: &str, capture: &Path, output: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("edges").join(script);
    let mut command = Command::new("python3");
    command.arg(script).arg(capture).arg(output);
    command
}

const OURS: &str = "flowscribe";
const CONTESTANTS: [Contestant; 3] = [
    Contestant { name: OURS, command: flowscribe },
    Contestant { name: "polars", command: polars },
    Contestant { name: "DuckDB", command: duckdb },
];
const QUERY: &str = "select coalesce(source_namespace || '/' || source_workload, source_address) as source, \
    coalesce(destination_namespace || '/' || destination_workload, destination_address) as destination, \
    transport, port, hours, source_pods, destination_pods, connections from communications order by 1, 2, 3, 4";
