//! Peers with a good certificate, or none yet, that mean harm: what ends each, and that nobody else notices.

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::Stage;
use super::*;
use crate::causes::causes;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types and flags of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Limits whose times run out within a test.
fn quick() -> Limits {
    Limits {
        handshake: Duration::from_millis(400),
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(400),
        ..Limits::default()
    }
}

/// A world, a server with limits, and a pool of good clients.
async fn stage(limits: Limits) -> (World, Server, Arc<Pool>) {
    let world = World::new();
    let server = world
        .server_with(world.certificates(DOMAIN, &[]), limits)
        .await;
    let pool = world.pool();
    (world, server, pool)
}

async fn connector(world: &World) -> TlsConnector {
    let certificates = world.certificates(DOMAIN, &[]);
    let certificate = certificates.certificate(&id("client")).await.unwrap();
    TlsConnector::from(certificate.client_config([id("server")].into()))
}

fn name() -> rustls::pki_types::ServerName<'static> {
    rustls::pki_types::ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into())
}

/// The bytes of a frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block (RFC 7541) of literals that no table keeps.
fn block(authority: &str) -> Vec<u8> {
    let text = |it: &str| [&[u8::try_from(it.len()).unwrap()], it.as_bytes()].concat();
    [&[0x02], &*text("CONNECT"), &[0x01], &*text(authority)].concat()
}

fn request(stream: u32, authority: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(authority))
}

/// A TLS client that writes whatever it likes behind the handshake.
struct Raw {
    read: ReadHalf<TlsStream<TcpStream>>,
    write: WriteHalf<TlsStream<TcpStream>>,
}

impl Raw {
    async fn connect(world: &World, server: &Server) -> Self {
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let tls = connector(world).await.connect(name(), tcp).await.unwrap();
        let (read, write) = split(tls);
        Self { read, write }
    }

    /// Connects, and is a client as every other so far.
    async fn greet(world: &World, server: &Server) -> Self {
        let mut raw = Self::connect(world, server).await;
        raw.say(PREFACE).await;
        raw.say(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    /// Writes as long as the server lets it; a server that has had enough is none of its errors.
    async fn say(&mut self, bytes: &[u8]) {
        let _ = within(self.write.write_all(bytes)).await;
        let _ = within(self.write.flush()).await;
    }

    /// The payload of the first frame of a type on a stream, of those that were not asked for yet.
    async fn first(&mut self, kind: u8, stream: u32) -> Vec<u8> {
        within(async {
            loop {
                let mut head = [0; 9];
                self.read.read_exact(&mut head).await.unwrap();
                let [a, b, c, is, _, of @ ..] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                self.read.read_exact(&mut payload).await.unwrap();
                if (is, u32::from_be_bytes(of)) == (kind, stream) {
                    return payload;
                }
            }
        })
        .await
    }
}

/// Writes the same until the server has had enough.
async fn repeat(write: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let batch = bytes.repeat(64);
    while write.write_all(&batch).await.is_ok() && write.flush().await.is_ok() {}
}

/// Type, stream and payload of every frame until the server ends the connection.
async fn hear(mut read: ReadHalf<TlsStream<TcpStream>>) -> Vec<(u8, u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    // However it ends.
    let _ = read.read_to_end(&mut bytes).await;
    parse(&bytes)
}

fn parse(mut rest: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<9>() {
        let [a, b, c, kind, _, stream @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let Some((payload, tail)) = tail.split_at_checked(length) else {
            break;
        };
        frames.push((kind, u32::from_be_bytes(stream), payload.to_vec()));
        rest = tail;
    }
    frames
}

/// The reason that a GOAWAY gives (RFC 9113, section 7).
fn reason(frames: &[(u8, u32, Vec<u8>)]) -> Option<u32> {
    let (_, _, payload) = frames.iter().find(|(kind, ..)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;

/// A good peer is served on a tunnel of its own, and on one that stood before.
async fn others_are_served(world: &World, pool: &Pool, server: &Server) {
    let mut link = world.link(pool, server).await;
    link.client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    within(link.app.read_exact(&mut bytes)).await.unwrap();
}

/// An end that names what was wrong, for the log.
async fn is_told(server: &mut Server, what: &str) {
    let told = causes(&server.outcome().await.unwrap_err());
    assert!(told.contains(what), "{told}");
}

#[tokio::test]
async fn a_handshake_that_drips_meets_the_deadline() {
    let (world, mut server, pool) = stage(quick()).await;
    let (near, far) = tokio::io::duplex(1 << 16);
    let connector = connector(&world).await;
    let hello = world.spawn(async move {
        let _ = connector.connect(name(), near).await;
    });
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    let drips = async {
        let (mut read, _write) = split(far);
        loop {
            let byte = read.read_u8().await.unwrap();
            if tcp.write_u8(byte).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        outcome = server.outcome() => {
            assert!(matches!(outcome, Err(ServeError::Timeout(Stage::Tls))), "{outcome:?}");
        }
        () = drips => panic!("the server ended it first"),
    }
    others_are_served(&world, &pool, &server).await;
    drop(hello);
}

#[tokio::test]
async fn a_preface_that_drips_meets_the_deadline() {
    let (world, mut server, pool) = stage(quick()).await;
    let mut raw = Raw::connect(&world, &server).await;
    for byte in PREFACE {
        raw.say(&[*byte]).await;
        sleep(Duration::from_millis(30)).await;
    }
    let outcome = server.outcome().await;
    assert!(
        matches!(outcome, Err(ServeError::Timeout(Stage::Http2))),
        "{outcome:?}"
    );
    others_are_served(&world, &pool, &server).await;
}

/// In the midst of a header block no PING may be answered, and in the midst of a frame none can.
#[tokio::test]
async fn headers_that_drip_leave_a_ping_unanswered() {
    let (world, mut server, pool) = stage(quick()).await;
    let whole = request(1, "127.0.0.1:80");
    for length in [5, 9, whole.len() - 1] {
        let mut raw = Raw::greet(&world, &server).await;
        raw.say(&whole[..length]).await;
        let outcome = server.outcome().await;
        assert!(
            matches!(outcome, Err(ServeError::Unresponsive)),
            "{length}: {outcome:?}"
        );
    }
    let mut raw = Raw::greet(&world, &server).await;
    raw.say(&frame(HEADERS, 0, 1, &block("127.0.0.1:80"))).await;
    let outcome = server.outcome().await;
    assert!(
        matches!(outcome, Err(ServeError::Unresponsive)),
        "{outcome:?}"
    );
    assert!(server.app.requests.lock().unwrap().is_empty());
    others_are_served(&world, &pool, &server).await;
}

/// A flood that is answered, one that is answered to nobody who reads it, and those that h2 counts.
#[tokio::test]
async fn floods_that_cost_more_than_they_carry_end_the_tunnel() {
    let opens = request(1, "127.0.0.1:9");
    let unfinished = frame(HEADERS, 0, 1, &block("127.0.0.1:9"));
    for (first, flood, told) in [
        (&[][..], frame(SETTINGS, 0, 0, &[]), "PINGs and SETTINGS"),
        (&[], frame(PING, 0, 0, &[7; 8]), "PINGs and SETTINGS"),
        (&opens, frame(DATA, 0, 1, &[]), "excessive load"),
        (
            &unfinished,
            frame(CONTINUATION, 0, 1, &[]),
            "excessive load",
        ),
    ] {
        for reads in [true, false] {
            let (world, mut server, pool) = stage(Limits::default()).await;
            let Raw { read, mut write } = Raw::greet(&world, &server).await;
            let _ = write.write_all(first).await;
            let floods = repeat(&mut write, &flood);
            if reads {
                within(async { tokio::join!(floods, hear(read)) }).await;
            } else {
                within(floods).await;
            }
            is_told(&mut server, told).await;
            others_are_served(&world, &pool, &server).await;
        }
    }
}

/// CVE-2023-44487. In bulk h2 ends it. One by one each is a stream like any other that its client gives up, and nothing of
/// it is left.
#[tokio::test]
async fn rapid_resets_end_the_tunnel_or_leave_nothing() {
    let (world, mut server, pool) = stage(Limits::default()).await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = app.local_addr().unwrap().to_string();
    let open = |number: u32| request(number * 2 + 1, &authority);
    let reset = |number: u32| frame(RST_STREAM, 0, number * 2 + 1, &[0, 0, 0, 8]);
    let mut raw = Raw::greet(&world, &server).await;
    let pairs = (0..1000).flat_map(|it| [open(it), reset(it)].concat());
    raw.say(&pairs.collect::<Vec<_>>()).await;
    is_told(&mut server, "excessive load").await;

    let mut raw = Raw::greet(&world, &server).await;
    // More than may be open at once.
    for number in 0..Limits::default().max_concurrent_streams + 50 {
        raw.say(&open(number)).await;
        let (mut connection, _) = within(app.accept()).await.unwrap();
        raw.say(&reset(number)).await;
        let ended = within(connection.read(&mut [0])).await;
        assert!(!matches!(ended, Ok(1..)));
    }
    others_are_served(&world, &pool, &server).await;
    drop(raw);
    // Nothing was open any more: a peer that has just left.
    server.outcome().await.unwrap();
}

#[tokio::test]
async fn windows_that_overflow_are_errors() {
    let (world, mut server, pool) = stage(Limits::default()).await;
    let wide = |stream| frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
    let mut raw = Raw::greet(&world, &server).await;
    raw.say(&wide(0)).await;
    let Raw {
        read,
        write: _write,
    } = raw;
    assert_eq!(reason(&within(hear(read)).await), Some(FLOW_CONTROL_ERROR));
    is_told(&mut server, "flow-control").await;

    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = app.local_addr().unwrap().to_string();
    let mut raw = Raw::greet(&world, &server).await;
    raw.say(&request(1, &authority)).await;
    let _app = within(app.accept()).await.unwrap();
    raw.say(&wide(1)).await;
    assert_eq!(
        raw.first(RST_STREAM, 1).await,
        FLOW_CONTROL_ERROR.to_be_bytes()
    );
    assert!(server.transfer().await.outcome.is_err());
    others_are_served(&world, &pool, &server).await;
}

/// 431 (RFC 6585), and the tunnel goes on.
#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let (world, server, _pool) = stage(Limits::default()).await;
    let mut raw = Raw::greet(&world, &server).await;
    // A header of one letter and 120 bytes, often.
    let field = [&[0, 1, b'x', 120][..], &[b'y'; 120]].concat();
    let large = [block("127.0.0.1:9"), field.repeat(1000)].concat();
    raw.say(&frame(HEADERS, END_HEADERS, 1, &large)).await;
    let answer = raw.first(HEADERS, 1).await;
    // `:status`, and "431" by Huffman.
    assert_eq!(answer, [0x48, 0x83, 0x69, 0x90, 0xff]);
    raw.say(&request(3, "denied:80")).await;
    raw.first(HEADERS, 3).await;
    assert_eq!(server.app.requests.lock().unwrap().len(), 1);
}

/// They are told to come again, and those that are open go on, although nothing is ever sent on them.
#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let limits = Limits {
        max_concurrent_streams: 5,
        ..Limits::default()
    };
    let (world, server, pool) = stage(limits).await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = app.local_addr().unwrap().to_string();
    let mut raw = Raw::greet(&world, &server).await;
    let mut open = Vec::new();
    for number in 0..5 {
        raw.say(&request(number * 2 + 1, &authority)).await;
        open.push(within(app.accept()).await.unwrap().0);
    }
    raw.say(&request(11, &authority)).await;
    assert_eq!(
        raw.first(RST_STREAM, 11).await,
        REFUSED_STREAM.to_be_bytes()
    );
    open[0].write_all(b"still here").await.unwrap();
    assert_eq!(raw.first(DATA, 1).await, b"still here");
    others_are_served(&world, &pool, &server).await;
}
