//! A proxy as a service mesh has it in each pod: connections to others are redirected to its port, and it hands them on to
//! where they were sent.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

/// Takes connections on a port of all IPv4 addresses; what it hands on is sent from an address or from any, and carries
/// [`MARK`].
///
/// # Errors
/// The port is taken.
pub(crate) fn serve(port: u16, from: Option<Ipv4Addr>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        for taken in listener.incoming().flatten() {
            thread::spawn(move || {
                // What fails here shows in what the client sees: its connection ends.
                let _ = hand_on(taken, from);
            });
        }
    });
    Ok(())
}

fn hand_on(taken: TcpStream, from: Option<Ipv4Addr>) -> io::Result<()> {
    let taken = Socket::from(taken);
    let to = taken.original_dst_v4()?;
    let on = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    on.set_mark(MARK)?;
    from.map_or(Ok(()), |address| on.bind(&SocketAddr::from((address, 0)).into()))?;
    on.connect_timeout(&to, TIMEOUT)?;
    let (taken, on) = (TcpStream::from(taken), TcpStream::from(on));
    let (back_from, back_to) = (on.try_clone()?, taken.try_clone()?);
    let back = thread::spawn(move || pass(back_from, back_to));
    pass(taken, on)?;
    back.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

fn pass(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

/// Mark of packets that are not to be redirected again.
pub(crate) const MARK: u32 = 1;
const TIMEOUT: Duration = Duration::from_secs(5);
