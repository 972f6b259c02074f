//! The report: each line one question, its answer, and what was aimed at.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use schemas::{
    capture::{DatasetWriter, Origin, Roll},
    flow::FlowRecord,
    table::{RttHistogram, TimestampMs},
};

use crate::{
    agent::{self, Agent},
    load::{Done, Load, Order},
};

/// Prints everything.
///
/// # Errors
/// The machine does not allow it.
pub(crate) fn run(pairs: usize, only: &[Line], baseline: Option<&Path>) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "it needs root");
    if let Some(baseline) = baseline {
        return against(baseline, pairs);
    }
    println!("| what | without | with the exporter | aim |\n|---|---|---|---|");
    for line in Line::value_variants().iter().filter(|line| only.is_empty() || only.contains(line)) {
        match line {
            Line::Churn => compare(CHURN, Load::Churn { one_cpu: false }, pairs, "ratio ≥ 0.98, interval above 0.96")?,
            Line::ChurnOneCpu => compare(CHURN_ONE_CPU, Load::Churn { one_cpu: true }, pairs, "for comparison")?,
            Line::KeepAlive => compare(KEEP_ALIVE, Load::KeepAlive, pairs, "ratio ≥ 0.995")?,
            Line::Bulk => compare("bulk: 128 KiB writes", Load::Bulk, pairs, "no change")?,
            Line::Storm => storm()?,
            Line::Memory => memory()?,
            Line::Idle => idle()?,
            Line::Start => start()?,
            Line::Files => {
                per_connection_file()?;
                windows_file()?;
            }
        }
    }
    Ok(())
}

/// Lines of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Line {
    Churn,
    ChurnOneCpu,
    KeepAlive,
    Bulk,
    Storm,
    Memory,
    Idle,
    Start,
    Files,
}

/// Runs mixed traffic for so long, and prints memory and loss as it goes.
///
/// # Errors
/// The machine does not allow it, something was lost, or memory grew.
pub(crate) fn soak(seconds: u64, per_second: u32) -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("capture");
    let agent = Agent::start(&lab.cgroup, &output, &["--window", "10s", "--roll-interval", "60s"])?;
    let mut load = lab.load()?;
    let begun = Instant::now();
    let (mut operations, mut sizes) = (0, Vec::new());
    while begun.elapsed() < Duration::from_secs(seconds) {
        operations += load.order(Load::Paced { per_second }, Duration::from_secs(10))?.operations;
        sizes.push(agent.resident_bytes()?);
        println!(
            "{:>4} s  {operations} connections  {:.1} MB resident  {:.1} MB in maps  {:.2} % of a core",
            begun.elapsed().as_secs(),
            mb(agent.resident_bytes()?),
            mb(agent.map_bytes()?),
            100.0 * agent.cpu_seconds()? / begun.elapsed().as_secs_f64(),
        );
    }
    drop(load);
    agent.stop()?;
    let sums = agent::sums(&output)?;
    println!("{operations} connections made; {sums:?}");
    ensure!(sums.lost == 0 && sums.closed == 2 * operations as i64, "something is missing");
    let (first, last) = (sizes[sizes.len() / 3], sizes[sizes.len() - 1]);
    ensure!(last < first + (4 << 20), "memory grew from {:.1} to {:.1} MB", mb(first), mb(last));
    Ok(())
}

/// Interleaved pairs without and with the exporter; the ratio of rates, its median with the interval that holds it in 95 of
/// 100 cases.
fn compare(name: &str, load: Load, pairs: usize, aim: &str) -> Result<()> {
    let Pairs { mut rates, mut cpu, mut first_rates, second: Sum { seconds, ends, lost, .. }, .. } =
        Pairs::run(load, pairs, [None, Some(agent::program()?)])?;
    let (low, median, high) = interval(&mut rates);
    let (cpu_low, cpu_median, cpu_high) = interval(&mut cpu);
    let (_, rate, _) = interval(&mut first_rates);
    let per_end =
        if ends > 1000 { format!("; agent {:.2} µs per end", 1e6 * seconds / ends as f64) } else { String::new() };
    println!(
        "| {name} | {rate:.0}/s | rate × {median:.3} ({low:.3}–{high:.3}), work per CPU time × {cpu_median:.3} \
         ({cpu_low:.3}–{cpu_high:.3}){per_end}; {lost} lost | {aim} |"
    );
    Ok(())
}

/// Interleaved pairs of churn with another build of the exporter and with this one, and the kernel's own account of what
/// their programs take per connection.
fn against(baseline: &Path, pairs: usize) -> Result<()> {
    let load = Load::Churn { one_cpu: false };
    println!("| {CHURN} | baseline | this build | ratio |\n|---|---|---|---|");
    let both = [Some(baseline), Some(agent::program()?)];
    let mut found = Pairs::run(load, pairs, both)?;
    let (_, rate, _) = interval(&mut found.first_rates);
    let (_, other, _) = interval(&mut found.second_rates);
    let (low, median, high) = interval(&mut found.rates);
    println!("| connections per second | {rate:.0} | {other:.0} | × {median:.3} ({low:.3}–{high:.3}) |");
    let statistics = Path::new("/proc/sys/kernel/bpf_stats_enabled");
    let before = fs::read_to_string(statistics)?;
    fs::write(statistics, "1")?;
    let measured = Pairs::run(load, pairs, both);
    fs::write(statistics, before)?;
    let measured = measured?;
    let (mut ratios, mut first, mut second) = (measured.program_ns, measured.first_ns, measured.second_ns);
    let (low, median, high) = interval(&mut ratios);
    let (first, second) = (interval(&mut first).1, interval(&mut second).1);
    println!(
        "| programs, ns per connection (both ends) | {first:.0} | {second:.0} | × {median:.3} ({low:.3}–{high:.3}) |"
    );
    Ok(())
}

/// What pairs of runs came to: each of two runs of a pair without an exporter, or with one.
#[derive(Default)]
struct Pairs {
    /// Of each pair, the second run's rate over the first one's.
    rates: Vec<f64>,
    /// Of each pair, the second run's work per CPU time over the first one's.
    cpu: Vec<f64>,
    /// Of each pair, the second run's program time per connection over the first one's, where the kernel measures it.
    program_ns: Vec<f64>,
    first_rates: Vec<f64>,
    second_rates: Vec<f64>,
    first_ns: Vec<f64>,
    second_ns: Vec<f64>,
    second: Sum,
}

/// What the exporter did in some runs.
#[derive(Clone, Copy, Default)]
struct Sum {
    seconds: f64,
    ends: i64,
    lost: i64,
    /// Time in its programs, where the kernel measures it.
    program_ns: u64,
}

impl Pairs {
    fn run(load: Load, pairs: usize, programs: [Option<&Path>; 2]) -> Result<Self> {
        let lab = Lab::new()?;
        let mut process = lab.load()?;
        process.order(load, Duration::from_secs(1))?;
        let mut found = Self::default();
        for pair in 0..pairs {
            // In turn, which of the two comes first.
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut of_pair = [None; 2];
            for which in order {
                of_pair[which] = Some(one(&lab, &mut process, load, programs[which])?);
            }
            let [Some((first, of_first)), Some((second, of_second))] = of_pair else { continue };
            let per_operation = |done: Done| done.cpu_seconds / done.operations as f64;
            found.rates.push(second.per_second / first.per_second);
            found.cpu.push(per_operation(first) / per_operation(second));
            found.first_rates.push(first.per_second);
            found.second_rates.push(second.per_second);
            let ns = |done: Done, sum: Sum| sum.program_ns as f64 / done.operations as f64;
            found.first_ns.push(ns(first, of_first));
            found.second_ns.push(ns(second, of_second));
            found.program_ns.push(ns(second, of_second) / ns(first, of_first));
            let Sum { seconds, ends, lost, .. } = &mut found.second;
            (*seconds, *ends, *lost) = (*seconds + of_second.seconds, *ends + of_second.ends, *lost + of_second.lost);
        }
        Ok(found)
    }
}

/// A run of a load, with an exporter or without.
fn one(lab: &Lab, process: &mut LoadProcess, load: Load, program: Option<&Path>) -> Result<(Done, Sum)> {
    let Some(program) = program else { return Ok((process.order(load, PHASE)?, Sum::default())) };
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("capture");
    let agent = Agent::start_program(program, &lab.cgroup, &output, &[])?;
    let before = (agent.cpu_seconds()?, agent.program_ns()?);
    let done = process.order(load, PHASE)?;
    thread::sleep(Duration::from_millis(150));
    let seconds = agent.cpu_seconds()? - before.0;
    let program_ns = agent.program_ns()?.saturating_sub(before.1);
    agent.stop()?;
    let sums = agent::sums(&output)?;
    if matches!(load, Load::Churn { .. }) {
        ensure!(sums.closed == 2 * done.operations as i64, "{} connections, {sums:?}", done.operations);
    }
    Ok((done, Sum { seconds, ends: sums.seen, lost: sums.lost, program_ns }))
}

/// Sixteen threads over veth with RPS, where softirqs interrupt each other.
fn storm() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("capture");
    let mut process = lab.load()?;
    let agent = Agent::start(&lab.cgroup, &output, &[])?;
    let done = process.order(Load::Storm { threads: 16, connections: 3000 }, Duration::ZERO)?;
    thread::sleep(Duration::from_millis(500));
    agent.stop()?;
    let sums = agent::sums(&output)?;
    println!(
        "| storm: 16 client threads, 48,000 connections | | {:.0}/s: {} of {} ends told, {} lost | 0 lost |",
        done.per_second,
        sums.closed,
        2 * done.operations,
        sums.lost
    );
    Ok(())
}

fn memory() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("capture");
    // Several processes, since each may have so many files open.
    let mut processes = (0..10).map(|_| lab.load()).collect::<Result<Vec<_>>>()?;
    let agent = Agent::start(&lab.cgroup, &output, &["--window", "5s"])?;
    for process in &mut processes {
        process.order(Load::Hold { addresses: 500, each: 5 }, Duration::ZERO)?;
    }
    let (mut resident, mut maps) = (Vec::new(), 0);
    for _ in 0..240 {
        thread::sleep(Duration::from_millis(50));
        resident.push(agent.resident_bytes()?);
        maps = maps.max(agent.map_bytes()?);
    }
    resident.sort_unstable();
    let (usual, most) = (resident[resident.len() / 2], resident[resident.len() - 1]);
    drop(processes);
    agent.stop()?;
    let rows = agent::sums(&output)?.rows;
    println!(
        "| memory: 50,000 live ends, 10,000 edges per window ({rows} rows) | | {:.1} MB resident, {:.1} MB at most, \
         when a window ends; {:.1} MB in maps | ≤ 25 MB, ≤ 40 MB together |",
        mb(usual),
        mb(most),
        mb(maps)
    );
    Ok(())
}

fn idle() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(&lab.cgroup, &directory.path().join("capture"), &[])?;
    let before = agent.cpu_seconds()?;
    let begun = Instant::now();
    thread::sleep(Duration::from_secs(70)); // the end of a window included
    let share = (agent.cpu_seconds()? - before) / begun.elapsed().as_secs_f64();
    agent.stop()?;
    println!("| idle | | {:.3} % of a core | ≤ 0.2 % |", 100.0 * share);
    Ok(())
}

/// How long it takes until it records, with few and with many network namespaces.
fn start() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let measure = |name: &str| -> Result<Duration> {
        let mut times = Vec::new();
        for run in 0..5 {
            let agent = Agent::start(&lab.cgroup, &directory.path().join(format!("{name}-{run}")), &[])?;
            times.push(agent.start);
            agent.stop()?;
        }
        times.sort();
        Ok(times[2])
    };
    let few = measure("few")?;
    let namespaces = (0..100).map(|_| lab.load()).collect::<Result<Vec<_>>>()?;
    let many = measure("many")?;
    drop(namespaces);
    println!(
        "| start until it records | | {} ms; {} ms with 100 network namespaces more, a listening process in each | \
         one scan |",
        few.as_millis(),
        many.as_millis()
    );
    Ok(())
}

/// A row per connection, of real traffic.
fn per_connection_file() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("capture");
    let mut process = lab.load()?;
    let agent = Agent::start(&lab.cgroup, &output, &["--window", "0"])?;
    process.order(Load::Churn { one_cpu: false }, Duration::from_secs(6))?;
    agent.stop()?;
    let sums = agent::sums(&output)?;
    ensure!(sums.rows >= 100_000, "too few rows: {sums:?}");
    let per_row = sums.flow_bytes as f64 / sums.rows as f64;
    println!("| Parquet, `--window 0`, {} rows | | {per_row:.1} bytes per row | ≤ 35 |", sums.rows);
    Ok(())
}

/// Windows of 60 s: 2,000 edges of 400 pods over an hour, with counts that vary.
fn windows_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let origin = Origin { cluster: "bench".into(), node: "node-a".into(), run_id: "0123456789abcdef".into() };
    let roll = Roll { size_bytes: u64::MAX, age: Duration::MAX };
    let mut writer = DatasetWriter::<FlowRecord>::new(directory.path(), &origin, "bench", roll);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below) as i64
    };
    for minute in 0..60 {
        for edge in 0..2000 {
            let start = TimestampMs(START_MS + minute * 60_000);
            writer.push(row(&origin, minute * 2000 + edge, edge, start, &mut draw), start)?;
        }
    }
    writer.finish()?;
    let sums = agent::sums(directory.path())?;
    let per_row = sums.flow_bytes as f64 / sums.rows as f64;
    println!("| Parquet, windows of 60 s, {} rows of 2,000 edges | | {per_row:.1} bytes per row | ≤ 60 |", sums.rows);
    Ok(())
}

fn row(origin: &Origin, seq: i64, edge: i64, start: TimestampMs, draw: &mut impl FnMut(u64) -> i64) -> FlowRecord {
    let (client, server) = (edge % 400, (edge * 7 + edge / 400) % 400);
    let connections = 1 + draw(200);
    let pod = |number: i64| (format!("app-{}", number / 4), format!("app-{}-6d5f7c9b8-{number:05}", number / 4));
    let ((client_app, client_pod), (server_app, server_pod)) = (pod(client), pod(server));
    let address = |number: i64| format!("10.244.{}.{}", number / 250, number % 250 + 2);
    let labels = |app: &str| format!(r#"{{"app":"{app}","pod-template-hash":"6d5f7c9b8"}}"#);
    FlowRecord {
        cluster: Arc::clone(&origin.cluster),
        node: Arc::clone(&origin.node),
        run_id: Arc::clone(&origin.run_id),
        seq,
        window_start: start,
        window_end: TimestampMs(start.0 + 60_000),
        observer: if edge % 2 == 0 { "client" } else { "server" }.into(),
        direction_known: true,
        start_known: true,
        transport: "tcp".into(),
        source_address: address(client).into(),
        destination_address: address(server).into(),
        destination_port: [80, 443, 5432, 6379, 8080][(server % 5) as usize],
        source_kind: "pod".into(),
        source_namespace: Some("demo".into()),
        source_pod_uid: Some(format!("uid-{client_pod}").into()),
        source_pod: Some(client_pod.into()),
        source_node: Some("node-a".into()),
        source_workload_kind: Some("Deployment".into()),
        source_labels: Some(labels(&client_app).into()),
        source_workload: Some(client_app.into()),
        source_host_network: Some(false),
        destination_kind: "pod".into(),
        destination_namespace: Some("demo".into()),
        destination_pod_uid: Some(format!("uid-{server_pod}").into()),
        destination_pod: Some(server_pod.into()),
        destination_node: Some("node-b".into()),
        destination_workload_kind: Some("Deployment".into()),
        destination_labels: Some(labels(&server_app).into()),
        destination_workload: Some(server_app.into()),
        destination_host_network: Some(false),
        connections,
        closed: connections,
        active: draw(5),
        bytes_sent: Some(connections * (200 + draw(100))),
        bytes_received: Some(connections * (2000 + draw(3000))),
        duration_ms_sum: connections * draw(50),
        rtt_us_hist: RttHistogram([0, connections, 0, 0, 0, 0, 0, 0]),
        first_seen: TimestampMs(start.0 + draw(1000)),
        last_seen: TimestampMs(start.0 + 59_000 + draw(1000)),
        ..FlowRecord::default()
    }
}

/// The lower bound, the median and the upper bound of its 95 % interval, by order statistics (a binomial sign test).
fn interval(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    let margin = (1.96 * count.sqrt() / 2.0).ceil() as usize;
    let middle = values.len() / 2;
    (values[middle.saturating_sub(margin)], values[middle], values[(middle + margin).min(values.len() - 1)])
}

pub(crate) fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A cgroup to watch, and the processes in it.
pub(crate) struct Lab {
    pub(crate) cgroup: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mount.into_iter().find(|fields| fields.get(2) == Some(&"cgroup2")).context("cgroup2 is mounted")?;
        let cgroup = Path::new(mount[1]).join(format!("flowscribe-cost-{}", std::process::id()));
        fs::create_dir_all(&cgroup)?;
        Ok(Self { cgroup })
    }

    pub(crate) fn load(&self) -> Result<LoadProcess> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["load", "--cgroup"])
            .arg(&self.cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("its standard output is piped")?);
        let mut process = LoadProcess { child, orders, answers };
        process.answer()?;
        Ok(process)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A process that makes load; dropped, it ends.
pub(crate) struct LoadProcess {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl LoadProcess {
    pub(crate) fn order(&mut self, load: Load, duration: Duration) -> Result<Done> {
        let mut line = serde_json::to_string(&Order { load, duration_ms: duration.as_millis() as u64 })?;
        line.push('\n');
        self.orders.as_mut().context("it has not been ended")?.write_all(line.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Done> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("the load ended");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for LoadProcess {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

const CHURN: &str = "churn: connect, 4 bytes each way, close; one client";
const CHURN_ONE_CPU: &str = "churn with client and server on one CPU, which no waiting hides";
const KEEP_ALIVE: &str = "keep-alive: 64 bytes there, 512 back";
/// How long each run of a pair takes.
const PHASE: Duration = Duration::from_millis(1000);
/// 2026-03-01, 10:00 UTC.
const START_MS: i64 = 1_772_359_200_000;
