//! The kernel side: loads the eBPF programs, attaches them, and reads what they see.
//!
//! Nothing outside of this module knows aya, system calls of the kernel's own, or `unsafe`.

mod btf;
#[cfg(test)]
mod calls;
mod counters;
mod error;
mod heap;
mod hooks;
pub(crate) mod host;
mod load;
mod neighbour;
pub(crate) mod netns;
mod offsets;
mod syscall;
mod walk;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Program, ProgramError, sock_ops::SockOpsLink, tp_btf::BtfTracePointLink},
    sys::{Stats, enable_stats},
};
use btf::Types;
use host::{cgroup2_mount, check_capabilities};
use load::{Lister, Loaded, Loading, attach_close};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use schemas::event::{EdgeCounts, EdgeKey, Record, Settings, SocketOffsets, control, counter};

use counters::fdinfo;
pub(crate) use counters::{MapEntries, ProbeCounters, ProgramStats};
pub(crate) use error::{ProbeError, Refusal};
pub(crate) use heap::{return_memory, share_heap};
use hooks::{CLOSE, TCP};
pub(crate) use hooks::{PROGRAMS, Spec};
pub(crate) use neighbour::Suspects;
use neighbour::{Names, Neighbours};

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
    /// Names of the programs that are in the kernel.
    loaded: Vec<&'static str>,
    degraded: Vec<Degraded>,
    /// What attaches [`CLOSE`], while it is needed: dropping it detaches.
    close: Option<BtfTracePointLink>,
    /// Finds the last of what was open before.
    adopting: Option<JoinHandle<()>>,
    neighbours: Neighbours,
    malformed: u64,
    /// Skipped runs of programs, counted when they were unloaded.
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Degraded {
    /// The program that is missing; empty where it is none.
    pub program: &'static str,
    /// What is not recorded.
    pub cost: &'static str,
    /// Why.
    pub reason: String,
    /// The first Linux that has what it takes; empty where that is not the point.
    pub since: &'static str,
    /// All that the verifier said.
    pub log: Option<String>,
}

impl Degraded {
    fn of(spec: Spec) -> Self {
        Self { program: spec.name, cost: spec.cost(), reason: String::new(), since: spec.since, log: None }
    }
}

/// The network namespace of process 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeNetns {
    /// Inode number of its file.
    pub inode: u32,
    /// Its cookie.
    pub cookie: u64,
}

/// Tells of what is open, from any thread.
pub(crate) struct Scan {
    list: Option<Lister>,
    connections: OwnedFd,
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
        let no_btf = |source| ProbeError::NoBtf { path: KERNEL_BTF.into(), source };
        let bytes = fs::read(KERNEL_BTF).map_err(no_btf)?;
        let types = Types::parse(&bytes).map_err(|error| no_btf(io::Error::other(error)))?;
        let offsets = offsets::find(&types)?;
        let inode = directory.metadata().map_or(0, |metadata| metadata.ino());
        let is_mount = path == cgroup2_mount()?;
        let watched_cgroup = if is_mount || offsets.cgroup_ancestors == 0 { 0 } else { inode };
        let hooked = load::attached_to(&types);
        let btf =
            Btf::parse(&hooked, Endianness::default()).map_err(|source| ProbeError::Load(Box::new(source.into())))?;
        let settings = Settings { window_ns, utc_offset_ns, watched_cgroup };
        let mut programs = EbpfLoader::new()
            .btf(None)
            .override_global("OFFSETS", &Global(offsets), true)
            .override_global("SETTINGS", &Global(settings), true)
            .map_max_entries(EVENTS, ring_bytes)
            .map_max_entries(EDGES, kernel_edges)
            .map_max_entries(CONNECTIONS, connections)
            .load(OBJECT)
            .map_err(|source| ProbeError::Load(Box::new(source)))?;
        let control = programs.take_map(CONTROL).ok_or(ProbeError::NotInObject { name: CONTROL })?;
        let mut control = Array::try_from(control).map_err(map_error(CONTROL))?;

        let (btf_of, directory) = (&btf, &directory);
        let (names, loaded) = (Names::new(None), Loaded::default());
        let mut loading = Loading { programs: &mut programs, btf: btf_of, types: &types, directory, names, loaded };
        loading.list_programs();
        loading.find_node();
        let tcp = Some(loading.tcp(&path)?);
        loading.loaded.degraded.extend(partial_view(is_mount, inode, watched_cgroup));
        loading.rest();
        for (number, sees) in [control::SEES_SENT, control::SEES_RECEIVED].into_iter().zip(loading.loaded.sees) {
            control.set(number, u64::from(sees), 0).map_err(map_error(CONTROL))?;
        }
        loading.adopt();
        let has_adopted = loading.loaded.names.contains(&hooks::ADOPT);
        control.set(control::HAS_ADOPTED, u64::from(has_adopted), 0).map_err(map_error(CONTROL))?;
        let own = loading.number(TCP);
        let Loading { names: program_names, loaded, .. } = loading;
        let Loaded { names, degraded, close, adopting, list_open, sees: _ } = loaded;

        let mut take = |name| programs.take_map(name).ok_or(ProbeError::NotInObject { name });
        let copy = |map: &Map| map_fd(map)?.try_clone_to_owned().map_err(ProbeError::Descriptor);
        let (events, edges) = (take(EVENTS)?, take(EDGES)?);
        let (ring_fd, edges_fd) = (copy(&events)?, copy(&edges)?);
        let events = RingBuf::try_from(events).map_err(map_error(EVENTS))?;
        let edges = HashMap::try_from(edges).map_err(map_error(EDGES))?;
        let counters = PerCpuArray::try_from(take(COUNTERS)?).map_err(map_error(COUNTERS))?;
        let connections = copy(&take(CONNECTIONS)?)?;
        let scan = Arc::new(Scan { list: list_open, connections });
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
            loaded: names,
            degraded,
            close,
            adopting,
            neighbours: Neighbours::new(program_names, &path, own),
            malformed: 0,
            skipped_before: 0,
        };
        // Of connects that were answered before they were found.
        probe.neighbours.forgive(probe.sum(counter::FLAG_MISSING)?);
        probe.forget_older()?;
        // The kernel's type information takes more than all the rest.
        drop((btf, types));
        drop(bytes);
        return_memory();
        Ok(probe)
    }

    /// Names of the programs that are in the kernel.
    pub(crate) fn programs(&self) -> &[&'static str] {
        &self.loaded
    }

    /// What can't be had here.
    pub(crate) fn degraded(&self) -> &[Degraded] {
        &self.degraded
    }

    /// The node's own network namespace: that of process 1 in this process's PID namespace. `None` where the kernel could
    /// not be asked.
    pub(crate) fn node_netns(&self) -> Option<NodeNetns> {
        let number = |index| self.control.get(&index, 0).unwrap_or(0);
        let inode = number(control::NODE_NETNS_INODE) as u32;
        (inode != 0).then(|| NodeNetns { inode, cookie: number(control::NODE_NETNS_COOKIE) })
    }

    /// Detaches what watches: what it saw so far can then be read to its end.
    pub(crate) fn detach(&mut self) {
        self.tcp = None;
        self.close = None;
        // Programs go one after the other: who asks from whom is not seen any more when the first has gone.
        let _ = self.control.set(control::SEES_RECEIVED, 0, 0);
        for name in std::mem::take(&mut self.loaded) {
            self.unload(name);
        }
    }

    /// Detaches what waits for the ends of older connections, when all have ended.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn forget_older(&mut self) -> Result<(), ProbeError> {
        if self.adopting.is_some() {
            return Ok(());
        }
        let is_over = || Ok(self.sum(counter::ADOPTED_ENDED)? >= self.sum(counter::ADOPTED)?);
        if self.close.is_some() && self.neighbours.is_empty() && is_over()? {
            self.close = None;
        }
        Ok(())
    }

    /// Watches the ends of connections by other means as well, while `sock_ops` programs of others have the last word on
    /// callback flags, or once flags are missing. Returns these programs, when there is news of them.
    ///
    /// # Errors
    /// The kernel refuses the read.
    pub(crate) fn heed_neighbours(&mut self) -> Result<Option<Suspects>, ProbeError> {
        let news = self.neighbours.look(self.sum(counter::FLAG_MISSING)?);
        if news.is_some() && self.close.is_none() {
            let attached = attach_close(&mut self.programs).inspect_err(|error| {
                let error = crate::chain(error);
                tracing::warn!(error, program = CLOSE, "ends that are missed stay lost, and counted");
            });
            self.close = attached.ok();
        }
        Ok(news)
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
        (self.loaded.iter().filter_map(of).collect(), bytes)
    }

    fn unload(&mut self, name: &str) {
        self.skipped_before += self.skipped(name);
        // Unloading detaches.
        let _ = match self.programs.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.unload(),
            Some(Program::CgroupSockAddr(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            _ => Ok(()),
        };
    }

    /// Hands over every record that waits, oldest first, and returns how many bytes they took in the ring buffer.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(&Record)) -> usize {
        if self.adopting.as_ref().is_some_and(JoinHandle::is_finished) {
            self.adopting = None;
            // What was not to be forgotten yet, or could not be asked for, is asked for again at the end of the window.
            let _ = self.forget_older();
        }
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
            skipped: self.skipped_before + self.loaded.iter().map(|name| self.skipped(name)).sum::<u64>(),
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
        let Some(Lister { program, is_over_map }) = &self.list else { return Ok(()) };
        walk::walk(program.as_fd(), is_over_map.then(|| self.connections.as_fd())).map(drop)
    }
}

/// What is not seen because of where it is looked from.
fn partial_view(is_mount: bool, inode: u64, watched_cgroup: u64) -> Option<Degraded> {
    if is_mount && inode != ROOT_CGROUP {
        return Some(Degraded {
            cost: "the node: only sockets of this container and what it started are seen",
            reason: "the cgroup2 mount shows a part of the hierarchy: mount the node's own, /sys/fs/cgroup".into(),
            ..Degraded::default()
        });
    }
    (!is_mount && watched_cgroup == 0).then(|| Degraded {
        cost: "--cgroup: UDP of connected sockets, and connections older than the run, are those of the node",
        reason: "the kernel does not tell the cgroups above one".into(),
        since: "6.1",
        ..Degraded::default()
    })
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
/// The oldest Linux that an agent was watched recording on: see KERNELS.md.
const OLDEST_KERNEL: &str = "6.1";
const EVENTS: &str = "EVENTS";
const EDGES: &str = "EDGES";
const CONNECTIONS: &str = "CONNECTIONS";
const CONTROL: &str = "CONTROL";
const COUNTERS: &str = "COUNTERS";
