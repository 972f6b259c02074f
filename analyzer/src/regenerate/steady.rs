//! What a scheduled run leaves as it is in the cluster, unless it is told to apply everything: the policies of pods of which
//! not enough was seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::{
    cluster::{self, Name},
    communication::{Direction, Workload},
    netpol::Enforcement,
    policy::{PolicySet, Wish},
    proposal::Capture,
    sets::{Sets, Status},
};

/// Why nothing of a capture can be stable: it is too short, or what came before it was lost.
pub(super) fn too_short(sets: &Sets, stable_after: Duration) -> Option<String> {
    let span = sets.exposure.capture.map_or(0, |span| (span.to.0 - span.from.0).max(0) as u64);
    let seconds = Duration::from_secs(span / 1000);
    (seconds < stable_after).then(|| {
        let (spans, needed) = (humantime::format_duration(seconds), humantime::format_duration(stable_after));
        format!("the capture spans {spans}, and nothing is stable before {needed} (--stable-after)")
    })
}

/// The policies, of the set and of ours that are `there`, that select pods which are there of a workload that is not settled:
/// a direction of it is not stable, or it is closed now and the set would open it for not knowing enough. Where policies are
/// of a whole namespace, its others count on them: then all of it waits for the last one.
pub(super) fn held(capture: &Capture, set: &PolicySet<'_>, wish: &Wish, there: &[NetworkPolicy]) -> BTreeSet<Name> {
    let population = &capture.population;
    let subjects = population.subjects();
    let wanted: Vec<&NetworkPolicy> = set.policies.iter().map(|written| &written.policy).collect();
    let ours: Vec<&NetworkPolicy> = there.iter().filter(|policy| cluster::has_label(policy)).collect();
    let force =
        |policies: &[&NetworkPolicy]| Enforcement::new(policies.iter().copied(), &subjects, &population.namespaces).0;
    let (then, now) = (force(&wanted), force(&ours));
    let mut selected: BTreeMap<&str, BTreeSet<&Workload>> = BTreeMap::new();
    let mut closed: BTreeSet<(&Workload, Direction)> = BTreeSet::new();
    for (number, member) in population.members.iter().enumerate().filter(|(_, member)| member.is_current) {
        for policy in then.selecting(number).chain(now.selecting(number)) {
            selected.entry(policy).or_default().insert(&member.workload);
        }
        let isolated = now.isolated(number);
        closed.extend(Direction::ALL.into_iter().filter(|of| isolated[*of as usize]).map(|of| (&member.workload, of)));
    }
    let is_settled = |workload: &Workload| {
        let known = capture.sets().workloads.get(workload);
        wish.directions.iter().all(|direction| match set.withheld.contains_key(&(workload.clone(), *direction)) {
            true => !closed.contains(&(workload, *direction)),
            false => known.is_some_and(|known| known.directions[*direction as usize].0 == Status::Stable),
        })
    };
    let all = || wanted.iter().chain(&ours).map(|policy| (cluster::name(policy), *policy));
    let is_held = |(namespace, name): &Name| {
        let workloads = selected.get(&*format!("{namespace}/{name}"));
        workloads.into_iter().flatten().any(|workload| !is_settled(workload))
    };
    let mut held: BTreeSet<Name> = all().map(|(name, _)| name).filter(is_held).collect();
    let shared: BTreeSet<_> =
        all().filter(|(_, policy)| selects_all(policy)).map(|((namespace, _), _)| namespace).collect();
    for namespace in shared {
        if held.iter().any(|(of, _)| *of == namespace) {
            held.extend(all().map(|(name, _)| name).filter(|(of, _)| *of == namespace));
        }
    }
    held
}

fn selects_all(policy: &NetworkPolicy) -> bool {
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    selector.is_none_or(|selector| {
        selector.match_labels.iter().flatten().next().is_none()
            && selector.match_expressions.iter().flatten().next().is_none()
    })
}
