//! The kernel side: loads the eBPF programs, attaches them, and reads what they see.
//!
//! The only file that knows aya, and the only one of this crate with `unsafe` in it.

mod load;
pub(crate) mod netns;
mod offsets;
mod walk;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Program, ProgramError, sock_ops::SockOpsLink},
    sys::{Stats, enable_stats},
};
use load::{Loading, attach_tcp};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use schemas::event::{EdgeCounts, EdgeKey, Record, Settings, SocketOffsets, control, counter};

/// The programs, attached for as long as this lives, or until [`Probe::detach`].
pub(crate) struct Probe {
    programs: Ebpf,
    /// Dropping it detaches.
    tcp: Option<SockOpsLink>,
    events: RingBuf<MapData>,
    edges: HashMap<MapData, EdgeKeyPod, EdgeCountsPod>,
    ring_fd: OwnedFd,
    edges_fd: OwnedFd,
    control: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    scan: Arc<Scan>,
    epoch: u32,
    /// Connections that were found open when the run began.
    adopted: u64,
    attached: Vec<&'static str>,
    degraded: Vec<Degraded>,
    malformed: u64,
    /// Skipped runs of programs that are not attached any more.
    skipped_before: u64,
}

/// What a probe is told before it is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeOptions<'a> {
    /// Cgroup v2 directory to watch; the root of the hierarchy by default.
    pub cgroup: Option<&'a Path>,
    /// Size of the ring buffer in bytes: a power of two.
    pub ring_bytes: u32,
    /// Most edges that are summed in the kernel at once.
    pub kernel_edges: u32,
    /// Most open connections that are remembered.
    pub connections: u32,
    /// Length of a window in nanoseconds.
    pub window_ns: u64,
    /// UTC minus `CLOCK_BOOTTIME` in nanoseconds.
    pub utc_offset_ns: u64,
}

/// A part of the capture that can't be had here.
#[derive(Clone, Debug)]
pub(crate) struct Degraded {
    /// What is not recorded.
    pub cost: &'static str,
    /// Why.
    pub reason: String,
}

/// What the kernel says of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramStats {
    /// Its name.
    pub name: &'static str,
    /// How often it ran; only while the kernel measures.
    pub runs: u64,
    /// How long it ran; only while the kernel measures.
    pub run_time: Duration,
    /// How often it was skipped, because it was running already.
    pub skipped: u64,
}

/// Tells of what is open, from any thread.
pub(crate) struct Scan {
    program: Option<OwnedFd>,
    connections: OwnedFd,
}

/// What the programs counted since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeCounters {
    /// Ends of connections: established or failed.
    pub seen: u64,
    /// Of these, those that an event told of, or was lost in trying to.
    pub reported: u64,
    /// Events that found the ring buffer full and were summed instead.
    pub ring_full: u64,
    /// Ends lost: ring buffer and edge map were full.
    pub lost_ring: u64,
    /// Closings lost in the same way, of connections that were counted before.
    pub lost_closed: u64,
    /// Sockets that could not be remembered.
    pub lost_storage: u64,
    /// Datagrams whose edge found no room.
    pub lost_datagrams: u64,
    /// Cgroups whose making found the ring buffer full.
    pub lost_cgroups: u64,
    /// Runs of the tracepoint programs that the kernel skipped.
    pub skipped: u64,
    /// Records that could not be read.
    pub malformed: u64,
}

impl ProbeCounters {
    /// What was counted since `before`.
    pub(crate) const fn since(self, before: Self) -> Self {
        Self {
            seen: self.seen - before.seen,
            reported: self.reported - before.reported,
            ring_full: self.ring_full - before.ring_full,
            lost_ring: self.lost_ring - before.lost_ring,
            lost_closed: self.lost_closed - before.lost_closed,
            lost_storage: self.lost_storage - before.lost_storage,
            lost_datagrams: self.lost_datagrams - before.lost_datagrams,
            lost_cgroups: self.lost_cgroups - before.lost_cgroups,
            skipped: self.skipped - before.skipped,
            malformed: self.malformed - before.malformed,
        }
    }
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
    /// A descriptor can't be copied.
    #[error("cannot copy a file descriptor: raise the limit (ulimit -n)")]
    Descriptor(#[source] io::Error),
    /// The object lacks something: it was built from other sources.
    #[error("the eBPF object has no `{name}`: rebuild it with exporter-ebpf/build.sh")]
    NotInObject { name: &'static str },
}

impl Probe {
    /// Loads the programs and attaches them to a cgroup v2 directory, which they watch with all below it.
    ///
    /// # Errors
    /// TCP can't be watched: see [`ProbeError`]. What else can't be had is in [`Self::degraded`].
    pub(crate) fn attach(options: ProbeOptions<'_>) -> Result<Self, ProbeError> {
        check_capabilities()?;
        let ProbeOptions { cgroup, ring_bytes, kernel_edges, connections, window_ns, utc_offset_ns } = options;
        let path = cgroup.map_or_else(cgroup2_mount, |path| Ok(path.to_path_buf()))?;
        let is_cgroup2 = statfs(&path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if !is_cgroup2 {
            let source = fs::metadata(&path).err().unwrap_or_else(|| io::Error::other("not of a cgroup2 file system"));
            return Err(ProbeError::Cgroup { path, source });
        }
        let directory = File::open(&path).map_err(|source| ProbeError::Cgroup { path: path.clone(), source })?;
        let kernel = offsets::read(Path::new(KERNEL_BTF))?;
        let is_all = path == cgroup2_mount()? || kernel.offsets.cgroup_ancestors == 0;
        let watched_cgroup = if is_all { 0 } else { directory.metadata().map_or(0, |metadata| metadata.ino()) };
        let (offsets, has_lengths) = (Global(kernel.offsets), kernel.has_lengths);
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::Load(Box::new(source.into())))?;
        let settings = Settings {
            window_ns,
            utc_offset_ns,
            watched_cgroup,
            own_process: own_process(),
            has_lengths: has_lengths.into(),
        };
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets, true)
            .override_global("SETTINGS", &Global(settings), true)
            .map_max_entries(EVENTS, ring_bytes)
            .map_max_entries(EDGES, kernel_edges)
            .map_max_entries(CONNECTIONS, connections)
            .load(OBJECT)
            .map_err(|source| ProbeError::Load(Box::new(source)))?;

        let attach_error = |source| ProbeError::Attach { program: TCP, path, source: Box::new(source) };
        let tcp = attach_tcp(&mut programs, &directory).map_err(attach_error)?;
        let mut loading = Loading { programs: &mut programs, btf: &btf, attached: vec![TCP], degraded: Vec::new() };
        loading.udp(&directory, has_lengths);
        loading.tracepoint("observe_cgroups", "cgroup_mkdir", "pods that are gone before their inventory is read");
        loading.tracepoint(CLOSE, "inet_sock_set_state", "the ends of connections that were open before the run");
        let walk = loading.iterator(OPEN, "bpf_map_elem", "connections that are open, until they end");
        loading.adopt();
        let Loading { attached, degraded, .. } = loading;

        let mut take = |name| programs.take_map(name).ok_or(ProbeError::NotInObject { name });
        let map_error = |map| move |source| ProbeError::Map { map, source: Box::new(source) };
        let copy = |map: &Map| map_fd(map)?.try_clone_to_owned().map_err(ProbeError::Descriptor);
        let (events, edges) = (take(EVENTS)?, take(EDGES)?);
        let (ring_fd, edges_fd) = (copy(&events)?, copy(&edges)?);
        let events = RingBuf::try_from(events).map_err(map_error(EVENTS))?;
        let edges = HashMap::try_from(edges).map_err(map_error(EDGES))?;
        let control = Array::try_from(take(CONTROL)?).map_err(map_error(CONTROL))?;
        let counters = PerCpuArray::try_from(take(COUNTERS)?).map_err(map_error(COUNTERS))?;
        let connections = copy(&take(CONNECTIONS)?)?;
        let scan = Arc::new(Scan { program: walk, connections });
        let tcp = Some(tcp);
        let mut probe = Self {
            programs,
            tcp,
            events,
            edges,
            ring_fd,
            edges_fd,
            control,
            counters,
            scan,
            epoch: 0,
            adopted: 0,
            attached,
            degraded,
            malformed: 0,
            skipped_before: 0,
        };
        probe.adopted = probe.sum(counter::ADOPTED)?;
        probe.forget_older(0);
        // The kernel's type information takes more than all the rest.
        drop(btf);
        return_memory();
        Ok(probe)
    }

    /// Names of the attached programs.
    pub(crate) fn attached(&self) -> &[&'static str] {
        &self.attached
    }

    /// What can't be had here.
    pub(crate) fn degraded(&self) -> &[Degraded] {
        &self.degraded
    }

    /// Detaches what watches: what it saw so far can then be read to its end.
    pub(crate) fn detach(&mut self) {
        self.tcp = None;
        for name in std::mem::take(&mut self.attached) {
            self.unload(name);
        }
    }

    /// Detaches what waits for the ends of older connections, when all have `ended`.
    pub(crate) fn forget_older(&mut self, ended: u64) {
        if ended >= self.adopted && self.attached.contains(&CLOSE) {
            self.attached.retain(|name| *name != CLOSE);
            self.unload(CLOSE);
        }
    }

    /// Runs of a program that the kernel skipped, because it was running already.
    fn skipped(&self, name: &str) -> u64 {
        let program = self.programs.program(name).and_then(|program| program.fd().ok());
        program.and_then(|fd| fdinfo(fd.as_fd(), "recursion_misses")).unwrap_or(0)
    }

    /// What the kernel says of the programs, and how much memory the maps take, in bytes.
    pub(crate) fn stats(&self) -> (Vec<ProgramStats>, u64) {
        let of = |name: &&'static str| {
            let fd = self.programs.program(name)?.fd().ok()?.as_fd();
            Some(ProgramStats {
                name,
                runs: fdinfo(fd, "run_cnt").unwrap_or(0),
                run_time: Duration::from_nanos(fdinfo(fd, "run_time_ns").unwrap_or(0)),
                skipped: self.skipped(name),
            })
        };
        let maps = [&self.ring_fd, &self.edges_fd, &self.scan.connections];
        let bytes = maps.iter().filter_map(|fd| fdinfo(fd.as_fd(), "memlock")).sum();
        (self.attached.iter().filter_map(of).collect(), bytes)
    }

    fn unload(&mut self, name: &str) {
        self.skipped_before += self.skipped(name);
        // Unloading detaches.
        let _ = match self.programs.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.unload(),
            Some(Program::CgroupSockAddr(program)) => program.unload(),
            _ => Ok(()),
        };
    }

    /// Hands over every record that waits, oldest first, and returns how many bytes they took in the ring buffer.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(&Record)) -> usize {
        let mut bytes = 0;
        while let Some(record) = self.events.next() {
            bytes += record.len() + RECORD_HEADER_BYTES;
            match Record::from_bytes(&record) {
                Some(record) => take(&record),
                None => self.malformed += 1,
            }
        }
        bytes
    }

    /// Begins a new generation of edges; what belongs to the ones before is complete a moment later.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub(crate) fn next_epoch(&mut self) -> Result<(), ProbeError> {
        self.epoch += 1;
        self.control.set(control::EPOCH, u64::from(self.epoch), 0).map_err(map_error(CONTROL))
    }

    /// Takes the edges of earlier generations out of the kernel, in the order in which they began: the first datagram
    /// of a conversation tells its direction.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn take_edges(&mut self, mut take: impl FnMut(&EdgeKey, &EdgeCounts)) -> Result<(), ProbeError> {
        let mut edges = self.edges.iter().collect::<Result<Vec<_>, _>>().map_err(map_error(EDGES))?;
        edges.retain(|(key, _)| key.0.epoch < self.epoch);
        edges.sort_unstable_by_key(|(_, counts)| counts.0.first_ns);
        for (key, counts) in &edges {
            take(&key.0, &counts.0);
            self.edges.remove(key).map_err(map_error(EDGES))?;
        }
        Ok(())
    }

    /// Sets the moment as of which [`Scan::run`] tells, `CLOCK_BOOTTIME` nanoseconds.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub(crate) fn prepare_scan(&mut self, until_ns: u64) -> Result<Arc<Scan>, ProbeError> {
        self.control.set(control::SCAN_UNTIL_NS, until_ns, 0).map_err(map_error(CONTROL))?;
        Ok(Arc::clone(&self.scan))
    }

    fn sum(&self, index: u32) -> Result<u64, ProbeError> {
        Ok(self.counters.get(&index, 0).map_err(map_error(COUNTERS))?.iter().sum())
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn counters(&self) -> Result<ProbeCounters, ProbeError> {
        let sum = |index| self.sum(index);
        Ok(ProbeCounters {
            seen: sum(counter::SEEN)?,
            reported: sum(counter::REPORTED)?,
            ring_full: sum(counter::RING_FULL)?,
            lost_ring: sum(counter::LOST_MAP)?,
            lost_closed: sum(counter::LOST_CLOSED)?,
            lost_storage: sum(counter::LOST_STORAGE)?,
            lost_datagrams: sum(counter::LOST_DATAGRAMS)?,
            lost_cgroups: sum(counter::LOST_CGROUPS)?,
            skipped: self.skipped_before + self.attached.iter().map(|name| self.skipped(name)).sum::<u64>(),
            malformed: self.malformed,
        })
    }
}

impl Scan {
    /// Has the kernel tell of everything that is open, through the ring buffer.
    ///
    /// # Errors
    /// The kernel refuses; without the program there is nothing to do.
    pub(crate) fn run(&self) -> io::Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        walk::walk(program.as_fd(), Some(self.connections.as_fd()))
    }
}

/// A number that the kernel tells of an eBPF program or map.
fn fdinfo(descriptor: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

fn map_fd(map: &Map) -> Result<BorrowedFd<'_>, ProbeError> {
    match map {
        Map::RingBuf(map) | Map::HashMap(map) => Ok(map.fd().as_fd()),
        _ => Err(ProbeError::NotInObject { name: "map of the kind that is expected" }),
    }
}

fn map_error(map: &'static str) -> impl FnOnce(MapError) -> ProbeError {
    move |source| ProbeError::Map { map, source: Box::new(source) }
}

/// Gives free memory back to the system: after a peak, it would stay with the process.
pub(crate) fn return_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper knows malloc_trim")]
    // SAFETY: no precondition; any thread may call it at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// The number of this process as the kernel knows it; 0 where it can't be told.
fn own_process() -> u32 {
    if is_first_pid_namespace() { std::process::id() } else { 0 }
}

/// Has the kernel measure how often and how long programs run, until what is returned is dropped.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn measure_run_time() -> Result<OwnedFd, ProbeError> {
    enable_stats(Stats::RunTime).map_err(|source| ProbeError::Load(Box::new(ProgramError::from(source).into())))
}

/// Whether processes have the same numbers here as in the kernel.
pub(crate) fn is_first_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.ino() == FIRST_PID_NAMESPACE)
}

/// Names the capabilities that loading needs and the process lacks, before the kernel says only "not permitted".
fn check_capabilities() -> Result<(), ProbeError> {
    let needed = CAPABILITIES.iter().filter(|(bit, ..)| NEEDED.contains(bit));
    let missing: Vec<&str> = needed.filter(|(bit, ..)| !has_capability(*bit)).map(|(_, name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(ProbeError::NotPermitted { capabilities: missing.join(", ") }) }
}

/// Whether the process has a capability; where that can't be read, the kernel gets to say it.
pub(crate) fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else { return true };
    let has = |bit: u32| effective & (1 << bit) != 0;
    // CAP_SYS_ADMIN includes what was split off it.
    has(bit) || (matches!(bit, CAP_PERFMON | CAP_BPF) && has(CAP_SYS_ADMIN))
}

/// Where cgroup v2 is mounted: the whole hierarchy, whatever the machine calls it.
pub(crate) fn cgroup2_mount() -> Result<PathBuf, ProbeError> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .ok_or(ProbeError::NoCgroup2)
}

/// Plain memory of the kernel event ABI, as something aya may copy.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Global<T>(T);
/// A key of the edge map.
type EdgeKeyPod = Global<EdgeKey>;
/// A value of the edge map.
type EdgeCountsPod = Global<EdgeCounts>;

#[expect(unsafe_code, reason = "aya takes globals, keys and values as plain memory")]
mod plain {
    use super::{EdgeCounts, EdgeKey, Global, Settings, SocketOffsets};

    // SAFETY: each is `repr(C)`, made of integers, without padding (its size is asserted).
    unsafe impl aya::Pod for Global<SocketOffsets> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Global<Settings> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Global<EdgeKey> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Global<EdgeCounts> {}
}

/// Built by `exporter-ebpf/build.sh` and committed, so that a build needs Rust alone.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../exporter-ebpf/flowscribe.bpf.o");

/// What the kernel puts before every record of a ring buffer (`BPF_RINGBUF_HDR_SZ`).
const RECORD_HEADER_BYTES: usize = 8;
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const TCP: &str = "observe_tcp";
const CLOSE: &str = "observe_close";
const OPEN: &str = "list_open";
const EVENTS: &str = "EVENTS";
const EDGES: &str = "EDGES";
const CONNECTIONS: &str = "CONNECTIONS";
const CONTROL: &str = "CONTROL";
const COUNTERS: &str = "COUNTERS";
/// `PROC_PID_INIT_INO` of the kernel.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// Without these nothing can be recorded.
const NEEDED: [u32; 3] = [CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF];
/// Number and name of each capability, and what it costs to lack it.
pub(crate) const CAPABILITIES: [(u32, &str, &str); 5] = [
    (CAP_NET_ADMIN, "CAP_NET_ADMIN", "nothing can be recorded: programs can't be attached to a cgroup"),
    (CAP_PERFMON, "CAP_PERFMON", "nothing can be recorded: programs can't read kernel structures"),
    (CAP_BPF, "CAP_BPF", "nothing can be recorded: programs can't be loaded"),
    (CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "pods are told by their network namespace's number, not its cookie"),
    (CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "pods whose network namespace is given by a process (/proc/PID/ns/net)"),
];
