//! The traffic of the made-up cluster, and the agents that see it.

use std::{path::Path, sync::Arc, thread};

use anyhow::Result;
use fastrand::Rng;
use schemas::{
    flow::FlowRecord,
    inventory::{InventoryRecord, ObjectKind, Scope},
    table::{RttHistogram, TimestampMs},
};

use super::{
    HOUR_MS, MINUTE_MS, Plan, Story, TrueEdge, Truth,
    agent::Agent,
    truth::Observed,
    world::{API_SERVICE, CONTROL, Pod, World, ZONES},
};

/// Who calls whom.
#[derive(Clone, Debug)]
struct Call {
    from: Caller,
    to: Callee,
    /// Port of who answers.
    port: u16,
    busy_percent: u8,
    /// Hours from the start in which it happens, and minutes of them.
    hours: (u32, u32),
    minutes: (i64, i64),
}

#[derive(Clone, Debug)]
enum Caller {
    Workload(usize),
    Outside(Arc<str>),
}

#[derive(Clone, Debug)]
enum Callee {
    /// By the Service, or directly.
    Workload(usize, bool),
    /// The API server, by its Service.
    Api,
    Outside(Arc<str>),
}

/// The agents at work.
pub(super) struct Traffic<'a> {
    plan: &'a Plan,
    rng: Rng,
    world: World,
    calls: Vec<Call>,
    agents: Vec<Option<Agent>>,
    /// `flowscribe inventory`.
    inventory: Agent,
    runs: u32,
    directory: &'a Path,
    truth: Truth,
    words: Words,
}

struct Words {
    client: Arc<str>,
    server: Arc<str>,
    tcp: Arc<str>,
    udp: Arc<str>,
    pod: Arc<str>,
    unknown: Arc<str>,
    refused: Arc<str>,
}

/// What passed between two ends in a window.
#[derive(Clone, Copy)]
struct Passed {
    window: i64,
    /// When both ends were there.
    time: (i64, i64),
    connections: i64,
    failed: i64,
    /// Of each connection.
    duration_ms: i64,
}

impl<'a> Traffic<'a> {
    pub(super) fn new(plan: &'a Plan, directory: &'a Path) -> Result<Self> {
        let mut world = World::new(plan);
        let mut rng = Rng::with_seed(plan.seed);
        let calls = calls(plan, &world, &mut rng);
        let inventory = Agent::new(plan, directory, "_cluster", 0, plan.start.0, Scope::Cluster);
        // What is there from the start is in the first snapshot.
        world.news.sort_by_key(|(time, ..)| *time);
        Ok(Self {
            plan,
            rng,
            world,
            calls,
            agents: (0..plan.nodes).map(|_| None).collect(),
            inventory,
            runs: 0,
            directory,
            truth: Truth::default(),
            words: Words {
                client: "client".into(),
                server: "server".into(),
                tcp: "tcp".into(),
                udp: "udp".into(),
                pod: "pod".into(),
                unknown: "unknown".into(),
                refused: "refused".into(),
            },
        })
    }

    pub(super) fn hour(&mut self, hour: u32) -> Result<()> {
        let start = self.plan.start.0 + i64::from(hour) * HOUR_MS;
        self.tell_stories(hour, start);
        self.world.roll_out(hour, start);
        self.change_agents(hour, start)?;
        self.tell_inventory(start)?;
        if self.plan.repeats && hour > 0 {
            return self.repeat_hour(start);
        }
        let calls: Vec<Call> = self
            .calls
            .iter()
            .filter(|call| call.hours.0 <= hour && hour < call.hours.1 && self.is_on(call, hour, start))
            .cloned()
            .collect();
        for minute in 0..60 {
            let window = start + minute * MINUTE_MS;
            for call in calls.iter().filter(|call| call.minutes.0 <= minute && minute < call.minutes.1) {
                self.call(call, window)?;
            }
            if self.plan.stories.contains(&Story::Scan(hour)) && (8..28).contains(&minute) {
                self.scan(minute, window)?;
            }
            for agent in self.agents.iter_mut().flatten().chain([&mut self.inventory]) {
                agent.tell_health(window, false)?;
            }
        }
        self.truth.end_hour(u32::try_from(start / HOUR_MS)?);
        for workload in &mut self.world.workloads {
            let end = start + HOUR_MS;
            let name = format!("{}/{}", workload.namespace, workload.name);
            for pod in &workload.pods {
                let ran = pod.end.min(end) - pod.start.max(start);
                let watched = if self.agents[pod.node].is_some() { ran } else { 0 };
                let (all, observed) = self.truth.pod_time_ms.entry(name.clone()).or_default();
                (*all, *observed) = (*all + ran, *observed + watched);
            }
            workload.pods.retain(|pod| pod.end > end);
        }
        Ok(())
    }

    /// The first hour's traffic once more, by all agents at the same time.
    fn repeat_hour(&mut self, start: i64) -> Result<()> {
        let first = self.plan.start.0;
        thread::scope(|scope| {
            let agents = self.agents.iter_mut().flatten().chain([&mut self.inventory]);
            // All begin before the first is waited for.
            let threads: Vec<_> = agents.map(|agent| scope.spawn(move || agent.repeat_hour(first, start))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("an agent does not panic"))
        })
    }

    /// Makes everything visible that was written so far.
    pub(super) fn finish_files(&mut self) -> Result<()> {
        self.agents.iter_mut().flatten().chain([&mut self.inventory]).try_for_each(Agent::finish)
    }

    pub(super) fn finish(mut self) -> Result<Truth> {
        let end = self.plan.start.0 + i64::from(self.plan.hours) * HOUR_MS;
        for mut agent in self.agents.into_iter().flatten().chain([self.inventory]) {
            agent.tell_health(end - 1, true)?;
            agent.finish()?;
        }
        self.truth.reused_addresses = self.world.reused_addresses();
        Ok(self.truth)
    }

    /// Pods of stories that begin or end in this hour.
    fn tell_stories(&mut self, hour: u32, start: i64) {
        for story in self.plan.stories.clone() {
            let name = match story {
                Story::Nightly => ("batch", "nightly"),
                Story::Weekly => ("batch", "weekly"),
                Story::MonthEnd => ("batch", "month-end"),
                Story::Scan(at) if at == hour => ("tools", "scanner"),
                Story::Debug(at) if at == hour => ("tools", "debug"),
                Story::Decommission(at) if at == hour => {
                    if let Some(ledger) = self.world.find("shop", "ledger") {
                        self.world.remove(ledger, start + 1_000);
                    }
                    continue;
                }
                _ => continue,
            };
            let is_job = name.0 == "batch";
            if is_job && !is_due(story, start) {
                continue;
            }
            if let Some(number) = self.world.find(name.0, name.1) {
                self.world.start(number, 1, start + 6 * MINUTE_MS);
                self.world.stop(number, start + 29 * MINUTE_MS);
            }
        }
    }

    fn is_on(&self, call: &Call, hour: u32, start: i64) -> bool {
        let Caller::Workload(from) = call.from else { return true };
        let name = &*self.world.workloads[from].name;
        self.plan.stories.iter().all(|story| match story {
            Story::Nightly if name == "nightly" => is_due(*story, start),
            Story::Weekly if name == "weekly" => is_due(*story, start),
            Story::MonthEnd if name == "month-end" => is_due(*story, start),
            Story::Debug(at) if name == "debug" => *at == hour,
            _ => true,
        })
    }

    /// Agents that begin, and those that fail without a word.
    fn change_agents(&mut self, hour: u32, start: i64) -> Result<()> {
        for number in 0..self.plan.nodes {
            let is_away = |gap: &(u16, u32, u32)| gap.0 == number && gap.1 <= hour && hour < gap.2;
            let watches = number < self.plan.nodes - self.plan.without_agent && !self.plan.gaps.iter().any(is_away);
            let agent = &mut self.agents[usize::from(number)];
            match (watches, agent.is_some()) {
                (true, false) => {
                    self.runs += 1;
                    let node = &self.world.nodes[usize::from(number)];
                    let mut new = Agent::new(self.plan, self.directory, node, self.runs, start, Scope::Part);
                    let known: Vec<InventoryRecord> =
                        self.inventory.log.known().filter(|record| is_of(record, node)).cloned().collect();
                    new.log.replace(known, TimestampMs(start));
                    *agent = Some(new);
                }
                (false, true) => {
                    if let Some(mut agent) = agent.take() {
                        agent.finish()?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes what became of pods, Services and owners: a snapshot opens every hour.
    fn tell_inventory(&mut self, start: i64) -> Result<()> {
        let mut news = std::mem::take(&mut self.world.news);
        news.sort_by_key(|(time, ..)| *time);
        let agents = self.agents.iter_mut().enumerate();
        let agents = agents.filter_map(|(number, agent)| Some((Some(number), agent.as_mut()?)));
        for (number, agent) in agents.chain([(None, &mut self.inventory)]) {
            let node = number.map(|number| &self.world.nodes[number]);
            let own = news.iter().filter(|(_, record, _)| node.is_none_or(|node| is_of(record, node)));
            let (before, later): (Vec<_>, Vec<_>) = own.partition(|(time, ..)| *time <= start);
            let mut rows = Vec::new();
            for (_, record, is_there) in before {
                rows.extend(agent.learn(record, *is_there, start));
            }
            rows.extend(agent.log.snapshot(TimestampMs(start)));
            for (time, record, is_there) in later {
                rows.extend(agent.learn(record, *is_there, time + 500));
            }
            for row in rows {
                agent.inventory.push(row, TimestampMs(start))?;
            }
        }
        Ok(())
    }

    /// The windows of one call: every client that is there, and one of the servers.
    fn call(&mut self, call: &Call, window: i64) -> Result<()> {
        let clients = match &call.from {
            Caller::Workload(from) => self.ready(*from, window),
            Caller::Outside(_) => vec![None],
        };
        for client in clients {
            if self.rng.u8(..100) >= call.busy_percent {
                continue;
            }
            let duration_ms = client.as_ref().map_or(5, |client| 5 * (client.workload as i64 + 1));
            let (server, by_service) = match &call.to {
                Callee::Workload(to, by_service) => {
                    let servers = self.ready(*to, window);
                    if servers.is_empty() {
                        continue;
                    }
                    (servers[self.rng.usize(..servers.len())].clone(), *by_service)
                }
                Callee::Api | Callee::Outside(_) => (None, false),
            };
            // A pod that came or went in this window talked while it was there.
            let ends = [&client, &server].map(|pod| pod.as_ref().map_or((window, window + MINUTE_MS), Pod::time));
            let time = (ends[0].0.max(ends[1].0).max(window), ends[0].1.min(ends[1].1).min(window + MINUTE_MS));
            if time.1 - time.0 >= SHORTEST_MS {
                let passed = Passed { window, time, connections: self.rng.i64(1..20), failed: 0, duration_ms };
                self.connect(call, client.as_ref(), server.as_ref(), by_service, passed)?;
            }
        }
        Ok(())
    }

    /// Tries addresses, of pods and of nobody, on port 22; then one that answers.
    fn scan(&mut self, minute: i64, window: i64) -> Result<()> {
        let Some(scanner) = self.world.find("tools", "scanner") else { return Ok(()) };
        let Some(Some(client)) = self.ready(scanner, window).pop() else { return Ok(()) };
        let time = (window, window + MINUTE_MS);
        let failed = Passed { window, time, connections: 0, failed: 1, duration_ms: 0 };
        for target in self.world.everyone(window).iter().filter(|target| target.workload != scanner) {
            let workload = &self.world.workloads[target.workload];
            let edge = self.edge(scanner, format!("{}/{}", workload.namespace, workload.name), "tcp", 22);
            self.try_address(&client, &edge, &target.address, Some(&target.uid), failed)?;
        }
        for host in 0..10 {
            let address: Arc<str> = format!("10.100.200.{}", minute * 10 + host - 70).into();
            let edge = self.edge(scanner, address.to_string(), "tcp", 22);
            self.try_address(&client, &edge, &address, None, failed)?;
        }
        Ok(())
    }

    fn edge(&self, from: usize, destination: String, transport: &'static str, port: u16) -> TrueEdge {
        let workload = &self.world.workloads[from];
        TrueEdge { source: format!("{}/{}", workload.namespace, workload.name), destination, transport, port }
    }

    fn try_address(
        &mut self,
        client: &Pod,
        edge: &TrueEdge,
        address: &Arc<str>,
        owner: Option<&str>,
        passed: Passed,
    ) -> Result<()> {
        if self.agents[client.node].is_some() {
            self.truth.pods(edge, Some(&client.uid), owner, false);
            self.truth.see(edge.clone(), 0, Observed { failed: passed.failed, ..Observed::default() });
            let mut row = self.row(client, true, edge.transport, (&client.address, address, edge.port), passed);
            row.failure = Some(Arc::clone(&self.words.refused));
            self.write(client.node, row)?;
        }
        Ok(())
    }

    /// Connections between two ends, as both, one or none of the agents saw them.
    fn connect(
        &mut self,
        call: &Call,
        client: Option<&Pod>,
        server: Option<&Pod>,
        by_service: bool,
        passed: Passed,
    ) -> Result<()> {
        let name = |number: usize| {
            let workload = &self.world.workloads[number];
            format!("{}/{}", workload.namespace, workload.name)
        };
        let transport = match call.to {
            Callee::Workload(to, _) => self.world.workloads[to].transport,
            _ => "tcp",
        };
        let edge = TrueEdge {
            source: match &call.from {
                Caller::Workload(from) => name(*from),
                Caller::Outside(address) => address.to_string(),
            },
            destination: match &call.to {
                Callee::Workload(to, _) => name(*to),
                Callee::Api => CONTROL.into(),
                Callee::Outside(address) => address.to_string(),
            },
            transport,
            port: call.port,
        };
        let is_watched = |pod: Option<&Pod>| pod.is_some_and(|pod| self.agents[pod.node].is_some());
        let at_client = is_watched(client);
        let at_server = is_watched(server) && (self.plan.both_observers || client.is_none());
        // The node of the API server is the one after those that run pods.
        let is_api = matches!(call.to, Callee::Api);
        let server_node = server.map(|pod| pod.node).or(is_api.then_some(self.world.nodes.len()));
        let crosses = client.zip(server_node).is_some_and(|(pod, node)| pod.node % ZONES != node % ZONES);
        let seen = Observed {
            connections: passed.connections,
            bytes_sent: passed.connections * BYTES_SENT,
            duration_ms: passed.connections * passed.duration_ms,
            ..Observed::default()
        };
        let crossed = if crosses { passed.connections * (BYTES_SENT + BYTES_RECEIVED) } else { 0 };
        if at_client {
            // A client of a Service can't tell who of several answered.
            let crossed = if by_service { 0 } else { crossed };
            self.truth.see(edge.clone(), 0, Observed { cross_zone_bytes: crossed, ..seen });
        }
        if at_server {
            self.truth.see(edge.clone(), 1, Observed { cross_zone_bytes: crossed, ..seen });
        }
        if at_client || at_server {
            let is_server_known = at_server || !by_service;
            let destination = server.filter(|_| is_server_known).map(|pod| &*pod.uid);
            let is_dialled = at_client && (by_service || matches!(call.to, Callee::Api));
            self.truth.pods(&edge, client.map(|pod| &*pod.uid), destination, is_dialled);
        }
        if let Some(pod) = client.filter(|_| at_client) {
            let (address, port): (Arc<str>, u16) = match (&call.to, server) {
                (Callee::Workload(to, true), _) => {
                    let workload = &self.world.workloads[*to];
                    (workload.service.clone().unwrap_or_default(), workload.service_port)
                }
                (Callee::Workload(..), Some(server)) => (Arc::clone(&server.address), call.port),
                (Callee::Outside(address), _) => (Arc::clone(address), call.port),
                _ => (API_SERVICE.into(), 443),
            };
            let row = self.row(pod, true, transport, (&pod.address, &address, port), passed);
            self.write(pod.node, row)?;
        }
        if let Some(pod) = server.filter(|_| at_server) {
            let from = match (&call.from, client) {
                (Caller::Outside(address), _) => Arc::clone(address),
                (_, client) => client.map(|client| Arc::clone(&client.address)).unwrap_or_default(),
            };
            let row = self.row(pod, false, transport, (&from, &pod.address, call.port), passed);
            self.write(pod.node, row)?;
        }
        Ok(())
    }

    /// Pods of a workload that have their address in a window, or a part of it.
    fn ready(&self, number: usize, window: i64) -> Vec<Option<Pod>> {
        let is_there = |pod: &&Pod| pod.time().0 < window + MINUTE_MS && window < pod.time().1;
        self.world.workloads[number].pods.iter().filter(is_there).cloned().map(Some).collect()
    }

    /// A row as the agent of `pod`, one end's, writes it.
    fn row(
        &mut self,
        pod: &Pod,
        is_client: bool,
        transport: &str,
        (source, destination, port): (&Arc<str>, &Arc<str>, u16),
        passed: Passed,
    ) -> FlowRecord {
        let Words { client, server, tcp, udp, unknown, .. } = &self.words;
        let workload = &self.world.workloads[pod.workload];
        let Passed { window, time: (from, to), connections, failed, duration_ms } = passed;
        let mut rtt_us_hist = RttHistogram::default();
        rtt_us_hist.0[pod.workload % 4] = connections;
        let first = self.rng.i64(from..to);
        let mut row = FlowRecord {
            window_start: TimestampMs(window),
            window_end: TimestampMs(window + MINUTE_MS),
            observer: Arc::clone(if is_client { client } else { server }),
            direction_known: true,
            start_known: true,
            transport: Arc::clone(if transport == "udp" { udp } else { tcp }),
            source_address: Arc::clone(source),
            destination_address: Arc::clone(destination),
            destination_port: port,
            source_kind: Arc::clone(unknown),
            destination_kind: Arc::clone(unknown),
            connections,
            failed,
            closed: connections,
            bytes_sent: Some(connections * BYTES_SENT),
            bytes_received: Some(connections * BYTES_RECEIVED),
            duration_ms_sum: connections * duration_ms,
            rtt_us_hist,
            first_seen: TimestampMs(first),
            last_seen: TimestampMs(self.rng.i64(first..to)),
            ..FlowRecord::default()
        };
        let (namespace, name) = (Some(Arc::clone(&workload.namespace)), Some(Arc::clone(&workload.name)));
        let (uid, pod_name) = (Some(Arc::clone(&pod.uid)), Some(Arc::clone(&pod.name)));
        let (node, kind) = (Some(Arc::clone(&self.world.nodes[pod.node])), Some(workload.kind.into()));
        let labels = Some(pod.labels());
        if is_client {
            row.source_kind = Arc::clone(&self.words.pod);
            (row.source_namespace, row.source_workload, row.source_workload_kind) = (namespace, name, kind);
            (row.source_pod, row.source_pod_uid, row.source_node) = (pod_name, uid, node);
            (row.source_labels, row.source_host_network) = (labels, Some(false));
        } else {
            row.destination_kind = Arc::clone(&self.words.pod);
            (row.destination_namespace, row.destination_workload) = (namespace, name);
            row.destination_workload_kind = kind;
            (row.destination_pod, row.destination_pod_uid, row.destination_node) = (pod_name, uid, node);
            (row.destination_labels, row.destination_host_network) = (labels, Some(false));
        }
        row
    }

    fn write(&mut self, node: usize, row: FlowRecord) -> Result<()> {
        if let Some(agent) = &mut self.agents[node] {
            self.truth.rows += 1;
            if let Some((namespace, name)) = row.source_namespace.as_ref().zip(row.source_workload.as_ref()) {
                *self.truth.client_rows.entry(format!("{namespace}/{name}")).or_default() += 1;
            }
            if self.plan.repeats {
                agent.first_hour.push(row.clone());
            }
            agent.write(row)?;
        }
        Ok(())
    }
}

fn is_of(record: &InventoryRecord, node: &Arc<str>) -> bool {
    *record.kind == ObjectKind::Pod && record.object_node.as_ref() == Some(node)
}

/// Whether a CronJob runs in the hour that starts then.
fn is_due(story: Story, start: i64) -> bool {
    let (day, hour) = (start.div_euclid(24 * HOUR_MS), start.div_euclid(HOUR_MS).rem_euclid(24));
    match story {
        Story::Nightly => hour == 2,
        Story::Weekly => hour == 4 && (day + 4) % 7 == 0, // 1970-01-01 was a Thursday
        Story::MonthEnd => hour == 23 && TimestampMs((day + 1) * 24 * HOUR_MS).to_string()[8..10] == *"01",
        _ => false,
    }
}

/// Who calls whom in the made-up cluster, and in which hours.
fn calls(plan: &Plan, world: &World, rng: &mut Rng) -> Vec<Call> {
    let (always, all) = ((0, u32::MAX), (0, 60));
    let app = |number: u16| world.find("shop", &format!("app-{}", number % plan.workloads));
    let busy = plan.busy_percent;
    let call = |from, to, port| Call { from, to, port, busy_percent: busy, hours: always, minutes: all };
    let dns = world.find("kube-system", "coredns");
    let mut calls = Vec::new();
    for number in 0..plan.workloads {
        let Some(from) = app(number) else { continue };
        let mut others: Vec<u16> = (0..plan.workloads).filter(|other| *other != number).collect();
        rng.shuffle(&mut others);
        for (at, other) in others.into_iter().take(plan.calls.into()).enumerate() {
            let to = app(other).map(|to| Callee::Workload(to, at % 2 == 0));
            calls.extend(to.map(|to| call(Caller::Workload(from), to, 8080)));
        }
        calls.extend(dns.map(|dns| call(Caller::Workload(from), Callee::Workload(dns, true), 53)));
        if number % 5 == 0 {
            let address = format!("198.51.100.{}", number % 200 + 1).into();
            calls.push(call(Caller::Workload(from), Callee::Outside(address), 443));
        }
        if number % 7 == 1 {
            let address = format!("203.0.113.{}", number % 200 + 1).into();
            calls.push(call(Caller::Outside(address), Callee::Workload(from, false), 8080));
        }
        if number % 10 == 1 {
            calls.push(call(Caller::Workload(from), Callee::Api, 6443));
        }
    }
    let direct = |(namespace, from): (&str, &str), to: u16, port| {
        let from = Caller::Workload(world.find(namespace, from)?);
        Some(call(from, Callee::Workload(app(to)?, false), port))
    };
    let job = |name, to| direct(("batch", name), to, 8080).map(|c| Call { busy_percent: 100, minutes: (10, 20), ..c });
    for story in &plan.stories {
        calls.extend(match *story {
            Story::Nightly => job("nightly", 0),
            Story::Weekly => job("weekly", 0),
            Story::MonthEnd => job("month-end", 1),
            Story::Scan(at) => direct(("tools", "scanner"), 0, 8080).map(|c| Call {
                busy_percent: 100,
                hours: (at, at + 1),
                minutes: (20, 22),
                ..c
            }),
            Story::Debug(at) => direct(("tools", "debug"), 2, 8080).map(|c| Call {
                busy_percent: 100,
                hours: (at, at + 1),
                minutes: (8, 23),
                ..c
            }),
            Story::Decommission(at) => world.find("shop", "ledger").zip(app(3)).map(|(ledger, from)| Call {
                hours: (0, at),
                ..call(Caller::Workload(from), Callee::Workload(ledger, true), 8080)
            }),
            Story::Burst(at) => {
                direct(("shop", "app-4"), 5, 9999).map(|c| Call { busy_percent: 50, hours: (at, at + 2), ..c })
            }
            Story::Newcomer(at) => direct(("shop", "app-6"), 7, 7070).map(|c| Call { hours: (at, u32::MAX), ..c }),
        });
    }
    calls
}

/// Ends that are there together for less do not talk.
const SHORTEST_MS: i64 = 1_000;
/// Payload bytes of a connection, from client to server and back.
const BYTES_SENT: i64 = 100;
const BYTES_RECEIVED: i64 = 300;
