//! Against a peer that shares no code with us: `tests/peer/hbone_peer.py`, which needs the Debian package python3-h2.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::super::{Baggage, Broken, Forwarded};
use super::*;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/peer/hbone_peer.py");

/// The peer's process and its events.
struct Peer {
    _process: Child,
    events: mpsc::UnboundedReceiver<Value>,
}

impl Peer {
    /// Runs the peer with the certificate of `account`, made from the world's root.
    async fn run(world: &World, account: &str, arguments: &[&str]) -> Self {
        let root = world.root.path();
        let out = root.join(account);
        let issued = Command::new(PEER)
            .args(["issue", "--identity", &id(account).to_string(), "--ca"])
            .arg(root)
            .arg("--out")
            .arg(&out)
            .output()
            .await
            .unwrap();
        assert!(issued.status.success(), "{issued:?}");
        let mut process = Command::new(PEER)
            .args(arguments)
            .arg("--root")
            .arg(root.join("root-cert.pem"))
            .arg("--cert")
            .arg(out.with_extension("pem"))
            .arg("--key")
            .arg(out.with_extension("key"))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, events) = mpsc::unbounded_channel();
        world.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self {
            _process: process,
            events,
        }
    }

    /// The next event of this name, past all others.
    async fn event(&mut self, name: &str) -> Value {
        loop {
            let event = within(self.events.recv()).await;
            let event = event.unwrap_or_else(|| panic!("the peer ended without {name}"));
            if event["event"] == name {
                return event;
            }
        }
    }
}

/// False, loudly, on a machine without the peer's packages.
async fn available() -> bool {
    let check = "import h2.connection, shutil, sys; sys.exit(not shutil.which('openssl'))";
    let found = Command::new("/usr/bin/python3")
        .args(["-c", check])
        .stderr(Stdio::null())
        .status()
        .await
        .is_ok_and(|status| status.success());
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI has no python3-h2 or openssl"
        );
        eprintln!("SKIPPED: no python3-h2 or openssl: apt-get install python3-h2 openssl");
    }
    found
}

/// An application that sends everything back.
async fn echo(world: &World) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    world.spawn(async move {
        let mut running = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            running.spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_foreign_client_is_served_by_the_contract() {
    if !available().await {
        return;
    }
    let world = World::new();
    let mut server = world.server().await;
    let (to, app) = (server.address.to_string(), echo(&world).await.to_string());
    let expect = id("server").to_string();
    let mut arguments = vec!["client", "--connect", &to, "--expect", &expect];
    arguments.extend(["--authority", &app, "--bytes", "3000000", "--streams", "3"]);
    arguments.extend(["--header", "baggage=service.name=foreign"]);
    let mut peer = Peer::run(&world, "foreign", &arguments).await;
    let tls = peer.event("tls").await;
    assert_eq!(tls["version"], "TLSv1.3");
    assert_eq!(tls["cipher"], "TLS_AES_256_GCM_SHA384");
    assert_eq!(tls["alpn"], "h2");
    let settings = peer.event("settings").await;
    for (name, value) in [
        ("MAX_CONCURRENT_STREAMS", 200),
        ("INITIAL_WINDOW_SIZE", 4 << 20),
        ("MAX_FRAME_SIZE", 1 << 20),
        ("MAX_HEADER_LIST_SIZE", 64 << 10),
    ] {
        assert_eq!(settings[name], json!(value), "{name}");
    }
    let response = peer.event("response").await;
    assert_eq!(response["status"], 200);
    assert_eq!(response["baggage"], "service.name=app");
    for _ in 0..3 {
        let end = peer.event("end").await;
        assert_eq!((&end["how"], &end["echo"]), (&json!("ended"), &json!(true)));
    }
    server.outcome().await.unwrap();
    let request = server.app.requests.lock().unwrap()[0].clone();
    assert_eq!(request.peer, id("foreign"));
    assert_eq!(
        request.head.baggage,
        Some(Baggage::parse("service.name=foreign"))
    );
}

#[tokio::test]
async fn a_foreign_client_is_refused_by_the_contract() {
    if !available().await {
        return;
    }
    let world = World::new();
    let server = world.server().await;
    let to = server.address.to_string();
    for (method, authority, status) in [
        ("CONNECT", "denied:80", 401),
        ("CONNECT", "unknown:80", 503),
        ("CONNECT", "noport", 400),
        ("GET", "denied:80", 400),
    ] {
        let arguments = [
            "client",
            "--connect",
            &to,
            "--method",
            method,
            "--authority",
            authority,
        ];
        let mut peer = Peer::run(&world, "foreign", &arguments).await;
        let response = peer.event("response").await;
        assert_eq!(response["status"], status, "{method} {authority}");
    }
}

#[tokio::test]
async fn a_foreign_server_is_asked_by_the_contract() {
    if !available().await {
        return;
    }
    let world = World::new();
    let pool = world.pool();
    let arguments = [
        "server",
        "--baggage",
        "service.name=foreign",
        "--max-streams",
        "7",
    ];
    let mut peer = Peer::run(&world, "server", &arguments).await;
    let port = peer.event("listening").await["port"].as_u64().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
    let key = Key::new(id("client"), address.ip(), address, [id("server")]);
    let mut head = ConnectHead::new("10.71.2.12:7000".parse::<SocketAddr>().unwrap());
    head.baggage = Some(Baggage::parse(
        "k8s.cluster.name=Kubernetes,k8s.pod.name=p1a",
    ));
    head.forwarded = Some(Forwarded {
        client: "10.71.1.2:39994".parse().unwrap(),
        host: None,
    });
    let opened = within(pool.open(&key, &head)).await.unwrap();
    assert_eq!(opened.baggage, Some(Baggage::parse("service.name=foreign")));
    let tls = peer.event("tls").await;
    assert_eq!(
        (&tls["sni"], &tls["version"]),
        (&Value::Null, &json!("TLSv1.3"))
    );
    assert_eq!(tls["cipher"], "TLS_AES_256_GCM_SHA384");
    assert_eq!(tls["peer"], json!([id("client").to_string()]));
    let settings = peer.event("settings").await;
    for (name, value) in [
        ("ENABLE_PUSH", 0),
        ("INITIAL_WINDOW_SIZE", 4 << 20),
        ("MAX_FRAME_SIZE", 1 << 20),
        ("MAX_HEADER_LIST_SIZE", 16 << 10),
    ] {
        assert_eq!(settings[name], json!(value), "{name}");
    }
    assert_eq!(
        peer.event("request").await["headers"],
        json!([
            [":method", "CONNECT"],
            [":authority", "10.71.2.12:7000"],
            ["baggage", "k8s.cluster.name=Kubernetes,k8s.pod.name=p1a"],
            ["forwarded", "for=\"10.71.1.2:39994\""],
        ])
    );
    // Through the peer's small windows and back.
    let (client, agent) = pair().await;
    let (progress, revoked) = (Progress::default(), CancellationToken::new());
    let (mut read, mut write) = client.into_split();
    let mut echoed = Vec::new();
    let (transfer, (), _) = within(async {
        tokio::join!(
            copy(agent, opened.stream, &progress, &revoked),
            async {
                write.write_all(&vec![7; 1 << 20]).await.unwrap();
                drop(write);
            },
            read.read_to_end(&mut echoed)
        )
    })
    .await;
    transfer.outcome.unwrap();
    assert!(echoed == vec![7; 1 << 20]);
    // The peer's limit of seven streams.
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(within(pool.open(&key, &head)).await.unwrap());
    }
    assert_eq!(pool.census(), (2, 8));
}

#[tokio::test]
async fn a_foreign_servers_reset_is_an_end_or_a_failure() {
    if !available().await {
        return;
    }
    let world = World::new();
    let pool = world.pool();
    for code in ["NO_ERROR", "CANCEL", "INTERNAL_ERROR"] {
        let arguments = ["server", "--reset", code, "--goaway-after", "1"];
        let mut peer = Peer::run(&world, "server", &arguments).await;
        let port = peer.event("listening").await["port"].as_u64().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        let key = Key::new(id("client"), address.ip(), address, [id("server")]);
        let opened = within(pool.open(&key, &ConnectHead::new(address)))
            .await
            .unwrap();
        let (_client, agent) = pair().await;
        let (progress, revoked) = (Progress::default(), CancellationToken::new());
        let outcome = within(copy(agent, opened.stream, &progress, &revoked))
            .await
            .outcome;
        let expected = match code {
            "INTERNAL_ERROR" => matches!(
                outcome,
                Err(Broken::Reset(h2::Reason::INTERNAL_ERROR) | Broken::Tunnel(_))
            ),
            _ => outcome.is_ok(),
        };
        assert!(expected, "{code}: {outcome:?}");
        // After GOAWAY, the next stream takes a second tunnel.
        peer.event("goaway_sent").await;
        let _second = within(pool.open(&key, &ConnectHead::new(address))).await;
        peer.event("tls").await;
    }
}
