//! Traffic that is no matter of NetworkPolicies' rules: what stays on a link, and what passes on networks beside the cluster's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use schemas::{
    inventory::{NETWORKS, ObjectKind, parse_labels},
    vocabulary::Transport,
};

use super::{
    Draft, Finding,
    rule::{Port, Rules},
};
use crate::{
    communication::{Direction, Edge, Endpoint, PerDirection, Workload},
    netpol::stays_on_link,
};

impl Draft<'_> {
    /// Whether an edge is of addresses that hold on one link alone: the next pod has others, so that no rule can name them.
    pub(super) fn stays_on_link(&mut self, edge: &Edge) -> bool {
        // Nothing is sent from everybody's address, and only datagrams are sent to it.
        let is_everybodys = |address: IpAddr| {
            edge.transport.known() == Some(Transport::Udp)
                && self.index.ends_pod_range(address)
                && self.index.pods_with(address).next().is_none()
        };
        let stays = match (&edge.source, &edge.destination) {
            (Endpoint::External { address }, _) | (_, Endpoint::External { address }) => stays_on_link(*address),
            (_, Endpoint::Unknown { address: Some(address), .. }) => is_everybodys(*address),
            _ => false,
        };
        if stays {
            self.findings.insert(Finding::OnLink { rule: edge.to_string() });
        }
        stays
    }

    /// Names the workloads whose rules name the tunnel of a mesh: what passes in it, nobody else sees.
    pub(super) fn name_tunnels(&mut self, rules: &BTreeMap<Workload, PerDirection<Rules<'_>>>) {
        let is_tunnelled = |directions: &PerDirection<Rules<'_>>| {
            directions[Direction::Ingress].values().any(|ports| ports.contains_key(&HBONE))
        };
        let tunnelled = rules.iter().filter(|(_, directions)| is_tunnelled(directions)).map(|(workload, _)| workload);
        self.findings.extend(tunnelled.cloned().map(|workload| Finding::Tunnel { workload }));
    }

    /// Names the workloads whose pods have networks beside the cluster's.
    pub(super) fn name_other_networks(&mut self) {
        let mut networks: BTreeMap<Workload, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (pod, _) in self.index.latest(ObjectKind::Pod) {
            let Some(annotations) = pod.annotations.as_deref() else { continue };
            let workload = Workload::of(pod, self.index);
            if let Some(others) = parse_labels(annotations).get(NETWORKS).filter(|_| self.wants(&workload)) {
                networks.entry(workload).or_default().insert(Arc::clone(others));
            }
        }
        let finding = |(workload, networks)| Finding::OtherNetworks { workload, networks };
        self.findings.extend(networks.into_iter().map(finding));
    }
}

/// The port on which the proxies of Istio's ambient mode take connections to all ports of a pod (HTTP-based overlay network).
const HBONE: Port = Port::single(Transport::Tcp, 15008);

/// Whether an address holds on one link alone (RFC 3927, RFC 4291).
pub(super) const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ipv4) => ipv4.is_link_local(),
        IpAddr::V6(ipv6) => ipv6.is_unicast_link_local(),
    }
}
