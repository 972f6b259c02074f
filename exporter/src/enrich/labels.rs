//! Which labels of a pod a flow's record carries.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use schemas::inventory::parse_labels;

/// Label keys, or beginnings of keys that end in `*`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(Vec<String>);

/// Chooses labels, and remembers what it chose.
#[derive(Debug)]
pub(crate) struct LabelPolicy {
    /// Only these; all when empty.
    recorded: Keys,
    /// Not these, even if they are among the others.
    omitted: Keys,
    /// Most bytes of the labels of one pod, as JSON.
    max_bytes: usize,
    chosen: HashMap<Arc<str>, Arc<str>>,
}

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| key.trim()).filter(|key| !key.is_empty()).map(str::to_owned).collect())
    }

    fn contain(&self, key: &str) -> bool {
        self.0.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(beginning) => key.starts_with(beginning),
            None => key == wanted,
        })
    }
}

impl LabelPolicy {
    pub(crate) fn new(recorded: Keys, omitted: Keys, max_bytes: usize) -> Self {
        Self { recorded, omitted, max_bytes, chosen: HashMap::new() }
    }

    /// What is recorded of these labels, as canonical JSON like the labels themselves. Where that is too long, keys are
    /// left out from the end of the alphabet.
    pub(crate) fn choose(&mut self, labels: &Arc<str>) -> Arc<str> {
        if self.recorded.0.is_empty() && self.omitted.0.is_empty() && labels.len() <= self.max_bytes {
            return Arc::clone(labels);
        }
        if let Some(chosen) = self.chosen.get(labels) {
            return Arc::clone(chosen);
        }
        if self.chosen.len() >= REMEMBERED {
            self.chosen.clear();
        }
        let mut kept: BTreeMap<Arc<str>, Arc<str>> = parse_labels(labels);
        kept.retain(|key, _| (self.recorded.0.is_empty() || self.recorded.contain(key)) && !self.omitted.contain(key));
        let mut json = to_json(&kept);
        while json.len() > self.max_bytes && kept.pop_last().is_some() {
            json = to_json(&kept);
        }
        let chosen: Arc<str> = json.into();
        self.chosen.insert(Arc::clone(labels), Arc::clone(&chosen));
        chosen
    }
}

fn to_json(labels: &BTreeMap<Arc<str>, Arc<str>>) -> String {
    serde_json::to_string(labels).unwrap_or_default()
}

const REMEMBERED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: &str = r#"{"app":"web","app.kubernetes.io/name":"web","pod-template-hash":"abc","tier":"front"}"#;

    fn chosen(recorded: &[&str], omitted: &[&str], max_bytes: usize) -> String {
        let keys = |keys: &[&str]| Keys::new(&keys.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut policy = LabelPolicy::new(keys(recorded), keys(omitted), max_bytes);
        let first = policy.choose(&LABELS.into());
        assert_eq!(policy.choose(&LABELS.into()), first, "remembered is the same");
        first.to_string()
    }

    #[test]
    fn labels_are_chosen_by_key_and_stay_canonical() {
        assert_eq!(chosen(&[], &[], 4096), LABELS);
        assert_eq!(chosen(&["app", "tier"], &[], 4096), r#"{"app":"web","tier":"front"}"#);
        assert_eq!(chosen(&["app*"], &["app.kubernetes.io/*"], 4096), r#"{"app":"web"}"#);
        assert_eq!(
            chosen(&[" ", ""], &["pod-template-hash", "app.kubernetes.io/name", "tier"], 4096),
            r#"{"app":"web"}"#
        );
        assert_eq!(chosen(&["none"], &[], 4096), "{}");
    }

    #[test]
    fn too_many_labels_lose_their_last_keys_and_stay_json() {
        assert_eq!(chosen(&[], &[], 45), r#"{"app":"web","app.kubernetes.io/name":"web"}"#);
        assert_eq!(chosen(&[], &[], 2), "{}");
    }
}
