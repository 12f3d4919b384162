//! Clients, also hostile ones, of a server with small endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock;
use crate::logging::Logging;
use crate::status::Problem;
use crate::telemetry::Graph;
use crate::world::Command;

struct Echo;

impl Endpoints for Echo {
    async fn answer(&self, asked: Asked) -> Answer {
        let text = format!("{} {}?{}", asked.method, asked.path, asked.query);
        Answer::text(StatusCode::OK, text)
    }
}

/// A server that runs until it is dropped.
struct Running {
    address: SocketAddr,
    ports: Ports,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(endpoints: impl Endpoints) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        Self::at(address, endpoints)
    }

    fn at(address: SocketAddr, endpoints: impl Endpoints) -> Self {
        let (ports, shutdown) = (Ports::default(), CancellationToken::new());
        let server = Server::new("--x-address", Address::At(address), endpoints, &ports);
        let task = tokio::spawn(server.run(shutdown.clone()));
        Self {
            address,
            ports,
            shutdown,
            task,
        }
    }

    /// A connection, once the server listens.
    async fn connect(&self) -> TcpStream {
        loop {
            match TcpStream::connect(self.address).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// All that is answered to these bytes, until the server closes.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // A server that has seen enough may have closed.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(15), stream.read_to_end(&mut answer))
            .await
            .expect("the server closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn ask(&self, method: &str, path: &str, accept: &str) -> (u16, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
        let answer = self.say(request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.task.abort();
    }
}

#[tokio::test]
async fn a_request_is_answered_and_the_connection_closed() {
    let server = Running::start(Echo).await;
    let two = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = server.say(two).await;
    assert!(
        answer.contains("GET /a?b=c") && !answer.contains("second"),
        "{answer}"
    );
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert_eq!(server.ask("HEAD", "/", "*/*").await, (200, String::new()));
}

#[tokio::test]
async fn what_is_no_request_gets_none_of_our_time() {
    let server = Running::start(Echo).await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500));
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for text in ["\x16\x03\x01\x02", "x\r\n\r\n", preface, &long, &many] {
        let answer = server.say(text.as_bytes()).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    assert_eq!(server.ask("GET", "/", "*/*").await.0, 200);
}

#[tokio::test]
async fn a_body_is_not_read() {
    let server = Running::start(Echo).await;
    let head = "POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nsome";
    let began = clock::now();
    let answer = server.say(head.as_bytes()).await;
    assert!(answer.contains("POST /p"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn who_stalls_has_its_own_places_and_loses_them() {
    let server = Running::start(Echo).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET / HT").await.unwrap();
        stalled.push(stream);
    }
    // The ninth of one address is closed at once.
    let refused = timeout(
        Duration::from_secs(2),
        server.say(b"GET / HTTP/1.1\r\n\r\n"),
    )
    .await;
    assert_eq!(refused.unwrap(), "");
    // Another address is served meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(server.address).await.unwrap();
    other
        .write_all(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("GET /other"), "{answer}");
    // Whoever says no more is turned out.
    let began = clock::now();
    for stream in &mut stalled {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(server.ask("GET", "/", "*/*").await.0, 200);
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_taken_over() {
    let first = Running::start(Echo).await;
    assert_eq!(first.ask("GET", "/", "*/*").await.0, 200);
    let second = Running::at(first.address, Echo);
    sleep(Duration::from_millis(300)).await;
    let told = second.ports.report();
    assert!(
        told[0]
            .error
            .as_ref()
            .is_some_and(|it| it.contains("in use")),
        "{told:?}"
    );
    assert_eq!(first.ports.report()[0].error, None);
    first.shutdown.cancel();
    let listens = async {
        while second.ports.report()[0].error.is_some() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), listens)
        .await
        .expect("the port is taken over");
    assert_eq!(second.ask("GET", "/", "*/*").await.0, 200);
}

/// The health of an agent whose world answers so.
fn health(pending: Vec<Problem>) -> Health {
    let (world, mut asked) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            let Command::Pending(reply) = command else {
                panic!("{command:?}");
            };
            reply.send(pending.clone()).unwrap();
        }
    });
    Health::new("n1", world, Arc::new(|| None))
}

#[tokio::test]
async fn who_is_not_ready_says_why() {
    let server = Running::start(health(Vec::new())).await;
    assert_eq!(
        server.ask("GET", "/healthz/ready", "*/*").await,
        (200, "ready\n".into())
    );
    let what = |what: &str| Problem {
        what: what.to_owned(),
        remedy: "wait".to_owned(),
    };
    let server = Running::start(health(vec![what("one"), what("two")])).await;
    let (status, text) = server.ask("GET", "/healthz/ready", "*/*").await;
    assert_eq!((status, text.as_str()), (503, "one; wait\ntwo; wait\n"));
    let (status, text) = server
        .ask("GET", "/healthz/ready", "application/json")
        .await;
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 503);
    assert_eq!(
        document,
        json!({"node": "n1", "ready": false, "pending": [
            {"what": "one", "remedy": "wait"}, {"what": "two", "remedy": "wait"},
        ]})
    );
    assert_eq!(server.ask("GET", "/healthz/live", "*/*").await.0, 200);
    assert_eq!(server.ask("POST", "/healthz/live", "*/*").await.0, 405);
    assert_eq!(server.ask("GET", "/config_dump", "*/*").await.0, 404);
}

#[tokio::test]
async fn an_agent_that_stops_is_not_ready() {
    let stopping = Health::new("n1", mpsc::channel(1).0, Arc::new(|| None));
    let server = Running::start(stopping).await;
    let (status, text) = server.ask("GET", "/healthz/ready", "*/*").await;
    assert!(
        status == 503 && text.contains("stopping"),
        "{status} {text}"
    );
}

#[tokio::test]
async fn an_agent_that_is_busy_serves_as_it_did() {
    let (world, mut asked) = mpsc::channel(4);
    let health = Health::new("n1", world, Arc::new(|| None));
    let server = Running::start(health).await;
    let (status, text) = server.ask("GET", "/healthz/ready", "*/*").await;
    assert!(status == 503 && text.contains("busy"), "{status} {text}");
    asked.recv().await.unwrap();
    let answered = async {
        let Some(Command::Pending(reply)) = asked.recv().await else {
            panic!("it is asked");
        };
        reply.send(Vec::new()).unwrap();
        // Held, so that it is not as if the agent stopped.
        asked
    };
    let (ready, _asked) = tokio::join!(server.ask("GET", "/healthz/ready", "*/*"), answered);
    assert_eq!(ready.0, 200);
    assert_eq!(server.ask("GET", "/healthz/ready", "*/*").await.0, 200);
}

#[tokio::test]
async fn the_log_is_turned_up_by_post_alone() {
    let admin = Admin::new(
        Arc::new(|| json!({"a": 1})),
        Arc::new(|| Box::pin(async { Graph::default() })),
        Logging::detached(),
    );
    let server = Running::start(admin).await;
    assert_eq!(
        server.ask("GET", "/logging?level=debug", "*/*").await.0,
        405
    );
    let (status, text) = server
        .ask("POST", "/logging?level=mesh_agent%3Adebug", "*/*")
        .await;
    assert_eq!(status, 200);
    assert!(
        text.contains("mesh_agent=debug") && text.contains("info"),
        "{text}"
    );
    let (status, text) = server.ask("POST", "/logging?level=%ff%zz", "*/*").await;
    assert!(status == 400 && text.contains("neither a level"), "{text}");
    let (status, text) = server.ask("POST", "/logging?reset", "*/*").await;
    assert_eq!(
        (status, text.as_str()),
        (200, "current log level is info\n")
    );
    let (status, text) = server.ask("GET", "/config_dump", "*/*").await;
    assert_eq!((status, text.contains("\"a\": 1")), (200, true));
}

#[tokio::test]
async fn the_map_is_for_loopback_and_loads_nothing_from_elsewhere() {
    let admin = Admin::new(
        Arc::new(|| json!({})),
        Arc::new(|| Box::pin(async { Graph::default() })),
        Logging::detached(),
    );
    let server = Running::start(admin).await;
    // What a page of another site, whose name has been made to lead here, would ask.
    for path in ["/map", "/map.json"] {
        assert_eq!(server.ask("GET", path, "*/*").await.0, 403);
    }
    let get = async |path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        server.say(request.as_bytes()).await
    };
    for host in [
        "localhost",
        "localhost:15000",
        "127.0.0.1:1",
        "[::1]:1",
        "[::1]",
    ] {
        let answer = get("/map", host).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        assert!(answer.contains("content-security-policy: default-src 'none';"));
        assert!(!answer.contains("://"), "nothing is asked of others");
    }
    for host in ["localhost.example", "127.0.0.1.example:1", "10.0.0.1", ""] {
        assert!(get("/map", host).await.contains(" 403 "), "{host}");
    }
    let answer = get("/map.json", "localhost").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        serde_json::from_str::<Graph>(body).unwrap(),
        Graph::default()
    );
}
