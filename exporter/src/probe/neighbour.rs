//! Programs of others on the hooks that this agent uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
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

/// What is known of `sock_ops` programs of others around a cgroup.
#[derive(Debug)]
pub(super) struct Neighbours {
    names: Names,
    /// The cgroup that is watched.
    cgroup: PathBuf,
    /// Number of the agent's own program there.
    own: u32,
    /// Sockets found without their flag, when they were counted last.
    missing: u64,
    /// Programs that may take flags away.
    found: BTreeSet<Neighbour>,
    /// Flags were missing, and the programs named for it.
    are_suspected: bool,
}

/// `sock_ops` programs of others that may overwrite callback flags.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// Their numbers and names.
    pub programs: String,
    /// Flags were found missing.
    pub overwrite: bool,
}

impl Neighbours {
    pub(super) fn new(names: Names, cgroup: &Path, own: u32) -> Self {
        let cgroup = fs::canonicalize(cgroup).unwrap_or_else(|_| cgroup.to_path_buf());
        Self { names, cgroup, own, missing: 0, found: BTreeSet::new(), are_suspected: false }
    }

    /// Nobody is to blame for the flags that are missing so far.
    pub(super) const fn forgive(&mut self, missing: u64) {
        self.missing = missing;
    }

    /// Whether none was found.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Looks around, given how many sockets were found without their flag; returns all programs that were found, when one
    /// is new, or when flags are missing for the first time.
    pub(super) fn look(&mut self, missing: u64) -> Option<Suspects> {
        let overwrite = std::mem::replace(&mut self.missing, missing) != missing;
        let (names, cgroup) = (&self.names, &self.cgroup);
        let found = if overwrite { names.around(cgroup, self.own) } else { names.after(cgroup, self.own) };
        let is_first = overwrite && !self.are_suspected && !found.is_empty();
        let is_news = is_first || !found.is_subset(&self.found);
        self.found.extend(found);
        self.are_suspected |= is_first;
        is_news.then(|| Suspects { programs: list(&self.found), overwrite })
    }
}

/// Programs as a sentence names them.
pub(super) fn list<'n>(neighbours: impl IntoIterator<Item = &'n Neighbour>) -> String {
    neighbours.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
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

    /// `sock_ops` programs of others that run after the program `own` of a cgroup, and have the last word on callback flags.
    fn after(&self, cgroup: &Path, own: u32) -> BTreeSet<Neighbour> {
        self.others(&ids_after(cgroup, own))
    }

    /// `sock_ops` programs of others wherever they see a socket of a cgroup: on it, above and below.
    fn around(&self, cgroup: &Path, own: u32) -> BTreeSet<Neighbour> {
        let (mut ids, mut folders) = (ids_after(cgroup, own), vec![cgroup.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            ids.extend(attached_sock_ops(&folder).unwrap_or_default());
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|of| of.is_dir()));
            folders.extend(below.map(|entry| entry.path()));
        }
        ids.remove(&own);
        self.others(&ids)
    }

    /// Programs, without those of other agents of this kind, which keep the flags that are set.
    fn others(&self, ids: &BTreeSet<u32>) -> BTreeSet<Neighbour> {
        let found = self.of(ids).into_iter();
        found.filter(|neighbour| neighbour.name.as_deref() != Some(TCP)).collect()
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

/// Numbers of the `sock_ops` programs that run after the program `own` of a cgroup: those behind it there, and those of the
/// cgroups above. Programs of cgroups below run first.
fn ids_after(cgroup: &Path, own: u32) -> BTreeSet<u32> {
    let here = attached_sock_ops(cgroup).unwrap_or_default().into_iter().skip_while(|id| *id != own).skip(1);
    // The mount's parent is of another file system, where the query fails and ends this.
    let above = cgroup.ancestors().skip(1).map(attached_sock_ops).map_while(Result::ok);
    here.chain(above.flatten()).collect()
}

/// Numbers of the `sock_ops` programs of a cgroup itself, in the order in which they run.
fn attached_sock_ops(cgroup: &Path) -> io::Result<Vec<u32>> {
    syscall::attached_to(File::open(cgroup)?.as_fd(), BPF_CGROUP_SOCK_OPS).map(|(ids, _)| ids)
}

/// Number and name in the bytes of a [`ProgramEntry`].
fn entry(bytes: &[u8]) -> (u32, String) {
    let (id, name) = bytes.split_at(size_of::<u32>());
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    (u32::from_ne_bytes(id.try_into().unwrap_or_default()), String::from_utf8_lossy(name).into_owned())
}

/// `BPF_CGROUP_SOCK_OPS` of the kernel's user API.
pub(super) const BPF_CGROUP_SOCK_OPS: u32 = 3;
