//! EDGE: identities become keys, certificates and TLS configurations here, and nowhere else.
//!
//! `schedule` is CORE: it says when a certificate is fetched, from instants it is handed.
//! Private keys stay in memory; only the root of a [`DirectoryCa`] is a file.

mod ca;
mod certificate;
mod error;
mod root;
mod schedule;
mod signer;
mod store;
mod verify;

#[cfg(test)]
mod tests;

pub use ca::{DEFAULT_LIFETIME, DirectoryCa};
pub use certificate::Certificate;
pub use error::Error;
pub use root::RootError;
pub use signer::{Chain, Signer, Signing};
pub use store::Certificates;
pub use verify::{TrustDomains, peer_identity};
