//! Network namespaces: which there are, and what can be had within one alone, such as its cookie: the number that is never
//! used again, unlike its inode.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    mem::size_of,
    net::UdpSocket,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

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

/// Those that a process of this PID namespace is in, and those that have a name of iproute2's, by their files; once each.
pub(super) fn all() -> Vec<PathBuf> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let is_process = |name: &fs::DirEntry| name.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let of_processes = entries("/proc").filter(is_process).map(|process| process.path().join("ns/net"));
    let named = entries("/run/netns").map(|name| name.path());
    let files = of_processes.chain(named).filter_map(|path| Some((fs::metadata(&path).ok()?.ino(), path)));
    files.collect::<BTreeMap<u64, PathBuf>>().into_values().collect()
}

/// Does something within each of some network namespaces, one after the other; what is gone meanwhile is passed over. Returns
/// how many can't be entered, such as those of user namespaces in which this process has no rights.
///
/// # Errors
/// What is done there fails.
pub(super) fn in_each(
    namespaces: Vec<PathBuf>,
    act: impl Fn() -> io::Result<()> + Send + 'static,
) -> io::Result<usize> {
    let walk = move || {
        let mut refused = 0;
        for namespace in namespaces {
            let entered = File::open(&namespace).map(|file| setns(&file, CloneFlags::CLONE_NEWNET).is_ok());
            if entered.as_ref().is_ok_and(|entered| *entered) {
                act()?;
            } else if entered.is_ok() || namespace.exists() {
                refused += 1;
            }
        }
        Ok(refused)
    };
    // A thread of its own: what has entered a namespace does not come back.
    thread::spawn(walk).join().unwrap_or_else(|_| Err(io::Error::other("the walk failed")))
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
