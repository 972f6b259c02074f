//! The exporter under measurement, and what its capture holds.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};
use schemas::{capture, flow::FlowRecord, health::HealthRecord, table::Record};

/// A running exporter; dropped, it is killed.
pub(crate) struct Agent {
    child: Child,
    log: BufReader<ChildStderr>,
    /// How long it took to record.
    pub(crate) start: Duration,
}

/// What a capture holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) rows: usize,
    pub(crate) connections: i64,
    pub(crate) closed: i64,
    pub(crate) seen: i64,
    pub(crate) lost: i64,
    pub(crate) flow_bytes: u64,
}

impl Agent {
    /// Starts it over a cgroup and waits until it records.
    ///
    /// # Errors
    /// It ends instead.
    pub(crate) fn start(cgroup: &Path, output: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_program(program()?, cgroup, output, arguments)
    }

    /// As [`Self::start`], of another build.
    ///
    /// # Errors
    /// It ends instead.
    pub(crate) fn start_program(program: &Path, cgroup: &Path, output: &Path, arguments: &[&str]) -> Result<Self> {
        let begun = Instant::now();
        let mut child = Command::new(program)
            .args(["--loopback", "--cgroup"])
            .arg(cgroup)
            .arg("--output")
            .arg(output)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("its standard error is piped")?);
        let mut text = String::new();
        while !text.contains("recording, stop with") {
            if log.read_line(&mut text)? == 0 {
                bail!("the exporter ended: {text}");
            }
        }
        Ok(Self { child, log, start: begun.elapsed() })
    }

    /// CPU time so far, in seconds, of threads that have ended too.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(clock_getcpuclockid(Pid::from_raw(self.child.id() as i32))?)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
        Ok(pages * sysconf(SysconfVar::PAGE_SIZE)?.context("pages have a size")? as u64)
    }

    /// Memory of its eBPF maps in bytes, as the kernel tells it.
    pub(crate) fn map_bytes(&self) -> Result<u64> {
        self.of_descriptors("map_id:", "memlock:")
    }

    /// How long its programs ran, in nanoseconds; only while the kernel measures that.
    pub(crate) fn program_ns(&self) -> Result<u64> {
        self.of_descriptors("prog_id:", "run_time_ns:")
    }

    /// Sums a number that the kernel shows of its eBPF objects, each object once.
    fn of_descriptors(&self, id: &str, number: &str) -> Result<u64> {
        let mut found = std::collections::BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            if let (Some(id), Some(number)) = (value(id), value(number)) {
                found.insert(id, number);
            }
        }
        Ok(found.values().sum())
    }

    /// Ends it as Ctrl-C does.
    ///
    /// # Errors
    /// It does not end well.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        let mut text = String::new();
        self.log.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(anyhow!("the exporter ended with {status}: {text}")) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that is shipped, built if it is not, or not any more; or the one that `FLOWSCRIBE_EXPORTER` names.
///
/// # Errors
/// It can't be built.
pub(crate) fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let named = std::env::var_os("FLOWSCRIBE_EXPORTER").map(PathBuf::from);
    let program = named.map_or_else(|| beside("exporter", "flowscribe-exporter"), Ok)?;
    Ok(PROGRAM.get_or_init(|| program))
}

/// A program of a package, built as this one is.
///
/// # Errors
/// It can't be built.
pub(crate) fn beside(package: &str, program: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--quiet", "--release", "--locked", "--package", package];
    let built = Command::new(cargo).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    ensure!(built.context("start cargo")?.success(), "cargo {}", build.join(" "));
    let program = std::env::current_exe()?.with_file_name(program);
    ensure!(program.exists(), "{} was not built", program.display());
    Ok(program)
}

/// What a process's clock of CPU time shows, in seconds.
///
/// # Errors
/// The process is gone.
pub(crate) fn cpu_seconds(clock: ClockId) -> Result<f64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// Reads a capture.
///
/// # Errors
/// It can't be read.
pub(crate) fn sums(output: &Path) -> Result<Sums> {
    let listing = capture::list(&[PathBuf::from(output)])?;
    let mut sums = Sums::default();
    for file in &listing.files {
        if file.dataset == FlowRecord::DATASET {
            sums.flow_bytes += fs::metadata(&file.path)?.len();
            for row in capture::read::<FlowRecord>(file).map_err(|problem| anyhow!("{problem}"))? {
                sums.rows += 1;
                sums.connections += row.connections;
                sums.closed += row.closed;
            }
        } else if file.dataset == HealthRecord::DATASET {
            for row in capture::read::<HealthRecord>(file).map_err(|problem| anyhow!("{problem}"))? {
                sums.seen += row.seen;
                sums.lost += row.lost();
            }
        }
    }
    Ok(sums)
}
