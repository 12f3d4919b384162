//! What the source tells: labels, policies, and files that are half written.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::app::echoes;
use mesh_tests::cni::Call;
use mesh_tests::node::Node;
use mesh_tests::objects;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::{Value, json};

use super::{Guests, around, last};
use crate::draw::Draw;
use crate::stage::{OPEN, Stage};

/// Both ways, the pod is reached.
fn reached(stage: &Stage<'_>, what: &str) -> Result<()> {
    for family in Family::BOTH {
        let opened = stage.client.connect(stage.fickle.at(family, OPEN));
        let done = opened.and_then(|it| echoes(&it, b"hello"));
        done.with_context(|| format!("{what}, {family:?}"))?;
    }
    Ok(())
}

pub(super) fn enrol(stage: &Stage<'_>) -> Result<Guests> {
    stage.fickle.enrol()?;
    reached(stage, "enrolled")?;
    stage.fickle.leave()?;
    reached(stage, "no longer enrolled")?;
    stage.fickle.label(objects::MODE, None)?;
    Ok(Guests::new())
}

/// A policy by which nobody reaches the fickle pod: its kind and its body.
fn denial(draw: &mut Draw) -> (&'static str, Value) {
    let denials = [
        (
            "NetworkPolicy",
            json!({ "podSelector": {}, "policyTypes": ["Ingress"] }),
        ),
        (
            "AuthorizationPolicy",
            json!({ "action": "DENY", "rules": [{}] }),
        ),
        ("AuthorizationPolicy", json!({})),
        (
            "PeerAuthentication",
            json!({ "mtls": { "mode": "STRICT" } }),
        ),
    ];
    draw.one(&denials).clone()
}

/// Who is not in the mesh is reached by a plain pod, unless policy denies it.
fn refused(stage: &Stage<'_>) -> Result<()> {
    for family in Family::BOTH {
        let to = stage.fickle.at(family, OPEN);
        ensure!(stage.plain.is_refused(to), "policy denies {to}");
    }
    Ok(())
}

pub(super) fn policy(stage: &Stage<'_>, draw: &mut Draw) -> Result<Guests> {
    let (kind, spec) = denial(draw);
    stage.fickle.enrol()?;
    stage.lab.policy(kind, "fickle", "denial", spec)?;
    refused(stage).context(kind)?;
    stage.lab.remove_policy(kind, "fickle", "denial")?;
    stage.fickle.label(objects::MODE, None)?;
    reached(stage, "without the policy")?;
    Ok(Guests::new())
}

pub(super) fn policy_without_agent(
    stage: &Stage<'_>,
    node: &Node,
    draw: &mut Draw,
) -> Result<Guests> {
    let (kind, spec) = denial(draw);
    stage.fickle.enrol()?;
    around(node, || {
        stage
            .lab
            .objects()
            .apply(objects::policy(kind, "fickle", "denial", &spec))
    })?;
    stage.lab.settle()?;
    refused(stage).context(kind)?;
    around(node, || {
        stage.lab.objects().remove(kind, "fickle", "denial");
        Ok(())
    })?;
    stage.fickle.label(objects::MODE, None)?;
    reached(stage, "without the policy")?;
    Ok(Guests::new())
}

/// A file of the source, and what it says.
fn file(stage: &Stage<'_>, draw: &mut Draw) -> Result<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(stage.lab.directory().join("source"))?;
    let mut all = entries
        .map(|it| Ok(it?.path()))
        .collect::<Result<Vec<_>>>()?;
    all.sort();
    let path = draw.one(&all).clone();
    let text = fs::read(&path)?;
    Ok((path, text))
}

/// Half of a file, in place; whole again when it is dropped.
struct Torn(PathBuf, Vec<u8>);

impl Torn {
    fn new(stage: &Stage<'_>, draw: &mut Draw) -> Result<Self> {
        let (path, text) = file(stage, draw)?;
        let end = draw.below(text.len());
        // What is cut off may be whole YAML that says less, which nobody can tell from what was meant.
        fs::write(&path, [&text[..end], b"\n]"].concat())?;
        Ok(Self(path, text))
    }
}

impl Drop for Torn {
    fn drop(&mut self) {
        // What it comes to shows in whether the mesh recovers.
        let _ = fs::write(&self.0, &self.1);
    }
}

pub(super) fn torn(stage: &Stage<'_>, lasts: Duration, draw: &mut Draw) -> Result<Guests> {
    let torn = Torn::new(stage, draw)?;
    last(lasts);
    drop(torn);
    Ok(Guests::new())
}

pub(super) fn torn_at_start(
    stage: &Stage<'_>,
    node: &Node,
    lasts: Duration,
    draw: &mut Draw,
) -> Result<Guests> {
    node.agent().kill()?;
    let torn = Torn::new(stage, draw)?;
    node.agent()
        .start_unready()
        .with_context(|| format!("{} is torn", torn.0.display()))?;
    last(lasts);
    drop(torn);
    let ready = || {
        let status = node.cni().call(node.netns(), "STATUS", &Call::default())?;
        Ok(status.exit == 0)
    };
    eventually("the agent serves", SOON, ready)?;
    Ok(Guests::new())
}
