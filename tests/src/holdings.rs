//! What a node holds of pods: to be compared before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::Netns;
use crate::node::Node;

/// Everything on a node that a pod brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Devices other than the loopback.
    pub devices: BTreeSet<String>,
    /// Routes of all tables, both families, as `ip` shows them.
    pub routes: String,
    /// Number of pods that the kernel knows.
    pub pods: usize,
    /// Files of the agent's state, words left for it beside its socket, and pins of programs.
    pub files: BTreeSet<String>,
}

impl Holdings {
    /// Looks at a node.
    pub fn of(node: &Node) -> Result<Self> {
        let route = |family| {
            let table = ["route", "show", "table", "all"];
            node.netns().exec("ip", [family].iter().chain(&table))
        };
        let mut files = BTreeSet::new();
        for directory in [
            node.state().join("state"),
            node.state().join("released"),
            node.pins().join("links"),
        ] {
            list(&directory, &mut files)?;
        }
        Ok(Self {
            devices: devices(node.netns())?,
            routes: route("-4")? + &route("-6")?,
            pods: node.pods()?,
            files,
        })
    }
}

/// Devices of a namespace other than the loopback.
pub fn devices(netns: &Netns) -> Result<BTreeSet<String>> {
    let text = netns.exec("ip", ["-json", "link", "show"])?;
    let links: Value = serde_json::from_str(&text)?;
    let names = links.as_array().context("a list of links")?.iter();
    Ok(names
        .filter_map(|link| link["ifname"].as_str())
        .filter(|name| *name != "lo")
        .map(str::to_owned)
        .collect())
}

/// Every file below a directory; none when it is not there.
fn list(directory: &Path, files: &mut BTreeSet<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.insert(path.display().to_string());
        }
    }
    Ok(())
}
