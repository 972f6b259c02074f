//! The live stream: what a monitor records is what the agent does, whatever happens to either.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use schemas::{flow::FlowRecord, health::HealthRecord, inventory::InventoryRecord};
use serde_json::json;
use testdata::{
    lab::Lab,
    pod::Exchange,
    recording::{Monitor, Recording},
};

use crate::{
    harness::Ran,
    support::{balance, executable, flowscribe, free_address, lab, pod, rows, wait_until},
};

tests![
    a_monitor_records_what_the_agent_does,
    an_agent_that_refuses_later_ends_nobodys_recording,
    a_monitor_can_be_stopped_while_the_api_server_hangs,
    a_users_own_token_is_sent_to_nobody_in_clear_text,
    what_is_missing_of_a_recording_is_told,
];

/// Starts an agent that can be listened to.
fn agent(lab: &Lab, output: &Path, address: &str, token: &Path) -> Recording {
    let token = token.to_string_lossy();
    let extra = ["--window", "1s", "--live-address", address, "--live-token-file", &token];
    Recording::start(executable(), lab, output, &extra).expect("the exporter records")
}

/// Waits until so many streams have begun.
fn wait_for_streams(capture: &Path, streams: usize) {
    wait_until("the stream", || {
        let mut runs: Vec<_> = if capture.join("health").exists() {
            rows::<HealthRecord>(capture).into_iter().map(|row| row.run_id).collect()
        } else {
            Vec::new()
        };
        runs.sort();
        runs.dedup();
        runs.len() >= streams
    });
}

/// Starts a monitor whose files come late.
fn monitor_killed(output: &Path, arguments: &[&str]) -> Monitor {
    let arguments = [&["--roll-interval", "10m"], arguments].concat();
    Monitor::at_its_pace(executable(), output, &arguments).expect("the monitor starts")
}

fn report(capture: &Path, extra: &[&str]) -> (String, String) {
    let output = flowscribe(&[&["report", "--input", &capture.to_string_lossy()], extra].concat());
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (status, policies, said) = (output.status, text(output.stdout), text(output.stderr));
    // Whatever was recorded so far may be nothing.
    assert!(status.success() || status.code() == Some(2) && said.contains("no capture in"), "{status}: {said}");
    (policies, said)
}

fn a_monitor_records_what_the_agent_does() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(3, 5)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("token"), "open sesame\n").expect("written");
    fs::write(at("wrong"), "please\n").expect("written");
    let (address, nobody) = (free_address(), free_address());
    let (url, token) = (format!("http://{address}"), at("token").to_string_lossy().into_owned());
    let recording = agent(&lab, &at("agent"), &address, &at("token"));

    let wrong = at("wrong").to_string_lossy().into_owned();
    let refused = flowscribe(&[
        "monitor",
        "--output",
        &at("refused").to_string_lossy(),
        "--agent-url",
        &url,
        "--token-file",
        &wrong,
    ]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("refuses: the bearer token is missing or wrong"), "{said}");

    let urls = format!("{url},http://{nobody}");
    let limited = ["--agent-url", &url, "--token-file", &token, "--namespaces", "elsewhere"];
    let limited = Monitor::start(executable(), &at("limited"), &limited).expect("the monitor starts");
    let monitor = ["--agent-url", &urls, "--token-file", &token];
    let monitor = Monitor::start(executable(), &at("monitor"), &monitor).expect("the monitor starts");
    wait_for_streams(&at("monitor"), 1);
    wait_for_streams(&at("limited"), 1);
    lab.dial(client, (lab.ipv4(server), 7001), 5, Exchange::new(3, 5)).expect("the server answers");
    // Within the window that Ctrl-C finishes.
    let (said, is_well) = monitor.stop(1).expect("it runs");
    assert!(is_well && said.contains("flows of 1 agent are in"), "{said}");
    assert!(said.contains(&format!("the agent at {nobody} never answered")), "{said}");
    assert!(said.contains(&format!("the agent at {nobody} is away, trying again")), "{said}");
    let (said, is_well) = limited.stop(1).expect("it runs");
    assert!(is_well && said.contains("0 flows of 1 agent"), "{said}");
    recording.stop().expect("the exporter ends well");

    for name in ["agent", "monitor", "limited"] {
        balance(&at(name));
    }
    let connections = |name: &str| {
        let flows = rows::<FlowRecord>(&at(name));
        flows.iter().map(|row| (row.observer.to_string(), row.connections)).fold(
            [0, 0],
            |mut sum, (observer, count)| {
                sum[usize::from(observer == "server")] += count;
                sum
            },
        )
    };
    assert_eq!(connections("monitor"), [5, 5]);
    assert_eq!(rows::<InventoryRecord>(&at("monitor")).iter().filter(|row| &*row.kind == "Pod").count(), 2);
    let health = rows::<HealthRecord>(&at("limited"));
    assert_eq!(health.iter().map(|row| row.filtered).sum::<i64>(), 10, "what was left out is counted");
    let names: Vec<&str> = health.iter().flat_map(|row| row.namespaces.iter().map(|name| &**name)).collect();
    assert!(!names.is_empty() && names.iter().all(|name| *name == "elsewhere"), "{names:?}");
    let (policies, said) = report(&at("monitor"), &[]);
    assert_eq!(policies, report(&at("agent"), &[]).0, "the same policies");
    assert!(policies.contains("port: 7001") && !said.contains("not ended cleanly"), "{said}");
    Ok(())
}

fn an_agent_that_refuses_later_ends_nobodys_recording() -> Ran {
    let lab = lab()?;
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("token"), "open sesame\n").expect("written");
    fs::write(at("other"), "another one\n").expect("written");
    let (address, later) = (free_address(), free_address());
    let admitting = agent(&lab, &at("agent"), &address, &at("token"));
    let (urls, token) = (format!("http://{address},http://{later}"), at("token").to_string_lossy().into_owned());
    let log = || fs::read_to_string(at("monitor.log")).unwrap_or_default();
    let mut monitor = Command::new(executable())
        .args(["flowscribe", "monitor", "--roll-interval", "1s", "--agent-url", &urls, "--token-file", &token])
        .arg("--output")
        .arg(at("monitor"))
        .stderr(fs::File::create(at("monitor.log")).expect("made"))
        .spawn()
        .expect("the monitor starts");
    wait_for_streams(&at("monitor"), 1);
    let refusing = agent(&lab, &at("refusing"), &later, &at("other"));
    let refused = format!("the agent at {later} is away, trying again: the bearer token is");
    wait_until("the refusal", || log().contains(&refused));
    kill(Pid::from_raw(monitor.id() as i32), Signal::SIGINT).expect("it runs");
    assert!(monitor.wait().expect("it ends").success(), "{}", log());
    assert!(log().contains("flows of 1 agent are in"), "{}", log());
    for agent in [admitting, refusing] {
        agent.stop().expect("the exporter ends well");
    }
    Ok(())
}

/// A kubeconfig of a server at an address.
fn kubeconfig(path: &Path, address: &str) {
    let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "users": [{ "name": "u", "user": { "token": "mine" } }] });
    fs::write(path, config.to_string()).expect("written");
}

fn a_monitor_can_be_stopped_while_the_api_server_hangs() {
    let directory = tempfile::tempdir().expect("a directory");
    // It takes connections, and never answers.
    let server = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let config = directory.path().join("kubeconfig");
    kubeconfig(&config, &server.local_addr().expect("it has an address").to_string());
    let mut command = Command::new(executable());
    command.args(["flowscribe", "monitor", "--output"]).arg(directory.path().join("capture"));
    let mut monitor = command.env("KUBECONFIG", &config).stderr(Stdio::piped()).spawn().expect("it starts");
    let _asked = server.accept().expect("it asks");
    let id = Pid::from_raw(monitor.id() as i32);
    kill(id, Signal::SIGINT).expect("it runs");
    let mut ended = None;
    wait_until("its end", || {
        ended = monitor.try_wait().expect("it can be asked");
        ended.is_some()
    });
    let mut said = String::new();
    monitor.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
    assert!(ended.is_some_and(|status| !status.success()) && said.contains("nothing was recorded"), "{said}");
}

fn a_users_own_token_is_sent_to_nobody_in_clear_text() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("kubeconfig");
    kubeconfig(&config, "127.0.0.1:1");
    let (config, output) = (config.to_string_lossy(), directory.path().join("capture"));
    let arguments =
        ["monitor", "--kubeconfig", &config, "--output", &output.to_string_lossy(), "--agent-url", "http://192.0.2.1"];
    let refused = flowscribe(&arguments);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("your cluster's token in clear text"), "{said}");
    assert!(!output.exists(), "before anything is written");
}

fn what_is_missing_of_a_recording_is_told() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    for port in [7001, 7002, 7003] {
        lab.listen(server, port, Exchange::new(1, 1)).expect("the port is free");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("token"), "open sesame").expect("written");
    let address = free_address();
    let (url, token) = (format!("http://{address}"), at("token").to_string_lossy().into_owned());
    let arguments = ["--agent-url", &url, "--token-file", &token];
    let monitor = |name: &str| Monitor::start(executable(), &at(name), &arguments).expect("the monitor starts");
    let dial = |lab: &mut Lab, port| {
        let to = (lab.ipv4(server), port);
        lab.dial(client, to, 2, Exchange::new(1, 1)).expect("the server answers");
    };

    let recording = agent(&lab, &at("first"), &address, &at("token"));
    let watching = monitor("capture");
    wait_for_streams(&at("capture"), 1);
    dial(&mut lab, 7001);
    wait_until("the first rows", || at("capture").join("flows").exists());
    recording.kill().expect("it runs");
    dial(&mut lab, 7002);
    let recording = agent(&lab, &at("second"), &address, &at("token"));
    wait_for_streams(&at("capture"), 2);
    dial(&mut lab, 7003);
    // Ctrl-C twice: the window that is under way is left out.
    let (said, is_well) = watching.stop(2).expect("it runs");
    assert!(is_well, "{said}");
    assert!(said.contains("is away, trying again") && said.contains("is there again"), "{said}");
    assert!(said.contains("was away once"), "{said}");
    let (withheld, _) = report(&at("capture"), &[]);
    assert_eq!(withheld, "", "too much was not watched");
    let (policies, told) = report(&at("capture"), &["--min-coverage", "0"]);
    let unclean = told.lines().filter(|line| line.contains("has not ended cleanly")).count();
    assert!((1..=2).contains(&unclean), "the stream that was cut off, and maybe that which was not waited for: {told}");
    assert!(policies.contains("port: 7001") && !policies.contains("port: 7002"), "{policies}");

    // Killed, what it received is in its journal: that is said, and made files of.
    let watching = monitor_killed(&at("killed"), &arguments);
    // What is over before the stream begins is not in it; segments are compressed, so that a copy of them is asked.
    wait_until("what makes a rule among what was received", || {
        dial(&mut lab, 7001);
        let copy = tempfile::tempdir().expect("a directory");
        let copied = Command::new("cp").arg("-r").arg(at("killed").join(".journal")).arg(copy.path()).status();
        copied.is_ok_and(|status| status.success())
            && flowscribe(&["compact", "--input", &copy.path().to_string_lossy()]).status.success()
            && copy.path().join("flows").exists()
            && report(copy.path(), &["--min-coverage", "0"]).0.contains("port: 7001")
    });
    drop(watching);
    let killed = at("killed").to_string_lossy().into_owned();
    let (_, told) = report(&at("killed"), &[]);
    assert!(told.contains("received by a process that was killed, and not in files: flowscribe compact"), "{told}");
    assert!(flowscribe(&["compact", "--input", &killed]).status.success());
    let (policies, told) = report(&at("killed"), &["--min-coverage", "0"]);
    assert!(policies.contains("port: 7001") && told.contains("has not ended cleanly"), "{told}");
    assert!(!told.contains("received by a process"), "{told}");

    // At whatever moment: what was received can be read.
    for pause in [0, 30, 300, 1200] {
        let name = format!("after-{pause}");
        let watching = monitor(&name);
        dial(&mut lab, 7001);
        // Nothing is waited for: these are moments at which it ends.
        thread::sleep(Duration::from_millis(pause));
        let (said, _) = watching.stop(1).expect("it runs");
        let (policies, told) = report(&at(&name), &[]);
        assert!(!told.contains("skipped") || policies.is_empty(), "{said} {told}");
        balance(&at(&name));
    }
    recording.stop().expect("the exporter ends well");
    Ok(())
}
