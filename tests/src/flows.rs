//! What `mesh-agent flows` tells of a node.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::node::Node;
use crate::wait::eventually;

/// How soon what happens is told.
pub const AT_ONCE: Duration = Duration::from_secs(1);

/// The flows, with more words to the command.
pub fn flows(node: &Node, words: &[&str]) -> Result<Vec<Value>> {
    let words = [&["flows", "-o", "json"], words].concat();
    let output = node.netns().output(&mut node.command(&words))?;
    let text = String::from_utf8(output.stdout)?;
    let flows = text.lines().map(serde_json::from_str);
    Ok(flows.collect::<Result<_, _>>()?)
}

/// Waits until a refusal is told that holds all of these, as `(pointer, part of its text)`.
pub fn told(node: &Node, parts: &[(&str, &str)]) -> Result<()> {
    let mut latest = Vec::new();
    let holds = |flow: &Value| {
        parts.iter().all(|(pointer, part)| {
            let text = flow.pointer(pointer).and_then(Value::as_str);
            text.is_some_and(|text| text.contains(part))
        })
    };
    eventually("the refusal is told", AT_ONCE, || {
        latest = flows(node, &["--denied"])?;
        Ok(latest.iter().any(&holds))
    })
    .with_context(|| format!("{parts:?} of {latest:#?}"))
}
