//! A client whose TCP/IP is not the kernel's: what sandboxes (gVisor) and virtual machines are for the node.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use smoltcp::{
    iface::{Config, Interface, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium, RawSocket, wait},
    socket::{tcp, udp},
    time::Instant,
    wire::{EthernetAddress, IpCidr, IpEndpoint},
};

/// What it talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Talks to somebody from an address that nobody else answers for: over TCP so many bytes each way,
/// and then it ends the connection; over UDP one datagram each way.
///
/// # Errors
/// It may not send on the link, or the other end does not do its part within [`TIMEOUT`].
pub(crate) fn dial(
    address: Ipv4Addr,
    to: SocketAddrV4,
    transport: Transport,
    (to_server, to_client): (usize, usize),
) -> Result<()> {
    let mut link = Link(RawSocket::new("eth0", Medium::Ethernet).context("open the link")?);
    let [_, _, high, low] = address.octets();
    let hardware = EthernetAddress([2, 0, 0, 0, high, low]);
    let mut interface = Interface::new(Config::new(hardware.into()), &mut link, Instant::now());
    // Everybody is on the link.
    let all = IpCidr::new(address.into(), 0);
    interface.update_ip_addrs(|addresses| _ = addresses.push(all));
    let mut sockets = SocketSet::new(Vec::new());
    let deadline = Instant::now() + TIMEOUT.into();
    let mut until = |sockets: &mut SocketSet<'_>,
                     interface: &mut Interface,
                     is_over: &mut dyn FnMut(&mut SocketSet<'_>) -> bool| {
        loop {
            let now = Instant::now();
            interface.poll(now, &mut link, sockets);
            if is_over(sockets) {
                // What is to be sent yet.
                interface.poll(now, &mut link, sockets);
                return Ok(());
            }
            ensure!(now < deadline, "{to} did not do its part");
            let delay = interface.poll_delay(now, sockets).map_or(WAIT, |delay| delay.min(WAIT));
            wait(link.0.as_raw_fd(), Some(delay)).context("wait for the link")?;
        }
    };
    let to = IpEndpoint::from(to);
    match transport {
        Transport::Tcp => {
            let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
            let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if let Err(error) = socket.connect(interface.context(), to, LOCAL_PORT) {
                bail!("connect: {error}");
            }
            let (mut sent, mut received) = (0, 0);
            until(&mut sockets, &mut interface, &mut |sockets| {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
                if socket.can_send() && sent < to_server {
                    sent += socket.send_slice(&vec![b'c'; to_server - sent]).unwrap_or(0);
                }
                if socket.can_recv() {
                    received += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
                }
                socket.may_send() && sent == to_server && received == to_client
            })?;
            sockets.get_mut::<tcp::Socket<'_>>(handle).close();
            until(&mut sockets, &mut interface, &mut |sockets| {
                matches!(sockets.get::<tcp::Socket<'_>>(handle).state(), tcp::State::TimeWait | tcp::State::Closed)
            })
        }
        Transport::Udp => {
            let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; BUFFER]);
            let handle = sockets.add(udp::Socket::new(buffer(), buffer()));
            let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
            if socket.bind(LOCAL_PORT).is_err() || socket.send_slice(&vec![b'c'; to_server], to).is_err() {
                bail!("the datagram can't be sent");
            }
            until(&mut sockets, &mut interface, &mut |sockets| {
                sockets.get_mut::<udp::Socket<'_>>(handle).recv().is_ok()
            })
        }
    }
}

/// The pod's link. Between network namespaces of one machine, checksums are left to network cards that are not there.
struct Link(RawSocket);

impl Device for Link {
    type RxToken<'a> = <RawSocket as Device>::RxToken<'a>;
    type TxToken<'a> = <RawSocket as Device>::TxToken<'a>;

    fn receive(&mut self, timestamp: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        self.0.receive(timestamp)
    }

    fn transmit(&mut self, timestamp: Instant) -> Option<Self::TxToken<'_>> {
        self.0.transmit(timestamp)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = self.0.capabilities();
        (capabilities.checksum.tcp, capabilities.checksum.udp) = (Checksum::Tx, Checksum::Tx);
        capabilities
    }
}

/// A port as clients have it.
const LOCAL_PORT: u16 = 49_152;
const BUFFER: usize = 65_536;
const WAIT: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(50);
/// Nothing takes so long on the slowest machine.
const TIMEOUT: Duration = Duration::from_secs(180);
