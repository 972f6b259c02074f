//! Addresses outside of the cluster, as few blocks that hold little else and nothing of the cluster.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::IpAddr,
    ops::Bound::{Excluded, Unbounded},
};

use ipnet::IpNet;
use schemas::index::Index;

use crate::netpol::size;

/// What is known to be inside, and how far addresses outside may be merged.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// Everything that a pod, a node or a Service had.
    addresses: BTreeSet<IpAddr>,
    /// Ranges of the cluster, disjoint and in order.
    ranges: Vec<(IpAddr, IpAddr)>,
    /// The shortest prefix of a block, for IPv4 and IPv6.
    min_prefix: (u8, u8),
}

/// Two neighbours that could be one block: how many unseen addresses that adds, the block, and the two.
type Merge = (u128, Reverse<u8>, IpNet, IpNet, IpNet);

impl Outside {
    pub(crate) fn new(index: &Index, min_prefix: (u8, u8)) -> Self {
        Self { addresses: index.addresses().collect(), ranges: index.ranges().collect(), min_prefix }
    }

    /// Whether a block holds no address that the cluster is known to use.
    pub(crate) fn is_clear(&self, block: IpNet) -> bool {
        let (first, last) = (block.network(), block.broadcast());
        let next = self.ranges.partition_point(|(_, end)| *end < first);
        let is_in_range = self.ranges.get(next).is_some_and(|(start, _)| *start <= last);
        !is_in_range && self.addresses.range(first..=last).next().is_none()
    }

    /// Merges single addresses to at most `max` blocks, where that is possible without a block that is too wide or not
    /// clear: again and again the two whose block adds the fewest unseen addresses.
    pub(crate) fn merged(&self, addresses: impl IntoIterator<Item = IpAddr>, max: usize) -> BTreeSet<IpNet> {
        let mut blocks: BTreeSet<IpNet> = addresses.into_iter().map(IpNet::from).collect();
        if blocks.len() <= max {
            return blocks;
        }
        let mut merges: BTreeSet<Merge> =
            blocks.iter().zip(blocks.iter().skip(1)).filter_map(|(a, b)| self.merge(*a, *b)).collect();
        while blocks.len() > max
            && let Some((_, _, block, a, b)) = merges.pop_first()
        {
            // Of two blocks that have others between them, those others are merged before.
            if !blocks.contains(&a) || !blocks.contains(&b) {
                continue;
            }
            blocks.remove(&a);
            blocks.remove(&b);
            let before = blocks.range((Unbounded, Excluded(block))).next_back();
            merges.extend(before.and_then(|before| self.merge(*before, block)));
            let after = blocks.range((Excluded(block), Unbounded)).next();
            merges.extend(after.and_then(|after| self.merge(block, *after)));
            blocks.insert(block);
        }
        blocks
    }

    /// The ranges of the cluster as blocks, of one family: what an open rule excepts. Nodes are not among them, as what
    /// comes from outside may arrive with the address of one.
    pub(crate) fn inside(&self, of_ipv4: bool) -> BTreeSet<IpNet> {
        let of_family = self.ranges.iter().filter(|(first, _)| first.is_ipv4() == of_ipv4);
        let blocks = of_family.filter_map(|(first, last)| covering(*first, *last));
        IpNet::aggregate(&blocks.collect()).into_iter().collect()
    }

    fn merge(&self, a: IpNet, b: IpNet) -> Option<Merge> {
        let block = covering(a.network(), b.broadcast())?;
        let min = if block.addr().is_ipv4() { self.min_prefix.0 } else { self.min_prefix.1 };
        let added = size(block).saturating_sub(size(a)).saturating_sub(size(b));
        (block.prefix_len() >= min && self.is_clear(block)).then_some((added, Reverse(block.prefix_len()), block, a, b))
    }
}

/// The smallest block that holds two addresses; `None` for addresses of different families.
fn covering(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (bits, address) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ((a.to_bits() ^ b.to_bits()).leading_zeros(), first),
        (IpAddr::V6(a), IpAddr::V6(b)) => ((a.to_bits() ^ b.to_bits()).leading_zeros(), first),
        _ => return None,
    };
    IpNet::new(address, bits as u8).ok().map(|block| block.trunc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outside(addresses: &[&str], ranges: &[(&str, &str)], min_prefix: (u8, u8)) -> Outside {
        let address = |text: &&str| text.parse().expect("an address");
        Outside {
            addresses: addresses.iter().map(address).collect(),
            ranges: ranges.iter().map(|(a, b)| (address(a), address(b))).collect(),
            min_prefix,
        }
    }

    fn merged(outside: &Outside, addresses: &[&str], max: usize) -> Vec<String> {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address"));
        outside.merged(addresses, max).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_pair_that_adds_the_fewest_addresses_is_merged_first() {
        let all = outside(&[], &[], (24, 64));
        let seen = ["203.0.113.8", "203.0.113.9", "203.0.113.200", "198.51.100.1"];
        assert_eq!(merged(&all, &seen, 4).len(), 4, "exact while there is room");
        assert_eq!(merged(&all, &seen, 3), ["198.51.100.1/32", "203.0.113.8/31", "203.0.113.200/32"]);
        assert_eq!(merged(&all, &seen, 2), ["198.51.100.1/32", "203.0.113.0/24"]);
        assert_eq!(merged(&all, &seen, 1).len(), 2, "never wider than the shortest prefix");
        let both = ["203.0.113.8", "2001:db8::1", "2001:db8::2"];
        assert_eq!(merged(&all, &both, 1), ["203.0.113.8/32", "2001:db8::/126"]);
    }

    #[test]
    fn a_block_never_holds_an_address_of_the_cluster() {
        let near = outside(&["203.0.113.10"], &[("198.51.100.64", "198.51.100.127")], (8, 64));
        assert_eq!(merged(&near, &["203.0.113.8", "203.0.113.11"], 1).len(), 2);
        assert_eq!(merged(&near, &["198.51.100.1", "198.51.100.200"], 1).len(), 2);
        assert_eq!(merged(&near, &["198.51.100.1", "198.51.100.2"], 1), ["198.51.100.0/30"]);
        let inside: Vec<String> = near.inside(true).iter().map(ToString::to_string).collect();
        assert_eq!(inside, ["198.51.100.64/26"]);
        assert!(near.inside(false).is_empty());
    }

    proptest! {
        #[test]
        fn blocks_hold_all_that_was_seen_and_nothing_of_the_cluster(
            seen in proptest::collection::btree_set(0_u32..1024, 0..60),
            inside in proptest::collection::btree_set(0_u32..1024, 0..6),
            max in 1_usize..20,
            min_prefix in 20_u8..=32,
        ) {
            let address = |low: &u32| IpAddr::from((0xC633_6400 + low).to_be_bytes());
            let seen: BTreeSet<IpAddr> = seen.difference(&inside).map(address).collect();
            let outside =
                Outside { addresses: inside.iter().map(address).collect(), ranges: vec![], min_prefix: (min_prefix, 64) };
            let blocks = outside.merged(seen.iter().copied(), max);
            prop_assert!(seen.iter().all(|seen| blocks.iter().filter(|block| block.contains(seen)).count() == 1));
            prop_assert!(blocks.iter().all(|block| !outside.addresses.iter().any(|inner| block.contains(inner))));
            prop_assert!(blocks.iter().all(|block| block.prefix_len() >= min_prefix));
            let neighbours = || blocks.iter().zip(blocks.iter().skip(1));
            let can_merge = neighbours().any(|(a, b)| outside.merge(*a, *b).is_some());
            prop_assert!(blocks.len() <= max || !can_merge);
            if seen.len() <= max {
                prop_assert_eq!(blocks.len(), seen.len());
            }
        }
    }
}
