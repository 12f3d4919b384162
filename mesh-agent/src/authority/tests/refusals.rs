//! Each refusal by itself, over the wire, with the code and the words that the agent gets.

use rcgen::KeyPair;
use tonic::Code;

use super::fake::{State, pod, review};
use super::{DEFAULT_LIFETIME, World, csr, csr_of, id};
use crate::authority::{PodRef, Review};
use crate::pki::wire::CertificateRequest;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// Asks for `identity` with the token `agent` after `spoil` has changed the world.
async fn check(spoil: impl FnOnce(&mut State), identity: &str, code: Code, words: &str) {
    let world = World::new(DEFAULT_LIFETIME).await;
    spoil(&mut world.cluster.state());
    let message = CertificateRequest::impersonating(identity, &csr(identity), 0);
    let status = world.call(Some("agent"), message).await.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{status}");
}

/// Asks for shop/web with a token that is reviewed like this.
async fn check_token(review: Review, code: Code, words: &str) {
    let spoil = |state: &mut State| drop(state.tokens.insert("agent".into(), review));
    check(spoil, WEB, code, words).await;
}

/// Asks for shop/web with this certificate request.
async fn check_request(request: &str, words: &str) {
    let world = World::new(DEFAULT_LIFETIME).await;
    let message = CertificateRequest::impersonating(WEB, request, 0);
    let status = world.call(Some("agent"), message).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(words), "{status}");
}

#[tokio::test]
async fn nothing_is_wrong_with_what_these_tests_spoil() {
    let world = World::new(DEFAULT_LIFETIME).await;
    let message = CertificateRequest::impersonating(WEB, &csr(WEB), 0);
    let answer = world.call(Some("agent"), message).await.unwrap();
    assert_eq!(answer.cert_chain.len(), 2);
}

#[tokio::test]
async fn no_token() {
    let world = World::new(DEFAULT_LIFETIME).await;
    for bearer in [None, Some("")] {
        let message = CertificateRequest::impersonating(WEB, &csr(WEB), 0);
        let status = world.call(bearer, message).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), "the request has no bearer token");
    }
}

#[tokio::test]
async fn an_invalid_token() {
    let expired = Review {
        error: "token has expired".into(),
        ..Review::default()
    };
    check_token(
        expired,
        Code::Unauthenticated,
        "not valid: token has expired",
    )
    .await;
    check_token(Review::default(), Code::Unauthenticated, "not valid").await;
}

#[tokio::test]
async fn a_token_for_another_audience() {
    let audiences = vec!["https://kubernetes.default.svc".into()];
    let other = Review {
        audiences,
        ..review()
    };
    check_token(other, Code::Unauthenticated, "audience istio-ca").await;
    let unaware = Review {
        audiences: vec![],
        ..review()
    };
    check_token(unaware, Code::Unauthenticated, "audience istio-ca").await;
}

#[tokio::test]
async fn a_caller_that_may_not_ask() {
    let user = |user: &str| Review {
        user: user.into(),
        ..review()
    };
    let denied = Code::PermissionDenied;
    check_token(
        user("system:node:n1"),
        denied,
        "system:node:n1 is no service account",
    )
    .await;
    // A pod for itself: what it may ask, its node's agent asks.
    check_token(
        user("system:serviceaccount:shop:web"),
        denied,
        "only agents",
    )
    .await;
    check_token(
        user("system:serviceaccount:shop:mesh-agent"),
        denied,
        "only agents",
    )
    .await;
}

#[tokio::test]
async fn a_token_without_a_pod() {
    let unbound = Review {
        pod: None,
        ..review()
    };
    check_token(unbound, Code::PermissionDenied, "not bound to a pod").await;
}

#[tokio::test]
async fn a_pod_that_is_not_the_tokens() {
    let (denied, words) = (Code::PermissionDenied, "gone, finished, or another one");
    check(|state| drop(state.pods.remove("agent")), WEB, denied, words).await;
    let finish = |state: &mut State| state.pods.get_mut("agent").unwrap().finished = true;
    check(finish, WEB, denied, words).await;
    let become_another =
        |state: &mut State| state.pods.get_mut("agent").unwrap().account = "web".into();
    check(become_another, WEB, denied, words).await;
    let uid = Review {
        pod: Some(PodRef {
            name: "agent".into(),
            uid: "uid-before".into(),
        }),
        ..review()
    };
    check_token(uid, denied, words).await;
}

#[tokio::test]
async fn a_pod_on_no_node_or_another_than_the_token_says() {
    let denied = Code::PermissionDenied;
    let unschedule = |state: &mut State| state.pods.get_mut("agent").unwrap().node = None;
    check(unschedule, WEB, denied, "is on no node").await;
    let node = Review {
        node: Some("n2".into()),
        ..review()
    };
    check_token(node, denied, "token is of node n2").await;
}

#[tokio::test]
async fn no_identity_or_none_of_ours() {
    let world = World::new(DEFAULT_LIFETIME).await;
    let message = CertificateRequest {
        csr: csr(WEB),
        ..CertificateRequest::default()
    };
    let status = world.call(Some("agent"), message).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("names no identity"), "{status}");
    let nothing = |_: &mut State| {};
    for malformed in [
        "spiffe://cluster.local/web",
        "spiffe://cluster.local/ns/../sa/web",
        "spiffe://cluster.local/ns/shop?x=/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web,metadata.name=web",
    ] {
        check(nothing, malformed, Code::InvalidArgument, "is no identity").await;
    }
    let foreign = "spiffe://other/ns/shop/sa/web";
    check(
        nothing,
        foreign,
        Code::PermissionDenied,
        "not of the trust domain",
    )
    .await;
}

#[tokio::test]
async fn an_identity_that_is_not_on_the_callers_node() {
    let (denied, words) = (Code::PermissionDenied, "no running pod on node n1");
    let cart = id("cart").to_string();
    check(|_| {}, &cart, denied, words).await;
    check(|_| {}, &id("nobody").to_string(), denied, words).await;
    let other = "spiffe://cluster.local/ns/other/sa/web";
    check(|_| {}, other, denied, words).await;
    let finish = |state: &mut State| state.pods.get_mut("web").unwrap().finished = true;
    check(finish, WEB, denied, words).await;
    let unschedule =
        |state: &mut State| drop(state.pods.insert("web".into(), pod("shop", "web", "")));
    check(unschedule, WEB, denied, words).await;
    // The agent of n2 gets what n1's does not.
    let move_agent =
        |state: &mut State| state.pods.get_mut("agent").unwrap().node = Some("n2".into());
    check(move_agent, WEB, denied, "no running pod on node n2").await;
}

#[tokio::test]
async fn a_request_that_is_malformed_or_tampered_with() {
    check_request("nonsense", "not acceptable").await;
    let good = pem::parse(csr(WEB)).unwrap();
    let mut bytes = good.contents().to_vec();
    let text = b"/sa/web";
    let at = bytes.windows(7).position(|it| it == text).unwrap();
    bytes[at + 6] = b'x';
    let tampered = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
    check_request(&tampered, "not acceptable").await;
}

#[tokio::test]
async fn a_request_with_a_weak_or_odd_key() {
    check_request(include_str!("../testdata/rsa-1024.csr"), "is RSA-1024").await;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    check_request(&csr_of(WEB, &key), "use P-256").await;
}

#[tokio::test]
async fn a_request_that_names_somebody_else() {
    let cart = csr(&id("cart").to_string());
    check_request(&cart, "names [").await;
}

#[tokio::test]
async fn nothing_is_signed_while_kubernetes_is_away_or_the_root_unread() {
    let away = |state: &mut State| state.away = true;
    let words = "cannot review a token: check that the API server answers";
    check(away, WEB, Code::Unavailable, words).await;
    let world = World::new(DEFAULT_LIFETIME).await;
    let current = world.current.borrow().clone().unwrap();
    let now = std::time::SystemTime::now();
    assert!(current.is_fresh_at(now));
    assert!(!current.is_fresh_at(now + super::super::rotation::STALE));
    assert!(world.service().is_ready());
}
