//! Which pod a socket of this node belongs to, by its network namespace and its cgroup.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::Bound,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::table::TimestampMs;

use crate::{flow::SocketOwner, probe::netns};

/// The node's own network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostNetns {
    /// Inode number of its file.
    pub inode: u32,
    /// Its cookie, where it can be had.
    pub cookie: Option<u64>,
}

/// Which pod a socket of this node belongs to. What is gone is remembered for a while: its last flows are still to be
/// named, and neither cookies nor cgroup numbers are used again.
#[derive(Debug, Default)]
pub(super) struct SocketMap {
    host: HostNetns,
    /// By cookie of the network namespace.
    pub(super) by_cookie: HashMap<u64, Located>,
    /// By inode of the network namespace, where its cookie can't be had.
    pub(super) by_inode: HashMap<u32, Located>,
    /// By inode of the cgroup.
    pub(super) by_cgroup: HashMap<u64, Located>,
    /// Cgroups made during the run, by their paths: they may be gone when they are looked for.
    made: BTreeMap<PathBuf, Made>,
    /// What was last asked of each network namespace's file.
    asked: HashMap<PathBuf, Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    inode: u64,
    cookie: Option<u64>,
    last: TimestampMs,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    id: u64,
    last: TimestampMs,
}

#[derive(Debug)]
pub(super) struct Located {
    pub(super) uid: Arc<str>,
    /// ID of the container, of a cgroup that is one's or below it.
    pub(super) container: Option<Arc<str>>,
    pub(super) last: TimestampMs,
}

impl SocketMap {
    pub(super) fn new(host: HostNetns) -> Self {
        Self { host, ..Self::default() }
    }

    /// The inode of the node's own network namespace.
    pub(super) const fn host_inode(&self) -> u32 {
        self.host.inode
    }

    /// A cgroup of a pod.
    pub(super) fn add_cgroup(&mut self, id: u64, path: &Path, uid: Arc<str>, now: TimestampMs) {
        self.by_cgroup.insert(id, Located { uid, container: container_id(path).map(Arc::from), last: now });
    }

    /// The ID of the container that a socket is of.
    pub(super) fn container(&self, socket: SocketOwner) -> Option<&Arc<str>> {
        self.by_cgroup.get(&socket.cgroup_id)?.container.as_ref()
    }

    /// The pod of a socket, and whether that is certain.
    pub(super) fn pod(&self, socket: SocketOwner) -> Option<(&Arc<str>, bool)> {
        let in_pod = !self.is_host(socket);
        let by_cookie = self.by_cookie.get(&socket.netns_cookie).filter(|_| in_pod).map(|located| (&located.uid, true));
        let by_inode =
            || self.by_inode.get(&socket.netns_inode).filter(|_| in_pod).map(|located| (&located.uid, false));
        let by_cgroup = || self.by_cgroup.get(&socket.cgroup_id).map(|located| (&located.uid, true));
        by_cookie.or_else(by_inode).or_else(by_cgroup)
    }

    /// Whether the cgroup is of another pod than the network namespace, which counts.
    pub(super) fn is_contradicted(&self, socket: SocketOwner) -> bool {
        let by_cgroup = self.by_cgroup.get(&socket.cgroup_id).map(|located| &located.uid);
        by_cgroup.is_some_and(|other| self.pod(socket).is_some_and(|(uid, _)| uid != other))
    }

    pub(super) fn is_host(&self, socket: SocketOwner) -> bool {
        socket.netns_inode == self.host.inode || self.host.cookie.is_some_and(|cookie| cookie == socket.netns_cookie)
    }

    pub(super) fn add_made(&mut self, path: PathBuf, id: u64, now: TimestampMs) {
        if self.made.len() >= CGROUPS {
            // Half of them, the older ones, make room.
            let mut times: Vec<i64> = self.made.values().map(|made| made.last.0).collect();
            times.sort_unstable();
            let median = times[times.len() / 2];
            self.made.retain(|_, made| made.last.0 > median);
        }
        self.made.insert(path, Made { id, last: now });
    }

    /// A pod's network namespace; whether it is there.
    pub(super) fn add_netns(&mut self, path: &Path, uid: &Arc<str>, now: TimestampMs) -> bool {
        let Some(Asked { inode, cookie, .. }) = self.ask(path, now) else { return false };
        let located = Located { uid: Arc::clone(uid), container: None, last: now };
        match cookie {
            Some(cookie) => drop(self.by_cookie.insert(cookie, located)),
            None => drop(self.by_inode.insert(inode as u32, located)),
        }
        true
    }

    /// What a network namespace's file says, which is asked of each once; `None` when it is gone.
    fn ask(&mut self, path: &Path, now: TimestampMs) -> Option<Asked> {
        let inode = inode(path)?;
        let known = self.asked.get(path).filter(|asked| asked.inode == inode);
        let cookie = known.map_or_else(|| netns::cookie(path), |asked| asked.cookie);
        let asked = Asked { inode, cookie, last: now };
        self.asked.insert(path.to_path_buf(), asked);
        Some(asked)
    }

    /// A network namespace within a pod, unless it is known to be another pod's.
    pub(super) fn add_netns_within(&mut self, path: &Path, uid: &Arc<str>, now: TimestampMs) {
        let Some(Asked { inode, cookie, .. }) = self.ask(path, now) else { return };
        let known = match cookie {
            Some(cookie) => self.by_cookie.get(&cookie),
            None => self.by_inode.get(&(inode as u32)),
        };
        if known.is_none_or(|located| located.uid == *uid) {
            self.add_netns(path, uid, now);
        }
    }

    /// A pod's cgroup and those of its containers below it; whether it is there.
    pub(super) fn add_cgroups(&mut self, directory: &Path, uid: &Arc<str>, now: TimestampMs) -> bool {
        let from_here = self.made.range::<Path, _>((Bound::Included(directory), Bound::Unbounded));
        let made: Vec<(u64, PathBuf)> = from_here
            .take_while(|(path, _)| path.starts_with(directory))
            .map(|(path, made)| (made.id, path.clone()))
            .collect();
        let there = inode(directory);
        for (id, path) in made.iter().map(|(id, path)| (*id, &**path)).chain(there.map(|id| (id, directory))) {
            self.add_cgroup(id, path, Arc::clone(uid), now);
        }
        if there.is_none() {
            return !made.is_empty();
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_cgroups(&entry.path(), uid, now);
            }
        }
        true
    }

    pub(super) fn forget(&mut self, now: TimestampMs) {
        let is_kept = |located: &Located| now.0 - located.last.0 < REMEMBERED_MS;
        self.by_cookie.retain(|_, located| is_kept(located));
        self.by_inode.retain(|_, located| is_kept(located));
        self.by_cgroup.retain(|_, located| is_kept(located));
        // A file that was away may be another namespace's when it is back.
        self.asked.retain(|_, asked| asked.last == now);
        self.made.retain(|_, made| now.0 - made.last.0 < REMEMBERED_MS);
    }
}

/// The ID of the container that a cgroup is of, by its path: all runtimes have 64 hexadecimal digits in the name of a
/// container's cgroup. Of containers within containers it is the outermost, which is the pod's; of nodes that are containers
/// themselves, what follows the pod's part.
fn container_id(path: &Path) -> Option<&str> {
    let path = path.to_str()?;
    let below_pod = path.find("kubepods").map_or(path, |at| &path[at..]);
    below_pod
        .split(|c: char| !c.is_ascii_alphanumeric())
        .find(|part| part.len() == CONTAINER_ID_DIGITS && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Tells of every directory below a cgroup's.
pub(super) fn walk(directory: &Path, found: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            found(&path);
            walk(&path, found);
        }
    }
}

/// The inode of a namespace file or a cgroup directory; `None` when it is gone.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// How long a pod's sockets are remembered after it is gone: longer than the longest window, an hour.
pub(super) const REMEMBERED_MS: i64 = 2 * 3_600_000;

const CONTAINER_ID_DIGITS: usize = 64;

/// Most cgroups that are remembered.
const CGROUPS: usize = 16_384;
