//! When something could have been seen: the time that pods ran, and that part of it in which their node was watched; and
//! what was not recorded of one direction, where a kernel program of the node's agent was missing.

mod gaps;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use roaring::RoaringBitmap;
use schemas::{
    hour::Hour,
    index::{Index, Span},
    inventory::{InventoryRecord, ObjectKind, WRITER, parse_labels},
    programs::Program,
    table::TimestampMs,
};

pub(crate) use gaps::{GapRow, named};

use super::CRON_JOB;
use crate::{
    capture::health::{Run, Watch},
    communication::{Communications, Direction, Edge, Endpoint, PerDirection, Workload},
};
use gaps::{Gaps, covered, uncovered};

schemas::table! {
    /// How much of a workload's time was watched: one row per workload and hour in which its pods ran.
    CoverageRow, "coverage";

    /// Namespace of the workload.
    namespace: Arc<str> => "", "";
    /// Its kind.
    workload_kind: Arc<str> => "", "";
    /// Its name.
    workload: Arc<str> => "", "";
    /// Start of the hour.
    hour: TimestampMs => "", "";
    /// Time that its pods ran in the hour, by the inventory, summed over pods.
    pod_ms: i64 => "", "ms";
    /// That part of it in which the pod's node was watched.
    observed_ms: i64 => "", "ms";
    /// Whether the hour counts as observable: at least half of `pod_ms` was observed.
    observable: bool => "", "";
}

/// The time of every workload.
#[derive(Debug, Default)]
pub(crate) struct Exposure {
    workloads: BTreeMap<Workload, Time>,
    /// When nodes were not watched, or without all programs.
    gaps: Gaps,
    /// Hours in which anything was watched.
    watched: RoaringBitmap,
    /// First and last moment of the capture.
    pub(crate) capture: Option<Span>,
}

/// Traffic of a workload that was not recorded while its pods were observed, as a program was missing.
#[derive(Debug)]
pub(crate) struct Unrecorded {
    pub(crate) program: &'static Program,
    /// For how long, in milliseconds summed over pods.
    time_ms: i64,
    pub(crate) nodes: BTreeSet<Arc<str>>,
}

/// The time of a workload.
#[derive(Debug, Default)]
pub(crate) struct Time {
    /// By hour: how long its pods ran, and were observed, in milliseconds.
    hours: BTreeMap<u32, (i64, i64)>,
    /// Hours in which its pods ran.
    pub(crate) ran: RoaringBitmap,
    /// Those of them that are observable.
    pub(crate) observable: RoaringBitmap,
    /// When its last pod was last there.
    pub(crate) until: TimestampMs,
    pub(crate) pods: u64,
    /// By direction, how much of the time observed was without all programs, in milliseconds.
    incomplete_ms: PerDirection<i64>,
    /// Why, by name of the program.
    unrecorded: BTreeMap<&'static str, Unrecorded>,
    /// By direction, when one of its pods was there and not all of that was surely recorded; in order, apart.
    uncertain: PerDirection<Vec<Span>>,
    /// Connections that others saw it have while the agents of its own nodes watched and saw nothing of it: its sockets are
    /// not its nodes'.
    pub(crate) unseen: BTreeSet<Edge>,
    /// In what its pods run whose sockets may not be their nodes', in words.
    pub(super) runtime: Option<Runtime>,
}

/// In what a pod runs whose sockets may not be its node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    /// A RuntimeClass that is known to have sockets of its own, by name.
    Sandbox(Arc<str>),
    /// A RuntimeClass that is not known to make ordinary containers, by name.
    Class(Arc<str>),
    /// A virtual machine.
    Machine,
}

impl Exposure {
    /// When nodes were not watched, a line each, but for moments such as the restart of an agent takes.
    pub(crate) fn described_gaps(&self) -> String {
        self.gaps.describe(self.capture.map_or(0, |capture| capture.to.0 - capture.from.0))
    }

    /// The rows of table `capture_gaps`.
    pub(crate) fn gap_rows(&self) -> Vec<GapRow> {
        self.gaps.rows()
    }

    pub(super) fn new(index: &Index, runs: &[Run], communications: &Communications) -> Self {
        let mut watches: HashMap<&str, Vec<&Watch>> = HashMap::new();
        for run in runs.iter().filter(|run| *run.node != *WRITER) {
            watches.entry(&run.node).or_default().extend(&run.watched);
        }
        let seen = communications.values().flat_map(|evidence| [evidence.first_seen, evidence.last_seen]);
        let told = watches.values().flatten().flat_map(|watch| [watch.span.from, watch.span.to]);
        // Where nobody told when they watched, what was seen has to do; one wrong clock does not make a century of it.
        let told: Vec<TimestampMs> = told.filter(|time| (0..LATEST_MS).contains(&time.0)).collect();
        let seen = seen.filter(|time| told.is_empty() && (0..LATEST_MS).contains(&time.0));
        let (first, last) = seen
            .chain(told.iter().copied())
            .fold((TimestampMs(i64::MAX), TimestampMs(i64::MIN)), |a, b| (a.0.min(b), a.1.max(b)));
        if first > last {
            return Self::default();
        }
        let capture = Span { from: first, to: last };
        let mut exposure = Self { capture: Some(capture), ..Self::default() };
        for list in watches.values_mut() {
            list.sort_by_key(|watch| (watch.span.from, watch.span.to));
            for watch in list.iter().filter(|watch| watch.gap.is_none()) {
                exposure.watched.insert_range(Hour::of(watch.span.from).bit()..=Hour::ending(watch.span.to).bit());
            }
        }
        let mut last_uid: Option<(Workload, Arc<str>)> = None;
        for (pod, span) in index.intervals(ObjectKind::Pod) {
            let runs = matches!(pod.phase.as_deref(), None | Some("Running" | "Unknown"));
            if !runs || pod.host_network == Some(true) {
                continue;
            }
            let (from, to) = (span.from.max(capture.from), span.to.min(capture.to));
            if from >= to {
                continue;
            }
            let workload = Workload::of(pod, index);
            let time = exposure.workloads.entry(workload.clone()).or_default();
            let this = (workload, pod.uid.clone().unwrap_or_else(|| Arc::clone(&pod.name)));
            if last_uid.as_ref() != Some(&this) {
                time.pods += 1;
                last_uid = Some(this);
            }
            time.runtime = time.runtime.take().or_else(|| Runtime::of(pod));
            let none = Vec::new();
            let watches = pod.object_node.as_deref().and_then(|node| watches.get(node)).unwrap_or(&none);
            time.add(Span { from, to }, watches, pod);
        }
        for time in exposure.workloads.values_mut() {
            time.ran = time.hours.keys().copied().collect();
            let is_observable = |(_, (ran, observed)): &(&u32, &(i64, i64))| *observed * 2 >= *ran && *observed > 0;
            time.observable = time.hours.iter().filter(is_observable).map(|(hour, _)| *hour).collect();
            for direction in Direction::ALL {
                unite(&mut time.uncertain[direction]);
            }
        }
        exposure.gaps = Gaps::new(index, &watches, capture);
        exposure
    }

    /// All workloads whose pods ran.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.keys()
    }

    pub(crate) fn of(&self, workload: &Workload) -> Option<&Time> {
        self.workloads.get(workload)
    }

    /// Takes in that the pods of a workload were not seen in some hours, as the connections show that others saw it have.
    pub(super) fn doubt(&mut self, workload: &Workload, hours: &RoaringBitmap, unseen: BTreeSet<Edge>) {
        let Some(time) = self.workloads.get_mut(workload) else { return };
        for hour in hours {
            if let Some((_, observed)) = time.hours.get_mut(&hour) {
                *observed = 0;
            }
        }
        time.observable -= hours;
        time.unseen.extend(unseen);
    }

    /// Takes in that nothing of what the pods of a workload did was seen.
    pub(super) fn doubt_all(&mut self, workload: &Workload) {
        let ran = self.of(workload).map(|time| time.ran.clone()).unwrap_or_default();
        self.doubt(workload, &ran, BTreeSet::new());
    }

    /// Hours in which anything was watched.
    pub(super) const fn watched(&self) -> &RoaringBitmap {
        &self.watched
    }

    /// Hours in which an edge from or to an end could have happened; `None` for ends that are always there.
    pub(super) fn ran(&self, end: &Endpoint) -> Option<&RoaringBitmap> {
        match end {
            Endpoint::Workload(workload) => self.of(workload).map(|time| &time.ran),
            _ => None,
        }
    }

    /// Hours in which a workload's set could have been seen to change. A job could have run in any hour since its first.
    pub(super) fn observable(&self, workload: &Workload) -> RoaringBitmap {
        let Some(time) = self.of(workload) else { return RoaringBitmap::new() };
        match (&*workload.kind, time.ran.min()) {
            (CRON_JOB, Some(first)) => {
                let mut hours = self.watched.clone();
                hours.remove_range(..first);
                hours
            }
            _ => time.observable.clone(),
        }
    }

    /// The rows of table `coverage`.
    pub(crate) fn coverage(&self) -> Vec<CoverageRow> {
        let row = |workload: &Workload, hour: u32, (pod_ms, observed_ms): (i64, i64), observable| CoverageRow {
            namespace: Arc::clone(&workload.namespace),
            workload_kind: Arc::clone(&workload.kind),
            workload: Arc::clone(&workload.name),
            hour: Hour::of_bit(hour).start(),
            pod_ms,
            observed_ms,
            observable,
        };
        let rows = self.workloads.iter().flat_map(|(workload, time)| {
            time.hours.iter().map(move |(hour, sums)| row(workload, *hour, *sums, time.observable.contains(*hour)))
        });
        rows.collect()
    }
}

impl Time {
    /// In what its pods run, if nothing of what they did was seen because of it.
    pub(crate) fn hidden_in(&self) -> Option<&impl fmt::Display> {
        self.runtime.as_ref().filter(|_| self.sums().1 == 0)
    }

    /// Milliseconds that its pods ran, and of them those observed.
    pub(crate) fn sums(&self) -> (i64, i64) {
        self.hours.values().fold((0, 0), |sums, hour| (sums.0 + hour.0, sums.1 + hour.1))
    }

    /// Part of its pods' time that was observed; `None` if none ran.
    pub(crate) fn coverage(&self) -> Option<f64> {
        let (ran, observed) = self.sums();
        (ran > 0).then(|| observed as f64 / ran as f64)
    }

    /// Part of its pods' time in which all of a direction was observed; `None` if none ran.
    pub(crate) fn coverage_of(&self, direction: Direction) -> Option<f64> {
        let (ran, observed) = self.sums();
        (ran > 0).then(|| (observed - self.incomplete_ms[direction]) as f64 / ran as f64)
    }

    /// Whether some of a direction was not recorded while its pods were observed.
    pub(crate) fn is_incomplete(&self, direction: Direction) -> bool {
        self.incomplete_ms[direction] > 0
    }

    /// Traffic of a direction that was not recorded, as programs were missing, each with the part of its pods' time.
    pub(crate) fn unrecorded(&self, direction: Direction) -> impl Iterator<Item = (&Unrecorded, f64)> {
        let (ran, observed) = self.sums();
        let of_direction = self.unrecorded.values().filter(move |missing| is_of(missing.program, direction));
        of_direction.map(move |missing| (missing, (ran - observed + missing.time_ms) as f64 / ran as f64))
    }

    /// Whether everything of a direction that happened in some hours, between two moments, was surely recorded.
    pub(super) fn is_certain(&self, direction: Direction, hours: &RoaringBitmap, within: Span) -> bool {
        let uncertain = &self.uncertain[direction];
        let from = uncertain.partition_point(|span| span.to < within.from);
        let mut overlapping = uncertain[from..].iter().take_while(|span| span.from <= within.to);
        hours.is_subset(&self.ran)
            && !overlapping.any(|span| {
                let (from, to) = (span.from.max(within.from), span.to.min(within.to));
                hours.range_cardinality(Hour::of(from).bit()..=Hour::ending(to).bit().max(Hour::of(from).bit())) > 0
            })
    }

    fn add(&mut self, span: Span, watches: &[&Watch], pod: &InventoryRecord) {
        self.until = self.until.max(span.to);
        let mut each_hour = |from: i64, to: i64, is_observed: bool| {
            let mut start = from;
            while start < to {
                let hour = Hour::of(TimestampMs(start));
                let end = to.min(hour.next().start().0);
                let sums = self.hours.entry(hour.bit()).or_default();
                *(if is_observed { &mut sums.1 } else { &mut sums.0 }) += end - start;
                start = end;
            }
        };
        each_hour(span.from.0, span.to.0, false);
        let namespace = pod.namespace.as_ref();
        let is_recorded = |watch: &&&Watch| {
            watch.gap.is_none()
                && (watch.namespaces.is_empty() || namespace.is_some_and(|own| watch.namespaces.contains(own)))
        };
        let recorded =
            || watches.iter().take_while(|watch| watch.span.from <= span.to).filter(is_recorded).map(|watch| &**watch);
        for covered in covered(span, recorded()) {
            each_hour(covered.from.0, covered.to.0, true);
        }
        for direction in Direction::ALL {
            let is_whole = |watch: &&Watch| {
                let mut missing = watch.missing.programs();
                watch.is_whole && !missing.any(|program| is_of(program, direction) && program.concerns(&pod.addresses))
            };
            let certain = covered(span, recorded().filter(is_whole));
            self.uncertain[direction].extend(uncovered(span, certain));
        }
        let missing: BTreeMap<&str, &'static Program> = recorded()
            .flat_map(|watch| watch.missing.programs())
            .filter(|program| program.concerns(&pod.addresses))
            .map(|program| (program.name, program))
            .collect();
        if missing.is_empty() {
            return;
        }
        let observed_ms = length_ms(covered(span, recorded()));
        // How much of that was without some of the programs.
        let without = |is_one: &dyn Fn(&Program) -> bool| {
            let lacks = |watch: &&Watch| {
                watch.missing.programs().any(|program| missing.contains_key(program.name) && is_one(program))
            };
            observed_ms - length_ms(covered(span, recorded().filter(|watch| !lacks(watch))))
        };
        for direction in Direction::ALL {
            self.incomplete_ms[direction] += without(&|program| is_of(program, direction));
        }
        for program in missing.values().copied() {
            let time_ms = without(&|other| other.name == program.name);
            if time_ms > 0 {
                let new = || Unrecorded { program, time_ms: 0, nodes: BTreeSet::new() };
                let known = self.unrecorded.entry(program.name).or_insert_with(new);
                known.time_ms += time_ms;
                known.nodes.extend(pod.object_node.clone());
            }
        }
    }
}

impl Runtime {
    fn of(pod: &InventoryRecord) -> Option<Self> {
        let is_ordinary = |class: &str| ORDINARY_RUNTIMES.iter().any(|ordinary| class.starts_with(ordinary));
        let labels = || pod.labels.as_deref().map(parse_labels).unwrap_or_default();
        if pod.owner_kind.as_deref() == Some(MACHINE) || labels().get(KUBEVIRT).is_some_and(|role| **role == *LAUNCHER)
        {
            return Some(Self::Machine);
        }
        let class = pod.runtime_class.clone().filter(|class| !is_ordinary(class))?;
        let is_sandbox = SANDBOXES.iter().any(|sandbox| class.starts_with(sandbox));
        Some(if is_sandbox { Self::Sandbox(class) } else { Self::Class(class) })
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(class) | Self::Class(class) => write!(f, "RuntimeClass {class}"),
            Self::Machine => f.write_str("a virtual machine"),
        }
    }
}

/// Whether what only a program records belongs to a direction.
const fn is_of(program: &Program, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => program.ingress,
        Direction::Egress => program.egress,
    }
}

/// Puts spans in order, and those that touch together.
fn unite(spans: &mut Vec<Span>) {
    spans.sort_by_key(|span| (span.from, span.to));
    spans.dedup_by(|next, known| {
        let touches = next.from <= known.to;
        if touches {
            known.to = known.to.max(next.to);
        }
        touches
    });
}

fn length_ms(spans: impl Iterator<Item = Span>) -> i64 {
    spans.map(|span| span.to.0 - span.from.0).sum()
}

/// How the names of RuntimeClasses begin whose containers are processes of the node: those of OCI runtimes, and those that
/// add devices to them.
const ORDINARY_RUNTIMES: [&str; 7] = ["runc", "crun", "youki", "sysbox", "nvidia", "amd", "habana"];
/// How the names of RuntimeClasses begin whose containers have a kernel or a network of their own, by their projects.
const SANDBOXES: [&str; 3] = ["gvisor", "runsc", "kata"];
/// Label and its value of the pods in which KubeVirt runs virtual machines, and the kind of their owner.
const KUBEVIRT: &str = "kubevirt.io";
const LAUNCHER: &str = "virt-launcher";
const MACHINE: &str = "VirtualMachineInstance";
/// 2100-01-01: what is later is a wrong clock.
const LATEST_MS: i64 = 4_102_444_800_000;
