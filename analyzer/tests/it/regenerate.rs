//! A set of policies that is kept up to date: in a directory, and on a branch.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    thread,
};

use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::TimestampMs,
};
use serde_json::json;

use crate::support::{Capture, DB, START_MS, WEB, flowscribe, web_and_db};

const CACHE: &str = "10.244.0.31";

/// `demo/web` begins to talk to `demo/cache` too.
fn with_cache() -> Capture {
    let mut capture = web_and_db();
    capture.pod("demo/cache", CACHE);
    capture.talk(WEB, CACHE, 6379);
    capture
}

fn regenerate(capture: &Capture, more: &[&str]) -> Output {
    let input = capture.write();
    let input = input.path().to_string_lossy().into_owned();
    flowscribe(&[&["regenerate", "--input", &input], more].concat())
}

/// What a run that went well said, on standard output and on standard error.
fn said(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{} {}", said.0, said.1);
    said
}

fn files(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    entries.filter(|path| path.is_file()).map(|path| (name(&path), fs::read_to_string(&path).expect("text"))).collect()
}

#[test]
fn a_new_edge_is_told_and_nothing_else_is() {
    let place = tempfile::tempdir().expect("a directory");
    let policies = place.path().join("policies").to_string_lossy().into_owned();
    let output = ["--output", policies.as_str(), "--exit-code"];
    let (first, _) = said(&regenerate(&web_and_db(), &output), 3);
    assert!(first.contains("~ demo/db: ingress closed\n") && first.contains("written to "), "{first}");
    let before = files(Path::new(&policies));
    let names = ["demo.db-network.yaml", "demo.web-network.yaml", "diff.md", "evidence.json", "kustomization.yaml"];
    assert_eq!(before.keys().map(String::as_str).collect::<Vec<_>>(), names);

    let silent = said(&regenerate(&web_and_db(), &output), 0);
    assert_eq!(silent, (String::new(), String::new()), "nothing is different");
    let mut busier = web_and_db();
    busier.talk(WEB, DB, 5432);
    assert_eq!(said(&regenerate(&busier, &output), 0), (String::new(), String::new()), "more of the same is no news");
    assert_eq!(files(Path::new(&policies)), before, "nor is anything written");

    let (told, _) = said(&regenerate(&with_cache(), &output), 3);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "~ demo/cache: ingress closed",
            "~ demo/cache: egress closed",
            "+ demo/web → demo/cache TCP 6379",
            "1 edges added, 0 removed, 1 unchanged; 2 directions closed, 0 opened; 2 workloads affected"
        ],
        "{told}"
    );
    let after = files(Path::new(&policies));
    assert!(after["diff.md"].contains("- `demo/web → demo/cache TCP 6379`"), "{}", after["diff.md"]);
    assert_eq!(after["demo.db-network.yaml"], before["demo.db-network.yaml"]);

    fs::write(Path::new(&policies).join("mine.yaml"), "kind: ConfigMap\n").expect("written");
    let (told, _) = said(&regenerate(&web_and_db(), &output), 3);
    assert!(told.contains("- demo/web → demo/app=cache TCP 6379\n"), "{told}");
    let last = files(Path::new(&policies));
    assert!(!last.contains_key("demo.cache-network.yaml") && last.contains_key("mine.yaml"), "{:?}", last.keys());
}

#[test]
fn a_set_that_was_damaged_is_written_again() {
    let place = tempfile::tempdir().expect("a directory");
    let policies = place.path().to_string_lossy().into_owned();
    said(&regenerate(&web_and_db(), &["--output", &policies]), 0);
    let before = files(place.path());
    for (what, with) in [("port: 5432", "port: 543210"), ("app: db", "app: '-'"), ("  ingress:", "  ingress: {")] {
        let damaged = before["demo.db-network.yaml"].replace(what, with);
        assert_ne!(damaged, before["demo.db-network.yaml"]);
        fs::write(place.path().join("demo.db-network.yaml"), &damaged).expect("written");
        let output = regenerate(&web_and_db(), &["--output", &policies, "--exit-code"]);
        if with.ends_with('{') {
            // What can't be read is not known to be ours.
            let (_, error) = said(&output, 2);
            assert!(error.contains("demo.db-network.yaml is not one that flowscribe wrote"), "{error}");
        } else {
            said(&output, 3);
            assert_eq!(files(place.path())["demo.db-network.yaml"], before["demo.db-network.yaml"]);
        }
    }
}

#[test]
fn what_stays_when_it_fails_is_the_last_set() {
    let place = tempfile::tempdir().expect("a directory");
    let policies = place.path().to_string_lossy().into_owned();
    let metrics = place.path().join("flowscribe.prom").to_string_lossy().into_owned();
    let with = ["--output", policies.as_str(), "--metrics-file", &metrics];
    said(&regenerate(&web_and_db(), &with), 0);
    let told = fs::read_to_string(&metrics).expect("metrics");
    assert!(told.contains("flowscribe_regenerate_last_run_success 1\n"), "{told}");
    assert!(told.contains("flowscribe_regenerate_policies 2\n"), "{told}");
    let before = files(place.path());

    let empty = tempfile::tempdir().expect("a directory");
    let input = empty.path().to_string_lossy().into_owned();
    let (_, error) = said(&flowscribe(&[&["regenerate", "--input", &input], &with[..]].concat()), 2);
    assert!(error.contains("no capture in") && error.contains("the last set stays"), "{error}");
    let told = fs::read_to_string(&metrics).expect("metrics");
    assert!(told.contains("flowscribe_regenerate_last_run_success 0\n"), "{told}");
    let (_, error) = said(&regenerate(&web_and_db(), &[&with[..], &["--namespaces", "dmo"]].concat()), 2);
    assert!(error.contains("no pod of dmo is known, only some of demo"), "{error}");
    let mut nameless = web_and_db();
    nameless.inventory.clear();
    let (_, error) = said(&regenerate(&nameless, &with), 2);
    assert!(error.contains("no inventory in "), "{error}");
    fs::write(place.path().join("demo.cache-network.yaml"), "kind: Secret\n").expect("written");
    let (_, error) = said(&regenerate(&with_cache(), &with), 2);
    assert!(error.contains("demo.cache-network.yaml is not one that flowscribe wrote"), "{error}");
    let mut after = files(place.path());
    after.retain(|name, _| before.contains_key(name) && name != "flowscribe.prom");
    assert!(after.iter().all(|(name, text)| before[name] == *text), "nothing was written");
    assert_eq!(regenerate(&web_and_db(), &[]).status.code(), Some(2), "a place has to be named");
    let both = regenerate(&web_and_db(), &["--output", &policies, "--git", &policies]);
    assert_eq!(both.status.code(), Some(2), "one place");
}

fn git(repository: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(repository).args(arguments).output().expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn each_change_is_a_commit_and_nothing_else_gets_into_it() {
    let repository = tempfile::tempdir().expect("a directory");
    let at = repository.path();
    git(at, &["init", "--quiet", "--initial-branch", "main"]);
    for (key, value) in [("user.name", "Somebody"), ("user.email", "somebody@example.com")] {
        git(at, &["config", key, value]);
    }
    fs::write(at.join("README"), "theirs\n").expect("written");
    git(at, &["add", "README"]);
    git(at, &["commit", "--quiet", "--message", "Begin"]);
    fs::write(at.join("README"), "unfinished\n").expect("written");
    git(at, &["add", "README"]);
    let path = at.to_string_lossy().into_owned();
    let to = ["--git", path.as_str(), "--git-path", "clusters/demo"];

    let (told, _) = said(&regenerate(&web_and_db(), &to), 0);
    assert!(told.contains("written to branch flowscribe of "), "{told}");
    said(&regenerate(&web_and_db(), &to), 0);
    said(&regenerate(&with_cache(), &to), 0);
    let log = git(at, &["log", "--format=%an: %s", "flowscribe"]);
    let of = "Somebody: Update network policies:";
    assert_eq!(
        log.lines().collect::<Vec<_>>(),
        [&format!("{of} 1 edges added, 2 directions closed"), &format!("{of} 4 directions closed"), "Somebody: Begin"],
    );
    let changed = git(at, &["show", "--format=", "--name-status", "flowscribe"]);
    let expected = ["A\tclusters/demo/demo.cache-network.yaml", "M\tclusters/demo/demo.web-network.yaml"];
    assert!(expected.iter().all(|line| changed.lines().any(|of| of == *line)), "{changed}");
    assert_eq!(git(at, &["show", "flowscribe:README"]), "theirs\n", "what is staged is theirs");
    assert_eq!(git(at, &["status", "--short"]), "M  README\n", "what is checked out is as it was");

    git(at, &["commit", "--quiet", "--message", "Finish"]);
    git(at, &["checkout", "--quiet", "flowscribe"]);
    fs::write(at.join("clusters/demo/demo.web-network.yaml"), "edited\n").expect("written");
    let (_, error) = said(&regenerate(&web_and_db(), &to), 2);
    assert!(error.contains("clusters/demo/demo.web-network.yaml is not committed there"), "{error}");
    git(at, &["checkout", "--quiet", "clusters"]);
    said(&regenerate(&web_and_db(), &to), 0);
    assert_eq!(git(at, &["status", "--short"]), "", "what is checked out follows");
    assert!(!at.join("clusters/demo/demo.cache-network.yaml").exists());

    let elsewhere = tempfile::tempdir().expect("a directory");
    let (_, error) = said(&regenerate(&web_and_db(), &["--git", &elsewhere.path().to_string_lossy()]), 2);
    assert!(error.contains("is no Git repository"), "{error}");
    // A folder of a repository is none.
    let (_, error) = said(&regenerate(&web_and_db(), &["--git", &at.join("clusters").to_string_lossy()]), 2);
    assert!(error.contains("is no Git repository"), "{error}");
}

#[test]
fn a_commit_needs_git_and_nothing_else() {
    let repository = tempfile::tempdir().expect("a directory");
    let path = repository.path().to_string_lossy().into_owned();
    // A bare repository without a commit, whose user nobody knows, and a directory of an odd name.
    git(repository.path(), &["init", "--quiet", "--bare"]);
    let (input, odd) = (web_and_db().write(), "Ümläut \"quoted\" \\ dir");
    let run = |path_variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowscribe"));
        command.args(["regenerate", "--input"]).arg(input.path()).args(["--git", &path, "--git-path", odd]);
        command.env_clear().env("PATH", path_variable).env("HOME", "/nowhere");
        command.output().expect("flowscribe runs")
    };
    let (_, error) = said(&run("/nowhere"), 2);
    assert!(error.contains("cannot run git, which --git needs: install it"), "{error}");
    let path_variable = std::env::var("PATH").expect("there is one");
    let (printed, _) = said(&run(&path_variable), 0);
    assert!(printed.contains("written to branch flowscribe of "), "{printed}");
    assert_eq!(
        git(repository.path(), &["log", "--format=%an <%ae>", "flowscribe"]),
        "flowscribe <flowscribe@localhost>\n"
    );
    let files = git(repository.path(), &["ls-tree", "-r", "-z", "--name-only", "flowscribe"]);
    assert!(files.split('\0').any(|file| file == format!("{odd}/demo.web-network.yaml")), "{files}");
    assert_eq!(said(&run(&path_variable), 0).0, "", "what was committed is read again");
}

#[test]
fn what_is_of_a_namespace_that_was_deleted_is_left_out() {
    let mut capture = web_and_db();
    capture.pod("shop/cart", CACHE);
    capture.talk(CACHE, DB, 5432);
    for name in ["demo", "shop"] {
        capture.object(ObjectKind::Namespace, None, name).uid = Some(name.into());
    }
    let is_shops = |row: &&InventoryRecord| {
        row.namespace.as_deref() == Some("shop") || *row.kind == ObjectKind::Namespace && &*row.name == "shop"
    };
    let ends: Vec<InventoryRecord> = capture.inventory.iter().filter(is_shops).cloned().collect();
    assert_eq!(ends.len(), 3, "its pod, what owns that, and itself");
    let ends = ends.into_iter().zip(100..).map(|(row, seq)| InventoryRecord {
        event: "delete".into(),
        observed_at: TimestampMs(START_MS + 60_000),
        seq,
        ..row
    });
    let ends: Vec<InventoryRecord> = ends.collect();
    let names = |capture: &Capture| capture.report().names();
    assert_eq!(names(&capture), ["demo/db-network", "demo/web-network", "shop/cart-network"]);
    capture.inventory.extend(ends);
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(report.said.contains("namespace shop: no policies, it was deleted"), "{}", report.said);
    assert!(report.yaml.contains("app: cart"), "what others allowed it is allowed");
    // Where nobody may see namespaces any more, none is taken for deleted.
    let mut blind = capture.clone();
    let all = blind.inventory.iter().find(|row| *row.kind == ObjectKind::Namespace && &*row.name == "demo").cloned();
    let all = all.expect("it is there");
    blind.inventory.push(InventoryRecord {
        event: "delete".into(),
        observed_at: TimestampMs(START_MS + 70_000),
        seq: 103,
        ..all
    });
    assert_eq!(names(&blind).len(), 3);
    // And made again.
    let again = capture.object(ObjectKind::Namespace, None, "shop");
    (again.uid, again.event) = (Some("again".into()), "upsert".into());
    (again.observed_at, again.seq) = (TimestampMs(START_MS + 90_000), 103);
    assert_eq!(names(&capture).len(), 3);
}

#[test]
fn a_set_can_be_read_out_of_its_config_map() {
    let place = tempfile::tempdir().expect("a directory");
    let policies = place.path().join("policies");
    said(&regenerate(&web_and_db(), &["--output", &policies.to_string_lossy()]), 0);
    let map = |label: &str| {
        let metadata = json!({ "name": "policies", "labels": { "app.kubernetes.io/managed-by": label } });
        let file = place.path().join(format!("{label}.yaml"));
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files(&policies) });
        fs::write(&file, map.to_string()).expect("written");
        file.to_string_lossy().into_owned()
    };
    let policies = policies.to_string_lossy();
    let differ = |file: &str| flowscribe(&["diff", &policies, file]).status.code();
    assert_eq!(differ(&map("flowscribe")), Some(0));
    assert_ne!(differ(&map("somebody")), Some(0), "another's is no set");
}

#[test]
fn metrics_are_pushed_to_a_gateway() {
    let place = tempfile::tempdir().expect("a directory");
    let output = place.path().join("policies").to_string_lossy().into_owned();
    let gateway = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}/", gateway.local_addr().expect("it has an address"));
    let pushed = thread::spawn(move || {
        let (stream, _) = gateway.accept().expect("somebody pushes");
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            reader.read_line(&mut head).expect("a line");
            if let Some(bytes) = head[start..].to_lowercase().strip_prefix("content-length: ") {
                length = bytes.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        reader.get_mut().write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").expect("it is there");
        (head, String::from_utf8(body).expect("text"))
    });
    said(&regenerate(&web_and_db(), &["--output", &output, "--push-gateway", &url]), 0);
    let (head, body) = pushed.join().expect("it was pushed");
    assert!(head.starts_with("PUT /metrics/job/flowscribe-regenerate HTTP/1.1"), "{head}");
    for metric in ["last_run_success 1", "policies 2", "edges_removed 0"] {
        assert!(body.contains(&format!("\nflowscribe_regenerate_{metric}\n")), "{metric}: {body}");
    }
    // Nobody there: the set is written, and the run says what failed.
    let nobody = said(&regenerate(&with_cache(), &["--output", &output, "--push-gateway", &url]), 2).1;
    assert!(nobody.contains(&format!("cannot push metrics to {}metrics/job/", url)), "{nobody}");
    assert!(files(Path::new(&output)).contains_key("demo.cache-network.yaml"));
}
