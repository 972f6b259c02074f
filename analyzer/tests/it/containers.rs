//! Which container of a pod did something, and what one did that somebody added to look into the pod.

use schemas::flow::FlowRecord;

use crate::support::{Capture, DB, WEB, flowscribe, limits, lines, web_and_db};

const OUTSIDE: &str = "198.51.100.9";

/// `demo/web` with a container that was added; both of them did something.
fn debugged() -> Capture {
    let mut capture = web_and_db();
    let web = capture.inventory.iter_mut().find(|object| object.addresses.iter().any(|address| &**address == WEB));
    web.expect("it is there").ephemeral_containers = Some(r#"["debugger"]"#.into());
    capture.flows[0].source_container = Some("app".into());
    capture.flows[1].destination_container = Some("postgres".into());
    capture
}

fn by<'a>(row: &'a mut FlowRecord, container: &str) -> &'a mut FlowRecord {
    row.source_container = Some(container.into());
    row
}

#[test]
fn what_only_an_ephemeral_container_did_is_held_and_named() {
    let mut capture = debugged();
    let plain = capture.report();
    by(capture.dial(WEB, OUTSIDE, 443), "debugger");
    by(capture.dial(WEB, DB, 22), "debugger");
    capture.accept(DB, WEB, 22);
    let report = capture.report();
    assert_eq!(report.yaml, plain.yaml);
    for edge in ["demo/web → 198.51.100.9 443/TCP", "demo/web → demo/db 22/TCP"] {
        let said = format!(
            "{edge}: held for review, ephemeral container: only debugger did it, which somebody added to pods of demo/web"
        );
        assert!(report.said.contains(&said), "{}", report.said);
    }
}

#[test]
fn what_others_did_too_or_nobody_knows_who_is_a_rule_as_ever() {
    // The same by the application.
    let mut capture = debugged();
    by(capture.dial(WEB, OUTSIDE, 443), "debugger");
    by(capture.dial(WEB, OUTSIDE, 443), "app");
    // The agent did not know which container it was.
    by(capture.dial(WEB, OUTSIDE, 8443), "debugger");
    capture.dial(WEB, OUTSIDE, 8443);
    let expected = ["egress 198.51.100.9/32 443/TCP", "egress 198.51.100.9/32 8443/TCP", "egress app=db 5432/TCP"];
    assert_eq!(capture.report().allows("demo/web-network"), lines(expected));
    // In hours without an agent on its own node, only the other end saw it.
    let mut later = debugged();
    let row = later.accept(DB, WEB, 5433);
    for time in [&mut row.window_start, &mut row.window_end, &mut row.first_seen, &mut row.last_seen] {
        time.0 += 7_200_000;
    }
    by(later.dial(WEB, DB, 5433), "debugger");
    later.accept(DB, WEB, 5433);
    let report = later.report_with(&["--min-coverage", "0"]);
    assert!(report.allows("demo/web-network").contains("egress app=db 5433/TCP"), "{}", report.said);
    // A container of that name which is the pod's own.
    let mut own = web_and_db();
    by(own.dial(WEB, OUTSIDE, 443), "debugger");
    let report = own.report();
    assert!(report.allows("demo/web-network").contains("egress 198.51.100.9/32 443/TCP"), "{}", report.yaml);
    assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"]);
}

#[test]
fn the_evidence_says_which_container_it_was() {
    let directory = debugged().write();
    let input = directory.path().to_string_lossy();
    let output = flowscribe(&["explain", "demo/db-network", "--input", &input]);
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(said.contains("; from container app; to container postgres"), "{said}");
}
