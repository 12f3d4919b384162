//! What `mesh-agent metrics` tells of a node.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::node::Node;

/// Samples of an agent's metrics by name and labels.
#[derive(Debug)]
pub struct Metrics(BTreeMap<String, u64>);

impl Metrics {
    /// What the agent of a node tells now.
    pub fn of(node: &Node) -> Result<Self> {
        let text = String::from_utf8(node.netns().output(&mut node.command(&["metrics"]))?.stdout)?;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Ok(Self(samples.collect()))
    }

    /// The sum of the samples of a name with these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let of = self.0.iter().filter(|(series, _)| {
            let bare = series.split('{').next();
            bare == Some(name) && labels.iter().all(|it| series.contains(it))
        });
        of.map(|(_, value)| value).sum()
    }
}
