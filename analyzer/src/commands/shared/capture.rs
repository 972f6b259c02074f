//! What most commands begin with: a capture is opened, and sets are learned from it. Policies that are made of them are
//! tried on it before anybody sees them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use schemas::{
    capture::{CaptureFile, Problem, ProblemKind},
    flow::FlowRecord,
    inventory::InventoryRecord,
    table::Record,
};

use crate::{
    capture::{
        Input, Names, OpenCapture, OpenError,
        cache::{State, StateError},
    },
    cli::{InputArgs, LearnArgs, PolicyFormat},
    communication::Endpoint,
    netpol::{
        population::Population,
        replay::{self, Terms, Verdict},
    },
    output,
    policy::{self, PolicyError, PolicySet, Wish, cilium},
    sets::{self, Decisions, DecisionsError, Learned, Learning, Sets, Thresholds},
    yaml,
};

/// Why nothing can be learned from a capture.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The decisions can't be read, or are not valid.
    #[error(transparent)]
    Decisions(#[from] DecisionsError),
    /// What is remembered can't be read or kept.
    #[error(transparent)]
    State(#[from] StateError),
    #[error("no capture in {0}: does anything record into it?")]
    NoCapture(String),
    #[error("no {0} can be read, as listed above")]
    Unreadable(&'static str),
    #[error("no inventory in {0}: nothing tells which pods there were, and what policies would mean for them")]
    NoInventory(String),
    #[error("no pod of {unknown} is known, only some of {known}")]
    NoSuchNamespaces { unknown: String, known: String },
}

/// Why nothing can be proposed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProposalError {
    #[error("refusing to write an unsafe policy, please report this")]
    Policy(#[from] PolicyError),
    #[error("refusing to write policies that deny what is stable ({count}), please report this:\n{denied}")]
    Denies { count: usize, denied: String },
    #[error("the policies are not valid, please report this: {0}")]
    Invalid(String),
}

/// A capture that was learned from.
pub(crate) struct Capture {
    pub(crate) open: OpenCapture,
    pub(crate) learned: Learned,
    names: Names,
    pub(crate) population: Population,
}

/// Policies that were tried.
pub(crate) struct Proposal<'a> {
    pub(crate) set: PolicySet<'a>,
    pub(crate) verdict: Verdict<'a>,
}

/// Opens a capture, and reads what is to be learned by.
///
/// # Errors
/// An input is not there, the decisions can't be read or are not valid, or the state can't be used.
pub(crate) async fn open(input: &InputArgs, learn: &LearnArgs) -> Result<(OpenCapture, Learning), CaptureError> {
    let LearnArgs { decisions, state, learn_for, stable_after, decay_after, hold_after } = learn;
    let hours = |duration: &Duration| duration.as_secs().div_ceil(3600);
    let thresholds = Thresholds {
        learn_hours: hours(learn_for),
        stable_hours: hours(stable_after),
        decay_hours: hours(decay_after),
        hold_hours: hours(hold_after),
    };
    let state = state.as_deref().map(|state| State::open(state, input.clock_skew_ms)).transpose()?;
    let decisions = Decisions::read(decisions.as_deref())?.into();
    let capture = OpenCapture::new(input.of(state.map(Arc::new))).await?;
    Ok((capture, Learning { decisions, thresholds }))
}

/// Whether namespaces that are asked for are known; some of them may be unknown where that is said to be no mistake.
///
/// # Errors
/// They are not.
pub(crate) fn check_namespaces<'a>(
    asked: &BTreeSet<Arc<str>>,
    known: impl Iterator<Item = &'a Arc<str>>,
    some_may_be_unknown: bool,
) -> Result<(), CaptureError> {
    let known: BTreeSet<&Arc<str>> = known.collect();
    let unknown: Vec<&str> = asked.iter().filter(|name| !known.contains(name)).map(|name| &**name).collect();
    if unknown.is_empty() || some_may_be_unknown && unknown.len() < asked.len() {
        return Ok(());
    }
    let known: Vec<&str> = known.into_iter().map(|name| &**name).collect();
    Err(CaptureError::NoSuchNamespaces { unknown: unknown.join(", "), known: known.join(", ") })
}

impl InputArgs {
    /// What is to be opened, with what an earlier run remembers of it.
    pub(crate) fn of(&self, state: Option<Arc<State>>) -> Input {
        let Self { input, cache, cluster_name, clock_skew_ms, memory_mib: _ } = self;
        Input {
            paths: input.clone(),
            cluster: cluster_name.clone(),
            cache: cache.clone(),
            clock_skew_ms: *clock_skew_ms,
            state,
            progress: output::progress_of_rows(),
        }
    }
}

impl Capture {
    /// Reads captures and learns from them.
    ///
    /// # Errors
    /// An input is not there, or what to learn by can't be used. A broken file among the input is no error.
    pub(crate) async fn read(input: &InputArgs, learn: &LearnArgs) -> Result<Self, CaptureError> {
        let (mut open, learning) = open(input, learn).await?;
        let read = async |open: &OpenCapture| Ok::<_, OpenError>((sets::learn(open, &learning).await?, open.names()?));
        let (learned, names) = open.read(read).await?;
        let population = Population::of_index(&open.index);
        Ok(Self { open, learned, names, population })
    }

    /// Whether it tells what policies need: who the pods were, of the wanted namespaces. Some may have none, if all of the
    /// cluster is known.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check(&self, input: &InputArgs, namespaces: &BTreeSet<Arc<str>>) -> Result<(), CaptureError> {
        if self.open.files.is_empty() {
            return Err(CaptureError::NoCapture(input.told()));
        }
        if self.population.members.is_empty() {
            return Err(CaptureError::NoInventory(input.told()));
        }
        let known = self.population.members.iter().map(|member| &member.workload.namespace);
        check_namespaces(namespaces, known, self.open.index.is_covered())
    }

    /// Whether a file of the capture is there and can't be read: what is missing is not known to be gone.
    pub(crate) fn is_read_in_part(&self) -> bool {
        self.open.problems.iter().any(is_lost)
    }
}

/// Refuses a capture of which all files of a dataset that policies need are there and can't be read: nothing can be said then.
///
/// # Errors
/// It is one.
pub(crate) fn check_readable(open: &OpenCapture) -> Result<(), CaptureError> {
    let is_of = |file: &CaptureFile, dataset| {
        file.dataset == dataset || dataset == FlowRecord::DATASET && file.summary.is_some()
    };
    let is_below = |problem: &Problem, dataset| problem.path.components().any(|part| part.as_os_str() == dataset);
    for dataset in [FlowRecord::DATASET, InventoryRecord::DATASET] {
        let is_lost = open.problems.iter().any(|problem| is_lost(problem) && is_below(problem, dataset));
        if is_lost && !open.files.iter().any(|file| is_of(file, dataset)) {
            output::skipped(&open.problems);
            return Err(CaptureError::Unreadable(dataset));
        }
    }
    Ok(())
}

/// Whether a file is there and can't be read.
const fn is_lost(problem: &Problem) -> bool {
    match problem.kind {
        ProblemKind::Damaged { .. }
        | ProblemKind::NewerSchema { .. }
        | ProblemKind::WrongColumns { .. }
        | ProblemKind::Unreadable { .. } => true,
        ProblemKind::NotParquet
        | ProblemKind::Foreign
        | ProblemKind::Unfinished
        | ProblemKind::Received
        | ProblemKind::Empty => false,
    }
}

impl Capture {
    /// What is believed of all workloads.
    pub(crate) fn sets(&self) -> &Sets {
        &self.learned.0
    }

    /// Writes policies and replays what was observed over them.
    ///
    /// # Errors
    /// They would deny what is stable, or are not valid.
    pub(crate) fn propose<'a>(&'a self, wish: &'a Wish) -> Result<Proposal<'a>, ProposalError> {
        let set = policy::synthesize(self.sets(), &self.open.index, &self.population, &self.names, wish)?;
        let policies = set.policies.iter().map(|written| &written.policy);
        let terms = Terms { own_node_exempt: true, overlaps: set.overlaps.clone() };
        let (verdict, invalid) = replay::replay(self.sets(), &self.population, policies, &terms);
        if let Some(invalid) = invalid.first() {
            return Err(ProposalError::Invalid(invalid.to_string()));
        }
        let wrong: Vec<String> = verdict.wrong().map(ToString::to_string).collect();
        if !wrong.is_empty() {
            return Err(ProposalError::Denies { count: wrong.len(), denied: wrong.join("\n") });
        }
        Ok(Proposal { set, verdict })
    }

    /// Policies as YAML documents, in their order.
    ///
    /// # Errors
    /// One can't be written as YAML.
    pub(crate) fn documents(
        &self,
        set: &PolicySet<'_>,
        format: PolicyFormat,
    ) -> Result<Vec<String>, serde_yaml::Error> {
        let policies = set.policies.iter().map(|written| &written.policy);
        match format {
            PolicyFormat::Kubernetes => policies.map(yaml::to_string).collect(),
            PolicyFormat::Cilium => {
                let ends = self.sets().edges.keys().flat_map(|edge| [&edge.source, &edge.destination]);
                let seen = ends.filter_map(|end| match end {
                    Endpoint::Node { address, .. } => Some(*address),
                    _ => None,
                });
                let nodes = cilium::Nodes::new(&self.open.index, seen);
                policies.map(|policy| yaml::to_string(&cilium::translate(policy, &nodes))).collect()
            }
        }
    }
}
