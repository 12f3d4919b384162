//! Which programs the kernel has at an interface.

use aya::programs::{SchedClassifier, TcAttachType};

use super::attach::{Mode, Place, is_tcx};
use mesh_common::names::{PROGRAM_FROM_NET, PROGRAM_FROM_POD, PROGRAM_TO_NET, PROGRAM_TO_POD};

/// What an uplink is to have.
const UPLINK: [(&str, TcAttachType); 2] = [
    (PROGRAM_FROM_NET, TcAttachType::Ingress),
    (PROGRAM_TO_NET, TcAttachType::Egress),
];
/// What the host's end of a pod's interface is to have.
const POD: [(&str, TcAttachType); 2] = [
    (PROGRAM_FROM_POD, TcAttachType::Ingress),
    (PROGRAM_TO_POD, TcAttachType::Egress),
];

/// Programs that an interface is without; `filters` are those in its clsact qdisc.
pub(super) fn missing(mode: Mode, place: Place, ifname: &str, filters: &[String]) -> Vec<String> {
    let wanted = match place {
        Place::Uplink => &UPLINK,
        Place::Pod => &POD,
    };
    let by_tcx = is_tcx(mode, place);
    let is_there = |program: &str, attach| {
        if by_tcx {
            let present = SchedClassifier::query_tcx(ifname, attach);
            present.is_ok_and(|(_, all)| all.iter().any(|it| it.name_as_str() == Some(program)))
        } else {
            filters.iter().any(|it| it == program)
        }
    };
    let missing = wanted
        .iter()
        .filter(|(program, attach)| !is_there(program, *attach));
    missing.map(|(program, _)| (*program).to_owned()).collect()
}
