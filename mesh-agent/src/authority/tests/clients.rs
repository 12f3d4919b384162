//! The agent's client against the authority: good days, rotated files, and an authority that goes away.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::fake::review;
use super::{DEFAULT_LIFETIME, DOMAIN, World, csr, id};
use crate::authority::health;
use crate::causes::causes;
use crate::pki::{Certificates, Error, Signer, Standing, TrustDomains};

const PATIENCE: Duration = Duration::from_secs(30);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect(what);
}

#[tokio::test]
async fn an_agent_gets_certificates_for_its_pods_and_reports_them() {
    let mut world = World::new(DEFAULT_LIFETIME).await;
    let domains = TrustDomains::new(DOMAIN, []);
    let store = Arc::new(Certificates::new(Arc::new(world.client()), domains));
    world
        .tasks
        .spawn(store.clone().run(CancellationToken::new()));
    let certificate = store.certificate(&id("web")).await.unwrap();
    assert_eq!(certificate.identity(), &id("web"));
    let refused = store.certificate(&id("cart")).await.unwrap_err();
    assert!(
        matches!(&*refused, Error::Refused { code: Code::PermissionDenied, reason, .. } if reason.contains("node n1")),
        "{refused}"
    );
    let report = store.report();
    let [cart, web] = &report[..] else {
        panic!("{report:?}")
    };
    assert!(cart.certificate.is_none() && cart.next_request.is_some());
    assert!(cart.last_error.as_ref().unwrap().contains("node n1"));
    let issued = web.certificate.as_ref().unwrap();
    assert!(web.last_error.is_none() && web.next_request.is_some());
    assert_eq!((issued.roots.len(), issued.roots[0].len()), (1, 64));
    let json = serde_json::to_string(&web).unwrap();
    assert!(json.contains(&issued.serial) && json.contains("not_after"));
}

#[tokio::test]
async fn tokens_and_roots_are_read_for_each_certificate() {
    let world = World::new(DEFAULT_LIFETIME).await;
    let client = world.client();
    let (web, request) = (id("web"), csr(&id("web").to_string()));
    client.sign(&web, &request).await.unwrap();
    let file = |name| world.files.path().join(name);
    world.cluster.state().tokens = [("rotated".into(), review())].into();
    let error = client.sign(&web, &request).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Refused {
                code: Code::Unauthenticated,
                ..
            }
        ),
        "{error}"
    );
    fs::write(file("token"), "rotated").unwrap();
    client.sign(&web, &request).await.unwrap();
    fs::write(file("token"), "\n").unwrap();
    let error = client.sign(&web, &request).await.unwrap_err();
    assert!(matches!(error, Error::NoToken { .. }), "{error}");
    fs::remove_file(file("token")).unwrap();
    let error = client.sign(&web, &request).await.unwrap_err();
    assert!(
        matches!(&error, Error::File { path, .. } if *path == file("token")),
        "{error}"
    );
    fs::write(file("token"), "rotated").unwrap();
    let ours = fs::read(file("root")).unwrap();
    let (other, _) = crate::pki::new_root(DOMAIN, SystemTime::now()).unwrap();
    fs::write(file("root"), other).unwrap();
    let error = client.sign(&web, &request).await.unwrap_err();
    let text = causes(&error);
    assert!(
        matches!(error, Error::Unavailable { .. }) && text.contains("invalid peer certificate"),
        "{text}"
    );
    fs::write(file("root"), ours).unwrap();
    client.sign(&web, &request).await.unwrap();
}

#[tokio::test]
async fn an_agent_learns_what_the_authority_thinks_of_it() {
    let mut world = World::new(DEFAULT_LIFETIME).await;
    let client = world.client();
    let token = world.files.path().join("token");
    assert_eq!(client.standing().await.unwrap(), Standing::Known);
    fs::write(&token, "somebody").unwrap();
    let standing = client.standing().await.unwrap();
    assert!(matches!(standing, Standing::Unknown(_)), "{standing:?}");
    fs::remove_file(&token).unwrap();
    let standing = client.standing().await.unwrap();
    assert!(matches!(standing, Standing::NoToken(_)), "{standing:?}");
    fs::write(&token, "agent").unwrap();
    world.cluster.state().away = true;
    let standing = client.standing().await.unwrap();
    assert!(matches!(standing, Standing::Unable(_)), "{standing:?}");
    let (other, _) = crate::pki::new_root(DOMAIN, SystemTime::now()).unwrap();
    fs::write(world.files.path().join("root"), other).unwrap();
    let text = causes(&client.standing().await.unwrap_err());
    assert!(text.contains("invalid peer certificate"), "{text}");
    world.stop().await;
    assert!(matches!(
        client.standing().await,
        Err(Error::Connect { .. })
    ));
}

#[tokio::test]
async fn an_authority_that_is_away_leaves_the_old_certificate() {
    // Backdating makes it half spent when it is new, so that it is renewed after the least time.
    let mut world = World::new(Duration::from_secs(100)).await;
    let domains = TrustDomains::new(DOMAIN, []);
    let store = Arc::new(Certificates::new(Arc::new(world.client()), domains));
    let mut agent = tokio::task::JoinSet::new();
    agent.spawn(store.clone().run(CancellationToken::new()));
    let first = store.certificate(&id("web")).await.unwrap();
    world.stop().await;
    let error = || store.report()[0].last_error.clone();
    until("the report tells", || error().is_some()).await;
    assert!(
        error().unwrap().contains("cannot answer now"),
        "{:?}",
        error()
    );
    assert!(Arc::ptr_eq(&first, &store.cached(&id("web")).unwrap()));
    world.start().await;
    until("a new certificate", || {
        !Arc::ptr_eq(&first, &store.cached(&id("web")).unwrap())
    })
    .await;
    assert_eq!(error(), None);
}

#[tokio::test]
async fn the_serving_certificate_follows_the_root() {
    let (now, day) = (SystemTime::now(), Duration::from_hours(24));
    let mut world = World::begun_at(now - day - Duration::from_hours(1), DEFAULT_LIFETIME).await;
    let (web, request) = (id("web"), csr(&id("web").to_string()));
    let wish = ("mesh.dev/rotate".to_owned(), "now".to_owned());
    if let Some(secret) = &mut world.cluster.state().secret {
        secret.annotations.extend([wish]);
    }
    let old = world.cluster.published();
    world
        .keeper
        .tick(now - day - Duration::from_hours(1))
        .await
        .unwrap();
    let both = world.cluster.published();
    world.keeper.tick(now).await.unwrap();
    // An agent whose volume showed both is served; one that has only the old root by now is told.
    fs::write(world.files.path().join("root"), both).unwrap();
    let chain = world.client().sign(&web, &request).await.unwrap();
    assert_eq!(chain.roots.len(), 2);
    fs::write(world.files.path().join("root"), old).unwrap();
    let error = world.client().sign(&web, &request).await.unwrap_err();
    let text = causes(&error);
    assert!(text.contains("UnknownIssuer"), "{text}");
}

#[tokio::test]
async fn readiness_is_plain_http() {
    let mut world = World::new(DEFAULT_LIFETIME).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = world.service();
    world.tasks.spawn(async move {
        health(service, listener, CancellationToken::new())
            .await
            .unwrap();
    });
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap().to_owned()
    };
    assert_eq!(ask("/healthz/ready").await, "HTTP/1.1 200 OK");
    assert_eq!(ask("/").await, "HTTP/1.1 404 Not Found");
    // Whether the clock was put back or nothing read for long, it is the same.
    let another_day = SystemTime::now() + Duration::from_mins(6);
    world.keeper.tick(another_day).await.unwrap();
    assert_eq!(
        ask("/healthz/ready").await,
        "HTTP/1.1 503 Service Unavailable"
    );
}
