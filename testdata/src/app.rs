//! An application from its Kubernetes manifest, played in the lab: its workloads, its Services, and who calls whom.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    lab::{Lab, PodId, PodSpec},
    pod::{Exchange, Order},
};

/// An application's manifest.
pub struct App {
    deployments: Vec<Deployment>,
    services: Vec<Service>,
}

/// An application that runs in a lab.
pub struct RunningApp {
    /// Replicas by workload.
    pub pods: BTreeMap<String, Vec<PodId>>,
    /// Caller, callee's Service, and the port to dial.
    pub calls: Vec<(String, String, u16)>,
    /// Every port that a replica listens on.
    pub listeners: Vec<(PodId, u16)>,
}

impl App {
    /// Reads Deployments and Services; other objects are passed over.
    ///
    /// # Errors
    /// The manifest is not what Kubernetes would take.
    pub fn parse(manifest: &str) -> Result<Self> {
        let mut app = Self { deployments: Vec::new(), services: Vec::new() };
        for document in serde_yaml::Deserializer::from_str(manifest) {
            let object = Value::deserialize(document).context("read the manifest")?;
            match object["kind"].as_str() {
                Some("Deployment") => app.deployments.push(serde_json::from_value(object)?),
                Some("Service") => app.services.push(serde_json::from_value(object)?),
                _ => {}
            }
        }
        Ok(app)
    }

    /// The application's objects as a real cluster runs them, with a program in place of its own that answers on its ports
    /// and calls whom it calls.
    ///
    /// # Errors
    /// An object can't be written as JSON.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for deployment in &self.deployments {
            let mut object = serde_json::to_value(deployment).context("write a Deployment")?;
            let pod = &mut object["spec"]["template"]["spec"];
            pod["terminationGracePeriodSeconds"] = json!(1);
            for container in pod["containers"].as_array_mut().into_iter().flatten() {
                stand_in(container);
            }
            objects.push(object);
        }
        for service in &self.services {
            objects.push(serde_json::to_value(service).context("write a Service")?);
        }
        Ok(objects)
    }

    /// Whom each workload calls of what is deployed: caller, callee's Service, and the port.
    pub fn calls(&self) -> Vec<(String, String, u16)> {
        let is_there = |name: &str| self.services.iter().any(|service| service.metadata.name.as_deref() == Some(name));
        let of = |deployment: &Deployment| {
            let caller = deployment.metadata.name.clone().unwrap_or_default();
            calls(deployment).into_iter().map(move |(callee, port)| (caller.clone(), callee, port))
        };
        // What is configured but not deployed is not called, as in the application itself.
        self.deployments.iter().flat_map(of).filter(|(_, callee, _)| is_there(callee)).collect()
    }

    /// Starts every replica, lets it listen on its container ports, and makes the Services reachable.
    ///
    /// # Errors
    /// The lab refuses.
    pub fn start(&self, lab: &mut Lab, namespace: &str) -> Result<RunningApp> {
        let mut running = RunningApp { pods: BTreeMap::new(), calls: Vec::new(), listeners: Vec::new() };
        for deployment in &self.deployments {
            start_deployment(deployment, lab, namespace, &mut running)?;
        }
        let mut names = BTreeMap::new();
        for (number, service) in self.services.iter().enumerate() {
            let cluster_ip = Ipv4Addr::new(10, 96, 0, number as u8 + 10);
            let name = service.metadata.name.clone().context("a Service has a name")?;
            self.start_service(service, &name, cluster_ip, lab, namespace, &running)?;
            names.insert(format!("{name}.{namespace}.{DOMAIN}"), cluster_ip);
        }
        start_dns(names.clone(), lab, namespace, &running)?;
        running.calls = self.calls();
        Ok(running)
    }

    fn start_service(
        &self,
        service: &Service,
        name: &str,
        cluster_ip: Ipv4Addr,
        lab: &mut Lab,
        namespace: &str,
        running: &RunningApp,
    ) -> Result<()> {
        let spec = service.spec.clone().unwrap_or_default();
        let selector = spec.selector.unwrap_or_default();
        let selected = self.deployments.iter().filter(|deployment| {
            let labels = labels(deployment);
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        let backends: Vec<PodId> = selected
            .flat_map(|deployment| &running.pods[&deployment.metadata.name.clone().unwrap_or_default()])
            .copied()
            .collect();
        let ports = spec.ports.unwrap_or_default();
        let target = |port: &k8s_openapi::api::core::v1::ServicePort| match port.target_port {
            Some(IntOrString::Int(target)) => target as u16,
            _ => port.port as u16,
        };
        let pairs: Vec<(u16, u16)> = ports.iter().map(|port| (port.port as u16, target(port))).collect();
        let listed: Vec<Value> = ports
            .iter()
            .map(|port| json!({ "name": port.name, "port": port.port, "targetPort": target(port) }))
            .collect();
        let entry = json!({ "namespace": namespace, "name": name, "selector": selector, "ports": listed });
        lab.service(entry, cluster_ip, &pairs, &backends)
    }
}

impl RunningApp {
    /// The pods of a workload.
    pub fn pods(&self, workload: &str) -> &[PodId] {
        self.pods.get(workload).map_or(&[], Vec::as_slice)
    }

    /// Plays one round: every replica calls each of its Services a few times, by name.
    ///
    /// # Errors
    /// A call fails.
    pub fn play(&self, lab: &mut Lab, times: u32) -> Result<()> {
        for (caller, callee, port) in &self.calls {
            for pod in &self.pods[caller] {
                let call = Order::DialName { name: callee.clone(), port: *port, times, exchange: CALL };
                lab.order(*pod, &call).with_context(|| format!("{caller} calls {callee}"))?;
            }
        }
        Ok(())
    }

    /// Probes every listener from the node, as kubelet does.
    ///
    /// # Errors
    /// A probe fails.
    pub fn probe(&self, lab: &mut Lab) -> Result<()> {
        self.listeners.iter().try_for_each(|(pod, port)| lab.dial_from_node((lab.ipv4(*pod), *port), CALL))
    }
}

/// Has a container run the program of this project's that stands in for any service.
fn stand_in(container: &mut Value) {
    let ports: Vec<String> =
        container["ports"].as_array().into_iter().flatten().map(|port| port["containerPort"].to_string()).collect();
    container["image"] = json!("localhost/app:1");
    container["imagePullPolicy"] = json!("Never");
    let undeclared = UNDECLARED_PORT.to_string();
    container["args"] = json!(["service", "--listen", undeclared]);
    if let Some(first) = ports.first() {
        container["args"] = json!(["service", "--listen", format!("{},{undeclared}", ports.join(","))]);
        let probe = json!({ "tcpSocket": { "port": first.parse::<u16>().unwrap_or_default() }, "periodSeconds": 5 });
        container["livenessProbe"] = probe.clone();
        container["readinessProbe"] = probe;
    }
}

/// Starts the cluster's DNS, as every cluster has one, and has every pod use it.
fn start_dns(names: BTreeMap<String, Ipv4Addr>, lab: &mut Lab, namespace: &str, running: &RunningApp) -> Result<()> {
    let labels = json!({ "k8s-app": "kube-dns" });
    let dns = lab.pod(PodSpec {
        namespace: "kube-system".into(),
        name: format!("coredns-{POD_TEMPLATE_HASH}-00000"),
        labels: labels.clone(),
        owner: json!({ "kind": "Deployment", "name": "coredns", "selector": { "matchLabels": labels } }),
        ports: json!([{ "name": "dns", "containerPort": 53, "protocol": "UDP" },
            { "name": "dns-tcp", "containerPort": 53, "protocol": "TCP" }]),
        ..PodSpec::default()
    })?;
    lab.order(dns, &Order::ServeNames { names })?;
    let entry = json!({ "namespace": "kube-system", "name": "kube-dns", "selector": labels, "ports":
        [{ "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "dns-tcp", "port": 53, "protocol": "TCP" }] });
    lab.service(entry, RESOLVER, &[(53, 53)], &[dns])?;
    let search = format!("{namespace}.{DOMAIN} {DOMAIN}");
    for pod in running.pods.values().flatten() {
        lab.order(*pod, &Order::Resolve { resolver: RESOLVER, search: search.clone() })?;
    }
    Ok(())
}

fn start_deployment(deployment: &Deployment, lab: &mut Lab, namespace: &str, running: &mut RunningApp) -> Result<()> {
    let workload = deployment.metadata.name.clone().context("a Deployment has a name")?;
    let spec = deployment.spec.clone().unwrap_or_default();
    let containers = spec.template.spec.map(|pod| pod.containers).unwrap_or_default();
    let ports: Vec<_> = containers.iter().flat_map(|container| container.ports.iter().flatten()).collect();
    let container_ports: Vec<Value> =
        ports.iter().map(|port| json!({ "name": port.name, "containerPort": port.container_port })).collect();
    for replica in 0..spec.replicas.unwrap_or(1) {
        let mut labels = labels(deployment);
        labels.insert("pod-template-hash".into(), POD_TEMPLATE_HASH.into());
        let pod = lab.pod(PodSpec {
            namespace: namespace.into(),
            name: format!("{workload}-{POD_TEMPLATE_HASH}-{replica:05}"),
            labels: json!(labels),
            owner: json!({ "kind": "Deployment", "name": workload, "selector": spec.selector }),
            ports: json!(container_ports),
            ..PodSpec::default()
        })?;
        for port in &ports {
            lab.listen(pod, port.container_port as u16, CALL)?;
            running.listeners.push((pod, port.container_port as u16));
        }
        running.pods.entry(workload.clone()).or_default().push(pod);
    }
    Ok(())
}

fn labels(deployment: &Deployment) -> BTreeMap<String, String> {
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    template.and_then(|template| template.metadata.clone()?.labels).unwrap_or_default()
}

/// Whom a workload calls: environment variables named `…_ADDR` hold `service:port`.
fn calls(deployment: &Deployment) -> Vec<(String, u16)> {
    let pod = deployment.spec.clone().and_then(|spec| spec.template.spec).unwrap_or_default();
    let variables = pod.containers.into_iter().flat_map(|container| container.env.unwrap_or_default());
    variables
        .filter(|variable| variable.name.ends_with("_ADDR"))
        .filter_map(|variable| {
            let value = variable.value?;
            let (service, port) = value.split_once(':')?;
            Some((service.to_owned(), port.parse().ok()?))
        })
        .collect()
}

/// What every stand-in answers on too, though nothing says so.
pub const UNDECLARED_PORT: u16 = 9999;
const CALL: Exchange = Exchange::new(120, 900);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
const DOMAIN: &str = "svc.cluster.local";
const POD_TEMPLATE_HASH: &str = "6d5f7c9b8";
