//! The addresses of the node's own interfaces: bridges, tunnels and local resolvers have some that Kubernetes does not know,
//! and from which the node reaches pods.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::TimestampMs,
};

/// The addresses of a node's interfaces, as they were when they were looked at last.
#[derive(Debug)]
pub(crate) struct Interfaces {
    /// What the kernel shows of the node's network, such as `/proc/1/net`.
    directory: PathBuf,
    node: Arc<str>,
    addresses: BTreeSet<IpAddr>,
    next: TimestampMs,
}

impl Interfaces {
    /// Those of a network namespace that is given by a process's file (`/proc/PID/ns/net`), or of the node's own.
    pub(crate) fn new(netns: Option<&Path>, node: &Arc<str>) -> Self {
        // Everybody may read it, whereas nobody without CAP_SYS_ADMIN may ask within a namespace.
        let of_process = netns.and_then(|path| Some(path.parent()?.parent()?.join("net")));
        let directory = of_process.unwrap_or_else(|| "/proc/1/net".into());
        let addresses = read(&directory);
        Self { directory, node: Arc::clone(node), addresses, next: TimestampMs(0) }
    }

    /// Looks again, if it is time to; whether it was.
    pub(crate) fn look(&mut self, now: TimestampMs) -> bool {
        let is_due = now >= self.next;
        if is_due {
            let is_first = self.next == TimestampMs(0);
            self.next = TimestampMs(now.0 + PAUSE_MS);
            let before = std::mem::replace(&mut self.addresses, read(&self.directory)).len();
            let addresses = self.addresses.len();
            if addresses > MOST && (is_first || before <= MOST) {
                tracing::warn!(
                    addresses,
                    "the addresses of the node's interfaces are not recorded: more than {MOST} are taken for those of Services (IPVS)"
                );
            }
        }
        is_due
    }

    /// The inventory's record of them; `None` where none can be read, and where there are so many that they are those of
    /// Services, which kube-proxy gives to an interface of every node if it uses IPVS.
    pub(crate) fn record(&self) -> Option<InventoryRecord> {
        (1..=MOST).contains(&self.addresses.len()).then(|| InventoryRecord {
            kind: ObjectKind::NodeInterfaces.into(),
            name: Arc::clone(&self.node),
            addresses: self.addresses.iter().map(|address| address.to_string().into()).collect(),
            ..InventoryRecord::default()
        })
    }
}

fn read(directory: &Path) -> BTreeSet<IpAddr> {
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (ipv4, ipv6) = (local_ipv4(&text("fib_trie")), interfaces_ipv6(&text("if_inet6")));
    ipv4.into_iter().map(IpAddr::V4).chain(ipv6.into_iter().map(IpAddr::V6)).collect()
}

/// Local addresses of the routing table that `fib_trie` shows as a tree: an address, and below it what it is.
fn local_ipv4(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    found
}

/// Addresses of `if_inet6`, in hexadecimal at the start of each line; those that hold on one link alone are left out.
fn interfaces_ipv6(text: &str) -> BTreeSet<Ipv6Addr> {
    let digits = text.lines().filter_map(|line| line.split_whitespace().next());
    let addresses = digits.filter_map(|digits| u128::from_str_radix(digits, 16).ok()).map(Ipv6Addr::from_bits);
    addresses.filter(|address| !address.is_loopback() && !address.is_unicast_link_local()).collect()
}

/// Most addresses that a node's own interfaces are taken to have.
const MOST: usize = 256;
/// How often the interfaces are looked at.
const PAUSE_MS: i64 = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 10.244.1.0
        /32 host LOCAL
        /24 link UNICAST
Local:
  +-- 10.244.1.0/24 2 0 2
     |-- 10.244.1.1
        /32 host LOCAL
     |-- 10.244.1.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
";
    const IPV6: &str = "00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
fd000000000000000000000000000002 04 40 00 82     eth0
";

    #[test]
    fn local_addresses_are_read_as_the_kernel_shows_them() {
        let expected = ["10.244.1.0", "10.244.1.1"].map(|text| text.parse().expect("an address"));
        assert_eq!(local_ipv4(TRIE), expected.into());
        assert_eq!(interfaces_ipv6(IPV6), ["fd00::2".parse().expect("an address")].into());
        assert_eq!((local_ipv4(""), interfaces_ipv6("not an address")), (BTreeSet::new(), BTreeSet::new()));
    }

    #[test]
    fn they_are_looked_at_now_and_then() {
        let mut interfaces = Interfaces::new(Some(Path::new("/proc/self/ns/net")), &"node-a".into());
        let first = interfaces.record();
        assert!(interfaces.look(TimestampMs(1)) && !interfaces.look(TimestampMs(2)));
        assert_eq!(interfaces.record(), first);
        assert_eq!(Interfaces::new(Some(Path::new("/nowhere/ns/net")), &"node-a".into()).record(), None);
    }
}
