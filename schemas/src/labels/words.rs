//! What the words of a label's key, and some values, say of it.

/// The words of a key's name, in lower case: `example.com/buildNumber` has `build` and `number`.
pub(super) fn words(key: &str) -> impl Iterator<Item = String> {
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

/// Words of keys whose values change with a release.
pub(super) const RELEASE_WORDS: [&str; 26] = [
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
pub(super) const RUN_WORDS: [&str; 16] = [
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
    "sequence",
    "username",
];
/// Values that move between pods, whatever the key.
pub(super) const MOVING_VALUES: [&str; 14] = [
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
pub(super) const MOVING_WORDS: [&str; 18] = [
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
