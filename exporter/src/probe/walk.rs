//! Runs an iterator program over everything it is for: aya can make iterators, but not over a map.

use std::{
    fs::File,
    io::{self, Read},
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

/// Reads an iterator to its end; over the elements of a map, where there is one.
///
/// # Errors
/// The kernel refuses the iterator.
pub(super) fn walk(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let over = LinkInfo { map: map.map_or(0, |map| map.as_raw_fd()), _unused: [0; 3] };
    let create = LinkCreate {
        program: program.as_raw_fd(),
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iterator: if map.is_some() { &raw const over as u64 } else { 0 },
        iterator_bytes: if map.is_some() { size_of::<LinkInfo>() as u32 } else { 0 },
        _pad: 0,
    };
    let link = bpf(BPF_LINK_CREATE, &create)?;
    let mut iterator = File::from(bpf(BPF_ITER_CREATE, &IterCreate { link: link.as_raw_fd(), flags: 0 })?);
    // The programs write nothing: a read ends where the walk does, or after a million elements, to be read on.
    let mut none = [0; 8];
    loop {
        match iterator.read(&mut none) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}

#[expect(unsafe_code, reason = "no library makes these calls")]
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are as large as said and what they point to outlives the call; the kernel reads them only.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a descriptor that is the caller's.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

// `union bpf_attr` and `union bpf_iter_link_info` of the kernel's user API, as far as they are used.

#[repr(C)]
struct LinkCreate {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
    iterator: u64,
    iterator_bytes: u32,
    _pad: u32,
}

#[repr(C)]
struct LinkInfo {
    map: RawFd,
    _unused: [u32; 3],
}

#[repr(C)]
struct IterCreate {
    link: RawFd,
    flags: u32,
}

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;
