//! The kernel programs of an agent, as `programs` of dataset `health` lists them, and what is not recorded where one of
//! them is not attached.
//!
//! A program may be missing because the kernel is too old for it, was built without an option, or forbids it. The agent
//! records the rest; whoever reads the capture has to count as not observed what only the missing program sees.

/// A kernel program, and what is not recorded without it.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Name, as in the list.
    pub name: &'static str,
    /// Traffic that no other program records, a noun in the singular; empty where a recording is complete without the
    /// program.
    pub traffic: &'static str,
    /// Whether that traffic belongs to the ingress of a workload.
    pub ingress: bool,
    /// Whether it belongs to its egress.
    pub egress: bool,
    /// Pods that can have such traffic.
    pub pods: Pods,
    /// Programs which all together record the same, for kernels that can't have this one.
    pub substitutes: &'static [&'static str],
}

/// Pods that can have some kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// All pods.
    All,
    /// Pods with an IPv4 address.
    Ipv4,
    /// Pods with an IPv6 address.
    Ipv6,
}

/// Programs that were not attached, and without which a recording is not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct Missing(u32);

impl Program {
    /// Whether a pod with these addresses can have the traffic. Of a pod without addresses, nobody can say that it can't.
    pub fn concerns<T: AsRef<str>>(&self, addresses: &[T]) -> bool {
        let has = |is_ipv6: bool| addresses.iter().any(|address| address.as_ref().contains(':') == is_ipv6);
        addresses.is_empty()
            || match self.pods {
                Pods::All => true,
                Pods::Ipv4 => has(false),
                Pods::Ipv6 => has(true),
            }
    }
}

impl Missing {
    /// What an agent that listed these programs could not record. Nothing is known of a list without [`OBSERVE_TCP`],
    /// without which no agent starts: other writers made it. Agents that list neither [`LIST_OPEN`] nor
    /// [`ADOPT_SOCKETS`] are of a time when no agent listed them.
    pub fn of<'a>(attached: impl Iterator<Item = &'a str> + Clone) -> Self {
        let is_attached = |name: &str| attached.clone().any(|attached| attached == name);
        if !is_attached(OBSERVE_TCP) {
            return Self::default();
        }
        let lists_iterators = is_attached(LIST_OPEN) || is_attached(ADOPT_SOCKETS);
        let is_missing = |program: &Program| {
            let Program { name, traffic, substitutes, .. } = program;
            if traffic.is_empty() || is_attached(name) || (is_iterator(name) && !lists_iterators) {
                return false;
            }
            // Of a program and its substitutes, those are missing that would complete what is there.
            match PROGRAMS.iter().find(|other| other.substitutes.contains(name)) {
                Some(original) => {
                    !is_attached(original.name) && original.substitutes.iter().any(|other| is_attached(other))
                }
                None => !substitutes.iter().any(|other| is_attached(other)),
            }
        };
        let bits = PROGRAMS.iter().enumerate().filter(|(_, program)| is_missing(program));
        Self(bits.fold(0, |bits, (number, _)| bits | 1 << number))
    }

    /// Whether everything was attached that has to be.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The programs, in the order of [`PROGRAMS`].
    pub fn programs(self) -> impl Iterator<Item = &'static Program> {
        PROGRAMS.iter().enumerate().filter(move |(number, _)| self.0 & 1 << number != 0).map(|(_, program)| program)
    }
}

fn is_iterator(name: &str) -> bool {
    [LIST_OPEN, ADOPT_SOCKETS].contains(&name)
}

/// Watches TCP; every agent has it.
pub const OBSERVE_TCP: &str = "observe_tcp";
/// Walks the connections that are open, at the end of every window.
pub const LIST_OPEN: &str = "list_open";
/// Finds the connections that were open when the agent started.
pub const ADOPT_SOCKETS: &str = "adopt_sockets";

/// All programs. A socket is *unconnected* where every datagram names its address, and its receiver asks for the sender.
pub static PROGRAMS: [Program; 17] = [
    complete_without(OBSERVE_TCP),
    egress("observe_sendmsg4", "UDP sent by unconnected sockets over IPv4", Pods::Ipv4),
    egress("observe_sendmsg6", "UDP sent by unconnected sockets over IPv6", Pods::Ipv6),
    ingress("observe_recvmsg4", "UDP received by unconnected IPv4 sockets", Pods::Ipv4),
    // These receive IPv4 too.
    ingress("observe_recvmsg6", "UDP received by unconnected IPv6 sockets", Pods::All),
    Program {
        substitutes: &["observe_send4", "observe_send6"],
        ..egress("observe_sent", "UDP sent by connected sockets", Pods::All)
    },
    egress("observe_send4", "UDP sent by connected sockets over IPv4", Pods::Ipv4),
    egress("observe_send6", "UDP sent by connected sockets over IPv6", Pods::Ipv6),
    Program {
        substitutes: &["observe_receive4", "observe_receive6"],
        ..ingress("observe_received", "UDP received by connected sockets or without asking for the sender", Pods::All)
    },
    ingress("observe_receive4", "UDP received by connected IPv4 sockets", Pods::Ipv4),
    ingress("observe_receive6", "UDP received by connected IPv6 sockets", Pods::All),
    both(LIST_OPEN, "traffic of connections that stay open"),
    both(ADOPT_SOCKETS, "traffic of connections that were open when the agent started"),
    complete_without("observe_cgroups"),
    complete_without("observe_close"),
    complete_without("adopt_connections"),
    complete_without("adopt_receivers"),
];

const fn complete_without(name: &'static str) -> Program {
    Program { name, traffic: "", ingress: false, egress: false, pods: Pods::All, substitutes: &[] }
}

const fn ingress(name: &'static str, traffic: &'static str, pods: Pods) -> Program {
    Program { traffic, ingress: true, pods, ..complete_without(name) }
}

const fn egress(name: &'static str, traffic: &'static str, pods: Pods) -> Program {
    Program { traffic, egress: true, pods, ..complete_without(name) }
}

const fn both(name: &'static str, traffic: &'static str) -> Program {
    Program { traffic, ingress: true, egress: true, ..complete_without(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All programs but those that substitute others, and some.
    fn without(left_out: &[&'static str]) -> Vec<&'static str> {
        let is_substitute = |name| PROGRAMS.iter().any(|program| program.substitutes.contains(&name));
        let names = PROGRAMS.iter().map(|program| program.name);
        names.filter(|name| !is_substitute(name) && !left_out.contains(name)).collect()
    }

    fn missing(attached: &[&str]) -> Vec<&'static str> {
        Missing::of(attached.iter().copied()).programs().map(|program| program.name).collect()
    }

    #[test]
    fn every_program_is_missed_but_those_without_which_a_recording_is_complete() {
        assert_eq!(missing(&without(&[])), [""; 0]);
        for Program { name, traffic, .. } in PROGRAMS.iter().filter(|program| without(&[]).contains(&program.name)) {
            let expected: Vec<&str> = if traffic.is_empty() { Vec::new() } else { vec![name] };
            assert_eq!(missing(&without(&[name])), expected);
        }
        let attached = without(&["observe_sendmsg4", "observe_recvmsg6"]);
        assert_eq!(missing(&attached), ["observe_sendmsg4", "observe_recvmsg6"]);
    }

    #[test]
    fn substitutes_do_only_together() {
        let mut attached = without(&["observe_sent", "observe_received"]);
        attached.extend(["observe_send4", "observe_receive4", "observe_receive6"]);
        assert_eq!(missing(&attached), ["observe_send6"]);
        attached.push("observe_send6");
        assert_eq!(missing(&attached), [""; 0]);
    }

    #[test]
    fn nothing_is_missing_from_lists_that_tell_nothing_or_are_older_than_what_they_lack() {
        for attached in [&[][..], &["sock_ops"], &["observe_sendmsg4"]] {
            assert_eq!(missing(attached), [""; 0]);
        }
        assert_eq!(missing(&without(&[LIST_OPEN, ADOPT_SOCKETS])), [""; 0]);
    }

    #[test]
    fn pods_are_concerned_by_the_addresses_that_they_have() {
        let program = |name| PROGRAMS.iter().find(|program| program.name == name).expect("it is there");
        let [four, six, any] = ["observe_sendmsg4", "observe_sendmsg6", "observe_sent"].map(program);
        let concerned = |addresses: &[&str]| [four, six, any].map(|program| program.concerns(addresses));
        assert_eq!(concerned(&["10.244.0.5"]), [true, false, true]);
        assert_eq!(concerned(&["fd00::5"]), [false, true, true]);
        assert_eq!(concerned(&["10.244.0.5", "fd00::5"]), [true, true, true]);
        assert_eq!(concerned(&[]), [true, true, true]);
    }
}
