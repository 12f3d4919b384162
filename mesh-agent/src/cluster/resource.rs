//! CORE: the kinds of objects that the agent knows, whichever source tells them.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_json::Value;

use super::slim::{self, Keep};
use super::{Invalid, convert, crd};
use crate::model::{Key, Object, Reference};

/// A kind of object; in the order of [`Reference`], which is the order to tell a world in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    Namespace,
    Node,
    PeerAuthentication,
    NetworkPolicy,
    AuthorizationPolicy,
    Service,
    EndpointSlice,
    Pod,
}

use Resource::{
    AuthorizationPolicy, EndpointSlice, Namespace, NetworkPolicy, Node, PeerAuthentication, Pod,
    Service,
};

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A field has the wrong type, or a value that its type does not have.
    #[error("field {field} cannot be read")]
    Shape {
        /// Path of the field in the object.
        field: String,
        /// What was found, and what should be there.
        #[source]
        source: serde_json::Error,
    },
    /// A field has the right type and a value that means nothing.
    #[error("a field cannot be used")]
    Value(#[source] Invalid),
}

impl Resource {
    /// Every kind, in order.
    pub(super) const ALL: [Self; 8] = [
        Namespace,
        Node,
        PeerAuthentication,
        NetworkPolicy,
        AuthorizationPolicy,
        Service,
        EndpointSlice,
        Pod,
    ];

    /// The kind that an object names; none when the agent has no use for it.
    pub(super) fn named(version: &str, kind: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|it| it.kind() == kind)?;
        let istio = found.is_optional() && version.starts_with("security.istio.io/");
        (istio || found.versions().contains(&version)).then_some(found)
    }

    /// The kind of what is referred to.
    pub(super) fn of(reference: &Reference) -> Self {
        match reference {
            Reference::Namespace(_) => Namespace,
            Reference::Node(_) => Node,
            Reference::PeerAuthentication(_) => PeerAuthentication,
            Reference::NetworkPolicy(_) => NetworkPolicy,
            Reference::AuthorizationPolicy(_) => AuthorizationPolicy,
            Reference::Service(_) => Service,
            Reference::EndpointSlice(_) => EndpointSlice,
            Reference::Pod(_) => Pod,
        }
    }

    /// The name of the kind.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Namespace => "Namespace",
            Node => "Node",
            PeerAuthentication => "PeerAuthentication",
            NetworkPolicy => "NetworkPolicy",
            AuthorizationPolicy => "AuthorizationPolicy",
            Service => "Service",
            EndpointSlice => "EndpointSlice",
            Pod => "Pod",
        }
    }

    /// The versions that are understood, best first; what is used of them is the same in each.
    pub(super) fn versions(self) -> &'static [&'static str] {
        match self {
            Namespace | Node | Service | Pod => &["v1"],
            NetworkPolicy => &["networking.k8s.io/v1"],
            // The older one is all that Kubernetes 1.20 has.
            EndpointSlice => &["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"],
            PeerAuthentication | AuthorizationPolicy => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
        }
    }

    /// Whether a cluster may do without the kind.
    pub(super) fn is_optional(self) -> bool {
        matches!(self, PeerAuthentication | AuthorizationPolicy)
    }

    /// The path of all its objects in one of its versions.
    pub(super) fn path(self, version: &str) -> String {
        let api = if version.contains('/') { "apis" } else { "api" };
        format!("/{api}/{version}/{}", self.plural())
    }

    /// Its name in paths of the API.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Namespace => "namespaces",
            Node => "nodes",
            PeerAuthentication => "peerauthentications",
            NetworkPolicy => "networkpolicies",
            AuthorizationPolicy => "authorizationpolicies",
            Service => "services",
            EndpointSlice => "endpointslices",
            Pod => "pods",
        }
    }

    /// The fields that are used.
    pub(super) fn keep(self) -> Keep {
        match self {
            Namespace => slim::NAMESPACE,
            Node => slim::NODE,
            PeerAuthentication => slim::PEER_AUTHENTICATION,
            NetworkPolicy => slim::NETWORK_POLICY,
            AuthorizationPolicy => slim::AUTHORIZATION_POLICY,
            Service => slim::SERVICE,
            EndpointSlice => slim::ENDPOINT_SLICE,
            Pod => slim::POD,
        }
    }

    /// What the object of a name is known by; `namespace` has no meaning for kinds that are in none.
    pub(super) fn reference(self, namespace: &str, name: &str) -> Reference {
        let key = || Key::new(namespace, name);
        match self {
            Namespace => Reference::Namespace(name.into()),
            Node => Reference::Node(name.into()),
            PeerAuthentication => Reference::PeerAuthentication(key()),
            NetworkPolicy => Reference::NetworkPolicy(key()),
            AuthorizationPolicy => Reference::AuthorizationPolicy(key()),
            Service => Reference::Service(key()),
            EndpointSlice => Reference::EndpointSlice(key()),
            Pod => Reference::Pod(key()),
        }
    }

    /// The object as the agent decides by it; none when the agent has no use for it.
    ///
    /// # Errors
    /// A field that is used cannot be understood. Policies are strict: see their conversions.
    pub(super) fn object(self, written: Value) -> Result<Option<Object>, Fault> {
        let it = self.keep().deserialize(written).unwrap_or_default();
        let object = match self {
            Namespace => Object::Namespace(of::<core::Namespace, _>(it, convert::namespace)?),
            Node => Object::Node(of::<core::Node, _>(it, convert::node)?),
            PeerAuthentication => {
                let convert = |it| convert::peer_authentication(&it);
                Object::PeerAuthentication(of::<crd::Policy, _>(it, convert)?)
            }
            NetworkPolicy => {
                let convert = |it| convert::network_policy(&it);
                Object::NetworkPolicy(of::<crd::Policy, _>(it, convert)?)
            }
            AuthorizationPolicy => {
                let convert = |it| convert::authorization_policy(&it);
                Object::AuthorizationPolicy(of::<crd::Policy, _>(it, convert)?)
            }
            Service => Object::Service(of::<core::Service, _>(it, convert::service)?),
            EndpointSlice => {
                let slice = of::<discovery::EndpointSlice, _>(it, convert::endpoint_slice)?;
                let Some(slice) = Arc::unwrap_or_clone(slice) else {
                    return Ok(None);
                };
                Object::EndpointSlice(Arc::new(slice))
            }
            Pod => Object::Pod(of::<core::Pod, _>(it, convert::pod)?),
        };
        Ok(Some(object))
    }
}

fn of<W: DeserializeOwned, T>(
    written: Value,
    convert: fn(W) -> Result<T, Invalid>,
) -> Result<Arc<T>, Fault> {
    let written = serde_path_to_error::deserialize(written).map_err(|error| Fault::Shape {
        field: error.path().to_string(),
        source: error.into_inner(),
    })?;
    convert(written).map(Arc::new).map_err(Fault::Value)
}
