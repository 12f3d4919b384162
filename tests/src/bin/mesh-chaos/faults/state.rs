//! Files and limits of an agent: damaged, gone, full.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::netns::Netns;
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::programs::one_each;
use mesh_tests::wait::{SOON, eventually};

use super::pods::{speaks, visitor};
use super::{Guests, around, guest, last};
use crate::draw::Draw;
use crate::stage::{Stage, state};

/// Cuts a file off, or turns one bit of it over.
fn damage(path: &Path, draw: &mut Draw) -> Result<()> {
    let mut text = fs::read(path)?;
    if draw.below(2) == 0 {
        text.truncate(draw.below(text.len()));
    } else {
        let at = draw.below(text.len());
        text[at] ^= 1 << draw.below(8);
    }
    Ok(fs::write(path, text)?)
}

pub(super) fn torn_record(stage: &Stage<'_>, node: &Node, draw: &mut Draw) -> Result<Guests> {
    let first = visitor(stage, node, "guest", true)?;
    let records = state(node).join("attachments");
    let record = format!("mesh-{}-shop-guest@eth0", stage.lab.name());
    around(node, || {
        // Its kubelet deletes it, and has not come to DEL.
        stage.lab.objects().remove("Pod", "shop", first.name());
        damage(&records.join(record), draw)
    })?;
    let second = visitor(stage, node, "another", true)?;
    speaks(stage, &second, true)?;
    let guests = vec![guest(&first), guest(&second)];
    first.delete()?;
    second.delete()?;
    Ok(guests)
}

pub(super) fn torn_settings(node: &Node, draw: &mut Draw) -> Result<Guests> {
    let settings = state(node).join("sysctls.json");
    around(node, || {
        damage(&settings, draw)?;
        // As after a boot.
        let forward = "/proc/sys/net/ipv4/ip_forward";
        Ok(node.netns().run(|| fs::write(forward, "0"))?)
    })?;
    // Set aside, unless what was damaged can still be read.
    let _ = fs::remove_file(settings.with_extension("json.corrupt"));
    Ok(Guests::new())
}

pub(super) fn pins_lost(node: &Node) -> Result<Guests> {
    around(node, || node.lose_pins())?;
    Ok(Guests::new())
}

pub(super) fn pins_hidden(node: &Node) -> Result<Guests> {
    let hidden = node.pins().with_file_name("hidden");
    around(node, || {
        fs::rename(node.pins(), &hidden)?;
        Ok(fs::create_dir(node.pins())?)
    })?;
    eventually("one program of each kind at each device", SOON, || {
        one_each(node, |device| device == UPLINK).map(|_| true)
    })?;
    fs::remove_dir_all(&hidden)?;
    Ok(Guests::new())
}

pub(super) fn disk_full(stage: &Stage<'_>, node: &Node) -> Result<Guests> {
    let filler = state(node).join("filler");
    let mut file = File::create(&filler)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    let (netns, call) = stage.lab.sandbox("refused")?;
    let refused = node.cni().call(node.netns(), "ADD", &call)?;
    ensure!(refused.exit != 0, "no room for a record: {}", refused.json);
    let told = refused.json.to_string();
    ensure!(told.contains("space left"), "{told}");
    Netns::remove(netns.name())?;
    // Without room, too, there is a start.
    around(node, || Ok(()))?;
    fs::remove_file(&filler)?;
    Ok(Guests::new())
}

pub(super) fn descriptors(node: &Node, lasts: Duration) -> Result<Guests> {
    let pid = node.agent().pid().context("no agent")?.to_string();
    let limit = |limit: &str| node.netns().exec("prlimit", ["--pid", &pid, limit]);
    let before = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let before = before.lines().find(|it| it.starts_with("Max open files"));
    let before = before
        .and_then(|it| it.split_whitespace().nth(4))
        .context("no limit")?;
    // Fewer than it has.
    limit(&format!("--nofile=10:{before}"))?;
    last(2 * lasts);
    limit(&format!("--nofile={before}:{before}"))?;
    Ok(Guests::new())
}

pub(super) fn ca_away(stage: &Stage<'_>, node: &Node, draw: &mut Draw) -> Result<Guests> {
    let file = *draw.one(&["root-cert.pem", "root-key.pem"]);
    let (file, away) = (
        stage.lab.ca().join(file),
        stage.lab.directory().join("away"),
    );
    around(node, || {
        fs::rename(&file, &away)?;
        let started = node.agent().start();
        fs::rename(&away, &file)?;
        let error = started.err().context("it starts without its root")?;
        ensure!(format!("{error:#}").contains("restore"), "{error:#}");
        Ok(())
    })?;
    Ok(Guests::new())
}
