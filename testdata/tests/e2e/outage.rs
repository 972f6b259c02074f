//! An API server that is away, that has forgotten, that refuses; and writers of the inventory that relieve each other.

use serde_json::json;
use testdata::{cluster::object, pod::Exchange};

use crate::{
    support::{pod, wait_until},
    watching::{Site, get, read},
};

tests![
    an_api_server_that_is_away_costs_names_and_nothing_else,
    a_missing_permission_is_named_with_its_rule_and_costs_only_its_part,
    of_two_writers_one_writes_and_the_other_takes_over,
];

const CALL: Exchange = Exchange::new(10, 20);

fn an_api_server_that_is_away_costs_names_and_nothing_else() {
    let mut site = Site::new();
    let (server, client) = (pod(&mut site.lab, "server"), pod(&mut site.lab, "client"));
    for port in 80..84 {
        site.lab.listen(server, port, CALL).expect("it listens");
    }
    let address = site.lab.ipv4(server);

    // It is away when the agent starts: what happens is recorded by the pod's UID.
    site.cluster.stop_server();
    let (agent, metrics) = site.agent_alone("capture", &["--metadata-wait", "2s"]);
    site.lab.dial(client, (address, 80), 3, CALL).expect("it is served");
    site.wait_for_ends("capture", 6);
    wait_until("a sign of life", || get(&metrics, "/livez").starts_with("HTTP/1.1 200"));
    assert!(get(&metrics, "/readyz").starts_with("HTTP/1.1 503"));
    site.cluster.start_server().expect("it starts again");
    wait_until("knowing the pods", || get(&metrics, "/readyz").starts_with("HTTP/1.1 200"));
    site.lab.dial(client, (address, 81), 3, CALL).expect("it is served");
    site.wait_for_ends("capture", 12);

    // It goes away again while the agent runs; what is known stays known.
    site.cluster.create(&object("v1", "Namespace", None, "between")).expect("history goes on");
    site.cluster.stop_server();
    site.lab.dial(client, (address, 82), 3, CALL).expect("it is served");
    site.wait_for_ends("capture", 18);
    // When it is back, it has forgotten what the agent heard last, and there is a new pod.
    site.cluster.start_server().expect("it starts again");
    let late = pod(&mut site.lab, "late");
    site.wait_for_object("capture", |row| &*row.name == "late-0" && !row.addresses.is_empty());
    site.lab.dial(late, (address, 83), 3, CALL).expect("it is served");
    site.wait_for_ends("capture", 24);
    wait_until("the count", || get(&metrics, "/metrics").contains("flowscribe_exporter_ends_exported_total 24\n"));
    let log = agent.stop().expect("it ends well");
    assert!(log.contains("410"), "the watch was told that its version is gone: {log}");

    let named = "select destination_port, source_pod, source_pod_uid is not null, sum(connections) from flows \
         where observer = 'client' group by 1, 2, 3 order by 1";
    let expected = ["80,,true,3", "81,client-0,true,3", "82,client-0,true,3", "83,late-0,true,3"];
    assert_eq!(site.sql(&["capture"], named), expected);
    assert_eq!(site.sql(&["capture"], "select sum(unnamed) from health"), ["6"], "both ends of the first three");
    // The inventory that the same run wrote later tells who the UID was.
    site.inventory_once("capture").expect("the inventory is written");
    let edges = "select source_workload, destination_workload, port, connections, seen_by from edges order by port";
    assert_eq!(
        site.sql(&["capture"], edges),
        ["client,server,80,3,both", "client,server,81,3,both", "client,server,82,3,both", "late,server,83,3,both"]
    );
}

fn a_missing_permission_is_named_with_its_rule_and_costs_only_its_part() {
    let mut site = Site::new();
    let (server, client) = (pod(&mut site.lab, "server"), pod(&mut site.lab, "client"));
    site.lab.listen(server, 80, CALL).expect("it listens");
    let rule = |group: &str, resource: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"] });
    let role = |name: &str| object("rbac.authorization.k8s.io/v1", "ClusterRole", None, name);
    let limited = json!({ "rules": [rule("", "pods"), rule("", "nodes")] });
    site.cluster.change(&role("flowscribe-exporter"), &limited).expect("the role is changed");
    let limited = json!({ "rules": [rule("", "pods"), rule("", "nodes"), rule("", "services")] });
    site.cluster.change(&role("flowscribe-inventory"), &limited).expect("the role is changed");
    let may = |account: &str, group: &str, resource: &str| {
        site.cluster.may(("flowscribe", account), ["list", group, resource, "", ""]).expect("it answers")
    };
    wait_until("the limits", || {
        !may("flowscribe-exporter", "", "services") && !may("flowscribe-inventory", "apps", "replicasets")
    });

    let agent = site.agent("capture", &["--remote-metadata", "cluster"]);
    let address = site.lab.ipv4(server);
    site.lab.dial(client, (address, 80), 1, CALL).expect("it is served");
    site.wait_for_ends("capture", 2);
    // It asks again and is refused again, which is not reported again.
    for resource in ["services", "endpointslices.discovery.k8s.io"] {
        agent.wait_for_lines(&format!("{resource} is forbidden"), 2);
    }
    let log = agent.stop().expect("it ends well");
    let said = |resource: &str, rule: &str| {
        let lines = log.lines().filter(|line| line.contains("missing permission") && line.contains(resource));
        assert_eq!(lines.filter(|line| line.contains(rule)).count(), 1, "once, with the rule: {log}");
    };
    said("services", r#"{ apiGroups: [""], resources: [services], verbs: [list, watch] }"#);
    said("endpointslices", r#"{ apiGroups: ["discovery.k8s.io"], resources: [endpointslices], verbs: [list, watch] }"#);
    let named = "select distinct source_pod, destination_pod from flows";
    assert_eq!(site.sql(&["capture"], named), ["client-0,server-0"], "pods are named as before");
    let health = "select distinct array_to_string(array_sort(unreadable), ' ') from health where clean_shutdown";
    assert_eq!(site.sql(&["capture"], health), ["endpointslices.discovery.k8s.io services"]);

    let said = site.inventory_once("inventory").expect("what may be read is written");
    assert!(
        said.contains("cannot watch endpointslices.discovery.k8s.io: add to the ClusterRole: { apiGroups"),
        "{said}"
    );
    assert!(said.contains("cannot watch replicasets.apps") && !said.contains("watch pods"), "{said}");
    let scopes = "select distinct scope from inventory where node = '_cluster'";
    assert_eq!(site.sql(&["inventory"], scopes), ["part"], "without EndpointSlices not everything is known");
}

fn of_two_writers_one_writes_and_the_other_takes_over() {
    let mut site = Site::new();
    pod(&mut site.lab, "web");
    let first = site.inventory("first");
    let (second, log) = site.inventory_waiting("second");
    wait_until("the second one", || read(&log).contains("waiting for the lease flowscribe/flowscribe-inventory"));
    // While the first one renews its lease, the other one, which asks as often, does not get it.
    let lease = object("coordination.k8s.io/v1", "Lease", Some("flowscribe"), "flowscribe-inventory");
    let renewed = || site.cluster.read(&lease).expect("it answers").expect("it is held")["spec"]["renewTime"].clone();
    for _ in 0..2 {
        let before = renewed();
        wait_until("another renewal", || renewed() != before);
    }
    assert!(!site.path("second").exists(), "only one writes");
    first.stop();
    wait_until("the second one's turn", || read(&log).contains("objects are known"));
    // One that is killed is relieved when its lease runs out.
    let (third, log) = site.inventory_waiting("third");
    drop(second);
    pod(&mut site.lab, "new");
    wait_until("the third one's turn", || read(&log).contains("objects are known"));
    site.wait_for_object("third", |row| &*row.name == "new-0");
    third.stop();
    let pods = "select distinct name from inventory where kind = 'Pod' order by 1";
    assert_eq!(site.sql(&["first"], pods), ["web-0"]);
    assert_eq!(site.sql(&["third"], pods), ["new-0", "web-0"]);
    let ended = "select clean_shutdown from health order by seq desc limit 1";
    assert_eq!(site.sql(&["first"], ended), ["true"]);
    assert_eq!(site.sql(&["second"], ended), ["false"], "it was killed");
}
