//! NetworkPolicies in a cluster: which there are, whose they are, and which change makes them what they should be.
//!
//! Ours are those that carry our label and whose fields our field manager applied: a label alone can be copied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort, NetworkPolicySpec};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::Status,
};
use kubernetes::reason;

use crate::netpol::is_marked;

/// Why a cluster's policies can't be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// With the reason, as its source would say it again.
    #[error("cannot find the cluster: set KUBECONFIG, name one with --kubeconfig, or run in a pod ({0})")]
    NoConfig(String),
    #[error("cannot use the configuration of the cluster")]
    Client(#[source] kube::Error),
    #[error("cannot list the NetworkPolicies of the cluster: {0}")]
    List(String),
}

/// Namespace and name of a policy.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// All policies of a cluster.
///
/// # Errors
/// The server does not answer, or forbids it.
pub(crate) async fn policies(client: &Client) -> Result<Vec<NetworkPolicy>, ClusterError> {
    let listed = Api::<NetworkPolicy>::all(client.clone()).list(&ListParams::default()).await;
    let refused = |error: kube::Error| {
        ClusterError::List(match &error {
            kube::Error::Api(status) if status.code == 403 => "who asks needs the verb list on networkpolicies of \
                networking.k8s.io in all namespaces, since those of others are tried too"
                .into(),
            error => reason(error),
        })
    };
    Ok(listed.map_err(refused)?.items)
}

/// What makes a cluster's policies what is wanted.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is to be, and what is there.
    changes: Vec<(NetworkPolicy, Option<NetworkPolicy>)>,
    /// Ours that are no longer wanted, within reach.
    pruned: Vec<NetworkPolicy>,
    /// All others.
    others: Vec<NetworkPolicy>,
}

/// What a step does, or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Created,
    Changed,
    Unchanged,
    Pruned,
    /// There is no such namespace, and so nothing that the policy could be for.
    Skipped,
}

/// Which policies a plan is about.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Namespaces in which ours that are not wanted are pruned.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// Policies that stay as they are, wanted or not.
    pub(crate) held: BTreeSet<Name>,
}

/// How a plan is carried out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// The server checks everything and changes nothing.
    pub(crate) is_dry: bool,
    /// Take over fields that others manage.
    pub(crate) takes_over: bool,
}

impl Plan {
    /// Compares what is wanted with what is there.
    pub(crate) fn new(wanted: Vec<NetworkPolicy>, there: Vec<NetworkPolicy>, reach: &Reach) -> Self {
        let mut there: BTreeMap<Name, NetworkPolicy> =
            there.into_iter().map(|policy| (name(&policy), policy)).collect();
        let mut wanted: BTreeMap<Name, NetworkPolicy> =
            wanted.into_iter().map(|policy| (name(&policy), policy)).collect();
        wanted.retain(|name, _| !reach.held.contains(name));
        let before: Vec<_> = wanted.keys().map(|name| there.remove(name)).collect();
        let changes = wanted.into_values().zip(before).collect();
        let is_reached = |name: &Name| reach.namespaces.contains(&name.0) && !reach.held.contains(name);
        let (pruned, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            there.into_iter().partition(|(name, policy)| is_reached(name) && is_ours(policy));
        Self { changes, pruned: pruned.into_values().collect(), others: others.into_values().collect() }
    }

    /// All policies that are in force afterwards.
    pub(crate) fn after(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.wanted().chain(&self.others)
    }

    /// All policies that are there now.
    pub(crate) fn now(&self) -> impl Iterator<Item = &NetworkPolicy> {
        let changed = self.changes.iter().filter_map(|(_, there)| there.as_ref());
        changed.chain(&self.pruned).chain(&self.others)
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_in_force(&self) -> bool {
        self.pruned.is_empty() && self.unmet().next().is_none()
    }

    /// Ours that are out of reach, and are left as they are.
    pub(crate) fn left(&self) -> impl Iterator<Item = Name> {
        self.others.iter().filter(|policy| is_ours(policy)).map(name)
    }

    /// Whether anything that we wrote is there, whoever applied it.
    pub(crate) fn was_applied(&self) -> bool {
        self.now().any(has_label)
    }

    /// What is wanted and is not there as it should be.
    pub(crate) fn unmet(&self) -> impl Iterator<Item = Name> {
        let is_met = |there: Option<&NetworkPolicy>, wanted| there.is_some_and(|there| says_same(wanted, there));
        self.changes
            .iter()
            .filter(move |(wanted, there)| !is_met(there.as_ref(), wanted))
            .map(|(wanted, _)| name(wanted))
    }

    /// Policies that we wrote, are there, and are not as they should be, or should not be there.
    pub(crate) fn drifted(&self) -> impl Iterator<Item = (&NetworkPolicy, Step)> {
        let changed = self.changes.iter().filter_map(|(wanted, there)| there.as_ref().map(|there| (wanted, there)));
        let changed = changed.filter(|(wanted, there)| has_label(there) && !is_same(wanted, there));
        changed.map(|(_, there)| (there, Step::Changed)).chain(self.pruned.iter().map(|policy| (policy, Step::Pruned)))
    }

    /// What is wanted.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.changes.iter().map(|(wanted, _)| wanted)
    }

    /// Whether a policy, as namespace/name, is one that is wanted.
    pub(crate) fn is_wanted(&self, path: &str) -> bool {
        self.wanted().map(name).any(|(namespace, name)| path.split_once('/') == Some((&*namespace, &*name)))
    }

    /// Ours that are there and not wanted, within reach.
    pub(crate) fn unwanted(&self) -> impl Iterator<Item = Name> {
        self.pruned.iter().map(name)
    }

    /// What is wanted and is not there at all.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.changes.iter().filter(|(_, there)| there.is_none()).map(|(wanted, _)| wanted)
    }

    /// What is there now of everything that this may change, fit to be applied again.
    pub(crate) fn before(&self, manner: Manner) -> Vec<NetworkPolicy> {
        let changed = self.changes.iter().filter_map(|(wanted, there)| {
            let there = there.as_ref()?;
            (!says_same(wanted, there) && manner.may_change(there)).then_some(there)
        });
        changed.chain(&self.pruned).cloned().map(portable).collect()
    }

    /// Carries it out, policy by policy: what is wanted first, then what is not. Each is told of as soon as it is done;
    /// what can't be done does not keep the rest from it.
    ///
    /// # Errors
    /// It can't be told.
    pub(crate) async fn carry_out<E>(
        &self,
        client: &Client,
        manner: Manner,
        mut tell: impl FnMut(Name, Result<Step, String>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (wanted, there) in &self.changes {
            tell(name(wanted), put(client, wanted, there.as_ref(), manner).await)?;
        }
        for policy in &self.pruned {
            tell(name(policy), prune(client, policy, manner).await)?;
        }
        Ok(())
    }
}

impl Manner {
    /// Whether a policy is one to be changed: whoever made it gave it our label, or it is taken over.
    fn may_change(self, there: &NetworkPolicy) -> bool {
        self.takes_over || has_label(there)
    }
}

/// Makes a policy what it is to be.
async fn put(
    client: &Client,
    wanted: &NetworkPolicy,
    there: Option<&NetworkPolicy>,
    manner: Manner,
) -> Result<Step, String> {
    if there.is_some_and(|there| !manner.may_change(there)) {
        return Err(
            "there is one of this name that flowscribe did not make: rename or delete it, or take it over with \
             flowscribe apply --force-conflicts"
                .into(),
        );
    }
    let (namespace, name) = name(wanted);
    let mut how = PatchParams::apply(FIELD_MANAGER);
    (how.force, how.dry_run) = (manner.takes_over, manner.is_dry);
    let applied =
        Api::<NetworkPolicy>::namespaced(client.clone(), &namespace).patch(&name, &how, &Patch::Apply(wanted)).await;
    let applied = match applied {
        // Of the policy itself nobody asks.
        Err(kube::Error::Api(status)) if status.code == 404 || is_ending(&status) => return Ok(Step::Skipped),
        applied => applied.map_err(|error| remedy(&error, "create and patch"))?,
    };
    if !is_same(wanted, &applied) {
        return Err("it is not as it should be: others manage rules of it too, delete it and apply again".into());
    }
    Ok(match there {
        None => Step::Created,
        Some(there) if says_same(wanted, there) => Step::Unchanged,
        Some(_) => Step::Changed,
    })
}

/// Removes a policy: only the one that was looked at.
async fn prune(client: &Client, policy: &NetworkPolicy, manner: Manner) -> Result<Step, String> {
    let (namespace, name) = name(policy);
    let (uid, resource_version) = (policy.metadata.uid.clone(), policy.metadata.resource_version.clone());
    let preconditions = Some(Preconditions { uid, resource_version });
    let how = DeleteParams { dry_run: manner.is_dry, preconditions, ..DeleteParams::default() };
    match Api::<NetworkPolicy>::namespaced(client.clone(), &namespace).delete(&name, &how).await {
        Ok(_) => Ok(Step::Pruned),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Step::Pruned),
        Err(error) => Err(remedy(&error, "delete")),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Pruned => "pruned",
            Self::Skipped => "skipped",
        })
    }
}

/// Namespace and name of a policy.
pub(crate) fn name(policy: &NetworkPolicy) -> Name {
    let of = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
    (of(&policy.metadata.namespace), of(&policy.metadata.name))
}

/// Names of policies, as one line.
pub(crate) fn told(names: impl Iterator<Item = Name>) -> String {
    names.map(|(namespace, name)| format!("{namespace}/{name}")).collect::<Vec<_>>().join(", ")
}

/// Whether we made it and nobody only copied it: it has our label, and our field manager applied it.
fn is_ours(policy: &NetworkPolicy) -> bool {
    let mut managers = policy.metadata.managed_fields.iter().flatten();
    has_label(policy) && managers.any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER))
}

/// Whether we wrote it, whoever applied it, or it is a copy.
pub(crate) fn has_label(policy: &NetworkPolicy) -> bool {
    is_marked(policy.metadata.labels.as_ref())
}

/// Whether two policies say the same, word for word, but for what the server adds where nothing is said.
pub(crate) fn is_same(one: &NetworkPolicy, other: &NetworkPolicy) -> bool {
    let said = |policy: &NetworkPolicy| policy.spec.clone().map(defaulted);
    said(one) == said(other)
}

/// Whether a policy that is there is as wanted, with all that is said of it.
fn says_same(wanted: &NetworkPolicy, there: &NetworkPolicy) -> bool {
    let is_in = |wanted: &Option<BTreeMap<String, String>>, there: &Option<BTreeMap<String, String>>| {
        let there = |key| there.as_ref().and_then(|all| all.get(key));
        wanted.iter().flatten().all(|(key, value)| there(key) == Some(value))
    };
    let (wanted_of, there_of) = (&wanted.metadata, &there.metadata);
    is_same(wanted, there)
        && is_in(&wanted_of.labels, &there_of.labels)
        && is_in(&wanted_of.annotations, &there_of.annotations)
}

/// A policy as the server completes it (`SetDefaults_NetworkPolicy`).
fn defaulted(mut spec: NetworkPolicySpec) -> NetworkPolicySpec {
    let complete = |ports: &mut Option<Vec<NetworkPolicyPort>>| {
        for port in ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".into());
        }
        ports.take_if(|ports| ports.is_empty());
    };
    for rule in spec.ingress.iter_mut().flatten() {
        complete(&mut rule.ports);
        rule.from.take_if(|peers| peers.is_empty());
    }
    for rule in spec.egress.iter_mut().flatten() {
        complete(&mut rule.ports);
        rule.to.take_if(|peers| peers.is_empty());
    }
    if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
        let egress = spec.egress.as_ref().filter(|rules| !rules.is_empty()).map(|_| "Egress".to_owned());
        spec.policy_types = Some(["Ingress".to_owned()].into_iter().chain(egress).collect());
    }
    spec.ingress.take_if(|rules| rules.is_empty());
    spec.egress.take_if(|rules| rules.is_empty());
    spec.pod_selector.get_or_insert_default();
    spec
}

/// A policy without what only the server says of it.
fn portable(mut policy: NetworkPolicy) -> NetworkPolicy {
    let metadata = &mut policy.metadata;
    (metadata.managed_fields, metadata.resource_version, metadata.uid) = (None, None, None);
    (metadata.creation_timestamp, metadata.generation) = (None, None);
    policy
}

fn remedy(error: &kube::Error, verbs: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("not allowed: who applies needs the verbs {verbs} on networkpolicies of networking.k8s.io")
        }
        kube::Error::Api(status) if status.code == 409 => {
            format!("{}: take these fields over with flowscribe apply --force-conflicts", status.message.trim_end())
        }
        error => reason(error),
    }
}

/// Whether a namespace that is being deleted is what is in the way.
pub(crate) fn is_ending(status: &Status) -> bool {
    status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == "NamespaceTerminating")
}

/// Who we are to server-side apply.
pub(crate) const FIELD_MANAGER: &str = "flowscribe";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::netpol::{MANAGED_BY, MANAGER};

    fn policy(name: &str, is_ours: bool) -> NetworkPolicy {
        let manager = if is_ours { FIELD_MANAGER } else { "kubectl" };
        serde_json::from_value(json!({
            "metadata": {
                "namespace": name.split('/').next(), "name": name.split('/').nth(1), "resourceVersion": "7",
                "labels": { MANAGED_BY: MANAGER }, "managedFields": [{ "manager": manager, "operation": "Apply" }]
            },
            "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": 80, "protocol": "TCP" }] }] }
        }))
        .expect("a policy")
    }

    #[test]
    fn only_ours_are_pruned_and_only_where_asked() {
        let there = [("a/kept", true), ("a/over", true), ("a/copied", false), ("b/over", true), ("b/held", true)]
            .map(|(name, is)| policy(name, is));
        let pruned = |namespaces: &[&str]| {
            let namespaces = namespaces.iter().map(|name| Arc::from(*name)).collect();
            let reach = Reach { namespaces, held: [("b".into(), "held".into())].into() };
            let plan = Plan::new(vec![policy("a/kept", true), policy("b/held", true)], there.to_vec(), &reach);
            assert_eq!(plan.unmet().count(), 0, "what is held is not wanted either");
            plan.pruned.iter().map(name).map(|(namespace, name)| format!("{namespace}/{name}")).collect::<Vec<_>>()
        };
        assert_eq!(pruned(&["a"]), ["a/over"]);
        assert_eq!(pruned(&["a", "b"]), ["a/over", "b/over"]);
        assert_eq!(pruned(&["c"]), [""; 0]);
    }

    #[test]
    fn what_the_server_completes_is_no_difference() {
        let theirs = policy("a/web", true);
        let mut ours = theirs.clone();
        let spec = ours.spec.as_mut().expect("it has one");
        spec.ingress.as_mut().expect("it has one")[0].ports.as_mut().expect("it has one")[0].protocol = None;
        (spec.policy_types, spec.egress) = (Some(vec!["Ingress".into()]), Some(Vec::new()));
        assert!(is_same(&ours, &theirs));
        ours.spec.as_mut().expect("it has one").policy_types = Some(vec!["Ingress".into(), "Egress".into()]);
        assert!(!is_same(&ours, &theirs));
    }

    #[test]
    fn what_is_kept_to_roll_back_can_be_applied() {
        let mut changed = policy("a/web", true);
        changed.spec = None;
        let reach = Reach { namespaces: ["a".into()].into(), ..Reach::default() };
        let plan = Plan::new(vec![changed], vec![policy("a/web", true), policy("a/over", true)], &reach);
        let before = plan.before(Manner { is_dry: false, takes_over: false });
        assert_eq!(before.len(), 2, "what is changed, and what is pruned");
        assert!(before.iter().all(|policy| policy.metadata.managed_fields.is_none()), "the server refuses these");
        assert!(before.iter().all(|policy| policy.metadata.resource_version.is_none() && policy.spec.is_some()));
    }
}
