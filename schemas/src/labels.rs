//! What becomes of pods' labels: which of them tell what a pod is, and stay, and which change with a release, a run, a
//! failover. What controllers and operators do is known by a table, what others do by the words of keys and the look of
//! values.

use std::{collections::HashMap, sync::LazyLock};

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
    let repeats = |(other, repeated): (&std::sync::Arc<str>, &std::sync::Arc<str>)| {
        repeated == value && &**other != key && matches!(known(other), Some(Nature::Run | Nature::Release))
    };
    if own.stays() && !TABLE.keys.contains_key(key) && labels.iter().any(repeats) { Nature::Run } else { own }
}

/// What becomes of a label, by itself.
fn of_label(key: &str, value: &str) -> Nature {
    let is_common = IDENTITY.contains(&key);
    match known(key) {
        Some(Nature::Identity) if is_common && (is_number(value) || has_version(value)) => Nature::Release,
        Some(Nature::Identity) if is_common && MOVING_VALUES.contains(&value) => Nature::Moves,
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

/// The workload that a controller makes pods for, by kind and name, where a label tells it.
pub fn workload(labels: &Labels) -> Option<(&'static str, &str)> {
    TABLE.workloads.iter().find_map(|(key, kind)| Some((*kind, &**labels.get(*key)?)))
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
    for value in keys.iter().filter_map(|key| labels.get(*key)).filter(|value| !value.is_empty()) {
        let is_in =
            name.split('-').collect::<Vec<_>>().windows(value.split('-').count()).any(|part| part.join("-") == **value);
        if !is_in {
            let dash = if name.is_empty() { "" } else { "-" };
            name += &format!("{dash}{value}");
        }
    }
    (!name.is_empty()).then_some(name)
}

/// Whether a name was made up for one object of several: it ends with a number, or holds what was put there at random.
pub fn is_made_up(name: &str) -> bool {
    last_of(name).is_some_and(|(_, last)| is_number(last)) || name.split(['-', '.', '_']).skip(1).any(is_random)
}

/// Whether a label of a value is one that pods of tomorrow have too.
pub fn stays(key: &str, value: &str) -> bool {
    of_label(key, value).stays()
}

/// A name without what was put at its end at random; `None` where there is no such thing, or nothing else.
pub fn base_of(name: &str) -> Option<&str> {
    let (mut base, _) = last_of(name).filter(|(_, last)| is_random(last))?;
    // Of a UUID, all of it.
    while let Some((rest, last)) = last_of(base)
        && last.len() >= 4
        && last.bytes().all(|byte| byte.is_ascii_hexdigit())
        && last.bytes().any(|byte| byte.is_ascii_digit())
    {
        base = rest;
    }
    Some(base)
}

/// The last part of a name, and what is before it.
fn last_of(name: &str) -> Option<(&str, &str)> {
    let (base, last) = name.rsplit_once(['-', '.', '_'])?;
    (!base.is_empty() && !last.is_empty()).then_some((base, last))
}

pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether somebody put a text together at random: five of the letters and digits that Kubernetes takes
/// (`k8s.io/apimachinery/pkg/util/rand`), but for some words; or letters and digits that come after each other again and again;
/// or it is a number as long as a time.
fn is_random(text: &str) -> bool {
    let is_of_kubernetes = text.len() == 5 && text.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte));
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    let kinds: Vec<bool> = text.bytes().map(|byte| byte.is_ascii_digit()).collect();
    let changes = kinds.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let is_mixed = is_plain && changes >= 3 && !text.starts_with('v');
    is_of_kubernetes && !["https", "mssql"].contains(&text) || is_mixed || is_number(text) && text.len() >= 8
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

/// The words of a key's name, in lower case: `example.com/buildNumber` has `build` and `number`.
fn words(key: &str) -> impl Iterator<Item = String> {
    let key = key.rsplit('/').next().unwrap_or(key);
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for letter in key.chars() {
        if !letter.is_alphanumeric() || letter.is_uppercase() && was_lower {
            words.push(String::new());
        }
        if letter.is_alphanumeric() {
            words.last_mut().unwrap_or(&mut String::new()).push(letter.to_ascii_lowercase());
        }
        was_lower = letter.is_lowercase();
    }
    words.into_iter().filter(|word| !word.is_empty())
}

/// Whether a value is a version or a time, or ends with one: `1.2`, `v2`, `1.2.3-rc1`, `web-1.2.3`, `r15`, `1-28-3`, `20261127`,
/// `nightly-2026-11-01`, `2026w48`.
fn has_version(value: &str) -> bool {
    let is_lettered =
        |text: &str| ["v", "V", "r", "rc", "rev"].iter().any(|of| text.strip_prefix(of).is_some_and(is_number));
    let numbers = value.strip_prefix(['v', 'V']).unwrap_or(value);
    let is_numbers = numbers.contains(['-', '.', '_']) && numbers.split(['-', '.', '_']).all(is_number);
    let is_part = |part: &str| {
        let part = part.strip_prefix(['v', 'V']).unwrap_or(part);
        let is_dotted = part.contains('.') && part.split('.').take(2).all(is_number);
        is_dotted || is_time(part)
    };
    let parts: Vec<&str> = value.split(['-', '_', '+']).collect();
    let is_year = |part: &str| part.len() == 4 && part.starts_with("20") && is_number(part);
    let has_date =
        parts.windows(3).any(|of| is_year(of[0]) && of[1..].iter().all(|part| part.len() == 2 && is_number(part)));
    is_lettered(value) || is_numbers || has_date || parts.into_iter().any(is_part)
}

/// Whether a text begins like a date of this century: `20261127…`, `2026w48`.
fn is_time(text: &str) -> bool {
    let is_day = text.get(..8).is_some_and(is_number);
    let is_week = text.get(4..5) == Some("w") && text.get(5..).is_some_and(is_number);
    text.starts_with("20") && (is_day || is_week)
}

/// Whether a value is a commit, a checksum or a UUID, or ends with one: seven hexadecimal digits or more, with letters among
/// them and numbers.
fn is_hash(value: &str) -> bool {
    let is_hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_mixed = |part: &str| {
        part.bytes().any(|byte| byte.is_ascii_digit()) && part.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    let is_uuid = value.len() == 36 && value.split('-').all(is_hex);
    is_uuid || value.split(['-', '_', ':']).any(|part| part.len() >= 7 && is_hex(part) && is_mixed(part))
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
/// Kinds of owners that Kubernetes has itself, and pods without one.
pub const BUILT_IN_KINDS: [&str; 8] =
    ["CronJob", "DaemonSet", "Deployment", "Job", "Pod", "ReplicaSet", "ReplicationController", "StatefulSet"];

/// Those of them that tell one installation from another.
const INSTANCE: [&str; 2] = ["app.kubernetes.io/instance", "release"];
/// Words of keys whose values change with a release.
const RELEASE_WORDS: [&str; 26] = [
    "version",
    "revision",
    "rev",
    "chart",
    "build",
    "commit",
    "sha",
    "sha1",
    "sha256",
    "hash",
    "checksum",
    "digest",
    "image",
    "generation",
    "config",
    "template",
    "buildid",
    "gitsha",
    "tag",
    "ref",
    "branch",
    "ver",
    "sprint",
    "pipeline",
    "deploy",
    "deployed",
];
/// Words of keys whose values are of one run or pod.
const RUN_WORDS: [&str; 14] = [
    "uid",
    "uuid",
    "run",
    "runid",
    "attempt",
    "retry",
    "try",
    "index",
    "ordinal",
    "timestamp",
    "date",
    "time",
    "token",
    "serial",
];
/// Values that move between pods, whatever the key.
const MOVING_VALUES: [&str; 14] = [
    "primary",
    "secondary",
    "replica",
    "master",
    "slave",
    "leader",
    "follower",
    "standby",
    "active",
    "passive",
    "rw",
    "ro",
    "readwrite",
    "readonly",
];
/// Words of keys whose values move between pods.
const MOVING_WORDS: [&str; 18] = [
    "role",
    "leader",
    "primary",
    "master",
    "replica",
    "standby",
    "active",
    "state",
    "status",
    "phase",
    "health",
    "healthy",
    "ready",
    "sealed",
    "elected",
    "seed",
    "quarantine",
    "drain",
];

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
    fn names_are_made_up_or_chosen() {
        for name in ["web-0", "task-x7k2p", "etl-load-9af31c", "a.b-20261127", "wc-driver-6d5f"] {
            assert!(is_made_up(name), "{name}");
        }
        assert_eq!(base_of("build-x7k2p"), Some("build"));
        assert_eq!(base_of("t-5f1c3a52-7d0e-4b68-9f7b-2f9f3a0c1d11"), Some("t"));
        for name in ["pg-2", "web-step1", "web-https", "events-neo4j", "web-s3proxy", "a-v1beta1", "mysql", "x7k2p"] {
            assert_eq!(base_of(name), None, "{name}");
        }
        for name in ["web", "shadow", "web-step1", "reviews-v1", "test-connection", "one-legacy", "db2", ""] {
            assert!(!is_made_up(name), "{name}");
        }
    }

    #[test]
    fn versions_look_like_versions() {
        for value in [
            "1.2",
            "v1.2.3",
            "1.2.3-rc1",
            "2026.11.27",
            "20261127",
            "20261127t1200",
            "v2",
            "r15",
            "rc1",
            "1-28-3",
            "web-1.2.3",
            "2024-11-01",
            "nightly-20261101",
            "nightly-2026-11-01",
            "2026w48",
        ] {
            assert!(has_version(value), "{value}");
        }
        for value in
            ["deadbee1", "0c6f9d2ab31e", "sha256-9f86d081", "main-abcdef1", "5f1c3a52-7d0e-4b68-9f7b-2f9f3a0c1d11"]
        {
            assert!(is_hash(value), "{value}");
        }
        for value in
            ["web", "db1", "two", "postgres-16", "cafe", "facade", "10", "a.b", "eu-west-1", "web-v2", "20-a", "2"]
        {
            assert!(!has_version(value) && !is_hash(value), "{value}");
        }
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
