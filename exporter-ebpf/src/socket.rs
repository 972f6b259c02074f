//! Reading a kernel socket through offsets that the exporter took from BTF.

use core::ptr;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_skc_to_tcp_sock};
use schemas::event::{FlowEvent, SocketOffsets};

use crate::maps::offsets;

const AF_INET6: u16 = 10;
/// Bit of `sk_flags` (enum `sock_flags`): a FIN was received, and `bytes_received` counts it.
const SOCK_DONE_SHIFT: u64 = 1;
const IPPROTO_TCP: u8 = 6;

/// A TCP socket that the verifier knows as a trusted BTF pointer to `struct tcp_sock`.
#[derive(Clone, Copy)]
pub(crate) struct TcpSocket {
    pointer: *const u8,
    offsets: SocketOffsets,
}

impl TcpSocket {
    /// `None` for what is not a full TCP socket (an MPTCP parent, a request socket).
    #[inline(always)]
    pub(crate) fn new(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: `sk` is the non-null socket of the context; the helper checks its type.
        let pointer = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
        (!pointer.is_null()).then(|| Self { pointer: pointer.cast_const().cast(), offsets: offsets() })
    }

    /// Fills in everything that is read from the socket itself; leaves time, cookie, role and kind alone.
    #[inline(always)]
    pub(crate) fn describe(self, event: &mut FlowEvent) {
        let at = self.offsets;
        let net: *const u8 = self.load(at.net);
        let cgroup: *const u8 = self.load(at.cgroup);
        let node: *const u8 = load(cgroup, at.cgroup_node);
        event.netns_inode = load(net, at.net_inode);
        event.netns_cookie = load(net, at.net_cookie);
        event.cgroup_id = load(node, at.node_id);

        event.local_address = self.address(at.local_ipv4, at.local_ipv6);
        event.remote_address = self.address(at.remote_ipv4, at.remote_ipv6);
        event.local_port = self.load(at.local_port);
        event.remote_port = u16::from_be(self.load(at.remote_port));

        let flags: u64 = self.load(at.flags);
        event.bytes_sent = self.load::<u64>(at.bytes_sent) - self.load::<u64>(at.bytes_retrans);
        event.bytes_received = self.load::<u64>(at.bytes_received) - ((flags >> SOCK_DONE_SHIFT) & 1);
        event.retransmits = self.load(at.total_retrans);
        event.error = self.load(at.error);
        event.error_soft = self.load(at.error_soft);
        event.transport = IPPROTO_TCP;
    }

    /// Smoothed round-trip time in microseconds.
    #[inline(always)]
    pub(crate) fn srtt_us(self) -> u32 {
        self.load::<u32>(self.offsets.srtt) >> 3
    }

    /// Both forms are loaded before one is chosen: a choice between two addresses to load from would be merged by the
    /// compiler into one load from a pointer that the verifier does not know.
    #[inline(always)]
    fn address(self, ipv4_offset: u32, ipv6_offset: u32) -> [u8; 16] {
        let ipv4: u32 = self.load(ipv4_offset);
        let ipv6: [u32; 4] = [
            self.load(ipv6_offset),
            self.load(ipv6_offset + 4),
            self.load(ipv6_offset + 8),
            self.load(ipv6_offset + 12),
        ];
        let is_ipv6 = self.load::<u16>(self.offsets.family) == AF_INET6;
        let words = if is_ipv6 { ipv6 } else { [0, 0, 0xffff_u32.to_be(), ipv4] };
        // SAFETY: both are sixteen bytes without invalid values.
        unsafe { core::mem::transmute(words) }
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> T {
        load(self.pointer, offset)
    }
}

#[inline(always)]
fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: `base` is a BTF pointer and `offset` a constant from BTF: the kernel makes a fault in such a load read
    // zero, and the verifier refuses anything else. Volatile, so that loads are neither merged nor moved.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast()) }
}
