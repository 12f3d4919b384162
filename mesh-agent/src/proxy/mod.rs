//! EDGE: carries captured connections: accept, decide, act, record.

mod access_log;
mod allowed;
mod budget;
mod copy;
mod drain;
mod inbound;
mod outbound;
mod random;
mod reach;
pub mod socket;
mod workers;

pub use allowed::{Allowed, Ends};
pub use inbound::Inbound;
pub use outbound::{Lane, Outbound};
pub use reach::TransparentDial;
pub use socket::{CLIENT_PORTS, POD_PORTS};
pub use workers::Workers;

use crate::hbone::{Baggage, WorkloadKind};
use crate::model::Workload;

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
