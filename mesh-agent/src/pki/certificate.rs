//! One identity's key and certificate, and the TLS configurations that present it.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::{Clients, Servers, uri_names};
use super::{Chain, Error, TrustDomains};
use crate::model::Identity;

/// A workload's certificate with its key, ready to serve and to dial with.
///
/// Both configurations: TLS 1.3 only, AES-256-GCM before AES-128-GCM, ALPN `h2`, certificates both ways, no
/// resumption. The client sends no server name.
pub struct Certificate {
    identity: Identity,
    chain: Chain,
    not_before: SystemTime,
    not_after: SystemTime,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    /// Trusts nobody until a verifier with the expected identities is put in.
    client: ClientConfig,
}

impl Certificate {
    /// Puts an authority's answer and the key of the request together.
    ///
    /// # Errors
    /// The leaf names anything but `identity`, is not valid now or does not fit the key; or the roots are unusable.
    pub(super) fn new(
        identity: Identity,
        chain: Chain,
        key: &rcgen::KeyPair,
        domains: TrustDomains,
    ) -> Result<Self, Error> {
        let (not_before, not_after) = check_leaf(&identity, &chain)?;
        let tls = |source| Error::Tls {
            identity: identity.clone(),
            source,
        };
        let roots = Arc::new(trust(&chain.roots).map_err(tls)?);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key =
            CertifiedKey::from_der(chain.certificates.clone(), key, &PROVIDER).map_err(tls)?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let server = server_config(roots.clone(), domains, key.clone()).map_err(tls)?;
        let client = client_config(roots.clone(), key).map_err(tls)?;
        Ok(Self {
            identity,
            chain,
            not_before,
            not_after,
            roots,
            server: Arc::new(server),
            client,
        })
    }

    /// Whose certificate this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificates shown to peers, and the roots that came with them.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The first and the last instant of its validity.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }

    /// Whether it has expired, or is not valid yet, at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// How to accept clients of the accepted trust domains as this identity.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// How to dial, as this identity, a server that must be one of `expected`.
    ///
    /// Cheap next to a handshake: everything but the expectation is shared, so nothing is cached per destination.
    pub fn client_config(&self, expected: Arc<[Identity]>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(Servers {
                roots: self.roots.clone(),
                expected,
                provider: PROVIDER.clone(),
            }));
        Arc::new(config)
    }

    /// How long it lives in all, and how much of that is over at `now`.
    pub(super) fn lifetime_and_age(&self, now: SystemTime) -> (Duration, Duration) {
        let since_start = |end: SystemTime| end.duration_since(self.not_before);
        (
            since_start(self.not_after).unwrap_or_default(),
            since_start(now).unwrap_or_default(),
        )
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The validity of the leaf, if it is what was asked for.
fn check_leaf(identity: &Identity, chain: &Chain) -> Result<(SystemTime, SystemTime), Error> {
    let unreadable = || Error::Chain {
        problem: "its leaf is no X.509 certificate",
    };
    let leaf = chain.certificates.first().ok_or_else(unreadable)?;
    let names = uri_names(leaf).map_err(|_| unreadable())?;
    if names != [identity.to_string()] {
        return Err(Error::WrongNames {
            identity: identity.clone(),
            names,
        });
    }
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
    let validity = parsed.validity();
    let instants = (
        SystemTime::from(validity.not_before.to_datetime()),
        SystemTime::from(validity.not_after.to_datetime()),
    );
    if (instants.0..=instants.1).contains(&SystemTime::now()) {
        Ok(instants)
    } else {
        Err(Error::NotValidNow {
            identity: identity.clone(),
        })
    }
}

fn trust(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

fn server_config(
    roots: Arc<RootCertStore>,
    domains: TrustDomains,
    key: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, rustls::Error> {
    let clients = Clients::new(roots, domains, PROVIDER.clone())?;
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(key);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client_config(
    roots: Arc<RootCertStore>,
    key: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    let nobody = Servers {
        roots,
        expected: Arc::default(),
        provider: PROVIDER.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(key);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The two suites of the contract, in its order; key exchange as the library prefers it (X25519 first).
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
});

pub(super) const ALPN: &[u8] = b"h2";
