//! `flowscribe connectivity` beside another analyzer: on that one's own cases, both list the same connections.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    harness::{Ran, require},
    support::flowscribe,
};

tests![connections_are_those_that_another_analyzer_lists,];

fn connectivity(manifests: &Path) -> String {
    let output = flowscribe(&["connectivity", "--manifests", &manifests.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", manifests.display());
    String::from_utf8(output.stdout).expect("text")
}

fn connections_are_those_that_another_analyzer_lists() -> Ran {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/netpol-analyzer");
    require(cases.exists(), "the third party's cases are not beside the checkout")?;
    let mut compared = 0;
    for case in fs::read_dir(&cases).expect("readable").flatten().map(|case| case.path()).filter(|case| case.is_dir()) {
        let expected = fs::read_to_string(case.join("expected_connlist.txt")).expect("the case says what it expects");
        let found = connectivity(&case.join("manifests"));
        let differ: Vec<_> = similar(&found, &expected);
        assert!(differ.is_empty(), "{}:\n{}", case.display(), differ.join("\n"));
        compared += 1;
    }
    assert!(compared >= 18, "{compared} cases were there");
    Ok(())
}

/// Lines that are in one of two lists only.
fn similar(found: &str, expected: &str) -> Vec<String> {
    let lines = |text: &str| text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let (found, expected): (BTreeSet<String>, BTreeSet<String>) = (lines(found), lines(expected));
    let extra = found.difference(&expected).map(|line| format!("+ {line}"));
    extra.chain(expected.difference(&found).map(|line| format!("- {line}"))).collect()
}
