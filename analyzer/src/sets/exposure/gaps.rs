//! When nodes were not watched, or watched without all programs.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use schemas::{
    index::{Index, Span},
    inventory::{InventoryEvent, ObjectKind},
    programs::{PROGRAMS, Pods, Program},
    table::TimestampMs,
};

use crate::capture::health::Watch;

schemas::table! {
    /// When a node was not watched, or not all of it, within the time of the capture.
    GapRow, "capture_gaps";

    /// The node.
    node: Arc<str> => "", "";
    /// Since when.
    gap_start: TimestampMs => "", "";
    /// Until when.
    gap_end: TimestampMs => "", "";
    /// Why: no agent ever told of the node, nobody told of that time, more than 1 % was lost, or rows are missing; or what
    /// was not seen, because a kernel program of the agent was missing, while all else was watched.
    reason: Arc<str> => "", "";
}

/// Gaps of a capture.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// When nodes were not watched.
    unwatched: Vec<GapRow>,
    /// When nodes were watched without all programs.
    partial: Vec<PartialGap>,
}

/// A time in which a node was watched without one of the kernel programs.
#[derive(Debug)]
struct PartialGap {
    node: Arc<str>,
    program: &'static Program,
    span: Span,
}

impl Gaps {
    /// Those of the capture in which nodes were there.
    pub(super) fn new(index: &Index, watches: &HashMap<&str, Vec<&Watch>>, capture: Span) -> Self {
        let mut nodes: BTreeMap<&Arc<str>, Vec<Span>> = BTreeMap::new();
        for (node, span) in index.intervals(ObjectKind::Node) {
            // What a list names may have been there before.
            let from = if *node.event == InventoryEvent::Snapshot { capture.from } else { span.from.max(capture.from) };
            let span = Span { from, to: span.to.min(capture.to) };
            if span.from >= span.to {
                continue;
            }
            let spans = nodes.entry(&node.name).or_default();
            match spans.iter_mut().find(|known| known.widened(1).overlaps(span)) {
                Some(known) => *known = known.hull(span),
                None => spans.push(span),
            }
        }
        let mut gaps = Self::default();
        for (node, spans) in nodes {
            let watches = watches.get(&**node);
            let watched: &[&Watch] = watches.map_or(&[], Vec::as_slice);
            gaps.partial.extend(spans.iter().flat_map(|span| partial_gaps(node, *span, watched)));
            let silence = if watches.is_some() { "no news" } else { NO_AGENT };
            let mut gap = |from, to, reason: &str| {
                if from < to {
                    let (node, reason) = (Arc::clone(node), reason.into());
                    gaps.unwatched.push(GapRow { node, gap_start: from, gap_end: to, reason });
                }
            };
            for span in spans {
                let mut until = span.from;
                for watch in watches.into_iter().flatten().filter(|watch| watch.span.overlaps(span)) {
                    gap(until, watch.span.from, silence);
                    if let Some(reason) = watch.gap {
                        gap(watch.span.from.max(span.from), watch.span.to.min(span.to), reason);
                    }
                    until = until.max(watch.span.to);
                }
                gap(until, span.to, silence);
            }
        }
        gaps
    }

    /// When nodes were not watched, a line each, but for moments of a capture of so many milliseconds, such as the restart of
    /// an agent takes.
    pub(super) fn describe(&self, span: i64) -> String {
        let mut by_node: BTreeMap<&Arc<str>, (usize, i64, &GapRow)> = BTreeMap::new();
        for row in &self.unwatched {
            let length = row.gap_end.0 - row.gap_start.0;
            let (gaps, sum, longest) = by_node.entry(&row.node).or_insert((0, 0, row));
            (*gaps, *sum) = (*gaps + 1, *sum + length);
            if length > longest.gap_end.0 - longest.gap_start.0 {
                *longest = row;
            }
        }
        let never: Vec<&str> =
            by_node.extract_if(.., |_, (_, _, gap)| &*gap.reason == NO_AGENT).map(|(n, _)| &**n).collect();
        by_node.retain(|_, (_, sum, _)| *sum >= 60_000 || *sum * 20 >= span);
        let mut text = String::new();
        if !never.is_empty() {
            let _ = writeln!(text, "no agent watched {}", named(never));
        }
        for (node, (gaps, sum, longest)) in by_node {
            let seconds = humantime::format_duration(Duration::from_secs(sum as u64 / 1000));
            let GapRow { gap_start, gap_end, reason, .. } = longest;
            let _ = write!(text, "node {node} was not watched for {seconds}: ");
            let _ = match gaps {
                1 => writeln!(text, "from {gap_start} to {gap_end} ({reason})"),
                _ => writeln!(
                    text,
                    "{gaps} times, longest from {gap_start} to {gap_end} ({reason}; flowscribe sql: capture_gaps)"
                ),
            };
        }
        text + &self.describe_partial(|sum| sum >= 60_000 || sum * 20 >= span)
    }

    /// What was not recorded because programs were missing, a line per program, of nodes where that is `long_enough` in
    /// milliseconds.
    fn describe_partial(&self, long_enough: impl Fn(i64) -> bool) -> String {
        let mut by_program: BTreeMap<&str, BTreeMap<&str, Vec<&PartialGap>>> = BTreeMap::new();
        for gap in &self.partial {
            by_program.entry(gap.program.name).or_default().entry(&gap.node).or_default().push(gap);
        }
        let mut text = String::new();
        for (name, mut nodes) in by_program {
            nodes.retain(|_, gaps| long_enough(gaps.iter().map(|gap| gap.length()).sum()));
            let gaps: Vec<&PartialGap> = nodes.values().flatten().copied().collect();
            let Some(span) = gaps.iter().map(|gap| gap.span).reduce(Span::hull) else { continue };
            let Program { traffic, ingress, egress, pods, .. } = gaps[0].program;
            let with = match pods {
                Pods::All => "",
                Pods::Ipv4 => " with IPv4",
                Pods::Ipv6 => " with IPv6",
            };
            let directions = match (ingress, egress) {
                (true, true) => "ingress and egress",
                (true, false) => "ingress",
                _ => "egress",
            };
            let often = if gaps.len() > nodes.len() { ", not all the time (flowscribe sql: capture_gaps)" } else { "" };
            let _ = writeln!(
                text,
                "{name} was missing on {} from {} to {}{often}: {traffic} was not seen, which counts as {directions} of \
                 the pods there{with} not observed",
                named(nodes.into_keys()),
                span.from,
                span.to,
            );
        }
        text
    }

    /// The rows of table `capture_gaps`.
    pub(super) fn rows(&self) -> Vec<GapRow> {
        let partial =
            self.partial.iter().map(|PartialGap { node, program: Program { name, traffic, .. }, span }| GapRow {
                node: Arc::clone(node),
                gap_start: span.from,
                gap_end: span.to,
                reason: format!("{traffic} was not seen: {name} was missing").into(),
            });
        let mut rows: Vec<GapRow> = self.unwatched.iter().cloned().chain(partial).collect();
        rows.sort_by(|a, b| {
            (&a.node, a.gap_start, a.gap_end, &a.reason).cmp(&(&b.node, b.gap_start, b.gap_end, &b.reason))
        });
        rows
    }
}

impl PartialGap {
    /// In milliseconds.
    const fn length(&self) -> i64 {
        self.span.to.0 - self.span.from.0
    }
}

/// Times of a span in which a node was watched without one of the programs.
fn partial_gaps(node: &Arc<str>, span: Span, watches: &[&Watch]) -> Vec<PartialGap> {
    let watched = || watches.iter().copied().filter(|watch| watch.gap.is_none() && watch.span.overlaps(span));
    let mut gaps: Vec<PartialGap> = Vec::new();
    for program in &PROGRAMS {
        let lacks = |watch: &&Watch| watch.missing.programs().any(|missing| missing.name == program.name);
        for watch in watched().filter(lacks) {
            let without = Span { from: watch.span.from.max(span.from), to: watch.span.to.min(span.to) };
            for gap in uncovered(without, covered(without, watched().filter(|watch| !lacks(watch)))) {
                match gaps.last_mut().filter(|last| last.program == program && last.span.to >= gap.from) {
                    Some(last) => last.span = last.span.hull(gap),
                    None => gaps.push(PartialGap { node: Arc::clone(node), program, span: gap }),
                }
            }
        }
    }
    gaps
}

/// What watches, in order of their beginning, cover of a span. Those of two runs may overlap; each moment is there once.
pub(super) fn covered<'w>(span: Span, watches: impl Iterator<Item = &'w Watch>) -> impl Iterator<Item = Span> {
    let mut until = span.from;
    watches.filter_map(move |watch| {
        let covered = Span { from: watch.span.from.max(until), to: watch.span.to.min(span.to) };
        let is_new = covered.from < covered.to;
        until = until.max(covered.to);
        is_new.then_some(covered)
    })
}

/// What of a span is not covered.
pub(super) fn uncovered(span: Span, covered: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut until = span.from;
    let mut gaps = Vec::new();
    for next in covered.chain([Span::at(span.to)]) {
        if until < next.from {
            gaps.push(Span { from: until, to: next.from });
        }
        until = next.to;
    }
    gaps
}

/// The first of some nodes, and how many more there are.
pub(crate) fn named(nodes: impl IntoIterator<Item: AsRef<str>>) -> String {
    let nodes: Vec<_> = nodes.into_iter().collect();
    let listed = nodes.iter().take(NODES_TOLD).map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    match nodes.len().saturating_sub(NODES_TOLD) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

/// Why a node was not watched, where nobody ever told of it.
const NO_AGENT: &str = "no agent";
/// More would be no news.
const NODES_TOLD: usize = 10;
