//! Signing: what a certificate says, whoever asked for it, and the embedded authority whose root is in a directory.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    KeyUsagePurpose, SanType,
};

use super::request::check_request;
use super::root::{BACKDATE, Root, RootError};
use super::{Chain, Error, Signer, Signing};
use crate::model::Identity;

/// How long a workload's certificate lives unless told otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_hours(24);

/// What signs certificates of one trust domain: a root, and how long what it signs lives.
pub struct Authority {
    trust_domain: String,
    lifetime: Duration,
    pub(super) root: Root,
}

impl Authority {
    /// Signs identities of `trust_domain` for `lifetime`, cut at the end of the root's own.
    pub fn new(trust_domain: &str, lifetime: Duration, root: Root) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            lifetime,
            root,
        }
    }

    /// The certificate of `identity` for the key of `request`, a PKCS #10 request in PEM that names `identity` alone.
    ///
    /// Valid from a little before `now`, for `at_most` if that is less than the authority's own lifetime.
    ///
    /// # Errors
    /// The identity is of another trust domain; or the request is malformed, has a weak key or names something else.
    pub fn issue(
        &self,
        identity: &Identity,
        request: &str,
        at_most: Option<Duration>,
        now: SystemTime,
    ) -> Result<Chain, Error> {
        if identity.trust_domain() != self.trust_domain {
            return Err(Error::ForeignTrustDomain {
                identity: identity.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let mut request: CertificateSigningRequestParams = check_request(identity, request)?;
        let lifetime = at_most.map_or(self.lifetime, |most| most.min(self.lifetime));
        let names = std::mem::take(&mut request.params.subject_alt_names);
        // Of the request, only the key is taken over: everything else is ours to say.
        request.params = self.leaf(names, lifetime, now);
        request.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
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

    /// What every certificate below the root has in common.
    pub(super) fn leaf(
        &self,
        names: Vec<SanType>,
        lifetime: Duration,
        now: SystemTime,
    ) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime).min(self.root.not_after).into();
        params.subject_alt_names = names;
        // An empty subject is what makes the names critical (RFC 5280, 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params
    }

    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }
}

/// An authority whose root is `root-cert.pem` and `root-key.pem` in one directory.
///
/// Several agents may share the directory, and start at once. The first certificate of `root-cert.pem` signs; any
/// further ones are trusted too, which is how a root is rotated with overlap.
pub struct DirectoryCa(Authority);

impl DirectoryCa {
    /// Opens the authority in `directory`, or makes its root there if neither file exists.
    ///
    /// # Errors
    /// A file that cannot be read or written, is not what it should be, or has expired. No file is ever overwritten.
    pub fn open(directory: &Path, trust_domain: &str) -> Result<Self, RootError> {
        let root = Root::open(directory, trust_domain)?;
        Ok(Self(Authority::new(trust_domain, DEFAULT_LIFETIME, root)))
    }

    /// Issues certificates of `lifetime`, cut at the end of the root's own.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.0.lifetime = lifetime;
        self
    }
}

impl Signer for DirectoryCa {
    fn sign<'a>(&'a self, identity: &'a Identity, request: &'a str) -> Signing<'a> {
        Box::pin(async move { self.0.issue(identity, request, None, SystemTime::now()) })
    }
}
