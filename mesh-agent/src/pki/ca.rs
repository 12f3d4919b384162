//! The embedded authority: a root in two PEM files of a directory.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    KeyUsagePurpose, SanType,
};

use super::root::{BACKDATE, Root, RootError};
use super::{Chain, Error, Signer, Signing};
use crate::model::Identity;

/// How long a workload's certificate lives unless told otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_hours(24);

/// An authority whose root is `root-cert.pem` and `root-key.pem` in one directory.
///
/// Several agents may share the directory, and start at once. The first certificate of `root-cert.pem` signs; any
/// further ones are trusted too, which is how a root is rotated with overlap.
pub struct DirectoryCa {
    trust_domain: String,
    lifetime: Duration,
    root: Root,
}

impl DirectoryCa {
    /// Opens the authority in `directory`, or makes its root there if neither file exists.
    ///
    /// # Errors
    /// A file that cannot be read or written, is not what it should be, or has expired. No file is ever overwritten.
    pub fn open(directory: &Path, trust_domain: &str) -> Result<Self, RootError> {
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            lifetime: DEFAULT_LIFETIME,
            root: Root::open(directory, trust_domain)?,
        })
    }

    /// Issues certificates of `lifetime`, cut at the end of the root's own.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    fn issue(&self, identity: &Identity, request: &str) -> Result<Chain, Error> {
        if identity.trust_domain() != self.trust_domain {
            return Err(Error::ForeignTrustDomain {
                identity: identity.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let mut request = check_request(identity, request)?;
        // Of the request, only the key is taken over: everything else is ours to say.
        request.params = self.leaf(std::mem::take(&mut request.params.subject_alt_names));
        let leaf = request
            .signed_by(&self.root.issuer)
            .map_err(|source| Error::Make {
                identity: identity.clone(),
                source,
            })?;
        Ok(Chain {
            certificates: vec![leaf.into()],
            roots: self.root.trusted.clone(),
        })
    }

    fn leaf(&self, names: Vec<SanType>) -> CertificateParams {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + self.lifetime).min(self.root.not_after).into();
        params.subject_alt_names = names;
        // An empty subject is what makes the URI critical (RFC 5280, 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params
    }
}

impl Signer for DirectoryCa {
    fn sign<'a>(&'a self, identity: &'a Identity, request: &'a str) -> Signing<'a> {
        Box::pin(async move { self.issue(identity, request) })
    }
}

/// Parses a request, checks its signature, and that it names `identity` alone.
fn check_request(
    identity: &Identity,
    request: &str,
) -> Result<CertificateSigningRequestParams, Error> {
    let request =
        CertificateSigningRequestParams::from_pem(request).map_err(|source| Error::Request {
            identity: identity.clone(),
            source,
        })?;
    let names = &request.params.subject_alt_names;
    match names.as_slice() {
        [SanType::URI(uri)] if uri.as_str() == identity.to_string() => Ok(request),
        _ => Err(Error::RequestNames {
            identity: identity.clone(),
            names: names.iter().map(|name| format!("{name:?}")).collect(),
        }),
    }
}
