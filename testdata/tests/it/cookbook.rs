//! Every question of the cookbook, asked of a generated month, against its truth.

use std::{collections::BTreeMap, fs, path::Path};

use schemas::table::TimestampMs;
use testdata::generator::{TrueEdge, TrueEvidence, Truth};

use crate::months::{flowscribe, month};

tests![every_question_of_the_cookbook_is_answered_with_the_truth,];

/// The questions, by their headings.
fn questions() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../analyzer/COOKBOOK.md");
    let text = fs::read_to_string(path).expect("the cookbook is there");
    let question = |section: &str| {
        let (heading, rest) = section.split_once('\n').expect("a heading");
        let query = rest.split_once("```sql\n").and_then(|(_, rest)| rest.split_once("```")).expect("a query").0;
        (heading.to_owned(), query.to_owned())
    };
    text.split("\n## ").skip(1).map(question).collect()
}

/// The answers to all questions, asked at once: of each its rows.
fn ask(questions: &BTreeMap<String, String>) -> Vec<Vec<String>> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), questions.values().cloned().collect::<Vec<_>>().join(";\n")).expect("written");
    let (input, path) = (month().directory.to_string_lossy(), file.path().to_string_lossy());
    let params = ["namespace=shop", "workload=app-0", "date=2026-03-26"];
    let mut arguments = vec!["sql", "--input", &*input, "--query-file", &*path, "--format", "csv"];
    params.iter().for_each(|param| arguments.extend(["--param", param]));
    let (out, _) = flowscribe(&arguments);
    out.split("\n\n").map(|answer| answer.lines().skip(1).map(str::to_owned).collect()).collect()
}

fn every_question_of_the_cookbook_is_answered_with_the_truth() {
    let (questions, answers) = (questions(), answers(&month().truth));
    assert!(questions.len() >= 15, "{}", questions.len());
    assert_eq!(questions.keys().collect::<Vec<_>>(), answers.keys().collect::<Vec<_>>(), "each has its truth");
    for ((heading, expected), found) in answers.iter().zip(ask(&questions)) {
        assert!(!expected.is_empty(), "{heading}: the month has nothing to answer with");
        assert_eq!(&found, expected, "{heading}");
    }
}

/// What the answers have to be, by heading.
fn answers(truth: &Truth) -> BTreeMap<&'static str, Vec<String>> {
    let mut answers = of_sets(truth);
    answers.extend(of_pairs(truth));
    answers.extend(of_the_outside(truth));
    answers.extend(of_time(truth));
    answers
}

fn of_sets(truth: &Truth) -> BTreeMap<&'static str, Vec<String>> {
    let mut of_app: Vec<String> = Vec::new();
    for (edge, told) in truth.edges.iter().filter(|(_, told)| !told.hours.is_empty()) {
        let rest = format!("{},{},{}", edge.transport, edge.port, told.connections);
        if edge.source == "shop/app-0" {
            of_app.push(format!("egress,{},{rest}", edge.destination));
        }
        if edge.destination == "shop/app-0" {
            of_app.push(format!("ingress,{},{rest}", edge.source));
        }
    }
    of_app.sort();
    let gone =
        TrueEdge { source: "shop/app-3".into(), destination: "shop/ledger".into(), transport: "tcp", port: 8080 };
    let last = time(*truth.edges[&gone].hours.last().expect("it was there"));
    let share = |(ran, observed): &(i64, i64)| *observed as f64 / *ran as f64;
    let coverage = truth.pod_time_ms.iter().map(|(name, time)| (share(time), name)).filter(|(share, _)| *share < 0.95);
    let mut coverage: Vec<_> = coverage.map(|(share, name)| ((share * 1000.0).round() / 1000.0, name)).collect();
    coverage.sort_by(|a, b| a.0.total_cmp(&b.0).then(short(a.1).cmp(short(b.1))));
    let coverage = coverage.into_iter().map(|(share, name)| format!("{},{share:?}", named(name)));
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    BTreeMap::from([
        ("Everything that one workload talks to", of_app),
        (
            "What is held for review, and why",
            lines(&[
                "shop,app-4,app-5,9999,\"burst: within 2 hours from 2026-03-06T00:00:00Z, and not in the 622 hours in \
                 which it could have been seen again\"",
                "tools,debug,app-2,8080,\"one-off: tools/debug is a pod without an owner, ran for 1 hour, and is gone\"",
                "tools,scanner,app-0,8080,\"scan: seen only while tools/scanner tried many others, and almost all failed\"",
            ]),
        ),
        (
            "Jobs that come back",
            lines(&["month-end,,1,app-1,8080", "nightly,daily,31,app-0,8080", "weekly,weekly,5,app-0,8080"]),
        ),
        (
            "What is not used any more",
            vec![format!("shop,app-3,egress,ledger,8080,{last}"), format!("shop,ledger,ingress,app-3,8080,{last}")],
        ),
        ("Workloads that were not watched all the time", coverage.collect()),
        (
            "When nodes were not watched",
            lines(&[
                "control-plane,2026-03-01T00:00:00Z,2026-04-01T00:00:00Z,no agent",
                "node-1,2026-03-11T00:00:00Z,2026-03-12T12:00:00Z,no news",
                "node-3,2026-03-01T00:00:00Z,2026-04-01T00:00:00Z,no agent",
            ]),
        ),
    ])
}

fn of_pairs(truth: &Truth) -> BTreeMap<&'static str, Vec<String>> {
    let edges = || truth.edges.iter();
    let between_pods = || edges().filter(|(edge, _)| is_pod(&edge.source) && is_pod(&edge.destination));

    let mut talkers: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for (edge, told) in edges().filter(|(edge, _)| is_pod(&edge.source)) {
        let (bytes, connections) = talkers.entry(&edge.source).or_default();
        (*bytes, *connections) = (*bytes + told.bytes_sent, *connections + told.connections);
    }
    let mut talkers: Vec<_> = talkers.into_iter().collect();
    talkers.sort_by_key(|(name, (bytes, _))| (-bytes, short(name)));
    let talkers = talkers.into_iter().take(5).map(|(name, (bytes, made))| format!("{},{bytes},{made}", named(name)));

    let mut failed: Vec<_> = between_pods().filter(|(_, told)| told.failed > 0 && told.hours.is_empty()).collect();
    failed.sort_by_key(|(edge, told)| (-told.failed, short(&edge.destination)));
    let failed = failed.into_iter().map(|(edge, told)| {
        format!("{},{},{},{},[refused]", named(&edge.source), named(&edge.destination), edge.port, told.failed)
    });

    let scanned = || edges().filter(|(edge, _)| edge.source == "tools/scanner");
    let in_vain = scanned().filter(|(_, told)| told.hours.is_empty()).count();
    let scan = format!("tools,scanner,2026-03-12T00:00:00Z,{},{in_vain}", scanned().count());

    let mut crossed: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (edge, told) in edges() {
        *crossed.entry((short(&edge.source), short(&edge.destination))).or_default() += told.cross_zone_bytes;
    }
    let mut crossed: Vec<_> = crossed.into_iter().filter(|(_, bytes)| *bytes > 0).collect();
    crossed.sort_by_key(|(pair, bytes)| (-bytes, *pair));
    let crossed = crossed.into_iter().take(10).map(|((from, to), bytes)| format!("{from},{to},{bytes}"));

    let lasting = between_pods().filter(|(_, told)| told.connections > 0);
    let pair = |edge: &TrueEdge| format!("{},{},{}", short(&edge.source), short(&edge.destination), edge.port);
    let mut lasting: Vec<_> =
        lasting.map(|(edge, told)| (-(told.duration_ms / told.connections), pair(edge))).collect();
    lasting.sort();
    let lasting = lasting.into_iter().take(5).map(|(mean, pair)| format!("{pair},{}", -mean));

    let one_sided = between_pods().filter(|(_, told)| told.seen_by != (true, true) && !told.hours.is_empty());
    let end = |told: &TrueEvidence| if told.seen_by.0 { "client" } else { "server" };
    let mut one_sided: Vec<_> = one_sided.map(|(edge, told)| format!("{},{}", pair(edge), end(told))).collect();
    one_sided.sort();

    BTreeMap::from([
        ("Who talks most", talkers.collect()),
        ("Failed attempts by pair", failed.collect()),
        ("Who scans: many destinations tried, and nearly all in vain", vec![scan]),
        ("Bytes that cross zones", crossed.collect()),
        ("The longest connections", lasting.collect()),
        ("Edges that only one end saw", one_sided),
    ])
}

fn of_the_outside(truth: &Truth) -> BTreeMap<&'static str, Vec<String>> {
    let established = || truth.edges.iter().filter(|(_, told)| !told.hours.is_empty());
    let outward = || established().filter(|(edge, _)| is_outside(&edge.destination));
    let leaves = outward().map(|(edge, told)| {
        let TrueEdge { source, destination, transport, port } = edge;
        format!("{},{destination},{transport},{port},{}", named(source), told.connections)
    });
    let beyond = outward().filter(|(edge, _)| {
        let last = edge.destination.rsplit('.').next().and_then(|last| last.parse::<u8>().ok());
        last.is_none_or(|last| last > 3)
    });
    let beyond = beyond.map(|(edge, _)| format!("{},{},{}", short(&edge.source), edge.destination, edge.port));
    let inward = established().filter(|(edge, _)| is_outside(&edge.source));
    let mut inward: Vec<_> = inward
        .map(|(edge, told)| format!("{},203.0.113.0/24,{},{}", named(&edge.destination), edge.port, told.connections))
        .collect();
    inward.sort();
    let api = established().filter(|(edge, _)| edge.port == 6443);
    let api = api.map(|(edge, told)| format!("{},{},6443,{}", named(&edge.source), edge.destination, told.connections));
    let dns = established().filter(|(edge, _)| edge.port == 53);
    let dns = dns.map(|(edge, told)| format!("{},{}", named(&edge.source), told.connections));
    BTreeMap::from([
        ("Where traffic leaves the cluster", leaves.collect()),
        ("External destinations outside of an allowed range", beyond.collect()),
        ("Who is reached from outside", inward),
        ("Who talks to the API server", api.collect()),
        ("Who asks DNS, and how often", dns.collect()),
    ])
}

fn of_time(truth: &Truth) -> BTreeMap<&'static str, Vec<String>> {
    let since = 1_774_483_200 / 3600; // 2026-03-26
    let new = truth.edges.iter().filter(|(edge, _)| is_pod(&edge.source) && is_pod(&edge.destination));
    let mut new: Vec<_> =
        new.filter_map(|(edge, told)| Some((*told.hours.first()?, edge))).filter(|(hour, _)| *hour >= since).collect();
    new.sort_by_key(|(hour, edge)| (*hour, short(&edge.source)));
    let new = new.into_iter().map(|(hour, edge)| {
        format!("{},{},{},{}", named(&edge.source), named(&edge.destination), edge.port, time(hour))
    });
    let days = truth.connections_by_day.iter().map(|(day, made)| format!("{},{made}", time(day * 24)));
    let apps: BTreeMap<&str, u64> = truth.client_rows.iter().map(|(name, rows)| (short(name), *rows)).collect();
    // The generator gives app N round-trip times of bucket N % 4.
    let rtt = truth.client_rows.keys().filter_map(|name| {
        let number: u32 = name.strip_prefix("shop/app-")?.parse().ok()?;
        let below = 64 << (2 * (number % 4));
        Some(format!("{},{below},{below}", short(name)))
    });
    BTreeMap::from([
        ("Edges that are new since a date", new.collect()),
        ("Connections per day", days.collect()),
        ("Traffic by a label of the client", apps.into_iter().map(|(app, rows)| format!("{app},{rows}")).collect()),
        ("Round-trip times by client", rtt.collect()),
    ])
}

/// Namespace and name as two columns.
fn named(name: &str) -> String {
    name.replace('/', ",")
}

fn short(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, name)| name)
}

fn is_pod(name: &str) -> bool {
    name.contains('/')
}

fn is_outside(name: &str) -> bool {
    name.starts_with("198.51.100.") || name.starts_with("203.0.113.")
}

fn time(hour: u32) -> String {
    TimestampMs(i64::from(hour) * 3_600_000).to_string()
}
