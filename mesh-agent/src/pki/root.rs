//! The root of the embedded authority: two PEM files that several agents may open, or make, at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What signs, and what is trusted.
pub struct Root {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) trusted: Vec<CertificateDer<'static>>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Root {
    /// Loads the root in `directory`, after making it there if neither file exists.
    pub(super) fn open(directory: &Path, trust_domain: &str) -> Result<Self, RootError> {
        let files = Files::in_directory(directory);
        if !files.both_exist()? {
            files.make(trust_domain)?;
        }
        files.load()
    }

    /// Reads a root whose first certificate signs, with `key`; the others of `certs` are trusted too. All is PEM.
    ///
    /// `place` is what errors call the place that holds both, as `root-cert.pem` and `root-key.pem`.
    ///
    /// # Errors
    /// One of them is not what it should be, they do not belong together, or the root is not valid at `now`.
    pub fn from_pem(
        place: &Path,
        certs: &str,
        key: &str,
        now: SystemTime,
    ) -> Result<Self, RootError> {
        Files::in_directory(place).parse(certs.as_bytes(), key, now)
    }

    /// The first and the last instant at which the certificate that signs is valid.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }
}

/// Why an authority cannot be opened; the operator has to act, and the text says how.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file or the directory cannot be used.
    #[error("cannot {action} {}: check that it exists and that the agent may {action} it", path.display())]
    Io {
        /// What was tried: read, write, lock.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of the two files is there without the other.
    #[error("{} is missing but {} exists: restore the former, or move the latter away to have a new root made",
            missing.display(), present.display())]
    Half {
        /// The file that is missing.
        missing: PathBuf,
        /// The file that is there.
        present: PathBuf,
    },
    /// The file holds no certificate, or no key, in PEM.
    #[error("{} holds no usable PEM {what}: restore it, or move both root files away to have a new root made", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// The first certificate of the file may not sign certificates.
    #[error("{} is not a CA certificate (CA:TRUE, certSign): put the certificate of {} there", cert.display(), key.display())]
    NotAuthority {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The key is not the one of the first certificate.
    #[error("{} is not the key of the first certificate in {}: restore the pair", key.display(), cert.display())]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The root is not valid now.
    #[error("the root in {} is valid from {from} to {until}, not now: check the clock, or replace both root files", path.display())]
    NotValidNow {
        /// The certificate file.
        path: PathBuf,
        /// Start of its validity.
        from: String,
        /// End of its validity.
        until: String,
    },
    /// The crypto library could not make a root.
    #[error("cannot make a root")]
    Make(#[source] rcgen::Error),
}

struct Files {
    directory: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn in_directory(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            cert: directory.join("root-cert.pem"),
            key: directory.join("root-key.pem"),
        }
    }

    fn both_exist(&self) -> Result<bool, RootError> {
        let exists = |path: &Path| path.try_exists().map_err(io_error("read", path));
        Ok(exists(&self.cert)? && exists(&self.key)?)
    }

    /// Makes a root unless another process does so first.
    fn make(&self, trust_domain: &str) -> Result<(), RootError> {
        fs::create_dir_all(&self.directory).map_err(io_error("write", &self.directory))?;
        let lock = self.directory.join(".root.lock");
        let file = File::create(&lock).map_err(io_error("write", &lock))?;
        let _held = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io_error("lock", &lock)(errno.into()))?;
        // Whoever held the lock before us may have made it.
        match (
            self.cert
                .try_exists()
                .map_err(io_error("read", &self.cert))?,
            self.key.try_exists().map_err(io_error("read", &self.key))?,
        ) {
            (true, true) => return Ok(()),
            (true, false) => return Err(half(&self.key, &self.cert)),
            (false, true) => return Err(half(&self.cert, &self.key)),
            (false, false) => {}
        }
        let (cert, key) = new_root(trust_domain, SystemTime::now())?;
        self.publish(&self.key, &key)?;
        self.publish(&self.cert, &cert)?;
        tracing::info!(path = %self.cert.display(), trust_domain, "made a new root");
        Ok(())
    }

    /// Writes a file whole or not at all, durably, for the owner only.
    fn publish(&self, path: &Path, text: &str) -> Result<(), RootError> {
        let partial = path.with_extension("partial");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&partial, path))
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(io_error("write", path))
    }

    fn load(&self) -> Result<Root, RootError> {
        let cert = fs::read(&self.cert).map_err(io_error("read", &self.cert))?;
        let key = fs::read_to_string(&self.key).map_err(io_error("read", &self.key))?;
        self.parse(&cert, &key, SystemTime::now())
    }

    fn parse(&self, cert: &[u8], key: &str, now: SystemTime) -> Result<Root, RootError> {
        let malformed = |path: &Path, what| RootError::Malformed {
            path: path.to_owned(),
            what,
        };
        let no_certificate = || malformed(&self.cert, "certificate");
        let trusted = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| no_certificate())?;
        let root = trusted.first().ok_or_else(no_certificate)?;
        let key = KeyPair::from_pem(key).map_err(|_| malformed(&self.key, "private key"))?;
        let (_, parsed) = X509Certificate::from_der(root).map_err(|_| no_certificate())?;
        let (not_before, not_after) = self.check(&parsed, &key, now)?;
        let issuer = Issuer::from_ca_cert_der(root, key).map_err(|_| no_certificate())?;
        Ok(Root {
            issuer,
            trusted,
            not_before,
            not_after,
        })
    }

    /// The root's validity, if it is a valid root with this key.
    fn check(
        &self,
        root: &X509Certificate<'_>,
        key: &KeyPair,
        now: SystemTime,
    ) -> Result<(SystemTime, SystemTime), RootError> {
        let signs = root
            .key_usage()
            .ok()
            .flatten()
            .is_none_or(|usage| usage.value.key_cert_sign());
        if !root.is_ca() || !signs {
            return Err(RootError::NotAuthority {
                cert: self.cert.clone(),
                key: self.key.clone(),
            });
        }
        if *root.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(RootError::Mismatch {
                cert: self.cert.clone(),
                key: self.key.clone(),
            });
        }
        let validity = root.validity();
        let instants = (
            SystemTime::from(validity.not_before.to_datetime()),
            SystemTime::from(validity.not_after.to_datetime()),
        );
        if !(instants.0..=instants.1).contains(&now) {
            return Err(RootError::NotValidNow {
                path: self.cert.clone(),
                from: validity.not_before.to_string(),
                until: validity.not_after.to_string(),
            });
        }
        Ok(instants)
    }
}

fn half(missing: &Path, present: &Path) -> RootError {
    RootError::Half {
        missing: missing.to_owned(),
        present: present.to_owned(),
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RootError + 'a {
    move |source| RootError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A self-signed P-256 root that is valid for ten years from `now` on: certificate and key, in PEM.
///
/// # Errors
/// The crypto library fails.
pub fn new_root(trust_domain: &str, now: SystemTime) -> Result<(String, String), RootError> {
    make(trust_domain, now).map_err(RootError::Make)
}

fn make(trust_domain: &str, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Roots of different keys have different names, so that a foreign one is seen as such.
    let id = params.key_identifier(&key);
    let id = id.iter().take(4).fold(0, |id, &b| id << 8 | u32::from(b));
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Mesh CNI root {id:08x}"));
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}

const ROOT_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Nodes whose clock is behind ours accept a certificate at once.
pub(super) const BACKDATE: Duration = Duration::from_mins(5);
