//! EDGE: identities become keys, certificates and TLS configurations here, and nowhere else.
//!
//! `schedule` is CORE: it says when a certificate is fetched, from instants it is handed.
//! Private keys stay in memory; only the root of a [`DirectoryCa`] is a file. [`RemoteCa`] asks the authority of a
//! cluster; [`Authority`] signs, in the agent or in `mesh-agent ca`.

mod ca;
mod certificate;
mod error;
mod remote;
mod report;
mod request;
mod root;
mod schedule;
mod serving;
mod signer;
mod store;
mod verify;
pub mod wire;

#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod tests;

pub use ca::{Authority, DEFAULT_LIFETIME, DirectoryCa};
pub use certificate::Certificate;
pub use error::{Error, ServingError};
pub use remote::{Remote, RemoteCa, Standing};
pub use report::{Issued, Report, Shown};
pub use root::{Root, RootError, new_root};
pub use serving::Serving;
pub use signer::{Chain, Signer, Signing};
pub use store::Certificates;
pub use verify::{TrustDomains, identity_of, peer_identity};
