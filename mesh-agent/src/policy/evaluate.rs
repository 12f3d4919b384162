//! All layers together.

use super::{Connection, Direction, Layer, Reason, Verdict, authorization, network};
use crate::model::{Pod, Snapshot};

/// Judges a connection at one of its ends.
///
/// The verdict is that of the first layer that denies. When all allow it is that of the first with a policy to name, or of
/// the first. Work is in proportion to the policies that are about the pod, and to what those say.
pub fn evaluate(snapshot: &Snapshot, connection: &Connection<'_>) -> Verdict {
    let layers = layers(connection.direction);
    let mut decisive = judge(snapshot, connection, layers[0]);
    for layer in &layers[1..] {
        if !decisive.allow {
            break;
        }
        let verdict = judge(snapshot, connection, *layer);
        if !verdict.allow || (decisive.policy.is_none() && verdict.policy.is_some()) {
            decisive = verdict;
        }
    }
    decisive
}

/// What each layer says to a connection, in the order in which they are asked.
pub fn explain(snapshot: &Snapshot, connection: &Connection<'_>) -> Vec<Verdict> {
    let layers = layers(connection.direction).iter();
    layers
        .map(|layer| judge(snapshot, connection, *layer))
        .collect()
}

fn layers(direction: Direction) -> &'static [Layer] {
    match direction {
        Direction::Egress => &[Layer::NetworkPolicy],
        Direction::Ingress => &[
            Layer::NetworkPolicy,
            Layer::PeerAuthentication,
            Layer::AuthorizationPolicy,
        ],
    }
}

fn judge(snapshot: &Snapshot, connection: &Connection<'_>, layer: Layer) -> Verdict {
    if is_to_itself(connection) {
        return Verdict::new(layer, Reason::Itself);
    }
    match layer {
        Layer::NetworkPolicy => network::judge(snapshot, connection),
        Layer::PeerAuthentication => authorization::authenticate(snapshot, connection),
        Layer::AuthorizationPolicy => authorization::authorize(snapshot, connection),
    }
}

fn is_to_itself(connection: &Connection<'_>) -> bool {
    let ends = (connection.source.workload, connection.destination.workload);
    matches!(ends, (Some(source), Some(destination)) if source.key == destination.key)
}

impl<'a> Connection<'a> {
    /// The pod that a connection ends in, if it is one that policies know: not one in the host's network.
    pub(super) fn destination_pod(&self) -> Option<&'a Pod> {
        let pod = self.destination.workload?.pod.as_deref();
        pod.filter(|it| !it.host_network && !it.terminated)
    }

    /// The pod that a connection starts in, if it is one that policies know.
    ///
    /// A peer whose certificate is another service account's than the pod's is not that pod: the address has been given
    /// to another since. Trust domains are not compared, they may have aliases.
    pub(super) fn source_pod(&self) -> Option<&'a Pod> {
        let pod = self.source.workload?.pod.as_deref();
        pod.filter(|it| !it.host_network && !it.terminated)
            .filter(|it| {
                self.source.identity.is_none_or(|identity| {
                    identity.namespace() == &*it.key.namespace
                        && identity.service_account() == &*it.service_account
                })
            })
    }
}
