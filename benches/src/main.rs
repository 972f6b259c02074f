//! What recording costs.

mod load;

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use load::{Done, Load, Order};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[derive(Parser)]
#[command(name = "cost")]
struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Interleaved pairs without and with the exporter.
    Pairs {
        #[arg(long, default_value_t = 15)]
        pairs: usize,
        #[arg(long, default_value_t = 2000)]
        milliseconds: u64,
        #[arg(long, default_value = "churn")]
        load: String,
        /// another executable for A
        #[arg(long)]
        baseline: Option<PathBuf>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        extra: Vec<OsString>,
    },
    #[command(hide = true)]
    Load {
        #[arg(long)]
        cgroup: PathBuf,
    },
    #[command(hide = true, disable_help_flag = true)]
    Exporter {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        What::Exporter { arguments } => {
            return exporter::run_command(std::iter::once("flowscribe-exporter".into()).chain(arguments));
        }
        What::Load { cgroup } => load::run(&cgroup),
        What::Pairs { pairs, milliseconds, load, baseline, extra } => {
            run_pairs(pairs, milliseconds, &load, baseline, &extra)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_pairs(pairs: usize, ms: u64, load: &str, baseline: Option<PathBuf>, extra: &[OsString]) -> Result<()> {
    let me = std::env::current_exe()?;
    let cgroup = PathBuf::from(format!("/sys/fs/cgroup/unified/flowscribe-cost-{}", std::process::id()));
    fs::create_dir(&cgroup)?;
    let load = match load {
        "churn" => Load::Churn,
        "keepalive" => Load::KeepAlive,
        _ => Load::Bulk,
    };
    let mut process = LoadProcess::start(&me, &cgroup)?;
    process.order(Order { load, duration_ms: 1000 })?;
    let mut ratios = Vec::new();
    let mut cratios = Vec::new();
    let mut bases = Vec::new();
    let mut cpu = 0.0;
    let mut ops = 0;
    for n in 0..pairs {
        let mut run = |with: bool| -> Result<(f64, f64)> {
            let dir = tempfile::tempdir()?;
            let exe = if with { Some(&me) } else { baseline.as_ref() };
            let agent = exe.map(|exe| Agent::start(exe, &cgroup, dir.path(), extra)).transpose()?;
            let before = agent.as_ref().map(|a| a.cpu());
            let done = process.order(Order { load, duration_ms: ms })?;
            if let (true, Some(agent)) = (with, &agent) {
                std::thread::sleep(Duration::from_millis(150));
                cpu += agent.cpu() - before.unwrap();
                ops += done.operations;
            }
            if let Some(agent) = agent {
                let log = agent.stop()?;
                if n == 0 {
                    println!("{}", log.lines().last().unwrap_or_default());
                    let root = dir.path().join("c");
                    let l = schemas::capture::list(&[root]).unwrap();
                    let mut c = 0;
                    let mut b = 0;
                    for f in l.files.iter().filter(|f| f.dataset == "flows") {
                        for r in schemas::capture::read::<schemas::flow::FlowRecord>(f).unwrap() {
                            c += r.closed;
                            b += r.bytes_sent.unwrap_or(0);
                        }
                    }
                    println!("closed {c} bytes {b} ops {}", done.operations);
                }
            }
            Ok((done.operations as f64 / done.seconds, done.cpu / done.operations as f64))
        };
        let (a, b) = if n % 2 == 0 {
            let a = run(false)?;
            (a, run(true)?)
        } else {
            let b = run(true)?;
            (run(false)?, b)
        };
        let ((a, ca), (b, cb)) = (a, b);
        cratios.push(ca / cb);
        ratios.push(b / a);
        bases.push(a);
    }
    ratios.sort_by(f64::total_cmp);
    cratios.sort_by(f64::total_cmp);
    println!(
        "cpu ratio median {:.4} q1 {:.4} q3 {:.4}",
        cratios[pairs / 2],
        cratios[pairs / 4],
        cratios[3 * pairs / 4]
    );
    bases.sort_by(f64::total_cmp);
    println!(
        "base {:.0}/s  ratio median {:.4}  min {:.4} q1 {:.4} q3 {:.4} max {:.4}  agent cpu {:.2} us/op",
        bases[pairs / 2],
        ratios[pairs / 2],
        ratios[0],
        ratios[pairs / 4],
        ratios[3 * pairs / 4],
        ratios[pairs - 1],
        cpu * 1e6 / ops as f64
    );
    drop(process);
    std::thread::sleep(Duration::from_millis(100));
    fs::remove_dir(&cgroup)?;
    Ok(())
}

struct LoadProcess {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}
impl LoadProcess {
    fn start(me: &Path, cgroup: &Path) -> Result<Self> {
        let mut child = Command::new(me)
            .arg("load")
            .arg("--cgroup")
            .arg(cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("piped")?);
        let mut p = Self { child, orders, answers };
        p.answer()?;
        Ok(p)
    }
    fn order(&mut self, order: Order) -> Result<Done> {
        let mut line = serde_json::to_string(&order)?;
        line.push('\n');
        self.orders.as_mut().context("live")?.write_all(line.as_bytes())?;
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

struct Agent {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}
impl Agent {
    fn start(exe: &Path, cgroup: &Path, out: &Path, extra: &[OsString]) -> Result<Self> {
        let mut child = Command::new(exe)
            .arg("exporter")
            .arg("--output")
            .arg(out.join("c"))
            .arg("--cgroup")
            .arg(cgroup)
            .arg("--loopback")
            .args(extra)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("piped")?);
        let mut text = String::new();
        while !text.contains("recording, stop with") {
            if log.read_line(&mut text)? == 0 {
                bail!("{text}");
            }
        }
        Ok(Self { child, log })
    }
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let f: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
    }
    fn stop(mut self) -> Result<String> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.log, &mut text)?;
        self.child.wait()?;
        Ok(text)
    }
}
