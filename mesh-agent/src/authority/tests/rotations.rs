//! The root's life by a hand-driven clock: two replicas, and agents that keep each certificate to its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::fake::Fake;
use super::keeper::{Current, CurrentReceiver};
use super::{DEFAULT_LIFETIME, Timing, csr, id, keeper, timing};
use crate::authority::rotation::{Roots, STALE, Step};
use crate::pki::Chain;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A certificate that some agent holds until its end.
struct Held {
    signed_by: Vec<u8>,
    trusts: Vec<Vec<u8>>,
    until: SystemTime,
}

fn held(current: &Current, now: SystemTime) -> Held {
    let (web, at) = (id("web"), now);
    let request = csr(&web.to_string());
    let chain: Chain = current.authority.issue(&web, &request, None, at).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain.certificates[0]).unwrap();
    let signs = |root: &&[u8]| {
        let (_, root) = X509Certificate::from_der(root).unwrap();
        leaf.verify_signature(Some(root.public_key())).is_ok()
    };
    let roots: Vec<_> = chain.roots.iter().map(AsRef::as_ref).collect();
    Held {
        signed_by: roots.iter().copied().find(signs).unwrap().to_vec(),
        trusts: roots.iter().map(|root| root.to_vec()).collect(),
        until: leaf.validity().not_after.to_datetime().into(),
    }
}

fn current(receiver: &CurrentReceiver) -> Arc<Current> {
    receiver.borrow().clone().unwrap()
}

fn roots(cluster: &Fake) -> Roots {
    Roots::parse(cluster.state().secret.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn at_no_moment_is_a_leaf_not_trusted() {
    let timing = Timing {
        lifetime: Duration::from_hours(1),
        overlap: Duration::ZERO,
    };
    let cluster = Arc::new(Fake::with_pods());
    let (mut ahead, first) = keeper(&cluster, timing);
    let (mut behind, second) = keeper(&cluster, timing);
    let start = SystemTime::now();
    ahead.tick(start).await.unwrap();
    let before = roots(&cluster).signing;
    let (mut all, mut most_trusted) = (Vec::<Held>::new(), 0);
    for step in 0..75 {
        // The second replica learns of each change as late as it may.
        let now = start + step * 4 * MINUTE;
        if step == 5 {
            wish(cluster.state().secret.as_mut().unwrap());
        }
        behind.tick(now - STALE + MINUTE).await.unwrap();
        ahead.tick(now).await.unwrap();
        assert!(current(&second).is_fresh_at(now));
        all.retain(|held| held.until > now);
        all.push(held(&current(&second), now));
        all.push(held(&current(&first), now));
        for peer in &all {
            let known = |held: &Held| peer.trusts.contains(&held.signed_by);
            assert!(all.iter().all(known), "minute {}", step * 4);
        }
        most_trusted = most_trusted.max(cluster.published().matches("BEGIN").count());
    }
    assert_ne!(roots(&cluster).signing, before);
    assert_eq!(most_trusted, 2);
    assert_eq!(cluster.published(), roots(&cluster).signing.cert);
    let state = cluster.state();
    let secret = state.secret.as_ref().unwrap();
    assert!(secret.annotations.is_empty(), "{:?}", secret.annotations);
    assert_eq!(secret.data.len(), 2);
}

#[tokio::test]
async fn replicas_that_start_at_once_agree() {
    let cluster = Arc::new(Fake::with_pods());
    let (mut one, first) = keeper(&cluster, timing());
    let (mut two, second) = keeper(&cluster, timing());
    let now = SystemTime::now();
    let (one, two) = tokio::join!(one.tick(now), two.tick(now));
    one.unwrap();
    two.unwrap();
    assert_eq!(cluster.state().conflicts, 1);
    let (one, two) = (held(&current(&first), now), held(&current(&second), now));
    assert_eq!(one.signed_by, two.signed_by);
    assert_eq!(one.trusts, two.trusts);
}

#[tokio::test]
async fn replicas_that_rotate_at_once_make_one_root() {
    let cluster = Arc::new(Fake::with_pods());
    let (mut one, first) = keeper(&cluster, timing());
    let (mut two, second) = keeper(&cluster, timing());
    let start = SystemTime::now();
    one.tick(start).await.unwrap();
    let old = held(&current(&first), start).signed_by;
    // Ten years less three months: time for another one.
    let mut now = start + Duration::from_hours(24 * (3650 - 89));
    for expected in [2, 2, 1] {
        let (a, b) = tokio::join!(one.tick(now), two.tick(now));
        a.unwrap();
        b.unwrap();
        let (a, b) = (held(&current(&first), now), held(&current(&second), now));
        assert_eq!((a.trusts.len(), a.trusts), (expected, b.trusts));
        // Instants are kept in whole seconds.
        now += timing().before_signing() + Duration::from_secs(1);
    }
    assert_eq!(cluster.state().conflicts, 3);
    assert_ne!(held(&current(&first), now).signed_by, old);
}

#[test]
fn steps_are_taken_in_their_time() {
    let now = SystemTime::now();
    let day = Duration::from_hours(24);
    let timing = Timing {
        overlap: 3 * day,
        ..timing()
    };
    let check = |entries: &[&str], since: Duration, left: Duration, expect: Step| {
        let text = |name: &&str| ((*name).to_owned(), "x".to_owned());
        let at = k8s_openapi::jiff::Timestamp::try_from(now - since).unwrap();
        let stored = crate::authority::Stored {
            data: entries.iter().map(text).collect(),
            annotations: [("mesh.dev/rotating-since".to_owned(), at.to_string())].into(),
            ..crate::authority::Stored::default()
        };
        let validity = (now - 100 * day, now + left);
        let roots = Roots::parse(&stored).unwrap();
        assert_eq!(roots.step(validity, now, &timing), expect, "{entries:?}");
    };
    let steady = ["root-cert.pem", "root-key.pem"];
    check(&steady, day, 91 * day, Step::Wait);
    check(&steady, day, 49 * day, Step::Introduce);
    let next = [&steady[..], &["root-cert-next.pem", "root-key-next.pem"]].concat();
    check(&next, 71 * HOUR, day, Step::Wait);
    check(&next, 3 * day, day, Step::Promote);
    let previous = [&steady[..], &["root-cert-previous.pem"]].concat();
    check(&previous, DEFAULT_LIFETIME, day, Step::Wait);
    check(&previous, DEFAULT_LIFETIME + 15 * MINUTE, day, Step::Retire);
}

#[test]
fn a_secret_that_makes_no_sense_is_told() {
    let check = |entries: &[&str], words: &str| {
        let text = |name: &&str| ((*name).to_owned(), "x".to_owned());
        let stored = crate::authority::Stored {
            data: entries.iter().map(text).collect(),
            ..crate::authority::Stored::default()
        };
        let error = Roots::parse(&stored).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    check(&["root-cert.pem"], "root-key.pem is missing");
    check(&["root-key.pem"], "root-cert.pem is missing");
    check(&["root-cert-next.pem"], "root-key-next.pem is missing");
    check(&["root-cert-previous.pem"], "mesh.dev/rotating-since");
    check(&["root-cert-previous.pem", "root-cert-next.pem"], "both");
}

#[tokio::test]
async fn a_broken_secret_leaves_the_last_root_in_force_until_it_is_stale() {
    let cluster = Arc::new(Fake::with_pods());
    let (mut keeper, receiver) = keeper(&cluster, timing());
    let now = SystemTime::now();
    keeper.tick(now).await.unwrap();
    let good = cluster.state().secret.clone().unwrap();
    let spoil = |entry: &str, text: &str| {
        let mut state = cluster.state();
        let data = &mut state.secret.as_mut().unwrap().data;
        data.insert(entry.into(), text.into());
    };
    spoil("root-key.pem", "nonsense");
    let error = keeper.tick(now + MINUTE).await.unwrap_err().to_string();
    assert!(
        error.contains("mesh-system/mesh-ca-root/root-key.pem"),
        "{error}"
    );
    assert!(current(&receiver).is_fresh_at(now + MINUTE));
    assert!(!current(&receiver).is_fresh_at(now + STALE));
    cluster.state().secret = Some(good);
    keeper.tick(now + STALE).await.unwrap();
    assert!(current(&receiver).is_fresh_at(now + STALE));
}

#[tokio::test]
async fn a_deleted_secret_is_made_again_as_it_was() {
    let cluster = Arc::new(Fake::with_pods());
    let (mut keeper, _receiver) = keeper(&cluster, timing());
    let mut now = SystemTime::now();
    // Introduced, retiring, steady: each state comes back.
    for entries in [2, 4, 3, 2] {
        keeper.tick(now).await.unwrap();
        let before = cluster.state().secret.take().unwrap();
        assert_eq!(before.data.len(), entries);
        keeper.tick(now).await.unwrap();
        let mut after = cluster.state().secret.clone().unwrap();
        assert_eq!(
            (&after.data, &after.annotations),
            (&before.data, &before.annotations)
        );
        if entries == 2 {
            wish(&mut after);
            cluster.state().secret = Some(after);
        }
        now += timing().before_signing() + Duration::from_secs(1);
    }
}

fn wish(secret: &mut crate::authority::Stored) {
    let wish = ("mesh.dev/rotate".to_owned(), "now".to_owned());
    secret.annotations.extend([wish]);
}
