//! The ends of what is allowed: workloads, and ranges of addresses outside of the cluster.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use super::Connections;
use crate::communication::Workload;

/// One end of what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Workload(Workload),
    /// First and last address.
    Addresses(IpAddr, IpAddr),
}

/// What is allowed, from one end to another.
pub(crate) type Pairs = BTreeMap<(End, End), Connections>;

/// Makes one of neighbouring ranges of addresses, where an end may do the same with both.
pub(crate) fn join(pairs: Pairs) -> Pairs {
    let mut joined = Pairs::new();
    // By the other end, and whether that is the source.
    let mut last: BTreeMap<(End, bool), ((IpAddr, IpAddr), Connections)> = BTreeMap::new();
    let put = |joined: &mut Pairs, (other, is_source): (End, bool), ((first, last), connections)| {
        let addresses = End::Addresses(first, last);
        let ends = if is_source { (other, addresses) } else { (addresses, other) };
        joined.insert(ends, connections);
    };
    for ((from, to), connections) in pairs {
        let (key, (first, end)) = match (&from, &to) {
            (End::Addresses(first, last), _) => ((to, false), (*first, *last)),
            (_, End::Addresses(first, last)) => ((from, true), (*first, *last)),
            _ => {
                joined.insert((from, to), connections);
                continue;
            }
        };
        match last.get_mut(&key) {
            Some(((_, until), known)) if follows(*until, first) && *known == connections => *until = end,
            _ => {
                if let Some(before) = last.insert(key.clone(), ((first, end), connections)) {
                    put(&mut joined, key, before);
                }
            }
        }
    }
    for (key, before) in last {
        put(&mut joined, key, before);
    }
    joined
}

/// Whether an address is the next one after another.
fn follows(last: IpAddr, first: IpAddr) -> bool {
    match (last, first) {
        (IpAddr::V4(last), IpAddr::V4(first)) => last.to_bits().checked_add(1) == Some(first.to_bits()),
        (IpAddr::V6(last), IpAddr::V6(first)) => last.to_bits().checked_add(1) == Some(first.to_bits()),
        _ => false,
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "{workload}"),
            Self::Addresses(first, last) if first == last => write!(f, "{first}"),
            Self::Addresses(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::vocabulary::Transport;

    use super::*;

    #[test]
    fn neighbours_that_are_alike_are_one() {
        let web = End::Workload(Workload { namespace: "a".into(), name: "web".into(), kind: "Pod".into() });
        let range = |first: &str, last: &str| End::Addresses(first.parse().unwrap(), last.parse().unwrap());
        let port = |port| {
            let mut connections = Connections::default();
            connections.insert(Transport::Tcp, port, port);
            connections
        };
        let pairs = Pairs::from([
            ((range("10.0.0.0", "10.127.255.255"), web.clone()), port(80)),
            ((range("10.128.0.0", "10.255.255.255"), web.clone()), port(80)),
            ((range("11.0.0.0", "11.0.0.0"), web.clone()), port(443)),
            ((range("::", "::1"), web.clone()), port(80)),
            ((web.clone(), range("10.0.0.0", "10.0.0.0")), port(80)),
            ((web.clone(), range("10.0.0.2", "10.0.0.2")), port(80)),
        ]);
        let joined = join(pairs);
        assert_eq!(joined.len(), 5);
        assert_eq!(joined.get(&(range("10.0.0.0", "10.255.255.255"), web)), Some(&port(80)));
    }
}
