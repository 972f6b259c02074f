//! Objects as the API server writes them, and what of them becomes inventory.

use serde_json::{Value, json};

use super::*;

fn recorded(resource: &Resource, object: &Value) -> InventoryRecord {
    let object = serde_json::from_value(object.clone()).expect("an object of the API");
    record(resource, object, &mut Texts::default())
}

fn texts(texts: &[Arc<str>]) -> Vec<&str> {
    texts.iter().map(|text| &**text).collect()
}

fn workload(kind: &str) -> Resource {
    Resource::cluster().into_iter().find(|resource| resource.api.kind == kind).expect("it is watched")
}

fn pod_with(status: Value) -> Value {
    json!({
        "metadata": {
            "name": "web-6d5f-x7x2p", "namespace": "demo", "uid": "u-1", "resourceVersion": "7",
            "labels": { "tier": "front", "app": "web" },
            "annotations": { "kubernetes.io/config.hash": "abc", "secret": "not for us" },
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "Other", "name": "no", "uid": "o" },
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d5f", "uid": "r", "controller": true }
            ]
        },
        "spec": {
            "nodeName": "node-a",
            "containers": [{ "name": "main", "image": "i", "ports": [{ "name": "http", "containerPort": 8080 }] }],
            "initContainers": [{ "name": "proxy", "image": "i", "ports": [{ "containerPort": 53, "protocol": "UDP" }] }]
        },
        "status": status
    })
}

fn sandbox(status: &str, at: &str) -> Value {
    json!([{ "type": "Ready", "status": "True" },
        { "type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": at }])
}

#[test]
fn a_pod_tells_who_it_is_and_since_when_it_has_its_addresses() {
    let pod = recorded(
        &Resource::pods(),
        &pod_with(json!({
            "phase": "Running", "podIP": "10.0.0.5", "podIPs": [{ "ip": "10.0.0.5" }, { "ip": "fd00::5" }],
            "conditions": sandbox("True", "2026-01-31T07:00:02Z"),
        })),
    );
    assert_eq!((&*pod.kind, pod.namespace.as_deref(), &*pod.name), ("Pod", Some("demo"), "web-6d5f-x7x2p"));
    assert_eq!(pod.labels.as_deref(), Some(r#"{"app":"web","tier":"front"}"#), "sorted");
    assert_eq!(pod.annotations.as_deref(), Some(r#"{"kubernetes.io/config.hash":"abc"}"#), "only what is allowed");
    assert_eq!((&pod.runtime_class, &pod.containers, &pod.ephemeral_containers), (&None, &None, &None));
    let with_containers = json!({ "phase": "Running",
        "containerStatuses": [{ "name": "app", "containerID": "containerd://0af1" }, { "name": "waiting" }],
        "ephemeralContainerStatuses": [{ "name": "debugger-x2k9z", "containerID": "containerd://c3d4" }] });
    let debugged = recorded(&Resource::pods(), &pod_with(with_containers));
    assert_eq!(debugged.containers.as_deref(), Some(r#"{"app":"0af1","debugger-x2k9z":"c3d4"}"#));
    assert_eq!(debugged.ephemeral_containers.as_deref(), Some(r#"["debugger-x2k9z"]"#));
    assert_eq!((pod.owner_kind.as_deref(), pod.owner.as_deref()), (Some("ReplicaSet"), Some("web-6d5f")));
    assert_eq!(texts(&pod.addresses), ["10.0.0.5", "fd00::5"]);
    assert_eq!((pod.ports[0].name.as_deref(), pod.ports[0].port), (Some("http"), 8080));
    assert_eq!((&*pod.ports[1].protocol, pod.ports[1].port), ("udp", 53));
    assert_eq!((pod.object_node.as_deref(), pod.host_network), (Some("node-a"), Some(false)));
    assert_eq!(pod.lease_start.map(|time| time.to_string()).as_deref(), Some("2026-01-31T07:00:02Z"));
    assert_eq!(pod.lease_end, None);
    let pending = recorded(&Resource::pods(), &pod_with(json!({ "phase": "Pending" })));
    assert_eq!((pending.addresses.len(), pending.lease_start), (0, None));
}

#[test]
fn a_pod_gives_up_its_addresses_when_it_completes_or_its_sandbox_ends() {
    let ended = |status| recorded(&Resource::pods(), &pod_with(status)).lease_end.map(|time| time.0 % 60_000);
    let terminated = |at: &str| json!([{ "name": "main", "state": { "terminated": { "startedAt": "2026-01-31T07:00:01Z", "finishedAt": at } } }]);
    let completed =
        json!({ "phase": "Succeeded", "podIP": "10.0.0.5", "containerStatuses": terminated("2026-01-31T07:00:09Z") });
    assert_eq!(ended(completed.clone()), Some(9_999), "at the end of that second at the latest");
    let pod = recorded(&Resource::pods(), &pod_with(completed));
    assert_eq!(pod.lease_start.map(|time| time.0 % 60_000), Some(1_000), "older servers tell of no sandbox");
    let evicted =
        json!({ "phase": "Failed", "podIP": "10.0.0.5", "conditions": sandbox("False", "2026-01-31T07:00:04Z") });
    assert_eq!(ended(evicted), Some(4_999));
    let lost = json!({ "phase": "Failed", "podIP": "10.0.0.5", "containerStatuses": [
        { "name": "done", "state": { "terminated": { "finishedAt": "2026-01-31T07:00:09Z" } } },
        { "name": "main", "state": { "running": { "startedAt": "2026-01-31T07:00:03Z" } } } ] });
    assert_eq!(ended(lost), None, "with its node: nobody knows when");

    let restarting =
        json!({ "phase": "Running", "podIP": "10.0.0.5", "conditions": sandbox("False", "2026-01-31T07:00:05Z") });
    assert_eq!(ended(restarting), Some(5_999));
    let one_container_of_two =
        json!({ "phase": "Running", "podIP": "10.0.0.5", "containerStatuses": terminated("2026-01-31T07:00:09Z") });
    assert_eq!(ended(one_container_of_two), None, "the sandbox is there");
}

#[test]
fn a_static_pod_is_owned_by_nobody() {
    let mut pod = pod_with(json!({}));
    pod["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "n", "controller": true }]);
    assert_eq!(recorded(&Resource::pods(), &pod).owner, None);
}

#[test]
fn a_service_tells_all_its_addresses_and_its_ports() {
    let service = recorded(
        &Resource::services(),
        &json!({
            "metadata": { "name": "web", "namespace": "demo", "creationTimestamp": "2026-01-31T07:00:00Z" },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd01::5"],
                "externalIPs": ["192.0.2.9"], "selector": { "app": "web" },
                "ports": [{ "name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "protocol": "TCP" },
                    { "name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP" }]
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }, { "hostname": "lb.example" }] } }
        }),
    );
    assert_eq!(texts(&service.addresses), ["10.96.0.5", "fd01::5", "192.0.2.9", "203.0.113.7"]);
    assert_eq!((service.ports[0].target.as_deref(), service.ports[0].node_port), (Some("web"), Some(30080)));
    assert_eq!((service.ports[1].target.as_deref(), &*service.ports[1].protocol), (Some("5353"), "udp"));
    assert_eq!(service.selector.as_deref(), Some(r#"{"app":"web"}"#));
    assert!(service.lease_start.is_some());
    let headless = recorded(
        &Resource::services(),
        &json!({
            "metadata": { "name": "db" }, "spec": { "clusterIP": "None", "clusterIPs": ["None"], "selector": {} }
        }),
    );
    assert_eq!((headless.addresses.len(), headless.selector), (0, None));
    let external = recorded(
        &Resource::services(),
        &json!({
            "metadata": { "name": "ext" }, "spec": { "type": "ExternalName", "externalName": "db.example" }
        }),
    );
    assert_eq!((external.external_name.as_deref(), external.addresses.len()), (Some("db.example"), 0));
}

#[test]
fn a_slice_tells_the_endpoints_that_are_used() {
    let slice = recorded(
        &Resource::endpoint_slices(),
        &json!({
            "metadata": { "name": "web-abc", "namespace": "demo", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.0.0.1"], "conditions": { "ready": true } },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
                { "addresses": ["10.0.0.3"], "conditions": { "ready": false, "serving": true, "terminating": true } },
                { "addresses": ["10.0.0.4"], "conditions": {} }
            ],
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }, { "name": "any" }]
        }),
    );
    assert_eq!(texts(&slice.addresses), ["10.0.0.1", "10.0.0.3", "10.0.0.4"]);
    assert_eq!((slice.owner.as_deref(), slice.ports.len(), slice.ports[0].name.as_deref()), (Some("web"), 1, None));
    let empty = json!({ "metadata": { "name": "e" }, "addressType": "IPv4", "endpoints": null, "ports": null });
    assert_eq!(recorded(&Resource::endpoint_slices(), &empty).addresses.len(), 0);
}

#[test]
fn a_node_tells_its_addresses_and_ranges() {
    let node = recorded(
        &Resource::nodes(),
        &json!({
            "metadata": { "name": "node-a", "labels": { "topology.kubernetes.io/zone": "z1", "other": "x" } },
            "spec": { "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"] },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }, { "type": "Hostname", "address": "node-a" },
                { "type": "ExternalIP", "address": "203.0.113.1" }] }
        }),
    );
    assert_eq!(texts(&node.addresses), ["192.0.2.1", "203.0.113.1"]);
    assert_eq!(texts(&node.cidrs), ["10.244.1.0/24", "fd00:1::/64"]);
    assert_eq!((node.zone.as_deref(), node.labels), (Some("z1"), None));
}

#[test]
fn owners_tell_their_kind_their_selector_and_their_own_owner() {
    let mut set = json!({
        "metadata": { "name": "web-6d5f", "namespace": "demo", "uid": "s-1", "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true }] },
        "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "web" } } },
        "status": { "replicas": 2 }
    });
    let known = recorded(&workload("ReplicaSet"), &set);
    assert_eq!((known.workload_kind.as_deref(), known.owner_kind.as_deref()), (Some("ReplicaSet"), Some("Deployment")));
    assert_eq!(known.selector.as_deref(), Some(r#"{"matchLabels":{"app":"web"}}"#));
    assert!(workload("ReplicaSet").is_of(&known) && !workload("Deployment").is_of(&known));
    (set["spec"]["replicas"], set["status"]["replicas"]) = (0.into(), 0.into());
    let old: Object = serde_json::from_value(set).expect("a ReplicaSet");
    assert!(!old.is_of_use(&workload("ReplicaSet")), "one of an earlier revision");
    let controller = json!({ "metadata": { "name": "rc" }, "spec": { "selector": { "app": "old" } } });
    let controller = recorded(&workload("ReplicationController"), &controller);
    assert_eq!(
        controller.selector.as_deref(),
        Some(r#"{"matchLabels":{"app":"old"}}"#),
        "a map becomes a LabelSelector"
    );
    let range =
        Resource::cluster().into_iter().find(|resource| resource.kind == ObjectKind::ServiceCidr).expect("watched");
    let range =
        recorded(&range, &json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.96.0.0/16"] } }));
    assert_eq!(texts(&range.cidrs), ["10.96.0.0/16"]);
}

#[test]
fn the_rules_that_are_installed_are_those_of_what_is_watched() {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/receive.yaml");
    let manifests = std::fs::read_to_string(manifests).expect("they are there");
    let role = |name: &str| {
        let is_it = |text: &&str| {
            text.contains("\nkind: ClusterRole\n") && text.contains(&format!("\n  name: flowscribe-{name}\n"))
        };
        manifests.split("---\n").find(is_it).unwrap_or_else(|| panic!("there is one for {name}"))
    };
    let rules = |text: &str| text.matches("verbs: [list, watch]").count();
    for name in ["inventory", "monitor"] {
        for resource in Resource::cluster() {
            assert_eq!(role(name).matches(&resource.rule()).count(), 1, "{resource}");
        }
        assert_eq!(rules(role(name)), Resource::cluster().len(), "and no others");
    }
    assert!(role("exporter").contains(&Resource::pods().rule()) && rules(role("exporter")) == 1);
}
