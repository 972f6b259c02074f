//! Blocks of addresses: how large they are, and whose addresses may be in them.

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
