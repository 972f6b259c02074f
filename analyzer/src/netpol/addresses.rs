//! What is allowed between pods and addresses outside of the cluster: all addresses, divided where the answer changes.
//!
//! One pass over where blocks begin and end, so that thousands of blocks cost little more than reading them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use range_set_blaze::RangeSetBlaze;

use super::{Block, Connections, Enforcement};
use crate::communication::Direction;

/// First and last address of a range, and what goes with it.
pub(crate) type Ranges<T> = Vec<((IpAddr, IpAddr), T)>;

impl Enforcement<'_> {
    /// What the policies of a subject allow in a direction with addresses that are no pod's. The ranges are in order, cover
    /// all of IPv4, and all of IPv6 if that is asked for; no two neighbours allow the same.
    pub(crate) fn with_addresses(&self, subject: usize, direction: Direction, has_v6: bool) -> Ranges<Connections> {
        let isolating = &self.isolating[subject][direction];
        let destination = (direction == Direction::Ingress).then(|| &self.subjects[subject]);
        let mut everywhere = if isolating.is_empty() { Connections::all() } else { Connections::default() };
        let mut somewhere: Vec<(&[Block], Connections)> = Vec::new();
        for rule in isolating.iter().flat_map(|policy| &self.policies[*policy].rules[direction]) {
            let allowed = rule.allowed(destination);
            match &rule.peers {
                None => everywhere |= &allowed,
                Some(peers) if peers.blocks.is_empty() => {}
                Some(peers) => somewhere.push((&peers.blocks, allowed)),
            }
        }
        let families = if has_v6 { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
        let mut ranges = Ranges::new();
        for family in families {
            family.divide(&everywhere, &somewhere, &mut ranges);
        }
        ranges
    }

    /// Whether a policy in force names IPv6 addresses in a direction.
    pub(crate) fn names_v6(&self, direction: Direction) -> bool {
        let rules = self.policies.iter().flat_map(move |policy| &policy.rules[direction]);
        let blocks = rules.filter_map(|rule| rule.peers.as_ref()).flat_map(|peers| &peers.blocks);
        blocks.into_iter().any(|block| matches!(block.cidr, IpNet::V6(_)))
    }
}

/// What goes with each range of two divisions of the same addresses.
pub(crate) fn overlay<T: Clone>(one: &Ranges<T>, other: &Ranges<T>) -> Ranges<[T; 2]> {
    let mut both = Ranges::new();
    let (mut ones, mut others) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(((first, last), one)), Some(((other_first, other_last), other))) = (ones.peek(), others.peek()) {
        both.push(((*first.max(other_first), *last.min(other_last)), [one.clone(), other.clone()]));
        let ends = last.cmp(other_last);
        if ends.is_le() {
            ones.next();
        }
        if ends.is_ge() {
            others.next();
        }
    }
    both
}

/// A family of addresses, each of which is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn last(self) -> u128 {
        match self {
            Self::V4 => u32::MAX.into(),
            Self::V6 => u128::MAX,
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from_bits(number as u32).into(),
            Self::V6 => Ipv6Addr::from_bits(number).into(),
        }
    }

    /// The first and last number of a block of this family.
    fn numbers(self, block: IpNet) -> Option<(u128, u128)> {
        match (self, block) {
            (Self::V4, IpNet::V4(block)) => {
                Some((block.network().to_bits().into(), block.broadcast().to_bits().into()))
            }
            (Self::V6, IpNet::V6(block)) => Some((block.network().to_bits(), block.broadcast().to_bits())),
            _ => None,
        }
    }

    /// The addresses of blocks, without their exceptions.
    fn covered(self, blocks: &[Block]) -> RangeSetBlaze<u128> {
        let set = |blocks: &mut dyn Iterator<Item = IpNet>| -> RangeSetBlaze<u128> {
            blocks.filter_map(|block| self.numbers(block)).map(|(first, last)| first..=last).collect()
        };
        let (whole, with_exceptions): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| block.except.is_empty());
        let mut covered = set(&mut whole.into_iter().map(|block| block.cidr));
        for Block { cidr, except } in with_exceptions {
            covered |= set(&mut [*cidr].into_iter()) - set(&mut except.iter().copied());
        }
        covered
    }

    /// Divides the family where what is allowed changes.
    fn divide(self, everywhere: &Connections, somewhere: &[(&[Block], Connections)], ranges: &mut Ranges<Connections>) {
        // Which rules begin to count at an address, and which no longer do.
        let mut changes: BTreeMap<u128, Vec<(usize, bool)>> = BTreeMap::from([(0, Vec::new())]);
        for (rule, (blocks, _)) in somewhere.iter().enumerate() {
            for covered in self.covered(blocks).ranges() {
                changes.entry(*covered.start()).or_default().push((rule, true));
                if *covered.end() < self.last() {
                    changes.entry(covered.end() + 1).or_default().push((rule, false));
                }
            }
        }
        let mut counting = BTreeSet::new();
        let mut current: Option<(u128, Connections)> = None;
        let mut put = |(first, allowed): (u128, Connections), last| {
            ranges.push(((self.address(first), self.address(last)), allowed));
        };
        for (first, changed) in changes {
            for (rule, counts) in changed {
                if counts {
                    counting.insert(rule)
                } else {
                    counting.remove(&rule)
                };
            }
            let mut allowed = everywhere.clone();
            for rule in &counting {
                allowed |= &somewhere[*rule].1;
            }
            match &current {
                Some((_, before)) if *before == allowed => {}
                _ => {
                    if let Some(before) = current.replace((first, allowed)) {
                        put(before, first - 1);
                    }
                }
            }
        }
        current.into_iter().for_each(|current| put(current, self.last()));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::netpol::{Party, Subject};

    /// A block, with exceptions within it, and a port.
    fn block() -> impl Strategy<Value = (serde_json::Value, u16)> {
        let within =
            |(network, bits): (u32, u8)| IpNet::new(Ipv4Addr::from_bits(network).into(), bits).expect("a block");
        let cidr = (any::<u32>(), 0..=32u8).prop_map(within);
        let exceptions = prop::collection::vec((any::<u32>(), 0..=32u8), 0..3);
        (cidr, exceptions, 1..4u16).prop_map(|(cidr, exceptions, port)| {
            let cidr = cidr.trunc();
            let within = |(network, bits): (u32, u8)| {
                let IpNet::V4(of) = cidr else { return None };
                let bits = (of.prefix_len() + 1 + bits % 8).min(32);
                let except = ipnet::Ipv4Net::new(
                    Ipv4Addr::from_bits(of.network().to_bits() | network & of.hostmask().to_bits()),
                    bits,
                );
                (of.prefix_len() < 32).then(|| except.expect("a block").trunc().to_string())
            };
            let except: Vec<_> = exceptions.into_iter().filter_map(within).collect();
            (json!({ "cidr": cidr.to_string(), "except": except }), port)
        })
    }

    proptest! {
        #[test]
        fn ranges_say_what_is_said_of_each_address(
            blocks in prop::collection::vec(block(), 0..12), addresses in prop::collection::vec(any::<u32>(), 0..20),
        ) {
            let rules: Vec<_> = blocks.iter().map(|(block, port)| {
                json!({ "from": [{ "ipBlock": block }], "ports": [{ "port": port }] })
            }).collect();
            let policy = json!({ "metadata": { "name": "p" }, "spec": { "podSelector": {}, "ingress": rules } });
            let policy: NetworkPolicy = serde_json::from_value(policy).expect("a policy");
            let subjects = [Subject { namespace: "default".into(), labels: Default::default(), ports: Vec::new() }];
            let (enforcement, invalid) = Enforcement::new([&policy], &subjects, &BTreeMap::new());
            prop_assert!(invalid.is_empty(), "{:?}", invalid);
            let ranges = enforcement.with_addresses(0, Direction::Ingress, false);
            prop_assert_eq!(ranges[0].0.0, IpAddr::from([0, 0, 0, 0]));
            prop_assert_eq!(ranges[ranges.len() - 1].0.1, IpAddr::from([255, 255, 255, 255]));
            for pair in ranges.windows(2) {
                let (IpAddr::V4(last), IpAddr::V4(first)) = (pair[0].0.1, pair[1].0.0) else { unreachable!() };
                prop_assert_eq!(last.to_bits() + 1, first.to_bits());
                prop_assert_ne!(&pair[0].1, &pair[1].1);
            }
            let ends = ranges.iter().flat_map(|((first, last), _)| [*first, *last]);
            for address in ends.chain(addresses.into_iter().map(|address| Ipv4Addr::from_bits(address).into())) {
                let of_range = ranges.iter().find(|((first, last), _)| *first <= address && address <= *last);
                let asked = enforcement.connections(Party::Address(address), Party::Subject(0));
                prop_assert_eq!(&of_range.expect("all are covered").1, &asked);
            }
        }
    }

    #[test]
    fn two_divisions_are_laid_over_each_other() {
        let at = |last: u8| IpAddr::from([0, 0, 0, last]);
        let both = overlay(
            &vec![((at(0), at(9)), 'a'), ((at(10), at(20)), 'b')],
            &vec![((at(0), at(4)), 'c'), ((at(5), at(9)), 'd'), ((at(10), at(20)), 'e')],
        );
        let expected = [((0, 4), ['a', 'c']), ((5, 9), ['a', 'd']), ((10, 20), ['b', 'e'])];
        assert_eq!(both, expected.map(|((first, last), both)| ((at(first), at(last)), both)));
    }
}
