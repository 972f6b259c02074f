//! The questions of the cookbook on a real Ballista cluster, a scheduler and two executors, with the answers that there are
//! without one.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use testdata::generator::{Plan, generate};

/// A process that ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(arguments: &[&str], log: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.arg("flowscribe").args(arguments).stdout(Stdio::null());
    command.stderr(fs::File::create(log).expect("a log"));
    Running(command.spawn().expect("flowscribe starts"))
}

fn flowscribe(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lab")).arg("flowscribe").args(arguments).output();
    let output = output.expect("flowscribe starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// Addresses at which nobody listens.
fn free<const N: usize>() -> [String; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address").to_string())
}

#[test]
fn the_cookbook_has_the_same_answers_on_a_cluster() {
    let root = tempfile::tempdir().expect("a directory");
    let capture = root.path().join("capture");
    // Ten days, in which most stories happen.
    generate(&Plan { hours: 240, ..Plan::month(3) }, &capture).expect("written");
    let [scheduler, first, first_control, second, second_control] = free();
    let log = |name: &str| root.path().join(name);
    let cluster = run(&["ballista-scheduler", "--address", &scheduler], &log("scheduler"));
    wait_for(&scheduler);
    let executor = |address: &str, control: &str, name: &str| {
        let work = root.path().join(name);
        fs::create_dir(&work).expect("made");
        let work = work.to_string_lossy().into_owned();
        let of = [
            "--scheduler",
            &scheduler,
            "--address",
            address,
            "--control-address",
            control,
            "--work-dir",
            &work,
            "--tasks",
            "1",
        ];
        let running = run(&[&["ballista-executor"], &of[..]].concat(), &log(&format!("{name}.log")));
        wait_for(address);
        running
    };
    let executors = [executor(&first, &first_control, "first"), executor(&second, &second_control, "second")];

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../analyzer/COOKBOOK.md");
    let text = fs::read_to_string(path).expect("the cookbook is there");
    let questions: Vec<&str> =
        text.split("```sql\n").skip(1).map(|rest| rest.split_once("```").expect("an end").0).collect();
    assert!(questions.len() >= 15, "{}", questions.len());
    let (file, input) = (root.path().join("questions.sql"), capture.to_string_lossy().into_owned());
    // And what goes through the flows in full.
    let more = "select source_namespace, transport, count(*) as rows, sum(bytes_sent) as bytes, \
        rtt_quantile_us(rtt_us_hist, 0.5) as median from flows group by 1, 2 order by 1, 2";
    fs::write(&file, [&questions[..], &[more]].concat().join(";\n")).expect("written");
    let file = file.to_string_lossy().into_owned();
    let url = format!("df://{scheduler}");
    let share = root.path().to_string_lossy().into_owned();
    let asked = ["sql", "--input", &input, "--query-file", &file, "--format", "csv"];
    let params = ["--param", "namespace=shop", "--param", "workload=app-0", "--param", "date=2026-03-06"];
    let (worked, alone, said) = flowscribe(&[&asked[..], &params].concat());
    assert!(worked, "{said}");
    let on_cluster = ["--ballista", &url, "--ballista-share", &share];
    let (worked, together, said) = flowscribe(&[&asked[..], &params, &on_cluster].concat());
    let logs =
        || ["scheduler", "first.log", "second.log"].map(|name| fs::read_to_string(log(name)).unwrap_or_default());
    assert!(worked, "{said}\n{:?}", logs());
    assert!(alone.lines().count() > 60, "there are answers: {alone}");
    let differs = alone.lines().zip(together.lines()).find(|(a, b)| a != b);
    assert!(alone == together, "{differs:?}");
    // Both executors have worked: there is what they made.
    for name in ["first", "second"] {
        let made = fs::read_dir(root.path().join(name)).expect("there").count();
        assert!(made > 0, "{name} had nothing to do: {:?}", logs());
    }
    let left = fs::read_dir(root.path()).expect("there").flatten();
    let left: Vec<_> = left.filter(|e| e.file_name().to_string_lossy().starts_with("flowscribe-")).collect();
    assert!(left.is_empty(), "what was derived is removed: {left:?}");
    drop(executors);
    drop(cluster);
    let (worked, _, said) = flowscribe(&["sql", "--input", &input, "--ballista", &url, "select count(*) from flows"]);
    assert!(!worked && said.contains("flowscribe: "), "a cluster that is gone is named: {said}");
}

fn wait_for(address: &str) {
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(180), "nobody listens at {address}");
        thread::sleep(Duration::from_millis(100));
    }
}
