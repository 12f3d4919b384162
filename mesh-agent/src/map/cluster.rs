//! The agents of a cluster, which come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::agents::{PORT, Way};
use super::live::{Live, ask};
use crate::args::Map;
use crate::causes::causes;
use crate::cluster::kubernetes::{Access, AgentPod, Agents, AgentsError};
use crate::telemetry::Agent;

/// How often the API server is asked which there are.
const PERIOD: Duration = Duration::from_secs(5);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agents of a cluster, as they were found.
pub(super) struct Cluster {
    agents: Arc<Agents>,
    found: BTreeMap<String, AgentPod>,
}

impl Cluster {
    /// Finds them, and tries whether one can be reached.
    ///
    /// # Errors
    /// There is no cluster, there are no agents in it, or the user may not ask them.
    pub(super) async fn find(args: &Map) -> anyhow::Result<Self> {
        let named = args.kubeconfig.clone().map(Access::Kubeconfig);
        let access = named.unwrap_or(Access::AsKubectl);
        let found = async {
            let agents = Agents::of(&access, &args.namespace).await?;
            let found = agents.list().await?;
            if let Some(pod) = found.values().find(|it| it.absent.is_none()) {
                let connected = agents.connect(&pod.name, PORT).await;
                // Of anything else the map tells, and tries again.
                if let Err(error @ AgentsError::Forbidden { .. }) = connected {
                    return Err(error);
                }
            }
            Ok(Self {
                agents: Arc::new(agents),
                found,
            })
        };
        let found = timeout(PATIENCE, found).await;
        let found = found.context("the Kubernetes API does not answer")?;
        found.context("no --agent is given, and those of the cluster cannot be asked")
    }

    /// Has them asked, and whoever comes later.
    pub(super) async fn follow(self, live: Arc<Live>) {
        let Self { agents, mut found } = self;
        let mut tasks = JoinSet::new();
        let mut asked: BTreeMap<String, (AgentPod, AbortHandle)> = BTreeMap::new();
        loop {
            asked.retain(|node, (pod, task)| {
                let stays = found.get(node) == Some(pod);
                if !stays {
                    task.abort();
                }
                if !found.contains_key(node) {
                    live.end(node);
                }
                stays
            });
            while tasks.try_join_next().is_some() {}
            for (node, pod) in &found {
                asked.entry(node.clone()).or_insert_with(|| {
                    let way = Way::Pod(agents.clone(), pod.clone());
                    let asking = live.begin(node.clone(), way);
                    (pod.clone(), tasks.spawn(ask(live.clone(), asking)))
                });
            }
            sleep(PERIOD).await;
            let error = match timeout(PATIENCE, agents.list()).await {
                Ok(Ok(pods)) => {
                    found = pods;
                    None
                }
                Ok(Err(error)) => {
                    if let AgentsError::None { .. } = error {
                        found.clear();
                    }
                    Some(causes(&error))
                }
                Err(_) => Some("no answer".to_owned()),
            };
            live.trouble(error.map(|error| Agent {
                name: "Kubernetes API".to_owned(),
                age_ms: None,
                error: Some(error),
            }));
        }
    }
}
