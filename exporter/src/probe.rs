//! The kernel side: loads the eBPF programs, attaches them, and reads what they see.
//!
//! The only file that knows aya, and the only one of this crate with `unsafe` in it.

pub(crate) mod netns;
mod offsets;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapError, PerCpuArray, RingBuf},
    programs::{CgroupAttachMode, ProgramError, SockOps, sock_ops::SockOpsLink},
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use schemas::event::{FlowEvent, SocketOffsets, counter};

/// The programs, attached for as long as this lives, or until [`Probe::detach`].
pub(crate) struct Probe {
    _programs: Ebpf,
    /// Dropping it detaches.
    link: Option<SockOpsLink>,
    events: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    malformed: u64,
}

/// What the programs counted since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeCounters {
    /// Ends of connections: established or failed.
    pub seen: u64,
    /// Ends lost to a full ring buffer.
    pub lost_ring: u64,
    /// Closings lost to a full ring buffer.
    pub lost_closed: u64,
    /// Sockets whose role could not be remembered.
    pub lost_storage: u64,
    /// Records that could not be read.
    pub malformed: u64,
}

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
        source: btf_rs::Error,
    },
    /// The kernel lacks a field: it is too old, or was built without an option.
    #[error(
        "the kernel has no field {field}: Linux 5.12 or newer with CONFIG_INET, CONFIG_IPV6 and CONFIG_CGROUPS is needed"
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
    #[error("the kernel refused to load the eBPF programs: Linux 5.12 or newer is needed")]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused one program.
    #[error("the kernel refused to load or attach `{program}` at {path}")]
    Attach {
        program: &'static str,
        path: PathBuf,
        #[source]
        source: Box<ProgramError>,
    },
    /// A map is not as the object declares it.
    #[error("eBPF map `{map}` cannot be used: the object was built from other sources")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    /// The object lacks something: it was built from other sources.
    #[error("the eBPF object has no `{name}`: rebuild it with exporter-ebpf/build.sh")]
    NotInObject { name: &'static str },
}

impl Probe {
    /// Loads the programs and attaches them to a cgroup v2 directory, which they watch with all below it.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub(crate) fn attach(cgroup: Option<&Path>, ring_bytes: u32) -> Result<Self, ProbeError> {
        check_capabilities()?;
        let path = cgroup.map_or_else(cgroup2_mount, |path| Ok(path.to_path_buf()))?;
        let is_cgroup2 = statfs(&path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if !is_cgroup2 {
            let source = fs::metadata(&path).err().unwrap_or_else(|| io::Error::other("not of a cgroup2 file system"));
            return Err(ProbeError::Cgroup { path, source });
        }
        let offsets = Offsets(offsets::read(Path::new(KERNEL_BTF))?);
        let mut programs = EbpfLoader::new()
            .override_global("OFFSETS", &offsets, true)
            .map_max_entries(EVENTS, ring_bytes)
            .load(OBJECT)
            .map_err(|source| ProbeError::Load(Box::new(source)))?;

        let directory = File::open(&path).map_err(|source| ProbeError::Cgroup { path: path.clone(), source })?;
        let attach_error = |source| ProbeError::Attach { program: PROGRAM, path, source: Box::new(source) };
        let program = programs.program_mut(PROGRAM).ok_or(ProbeError::NotInObject { name: PROGRAM })?;
        // `Single` makes a bpf link, and links always allow others beside them.
        let link = <&mut SockOps>::try_from(program)
            .and_then(|program| {
                program.load()?;
                let link = program.attach(directory, CgroupAttachMode::Single)?;
                program.take_link(link)
            })
            .map_err(attach_error)?;

        let mut take = |name| programs.take_map(name).ok_or(ProbeError::NotInObject { name });
        let map_error = |map| move |source| ProbeError::Map { map, source: Box::new(source) };
        let events = RingBuf::try_from(take(EVENTS)?).map_err(map_error(EVENTS))?;
        let counters = PerCpuArray::try_from(take(COUNTERS)?).map_err(map_error(COUNTERS))?;
        Ok(Self { _programs: programs, link: Some(link), events, counters, malformed: 0 })
    }

    /// Names of the attached programs.
    pub(crate) const fn programs(&self) -> [&'static str; 1] {
        [PROGRAM]
    }

    /// Detaches the programs: what they saw so far can then be read to its end.
    pub(crate) fn detach(&mut self) {
        self.link = None;
    }

    /// Hands over every event that waits, oldest first, and returns how many bytes they took in the ring buffer.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(&FlowEvent)) -> usize {
        let mut bytes = 0;
        while let Some(record) = self.events.next() {
            bytes += record.len() + RECORD_HEADER_BYTES;
            match FlowEvent::from_bytes(&record) {
                Some(event) => take(&event),
                None => self.malformed += 1,
            }
        }
        bytes
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn counters(&self) -> Result<ProbeCounters, ProbeError> {
        let sum = |index| {
            let values = self.counters.get(&index, 0);
            let values = values.map_err(|source| ProbeError::Map { map: COUNTERS, source: Box::new(source) })?;
            Ok(values.iter().sum())
        };
        Ok(ProbeCounters {
            seen: sum(counter::SEEN)?,
            lost_ring: sum(counter::LOST_RING)?,
            lost_closed: sum(counter::LOST_CLOSED)?,
            lost_storage: sum(counter::LOST_STORAGE)?,
            malformed: self.malformed,
        })
    }
}

/// Names the capabilities that loading needs and the process lacks, before the kernel says only "not permitted".
fn check_capabilities() -> Result<(), ProbeError> {
    // Where the file can't be read or understood, the kernel gets to say it.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else { return Ok(()) };
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        // CAP_SYS_ADMIN includes what was split off it.
        .filter(|(bit, _)| !has(*bit) && (*bit == CAP_NET_ADMIN || !has(CAP_SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(ProbeError::NotPermitted { capabilities: missing.join(", ") }) }
}

/// Where cgroup v2 is mounted: the whole hierarchy, whatever the machine calls it.
fn cgroup2_mount() -> Result<PathBuf, ProbeError> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .ok_or(ProbeError::NoCgroup2)
}

/// [`SocketOffsets`] as something aya may copy into a global.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Offsets(SocketOffsets);

#[expect(unsafe_code, reason = "aya takes globals as plain memory")]
// SAFETY: `repr(C)`, made of u32 only, without padding (its size is asserted).
unsafe impl aya::Pod for Offsets {}

/// Built by `exporter-ebpf/build.sh` and committed, so that a build needs Rust alone.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../exporter-ebpf/flowscribe.bpf.o");

/// What the kernel puts before every record of a ring buffer (`BPF_RINGBUF_HDR_SZ`).
const RECORD_HEADER_BYTES: usize = 8;
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const PROGRAM: &str = "observe_tcp";
const EVENTS: &str = "EVENTS";
const COUNTERS: &str = "COUNTERS";

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAPABILITIES: [(u32, &str); 3] = [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
