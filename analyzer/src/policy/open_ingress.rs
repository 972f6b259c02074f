//! Services: those that a person wants open to everybody outside, and those that lead to pods by other labels than rules do.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemas::{
    index::Span,
    inventory::{InventoryRecord, ObjectKind, parse_labels},
    table::TimestampMs,
};

use super::{
    Draft, Finding, path_of,
    rule::{Peer, Port},
};
use crate::{
    communication::{Direction, Endpoint, Evidence, Workload},
    sets::behind,
};

impl Draft<'_> {
    /// Opens the Services that a person wants open to everybody outside, on the ports of the pods behind them.
    pub(super) fn open_ingress(&mut self) {
        let everybody = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
            .map(|cidr| Peer::Open { cidr, except: self.outside.inside(cidr.addr().is_ipv4()) });
        for service in &self.wish.open_ingress {
            let record = self.index.latest(ObjectKind::Service).find(|(record, _)| *service == path_of(record));
            let behind = record.map(|(record, _)| self.behind(record)).unwrap_or_default();
            if behind.is_empty() {
                self.findings.insert(Finding::NothingToOpen { service: service.clone() });
            }
            for (workload, port) in behind {
                if !self.wants(&workload) {
                    continue;
                }
                let rules = &mut self.rules.entry(workload).or_default()[Direction::Ingress];
                let mut edges = BTreeSet::new();
                rules.retain(|peer, ports| {
                    if matches!(peer, Peer::Block { is_node: false, .. }) {
                        edges.extend(ports.remove(&port).into_iter().flatten());
                    }
                    !ports.is_empty()
                });
                for peer in &everybody {
                    rules.entry(peer.clone()).or_default().entry(port).or_default().extend(&edges);
                }
            }
        }
    }

    /// The workloads behind a Service, and the ports that it leads to.
    pub(super) fn behind(&self, service: &InventoryRecord) -> BTreeSet<(Workload, Port)> {
        let always = Span { from: TimestampMs(i64::MIN), to: TimestampMs(i64::MAX) };
        let behind = behind(self.index, service, self.sets.exposure.capture.unwrap_or(always));
        behind.into_iter().map(|(workload, (transport, port))| (workload, Port::single(transport, port))).collect()
    }

    /// Names the Services through which a workload was dialled whose selectors have other labels than its rule.
    pub(super) fn judge_services(&mut self, end: &Endpoint, evidence: &Evidence) {
        let Endpoint::Workload(workload) = end else { return };
        let Some(rule) = self.selectors.of(workload) else { return };
        for (service, _) in self.index.latest(ObjectKind::Service) {
            let selected = parse_labels(service.selector.as_deref().unwrap_or_default());
            if evidence.services.contains(&*path_of(service)) && !selected.is_empty() && !rule.is_within(&selected) {
                let (workload, service) = (workload.clone(), path_of(service));
                let labels = selected.iter().map(|(key, value)| format!("{key}={value}")).collect();
                self.findings.insert(Finding::OtherLabels { workload, service, labels });
            }
        }
    }
}
