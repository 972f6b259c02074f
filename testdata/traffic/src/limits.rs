//! Runs a program with as few capabilities as the agent has in its container.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};
use caps::{CapSet, Capability};
use nix::sys::prctl::set_no_new_privs;

/// Parses a capability's name, without `CAP_`.
pub(crate) fn capability(name: &str) -> Result<Capability, String> {
    format!("CAP_{name}").parse().map_err(|_| "not a capability that this program knows".into())
}

/// Replaces this process by a program that has no capabilities but these.
///
/// A program that root starts gets what the bounding set has, and nothing else.
///
/// # Errors
/// The kernel refuses, or the program cannot be started: this returns only then.
pub(crate) fn run(keep: &[Capability], program: &[OsString]) -> Result<()> {
    for capability in caps::all() {
        let is_unwanted = !keep.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)?;
        if is_unwanted {
            caps::drop(None, CapSet::Bounding, capability).with_context(|| format!("drop {capability}"))?;
        }
    }
    caps::clear(None, CapSet::Inheritable).context("clear the inheritable capabilities")?;
    set_no_new_privs().context("forbid new privileges")?;
    let (name, arguments) = program.split_first().context("name a program")?;
    let error = Command::new(name).args(arguments).exec();
    Err(error).with_context(|| format!("start {}", name.display()))
}
