//! Blocks of addresses: how large they are, and what they divide all addresses into.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// The number of addresses of a block.
pub(crate) fn size(block: IpNet) -> u128 {
    let bits = u32::from(block.max_prefix_len() - block.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

/// Whether pods may have addresses of a block: those that are not routed outside (RFC 1918, RFC 6598, RFC 4193), as far as it
/// names several.
pub(crate) fn may_hold_pods(block: IpNet) -> bool {
    let private = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
    let mut private = private.into_iter().filter_map(|range| range.parse::<IpNet>().ok());
    block.prefix_len() < block.max_prefix_len() && private.any(|range| range.contains(&block) || block.contains(&range))
}

/// All addresses, divided where any of the blocks begins or ends. IPv6 only where a block is of it.
pub(crate) fn ranges(blocks: impl Iterator<Item = IpNet>) -> Vec<(IpAddr, IpAddr)> {
    let (mut v4, mut v6) = (BTreeSet::from([0u32]), BTreeSet::new());
    for block in blocks {
        match block {
            IpNet::V4(block) => {
                v4.insert(block.network().to_bits());
                v4.extend(block.broadcast().to_bits().checked_add(1));
            }
            IpNet::V6(block) => {
                v6.extend([0, block.network().to_bits()]);
                v6.extend(block.broadcast().to_bits().checked_add(1));
            }
        }
    }
    let ends_v4 = v4.iter().skip(1).map(|next| next - 1).chain([u32::MAX]);
    let ends_v6 = v6.iter().skip(1).map(|next| next - 1).chain([u128::MAX]);
    let v4 = v4.iter().zip(ends_v4).map(|(a, b)| (Ipv4Addr::from_bits(*a).into(), Ipv4Addr::from_bits(b).into()));
    let v6 = v6.iter().zip(ends_v6).map(|(a, b)| (Ipv6Addr::from_bits(*a).into(), Ipv6Addr::from_bits(b).into()));
    v4.chain(v6).collect()
}
