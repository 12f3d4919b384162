//! The API server as `mesh-agent ca` uses it: token reviews, pods, one Secret and one ConfigMap.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, Patch as ApiPatch, PatchParams, PostParams};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde_json::json;

use crate::authority::{Cluster, ClusterError, Outcome, Patch, PodFacts, PodRef, Review, Stored};
use crate::model::Identity;

/// Why the API server cannot be reached at all; the operator has to correct something.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no service account, or it is not whole.
    #[error("this is no pod of a cluster: name a kubeconfig with --kubeconfig")]
    InCluster(#[source] InClusterError),
    /// The file is not there or makes no sense.
    #[error("{} is unusable: name another one with --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// The credentials make no sense, such as a certificate that is none.
    #[error("the credentials for the Kubernetes API are unusable")]
    Credentials(#[source] Box<kube::Error>),
}

/// A client for the authority of one namespace.
pub struct Kubernetes {
    client: Client,
    namespace: String,
    secret: String,
    config_map: String,
}

impl Kubernetes {
    /// A client of the cluster that this process runs in, or that `kubeconfig` names; nothing is asked yet.
    ///
    /// # Errors
    /// There is no such configuration, or it is unusable.
    pub async fn connect(
        kubeconfig: Option<&Path>,
        namespace: &str,
        secret: &str,
        config_map: &str,
    ) -> Result<Self, ConnectError> {
        let mut config = match kubeconfig {
            Some(path) => file(path)
                .await
                .map_err(|source| ConnectError::Kubeconfig {
                    path: path.to_owned(),
                    source,
                })?,
            None => Config::incluster().map_err(ConnectError::InCluster)?,
        };
        // Agents and the keeper ask again by themselves, and wait no longer.
        config.default_retry = false;
        config.connect_timeout = Some(DEADLINE);
        config.read_timeout = Some(DEADLINE);
        let client = Client::try_from(config);
        Ok(Self {
            client: client.map_err(|error| ConnectError::Credentials(Box::new(error)))?,
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            config_map: config_map.to_owned(),
        })
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Cluster for Kubernetes {
    async fn review(&self, token: &str, audience: &str) -> Result<Review, ClusterError> {
        let question = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![audience.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &question).await;
        let status = answer.map_err(failed("review a token"))?.status;
        let status = status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        let name = extra(&user, "authentication.kubernetes.io/pod-name");
        let uid = extra(&user, "authentication.kubernetes.io/pod-uid");
        Ok(Review {
            authenticated: status.authenticated.unwrap_or_default(),
            error: status.error.unwrap_or_default(),
            audiences: status.audiences.unwrap_or_default(),
            pod: name.zip(uid).map(|(name, uid)| PodRef { name, uid }),
            node: extra(&user, "authentication.kubernetes.io/node-name"),
            user: user.username.unwrap_or_default(),
        })
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodFacts>, ClusterError> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let pod = pods.get_opt(name).await;
        Ok(pod.map_err(failed("read a pod"))?.map(facts))
    }

    async fn pods(&self, node: &str, identity: &Identity) -> Result<Vec<PodFacts>, ClusterError> {
        let fields = format!(
            "spec.nodeName={node},spec.serviceAccountName={}",
            identity.service_account()
        );
        // From the API server's cache: a pod that is missing there yet is asked for again by its agent.
        let which = ListParams::default().fields(&fields).match_any();
        let pods = Api::<Pod>::namespaced(self.client.clone(), identity.namespace());
        let found = pods.list(&which).await.map_err(failed("list pods"))?;
        Ok(found.items.into_iter().map(facts).collect())
    }

    async fn load(&self) -> Result<Option<Stored>, ClusterError> {
        let secret = self.secrets().get_opt(&self.secret).await;
        let secret = secret.map_err(failed("read the Secret of the root"))?;
        Ok(secret.map(|secret| Stored {
            version: secret.metadata.resource_version.unwrap_or_default(),
            data: texts(secret.data.unwrap_or_default()),
            annotations: secret.metadata.annotations.unwrap_or_default(),
        }))
    }

    async fn create(&self, root: &Patch) -> Result<Outcome, ClusterError> {
        let set = |(key, value): (&&'static str, &Option<String>)| {
            let value = value.clone()?;
            Some(((*key).to_owned(), ByteString(value.into_bytes())))
        };
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                ..ObjectMeta::default()
            },
            data: Some(root.data.iter().filter_map(set).collect()),
            ..Secret::default()
        };
        let made = self.secrets().create(&PostParams::default(), &secret).await;
        outcome(made, "create the Secret of the root")
    }

    async fn change(&self, version: &str, patch: &Patch) -> Result<Outcome, ClusterError> {
        let bytes = |value: &Option<String>| value.clone().map(|it| ByteString(it.into_bytes()));
        let data: BTreeMap<_, _> = patch.data.iter().map(|(k, v)| (k, bytes(v))).collect();
        let patch = json!({
            "metadata": { "resourceVersion": version, "annotations": patch.annotations },
            "data": data,
        });
        let changed = self
            .secrets()
            .patch(
                &self.secret,
                &PatchParams::default(),
                &ApiPatch::Merge(patch),
            )
            .await;
        outcome(changed, "change the Secret of the root")
    }

    async fn publish(&self, roots: &str) -> Result<(), ClusterError> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        let known = maps.get_opt(&self.config_map).await;
        let known = known.map_err(failed("read the ConfigMap of the roots"))?;
        let data: BTreeMap<_, _> = [(ROOTS.to_owned(), roots.to_owned())].into();
        let Some(known) = known else {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(self.config_map.clone()),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            let made = maps.create(&PostParams::default(), &map).await;
            // Another replica was first, with the same roots or those of the step before; the next look tells.
            return outcome(made, "create the ConfigMap of the roots").map(drop);
        };
        if known.data.unwrap_or_default().get(ROOTS) == data.get(ROOTS) {
            return Ok(());
        }
        let patch = ApiPatch::Merge(json!({ "data": data }));
        maps.patch(&self.config_map, &PatchParams::default(), &patch)
            .await
            .map(drop)
            .map_err(failed("change the ConfigMap of the roots"))
    }
}

async fn file(path: &Path) -> Result<Config, KubeconfigError> {
    let file = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    user.extra.as_ref()?.get(key)?.first().cloned()
}

fn facts(pod: Pod) -> PodFacts {
    let spec = pod.spec.unwrap_or_default();
    let phase = pod.status.and_then(|it| it.phase);
    PodFacts {
        namespace: pod.metadata.namespace.unwrap_or_default(),
        uid: pod.metadata.uid.unwrap_or_default(),
        account: spec.service_account_name.unwrap_or_default(),
        node: spec.node_name,
        finished: matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
    }
}

fn texts(data: BTreeMap<String, ByteString>) -> BTreeMap<String, String> {
    data.into_iter()
        .filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)))
        .collect()
}

fn outcome<T>(
    written: Result<T, kube::Error>,
    action: &'static str,
) -> Result<Outcome, ClusterError> {
    match written {
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Conflict),
        Err(error) => Err(failed(action)(error)),
    }
}

fn failed<E>(action: &'static str) -> impl FnOnce(E) -> ClusterError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| ClusterError {
        action,
        source: Box::new(source),
    }
}

/// The entry of the ConfigMap.
const ROOTS: &str = "root-cert.pem";
/// What one question to the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
