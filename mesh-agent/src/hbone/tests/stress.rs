//! Much data, many frames, and readers that do not keep up.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::super::{Broken, Memory, TooMuch, Total};
use super::*;

/// Bytes of which no two stretches look alike.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

async fn write(mut socket: OwnedWriteHalf, bytes: Vec<u8>) {
    socket.write_all(&bytes).await.unwrap();
    socket.shutdown().await.unwrap();
}

async fn read(mut socket: OwnedReadHalf) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn eight_megabytes_each_way_at_once() {
    const LENGTH: usize = 8 << 20;
    let world = World::new();
    let (pool, mut server) = (world.pool(), world.server().await);
    let link = world.link(&pool, &server).await;
    let (to, from) = (pattern(LENGTH, 1), pattern(LENGTH, 2));
    let (client_read, client_write) = link.client.into_split();
    let (app_read, app_write) = link.app.into_split();
    let ((), (), got_from, got_to) = within(async {
        tokio::join!(
            write(client_write, to.clone()),
            write(app_write, from.clone()),
            read(client_read),
            read(app_read)
        )
    })
    .await;
    assert!(got_to == to && got_from == from, "corrupted");
    let client = within(link.transfer).await.unwrap();
    assert_eq!(
        (client.sent, client.received),
        (LENGTH as u64, LENGTH as u64)
    );
    let theirs = server.transfer().await;
    assert_eq!(
        (theirs.sent, theirs.received),
        (LENGTH as u64, LENGTH as u64)
    );
    theirs.outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_slow_reader_stops_its_sender_and_nobody_else() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let mut slow = world.link(&pool, &server).await;
    let (mut slow_read, slow_write) = slow.app.into_split();
    let writer = world.spawn({
        let (_, write_half) = slow.client.into_split();
        write(write_half, pattern(64 << 20, 3))
    });
    // Wait until no byte moves any more.
    let mut before = u64::MAX;
    while before != slow.progress.sent() {
        before = slow.progress.sent();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // The stream's window, what waits for it, and the server's socket buffers (below 7 MiB by default).
    assert!(
        (4 << 20..12 << 20).contains(&before),
        "{before} bytes in flight"
    );
    let mut quick = world.link(&pool, &server).await;
    assert_eq!(server.tunnels(), 1);
    quick.client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    within(quick.app.read_exact(&mut bytes)).await.unwrap();
    // The other direction of the slow connection is not held up either.
    drop(slow_write);
    let mut rest = vec![0; 1 << 20];
    let mut got = 0;
    within(async {
        loop {
            match slow_read.read(&mut rest).await.unwrap() {
                0 => break,
                length => got += length,
            }
        }
    })
    .await;
    assert_eq!(got, 64 << 20);
    within(writer).await.unwrap();
    within(&mut slow.transfer).await.unwrap().outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_that_have_stopped_hold_up_nobody() {
    const SLOW: usize = 12;
    const LENGTH: usize = 8 << 20;
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let mut quick = world.link(&pool, &server).await;
    let (mut writers, mut readers, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..SLOW {
        let slow = world.link(&pool, &server).await;
        all.push(slow.progress);
        let (client, app) = (slow.client.into_split(), slow.app.into_split());
        let (from, to) = if number % 2 == 0 {
            (client, app)
        } else {
            (app, client)
        };
        writers.push(world.spawn(write(from.1, pattern(LENGTH, 7))));
        readers.push((from.0, to));
    }
    let in_flight = || -> u64 { all.iter().map(|it| it.sent() + it.received()).sum() };
    let mut before = u64::MAX;
    while before != in_flight() {
        before = in_flight();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for _ in 0..100 {
        quick.client.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        within(quick.app.read_exact(&mut bytes)).await.unwrap();
        quick.app.write_all(b"pong").await.unwrap();
        within(quick.client.read_exact(&mut bytes)).await.unwrap();
    }
    let expected = pattern(LENGTH, 7);
    for (_, (slow_read, _write)) in readers {
        assert!(within(read(slow_read)).await == expected, "corrupted");
    }
    for writer in writers {
        within(writer).await.unwrap();
    }
    assert_eq!(server.tunnels(), 1);
}

#[tokio::test]
async fn a_reader_too_many_of_one_source_is_reset_and_what_it_held_is_given_back() {
    let world = World::new();
    let (pool, server) = (world.pool(), world.server().await);
    let memory = Memory::of(&Total::new(1 << 20, 1 << 30));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let head = ConnectHead::new(listener.local_addr().unwrap());
    let opened = pool.open(&server.key(), &head).await.unwrap();
    let (app, _) = listener.accept().await.unwrap();
    let (_client, agent) = pair().await;
    let (progress, revoked) = (Progress::counted(memory.clone()), CancellationToken::new());
    let (_, write_half) = app.into_split();
    let writes = world.spawn(async move {
        let mut write_half = write_half;
        // Ends with the connection.
        while write_half.write_all(&[0; 1 << 12]).await.is_ok() {}
    });
    let transfer = within(copy(agent, opened.stream, &progress, &revoked)).await;
    let limit = 1 << 20;
    assert!(
        matches!(transfer.outcome, Err(Broken::Memory(it)) if it == TooMuch { limit }),
        "{transfer:?}"
    );
    assert_eq!(memory.take(limit), Ok(()));
    within(writes).await.unwrap();
    world.link(&pool, &server).await;
    assert_eq!(server.tunnels(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_flood_of_small_frames_to_a_slow_reader() {
    const FRAMES: usize = 150_000;
    const LENGTH: usize = 20;
    let world = World::new();
    let server = world.server().await;
    let pool = world.pool();
    // An application with little patience for input: small buffers, and nobody reads at first.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let head = ConnectHead::new(listener.local_addr().unwrap());
    let opened = pool.open(&server.key(), &head).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    let mut stream = opened.stream;
    let sent = world.spawn(async move {
        let mut text = Vec::new();
        for number in 0..FRAMES {
            let frame = format!("{number:0LENGTH$}").into_bytes();
            text.extend_from_slice(&frame);
            stream.send_frame(Bytes::from(frame)).await;
        }
        stream.finish();
        (stream, text)
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut got = Vec::new();
    within(app.read_to_end(&mut got)).await.unwrap();
    let (_stream, text) = within(sent).await.unwrap();
    assert!(
        got == text,
        "corrupted: {} of {} bytes",
        got.len(),
        text.len()
    );
    // The tunnel has survived.
    world.link(&pool, &server).await;
    assert_eq!(server.tunnels(), 1);
}
