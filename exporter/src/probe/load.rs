//! Brings the programs into the kernel one by one: what can't be had costs its own part alone.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Btf, Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, Iter, Program, ProgramError, SockOps, sock_ops::SockOpsLink,
    },
};

use super::{Degraded, TCP, walk};

/// Programs on their way into the kernel.
pub(super) struct Loading<'a> {
    pub(super) programs: &'a mut Ebpf,
    pub(super) btf: &'a Btf,
    pub(super) attached: Vec<&'static str>,
    pub(super) degraded: Vec<Degraded>,
}

impl Loading<'_> {
    pub(super) fn udp(&mut self, directory: &File, has_lengths: bool) {
        for (name, _) in ADDRESSES {
            let loaded = self.program::<CgroupSockAddr>(name).and_then(|program| {
                program.load()?;
                program.attach(directory, CgroupAttachMode::Single).map(drop)
            });
            self.note(name, "UDP of sockets that are not connected", loaded);
        }
        if has_lengths {
            for (name, point) in LENGTHS {
                self.tracepoint(name, point, "UDP of connected sockets");
            }
        } else {
            let reason = "the kernel has no tracepoint sock_send_length: Linux 6.3 or newer is needed".into();
            self.degraded.push(Degraded { cost: "UDP of connected sockets that do not ask from whom", reason });
        }
    }

    pub(super) fn tracepoint(&mut self, name: &'static str, point: &str, cost: &'static str) {
        let btf = self.btf;
        let loaded = self.program::<BtfTracePoint>(name).and_then(|program| {
            program.load(point, btf)?;
            program.attach().map(drop)
        });
        self.note(name, cost, loaded);
    }

    pub(super) fn iterator(&mut self, name: &'static str, over: &str, cost: &'static str) -> Option<OwnedFd> {
        let btf = self.btf;
        let loaded = self.program::<Iter>(name).and_then(|program| {
            program.load(over, btf)?;
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        });
        match loaded {
            Ok(program) => Some(program),
            Err(error) => {
                self.note(name, cost, Err(error));
                None
            }
        }
    }

    /// Takes in what is open already; everything that happens from now on is watched.
    pub(super) fn adopt(&mut self) {
        let cost = "connections that were open before the run";
        let Some(program) = self.iterator(ADOPT, "task_file", cost) else { return };
        if let Err(error) = walk::walk(program.as_fd(), None) {
            self.degraded.push(Degraded { cost, reason: error.to_string() });
        }
    }

    fn program<'p, P>(&'p mut self, name: &'static str) -> Result<&'p mut P, ProgramError>
    where
        &'p mut P: TryFrom<&'p mut Program, Error = ProgramError>,
    {
        let program = self.programs.program_mut(name);
        program.ok_or(ProgramError::NotLoaded).and_then(TryInto::try_into)
    }

    fn note(&mut self, name: &'static str, cost: &'static str, loaded: Result<(), ProgramError>) {
        match loaded {
            Ok(()) => self.attached.push(name),
            Err(error) => self.degraded.push(Degraded { cost, reason: format!("{name}: {}", crate::chain(&error)) }),
        }
    }
}

/// Attaches what watches TCP, without which there is nothing to record.
pub(super) fn attach_tcp(programs: &mut Ebpf, directory: &File) -> Result<SockOpsLink, ProgramError> {
    let program: &mut SockOps = programs.program_mut(TCP).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load()?;
    // `Single` makes a bpf link, and links always allow others beside them.
    let link = program.attach(directory, CgroupAttachMode::Single)?;
    program.take_link(link)
}

const ADOPT: &str = "adopt_sockets";
/// Programs of the calls that name an address.
const ADDRESSES: [(&str, &str); 4] = [
    ("observe_sendmsg4", "sendmsg4"),
    ("observe_sendmsg6", "sendmsg6"),
    ("observe_recvmsg4", "recvmsg4"),
    ("observe_recvmsg6", "recvmsg6"),
];
/// Programs and tracepoints that tell the lengths of what is sent and received.
const LENGTHS: [(&str, &str); 2] = [("observe_sent", "sock_send_length"), ("observe_received", "sock_recv_length")];
