//! The agents of a cluster, found by their pods and reached through the API server.

use std::collections::BTreeMap;
use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Portforwarder};
use tokio::io::DuplexStream;

use super::access::{Access, AccessError, words};

/// The label of agents' pods.
const LABEL: &str = "app.kubernetes.io/name=mesh-agent";

/// Agents cannot be found or reached.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// It is not known where the API server is.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The API server does not tell its pods.
    #[error("pods of namespace {namespace} cannot be listed: {}", words(error))]
    List {
        /// Where.
        namespace: String,
        /// What it says.
        error: Box<kube::Error>,
    },
    /// The user may not do it.
    #[error(
        "{what} is forbidden; `mesh-agent map` needs `list` of pods, and `get` and `create` of pods/portforward, in namespace \
         {namespace}: {}",
        words(error)
    )]
    Forbidden {
        /// What was asked for.
        what: &'static str,
        /// Where.
        namespace: String,
        /// What the API server says.
        error: Box<kube::Error>,
    },
    /// There are none.
    #[error(
        "no pod of namespace {namespace} has the label {LABEL}; name the namespace of the agents with --namespace"
    )]
    None {
        /// Where.
        namespace: String,
    },
    /// The API server, or the kubelet, does not lead to the pod.
    #[error("no way to pod {pod} through the Kubernetes API: {}", words(error))]
    Forward {
        /// The pod.
        pod: String,
        /// What it says.
        error: Box<kube::Error>,
    },
}

/// The agent of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its pod.
    pub name: String,
    /// Why it cannot be asked, if it cannot.
    pub absent: Option<String>,
}

/// The pods of agents.
pub struct Agents {
    pods: Api<Pod>,
    namespace: String,
}

/// What keeps a connection to a port of a pod, which ends when this is dropped.
pub struct Forwarded {
    /// What the node says if it cannot reach the port, or is cut off from it.
    pub error: BoxFuture<'static, Option<String>>,
    forwarder: Portforwarder,
}

impl Agents {
    /// Those of a namespace; nothing is asked yet.
    ///
    /// # Errors
    /// There is no way to the API server.
    pub async fn of(access: &Access, namespace: &str) -> Result<Self, AgentsError> {
        let client = access.client().await?;
        Ok(Self {
            pods: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
        })
    }

    /// The agent of each node that has one, by the node's name.
    ///
    /// # Errors
    /// The API server does not tell, or knows of none.
    pub async fn list(&self) -> Result<BTreeMap<String, AgentPod>, AgentsError> {
        // What the API server has in its cache is new enough.
        let which = ListParams::default().labels(LABEL).match_any();
        let pods = self.pods.list(&which).await;
        let pods = pods.map_err(|error| self.failed("listing pods", error))?;
        let agents = choose(pods.items);
        if agents.is_empty() {
            return Err(AgentsError::None {
                namespace: self.namespace.clone(),
            });
        }
        Ok(agents)
    }

    /// Connects to a port on the loopback of a pod's network namespace: bytes to it and back, and what keeps them.
    ///
    /// # Errors
    /// The user may not, or there is no way. That nobody listens is told by [`Forwarded::error`].
    pub(crate) async fn connect(
        &self,
        pod: &str,
        port: u16,
    ) -> Result<(DuplexStream, Forwarded), AgentsError> {
        let forwarder = self.pods.portforward(pod, &[port]).await;
        let mut forwarder = forwarder.map_err(|error| match error {
            error if is_forbidden(&error) => self.failed("a port-forward to a pod", error),
            error => AgentsError::Forward {
                pod: pod.to_owned(),
                error: Box::new(error),
            },
        })?;
        let stream = forwarder.take_stream(port);
        let error = forwarder.take_error(port);
        let kept = Forwarded {
            error: error.expect("it was asked for").boxed(),
            forwarder,
        };
        Ok((stream.expect("it was asked for"), kept))
    }

    fn failed(&self, what: &'static str, error: kube::Error) -> AgentsError {
        let namespace = self.namespace.clone();
        let (is_forbidden, error) = (is_forbidden(&error), Box::new(error));
        if is_forbidden {
            return AgentsError::Forbidden {
                what,
                namespace,
                error,
            };
        }
        AgentsError::List { namespace, error }
    }
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

/// The pod to ask of each node. While agents are replaced a node has two, behind the same port, which changes hands: the one
/// that is meant to stay is asked, once it runs.
fn choose(pods: Vec<Pod>) -> BTreeMap<String, AgentPod> {
    let mut chosen: BTreeMap<String, (_, AgentPod)> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.and_then(|it| it.node_name) else {
            continue;
        };
        let name = pod.metadata.name.unwrap_or_default();
        let phase = pod.status.and_then(|it| it.phase);
        let phase = phase.as_deref().unwrap_or("Unknown");
        let runs = phase == "Running";
        let stays = pod.metadata.deletion_timestamp.is_none();
        let rank = (runs, stays, pod.metadata.creation_timestamp);
        let absent = (!runs).then(|| format!("pod {name} is {phase}"));
        let agent = AgentPod { name, absent };
        if chosen.get(&node).is_none_or(|(known, _)| *known < rank) {
            chosen.insert(node, (rank, agent));
        }
    }
    let agents = chosen.into_iter();
    agents.map(|(node, (_, agent))| (node, agent)).collect()
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Pods as `(name, node, phase, minute of creation, is being deleted)`, and what is asked: `node pod`, and why not.
    fn check(pods: &[(&str, &str, &str, u8, bool)], expect: &[&str]) {
        let pod = |&(name, node, phase, minute, leaves): &(&str, &str, &str, u8, bool)| {
            let mut pod = json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z")},
                "spec": {"containers": []},
                "status": {"phase": phase},
            });
            if !node.is_empty() {
                pod["spec"]["nodeName"] = node.into();
            }
            if leaves {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
            }
            serde_json::from_value(pod).unwrap()
        };
        for order in [pods.to_vec(), pods.iter().rev().copied().collect()] {
            let chosen = choose(order.iter().map(pod).collect());
            let told = chosen.into_iter().map(|(node, it)| match it.absent {
                Some(why) => format!("{node} {}: {why}", it.name),
                None => format!("{node} {}", it.name),
            });
            assert_eq!(told.collect::<Vec<_>>(), expect);
        }
    }

    #[test]
    fn one_pod_of_each_node_is_asked() {
        check(&[], &[]);
        check(&[("a", "", "Pending", 0, false)], &[]);
        check(
            &[
                ("a", "n1", "Running", 0, false),
                ("b", "n2", "Pending", 0, false),
            ],
            &["n1 a", "n2 b: pod b is Pending"],
        );
    }

    #[test]
    fn while_agents_are_replaced_the_one_that_stays_is_asked_once_it_runs() {
        let old = ("old", "n1", "Running", 0, false);
        check(&[old, ("new", "n1", "Pending", 5, false)], &["n1 old"]);
        check(&[old, ("new", "n1", "Running", 5, false)], &["n1 new"]);
        let leaving = ("old", "n1", "Running", 0, true);
        check(&[leaving, ("new", "n1", "Pending", 5, false)], &["n1 old"]);
        check(&[leaving, ("new", "n1", "Running", 5, false)], &["n1 new"]);
        check(&[leaving], &["n1 old"]);
        let failed = ("evicted", "n1", "Failed", 9, false);
        check(&[old, failed], &["n1 old"]);
    }
}
