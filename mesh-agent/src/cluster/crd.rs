//! Custom resources as they are written.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// `security.istio.io` `PeerAuthentication`, of every version.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerAuthentication {
    /// Names it.
    pub metadata: ObjectMeta,
    /// What it asks for.
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
}

/// The `spec` of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// The pods it is about.
    pub selector: Option<WorkloadSelector>,
    /// What they accept.
    pub mtls: Option<MutualTls>,
    /// What they accept per port.
    #[serde(default)]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// Selects pods by their labels.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a pod must have, all of them.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// The `mtls` of a [`PeerAuthenticationSpec`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct MutualTls {
    /// What is accepted.
    #[serde(default)]
    pub mode: Mode,
}

/// What is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the next wider policy says.
    #[default]
    Unset,
    /// Plaintext.
    Disable,
    /// Plaintext and the mesh.
    Permissive,
    /// The mesh.
    Strict,
}
