//! Sets of connections: ports by transport.

use std::{
    fmt,
    ops::{BitAnd, BitOrAssign, Sub},
};

use range_set_blaze::RangeSetBlaze;
pub(crate) use schemas::vocabulary::Transport;
use serde::{Serialize, Serializer};

/// Ports, from 1 to 65535, of each transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connections([RangeSetBlaze<u16>; 3]);

impl Connections {
    /// Everything.
    pub(crate) fn all() -> Self {
        Self(TRANSPORTS.map(|_| RangeSetBlaze::from_iter([1..=u16::MAX])))
    }

    /// Whether it is everything.
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Whether it is nothing.
    pub(crate) fn is_none(&self) -> bool {
        self.0.iter().all(RangeSetBlaze::is_empty)
    }

    /// Adds ports, from the first to the last.
    pub(crate) fn insert(&mut self, transport: Transport, first: u16, last: u16) {
        self.0[transport as usize].ranges_insert(first..=last);
    }

    /// Takes ports away, from the first to the last; those that were there.
    pub(crate) fn take(&mut self, transport: Transport, first: u16, last: u16) -> Self {
        let (ports, mut taken) = (&mut self.0[transport as usize], Self::default());
        if first == last {
            if ports.remove(first) {
                taken.insert(transport, first, last);
            }
            return taken;
        }
        let asked = RangeSetBlaze::from_iter([first..=last]);
        taken.0[transport as usize] = &*ports & &asked;
        *ports = &*ports - &asked;
        taken
    }

    /// The ranges of ports by transport, in order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Transport, u16, u16)> {
        let of = |transport: Transport| {
            self.0[transport as usize].ranges().map(move |ports| (transport, *ports.start(), *ports.end()))
        };
        TRANSPORTS.into_iter().flat_map(of)
    }
}

impl BitAnd for &Connections {
    type Output = Connections;

    fn bitand(self, other: Self) -> Connections {
        Connections(TRANSPORTS.map(|transport| &self.0[transport as usize] & &other.0[transport as usize]))
    }
}

impl Sub for &Connections {
    type Output = Connections;

    fn sub(self, other: Self) -> Connections {
        Connections(TRANSPORTS.map(|transport| &self.0[transport as usize] - &other.0[transport as usize]))
    }
}

impl BitOrAssign<&Self> for Connections {
    fn bitor_assign(&mut self, other: &Self) {
        for (ports, more) in self.0.iter_mut().zip(&other.0) {
            *ports |= more;
        }
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return write!(f, "All Connections");
        }
        if self.is_none() {
            return write!(f, "No Connections");
        }
        let mut before = None;
        for (transport, first, last) in self.ranges() {
            if before.is_some() {
                write!(f, ",")?;
            }
            if before != Some(transport) {
                write!(f, "{} ", transport.protocol())?;
            }
            before = Some(transport);
            write!(f, "{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Connections {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ranges = self.ranges();
        serializer.collect_seq(ranges.map(|(transport, port, end_port)| PortRange {
            protocol: transport.protocol(),
            port,
            end_port,
        }))
    }
}

/// Ports of a transport, in the words of NetworkPolicies.
#[derive(Serialize)]
struct PortRange {
    protocol: &'static str,
    port: u16,
    end_port: u16,
}

/// In the order in which they are listed.
const TRANSPORTS: [Transport; 3] = [Transport::Sctp, Transport::Tcp, Transport::Udp];
