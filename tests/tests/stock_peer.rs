//! A peer that shares no code with the mesh, with a certificate of the same root: it calls enrolled pods, is called by
//! them, and is refused as the HBONE contract says.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::foreign::Foreign;
use mesh_tests::lab::{Lab, scenario, scenario_with, stop};
use mesh_tests::objects::MODE;
use mesh_tests::peer::{self, Client, Credentials, Events};
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually, uninterrupted};
use mesh_tests::world::Family;

const SECRET: &str = "a message in a bottle, thrown from another ship";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const PEER: &str = "spiffe://cluster.local/ns/outside/sa/peer";

/// An enrolled server on n2, and plain pods on both nodes that speak HBONE themselves.
fn pods(lab: &Lab) -> Result<(Pod<'_>, [Pod<'_>; 2])> {
    lab.namespace("shop").ambient().create()?;
    let server = lab.pod("web").namespace("shop").on("n2").create()?;
    let plain = |name, node| lab.pod(name).namespace("outside").on(node).create();
    Ok((server, [plain("far", "n1")?, plain("near", "n2")?]))
}

/// A client in a pod, with the certificate of the stock peer.
fn client<'a>(lab: &'a Lab, pod: &'a Pod<'_>) -> Result<Client<'a>> {
    let credentials = Credentials::issue(lab, &lab.ca(), PEER)?;
    Ok(Client::new(lab, pod.netns(), Some(credentials)))
}

/// Opens a tunnel to a pod, asks for an authority in it, and expects a status.
fn asks(client: &Client<'_>, to: IpAddr, authority: &str, more: &[&str]) -> Result<Events> {
    let tunnel = SocketAddr::new(to, HBONE_PORT).to_string();
    let mut arguments = vec!["--connect", &tunnel, "--authority", authority];
    arguments.extend(["--send", SECRET]);
    arguments.extend(more);
    let (good, events) = client.call(&arguments)?;
    ensure!(good, "{authority}: {events:#?}");
    Ok(events)
}

#[test]
fn it_calls_an_enrolled_pod() -> Result<()> {
    scenario("stock_calls", |lab| {
        let (server, peers) = pods(lab)?;
        let app = Server::start(&server, 8080, App::Echo)?;
        let service = lab.service("web").namespace("shop").port(80, 8080);
        service.create()?;
        for family in Family::BOTH {
            for pod in &peers {
                let client = client(lab, pod)?;
                let before = lab.node("n2").counters()?;
                let wire = lab.capture()?;
                for authority in [
                    server.at(family, 8080).to_string(),
                    "web.shop.svc.cluster.local:80".to_owned(),
                ] {
                    let events = asks(&client, server.ip(family), &authority, &["--expect", WEB])?;
                    let settings = events.first("settings")?;
                    assert_eq!(settings["MAX_CONCURRENT_STREAMS"], 200);
                    assert_eq!(settings["MAX_FRAME_SIZE"], 1 << 20);
                    assert_eq!(settings["INITIAL_WINDOW_SIZE"], 4 << 20);
                    let tls = events.first("tls")?;
                    assert_eq!(
                        (&tls["version"], &tls["alpn"]),
                        (&"TLSv1.3".into(), &"h2".into())
                    );
                    assert_eq!(
                        app.clients().last().map(SocketAddr::ip),
                        Some(pod.ip(family)),
                        "the application sees {}",
                        pod.name()
                    );
                }
                assert!(!stop(wire)?.contains(SECRET.as_bytes()));
                let hook = if pod.name() == "near" {
                    Hook::FromPod
                } else {
                    Hook::FromNet
                };
                lab.node("n2").counters()?.since(&before).assert(&[
                    (hook, Outcome::Listener, AtLeast(2)),
                    (hook, Outcome::Socket, AtLeast(1)),
                ]);
            }
        }
        Ok(())
    })
}

#[test]
fn it_is_called_by_an_enrolled_pod() -> Result<()> {
    // Each worker would have a tunnel of its own.
    scenario_with("stock_called", &["--workers=1"], |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let foreign = Foreign::create(lab)?;
        let ips = foreign.pod("shop", "web")?;
        let service = lab
            .service("web")
            .namespace("shop")
            .port(80, 8080)
            .create()?;
        let credentials = Credentials::issue(lab, &lab.ca(), WEB)?;
        for family in Family::BOTH {
            let ip = ips[family as usize];
            let listen = SocketAddr::new(ip, HBONE_PORT).to_string();
            let baggage = ["--baggage", "k8s.pod.name=web"];
            let peer = peer::Server::start(lab, foreign.netns(), &listen, &credentials, &baggage)?;
            let before = lab.node("n1").counters()?;
            let wire = lab.capture()?;
            for to in [SocketAddr::new(ip, 8080), service.at(family)] {
                let stream = client.connect(to)?;
                echoes(&stream, SECRET.as_bytes())?;
                let own = stream.local_addr()?;
                drop(stream);
                request(
                    &peer,
                    &client,
                    SocketAddr::new(ip, 8080),
                    own,
                    to == service.at(family),
                )?;
            }
            assert!(!stop(wire)?.contains(SECRET.as_bytes()));
            lab.node("n1").counters()?.since(&before).assert(&[
                (Hook::FromPod, Outcome::Listener, AtLeast(2)),
                (Hook::FromNet, Outcome::Socket, AtLeast(1)),
            ]);
        }
        Ok(())
    })
}

/// What the called peer saw: the tunnel, and the last request in it.
fn request(
    peer: &peer::Server,
    client: &Pod<'_>,
    authority: SocketAddr,
    own: SocketAddr,
    by_service: bool,
) -> Result<()> {
    let events = peer.events()?;
    let tunnels = events.all("tls");
    assert_eq!(
        tunnels.len(),
        1,
        "one tunnel for all connections: {events:#?}"
    );
    let tls = tunnels[0];
    assert_eq!(tls["version"], "TLSv1.3");
    assert_eq!(tls["alpn"], "h2");
    assert!(tls["sni"].is_null(), "{tls}");
    assert_eq!(tls["peer"][0], "spiffe://cluster.local/ns/shop/sa/client");
    let remote = tls["remote"].as_str().context("no remote")?;
    let (remote, _) = remote.rsplit_once(':').context("no port")?;
    assert_eq!(
        remote,
        client.ip(Family::of(own.ip())).to_string(),
        "the client pod's own address"
    );

    let settings = events.first("settings")?;
    assert_eq!(
        (&settings["ENABLE_PUSH"], &settings["MAX_FRAME_SIZE"]),
        (&0.into(), &(1 << 20).into())
    );
    let request = *events.all("request").last().context("no request")?;
    let header = |name: &str| {
        let headers = request["headers"].as_array()?;
        headers.iter().find(|it| it[0] == name)?[1].as_str()
    };
    assert_eq!(header(":method"), Some("CONNECT"));
    assert_eq!(header(":authority"), Some(authority.to_string().as_str()));
    assert_eq!((header(":scheme"), header(":path")), (None, None));
    let host = if by_service {
        ";host=web.shop.svc.cluster.local"
    } else {
        ""
    };
    assert_eq!(
        header("forwarded"),
        Some(format!("for=\"{own}\"{host}").as_str())
    );
    let baggage = header("baggage").context("no baggage")?;
    for member in ["k8s.namespace.name=shop", "k8s.pod.name=client"] {
        assert!(baggage.split(',').any(|it| it == member), "{baggage}");
    }
    Ok(())
}

#[test]
fn wrong_certificates_are_refused() -> Result<()> {
    scenario("stock_certificates", |lab| {
        let (server, peers) = pods(lab)?;
        let app = Server::start(&server, 8080, App::Echo)?;
        let foreign = lab.directory().join("foreign-ca");
        peer::foreign_root(&foreign)?;
        let wrong = [
            ("no certificate", None),
            ("wrong root", Some(Credentials::issue(lab, &foreign, PEER)?)),
            ("wrong trust domain", {
                let identity = "spiffe://example.org/ns/outside/sa/peer";
                Some(Credentials::issue(lab, &lab.ca(), identity)?)
            }),
        ];
        let authority = server.at(Family::V4, 8080).to_string();
        let tunnel = server.at(Family::V4, HBONE_PORT).to_string();
        for (what, credentials) in &wrong {
            for pod in &peers {
                let client = Client::new(lab, pod.netns(), credentials.clone());
                let start = Instant::now();
                let (good, events) =
                    client.call(&["--connect", &tunnel, "--authority", &authority])?;
                assert!(!good, "{what}: {events:#?}");
                assert!(events.all("response").is_empty(), "{what}: {events:#?}");
                assert!(
                    start.elapsed() < SOON,
                    "{what}: the connection is closed at once"
                );
            }
        }
        assert!(app.clients().is_empty(), "the application is not reached");
        eventually("the agent tells of each", SOON, || {
            let log = lab.node("n2").agent().log();
            Ok(log.matches("tunnel failed").count() == wrong.len() * peers.len())
        })?;
        asks(
            &client(lab, &peers[0])?,
            server.ip(Family::V4),
            &authority,
            &[],
        )?;
        Ok(())
    })
}

/// A server under a certificate of another workload gets no stream, and the client a reset.
#[test]
fn a_wrong_server_is_not_spoken_to() -> Result<()> {
    scenario("stock_impostor", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let foreign = Foreign::create(lab)?;
        let [ip, _] = foreign.pod("shop", "web")?;
        let impostor = Credentials::issue(lab, &lab.ca(), PEER)?;
        let listen = SocketAddr::new(ip, HBONE_PORT).to_string();
        let peer = peer::Server::start(lab, foreign.netns(), &listen, &impostor, &[])?;
        let answer = client
            .connect(SocketAddr::new(ip, 8080))
            .and_then(|stream| echoes(&stream, SECRET.as_bytes()));
        assert!(answer.is_err());
        assert!(peer.events()?.all("request").is_empty());
        Ok(())
    })
}

#[test]
fn wrong_requests_get_their_status() -> Result<()> {
    scenario("stock_requests", |lab| {
        let (server, peers) = pods(lab)?;
        let other = lab.pod("other").namespace("shop").on("n2").create()?;
        let app = Server::start(&server, 8080, App::Echo)?;
        let others = Server::start(&other, 8080, App::Echo)?;
        let ip = server.ip(Family::V4);
        let at = |port: u16| SocketAddr::new(ip, port).to_string();
        let refused = [
            (other.at(Family::V4, 8080).to_string(), "CONNECT", "400"),
            (server.at(Family::V6, 8080).to_string(), "CONNECT", "400"),
            (at(8080), "GET", "400"),
            ("no-port".to_owned(), "CONNECT", "400"),
            (at(15001), "CONNECT", "503"),
            (at(15006), "CONNECT", "503"),
            (at(15008), "CONNECT", "503"),
            (at(9), "CONNECT", "503"),
            (
                "nobody.shop.svc.cluster.local:80".to_owned(),
                "CONNECT",
                "503",
            ),
        ];
        for pod in &peers {
            let client = client(lab, pod)?;
            for (authority, method, status) in &refused {
                let more = ["--method", method, "--status", status];
                asks(&client, ip, authority, &more).context(*status)?;
            }
        }
        assert!(app.clients().is_empty() && others.clients().is_empty());
        Ok(())
    })
}

#[test]
fn a_handshake_that_never_comes_ends() -> Result<()> {
    scenario("stock_silent", |lab| {
        let (server, peers) = pods(lab)?;
        for pod in &peers {
            let start = Instant::now();
            let mut stream = pod.connect(server.at(Family::V4, HBONE_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            assert!(
                matches!(uninterrupted(|| stream.read(&mut [0])), Ok(0)),
                "{}",
                pod.name()
            );
            assert!(
                start.elapsed() > Duration::from_secs(1),
                "slow peers have their time"
            );
        }
        Ok(())
    })
}

#[test]
fn many_streams_share_a_tunnel() -> Result<()> {
    scenario("stock_streams", |lab| {
        let (server, peers) = pods(lab)?;
        let app = Server::start(&server, 8080, App::Echo)?;
        for pod in &peers {
            let authority = server.at(Family::V4, 8080).to_string();
            let client = client(lab, pod)?;
            let more = ["--streams", "120", "--bytes", "100000", "--timeout", "30"];
            let events = asks(&client, server.ip(Family::V4), &authority, &more)?;
            let ends = events.all("end");
            assert_eq!(ends.len(), 120);
            assert!(ends.iter().all(|end| end["echo"] == true), "{ends:#?}");
        }
        assert_eq!(app.clients().len(), 240);
        Ok(())
    })
}

/// A pod that is taken out of the mesh is no longer answered for.
#[test]
fn a_pod_that_left_is_not_served() -> Result<()> {
    scenario("stock_left", |lab| {
        let (server, peers) = pods(lab)?;
        let _app = Server::start(&server, 8080, App::Echo)?;
        let authority = server.at(Family::V4, 8080).to_string();
        let client = client(lab, &peers[0])?;
        asks(&client, server.ip(Family::V4), &authority, &[])?;
        lab.label_namespace("shop", MODE, None)?;
        eventually("the tunnel is refused", SOON, || {
            Ok(peers[0].is_refused(server.at(Family::V4, HBONE_PORT)))
        })?;
        lab.label_namespace("shop", MODE, Some("ambient"))?;
        asks(&client, server.ip(Family::V4), &authority, &[])?;
        Ok(())
    })
}
