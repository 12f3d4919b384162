use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, SanType};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;
use crate::model::Identity;

const DOMAIN: &str = "cluster.local";

fn id(account: &str) -> Identity {
    Identity::new(DOMAIN, "default", account)
}

/// A request as the store makes it, for `uri`.
fn request(uri: &str) -> (KeyPair, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, request)
}

fn files(directory: &Path) -> (String, String) {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap();
    (read("root-cert.pem"), read("root-key.pem"))
}

#[test]
fn the_root_is_made_once_and_for_the_owner_only() {
    let directory = TempDir::new().unwrap();
    let inner = directory.path().join("ca");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| DirectoryCa::open(&inner, DOMAIN).unwrap());
        }
    });
    let made = files(&inner);
    DirectoryCa::open(&inner, DOMAIN).unwrap();
    assert_eq!(files(&inner), made);
    let permissions = fs::metadata(inner.join("root-key.pem"))
        .unwrap()
        .permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
}

#[test]
fn broken_roots_are_named_and_left_alone() {
    let check = |spoil: &dyn Fn(&Path), expect: &[&str]| {
        let directory = TempDir::new().unwrap();
        DirectoryCa::open(directory.path(), DOMAIN).unwrap();
        spoil(directory.path());
        let list = || {
            let mut names: Vec<_> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap())
                .map(|entry| {
                    (
                        entry.file_name(),
                        fs::read(entry.path()).unwrap_or_default(),
                    )
                })
                .collect();
            names.sort();
            names
        };
        let before = list();
        let text = match DirectoryCa::open(directory.path(), DOMAIN) {
            Ok(_) => panic!("opened, expected {expect:?}"),
            Err(error) => error.to_string(),
        };
        for part in expect {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        assert_eq!(list(), before, "{text}");
    };
    let other = || {
        let directory = TempDir::new().unwrap();
        DirectoryCa::open(directory.path(), DOMAIN).unwrap();
        files(directory.path())
    };
    let remove = |name: &'static str| move |at: &Path| fs::remove_file(at.join(name)).unwrap();
    let write = |name: &'static str, text: String| {
        move |at: &Path| fs::write(at.join(name), &text).unwrap()
    };
    check(
        &remove("root-key.pem"),
        &["root-key.pem is missing", "root-cert.pem exists", "restore"],
    );
    check(
        &remove("root-cert.pem"),
        &["root-cert.pem is missing", "move the latter away"],
    );
    check(
        &write("root-cert.pem", "nonsense".into()),
        &["root-cert.pem", "no usable PEM certificate"],
    );
    check(
        &write("root-key.pem", "nonsense".into()),
        &["root-key.pem", "no usable PEM private key"],
    );
    check(
        &write("root-key.pem", other().1),
        &["root-key.pem is not the key", "root-cert.pem"],
    );
    check(
        &|at: &Path| {
            remove("root-key.pem")(at);
            fs::create_dir(at.join("root-key.pem")).unwrap();
        },
        &["cannot read", "root-key.pem"],
    );
    check(
        &|at: &Path| spoil_with(at, |_| {}),
        &["root-cert.pem is not a CA certificate"],
    );
    check(
        &|at: &Path| {
            spoil_with(at, |params| {
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                params.not_after = (SystemTime::now() - Duration::from_mins(1)).into();
            });
        },
        &["root-cert.pem is valid from", "replace both"],
    );
}

/// Puts a self-signed certificate of our own making in place of the root.
fn spoil_with(at: &Path, change: impl FnOnce(&mut CertificateParams)) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    change(&mut params);
    fs::write(
        at.join("root-cert.pem"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    fs::write(at.join("root-key.pem"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn a_leaf_is_what_the_contract_says() {
    let directory = TempDir::new().unwrap();
    let ca = DirectoryCa::open(directory.path(), DOMAIN).unwrap();
    let (_key, request) = request(&id("a").to_string());
    let chain = ca.sign(&id("a"), &request).await.unwrap();
    assert_eq!((chain.certificates.len(), chain.roots.len()), (1, 1));
    let (_, leaf) = X509Certificate::from_der(&chain.certificates[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/default/sa/a")]
    );
    assert_eq!(leaf.subject().iter().count(), 0);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !leaf.is_ca());
    let validity = leaf.validity();
    let length = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(length, 24 * 3600 + 300);
    let (_, root) = X509Certificate::from_der(&chain.roots[0]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

#[tokio::test]
async fn the_authority_signs_only_what_was_asked() {
    let directory = TempDir::new().unwrap();
    let ca = DirectoryCa::open(directory.path(), DOMAIN).unwrap();
    let (_key, own) = request(&id("a").to_string());
    let sign = |identity: Identity, request: String| {
        let ca = &ca;
        async move { ca.sign(&identity, &request).await.unwrap_err() }
    };
    let error = sign(Identity::new("other", "default", "a"), own.clone()).await;
    assert!(matches!(error, Error::ForeignTrustDomain { .. }));
    let error = sign(id("b"), own.clone()).await;
    assert!(matches!(error, Error::RequestNames { .. }));
    let error = sign(id("a"), "nonsense".into()).await;
    assert!(matches!(error, Error::Request { .. }));
}

#[tokio::test]
async fn further_certificates_in_the_file_are_trusted_roots() {
    let (directory, older) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    DirectoryCa::open(directory.path(), DOMAIN).unwrap();
    DirectoryCa::open(older.path(), DOMAIN).unwrap();
    let both = files(directory.path()).0 + &files(older.path()).0;
    fs::write(directory.path().join("root-cert.pem"), both).unwrap();
    let ca = DirectoryCa::open(directory.path(), DOMAIN).unwrap();
    let (_key, request) = request(&id("a").to_string());
    assert_eq!(ca.sign(&id("a"), &request).await.unwrap().roots.len(), 2);
}

#[test]
fn chains_from_pem() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    DirectoryCa::open(one.path(), DOMAIN).unwrap();
    DirectoryCa::open(two.path(), DOMAIN).unwrap();
    let (one, two) = (files(one.path()).0, files(two.path()).0);
    let chain = Chain::from_pem(&[one.clone(), two.clone(), one.clone() + &two]).unwrap();
    assert_eq!((chain.certificates.len(), chain.roots.len()), (2, 2));
    for bad in [
        vec![],
        vec![one.as_str()],
        vec!["", &one],
        vec![&one, "nonsense"],
    ] {
        assert!(
            matches!(Chain::from_pem(&bad), Err(Error::Chain { .. })),
            "{bad:?}"
        );
    }
}

/// An authority that counts, dawdles, and fails on demand.
struct Slow {
    ca: DirectoryCa,
    signed: AtomicUsize,
    failing: AtomicBool,
}

impl Signer for Slow {
    fn sign<'a>(&'a self, identity: &'a Identity, request: &'a str) -> Signing<'a> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.signed.fetch_add(1, Ordering::Relaxed);
            if self.failing.load(Ordering::Relaxed) {
                return Err(Error::Chain { problem: "a test" });
            }
            self.ca.sign(identity, request).await
        })
    }
}

struct World {
    signer: Arc<Slow>,
    store: Arc<Certificates>,
    tasks: JoinSet<()>,
    _directory: TempDir,
}

fn world(lifetime: Duration) -> World {
    let directory = TempDir::new().unwrap();
    let ca = DirectoryCa::open(directory.path(), DOMAIN).unwrap();
    let signer = Arc::new(Slow {
        ca: ca.with_lifetime(lifetime),
        signed: AtomicUsize::new(0),
        failing: AtomicBool::new(false),
    });
    let domains = TrustDomains::new(DOMAIN, []);
    let store = Arc::new(Certificates::new(signer.clone(), domains));
    let mut tasks = JoinSet::new();
    tasks.spawn(store.clone().run(CancellationToken::new()));
    World {
        signer,
        store,
        tasks,
        _directory: directory,
    }
}

impl World {
    fn signed(&self) -> usize {
        self.signer.signed.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn one_fetch_for_all_who_wait() {
    let mut world = world(DEFAULT_LIFETIME);
    let asked = (0..50).map(|_| {
        let store = world.store.clone();
        async move { store.certificate(&id("a")).await.unwrap() }
    });
    let all: Vec<_> = asked.collect::<JoinSet<_>>().join_all().await;
    assert_eq!(world.signed(), 1);
    assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
    assert_eq!(all[0].identity(), &id("a"));
    world.tasks.abort_all();
}

#[tokio::test]
async fn fetched_before_use_and_forgotten_after() {
    let world = world(DEFAULT_LIFETIME);
    let wanted: Vec<_> = (0..20).map(|n| id(&format!("w{n}"))).collect();
    world.store.prefetch(&wanted);
    while world.signed() < 20 || world.store.cached(&wanted[19]).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.store.certificate(&wanted[3]).await.unwrap();
    assert_eq!(world.signed(), 20);
    world.store.retain(&HashSet::from([wanted[3].clone()]));
    assert!(world.store.cached(&wanted[3]).is_some());
    assert!(world.store.cached(&wanted[4]).is_none());
}

#[tokio::test]
async fn whoever_waits_for_the_forgotten_is_told() {
    let world = world(DEFAULT_LIFETIME);
    let waiting = id("a");
    let outcome = tokio::join!(world.store.certificate(&waiting), async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        world.store.retain(&HashSet::new());
    })
    .0;
    assert!(matches!(*outcome.unwrap_err(), Error::Forgotten { .. }));
    // The fetch under way then ends in nothing.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(world.store.cached(&waiting).is_none());
}

#[tokio::test]
async fn a_failure_is_told_and_the_next_call_tries_again() {
    let world = world(DEFAULT_LIFETIME);
    world.signer.failing.store(true, Ordering::Relaxed);
    let error = world.store.certificate(&id("a")).await.unwrap_err();
    assert!(matches!(*error, Error::Chain { .. }));
    world.signer.failing.store(false, Ordering::Relaxed);
    world.store.certificate(&id("a")).await.unwrap();
    assert_eq!(world.signed(), 2);
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_old_certificate() {
    // Backdating makes it half spent when it is new, so that it is renewed after the least time.
    let world = world(Duration::from_secs(100));
    let first = world.store.certificate(&id("a")).await.unwrap();
    world.signer.failing.store(true, Ordering::Relaxed);
    while world.signed() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let kept = world.store.certificate(&id("a")).await.unwrap();
    assert!(Arc::ptr_eq(&first, &kept));
    world.signer.failing.store(false, Ordering::Relaxed);
    while Arc::ptr_eq(&first, &world.store.cached(&id("a")).unwrap()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
