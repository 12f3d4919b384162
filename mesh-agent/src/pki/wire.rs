//! The two messages of `istio.v1.auth.IstioCertificateService`, as Istio's `security/v1alpha1/ca.proto` numbers them.

use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// The one method, as the path of its HTTP/2 request.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The key of a request's metadata that names the identity asked for, when it is not the caller's own.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// What an authority is asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// The PKCS #10 request, in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate should live at most, in seconds; 0 leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Whom the request is for.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

impl CertificateRequest {
    /// A request on behalf of `identity`.
    pub fn impersonating(identity: &str, csr: &str, validity_duration: i64) -> Self {
        let value = Value {
            kind: Some(Kind::StringValue(identity.to_owned())),
        };
        Self {
            csr: csr.to_owned(),
            validity_duration,
            metadata: Some(Struct {
                fields: [(IMPERSONATED.to_owned(), value)].into(),
            }),
        }
    }

    /// The identity it is on behalf of, if it names one.
    pub fn impersonated(&self) -> Option<&str> {
        match &self.metadata.as_ref()?.fields.get(IMPERSONATED)?.kind {
            Some(Kind::StringValue(identity)) => Some(identity),
            _ => None,
        }
    }
}

/// What it answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// PEM elements: the leaf, any intermediates, and last all roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
