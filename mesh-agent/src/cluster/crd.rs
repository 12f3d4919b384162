//! Custom resources as they are written.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Selects pods by their labels.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that a pod must have, all of them.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// The `mtls` of a peer authentication policy, and what it says of a port.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// What is accepted.
    #[serde(default)]
    pub mode: Mode,
}

/// What is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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

/// A policy of any kind, its spec unread: what is wrong with a part of it must not hide the rest.
#[derive(Clone, Debug, Deserialize)]
pub struct Policy {
    /// Names it.
    pub metadata: ObjectMeta,
    /// What it asks for.
    #[serde(default)]
    pub spec: Value,
}

/// The `spec` of an `AuthorizationPolicy` of `security.istio.io`, of every version.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// The pods it is about.
    pub selector: Value,
    /// The waypoint or gateway that enforces it.
    pub target_ref: Value,
    /// The waypoints or gateways that enforce it.
    pub target_refs: Value,
    /// Its rules, each a [`Rule`].
    pub rules: Option<Vec<Value>>,
    /// What is done with what matches a rule.
    pub action: Option<String>,
    /// Who is asked by the action `CUSTOM`.
    pub provider: Value,
}

/// A rule of an [`AuthorizationPolicySpec`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Rule {
    /// One of these sources.
    pub from: Option<Vec<RuleFrom>>,
    /// One of these operations.
    pub to: Option<Vec<RuleTo>>,
    /// All of these conditions.
    pub when: Option<Vec<Condition>>,
}

/// An element of [`Rule::from`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RuleFrom {
    /// What is asked of the source.
    pub source: Option<Source>,
}

/// An element of [`Rule::to`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RuleTo {
    /// What is asked of the operation.
    pub operation: Option<Operation>,
}

/// Declares a struct of lists of texts, some of which only HTTP or a proxy's metadata tell.
macro_rules! lists {
    ($(#[$doc:meta])* $name:ident { $($known:ident)* } beyond { $($beyond:ident $text:literal)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        #[expect(missing_docs, reason = "named and explained by Istio's reference")]
        pub struct $name {
            $(pub $known: Vec<String>,)*
            $(pub $beyond: Vec<String>,)*
        }

        impl $name {
            /// Whether nothing is asked for.
            pub fn is_empty(&self) -> bool {
                $(self.$known.is_empty() &&)* self.beyond().is_empty()
            }

            /// The fields that are set and that L4 does not know.
            pub fn beyond(&self) -> Vec<&'static str> {
                let fields = [$(($text, &self.$beyond)),*];
                let set = fields.into_iter().filter(|(_, values)| !values.is_empty());
                set.map(|(name, _)| name).collect()
            }
        }
    };
}

lists! {
    /// What a rule asks of the source of a connection.
    Source {
        principals not_principals namespaces not_namespaces
        service_accounts not_service_accounts ip_blocks not_ip_blocks
    }
    beyond {
        request_principals "requestPrincipals"
        not_request_principals "notRequestPrincipals"
        remote_ip_blocks "remoteIpBlocks"
        not_remote_ip_blocks "notRemoteIpBlocks"
        trust_domains "trustDomains"
        not_trust_domains "notTrustDomains"
    }
}

lists! {
    /// What a rule asks of what is to be done.
    Operation { ports not_ports }
    beyond {
        hosts "hosts" not_hosts "notHosts"
        methods "methods" not_methods "notMethods"
        paths "paths" not_paths "notPaths"
    }
}

/// An element of [`Rule::when`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// The property that is asked for.
    pub key: String,
    /// One of these values.
    pub values: Vec<String>,
    /// None of these values.
    pub not_values: Vec<String>,
}
