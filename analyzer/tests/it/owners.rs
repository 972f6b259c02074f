//! Whose pods are whose: what controllers make anew for each run, pods that nothing owns, and those that their node does; and
//! what else the labels of pods and Services decide.

use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::TimestampMs,
};

use crate::support::{Capture, DB, START_MS, WEB, flowscribe, later, limits, lines, web_and_db};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A row of the inventory that changes another one some time after the start.
fn changed(capture: &mut Capture, row: &InventoryRecord, after_ms: i64, event: &str, labels: Option<&str>) {
    let mut row = row.clone();
    (row.seq, row.observed_at, row.event) =
        (capture.inventory.len() as i64, TimestampMs(START_MS + after_ms), event.into());
    row.labels = labels.map(Into::into).or(row.labels);
    capture.inventory.push(row);
}

/// A capture of some days in which tasks of Airflow's kind, without an owner, ask the database, two a day at first.
fn tasks(days: i64, tasks: i64) -> Capture {
    let mut capture = web_and_db();
    for task in 0..tasks {
        let (address, at) = (format!("10.244.1.{}", task + 1), task * 12 * HOUR_MS);
        let labels = format!(
            r#"{{"component":"worker","release":"etl","dag_id":"d{task}","run_id":"r{task}","try_number":"1"}}"#
        );
        let pod = capture.bare_pod(&format!("demo/etl-load-9af{task}c{task}"), &address, &labels);
        (pod.observed_at, pod.event) = (TimestampMs(START_MS + at), "upsert".into());
        let pod = pod.clone();
        changed(&mut capture, &pod, at + HOUR_MS / 6, "delete", None);
        later(capture.dial(&address, DB, 5432), at);
        later(capture.accept(DB, &address, 5432), at);
    }
    for day in 0..=days {
        later(capture.dial(WEB, DB, 5432), day * DAY_MS);
        later(capture.accept(DB, WEB, 5432), day * DAY_MS);
    }
    let mut end = capture.clean_end();
    end.window_end = TimestampMs(START_MS + days * DAY_MS + HOUR_MS);
    capture.health.push(end);
    capture
}

#[test]
fn tasks_that_nothing_owns_are_one_workload_by_what_they_have_in_common() {
    let report = tasks(3, 6).report();
    let expected = lines(["ingress app=web 5432/TCP", "ingress component=worker,release=etl 5432/TCP"]);
    assert_eq!(report.allows("demo/db-network"), expected, "{}", report.said);
    assert_eq!(report.names(), ["demo/db-network", "demo/etl-worker-network", "demo/web-network"]);
    assert_eq!(report.selector("demo/etl-worker-network"), "component=worker,release=etl");
    let [first, last] = [3, 4].map(|days| tasks(days, 6).report());
    assert_eq!(first.names(), last.names(), "a day without one changes nothing");
    assert_eq!(first.allows("demo/db-network"), last.allows("demo/db-network"));
}

#[test]
fn a_task_that_ran_once_is_named_and_held_by_what_it_is() {
    let report = tasks(3, 1).report();
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    let said =
        "demo/etl-worker → demo/db 5432/TCP: held for review, one-off: demo/etl-worker is a pod without an owner";
    assert!(report.said.contains(said), "{}", report.said);
}

#[test]
fn a_pin_for_a_namespace_is_one_rule_for_what_they_have_in_common() {
    let report = tasks(3, 6).report_decided("pin: [{ from: 'demo/*', to: demo/db, port: 5432 }]");
    assert!(report.names().len() == 3 && report.rules("demo/db-network", "ingress") == 1, "{}", report.yaml);
}

#[test]
fn static_pods_are_workloads_of_their_own() {
    let mut capture = web_and_db();
    for (name, address) in [("etcd", "10.244.0.61"), ("scheduler", "10.244.0.62")] {
        let labels = format!(r#"{{"component":"{name}","tier":"control-plane"}}"#);
        let pod = capture.bare_pod(&format!("kube-system/{name}-node-a"), address, &labels);
        (pod.owner_kind, pod.owner) = (Some("Node".into()), Some("node-a".into()));
        capture.talk(WEB, address, 2379);
    }
    let report = capture.report();
    assert_eq!(report.selector("kube-system/etcd-network"), "component=etcd,tier=control-plane");
    assert_eq!(report.selector("kube-system/scheduler-network"), "component=scheduler,tier=control-plane");
    assert_eq!(limits(&report, "web-network"), ["Ingress", "Egress"]);
}

#[test]
fn a_job_without_labels_opens_nothing() {
    let mut capture = web_and_db();
    capture.workload("Job", "demo/seed", "{}");
    let labels = r#"{"batch.kubernetes.io/controller-uid":"u1","batch.kubernetes.io/job-name":"seed"}"#;
    let pod = capture.bare_pod("demo/seed-x7k2p", "10.244.0.61", labels);
    (pod.owner_kind, pod.owner) = (Some("Job".into()), Some("seed".into()));
    capture.talk("10.244.0.61", DB, 5432);
    let report = capture.report();
    assert_eq!(limits(&report, "db-network"), ["Ingress", "Egress"]);
    let expected = lines(["ingress app=web 5432/TCP", "ingress batch.kubernetes.io/job-name=seed 5432/TCP"]);
    assert_eq!(report.allows("demo/db-network"), expected);
}

#[test]
fn runs_of_a_cron_job_that_nobody_may_see_are_one_workload() {
    let mut capture = web_and_db();
    for run in 0..3 {
        let address = format!("10.244.0.6{run}");
        let job = format!("nightly-2930200{run}");
        let pod = capture.bare_pod(&format!("demo/{job}-x7k2p"), &address, r#"{"app":"nightly"}"#);
        (pod.owner_kind, pod.owner) = (Some("Job".into()), Some(job.into()));
        capture.talk(&address, DB, 5432);
    }
    let report = capture.report();
    assert_eq!(report.names(), ["demo/db-network", "demo/nightly-network", "demo/web-network"]);
}

#[test]
fn a_label_that_changed_on_a_pod_is_not_selected_by_for_others_of_its_kind() {
    let queue = |moves: bool| {
        let mut capture = web_and_db();
        for (name, address) in [("a", "10.244.0.61"), ("b", "10.244.0.62")] {
            let pod = capture.bare_pod(&format!("demo/{name}-1"), address, r#"{"shard":"one"}"#);
            (pod.owner_kind, pod.owner) = (Some("Queue".into()), Some(name.into()));
            let pod = pod.clone();
            if moves && name == "a" {
                changed(&mut capture, &pod, 30_000, "upsert", Some(r#"{"shard":"two"}"#));
            }
            capture.talk(WEB, address, 7000);
        }
        capture.report()
    };
    assert!(queue(false).names().contains(&"demo/b-network".to_owned()), "it stays, for all that is known");
    let report = queue(true);
    assert!(report.said.contains("demo/b: no policy, its pods have no usable labels"), "{}", report.said);
}

#[test]
fn what_a_service_or_a_budget_selects_a_workload_by_tells_what_it_is() {
    let mut capture = web_and_db();
    // Of one pod alone, a Service may select what it is for now.
    for (pod, address) in [("demo/store-1", "10.244.0.61"), ("demo/store-2", "10.244.0.62")] {
        let pod = capture.bare_pod(pod, address, r#"{"shelf":"books","colour":"red"}"#);
        (pod.owner_kind, pod.owner) = (Some("Store".into()), Some("store".into()));
        capture.talk(WEB, address, 7000);
    }
    assert_eq!(capture.report().selector("demo/store-network"), "colour=red,shelf=books", "all that stay");
    capture.service("demo/books", "10.96.0.9", 80, "7000", Some(r#"{"shelf":"books"}"#));
    assert_eq!(capture.report().selector("demo/store-network"), "shelf=books");
    capture.inventory.pop();
    let budget = capture.object(ObjectKind::PodDisruptionBudget, Some("demo"), "store");
    budget.selector = Some(r#"{"matchLabels":{"colour":"red"}}"#.into());
    assert_eq!(capture.report().selector("demo/store-network"), "colour=red");
}

#[test]
fn of_two_selectors_of_which_one_takes_in_the_other_one_is_named() {
    let mut capture = web_and_db();
    // A second Deployment of the same pods' labels: nothing tells them apart.
    capture.workload("Deployment", "demo/web-b", r#"{"matchLabels":{"app":"web","side":"b"}}"#);
    let labels = r#"{"app":"web","side":"b"}"#;
    let pod = capture.bare_pod("demo/web-b-1", "10.244.0.61", labels);
    (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some("web-b".into()));
    let pod = capture.bare_pod("demo/web-2", "10.244.0.62", labels);
    (pod.owner_kind, pod.owner) = (Some("Deployment".into()), Some("web".into()));
    for address in ["10.244.0.61", "10.244.0.62"] {
        capture.talk(address, DB, 5432);
    }
    let report = capture.report();
    assert_eq!(report.allows("demo/db-network"), lines(["ingress app=web 5432/TCP"]));
    assert!(report.said.contains("demo/web: its selector also selects pods of demo/web-b"), "{}", report.said);
}

#[test]
fn where_a_services_address_is_judged_its_other_labels_are_named() {
    let mut capture = web_and_db();
    capture.pod("demo/db", DB).labels = Some(r#"{"app":"db","role":"server"}"#.into());
    capture.service("demo/db", "10.96.0.9", 80, "5432", Some(r#"{"role":"server"}"#));
    capture.talk_through(WEB, ("10.96.0.9", 80), (DB, 5432));
    let said = "demo/db: rules select it by other labels than its Service demo/db does (role=server)";
    assert!(capture.report_with(&["--service-ports"]).said.contains(said));
    assert!(!capture.report().said.contains(said), "of others it is none of their concern");
    let mut same = capture.clone();
    for service in same.inventory.iter_mut().filter(|row| *row.kind == ObjectKind::Service) {
        service.selector = Some(r#"{"app":"db","role":"server"}"#.into());
    }
    assert!(!same.report_with(&["--service-ports"]).said.contains("other labels"));
}

#[test]
fn to_cilium_a_local_resolver_is_the_own_node() {
    let mut capture = web_and_db();
    capture.object(ObjectKind::NodeInterfaces, None, "node-a").addresses =
        vec!["169.254.20.10".into(), "10.244.0.1".into()];
    capture.inventory.last_mut().expect("it was pushed").object_node = Some("node-a".into());
    capture.dial(WEB, "169.254.20.10", 53).transport = "udp".into();
    capture.dial(WEB, "192.0.2.1", 9100);
    let yaml = capture.report_with(&["--format", "cilium"]).yaml;
    assert!(yaml.contains("  - toEntities:\n    - host\n    toPorts:\n    - ports:\n      - port: '53'"), "{yaml}");
    assert!(
        yaml.contains(
            "  - toEntities:\n    - host\n    - remote-node\n    toPorts:\n    - ports:\n      - port: '9100'"
        ),
        "{yaml}"
    );
    assert!(!yaml.contains("169.254.20.10"), "{yaml}");
}

#[test]
fn a_pod_that_is_made_anew_has_its_policy_while_there_is_none() {
    let mut capture = web_and_db();
    for (run, address) in [("1", "10.244.0.61"), ("2", "10.244.0.62")] {
        let labels = format!(r#"{{"tekton.dev/task":"lint","tekton.dev/taskRun":"lint-{run}"}}"#);
        let pod = capture.bare_pod(&format!("demo/lint-{run}-pod"), address, &labels);
        (pod.owner_kind, pod.owner) = (Some("TaskRun".into()), Some(format!("lint-{run}").into()));
        let pod = pod.clone();
        changed(&mut capture, &pod, 50_000, "delete", None);
        capture.talk(address, DB, 5432);
    }
    let input = capture.write();
    let output = flowscribe(&["report", "--input", &input.path().to_string_lossy(), "--min-coverage", "0"]);
    let yaml = String::from_utf8_lossy(&output.stdout);
    assert!(yaml.contains("name: lint-network") && yaml.contains("tekton.dev/task: lint"), "{yaml}");
}

/// A pod's name, labels, and the kind and name of its owner.
type Asker = (&'static str, &'static str, Option<(&'static str, &'static str)>);

/// A capture in which pods of these names, labels and owners ask the database, each of which may be gone at the end.
fn askers(pods: &[Asker], are_gone: bool) -> Capture {
    let mut capture = web_and_db();
    for (number, (name, labels, owner)) in pods.iter().enumerate() {
        let address = format!("10.244.2.{}", number + 1);
        let pod = capture.bare_pod(&format!("demo/{name}"), &address, labels);
        (pod.owner_kind, pod.owner) =
            owner.map(|(kind, owner)| (Some(kind.into()), Some(owner.into()))).unwrap_or_default();
        let pod = pod.clone();
        if are_gone {
            changed(&mut capture, &pod, 50_000, "delete", None);
        }
        capture.talk(&address, DB, 5432);
    }
    capture
}

#[test]
fn pods_that_nothing_owns_are_what_their_labels_say_whatever_their_names() {
    let cases: [(&[Asker], &str, &str); 4] = [
        (
            &[("build-abcdef", r#"{"app":"build"}"#, None), ("build-ghijkl", r#"{"app":"build"}"#, None)],
            "build",
            "app=build",
        ),
        (&[("runner-a", r#"{"type":"ci"}"#, None), ("runner-b", r#"{"type":"ci"}"#, None)], "ci", "type=ci"),
        (
            &[
                (
                    "etl-load-kqwe",
                    r#"{"dag_id":"etl","task_id":"load","run_id":"r1","try_number":"1","kubernetes_executor":"True"}"#,
                    None,
                ),
                (
                    "etl-save-asdf",
                    r#"{"dag_id":"etl","task_id":"save","run_id":"r2","try_number":"2","kubernetes_executor":"True"}"#,
                    None,
                ),
            ],
            "etl",
            "dag_id=etl",
        ),
        (&[("shell", r#"{"run":"shell"}"#, None)], "shell", "run=shell"),
    ];
    for (pods, name, selector) in cases {
        let report = askers(pods, false).report();
        let policy = format!("demo/{name}-network");
        assert_eq!(report.names(), {
            let mut names = vec!["demo/db-network".to_owned(), policy.clone(), "demo/web-network".to_owned()];
            names.sort();
            names
        });
        assert_eq!(report.selector(&policy), selector);
    }
}

#[test]
fn pods_that_nothing_owns_take_no_other_workloads_name() {
    let report = askers(&[("web-a", r#"{"app":"web"}"#, None), ("web-b", r#"{"app":"web"}"#, None)], false).report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network", "demo/web-pod-network"]);
    assert!(report.said.contains("demo/web: its selector also selects pods of demo/web (Pod)"), "{}", report.said);
}

#[test]
fn what_somebody_wrote_a_selector_for_keeps_it_whatever_a_label_names() {
    let labels = r#"{"app":"history","sparkoperator.k8s.io/app-name":"pi"}"#;
    let mut capture = askers(&[("history-1", labels, Some(("Deployment", "history")))], false);
    capture.workload("Deployment", "demo/history", r#"{"matchLabels":{"app":"history"}}"#);
    let report = capture.report();
    assert_eq!(report.selector("demo/history-network"), "app=history");
    // Without one, it is the application's.
    let report = askers(&[("pi-driver", labels, Some(("SparkApplication", "pi")))], false).report();
    assert!(report.names().contains(&"demo/pi-network".to_owned()), "{:?}", report.names());
}

#[test]
fn runs_that_a_number_or_letters_distinguish_are_one_workload() {
    let run = |name: &'static str, owner: &'static str| (name, r#"{"app":"report"}"#, Some(("Report", owner)));
    let report = askers(&[run("a", "report-1"), run("b", "report-2"), run("c", "report-3")], false).report();
    assert_eq!(report.selector("demo/report-network"), "app=report");
    // Those of which a label has the name are what they are.
    let cluster =
        |pod: &'static str, labels: &'static str, owner: &'static str| (pod, labels, Some(("Cluster", owner)));
    let clusters = [
        cluster("a", r#"{"app":"pg","cluster":"pg-1"}"#, "pg-1"),
        cluster("b", r#"{"app":"pg","cluster":"pg-2"}"#, "pg-2"),
    ];
    let report = askers(&clusters, false).report();
    assert_eq!(report.selector("demo/pg-1-network"), "app=pg,cluster=pg-1");
    assert_eq!(report.selector("demo/pg-2-network"), "app=pg,cluster=pg-2");
}

#[test]
fn no_policy_is_named_after_a_run_of_a_job_that_says_nothing_else() {
    let run = |name: &'static str, job: &'static str| (name, r#"{"job-name":"x"}"#, Some(("Job", job)));
    let report =
        askers(&[run("seed-x7k2p-aaaaa", "seed-x7k2p"), run("seed-9bq4z-bbbbb", "seed-9bq4z")], false).report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"], "{}", report.said);
    assert!(report.said.contains("demo/seed: no policy, its pods have no usable labels"), "{}", report.said);
}

#[test]
fn whoever_takes_in_the_pods_of_runs_that_are_over_says_so() {
    let runs = |labels: &'static str| {
        let run = |name, owner| (name, labels, Some(("Report", owner)));
        askers(&[run("a", "report-1"), run("b", "report-2")], true).report()
    };
    let report = runs(r#"{"app":"web","side":"x"}"#);
    assert!(report.said.contains("demo/web: its selector also selects pods of demo/report"), "{}", report.said);
    assert!(!runs(r#"{"app":"report"}"#).said.contains("also selects"));
}

/// What a policy is named after, and selects, whose pods some runs or instances are.
fn of_runs(pods: &[Asker]) -> Vec<(String, String)> {
    let report = askers(pods, false).report();
    let names = report.names().into_iter().filter(|name| !["demo/db-network", "demo/web-network"].contains(&&**name));
    names.map(|name| (name.trim_end_matches("-network").to_owned(), report.selector(&name))).collect()
}

#[test]
fn what_is_made_for_a_run_is_named_after_what_stays() {
    let cases: [(&str, &[Asker], &str, &str); 11] = [
        (
            "a pipeline that is written within its run, whose name it has",
            &[
                ("a", r#"{"tekton.dev/pipeline":"ci-x7k2p","repository":"web"}"#, Some(("TaskRun", "ci-x7k2p-build"))),
                ("b", r#"{"tekton.dev/pipeline":"ci-9bq4z","repository":"web"}"#, Some(("TaskRun", "ci-9bq4z-build"))),
            ],
            "demo/ci",
            "repository=web",
        ),
        (
            "servers that have their own names in a label",
            &[
                (
                    "a",
                    r#"{"app":"game","example.com/server":"game-lhbz7-g8wq4"}"#,
                    Some(("GameServer", "game-lhbz7-g8wq4")),
                ),
                (
                    "b",
                    r#"{"app":"game","example.com/server":"game-9bq4z-tt5vw"}"#,
                    Some(("GameServer", "game-9bq4z-tt5vw")),
                ),
            ],
            "demo/game",
            "app=game",
        ),
        (
            "a hook for each commit and synchronization",
            &[
                ("a", r#"{"app":"db-migrate"}"#, Some(("Job", "db-migrate-a1b2c3d-presync-1793527200"))),
                ("b", r#"{"app":"db-migrate"}"#, Some(("Job", "db-migrate-9f8e7d6-presync-1793613600"))),
            ],
            "demo/db-migrate",
            "app=db-migrate",
        ),
        (
            "a Job for each version",
            &[
                ("a", r#"{"app":"shop"}"#, Some(("Job", "shop-migrate-1-2"))),
                ("b", r#"{"app":"shop"}"#, Some(("Job", "shop-migrate-2-0-0-rc1"))),
            ],
            "demo/shop-migrate",
            "app=shop",
        ),
        (
            "names of two words that nothing tells from chosen ones",
            &[
                ("a", r#"{"app":"flow"}"#, Some(("Job", "funny-otter"))),
                ("b", r#"{"app":"flow"}"#, Some(("Job", "brave-lion"))),
                ("c", r#"{"app":"flow"}"#, Some(("Job", "calm-crab"))),
            ],
            "demo/flow",
            "app=flow",
        ),
        (
            "solvers of challenges, which no selector can distinguish",
            &[
                ("a", r#"{"acme.cert-manager.io/http01-solver":"true"}"#, Some(("Challenge", "web-tls-1-2345678901"))),
                ("b", r#"{"acme.cert-manager.io/http01-solver":"true"}"#, Some(("Challenge", "web-tls-2-1122334455"))),
                ("c", r#"{"acme.cert-manager.io/http01-solver":"true"}"#, Some(("Challenge", "api-tls-1-998877665"))),
            ],
            "demo/challenge",
            "acme.cert-manager.io/http01-solver=true",
        ),
        (
            "tests of pull requests",
            &[
                (
                    "a1b2c3d4e5",
                    r#"{"created-by-prow":"true","prow.k8s.io/job":"unit","prow.k8s.io/refs.pull":"120"}"#,
                    None,
                ),
                (
                    "b1c2d3e4f5",
                    r#"{"created-by-prow":"true","prow.k8s.io/job":"unit","prow.k8s.io/refs.pull":"121"}"#,
                    None,
                ),
            ],
            "demo/unit",
            "prow.k8s.io/job=unit",
        ),
        (
            "servers of users",
            &[
                ("jupyter-alice", r#"{"component":"singleuser-server","hub.jupyter.org/username":"alice"}"#, None),
                ("jupyter-bob", r#"{"component":"singleuser-server","hub.jupyter.org/username":"bob"}"#, None),
            ],
            "demo/singleuser-server",
            "component=singleuser-server",
        ),
        (
            "an application with its date in its name",
            &[
                ("a-driver", r#"{"spark-role":"driver","spark-app-name":"daily-2026-11-20"}"#, None),
                ("b-driver", r#"{"spark-role":"driver","spark-app-name":"daily-2026-11-21"}"#, None),
            ],
            "demo/driver",
            "spark-role=driver",
        ),
        (
            "a ReplicaSet for each version",
            &[
                ("a", r#"{"app":"pay","moniker.spinnaker.io/sequence":"0"}"#, Some(("ReplicaSet", "pay-v000"))),
                ("b", r#"{"app":"pay","moniker.spinnaker.io/sequence":"1"}"#, Some(("ReplicaSet", "pay-v001"))),
            ],
            "demo/pay",
            "app=pay",
        ),
        (
            "a release that is called like a version",
            &[(
                "a",
                r#"{"app.kubernetes.io/instance":"v1","app.kubernetes.io/name":"redis"}"#,
                Some(("Redis", "v1-redis")),
            )],
            "demo/v1-redis",
            "app.kubernetes.io/instance=v1,app.kubernetes.io/name=redis",
        ),
    ];
    for (what, pods, name, selector) in cases {
        assert_eq!(of_runs(pods), [(name.to_owned(), selector.to_owned())], "{what}");
    }
}

#[test]
fn instances_that_a_selector_can_distinguish_stay_workloads_of_their_own() {
    let pods = [
        ("a", r#"{"app":"mq","purpose":"orders"}"#, Some(("Queue", "mq-1"))),
        ("b", r#"{"app":"mq","purpose":"billing"}"#, Some(("Queue", "mq-2"))),
    ];
    let own = |number: &str, purpose: &str| (format!("demo/mq-{number}"), format!("app=mq,purpose={purpose}"));
    assert_eq!(of_runs(&pods), [own("1", "orders"), own("2", "billing")]);
    let pods = [
        ("a", r#"{"app":"hive","proto":"grpcs"}"#, Some(("Broker", "hive-grpcs"))),
        ("b", r#"{"app":"hive","proto":"mqtts"}"#, Some(("Broker", "hive-mqtts"))),
    ];
    assert_eq!(of_runs(&pods).len(), 2);
}

#[test]
fn one_odd_pod_takes_no_label_from_the_others() {
    let web = r#"{"app":"shop","release":"r"}"#;
    let pods = |odd: &'static str| {
        let own = |name| (name, web, Some(("CloneSet", "shop")));
        askers(&[own("a"), own("b"), own("c"), ("odd", odd, Some(("CloneSet", "shop")))], false).report()
    };
    let (with, without) = (pods(r#"{"release":"r","quarantine":"yes"}"#), pods(web));
    assert_eq!(with.selector("demo/shop-network"), "app=shop,release=r");
    assert!(with.said.contains("demo/shop: its selector does not select its pod odd"), "{}", with.said);
    assert_eq!(without.selector("demo/shop-network"), "app=shop,release=r");
    assert_eq!(limits(&with, "db-network"), limits(&without, "db-network"));
    assert!(!without.said.contains("does not select"), "{}", without.said);
    // What only some have may be what moves, where nobody knows what it is.
    let replica = r#"{"ledger":"shop","serves":"reads"}"#;
    let own = |name, labels| (name, labels, Some(("Ledger", "shop")));
    let ledger = [own("a", r#"{"ledger":"shop"}"#), own("b", replica), own("c", replica), own("d", replica)];
    assert_eq!(askers(&ledger, false).report().selector("demo/shop-network"), "ledger=shop");
    // So may what differs between those that are there.
    let report = pods(r#"{"app":"shop","release":"other"}"#);
    assert_eq!(report.selector("demo/shop-network"), "app=shop");
    // But not what they are called.
    let report = pods(r#"{"app":"other","release":"r"}"#);
    assert_eq!(report.selector("demo/shop-network"), "app=shop,release=r");
}

#[test]
fn a_part_that_the_owner_of_another_one_owns_is_selected_by_what_it_is() {
    let [manager, worker] =
        [r#"{"app":"flink","component":"jobmanager"}"#, r#"{"app":"flink","component":"taskmanager"}"#];
    let pods = [("m", manager, Some(("Deployment", "flink"))), ("t1", worker, Some(("Deployment", "flink")))];
    let mut capture = askers(&pods, false);
    capture.workload("Deployment", "demo/flink", r#"{"matchLabels":{"app":"flink","component":"jobmanager"}}"#);
    let report = capture.report();
    assert_eq!(report.selector("demo/flink-network"), "app=flink,component=jobmanager");
    assert_eq!(report.selector("demo/flink-taskmanager-network"), "app=flink,component=taskmanager");
    assert_eq!(report.rules("demo/db-network", "ingress"), 1);
    assert!(report.allows("demo/db-network").contains("ingress app=flink,component=taskmanager 5432/TCP"));
}

#[test]
fn a_label_that_can_not_be_is_left_out_and_refuses_nobody_elses_policy() {
    let report = askers(&[("bad", r#"{"app":"a b"}"#, Some(("Queue", "bad")))], false).report();
    assert_eq!(report.names(), ["demo/db-network", "demo/web-network"]);
    assert!(report.said.contains("demo/bad: no policy, its pods have no usable labels"), "{}", report.said);
    let mut capture = askers(&[("bad", r#"{"app":"bad"}"#, Some(("Deployment", "bad")))], false);
    capture.workload("Deployment", "demo/bad", r#"{"matchLabels":{"app":"a b"}}"#);
    assert_eq!(capture.report().selector("demo/bad-network"), "app=bad");
}
