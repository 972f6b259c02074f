//! The command line as it presents itself.

use crate::support::flowscribe;

fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = flowscribe(arguments);
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code(), String::from_utf8(text).expect("text"))
}

#[test]
fn help_explains_every_command_and_flag() {
    insta::assert_snapshot!("help", said(&["--help"]).1);
    let commands = [
        "apply",
        "backtest",
        "compact",
        "connectivity",
        "diff",
        "explain",
        "import",
        "inventory",
        "monitor",
        "prune",
        "receive",
        "regenerate",
        "report",
        "sets",
        "sql",
        "verify",
    ];
    for command in commands {
        insta::assert_snapshot!(format!("help_{command}"), said(&[command, "--help"]).1);
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let (code, text) = said(&["report"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--input <DIR|URL>"), "{text}");
    assert_eq!(said(&["sql", "--input", ".", "select 1", "--format", "xml"]).0, Some(2));
    assert_eq!(said(&[]).0, Some(2));
}
