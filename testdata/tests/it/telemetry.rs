//! What a running exporter tells of itself, and what its filters leave out.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
};

use clap::Parser;
use schemas::{flow::FlowRecord, health::HealthRecord};
use testdata::{pod::Exchange, recording::Recording};

use crate::{
    harness::Ran,
    support::{balance, executable, flowscribe, free_address, lab, pod, require_lab, rows, wait_until},
};

tests![
    metrics_tell_what_the_health_of_the_recording_does,
    what_the_exporter_dials_itself_is_left_out,
    filters_keep_what_they_name_count_the_rest_and_are_told,
];

/// How many connections the kernel's side remembers.
const CONNECTIONS: &str = "bpf_map_entries{map=\"connections\"}";

/// Status and body of a page of the exporter's.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it serves");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("it speaks HTTP");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

fn metrics_tell_what_the_health_of_the_recording_does() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    lab.listen(server, 7001, Exchange::new(1, 1)).expect("the port is free");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let address = free_address();
    let arguments = ["--window", "1s", "--metrics-address", &address, "--bpf-stats"];
    let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
    lab.dial(client, (lab.ipv4(server), 7001), 5, Exchange::new(1, 1)).expect("the server answers");
    lab.hold(client, (lab.ipv4(server), 7001), Exchange::new(1, 1)).expect("the server answers");
    let value_of = |metrics: &str, name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("flowscribe_exporter_{name} ")));
        line.and_then(|value| value.parse::<f64>().ok())
    };
    wait_until("the account of all ends", || {
        let metrics = get(&address, "/metrics").1;
        let has = |name: &str, value: f64| value_of(&metrics, name) == Some(value);
        has("ends_exported_total", 12.0) && has("open_connections", 2.0) && has(CONNECTIONS, 2.0)
    });
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(&address, path).0, "HTTP/1.1 200 OK", "{path}");
    }
    let (status, metrics) = get(&address, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let value = |name: &str| value_of(&metrics, name).unwrap_or_else(|| panic!("{name} is a number in {metrics}"));
    assert_eq!((value("ends_seen_total"), value("ends_exported_total")), (12.0, 12.0), "{metrics}");
    assert_eq!(value("open_connections"), 2.0, "{metrics}");
    assert_eq!(value("ends_lost_total{reason=\"map\"}"), 0.0, "{metrics}");
    assert!(value("bpf_runs{program=\"observe_tcp\"}") > 12.0, "{metrics}");
    assert!(value("bpf_run_seconds{program=\"observe_tcp\"}") > 0.0, "{metrics}");
    assert!(value("bpf_memory_bytes") > 2e6 && value("resident_memory_bytes") > 1e6, "{metrics}");
    assert!(value("window_lag_seconds") >= 0.0, "{metrics}");
    recording.stop().expect("the exporter ends well");
    balance(&output);
    Ok(())
}

fn what_the_exporter_dials_itself_is_left_out() -> Ran {
    require_lab()?;
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let server = thread::spawn(move || listener.incoming().take(3).for_each(drop));
    let ports = format!("--ports={port}");
    let output_flag = format!("--output={}", output.display());
    let args = exporter::Args::parse_from(["flowscribe-exporter", &output_flag, "--loopback", &ports]);
    // The exporter is this process; it is asked to end when everybody has dialled.
    let dialled = async {
        let _ = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        for _ in 0..2 {
            let dial = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
            assert!(Command::new("bash").args(["-c", &dial]).status().expect("bash starts").success());
        }
        server.join().expect("the server ends");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(exporter::run(args, dialled)).expect("it records");
    let flows = rows::<FlowRecord>(&output);
    let connections =
        |observer| flows.iter().filter(|row| &*row.observer == observer).map(|row| row.connections).sum::<i64>();
    assert_eq!((connections("client"), connections("server")), (2, 3), "{flows:?}");
    balance(&output);
    Ok(())
}

fn filters_keep_what_they_name_count_the_rest_and_are_told() -> Ran {
    let mut lab = lab()?;
    let (client, server) = (pod(&mut lab, "client"), pod(&mut lab, "server"));
    for port in [7001, 7002] {
        lab.listen(server, port, Exchange::new(1, 1)).expect("the port is free");
    }
    let host = format!("{}/32", lab.ipv4(client));
    let cases = [
        (["--ports", "7001"], vec![7001]),
        (["--ports", "80,7002"], vec![7002]),
        (["--labels", "app=server"], vec![7001, 7002]),
        (["--labels", "app=server,tier=web"], vec![]),
        (["--cidrs", &host], vec![7001, 7002]),
        (["--cidrs", "192.0.2.0/24"], vec![]),
    ];
    for (arguments, kept) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("capture");
        let recording = Recording::start(executable(), &lab, &output, &arguments).expect("the exporter records");
        for port in [7001, 7002] {
            lab.dial(client, (lab.ipv4(server), port), 1, Exchange::new(1, 1)).expect("the server answers");
        }
        recording.stop().expect("the exporter ends well");
        balance(&output);
        let mut ports: Vec<u16> = rows::<FlowRecord>(&output).iter().map(|row| row.destination_port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports, kept, "{arguments:?}");
        let health = rows::<HealthRecord>(&output);
        let filtered: i64 = health.iter().map(|row| row.filtered).sum();
        assert_eq!(filtered, 4 - 2 * kept.len() as i64, "{arguments:?}");
        let report = flowscribe(&["report", "--input", &output.to_string_lossy()]);
        let said = String::from_utf8_lossy(&report.stderr);
        let name = arguments[0].trim_start_matches('-');
        assert!(said.contains(&format!("was limited to {name}=")), "{arguments:?}: {said}");
    }
    Ok(())
}
