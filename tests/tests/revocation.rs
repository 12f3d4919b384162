//! A right that is taken away ends open connections at once, tunnelled, same-node and plain ones alike, a thousand of
//! them; those that are still allowed lose no byte.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, raise_descriptor_limit};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::node::Node;
use mesh_tests::objects;
use mesh_tests::pod::Pod;
use mesh_tests::wait::eventually;
use mesh_tests::world::Family;
use serde_json::{Value, json};

const PORT: u16 = 8080;

/// Between two exchanges of a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Within what the last connection must have ended; the machine of the tests may be busy.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn a_policy_that_allows_less() -> Result<()> {
    scenario("revoke_policy", |lab| {
        revoke(lab, || {
            lab.objects()
                .apply(policy(&json!({ "matchLabels": { "grade": "good" } })))
        })
    })
}

#[test]
fn a_label_that_goes() -> Result<()> {
    scenario("revoke_label", |lab| {
        revoke(lab, || {
            for pod in lab.objects().all("Pod") {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                if name.starts_with("bad") {
                    lab.objects().edit("Pod", "shop", name, |pod| {
                        pod["metadata"]["labels"]["client"] = "no".into();
                    })?;
                }
            }
            Ok(())
        })
    })
}

/// To the server, from pods that the selector selects.
fn policy(from: &Value) -> Value {
    let spec = json!({
        "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{ "from": [{ "podSelector": from }] }],
    });
    objects::policy("NetworkPolicy", "shop", "web", &spec)
}

/// Opens connections of good and bad clients, makes a change that bears on the bad ones, and shows what became of each.
fn revoke(lab: &Lab, change: impl Fn() -> Result<()>) -> Result<()> {
    raise_descriptor_limit()?;
    lab.namespace("shop").ambient().create()?;
    let web = lab.pod("web").namespace("shop").on("n2").create()?;
    let _app = Server::start(&web, PORT, App::Echo)?;
    let mut clients = Vec::new();
    for (way, node, connections) in [
        ("tunnel", "n1", 250),
        ("near", "n2", 240),
        ("plain", "n1", 5),
        ("plain-near", "n2", 5),
    ] {
        for grade in ["good", "bad"] {
            let pod = lab
                .pod(&format!("{grade}-{way}"))
                .namespace("shop")
                .label("client", "yes")
                .label("grade", grade)
                .on(node)
                .create()?;
            if way.starts_with("plain") {
                pod.leave()?;
            }
            clients.push((pod, grade == "good", connections));
        }
    }
    lab.objects()
        .apply(policy(&json!({ "matchLabels": { "client": "yes" } })))?;
    lab.settle()?;
    let mut open = Vec::new();
    for (pod, is_good, connections) in &clients {
        for number in 0..*connections {
            let family = Family::BOTH[number % 2];
            let connection = Connection::open(pod, &web, family)
                .with_context(|| format!("{} to the server, {family:?}", pod.name()))?;
            open.push((pod.name(), *is_good, connection));
        }
    }
    sleep(10 * PAUSE);
    assert_eq!(established(&web)?, open.len());
    for (name, _, connection) in &open {
        assert!(!connection.is_over(), "{name} before the change");
    }

    let allowed = open.iter().filter(|(_, is_good, _)| *is_good).count();
    let counters = || {
        lab.nodes()
            .iter()
            .map(Node::counters)
            .collect::<Result<Vec<_>>>()
    };
    let before = counters()?;
    let began = Instant::now();
    change()?;
    let over = || open.iter().filter(|(_, _, it)| it.is_over()).count();
    let ended = eventually("the bad connections end", AT_ONCE, || {
        Ok(over() == open.len() - allowed)
    });
    // What is still allowed goes on.
    sleep(10 * PAUSE);
    let left = established(&web)?;
    report(began, open)?;
    ended?;
    for (now, before) in counters()?.iter().zip(&before) {
        // What was on its way when its connection ended; nothing else is lost.
        now.since(before).assert(&[
            (Hook::FromPod, Outcome::Policy, AtLeast(0)),
            (Hook::FromPod, Outcome::NoFlow, AtLeast(0)),
            (Hook::ToPod, Outcome::Policy, AtLeast(0)),
            (Hook::ToPod, Outcome::NoFlow, AtLeast(0)),
        ]);
    }
    assert_eq!(left, allowed, "the server is told, too");
    Ok(())
}

/// Shows that the good connections lost nothing and the bad ones were reset.
fn report(began: Instant, open: Vec<(&str, bool, Connection)>) -> Result<()> {
    let (mut wrong, mut last) = (Vec::new(), Duration::ZERO);
    for (_, _, connection) in &open {
        connection.stop.store(true, Ordering::Relaxed);
    }
    for (name, is_good, connection) in open {
        let (at, result) = connection.finish()?;
        match (is_good, result) {
            (true, Ok(())) => {}
            (false, Err(error)) if is_reset(&error) => {
                last = last.max(at.saturating_duration_since(began));
            }
            (_, result) => wrong.push(format!("{name}: {result:?} after {:?}", at - began)),
        }
    }
    println!("from the change to the last reset: {last:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// `ECONNABORTED`: the pod's own stack was told to end it.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    matches!(error.kind(), ConnectionReset | ConnectionAborted)
}

/// Connections that the server's stack holds open.
fn established(web: &Pod<'_>) -> Result<usize> {
    let table = web
        .netns()
        .run(|| fs::read_to_string("/proc/thread-self/net/tcp6"))?;
    let port = format!(":{PORT:04X}");
    let is_open = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|it| it.ends_with(&port)) && fields.get(3) == Some(&"01")
    };
    Ok(table.lines().filter(is_open).count())
}

/// A connection under light traffic, and how it ended.
struct Connection {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<(Instant, io::Result<()>)>,
}

impl Connection {
    fn open(from: &Pod<'_>, to: &Pod<'_>, family: Family) -> io::Result<Self> {
        let stream = from.connect(to.at(family, PORT))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let worker = thread::spawn(move || {
            let result = exchange(&stream, &told);
            (Instant::now(), result)
        });
        Ok(Self { stop, worker })
    }

    fn is_over(&self) -> bool {
        self.worker.is_finished()
    }

    /// When it ended, and how, once it was told to stop.
    fn finish(self) -> Result<(Instant, io::Result<()>)> {
        let ended = self.worker.join();
        ended.map_err(|_| anyhow::anyhow!("a connection's thread panicked"))
    }
}

/// Sends numbered lines and expects each back, until told to stop; then every byte has come back.
fn exchange(mut stream: &TcpStream, stop: &AtomicBool) -> io::Result<()> {
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let line = [number.to_be_bytes(), (!number).to_be_bytes()].concat();
        stream.write_all(&line)?;
        let mut echoed = [0; 16];
        stream.read_exact(&mut echoed)?;
        assert_eq!(echoed[..], line[..]);
        sleep(PAUSE);
    }
    Ok(())
}
