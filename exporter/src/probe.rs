//! The kernel side: loads the eBPF programs, attaches them, and reads what they see.
//!
//! Nothing outside of this module knows aya, system calls of the kernel's own, or `unsafe`.

mod counters;
pub(crate) mod host;
mod load;
pub(crate) mod netns;
mod offsets;
mod walk;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Program, ProgramError, sock_ops::SockOpsLink},
    sys::{Stats, enable_stats},
};
use host::{cgroup2_mount, check_capabilities, own_process};
use load::{Loading, attach_tcp};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use schemas::event::{EdgeCounts, EdgeKey, Record, Settings, SocketOffsets, control, counter};

use counters::fdinfo;
pub(crate) use counters::{MapEntries, ProbeCounters, ProgramStats};

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
    /// Edges that were in the map when they were taken out last.
    edges_taken: usize,
    epoch: u32,
    /// When the present generation of edges began.
    epoch_begun: Instant,
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

/// Tells of what is open, from any thread.
pub(crate) struct Scan {
    program: Option<OwnedFd>,
    connections: OwnedFd,
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
        let inode = directory.metadata().map_or(0, |metadata| metadata.ino());
        let is_mount = path == cgroup2_mount()?;
        let watched_cgroup = if is_mount || kernel.offsets.cgroup_ancestors == 0 { 0 } else { inode };
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
        if is_mount && inode != ROOT_CGROUP {
            loading.degraded.push(Degraded {
                cost: "the node: only sockets of this container and what it started are seen",
                reason: "the cgroup2 mount shows a part of the hierarchy: mount the node's own, /sys/fs/cgroup".into(),
            });
        }
        if !is_mount && watched_cgroup == 0 {
            loading.degraded.push(Degraded {
                cost: "--cgroup: UDP of connected sockets, and connections older than the run, are those of the node",
                reason: "the kernel does not tell the cgroups above one: Linux 6.1 or newer is needed".into(),
            });
        }
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
            edges_taken: 0,
            epoch: 0,
            epoch_begun: Instant::now(),
            attached,
            degraded,
            malformed: 0,
            skipped_before: 0,
        };
        probe.forget_older()?;
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

    /// Detaches what waits for the ends of older connections, when all have ended.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn forget_older(&mut self) -> Result<(), ProbeError> {
        if self.attached.contains(&CLOSE) && self.sum(counter::ADOPTED_ENDED)? >= self.sum(counter::ADOPTED)? {
            self.attached.retain(|name| *name != CLOSE);
            self.unload(CLOSE);
        }
        Ok(())
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

    /// Begins a new generation of edges; what belongs to the ones before is complete when it has [`Self::settled`].
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub(crate) fn next_epoch(&mut self) -> Result<(), ProbeError> {
        self.epoch += 1;
        self.epoch_begun = Instant::now();
        self.control.set(control::EPOCH, u64::from(self.epoch), 0).map_err(map_error(CONTROL))
    }

    /// How long until no program adds to an earlier generation any more.
    pub(crate) fn settled(&self) -> Duration {
        SETTLE.saturating_sub(self.epoch_begun.elapsed())
    }

    /// Takes the edges of earlier generations out of the kernel, in the order in which they began: the first datagram
    /// of a conversation tells its direction.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn take_edges(&mut self, mut take: impl FnMut(&EdgeKey, &EdgeCounts)) -> Result<(), ProbeError> {
        let mut edges = self.edges.iter().collect::<Result<Vec<_>, _>>().map_err(map_error(EDGES))?;
        self.edges_taken = edges.len();
        edges.retain(|(key, _)| key.0.epoch < self.epoch);
        edges.sort_unstable_by_key(|(_, counts)| counts.0.first_ns);
        for (key, counts) in &edges {
            take(&key.0, &counts.0);
            self.edges.remove(key).map_err(map_error(EDGES))?;
        }
        Ok(())
    }

    /// How full the maps are.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn map_entries(&self) -> Result<MapEntries, ProbeError> {
        let (made, removed) = (self.sum(counter::ENTRIES_MADE)?, self.sum(counter::ENTRIES_REMOVED)?);
        Ok(MapEntries { connections: made.saturating_sub(removed), edges: self.edges_taken as u64 })
    }

    /// Sets the moment as of which [`Scan::run`] tells, `CLOCK_BOOTTIME` nanoseconds; with 0, it tells of nothing, and
    /// only removes what is over.
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
            ring_full: sum(counter::RING_FULL)?,
            lost_ring: sum(counter::LOST_MAP)?,
            lost_closed: sum(counter::LOST_CLOSED)?,
            lost_connections: sum(counter::LOST_CONNECTIONS)?,
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

/// Has all threads share one heap, which gives more of it back; to be called before there are any. They are few, and
/// none allocates much while another does.
pub(crate) fn share_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper knows mallopt")]
    // SAFETY: no precondition.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Has the kernel measure how often and how long programs run, until what is returned is dropped.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn measure_run_time() -> Result<OwnedFd, ProbeError> {
    enable_stats(Stats::RunTime).map_err(|source| ProbeError::Load(Box::new(ProgramError::from(source).into())))
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

/// A program may have read the generation before it was raised, and be kept from running for as long as this.
const SETTLE: Duration = Duration::from_millis(50);
/// Inode number of the root of a cgroup hierarchy.
const ROOT_CGROUP: u64 = 1;
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
