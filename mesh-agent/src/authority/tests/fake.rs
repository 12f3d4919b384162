//! Kubernetes in memory: what it keeps, and the order in which two writers find it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use tokio::task::yield_now;

use crate::authority::{Cluster, ClusterError, Outcome, Patch, PodFacts, PodRef, Review, Stored};
use crate::model::Identity;

#[derive(Default)]
pub(super) struct Fake(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    /// The API server does not answer.
    pub(super) away: bool,
    pub(super) tokens: HashMap<String, Review>,
    /// By name.
    pub(super) pods: HashMap<String, PodFacts>,
    pub(super) secret: Option<Stored>,
    pub(super) published: String,
    pub(super) conflicts: usize,
    version: usize,
}

pub(super) fn pod(namespace: &str, account: &str, node: &str) -> PodFacts {
    PodFacts {
        namespace: namespace.into(),
        uid: format!("uid-{account}"),
        account: account.into(),
        node: (!node.is_empty()).then(|| node.into()),
        finished: false,
    }
}

/// The review of a good token of the agent on n1.
pub(super) fn review() -> Review {
    Review {
        authenticated: true,
        audiences: vec!["istio-ca".into()],
        user: super::AGENT.into(),
        pod: Some(PodRef {
            name: "agent".into(),
            uid: "uid-mesh-agent".into(),
        }),
        ..Review::default()
    }
}

impl Fake {
    pub(super) fn with_pods() -> Self {
        let fake = Self::default();
        fake.state().tokens.insert("agent".into(), review());
        for (name, pod) in [
            ("agent", pod("mesh-system", "mesh-agent", "n1")),
            ("web", pod("shop", "web", "n1")),
            ("cart", pod("shop", "cart", "n2")),
        ] {
            fake.state().pods.insert(name.into(), pod);
        }
        fake
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn published(&self) -> String {
        self.state().published.clone()
    }

    /// Everybody else has a turn before the answer, as over a network.
    async fn reach(&self, action: &'static str) -> Result<(), ClusterError> {
        yield_now().await;
        if self.state().away {
            let source = Box::new(std::io::Error::other("away"));
            return Err(ClusterError { action, source });
        }
        Ok(())
    }
}

impl State {
    fn write(&mut self, patch: &Patch) -> Outcome {
        self.version += 1;
        let version = self.version.to_string();
        let secret = self.secret.get_or_insert_default();
        secret.version = version;
        for (key, value) in &patch.data {
            match value {
                Some(value) => secret.data.insert((*key).into(), value.clone()),
                None => secret.data.remove(*key),
            };
        }
        for (key, value) in &patch.annotations {
            match value {
                Some(value) => secret.annotations.insert((*key).into(), value.clone()),
                None => secret.annotations.remove(*key),
            };
        }
        Outcome::Done
    }
}

impl Cluster for Fake {
    async fn review(&self, token: &str, audience: &str) -> Result<Review, ClusterError> {
        self.reach("review a token").await?;
        assert_eq!(audience, "istio-ca");
        let review = self.state().tokens.get(token).cloned();
        Ok(review.unwrap_or_default())
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodFacts>, ClusterError> {
        self.reach("read a pod").await?;
        let pod = self.state().pods.get(name).cloned();
        Ok(pod.filter(|pod| pod.namespace == namespace))
    }

    /// All pods there are: what the API server would have selected is for the authority to check again.
    async fn pods(&self, _: &str, _: &Identity) -> Result<Vec<PodFacts>, ClusterError> {
        self.reach("list pods").await?;
        Ok(self.state().pods.values().cloned().collect())
    }

    async fn load(&self) -> Result<Option<Stored>, ClusterError> {
        self.reach("read the Secret").await?;
        Ok(self.state().secret.clone())
    }

    async fn create(&self, root: &Patch) -> Result<Outcome, ClusterError> {
        self.reach("create the Secret").await?;
        let mut state = self.state();
        if state.secret.is_some() {
            state.conflicts += 1;
            return Ok(Outcome::Conflict);
        }
        Ok(state.write(root))
    }

    async fn change(&self, version: &str, patch: &Patch) -> Result<Outcome, ClusterError> {
        self.reach("change the Secret").await?;
        let mut state = self.state();
        if state.secret.as_ref().is_none_or(|it| it.version != version) {
            state.conflicts += 1;
            return Ok(Outcome::Conflict);
        }
        Ok(state.write(patch))
    }

    async fn publish(&self, roots: &str) -> Result<(), ClusterError> {
        self.reach("write the ConfigMap").await?;
        roots.clone_into(&mut self.state().published);
        Ok(())
    }
}
