//! A real API server with etcd, without kubelets: the lab's pods are put into it as a kubelet would.
//!
//! The programs `etcd` and `kube-apiserver` are taken from the directory that `KUBEBUILDER_ASSETS` names, or from the
//! path. Both listen on loopback, on ports of their own, and end with the cluster.

use std::{
    env, fs, io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    api::{authentication::v1::TokenRequest, authorization::v1::SubjectAccessReview, core::v1::ServiceAccount},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::lab::spec::PodSpec;

/// A cluster's control plane; dropped, it ends and its files are removed.
pub struct Cluster {
    directory: tempfile::TempDir,
    etcd: Child,
    server: Mutex<Option<Child>>,
    /// Of etcd's clients, etcd's peers and the API server.
    ports: [u16; 3],
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    /// Why there can't be one; `None` when there can.
    pub fn missing() -> Option<String> {
        let missing =
            ["etcd", "kube-apiserver", "openssl", "setpriv"].into_iter().find(|program| find(program).is_none());
        missing.map(|program| format!("it needs the program {program}, in $KUBEBUILDER_ASSETS or on the path"))
    }

    /// Starts etcd and the API server, and waits until it answers.
    ///
    /// # Errors
    /// A program does not start, or does not get ready within minutes.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let ports = free_ports()?;
        let [clients, peers, secure] = ports;
        let key = directory.path().join("service-accounts.key");
        let made = Command::new(find("openssl").context("find openssl")?)
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .stderr(Stdio::null())
            .status()?;
        if !made.success() {
            bail!("openssl made no key");
        }
        fs::write(directory.path().join("tokens.csv"), TOKENS)?;
        let etcd = spawn(
            "etcd",
            directory.path(),
            &[
                "--data-dir=data".into(),
                "--log-level=error".into(),
                format!("--listen-client-urls=http://127.0.0.1:{clients}"),
                format!("--advertise-client-urls=http://127.0.0.1:{clients}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
            ],
        )?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = Mutex::new(Some(serve(directory.path(), clients, secure)?));
        wait_for("the API server's certificate", || directory.path().join("certificates/apiserver.crt").exists())?;
        for user in USERS {
            fs::write(directory.path().join(format!("{user}.kubeconfig")), kubeconfig(directory.path(), secure, user))?;
        }
        let client = client(&runtime, &directory.path().join("admin.kubeconfig"))?;
        let cluster = Self { directory, etcd, server, ports, runtime, client };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// The kubeconfig of a user: `admin`, who may do everything, or `agent` and `inventory`, who may do what RBAC allows.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.path().join(format!("{user}.kubeconfig"))
    }

    /// Makes a kubeconfig with a token of a ServiceAccount, as its pods have it.
    ///
    /// # Errors
    /// There is no such ServiceAccount.
    pub fn account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let made =
            self.runtime.block_on(api.create_token_request(name, &PostParams::default(), &TokenRequest::default()));
        let token = made.with_context(|| format!("make a token of {name}"))?.status.context("there is a token")?.token;
        let path = self.directory.path().join(format!("{namespace}.{name}.kubeconfig"));
        fs::write(&path, kubeconfig(self.directory.path(), self.ports[2], &token))?;
        Ok(path)
    }

    /// Whether a ServiceAccount may do something: verb, group, resource (with a subresource after a slash), name, and
    /// namespace, each empty for any.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn may(&self, account: (&str, &str), what: [&str; 5]) -> Result<bool> {
        let [verb, group, resource, name, namespace] = what.map(str::to_owned);
        let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
        let user = format!("system:serviceaccount:{}:{}", account.0, account.1);
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {
            "user": user, "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": { "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                "name": name, "namespace": namespace } } });
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = self.runtime.block_on(api.create(&PostParams::default(), &serde_json::from_value(review)?))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// An object, or nothing if there is none.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn read(&self, object: &Value) -> Result<Option<Value>> {
        let (api, name) = self.api(object)?;
        let found = self.runtime.block_on(api.get_opt(&name))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind in a namespace.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let (api, _) = self.api(&object(api_version, kind, Some(namespace), ""))?;
        let listed = self.runtime.block_on(api.list(&ListParams::default()))?;
        Ok(listed.items.into_iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
    }

    /// Ends the API server.
    pub fn stop_server(&self) {
        if let Some(mut server) = self.server.lock().ok().and_then(|mut server| server.take()) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts the API server again, on the same port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_server(&self) -> Result<()> {
        let [clients, _, secure] = self.ports;
        *self.server.lock().map_err(|_| anyhow::anyhow!("a test panicked"))? =
            Some(serve(self.directory.path(), clients, secure)?);
        self.wait_until_ready()
    }

    /// Creates an object, unless there is one of its name; as the server has it.
    ///
    /// # Errors
    /// The server refuses.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let (api, name) = self.api(object)?;
        self.runtime.block_on(async {
            if let Some(known) = api.get_opt(&name).await? {
                return Ok(serde_json::to_value(known)?);
            }
            let created = api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await;
            Ok(serde_json::to_value(created.with_context(|| format!("create {object}"))?)?)
        })
    }

    /// Changes an object's status (a JSON merge patch).
    ///
    /// # Errors
    /// The server refuses.
    pub fn set_status(&self, object: &Value, status: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        let patch = json!({ "status": status });
        let changed = self.runtime.block_on(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)));
        changed.map(drop).with_context(|| format!("set the status {status}"))
    }

    /// Changes an object (a JSON merge patch).
    ///
    /// # Errors
    /// The server refuses.
    pub fn change(&self, object: &Value, patch: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        let changed = self.runtime.block_on(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)));
        changed.map(drop).with_context(|| format!("change {patch}"))
    }

    /// Deletes an object at once.
    ///
    /// # Errors
    /// The server refuses.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        let deleted = self.runtime.block_on(api.delete(&name, &DeleteParams::default().grace_period(0)));
        deleted.map(drop).with_context(|| format!("delete {name}"))
    }

    /// What the API server counts, in Prometheus' text format.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self) -> Result<String> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        Ok(self.runtime.block_on(self.client.request_text(request))?)
    }

    fn api(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, version) = (text(&object["kind"]), text(&object["apiVersion"]));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok((api, text(&object["metadata"]["name"])))
    }

    fn wait_until_ready(&self) -> Result<()> {
        wait_for("the API server", || {
            let asked = async {
                let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
                let ready = self.client.request_text(request).await.ok()?;
                // Ready before its first namespaces are there.
                let namespaces = http::Request::get("/api/v1/namespaces/default").body(Vec::new()).ok()?;
                self.client.request_text(namespaces).await.ok().map(|_| ready)
            };
            self.runtime.block_on(asked).is_some_and(|answer| answer == "ok")
        })
    }
}

/// Runs a cluster until standard input ends.
///
/// # Errors
/// As [`Cluster::start`].
pub fn run() -> Result<()> {
    let cluster = Cluster::start()?;
    println!("{}", cluster.kubeconfig("admin").display());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_server();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// An object's start: what every one has.
pub fn object(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata })
}

/// The lab's node, as its kubelet registers it.
///
/// # Errors
/// The server refuses.
pub fn add_node(cluster: &Cluster, name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Result<()> {
    let mut node = object("v1", "Node", None, name);
    node["spec"] = json!({ "podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs });
    cluster.create(&node)?;
    let addresses: Vec<Value> = addresses.iter().map(|at| json!({ "type": "InternalIP", "address": at })).collect();
    cluster.set_status(&node, &json!({ "addresses": addresses }))
}

/// A pod and whatever owns it, with the UID that the server gives it.
///
/// # Errors
/// The server refuses.
pub fn add_pod(cluster: &Cluster, pod: &PodSpec, spec: &Value) -> Result<Value> {
    let PodSpec { namespace, name, labels, owner, static_hash, .. } = pod;
    cluster.create(&object("v1", "Namespace", None, namespace))?;
    let mut pod = object("v1", "Pod", Some(namespace), name);
    pod["metadata"]["labels"] = labels.clone();
    if let Some(hash) = static_hash {
        pod["metadata"]["annotations"] =
            json!({ "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash });
    }
    if let (Some(kind), Some(owner_name)) = (owner["kind"].as_str(), owner["name"].as_str()) {
        let reference = add_owner(cluster, namespace, kind, owner_name, &owner["selector"], labels, &mut pod)?;
        pod["metadata"]["ownerReferences"] = json!([reference]);
    }
    pod["spec"] = spec.clone();
    cluster.create(&pod)
}

/// A pod's owner, with the owners above, and its reference.
fn add_owner(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    name: &str,
    selector: &Value,
    labels: &Value,
    pod: &mut Value,
) -> Result<Value> {
    let template = json!({ "metadata": { "labels": labels }, "spec": pod_spec() });
    match kind {
        "Deployment" => {
            let mut deployment = object("apps/v1", kind, Some(namespace), name);
            deployment["spec"] = json!({ "selector": selector, "template": template });
            let reference = reference(&cluster.create(&deployment)?);
            // As the Deployment controller does.
            pod["metadata"]["labels"]["pod-template-hash"] = TEMPLATE_HASH.into();
            let mut with_hash = selector.clone();
            with_hash["matchLabels"]["pod-template-hash"] = TEMPLATE_HASH.into();
            let template = json!({ "metadata": { "labels": pod["metadata"]["labels"] }, "spec": pod_spec() });
            let mut set = object("apps/v1", "ReplicaSet", Some(namespace), &format!("{name}-{TEMPLATE_HASH}"));
            set["metadata"]["ownerReferences"] = json!([reference]);
            set["spec"] = json!({ "selector": with_hash, "template": template });
            Ok(self::reference(&cluster.create(&set)?))
        }
        "CronJob" => {
            let mut template = template;
            template["spec"]["restartPolicy"] = "Never".into();
            let mut cron = object("batch/v1", kind, Some(namespace), name);
            let job = json!({ "spec": { "template": template } });
            cron["spec"] = json!({ "schedule": "0 3 * * *", "jobTemplate": job });
            let reference = reference(&cluster.create(&cron)?);
            let mut job = object("batch/v1", "Job", Some(namespace), &format!("{name}-29400000"));
            job["metadata"]["ownerReferences"] = json!([reference]);
            job["spec"] = json!({ "template": template });
            Ok(self::reference(&cluster.create(&job)?))
        }
        _ => {
            let mut set = object("apps/v1", kind, Some(namespace), name);
            set["spec"] = json!({ "selector": selector, "template": template });
            if kind == "StatefulSet" {
                set["spec"]["serviceName"] = name.into();
            }
            Ok(reference(&cluster.create(&set)?))
        }
    }
}

fn reference(owner: &Value) -> Value {
    let (api_version, kind) = (&owner["apiVersion"], &owner["kind"]);
    let (name, uid) = (&owner["metadata"]["name"], &owner["metadata"]["uid"]);
    json!({ "apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true })
}

/// The least that a pod's spec must have.
pub fn pod_spec() -> Value {
    json!({ "containers": [{ "name": "main", "image": "none" }] })
}

/// A Service with these ready endpoints. `service` is its entry in an inventory file.
///
/// # Errors
/// The server refuses.
pub fn add_service(cluster: &Cluster, service: &Value, cluster_ip: Ipv4Addr, ready: &[Ipv4Addr]) -> Result<()> {
    let (namespace, name) = (service["namespace"].as_str(), service["name"].as_str().unwrap_or_default());
    cluster.create(&object("v1", "Namespace", None, namespace.unwrap_or_default()))?;
    let mut made = object("v1", "Service", namespace, name);
    let ports = service["ports"].clone();
    made["spec"] = json!({ "clusterIP": cluster_ip, "selector": service["selector"], "ports": ports });
    cluster.create(&made)?;
    let mut slice = object("discovery.k8s.io/v1", "EndpointSlice", namespace, &format!("{name}-1"));
    slice["metadata"]["labels"] = json!({ "kubernetes.io/service-name": name });
    slice["addressType"] = "IPv4".into();
    let endpoint = |at: &Ipv4Addr| json!({ "addresses": [at], "conditions": { "ready": true } });
    slice["endpoints"] = ready.iter().map(endpoint).collect();
    let target = |port: &Value| {
        let number = if port["targetPort"].is_number() { &port["targetPort"] } else { &port["port"] };
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        json!({ "name": port["name"].as_str().unwrap_or_default(), "port": number, "protocol": protocol })
    };
    slice["ports"] = ports.as_array().into_iter().flatten().map(target).collect();
    cluster.create(&slice).map(drop)
}

/// The status of a pod that runs, as kubelet reports it.
pub fn running(ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Value {
    let now = now();
    json!({
        "phase": "Running",
        "podIP": ipv4.to_string(),
        "podIPs": [{ "ip": ipv4.to_string() }, { "ip": ipv6.to_string() }],
        "startTime": now,
        "conditions": [{ "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": now }],
    })
}

/// The status of a pod whose containers have ended; it keeps its addresses.
pub fn succeeded() -> Value {
    let ended = json!({ "terminated": { "exitCode": 0, "finishedAt": now() } });
    let container =
        json!({ "name": "main", "image": "none", "imageID": "", "ready": false, "restartCount": 0, "state": ended });
    json!({ "phase": "Succeeded", "containerStatuses": [container] })
}

/// This second, as the API writes it.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

fn serve(directory: &Path, etcd: u16, port: u16) -> Result<Child> {
    spawn(
        "kube-apiserver",
        directory,
        &[
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            "--cert-dir=certificates".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--endpoint-reconciler-type=none".into(),
            "--token-auth-file=tokens.csv".into(),
            "--authorization-mode=RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-account-key-file=service-accounts.key".into(),
            "--service-account-signing-key-file=service-accounts.key".into(),
            "--disable-admission-plugins=ServiceAccount,PodSecurity,Priority,RuntimeClass".into(),
            "--watch-cache=true".into(),
            // Where a test plays a kubelet, it is on this machine, whatever the addresses of its node are.
            "--kubelet-preferred-address-types=Hostname,InternalIP".into(),
        ],
    )
}

/// Starts a program; its words are in a file beside its data.
fn spawn(program: &str, directory: &Path, arguments: &[String]) -> Result<Child> {
    let path = find(program).with_context(|| format!("find {program}"))?;
    let log = fs::File::options().create(true).append(true).open(directory.join(format!("{program}.log")))?;
    // It ends with the test that started it, also when that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(path).args(arguments).current_dir(directory);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {program}"))
}

fn find(program: &str) -> Option<PathBuf> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = assets.into_iter().chain(env::split_paths(&path)).map(|directory| directory.join(program));
    candidates.find(|candidate| candidate.is_file())
}

fn free_ports() -> Result<[u16; 3]> {
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}

fn kubeconfig(directory: &Path, port: u16, user: &str) -> String {
    let authority = directory.join("certificates/apiserver.crt");
    let server = json!({ "server": format!("https://127.0.0.1:{port}"), "certificate-authority": authority });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": server }],
        "users": [{ "name": user, "user": { "token": user } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": user, "namespace": "flowscribe" } }],
        "current-context": "lab",
    })
    .to_string()
}

fn client(runtime: &Runtime, kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    runtime.block_on(async {
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    })
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(180);
    while !is_there() {
        if Instant::now() > deadline {
            bail!("{what} did not come within three minutes");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Token, name, UID and groups; each token is its user's name.
const TOKENS: &str = "admin,admin,1,system:masters
agent,system:serviceaccount:flowscribe:flowscribe-exporter,2
inventory,system:serviceaccount:flowscribe:flowscribe-inventory,3
";
const USERS: [&str; 3] = ["admin", "agent", "inventory"];
const TEMPLATE_HASH: &str = "6d5f7c9b8";
