//! Selectors of workloads in the shape that charts and operators give them, over failovers, runs and releases.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::TimestampMs,
};
use serde::Deserialize;
use serde_yaml::Value;

use crate::support::{Capture, Report, START_MS};

/// A workload of the corpus; see its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    of: String,
    software: String,
    workload: Option<String>,
    kind: String,
    name: String,
    selector: Option<Labels>,
    labels: Labels,
    #[serde(default)]
    pods: Vec<Labels>,
    later: Option<Vec<Labels>>,
}

type Labels = BTreeMap<String, String>;

/// A release in a namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    namespace: &'static str,
    name: &'static str,
    /// Its version is one further than that of others.
    is_ahead: bool,
}

/// Twice in a namespace, of two versions, and once in another.
const RELEASES: [Release; 3] = [
    Release { namespace: "apps", name: "one", is_ahead: false },
    Release { namespace: "apps", name: "two", is_ahead: true },
    Release { namespace: "other", name: "one", is_ahead: false },
];

/// A pod as it is at a stage.
struct Pod {
    namespace: &'static str,
    workload: String,
    labels: Labels,
}

fn corpus() -> Vec<Entry> {
    let text = include_str!("../corpus/workloads.yaml");
    serde_yaml::from_str(text).expect("the corpus is a list of workloads")
}

impl Entry {
    /// A text at a stage: the first, or after a failover, a run and a release.
    fn text(&self, text: &str, release: Release, stage: usize) -> String {
        let version = stage + usize::from(release.is_ahead);
        text.replace("{r}", release.name)
            .replace("{v}", &format!("1.{version}.0"))
            .replace("{h}", ["6d5f", "7c8a", "9e2b"][version])
            .replace("{i}", &(version + 1).to_string())
    }

    fn labels(&self, labels: &Labels, release: Release, stage: usize) -> Labels {
        let pairs = labels.iter().map(|(key, value)| (key.clone(), self.text(value, release, stage)));
        pairs.collect()
    }

    /// The labels of its pods.
    fn pods(&self, release: Release, stage: usize) -> Vec<Labels> {
        let variants = if stage == 0 { &self.pods } else { self.later.as_ref().unwrap_or(&self.pods) };
        let none = vec![Labels::new()];
        let variants = if variants.is_empty() { &none } else { variants };
        let base = self.labels(&self.labels, release, stage);
        let with = |variant: &Labels| base.clone().into_iter().chain(self.labels(variant, release, stage)).collect();
        variants.iter().map(with).collect()
    }

    /// The name that stays.
    fn stays(&self, release: Release) -> String {
        self.text(self.workload.as_ref().unwrap_or(&self.name), release, 0)
    }
}

/// A capture of some stages, one after the other: somebody dials every pod. Who the pods are at the last one.
fn capture(entries: &[Entry], releases: &[Release], stages: &[usize]) -> (Capture, Vec<Pod>) {
    let mut capture = Capture::new();
    let (mut number, mut pods) = (0, Vec::new());
    const VISITOR: &str = "10.244.250.1";
    capture.pod("client/visitor", VISITOR);
    for (place, stage) in stages.iter().enumerate() {
        let time = TimestampMs(START_MS + place as i64 * HOUR_MS);
        pods.clear();
        let before: Vec<InventoryRecord> = capture.inventory.clone();
        for (entry, release) in entries.iter().flat_map(|entry| releases.iter().map(move |release| (entry, *release))) {
            let Release { namespace, .. } = release;
            let name = entry.text(&entry.name, release, *stage);
            // Agents know of what Kubernetes has itself, and of nothing else.
            if entry.selector.is_some() || ["CronJob", "Job"].contains(&&*entry.kind) {
                let owner = capture.object(ObjectKind::Workload, Some(namespace), &name);
                owner.workload_kind = Some(entry.kind.as_str().into());
                let selector = entry.selector.as_ref().map(|selector| entry.labels(selector, release, *stage));
                owner.selector =
                    selector.map(|selector| serde_json::json!({ "matchLabels": selector }).to_string().into());
                (owner.observed_at, owner.event) = (time, if place == 0 { "snapshot" } else { "upsert" }.into());
            }
            for (index, labels) in entry.pods(release, *stage).into_iter().enumerate() {
                number += 1;
                let address = format!("10.244.{}.{}", number / 250, number % 250 + 1);
                let pod = format!("{namespace}/{name}-{index}-{place}");
                let json = serde_json::to_string(&labels).expect("labels");
                let record = capture.bare_pod(&pod, &address, &json);
                (record.observed_at, record.event) = (time, if place == 0 { "snapshot" } else { "upsert" }.into());
                record.uid = Some(format!("uid-{number}").into());
                if entry.kind != "Pod" {
                    (record.owner_kind, record.owner) = (Some(entry.kind.as_str().into()), Some(name.as_str().into()));
                }
                let rows = [capture.dial(VISITOR, &address, 8080).seq, capture.accept(&address, VISITOR, 8080).seq];
                for row in capture.flows.iter_mut().filter(|row| rows.contains(&row.seq)) {
                    for moment in [&mut row.window_start, &mut row.window_end, &mut row.first_seen, &mut row.last_seen]
                    {
                        moment.0 += place as i64 * HOUR_MS;
                    }
                }
                pods.push(Pod { namespace, workload: entry.stays(release), labels });
            }
        }
        // Those of the stage before are gone.
        let is_gone =
            |record: &&InventoryRecord| *record.kind == ObjectKind::Pod && &*record.name != "visitor-10.244.250.1";
        for record in before.iter().filter(|_| place > 0).filter(is_gone) {
            let seq = capture.inventory.len() as i64;
            capture.inventory.push(InventoryRecord {
                seq,
                observed_at: time,
                event: "delete".into(),
                ..record.clone()
            });
        }
    }
    (capture, pods)
}

/// Selectors of policies by name, and those by which the visitor may reach pods.
fn selectors(report: &Report) -> (BTreeMap<String, Value>, BTreeSet<String>) {
    let mut found = BTreeMap::new();
    let mut reached = BTreeSet::new();
    for policy in &report.policies {
        let [namespace, name] = ["namespace", "name"].map(|key| policy["metadata"][key].as_str().expect("it has one"));
        if namespace == "client" {
            let rules = policy["spec"]["egress"].as_sequence().unwrap_or_else(|| panic!("{}", report.said)).iter();
            let peers = rules.flat_map(|rule| rule["to"].as_sequence().expect("peers"));
            reached.extend(peers.map(|peer| serde_yaml::to_string(peer).expect("YAML")));
            continue;
        }
        found.insert(
            format!("{namespace}/{}", name.trim_end_matches("-network")),
            policy["spec"]["podSelector"].clone(),
        );
    }
    (found, reached)
}

/// A selector in a line.
fn told(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_mapping().into_iter().flatten();
    let labels = labels.map(|(key, value)| format!("{}={}", key.as_str().unwrap(), value.as_str().unwrap()));
    let expressions = selector["matchExpressions"].as_sequence().into_iter().flatten().map(|expression| {
        let values =
            expression["values"].as_sequence().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
        format!(
            "{} {} {}",
            expression["key"].as_str().unwrap(),
            expression["operator"].as_str().unwrap(),
            values.join("|")
        )
    });
    labels.chain(expressions.map(|text| text.trim().to_owned())).collect::<Vec<_>>().join(", ")
}

fn selects(selector: &Value, labels: &Labels) -> bool {
    let has = |(key, value): (&Value, &Value)| labels.get(key.as_str().unwrap()).map(String::as_str) == value.as_str();
    selector["matchLabels"].as_mapping().into_iter().flatten().all(has)
        && selector["matchExpressions"].as_sequence().into_iter().flatten().all(|expression| {
            let value = labels.get(expression["key"].as_str().unwrap());
            let is_in = || {
                expression["values"].as_sequence().unwrap().iter().any(|of| of.as_str() == value.map(String::as_str))
            };
            match expression["operator"].as_str().unwrap() {
                "DoesNotExist" => value.is_none(),
                "Exists" => value.is_some(),
                "NotIn" => !is_in(),
                _ => value.is_some() && is_in(),
            }
        })
}

#[test]
fn selectors_hold_over_failovers_runs_and_releases() {
    let entries = corpus();
    let mut table = String::new();
    let (mut overlaps, mut without) = (BTreeSet::new(), BTreeSet::new());
    let mut last: Option<(BTreeMap<String, Value>, BTreeSet<String>)> = None;
    for stages in [&[0][..], &[0, 1], &[1]] {
        let (capture, pods) = capture(&entries, &RELEASES, stages);
        let report = capture.report();
        let (found, reached) = selectors(&report);
        for pod in &pods {
            let own = format!("{}/{}", pod.namespace, pod.workload);
            match found.get(&own) {
                Some(selector) => {
                    assert!(selects(selector, &pod.labels), "{stages:?} {own}: {selector:?} {:?}", pod.labels)
                }
                None => drop(without.insert(own.clone())),
            }
            for (name, selector) in
                found.iter().filter(|(name, selector)| **name != own && selects(selector, &pod.labels))
            {
                if name.split('/').next() != Some(pod.namespace) {
                    continue;
                }
                let said = format!("{name}: its selector also selects pods of {own}");
                assert!(report.said.contains(&said), "{stages:?} {said}: {selector:?}\n{}", report.said);
                overlaps.insert(format!("{name} selects {own}"));
            }
        }
        if let Some((selectors, peers)) = &last {
            let changed: Vec<_> =
                found.iter().filter(|(name, selector)| selectors.get(*name) != Some(selector)).collect();
            assert!(changed.is_empty() && found.len() == selectors.len(), "{stages:?} {changed:?}");
            assert_eq!(reached, *peers, "{stages:?}");
        }
        last = Some((found, reached));
    }
    let (found, _) = last.expect("three reports");
    for entry in &entries {
        let name = format!("apps/{}", entry.stays(RELEASES[0]));
        let selector = found.get(&name).map_or_else(|| "none".to_owned(), told);
        table += &format!("{} | {} | {name} | {selector}\n", entry.of, entry.software);
    }
    table += &format!(
        "\noverlaps: {}\n{:#?}\nwithout a policy: {}\n{without:#?}\n",
        overlaps.len(),
        overlaps,
        without.len()
    );
    insta::assert_snapshot!(table);
}

#[test]
fn what_is_installed_later_is_not_taken_in() {
    let entries = corpus();
    let (alone, _) = capture(&entries, &RELEASES[..1], &[0]);
    let (both, pods) = capture(&entries, &RELEASES[..2], &[0]);
    let (found, _) = selectors(&alone.report());
    let taken: Vec<String> = pods
        .iter()
        .flat_map(|pod| {
            let others = found.iter().filter(|(name, selector)| {
                name.starts_with("apps/one") && !pod.workload.contains("one") && selects(selector, &pod.labels)
            });
            others.map(|(name, _)| format!("{name} selects {}", pod.workload)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(taken, Vec::<String>::new());
    drop(both);
}

const HOUR_MS: i64 = 3_600_000;
