//! EDGE: carries captured connections: accept, decide, act, record.

mod allowed;
mod budget;
mod copy;
mod drain;
mod inbound;
mod outbound;
mod reach;
pub mod socket;
mod workers;

pub use allowed::{Allowed, Ends};
pub use inbound::Inbound;
pub use outbound::{Lane, Outbound};
pub use reach::TransparentDial;
pub use socket::{CLIENT_PORTS, POD_PORTS};
pub use workers::Workers;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use crate::clock;
use crate::hbone::{Baggage, WorkloadKind};
use crate::model::Workload;
use crate::telemetry::{Connection, Direction, Failure, Flag, Telemetry};
use budget::Exhausted;

/// Tells of a connection that there is no place for.
fn exhausted(
    telemetry: &Telemetry,
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
    exhausted: Exhausted,
) {
    telemetry.counters.exhausted.fetch_add(1, Ordering::Relaxed);
    let connection = Connection::new(direction, source, destination, clock::now());
    let failure = Failure::new(Flag::Connect, exhausted);
    telemetry.refuse_early(connection, failure);
}

/// What the mesh tells peers about a workload; none for one without a pod.
fn baggage(workload: &Workload) -> Option<Baggage> {
    let key = workload.pod_key()?;
    Some(Baggage {
        cluster: Some("Kubernetes".to_owned()),
        namespace: Some(key.namespace.to_string()),
        workload: Some((WorkloadKind::Pod, key.name.to_string())),
        ..Baggage::default()
    })
}
