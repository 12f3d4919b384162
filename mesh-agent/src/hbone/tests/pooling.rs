//! Tunnels are shared, limited, replaced and released.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// An application that keeps what it accepts.
async fn sink(world: &World) -> ConnectHead {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let head = ConnectHead::new(listener.local_addr().unwrap());
    world.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            kept.push(socket);
        }
    });
    head
}

/// Opens `count` streams at once, and holds them.
async fn open_many(
    world: &World,
    pool: &Arc<Pool>,
    server: &Server,
    count: usize,
) -> Vec<super::super::Opened> {
    let head = sink(world).await;
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let (pool, key, head) = (pool.clone(), server.key(), head.clone());
        opening.spawn(async move { pool.open(&key, &head).await });
    }
    let opened = within(opening.join_all()).await;
    opened.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_hundred_at_once_share_one_tunnel() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let opened = open_many(&world, &pool, &server, 100).await;
    assert_eq!(server.tunnels(), 1);
    assert_eq!(pool.census(), (1, 100));
    drop(opened);
    assert_eq!(pool.census(), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_hundred_and_fifty_take_two() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let _opened = open_many(&world, &pool, &server, 150).await;
    assert_eq!(server.tunnels(), 2);
    assert_eq!(pool.census(), (2, 150));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_peers_limit_is_kept() {
    let world = World::new();
    let limits = Limits {
        max_concurrent_streams: 10,
        ..Limits::default()
    };
    let server = world
        .server_with(world.certificates(DOMAIN, &[]), limits)
        .await;
    let pool = world.pool();
    let _opened = open_many(&world, &pool, &server, 25).await;
    assert_eq!(server.tunnels(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn keys_do_not_share() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let head = sink(&world).await;
    let elsewhere = Key::new(
        id("client"),
        [127, 0, 0, 2].into(),
        server.address,
        [id("server")],
    );
    let other = Key::new(
        id("other"),
        [127, 0, 0, 1].into(),
        server.address,
        [id("server")],
    );
    let mut opened = Vec::new();
    for key in [server.key(), elsewhere, other] {
        opened.push(pool.open(&key, &head).await.unwrap());
    }
    assert_eq!(server.tunnels(), 3);
    let peers: Vec<_> = {
        let requests = server.app.requests.lock().unwrap();
        requests
            .iter()
            .map(|request| request.peer.clone())
            .collect()
    };
    assert_eq!(peers, [id("client"), id("client"), id("other")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn after_goaway_new_streams_take_a_new_tunnel_and_old_ones_run_on() {
    let world = World::new();
    let pool = world.pool();
    let mut server = world.server().await;
    let mut link = world.link(&pool, &server).await;
    server.drain.cancel();
    // The second GOAWAY follows a round trip; until both are here, the tunnel may still take streams.
    let head = sink(&world).await;
    let new_tunnel = async {
        loop {
            let opened = pool.open(&server.key(), &head).await;
            if server.tunnels() > 1 {
                return opened;
            }
        }
    };
    // New tunnels are drained as well, so whether the stream is accepted is a race; that it is dialled is not.
    let _ = within(new_tunnel).await;
    link.client.write_all(b"still here").await.unwrap();
    let mut bytes = [0; 10];
    within(link.app.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"still here");
    drop(link.client);
    drop(link.app);
    server.outcome().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_lost_tunnel_is_replaced() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    drop(world.link(&pool, &server).await);
    pool.retain(|_| false);
    assert_eq!(pool.census().0, 0);
    world.link(&pool, &server).await;
    assert_eq!(server.tunnels(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn idle_tunnels_are_released_and_busy_ones_are_not() {
    let world = World::new();
    let limits = Limits {
        idle: Duration::from_millis(200),
        ..Limits::default()
    };
    let pool = world.pool_with(world.certificates(DOMAIN, &[]), limits);
    let mut server = world.server().await;
    let link = world.link(&pool, &server).await;
    tokio::time::sleep(3 * limits.idle).await;
    assert_eq!(pool.census(), (1, 1));
    drop(link);
    server.outcome().await.unwrap();
    until(|| pool.census() == (0, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn draining_ends_with_the_last_stream() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let link = world.link(&pool, &server).await;
    let head = sink(&world).await;
    // A second tunnel, without streams, by another key.
    drop(
        pool.open(&server.key_expecting("server"), &head)
            .await
            .unwrap(),
    );
    world.shutdown.cancel();
    assert!(matches!(
        pool.open(&server.key(), &head).await,
        Err(OpenError::Draining)
    ));
    let still_open = tokio::time::timeout(Duration::from_millis(100), pool.closed()).await;
    assert!(still_open.is_err());
    drop(link);
    within(pool.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_silent_peer_is_dropped() {
    let world = World::new();
    let limits = Limits {
        ping_interval: Duration::from_millis(50),
        ping_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let pool = world.pool_with(world.certificates(DOMAIN, &[]), limits);
    // A server that answers the handshake and one request, and then is never polled again.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let certificates = world.certificates(DOMAIN, &[]);
    let certificate = certificates.certificate(&id("server")).await.unwrap();
    world.spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(certificate.server_config());
        let tls = acceptor.accept(tcp).await.unwrap();
        let mut connection = h2::server::handshake(tls).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(20), connection.accept()).await;
        std::future::pending::<()>().await;
    });
    let key = Key::new(id("client"), [127, 0, 0, 1].into(), address, [id("server")]);
    let head = ConnectHead::new(address);
    let opened = within(pool.open(&key, &head)).await.unwrap();
    let (_client, agent) = pair().await;
    let (progress, revoked) = (Progress::default(), CancellationToken::new());
    let transfer = copy(agent, opened.stream, &progress, &revoked);
    within(transfer).await.outcome.unwrap_err();
    until(|| pool.census() == (0, 0)).await;
}
