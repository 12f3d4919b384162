//! CORE: what the kernel has carried by itself, put together from its totals and the records of open connections.

use std::collections::{BTreeMap, HashMap};

use mesh_common::addr::Addr;
use mesh_common::maps::{FlowKey, Opener};
use mesh_common::traffic::{Record, Traffic, TrafficKey, Way, state};

/// Connections of a pod with one peer that travelled alike, in all; bytes as the opener sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Those whose handshake was completed.
    pub opened: u64,
    /// Those of them that have ended.
    pub closed: u64,
    /// Those that were reset before.
    pub failed: u64,
    /// Bytes that the openers have sent.
    pub sent: u64,
    /// Bytes that were sent to them.
    pub received: u64,
    /// Sum of the times that handshakes took, in microseconds.
    pub handshakes: u64,
}

/// One end's part of a connection that is not over.
#[derive(Clone, Copy, Default)]
struct Half {
    is_open: bool,
    is_done: bool,
    bytes: u64,
}

/// Adds what open connections have carried so far.
///
/// `own`: the address of the pod whose flow it is, as the peer knows it. `known`: whether an address is a workload's.
pub(super) fn carried(
    totals: impl IntoIterator<Item = (TrafficKey, Traffic)>,
    records: impl IntoIterator<Item = (FlowKey, Record)>,
    own: impl Fn(&FlowKey) -> Option<Addr>,
    known: impl Fn(&Addr) -> bool,
) -> BTreeMap<TrafficKey, Carried> {
    let mut all = BTreeMap::new();
    for (key, totals) in totals {
        let carried = Carried {
            opened: totals.opened,
            closed: totals.opened,
            failed: totals.failed,
            sent: totals.sent,
            received: totals.received,
            handshakes: totals.handshakes,
        };
        all.insert(key, carried);
    }
    // Between two pods of this node each has a record with what it has sent, by the ports that tell their connections apart.
    let mut halves: HashMap<_, [Half; 2]> = HashMap::new();
    for (flow, record) in records {
        if record.state & state::CLOSED != 0 {
            continue;
        }
        let by_pod = record.flow.opener == Opener::Pod as u32;
        if !by_pod && record.flow.opener != Opener::Peer as u32 {
            continue;
        }
        let half = |done, end: usize| Half {
            is_open: record.state & state::OPENED != 0,
            is_done: record.state & done != 0,
            bytes: record.bytes[end],
        };
        let pod = half(state::POD_DONE, 0);
        if record.flow.neighbour == 0 {
            let peer = half(state::PEER_DONE, 1);
            let (way, ends) = if by_pod {
                (Way::PlainFromPod, [pod, peer])
            } else {
                (Way::PlainToPod, [peer, pod])
            };
            let peer = if known(&flow.peer) {
                flow.peer
            } else {
                Addr::NONE
            };
            add(&mut all, &key(flow.ifindex, way, peer), ends);
            continue;
        }
        let (key, ports) = if by_pod {
            let ports = (flow.pod_port, flow.peer_port);
            (key(flow.ifindex, Way::Local, flow.peer), ports)
        } else {
            let Some(server) = own(&flow) else {
                continue;
            };
            let ports = (flow.peer_port, flow.pod_port);
            (key(record.flow.neighbour, Way::Local, server), ports)
        };
        halves.entry((key, ports)).or_default()[usize::from(!by_pod)] = pod;
    }
    for ((key, _), ends) in halves {
        add(&mut all, &key, ends);
    }
    all
}

const fn key(ifindex: u32, way: Way, peer: Addr) -> TrafficKey {
    TrafficKey {
        ifindex,
        way: way as u32,
        peer,
    }
}

/// Adds a connection by what its opener and the other end have sent; whoever is done is in the totals already.
fn add(all: &mut BTreeMap<TrafficKey, Carried>, key: &TrafficKey, [opener, other]: [Half; 2]) {
    // What never was open has no totals, and nothing to tell.
    let Some(carried) = all.get_mut(key) else {
        return;
    };
    let so_far = |half: Half| if half.is_done { 0 } else { half.bytes };
    carried.sent += so_far(opener);
    carried.received += so_far(other);
    if opener.is_open && !(opener.is_done && other.is_done) {
        carried.closed = carried.closed.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::addr::Port;
    use mesh_common::maps::Flow;

    use super::*;

    const CLIENT: u32 = 5;
    const SERVER: u32 = 6;

    fn addr(host: u8) -> Addr {
        [10, 0, 0, host].into()
    }

    fn record(opener: Opener, neighbour: u32, state: u32, bytes: [u64; 2]) -> Record {
        let flow = Flow {
            neighbour,
            opener: opener as u32,
            revision: 1,
        };
        Record {
            state,
            bytes,
            ..Record::new(flow, 0)
        }
    }

    fn flow(ifindex: u32, peer: u8, (pod_port, peer_port): (u16, u16)) -> FlowKey {
        FlowKey {
            ifindex,
            peer: addr(peer),
            pod_port: Port::new(pod_port),
            peer_port: Port::new(peer_port),
            protocol: 6,
        }
    }

    fn own(flow: &FlowKey) -> Option<Addr> {
        u8::try_from(flow.ifindex).ok().map(addr)
    }

    /// Hosts from 200 on are no workloads.
    fn known(peer: &Addr) -> bool {
        *peer != addr(200)
    }

    fn totals(opened: u64, sent: u64, received: u64) -> Traffic {
        Traffic {
            opened,
            sent,
            received,
            ..Traffic::default()
        }
    }

    #[test]
    fn both_ends_of_a_short_cut_are_one_connection() {
        use state::{OPENED, POD_DONE};
        let to_server = key(CLIENT, Way::Local, addr(6));
        let open = |port, client, server| {
            [
                (
                    flow(CLIENT, 6, (port, 80)),
                    record(Opener::Pod, SERVER, client | OPENED, [7, 0]),
                ),
                (
                    flow(SERVER, 5, (80, port)),
                    record(Opener::Peer, CLIENT, server, [9, 0]),
                ),
            ]
        };
        let records = [
            open(1, 0, 0),
            // The client is done, and in the totals.
            open(2, POD_DONE, 0),
            open(3, POD_DONE, POD_DONE),
            open(4, state::CLOSED, state::CLOSED),
        ];
        let all = carried(
            [(to_server, totals(10, 100, 200))],
            records.into_iter().flatten(),
            own,
            known,
        );
        let expected = Carried {
            opened: 10,
            closed: 8,
            failed: 0,
            sent: 107,
            received: 218,
            handshakes: 0,
        };
        assert_eq!(all, BTreeMap::from([(to_server, expected)]));
    }

    #[test]
    fn plain_connections_are_told_by_who_opened_them() {
        use state::{OPENED, PEER_DONE};
        let from = key(CLIENT, Way::PlainFromPod, addr(9));
        let to = key(CLIENT, Way::PlainToPod, addr(9));
        let outside = key(CLIENT, Way::PlainFromPod, Addr::NONE);
        let records = [
            (
                flow(CLIENT, 200, (1, 80)),
                record(Opener::Pod, 0, OPENED, [8, 9]),
            ),
            (
                flow(CLIENT, 9, (1, 80)),
                record(Opener::Pod, 0, OPENED, [1, 2]),
            ),
            (
                flow(CLIENT, 9, (80, 1)),
                record(Opener::Peer, 0, OPENED | PEER_DONE, [3, 4]),
            ),
            // Probes, and connections to services, which are told by their endpoints.
            (
                flow(CLIENT, 9, (81, 1)),
                record(Opener::Node, 0, OPENED, [5, 6]),
            ),
            (
                flow(CLIENT, 9, (2, 80)),
                record(Opener::PodToService, 0, OPENED, [5, 6]),
            ),
            // Never open.
            (flow(CLIENT, 8, (2, 80)), record(Opener::Pod, 0, 0, [0, 0])),
        ];
        let in_all = [
            (from, totals(3, 0, 0)),
            (to, totals(1, 50, 0)),
            (outside, totals(1, 0, 0)),
        ];
        let all = carried(in_all, records, own, known);
        let told = |key| {
            all.get(&key)
                .map(|it: &Carried| (it.closed, it.sent, it.received))
        };
        assert_eq!(told(from), Some((2, 1, 2)));
        assert_eq!(told(to), Some((0, 50, 3)));
        assert_eq!(told(outside), Some((0, 8, 9)));
        assert_eq!(all.len(), 3);
    }
}
