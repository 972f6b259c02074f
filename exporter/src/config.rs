//! Settings from a YAML file: what it names becomes the default of the flag of that name, so that every rule that holds
//! for flags holds for it too.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory, FromArgMatches};
use schemas::untrusted::check_yaml;
use serde_yaml::Value;

use crate::args::Args;

/// Why the settings can't be used; each names the file and the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error("cannot read settings {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("settings {path} are not a YAML mapping of names to values: {reason}")]
    NotYaml { path: PathBuf, reason: String },
    #[error("settings {path}: unknown name `{name}`; the names are those of the flags in --help")]
    UnknownName { path: PathBuf, name: String },
    #[error("settings {path}: `{name}` must be a value or a list of values")]
    BadValue { path: PathBuf, name: String },
    #[error("nowhere to write to: give --output DIR, --otlp, --live-address, or several; --help tells more")]
    NoOutput,
    #[error("--kubernetes needs --node, the spec.nodeName of this node's pods (FLOWSCRIBE_NODE from the downward API)")]
    NodeUnnamed,
    #[error("--kubernetes and --inventory both say who the pods are: give one of them")]
    TwoInventories,
    #[error("--live-address {0} can be reached by others, and is not encrypted: name one of the loopback interface")]
    LiveReachable(std::net::SocketAddr),
    #[error("--live-address needs --kubernetes, by which it is known who may listen, or --live-token-file")]
    LiveOpen,
}

/// Parses the command line, with defaults from the file that it or the environment names.
///
/// # Errors
/// The command line is wrong, or help was asked for; the file can't be used.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, ConfigError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // The file first: what else is there can't be judged without it.
    let mut first = Args::command().ignore_errors(true).try_get_matches_from(&arguments)?;
    let command = match first.remove_one::<PathBuf>(CONFIG) {
        Some(path) => with_defaults(Args::command(), &path)?,
        None => Args::command(),
    };
    let args = Args::from_arg_matches(&command.try_get_matches_from(arguments)?)?;
    // Not by clap, which takes what the file says for absent.
    match &args {
        Args { command: None, output: None, live_address: None, .. } if !args.sends_otlp() => {
            Err(ConfigError::NoOutput)
        }
        Args { live_address: Some(address), .. } if !address.ip().is_loopback() => {
            Err(ConfigError::LiveReachable(*address))
        }
        Args { live_address: Some(_), kubernetes: false, live_token_file: None, .. } => Err(ConfigError::LiveOpen),
        Args { kubernetes: true, node: None, .. } => Err(ConfigError::NodeUnnamed),
        Args { kubernetes: true, inventory: Some(_), .. } => Err(ConfigError::TwoInventories),
        _ => Ok(args),
    }
}

fn with_defaults(mut command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
    let not_yaml = |reason: String| ConfigError::NotYaml { path: path.into(), reason };
    check_yaml(&text).map_err(|error| not_yaml(error.to_string()))?;
    let settings: Option<serde_yaml::Mapping> =
        serde_yaml::from_str(&text).map_err(|error| not_yaml(error.to_string()))?;
    for (key, value) in settings.unwrap_or_default() {
        let name = key.as_str().unwrap_or_default().to_owned();
        let flag = command.get_arguments().find(|flag| flag.get_long() == Some(&*name));
        let id = flag.map(|flag| flag.get_id().clone()).filter(|id| id != CONFIG && id != "help" && id != "version");
        let Some(id) = id else { return Err(ConfigError::UnknownName { path: path.into(), name }) };
        let Some(values) = values(&value) else { return Err(ConfigError::BadValue { path: path.into(), name }) };
        command = command.mut_arg(id, |flag| flag.required(false).default_values(values));
    }
    Ok(command)
}

/// A value or a list of them, as they would stand on the command line.
fn values(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Sequence(values) => values.iter().map(scalar).collect(),
        value => Some(vec![scalar(value)?]),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        _ => None,
    }
}

const CONFIG: &str = "config";

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, arguments: &[&str]) -> Result<Args, ConfigError> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.yaml");
        fs::write(&path, text).expect("written");
        let config = ["flowscribe-exporter", "--config", path.to_str().expect("a test path")];
        parse(config.iter().chain(arguments).map(OsString::from))
    }

    #[test]
    fn the_file_gives_defaults_and_the_command_line_wins() {
        let text = "output: from-file\nwindow: 5m\nnamespaces: [a, b]\nports: 53\nloopback: true\n";
        let args = settings(text, &["--window", "10s"]).expect("valid settings");
        assert_eq!(args.output, Some("from-file".into()));
        assert_eq!(args.window.as_secs(), 10);
        assert_eq!((args.namespaces.len(), args.ports, args.loopback), (2, vec![53], true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |text| settings(text, &["--output", "x"]).expect_err("refused").to_string();
        assert!(said("windows: 5m").contains("unknown name `windows`"));
        assert!(said("config: other.yaml").contains("unknown name `config`"));
        assert!(said("window: { length: 5m }").contains("`window` must be a value"));
        assert!(said("- window").contains("not a YAML mapping"));
        assert!(said("window: 7s").contains("must divide an hour"));
        assert!(settings("", &["--output", "x"]).is_ok(), "an empty file sets nothing");
        assert!(said("kubernetes: true").contains("--kubernetes needs --node"));
        assert!(said("{ kubernetes: true, node: a, inventory: b }").contains("give one of them"));
        assert!(said("live-address: 0.0.0.0:9465").contains("can be reached by others"));
        assert!(said("live-address: 127.0.0.1:9465").contains("needs --kubernetes"));
        let live = "{ live-address: '[::1]:9465', live-token-file: token }";
        assert!(settings(live, &[]).is_ok(), "who only listens needs no place");
        assert!(settings("{ kubernetes: true, node: a }", &["--output", "x"]).is_ok_and(|args| args.kubernetes));
        assert!(parse(["x", "--config", "/nowhere", "--output", "x"].map(OsString::from)).is_err());
    }
}
