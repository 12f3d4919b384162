//! CORE: one line of the result, and how it comes from samples.

use serde_json::{Value, json};

use crate::references::{GOALS, PEER_RATIOS, of};
use crate::statistics::{median, spread};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

impl Better {
    /// Whether a figure is as good as a goal, or better.
    pub(crate) fn reaches(self, figure: f64, goal: f64) -> bool {
        match self {
            Self::More => figure >= goal,
            Self::Less => figure <= goal,
        }
    }
}

/// CPU time for a unit of work, the median of the samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Of all agents, with the mesh.
    pub(crate) agents: f64,
    /// Of load, agents and the kernel's softirq threads, with the mesh and without.
    pub(crate) all: [f64; 2],
    /// `s/GB` or `us`.
    pub(crate) unit: &'static str,
    /// Cores that others had meanwhile.
    pub(crate) others: f64,
}

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// Without the mesh, one a pair; empty when there is nothing beside it.
    pub(crate) plain: Vec<f64>,
    /// With the mesh, one a pair.
    pub(crate) mesh: Vec<f64>,
    pub(crate) cost: Option<Cost>,
    /// What failed, both sides.
    pub(crate) errors: u64,
}

impl Row {
    pub(crate) fn new(key: impl Into<String>, unit: &'static str, better: Better) -> Self {
        Self {
            key: key.into(),
            unit,
            better,
            plain: Vec::new(),
            mesh: Vec::new(),
            cost: None,
            errors: 0,
        }
    }

    /// With figures of the mesh alone.
    pub(crate) fn alone(mut self, mesh: impl IntoIterator<Item = f64>) -> Self {
        self.mesh.extend(mesh);
        self
    }

    /// With pairs: without the mesh, with it.
    pub(crate) fn pairs(mut self, pairs: impl IntoIterator<Item = [f64; 2]>) -> Self {
        for [plain, mesh] in pairs {
            self.plain.push(plain);
            self.mesh.push(mesh);
        }
        self
    }

    fn ratios(&self) -> impl Iterator<Item = f64> {
        self.mesh
            .iter()
            .zip(&self.plain)
            .map(|(mesh, plain)| mesh / plain)
    }

    /// Mesh by plain, the median of the pairs: the two of a pair saw the same machine.
    pub(crate) fn ratio(&self) -> Option<f64> {
        (!self.plain.is_empty()).then(|| median(self.ratios()))
    }

    /// Median without the mesh and with it.
    pub(crate) fn medians(&self) -> (Option<f64>, f64) {
        let of = |values: &[f64]| median(values.iter().copied());
        (
            (!self.plain.is_empty()).then(|| of(&self.plain)),
            of(&self.mesh),
        )
    }

    /// The least and the most of the pairs' ratios; without pairs, of the figures.
    pub(crate) fn spread(&self) -> [f64; 2] {
        if self.plain.is_empty() {
            spread(self.mesh.iter().copied())
        } else {
            spread(self.ratios())
        }
    }

    pub(crate) fn json(&self) -> Value {
        let (plain, mesh) = self.medians();
        let (peer, goal) = (of(PEER_RATIOS, &self.key), of(GOALS, &self.key));
        let cost = self.cost.as_ref();
        json!({
            "key": self.key, "unit": self.unit, "plain": plain, "mesh": mesh,
            "ratio": self.ratio(), "spread": self.spread(), "pairs": self.mesh.len(), "errors": self.errors,
            "agent_cpu": cost.map(|it| it.agents), "cpu_unit": cost.map(|it| it.unit),
            "cpu_all_plain": cost.map(|it| it.all[0]), "cpu_all_mesh": cost.map(|it| it.all[1]),
            "others_cores": cost.map(|it| it.others),
            "peer_ratio": peer.ratio, "peer": peer.value, "peer_agent_cpu": peer.agent_cpu,
            "goal_ratio": goal.ratio, "goal": goal.value, "goal_agent_cpu": goal.agent_cpu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_pairs_not_of_medians() {
        let row =
            Row::new("x", "s", Better::Less).pairs([[1.0, 2.0], [10.0, 30.0], [100.0, 100.0]]);
        assert_eq!(row.ratio(), Some(2.0));
        assert_eq!(row.medians(), (Some(10.0), 30.0));
        assert_eq!(row.json()["spread"], json!([1.0, 3.0]));
    }

    #[test]
    fn alone_has_no_ratio() {
        let row = Row::new("x", "s", Better::Less).alone([3.0, 1.0, 2.0]);
        assert_eq!(row.ratio(), None);
        assert_eq!(row.json()["mesh"], 2.0);
        assert_eq!(row.json()["plain"], Value::Null);
    }
}
