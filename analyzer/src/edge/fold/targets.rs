//! Who is at the ends of rows, and which edges they are counted for.

use std::sync::Arc;

use schemas::{
    index::{Holds, Span, UnknownReason},
    vocabulary::EndKind,
};
use smallvec::SmallVec;

use super::{EdgeKey, EndKey, Folder, is_client, is_loopback, is_same_pod, port_of};
use crate::edge::{
    dictionary::Texts,
    resolve::{Destination, End, Resolver, Told, direct},
    row_cache::{Marks, Memo, Resolved, RowKey, Target},
};

impl Folder<'_> {
    /// Looks up who is at the ends of a row.
    pub(super) fn resolve(&mut self, key: &RowKey, span: Span) -> Memo {
        let holds = Holds::default();
        let resolver = Resolver { index: self.index, span, holds: &holds };
        let is_client = is_client(key);
        let [
            transport,
            is_host,
            observer_node,
            kind,
            namespace,
            workload_kind,
            workload,
            pod_uid,
            node,
            container,
            port_told,
        ] = self.locals.values[key[3] as usize];
        let source_port = (port_told & 1 != 0).then_some((port_told >> 1) as u16);
        let text = |number| self.texts.text(number);
        let empty: Arc<str> = "".into();
        let filled = |number| text(number).unwrap_or(&empty);
        let (source_address, destination_address) = (filled(key[1]), filled(key[2]));
        let own_address = if is_client { source_address } else { destination_address };
        let told = Told {
            kind: filled(kind),
            namespace: text(namespace),
            workload_kind: text(workload_kind),
            workload: text(workload),
            pod_uid: text(pod_uid),
            node: text(node),
            host_network: is_host != 0,
            address: own_address,
        };
        let (transport_name, port) = (filled(transport), port_of(key));
        let local = resolver.local(&told, filled(observer_node));
        if is_loopback(source_address) {
            let local = local.map(|end| self.resolved(&end));
            let target = local.and_then(|end| self.within_pod(transport, end, port, source_port));
            let holds = holds.span();
            return Memo { holds, certain: holds, own: None, is_pending: false, targets: target.into_iter().collect() };
        }
        let (source, destinations) = if is_client {
            let source = local.unwrap_or_else(|| resolver.unmapped(source_address, filled(observer_node)));
            (source, resolver.dialled(destination_address, transport_name, port))
        } else {
            let source = resolver.remote(source_address);
            let destinations = local.map(|end| direct(end, port));
            // A node's own row may tell the Service's address, where the network is translated on the node.
            let unmapped = || {
                let dialled = resolver.dialled(destination_address, transport_name, port);
                if dialled.iter().any(|destination| destination.service.is_some()) {
                    return dialled;
                }
                direct(resolver.unmapped(destination_address, filled(observer_node)), port)
            };
            (source, destinations.unwrap_or_else(unmapped))
        };
        let certain = resolver.certain(own_address);
        let is_uncertain = |end: &End| end.is_uncertain();
        let is_pending = if is_client {
            destinations.iter().any(|d| d.service.is_none() && is_uncertain(&d.end))
        } else {
            is_uncertain(&source)
        };
        // Of several that may have answered, none is told.
        let answered = match &destinations[..] {
            [destination] => Some(&destination.end),
            _ => None,
        };
        let own = if is_client { Some(&source) } else { answered };
        let is_of_pod = own.is_some_and(|end| end.kind == EndKind::Pod);
        let [source_container, destination_container] = [is_client, !is_client].map(|is_own| match container {
            _ if !is_own || !is_of_pod => Texts::NONE,
            Texts::NONE => self.unnamed,
            known => known,
        });
        let own = own.filter(|end| matches!(end.kind, EndKind::Pod | EndKind::Node)).map(|end| self.resolved(end));
        let source = self.resolved(&source);
        let mut targets = SmallVec::with_capacity(destinations.len());
        for Destination { end, port, service, sole } in &destinations {
            let destination = self.resolved(end);
            let answered = !is_client || *sole;
            let service = self.texts.number_of(service.as_deref());
            let crosses_zones = self.crosses_zones(source, destination);
            let target = |edge| Target {
                marks: Marks {
                    edge,
                    source_pod: source.pod,
                    destination_pod: destination.pod,
                    source_container,
                    destination_container,
                    service,
                    answered,
                },
                crosses_zones,
                place: (i64::MIN, 0),
            };
            if is_pending || !is_same_pod(source, destination) {
                targets.push(target(self.edge(transport, source, destination, *port, source_port)));
            } else {
                targets.extend(self.within_pod(transport, destination, *port, source_port));
            }
        }
        Memo { holds: holds.span(), certain, own, is_pending, targets }
    }

    /// What is counted of connections that stay within a pod. They need no rule, but show proxies in it.
    pub(super) fn within_pod(
        &mut self,
        transport: u32,
        pod: Resolved,
        port: u16,
        source_port: Option<u16>,
    ) -> Option<Target> {
        if pod.pod == Texts::NONE || source_port.is_some() {
            return None;
        }
        let own = self.resolved(&End::unknown(UnknownReason::WithinPod.as_str()));
        let edge = self.edge(transport, own, pod, port, None);
        let marks = Marks { edge, destination_pod: pod.pod, answered: true, ..Marks::default() };
        Some(Target { marks, crosses_zones: false, place: (i64::MIN, 0) })
    }

    pub(super) fn crosses_zones(&self, source: Resolved, destination: Resolved) -> bool {
        let zone = |end: Resolved| self.zones.get(&end.host);
        zone(source).zip(zone(destination)).is_some_and(|(a, b)| a != b)
    }

    fn resolved(&mut self, end: &End) -> Resolved {
        let End { kind, namespace, workload_kind, workload, pod_uid, node, address, unknown_reason } = end;
        let is_on_node = *kind == EndKind::Node || *unknown_reason == Some(UnknownReason::UnmappedSocket.as_str());
        let texts = &mut self.texts;
        let host = texts.number_of(node.as_deref());
        let key = EndKey {
            kind: texts.number(kind.as_str()),
            namespace: texts.number_of(namespace.as_deref()),
            workload_kind: texts.number_of(workload_kind.as_deref()),
            workload: texts.number_of(workload.as_deref()),
            node: if is_on_node { host } else { Texts::NONE },
            address: texts.number_of(address.as_deref()),
            unknown_reason: texts.number_of(*unknown_reason),
        };
        let pod = texts.number_of(pod_uid.as_deref());
        Resolved { end: self.ends.number(key), pod, host }
    }

    pub(super) fn edge(
        &mut self,
        transport: u32,
        source: Resolved,
        destination: Resolved,
        port: u16,
        source_port: Option<u16>,
    ) -> u32 {
        let EndKey { node, unknown_reason, .. } = self.ends.values[source.end as usize];
        let is_node = node != Texts::NONE && unknown_reason == Texts::NONE;
        let own_node = is_node && source.host == destination.host;
        let key = EdgeKey { transport, source: source.end, destination: destination.end, port, own_node, source_port };
        self.edge_of(key)
    }
}
