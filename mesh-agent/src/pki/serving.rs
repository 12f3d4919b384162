//! The authority's own serving certificate: made by its root, in memory, renewed by whoever holds it.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;

use super::certificate::{ALPN, PROVIDER};
use super::{Authority, ServingError};

/// How to accept connections under a name: TLS 1.3, ALPN `h2`, no client certificates.
#[derive(Clone)]
pub struct Serving {
    acceptor: TlsAcceptor,
    renew_at: SystemTime,
}

impl Serving {
    /// What does the handshakes.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// When half of its life is over.
    pub fn renew_at(&self) -> SystemTime {
        self.renew_at
    }
}

impl Authority {
    /// A new key and a certificate for the DNS `names`, which lives as long as those of workloads.
    ///
    /// # Errors
    /// A name that is no DNS name, or a failure of the crypto library.
    pub fn serving(&self, names: &[String], now: SystemTime) -> Result<Serving, ServingError> {
        let sans = names
            .iter()
            .map(|name| {
                let dns = name
                    .as_str()
                    .try_into()
                    .map_err(|_| ServingError::Name { name: name.clone() })?;
                Ok(SanType::DnsName(dns))
            })
            .collect::<Result<Vec<_>, ServingError>>()?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = self.leaf(sans, self.lifetime(), now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.root.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Serving {
            acceptor: Arc::new(config).into(),
            renew_at: now + self.lifetime() / 2,
        })
    }
}
