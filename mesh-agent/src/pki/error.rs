//! What can be wrong with a certificate.

use std::io;
use std::path::PathBuf;
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
    /// The certificate request is of a key that is too short or of an odd kind.
    #[error(
        "the key of the certificate request for {identity} is {key}: use P-256, P-384, Ed25519, or RSA of 2048 bits"
    )]
    WeakKey {
        /// What was asked for.
        identity: Identity,
        /// The kind of key.
        key: String,
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
    /// The address of the authority cannot be dialled; a configuration fault.
    #[error("{address} is no address of an authority: write it as HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// The token or the roots that the authority is asked with cannot be read.
    #[error("cannot read {}: check that the volume with it is mounted", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The token file holds something else.
    #[error("{} holds no token: put one line of printable text there", path.display())]
    NoToken {
        /// Which file.
        path: PathBuf,
    },
    /// The authority cannot be dialled with the roots given.
    #[error(
        "cannot connect to the authority at {address}: check the address and the root certificates"
    )]
    Connect {
        /// Where it was looked for.
        address: String,
        /// What the library said.
        #[source]
        source: tonic::transport::Error,
    },
    /// The authority refuses; its reason says what has to change.
    #[error("the authority at {address} refuses {identity} ({code:?}): {reason}")]
    Refused {
        /// What was asked for.
        identity: Identity,
        /// Who refuses.
        address: String,
        /// The kind of refusal.
        code: tonic::Code,
        /// Why, in its words.
        reason: String,
    },
    /// The authority is away or cannot decide now; it is asked again with backoff.
    #[error("the authority at {address} cannot answer now")]
    Unavailable {
        /// Where it was looked for.
        address: String,
        /// What became of the call.
        #[source]
        source: Box<tonic::Status>,
    },
}

/// Why the authority has no serving certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The operator asked for a name that cannot be in a certificate.
    #[error("{name} is no DNS name: correct --san")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The crypto library could not make it.
    #[error("cannot make the serving certificate")]
    Make(#[from] rcgen::Error),
    /// The TLS library refuses it.
    #[error("the serving certificate is unusable")]
    Tls(#[from] rustls::Error),
}
