//! What people ask about this node's certificates.

use std::fmt::Write as _;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Certificate;
use crate::model::Identity;

/// One identity of this node with its certificate. Instants are RFC 3339, in UTC, whole seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whose certificate it is.
    pub identity: String,
    /// The certificate, unless none was issued yet.
    pub certificate: Option<Issued>,
    /// How many certificates this agent has got for it.
    pub issued: u64,
    /// When the authority is asked next; none while it is being asked.
    pub next_request: Option<String>,
    /// Why the last request failed; none once one succeeded.
    pub last_error: Option<String>,
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The leaf's serial number, in hexadecimal.
    pub serial: String,
    /// Start of its validity.
    pub not_before: String,
    /// End of its validity.
    pub not_after: String,
    /// The SHA-256 fingerprints of the roots that came with it, in hexadecimal.
    pub roots: Vec<String>,
    /// The certificates shown to peers, the leaf first.
    pub chain: Vec<Shown>,
    /// The roots that came with them.
    pub trusted: Vec<Shown>,
}

/// A certificate as anybody may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its serial number, in decimal.
    pub serial_number: String,
    /// Start of its validity.
    pub not_before: String,
    /// End of its validity.
    pub not_after: String,
    /// Itself.
    pub pem: String,
}

impl Shown {
    fn new(certificate: &CertificateDer<'_>) -> Self {
        let parsed = X509Certificate::from_der(certificate).ok();
        let parsed = parsed.map(|(_, parsed)| parsed);
        let at = |time: x509_parser::time::ASN1Time| instant(time.to_datetime().into());
        let validity = parsed.as_ref().map(|it| it.validity());
        Self {
            serial_number: parsed
                .as_ref()
                .map(|it| it.serial.to_string())
                .unwrap_or_default(),
            not_before: validity.map(|it| at(it.not_before)).unwrap_or_default(),
            not_after: validity.map(|it| at(it.not_after)).unwrap_or_default(),
            pem: pem::encode_config(
                &pem::Pem::new("CERTIFICATE", certificate.as_ref()),
                pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
            ),
        }
    }
}

impl Report {
    pub(super) fn new(
        identity: &Identity,
        certificate: Option<&Certificate>,
        issued: u64,
        next_request: Option<SystemTime>,
        last_error: Option<String>,
    ) -> Self {
        Self {
            identity: identity.to_string(),
            certificate: certificate.map(Issued::new),
            issued,
            next_request: next_request.map(instant),
            last_error,
        }
    }
}

impl Issued {
    fn new(certificate: &Certificate) -> Self {
        let (not_before, not_after) = certificate.validity();
        let chain = certificate.chain();
        let leaf = chain.certificates.first();
        Self {
            serial: leaf.map(|leaf| serial(leaf)).unwrap_or_default(),
            not_before: instant(not_before),
            not_after: instant(not_after),
            roots: chain.roots.iter().map(|root| fingerprint(root)).collect(),
            chain: chain.certificates.iter().map(Shown::new).collect(),
            trusted: chain.roots.iter().map(Shown::new).collect(),
        }
    }
}

fn serial(leaf: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(leaf)
        .map(|(_, leaf)| hex(leaf.raw_serial()))
        .unwrap_or_default()
}

fn fingerprint(certificate: &[u8]) -> String {
    hex(digest(&SHA256, certificate).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn instant(at: SystemTime) -> String {
    let seconds = |at: Timestamp| Timestamp::from_second(at.as_second());
    Timestamp::try_from(at)
        .and_then(seconds)
        .map(|at| at.to_string())
        .unwrap_or_default()
}
