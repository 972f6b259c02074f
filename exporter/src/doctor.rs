//! `flowscribe-exporter doctor`: what can be recorded here, and what is missing costs.

use std::{fs, path::Path, process::ExitCode};

use crate::{
    args::Args,
    chain,
    enrich::HostNetns,
    pipeline,
    probe::{
        Probe, ProbeOptions,
        host::{CAPABILITIES, cgroup2_mount, has_capability, is_first_pid_namespace},
        netns,
    },
};

/// Tries everything for a moment and prints one line per finding. Exits with 1 where TCP can't be recorded.
pub(crate) fn run(args: &Args) -> ExitCode {
    let mut report = Report::default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.good("kernel", format!("Linux {}", kernel.trim()));
    let btf = Path::new("/sys/kernel/btf/vmlinux");
    report.check("type information", btf.exists(), btf.display().to_string(), "nothing can be recorded");
    match cgroup2_mount() {
        Ok(path) => report.good("cgroup v2", path.display().to_string()),
        Err(error) => report.bad("cgroup v2", chain(&error), "TCP, and UDP of sockets that are not connected"),
    }
    if is_cgroup_v1() {
        let cost = "pods in the node's own network are not told apart: their cgroups are not of cgroup v2";
        report.bad("cgroup v2 alone", "the memory controller is of cgroup v1".into(), cost);
    }
    for (bit, name, cost) in CAPABILITIES {
        report.check(name, has_capability(bit), "granted".into(), cost);
    }
    report.check(
        "first PID namespace",
        is_first_pid_namespace(),
        "shared with the node".into(),
        "connections of other processes that were open before the run (hostPID: true)",
    );
    let cookie = netns::cookie(Path::new("/proc/self/ns/net")).is_some();
    let recycled = "pods are told by their network namespace's number, which the kernel uses again";
    report.check("namespace cookies", cookie, "can be asked".into(), recycled);

    match pipeline::host_netns(args.host_netns.as_deref()) {
        Ok(HostNetns { inode: 0, .. }) => report.good("the node's own network", "told by its cookie".into()),
        Ok(_) => report.good("the node's own network", "told by its namespace".into()),
        Err(error) => {
            report.bad("the node's own network", chain(&error), "nothing can be recorded");
            report.is_fatal = true;
        }
    }

    let options = ProbeOptions {
        cgroup: args.cgroup.as_deref(),
        ring_bytes: 1 << 20,
        kernel_edges: 16,
        connections: 16,
        window_ns: 1_000_000_000,
        utc_offset_ns: 0,
    };
    match Probe::attach(options) {
        Ok(probe) => {
            report.good("recording TCP", "programs load and attach".into());
            for degraded in probe.degraded() {
                report.bad("recording", degraded.reason.clone(), degraded.cost);
            }
        }
        Err(error) => {
            report.bad("recording TCP", chain(&error), "nothing can be recorded");
            report.is_fatal = true;
        }
    }
    if report.is_fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether containers are in cgroups of version 1: one of their controllers is.
fn is_cgroup_v1() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines().any(|line| line.split(':').nth(1).is_some_and(|controllers| controllers.contains("memory")))
}

#[derive(Default)]
struct Report {
    is_fatal: bool,
}

impl Report {
    fn check(&mut self, what: &str, is_good: bool, detail: String, cost: &str) {
        if is_good { self.good(what, detail) } else { self.bad(what, "missing".into(), cost) }
    }

    fn good(&self, what: &str, detail: String) {
        println!("ok       {what}: {detail}");
    }

    fn bad(&self, what: &str, detail: String, cost: &str) {
        println!("MISSING  {what}: {detail}\n         costs: {cost}");
    }
}
