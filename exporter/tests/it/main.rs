//! `flowscribe-exporter` from outside: its command line and its errors. What it records is tested in the lab.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::{Command, Output},
};

fn exporter(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowscribe-exporter")).args(arguments).output().expect("the exporter starts")
}

/// Exit code and standard error.
fn failure(arguments: &[&str]) -> (Option<i32>, String) {
    let output = exporter(arguments);
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

/// Says that a test did not run; past the capture of a test's output, so that it is seen.
fn skip(test: &str, reason: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {reason}");
}

#[test]
fn help_explains_every_flag_with_its_variable_and_default() {
    let help = String::from_utf8(exporter(&["--help"]).stdout).expect("text");
    insta::assert_snapshot!("help", help);
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    assert_eq!(exporter(&[]).status.code(), Some(2));
    let (code, said) = failure(&["--output", "x", "--window", "7s"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("must divide an hour"), "{said}");
}

#[test]
fn a_wrong_inventory_is_named_before_anything_is_recorded() {
    let directory = tempfile::tempdir().expect("a directory");
    let (inventory, output) = (directory.path().join("inventory.yaml"), directory.path().join("capture"));
    fs::write(&inventory, "pods:\n  - name: web\n").expect("written");
    let (inventory, output) = (inventory.to_string_lossy(), output.to_string_lossy());
    let (code, said) = failure(&["--output", &output, "--inventory", &inventory]);
    assert_eq!(code, Some(1));
    let named = format!("flowscribe-exporter: cannot learn who the pods are: inventory {inventory} is not valid: ");
    assert!(said.starts_with(&named) && said.contains("missing field `namespace`"), "{said}");
    let (code, said) = failure(&["--output", &output, "--inventory", "/nowhere.yaml"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot read inventory /nowhere.yaml: No such file"), "{said}");
    assert!(!Path::new(&*output).exists(), "nothing was begun");
}

#[test]
fn an_output_that_can_not_be_made_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return skip("an_output_that_can_not_be_made_is_named", "it needs root");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "in the way").expect("written");
    let (code, said) = failure(&["--output", &file.join("capture").to_string_lossy()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("a file is given up"), "{said}");
    let named =
        format!("flowscribe-exporter: cannot write to {}, as told above: make room", file.join("capture").display());
    assert!(said.contains(&named), "{said}");
}

#[test]
fn missing_capabilities_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let mut command = if nix::unistd::geteuid().is_root() {
        // Root without what it takes, rather than another user, who may not be able to reach this program.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin,-bpf,-perfmon,-net_admin", "--"]);
        command.arg(env!("CARGO_BIN_EXE_flowscribe-exporter"));
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_flowscribe-exporter"))
    };
    let output = command.arg("--output").arg(&output).output().expect("setpriv (util-linux) or the exporter starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let named = "flowscribe-exporter: cannot watch the kernel's sockets: missing CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF: \
                 run as root, or grant these capabilities\n";
    assert!(said.ends_with(named), "{said}");
}

#[test]
fn a_cgroup_that_is_not_one_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a_cgroup_that_is_not_one_is_named", "it needs root");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture").to_string_lossy().into_owned();
    let (code, said) = failure(&["--output", &output, "--cgroup", "/nowhere"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot open cgroup /nowhere: name a cgroup v2 directory with --cgroup"), "{said}");
    let (code, said) = failure(&["--output", &output, "--cgroup", &directory.path().to_string_lossy()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("with --cgroup: not of a cgroup2 file system"), "{said}");
}

/// What `doctor` says with these capabilities taken away.
fn doctor(without: &[&str]) -> (Option<i32>, String) {
    let bounding = without.iter().map(|name| format!("-{name}")).collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    if !without.is_empty() {
        command.arg(format!("--bounding-set={bounding}"));
    }
    let output = command.arg("--").arg(env!("CARGO_BIN_EXE_flowscribe-exporter")).arg("doctor").output();
    let output = output.expect("setpriv (util-linux) starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The table of capabilities in the README, measured: each is dropped, and what is then missing is what it is for.
#[test]
fn each_capability_costs_what_the_readme_says() {
    let test = "each_capability_costs_what_the_readme_says";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "it needs root");
    }
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
}

#[test]
fn a_container_that_sees_only_its_own_cgroups_is_told() {
    let test = "a_container_that_sees_only_its_own_cgroups_is_told";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "it needs root");
    }
    let mount = fs::read_to_string("/proc/mounts").expect("it is there");
    let mount = mount.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    let Some(mount) = mount.map(|fields| fields[1].to_owned()) else { return skip(test, "no cgroup2 mount") };
    let cgroup = format!("{mount}/flowscribe-test-{}", std::process::id());
    fs::create_dir(&cgroup).expect("root may make a cgroup");
    // As a container runtime does: a cgroup namespace of its own, and that mounted where the node's was.
    let script = "echo $$ > $0/cgroup.procs && exec unshare --cgroup --mount sh -c \
                  'umount $0 && mount -t cgroup2 none $0 && exec $1 doctor' $1 $2";
    let output =
        Command::new("sh").args(["-c", script, &cgroup, &mount, env!("CARGO_BIN_EXE_flowscribe-exporter")]).output();
    fs::remove_dir(&cgroup).expect("what was in it has ended");
    let output = output.expect("a shell starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("the cgroup2 mount shows a part of the hierarchy"), "{said} {output:?}");
    assert!(said.contains("only sockets of this container"), "{said}");
}

#[test]
fn settings_that_can_not_be_used_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("settings.yaml");
    fs::write(&path, "windows: 5m").expect("written");
    let (code, said) = failure(&["--config", &path.to_string_lossy()]);
    assert_eq!(code, Some(2));
    let named =
        format!("settings {}: unknown name `windows`; the names are those of the flags in --help", path.display());
    assert!(said.contains(&named), "{said}");
    let (code, said) = failure(&[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("give --output DIR, --otlp, --live-address"), "{said}");
}
