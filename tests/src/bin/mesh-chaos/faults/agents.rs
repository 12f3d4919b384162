//! Agents that end, at any time.

use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::node::Node;
use nix::sys::signal::{Signal, kill as signal};

use super::{Guests, last};
use crate::draw::Draw;

/// More than a start takes until everything is in place.
const START: u64 = 700;

pub(super) fn restart(node: &Node, lasts: Duration) -> Result<Guests> {
    node.agent().stop()?;
    last(lasts);
    node.agent().start()?;
    Ok(Guests::new())
}

pub(super) fn upgrade(node: &Node) -> Result<Guests> {
    // The one before is told to stop as soon as the new one runs.
    node.agent().start()?;
    Ok(Guests::new())
}

pub(super) fn kill(nodes: &[&Node], lasts: Duration) -> Result<Guests> {
    nodes.iter().try_for_each(|node| node.agent().kill())?;
    last(lasts);
    nodes.iter().try_for_each(|node| node.agent().start())?;
    Ok(Guests::new())
}

pub(super) fn kill_at_start(node: &Node, draw: &mut Draw) -> Result<Guests> {
    node.agent().kill()?;
    for _ in 0..=draw.below(3) {
        let after = draw.millis(START);
        thread::scope(|scope| {
            // It fails, because it is killed.
            let starting = scope.spawn(|| drop(node.agent().start()));
            sleep(after);
            let _ = node.agent().kill();
            starting.join().expect("it does not panic");
            // Killed before it was there to be killed.
            let _ = node.agent().kill();
        });
    }
    node.agent().start()?;
    Ok(Guests::new())
}

pub(super) fn freeze(node: &Node, lasts: Duration) -> Result<Guests> {
    let agent = node.agent().pid().context("no agent")?;
    signal(agent, Signal::SIGSTOP)?;
    last(2 * lasts);
    signal(agent, Signal::SIGCONT)?;
    Ok(Guests::new())
}
