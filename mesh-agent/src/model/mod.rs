//! CORE: the world as the agent knows it.
//!
//! A source tells [`Event`]s; one owner applies them to its [`Snapshot`] and hands clones to everybody else. Wire types
//! (k8s-openapi, CRDs) end in `cluster`; what is here is already valid.

mod apply;
mod authority;
mod claims;
mod derive;
mod event;
pub mod identity;
mod key;
mod object;
mod policies;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod workload;

pub use authority::{Authority, AuthorityError};
pub use event::{Attached, Change, Event, Object, Reference};
pub use identity::Identity;
pub use key::Key;
pub use object::{
    ContainerPort, Endpoint, EndpointPort, EndpointSlice, Hints, Labels, MtlsMode, Namespace, Node,
    PeerAuthentication, Pod, Protocol, Service, ServicePort, TargetPort,
};
pub use snapshot::{Backend, Readiness, Settings, Snapshot};
pub use workload::{NotEnrolled, Workload, WorkloadId, WorkloadKey};
