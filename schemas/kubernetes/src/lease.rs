//! Who of several processes does what one has to do: the holder of a Lease (`coordination.k8s.io/v1`), in the way of client-go's
//! leaderelection: a lease that its holder has not renewed for its duration, by the clock of who looks, may be taken.

use std::{fmt, io, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use schemas::capture::Origin;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::reason;

/// A lease that this process may hold.
pub struct Lease {
    api: Api<Object>,
    namespace: String,
    name: String,
    identity: String,
    /// Version of the object that was seen last, and when it was first.
    seen: Option<(String, Instant)>,
    last_problem: Option<String>,
}

/// What came of an attempt.
enum Hold {
    Mine,
    Others,
    /// The server did not answer, or not clearly.
    Unclear,
}

impl Lease {
    /// In the client's own namespace unless another one is named.
    pub fn new(client: Client, name: &str, namespace: Option<&str>, identity: &str) -> Self {
        let namespace = namespace.unwrap_or(client.default_namespace()).to_owned();
        let api = Api::namespaced(client, &namespace);
        Self { api, namespace, name: name.into(), identity: identity.into(), seen: None, last_problem: None }
    }

    /// Waits until this process holds it. A lease of one that is gone is there for its duration, [`EXPIRY`].
    pub async fn acquire(&mut self) {
        while !matches!(timeout(RENEW_DEADLINE, self.try_hold()).await, Ok(Hold::Mine)) {
            sleep(RETRY).await;
        }
    }

    /// Why it can't be told who holds it; `None` if that is known.
    pub fn problem(&self) -> Option<&str> {
        self.last_problem.as_deref()
    }

    /// Renews it for as long as that works; completes when it is lost, before another one may take it.
    pub fn keep(&self) -> impl Future<Output = ()> + use<> {
        let mut lease = Self {
            api: self.api.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            identity: self.identity.clone(),
            seen: None,
            last_problem: None,
        };
        async move {
            let mut held_at = Instant::now();
            loop {
                sleep(RETRY).await;
                let asked_at = Instant::now();
                match timeout_at(held_at + RENEW_DEADLINE, lease.try_hold()).await {
                    Ok(Hold::Mine) => held_at = asked_at,
                    Ok(Hold::Unclear) if held_at.elapsed() < RENEW_DEADLINE => {}
                    Ok(Hold::Unclear | Hold::Others) | Err(_) => return,
                }
            }
        }
    }

    /// Gives it up, so that another replica need not wait.
    pub async fn release(&mut self) {
        if let Ok(Some(object)) = self.api.get_opt(&self.name).await
            && holder(&object) == self.identity
        {
            let spec = LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                ..object.spec.clone().unwrap_or_default()
            };
            let free = Object { spec: Some(spec), ..object };
            let _ = self.api.replace(&self.name, &PostParams::default(), &free).await;
        }
    }

    async fn try_hold(&mut self) -> Hold {
        match self.hold().await {
            Ok(is_held) => {
                self.last_problem = None;
                if is_held { Hold::Mine } else { Hold::Others }
            }
            // Another one was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Hold::Unclear,
            Err(error) => {
                let problem = match &error {
                    kube::Error::Api(status) if status.code == 404 => {
                        format!("{}: create the namespace, or name another one with --lease-namespace", status.message)
                    }
                    kube::Error::Api(status) if status.code == 403 => {
                        format!("add to a Role in {}: {RULE}", self.namespace)
                    }
                    error => reason(error),
                };
                if self.last_problem.as_ref() != Some(&problem) {
                    tracing::warn!(lease = %self, problem, "cannot hold the lease");
                    self.last_problem = Some(problem);
                }
                Hold::Unclear
            }
        }
    }

    async fn hold(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(object) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let new = Object { metadata, spec: Some(self.spec(now.clone(), now, 0)) };
            self.api.create(&PostParams::default(), &new).await?;
            return Ok(true);
        };
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let spec = object.spec.clone().unwrap_or_default();
        let is_mine = holder(&object) == self.identity;
        let duration = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(0) as u64);
        let has_expired = self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() > duration);
        if !is_mine && !holder(&object).is_empty() && !has_expired {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(!is_mine);
        let acquired = spec.acquire_time.filter(|_| is_mine).unwrap_or_else(|| now.clone());
        let held = Object { spec: Some(self.spec(acquired, now, transitions)), ..object };
        self.api.replace(&self.name, &PostParams::default(), &held).await?;
        Ok(true)
    }

    fn spec(&self, acquired: MicroTime, renewed: MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            acquire_time: Some(acquired),
            renew_time: Some(renewed),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// Who holds a lease: the host, which in a cluster is the pod, and something that two of its processes differ by.
///
/// # Errors
/// The system tells no name, or has no randomness.
pub fn identity() -> io::Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let origin = Origin::new("", "")?;
    Ok(format!("{}_{}", host.trim(), &origin.run_id[..8]))
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn holder(object: &Object) -> &str {
    object.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// What holding a lease takes.
const RULE: &str = "{ apiGroups: [\"coordination.k8s.io\"], resources: [leases], verbs: [get, create, update] }";
// As client-go recommends them.
const DURATION_SECONDS: i32 = 15;
/// How long it takes until one that nobody renews is taken for certain.
pub const EXPIRY: Duration = Duration::from_secs(DURATION_SECONDS as u64 + 5);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
