//! The calls of bpf(2) that aya does not make.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

/// Makes an iterator of a program; over the elements of a map, where there is one.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn iterator(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let over = LinkInfo { map: map.map_or(0, |map| map.as_raw_fd()), _unused: [0; 3] };
    let mut create = LinkCreate {
        program: program.as_raw_fd(),
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iterator: if map.is_some() { &raw const over as u64 } else { 0 },
        iterator_bytes: if map.is_some() { size_of::<LinkInfo>() as u32 } else { 0 },
        _pad: 0,
    };
    let link = descriptor(bpf(BPF_LINK_CREATE, &mut create)?);
    let mut create = IterCreate { link: link.as_raw_fd(), flags: 0 };
    Ok(descriptor(bpf(BPF_ITER_CREATE, &mut create)?))
}

/// Numbers of the programs that are attached to a cgroup itself, at most 64 of them, and whether they share the hook.
///
/// # Errors
/// The kernel refuses: it needs CAP_NET_ADMIN.
pub(super) fn attached_to(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<(Vec<u32>, bool)> {
    let mut ids = [0_u32; 64];
    let mut query = ProgQuery {
        target: cgroup.as_raw_fd(),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        _pad: 0,
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = (query.count as usize).min(ids.len());
    Ok((ids[..count].to_vec(), query.attach_flags & BPF_F_ALLOW_MULTI != 0))
}

#[expect(unsafe_code, reason = "no library makes these calls")]
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the attributes are as large as said, and what they point to outlives the call and is as large as they say.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

#[expect(unsafe_code, reason = "a number of the kernel's becomes a descriptor")]
fn descriptor(number: RawFd) -> OwnedFd {
    // SAFETY: callers pass what a call returned that makes a descriptor for its caller.
    unsafe { OwnedFd::from_raw_fd(number) }
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

#[repr(C)]
struct ProgQuery {
    target: RawFd,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _pad: u32,
}

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;
const BPF_F_ALLOW_MULTI: u32 = 2;
