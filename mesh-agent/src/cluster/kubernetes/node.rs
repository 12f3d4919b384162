//! What the agent writes about its own node.

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::access::{Access, AccessError, words};

/// The taint that keeps pods from a node until its agent serves it.
pub const NOT_READY_TAINT: &str = "mesh.dev/agent-not-ready";
/// How often a change is tried that somebody else's changes get in the way of.
const ATTEMPTS: usize = 5;

/// Why a node cannot be changed; worth another attempt later.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It is not told how to reach the API server.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The API server does not do it.
    #[error("node {node} cannot be changed: {}", words(source))]
    Api {
        /// The node.
        node: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
}

/// Removes [`NOT_READY_TAINT`] from a node; whether it was there. Other taints stay, also those that come meanwhile.
///
/// # Errors
/// The API server cannot be reached or refuses; it needs `get` and `patch` of `nodes`.
pub async fn remove_not_ready_taint(access: &Access, node: &str) -> Result<bool, NodeError> {
    let nodes: Api<core::Node> = Api::all(access.client().await?);
    let failed = |error| NodeError::Api {
        node: node.to_owned(),
        source: Box::new(error),
    };
    let mut attempt = 1;
    loop {
        let found = nodes.get(node).await.map_err(failed)?;
        let Some(patch) = without_taint(&found) else {
            return Ok(false);
        };
        let params = PatchParams::default();
        match nodes.patch(node, &params, &Patch::Merge(patch)).await {
            Ok(_) => return Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => {
                attempt += 1;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// What removes the taint; none when it is not there. A list is replaced as a whole, hence only in this very version.
fn without_taint(node: &core::Node) -> Option<serde_json::Value> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let rest: Vec<_> = taints
        .iter()
        .filter(|it| it.key != NOT_READY_TAINT)
        .collect();
    (rest.len() < taints.len()).then(|| {
        json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": rest },
        })
    })
}
