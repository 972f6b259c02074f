//! `flowscribe-exporter` from outside: its command line and its errors. What it records is tested in the lab, and
//! what takes root is tested there too.

use std::{
    fs,
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

#[test]
fn nobody_who_reads_is_no_crash() {
    let program = env!("CARGO_BIN_EXE_flowscribe-exporter");
    for command in ["--help", "doctor", "--output x --window 7s", "--output /dev/null/x", "--config nowhere.yaml"] {
        for readers in [">&- 2>&-", "2>&-", ">/dev/full 2>/dev/full", "2>&1 | true"] {
            let script = format!("set -o pipefail; RUST_LOG=debug {program} {command} {readers}");
            let ended = Command::new("bash").args(["-c", &script]).output().expect("a shell runs");
            let status = ended.status.code().expect("it ends by itself");
            // 141 would be SIGPIPE, 101 a panic, 134 an abort.
            assert!(status <= 2, "{command} {readers}: {status}");
        }
    }
}
