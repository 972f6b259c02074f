//! Pods on one machine: network namespaces on a bridge, each with a cgroup, addresses of both families, and a real
//! process that listens and dials.
//!
//! ```text
//!   namespace of the node: bridge 10.244.0.1, fd00:10:244::1   (a process that can dial, as kubelet does)
//!      ├─ veth ── namespace of a pod: 10.244.x.y, fd00:10:244::x:y, DNAT from cluster IPs
//!      └─ veth ── …
//! ```
//!
//! Nothing of it is in the machine's own network namespace. Namespaces have no names: they end with their processes,
//! which end with the lab, also when it is killed. The cgroups are removed by the node's process, which outlives the
//! lab by that moment.

mod process;
pub(crate) mod spec;

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{self as system, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use process::Process;
use serde_json::{Value, json};

use crate::{
    cgroup,
    cluster::{self, Cluster},
    pod::{Exchange, Order},
};
pub(crate) use spec::Subject;
pub use spec::{NODE_IPV4, NODE_IPV6, PodId, PodSpec};

/// A lab; dropping it removes everything.
pub struct Lab {
    executable: PathBuf,
    cgroup: PathBuf,
    pods: Vec<Pod>,
    services: Vec<Value>,
    links: u32,
    /// Nodes that pods are on, in turn; all of them are on this machine.
    nodes: Vec<String>,
    /// Where its pods and Services are put, as by kubelet and controllers.
    api: Option<Arc<Cluster>>,
    /// Last, so that it sees the pods end before it removes their cgroups.
    node: Process,
}

struct Pod {
    spec: PodSpec,
    /// As the API server has it, where there is one.
    object: Value,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    cgroup: PathBuf,
    process: Process,
}

impl Lab {
    /// Why there can't be a lab on this machine; `None` when there can.
    pub fn missing() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("it needs root".into());
        }
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
            let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if found.is_err() {
                return Some(format!("it needs the program {program} (package {package})"));
            }
        }
        cgroup2().is_none().then(|| "it needs a cgroup2 mount that can be written".into())
    }

    /// Whether pods can be in cgroups of version 1 here.
    pub fn has_cgroup1() -> bool {
        Path::new(CGROUP1).join("cgroup.procs").exists()
    }

    /// Starts a lab without pods. `executable` is this crate's program.
    ///
    /// # Errors
    /// The machine does not allow it; [`Lab::missing`] says more.
    pub fn new(executable: &Path) -> Result<Self> {
        Self::start(executable, &[NODE], None)
    }

    /// Starts a lab whose pods and Services are also in an API server.
    ///
    /// # Errors
    /// As [`Self::new`], or the API server refuses the node.
    pub fn in_cluster(executable: &Path, api: &Arc<Cluster>) -> Result<Self> {
        Self::on_nodes(executable, api, &[NODE])
    }

    /// As [`Self::in_cluster`], with pods on several nodes in turn. Each node's are in a cgroup of their own, which
    /// [`Self::cgroup_of`] names; all are on one network.
    ///
    /// # Errors
    /// As [`Self::in_cluster`].
    pub fn on_nodes(executable: &Path, api: &Arc<Cluster>, nodes: &[&str]) -> Result<Self> {
        for (number, name) in nodes.iter().enumerate() {
            let address = format!("10.244.0.{}", number + 1);
            let (addresses, ranges) = ([&address, NODE_IPV6], [POD_CIDR_IPV4, POD_CIDR_IPV6]);
            cluster::add_node(api, name, &addresses[..2 - number.min(1)], if number == 0 { &ranges } else { &[] })?;
        }
        let lab = Self::start(executable, nodes, Some(Arc::clone(api)))?;
        for node in nodes {
            fs::create_dir_all(lab.cgroup_of(node))?;
        }
        Ok(lab)
    }

    fn start(executable: &Path, nodes: &[&str], api: Option<Arc<Cluster>>) -> Result<Self> {
        let mount = cgroup2().context("find cgroup2")?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let cgroup = mount.join(format!("flowscribe-lab-{}-{number}", system::id()));
        fs::create_dir(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        fs::create_dir(cgroup.join("node"))?;
        let mut node = Process::start(executable, "node", &cgroup.join("node"), None)?;
        node.run("ip", &["-batch", "-"], BRIDGE)?;
        let (pods, services) = (Vec::new(), Vec::new());
        let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self { executable: executable.into(), cgroup, pods, services, links: 0, nodes, api, node })
    }

    /// Adds a pod and starts its process.
    ///
    /// # Errors
    /// The machine refuses a namespace, a cgroup or a link.
    pub fn pod(&mut self, spec: PodSpec) -> Result<PodId> {
        let number = self.pods.len();
        let [high, low] = (number as u16 + 2).to_be_bytes();
        let (ipv4, ipv6) = if spec.external {
            (Ipv4Addr::new(203, 0, 113, low), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16 + 2))
        } else {
            (Ipv4Addr::new(10, 244, 1 + high, low), Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 1, number as u16 + 2))
        };
        let pod = self.make(number, spec, ipv4, ipv6)?;
        self.pods.push(pod);
        Ok(PodId(number))
    }

    /// Makes a pod as kubelet does: it is in the API first, then it runs, and then its status says so.
    fn make(&mut self, number: usize, spec: PodSpec, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<Pod> {
        let mut object = Value::Null;
        let node = self.nodes[number % self.nodes.len()].clone();
        let root = self.cgroup_of(&node);
        if let Some(api) = self.api.as_ref().filter(|_| !spec.external) {
            let mut pod_spec = cluster::pod_spec();
            pod_spec["nodeName"] = node.into();
            pod_spec["hostNetwork"] = spec.host_network.into();
            if !spec.ports.is_null() {
                pod_spec["containers"][0]["ports"] = spec.ports.clone();
            }
            object = cluster::add_pod(api, &spec, &pod_spec)?;
        }
        let cgroup = match spec.static_hash.as_deref().or(object["metadata"]["uid"].as_str()) {
            // As kubelet's systemd driver and containerd name them.
            Some(uid) => root.join(format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{number:064x}.scope",
                uid.replace('-', "_")
            )),
            None => root.join(format!("pod{number}")),
        };
        let (cgroup, cgroup1) = match &object["metadata"]["uid"] {
            Value::String(uid) if spec.cgroup1 => {
                let name = self.cgroup.file_name().unwrap_or_default();
                let below = Path::new(CGROUP1).join(name).join(format!("kubepods/burstable/pod{uid}/{number:064x}"));
                (self.cgroup.join(format!("pod{number}")), Some(below))
            }
            _ => (cgroup, None),
        };
        fs::create_dir_all(&cgroup)?;
        let (ipv4, ipv6, process) = if spec.host_network {
            let netns = self.node.netns();
            (NODE_IPV4.parse()?, NODE_IPV6.parse()?, Process::start(&self.executable, "pod", &cgroup, Some(&netns))?)
        } else {
            (ipv4, ipv6, self.connect(&cgroup, ipv4, ipv6)?)
        };
        if let Some(cgroup1) = cgroup1 {
            fs::create_dir_all(&cgroup1).with_context(|| format!("make {}", cgroup1.display()))?;
            fs::write(cgroup1.join("cgroup.procs"), process.id().to_string())?;
        }
        if let Some(api) = self.api.as_ref().filter(|_| !object.is_null()) {
            api.set_status(&object, &cluster::running(ipv4, ipv6))?;
        }
        Ok(Pod { spec, object, ipv4, ipv6, cgroup, process })
    }

    /// Ends a pod and puts another one in its place: a new network namespace with the same addresses.
    ///
    /// # Errors
    /// As [`Self::pod`].
    pub fn replace(&mut self, pod: PodId, spec: PodSpec) -> Result<()> {
        let old = &mut self.pods[pod.0];
        old.process.end();
        let (ipv4, ipv6) = (old.ipv4, old.ipv6);
        self.pods[pod.0] = self.make(pod.0, spec, ipv4, ipv6)?;
        Ok(())
    }

    /// Ends a pod and removes its cgroup, as a container runtime does; the inventory goes on to tell of it.
    ///
    /// # Errors
    /// The cgroup stays in use.
    pub fn end(&mut self, pod: PodId) -> Result<()> {
        let pod = &mut self.pods[pod.0];
        pod.process.end();
        let deadline = Instant::now() + Duration::from_secs(180);
        while let Err(error) = fs::remove_dir(&pod.cgroup) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("remove {}", pod.cgroup.display()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        if !pod.object.is_null()
            && let Some(parent) = pod.cgroup.parent()
        {
            fs::remove_dir(parent)?;
        }
        Ok(())
    }

    /// A pod as the API server has it; null where there is none.
    pub fn object(&self, pod: PodId) -> &Value {
        &self.pods[pod.0].object
    }

    /// Lets a process of the node enter a pod's network and dial, exchanging some bytes.
    ///
    /// # Errors
    /// It fails.
    pub fn dial_from_node_within(&mut self, pod: PodId, to: (Ipv4Addr, u16), exchange: Exchange) -> Result<()> {
        let netns = format!("--net={}", self.pods[pod.0].process.netns().display());
        let Exchange { to_server, to_client, .. } = exchange;
        let (address, port) = to;
        let talk = format!(
            "exec 3<>/dev/tcp/{address}/{port}; head -c {to_server} /dev/zero >&3; head -c {to_client} <&3 >/dev/null"
        );
        self.node.run("nsenter", &[&netns, "bash", "-c", &talk], "")
    }

    /// Runs a shell command in a pod's namespaces.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&mut self, pod: PodId, command: &str) -> Result<()> {
        self.pods[pod.0].process.run("sh", &["-ec", command], "")
    }

    /// Starts the process of a pod and connects its network namespace to the bridge.
    fn connect(&mut self, cgroup: &Path, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<Process> {
        let mut process = Process::start(&self.executable, "pod", cgroup, None)?;
        let link = self.links;
        self.links += 1;
        let pair = format!(
            "link add p{link} type veth peer name eth0 netns {}\nlink set p{link} master br0 up\n",
            process.id()
        );
        self.node.run("ip", &["-batch", "-"], &pair)?;
        let addresses = format!(
            "addr add {ipv4}/32 dev eth0\naddr add {ipv6}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add default dev eth0\nroute add ::/0 dev eth0\n"
        );
        process.run("ip", &["-batch", "-"], &addresses)?;
        Ok(process)
    }

    /// Gives every pod so far a Service: what dials `cluster_ip` and a port reaches one of the backends on its target
    /// port, in turn. `service` is its entry in the inventory, without addresses.
    ///
    /// # Errors
    /// nftables refuses.
    pub fn service(
        &mut self,
        mut service: Value,
        cluster_ip: Ipv4Addr,
        ports: &[(u16, u16)],
        backends: &[PodId],
    ) -> Result<()> {
        let mut rules =
            String::from("add table ip lab\nadd chain ip lab out { type nat hook output priority -100; }\n");
        for ((port, target), transport) in ports.iter().flat_map(|pair| [(pair, "tcp"), (pair, "udp")]) {
            let targets = backends.iter().enumerate();
            let map: Vec<_> =
                targets.map(|(turn, pod)| format!("{turn} : {} . {target}", self.pods[pod.0].ipv4)).collect();
            rules += &format!(
                "add rule ip lab out ip daddr {cluster_ip} {transport} dport {port} dnat ip to numgen inc mod {} map \
                 {{ {} }}\n",
                backends.len(),
                map.join(", ")
            );
        }
        for pod in self.pods.iter_mut().filter(|_| !backends.is_empty()) {
            pod.process.run("nft", &["-f", "-"], &rules)?;
        }
        if let Some(api) = &self.api {
            let ready: Vec<Ipv4Addr> = backends.iter().map(|pod| self.pods[pod.0].ipv4).collect();
            cluster::add_service(api, &service, cluster_ip, &ready)?;
        }
        service["clusterIPs"] = json!([cluster_ip]);
        self.services.push(service);
        Ok(())
    }

    /// The pods that policies can be about.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let subject = |(number, pod): (usize, &Pod)| Subject {
            pod: PodId(number),
            namespace: pod.spec.namespace.clone(),
            labels: pod.spec.labels.clone(),
            addresses: [pod.ipv4.into(), pod.ipv6.into()],
        };
        let pods = self.pods.iter().enumerate();
        pods.filter(|(_, pod)| !pod.spec.external && !pod.spec.host_network).map(subject).collect()
    }

    /// Gives nftables rules to a pod's network namespace.
    pub(crate) fn filter(&mut self, pod: PodId, rules: &str) -> Result<()> {
        self.pods[pod.0].process.run("nft", &["-f", "-"], rules)
    }

    /// Lets a pod listen.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(&mut self, pod: PodId, port: u16, exchange: Exchange) -> Result<()> {
        self.pods[pod.0].process.order(&Order::Listen { port, exchange }).map(drop)
    }

    /// Lets a pod dial a number of times.
    ///
    /// # Errors
    /// A connection fails, or ends otherwise than planned.
    pub fn dial(&mut self, pod: PodId, to: (impl Into<IpAddr>, u16), times: u32, exchange: Exchange) -> Result<()> {
        let to = SocketAddr::new(to.0.into(), to.1);
        self.pods[pod.0].process.order(&Order::Dial { to, times, exchange }).map(drop)
    }

    /// Lets the node dial, as kubelet does to probe.
    ///
    /// # Errors
    /// As [`Self::dial`].
    pub fn dial_from_node(&mut self, to: (impl Into<IpAddr>, u16), exchange: Exchange) -> Result<()> {
        let to = SocketAddr::new(to.0.into(), to.1);
        self.node.order(&Order::Dial { to, times: 1, exchange }).map(drop)
    }

    /// Gives a pod an order that has no method of its own.
    ///
    /// # Errors
    /// As [`Self::dial`].
    pub fn order(&mut self, pod: PodId, order: &Order) -> Result<u64> {
        self.pods[pod.0].process.order(order)
    }

    /// Lets a pod connect and stay connected.
    ///
    /// # Errors
    /// As [`Self::dial`].
    pub fn hold(&mut self, pod: PodId, to: (impl Into<IpAddr>, u16), exchange: Exchange) -> Result<()> {
        let to = SocketAddr::new(to.0.into(), to.1);
        self.pods[pod.0].process.order(&Order::Hold { to, exchange }).map(drop)
    }

    /// Lets a pod close what it holds.
    ///
    /// # Errors
    /// The pod's process is gone.
    pub fn release(&mut self, pod: PodId) -> Result<()> {
        self.pods[pod.0].process.order(&Order::Release).map(drop)
    }

    /// Connections that a pod's listeners have served to their end.
    ///
    /// # Errors
    /// The pod's process is gone.
    pub fn served(&mut self, pod: PodId) -> Result<u64> {
        self.pods[pod.0].process.order(&Order::Served)
    }

    /// A pod's IPv4 address.
    pub fn ipv4(&self, pod: PodId) -> Ipv4Addr {
        self.pods[pod.0].ipv4
    }

    /// A pod's IPv6 address.
    pub fn ipv6(&self, pod: PodId) -> Ipv6Addr {
        self.pods[pod.0].ipv6
    }

    /// The cgroup that all pods of this lab are in.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup that the pods of a node are in.
    pub fn cgroup_of(&self, node: &str) -> PathBuf {
        if self.nodes.len() > 1 { self.cgroup.join(format!("on-{node}")) } else { self.cgroup.clone() }
    }

    /// The cgroup that a pod is in.
    pub fn cgroup_of_pod(&self, pod: PodId) -> &Path {
        &self.pods[pod.0].cgroup
    }

    /// The network namespace of a pod.
    pub fn netns(&self, pod: PodId) -> PathBuf {
        self.pods[pod.0].process.netns()
    }

    /// The network namespace of the lab's node.
    pub fn node_netns(&self) -> PathBuf {
        self.node.netns()
    }

    /// Writes who is who as an inventory file for the exporter.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_inventory(&self, path: &Path) -> Result<()> {
        let pods: Vec<Value> = self.pods.iter().filter(|pod| !pod.spec.external).map(Pod::inventory).collect();
        let inventory = json!({
            "nodes": [{ "name": NODE, "addresses": [NODE_IPV4, NODE_IPV6], "podCIDRs": [POD_CIDR_IPV4, POD_CIDR_IPV6] }],
            "serviceCIDRs": [SERVICE_CIDR],
            "pods": pods,
            "services": self.services,
        });
        let unfinished = path.with_extension("tmp");
        fs::write(&unfinished, serde_yaml::to_string(&inventory)?)?;
        fs::rename(&unfinished, path).context("write the inventory")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pod in &mut self.pods {
            pod.process.end();
        }
        if let Some(name) = self.cgroup.file_name() {
            let _ = cgroup::remove_tree(&Path::new(CGROUP1).join(name));
        }
        self.node.end();
    }
}

impl Pod {
    fn inventory(&self) -> Value {
        let PodSpec { namespace, name, labels, owner, ports, host_network, .. } = &self.spec;
        let mut pod = json!({
            "namespace": namespace,
            "name": name,
            "uid": format!("uid-{namespace}-{name}"),
            "labels": labels,
            "owner": owner,
            "podIPs": [self.ipv4, self.ipv6],
            "node": NODE,
            "ports": ports,
            "hostNetwork": host_network,
            "netns": if *host_network { Value::Null } else { json!(self.process.netns()) },
            "cgroup": self.cgroup,
        });
        if let Some(pod) = pod.as_object_mut() {
            pod.retain(|_, value| !value.is_null());
        }
        pod
    }
}

/// Where cgroup v2 is mounted, if it can be written.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.into_iter().find(|fields| fields.get(2) == Some(&"cgroup2"))?;
    mount.get(3)?.split(',').any(|option| option == "rw").then(|| PathBuf::from(mount[1]))
}

/// This crate's program, when it is this process.
///
/// # Errors
/// The system does not tell.
pub fn own_executable() -> Result<PathBuf> {
    env::current_exe().context("find this program")
}

/// A hierarchy of cgroup v1, where there is one.
const CGROUP1: &str = "/sys/fs/cgroup/pids";
/// Name of the lab's node, or of its first.
pub const NODE: &str = "lab";
const POD_CIDR_IPV4: &str = "10.244.0.0/16";
const POD_CIDR_IPV6: &str = "fd00:10:244::/64";
const SERVICE_CIDR: &str = "10.96.0.0/16";
const BRIDGE: &str = "link add br0 type bridge
addr add 10.244.0.1/32 dev br0
addr add fd00:10:244::1/128 dev br0 nodad
link set br0 up
route add default dev br0
route add ::/0 dev br0
";

static LABS: AtomicU32 = AtomicU32::new(0);
