//! Which flows are recorded.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use schemas::vocabulary::EndKind;

use super::End;
use crate::flow::{FlowKey, Role};

/// Which flows are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Keep a flow if either end is in one of these namespaces, or unresolved; all when empty.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Keep a flow if the pod at either end has all of these labels, or is unresolved; all when empty.
    pub labels: Vec<(String, String)>,
    /// Keep a flow if either address is in one of these networks; all when empty.
    pub cidrs: Vec<IpNet>,
    /// Keep a flow if the port dialled, or that behind the Service, is one of these; all when empty.
    pub ports: Vec<u16>,
    /// Keep what stays on the loopback interface.
    pub loopback: bool,
}

/// Whether a flow stays on the loopback interface. A UDP socket that is bound to no address sends to one of loopback from
/// there, as it does to the unspecified address; and who receives without asking from whom shows its own address alone.
pub(super) fn is_within_loopback(key: &FlowKey) -> bool {
    let (local, remote) = (key.local_address, key.remote_address);
    let may_be = |address: IpAddr| address.is_loopback() || address.is_unspecified();
    let sends_to_nobody = remote.is_unspecified() && key.role != Role::Server;
    may_be(local) && may_be(remote) && (local.is_loopback() || remote.is_loopback()) || sends_to_nobody
}

impl Filter {
    /// Whether a flow with these ends is kept.
    pub(super) fn wants(&self, key: &FlowKey, local: &End, remote: &End) -> bool {
        let Self { namespaces, labels, cidrs, ports, loopback: _ } = self;
        let ends = [local, remote];
        let is_of_namespace = |end: &&End| end.namespace.as_ref().is_some_and(|name| namespaces.contains(name));
        let is_unresolved =
            |end: &&End| end.unknown_reason.is_some() || (end.kind == EndKind::Pod && end.namespace.is_none());
        let addresses = [key.local_address, key.remote_address];
        let served = [Some(key.server_port), local.target_port, remote.target_port];
        (namespaces.is_empty() || ends.iter().any(|end| is_unresolved(end) || is_of_namespace(end)))
            && (labels.is_empty() || ends.iter().any(|end| is_unresolved(end) || end.has(labels)))
            && (cidrs.is_empty() || cidrs.iter().any(|cidr| addresses.iter().any(|address| cidr.contains(address))))
            && (ports.is_empty() || served.iter().flatten().any(|port| ports.contains(port)))
    }
}

impl End {
    /// Whether it is a pod with all of these labels.
    fn has(&self, labels: &[(String, String)]) -> bool {
        let own = self.labels.as_deref().and_then(|text| serde_json::from_str::<HashMap<String, String>>(text).ok());
        own.is_some_and(|own| labels.iter().all(|(key, value)| own.get(key) == Some(value)))
    }
}
