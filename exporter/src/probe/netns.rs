//! The cookie of a network namespace: the number that is never used again, unlike its inode.

use std::{fs::File, mem::size_of, net::UdpSocket, os::fd::AsRawFd, path::Path, thread};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};

/// Asks the namespace behind a file for its cookie; `None` where it is gone, the kernel is older than 5.14, or the
/// process lacks CAP_SYS_ADMIN.
pub(crate) fn cookie(path: &Path) -> Option<u64> {
    let namespace = File::open(path).ok()?;
    // A thread of its own: what has entered a namespace does not come back.
    let asked = thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
        socket_cookie(&UdpSocket::bind(("0.0.0.0", 0)).ok()?)
    });
    asked.join().ok().flatten()
}

/// Cookie of this process's own network namespace, which anybody may ask for.
pub(crate) fn own_cookie() -> Option<u64> {
    socket_cookie(&UdpSocket::bind(("0.0.0.0", 0)).or_else(|_| UdpSocket::bind(("::", 0))).ok()?)
}

#[expect(unsafe_code, reason = "no safe wrapper knows SO_NETNS_COOKIE")]
fn socket_cookie(socket: &UdpSocket) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`, and both outlive the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (status == 0).then_some(cookie)
}

/// `SO_NETNS_COOKIE` of the kernel's user API.
const SO_NETNS_COOKIE: libc::c_int = 71;
