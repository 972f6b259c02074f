//! `flowscribe connectivity` beside another analyzer: on that one's own cases, both list the same connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::Path,
};

use crate::{
    harness::{Ran, require},
    support::flowscribe,
};

tests![connections_are_those_that_another_analyzer_lists,];

/// What is listed, and the workloads that are left out, as their pods are in their node's network. `None` where a policy has a
/// name that no API server takes.
fn connectivity(manifests: &Path) -> Option<(String, Vec<String>)> {
    let output = flowscribe(&["connectivity", "--manifests", &manifests.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("is no DNS subdomain") {
        return None;
    }
    assert!(output.status.success(), "{}: {said}", manifests.display());
    let on_nodes = said.lines().filter_map(|line| line.split_once(": its pods are in their node's network"));
    let on_nodes = on_nodes.map(|(workload, _)| format!("{workload}["));
    Some((String::from_utf8(output.stdout).expect("text"), on_nodes.collect()))
}

fn connections_are_those_that_another_analyzer_lists() -> Ran {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/netpol-analyzer");
    require(cases.exists(), "the third party's cases are not beside the checkout")?;
    let (mut compared, mut refused) = (0, 0);
    for case in fs::read_dir(&cases).expect("readable").flatten().map(|case| case.path()).filter(|case| case.is_dir()) {
        let expected = fs::read_to_string(case.join("expected_connlist.txt")).expect("the case says what it expects");
        let Some((found, on_nodes)) = connectivity(&case.join("manifests")) else {
            refused += 1;
            continue;
        };
        // It takes them for pods of their own network, which policies concern.
        let is_of_pods = |line: &&str| !on_nodes.iter().any(|workload| line.contains(workload));
        let expected = expected.lines().filter(is_of_pods).collect::<Vec<_>>().join("\n");
        let differ: Vec<_> = similar(&found, &expected);
        assert!(differ.is_empty(), "{}:\n{}", case.display(), differ.join("\n"));
        compared += 1;
    }
    assert!(compared >= 17 && refused <= 1, "{compared} cases were there, and {refused} that nobody takes");
    Ok(())
}

/// Lines that are in one of two lists only, where ranges of addresses are as long as they can be.
fn similar(found: &str, expected: &str) -> Vec<String> {
    let (found, expected) = (joined(found), joined(expected));
    let extra = found.difference(&expected).map(|line| format!("+ {line}"));
    extra.chain(expected.difference(&found).map(|line| format!("- {line}"))).collect()
}

/// The lines of a list, with one for neighbouring ranges of which it says the same.
fn joined(list: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    // By what is before and after a range in its line.
    let mut ranges: BTreeMap<(String, String), BTreeSet<(u32, u32)>> = BTreeMap::new();
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let Some((before, after)) = line.split_once("[External]") else {
            lines.insert(line.to_owned());
            continue;
        };
        let (before, range) = before.rsplit_once(' ').map_or(("", before), |(before, range)| (before, range));
        let (first, last) = range.split_once('-').expect("a range");
        let number = |address: &str| address.parse().map(Ipv4Addr::to_bits).expect("an address");
        let around = (before.to_owned(), after.to_owned());
        ranges.entry(around).or_default().insert((number(first), number(last)));
    }
    for ((before, after), ranges) in ranges {
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, until)) if until.checked_add(1) == Some(first) => *until = last,
                _ => joined.push((first, last)),
            }
        }
        let text = |(first, last): (u32, u32)| {
            let [first, last] = [first, last].map(Ipv4Addr::from_bits);
            format!("{before} {first}-{last}[External]{after}").trim().to_owned()
        };
        lines.extend(joined.into_iter().map(text));
    }
    lines
}
