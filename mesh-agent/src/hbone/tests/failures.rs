//! Peers that are not who they should be, or do not do what they should.

use std::error::Error as _;

use http::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::super::Stage;
use super::*;
use crate::causes::causes;

async fn refused(pool: &Pool, server: &Server, key: &Key) -> OpenError {
    let head = ConnectHead::new(server.address);
    match within(pool.open(key, &head)).await {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn an_unexpected_server_is_refused_by_the_client() {
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let error = refused(&pool, &server, &server.key_expecting("another")).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    assert!(causes(&error).contains("sa/another"), "{}", causes(&error));
    assert!(causes(&error).contains("sa/server"), "{}", causes(&error));
    assert!(matches!(server.outcome().await, Err(ServeError::Tls(_))));
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused_by_the_server() {
    let world = World::new();
    let mut server = world.server().await;
    let pool = world.pool_with(world.certificates("other.domain", &[]), Limits::default());
    let foreign = Identity::new("other.domain", "default", "client");
    let key = Key::new(
        foreign,
        [127, 0, 0, 1].into(),
        server.address,
        [id("server")],
    );
    let error = refused(&pool, &server, &key).await;
    assert!(
        matches!(error, OpenError::Tls { .. } | OpenError::Closed { .. }),
        "{error:?}"
    );
    let ServeError::Tls(error) = server.outcome().await.unwrap_err() else {
        panic!("not TLS");
    };
    assert!(
        causes(&error).contains("other.domain"),
        "{}",
        causes(&error)
    );
}

#[tokio::test]
async fn an_alias_of_the_trust_domain_is_accepted() {
    let world = World::new();
    let certificates = world.certificates(DOMAIN, &["other.domain"]);
    let server = world.server_with(certificates, Limits::default()).await;
    let pool = world.pool_with(world.certificates("other.domain", &[]), Limits::default());
    let foreign = Identity::new("other.domain", "default", "client");
    let key = Key::new(
        foreign.clone(),
        [127, 0, 0, 1].into(),
        server.address,
        [id("server")],
    );
    let head = ConnectHead::new("unknown:80".parse::<Authority>().unwrap());
    let outcome = within(pool.open(&key, &head)).await;
    assert!(matches!(outcome.err(), Some(OpenError::Refused { .. })));
    assert_eq!(server.app.requests.lock().unwrap()[0].peer, foreign);
}

#[tokio::test]
async fn another_root_is_refused_by_both() {
    let (world, elsewhere) = (World::new(), World::new());
    let mut server = world.server().await;
    let pool = elsewhere.pool();
    let error = refused(&pool, &server, &server.key()).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    assert!(
        causes(&error).contains("UnknownIssuer"),
        "{}",
        causes(&error)
    );
    assert!(server.outcome().await.is_err());
}

/// A TLS client that presents no certificate and believes everything.
fn stranger(certificate: &crate::pki::Certificate) -> rustls::ClientConfig {
    let trusting = certificate.client_config([id("server")].into());
    let provider = trusting.crypto_provider().clone();
    let mut roots = rustls::RootCertStore::empty();
    for root in &certificate.chain().roots {
        roots.add(root.clone()).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut theirs = (*trusting).clone();
    theirs.client_auth_cert_resolver = config.client_auth_cert_resolver.clone();
    config = theirs;
    config
}

#[tokio::test]
async fn no_client_certificate_no_tunnel() {
    let world = World::new();
    let mut server = world.server().await;
    let certificates = world.certificates(DOMAIN, &[]);
    let certificate = certificates.certificate(&id("client")).await.unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::IpAddress(server.address.ip().into());
    let _tls = TlsConnector::from(Arc::new(stranger(&certificate)))
        .connect(name, tcp)
        .await;
    assert!(matches!(server.outcome().await, Err(ServeError::Tls(_))));
}

#[tokio::test]
async fn a_peer_that_never_speaks_meets_the_deadline() {
    let world = World::new();
    let limits = Limits {
        handshake: Duration::from_millis(100),
        ..Limits::default()
    };
    let certificates = world.certificates(DOMAIN, &[]);
    let mut server = world.server_with(certificates.clone(), limits).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    assert!(matches!(
        server.outcome().await,
        Err(ServeError::Timeout(Stage::Tls))
    ));
    // And one that speaks TLS but no HTTP/2.
    let certificate = certificates.certificate(&id("client")).await.unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::IpAddress(server.address.ip().into());
    let _tls = TlsConnector::from(certificate.client_config([id("server")].into()))
        .connect(name, tcp)
        .await
        .unwrap();
    assert!(matches!(
        server.outcome().await,
        Err(ServeError::Timeout(Stage::Http2))
    ));
}

#[tokio::test]
async fn a_server_that_never_speaks_meets_the_deadline() {
    let world = World::new();
    let limits = Limits {
        handshake: Duration::from_millis(200),
        ..Limits::default()
    };
    let pool = world.pool_with(world.certificates(DOMAIN, &[]), limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let key = Key::new(id("client"), [127, 0, 0, 1].into(), address, [id("server")]);
    let outcome = within(pool.open(&key, &ConnectHead::new(address))).await;
    assert!(matches!(
        outcome.err(),
        Some(OpenError::Timeout {
            stage: Stage::Tls,
            ..
        })
    ));
    drop(listener);
    let outcome = within(pool.open(&key, &ConnectHead::new(address))).await;
    assert!(matches!(outcome.err(), Some(OpenError::Dial { .. })));
}

#[tokio::test]
async fn refusals_carry_their_status_and_leave_the_tunnel_alone() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap();
    drop(closed);
    for (authority, expect) in [
        ("mismatch:80".to_owned(), StatusCode::BAD_REQUEST),
        ("denied:80".to_owned(), StatusCode::UNAUTHORIZED),
        ("unknown:80".to_owned(), StatusCode::SERVICE_UNAVAILABLE),
        (port.to_string(), StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let head = ConnectHead::new(authority.parse::<Authority>().unwrap());
        match within(pool.open(&server.key(), &head)).await {
            Err(OpenError::Refused { status }) => assert_eq!(status, expect, "{authority}"),
            Err(error) => panic!("{authority}: {error:?}"),
            Ok(_) => panic!("{authority}: opened"),
        }
    }
    world.link(&pool, &server).await;
    assert_eq!(server.tunnels(), 1);
}

/// An HTTP/2 client of our own making, for requests that the pool would never send.
async fn raw(world: &World, server: &Server) -> h2::client::SendRequest<bytes::Bytes> {
    let certificates = world.certificates(DOMAIN, &[]);
    let certificate = certificates.certificate(&id("client")).await.unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::IpAddress(server.address.ip().into());
    let tls = TlsConnector::from(certificate.client_config([id("server")].into()))
        .connect(name, tcp)
        .await
        .unwrap();
    let (handle, connection) = h2::client::handshake(tls).await.unwrap();
    world.spawn(connection);
    handle
}

#[tokio::test]
async fn what_is_no_connect_to_an_authority_is_a_bad_request() {
    let world = World::new();
    let server = world.server().await;
    let mut handle = raw(&world, &server).await;
    for (method, uri) in [
        (Method::GET, "http://127.0.0.1:80/"),
        (Method::CONNECT, "127.0.0.1"),
        (Method::CONNECT, "127.0.0.1:0"),
    ] {
        let request = Request::builder().method(method.clone()).uri(uri);
        let (response, _send) = handle
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        let response = within(response).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{method} {uri}");
    }
    assert!(server.app.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn no_certificate_no_tunnel() {
    let world = World::new();
    let server = world.server().await;
    let pool = world.pool();
    let foreign = Identity::new("other.domain", "default", "client");
    let key = Key::new(
        foreign,
        [127, 0, 0, 1].into(),
        server.address,
        [id("server")],
    );
    let error = refused(&pool, &server, &key).await;
    assert!(matches!(error, OpenError::Certificate(_)), "{error:?}");
    assert!(error.source().is_some());
}
