//! Everything that some pods say to a peer, found by asking.

use std::net::{IpAddr, Ipv4Addr};

use mesh_common::maps::{self, PolicyKey};

use super::mark::Grant;
use super::ports::{Cuts, Span};
use super::view::View;
use crate::model::{Snapshot, Workload};
use crate::policy::{Connection, Destination, Direction, IpProtocol, Source, evaluate};

/// One entry of `POLICY`, without set and class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Line {
    direction: u8,
    proof: u8,
    bits: u32,
    protocol: u8,
    port: u16,
    pub(super) allow: bool,
}

impl Line {
    /// Bits and key of the entry.
    pub(super) fn key(&self, set: u32, class: u32) -> (u32, PolicyKey) {
        let key = PolicyKey {
            set,
            class,
            direction: self.direction,
            proof: self.proof,
            protocol: self.protocol,
            zero: 0,
            port: mesh_common::addr::Port::new(self.port),
            end: 0,
        };
        (self.bits, key)
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Someone<'a> {
    pub(super) address: IpAddr,
    pub(super) workload: Option<&'a Workload>,
}

/// Who asks, whom.
pub(super) struct Question<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) view: &'a View<'a>,
    /// All that is granted to the peer, and perhaps more.
    pub(super) grants: Vec<&'a Grant<'a>>,
    /// The peer, or several of whom the kernel does not know which one it is: what one is refused, all are.
    pub(super) peers: &'a [Someone<'a>],
    /// Whether the peer is a process in the node's network.
    pub(super) from_node: bool,
}

/// The protocols that policies treat differently from the rest, which goes by [`OTHER`].
const PROTOCOLS: [u8; 5] = [1, 6, 17, 58, 132];

/// A number for experiments (RFC 3692).
const OTHER: u8 = 253;

impl Question<'_> {
    /// The entries; in order, so that equal answers are equal. `may_prove`: whether the peer's identity can be proved.
    pub(super) fn answer(&self, may_prove: bool) -> Vec<Line> {
        let mut lines = Vec::new();
        if self.view.judges(Direction::Ingress) {
            self.side(Direction::Ingress, false, &mut lines);
            if may_prove {
                self.side(Direction::Ingress, true, &mut lines);
            }
        }
        if self.view.judges(Direction::Egress) && !self.from_node {
            self.side(Direction::Egress, false, &mut lines);
        }
        lines
    }

    fn side(&self, direction: Direction, proved: bool, lines: &mut Vec<Line>) {
        let pairs = self.pairs();
        let ask = |protocol, port| {
            let mut pairs = pairs.iter();
            pairs.all(|it| self.ask(direction, proved, *it, (protocol, port)))
        };
        let line = |bits, protocol, port, allow| Line {
            direction: match direction {
                Direction::Ingress => maps::Direction::Ingress as u8,
                Direction::Egress => maps::Direction::Egress as u8,
            },
            proof: u8::from(proved),
            bits,
            protocol,
            port,
            allow,
        };
        let other = ask(IpProtocol::from(OTHER), 0);
        if other {
            lines.push(line(PolicyKey::ANY_PROTOCOL, 0, 0, true));
        }
        for number in PROTOCOLS {
            let protocol = IpProtocol::from(number);
            let verdicts = self
                .cuts(direction, protocol)
                .judge(|port| ask(protocol, port));
            let prefixes = verdicts.prefixes(other).into_iter();
            lines.extend(prefixes.map(|it| {
                let bits = PolicyKey::ANY_PORT + it.bits;
                line(bits, number, it.port, it.allow)
            }));
        }
    }

    /// The peer's addresses with the pod's own ones of the same family.
    fn pairs(&self) -> Vec<(Someone<'_>, IpAddr)> {
        let own = &self.view.addresses;
        let is_like = |a: IpAddr, b: IpAddr| a.is_ipv4() == b.is_ipv4();
        let pairs = self.peers.iter().flat_map(|peer| {
            let own = own.iter().filter(|it| is_like(**it, peer.address));
            own.map(|it| (*peer, *it))
        });
        let pairs: Vec<_> = pairs.collect();
        if !pairs.is_empty() {
            return pairs;
        }
        // No policy asks, or nobody can.
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.peers.iter().map(|it| (*it, nowhere)).collect()
    }

    fn ask(
        &self,
        direction: Direction,
        proved: bool,
        (peer, own): (Someone<'_>, IpAddr),
        (protocol, port): (IpProtocol, u16),
    ) -> bool {
        let me = Someone {
            address: own,
            workload: Some(&self.view.workload),
        };
        let (from, to) = match direction {
            Direction::Ingress => (peer, me),
            Direction::Egress => (me, peer),
        };
        let identity = from.workload.and_then(|it| it.identity.as_ref());
        let connection = Connection {
            direction,
            protocol,
            source: Source {
                address: from.address,
                workload: from.workload,
                identity: identity.filter(|_| proved),
            },
            destination: Destination {
                address: to.address,
                port,
                workload: to.workload,
            },
            from_node: self.from_node,
        };
        evaluate(self.snapshot, &connection).allow
    }

    fn cuts(&self, direction: Direction, protocol: IpProtocol) -> Cuts {
        let mut cuts = Cuts::default();
        let grants = self.grants.iter().filter(|it| it.direction == direction);
        for span in grants.flat_map(|it| it.ports.iter().flatten()) {
            if Some(span.protocol) == protocol.of_ports() {
                match span.name {
                    None => cuts.span(span),
                    Some(_) => self.named(direction, span, &mut cuts),
                }
            }
        }
        let workload = &self.view.workload;
        if direction == Direction::Ingress && protocol == IpProtocol::Tcp && workload.enrolled {
            let matches = self.view.matches();
            let ports = matches.flat_map(|it| it.ports.any_of.iter().chain(&it.ports.none_of));
            let probes = workload.pod.iter().filter(|_| self.from_node);
            let probes = probes.flat_map(|it| &it.probe_ports);
            let ports = ports.chain(workload.strict_ports.keys()).chain(probes);
            ports.for_each(|it| cuts.port(*it));
        }
        cuts
    }

    /// Adds the ports that a name stands for at the pods that connections end in.
    fn named(&self, direction: Direction, span: &Span<'_>, cuts: &mut Cuts) {
        let ends = match direction {
            Direction::Ingress => vec![Some(&self.view.workload)],
            Direction::Egress => self.peers.iter().map(|it| it.workload).collect(),
        };
        let pods = ends.into_iter().flatten().filter_map(|it| it.pod.as_ref());
        for port in pods.flat_map(|it| &it.ports) {
            if Some(&*port.name) == span.name && port.protocol == span.protocol {
                cuts.port(port.port);
            }
        }
    }
}
