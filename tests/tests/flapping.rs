//! Connections that are opened while a label comes and goes: each of them works, whichever way it takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

/// How often the label comes and goes.
const TURNS: usize = 20;

#[test]
fn of_the_client() -> Result<()> {
    scenario("flap_client", |lab| {
        let (client, server) = shop(lab)?;
        server.enrol()?;
        flap(&client, &server, &client)
    })
}

#[test]
fn of_the_server() -> Result<()> {
    scenario("flap_server", |lab| {
        let (client, server) = shop(lab)?;
        client.enrol()?;
        flap(&client, &server, &server)
    })
}

fn shop(lab: &Lab) -> Result<(Pod<'_>, Pod<'_>)> {
    let client = lab.pod("client").namespace("shop").on("n1").create()?;
    let server = lab.pod("web").namespace("shop").on("n2").create()?;
    Ok((client, server))
}

/// Connects one by one while a pod joins and leaves.
fn flap(client: &Pod<'_>, server: &Pod<'_>, pod: &Pod<'_>) -> Result<()> {
    let _app = Server::start(server, 8080, App::Echo)?;
    let done = AtomicBool::new(false);
    let connect = || {
        let mut opened = 0;
        while !done.load(Ordering::Relaxed) {
            let stream = client.connect(server.at(Family::BOTH[opened % 2], 8080))?;
            echoes(&stream, b"all the time").with_context(|| format!("connection {opened}"))?;
            opened += 1;
        }
        Ok::<_, anyhow::Error>(opened)
    };
    thread::scope(|scope| {
        let connecting = scope.spawn(connect);
        let flapped = (0..TURNS).try_for_each(|_| pod.enrol().and_then(|()| pod.leave()));
        done.store(true, Ordering::Relaxed);
        let opened = connecting.join().expect("it does not panic")?;
        ensure!(opened > TURNS, "{opened} connections are too few to tell");
        flapped
    })
}
