//! Programs of somebody else on the hooks that the agent uses, made of a few instructions.

use std::{
    fs::File,
    io,
    mem::size_of,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use anyhow::{Context, Result};
use nix::libc;

/// A program that is attached to a cgroup; dropped, it is detached.
pub struct Neighbour {
    cgroup: File,
    program: OwnedFd,
    attach_type: u32,
}

impl Neighbour {
    /// Attaches a `sock_ops` program that sets the callback flags of a socket to nothing at one operation
    /// (`BPF_SOCK_OPS_…_CB` of the kernel's user API), as a program does that does not care for those of others.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn overwriting(cgroup: &Path, operation: u32) -> Result<Self> {
        let program = [
            instruction(0xbf, 6, 1, 0, 0),                // r6 = r1
            instruction(0x61, 2, 1, 0, 0),                // r2 = context.op
            instruction(0x55, 2, 0, 3, operation as i32), // if r2 != operation goto end
            instruction(0xbf, 1, 6, 0, 0),                // r1 = r6
            instruction(0xb7, 2, 0, 0, 0),                // r2 = 0
            instruction(0x85, 0, 0, 0, 59),               // call bpf_sock_ops_cb_flags_set
            instruction(0xb7, 0, 0, 0, 1),                // end: r0 = 1
            instruction(0x95, 0, 0, 0, 0),                // exit
        ];
        Self::attach(cgroup, &program, (SOCK_OPS, 0), CGROUP_SOCK_OPS, ALLOW_MULTI)
    }

    /// Attaches a program to the hook of `sendmsg` over IPv4 that lets everything pass, and lets no other program share
    /// the hook.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn holding_sendmsg4(cgroup: &Path) -> Result<Self> {
        let program = [instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)];
        Self::attach(cgroup, &program, (SOCK_ADDR, UDP4_SENDMSG), UDP4_SENDMSG, 0)
    }

    /// Attaches programs that make one IPv4 address of another in what is dialled and sent to, and make it the first again in
    /// who it is received from: a load balancer of sockets, as Cilium has it.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn balancing(cgroup: &Path, service: Ipv4Addr, backend: Ipv4Addr) -> Result<[Self; 3]> {
        let there = Self::rewriting(cgroup, CONNECT4, service, backend)?;
        let sent = Self::rewriting(cgroup, UDP4_SENDMSG, service, backend)?;
        Ok([there, sent, Self::rewriting(cgroup, UDP4_RECVMSG, backend, service)?])
    }

    fn rewriting(cgroup: &Path, attach_type: u32, from: Ipv4Addr, to: Ipv4Addr) -> Result<Self> {
        let constant = |address: Ipv4Addr| i32::from_ne_bytes(address.octets());
        let program = [
            instruction(0x61, 2, 1, USER_IP4, 0),       // r2 = context.user_ip4
            instruction(0xb4, 3, 0, 0, constant(from)), // w3 = from
            instruction(0x5d, 2, 3, 2, 0),              // if r2 != r3 goto end
            instruction(0xb4, 3, 0, 0, constant(to)),   // w3 = to
            instruction(0x63, 1, 3, USER_IP4, 0),       // context.user_ip4 = w3
            instruction(0xb7, 0, 0, 0, 1),              // end: r0 = 1
            instruction(0x95, 0, 0, 0, 0),              // exit
        ];
        Self::attach(cgroup, &program, (SOCK_ADDR, attach_type), attach_type, ALLOW_MULTI)
    }

    fn attach(
        cgroup: &Path,
        program: &[u64],
        (kind, expected): (u32, u32),
        attach_type: u32,
        flags: u32,
    ) -> Result<Self> {
        let cgroup = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
        let mut name = [0; 16];
        name[..NAME.len()].copy_from_slice(NAME.as_bytes());
        let load = Load {
            kind,
            instructions: program.len() as u32,
            program: program.as_ptr() as u64,
            licence: c"GPL".as_ptr() as u64,
            log: [0; 4],
            _version: 0,
            _flags: 0,
            name,
            _interface: 0,
            expected,
        };
        let program = descriptor(bpf(LOAD, &load).context("load a program")?);
        let attach = Attach { target: cgroup.as_raw_fd(), program: program.as_raw_fd(), attach_type, flags };
        bpf(ATTACH, &attach).context("attach a program")?;
        Ok(Self { cgroup, program, attach_type })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let (target, program) = (self.cgroup.as_raw_fd(), self.program.as_raw_fd());
        let _ = bpf(DETACH, &Attach { target, program, attach_type: self.attach_type, flags: 0 });
    }
}

/// The name of these programs.
pub const NAME: &str = "neighbour";

/// An instruction as the kernel's user API has it: code, registers, offset and constant.
const fn instruction(code: u8, target: u8, source: u8, offset: i16, constant: i32) -> u64 {
    code as u64 | ((target | (source << 4)) as u64) << 8 | (offset as u16 as u64) << 16 | (constant as u32 as u64) << 32
}

#[expect(unsafe_code, reason = "no library makes these calls for programs that come without an object file")]
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the attributes are as large as said, what they point to outlives the call, and the kernel reads them only.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

#[expect(unsafe_code, reason = "a number of the kernel's becomes a descriptor")]
fn descriptor(number: RawFd) -> OwnedFd {
    // SAFETY: the call that returned it made a descriptor for its caller.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log: [u32; 4],
    _version: u32,
    _flags: u32,
    name: [u8; 16],
    _interface: u32,
    expected: u32,
}

#[repr(C)]
struct Attach {
    target: RawFd,
    program: RawFd,
    attach_type: u32,
    flags: u32,
}

const LOAD: libc::c_long = 5;
const ATTACH: libc::c_long = 8;
const DETACH: libc::c_long = 9;
const SOCK_OPS: u32 = 13;
const SOCK_ADDR: u32 = 18;
const CGROUP_SOCK_OPS: u32 = 3;
const CONNECT4: u32 = 10;
const UDP4_SENDMSG: u32 = 14;
const UDP4_RECVMSG: u32 = 19;
/// Where a `bpf_sock_addr` has the other end's address.
const USER_IP4: i16 = 4;
const ALLOW_MULTI: u32 = 2;
