//! The made-up cluster: nodes, workloads, and pods that come, go and leave their addresses to others.

use std::{collections::BTreeMap, sync::Arc};

use schemas::{
    inventory::{InventoryRecord, ObjectKind},
    table::{Port, TimestampMs},
};

use super::{HOUR_MS, MINUTE_MS, Plan, Story};

/// A pod, from when to when it has its address.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) workload: usize,
    pub(super) node: usize,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) start: i64,
    pub(super) end: i64,
    /// Of the ReplicaSet or Job that it is of; `None` for a bare pod.
    owner: Option<(&'static str, Arc<str>)>,
    labels: Arc<str>,
}

/// A workload.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) kind: &'static str,
    /// Address of its Service.
    pub(super) service: Option<Arc<str>>,
    pub(super) transport: &'static str,
    pub(super) service_port: u16,
    pub(super) port: u16,
    pub(super) pods: Vec<Pod>,
    replicas: u16,
    generation: u32,
    is_removed: bool,
}

pub(super) struct World {
    pub(super) workloads: Vec<Workload>,
    pub(super) nodes: Vec<Arc<str>>,
    /// Free addresses of each node: the last to become free is the first to be taken.
    free: Vec<Vec<(i64, Arc<str>)>>,
    taken: Vec<u32>,
    tenants: BTreeMap<Arc<str>, u32>,
    pods: u64,
    rollout_hours: u32,
    /// What the inventory has to be told, in order.
    pub(super) news: Vec<(i64, InventoryRecord, bool)>,
}

impl World {
    pub(super) fn new(plan: &Plan) -> Self {
        let nodes: Vec<Arc<str>> = (0..plan.nodes).map(|node| format!("node-{node}").into()).collect();
        let mut world = Self {
            workloads: Vec::new(),
            free: vec![Vec::new(); nodes.len()],
            taken: vec![0; nodes.len()],
            nodes,
            tenants: BTreeMap::new(),
            pods: 0,
            rollout_hours: plan.rollout_hours,
            news: Vec::new(),
        };
        let start = plan.start.0;
        world.objects_of_the_cluster(start);
        for number in 0..plan.workloads {
            world.workload("shop", &format!("app-{number}"), "Deployment", plan.replicas, start);
        }
        world.workload("kube-system", "coredns", "Deployment", 2, start);
        for story in &plan.stories {
            match story {
                Story::Nightly => world.workload("batch", "nightly", "CronJob", 0, start),
                Story::Weekly => world.workload("batch", "weekly", "CronJob", 0, start),
                Story::MonthEnd => world.workload("batch", "month-end", "CronJob", 0, start),
                Story::Scan(_) => world.workload("tools", "scanner", "Pod", 0, start),
                Story::Debug(_) => world.workload("tools", "debug", "Pod", 0, start),
                Story::Decommission(_) => world.workload("shop", "ledger", "Deployment", 2, start),
                Story::Burst(_) | Story::Newcomer(_) => {}
            }
        }
        world
    }

    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<usize> {
        self.workloads.iter().position(|w| &*w.namespace == namespace && &*w.name == name)
    }

    /// Addresses that several pods had.
    pub(super) fn reused_addresses(&self) -> usize {
        self.tenants.values().filter(|tenants| **tenants > 1).count()
    }

    /// Everyone who is there at a time, for a scan.
    pub(super) fn everyone(&self, time: i64) -> Vec<Pod> {
        let pods = self.workloads.iter().flat_map(|workload| &workload.pods);
        pods.filter(|pod| pod.is_there(time, time + MINUTE_MS)).cloned().collect()
    }

    /// Replaces the pods of the Deployments whose turn it is, half an hour into the hour.
    pub(super) fn roll_out(&mut self, hour: u32, hour_start: i64) {
        if self.rollout_hours == 0 {
            return;
        }
        let turn = |number: usize| (number as u32 / TOGETHER) % self.rollout_hours;
        let is_due = |(number, workload): (usize, &Workload)| {
            let is_due = hour > 0 && hour % self.rollout_hours == turn(number);
            (is_due && workload.kind == "Deployment" && !workload.is_removed).then_some(number)
        };
        let due: Vec<usize> = self.workloads.iter().enumerate().filter_map(is_due).collect();
        let time = hour_start + HOUR_MS / 2;
        for number in &due {
            self.workloads[*number].generation += 1;
            self.stop(*number, time);
        }
        // The addresses that one has just left are another one's at once.
        for number in due {
            self.start(number, self.workloads[number].replicas, time + REUSE_MS + 2_000);
        }
    }

    /// Starts pods of a workload.
    pub(super) fn start(&mut self, number: usize, pods: u16, time: i64) {
        for replica in 0..pods {
            let node = (number + usize::from(replica)) % self.nodes.len();
            let address = self.take_address(node, time);
            let Workload { namespace, name, kind, generation, .. } = &self.workloads[number];
            self.pods += 1;
            let generation = format!("{generation:06x}");
            let (owner, labels) = match *kind {
                "Deployment" => {
                    let labels = format!(r#"{{"app":"{name}","pod-template-hash":"{generation}"}}"#);
                    (Some(("ReplicaSet", Arc::from(format!("{name}-{generation}")))), labels)
                }
                "CronJob" => {
                    let job = format!("{name}-{}", time / 60_000);
                    let labels = format!(r#"{{"app":"{name}","job-name":"{job}"}}"#);
                    (Some(("Job", Arc::from(job))), labels)
                }
                _ => (None, format!(r#"{{"app":"{name}"}}"#)),
            };
            let pod_name = match (*kind, &owner) {
                ("Pod", _) | (_, None) => Arc::clone(name),
                (_, Some((_, owner))) => format!("{owner}-{:05}", self.pods).into(),
            };
            let pod = Pod {
                workload: number,
                node,
                name: pod_name,
                uid: format!("00000000-0000-4000-8000-{:012x}", self.pods).into(),
                address,
                start: time,
                end: i64::MAX,
                owner,
                labels: labels.into(),
            };
            let namespace = Arc::clone(namespace);
            if let Some((kind, owner)) = &pod.owner {
                let top = Arc::clone(&self.workloads[number].name);
                let top_kind = self.workloads[number].kind;
                self.tell(time, owner_record(kind, owner, &namespace, Some((top_kind, &top))), true);
            }
            self.tell(time, pod_record(&pod, &namespace, &self.nodes[node]), true);
            self.workloads[number].pods.push(pod);
        }
        self.tell_endpoints(number, time);
    }

    /// Ends the pods of a workload.
    pub(super) fn stop(&mut self, number: usize, time: i64) {
        let namespace = Arc::clone(&self.workloads[number].namespace);
        let mut ended = Vec::new();
        for pod in self.workloads[number].pods.iter_mut().filter(|pod| pod.end == i64::MAX) {
            pod.end = time;
            ended.push(pod.clone());
        }
        for pod in ended {
            self.free[pod.node].push((time, Arc::clone(&pod.address)));
            let mut record = pod_record(&pod, &namespace, &self.nodes[pod.node]);
            record.lease_end = Some(TimestampMs(time));
            self.tell(time, record, false);
            if let Some((kind, owner)) = pod.owner.as_ref().filter(|(kind, _)| *kind == "ReplicaSet") {
                self.tell(time, owner_record(kind, owner, &namespace, None), false);
            }
        }
        self.tell_endpoints(number, time);
    }

    /// Removes a workload for good.
    pub(super) fn remove(&mut self, number: usize, time: i64) {
        self.stop(number, time);
        self.workloads[number].is_removed = true;
        let Workload { namespace, name, kind, .. } = &self.workloads[number];
        let record = owner_record(kind, name, namespace, None);
        let service = service_record(&self.workloads[number]);
        self.tell(time, record, false);
        self.tell(time, service, false);
    }

    fn workload(&mut self, namespace: &str, name: &str, kind: &'static str, replicas: u16, time: i64) {
        let number = self.workloads.len();
        let is_dns = name == "coredns";
        let has_service = kind == "Deployment";
        let workload = Workload {
            namespace: namespace.into(),
            name: name.into(),
            kind,
            service: has_service.then(|| format!("10.96.{}.{}", number / 200 + 1, number % 200 + 10).into()),
            transport: if is_dns { "udp" } else { "tcp" },
            service_port: if is_dns { 53 } else { 80 },
            port: if is_dns { 53 } else { 8080 },
            pods: Vec::new(),
            replicas,
            generation: 1,
            is_removed: false,
        };
        if kind != "Pod" {
            self.tell(time, owner_record(kind, &workload.name, &workload.namespace, None), true);
        }
        if has_service {
            self.tell(time, service_record(&workload), true);
        }
        self.workloads.push(workload);
        self.start(number, replicas, time);
    }

    fn objects_of_the_cluster(&mut self, time: i64) {
        let nodes = self.nodes.clone();
        let control = Arc::from("control-plane");
        for (number, name) in nodes.iter().chain([&control]).enumerate() {
            let node = InventoryRecord {
                addresses: vec![if *name == control {
                    CONTROL.into()
                } else {
                    format!("192.0.2.{}", number + 1).into()
                }],
                cidrs: vec![format!("10.{}.0.0/16", 100 + number).into()],
                zone: Some(format!("zone-{}", number % ZONES).into()),
                ..object(ObjectKind::Node, None, name)
            };
            self.tell(time, node, true);
        }
        let services =
            InventoryRecord { cidrs: vec!["10.96.0.0/16".into()], ..object(ObjectKind::ServiceCidr, None, "services") };
        self.tell(time, services, true);
        let port = |port| Port { name: Some("https".into()), protocol: "tcp".into(), port, ..Port::default() };
        let api = InventoryRecord {
            addresses: vec![API_SERVICE.into()],
            ports: vec![Port { target: Some("6443".into()), ..port(443) }],
            service_type: Some("ClusterIP".into()),
            ..object(ObjectKind::Service, Some("default"), "kubernetes")
        };
        let endpoints = InventoryRecord {
            addresses: vec![CONTROL.into()],
            ports: vec![port(6443)],
            owner_kind: Some("Service".into()),
            owner: Some("kubernetes".into()),
            ..object(ObjectKind::EndpointSlice, Some("default"), "kubernetes")
        };
        self.tell(time, api, true);
        self.tell(time, endpoints, true);
    }

    fn tell_endpoints(&mut self, number: usize, time: i64) {
        let workload = &self.workloads[number];
        if workload.service.is_none() {
            return;
        }
        let ready = workload.pods.iter().filter(|pod| pod.end == i64::MAX);
        let record = InventoryRecord {
            addresses: ready.map(|pod| Arc::clone(&pod.address)).collect(),
            ports: vec![Port { protocol: workload.transport.into(), port: workload.port, ..Port::default() }],
            owner_kind: Some("Service".into()),
            owner: Some(Arc::clone(&workload.name)),
            ..object(ObjectKind::EndpointSlice, Some(&workload.namespace), &format!("{}-1", workload.name))
        };
        self.tell(time, record, !workload.is_removed);
    }

    fn take_address(&mut self, node: usize, time: i64) -> Arc<str> {
        let at = self.free[node].iter().rposition(|(since, _)| since + REUSE_MS <= time);
        let address = match at {
            Some(at) => self.free[node].remove(at).1,
            None => {
                self.taken[node] += 1;
                let host = self.taken[node] + 1;
                format!("10.{}.{}.{}", 100 + node, host / 250, host % 250).into()
            }
        };
        *self.tenants.entry(Arc::clone(&address)).or_default() += 1;
        address
    }

    fn tell(&mut self, time: i64, record: InventoryRecord, is_there: bool) {
        self.news.push((time, record, is_there));
    }
}

impl Pod {
    /// Whether the pod has its address throughout, with room for clocks that differ.
    const fn is_there(&self, from: i64, to: i64) -> bool {
        self.start + CLOCKS_MS <= from && to + CLOCKS_MS <= self.end
    }

    /// From when to when it talks: to its last moment, and not before it is ready.
    pub(super) const fn time(&self) -> (i64, i64) {
        (self.start + READY_MS, self.end)
    }

    /// Labels as canonical JSON.
    pub(super) fn labels(&self) -> Arc<str> {
        Arc::clone(&self.labels)
    }
}

fn object(kind: ObjectKind, namespace: Option<&str>, name: &str) -> InventoryRecord {
    InventoryRecord {
        kind: kind.into(),
        namespace: namespace.map(Into::into),
        name: name.into(),
        ..InventoryRecord::default()
    }
}

fn pod_record(pod: &Pod, namespace: &str, node: &Arc<str>) -> InventoryRecord {
    InventoryRecord {
        uid: Some(Arc::clone(&pod.uid)),
        addresses: vec![Arc::clone(&pod.address)],
        labels: Some(Arc::clone(&pod.labels)),
        owner_kind: pod.owner.as_ref().map(|(kind, _)| (*kind).into()),
        owner: pod.owner.as_ref().map(|(_, name)| Arc::clone(name)),
        object_node: Some(Arc::clone(node)),
        host_network: Some(false),
        phase: Some("Running".into()),
        lease_start: Some(TimestampMs(pod.start)),
        ..object(ObjectKind::Pod, Some(namespace), &pod.name)
    }
}

fn owner_record(of_kind: &str, name: &str, namespace: &str, owner: Option<(&str, &Arc<str>)>) -> InventoryRecord {
    let app = owner.map_or(name, |(_, owner)| owner);
    InventoryRecord {
        workload_kind: Some(of_kind.into()),
        owner_kind: owner.map(|(kind, _)| kind.into()),
        owner: owner.map(|(_, name)| Arc::clone(name)),
        selector: Some(format!(r#"{{"matchLabels":{{"app":"{app}"}}}}"#).into()),
        ..object(ObjectKind::Workload, Some(namespace), name)
    }
}

fn service_record(workload: &Workload) -> InventoryRecord {
    let port = Port {
        protocol: workload.transport.into(),
        port: workload.service_port,
        target: Some(workload.port.to_string().into()),
        ..Port::default()
    };
    InventoryRecord {
        addresses: workload.service.iter().cloned().collect(),
        ports: vec![port],
        selector: Some(format!(r#"{{"app":"{}"}}"#, workload.name).into()),
        service_type: Some("ClusterIP".into()),
        ..object(ObjectKind::Service, Some(&workload.namespace), &workload.name)
    }
}

/// Zones that nodes are in, in turn.
pub(super) const ZONES: usize = 2;
/// Address of the API server's node.
pub(super) const CONTROL: &str = "192.0.2.250";
/// Address of the Service `default/kubernetes`.
pub(super) const API_SERVICE: &str = "10.96.0.1";
/// Deployments whose pods are replaced at the same time.
const TOGETHER: u32 = 3;
/// How soon a free address is taken again.
const REUSE_MS: i64 = 10_000;
/// How long a pod takes to be ready.
const READY_MS: i64 = 1_000;
/// More than the clocks of two nodes differ.
const CLOCKS_MS: i64 = 3_000;
