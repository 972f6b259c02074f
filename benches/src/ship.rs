//! What delivering a row takes: encoded as Parquet and as OTLP, sent, received, on the wire and on disk.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use delivery::{
    collector::{Collector, CollectorConfig},
    otlp::Encoder,
};
use nix::{
    time::{ClockId, clock_getcpuclockid},
    unistd::Pid,
};
use schemas::{
    capture::{DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    table::TimestampMs,
};
use testdata::{
    recording::Receiver,
    sender::{self, Sender},
};

use crate::agent::{self, cpu_seconds};

/// Measures and prints; `rows` are sent to the receiver.
///
/// # Errors
/// A program fails.
pub(crate) fn run(rows: usize, agents: usize) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    println!("| per row of flows | CPU | size |\n|---|---|---|");
    encode(scratch.path())?;
    receive(rows, agents, scratch.path())
}

/// What an agent spends on a row, in this thread.
fn encode(scratch: &Path) -> Result<()> {
    let origin = Origin::new("made-up", "node-a")?;
    let rows: Vec<FlowRecord> = (0..ENCODED).map(|seq| sender::flow(&origin, seq, NOW)).collect();
    let per_row = |seconds: f64| seconds * 1e6 / rows.len() as f64;

    let roll = Roll { size_bytes: u64::MAX, age: Duration::from_secs(3600) };
    let mut writer = DatasetWriter::new(scratch, &origin, "bench", roll);
    let begun = cpu_seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    for row in &rows {
        writer.push(row.clone(), NOW)?;
    }
    let file = writer.finish()?.context("rows were written")?;
    let parquet = cpu_seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)? - begun;
    let bytes = |length: u64| length as f64 / rows.len() as f64;
    println!(
        "| Parquet, encoded and written | {:.2} µs | {:.0} B |",
        per_row(parquet),
        bytes(fs::metadata(file)?.len())
    );

    let mut encoder = Encoder::new(Vec::new(), "bench");
    let (mut requests, begun) = (Vec::new(), cpu_seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    for row in &rows {
        encoder.push(row, NOW);
        if encoder.size_bytes() > delivery::otlp::REQUEST_BYTES / 2 {
            requests.extend(encoder.finish());
        }
    }
    requests.extend(encoder.finish());
    let otlp = cpu_seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)? - begun;
    let plain: usize = requests.iter().map(Vec::len).sum();
    println!("| OTLP, encoded | {:.2} µs | {:.0} B |", per_row(otlp), bytes(plain as u64));
    let begun = Instant::now();
    let mut zipped = 0;
    for request in &requests {
        zipped += gzip(request)?;
    }
    println!(
        "| with gzip, as gzip(1) -1 does | {:.2} µs more | {:.0} B |",
        per_row(begun.elapsed().as_secs_f64()),
        bytes(zipped as u64)
    );
    Ok(())
}

/// Sends what was encoded before to a receiver, as many agents at once.
fn receive(rows: usize, agents: usize, scratch: &Path) -> Result<()> {
    let lab = agent::beside("testdata", "lab")?;
    let runtime = tokio::runtime::Runtime::new()?;
    for protocol in ["grpc", "http/protobuf"] {
        let capture = scratch.join(protocol.replace('/', "-"));
        let receiver = Receiver::start(&lab, &capture, &["--roll-interval", "5s"])?;
        let endpoint = if protocol == "grpc" { &receiver.grpc } else { &receiver.http };
        let config = CollectorConfig::new(Some(endpoint), Some(protocol), |_| None)?;
        let mut loads = Vec::new();
        for number in 0..agents {
            let mut sender = Sender::new(&format!("node-{number}"), &scratch.join(format!("spool-{number}")), 1 << 20)?;
            let requests: Vec<Bytes> =
                (0..REQUESTS).map(|_| Bytes::from(sender.request(ROWS_PER_REQUEST, NOW))).collect();
            loads.push((Arc::new(Collector::new(config.clone())?), requests));
        }
        let per_agent = rows / agents / ROWS_PER_REQUEST;
        let (own, other) =
            (ClockId::CLOCK_PROCESS_CPUTIME_ID, clock_getcpuclockid(Pid::from_raw(receiver.id() as i32))?);
        let (begun, own_before) = (Instant::now(), cpu_seconds(own)?);
        let failed = Arc::new(AtomicUsize::new(0));
        runtime.block_on(async {
            let mut tasks = Vec::new();
            for (collector, requests) in loads {
                let failed = Arc::clone(&failed);
                tasks.push(tokio::spawn(async move {
                    for at in 0..per_agent {
                        let mut sent = collector.send(requests[at % requests.len()].clone()).await;
                        while sent.is_err() {
                            failed.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            sent = collector.send(requests[at % requests.len()].clone()).await;
                        }
                    }
                }));
            }
            for task in tasks {
                task.await?;
            }
            anyhow::Ok(())
        })?;
        let (acknowledged, generator) = (begun.elapsed().as_secs_f64(), cpu_seconds(own)? - own_before);
        let sent = (per_agent * agents * ROWS_PER_REQUEST) as f64;
        let spent = cpu_seconds(other)?;
        let peak = fs::read_to_string(format!("/proc/{}/status", receiver.id()))?;
        let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or("?", str::trim).to_owned();
        // All of it in files; the clock of a process that has ended can't be read.
        let begun = Instant::now();
        let is_waiting = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0);
        while fs::read_dir(capture.join(".journal"))?.flatten().any(|entry| is_waiting(&entry)) {
            ensure!(begun.elapsed() < Duration::from_secs(120), "the journal does not become files");
            std::thread::sleep(Duration::from_millis(50));
        }
        let total = cpu_seconds(other)?;
        receiver.stop()?;
        println!(
            "| received by {protocol} from {agents} agents at once, acknowledged | {:.2} µs | {:.0} K rows/s beside the generator ({:.2} µs per row), {} refused and sent again |",
            spent * 1e6 / sent,
            sent / acknowledged / 1e3,
            generator * 1e6 / sent,
            failed.load(Ordering::Relaxed),
        );
        println!(
            "| … and in Parquet files | {:.2} µs | {:.0} K rows/s on two cores, peak {peak} |",
            total * 1e6 / sent,
            2.0 * sent / total / 1e3
        );
        fs::remove_dir_all(&capture)?;
    }
    Ok(())
}

/// Bytes that gzip makes of a request.
fn gzip(request: &[u8]) -> Result<usize> {
    let mut gzip = Command::new("gzip").args(["-1", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = gzip.stdin.take().context("its input is piped")?;
    let output = std::thread::scope(|scope| {
        let written = scope.spawn(move || stdin.write_all(request));
        let output = gzip.wait_with_output();
        written.join().map_err(|_| anyhow!("writing panicked"))??;
        Ok::<_, anyhow::Error>(output?)
    })?;
    Ok(output.stdout.len())
}

const NOW: TimestampMs = TimestampMs(1_795_000_000_000);
const ENCODED: i64 = 200_000;
const ROWS_PER_REQUEST: usize = 1000;
/// Requests that each agent has ready, and sends again and again.
const REQUESTS: usize = 12;
