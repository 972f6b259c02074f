//! Where kubelet and the container runtimes put pods: which cgroups are whose, and in which network they are.
//!
//! A pod's UID is part of the path of its cgroup, in the usual layouts of all of them, so that a socket tells its pod
//! without a question to anybody. Which network namespace is the pod's is read off the process in its cgroups that began
//! first: the one that holds the sandbox.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::table::TimestampMs;

use super::inode;

/// The pods of this node as their cgroups show them.
#[derive(Debug)]
pub(super) struct Kubelet {
    pods: HashMap<Arc<str>, Place>,
    /// Where a hierarchy of cgroup v1 is, of whose new cgroups nothing is heard.
    cgroup1_root: Option<PathBuf>,
    next_walk: TimestampMs,
}

/// Where a pod is.
#[derive(Debug)]
struct Place {
    cgroups: Vec<PathBuf>,
    /// When its network is looked for next, and how long to wait after that.
    next_look: TimestampMs,
    pause_ms: i64,
}

impl Kubelet {
    pub(super) fn new(cgroup1_root: Option<PathBuf>) -> Self {
        Self { pods: HashMap::new(), cgroup1_root, next_walk: TimestampMs(0) }
    }

    /// Where a hierarchy of cgroup v1 is.
    pub(super) fn cgroup1_root(&self) -> Option<PathBuf> {
        self.cgroup1_root.clone()
    }

    /// Takes in a cgroup; the UID of the pod it belongs to.
    pub(super) fn add(&mut self, cgroup: &Path, now: TimestampMs) -> Option<Arc<str>> {
        let uid: Arc<str> = pod_uid(cgroup.to_str()?)?.into();
        let place = self.pods.entry(Arc::clone(&uid)).or_insert_with(|| Place::new(now));
        if !place.cgroups.iter().any(|known| known == cgroup) {
            place.cgroups.push(cgroup.to_path_buf());
            (place.next_look, place.pause_ms) = (now, FIRST_PAUSE_MS);
        }
        Some(uid)
    }

    /// Whether it is time to walk through all cgroups: news of one may have been lost, and what is gone is forgotten.
    pub(super) fn is_walk_due(&mut self, now: TimestampMs) -> bool {
        let is_due = now >= self.next_walk;
        if is_due {
            let pause_ms = if self.cgroup1_root.is_some() { WALK_CGROUP1_MS } else { WALK_MS };
            self.next_walk = TimestampMs(now.0 + pause_ms);
            self.pods.clear();
        }
        is_due
    }

    /// Pods whose networks are to be looked for now, and the files of these, if they are in others than the node's: they may
    /// not be yet, or never. The first one is the pod's own, others are of containers within it.
    pub(super) fn networks(&mut self, now: TimestampMs, host_inode: u32) -> Vec<(Arc<str>, Vec<PathBuf>)> {
        let due = self.pods.iter_mut().filter(|(_, place)| now >= place.next_look);
        due.map(|(uid, place)| {
            place.next_look = TimestampMs(now.0 + place.pause_ms);
            place.pause_ms = (place.pause_ms * 2).min(WALK_MS);
            (Arc::clone(uid), place.networks(host_inode))
        })
        .collect()
    }

    /// A pod's network was found.
    pub(super) fn found(&mut self, uid: &str) {
        if let Some(place) = self.pods.get_mut(uid) {
            place.next_look = TimestampMs(i64::MAX);
        }
    }
}

impl Place {
    fn new(now: TimestampMs) -> Self {
        Self { cgroups: Vec::new(), next_look: now, pause_ms: FIRST_PAUSE_MS }
    }

    /// The network namespaces of its processes, in the order in which these began, but for the node's: runtimes watch over a
    /// container from within its cgroup (CRI-O's conmon).
    fn networks(&self, host_inode: u32) -> Vec<PathBuf> {
        let processes = self.cgroups.iter().filter_map(|cgroup| fs::read_to_string(cgroup.join(PROCESSES)).ok());
        // The numbers of a cgroup's processes are in no order; a process of another PID namespace is 0.
        let ids = processes.flat_map(|text| text.lines().filter_map(|id| id.parse::<u32>().ok()).collect::<Vec<_>>());
        let mut began: Vec<_> = ids.filter(|id| *id != 0).filter_map(|id| Some((began(id)?, id))).collect();
        began.sort_unstable();
        let paths = began.iter().map(|(_, id)| PathBuf::from(format!("/proc/{id}/ns/net")));
        let mut met = HashSet::from([u64::from(host_inode)]);
        paths.filter(|path| inode(path).is_some_and(|inode| met.insert(inode))).collect()
    }
}

/// The UID of the pod that a cgroup belongs to, by its path: of a static pod, the hash of its manifest. Pods within pods
/// belong to the outermost one, which is the one of this cluster.
pub(super) fn pod_uid(path: &str) -> Option<String> {
    let mut is_below_pods = false;
    for part in path.split('/') {
        // containerd without its systemd driver puts containers below itself, as SLICE:PREFIX:ID.
        let part = part.split_once(':').map_or(part, |(slice, _)| slice);
        if let Some(uid) = by_systemd(part).or_else(|| if is_below_pods { by_cgroupfs(part) } else { None }) {
            return Some(uid);
        }
        is_below_pods |= part == "kubepods" || part.ends_with("-kubepods");
    }
    None
}

/// `kubepods-burstable-podUID.slice`, with underscores in the UID, and with a prefix where kubelet has a root of its own.
fn by_systemd(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice")?;
    let (parents, uid) = name.rsplit_once("-pod")?;
    let parents = parents.strip_suffix("-burstable").or(parents.strip_suffix("-besteffort")).unwrap_or(parents);
    let is_of_pods = parents == "kubepods" || parents.ends_with("-kubepods");
    uid_of(uid).filter(|_| is_of_pods)
}

/// `podUID`, anywhere below `kubepods`.
fn by_cgroupfs(part: &str) -> Option<String> {
    uid_of(part.strip_prefix("pod")?)
}

/// A UUID, whose dashes are underscores in systemd's names, or the 32 hexadecimal digits of a manifest's hash.
fn uid_of(text: &str) -> Option<String> {
    let text = text.replace('_', "-");
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let is_hex = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (is_hex && (groups == [8, 4, 4, 4, 12] || groups == [32])).then_some(text)
}

/// When a process began, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
fn began(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, field 2, may hold blanks and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

const PROCESSES: &str = "cgroup.procs";
const FIRST_PAUSE_MS: i64 = 1000;
const WALK_MS: i64 = 60_000;
const WALK_CGROUP1_MS: i64 = 5_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "1f0c9a2e-7c0f-4a52-9b1d-0123456789ab";
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    const ID: &str = "4fa6c0e1b5d24fa6c0e1b5d24fa6c0e1b5d24fa6c0e1b5d24fa6c0e1b5d24fa6";

    /// Paths as the runtimes make them; UID is the pod's, UID_ the same with underscores, HASH a static pod's.
    const LAYOUTS: [&str; 22] = [
        // systemd driver: containerd, CRI-O, docker; guaranteed, burstable, best effort.
        "/kubepods.slice/kubepods-podUID_.slice/cri-containerd-ID.scope",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope/container",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/crio-conmon-ID.scope",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/docker-ID.scope",
        "/kubepods.slice/kubepods-podUID_.slice",
        // cgroupfs driver.
        "/kubepods/podUID/ID",
        "/kubepods/burstable/podUID/ID",
        "/kubepods/besteffort/podUID/crio-ID",
        "/kubepods/burstable/podUID",
        // Static pods.
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podHASH.slice/cri-containerd-ID.scope",
        "/kubepods/burstable/podHASH/ID",
        // cgroup v1, as its mounts show it.
        "/sys/fs/cgroup/memory/kubepods/burstable/podUID/ID",
        "/sys/fs/cgroup/pids/kubepods.slice/kubepods-podUID_.slice/docker-ID.scope",
        // kind and other nodes in containers, and kubelet's --cgroup-root.
        "/system.slice/docker-ID.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
        "/docker/ID/kubelet/kubepods/besteffort/podUID/ID",
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID_.slice/cri-containerd-ID.scope",
        // containerd without SystemdCgroup below a systemd kubelet.
        "/system.slice/containerd.service/kubepods-burstable-podUID_.slice:cri-containerd:ID",
        // A cluster within a pod.
        "/kubepods/burstable/podUID/ID/kubelet/kubepods/burstable/podOTHER/ID",
        "/kubepods.slice/kubepods-podUID_.slice/cri-containerd-ID.scope/system.slice/app.service",
    ];

    fn fill(layout: &str, uid: &str) -> String {
        let other = "ffffffff-7c0f-4a52-9b1d-0123456789ab";
        let underscores = uid.replace('-', "_");
        let path = layout.replace("podUID_", &format!("pod{underscores}")).replace("podUID", &format!("pod{uid}"));
        path.replace("HASH", HASH).replace("OTHER", other).replace("ID", ID)
    }

    #[test]
    fn every_layout_tells_its_pod() {
        for layout in LAYOUTS {
            let wanted = if layout.contains("HASH") { HASH } else { UID };
            assert_eq!(pod_uid(&fill(layout, UID)).as_deref(), Some(wanted), "{layout}");
        }
    }

    #[test]
    fn what_is_no_pod_is_none() {
        let none = [
            "/",
            "",
            "/system.slice/kubelet.service",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods/burstable",
            "/user.slice/user-1000.slice/session-1.scope",
            "/podUID/ID",
            "/machine.slice/libpod-ID.scope",
            "/kubepods/burstable/pod../etc",
            "/kubepods/burstable/podabc/ID",
            "/system.slice/my-podUID_.slice",
        ];
        for path in none {
            assert_eq!(pod_uid(&fill(path, UID)), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_uid_survives_every_layout(uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}") {
            for layout in LAYOUTS.iter().filter(|layout| !layout.contains("HASH")) {
                prop_assert_eq!(pod_uid(&fill(layout, &uid)), Some(uid.clone()));
            }
        }

        #[test]
        fn any_text_gives_a_uid_or_nothing(path in "(/(kubepods|pod|[a-f0-9_:.-]{0,40}|kubepods-pod[a-f0-9_]{30,38}\\.slice)){0,6}") {
            if let Some(uid) = pod_uid(&path) {
                prop_assert!(uid_of(&uid).is_some() && path.replace('_', "-").contains(&uid));
            }
        }

        #[test]
        fn no_text_is_too_odd(path in any::<String>()) {
            let _ = pod_uid(&path);
        }
    }
}
