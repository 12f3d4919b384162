//! What an answer cannot know.

use super::Carriage;
use super::party::Someone;
use super::walk::{Leg, Walk};

impl Walk<'_> {
    /// What may be otherwise than it is told.
    pub(super) fn notes(&self, legs: &[Leg]) -> Vec<String> {
        let mut notes = Vec::new();
        let here = &*self.snapshot.settings().node;
        let far = |it: &Someone<'_>| it.node.filter(|node| *node != here).map(str::to_owned);
        if self.source.workload.is_some()
            && let Some(node) = far(&self.source)
        {
            notes.push(format!(
                "egress and route are decided by the agent of node {node}, from the same objects; what it has not heard yet is not known here"
            ));
        }
        let mut nodes: Vec<_> = legs
            .iter()
            .map(|leg| Someone::at(self.snapshot, leg.address.ip()))
            .filter(|it| it.workload.is_some())
            .filter_map(|it| far(&it))
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        notes.extend(nodes.iter().map(|node| {
            format!("ingress is judged by the agent of node {node}, from the same objects; what it has not heard yet is not known here")
        }));
        let outside = |leg: &Leg| {
            let someone = Someone::at(self.snapshot, leg.address.ip());
            someone.workload.is_none() && leg.carriage != Carriage::Refused
        };
        if legs.iter().any(outside) {
            notes.push("the destination is no pod: whether it takes the connection is not the mesh's to know".to_owned());
        }
        match self.snapshot.left_out().count() {
            0 => {}
            count => notes.push(format!(
                "{count} parts of the source cannot be read; `mesh-agent policies` names them"
            )),
        }
        notes
    }
}
