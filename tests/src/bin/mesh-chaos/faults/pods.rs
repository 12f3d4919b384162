//! Pods that come and go, and what a runtime may ask.

use std::thread;

use anyhow::{Context, Result, ensure};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

use super::{Guests, guest};
use crate::draw::Draw;
use crate::stage::{OPEN, Stage};

/// A pod for a while: enrolled or not.
pub(super) fn visitor<'lab>(
    stage: &Stage<'lab>,
    node: &Node,
    name: &str,
    enrolled: bool,
) -> Result<Pod<'lab>> {
    let namespace = if enrolled { "shop" } else { "default" };
    let pod = stage.lab.pod(name).namespace(namespace);
    pod.on(node.name()).create()
}

/// Both ways, with a pod of its class on either node.
pub(super) fn speaks(stage: &Stage<'_>, visitor: &Pod<'_>, enrolled: bool) -> Result<()> {
    let _app = Server::start(visitor, OPEN, App::Echo)?;
    let others = if enrolled {
        [&stage.near, &stage.far]
    } else {
        // A plain pod of the first node does not listen.
        [&stage.plain_far, &stage.plain_far]
    };
    for family in Family::BOTH {
        for other in others {
            let what = || format!("{} and {}, {family:?}", visitor.name(), other.name());
            let to = visitor.connect(other.at(family, OPEN));
            to.and_then(|it| echoes(&it, b"hello")).with_context(what)?;
            let from = other.connect(visitor.at(family, OPEN));
            from.and_then(|it| echoes(&it, b"hello"))
                .with_context(what)?;
        }
    }
    Ok(())
}

pub(super) fn comes_and_goes(stage: &Stage<'_>, node: &Node, draw: &mut Draw) -> Result<Guests> {
    let enrolled = draw.below(2) == 0;
    let mut guests = Guests::new();
    for _ in 0..=draw.below(2) {
        let pod = visitor(stage, node, "guest", enrolled)?;
        speaks(stage, &pod, enrolled)?;
        guests = vec![guest(&pod)];
        pod.delete()?;
    }
    Ok(guests)
}

pub(super) fn without_agent(stage: &Stage<'_>, node: &Node) -> Result<Guests> {
    let first = visitor(stage, node, "guest", true)?;
    node.agent().kill()?;
    first.delete()?;
    let (netns, call) = stage.lab.sandbox("refused")?;
    let refused = node.cni().call(node.netns(), "ADD", &call)?;
    ensure!(refused.code() == Some(11), "try again: {}", refused.json);
    Netns::remove(netns.name())?;
    node.agent().start()?;
    let second = visitor(stage, node, "guest", true)?;
    speaks(stage, &second, true)?;
    let guests = vec![guest(&second)];
    second.delete()?;
    Ok(guests)
}

pub(super) fn calls(stage: &Stage<'_>, node: &Node, draw: &mut Draw) -> Result<Guests> {
    let sandboxes: Vec<_> = ["a", "b", "c"]
        .map(|name| stage.lab.sandbox(&format!("call-{name}")))
        .into_iter()
        .collect::<Result<_>>()?;
    let delays: Vec<_> = sandboxes.iter().map(|_| draw.millis(60)).collect();
    let call = |command: &str, at: usize| node.cni().call(node.netns(), command, &sandboxes[at].1);
    thread::scope(|scope| {
        let killed: Vec<_> = (0..sandboxes.len())
            .map(|at| {
                let (cni, netns, delay) = (node.cni(), node.netns(), delays[at]);
                let call = &sandboxes[at].1;
                scope.spawn(move || cni.call_and_kill(netns, "ADD", call, delay))
            })
            .collect();
        killed
            .into_iter()
            .try_for_each(|it| it.join().expect("it does not panic"))
    })?;
    // There are addresses for two; whoever was killed gave its own back.
    call("DEL", 0)?.success()?;
    for at in 1..sandboxes.len() {
        call("DEL", at)?.success()?;
        call("ADD", at)?.success()?;
    }
    for at in 0..sandboxes.len() {
        call("DEL", at)?.success()?;
        call("DEL", at)?.success()?;
    }
    sandboxes
        .iter()
        .try_for_each(|(netns, _)| Netns::remove(netns.name()))?;
    Ok(Guests::new())
}
