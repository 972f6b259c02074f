//! A process of the lab, from outside: orders go in, answers come out.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::pod::{Answer, Order};

/// A pod's process, from outside.
pub(super) struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Number of the process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// In a network of its own, or in that of a file.
    pub(super) fn start(executable: &Path, role: &str, cgroup: &Path, netns: Option<&Path>) -> Result<Self> {
        let mut child = Command::new(executable)
            .arg(role)
            .arg("--cgroup")
            .arg(cgroup)
            .args(netns.map(|netns| format!("--netns={}", netns.display())))
            // Ctrl-C is for the lab; its processes end when it does.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", executable.display()))?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("its standard output is piped")?);
        let mut process = Self { child, orders, answers };
        process.answer()?;
        Ok(process)
    }

    pub(super) fn order(&mut self, order: &Order) -> Result<u64> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        self.orders.as_mut().context("it has not been ended")?.write_all(line.as_bytes())?;
        self.answer().with_context(|| format!("{order:?}"))
    }

    fn answer(&mut self) -> Result<u64> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("a process of the lab ended");
        }
        serde_json::from_str::<Answer>(&line)?.map_err(|error| anyhow!(error))
    }

    pub(super) fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.order(&Order::Run { program: program.into(), arguments, input: input.into() }).map(drop)
    }

    pub(super) fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.child.id()).into()
    }

    pub(super) fn end(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
