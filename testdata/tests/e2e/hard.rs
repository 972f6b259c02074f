//! Cases in which addresses and names mislead: each end is named rightly, or said to be unknown with the reason.

use serde_json::json;
use testdata::{
    cluster,
    lab::{Lab, PodId, PodSpec},
    pod::Exchange,
};

use crate::{
    support::{let_connections_end, spec},
    watching::Site,
};

tests![nobody_is_taken_for_somebody_else,];

const CALL: Exchange = Exchange::new(10, 20);
const MODES: [&str; 2] = ["local", "cluster"];

/// A pod of the default namespace of the tests.
fn pod(site: &mut Site, spec: PodSpec) -> PodId {
    site.lab.pod(spec).expect("the lab takes another pod")
}

/// Ends a pod as kubelet does when its containers end by themselves: the pod stays in the API and keeps its address.
fn complete(site: &mut Site, pod: PodId) {
    let object = site.lab.object(pod).clone();
    site.lab.end(pod).expect("it ends");
    site.cluster.set_status(&object, &cluster::succeeded()).expect("the API server takes the status");
}

/// Waits until both agents have written both ends of so many calls.
fn wait_for_calls(site: &Site, calls: i64) {
    MODES.iter().for_each(|mode| site.wait_for_ends(mode, 2 * calls));
}

fn bare(name: &str) -> PodSpec {
    let labels = json!({ "app": name });
    PodSpec { namespace: "demo".into(), name: name.into(), labels, ..PodSpec::default() }
}

fn nobody_is_taken_for_somebody_else() {
    let mut site = Site::new();
    let server = pod(&mut site, spec("server"));
    site.lab.listen(server, 80, CALL).expect("it listens");
    let to_server = (site.lab.ipv4(server), 80);
    let inventory = site.inventory("inventory");
    // Whoever it is, a flow waits for the name: where a pod's network is, is looked up a while after it is there.
    let agents = MODES.map(|mode| site.agent(mode, &["--remote-metadata", mode, "--metadata-wait", "2m"]));

    // A Job's pod that lives for one call.
    let nightly = json!({ "kind": "CronJob", "name": "nightly" });
    let job = pod(&mut site, PodSpec { owner: nightly, ..bare("nightly-29400000-x7x2p") });
    site.lab.dial(job, to_server, 1, CALL).expect("it is served");
    let_connections_end(&mut site.lab, &[job, server]);
    complete(&mut site, job);

    // Another pod gets that one's address at once; the completed one keeps it in the API.
    site.lab.replace(job, bare("successor")).expect("it takes the address");
    site.lab.dial(job, to_server, 1, CALL).expect("it is served");

    // A pod in cgroups of version 1 is told by its network alone, which its processes tell.
    if Lab::has_cgroup1() {
        let older = pod(&mut site, PodSpec { cgroup1: true, ..bare("older") });
        site.lab.dial(older, to_server, 1, CALL).expect("it is served");
    } else {
        eprintln!("SKIPPED a pod in cgroups of version 1: this machine has none");
    }
    let is_played = |line: &&str| Lab::has_cgroup1() || !line.contains("older");

    // Two host-network pods and the node itself share an address, and one pod is relabelled while it runs.
    for name in ["proxy", "monitor"] {
        let host = pod(&mut site, PodSpec { host_network: true, ..bare(name) });
        site.lab.dial(host, to_server, 1, CALL).expect("it is served");
    }
    site.lab.dial_from_node(to_server, CALL).expect("it is served");
    // A static pod's cgroup is named after its manifest, which only an annotation tells.
    let static_hash = Some("0123456789abcdef0123456789abcdef".to_owned());
    let fixed = pod(&mut site, PodSpec { static_hash, ..bare("static-lab") });
    site.lab.dial(fixed, to_server, 1, CALL).expect("it is served");
    let changing = pod(&mut site, bare("changing"));
    site.lab.dial(changing, to_server, 1, CALL).expect("it is served");
    let calls = if Lab::has_cgroup1() { 8 } else { 7 };
    wait_for_calls(&site, calls);
    let object = site.lab.object(changing).clone();
    site.cluster.change(&object, &json!({ "metadata": { "labels": { "app": "changed" } } })).expect("it is relabelled");
    for mode in MODES {
        let is_changed = |labels: &str| labels.contains(r#""changed""#);
        site.wait_for_object(mode, |row| row.labels.as_deref().is_some_and(is_changed));
    }
    site.lab.dial(changing, to_server, 1, CALL).expect("it is served");

    // A process of the node that enters a pod's network sends as the pod.
    let entered = pod(&mut site, bare("entered"));
    site.lab.dial_from_node_within(entered, to_server, CALL).expect("it is served");
    // And who calls the completed pod's address reaches the successor. The address moved longer ago than clocks may be
    // apart: so long has a flow to be over before the agent that knows the cluster writes it, and it wrote two in turn.
    wait_for_calls(&site, calls + 2);
    site.lab.listen(job, 81, CALL).expect("it listens");
    let to_successor = (site.lab.ipv4(job), 81);
    site.lab.dial(changing, to_successor, 1, CALL).expect("it is served");
    wait_for_calls(&site, calls + 3);
    for agent in agents {
        agent.stop().expect("it ends well");
    }
    for kind in ["CronJob", "Job"] {
        site.wait_for_object("inventory", |row| row.workload_kind.as_deref() == Some(kind));
    }
    inventory.stop();

    for mode in MODES {
        let clients = "select source_kind, source_pod, source_workload_kind, source_workload, source_host_network, \
             source_labels, sum(connections) from flows where observer = 'client' and destination_port = 80 \
             group by 1, 2, 3, 4, 5, 6 order by 1, 2, 6";
        let expected = [
            "node,,,,,,1",
            r#"pod,changing,Pod,changing,false,"{""app"":""changed""}",1"#,
            r#"pod,changing,Pod,changing,false,"{""app"":""changing""}",1"#,
            r#"pod,entered,Pod,entered,false,"{""app"":""entered""}",1"#,
            r#"pod,monitor,Pod,monitor,true,"{""app"":""monitor""}",1"#,
            r#"pod,nightly-29400000-x7x2p,CronJob,nightly,false,"{""app"":""nightly-29400000-x7x2p""}",1"#,
            r#"pod,older,Pod,older,false,"{""app"":""older""}",1"#,
            r#"pod,proxy,Pod,proxy,true,"{""app"":""proxy""}",1"#,
            r#"pod,static-lab,Pod,static-lab,false,"{""app"":""static-lab""}",1"#,
            r#"pod,successor,Pod,successor,false,"{""app"":""successor""}",1"#,
        ];
        let expected: Vec<_> = expected.into_iter().filter(is_played).collect();
        assert_eq!(site.sql(&[mode], clients), expected, "{mode}");
        // The edges: owners of owners are known, and the address that moved names nobody wrongly.
        let edges = "select source_workload_kind, source_workload, source_node, destination_workload, port, \
             sum(connections) from edges where source_unknown_reason is null and destination_unknown_reason is null \
             group by 1, 2, 3, 4, 5 order by 5, 1 nulls last, 2";
        let expected = [
            "CronJob,nightly,,server,80,1",
            "Pod,changing,,server,80,2",
            "Pod,entered,,server,80,1",
            "Pod,older,,server,80,1",
            "Pod,static-lab,,server,80,1",
            "Pod,successor,,server,80,1",
            ",,lab,server,80,3",
            "Pod,changing,,successor,81,1",
        ];
        let expected: Vec<_> = expected.into_iter().filter(is_played).collect();
        assert_eq!(site.sql(&[mode, "inventory"], edges), expected, "{mode}");
        let wrong = "select * from flows where destination_port = 81 and destination_pod <> 'successor'";
        assert_eq!(site.sql(&[mode], wrong), [""; 0], "{mode}");
    }
}
