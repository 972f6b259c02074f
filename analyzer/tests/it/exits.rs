//! How every command ends: by the one table, which help and README show.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use crate::support::{DB, flowscribe, web_and_db};

const POLICY: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: demo}, \
    spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}}";
const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: demo, labels: {app: web}}, spec: {containers: [{name: c}]}}";

fn status(arguments: &[&str]) -> (Option<i32>, String) {
    let output = flowscribe(arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn whatever_can_not_be_decided_exits_with_2_and_says_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let [empty, notes, policy, bad, deep, out] =
        ["empty", "notes.yaml", "policy.yaml", "bad.yaml", "deep.yaml", "out"].map(at);
    fs::create_dir(&empty).expect("made");
    fs::write(&notes, "# nothing\n").expect("written");
    fs::write(&policy, POLICY).expect("written");
    fs::write(&bad, POLICY.replace("Ingress", "Inress")).expect("written");
    fs::write(&deep, "[".repeat(200_000)).expect("written");
    let capture = web_and_db().write();
    let capture = &*capture.path().to_string_lossy();
    let nowhere = "/nowhere/at/all";
    let damaged = web_and_db().write();
    let mut folders = vec![damaged.path().join("flows")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                fs::write(entry.path(), "PAR1 cut short").expect("written");
            }
        }
    }
    let damaged = &*damaged.path().to_string_lossy();
    let unreadable = "no flows can be read, as listed above";
    let cases: [(&[&str], &str); 43] = [
        (&["report", "--input", damaged], unreadable),
        (&["sets", "--input", damaged], unreadable),
        (&["explain", "demo/web", "--input", damaged], unreadable),
        (&["sql", "--input", damaged, "select * from flows"], unreadable),
        (&["regenerate", "--input", damaged, "--output", &out], unreadable),
        (&["diff", &policy, &policy, "--input", damaged], unreadable),
        (&["diff", &policy, &policy, "--input", &empty], "no capture in"),
        (&["diff", &policy, &policy, "--input", &notes], "no capture in"),
        (&["diff", &policy, &policy, "--manifests", &empty], "no manifests of pods"),
        (&["diff", &policy, &policy, "--manifests", &notes], "no manifests of pods"),
        (&["diff", &policy, &policy, "--manifests", &deep], "it is nested too deeply"),
        (&["prune", "--input", &empty, "--older-than", "1d"], "no capture in"),
        (&["report", "--input", nowhere], "cannot read input /nowhere/at/all"),
        (&["report", "--input", &empty], "no capture in"),
        (&["report", "--input", &notes], "no capture in"),
        (&["report", "--input", capture, "--namespaces", "dmeo"], "no pod of dmeo is known, only some of demo"),
        (&["report", "--input", capture, "--decisions", nowhere], "/nowhere/at/all"),
        (&["report", "--inptu", capture], "unexpected argument"),
        (&["sets", "--input", nowhere], "cannot read input"),
        (&["sets", "--input", &empty], "no capture in"),
        (&["sets", "--input", capture, "--namespaces", "*"], "no pod of * is known"),
        (&["explain", "demo/nobody", "--input", capture], "no policy or workload demo/nobody"),
        (&["explain", "demo/web", "--input", &empty], "no capture in"),
        (&["sql", "--input", capture, ""], "there is no query"),
        (&["sql", "--input", capture, "select * from communicatons"], "communicatons"),
        (&["sql", "--input", nowhere, "select 1"], "cannot read input"),
        (&["backtest", "--input", &empty], "no flows"),
        (&["compact", "--input", &empty], "no capture in"),
        (&["compact", "--input", nowhere], "cannot read input"),
        (&["prune", "--input", nowhere, "--older-than", "1d"], "cannot read input"),
        (&["import", "--input", nowhere, "--output", &out], "/nowhere/at/all"),
        (&["verify", "--policies", nowhere, "--input", capture], "cannot read /nowhere/at/all"),
        (&["verify", "--policies", &notes, "--input", capture], "no policies in"),
        (&["verify", "--policies", &bad, "--input", capture], "none that an API server takes"),
        (&["verify", "--policies", &policy, "--input", &empty], "nothing can be judged"),
        (&["diff", &notes, &policy], "no policies in"),
        (&["diff", &policy, &bad], "neither Ingress nor Egress"),
        (&["connectivity", "--manifests", &empty], "no manifests of pods"),
        (&["connectivity", "--manifests", &deep], "it is nested too deeply"),
        (&["diff", &policy, &deep], "it is nested too deeply"),
        (&["verify", "--policies", &deep, "--input", capture], "it is nested too deeply"),
        (&["report", "--input", capture, "--decisions", &deep], "it is nested too deeply"),
        (&["regenerate", "--input", &empty, "--output", &out], "no capture in"),
    ];
    for (arguments, said) in cases {
        let (status, found) = status(arguments);
        assert!(status == Some(2) && found.contains(said), "{arguments:?}: {status:?} {found}");
    }
}

#[test]
fn verdicts_exit_with_1_and_what_is_well_with_0() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let [empty, policy, manifests, nobody] = ["empty", "policy.yaml", "manifests", "nobody.yaml"].map(at);
    fs::create_dir(&empty).expect("made");
    fs::create_dir(&manifests).expect("made");
    fs::write(format!("{manifests}/pod.yaml"), POD).expect("written");
    fs::write(&policy, POLICY).expect("written");
    fs::write(&nobody, POLICY.replace("namespace: demo", "namespace: dem0")).expect("written");
    let capture = web_and_db().write();
    let capture = &*capture.path().to_string_lossy();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["report", "--input", capture], 0, ""),
        (&["sets", "--input", capture], 0, ""),
        (&["sql", "--input", capture, "select 1"], 0, ""),
        (&["explain", "demo/web", "--input", capture], 0, ""),
        (&["diff", &policy, &policy], 0, ""),
        (&["diff", &empty, &policy, "--manifests", &manifests], 1, ""),
        (&["connectivity", "--manifests", &manifests], 0, ""),
        (&["verify", "--policies", &nobody, "--input", capture], 0, ""),
        (&["verify", "--policies", &nobody, "--input", capture, "--strict"], 1, ""),
        (&["--help"], 0, ""),
        (&["--version"], 0, ""),
    ];
    for (arguments, expected, _) in cases {
        let (status, found) = status(arguments);
        assert_eq!(status, Some(expected), "{arguments:?}: {found}");
    }
    let verified = flowscribe(&["verify", "--policies", &nobody, "--input", capture]);
    let found = String::from_utf8_lossy(&verified.stdout);
    assert!(found.contains("dem0/p selects no pod that is known\n"), "{found}");
}

#[test]
fn a_dash_is_standard_input() {
    let capture = web_and_db().write();
    let capture = &*capture.path().to_string_lossy();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), POLICY).expect("written");
    let file = &*file.path().to_string_lossy();
    let piped = |arguments: &[&str], input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowscribe"));
        let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    assert_eq!(piped(&["diff", "-", file], POLICY).0, Some(0));
    assert_eq!(piped(&["diff", file, "-"], &POLICY.replace("app: web", "app: db")).0, Some(1));
    let (status, found) = piped(&["verify", "--policies", "-", "--input", capture], POLICY);
    assert_eq!(status, Some(0), "{found}");
    let (status, found) = piped(&["connectivity", "--manifests", "-"], POD);
    assert!(status == Some(0) && found.contains("demo/web[Pod]"), "{found}");
    let (status, found) = piped(&["diff", "-", file], "");
    assert!(status == Some(2) && found.contains("no policies in -"), "{found}");
}

#[test]
fn what_a_former_run_wrote_stays_where_a_part_of_the_capture_can_not_be_read() {
    for whole in [true, false] {
        let capture = web_and_db().write();
        let directory = tempfile::tempdir().expect("a directory");
        let output = format!("{}/policies/", directory.path().display());
        let input = &*capture.path().to_string_lossy();
        let arguments = ["report", "--input", input, "--output", &output];
        assert_eq!(status(&arguments).0, Some(0));
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(&output).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        let before = names();
        if !whole {
            let folder = capture.path().join("flows/date=2026-03-01/hour=10");
            for file in fs::read_dir(folder).expect("flows").flatten() {
                fs::write(file.path(), "PAR1 cut short").expect("written");
            }
        }
        for verb in ["report", "regenerate"] {
            let (status, said) = status(&[verb, "--input", input, "--output", &output]);
            assert_eq!(status, Some(if whole { 0 } else { 5 }), "{verb}: {said}");
            assert!(whole || said.contains("truncated or damaged") && said.contains("stay"), "{said}");
            assert!(names().iter().all(|name| before.contains(name) || name == "diff.md"), "{verb}");
            assert!(before.iter().all(|name| names().contains(name)), "{verb}: nothing is removed");
        }
    }
}

#[test]
fn names_do_not_drive_a_terminal() {
    let mut capture = web_and_db();
    let mut pod = capture.bare_pod("demo/odd\u{1b}[2J\u{202e}", "10.244.0.61", r#"{"app":"odd"}"#).clone();
    pod.name = "odd\u{1b}[2J\u{202e}".into();
    *capture.inventory.last_mut().expect("it was pushed") = pod;
    capture.talk("10.244.0.61", DB, 5432);
    let input = capture.write();
    let input = &*input.path().to_string_lossy();
    for arguments in [
        &["report", "--input", input][..],
        &["sets", "--input", input],
        &["sql", "--input", input, "select name from inventory"],
    ] {
        let output = flowscribe(arguments);
        for bytes in [output.stdout, output.stderr] {
            let text = String::from_utf8(bytes).expect("text");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{arguments:?}: {text:?}");
        }
    }
}

#[test]
fn help_and_readme_have_the_table() {
    let help = String::from_utf8(flowscribe(&["--help"]).stdout).expect("text");
    let (_, table) = help.split_once("Exit status:\n").expect("it is there");
    let readme = include_str!("../../../README.md");
    for line in table.lines().filter(|line| !line.trim().is_empty()) {
        let (status, meaning) = line.trim().split_once(' ').expect("a status and its meaning");
        assert!(readme.contains(&format!("| {status} | {} |", meaning.trim())), "{line}");
    }
}

#[test]
fn what_a_terminal_would_obey_is_shown_in_every_format() {
    let capture = web_and_db().write();
    let query = "select 'a' || chr(27) || ']0;title' || chr(7) || chr(8238) || 'b' as x";
    for format in ["table", "csv", "json", "jsonl"] {
        let program = env!("CARGO_BIN_EXE_flowscribe");
        let command = format!("{program} sql --input {} --format {format} \"{query}\"", capture.path().display());
        // Of util-linux: runs a command at a terminal.
        let shown = Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output();
        let shown = String::from_utf8(shown.expect("script runs").stdout).expect("text");
        assert!(shown.contains("]0;title") && !shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{format}: {shown:?}");
        // Whoever reads it by a program has it as it is.
        let piped = Command::new("sh").args(["-c", &command]).output().expect("a shell runs");
        assert!(String::from_utf8_lossy(&piped.stdout).contains('\u{202e}') || format == "table", "{format}");
    }
}

/// How a shell may leave a program without readers.
const READERS_GONE: [&str; 5] = [">&- 2>&-", "2>&-", ">/dev/full 2>/dev/full", "2>/dev/full", "2>&1 | true"];

#[test]
fn nobody_who_reads_is_no_crash() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let [empty, policy, pod, out] = ["empty", "policy.yaml", "pod.yaml", "out"].map(at);
    fs::create_dir(&empty).expect("made");
    fs::write(&policy, POLICY).expect("written");
    fs::write(&pod, POD).expect("written");
    let capture = web_and_db().write();
    let capture = &*capture.path().to_string_lossy();
    let commands = [
        "--help".into(),
        "report --inptu x".into(),
        format!("report --explain --input {capture}"),
        format!("report --input {empty}"),
        format!("report --input {capture} --output {out}/"),
        format!("sets --input {capture}"),
        format!("sets --input {empty}"),
        format!("explain demo/web --input {capture}"),
        format!("sql --input {empty} 'select 1'"),
        format!("sql --input {capture} 'select * from edges'"),
        format!("verify --policies {policy} --input {capture}"),
        format!("backtest --input {capture}"),
        format!("diff {policy} {policy}"),
        format!("connectivity --manifests {pod}"),
        format!("regenerate --input {capture} --output {out}/"),
        format!("compact --input {empty}"),
        format!("import --input {empty} --output {out}"),
        format!("receive --output {policy} --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0"),
    ];
    for command in commands {
        for readers in READERS_GONE {
            let script = format!("set -o pipefail; {} {command} {readers}", env!("CARGO_BIN_EXE_flowscribe"));
            let ended = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().expect("a shell runs");
            let status = ended.status.code().expect("it ends by itself");
            // 141 would be SIGPIPE, 101 a panic, 134 an abort.
            assert!(status <= 5, "{command} {readers}: {status}");
        }
    }
}

#[test]
fn a_link_is_followed_to_what_is_replaced_whole_and_a_dash_is_standard_output() {
    let capture = web_and_db().write();
    let capture = &*capture.path().to_string_lossy();
    let directory = tempfile::tempdir().expect("a directory");
    let (file, link) = (directory.path().join("old.yaml"), directory.path().join("link.yaml"));
    fs::write(&file, "# older\n".repeat(10_000)).expect("written");
    std::os::unix::fs::symlink("old.yaml", &link).expect("linked");
    assert_eq!(status(&["report", "--input", capture, "--output", &link.to_string_lossy()]).0, Some(0));
    let expected = flowscribe(&["report", "--input", capture, "--output", "-"]).stdout;
    assert!(String::from_utf8_lossy(&expected).contains("kind: NetworkPolicy"));
    assert_eq!(fs::read(&file).expect("it is there"), expected);
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    // What is in the way of a set is found before any of it is written.
    let set = directory.path().join("set");
    fs::create_dir_all(set.join("kustomization.yaml")).expect("made");
    let (code, said) = status(&["report", "--input", capture, "--output", &format!("{}/", set.display())]);
    assert!(code == Some(2) && said.contains("kustomization.yaml is not one that flowscribe wrote"), "{said}");
    assert_eq!(fs::read_dir(&set).expect("readable").count(), 1);
}
