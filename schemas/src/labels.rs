//! What becomes of pods' labels: which of them tell what a pod is, and stay, and which change with a release, a run, a
//! failover. What controllers and operators do is known by a table, what others do by the words of keys and the look of
//! values.

mod values;
mod words;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

pub use values::{base_of, is_made_up, is_number, is_part_of, prefix_of, uncounted};
use values::{has_version, is_hash};
use words::{MOVING_VALUES, MOVING_WORDS, RELEASE_WORDS, RUN_WORDS, words};

use crate::inventory::Labels;

/// What becomes of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nature {
    /// Its value names what a user made, of this kind, whatever its controller makes of it for each release or run.
    Workload(&'static str),
    /// It tells what a pod is, and stays.
    Identity,
    /// It stays, for all that is known.
    Custom,
    /// It stays, and tells nothing that is needed to select pods.
    Detail,
    /// Its value changes on living pods, or differs between pods of one owner at a time.
    Moves,
    /// Its value is of one run, one pod or one place.
    Run,
    /// Its value changes with a version, a template or a configuration.
    Release,
}

impl Nature {
    /// Whether pods of tomorrow have it as those of today.
    pub const fn stays(self) -> bool {
        !matches!(self, Self::Moves | Self::Run | Self::Release)
    }

    /// Whether it tells what a pod is.
    pub const fn is_identity(self) -> bool {
        matches!(self, Self::Identity | Self::Workload(_))
    }
}

/// What becomes of one of a pod's labels. What no controller put there and has the value of another one that is of a release
/// or a run is of it too: Knative gives the name of the revision to `app`.
pub fn nature(labels: &Labels, key: &str) -> Nature {
    let Some(value) = labels.get(key) else { return Nature::Custom };
    let own = of_label(key, value);
    let repeats = |(other, repeated): (&Arc<str>, &Arc<str>)| {
        repeated == value && &**other != key && matches!(known(other), Some(Nature::Run | Nature::Release))
    };
    if own.stays() && !TABLE.keys.contains_key(key) && labels.iter().any(repeats) { Nature::Run } else { own }
}

/// What becomes of a label, by itself.
fn of_label(key: &str, value: &str) -> Nature {
    let is_common = IDENTITY.contains(&key);
    match known(key) {
        // A release may be called so.
        Some(Nature::Identity) if INSTANCE.contains(&key) && value.len() < 4 && value.starts_with('v') => {
            Nature::Identity
        }
        Some(Nature::Identity) if is_common && (is_number(value) || has_version(value)) => Nature::Release,
        Some(Nature::Identity) if is_common && MOVING_VALUES.contains(&value) => Nature::Moves,
        // What has no name of its own is named after its run.
        Some(Nature::Identity | Nature::Workload(_))
            if !is_common && (has_version(value) || base_of(value).is_some()) =>
        {
            Nature::Run
        }
        Some(nature) => nature,
        None if has_version(value) || is_hash(value) || is_number(value) && value.len() >= 5 => Nature::Release,
        None if words(key).any(|word| RELEASE_WORDS.contains(&&*word)) => Nature::Release,
        None if MOVING_VALUES.contains(&value) => Nature::Moves,
        None if words(key).any(|word| RUN_WORDS.contains(&&*word)) => Nature::Run,
        None if words(key).any(|word| MOVING_WORDS.contains(&&*word)) => Nature::Moves,
        None => Nature::Custom,
    }
}

/// How well a key tells what a pod is: 0 tells it best, and the last those of which it is not known that they tell it.
pub fn rank(key: &str) -> usize {
    let is_identity = || known(key).is_some_and(Nature::is_identity);
    IDENTITY
        .iter()
        .position(|label| *label == key)
        .unwrap_or_else(|| if is_identity() { IDENTITY.len() } else { usize::MAX })
}

/// The workload that a controller makes pods for, by kind and name, where a label tells it; without what was put in the name at
/// random for one run.
pub fn workload(labels: &Labels) -> Option<(&'static str, &str)> {
    let named = |(key, kind): &(&'static str, &'static str)| Some((*kind, &**labels.get(*key)?));
    let (kind, name) = TABLE.workloads.iter().find_map(named)?;
    Some((kind, base_of(name).unwrap_or(name)))
}

/// A name for what pods are that have the same labels of identity: their values, the instance's first, each once; `None`
/// where they have none.
pub fn identity(labels: &Labels) -> Option<String> {
    named(labels, Nature::is_identity)
}

/// The same by the labels that stay, for all that is known.
pub fn custom(labels: &Labels) -> Option<String> {
    named(labels, |nature| nature == Nature::Custom)
}

fn named(labels: &Labels, tells: impl Fn(Nature) -> bool) -> Option<String> {
    let tells = |key: &str| tells(nature(labels, key));
    let mut keys: Vec<&str> = labels.keys().map(|key| &**key).filter(|key| tells(key)).collect();
    keys.sort_by_key(|key| (!INSTANCE.contains(key), rank(key)));
    let mut name = String::new();
    // Switches and numbers tell nothing without their keys.
    let tells = |value: &&Arc<str>| !matches!(&***value, "" | "true" | "false" | "True" | "False") && !is_number(value);
    for value in keys.iter().filter_map(|key| labels.get(*key)).filter(tells) {
        let is_in =
            name.split('-').collect::<Vec<_>>().windows(value.split('-').count()).any(|part| part.join("-") == **value);
        if !is_in {
            let dash = if name.is_empty() { "" } else { "-" };
            name += &format!("{dash}{value}");
        }
    }
    (!name.is_empty()).then_some(name)
}

/// Whether a label of a value is one that pods of tomorrow have too.
pub fn stays(key: &str, value: &str) -> bool {
    of_label(key, value).stays()
}

/// Whether a kind of workload is one that a controller makes pods for anew at each release or run.
pub fn is_workload_kind(kind: &str) -> bool {
    TABLE.workloads.iter().any(|(_, known)| *known == kind)
}

/// Whether a pod's labels, in JSON, may tell the workload that a controller makes pods for.
pub fn may_name_workload(json: &str) -> bool {
    TABLE.workloads.iter().any(|(key, _)| json.contains(key))
}

/// What the table says of a key.
fn known(key: &str) -> Option<Nature> {
    if IDENTITY.contains(&key) {
        return Some(Nature::Identity);
    }
    let patterns = || TABLE.patterns.iter().find(|(start, end, _)| key.starts_with(start) && key.ends_with(end));
    TABLE.keys.get(key).copied().or_else(|| patterns().map(|(_, _, nature)| *nature))
}

/// What [`OPERATORS`] says.
struct Table {
    keys: HashMap<&'static str, Nature>,
    /// Beginning and end of a key.
    patterns: Vec<(&'static str, &'static str, Nature)>,
    /// In the order of the table.
    workloads: Vec<(&'static str, &'static str)>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { keys: HashMap::new(), patterns: Vec::new(), workloads: Vec::new() };
    for (_, key, nature, _) in lines() {
        match key.split_once('*') {
            Some((start, end)) => table.patterns.push((start, end, nature)),
            None => drop(table.keys.insert(key, nature)),
        }
        if let Nature::Workload(kind) = nature {
            table.workloads.push((key, kind));
        }
    }
    table
});

/// The table's lines: software, key, nature and source.
fn lines() -> impl Iterator<Item = (&'static str, &'static str, Nature, &'static str)> {
    let lines = OPERATORS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut fields = line.split('\t');
        let (software, key, nature, source) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let nature = match nature.split_once(' ') {
            Some(("workload", kind)) => Nature::Workload(kind),
            _ => match nature {
                "identity" => Nature::Identity,
                "custom" => Nature::Custom,
                "detail" => Nature::Detail,
                "moves" => Nature::Moves,
                "run" => Nature::Run,
                "release" => Nature::Release,
                _ => return None,
            },
        };
        Some((software, key, nature, source))
    })
}

const OPERATORS: &str = include_str!("labels/operators.tsv");

/// Kubernetes' recommended labels for what a pod is, and those that were usual before them.
const IDENTITY: [&str; 10] = [
    "app",
    "app.kubernetes.io/name",
    "k8s-app",
    "app.kubernetes.io/component",
    "component",
    "app.kubernetes.io/instance",
    "release",
    "name",
    "run",
    "tier",
];
/// The name of the Job that made a pod; the first since Kubernetes 1.27.
pub const JOB_NAMES: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
/// Kinds of owners that Kubernetes has itself, and pods without one.
pub const BUILT_IN_KINDS: [&str; 8] =
    ["CronJob", "DaemonSet", "Deployment", "Job", "Pod", "ReplicaSet", "ReplicationController", "StatefulSet"];

/// Those of them that tell one installation from another.
const INSTANCE: [&str; 2] = ["app.kubernetes.io/instance", "release"];
#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
    }

    #[test]
    fn the_table_names_sources_and_does_not_contradict_itself() {
        let rows = OPERATORS.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines().count(), rows, "every line is understood");
        let software: std::collections::BTreeSet<&str> = lines().map(|(software, ..)| software).collect();
        assert!(software.len() >= 25, "{software:?}");
        let mut natures = BTreeMap::new();
        for (software, key, nature, source) in lines() {
            assert!(source.starts_with("https://"), "{software}: {source}");
            assert_eq!(*natures.entry(key).or_insert(nature), nature, "{key}");
            assert!(!IDENTITY.contains(&key), "{key}");
        }
    }

    #[test]
    fn what_stays_is_told_from_what_moves() {
        let pod = labels(&[
            ("app", "web"),
            ("app.kubernetes.io/instance", "two"),
            ("helm.sh/chart", "web-1.2.3"),
            ("version", "v2"),
            ("team", "shop"),
            ("track", "canary"),
            ("build", "20261127"),
            ("example.com/gitCommit", "abc"),
            ("commit", "deadbeef1"),
            ("stamp", "1.2.0"),
            ("release", "2.0.1"),
            ("cnpg.io/instanceRole", "primary"),
            ("cnpg.io/podRole", "instance"),
            ("example.com/nodeRole", "x"),
            ("longhorn.io/manager-image", "x"),
        ]);
        let of = |key| nature(&pod, key);
        for key in ["app", "app.kubernetes.io/instance", "cnpg.io/podRole"] {
            assert_eq!(of(key), Nature::Identity, "{key}");
        }
        for key in ["team", "track"] {
            assert_eq!(of(key), Nature::Custom, "{key}");
        }
        let releases = [
            "helm.sh/chart",
            "version",
            "build",
            "example.com/gitCommit",
            "commit",
            "stamp",
            "release",
            "longhorn.io/manager-image",
        ];
        for key in releases {
            assert_eq!(of(key), Nature::Release, "{key}");
        }
        for key in ["cnpg.io/instanceRole", "example.com/nodeRole"] {
            assert_eq!(of(key), Nature::Moves, "{key}");
        }
    }

    #[test]
    fn what_a_controller_makes_anew_is_what_the_user_made() {
        let revision = labels(&[
            ("app", "hello-00002"),
            ("serving.knative.dev/revision", "hello-00002"),
            ("serving.knative.dev/service", "hello"),
        ]);
        assert_eq!(workload(&revision), Some(("Service.serving.knative.dev", "hello")));
        assert_eq!(nature(&revision, "app"), Nature::Run, "it repeats the revision");
        assert_eq!(nature(&revision, "serving.knative.dev/service"), Nature::Workload("Service.serving.knative.dev"));
        let run = labels(&[("tekton.dev/taskRun", "b-1"), ("tekton.dev/task", "b"), ("tekton.dev/pipeline", "ci")]);
        assert_eq!(workload(&run), Some(("Pipeline", "ci")));
        assert!(may_name_workload(r#"{"tekton.dev/task":"b"}"#) && !may_name_workload(r#"{"app":"b"}"#));
    }

    #[test]
    fn pods_without_an_owner_are_named_after_what_they_are() {
        let task = |task| {
            labels(&[
                ("tier", "airflow"),
                ("component", "worker"),
                ("release", "etl"),
                ("task_id", task),
                ("run_id", task),
            ])
        };
        assert_eq!(identity(&task("a")).as_deref(), Some("etl-worker-airflow"));
        assert_eq!(identity(&task("a")), identity(&task("b")));
        assert_eq!(identity(&labels(&[("app", "web"), ("name", "web")])).as_deref(), Some("web"));
        assert_eq!(identity(&labels(&[("team", "shop")])), None);
    }

    #[test]
    fn what_a_label_is_depends_on_its_key_and_value() {
        for (key, value) in
            [("x", "1700000000"), ("tag", "latest"), ("release", "7"), ("app", "web-1.2.3"), ("tier", "v3")]
        {
            assert_eq!(of_label(key, value), Nature::Release, "{key}: {value}");
        }
        for (key, value) in [("app.kubernetes.io/instance", "facade1"), ("app", "web"), ("release", "one")] {
            assert_eq!(of_label(key, value), Nature::Identity, "{key}: {value}");
        }
        assert_eq!(of_label("component", "primary"), Nature::Moves);
        assert_eq!(of_label("config.example.com/service", "a"), Nature::Custom);
    }

    proptest! {
        #[test]
        fn any_label_has_a_nature(key in ".{0,80}", value in ".{0,80}") {
            let pod = labels(&[(&key, &value)]);
            nature(&pod, &key);
            workload(&pod);
        }
    }
}
