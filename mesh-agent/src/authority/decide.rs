//! CORE: who gets which certificate. Every check that fails is a [`Refusal`] of its own.

use std::fmt;
use std::str::FromStr;

use crate::model::Identity;

/// A service account, written `system:serviceaccount:NAMESPACE:NAME` as Kubernetes names its user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A user name that is not a service account's.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no service account: write system:serviceaccount:NAMESPACE:NAME")]
pub struct NoServiceAccount(String);

impl FromStr for ServiceAccount {
    type Err = NoServiceAccount;

    fn from_str(user: &str) -> Result<Self, Self::Err> {
        let account = user.strip_prefix("system:serviceaccount:");
        match account.and_then(|it| it.split_once(':')) {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains(':') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err(NoServiceAccount(user.to_owned())),
        }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// What the API server says of a token.
#[derive(Clone, Debug, Default)]
pub struct Review {
    /// Whether the token is valid.
    pub authenticated: bool,
    /// Why not, if it says so.
    pub error: String,
    /// The audiences, of those asked for, that the token is meant for.
    pub audiences: Vec<String>,
    /// Whose it is.
    pub user: String,
    /// The pod it is bound to.
    pub pod: Option<PodRef>,
    /// The node of that pod, which clusters from 1.30 on tell.
    pub node: Option<String>,
}

/// A pod as a bound token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its name; its namespace is that of the service account.
    pub name: String,
    /// Its unique id.
    pub uid: String,
}

/// What a decision asks of a pod.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its unique id.
    pub uid: String,
    /// The account it runs as; empty for a pod that was put on a node without the API server (a mirror pod).
    pub account: String,
    /// Where it runs, once it is scheduled.
    pub node: Option<String>,
    /// Whether it has succeeded or failed.
    pub finished: bool,
}

/// Why there is no certificate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the request has no bearer token")]
    NoToken,
    #[error("the token is not valid: {reason}")]
    NotAuthenticated { reason: String },
    #[error("the token is not for the audience {audience}")]
    Audience { audience: String },
    #[error("{user} is no service account")]
    NotServiceAccount { user: String },
    #[error("{account} may not ask for certificates: only agents may (--allow)")]
    Caller { account: ServiceAccount },
    #[error("the token of {account} is not bound to a pod: use a projected token")]
    NotBound { account: ServiceAccount },
    #[error("the pod {pod} of the token is gone, finished, or another one by now")]
    CallerPod { pod: String },
    #[error("the pod {pod} of the token is on no node")]
    CallerNode { pod: String },
    #[error("the token is of node {token}, but its pod {pod} is on {found}")]
    NodeMismatch {
        pod: String,
        token: String,
        found: String,
    },
    #[error(
        "the request names no identity (ImpersonatedIdentity): certificates of an agent's own are not given"
    )]
    NoIdentity,
    #[error("{text:?} is no identity: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    MalformedIdentity { text: String },
    #[error("{identity} is not of the trust domain {trust_domain}")]
    ForeignTrustDomain {
        identity: Identity,
        trust_domain: String,
    },
    #[error("no running pod on node {node} has the identity {identity}")]
    NotOnNode { identity: Identity, node: String },
}

impl Refusal {
    /// Whether it is the caller that is not known, rather than what it may do.
    pub(super) fn is_about_the_caller(&self) -> bool {
        matches!(
            self,
            Self::NoToken | Self::NotAuthenticated { .. } | Self::Audience { .. }
        )
    }
}

/// Whom the authority serves.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What tokens must be made for.
    pub audience: String,
    /// Who may ask on behalf of the pods of its node.
    pub allowed: Vec<ServiceAccount>,
    /// The trust domain of everything signed.
    pub trust_domain: String,
}

/// An allowed account, and the pod that its token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Who it is.
    pub account: ServiceAccount,
    /// The pod it says it is; not looked up yet.
    pub pod: PodRef,
    /// The node of that pod, if the token tells.
    node: Option<String>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pod {})", self.account, self.pod.name)
    }
}

/// The token in the value of an `authorization` header.
pub(super) fn bearer(header: Option<&str>) -> Result<&str, Refusal> {
    let (scheme, token) = header
        .and_then(|it| it.split_once(' '))
        .ok_or(Refusal::NoToken)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(token)
    } else {
        Err(Refusal::NoToken)
    }
}

impl Rules {
    /// Who the caller is, if it may ask at all.
    pub(super) fn caller(&self, review: Review) -> Result<Caller, Refusal> {
        if !review.authenticated {
            let reason = if review.error.is_empty() {
                "it is expired, foreign, or for another audience".to_owned()
            } else {
                review.error
            };
            return Err(Refusal::NotAuthenticated { reason });
        }
        // An API server that knows no audiences names none, and then the token may be for anybody.
        if !review.audiences.contains(&self.audience) {
            return Err(Refusal::Audience {
                audience: self.audience.clone(),
            });
        }
        let account: ServiceAccount = review
            .user
            .parse()
            .map_err(|NoServiceAccount(user)| Refusal::NotServiceAccount { user })?;
        if !self.allowed.contains(&account) {
            return Err(Refusal::Caller { account });
        }
        let Some(pod) = review.pod else {
            return Err(Refusal::NotBound { account });
        };
        Ok(Caller {
            account,
            pod,
            node: review.node,
        })
    }

    /// The identity that was asked for, if it is one that this authority signs.
    pub(super) fn identity(&self, asked: Option<&str>) -> Result<Identity, Refusal> {
        let text = asked.ok_or(Refusal::NoIdentity)?;
        // What is not a name in Kubernetes must not become part of a question to it.
        let named = |it: &Identity| is_name(it.namespace()) && is_name(it.service_account());
        let identity = text.parse().ok().filter(named);
        let identity = identity.ok_or_else(|| Refusal::MalformedIdentity {
            text: text.to_owned(),
        })?;
        if identity.trust_domain() == self.trust_domain {
            Ok(identity)
        } else {
            Err(Refusal::ForeignTrustDomain {
                identity,
                trust_domain: self.trust_domain.clone(),
            })
        }
    }
}

impl Caller {
    /// The node it runs on, by what is known of its pod.
    pub(super) fn on_node(&self, pod: Option<&PodFacts>) -> Result<String, Refusal> {
        let name = || format!("{}/{}", self.account.namespace, self.pod.name);
        let same = |pod: &&PodFacts| {
            pod.uid == self.pod.uid
                && pod.namespace == self.account.namespace
                && pod.account == self.account.name
                && !pod.finished
        };
        let pod = pod
            .filter(same)
            .ok_or_else(|| Refusal::CallerPod { pod: name() })?;
        let found = pod.node.clone().filter(|node| !node.is_empty());
        let found = found.ok_or_else(|| Refusal::CallerNode { pod: name() })?;
        match &self.node {
            Some(token) if *token != found => Err(Refusal::NodeMismatch {
                pod: name(),
                token: token.clone(),
                found,
            }),
            _ => Ok(found),
        }
    }
}

/// Whether it is made as the names of namespaces and service accounts are (RFC 1123).
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().next().is_some_and(plain)
        && text
            .bytes()
            .all(|it| plain(it) || matches!(it, b'-' | b'.'))
}

/// Whether a pod with `identity` runs on `node`.
pub(super) fn runs_on(identity: &Identity, node: &str, pods: &[PodFacts]) -> Result<(), Refusal> {
    let fits = |pod: &PodFacts| {
        pod.node.as_deref() == Some(node)
            && pod.namespace == identity.namespace()
            && pod.account == identity.service_account()
            && !pod.account.is_empty()
            && !pod.finished
    };
    if pods.iter().any(fits) {
        Ok(())
    } else {
        Err(Refusal::NotOnNode {
            identity: identity.clone(),
            node: node.to_owned(),
        })
    }
}
