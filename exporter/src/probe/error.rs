//! Why the kernel's sockets can't be watched, in words that name the remedy.

use std::{
    error::Error,
    fmt::{self, Display},
    io,
    path::PathBuf,
};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::{
    OLDEST_KERNEL,
    neighbour::{Neighbour, list},
};

/// Why the kernel's sockets can't be watched here; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The process may not load or attach programs.
    #[error("missing {capabilities}: run as root, or grant these capabilities")]
    NotPermitted { capabilities: String },
    /// The kernel was built without type information.
    #[error("no kernel type information at {path}: a kernel with CONFIG_DEBUG_INFO_BTF=y is needed")]
    NoBtf {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel lacks a field: it is too old, or was built without an option.
    #[error(
        "the kernel has no field {field}: Linux {OLDEST_KERNEL} or newer with CONFIG_INET, CONFIG_IPV6 and CONFIG_CGROUPS is needed"
    )]
    MissingField { field: &'static str },
    /// There is no cgroup v2 hierarchy.
    #[error(
        "no cgroup2 mount in /proc/mounts: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified) or name one with --cgroup"
    )]
    NoCgroup2,
    /// The cgroup to watch can't be opened.
    #[error("cannot open cgroup {path}: name a cgroup v2 directory with --cgroup")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel refused the programs.
    #[error("the kernel refused to load the eBPF programs: Linux {OLDEST_KERNEL} or newer is needed")]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused the program without which there is nothing to record.
    #[error("the kernel refused `{program}` at {path}: Linux {OLDEST_KERNEL} or newer is needed")]
    Refused {
        program: &'static str,
        path: PathBuf,
        #[source]
        source: Box<Refusal>,
    },
    /// Another program has the hook for itself.
    #[error("cannot attach `{program}` to {path}")]
    Held {
        program: &'static str,
        path: PathBuf,
        #[source]
        source: Box<Refusal>,
    },
    /// A map is not as the object declares it.
    #[error("eBPF map `{map}` cannot be used: the object was built from other sources")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    /// A descriptor can't be copied.
    #[error("cannot copy a file descriptor: raise the limit (ulimit -n)")]
    Descriptor(#[source] io::Error),
    /// The object lacks something: it was built from other sources.
    #[error("the eBPF object has no `{name}`: rebuild it with exporter-ebpf/build.sh")]
    NotInObject { name: &'static str },
}

/// Why the kernel does not take one program.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The verifier refused it.
    #[error("the verifier ends with `{}`", last_words(.log))]
    Verifier {
        log: VerifierLog,
        #[source]
        source: io::Error,
    },
    /// Other programs are attached to the hook in such a way that they share it with nobody.
    #[error("held exclusively by {}: have it attached with BPF_F_ALLOW_MULTI (bpftool: multi)", list(.0))]
    Held(Vec<Neighbour>),
    /// The kernel lacks what the program is attached to, or has another form of it.
    #[error("the kernel has no {0}")]
    NoHook(String),
    /// Anything else.
    #[error("the kernel refused it")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}

/// All that the verifier said of a program.
#[derive(Debug)]
pub struct VerifierLog(String);

impl From<ProgramError> for Refusal {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError { io_error, verifier_log } if !verifier_log.to_string().trim().is_empty() => {
                Self::Verifier { log: VerifierLog(verifier_log.to_string()), source: io_error }
            }
            ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(ENOTSUPP) => {
                Self::NoHook("way to attach it on this architecture (ENOTSUPP)".into())
            }
            error => Self::Other(Box::new(error)),
        }
    }
}

impl Refusal {
    /// All that the verifier said, if it was the one that refused.
    pub(crate) fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Verifier { log, .. } => Some(&log.0),
            _ => None,
        }
    }
}

impl ProbeError {
    /// All that the verifier said, if it was the one that refused.
    pub(crate) fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Refused { source, .. } => source.verifier_log(),
            _ => None,
        }
    }
}

impl Display for VerifierLog {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The reason in a verifier's log: its last line before the statistics. The first lines show the state in which it began.
fn last_words(log: &VerifierLog) -> &str {
    let lines = || log.0.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_statistics = |line: &&str| STATISTICS.iter().any(|start| line.starts_with(start));
    let reason = lines().rev().find(|line| !is_statistics(line));
    reason.or_else(|| lines().next_back()).unwrap_or_default()
}

/// What kernels answer that can't trace functions, as those of arm64 before 6.4; no library has a name for it.
const ENOTSUPP: i32 = 524;

/// How lines begin that the verifier ends with, whatever came of it (`print_verification_stats`).
const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn the_reason_is_the_last_line_before_the_statistics() {
        let reason = |log: &str| last_words(&VerifierLog(log.into())).to_owned();
        let log = "0: R1=ctx(off=0,imm=0) R10=fp0\n; let x = 1;\n564: (85) call bpf_get_current_pid_tgid#14\n\
                   unknown func bpf_get_current_pid_tgid#14\n\
                   processed 564 insns (limit 1000000) max_states_per_insn 1 total_states 30 peak_states 30 mark_read 2\n";
        assert_eq!(reason(log), "unknown func bpf_get_current_pid_tgid#14");
        let log = "0: R1=ctx(id=0,off=0,imm=0) R10=fp0\nBPF_STX uses reserved fields\nverification time 9 usec\n\
                   stack depth 0+0\nprocessed 0 insns (limit 1000000) max_states_per_insn 0 total_states 0\n";
        assert_eq!(reason(log), "BPF_STX uses reserved fields");
        assert_eq!(reason("BPF_STX uses reserved fields\n"), "BPF_STX uses reserved fields");
        assert_eq!(reason("processed 0 insns\n"), "processed 0 insns", "better than nothing");
        assert_eq!(reason(""), "");
    }

    #[test]
    fn what_an_architecture_does_not_support_has_a_name() {
        let (call, io_error) = ("bpf_raw_tracepoint_open", io::Error::from_raw_os_error(ENOTSUPP));
        let refusal = Refusal::from(ProgramError::from(SyscallError { call, io_error }));
        assert_eq!(crate::chain(&refusal), "the kernel has no way to attach it on this architecture (ENOTSUPP)");
    }

    #[test]
    fn a_refusal_keeps_the_whole_log_for_those_who_ask() {
        let log = VerifierLog("first\nlast\nprocessed 1 insns\n".into());
        let refusal = Refusal::Verifier { log, source: io::Error::from_raw_os_error(22) };
        assert_eq!(refusal.to_string(), "the verifier ends with `last`");
        assert_eq!(refusal.verifier_log(), Some("first\nlast\nprocessed 1 insns\n"));
        assert_eq!(crate::chain(&refusal), "the verifier ends with `last`: Invalid argument (os error 22)");
    }
}
