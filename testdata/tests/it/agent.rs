//! `flowscribe-exporter` from outside, where that takes root: its errors, and what it says of what it may do.

use std::{fs, path::Path, process::Command};

use crate::{
    harness::{Missing, Ran, require},
    support::executable,
};

tests![
    an_output_that_can_not_be_made_is_named,
    a_cgroup_that_is_not_one_is_named,
    each_capability_costs_what_the_readme_says,
    a_container_that_sees_only_its_own_cgroups_is_told,
];

fn require_root() -> Ran {
    require(nix::unistd::geteuid().is_root(), "it needs root")
}

/// Exit code and standard error.
fn failure(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(executable()).arg("exporter").args(arguments).output().expect("the exporter starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

fn an_output_that_can_not_be_made_is_named() -> Ran {
    require_root()?;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "in the way").expect("written");
    let (code, said) = failure(&["--output", &file.join("capture").to_string_lossy()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("a file is given up"), "{said}");
    let named =
        format!("flowscribe-exporter: cannot write to {}, as told above: make room", file.join("capture").display());
    assert!(said.contains(&named), "{said}");
    Ok(())
}

fn a_cgroup_that_is_not_one_is_named() -> Ran {
    require_root()?;
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture").to_string_lossy().into_owned();
    let (code, said) = failure(&["--output", &output, "--cgroup", "/nowhere"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot open cgroup /nowhere: name a cgroup v2 directory with --cgroup"), "{said}");
    let (code, said) = failure(&["--output", &output, "--cgroup", &directory.path().to_string_lossy()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("with --cgroup: not of a cgroup2 file system"), "{said}");
    Ok(())
}

/// What `doctor` says with these capabilities taken away.
fn doctor(without: &[&str]) -> (Option<i32>, String) {
    let bounding = without.iter().map(|name| format!("-{name}")).collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    if !without.is_empty() {
        command.arg(format!("--bounding-set={bounding}"));
    }
    let output = command.arg("--").arg(executable()).args(["exporter", "doctor"]).output();
    let output = output.expect("setpriv (util-linux) starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The table of capabilities in the README, measured: each is dropped, and what is then missing is what it is for.
fn each_capability_costs_what_the_readme_says() -> Ran {
    require_root()?;
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).expect("it is there");
    let (code, whole) = doctor(&[]);
    assert_eq!(code, Some(0), "{whole}");
    assert!(whole.contains("ok       recording TCP") && !whole.contains("MISSING  recording"), "{whole}");
    // CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON: only without it do they matter.
    let table = [
        (&["net_admin"][..], "| `CAP_NET_ADMIN` | TCP, UDP |", Some(1), "MISSING  recording TCP"),
        (&["bpf", "sys_admin"], "| `CAP_BPF` | TCP, UDP, scan |", Some(1), "MISSING  recording TCP"),
        (&["perfmon", "sys_admin"], "| `CAP_PERFMON` | TCP, UDP, scan |", Some(1), "MISSING  recording TCP"),
        (&["sys_admin"], "| `CAP_SYS_ADMIN` | identity |", Some(0), "MISSING  namespace cookies"),
        (&["sys_ptrace"], "| `CAP_SYS_PTRACE` | identity |", Some(0), "MISSING  CAP_SYS_PTRACE"),
    ];
    for (dropped, row, code, missing) in table {
        let (found, said) = doctor(dropped);
        assert_eq!(found, code, "without {dropped:?}: {said}");
        assert!(said.contains(missing), "without {dropped:?}: {said}");
        assert_eq!(said.contains("ok       recording TCP"), code == Some(0), "without {dropped:?}: {said}");
        assert!(!said.contains("MISSING  recording:"), "no part fails alone here: {said}");
        assert!(readme.contains(row), "the README has: {row}");
    }
    Ok(())
}

fn a_container_that_sees_only_its_own_cgroups_is_told() -> Ran {
    require_root()?;
    let mount = fs::read_to_string("/proc/mounts").expect("it is there");
    let mount = mount.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    let mount = mount.map(|fields| fields[1].to_owned()).ok_or_else(|| Missing("it needs a cgroup2 mount".into()))?;
    let cgroup = format!("{mount}/flowscribe-test-{}", std::process::id());
    fs::create_dir(&cgroup).expect("root may make a cgroup");
    // As a container runtime does: a cgroup namespace of its own, and that mounted where the node's was.
    let script = "echo $$ > $0/cgroup.procs && exec unshare --cgroup --mount sh -c \
                  'umount $0 && mount -t cgroup2 none $0 && exec $1 exporter doctor' $1 $2";
    let output = Command::new("sh").args(["-c", script, &cgroup, &mount, &executable().to_string_lossy()]).output();
    fs::remove_dir(&cgroup).expect("what was in it has ended");
    let output = output.expect("a shell starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("the cgroup2 mount shows a part of the hierarchy"), "{said} {output:?}");
    assert!(said.contains("only sockets of this container"), "{said}");
    Ok(())
}
