//! The seam to a certificate authority: a request in, a chain out.

use std::pin::Pin;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Error;
use crate::model::Identity;

/// A signature in progress.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Chain, Error>> + Send + 'a>>;

/// Signs workload certificates.
pub trait Signer: Send + Sync {
    /// Signs `request`, a PKCS #10 request in PEM whose only name is the critical URI of `identity`.
    fn sign<'a>(&'a self, identity: &'a Identity, request: &'a str) -> Signing<'a>;
}

/// What an authority answers with.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The leaf, then any intermediates; never empty.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Every root that peers are trusted by, more than one while roots are rotated; never empty.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Chain {
    /// Reads a chain as `CreateCertificate` answers it: PEM elements, leaf first, the last one all roots.
    ///
    /// # Errors
    /// Fewer than two elements, an element without a certificate, or malformed PEM.
    pub fn from_pem<S: AsRef<str>>(elements: &[S]) -> Result<Self, Error> {
        let [chain @ .., roots] = elements else {
            return Err(Error::Chain {
                problem: "it is empty",
            });
        };
        let mut certificates = Vec::new();
        for element in chain {
            certificates.extend(read(element.as_ref())?);
        }
        if certificates.is_empty() {
            return Err(Error::Chain {
                problem: "it holds roots only, no leaf",
            });
        }
        let roots = read(roots.as_ref())?;
        Ok(Self {
            certificates,
            roots,
        })
    }

    /// The chain as `CreateCertificate` answers it: an element a certificate, the last one all roots.
    pub fn to_pem(&self) -> Vec<String> {
        let pem = |der: &CertificateDer<'_>| {
            pem::encode_config(
                &pem::Pem::new("CERTIFICATE", der.to_vec()),
                pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
            )
        };
        let roots = self.roots.iter().map(pem).collect();
        self.certificates.iter().map(pem).chain([roots]).collect()
    }
}

fn read(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::Chain {
            problem: "an element is malformed PEM",
        })?;
    if found.is_empty() {
        return Err(Error::Chain {
            problem: "an element holds no certificate",
        });
    }
    Ok(found)
}
