//! Policies as they were before they are changed, kept so that one can go back. What one run kept, another one leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{
    cluster::FIELD_MANAGER,
    config_map::{CONFIG_MAP_BYTES, ConfigMapError, OwnConfigMap, size},
    directory::Files,
};
use crate::{
    output::{self, OutputError},
    yaml,
};

/// Where they are kept.
pub(crate) enum Rollback {
    /// A file per run.
    Directory(PathBuf),
    /// A key per run: of so many as there is room for, the last ones.
    ConfigMap(Box<OwnConfigMap>),
}

/// Why they can't be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RollbackError {
    #[error("nothing is applied: what is there now can't be kept; name a directory with --rollback")]
    Output(#[from] OutputError),
    #[error(
        "nothing is applied: what is there now can't be kept; name a directory with --rollback, or make it possible"
    )]
    ConfigMap(#[from] ConfigMapError),
    #[error(
        "nothing is applied: what is there now is {size_kib} KiB, and a ConfigMap holds {} at most: name a directory \
         with --rollback",
        CONFIG_MAP_BYTES >> 10
    )]
    TooLarge { size_kib: usize },
}

impl Rollback {
    /// Keeps policies; the command that brings them back, by this `kubectl`.
    ///
    /// # Errors
    /// There is no room for them, or the place refuses.
    pub(crate) async fn keep(&self, policies: &[NetworkPolicy], kubectl: &str) -> Result<String, RollbackError> {
        let documents: Result<Vec<String>, _> = policies.iter().map(yaml::to_string).collect();
        let text = documents.map_err(OutputError::Yaml)?.join("---\n");
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string().replace(['-', ':', '.'], "");
        let apply = format!("{kubectl} apply --server-side --force-conflicts --field-manager={FIELD_MANAGER} -f");
        match self {
            Self::Directory(directory) => {
                let file = match last(directory).filter(|file| fs::read_to_string(file).is_ok_and(|kept| kept == text))
                {
                    Some(file) => file,
                    None => directory.join(format!("rollback-{now}.yaml")),
                };
                output::write(&text, Some(&file))?;
                Ok(format!("{apply} {}", quoted(&file.to_string_lossy())))
            }
            Self::ConfigMap(map) => {
                let mut kept = map.read().await?;
                let key = match kept.last_key_value() {
                    Some((key, last)) if *last == text => key.clone(),
                    _ => {
                        let key = format!("{now}.yaml");
                        kept.insert(key.clone(), text);
                        make_room(&mut kept)?;
                        map.write(kept).await?;
                        key
                    }
                };
                let get = format!("{kubectl} get configmap {} --output", map.arguments());
                Ok(format!("{get} jsonpath='{{.data.{}}}' | {apply} -", key.replace('.', "\\.")))
            }
        }
    }
}

/// What the last run kept. A run that changes nothing in the end keeps the same, once.
fn last(directory: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_ours = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("rollback-") && name.ends_with(".yaml")
    };
    files.filter(is_ours).max()
}

/// Leaves out the oldest runs until the rest fits.
fn make_room(kept: &mut Files) -> Result<(), RollbackError> {
    while kept.len() > 1 && (size(kept) > CONFIG_MAP_BYTES || kept.len() > RUNS) {
        kept.pop_first();
    }
    match size(kept) {
        bytes if bytes > CONFIG_MAP_BYTES => Err(RollbackError::TooLarge { size_kib: bytes.div_ceil(1 << 10) }),
        _ => Ok(()),
    }
}

/// A word, as the shell reads it.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:@=,+".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Most runs that a ConfigMap keeps.
const RUNS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_runs_are_kept_as_far_as_there_is_room() {
        let runs = |count: usize, bytes: usize| -> Files {
            (0..count).map(|run| (format!("2026112{run:02}.yaml"), "x".repeat(bytes))).collect()
        };
        let kept = |mut files: Files| make_room(&mut files).map(|()| files.into_keys().collect::<Vec<_>>());
        assert_eq!(kept(runs(12, 10)).expect("they fit")[0], "202611202.yaml", "ten of twelve");
        assert_eq!(kept(runs(3, 400 << 10)).expect("two fit"), ["202611201.yaml", "202611202.yaml"]);
        assert!(matches!(kept(runs(2, 1 << 20)), Err(RollbackError::TooLarge { size_kib: 1025 })));
    }

    #[test]
    fn what_the_shell_would_split_is_quoted() {
        for (word, expected) in
            [("./rollback-1.yaml", "./rollback-1.yaml"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(quoted(word), expected);
        }
    }
}
