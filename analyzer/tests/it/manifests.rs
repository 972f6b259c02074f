//! Manifests as people have them: what the API server refuses, dumps of clusters, and every encoding that kubectl takes.

use std::{collections::BTreeMap, fs, path::Path, process::Output};

use crate::support::{flowscribe, lines};

/// The documents of a corpus by their first line, which says what is in them.
fn corpus(text: &str) -> Vec<(&str, &str)> {
    let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
    documents.map(|document| (document.lines().next().expect("a comment"), document)).collect()
}

const REFUSED: &str = include_str!("../policies/refused.yaml");
const TAKEN: &str = include_str!("../policies/taken.yaml");

fn connectivity(path: &Path) -> (Output, String) {
    let output = flowscribe(&["connectivity", "--manifests", &path.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// What `connectivity` lists of some manifests, and what it says.
fn listed(manifests: &str) -> (Vec<String>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("all.yaml"), manifests).expect("a file");
    let (output, said) = connectivity(directory.path());
    assert_eq!(output.status.code(), Some(0), "{said}");
    (String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect(), said)
}

#[test]
fn what_the_api_server_refuses_is_refused_by_name_and_what_it_takes_is_taken() {
    let (refused, taken) = (corpus(REFUSED), corpus(TAKEN));
    assert!(refused.len() >= 50 && taken.len() >= 20);
    let directory = tempfile::tempdir().expect("a directory");
    let (file, pod) = (directory.path().join("policy.yaml"), directory.path().join("pod.yaml"));
    fs::write(
        &pod,
        "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {a: b}}, spec: {containers: [{name: c}]}}",
    )
    .expect("a file");
    for (what, document) in refused {
        fs::write(&file, document).expect("a file");
        let (output, said) = connectivity(directory.path());
        assert_eq!(output.status.code(), Some(2), "{what}: {said}");
        assert!(said.contains("policy.yaml: "), "{what}: {said}");
        let diff = flowscribe(&["diff", &file.to_string_lossy(), &file.to_string_lossy()]);
        assert_eq!(diff.status.code(), Some(2), "{what}");
    }
    for (what, document) in taken {
        fs::write(&file, document).expect("a file");
        let (output, said) = connectivity(directory.path());
        assert!(output.status.success() && !said.contains("skipped"), "{what}: {said}");
    }
}

#[test]
fn a_policy_that_is_there_twice_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let document = corpus(TAKEN)[0].1;
    fs::write(directory.path().join("a.yaml"), format!("{document}---\n{document}")).expect("a file");
    let (output, said) = connectivity(directory.path());
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("another policy of this name"), "{said}");
}

/// A pod with a label `app` of its name.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: a, labels: {{ app: {name} }} }}\nspec: {{ containers: [{{ name: c }}], {spec} }}\n---\n"
    )
}

#[test]
fn pods_of_the_nodes_network_are_neither_subject_nor_peer() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: p, namespace: a }\n\
                  spec: { podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ to: [{ podSelector: { matchLabels: { app: exporter } } }] }] }\n";
    let with = |spec| listed(&[&pod("exporter", spec), &pod("web", ""), policy].concat());
    let (on_node, said) = with("hostNetwork: true");
    assert!(!on_node.iter().any(|line| line.contains("exporter")), "{on_node:?}");
    assert!(said.contains("a/exporter: its pods are in their node's network, where no policy concerns them"), "{said}");
    let (own, said) = with("hostNetwork: false");
    assert!(own.is_empty() && said.is_empty(), "ingress of both is closed: {own:?} {said}");
    let open = policy.replace("[Ingress, Egress]", "[Egress]");
    let (own, _) = listed(&[pod("exporter", ""), pod("web", ""), open].concat());
    assert!(own.contains(&"a/web[Pod] => a/exporter[Pod] : All Connections".to_owned()), "{own:?}");
}

#[test]
fn a_named_port_is_that_of_every_container_that_goes_on() {
    let ports = |number| format!("{{ name: c{number}, ports: [{{ name: metrics, containerPort: {number} }}] }}");
    let [own, init, sidecar] = [
        format!("containers: [{}]", ports(8099)),
        format!("initContainers: [{}]", ports(8099)),
        "initContainers: [{ name: s, restartPolicy: Always, ports: [{ name: metrics, containerPort: 8099 }] }]"
            .to_owned(),
    ];
    let both = format!("containers: [{}, {}]", ports(8099), ports(9100));
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: p, namespace: a }\n\
                  spec: { podSelector: {}, ingress: [{ from: [{ podSelector: {} }], ports: [{ port: metrics }] }] }\n";
    let pod = |name: &str, spec: &str| {
        let containers = if spec.starts_with("containers") { "" } else { "containers: [{ name: c }]," };
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: a }}\nspec: {{ {containers} {spec} }}\n---\n"
        )
    };
    let pods = [pod("prom", ""), pod("own", &own), pod("init", &init), pod("sidecar", &sidecar), pod("both", &both)];
    let (list, said) = listed(&[pods.concat(), policy.to_owned()].concat());
    let of_prom: Vec<&str> =
        list.iter().filter(|line| line.starts_with("a/prom[")).map(|line| line.split("=> ").nth(1).unwrap()).collect();
    assert_eq!(
        of_prom,
        [
            "a/both[Pod] : TCP 8099,9100",
            "a/own[Pod] : TCP 8099",
            "a/sidecar[Pod] : TCP 8099",
            // Egress is open.
            "0.0.0.0-255.255.255.255[External] : All Connections"
        ]
        .iter()
        .copied()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    assert!(said.contains("a/both: several of its ports are named metrics/TCP, which means each of them"), "{said}");
}

/// What `kubectl get all,networkpolicies -o yaml` has of a Deployment.
const DUMP: &str = include_str!("../policies/dump.yaml");

#[test]
fn in_a_dump_a_deployment_is_one_workload_and_its_odd_pods_are_told_apart() {
    let (list, _) = listed(DUMP);
    let from_client: Vec<&String> =
        list.iter().filter(|line| line.starts_with("a/client[") && line.contains("a/web")).collect();
    assert_eq!(from_client, ["a/client[Pod] => a/web (track=stable)[Deployment] : All Connections"]);
    assert!(
        !list.iter().any(|line| line.contains("import") || line.contains("web-1") || line.contains("web-2")),
        "{list:?}"
    );
    assert!(list.iter().any(|line| line.starts_with("a/web (track=canary)[Deployment] => a/client[Pod]")), "{list:?}");
    // Of pods that are alike for policies nothing is told apart, however their labels differ.
    let (list, _) = listed(&DUMP.replace("matchLabels: { track: canary }", "matchLabels: { app: web }"));
    assert!(list.iter().any(|line| line.starts_with("a/web[Deployment] => a/client[Pod]")), "{list:?}");
    assert!(!list.iter().any(|line| line.contains("track")), "{list:?}");
}

#[test]
fn pods_whose_replica_set_is_not_in_the_file_are_their_deployments() {
    let without: Vec<&str> = DUMP.lines().filter(|line| !line.contains("kind: ReplicaSet, metadata")).collect();
    let (list, _) = listed(&without.join("\n"));
    assert!(list.iter().any(|line| line.contains("a/web (track=stable)[Deployment]")), "{list:?}");
    assert!(!list.iter().any(|line| line.contains("web-1")), "{list:?}");
    // Of a Deployment that is not there either, nobody knows.
    let pods: Vec<&str> = without.into_iter().filter(|line| !line.contains("kind: Deployment, metadata")).collect();
    let (list, _) = listed(&pods.join("\n"));
    assert!(list.iter().any(|line| line.contains("a/web-1 (track=stable)[ReplicaSet]")), "{list:?}");
}

#[test]
fn static_pods_are_workloads_of_their_own() {
    let of_node = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}-n1, namespace: kube-system, ownerReferences: [{{ apiVersion: v1, kind: Node, name: n1, uid: u, controller: true }}] }}\nspec: {{ containers: [{{ name: c }}] }}\n---\n"
        )
    };
    let (list, _) = listed(&[of_node("etcd"), of_node("kube-apiserver")].concat());
    assert!(
        list.contains(&"kube-system/etcd[Pod] => kube-system/kube-apiserver[Pod] : All Connections".to_owned()),
        "{list:?}"
    );
}

#[test]
fn every_encoding_that_kubectl_takes_is_read() {
    let yaml = [pod("a", ""), pod("b", "")].concat();
    let json = |name: &str| serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "a", "labels": { "app": name } }, "spec": { "containers": [{ "name": "c" }] } });
    let stream = format!("{:#}\n{:#}\n", json("a"), json("b"));
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [json("a"), json("b")] }).to_string();
    let utf16: Vec<u8> = std::iter::once(0xFEFF).chain(yaml.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let marked = ["\u{feff}", &yaml].concat();
    let mut seen = BTreeMap::new();
    for (name, bytes) in [
        ("yaml", yaml.into_bytes()),
        ("stream", stream.into_bytes()),
        ("list", list.into_bytes()),
        ("utf16", utf16),
        ("marked", marked.into_bytes()),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("all.yaml"), bytes).expect("a file");
        let (output, said) = connectivity(directory.path());
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        seen.insert(name, String::from_utf8(output.stdout).expect("text"));
    }
    assert!(seen["yaml"].contains("a/a[Pod] => a/b[Pod] : All Connections"));
    assert!(seen.values().all(|list| *list == seen["yaml"]), "{seen:#?}");
}

#[test]
fn neighbouring_ranges_with_the_same_answer_are_one() {
    let policy = |except: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: p, namespace: a }}\n\
             spec: {{ podSelector: {{}}, policyTypes: [Egress], egress: [{{ to: [{{ ipBlock: {{ cidr: 0.0.0.0/0, except: [{except}] }} }}] }}] }}\n"
        )
    };
    let of = |except: &str| {
        let (list, _) = listed(&[pod("a", ""), policy(except)].concat());
        let to = list.iter().filter(|line| line.starts_with("a/a[Pod] =>")).cloned();
        to.collect::<std::collections::BTreeSet<_>>()
    };
    let expected = lines([
        "a/a[Pod] => 0.0.0.0-9.255.255.255[External] : All Connections",
        "a/a[Pod] => 11.0.0.0-255.255.255.255[External] : All Connections",
    ]);
    assert_eq!(of("10.0.0.0/9, 10.128.0.0/9"), expected);
    assert_eq!(of("10.0.0.0/8"), expected);
}

#[test]
fn a_block_that_may_cover_pods_is_said_to_depend_on_the_plugin() {
    let policy = |cidr: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: wide, namespace: a }}\n\
             spec: {{ podSelector: {{ matchLabels: {{ app: web }} }}, policyTypes: [Egress], egress: [{{ to: [{{ ipBlock: {{ cidr: {cidr} }} }}] }}] }}\n"
        )
    };
    let said = |cidr| listed(&[pod("web", ""), pod("db", ""), policy(cidr)].concat()).1;
    let expected = "a/wide: 10.0.0.0/8 may cover pods; whether an ipBlock allows them depends on the network plugin, and is not listed\n";
    assert_eq!(said("10.0.0.0/8"), expected);
    assert_eq!(said("198.51.100.0/24"), "");
    assert_eq!(said("10.0.0.7/32"), "", "somebody's address");
    // Where addresses of pods are known, nobody has to guess.
    let known = pod("db", "").replace("---", "status: { podIPs: [{ ip: 10.1.0.7 }] }\n---");
    let said = |cidr| listed(&[pod("web", ""), known.clone(), policy(cidr)].concat()).1;
    assert!(said("10.1.0.0/16").contains("10.1.0.0/16 may cover pods") && said("10.2.0.0/16").is_empty());
}

#[test]
fn a_key_that_is_there_twice_is_refused_though_kubectl_takes_the_last() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy =
        corpus(TAKEN)[0].1.replace("podSelector: {}", "podSelector: {}\n  podSelector: { matchLabels: { a: b } }");
    fs::write(directory.path().join("a.yaml"), policy).expect("a file");
    let (output, said) = connectivity(directory.path());
    assert!(output.status.code() == Some(2) && said.contains("duplicate"), "{said}");
}

#[test]
fn objects_are_what_the_api_server_would_decode() {
    let (connections, said) = listed(
        r#"
{apiVersion: v1, kind: Pod, metadata: {generateName: web-, namespace: "", labels: {app: web, note: null}}, spec: {containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {containers: [{name: c}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: ""}, spec: {podSelector: {matchLabels: {app: db}},
  ingress: [{from: [{podSelector: {matchLabels: {note: ""}}}], ports: [{port: 80}]}]}}
"#,
    );
    assert!(
        connections.contains(&"default/web[Pod] => default/db[Pod] : TCP 80".to_owned()),
        "{connections:#?} {said}"
    );
}

#[test]
fn pods_of_a_stateful_set_are_distinguished_by_their_numbers_where_policies_do() {
    let set = "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {replicas: 3, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c}]}}}}\n---\n";
    let policy = |label: &str| {
        format!(
            "{set}{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {{podSelector: {{matchLabels: {{{label}}}}}}}}}"
        )
    };
    let outside = "0.0.0.0-255.255.255.255[External] => default/db";
    let dialled = |manifests: &str| {
        let (connections, _) = listed(manifests);
        connections.into_iter().filter(|line| line.starts_with(outside)).collect::<Vec<_>>()
    };
    assert_eq!(dialled(set), [format!("{outside}[StatefulSet] : All Connections")]);
    assert!(dialled(&policy("app: db")).is_empty());
    let open = dialled(&policy("statefulset.kubernetes.io/pod-name: db-0"));
    assert_eq!(open, [format!("{outside} (pods db-1, db-2)[StatefulSet] : All Connections")]);
}
