//! The demo's own policies, in force: the application runs on, and nothing else gets through.

use std::net::SocketAddr;

use testdata::{
    app::App,
    demo::{MICROSERVICES, NAMESPACE},
    enforce::enforce,
    lab::PodId,
    pod::Order,
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{executable, flowscribe, lab},
};

tests![under_its_policies_the_application_runs_and_every_other_pair_is_cut,];

fn under_its_policies_the_application_runs_and_every_other_pair_is_cut() -> Ran {
    let mut lab = lab()?;
    let app = App::parse(MICROSERVICES).expect("the manifest").start(&mut lab, NAMESPACE).expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("capture");
    let recording = Recording::start(executable(), &lab, &capture, &[] as &[&str]).expect("the exporter records");
    app.play(&mut lab, 5).expect("every call succeeds");
    recording.stop().expect("the exporter ends well");
    let report = flowscribe(&["report", "--input", &capture.to_string_lossy(), "--namespaces", NAMESPACE]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let policies = String::from_utf8(report.stdout).expect("YAML");
    assert_eq!(policies.matches("kind: NetworkPolicy").count(), 12);

    // Before, everybody reaches everybody: what is cut later is cut by the policies.
    let (source, (pod, port)) = (app.pods["adservice"][0], app.listeners[0]);
    let at = |pod, port| SocketAddr::new(lab.ipv4(pod).into(), port);
    let probe = Order::Probe { to: vec![at(pod, port), at(pod, 1)], within_ms: 180_000 };
    assert_eq!(lab.order(source, &probe).expect("it tries"), 2);

    enforce(&mut lab, &policies).expect("nftables takes the rules");
    app.play(&mut lab, 3).expect("every call succeeds under the policies");
    app.probe(&mut lab).expect("its node reaches every pod under the policies");

    let ports: Vec<u16> = {
        let mut ports: Vec<u16> = app.listeners.iter().map(|(_, port)| *port).chain([22, 53]).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    };
    let planned = |caller: &str, callee: &str, port: u16| {
        let listens = |pod: &PodId| app.listeners.contains(&(*pod, port));
        app.calls.iter().any(|(from, to, _)| from == caller && to == callee) && app.pods[callee].iter().any(listens)
    };
    let mut tried = 0;
    for (caller, replicas) in &app.pods {
        for source in replicas {
            let mut cut = Vec::new();
            for (callee, replicas) in &app.pods {
                for (target, port) in replicas.iter().flat_map(|target| ports.iter().map(move |port| (*target, *port)))
                {
                    if target != *source && !planned(caller, callee, port) {
                        cut.push(SocketAddr::new(lab.ipv4(target).into(), port));
                        cut.push(SocketAddr::new(lab.ipv6(target).into(), port));
                    }
                }
            }
            tried += cut.len();
            let passed = lab.order(*source, &Order::Probe { to: cut.clone(), within_ms: WITHIN_MS }).expect("it tries");
            assert_eq!(passed, 0, "of what {caller} was never seen to dial: {cut:?}\n{policies}");
        }
    }
    assert!(tried > 2_000, "every pair was tried: {tried}");
    Ok(())
}

/// Longer than a connect within one machine takes; on a slower one, what gets through may go unnoticed.
const WITHIN_MS: u64 = 500;
