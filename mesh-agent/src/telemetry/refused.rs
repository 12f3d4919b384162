//! EDGE: packets that the kernel refused, with the reason and whose policy it is.
//!
//! The kernel tells the packet alone; the policy is found again on the snapshot of now, which the kernel follows within
//! moments. So many are taken up in a second; the others wait in the kernel, which counts all and tells those that it has
//! room for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::event::Refused;
use mesh_common::verdict::{Hook, Outcome};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Telemetry;
use super::connection::{Connection, Direction, Event, Failure, Flag, Record};
use crate::clock;
use crate::dataplane::Events;
use crate::model::{Snapshot, Workload};
use crate::policy::{self, Destination, Layer, Source, Verdict, evaluate};

/// Refusals taken up in a [`PERIOD`].
const MOST: usize = 1024;
const PERIOD: Duration = Duration::from_secs(1);
/// Events read at once.
const BATCH: usize = 256;

/// Tells of refusals until shutdown.
pub async fn run(
    mut events: Events,
    mut world: watch::Receiver<Snapshot>,
    telemetry: Arc<Telemetry>,
    shutdown: CancellationToken,
) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut taken = 0;
    // What was refused while no agent ran is told with the names of those who were.
    tokio::select! {
        () = shutdown.cancelled() => return,
        known = world.wait_for(Snapshot::is_synced) => if known.is_err() { return },
    }
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = period.tick() => taken = 0,
            read = events.read(BATCH), if taken < MOST => match read {
                Ok(refused) => {
                    let snapshot = world.borrow().clone();
                    taken += refused.len();
                    for event in refused {
                        if let Some(record) = record(&snapshot, &event) {
                            telemetry.flow(record);
                        }
                    }
                }
                Err(error) => {
                    error!(%error, "refusals can no longer be read");
                    return;
                }
            },
        }
    }
}

/// What is told of a refused packet.
fn record(snapshot: &Snapshot, event: &Refused) -> Option<Record> {
    let hook = *Hook::ALL.get(event.hook as usize)?;
    let outcome = *Outcome::ALL.get(event.outcome as usize)?;
    if outcome == Outcome::LinkLocal {
        // Every pod's kernel announces itself; nobody asks why that goes nowhere.
        return None;
    }
    let (src, dst): (IpAddr, IpAddr) = (event.src.into(), event.dst.into());
    let direction = match hook {
        Hook::FromPod | Hook::Connect | Hook::ToNet | Hook::ToNode => Direction::Outbound,
        Hook::ToPod | Hook::FromNet => Direction::Inbound,
    };
    let connection = Connection::new(
        direction,
        SocketAddr::new(src, event.src_port.number()),
        SocketAddr::new(dst, event.dst_port.number()),
        clock::now(),
    );
    let connection = Connection {
        protocol: event.protocol.to_le_bytes()[0].into(),
        ..connection.known_to(snapshot)
    };
    let verdict = verdict(snapshot, hook, outcome, &connection);
    let flag = match (&verdict, outcome) {
        (Some((_, verdict)), _) => Flag::of_layer(verdict.layer),
        (None, Outcome::Policy) => Flag::of_layer(Layer::NetworkPolicy),
        (None, Outcome::Strict) => Flag::Deny,
        (None, _) => Flag::Connect,
    };
    Some(Record {
        at: clock::wall_at(event.at.get()),
        event: Event::Refused,
        connection: Arc::new(connection),
        sent: 0,
        received: 0,
        duration: Duration::ZERO,
        failure: Some(Arc::new(Failure {
            flag,
            hook: Some((hook, outcome)),
            verdict,
            cause: None,
            is_early: false,
        })),
    })
}

/// The verdict behind a refusal by policy, and the end that gave it; none when the world has changed since.
fn verdict(
    snapshot: &Snapshot,
    hook: Hook,
    outcome: Outcome,
    refused: &Connection,
) -> Option<(policy::Direction, Verdict)> {
    use policy::Direction::{Egress, Ingress};
    if !matches!(outcome, Outcome::Policy | Outcome::Strict) {
        return None;
    }
    let (src, dst) = (refused.source.ip(), refused.destination);
    let [source, destination] =
        [&refused.source_workload, &refused.destination_workload].map(|it| it.as_deref());
    let node = snapshot.node(&snapshot.settings().node);
    // Only the short cut is judged at both ends where the packet leaves, and it proves the identity. Flows to services are
    // judged by the pod that opens them where they arrive.
    let (directions, proved): (&[_], _) = match hook {
        Hook::FromPod | Hook::Connect => (&[Egress, Ingress], true),
        Hook::ToPod => (&[Ingress, Egress], false),
        Hook::ToNet | Hook::ToNode => (&[Egress], false),
        Hook::FromNet => (&[Ingress], false),
    };
    let identity = source
        .filter(|it| proved && it.enrolled)
        .and_then(|it: &Workload| it.identity.as_ref());
    directions
        .iter()
        .map(|direction| {
            let connection = policy::Connection {
                direction: *direction,
                protocol: refused.protocol,
                source: Source {
                    address: src,
                    workload: source,
                    identity: identity.filter(|_| *direction == Ingress),
                },
                destination: Destination {
                    address: dst.ip(),
                    port: dst.port(),
                    workload: destination,
                },
                from_node: node.is_some_and(|node| node.addresses.contains(&src)),
            };
            (*direction, evaluate(snapshot, &connection))
        })
        .find(|(_, verdict)| !verdict.allow)
}
