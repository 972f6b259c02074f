//! A recording that is killed: what was finished is whole, and what is not is named.

use schemas::{
    capture::{self, ProblemKind},
    flow::FlowRecord,
    health::HealthRecord,
};
use testdata::{pod::Exchange, recording::Recording};

use crate::{
    harness::Ran,
    support::{executable, flowscribe, lab, pod, rows, rows_so_far, wait_until},
};

tests![a_killed_recording_is_read_as_far_as_it_came_and_named, killed_at_once_is_named_from_its_start,];

fn a_killed_recording_is_read_as_far_as_it_came_and_named() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &["--window", "1s", "--roll-interval", "5s"])
        .expect("the exporter records");
    lab.dial(client, (lab.ipv4(server), 7001), 3, Exchange::new(1, 1)).expect("the server answers");
    wait_until("a finished file of flows", || !rows_so_far::<FlowRecord>(&output).is_empty());
    lab.dial(client, (lab.ipv4(server), 7001), 1, Exchange::new(1, 1)).expect("the server answers");
    // Five seconds pass from the first row of a file until it is finished.
    wait_until("an unfinished file", || {
        let listing = capture::list(std::slice::from_ref(&output)).expect("the capture is there");
        listing.problems.iter().any(|problem| problem.kind == ProblemKind::Unfinished)
    });
    recording.kill().expect("it was running");

    let listing = capture::list(std::slice::from_ref(&output)).expect("the capture is there");
    for file in &listing.files {
        capture::verify(file).expect("every renamed file is whole");
    }
    let run = rows::<FlowRecord>(&output)[0].run_id.to_string();
    // Which rows were in finished files when it was killed is a matter of luck.
    let report = flowscribe(&["report", "--min-coverage", "0", "--input", &output.to_string_lossy()]);
    let said = String::from_utf8_lossy(&report.stderr);
    assert!(report.status.success(), "{said}");
    let policies = String::from_utf8_lossy(&report.stdout);
    assert_eq!(policies.matches("kind: NetworkPolicy").count(), 2, "{policies}");
    let named =
        format!("run {run} on node lab has not ended cleanly (killed, or still recording): what it saw after 2");
    assert!(said.contains(&named), "{said}");
    assert!(said.contains("unfinished: its writer was killed or is still writing"), "{said}");
    Ok(())
}

fn killed_at_once_is_named_from_its_start() -> Ran {
    let mut lab = lab()?;
    let client = pod(&mut lab, "client");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &output, &[] as &[&str]).expect("the exporter records");
    lab.dial(client, (lab.ipv4(client), 9), 1, Exchange::new(0, 0)).expect_err("nobody listens there");
    recording.kill().expect("it was running");
    let report = flowscribe(&["report", "--input", &output.to_string_lossy()]);
    let said = String::from_utf8_lossy(&report.stderr);
    assert!(report.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&report.stdout), "");
    let begun = rows::<HealthRecord>(&output);
    assert_eq!(begun.len(), 1, "its beginning is on disk");
    let named = format!(
        "run {} on node lab has not ended cleanly (killed, or still recording): what it saw after {} is incomplete",
        begun[0].run_id, begun[0].run_start
    );
    assert!(said.contains(&named), "{said}");
    Ok(())
}
