//! CORE: what several agents know of who speaks with whom, as one.

use std::collections::BTreeMap;

use super::connection::Direction;
use super::graph::{Edge, Graph, Node};

/// Several agents' graphs as one. A connection that both ends' agents have seen counts once: as its source's has it, with
/// the larger bytes. Of a workload its own agent is believed.
pub fn merge(graphs: Vec<Graph>) -> Graph {
    let mut all = Graph::default();
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut pairs: BTreeMap<_, Vec<Edge>> = BTreeMap::new();
    for graph in graphs {
        all.agents.extend(graph.agents);
        all.left_out += graph.left_out;
        for node in graph.nodes {
            let known = nodes.get(&node.id);
            if known.is_none_or(|known| node.local || !known.local) {
                nodes.insert(node.id.clone(), node);
            }
        }
        for edge in graph.edges {
            let ends = (edge.source.clone(), edge.destination.clone());
            pairs.entry(ends).or_default().push(edge);
        }
    }
    all.nodes = nodes.into_values().collect();
    all.edges = pairs.into_values().flat_map(once).collect();
    all.sort();
    all
}

/// The edges of a pair of workloads, each connection on one of them.
fn once(edges: Vec<Edge>) -> Vec<Edge> {
    let (mut kept, seen): (Vec<_>, Vec<_>) = edges.into_iter().partition(Edge::is_by_source);
    let refusals_told = kept.iter().any(Edge::has_refusals);
    let mut more = Vec::new();
    for mut other in seen {
        if refusals_told {
            other = other.without_refusals();
        }
        let mut same: Vec<_> = kept
            .iter_mut()
            .filter(|it| it.has_traffic() && it.carriage == other.carriage)
            .collect();
        // Which of several services it was asked for by, the destination does not know.
        if let [same] = &mut same[..] {
            // What is told later is as of later, so that rates stay right.
            same.at_ms = same.at_ms.max(other.at_ms);
            same.sent = same.sent.max(other.sent);
            same.received = same.received.max(other.received);
            same.round_trip_us = same.round_trip_us.or(other.round_trip_us);
        }
        if !same.is_empty() {
            other = other.without_traffic();
        }
        if other.has_traffic() || other.has_refusals() {
            more.push(other);
        }
    }
    kept.extend(more);
    kept
}

impl Edge {
    fn is_by_source(&self) -> bool {
        self.reporter == Direction::Outbound.reporter()
    }

    fn has_traffic(&self) -> bool {
        self.opened > 0
    }

    fn has_refusals(&self) -> bool {
        self.refused > 0 || self.failed > 0
    }

    fn without_traffic(self) -> Self {
        Self {
            opened: 0,
            open: 0,
            sent: 0,
            received: 0,
            round_trip_us: None,
            ..self
        }
    }

    fn without_refusals(self) -> Self {
        Self {
            failed: 0,
            refused: 0,
            last_refusal: None,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::Agent;
    use super::*;

    fn node(id: &str, local: bool) -> Node {
        Node {
            id: id.to_owned(),
            namespace: None,
            name: id.to_owned(),
            workload: id.to_owned(),
            node: None,
            identity: None,
            enrolled: true,
            local,
            strict: false,
            addresses: Vec::new(),
            policies: Vec::new(),
        }
    }

    /// From a to b, as one of the two ends has it: connections, bytes each way, refusals.
    fn edge(reporter: &str, carriage: &str, opened: u64, bytes: [u64; 2], refused: u64) -> Edge {
        Edge {
            source: Some("a".to_owned()),
            destination: Some("b".to_owned()),
            service: None,
            carriage: carriage.to_owned(),
            reporter: reporter.to_owned(),
            at_ms: 0,
            opened,
            open: opened,
            failed: 0,
            refused,
            sent: bytes[0],
            received: bytes[1],
            round_trip_us: (reporter == "destination").then_some(300),
            last_refusal: None,
        }
    }

    fn graph(agent: &str, local: &str, edges: &[Edge]) -> Graph {
        Graph {
            agents: vec![Agent {
                name: agent.to_owned(),
                age_ms: Some(0),
                error: None,
            }],
            nodes: ["a", "b"].map(|it| node(it, it == local)).to_vec(),
            edges: edges.to_vec(),
            left_out: 1,
        }
    }

    /// What is left of the source's edges and the destination's, as reporter, connections, bytes and refusals.
    fn check(source: &[Edge], destination: &[Edge], expect: &[(&str, u64, [u64; 2], u64)]) {
        let graphs = [graph("n1", "a", source), graph("n2", "b", destination)];
        // Whoever is asked first.
        for graphs in [graphs.to_vec(), graphs.into_iter().rev().collect()] {
            let all = merge(graphs);
            let kept = all.edges.iter().map(|it| {
                let bytes = [it.sent, it.received];
                (&*it.reporter, it.opened, bytes, it.refused)
            });
            assert_eq!(kept.collect::<Vec<_>>(), expect);
            assert_eq!((all.agents.len(), all.nodes.len(), all.left_out), (2, 2, 2));
            assert!(all.nodes.iter().all(|it| it.local), "{:?}", all.nodes);
        }
    }

    #[test]
    fn a_connection_that_both_ends_see_counts_once() {
        let seen = edge("source", "tunnel", 2, [10, 90], 0);
        let also = edge("destination", "tunnel", 2, [12, 80], 0);
        check(
            std::slice::from_ref(&seen),
            std::slice::from_ref(&also),
            &[("source", 2, [12, 90], 0)],
        );
        let all = merge(vec![graph("n1", "a", &[seen, also])]);
        assert_eq!(all.edges.len(), 1, "also when both are of one agent");
        assert_eq!(all.edges[0].round_trip_us, Some(300));
    }

    #[test]
    fn what_one_end_alone_sees_stays() {
        let seen = edge("destination", "plain", 1, [5, 5], 0);
        check(
            &[],
            std::slice::from_ref(&seen),
            &[("destination", 1, [5, 5], 0)],
        );
        let other = edge("source", "tunnel", 1, [1, 1], 0);
        let both = [("destination", 1, [5, 5], 0), ("source", 1, [1, 1], 0)];
        check(&[other], &[seen], &both);
    }

    #[test]
    fn of_several_services_the_source_knows_which() {
        let to = |service: &str, bytes| Edge {
            service: Some(service.to_owned()),
            ..edge("source", "tunnel", 1, bytes, 0)
        };
        let seen = edge("destination", "tunnel", 2, [7, 7], 0);
        let kept = [("source", 1, [3, 3], 0), ("source", 1, [4, 4], 0)];
        check(&[to("x", [3, 3]), to("y", [4, 4])], &[seen], &kept);
    }

    #[test]
    fn a_refusal_that_both_ends_tell_counts_once() {
        let told = edge("source", "unknown", 0, [0, 0], 3);
        let also = edge("destination", "tunnel", 0, [0, 0], 3);
        check(
            &[told],
            std::slice::from_ref(&also),
            &[("source", 0, [0, 0], 3)],
        );
        let carried = edge("source", "tunnel", 1, [9, 9], 0);
        let kept = [("destination", 0, [0, 0], 3), ("source", 1, [9, 9], 0)];
        check(&[carried], &[also], &kept);
    }
}
