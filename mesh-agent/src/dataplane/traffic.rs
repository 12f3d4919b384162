//! CORE: what the kernel has carried by itself, put together from its totals and the records of open connections.

use std::collections::{BTreeMap, HashMap};

use mesh_common::addr::{Addr, Port};
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

/// A connection that the kernel carries by itself, or has carried lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The pod and its peer; the latter by its address whoever it is.
    pub key: TrafficKey,
    /// The pod's address.
    pub own: Addr,
    /// Ports of the opener and of the other end.
    pub ports: (Port, Port),
    /// Whether its handshake was completed.
    pub was_open: bool,
    /// Bytes that the opener has sent, and the other end.
    pub bytes: [u64; 2],
    /// When its first packet came: microseconds of the kernel's monotonic clock, which wrap around.
    pub began: u32,
    /// From then to the end of the handshake, in microseconds.
    pub handshake: u32,
    /// When it ended, by the same clock; none while it is open.
    pub ended: Option<u32>,
    /// Whether it ended by a reset.
    pub is_reset: bool,
    /// Whether the opener has sent all it will, and the other end.
    pub is_done: [bool; 2],
}

/// The connections that records tell of. `own`: the address of the pod whose flow it is, as the peer knows it.
pub(super) fn connections(
    records: impl IntoIterator<Item = (FlowKey, Record)>,
    own: impl Fn(&FlowKey) -> Option<Addr>,
) -> Vec<Connection> {
    let mut all = Vec::new();
    // Between two pods of this node each has a record with what it has sent; the opener's comes with the ports in their order.
    let mut local: HashMap<_, [Option<Record>; 2]> = HashMap::new();
    for (flow, record) in records {
        let by_pod = record.flow.opener == Opener::Pod as u32;
        if !by_pod && record.flow.opener != Opener::Peer as u32 {
            continue;
        }
        let ports = if by_pod {
            (flow.pod_port, flow.peer_port)
        } else {
            (flow.peer_port, flow.pod_port)
        };
        let Some(own) = own(&flow) else {
            continue;
        };
        if record.flow.neighbour == 0 {
            let [pod, peer] = record.bytes;
            let (way, bytes) = if by_pod {
                (Way::PlainFromPod, [pod, peer])
            } else {
                (Way::PlainToPod, [peer, pod])
            };
            let done = [state::POD_DONE, state::PEER_DONE].map(|it| record.state & it != 0);
            let is_done = if by_pod { done } else { [done[1], done[0]] };
            let key = (key(flow.ifindex, way, flow.peer), own);
            all.push(connection(
                key,
                ports,
                &record,
                bytes,
                is_done,
                record.ended,
            ));
            continue;
        }
        let key = if by_pod {
            (key(flow.ifindex, Way::Local, flow.peer), own)
        } else {
            (key(record.flow.neighbour, Way::Local, own), flow.peer)
        };
        local.entry((key, ports)).or_default()[usize::from(!by_pod)] = Some(record);
    }
    for ((key, ports), ends) in local {
        let [Some(opener), other] = ends else {
            continue;
        };
        let is_done =
            [Some(opener), other].map(|it| it.is_some_and(|it| it.state & state::POD_DONE != 0));
        let bytes = [opener.bytes[0], other.map_or(0, |it| it.bytes[0])];
        let theirs = other.map_or(0, |it| it.ended);
        let is_later = theirs != 0 && theirs.wrapping_sub(opener.ended).cast_signed() > 0;
        let ended = if is_later { theirs } else { opener.ended };
        all.push(connection(key, ports, &opener, bytes, is_done, ended));
    }
    all
}

/// `record`: the opener's, or the only one.
fn connection(
    (key, own): (TrafficKey, Addr),
    ports: (Port, Port),
    record: &Record,
    bytes: [u64; 2],
    is_done: [bool; 2],
    ended: u32,
) -> Connection {
    let is_reset = record.state & state::CLOSED != 0;
    Connection {
        key,
        own,
        ports,
        was_open: record.state & state::OPENED != 0,
        bytes,
        began: record.recorded,
        handshake: record.handshake,
        ended: (is_reset || is_done == [true; 2]).then_some(ended),
        is_reset,
        is_done,
    }
}

/// Adds what open connections have carried so far. `known`: whether an address is a workload's.
pub(super) fn carried(
    totals: impl IntoIterator<Item = (TrafficKey, Traffic)>,
    connections: &[Connection],
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
    for it in connections.iter().filter(|it| !it.is_reset) {
        let mut key = it.key;
        if key.way != Way::Local as u32 && !known(&key.peer) {
            key.peer = Addr::NONE;
        }
        // What never was open has no totals, and nothing to tell.
        let Some(carried) = all.get_mut(&key) else {
            continue;
        };
        // Whoever is done is in the totals already.
        let so_far = |end: usize| if it.is_done[end] { 0 } else { it.bytes[end] };
        carried.sent += so_far(0);
        carried.received += so_far(1);
        if it.was_open && it.ended.is_none() {
            carried.closed = carried.closed.saturating_sub(1);
        }
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

#[cfg(test)]
mod tests {
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
        let found = connections(records.into_iter().flatten(), own);
        let all = carried([(to_server, totals(10, 100, 200))], &found, known);
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
        let all = carried(in_all, &connections(records, own), known);
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
