//! Rules: whom they name, on which ports, in the fewest words; and as the API has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use schemas::vocabulary::Transport;

use super::selector::{Selector, non_empty};
use crate::{communication::Edge, netpol::NAMESPACE_NAME};

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    Pods {
        namespace: Arc<str>,
        selector: Arc<Selector>,
    },
    /// Addresses, of nodes or of the outside.
    Block {
        cidr: IpNet,
        is_node: bool,
    },
    /// Everybody but the cluster: all addresses of a family.
    Open {
        cidr: IpNet,
        except: BTreeSet<IpNet>,
    },
}

/// Ports of a transport, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    transport: Transport,
    first: u16,
    last: u16,
}

/// What one direction of a workload allows: peers, their ports, and what was observed of each.
pub(super) type Rules<'a> = BTreeMap<Peer, BTreeMap<Port, BTreeSet<&'a Edge>>>;

/// Peers that may all use the same ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) ports: BTreeSet<Port>,
    pub(super) peers: BTreeSet<Peer>,
}

/// The shortest list of rules: peers of the same ports share one, or else ports of the same peers, whichever takes fewer
/// words.
pub(super) fn shortest(rules: &Rules<'_>) -> Vec<Rule> {
    let mut by_ports: BTreeMap<BTreeSet<Port>, BTreeSet<Peer>> = BTreeMap::new();
    let mut peers_of: BTreeMap<&Port, BTreeSet<Peer>> = BTreeMap::new();
    for (peer, ports) in rules {
        by_ports.entry(ports.keys().cloned().collect()).or_default().insert(peer.clone());
        for port in ports.keys() {
            peers_of.entry(port).or_default().insert(peer.clone());
        }
    }
    let mut by_peers: BTreeMap<BTreeSet<Peer>, BTreeSet<Port>> = BTreeMap::new();
    for (port, peers) in peers_of {
        by_peers.entry(peers).or_default().insert(*port);
    }
    let one: BTreeSet<Rule> = by_ports.into_iter().map(|(ports, peers)| Rule { ports, peers }).collect();
    let other: BTreeSet<Rule> = by_peers.into_iter().map(|(peers, ports)| Rule { ports, peers }).collect();
    let words = |rules: &BTreeSet<Rule>| -> usize { rules.iter().map(|r| 1 + r.ports.len() + r.peers.len()).sum() };
    let shorter = if words(&other) < words(&one) { other } else { one };
    shorter.into_iter().collect()
}

/// Has once what two peers say: of a node's address, where one end knows it for a node's and the other does not, and of pods
/// that another selector selects too, on the same ports.
pub(super) fn join(rules: &mut Rules<'_>) {
    let nodes = rules.keys().filter_map(Peer::node_block);
    let mut same: Vec<[Peer; 2]> =
        nodes.map(|cidr| [false, true].map(|is_node| Peer::Block { cidr, is_node })).collect();
    for (narrow, ports) in rules.iter() {
        let wide = rules.iter().find(|(wide, known)| {
            *wide != narrow && wide.covers(narrow) && ports.keys().all(|port| known.contains_key(port))
        });
        same.extend(wide.map(|(wide, _)| [narrow.clone(), wide.clone()]));
    }
    for [narrow, wide] in same {
        if let Some(ports) = rules.remove(&narrow) {
            let known = rules.entry(wide).or_default();
            ports.into_iter().for_each(|(port, edges)| known.entry(port).or_default().extend(edges));
        }
    }
}

impl Port {
    pub(super) const fn single(transport: Transport, port: u16) -> Self {
        Self { transport, first: port, last: port }
    }

    pub(super) const fn range(transport: Transport, ports: &RangeInclusive<u16>) -> Self {
        Self { transport, first: *ports.start(), last: *ports.end() }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, first, last } = self;
        write!(f, "{first}")?;
        if first < last {
            write!(f, "-{last}")?;
        }
        write!(f, "/{}", transport.protocol())
    }
}

impl Peer {
    /// The addresses of a node that it names.
    pub(super) const fn node_block(&self) -> Option<IpNet> {
        match self {
            Self::Block { cidr, is_node: true } => Some(*cidr),
            _ => None,
        }
    }

    /// Whether it names all pods that another one names.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pods { namespace, selector }, Self::Pods { namespace: of_other, selector: narrow }) => {
                namespace == of_other && selector.covers(narrow)
            }
            _ => false,
        }
    }

    /// As a policy of a namespace names it.
    pub(super) fn to_api(&self, own_namespace: &str) -> NetworkPolicyPeer {
        let block = |cidr: &IpNet, except: Vec<String>| NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: cidr.to_string(), except: non_empty(except) }),
            ..NetworkPolicyPeer::default()
        };
        match self {
            Self::Pods { namespace, selector } => NetworkPolicyPeer {
                pod_selector: Some(selector.to_api()),
                namespace_selector: (&**namespace != own_namespace).then(|| LabelSelector {
                    match_labels: Some(BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.to_string())])),
                    ..LabelSelector::default()
                }),
                ip_block: None,
            },
            Self::Block { cidr, .. } => block(cidr, Vec::new()),
            Self::Open { cidr, except } => block(cidr, except.iter().map(ToString::to_string).collect()),
        }
    }
}

/// Ports as policies name them.
pub(super) fn api_ports(ports: &BTreeSet<Port>) -> Vec<NetworkPolicyPort> {
    let port = |Port { transport, first, last }: &Port| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(*first))),
        protocol: Some(transport.protocol().to_owned()),
        end_port: (first < last).then(|| i32::from(*last)),
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(pairs: &BTreeSet<(u8, u16)>) -> Rules<'static> {
        let mut rules = Rules::new();
        for (peer, port) in pairs {
            let cidr = IpNet::from(std::net::IpAddr::from([192, 0, 2, *peer]));
            let ports = rules.entry(Peer::Block { cidr, is_node: false }).or_default();
            ports.insert(Port::single(Transport::Tcp, *port), BTreeSet::new());
        }
        rules
    }

    #[test]
    fn what_takes_fewer_words_is_chosen() {
        // A port for everybody, and one more for a few: by peers there are two sets of ports, by ports two sets of peers.
        let pairs = (0..10).map(|peer| (peer, 80)).chain([(3, 443), (3, 8443)]).collect();
        let found = shortest(&rules(&pairs));
        assert_eq!(found.len(), 2);
        let words: usize = found.iter().map(|rule| rule.ports.len() + rule.peers.len()).sum();
        assert_eq!(words, 9 + 1 + 1 + 3);
    }

    proptest! {
        #[test]
        fn rules_allow_what_was_asked_for_and_nothing_else(
            pairs in proptest::collection::btree_set((0_u8..6, 1_u16..6), 0..25),
        ) {
            let rules = rules(&pairs);
            let expected: BTreeSet<(&Peer, &Port)> =
                rules.iter().flat_map(|(peer, ports)| ports.keys().map(move |port| (peer, port))).collect();
            let found = shortest(&rules);
            let allowed = found.iter().flat_map(|r| r.peers.iter().flat_map(|peer| r.ports.iter().map(move |p| (peer, p))));
            let allowed: Vec<(&Peer, &Port)> = allowed.collect();
            prop_assert_eq!(allowed.iter().copied().collect::<BTreeSet<_>>(), expected);
            prop_assert_eq!(allowed.len(), pairs.len(), "nothing stands twice");
        }
    }
}
