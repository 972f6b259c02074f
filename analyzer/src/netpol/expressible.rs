//! Which edges a NetworkPolicy can be about.

use std::net::IpAddr;

use crate::communication::{Edge, Endpoint};

/// Whether policies can speak of an edge: both ends are known, and all of it is what Kubernetes could have made.
pub(crate) fn is_expressible(edge: &Edge) -> bool {
    let is_known = |end: &Endpoint| match end {
        Endpoint::Workload(workload) => is_dns_label(&workload.namespace),
        Endpoint::External { address } => !stays_on_link(*address),
        Endpoint::Node { .. } => true,
        Endpoint::Unknown { .. } => false,
    };
    is_known(&edge.source) && is_known(&edge.destination) && edge.transport.known().is_some() && edge.port > 0
}

/// Whether an address holds on one link alone, so that it is another one for the next pod (RFC 4291), or is everybody's on it
/// (RFC 919).
pub(crate) fn stays_on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ipv4) => ipv4.is_broadcast(),
        IpAddr::V6(ipv6) => ipv6.is_unicast_link_local(),
    }
}

/// Whether a text is a DNS label (RFC 1123): 1 to 63 lower-case letters, digits and dashes, with no dash at an end.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_short = (1..=63).contains(&text.len());
    is_short && text.chars().all(is_plain) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text is a DNS subdomain (RFC 1123): at most 253 characters, DNS labels apart by dots, of any length each.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
    text.len() <= 253 && text.split('.').all(|label| is_label(label) && label.chars().all(is_plain))
}
