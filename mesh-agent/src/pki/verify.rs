//! Who is on the other side: chain to our roots, and the SPIFFE id in the certificate.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::model::Identity;

/// The trust domains whose workloads may connect: our own, then its aliases and federated ones.
#[derive(Clone, Debug)]
pub struct TrustDomains(Arc<[String]>);

impl TrustDomains {
    /// `own`, then every other domain that is accepted.
    pub fn new(own: &str, others: impl IntoIterator<Item = String>) -> Self {
        Self(std::iter::once(own.to_owned()).chain(others).collect())
    }

    fn accept(&self, identity: &Identity) -> bool {
        self.0
            .iter()
            .any(|domain| domain == identity.trust_domain())
    }
}

/// The identity a peer proved in its handshake: the first workload its certificate names.
///
/// None before the handshake. A verified client always has one, and no second.
pub fn peer_identity(connection: &CommonState) -> Option<Identity> {
    identity_of(connection.peer_certificates()?.first()?)
}

/// The first workload that a certificate (DER) names, whoever signed it.
pub fn identity_of(certificate: &[u8]) -> Option<Identity> {
    uri_names(certificate)
        .ok()?
        .iter()
        .find_map(|name| name.parse().ok())
}

/// The URI names of a certificate, in its order.
pub(super) fn uri_names(certificate: &[u8]) -> Result<Vec<String>, CertificateError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| CertificateError::BadEncoding)?;
    Ok(names
        .into_iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect())
}

/// The identity of a certificate with exactly one URI name (X.509-SVID, section 2).
fn only_identity(certificate: &CertificateDer<'_>) -> Result<Identity, Error> {
    let names = uri_names(certificate)?;
    let [name] = names.as_slice() else {
        return Err(refuse(Unacceptable::Names(names)));
    };
    name.parse()
        .map_err(|_| refuse(Unacceptable::Names(names.clone())))
}

/// Why a certificate that chains to our roots is refused all the same.
#[derive(Debug, thiserror::Error)]
enum Unacceptable {
    #[error("the certificate must name exactly one workload, it names {0:?}")]
    Names(Vec<String>),
    #[error("{0} is not of a trust domain accepted here")]
    TrustDomain(Identity),
    #[error("the server is {found:?}, expected one of {expected:?}")]
    Unexpected {
        found: Vec<String>,
        expected: Arc<[Identity]>,
    },
}

fn refuse(why: Unacceptable) -> Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

/// Accepts clients that chain to our roots, for client use, with one identity of an accepted trust domain.
#[derive(Debug)]
pub(super) struct Clients {
    chain: Arc<dyn ClientCertVerifier>,
    domains: TrustDomains,
}

impl Clients {
    /// Fails only for roots that the library cannot use.
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        domains: TrustDomains,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { chain, domains })
    }
}

impl ClientCertVerifier for Clients {
    /// Empty: naming our roots would only make the handshake longer, as clients have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let identity = only_identity(leaf)?;
        if self.domains.accept(&identity) {
            Ok(verified)
        } else {
            Err(refuse(Unacceptable::TrustDomain(identity)))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts servers that chain to our roots, for server use, with some URI name among the expected ones.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) expected: Arc<[Identity]>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Servers {
    /// The server name is not looked at: it is the address dialled, and identities are no host names.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let found = uri_names(leaf)?;
        let known = found
            .iter()
            .filter_map(|name| name.parse::<Identity>().ok())
            .any(|identity| self.expected.contains(&identity));
        if known {
            return Ok(ServerCertVerified::assertion());
        }
        Err(refuse(Unacceptable::Unexpected {
            found,
            expected: self.expected.clone(),
        }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
