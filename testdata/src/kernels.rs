//! Compares what the agent recorded on another kernel with the traffic that was played there.
//!
//! `.ci/kernels` boots the kernels and has `testdata/kernels/scene.sh` played on them; this reads the directory of results
//! that each left. What may be missing on a kernel is what the agent's doctor says there, and for the kernels that
//! `.ci/kernels` knows, what it is expected to say.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use schemas::{flow::FlowRecord, health::HealthRecord};
use serde::Deserialize;
use traffic::Plan;

use crate::recording;
use plan::{Lengths, differences, ends};

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory with a directory of results for each kernel.
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// Kernels, such as amd64/6.12.
    #[arg(required = true)]
    kernels: Vec<String>,
}

/// Prints a table of kernels in Markdown, and below it what is not as it should be.
///
/// # Errors
/// Something is not as it should be.
pub fn run(Args { results, kernels }: &Args) -> Result<()> {
    println!("{HEADER}");
    let verdicts: Vec<Verdict> = kernels.iter().map(|kernel| judge(kernel, &results.join(kernel))).collect();
    for verdict in &verdicts {
        println!("{}", verdict.row);
    }
    let failed: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.faults.is_empty()).collect();
    for Verdict { kernel, faults, .. } in &failed {
        println!("\n{kernel} is not as it should be:\n");
        for fault in faults {
            println!("- {fault}");
        }
    }
    let names: Vec<&str> = failed.iter().map(|verdict| &*verdict.kernel).collect();
    ensure!(failed.is_empty(), "not as it should be: {}", names.join(", "));
    Ok(())
}

/// What came of a kernel.
struct Verdict {
    kernel: String,
    /// Its row of the table.
    row: String,
    /// What is not as it should be.
    faults: Vec<String>,
}

/// What a kernel lacks of what the agent needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Nothing,
    /// UDP of connected sockets, and of those that receive without asking who sent.
    Lengths,
    /// The agent can't record.
    Everything,
}

impl Lack {
    /// What is expected of a kernel that `.ci/kernels` knows.
    fn expected(kernel: &str) -> Self {
        match kernel {
            "amd64/5.10" | "arm64/5.10" => Self::Everything,
            "arm64/6.1" => Self::Lengths,
            _ => Self::Nothing,
        }
    }
}

/// One of the two recordings that the scene makes.
struct Recording {
    name: &'static str,
    directory: PathBuf,
    /// What was played.
    plans: Vec<Plan>,
    doctor: Doctor,
    flows: Vec<FlowRecord>,
    health: Vec<HealthRecord>,
}

/// What `flowscribe-exporter doctor --format json` says, as far as it is compared.
#[derive(Debug, Deserialize)]
struct Doctor {
    records: bool,
    programs: Vec<Program>,
}

#[derive(Debug, Deserialize)]
struct Program {
    name: String,
    ok: bool,
    reason: Option<String>,
}

impl Doctor {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn names(&self, ok: bool) -> BTreeSet<&str> {
        self.programs.iter().filter(|program| program.ok == ok).map(|program| &*program.name).collect()
    }

    fn lack(&self) -> Lack {
        match (self.records, self.names(false).is_empty()) {
            (false, _) => Lack::Everything,
            (true, true) => Lack::Nothing,
            (true, false) => Lack::Lengths,
        }
    }
}

impl Recording {
    fn read(name: &'static str, plans: Vec<Plan>, results: &Path) -> Result<Self> {
        let directory = results.join(name);
        let doctor = Doctor::read(&directory.join("doctor.json"))?;
        let capture = directory.join("capture");
        let is_there = capture.is_dir();
        let flows = if is_there { recording::rows(&capture)? } else { Vec::new() };
        let health = if is_there { recording::rows(&capture)? } else { Vec::new() };
        Ok(Self { name, directory, plans, doctor, flows, health })
    }

    /// What is not as it should be.
    fn faults(&self, expected: Lack) -> Vec<String> {
        let mut faults = self.missing(expected);
        let exits = fs::read_to_string(self.directory.join("exits")).unwrap_or_default();
        faults.extend(wrong_exits(&exits, &steps(self.name, expected != Lack::Everything)));
        faults.extend(match self.doctor.lack() {
            Lack::Nothing => self.untrue(Lengths::Known),
            Lack::Lengths => self.untrue(Lengths::Missing),
            Lack::Everything => self.refusal(),
        });
        faults.into_iter().map(|fault| format!("{}: {fault}", self.name)).collect()
    }

    /// How what was recorded differs from what happened.
    fn untrue(&self, lengths: Lengths) -> Vec<String> {
        let mut faults = account(&self.flows, &self.health);
        let ran: BTreeSet<&str> = self.health.iter().flat_map(|row| &row.programs).map(AsRef::as_ref).collect();
        let loaded = self.doctor.names(true);
        if ran != loaded {
            faults.push(format!("programs that ran: {ran:?}, the doctor's: {loaded:?}"));
        }
        faults.extend(differences(&self.plans, &self.flows, lengths));
        // Without --loopback, what the scene plays on that interface is left out, and nothing else.
        let of_loopback = if self.plans.contains(&Plan::Loopback) { 0 } else { ends(Plan::Loopback) };
        let filtered: i64 = self.health.iter().map(|row| row.filtered).sum();
        if filtered != of_loopback {
            faults.push(format!("{filtered} ends were filtered, where {of_loopback} are of the loopback interface"));
        }
        faults
    }

    /// How what the doctor misses differs from what it should miss.
    fn missing(&self, expected: Lack) -> Vec<String> {
        let missing = self.doctor.names(false);
        let is_of_lengths = |name: &&str| LENGTHS.iter().any(|prefix| name.starts_with(prefix));
        let is_right = match expected {
            Lack::Nothing => missing.is_empty() && self.doctor.records,
            Lack::Lengths => !missing.is_empty() && missing.iter().all(is_of_lengths) && self.doctor.records,
            Lack::Everything => !self.doctor.records,
        };
        let wrong = (!is_right).then(|| format!("the doctor misses {missing:?}, where {expected:?} should be missing"));
        let unnamed = self.doctor.programs.iter().filter(|program| {
            let says_nothing = |reason: &String| NO_REASONS.iter().any(|words| reason.contains(words));
            !program.ok && program.reason.as_ref().is_none_or(|reason| reason.is_empty() || says_nothing(reason))
        });
        wrong.into_iter().chain(unnamed.map(|program| format!("no reason why {} is missing", program.name))).collect()
    }

    /// What is wrong with how the agent refuses to record: it should say which Linux is needed.
    fn refusal(&self) -> Vec<String> {
        let says = |file: &str| fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        let silent = ["agent.err", "doctor.txt"].into_iter().filter(|file| !says(file).contains("or newer is needed"));
        let mut faults: Vec<String> = silent.map(|file| format!("{file} does not say which Linux is needed")).collect();
        if says("agent.err").contains("panicked") {
            faults.push("the agent panicked".into());
        }
        faults
    }
}

/// Reads and judges the results of a kernel.
fn judge(kernel: &str, results: &Path) -> Verdict {
    let file = |name: &str| fs::read_to_string(results.join(name)).unwrap_or_default().trim().to_owned();
    let row = |cells: [&str; 5]| {
        let [doctor, programs, traffic, in_pod, ends] = cells;
        format!(
            "| {kernel} | {} | {doctor} | {programs} | {traffic} | {in_pod} | {ends} | {} |",
            file("kernel"),
            file("seconds")
        )
    };
    let unavailable = file("unavailable");
    if !unavailable.is_empty() {
        return Verdict { kernel: kernel.into(), row: row(["not run"; 5]), faults: vec![unavailable] };
    }
    match compare(kernel, results) {
        Ok(outcome) => Verdict { kernel: kernel.into(), row: row(outcome.cells()), faults: outcome.all() },
        Err(error) => Verdict {
            kernel: kernel.into(),
            row: row(["cannot be read", "", "", "", ""]),
            faults: vec![format!("{error:#}"), format!("the console ends with: {}", last_lines(&file("console")))],
        },
    }
}

/// What the comparison of a kernel came to, as cells and as faults.
struct Outcome {
    doctor: String,
    programs: String,
    traffic: String,
    in_pod: String,
    ends: String,
    first: Vec<String>,
    second: Vec<String>,
    other: Vec<String>,
}

impl Outcome {
    fn cells(&self) -> [&str; 5] {
        [&self.doctor, &self.programs, &self.traffic, &self.in_pod, &self.ends]
    }

    fn all(self) -> Vec<String> {
        [self.first, self.second, self.other].concat()
    }
}

fn compare(kernel: &str, results: &Path) -> Result<Outcome> {
    let expected = Lack::expected(kernel);
    let short = fs::read_to_string(results.join("short")).context("read how many short connections there were")?;
    let pods = Plan::Pods { short: short.trim().parse().context("a number of short connections")? };
    let first = Recording::read("first", vec![pods], results)?;
    let second = Recording::read("second", vec![Plan::Node, Plan::Loopback], results)?;
    let [first_faults, second_faults] = [first.faults(expected), second.faults(expected)];
    let verdict = |faults: &[String], good: &str| match faults.len() {
        0 => good.to_owned(),
        1 => "1 fault".into(),
        number => format!("{number} faults"),
    };
    let good = if expected == Lack::Everything { ["refused, as expected"; 2] } else { ["exact", "exact, `node`"] };
    Ok(Outcome {
        doctor: missing_cell(&first.doctor),
        programs: first.doctor.names(true).len().to_string(),
        traffic: verdict(&first_faults, good[0]),
        in_pod: verdict(&second_faults, good[1]),
        ends: ends_cell(&first.health),
        first: first_faults,
        second: second_faults,
        other: kernel_faults(&fs::read_to_string(results.join("dmesg")).unwrap_or_default()),
    })
}

/// What the doctor misses, for people.
fn missing_cell(doctor: &Doctor) -> String {
    match doctor.lack() {
        Lack::Nothing => "all there".into(),
        Lack::Everything => "cannot record".into(),
        Lack::Lengths => format!("without {}", doctor.names(false).into_iter().collect::<Vec<_>>().join(", ")),
    }
}

fn ends_cell(health: &[HealthRecord]) -> String {
    let sum = |pick: fn(&HealthRecord) -> i64| health.iter().map(pick).sum::<i64>();
    let (seen, filtered, lost) = (sum(|row| row.seen), sum(|row| row.filtered), sum(HealthRecord::lost));
    format!("{seen} seen, {filtered} filtered, {lost} lost, {} runs skipped", sum(|row| row.lost_recursion))
}

/// Steps of a recording, and what they should end with.
fn steps(recording: &str, is_recorded: bool) -> BTreeMap<&'static str, &'static str> {
    let played: &[&str] = match (is_recorded, recording) {
        (false, _) => &[],
        (true, "first") => &["pods", "loopback", "late", "older"],
        (true, _) => &["node", "loopback"],
    };
    let of_agent = if is_recorded { "0" } else { "1" };
    let agent = ["doctor", "doctor-json", "agent"].map(|step| (step, of_agent));
    agent.into_iter().chain(played.iter().map(|step| (*step, "0"))).collect()
}

/// How the steps ended otherwise than they should.
fn wrong_exits(exits: &str, expected: &BTreeMap<&str, &str>) -> Vec<String> {
    let ended: BTreeMap<&str, &str> = exits.lines().filter_map(|line| line.split_once(' ')).collect();
    let names: BTreeSet<&str> = ended.keys().chain(expected.keys()).copied().collect();
    let different = names.into_iter().filter(|name| ended.get(name) != expected.get(name));
    let say = |status: Option<&&str>| status.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    different
        .map(|name| format!("`{name}` ended with {}, not {}", say(ended.get(name)), say(expected.get(name))))
        .collect()
}

/// What is wrong with the agent's account of a run: everything it saw is in its rows, or was filtered.
fn account(flows: &[FlowRecord], health: &[HealthRecord]) -> Vec<String> {
    let sum = |pick: fn(&HealthRecord) -> i64| health.iter().map(pick).sum::<i64>();
    let [seen, exported, filtered] = [sum(|row| row.seen), sum(|row| row.exported), sum(|row| row.filtered)];
    let [lost, closed] = [sum(HealthRecord::lost), sum(|row| row.lost_closed)];
    let written: i64 = flows.iter().map(|row| row.connections + row.failed).sum();
    let is_clean = health.iter().max_by_key(|row| row.seq).is_some_and(|row| row.clean_shutdown);
    let claims = [
        (
            seen == exported + filtered + lost,
            format!("{seen} seen, {exported} exported, {filtered} filtered, {lost} lost"),
        ),
        (lost == 0 && closed == 0, format!("{lost} ends and {closed} closings were lost")),
        (exported == written, format!("{exported} exported, {written} in rows")),
        (is_clean, "the run has no clean end".into()),
    ];
    claims.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault).collect()
}

/// What the kernel complained of.
fn kernel_faults(dmesg: &str) -> Vec<String> {
    let signs = ["BUG:", "Oops", "WARNING: CPU", "Kernel panic"];
    let lines = dmesg.lines().filter(|line| signs.iter().any(|sign| line.contains(sign)));
    lines.map(|line| format!("the kernel says: {line}")).collect()
}

fn last_lines(console: &str) -> String {
    let skipped = console.lines().count().saturating_sub(5);
    console.lines().skip(skipped).collect::<Vec<_>>().join(" / ")
}

/// Beginnings of the names of programs that watch UDP of connected sockets.
const LENGTHS: [&str; 4] = ["observe_sent", "observe_received", "observe_send", "observe_receive"];

/// What the verifier also says, and what is not why it refuses a program.
const NO_REASONS: [&str; 4] = ["R1=ctx", "arg#0 type is not a struct", "stack depth", "verification time"];

const HEADER: &str = "\
| kernel | release | doctor | programs | traffic between pods | agent as in its pod | ends | seconds |
|---|---|---|---|---|---|---|---|";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_end_otherwise_or_not_at_all_are_faults() {
        let expected = steps("second", true);
        let good = "doctor 0\ndoctor-json 0\nnode 0\nloopback 0\nagent 0\n";
        assert_eq!(wrong_exits(good, &expected), Vec::<String>::new());
        let faults = wrong_exits("doctor 0\ndoctor-json 2\nnode 0\nagent 0\n", &expected);
        assert_eq!(faults, ["`doctor-json` ended with 2, not 0", "`loopback` ended with nothing, not 0"]);
        assert_eq!(wrong_exits("doctor 1\ndoctor-json 1\nagent 1\n", &steps("first", false)), Vec::<String>::new());
    }

    #[test]
    fn an_account_that_does_not_balance_is_a_fault() {
        let flows = [FlowRecord { connections: 3, failed: 1, ..FlowRecord::default() }];
        let good = HealthRecord { seen: 6, exported: 4, filtered: 2, clean_shutdown: true, ..HealthRecord::default() };
        assert_eq!(account(&flows, std::slice::from_ref(&good)), Vec::<String>::new());
        let lost = HealthRecord { seen: 7, lost_ring: 1, ..good.clone() };
        assert_eq!(account(&flows, &[lost]), ["1 ends and 0 closings were lost"]);
        assert_eq!(account(&[], &[good]), ["4 exported, 0 in rows"]);
        assert_eq!(account(&[], &[]), ["the run has no clean end"]);
    }

    #[test]
    fn a_program_that_is_missing_unexpectedly_or_without_a_reason_is_a_fault() {
        let doctor = |name: &str, reason: &str| Recording {
            name: "first",
            directory: PathBuf::new(),
            plans: Vec::new(),
            doctor: Doctor {
                records: true,
                programs: vec![Program { name: name.into(), ok: false, reason: Some(reason.into()) }],
            },
            flows: Vec::new(),
            health: Vec::new(),
        };
        assert_eq!(doctor("observe_sent", "no such function").missing(Lack::Lengths), Vec::<String>::new());
        assert_eq!(doctor("observe_sent", "no such function").missing(Lack::Nothing).len(), 1);
        assert_eq!(doctor("observe_close", "no such function").missing(Lack::Lengths).len(), 1);
        assert_eq!(doctor("observe_sent", "0: R1=ctx(off=0,imm=0)").missing(Lack::Lengths).len(), 1);
        assert_eq!(doctor("observe_sent", "").missing(Lack::Everything).len(), 2);
    }

    #[test]
    fn a_kernel_that_was_not_run_does_not_pass() {
        let results = tempfile::tempdir().expect("a directory");
        assert_eq!(judge("amd64/6.1", results.path()).faults.len(), 2);
        fs::write(results.path().join("unavailable"), "no such package").expect("it can be written");
        assert_eq!(judge("amd64/6.1", results.path()).faults, ["no such package"]);
    }
}
