//! What a scheduled run leaves as it is in the cluster, unless it is told to apply everything: the policies of pods of which
//! not enough was seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::{
    commands::shared::capture::Capture,
    communication::{Direction, Workload},
    netpol::Enforcement,
    policy::{PolicySet, Wish},
    publish::cluster::{self, Name},
    sets::{CRON_JOB, Sets, Status},
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

/// The policies, of the set and of ours that are `there`, that select pods of a workload that is not settled: a direction of
/// it is not stable, or it is closed now and would be opened; and those of ours that are not wanted and select nobody that is
/// known. Where policies are of a whole namespace, its others count on them: then all of it waits for the last one. Pods that
/// may come back keep only their own policy waiting.
pub(super) fn held(capture: &Capture, set: &PolicySet<'_>, wish: &Wish, there: &[NetworkPolicy]) -> BTreeSet<Name> {
    let population = &capture.population;
    let subjects = population.subjects();
    let wanted: Vec<&NetworkPolicy> = set.policies.iter().map(|written| &written.policy).collect();
    let ours: Vec<&NetworkPolicy> = there.iter().filter(|policy| cluster::has_label(policy)).collect();
    let force =
        |policies: &[&NetworkPolicy]| Enforcement::new(policies.iter().copied(), &subjects, &population.namespaces).0;
    let (then, now) = (force(&wanted), force(&ours));
    let mut selected: BTreeMap<&str, BTreeSet<&Workload>> = BTreeMap::new();
    let (mut opened, mut there_now) = (BTreeSet::new(), BTreeSet::new());
    for (number, member) in population.members.iter().enumerate().filter(|(_, member)| member.is_current) {
        for policy in then.selecting(number).chain(now.selecting(number)) {
            selected.entry(policy).or_default().insert(&member.workload);
        }
        let (isolated, stays) = (now.isolated(number), then.isolated(number));
        if wish.directions.iter().any(|direction| isolated[*direction] && !stays[*direction]) {
            opened.insert(&member.workload);
        }
        if member.is_there || &*member.workload.kind == CRON_JOB {
            there_now.insert(&member.workload);
        }
    }
    let is_settled = |workload: &Workload| {
        let known = capture.sets().workloads.get(workload);
        let is_sure = |direction: &Direction| {
            set.withheld.contains_key(&(workload.clone(), *direction))
                || known.is_some_and(|known| known.directions[*direction].0 == Status::Stable)
        };
        !opened.contains(workload) && wish.directions.iter().all(is_sure)
    };
    let unsettled: BTreeSet<&Workload> =
        selected.values().flatten().copied().filter(|workload| !is_settled(workload)).collect();
    let unsettled = |(namespace, name): &Name| {
        let selected = selected.get(&*format!("{namespace}/{name}"))?;
        Some(selected.intersection(&unsettled).copied().collect::<Vec<_>>())
    };
    // Of pods that are there.
    let spreads = |name: &Name| unsettled(name).iter().flatten().any(|workload| there_now.contains(workload));
    let own: BTreeMap<Name, Option<&Workload>> =
        set.policies.iter().map(|written| (cluster::name(&written.policy), written.workload.as_ref())).collect();
    let is_held = |name: &Name| match (own.get(name), unsettled(name)) {
        (Some(own), Some(workloads)) => workloads.iter().any(|of| there_now.contains(of) || *own == Some(*of)),
        (None, Some(workloads)) => !workloads.is_empty(),
        (own, None) => own.is_none(),
    };
    let all = || wanted.iter().chain(&ours).map(|policy| (cluster::name(policy), *policy));
    let mut held: BTreeSet<Name> = all().map(|(name, _)| name).filter(is_held).collect();
    let shared: BTreeSet<_> =
        all().filter(|(_, policy)| selects_all(policy)).map(|((namespace, _), _)| namespace).collect();
    for namespace in shared {
        if held.iter().any(|name| name.0 == namespace && spreads(name)) {
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
