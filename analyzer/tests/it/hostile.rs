//! Rows and files whose writer means harm: they are refused by name, and harm nobody else's.

use std::{fs, path::Path};

use crate::support::{DB, WEB, flowscribe, web_and_db};

/// Rows of all datasets as OTLP, as version 2.0 has them.
fn rows() -> Vec<String> {
    let all = include_str!("../captures/version-1.jsonl");
    all.lines().map(str::to_owned).collect()
}

fn import(lines: &[String], output: &Path) -> (Option<i32>, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), lines.join("\n")).expect("written");
    let input = file.path().to_string_lossy().into_owned();
    let output = flowscribe(&["import", "--input", &input, "--output", &output.to_string_lossy()]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_no_row_can_have_is_refused_where_it_comes_in_and_the_rest_is_taken() {
    let attribute = |key: &str, value: &str| format!(r#"{{"key":"{key}","value":{{"intValue":"{value}"}}}}"#);
    let text = |value: &str| format!(r#"{{"key":"service.instance.id","value":{{"stringValue":"{value}"}}}}"#);
    let long = "n".repeat(300);
    let node = |value: &str| format!(r#"{{"key":"k8s.node.name","value":{{"stringValue":"{value}"}}}}"#);
    let honest = rows();
    let seq = attribute("flow.seq", "3");
    let run = text("0123456789abcdef");
    let cases = [
        (&seq, attribute("flow.seq", "-1"), "column `seq` of `flows` is negative"),
        (
            &seq,
            attribute("flow.seq", "9223372036854775807"),
            "`seq` of `flows` is larger than anything that is counted",
        ),
        (&run, text("../../../etc/x"), "`run_id` of `flows` is not made of letters, digits"),
        (&run, text("a\\u0000b"), "`run_id` of `flows` is not made of letters, digits"),
        (&run, text(&long), "`run_id` of `flows` is longer than such a text can be"),
        (&node("node-a"), node(&long), "`node` of `flows` is longer than such a text can be"),
        (&node("node-a"), node("a\\u001b]0;x\\u0007"), "`node` of `flows` has control characters"),
        (&attribute("flow.end", "1772359260000"), attribute("flow.end", "4200000000000"), "is no time of this century"),
    ];
    for (from, to, reason) in cases {
        let hostile = honest[0].replace(&**from, &to);
        assert_ne!(hostile, honest[0], "{from}");
        let output = tempfile::tempdir().expect("a directory");
        let capture = output.path().join("capture");
        let (status, said) = import(&[hostile, honest[1].clone(), honest[2].clone()], &capture);
        assert!(status == Some(0) && said.contains(reason), "{to:.80}: {said}");
        assert!(!capture.join("flows").exists() && capture.join("inventory").exists(), "{to:.80}: the rest is there");
    }
}

#[test]
fn files_that_were_forged_are_named_and_the_others_stand() {
    let honest = web_and_db();
    let expected = honest.report().yaml;
    for (connections, seq, said) in [
        (-1000, 7, "-1000 is negative in column `connections`"),
        (i64::MAX, 7, "is larger than anything that is counted in column `connections`"),
        (1, i64::MAX, "is larger than anything that is counted in column `seq`"),
        (1, -1, "-1 is negative in column `seq`"),
    ] {
        let capture = honest.write();
        let mut forged = honest.clone();
        forged.flows.clear();
        forged.talk(WEB, DB, 9999);
        for row in &mut forged.flows {
            (row.connections, row.closed, row.seq) = (connections, connections, seq);
            row.run_id = "f".repeat(32).into();
        }
        let beside = forged.write();
        copy(&beside.path().join("flows"), &capture.path().join("flows"));
        let report = flowscribe(&["report", "--input", &capture.path().to_string_lossy()]);
        let notes = String::from_utf8_lossy(&report.stderr);
        assert!(report.status.success() && notes.contains(said), "{connections} {seq}: {notes}");
        assert_eq!(String::from_utf8_lossy(&report.stdout), expected, "{connections} {seq}");
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("readable").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("made");
            copy(&entry.path(), &target);
        } else {
            let name = format!("forged-{}", entry.file_name().to_string_lossy());
            fs::copy(entry.path(), to.join(name)).expect("copied");
        }
    }
}
