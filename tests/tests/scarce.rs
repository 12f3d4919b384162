//! What an agent needs runs out: it refuses what finds no room and says so, nothing leaves in plaintext, what is there goes on;
//! and all is well once there is room again.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mesh_common::addr::Addr;
use mesh_common::maps::Workload;
use mesh_common::names::MAP_WORKLOADS;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::objects;
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use nix::mount::{MsFlags, mount};

const SECRET: &[u8] = b"nobody on the wire may read this";

/// Enrolled pods: two on the first node, one on the second.
struct Cast<'lab> {
    client: Pod<'lab>,
    near: Pod<'lab>,
    far: Pod<'lab>,
    _servers: [Server; 2],
}

impl<'lab> Cast<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        lab.namespace("shop").ambient().create()?;
        let shop = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let (client, near, far) = (
            shop("client", "n1")?,
            shop("near", "n1")?,
            shop("far", "n2")?,
        );
        let serve = |pod| Server::start(pod, 8080, App::Echo);
        let servers = [serve(&near)?, serve(&far)?];
        Ok(Self {
            client,
            near,
            far,
            _servers: servers,
        })
    }

    /// Everybody reaches everybody.
    fn speak(&self) -> Result<()> {
        for family in Family::BOTH {
            for server in [&self.near, &self.far] {
                echoes(&self.client.connect(server.at(family, 8080))?, SECRET)?;
            }
        }
        Ok(())
    }
}

#[test]
fn the_disk_is_full() -> Result<()> {
    let lab = Lab::without_agents("scarce_disk", 2, &[])?;
    let disk = |node: &Node| node.state().join("state");
    for node in lab.nodes() {
        fs::create_dir_all(disk(node))?;
        let (kind, size) = (Some("tmpfs"), Some("size=128k"));
        mount(kind, &disk(node), kind, MsFlags::empty(), size)?;
        node.agent().start()?;
    }
    let cast = Cast::new(&lab)?;
    let node = lab.node("n1");
    let before = Holdings::of(node)?;
    let wire = lab.capture()?;
    let filler = disk(node).join("filler");
    let mut file = File::create(&filler)?;
    while file.write_all(&[0; 4096]).is_ok() {}

    // Twice: with the agent that saw room, and with one that starts without any.
    for _ in 0..2 {
        let (netns, call) = lab.sandbox("late")?;
        let refused = node.cni().call(node.netns(), "ADD", &call)?;
        let told = refused.json.to_string();
        ensure!(refused.exit != 0 && told.contains("space left"), "{told}");
        Netns::remove(netns.name())?;
        cast.speak()?;
        node.agent().kill()?;
        node.agent().start()?;
        eventually("all works", SOON, || cast.speak().map(|()| true))?;
    }
    drop(file);
    fs::remove_file(&filler)?;
    ensure!(
        Holdings::of(node)? == before,
        "nothing is left of what was refused"
    );
    let late = lab.pod("late").namespace("shop").on("n1").create()?;
    echoes(&late.connect(cast.far.at(Family::V4, 8080))?, SECRET)?;
    ensure!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
    Ok(())
}

#[test]
fn an_agent_has_no_descriptors_left() -> Result<()> {
    scenario("scarce_descriptors", |lab| {
        let cast = Cast::new(lab)?;
        let node = lab.node("n1");
        let open = cast.client.connect(cast.far.at(Family::V4, 8080))?;
        echoes(&open, SECRET)?;
        let wire = lab.capture()?;
        let pid = node.agent().pid().context("no agent")?.to_string();
        let limit = |soft: &str| {
            let limit = format!("--nofile={soft}:");
            node.netns().exec("prlimit", ["--pid", &pid, &limit])
        };
        // Fewer than it has.
        limit("10")?;
        let attempt = || -> Result<()> {
            let stream = cast.client.connect(cast.far.at(Family::V4, 8080))?;
            Ok(echoes(&stream, SECRET)?)
        };
        let refused = std::thread::scope(|scope| {
            // Held until the end of its patience, or reset.
            let refused = scope.spawn(|| attempt().is_err());
            eventually("it says so", SOON, || {
                let log = node.agent().log();
                Ok(log.contains("Too many open files"))
            })?;
            for family in Family::BOTH {
                echoes(&cast.client.connect(cast.near.at(family, 8080))?, SECRET)?;
            }
            echoes(&open, SECRET).context("what is open goes on")?;
            limit("1024")?;
            eventually("all works", SOON, || cast.speak().map(|()| true))?;
            Ok::<_, anyhow::Error>(refused.join().expect("it does not panic"))
        })?;
        println!("the attempt without descriptors was refused: {refused}");
        echoes(&open, SECRET).context("what is open goes on")?;
        ensure!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
        eventually("all is well", SOON, || Ok(node.status()?.0 == 0))
    })
}

#[test]
fn a_map_is_full() -> Result<()> {
    scenario("scarce_map", |lab| {
        let cast = Cast::new(lab)?;
        let node = lab.node("n1");
        let wire = lab.capture()?;
        // As many addresses as there is room for, of nobody.
        let mut workloads = node.workloads()?;
        let nobody = Workload {
            id: 0,
            flags: 0,
            ifindex: 0,
        };
        let stuffing = (0_u32..)
            .map(|it| Addr::from(std::net::IpAddr::from((0x0b00_0000 + it).to_be_bytes())));
        let stuffed: Vec<_> = stuffing
            .take_while(|address| workloads.insert(address, nobody, 0).is_ok())
            .collect();
        println!("{MAP_WORKLOADS} has room for {} more", stuffed.len());

        let (netns, call) = lab.sandbox("late")?;
        let refused = node.cni().call(node.netns(), "ADD", &call)?;
        let told = refused.json.to_string();
        ensure!(refused.exit != 0 && told.contains(MAP_WORKLOADS), "{told}");
        Netns::remove(netns.name())?;
        cast.speak().context("what is known goes on")?;
        // A pod of another node, which this node cannot come to know.
        let address = "10.244.2.99".parse()?;
        let mut unknown = objects::pod("shop", "unknown", "unknown", "n2", &objects::Labels::new());
        objects::set_ready(&mut unknown, &[address]);
        lab.objects().apply(unknown)?;
        let is_told = || Ok(node.problems()?.contains("behind the world"));
        eventually("it says so", SOON, is_told)?;
        ensure!(
            node.agent().log().contains("map WORKLOADS is full"),
            "and why"
        );
        let attempt = cast.client.connect(SocketAddr::new(address, 8080));
        let reached = attempt.and_then(|it| echoes(&it, SECRET));
        ensure!(reached.is_err(), "there is no such pod");
        lab.objects().remove("Pod", "shop", "unknown");

        for address in &stuffed {
            workloads.remove(address)?;
        }
        eventually("all is well", SOON, || Ok(node.status()?.0 == 0))?;
        let late = lab.pod("late").namespace("shop").on("n1").create()?;
        echoes(&late.connect(cast.far.at(Family::V4, 8080))?, SECRET)?;
        let wire = stop(wire)?;
        ensure!(
            wire.tcp(8080) == 0 && !wire.contains(SECRET),
            "nothing in plaintext"
        );
        Ok(())
    })
}
