//! Every program of the object: what it is attached to, what only it sees, and since when kernels have what it needs.

use schemas::programs;

use super::neighbour::BPF_CGROUP_SOCK_OPS;

/// A program of the object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Its name in the object, and in the capture's `health.programs`.
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    /// The first Linux that has what it needs, as far as is known; what the running one has is found by trying.
    pub(crate) since: &'static str,
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// `sock_ops` of a cgroup.
    SockOps,
    /// A socket address hook of a cgroup, by its `BPF_CGROUP_…` number.
    SockAddr(u32),
    /// A tracepoint with types.
    Tracepoint(&'static str),
    /// The return of a kernel function, with so many arguments.
    Exit(&'static str, usize),
    /// An iterator.
    Iterator(&'static str),
}

impl Hook {
    /// The name of its type in the kernel, where it has one.
    pub(super) fn type_name(self) -> Option<String> {
        match self {
            Self::Tracepoint(name) => Some(format!("btf_trace_{name}")),
            Self::Exit(function, _) => Some(function.to_owned()),
            Self::Iterator(over) => Some(format!("bpf_iter_{over}")),
            Self::SockOps | Self::SockAddr(_) => None,
        }
    }

    /// The cgroup hook's number in the kernel's user API.
    pub(super) const fn attach_type(self) -> Option<u32> {
        match self {
            Self::SockOps => Some(BPF_CGROUP_SOCK_OPS),
            Self::SockAddr(number) => Some(number),
            _ => None,
        }
    }
}

/// TCP: without it there is nothing to record.
pub(super) const TCP: &str = "observe_tcp";
/// The ends that [`TCP`] is not called for.
pub(super) const CLOSE: &str = "observe_close";
/// Shows the numbers of cgroups that are made.
pub(super) const CGROUPS: &str = "observe_cgroups";
/// Lists what is open.
pub(super) const OPEN: &str = "list_open";
/// Finds what was open before the run.
pub(super) const ADOPT: &str = "adopt_sockets";
/// Finds the TCP sockets that were open before the run and no process has a file of, in one network namespace after the other.
pub(super) const ADOPT_CONNECTIONS: &str = "adopt_connections";
/// The same of UDP.
pub(super) const ADOPT_RECEIVERS: &str = "adopt_receivers";
/// Lists the names of all programs of the machine.
pub(super) const LIST: &str = "list_programs";
/// Finds the node's own network, and this process.
pub(super) const NODE: &str = "find_node";
/// Programs that see what is sent on connected UDP sockets: the first, or where the kernel lacks its hook, the others.
pub(super) const SENT: (&str, [&str; 2]) = ("observe_sent", ["observe_send4", "observe_send6"]);
/// The same of what is received, and of receivers that do not ask from whom.
pub(super) const RECEIVED: (&str, [&str; 2]) = ("observe_received", ["observe_receive4", "observe_receive6"]);
/// Programs of the calls that name an address.
pub(super) const ADDRESSED: [&str; 4] =
    ["observe_sendmsg4", "observe_sendmsg6", "observe_recvmsg4", "observe_recvmsg6"];

/// The program of a name; there is one for every name above.
pub(crate) fn spec(name: &str) -> Spec {
    *PROGRAMS.iter().find(|spec| spec.name == name).unwrap_or(&PROGRAMS[0])
}

impl Spec {
    /// What is not recorded without it.
    pub(crate) fn cost(&self) -> &'static str {
        match self.name {
            TCP => "everything",
            NODE => {
                "the node's own sockets, where /proc/1/ns/net can't be read (CAP_SYS_PTRACE); the agent's own are recorded"
            }
            LIST => "the names of programs of others that are in the way",
            CLOSE => "the ends of connections that were open before the run",
            ADOPT_CONNECTIONS | ADOPT_RECEIVERS => {
                "what was open before the run and no process has a file of: sockets of an io_uring alone, or not yet accepted"
            }
            CGROUPS => "the names of pods in the node's network that are gone before their cgroups are looked for",
            name => {
                programs::PROGRAMS.iter().find(|program| program.name == name).map_or("", |program| program.traffic)
            }
        }
    }
}

/// All of them.
pub(crate) const PROGRAMS: [Spec; 17] = [
    Spec { name: TCP, hook: Hook::SockOps, since: "5.12" },
    Spec { name: "observe_sendmsg4", hook: Hook::SockAddr(14), since: "5.8" },
    Spec { name: "observe_sendmsg6", hook: Hook::SockAddr(15), since: "5.8" },
    Spec { name: "observe_recvmsg4", hook: Hook::SockAddr(19), since: "5.8" },
    Spec { name: "observe_recvmsg6", hook: Hook::SockAddr(20), since: "5.8" },
    Spec { name: "observe_sent", hook: Hook::Tracepoint("sock_send_length"), since: "6.3" },
    Spec { name: "observe_received", hook: Hook::Tracepoint("sock_recv_length"), since: "6.3" },
    Spec { name: "observe_send4", hook: Hook::Exit("udp_sendmsg", 3), since: EXIT_SINCE },
    Spec { name: "observe_send6", hook: Hook::Exit("udpv6_sendmsg", 3), since: EXIT_SINCE },
    Spec { name: "observe_receive4", hook: Hook::Exit("udp_recvmsg", 5), since: EXIT_SINCE },
    Spec { name: "observe_receive6", hook: Hook::Exit("udpv6_recvmsg", 5), since: EXIT_SINCE },
    Spec { name: CGROUPS, hook: Hook::Tracepoint("cgroup_mkdir"), since: "5.8" },
    Spec { name: CLOSE, hook: Hook::Tracepoint("inet_sock_set_state"), since: "5.12" },
    Spec { name: OPEN, hook: Hook::Iterator("bpf_map_elem"), since: "5.12" },
    Spec { name: ADOPT, hook: Hook::Iterator("task_file"), since: "5.12" },
    Spec { name: ADOPT_CONNECTIONS, hook: Hook::Iterator("tcp"), since: "5.12" },
    Spec { name: ADOPT_RECEIVERS, hook: Hook::Iterator("udp"), since: "5.12" },
];

/// Returns of functions that had one argument more before 5.19, and that arm64 could not be traced at before 6.4; since 6.3
/// there are tracepoints in their place.
const EXIT_SINCE: &str = "5.19 on x86-64, 6.3 on arm64";

/// Not among [`PROGRAMS`], as it stands for [`OPEN`] where the kernel refuses that: seen of a build of 6.18 that refuses all
/// iterators over the elements of maps, and no other one.
pub(super) const LIST_AT_ONCE: Spec =
    Spec { name: "list_open_at_once", hook: Hook::Iterator("bpf_map"), since: "5.13" };

/// Not among [`PROGRAMS`] either, which record: it runs once, before them.
pub(super) const FIND_NODE: Spec = Spec { name: NODE, hook: Hook::Iterator("task"), since: "5.8" };

/// Not among [`PROGRAMS`] either: it is read when others are in the way.
pub(super) const LIST_PROGRAMS: Spec = Spec { name: LIST, hook: Hook::Iterator("bpf_prog"), since: "5.9" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_program_and_every_program_has_one_name() {
        let named = [TCP, CLOSE, OPEN, ADOPT, ADOPT_CONNECTIONS, ADOPT_RECEIVERS, SENT.0, RECEIVED.0];
        for name in named.into_iter().chain(SENT.1).chain(RECEIVED.1).chain(ADDRESSED) {
            assert_eq!(spec(name).name, name);
        }
        let names: std::collections::BTreeSet<&str> = PROGRAMS.iter().map(|spec| spec.name).collect();
        assert_eq!(
            names,
            programs::PROGRAMS.iter().map(|program| program.name).collect(),
            "the capture knows the same"
        );
        assert!(PROGRAMS.iter().chain([&FIND_NODE, &LIST_PROGRAMS]).all(|spec| !spec.cost().is_empty()));
    }
}
