//! What the authority needs of Kubernetes, as a seam: `cluster/authority.rs` is the real one, tests have one in memory.

use std::collections::BTreeMap;
use std::error::Error;

use super::decide::{PodFacts, Review};
use crate::model::Identity;

/// The API server, as the authority uses it.
pub trait Cluster: Send + Sync + 'static {
    /// Asks whose `token` is, and whether it is for `audience`.
    fn review(
        &self,
        token: &str,
        audience: &str,
    ) -> impl Future<Output = Result<Review, ClusterError>> + Send;

    /// The pod of that name; none if there is none.
    fn pod(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<PodFacts>, ClusterError>> + Send;

    /// The pods on `node` that run as `identity`; may lag behind by a moment.
    fn pods(
        &self,
        node: &str,
        identity: &Identity,
    ) -> impl Future<Output = Result<Vec<PodFacts>, ClusterError>> + Send;

    /// The Secret with the root as it is now, never from a cache; none if there is none.
    fn load(&self) -> impl Future<Output = Result<Option<Stored>, ClusterError>> + Send;

    /// Makes the Secret; a conflict if there is one.
    fn create(&self, root: &Patch) -> impl Future<Output = Result<Outcome, ClusterError>> + Send;

    /// Changes the Secret if it still has `version`; a conflict if not.
    fn change(
        &self,
        version: &str,
        patch: &Patch,
    ) -> impl Future<Output = Result<Outcome, ClusterError>> + Send;

    /// Makes the ConfigMap for everybody to read say `roots`, PEM.
    fn publish(&self, roots: &str) -> impl Future<Output = Result<(), ClusterError>> + Send;
}

/// A Secret.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Changes with every write.
    pub version: String,
    /// What it holds; entries that are not text are left out.
    pub data: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What is to become of a Secret: entries to set, and with none, to take away. The rest stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Of what it holds.
    pub data: BTreeMap<&'static str, Option<String>>,
    /// Of its annotations.
    pub annotations: BTreeMap<&'static str, Option<String>>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// Somebody else was there first: read again.
    Conflict,
}

/// The API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action}: check that the API server answers and that the role of the authority allows it"
)]
pub struct ClusterError {
    /// What was tried.
    pub action: &'static str,
    /// What the client said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}
