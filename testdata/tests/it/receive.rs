//! `flowscribe receive`: what it acknowledged is in the capture, whatever happens to it and whoever sends to it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    thread,
    time::Duration,
};

use delivery::Parcel;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use schemas::{flow::FlowRecord, health::HealthRecord, table::TimestampMs};
use testdata::{recording::Receiver, sender::Sender};

use crate::{
    harness::Ran,
    support::{executable, flowscribe, rows, rows_so_far, small_disk, wait_until},
};

tests![
    what_was_acknowledged_survives_a_receiver_that_is_killed_again_and_again,
    a_row_of_health_says_what_is_missing_of_what_came_late,
    garbage_bombs_and_slow_clients_are_answered_within_bounds,
    connections_that_say_nothing_keep_nobody_out,
    what_is_over_a_limit_is_told_to_wait_and_nothing_is_lost,
    a_full_disk_is_told_and_what_comes_is_taken_once_there_is_room,
    nobody_writes_without_a_certificate_and_the_token,
];

const SPOOL_BYTES: u64 = 64 << 20;
const QUICK: [&str; 2] = ["--roll-interval", "1s"];

/// Asserts that a run's flows are all in a capture, whichever of them more than once.
fn assert_whole(capture: &Path, run_id: &str, flows: i64) {
    let mut seqs: BTreeMap<i64, u32> = BTreeMap::new();
    for row in rows::<FlowRecord>(capture).iter().filter(|row| &*row.run_id == run_id) {
        *seqs.entry(row.seq).or_default() += 1;
    }
    let missing: Vec<i64> = (0..flows).filter(|seq| !seqs.contains_key(seq)).collect();
    assert_eq!((seqs.len() as i64, &missing[..]), (flows, &[][..]), "of {flows} flows");
}

fn wait_for_delivery(sender: &Sender) {
    wait_until("delivery of everything", || sender.outbox.stats().waiting == 0);
}

fn what_was_acknowledged_survives_a_receiver_that_is_killed_again_and_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    let mut receiver = Receiver::start(executable(), &capture, &QUICK).expect("it receives");
    let (grpc, http) = receiver.addresses();
    let mut senders: Vec<Sender> = ["grpc", "http/protobuf"]
        .map(|protocol| {
            let spool = directory.path().join(protocol);
            let sender = Sender::new(&protocol.replace('/', "-"), &spool, SPOOL_BYTES).expect("a spool");
            let endpoint = if protocol == "grpc" { &receiver.grpc } else { &receiver.http };
            sender.start(endpoint, protocol, &[]).expect("it sends");
            sender
        })
        .into();
    for round in 0..5 {
        for _ in 0..60 {
            senders.iter_mut().for_each(|sender| sender.send(40, TimestampMs::now()));
            thread::sleep(Duration::from_millis(10));
        }
        receiver.kill();
        for sender in &mut senders {
            let before = sender.outbox.stats().retries;
            sender.send(40, TimestampMs::now());
            wait_until("an attempt while it is away", || sender.outbox.stats().retries > before);
        }
        let started = Receiver::at(executable(), &capture, (&grpc, &http), &QUICK);
        receiver = started.unwrap_or_else(|error| panic!("it starts again in round {round}: {error:#}"));
    }
    for sender in &mut senders {
        sender.tell_health(TimestampMs::now(), true);
        wait_for_delivery(sender);
        let stats = sender.outbox.stats();
        assert_eq!((stats.dropped, stats.refused, stats.rejected_rows), (0, 0, 0), "{stats:?}");
        assert!(stats.retries > 0, "it was away: {stats:?}");
    }
    receiver.stop().expect("it ends well");
    for sender in &senders {
        assert_whole(&capture, sender.run_id(), sender.flows());
    }
    let journal: Vec<_> = fs::read_dir(capture.join(".journal")).expect("it is there").flatten().collect();
    assert!(journal.iter().all(|entry| entry.file_name() == "lock"), "all of it is in files: {journal:?}");
    // And a reader counts none of them twice.
    let query = "select run_id, count(*) from flows group by 1 order by 1";
    let counted = flowscribe(&["sql", "--input", &capture.to_string_lossy(), "--format", "csv", query]);
    let mut told: Vec<String> = senders.iter().map(|s| format!("{},{}", s.run_id(), s.flows())).collect();
    told.sort();
    assert_eq!(String::from_utf8_lossy(&counted.stdout).lines().skip(1).collect::<Vec<_>>(), told);
}

fn a_row_of_health_says_what_is_missing_of_what_came_late() {
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    let receiver = Receiver::start(executable(), &capture, &QUICK).expect("it receives");
    let mut sender = Sender::new("node-a", &directory.path().join("spool"), SPOOL_BYTES).expect("a spool");
    sender.start(&receiver.grpc, "grpc", &[]).expect("it sends");
    sender.send(10, TimestampMs::now());
    drop(sender.request(5, TimestampMs::now())); // lost on the way
    // Of other hours, in between.
    for hours in [2, 0, 1, 0] {
        sender.send(10, TimestampMs(TimestampMs::now().0 - hours * 3_600_000));
    }
    sender.tell_health(TimestampMs::now(), true);
    wait_for_delivery(&sender);
    receiver.stop().expect("it ends well");
    let hours = fs::read_dir(capture.join("flows")).expect("there are flows").flatten();
    let files: usize = hours.map(|date| fs::read_dir(date.path()).expect("a folder").count()).sum();
    assert_eq!(files, 3, "one folder for each hour");
    let report = flowscribe(&["report", "--input", &capture.to_string_lossy()]);
    let said = String::from_utf8_lossy(&report.stderr);
    assert!(said.contains("5 rows of flows"), "the gap is told: {said}");
}

/// Sends bytes to a server and returns what it answers.
fn raw(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(180))).expect("a timeout");
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(address: &str, headers: &str, body: &[u8]) -> String {
    let head = format!(
        "POST /v1/logs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    raw(address, &[head.as_bytes(), body].concat())
}

const PROTOBUF: &str = "Content-Type: application/x-protobuf\r\n";

/// Peak of the resident memory of a process, in KiB.
fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn garbage_bombs_and_slow_clients_are_answered_within_bounds() {
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    let bounds = ["--buffer-mib", "32", "--max-request-mib", "4", "--max-connections", "500"];
    let receiver = Receiver::start(executable(), &capture, &[&QUICK[..], &bounds].concat()).expect("it receives");
    let (grpc, http) = receiver.addresses();
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut sender = Sender::new("node-a", &directory.path().join("spool"), SPOOL_BYTES).expect("a spool");
    let request = sender.request(100, TimestampMs::now());

    assert_eq!(status(&post(&http, PROTOBUF, b"\xff\xff\xffgarbage")), "400");
    assert_eq!(status(&post(&http, PROTOBUF, &request[..request.len() / 2])), "400", "truncated");
    assert_eq!(status(&post(&http, "Content-Type: text/plain\r\n", &request)), "415");
    assert_eq!(status(&post(&http, &format!("{PROTOBUF}Content-Encoding: br\r\n"), &request)), "415");
    assert_eq!(status(&post(&http, &format!("{PROTOBUF}Content-Encoding: gzip\r\n"), &request)), "400", "not gzip");
    assert_eq!(status(&post(&http, "Content-Type: application/json\r\n", b"{\"resourceLogs\": 7}")), "400");
    assert_eq!(status(&post(&http, PROTOBUF, &vec![0; 5 << 20])), "413");
    assert_eq!(status(&post(&http, "Content-Type: application/json\r\n", b"{}")), "200");
    assert_eq!(status(&raw(&http, b"GET /v1/logs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")), "405");
    assert_eq!(status(&raw(&http, b"GET /else HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")), "404");
    assert!(raw(&grpc, &[0x16; 4096]).len() < 4096, "what is no HTTP at all ends the connection");

    let wrong = Sender::new("node-b", &directory.path().join("wrong"), SPOOL_BYTES).expect("a spool");
    wrong.start(&receiver.grpc, "grpc", &[]).expect("it sends");
    for body in [&b"garbage"[..], &request[..request.len() / 2], &vec![0; 5 << 20]] {
        wrong.outbox.put(Parcel { dataset: "flows", rows: 1, ends: 1, body: body.to_vec().into() });
    }
    wait_until("three refusals", || wrong.outbox.stats().refused == 3);
    assert_eq!(wrong.outbox.take_lost_ends(), 3, "each is counted");

    // Half a gigabyte of zeros in half a megabyte.
    let mut bomb = flate(&vec![0; 16 << 20]);
    bomb = bomb.repeat(32);
    assert_eq!(status(&post(&http, &format!("{PROTOBUF}Content-Encoding: gzip\r\n"), &bomb)), "413");

    // Hundreds that say much and send little, while somebody else sends what it should.
    let head = format!("POST /v1/logs HTTP/1.1\r\nHost: x\r\n{PROTOBUF}Content-Length: 4000000\r\n\r\n");
    let mut slow: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = TcpStream::connect(&http).expect("it listens");
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&[0; 10_000])).expect("it reads");
            stream
        })
        .collect();
    sender.start(&receiver.http, "http/protobuf", &[]).expect("it sends");
    for _ in 0..50 {
        sender.send(100, TimestampMs::now());
    }
    wait_for_delivery(&sender);
    assert_eq!(status(&post(&http, PROTOBUF, &request)), "200");
    let first = &mut slow[0];
    first.set_read_timeout(Some(Duration::from_secs(180))).expect("a timeout");
    let mut answer = [0; 12];
    first.read_exact(&mut answer).expect("an answer in time");
    assert_eq!(&answer, b"HTTP/1.1 408");
    let peak = peak_kib(receiver.id());
    assert!(peak < 200 << 10, "{peak} KiB for 32 MiB of requests");
    receiver.stop().expect("it ends well");
    assert_whole(&capture, sender.run_id(), sender.flows());
}

fn flate(bytes: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut gzip = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    let mut stdin = gzip.stdin.take().expect("piped");
    thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).expect("gzip reads"));
        gzip.wait_with_output().expect("gzip ends").stdout
    })
}

fn connections_that_say_nothing_keep_nobody_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    fs::write(&token, "secret").expect("written");
    let guarded = ["--max-connections", "40", "--token-file", &token.to_string_lossy()];
    let capture = directory.path().join("capture");
    let receiver = Receiver::start(executable(), &capture, &[&QUICK[..], &guarded].concat()).expect("it receives");
    let (_, http) = receiver.addresses();
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();
    let probe =
        |path: &str| raw(&http, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    let beginnings: [&[u8]; 4] =
        [b"", b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /v1/logs HTTP/1.1\r\nHo"];
    // Somebody who is known is at it all the while, from the same address.
    let mut sender = Sender::new("node-a", &directory.path().join("spool"), SPOOL_BYTES).expect("a spool");
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret".to_owned())];
    sender.start(&receiver.http, "http/protobuf", &headers).expect("it sends");
    sender.send(10, TimestampMs::now());
    wait_for_delivery(&sender);
    for beginning in beginnings {
        let silent: Vec<TcpStream> = (0..200)
            .map(|_| {
                let mut stream = TcpStream::connect(&http).expect("it listens");
                let _ = stream.write_all(beginning);
                stream
            })
            .collect();
        wait_until("an answer to a probe", || status(&probe("/livez")) == "200" && status(&probe("/readyz")) == "200");
        sender.send(10, TimestampMs::now());
        wait_for_delivery(&sender);
        drop(silent);
    }
    receiver.stop().expect("it ends well");
    assert_whole(&capture, sender.run_id(), sender.flows());
}

fn what_is_over_a_limit_is_told_to_wait_and_nothing_is_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    // 64 KiB per second, from a bucket of ten times that.
    let limits = [&QUICK[..], &["--client-rate-kib", "64"]].concat();
    let receiver = Receiver::start(executable(), &capture, &limits).expect("it receives");
    let (_, http) = receiver.addresses();
    for protocol in ["grpc", "http/protobuf"] {
        let endpoint = if protocol == "grpc" { &receiver.grpc } else { &receiver.http };
        let spool = directory.path().join(protocol);
        let mut sender = Sender::new(&protocol.replace('/', "-"), &spool, SPOOL_BYTES).expect("a spool");
        sender.start(endpoint, protocol, &[]).expect("it sends");
        for _ in 0..8 {
            sender.send(100, TimestampMs::now());
        }
        wait_for_delivery(&sender);
        let is_its = |row: &&FlowRecord| &*row.run_id == sender.run_id();
        let stats = sender.outbox.stats();
        assert!(stats.retries > 0 && stats.refused == 0 && stats.dropped == 0, "{protocol}: {stats:?}");
        wait_until("files of all of it", || {
            rows_so_far::<FlowRecord>(&capture).iter().filter(is_its).count() as i64 >= sender.flows()
        });
        assert_whole(&capture, sender.run_id(), sender.flows());
    }
    let mut sender = Sender::new("node-a", &directory.path().join("spool"), SPOOL_BYTES).expect("a spool");
    let answer =
        (0..20).map(|_| post(&http, PROTOBUF, &sender.request(100, TimestampMs::now()))).find(|a| a.contains(" 429 "));
    let answer = answer.expect("at some time it is too much").to_lowercase();
    assert!(answer.contains("retry-after: "), "{answer}");
    receiver.stop().expect("it ends well");
}

fn a_full_disk_is_told_and_what_comes_is_taken_once_there_is_room() -> Ran {
    let disk = small_disk(4 << 20)?;
    let directory = tempfile::tempdir().expect("a directory");
    let filler = disk.path().join("filler");
    let receiver = Receiver::start(executable(), &disk.path().join("capture"), &QUICK).expect("it receives");
    let mut sender = Sender::new("node-a", &directory.path().join("spool"), SPOOL_BYTES).expect("a spool");
    sender.start(&receiver.grpc, "grpc", &[]).expect("it sends");
    sender.send(100, TimestampMs::now());
    wait_for_delivery(&sender);
    // Whatever is left is taken.
    let mut file = fs::File::create(&filler).expect("there is room");
    while file.write_all(&[7; 4096]).is_ok() {}
    for _ in 0..20 {
        sender.send(500, TimestampMs::now());
    }
    wait_until("a refusal", || sender.outbox.stats().retries > 0);
    drop(file);
    fs::remove_file(&filler).expect("there was one");
    wait_for_delivery(&sender);
    assert_eq!(sender.outbox.stats().dropped + sender.outbox.stats().refused, 0);
    let log = receiver.stop().expect("it ends well");
    assert_whole(&disk.path().join("capture"), sender.run_id(), sender.flows());
    drop(log);
    Ok(())
}

fn nobody_writes_without_a_certificate_and_the_token() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("it signs");
    let server = issue(&authority, "localhost");
    let client = issue(&authority, "agent");
    let ca = file("ca.pem", &authority.pem());
    let (certificate, key) = (file("tls.crt", &server.0), file("tls.key", &server.1));
    let (client_certificate, client_key) = (file("client.crt", &client.0), file("client.key", &client.1));
    let token = file("token", "hunter2\n");
    let capture = directory.path().join("capture");

    let open = Receiver::at(executable(), &capture, ("0.0.0.0:0", "127.0.0.1:0"), &QUICK);
    let said = open.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("can be reached by others") && said.contains("--insecure"), "{said}");

    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &ca, "--token-file", &token];
    let receiver = Receiver::start(executable(), &capture, &[&QUICK[..], &tls].concat()).expect("it receives");
    let variables = |token: &str, with_client: bool| {
        let mut variables = vec![
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.clone()),
            ("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{token}")),
        ];
        if with_client {
            variables.push(("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", client_certificate.clone()));
            variables.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY", client_key.clone()));
        }
        variables
    };
    for protocol in ["grpc", "http/protobuf"] {
        let endpoint = if protocol == "grpc" { &receiver.grpc } else { &receiver.http };
        let endpoint = endpoint.replace("127.0.0.1", "localhost");
        let sender = |name: &str, token: &str, with_client: bool| {
            let spool = directory.path().join(protocol).join(name);
            let mut sender = Sender::new(name, &spool, SPOOL_BYTES).expect("a spool");
            sender.start(&endpoint, protocol, &variables(token, with_client)).expect("it sends");
            sender.send(100, TimestampMs::now());
            sender
        };
        let good = sender("good", "hunter2", true);
        wait_for_delivery(&good);
        assert_eq!((good.outbox.stats().sent, good.outbox.stats().refused), (1, 0), "{protocol}");
        let wrong = sender("wrong", "hunter3", true);
        wait_until("a refusal", || wrong.outbox.stats().refused == 1);
        assert_eq!(wrong.outbox.take_lost_ends(), 100, "what is refused is counted");
        let anonymous = sender("anonymous", "hunter2", false);
        wait_until("a failed handshake", || anonymous.outbox.stats().retries > 0);
        assert_eq!(anonymous.outbox.stats().sent, 0);
    }
    let log = receiver.stop().expect("it ends well");
    assert!(!log.contains("hunter"), "no secret is ever logged: {log}");
    let nodes: std::collections::BTreeSet<_> = rows::<FlowRecord>(&capture).into_iter().map(|row| row.node).collect();
    assert_eq!(nodes.into_iter().map(|node| node.to_string()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(rows::<HealthRecord>(&capture), []);
}

/// A certificate and a key that an authority gives to somebody, in PEM.
fn issue(authority: &CertifiedIssuer<'_, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([name.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, authority).expect("it signs");
    (certificate.pem(), key.serialize_pem())
}
