//! The shipped exporter and analyzer as processes of their own, for the demo and for tests.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use schemas::{capture, table::Record};

use crate::lab::Lab;

/// Every row of a dataset of a capture.
///
/// # Errors
/// The capture is not there, or a file of it can't be read.
pub fn rows<R: Record>(root: &Path) -> Result<Vec<R>> {
    let listing = capture::list(&[root.into()]).context("list the capture")?;
    let mut rows = Vec::new();
    for file in listing.files.iter().filter(|file| file.dataset == R::DATASET) {
        rows.extend(capture::read::<R>(file).map_err(|problem| anyhow!("{problem}"))?);
    }
    Ok(rows)
}

/// A running `flowscribe-exporter`, or another program that records; dropped, it is killed.
pub struct Recording {
    child: Child,
    log: Log,
}

impl Recording {
    /// Starts an exporter over a lab, with the lab's inventory, and waits until it records.
    ///
    /// # Errors
    /// It ends instead, and says why.
    pub fn start<S: AsRef<OsStr>>(executable: &Path, lab: &Lab, output: &Path, extra: &[S]) -> Result<Self> {
        Self::of_cgroup(executable, lab, lab.cgroup(), output, extra)
    }

    /// As [`Self::start`], over one cgroup of the lab.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn of_cgroup<S: AsRef<OsStr>>(
        executable: &Path,
        lab: &Lab,
        cgroup: &Path,
        output: &Path,
        extra: &[S],
    ) -> Result<Self> {
        let inventory = output.with_extension("inventory.yaml");
        lab.write_inventory(&inventory)?;
        let mut command = Command::new(executable);
        command.arg("exporter").arg("--output").arg(output).arg("--inventory").arg(&inventory);
        command.arg("--cgroup").arg(cgroup).arg("--host-netns").arg(lab.node_netns());
        command.args(["--node", crate::lab::NODE, "--cluster", "lab"]).args(extra);
        Self::spawn(command)
    }

    /// Starts an exporter over a lab that is in an API server, and waits until it records; it may not know the pods yet.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn in_cluster<S: AsRef<OsStr>>(
        executable: &Path,
        lab: &Lab,
        kubeconfig: &Path,
        output: &Path,
        extra: &[S],
    ) -> Result<Self> {
        let mut command = Self::on_node(executable, lab, crate::lab::NODE, kubeconfig);
        command.arg("--output").arg(output).args(extra);
        Self::spawn(command)
    }

    /// The exporter of a node of a lab that is in an API server; where it writes to is left to say.
    pub fn on_node(executable: &Path, lab: &Lab, node: &str, kubeconfig: &Path) -> Command {
        let mut command = Command::new(executable);
        command.args(["exporter", "--kubernetes"]).env("KUBECONFIG", kubeconfig);
        command.env("RUST_LOG", "info,kube_runtime::watcher=debug");
        command.arg("--cgroup").arg(lab.cgroup_of(node)).arg("--host-netns").arg(lab.node_netns());
        command.args(["--node", node, "--cluster", "lab"]);
        command
    }

    /// Starts an exporter as given and waits until it records.
    ///
    /// # Errors
    /// It ends instead, and says why.
    pub fn spawn(command: Command) -> Result<Self> {
        Self::spawn_until(command, "recording, stop with Ctrl-C")
    }

    /// Starts a program as given and waits until it says something.
    ///
    /// # Errors
    /// It ends instead, and says why.
    pub fn spawn_until(command: Command, said: &str) -> Result<Self> {
        let (child, _, log) = start(command, said)?;
        Ok(Self { child, log })
    }

    /// Waits until it has written a text on standard error, and returns the line.
    ///
    /// # Panics
    /// It ends without, or does not for three minutes.
    pub fn wait_for(&self, text: &str) -> String {
        self.log.wait_for(text, 1)
    }

    /// As [`Self::wait_for`], until it is in so many lines; the last of them.
    ///
    /// # Panics
    /// As [`Self::wait_for`].
    pub fn wait_for_lines(&self, text: &str, lines: usize) -> String {
        self.log.wait_for(text, lines)
    }

    /// Ends it as Ctrl-C does, and returns what it said.
    ///
    /// # Errors
    /// It does not end well.
    pub fn stop(self) -> Result<String> {
        self.end(Signal::SIGINT)
    }

    /// Ends it as an init system or kubelet does, and returns what it said.
    ///
    /// # Errors
    /// It does not end well.
    pub fn terminate(self) -> Result<String> {
        self.end(Signal::SIGTERM)
    }

    fn end(mut self, signal: Signal) -> Result<String> {
        self.signal(signal)?;
        let status = self.child.wait()?;
        let log = self.log.whole();
        if !status.success() {
            bail!("it ended with {status}: {log}");
        }
        Ok(log)
    }

    /// Kills it.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it for as long as something takes, as a machine does that has no time for it.
    ///
    /// # Errors
    /// It is gone.
    pub fn pause(&self, meanwhile: impl FnOnce()) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        meanwhile();
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).with_context(|| format!("send {signal}"))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program writes on standard error, read as it comes, so that the program never waits for us.
struct Log {
    text: Arc<Mutex<String>>,
    thread: JoinHandle<()>,
}

impl Log {
    /// What it has written so far.
    fn text(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a text is in so many lines, and returns the last of them.
    fn wait_for(&self, text: &str, lines: usize) -> String {
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            // What was written before the end is read by then.
            let has_ended = self.thread.is_finished();
            let written = self.text().clone();
            if let Some(line) = written.lines().filter(|line| line.contains(text)).nth(lines.saturating_sub(1)) {
                return line.to_owned();
            }
            assert!(!has_ended && Instant::now() < deadline, "{lines} lines with {text:?} did not come: {written}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that it wrote, once it has ended.
    fn whole(&mut self) -> String {
        while !self.thread.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        std::mem::take(&mut *self.text())
    }
}

/// Starts a program, and waits until it says something on standard error: that line, and what it writes from then on.
fn start(mut command: Command, said: &str) -> Result<(Child, String, Log)> {
    let mut child = command.stderr(Stdio::piped()).spawn().context("start the program")?;
    let mut log = BufReader::new(child.stderr.take().context("its standard error is piped")?);
    let (mut text, mut line) = (String::new(), String::new());
    while !line.contains(said) {
        line.clear();
        if log.read_line(&mut line)? == 0 {
            child.wait()?;
            bail!("{}", text.trim());
        }
        text.push_str(&line);
    }
    let text = Arc::new(Mutex::new(text));
    let shared = Arc::clone(&text);
    let thread = thread::spawn(move || {
        let mut line = String::new();
        while log.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            shared.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
            line.clear();
        }
    });
    Ok((child, line, Log { text, thread }))
}

/// A running `flowscribe receive`; dropped, it is killed.
pub struct Receiver {
    child: Child,
    /// Where it receives OTLP/gRPC and OTLP/HTTP, as `http://ADDRESS:PORT`.
    pub grpc: String,
    pub http: String,
    log: Log,
}

impl Receiver {
    /// Starts a receiver on free ports of the loopback interface, and waits until it receives.
    ///
    /// # Errors
    /// It ends instead, and says why.
    pub fn start<S: AsRef<OsStr>>(executable: &Path, output: &Path, extra: &[S]) -> Result<Self> {
        Self::at(executable, output, ("127.0.0.1:0", "127.0.0.1:0"), extra)
    }

    /// As [`Self::start`], on these addresses.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn at<S: AsRef<OsStr>>(
        executable: &Path,
        output: &Path,
        (grpc, http): (&str, &str),
        extra: &[S],
    ) -> Result<Self> {
        let mut command = Command::new(executable);
        command.args(["flowscribe", "receive", "--grpc-address", grpc, "--http-address", http]).arg("--output");
        command.arg(output).args(extra);
        let (child, line, log) = start(command, "receiving OTLP/gRPC on ")?;
        let mut addresses = line.split(' ').filter(|word| word.starts_with("http")).map(str::to_owned);
        let (grpc, http) = addresses.next().zip(addresses.next()).context("it says where")?;
        Ok(Self { child, grpc, http, log })
    }

    /// Its addresses, for another one after it.
    pub fn addresses(&self) -> (String, String) {
        let address = |url: &str| url.split_once("://").map_or("", |(_, address)| address).to_owned();
        (address(&self.grpc), address(&self.http))
    }

    /// Number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as kubelet does, and returns what it said.
    ///
    /// # Errors
    /// It does not end well.
    pub fn stop(mut self) -> Result<String> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        let log = self.log.whole();
        if !status.success() {
            bail!("the receiver ended with {status}: {log}");
        }
        Ok(log)
    }

    /// Kills it.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `flowscribe monitor`; dropped, it is killed.
pub struct Monitor {
    child: Child,
    log: Log,
}

impl Monitor {
    /// Starts one, and waits until it has found the agents.
    ///
    /// # Errors
    /// It ends instead, and says why.
    pub fn start<S: AsRef<OsStr>>(executable: &Path, output: &Path, extra: &[S]) -> Result<Self> {
        let often = ["--roll-interval", "1s"].map(OsStr::new);
        let extra: Vec<&OsStr> = often.into_iter().chain(extra.iter().map(AsRef::as_ref)).collect();
        Self::at_its_pace(executable, output, &extra)
    }

    /// As [`Self::start`], with files as often as is said.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn at_its_pace<S: AsRef<OsStr>>(executable: &Path, output: &Path, extra: &[S]) -> Result<Self> {
        let mut command = Command::new(executable);
        command.args(["flowscribe", "monitor", "--output"]).arg(output).args(extra);
        Self::spawn(command)
    }

    /// Starts one as given, and waits until it has found the agents.
    ///
    /// # Errors
    /// It ends instead, and says why.
    pub fn spawn(command: Command) -> Result<Self> {
        let (child, _, log) = start(command, "stop with Ctrl-C")?;
        Ok(Self { child, log })
    }

    /// Number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// As [`Recording::wait_for`].
    ///
    /// # Panics
    /// As [`Recording::wait_for`].
    pub fn wait_for(&self, text: &str) -> String {
        self.log.wait_for(text, 1)
    }

    /// Presses Ctrl-C so often, and waits for the end; what it said, and whether it was well.
    ///
    /// # Errors
    /// It is gone.
    pub fn stop(mut self, presses: usize) -> Result<(String, bool)> {
        for _ in 0..presses {
            kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
            thread::sleep(Duration::from_millis(100));
        }
        let status = self.child.wait()?;
        Ok((self.log.whole(), status.success()))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `flowscribe` to its end.
///
/// # Errors
/// It can't be started.
pub fn flowscribe<S: AsRef<OsStr>>(executable: &Path, arguments: &[S]) -> Result<Output> {
    Command::new(executable).arg("flowscribe").args(arguments).output().context("start flowscribe")
}
