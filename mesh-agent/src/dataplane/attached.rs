//! Which programs the kernel has at an interface.

use aya::programs::{SchedClassifier, TcAttachType};

use super::attach::{Mode, is_tcx};
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

/// Programs that an uplink is without. Of clsact filters nothing is known.
pub(super) fn missing_at_uplink(mode: Mode, ifname: &str) -> Vec<String> {
    missing(mode, ifname, &UPLINK)
}

/// As [`missing_at_uplink`], of the host's end of a pod's interface.
pub(super) fn missing_at_pod(mode: Mode, ifname: &str) -> Vec<String> {
    missing(mode, ifname, &POD)
}

fn missing(mode: Mode, ifname: &str, wanted: &[(&str, TcAttachType)]) -> Vec<String> {
    if !is_tcx(mode) {
        return Vec::new();
    }
    let is_there = |program: &str, attach| {
        let present = SchedClassifier::query_tcx(ifname, attach);
        present.is_ok_and(|(_, all)| all.iter().any(|it| it.name_as_str() == Some(program)))
    };
    let missing = wanted
        .iter()
        .filter(|(program, attach)| !is_there(program, *attach));
    missing.map(|(program, _)| (*program).to_owned()).collect()
}
