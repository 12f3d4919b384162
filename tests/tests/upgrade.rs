//! An agent is replaced by the next, which waits beside it for the order to stop: under load, nobody notices. An agent that
//! is killed takes its tunnels along, and nothing else.
//!
//! `MESH_UPGRADE_OPEN` and `MESH_UPGRADE_RATE` make the load greater than it is by default; `MESH_OTHER_BIN_DIR` names
//! another build of the agent, to which and from which is changed in turn.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use mesh_common::maps::Config;
use mesh_common::{ABI_VERSION, names};
use mesh_tests::app::{App, Server, raise_descriptor_limit};
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::load::{self, Outcome, Path, Size};
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::wait::eventually;
use mesh_tests::world::Family;

const ROUNDS: usize = 5;
const SECRET: &[u8] = b"the show goes on";

#[test]
fn replaced_under_load_nobody_notices() -> Result<()> {
    scenario("upgrade", |lab| {
        let other = std::env::var_os("MESH_OTHER_BIN_DIR").map(PathBuf::from);
        let outcomes = under_load(lab, |node, round| {
            let other = other.as_deref().filter(|_| round % 2 == 0);
            node.agent().replace(other)
        })?;
        all_unharmed(&outcomes)?;
        // What is open has ended, so nothing keeps the old agents.
        for node in lab.nodes() {
            let all = || Ok(node.agent().replaced() == 0);
            eventually("the replaced agents end", Duration::from_secs(10), all)?;
        }
        Ok(())
    })
}

#[test]
fn maps_of_an_older_version_are_replaced_under_load() -> Result<()> {
    scenario("older", |lab| {
        let outcomes = under_load(lab, |node, _| {
            let replaced = || node.agent().log().matches("an older agent's").count();
            let before = replaced();
            set_version(node, ABI_VERSION - 1)?;
            node.agent().replace(None)?;
            ensure!(replaced() > before, "the maps are not replaced");
            Ok(())
        })?;
        all_unharmed(&outcomes)
    })
}

#[test]
fn maps_of_a_newer_version_are_refused() -> Result<()> {
    scenario("newer", |lab| {
        let node = lab.node("n1");
        node.agent().stop()?;
        set_version(node, ABI_VERSION + 1)?;
        let refused = node.agent().start().expect_err("a newer version");
        let told = format!("{refused:#}");
        ensure!(told.contains("this agent knows none after"), "{told}");
        set_version(node, ABI_VERSION)?;
        node.agent().start()
    })
}

#[test]
fn killed_under_load_only_tunnels_end() -> Result<()> {
    scenario("crash", |lab| {
        let outcomes = under_load(lab, |node, _| {
            node.agent().kill()?;
            node.agent().start()
        })?;
        for (name, outcome) in &outcomes {
            let is_tunnelled = *name == TUNNELLED;
            ensure!(is_tunnelled || outcome.is_unharmed(), "{name}: {outcome:?}");
            ensure!(outcome.opened > 50, "{name}: {outcome:?}");
        }
        Ok(())
    })
}

fn all_unharmed(outcomes: &[(&str, Outcome)]) -> Result<()> {
    for (name, outcome) in outcomes {
        ensure!(outcome.is_unharmed(), "{name}: {outcome:?}");
    }
    Ok(())
}

/// Pretends that another agent has made the pinned maps.
fn set_version(node: &Node, abi_version: u32) -> Result<()> {
    let pin = node.pins().join(names::MAP_CONFIG);
    let mut config = Array::<_, Config>::try_from(Map::Array(MapData::from_pin(pin)?))?;
    let is = config.get(&0, 0)?;
    Ok(config.set(0, Config { abi_version, ..is }, 0)?)
}

const TUNNELLED: &str = "tunnelled";

/// Ends every agent several times, in the way given, under load on paths of each class.
fn under_load(
    lab: &Lab,
    end: impl Fn(&Node, usize) -> Result<()>,
) -> Result<Vec<(&'static str, Outcome)>> {
    raise_descriptor_limit()?;
    lab.namespace("shop").ambient().create()?;
    let shop = |name, node| lab.pod(name).namespace("shop").on(node).create();
    let (client, near, far) = (
        shop("client", "n1")?,
        shop("near", "n1")?,
        shop("far", "n2")?,
    );
    let (plain, plain_far) = (
        lab.pod("plain").on("n1").create()?,
        lab.pod("plain-far").on("n2").create()?,
    );
    let _apps = [&near, &far, &plain_far].map(|pod| Server::start(pod, 8080, App::Echo));
    let path = |name, client, server: &Pod<'_>, family| Path {
        name,
        client,
        to: server.at(family, 8080),
        words: if name == "plain" {
            b"open to everybody"
        } else {
            SECRET
        },
    };
    let paths = [
        path("plain", &plain, &plain_far, Family::V4),
        path("same node", &client, &near, Family::V6),
        path(TUNNELLED, &client, &far, Family::V4),
    ];
    let size = Size {
        open: given("MESH_UPGRADE_OPEN", 90)? / 3,
        rate: given("MESH_UPGRADE_RATE", 60)? / 3,
    };
    let wire = lab.capture()?;
    let outcomes = load::during(&paths, size, || {
        for round in 0..ROUNDS {
            for node in lab.nodes() {
                let began = Instant::now();
                end(node, round)?;
                println!("{}: {} ms", node.name(), began.elapsed().as_millis());
                sleep(Duration::from_millis(500));
            }
        }
        Ok(())
    })?;
    ensure!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
    let named = paths.iter().map(|path| path.name).zip(outcomes);
    Ok(named
        .inspect(|(name, outcome)| tell(name, outcome))
        .collect())
}

fn tell(name: &str, outcome: &Outcome) {
    println!(
        "{name}: {} exchanges, {} cut, {} ms at most; {} opened, {} failed, {} ms at most",
        outcome.exchanges,
        outcome.cut.len(),
        outcome.longest_exchange.as_millis(),
        outcome.opened,
        outcome.failed.len(),
        outcome.longest_open.as_millis(),
    );
}

fn given(name: &str, default: u32) -> Result<u32> {
    Ok(std::env::var(name).map_or(Ok(default), |value| value.parse())?)
}
