//! What an agent keeps on disk and in the kernel is damaged or lost while it is away: it starts, says so, and gives no address
//! twice.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::bpffs::Bpffs;
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::pod::Pod;
use mesh_tests::programs::one_each;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

const SECRET: &[u8] = b"nobody on the wire may read this";

fn shop<'lab>(lab: &'lab Lab, name: &str, node: &str) -> Result<Pod<'lab>> {
    lab.pod(name).namespace("shop").on(node).create()
}

/// Kills an agent, does something, starts it.
fn around(node: &Node, work: impl FnOnce() -> Result<()>) -> Result<()> {
    node.agent().kill()?;
    work()?;
    node.agent().start()
}

/// The record of the one pod of a node.
fn record(node: &Node) -> Result<PathBuf> {
    let records = fs::read_dir(node.state().join("state/attachments"))?;
    let records = records
        .map(|it| Ok(it?.path()))
        .collect::<Result<Vec<_>>>()?;
    ensure!(records.len() == 1, "{records:?}");
    records.into_iter().next().context("a record")
}

#[test]
fn a_pod_without_its_record() -> Result<()> {
    damaged("record_cut", |path, text| {
        Ok(fs::write(path, &text[..text.len() / 2])?)
    })?;
    damaged("record_flipped", |path, text| {
        // Another address, which is one all the same.
        let text = String::from_utf8(text.to_vec())?;
        Ok(fs::write(path, text.replacen("10.244.1.", "10.244.2.", 1))?)
    })?;
    damaged("record_missing", |path, _| Ok(fs::remove_file(path)?))
}

/// The pod of a damaged record says nothing in plaintext, is told, and keeps its addresses until its runtime deletes it.
fn damaged(name: &str, damage: impl FnOnce(&Path, &[u8]) -> Result<()>) -> Result<()> {
    scenario(name, |lab| {
        lab.namespace("shop").ambient().create()?;
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        let far = shop(lab, "far", "n2")?;
        let _app = Server::start(&far, 8080, App::Echo)?;
        let first = shop(lab, "first", "n1")?;
        echoes(&first.connect(far.at(Family::V4, 8080))?, SECRET)?;
        around(node, || {
            let record = record(node)?;
            damage(&record, &fs::read(&record)?)
        })?;
        let wire = lab.capture()?;
        for family in Family::BOTH {
            ensure!(
                first.is_refused(far.at(family, 8080)),
                "nobody vouches for it"
            );
        }
        let wire = stop(wire)?;
        ensure!(
            wire.tcp(8080) == 0 && !wire.contains(SECRET),
            "nothing in plaintext"
        );
        let problems = node.problems()?;
        ensure!(problems.contains("has no record"), "{problems}");

        // The object is gone before the runtime's DEL, as the lab waits for no more than it knows of pods.
        lab.objects().remove("Pod", "shop", "first");
        let second = shop(lab, "second", "n1")?;
        for family in Family::BOTH {
            ensure!(
                second.ip(family) != first.ip(family),
                "{family:?} is given twice"
            );
            echoes(&second.connect(far.at(family, 8080))?, SECRET)?;
        }
        first.delete()?;
        second.delete()?;
        far.delete()?;
        eventually(
            "nothing is left",
            SOON,
            || Ok(Holdings::of(node)? == before),
        )?;
        ensure!(node.problems()?.is_empty(), "{}", node.problems()?);
        Ok(())
    })
}

#[test]
fn the_record_of_kernel_settings() -> Result<()> {
    scenario("settings", |lab| {
        let node = lab.node("n1");
        let settings = node.state().join("state/sysctls.json");
        let whole = fs::read(&settings)?;
        for end in [0, 1, whole.len() / 2, whole.len() - 1] {
            around(node, || {
                fs::write(&settings, &whole[..end])?;
                // As after a boot, for which it is written.
                let forward = "/proc/sys/net/ipv4/ip_forward";
                Ok(node.netns().run(|| fs::write(forward, "0"))?)
            })
            .with_context(|| format!("cut to {end} bytes"))?;
            serde_json::from_slice::<serde_json::Value>(&fs::read(&settings)?)?;
        }
        ensure!(
            node.agent().log().contains("sysctls.json.corrupt"),
            "it says so"
        );
        Ok(())
    })
}

#[test]
fn the_pins_of_a_node() -> Result<()> {
    scenario("pins", |lab| {
        lab.namespace("shop").ambient().create()?;
        let (client, near, far) = (
            shop(lab, "client", "n1")?,
            shop(lab, "near", "n1")?,
            shop(lab, "far", "n2")?,
        );
        let _apps = [&near, &far].map(|pod| Server::start(pod, 8080, App::Echo));
        let node = lab.node("n1");
        let hidden = node.pins().with_file_name("hidden");
        let wire = lab.capture()?;
        let works = || -> Result<()> {
            one_each(node, |device| device == UPLINK)?;
            for family in Family::BOTH {
                for server in [&near, &far] {
                    echoes(&client.connect(server.at(family, 8080))?, SECRET)?;
                }
            }
            Ok(())
        };
        let soon = || eventually("all works", SOON, || works().map(|()| true));

        // Removed: links at hooks of their own are gone with them.
        around(node, || {
            fs::remove_dir_all(node.pins())?;
            Ok(fs::create_dir(node.pins())?)
        })?;
        soon()?;
        // Out of sight, as under another BPF file system: the links are still there.
        around(node, || {
            fs::rename(node.pins(), &hidden)?;
            Ok(fs::create_dir(node.pins())?)
        })?;
        soon()?;
        let told = "detached what an agent left whose pins are lost links=6";
        ensure!(
            node.agent().log().contains(told),
            "from_net, to_net, listen, to_node, connect4 and connect6"
        );
        // Mounted over.
        let mut over = None;
        around(node, || {
            over = Some(Bpffs::mount(&node.pins())?);
            Ok(())
        })?;
        soon()?;
        node.agent().kill()?;
        ensure!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
        Ok(())
    })
}

#[test]
fn a_file_of_the_source_that_cannot_be_read_at_start() -> Result<()> {
    scenario("source_torn", |lab| {
        lab.namespace("shop").ambient().create()?;
        let (client, far) = (shop(lab, "client", "n1")?, shop(lab, "far", "n2")?);
        let _app = Server::start(&far, 8080, App::Echo)?;
        let node = lab.node("n1");
        let file = lab.directory().join("source/namespace-shop.yaml");
        let whole = fs::read(&file)?;
        let wire = lab.capture()?;
        node.agent().kill()?;
        fs::write(&file, b"kind: [")?;
        node.agent().start_unready()?;
        let problems = node.problems()?;
        ensure!(problems.contains("namespace-shop.yaml"), "{problems}");
        // What an agent before it knew to be enrolled is not let out.
        ensure!(
            client.is_refused(far.at(Family::V4, 8080)),
            "nobody serves yet"
        );
        fs::write(&file, whole)?;
        eventually("it serves", SOON, || Ok(node.status()?.0 == 0))?;
        for family in Family::BOTH {
            echoes(&client.connect(far.at(family, 8080))?, SECRET)?;
        }
        let wire = stop(wire)?;
        ensure!(
            wire.tcp(8080) == 0 && !wire.contains(SECRET),
            "nothing in plaintext"
        );
        Ok(())
    })
}
