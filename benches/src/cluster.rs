//! What an agent costs in a large cluster: the API server of `KUBECONFIG` is filled with pods and Services.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    agent::{self, Agent},
    load::Load,
    report::{Lab, mb},
};

/// Fills the API server and prints what an agent takes, in both modes.
///
/// # Errors
/// There is no API server, or it refuses.
pub(crate) fn run(pods: u32, services: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let client =
        runtime.block_on(Client::try_default()).context("set KUBECONFIG; `lab cluster` starts an API server")?;
    let begun = Instant::now();
    runtime.block_on(fill(&client, pods, services))?;
    println!(
        "{pods} pods and {services} Services are in the API server after {:.0} s\n",
        begun.elapsed().as_secs_f64()
    );
    println!("| --remote-metadata | ready | resident, most | resident, at the end | in maps | watches | of a core |");
    println!("|---|---|---|---|---|---|---|");
    for mode in ["local", "cluster"] {
        measure(mode, &runtime, &client)?;
    }
    Ok(())
}

/// An agent on a node of 100 pods, with 2,000 connections per second for half a minute, and 20 pods that change each
/// second.
fn measure(mode: &str, runtime: &Runtime, client: &Client) -> Result<()> {
    let (lab, directory) = (Lab::new()?, tempfile::tempdir()?);
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.to_string();
    agent::program()?;
    let watches_before = runtime.block_on(watches(client))?;
    let begun = Instant::now();
    let agent = Agent::start(
        &lab.cgroup,
        &directory.path().join("capture"),
        &["--kubernetes", "--node=node-0", "--remote-metadata", mode, "--metrics-address", &address, "--window=10s"],
    )?;
    let mut most = 0;
    while !is_ready(&address) {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the agent does not get ready");
        most = most.max(agent.resident_bytes()?);
        std::thread::sleep(Duration::from_millis(10));
    }
    let ready = begun.elapsed();
    let cpu_before = agent.cpu_seconds()?;
    let changing = runtime.spawn(change(client.clone()));
    let (mut load, mut begun) = (lab.load()?, Instant::now());
    for _ in 0..30 {
        load.order(Load::Paced { per_second: 2000 }, Duration::from_secs(1))?;
        most = most.max(agent.resident_bytes()?);
    }
    let cpu = (agent.cpu_seconds()? - cpu_before) / begun.elapsed().as_secs_f64();
    changing.abort();
    begun = Instant::now();
    let watches = runtime.block_on(watches(client))? - watches_before;
    while begun.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_secs(1));
        most = most.max(agent.resident_bytes()?);
    }
    let (resident, maps) = (agent.resident_bytes()?, agent.map_bytes()?);
    agent.stop()?;
    println!(
        "| {mode} | {:.1} s | {:.1} MB | {:.1} MB | {:.1} MB | {watches} | {:.2} % |",
        ready.as_secs_f64(),
        mb(most),
        mb(resident),
        mb(maps),
        100.0 * cpu,
    );
    Ok(())
}

async fn fill(client: &Client, pods: u32, services: u32) -> Result<()> {
    put(client, "v1", "Namespace", json!({ "metadata": { "name": NAMESPACE } }), Value::Null).await?;
    let nodes = (0..pods / PODS_PER_NODE).map(|number| {
        let node = json!({ "metadata": { "name": format!("node-{number}") },
            "spec": { "podCIDR": cidr(number), "podCIDRs": [cidr(number)] } });
        let address = format!("192.168.{}.{}", number >> 8, number & 255);
        let status = json!({ "addresses": [{ "type": "InternalIP", "address": address }] });
        put(client, "v1", "Node", node, status)
    });
    stream::iter(nodes).map(Ok).try_for_each_concurrent(AT_ONCE, |put| put).await?;
    let pods = (0..pods).map(|number| put(client, "v1", "Pod", pod(number), pod_status(number)));
    stream::iter(pods).map(Ok).try_for_each_concurrent(AT_ONCE, |put| put).await?;
    let made = (0..services).map(|number| async move {
        let name = format!("service-{number}");
        let service = json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": {
            "selector": { "app": format!("app-{number}") }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } });
        put(client, "v1", "Service", service, Value::Null).await?;
        let endpoints: Vec<Value> =
            (0..5).map(|at| json!({ "addresses": [pod_address(number * 5 + at)], "conditions": { "ready": true } })).collect();
        let slice = json!({
            "metadata": { "name": format!("{name}-x"), "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }]
        });
        put(client, "discovery.k8s.io/v1", "EndpointSlice", slice, Value::Null).await
    });
    stream::iter(made).map(Ok).try_for_each_concurrent(AT_ONCE, |put| put).await
}

/// Twenty pods change each second, round and round.
async fn change(client: Client) {
    let api: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &resource("v1", "Pod"));
    for round in 0_u32.. {
        for number in 0..20 {
            let name = format!("pod-{}", (round * 20 + number) % 1000);
            let patch = json!({ "metadata": { "labels": { "round": round.to_string() } } });
            let _ = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn put(client: &Client, api_version: &str, kind: &str, mut object: Value, status: Value) -> Result<()> {
    (object["apiVersion"], object["kind"]) = (api_version.into(), kind.into());
    let resource = resource(api_version, kind);
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match api.create(&PostParams::default(), &serde_json::from_value(object)?).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        created => drop(created?),
    }
    if !status.is_null() {
        let status = Patch::Merge(json!({ "status": status }));
        api.patch_status(&name, &PatchParams::default(), &status).await?;
    }
    Ok(())
}

/// A pod with what usual ones have.
fn pod(number: u32) -> Value {
    let app = format!("app-{}", number / 5);
    json!({
        "metadata": {
            "name": format!("pod-{number}"), "namespace": NAMESPACE,
            "labels": { "app": app, "app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": "6d5f7c9b8", "tier": "backend" },
            "annotations": { "checksum/config": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6d5f7c9b8"),
                "uid": "00000000-0000-0000-0000-000000000001", "controller": true }]
        },
        "spec": {
            "nodeName": format!("node-{}", number / PODS_PER_NODE),
            "containers": [{
                "name": "main", "image": "registry.example/shop/app:1.2.3",
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "env": [{ "name": "A", "value": "some value of usual length" }, { "name": "B", "value": "another value" }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } }
            }]
        }
    })
}

fn pod_status(number: u32) -> Value {
    let address = pod_address(number);
    let ready =
        json!({ "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "2026-01-31T07:00:02Z" });
    json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": [ready] })
}

fn pod_address(number: u32) -> String {
    let (node, pod) = (number / PODS_PER_NODE, number % PODS_PER_NODE);
    format!("10.{}.{}.{}", 128 + (node >> 8), node & 255, pod + 2)
}

fn cidr(node: u32) -> String {
    format!("10.{}.{}.0/24", 128 + (node >> 8), node & 255)
}

fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Watch requests that the API server serves at the moment.
async fn watches(client: &Client) -> Result<i64> {
    let text = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    let gauges =
        text.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{") && line.contains("\"WATCH\""));
    Ok(gauges.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as i64)
}

fn is_ready(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains(" 200 ")
}

const NAMESPACE: &str = "shop";
const PODS_PER_NODE: u32 = 100;
const AT_ONCE: usize = 64;
