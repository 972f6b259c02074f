//! Programs of others on the hooks that this agent uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use schemas::event::ProgramEntry;

use super::{TCP, syscall, walk};

/// A program of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Its number, by which `bpftool prog show id` finds it.
    id: u32,
    /// Its name, where it has one and the kernel could be asked.
    name: Option<String>,
}

impl Display for Neighbour {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "program {}", self.id)?;
        self.name.iter().try_for_each(|name| write!(out, " `{name}`"))
    }
}

/// Names of the programs of the machine.
#[derive(Debug)]
pub(super) struct Names(Option<OwnedFd>);

impl Names {
    /// As an iterator program reads them, where there is one.
    pub(super) const fn new(program: Option<OwnedFd>) -> Self {
        Self(program)
    }

    /// Programs that have a hook of a cgroup for themselves; empty where nobody has.
    pub(super) fn exclusive(&self, cgroup: &File, attach_type: u32) -> Vec<Neighbour> {
        match syscall::attached_to(cgroup.as_fd(), attach_type) {
            Ok((ids, false)) => self.of(&ids.into_iter().collect()),
            _ => Vec::new(),
        }
    }

    /// `sock_ops` programs of others on a cgroup and on those below, agents of this kind left out.
    pub(super) fn sock_ops(&self, cgroup: &Path) -> Vec<Neighbour> {
        let (mut ids, mut folders) = (BTreeSet::new(), vec![cgroup.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            let attached = File::open(&folder).and_then(|file| syscall::attached_to(file.as_fd(), BPF_CGROUP_SOCK_OPS));
            ids.extend(attached.map(|(ids, _)| ids).unwrap_or_default());
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|of| of.is_dir()));
            folders.extend(below.map(|entry| entry.path()));
        }
        let mut found = self.of(&ids);
        found.retain(|neighbour| neighbour.name.as_deref() != Some(TCP));
        found
    }

    fn of(&self, ids: &BTreeSet<u32>) -> Vec<Neighbour> {
        let program = self.0.as_ref().filter(|_| !ids.is_empty());
        let written = program.and_then(|program| walk::walk(program.as_fd(), None).ok()).unwrap_or_default();
        let names: BTreeMap<u32, String> = written.chunks_exact(size_of::<ProgramEntry>()).map(entry).collect();
        ids.iter()
            .map(|id| Neighbour { id: *id, name: names.get(id).filter(|name| !name.is_empty()).cloned() })
            .collect()
    }
}

/// Number and name in the bytes of a [`ProgramEntry`].
fn entry(bytes: &[u8]) -> (u32, String) {
    let (id, name) = bytes.split_at(size_of::<u32>());
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    (u32::from_ne_bytes(id.try_into().unwrap_or_default()), String::from_utf8_lossy(name).into_owned())
}

/// `BPF_CGROUP_SOCK_OPS` of the kernel's user API.
pub(super) const BPF_CGROUP_SOCK_OPS: u32 = 3;
