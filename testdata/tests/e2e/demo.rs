//! The demo application with its objects in an API server: three agents watch the same traffic, and all that differs is
//! how they learn who is who.

use testdata::{
    app::App,
    demo::{MICROSERVICES, NAMESPACE},
    recording::Recording,
};

use crate::{
    support::executable,
    watching::{Site, read},
};

tests![policies_are_the_same_whoever_tells_who_the_pods_are,];

fn policies_are_the_same_whoever_tells_who_the_pods_are() {
    let mut site = Site::new();
    let app = App::parse(MICROSERVICES).expect("the manifest").start(&mut site.lab, NAMESPACE).expect("it starts");
    let inventory = site.inventory("inventory");
    let local = site.agent("local", &["--remote-metadata", "local"]);
    let cluster = site.agent("cluster", &["--remote-metadata", "cluster"]);
    let file = Recording::start(executable(), &site.lab, &site.path("file"), &["--window", "1s"]);
    let file = file.expect("the third agent starts");
    app.probe(&mut site.lab).expect("probes are answered");
    app.play(&mut site.lab, 4).expect("calls are answered");
    for agent in [local, cluster, file] {
        let log = agent.stop().expect("it ends well");
        assert!(!log.contains("missing permission"), "the documented rules are enough: {log}");
    }
    inventory.stop();
    let log = read(&site.path("inventory.log"));
    assert!(!log.contains("cannot"), "the documented rules are enough: {log}");

    let golden = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/apps/microservices-demo.policies.yaml"));
    let golden = golden.expect("the golden policies are committed");
    let namespaces = ["--namespaces", NAMESPACE];
    assert_eq!(site.report(&["file"], &namespaces).0, golden, "identity from the file");
    assert_eq!(site.report(&["local", "inventory"], &namespaces).0, golden, "remote ends left to the report");
    assert_eq!(site.report(&["cluster", "inventory"], &namespaces).0, golden, "remote ends named by the agent");

    // What the agent that watches the cluster wrote, both ends named as the API server has them.
    let email = "select distinct source_namespace, source_workload_kind, source_workload, \
         label_of(source_labels), destination_service_namespace, destination_service, destination_port, \
         destination_target_port, destination_kind from flows \
         where observer = 'client' and destination_service = 'emailservice'"
        .replace("label_of(source_labels)", "source_labels");
    assert_eq!(
        site.sql(&["cluster"], &email),
        [concat!(
            r#"demo,Deployment,checkoutservice,"{""app"":""checkoutservice"",""pod-template-hash"":""6d5f7c9b8""}","#,
            "demo,emailservice,5000,8080,service"
        )]
    );
    let served = "select distinct source_pod, source_workload, destination_pod, destination_workload_kind, \
         destination_workload, destination_port from flows where observer = 'server' \
         and destination_workload = 'emailservice' and source_kind = 'pod'";
    assert_eq!(
        site.sql(&["cluster"], served),
        ["checkoutservice-6d5f7c9b8-00000,checkoutservice,emailservice-6d5f7c9b8-00000,Deployment,emailservice,8080"]
    );
    let uids = "select count(*) from flows where source_kind = 'pod' and not exists (select 1 from inventory as i \
         where i.uid = source_pod_uid and i.name = source_pod and i.kind = 'Pod')";
    assert_eq!(site.sql(&["cluster", "inventory"], uids), ["0"], "every UID is that of the API server's pod");
    let ranges =
        "select distinct name, array_to_string(cidrs, ' ') from inventory where kind = 'ServiceCIDR' order by 1";
    assert_eq!(site.sql(&["inventory"], ranges), ["--cluster-cidrs,172.31.0.0/16", "kubernetes,10.96.0.0/16"]);
    for end in ["source", "destination"] {
        let unnamed = format!(
            "select distinct {end}_kind, {end}_unknown_reason, {end}_address from flows where {end}_kind not in ('pod', 'service', 'node')"
        );
        assert_eq!(site.sql(&["cluster"], &unnamed), [""; 0], "every {end} has a name");
    }
}
