//! How the API server is reached.

use std::path::PathBuf;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::causes::causes;

/// Where the address of the API server and the credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// From the service account of the pod that the agent runs in.
    InCluster,
    /// From a file as `kubectl` reads it; its current context is used.
    Kubeconfig(PathBuf),
    /// As `kubectl` finds it: from the files that `KUBECONFIG` names, else from `~/.kube/config`.
    AsKubectl,
}

/// Why the API server cannot be reached at all: the operator has to correct something.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no service account, or it is not whole.
    #[error("this is no pod of a cluster; name a kubeconfig with --kubeconfig")]
    InCluster(#[source] InClusterError),
    /// The file is not there or makes no sense.
    #[error("{} cannot be used; name another one with --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// There is no file where `kubectl` looks, or it makes no sense.
    #[error(
        "no kubeconfig can be used of those in KUBECONFIG, or else ~/.kube/config; name one with --kubeconfig"
    )]
    AsKubectl(#[source] KubeconfigError),
    /// The credentials make no sense, such as a certificate that is none.
    #[error("the certificates or credentials for the Kubernetes API cannot be used")]
    Credentials(#[source] Box<kube::Error>),
}

impl Access {
    /// A client with the certificates and credentials that are on disk now; a token file is read again every minute by the
    /// client itself, everything else by the next one.
    pub(super) async fn client(&self) -> Result<Client, AccessError> {
        let mut config = self.config().await?;
        // Followers have a backoff of their own, which can tell of it.
        config.default_retry = false;
        config.headers.push((USER_AGENT, NAME));
        Client::try_from(config).map_err(|error| AccessError::Credentials(Box::new(error)))
    }

    async fn config(&self) -> Result<Config, AccessError> {
        match self {
            Self::InCluster => Config::incluster_env().map_err(AccessError::InCluster),
            Self::Kubeconfig(path) => {
                let config = of(Kubeconfig::read_from(path)).await;
                let path = path.clone();
                config.map_err(|source| AccessError::Kubeconfig { path, source })
            }
            Self::AsKubectl => of(Kubeconfig::read()).await.map_err(AccessError::AsKubectl),
        }
    }
}

async fn of(file: Result<Kubeconfig, KubeconfigError>) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(file?, &KubeConfigOptions::default()).await
}

/// What the agent is called in the audit of the API server.
const NAME: HeaderValue =
    HeaderValue::from_static(concat!("mesh-agent/", env!("CARGO_PKG_VERSION")));

/// What the client says of a failure, in one line: its own words repeat the cause of most.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            format!("{} {}: {}", status.code, status.reason, status.message)
        }
        kube::Error::Service(source) => causes(&**source),
        other => other.to_string(),
    }
}
