//! Cgroups of the lab: joining and removing them.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Moves this process to a cgroup; sockets keep the cgroup they were made in.
///
/// # Errors
/// The cgroup is not there or may not be joined.
pub(crate) fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("join cgroup {}", cgroup.display()))
}

/// Cleans up after a lab: waits until the processes of its cgroups are gone, and removes the cgroups.
///
/// # Errors
/// A cgroup is still in use after minutes.
pub(crate) fn remove_cgroups(root: &Path) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match remove_tree(root) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Removes a cgroup after those below it.
pub(crate) fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_tree(&entry.path())?;
    }
    fs::remove_dir(cgroup)
}

/// Nothing takes so long on the slowest machine.
const TIMEOUT: Duration = Duration::from_secs(180);
