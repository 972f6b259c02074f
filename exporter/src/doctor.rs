//! `flowscribe-exporter doctor`: what can be recorded here, and what is missing costs.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde::Serialize;

use crate::{
    args::{Args, DoctorArgs, DoctorFormat},
    chain,
    enrich::{HostNetns, inode},
    pipeline,
    probe::{
        Degraded, NodeNetns, PROGRAMS, Probe, ProbeError, ProbeOptions, Spec,
        host::{CAPABILITIES, cgroup2_mount, has_capability, is_first_pid_namespace},
        netns,
    },
};

/// Tries everything for a moment and prints what came of it. Exits with 1 where TCP can't be recorded.
pub(crate) fn run(args: &Args, DoctorArgs { format, verbose }: DoctorArgs) -> ExitCode {
    let mut report = Report { kernel: kernel(), records: false, findings: Vec::new(), programs: Vec::new() };
    report.look_at_the_machine();
    let probe = Probe::attach(ProbeOptions {
        cgroup: args.cgroup.as_deref(),
        ring_bytes: 1 << 20,
        kernel_edges: 16,
        connections: 16,
        window_ns: 1_000_000_000,
        utc_offset_ns: 0,
    });
    report.look_at_namespaces(args.host_netns.as_deref(), probe.as_ref().ok().and_then(Probe::node_netns));
    report.look_at_programs(&probe);
    let text = match format {
        DoctorFormat::Text => report.text(verbose || args.verbose),
        DoctorFormat::Json => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
    };
    // That nobody reads it is no error; that it can't be written is.
    let written = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        crate::say(&format!("flowscribe-exporter: cannot write standard output: {error}"));
        return ExitCode::FAILURE;
    }
    if report.records { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What was found; its JSON is for programs.
#[derive(Serialize)]
struct Report {
    /// As `uname -r` prints it.
    kernel: String,
    /// Whether TCP can be recorded, without which an agent does not start.
    records: bool,
    findings: Vec<Finding>,
    /// The eBPF programs; those that stand in for others are left out where they are not needed.
    programs: Vec<Program>,
}

/// Something that recording needs.
#[derive(Serialize)]
struct Finding {
    what: String,
    ok: bool,
    detail: String,
    /// What is not recorded without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs: Option<&'static str>,
}

/// An eBPF program.
#[derive(Serialize)]
struct Program {
    name: &'static str,
    ok: bool,
    /// What only it sees.
    sees: &'static str,
    /// The first Linux that has what it needs.
    linux: &'static str,
    /// Why it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// All that the verifier said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    verifier_log: Option<String>,
}

impl Report {
    fn look_at_the_machine(&mut self) {
        self.good("kernel", format!("Linux {}", self.kernel));
        let btf = Path::new("/sys/kernel/btf/vmlinux");
        self.check("type information", btf.exists(), btf.display().to_string(), "nothing can be recorded");
        match cgroup2_mount() {
            Ok(path) => self.good("cgroup v2", path.display().to_string()),
            Err(error) => self.bad("cgroup v2", chain(&error), "TCP, and UDP of sockets that are not connected"),
        }
        if is_cgroup_v1() {
            let cost = "pods in the node's own network are not told apart: their cgroups are not of cgroup v2";
            self.bad("cgroup v2 alone", "the memory controller is of cgroup v1".into(), cost);
        }
        for (bit, name, cost) in CAPABILITIES {
            self.check(name, has_capability(bit), "granted".into(), cost);
        }
    }

    fn look_at_namespaces(&mut self, named: Option<&Path>, node: Option<NodeNetns>) {
        let own = inode(Path::new("/proc/self/ns/net"));
        // On a node that is a container, the node's PID namespace is not the kernel's first one; process 1 is in another
        // network than this process there.
        let is_of_another = node.is_some_and(|node| own.is_some_and(|own| own != u64::from(node.inode)));
        self.check(
            "the node's PID namespace",
            is_first_pid_namespace() || is_of_another,
            "shared with the node".into(),
            "connections of other processes that were open before the run, and which network is the node's own (hostPID: true)",
        );
        let cookie = netns::cookie(Path::new("/proc/self/ns/net")).is_some();
        let recycled = "pods are known by their network namespace's number, which the kernel uses again";
        self.check("namespace cookies", cookie, "can be asked".into(), recycled);
        match pipeline::host_netns(named, node) {
            Ok(HostNetns { inode, .. }) => {
                let found = if named.is_some() {
                    "the one that is named"
                } else if node.is_some() {
                    "that of process 1, by the kernel"
                } else {
                    "this process's own, for want of a better one"
                };
                self.good("the node's own network", format!("{found} (net:[{inode}])"));
            }
            Err(error) => self.bad("the node's own network", chain(&error), "nothing can be recorded"),
        }
    }

    fn look_at_programs(&mut self, probe: &Result<Probe, ProbeError>) {
        match probe {
            Ok(probe) => {
                self.records = self.findings.iter().all(|f| f.ok || f.what != "the node's own network");
                self.good("recording TCP", "programs load and attach".into());
                let missing = |spec: &Spec| probe.degraded().iter().find(|degraded| degraded.program == spec.name);
                let found = PROGRAMS.iter().map(|spec| (spec, probe.programs().contains(&spec.name), missing(spec)));
                let needed = found.filter(|(_, is_loaded, missing)| *is_loaded || missing.is_some());
                self.programs = needed.map(|(spec, ok, missing)| Program::new(spec, ok, missing)).collect();
                for Degraded { cost, reason, .. } in probe.degraded().iter().filter(|other| other.program.is_empty()) {
                    self.bad("recording", reason.clone(), cost);
                }
                let others: Vec<&Degraded> = probe.degraded().iter().filter(|other| self.is_of_no_row(other)).collect();
                for Degraded { program, reason, cost, .. } in others {
                    self.bad(program, reason.clone(), cost);
                }
            }
            Err(error) => {
                self.bad("recording TCP", chain(error), "nothing can be recorded");
                if let Some(log) = error.verifier_log() {
                    let spec = PROGRAMS[0];
                    let (reason, log) = (chain(error), Some(log.to_owned()));
                    let missing = Degraded { program: spec.name, reason, log, ..Degraded::default() };
                    self.programs.push(Program::new(&spec, false, Some(&missing)));
                }
            }
        }
    }

    /// Whether a missing program is none of those that record.
    fn is_of_no_row(&self, missing: &Degraded) -> bool {
        !missing.program.is_empty() && self.programs.iter().all(|program| program.name != missing.program)
    }

    fn check(&mut self, what: &str, is_good: bool, detail: String, cost: &'static str) {
        if is_good { self.good(what, detail) } else { self.bad(what, "missing".into(), cost) }
    }

    fn good(&mut self, what: &str, detail: String) {
        self.findings.push(Finding { what: what.into(), ok: true, detail, costs: None });
    }

    fn bad(&mut self, what: &str, detail: String, cost: &'static str) {
        self.findings.push(Finding { what: what.into(), ok: false, detail, costs: Some(cost) });
    }

    fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        for Finding { what, detail, costs, .. } in &self.findings {
            text += &match costs {
                None => format!("ok       {what}: {detail}\n"),
                Some(costs) => format!("MISSING  {what}: {detail}\n         costs: {costs}\n"),
            };
        }
        for Program { name, sees, linux, reason, verifier_log, .. } in &self.programs {
            if let Some(reason) = reason.as_ref().filter(|_| *name != PROGRAMS[0].name) {
                text += &format!("MISSING  {name}: {reason}\n         costs: {sees}\n         needs: Linux {linux}\n");
            }
            if let Some(log) = verifier_log.as_ref().filter(|_| verbose) {
                text += &format!("the verifier on {name}:\n{log}\n");
            }
        }
        text
    }
}

impl Program {
    fn new(spec: &Spec, ok: bool, missing: Option<&Degraded>) -> Self {
        Self {
            name: spec.name,
            ok,
            sees: spec.cost(),
            linux: spec.since,
            reason: missing.map(|missing| missing.reason.clone()),
            verifier_log: missing.and_then(|missing| missing.log.clone()),
        }
    }
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into()
}

/// Whether containers are in cgroups of version 1: one of their controllers is.
fn is_cgroup_v1() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines().any(|line| line.split(':').nth(1).is_some_and(|controllers| controllers.contains("memory")))
}
