//! What a certificate request must be before it is signed: well formed, of a sound key, and about one identity.

use rcgen::{CertificateSigningRequestParams, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::Error;
use crate::model::Identity;

/// Parses a request, checks its signature and key, and that it names `identity` alone.
pub(super) fn check_request(
    identity: &Identity,
    request: &str,
) -> Result<CertificateSigningRequestParams, Error> {
    let malformed = |source| Error::Request {
        identity: identity.clone(),
        source,
    };
    let unreadable = || malformed(rcgen::Error::CouldNotParseCertificationRequest);
    let der = pem::parse(request).map_err(|_| unreadable())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(der.contents()).map_err(|_| unreadable())?;
    let key = key(&parsed).ok_or_else(unreadable)?;
    if !ACCEPTED.contains(&key.as_str()) && !long_rsa(&parsed) {
        return Err(Error::WeakKey {
            identity: identity.clone(),
            key,
        });
    }
    let request =
        CertificateSigningRequestParams::from_der(&der.contents().into()).map_err(malformed)?;
    let names = &request.params.subject_alt_names;
    match names.as_slice() {
        [SanType::URI(uri)] if uri.as_str() == identity.to_string() => Ok(request),
        _ => Err(Error::RequestNames {
            identity: identity.clone(),
            names: names.iter().map(|name| format!("{name:?}")).collect(),
        }),
    }
}

/// The kind of key, with its curve or size, and what it signed the request with, all as object identifiers.
///
/// Both together, as the certificate's kind of key is taken from the signature.
fn key(request: &X509CertificationRequest<'_>) -> Option<String> {
    let info = &request.certification_request_info.subject_pki;
    let curve = info.algorithm.parameters.as_ref();
    let curve = curve.and_then(|it| it.as_oid().ok());
    let kind = match info.parsed().ok()? {
        PublicKey::RSA(rsa) => format!("RSA-{}", rsa.key_size()),
        _ => curve.map_or_else(
            || info.algorithm.algorithm.to_id_string(),
            |curve| curve.to_id_string(),
        ),
    };
    let signed = request.signature_algorithm.algorithm.to_id_string();
    Some(format!("{kind} with signature {signed}"))
}

fn long_rsa(request: &X509CertificationRequest<'_>) -> bool {
    let key = request.certification_request_info.subject_pki.parsed();
    matches!(key, Ok(PublicKey::RSA(rsa)) if rsa.key_size() >= 2048)
}

/// P-256 with SHA-256, P-384 with SHA-384, Ed25519; beside them RSA from 2048 bits on.
const ACCEPTED: [&str; 3] = [
    "1.2.840.10045.3.1.7 with signature 1.2.840.10045.4.3.2",
    "1.3.132.0.34 with signature 1.2.840.10045.4.3.3",
    "1.3.101.112 with signature 1.3.101.112",
];
