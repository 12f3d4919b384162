//! How connections end, each way, and what the other side sees of it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::Broken;
use super::*;

/// Reads to the end; the bytes, or what was met instead of a FIN.
async fn rest(socket: &mut TcpStream) -> Result<Vec<u8>, std::io::ErrorKind> {
    let mut bytes = Vec::new();
    within(socket.read_to_end(&mut bytes))
        .await
        .map(|_| bytes)
        .map_err(|error| error.kind())
}

const RESET: std::io::ErrorKind = std::io::ErrorKind::ConnectionReset;

#[tokio::test]
async fn half_close_from_the_client() {
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let mut link = world.link(&pool, &server).await;
    link.client.write_all(b"question").await.unwrap();
    link.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut link.app).await.unwrap(), b"question");
    link.app.write_all(b"answer").await.unwrap();
    drop(link.app);
    assert_eq!(rest(&mut link.client).await.unwrap(), b"answer");
    let client = within(link.transfer).await.unwrap();
    assert_eq!((client.sent, client.received), (8, 6));
    client.outcome.unwrap();
    let theirs = server.transfer().await;
    assert_eq!((theirs.sent, theirs.received), (6, 8));
    theirs.outcome.unwrap();
}

#[tokio::test]
async fn half_close_from_the_server() {
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let mut link = world.link(&pool, &server).await;
    link.app.write_all(b"banner").await.unwrap();
    link.app.shutdown().await.unwrap();
    assert_eq!(rest(&mut link.client).await.unwrap(), b"banner");
    link.client.write_all(b"late").await.unwrap();
    drop(link.client);
    assert_eq!(rest(&mut link.app).await.unwrap(), b"late");
    within(link.transfer).await.unwrap().outcome.unwrap();
    server.transfer().await.outcome.unwrap();
}

#[tokio::test]
async fn reset_from_the_client_reaches_the_server() {
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let mut link = world.link(&pool, &server).await;
    link.client.set_zero_linger().unwrap();
    drop(link.client);
    assert_eq!(rest(&mut link.app).await, Err(RESET));
    let client = within(link.transfer).await.unwrap();
    assert!(matches!(client.outcome, Err(Broken::Tcp(_))));
    let theirs = server.transfer().await;
    assert!(matches!(
        theirs.outcome,
        Err(Broken::Reset(h2::Reason::CONNECT_ERROR) | Broken::Tunnel(_))
    ));
}

#[tokio::test]
async fn reset_from_the_server_reaches_the_client() {
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let mut link = world.link(&pool, &server).await;
    link.app.set_zero_linger().unwrap();
    drop(link.app);
    assert_eq!(rest(&mut link.client).await, Err(RESET));
    let theirs = server.transfer().await;
    assert!(matches!(theirs.outcome, Err(Broken::Tcp(_))));
}

#[tokio::test]
async fn reset_after_a_half_close() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let mut link = world.link(&pool, &server).await;
    // Both copies wait for the tunnel alone now, and only the socket's error state tells.
    link.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut link.app).await.unwrap(), b"");
    link.client.set_zero_linger().unwrap();
    drop(link.client);
    within(link.transfer).await.unwrap().outcome.unwrap_err();
    until(|| matches!(link.app.take_error(), Ok(Some(_)))).await;
}

#[tokio::test]
async fn a_revoked_stream_is_reset_on_both_sides() {
    for by_client in [true, false] {
        let world = World::new();
        let (pool, server) = (world.pool(), world.server().await);
        let mut link = world.link(&pool, &server).await;
        let revoked = if by_client {
            &link.revoked
        } else {
            &server.app.revoked
        };
        revoked.cancel();
        assert_eq!(rest(&mut link.client).await, Err(RESET));
        assert_eq!(rest(&mut link.app).await, Err(RESET));
    }
}

#[tokio::test]
async fn a_lost_tunnel_is_no_clean_end() {
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let mut link = world.link(&pool, &server).await;
    pool.abort();
    assert_eq!(rest(&mut link.client).await, Err(RESET));
    assert_eq!(rest(&mut link.app).await, Err(RESET));
    let client = within(link.transfer).await.unwrap();
    assert!(
        matches!(client.outcome, Err(Broken::Tunnel(_))),
        "{client:?}"
    );
    assert!(matches!(
        server.transfer().await.outcome,
        Err(Broken::Tunnel(_))
    ));
}

#[tokio::test]
async fn a_dropped_stream_is_no_clean_end() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let head = ConnectHead::new(listener.local_addr().unwrap());
    let opened = pool.open(&server.key(), &head).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    assert_eq!(opened.baggage.unwrap().service.as_deref(), Some("app"));
    drop(opened.stream);
    assert_eq!(rest(&mut app).await, Err(RESET));
}
