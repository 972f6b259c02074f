//! Names of policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use schemas::inventory::ObjectKind;

use crate::communication::Workload;

/// Names of policies: `<workload>-network`, with the kind where two workloads share a name; pods that nothing owns come and go,
/// and take nobody's name.
pub(super) fn names<'a>(workloads: impl Iterator<Item = &'a Workload> + Clone) -> BTreeMap<Workload, String> {
    let mut shared: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let is_pod = |workload: &Workload| &*workload.kind == ObjectKind::Pod.as_str();
    for workload in workloads.clone().filter(|workload| !is_pod(workload)) {
        *shared.entry((&workload.namespace, &workload.name)).or_default() += 1;
    }
    let mut taken: BTreeSet<(Arc<str>, String)> = BTreeSet::new();
    let mut name = |workload: &Workload| {
        let Workload { namespace, name, kind } = workload;
        let others = shared.get(&(&**namespace, &**name)).copied().unwrap_or_default();
        let full = if others > u32::from(!is_pod(workload)) {
            format!("{name}-{}-network", kind.to_lowercase())
        } else {
            format!("{name}-network")
        };
        let mut label = dns_label(&full);
        // A workload may be called what another one's policy is named.
        while !taken.insert((Arc::clone(namespace), label.clone())) {
            label = dns_label(&format!("{label}-{:08x}", fnv1a(&format!("{kind}/{full}"))));
        }
        label
    };
    workloads.map(|workload| (workload.clone(), name(workload))).collect()
}

/// A DNS label (RFC 1123): what is too long or has other characters gets a digest, so that it stays unique.
pub(super) fn dns_label(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    if plain == text && text.len() <= LABEL_LENGTH {
        return text.to_owned();
    }
    let digest = format!("-{:08x}", fnv1a(text));
    let kept: String = plain.chars().take(LABEL_LENGTH - digest.len()).collect();
    format!("{}{digest}", kept.trim_end_matches('-'))
}

/// FNV-1a, 32 bits (RFC 9923): a digest that never changes between builds.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

const LABEL_LENGTH: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_become_labels_that_stay_apart() {
        assert_eq!(dns_label("web-network"), "web-network");
        let (dotted, dashed) = (dns_label("v1.web-network"), dns_label("v1-web-network"));
        assert_ne!(dotted, dashed);
        assert!(dotted.starts_with("v1-web-network-"), "{dotted}");
        let (one, two) = (dns_label(&"a".repeat(70)), dns_label(&"a".repeat(71)));
        assert_ne!(one, two);
        assert_eq!((one.len(), two.len()), (63, 63));
        assert_eq!(dns_label(&one), one, "a label stays what it is");
    }
}
