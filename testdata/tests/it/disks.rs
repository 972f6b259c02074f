//! Disks that do not answer, and captures of very many files: Ctrl-C is heard all the same. Disks that are full.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    harness::Ran,
    support::{executable, flowscribe, small_disk, stalled_disk, wait_until},
};

tests![
    ctrl_c_is_heard_while_a_disk_does_not_answer,
    ctrl_c_is_heard_while_many_files_are_opened,
    a_full_disk_keeps_the_whole_set_that_was_there,
    a_file_that_can_not_be_replaced_keeps_the_whole_set_that_was_there,
    ctrl_c_is_heard_before_anything_is_recorded,
];

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(executable());
    command.arg("flowscribe").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("flowscribe starts")
}

/// Whether a thread of a program waits in one of the kernel's functions whose names have one of these parts.
fn waits_in(child: &Child, parts: &[&str]) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs").flatten();
    let waits = |thread: fs::DirEntry| {
        let function = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
        parts.iter().any(|part| function.contains(part))
    };
    threads.into_iter().any(waits)
}

/// Whether a program waits for the disk that does not answer.
fn waits_for_disk(child: &Child) -> bool {
    waits_in(child, &["fuse"])
}

fn press_ctrl_c(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
}

/// What a program ended with, and what it said.
fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
    (child.wait().expect("it ends").code(), said)
}

fn ctrl_c_is_heard_while_a_disk_does_not_answer() -> Ran {
    let disk = stalled_disk()?;
    let there = disk.path().join("x").to_string_lossy().into_owned();
    let directory = tempfile::tempdir().expect("a directory");
    let [input, policy] =
        ["demo", "policy.yaml"].map(|name| directory.path().join(name).to_string_lossy().into_owned());
    fs::write(
        &policy,
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}",
    )
    .expect("written");
    let capture = concat!(env!("CARGO_MANIFEST_DIR"), "/captures/demo");
    let commands: [&[&str]; 10] = [
        &["report", "--input", &there],
        &["report", "--input", capture, "--output", &there],
        &["report", "--input", capture, "--decisions", &there],
        &["sets", "--input", &there],
        &["sql", "--input", &there, "select 1"],
        &["diff", &policy, &there],
        &["connectivity", "--manifests", &there],
        &["compact", "--input", &there],
        &["import", "--input", &there, "--output", &input],
        &["receive", "--output", &there, "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"],
    ];
    for arguments in commands {
        let child = start(arguments);
        wait_until("it waits for the disk", || waits_for_disk(&child));
        press_ctrl_c(&child);
        let (code, said) = ended(child);
        assert_eq!(code, Some(130), "{arguments:?}: {said}");
        assert!(said.contains("flowscribe: interrupted, nothing was written"), "{arguments:?}: {said}");
    }
    Ok(())
}

fn ctrl_c_is_heard_while_many_files_are_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let day = directory.path().join("flows/date=2026-11-01");
    fs::create_dir_all(&day).expect("made");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/demo/flows");
    let file = walk(&demo).expect("the demo has flows");
    fs::copy(&file, day.join("lab-0.parquet")).expect("copied");
    for number in 1..100_000 {
        fs::hard_link(day.join("lab-0.parquet"), day.join(format!("lab-{number}.parquet")))
            .or_else(|_| fs::copy(&file, day.join(format!("lab-{number}.parquet"))).map(drop))
            .expect("linked");
    }
    let input = directory.path().to_string_lossy().into_owned();
    let child = start(&["report", "--input", &input]);
    let opened = || {
        let io = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
        let calls = io.lines().find_map(|line| line.strip_prefix("syscr: ")?.parse::<u64>().ok());
        calls.is_some_and(|calls| calls > 300)
    };
    wait_until("some files are opened", opened);
    press_ctrl_c(&child);
    let (code, said) = ended(child);
    assert_eq!(code, Some(130), "{said}");
    assert!(!said.contains("skipped"), "{said}");
}

fn a_full_disk_keeps_the_whole_set_that_was_there() -> Ran {
    let disk = small_disk(2 << 20)?;
    let (policies, filler) = (disk.path().join("policies"), disk.path().join("filler"));
    let capture = concat!(env!("CARGO_MANIFEST_DIR"), "/captures/demo");
    let output = format!("{}/", policies.display());
    let report = || flowscribe(&["report", "--input", capture, "--output", &output]);
    let files = || -> BTreeMap<String, String> {
        let entries = fs::read_dir(&policies).expect("it is there").flatten();
        let read = |entry: fs::DirEntry| {
            let text = fs::read_to_string(entry.path()).expect("text");
            (entry.file_name().to_string_lossy().into_owned(), text)
        };
        entries.map(read).collect()
    };
    assert!(report().status.success());
    let new = files();
    assert!(new.len() > 12, "{:?}", new.keys());
    // As an older version may have written them: every one is to be replaced.
    for (name, text) in new.iter().filter(|(name, _)| name.ends_with(".yaml")) {
        fs::write(policies.join(name), format!("{text}# older\n")).expect("written");
    }
    let old = files();
    // There is room for some of the new files, not for all.
    let filled = fs::File::create(&filler).and_then(|mut file| std::io::copy(&mut std::io::repeat(0), &mut file));
    assert!(filled.is_err(), "the disk is full");
    let length = fs::metadata(&filler).expect("it is there").len();
    fs::OpenOptions::new().write(true).open(&filler).and_then(|file| file.set_len(length - (20 << 10))).expect("cut");
    let refused = report();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("No space left on device"), "{said}");
    assert_eq!(files(), old, "neither replaced nor left behind");
    fs::remove_file(&filler).expect("it is there");
    assert!(report().status.success());
    assert_eq!(files(), new);
    Ok(())
}

fn a_file_that_can_not_be_replaced_keeps_the_whole_set_that_was_there() -> Ran {
    let disk = small_disk(4 << 20)?;
    let policies = disk.path().join("policies");
    let capture = concat!(env!("CARGO_MANIFEST_DIR"), "/captures/demo");
    let output = format!("{}/", policies.display());
    let report = || flowscribe(&["report", "--input", capture, "--output", &output]);
    assert!(report().status.success());
    let names = || {
        let entries = fs::read_dir(&policies).expect("it is there").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<BTreeSet<_>>()
    };
    let expected = names();
    for name in expected.iter().filter(|name| name.ends_with(".yaml")) {
        let path = policies.join(name);
        let text = fs::read_to_string(&path).expect("text");
        fs::write(&path, format!("{text}# older\n")).expect("written");
    }
    // Nothing can be renamed over what something is mounted on.
    let held = policies.join("kustomization.yaml");
    mount(Some(&held), &held, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mounted");
    let refused = report();
    umount2(&held, MntFlags::MNT_DETACH).expect("it is mounted");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("kustomization.yaml"), "{said}");
    let is_older =
        |name: &&String| fs::read_to_string(policies.join(name)).is_ok_and(|text| text.ends_with("# older\n"));
    assert_eq!(names(), expected, "nothing is left behind");
    let yaml: Vec<_> = expected.iter().filter(|name| name.ends_with(".yaml")).collect();
    assert!(yaml.iter().copied().all(|name| is_older(&name)), "all are as they were");
    assert!(report().status.success());
    assert!(!yaml.iter().copied().any(|name| is_older(&name)));
    Ok(())
}

fn ctrl_c_is_heard_before_anything_is_recorded() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (pipe, output) = (at("pipe"), at("capture"));
    nix::unistd::mkfifo(Path::new(&pipe), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let commands: [&[&str]; 3] = [
        &[
            "flowscribe",
            "receive",
            "--output",
            &output,
            "--token-file",
            &pipe,
            "--grpc-address",
            "127.0.0.1:0",
            "--http-address",
            "127.0.0.1:0",
        ],
        &["flowscribe", "monitor", "--output", &output, "--kubeconfig", &pipe],
        &["exporter", "--output", &output, "--inventory", &pipe],
    ];
    for arguments in commands {
        let mut command = Command::new(executable());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("it starts");
        let waits = || waits_in(&child, &["fifo_open", "wait_for_partner"]);
        wait_until(&format!("{arguments:?} waits for the pipe"), waits);
        press_ctrl_c(&child);
        let (code, said) = ended(child);
        // The agent does not listen to the signal before it records, and is ended by it.
        let expected = if arguments[0] == "flowscribe" { Some(130) } else { None };
        assert_eq!(code, expected, "{arguments:?}: {said}");
    }
}

/// A Parquet file below a directory.
fn walk(directory: &Path) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find_map(|path| {
        if path.is_dir() { walk(&path) } else { path.extension().is_some_and(|of| of == "parquet").then_some(path) }
    })
}
