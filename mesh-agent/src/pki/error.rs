//! What can be wrong with a certificate.

use std::time::Duration;

use crate::model::Identity;

/// Why an identity has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked an authority for an identity outside its trust domain; a configuration fault.
    #[error("{identity} is not of the trust domain {trust_domain} of this authority")]
    ForeignTrustDomain {
        /// What was asked for.
        identity: Identity,
        /// What the authority signs.
        trust_domain: String,
    },
    /// The certificate request cannot be read, or its signature is wrong.
    #[error("the certificate request for {identity} is not acceptable")]
    Request {
        /// What was asked for.
        identity: Identity,
        /// What is wrong with the request.
        #[source]
        source: rcgen::Error,
    },
    /// The certificate request names something other than the identity it was sent for.
    #[error("the certificate request for {identity} names {names:?} instead")]
    RequestNames {
        /// What was asked for.
        identity: Identity,
        /// The subject alternative names of the request.
        names: Vec<String>,
    },
    /// Key generation or signing failed in the crypto library.
    #[error("cannot make the certificate of {identity}")]
    Make {
        /// What was asked for.
        identity: Identity,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
    /// The authority answered with something that is no PEM certificate chain.
    #[error("the authority's answer is no certificate chain: {problem}")]
    Chain {
        /// What is missing or malformed.
        problem: &'static str,
    },
    /// The authority answered with a certificate of somebody else.
    #[error("the authority answered a request for {identity} with a certificate of {names:?}")]
    WrongNames {
        /// What was asked for.
        identity: Identity,
        /// The URI names of the leaf.
        names: Vec<String>,
    },
    /// The authority's certificate is outside its validity; a wrong clock on one side is the usual cause.
    #[error(
        "the certificate of {identity} is not valid now: check the clocks of node and authority"
    )]
    NotValidNow {
        /// Whose certificate it is.
        identity: Identity,
    },
    /// The TLS library refuses the key, the certificate or the roots.
    #[error("the certificate of {identity} is unusable")]
    Tls {
        /// Whose certificate it is.
        identity: Identity,
        /// What the library said.
        #[source]
        source: rustls::Error,
    },
    /// The authority did not answer in time; it is asked again with backoff.
    #[error("the authority did not answer within {deadline:?} for {identity}")]
    Timeout {
        /// What was asked for.
        identity: Identity,
        /// How long was waited.
        deadline: Duration,
    },
    /// The identity was forgotten, or the store stopped, while the certificate was awaited.
    #[error("{identity} is no longer wanted on this node")]
    Forgotten {
        /// What was asked for.
        identity: Identity,
    },
}
