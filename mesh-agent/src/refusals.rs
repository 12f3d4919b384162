//! EDGE: one line for each packet that the kernel refused, with the reason and whose policy it is.
//!
//! The kernel tells the packet alone; the policy is found again on the snapshot of now, which the kernel follows within
//! moments. Lines are limited in rate; what is left out is counted and told.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_common::event::Refused;
use mesh_common::verdict::{Hook, Outcome};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::dataplane::Events;
use crate::model::{Snapshot, Workload};
use crate::policy::{Connection, Destination, Direction, Source, Verdict, evaluate};

/// Lines written in a [`PERIOD`].
const LINES: u32 = 50;
const PERIOD: Duration = Duration::from_secs(1);
/// Events read at once.
const BATCH: usize = 256;

/// Writes refusals until shutdown.
pub async fn run(
    mut events: Events,
    world: watch::Receiver<Snapshot>,
    shutdown: CancellationToken,
) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut written, mut suppressed) = (0, 0_u64);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = period.tick() => {
                if suppressed > 0 {
                    info!(target: "refused", suppressed, "refusals not told one by one");
                }
                (written, suppressed) = (0, 0);
            }
            read = events.read(BATCH), if written < LINES => match read {
                Ok(refused) => {
                    let snapshot = world.borrow().clone();
                    for event in refused {
                        if written < LINES {
                            written += 1;
                            write(&snapshot, &event);
                        } else {
                            suppressed += 1;
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

fn write(snapshot: &Snapshot, event: &Refused) {
    let (Some(hook), Some(outcome)) = (
        Hook::ALL.get(event.hook as usize),
        Outcome::ALL.get(event.outcome as usize),
    ) else {
        return;
    };
    if *outcome == Outcome::LinkLocal {
        // Every pod's kernel announces itself; nobody asks why that goes nowhere.
        return;
    }
    let (src, dst): (IpAddr, IpAddr) = (event.src.into(), event.dst.into());
    let [source, destination] = [src, dst].map(|ip| snapshot.workload_by_addr(ip));
    let verdict = verdict(snapshot, *hook, *outcome, event);
    let direction = verdict
        .as_ref()
        .map(|(direction, _)| tracing::field::debug(direction));
    tracing::event!(
        target: "refused",
        tracing::Level::INFO,
        hook = hook.name(),
        reason = outcome.name(),
        direction,
        policy = verdict.as_ref().map(|(_, verdict)| tracing::field::display(verdict)),
        src.addr = %SocketAddr::new(src, event.src_port.number()),
        src.workload = source.map(|it| tracing::field::display(&it.key)),
        src.identity = identity(source),
        dst.addr = %SocketAddr::new(dst, event.dst_port.number()),
        dst.workload = destination.map(|it| tracing::field::display(&it.key)),
        dst.identity = identity(destination),
        protocol = event.protocol,
        "refused"
    );
}

fn identity(workload: Option<&std::sync::Arc<Workload>>) -> Option<String> {
    workload?.identity.as_ref().map(ToString::to_string)
}

/// The verdict behind a refusal by policy, and the end that gave it; none when the world has changed since.
fn verdict(
    snapshot: &Snapshot,
    hook: Hook,
    outcome: Outcome,
    event: &Refused,
) -> Option<(Direction, Verdict)> {
    if !matches!(outcome, Outcome::Policy | Outcome::Strict) {
        return None;
    }
    let (src, dst): (IpAddr, IpAddr) = (event.src.into(), event.dst.into());
    let [source, destination] = [src, dst].map(|ip| snapshot.workload_by_addr(ip));
    let node = snapshot.node(&snapshot.settings().node);
    // Only the short cut is judged at both ends where the packet leaves, and it proves the identity. Flows to services are
    // judged by the pod that opens them where they arrive.
    let (directions, proved): (&[_], _) = match hook {
        Hook::FromPod | Hook::Connect => (&[Direction::Egress, Direction::Ingress], true),
        Hook::ToPod => (&[Direction::Ingress, Direction::Egress], false),
        Hook::ToNet | Hook::ToNode => (&[Direction::Egress], false),
        Hook::FromNet => (&[Direction::Ingress], false),
    };
    let identity = source
        .filter(|it| proved && it.enrolled)
        .and_then(|it| it.identity.as_ref());
    directions
        .iter()
        .map(|direction| {
            let connection = Connection {
                direction: *direction,
                protocol: event.protocol.to_le_bytes()[0].into(),
                source: Source {
                    address: src,
                    workload: source.map(|it| &**it),
                    identity: identity.filter(|_| *direction == Direction::Ingress),
                },
                destination: Destination {
                    address: dst,
                    port: event.dst_port.number(),
                    workload: destination.map(|it| &**it),
                },
                from_node: node.is_some_and(|node| node.addresses.contains(&src)),
            };
            (*direction, evaluate(snapshot, &connection))
        })
        .find(|(_, verdict)| !verdict.allow)
}
