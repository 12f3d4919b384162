//! The shape of the table.

use std::collections::BTreeMap;

use mesh_common::maps::{Flow, FlowKey, Opener, Slot};
use mesh_common::steer::{Origin, Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};

use crate::frames::Frame;
use crate::rules;
use crate::world::{Decision, Family, REVISION, UPLINK, Who, flow};

/// One packet and its fate.
#[derive(Clone, Debug)]
pub struct Vector {
    /// What is shown.
    pub name: String,
    /// The hook that sees the packet.
    pub hook: Hook,
    /// The interface it is seen at.
    pub ifindex: u32,
    /// Who sent it, for `to_pod`.
    pub origin: Origin,
    /// Interface of the pod that sent it to a service, for `to_net`, otherwise 0.
    pub client: u32,
    /// The bytes.
    pub frame: Vec<u8>,
    /// The flow that is recorded or forgotten, as the local pod sees it; not told where no flow is touched.
    pub flow: Option<FlowKey>,
    /// Flows that are recorded before.
    pub recorded: BTreeMap<FlowKey, Flow>,
    /// What is decided.
    pub expect: Decision,
}

impl Vector {
    /// Records the flow before.
    pub(super) fn known(&mut self, record: Flow) -> &mut Self {
        self.recorded.extend(self.flow.map(|flow| (flow, record)));
        self
    }
}

/// What goes from one port to another, or is an echo with an identifier in both places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// A UDP datagram.
    Udp,
    /// An SCTP packet.
    Sctp,
    /// An ICMP echo request.
    Echo,
    /// An ICMP echo reply.
    EchoReply,
}

/// Every vector, for both families.
pub fn all() -> Vec<Vector> {
    [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| {
            let mut rows = Rows::new(family);
            rows.steering();
            rows.headers();
            rows.policy();
            rows.datagrams();
            rows.resets();
            rows.vectors
        })
        .collect()
}

/// The port of whoever opens a connection.
pub(super) const CLIENT: u16 = 40_000;
/// An ordinary port that is connected to.
pub(super) const SERVER: u16 = rules::SERVER;

/// What policy refuses over TCP.
pub(super) const REFUSED: Steer = reset(Outcome::Policy);

/// The decision on malformed packets at a pod's device.
pub(super) const MALFORMED: Decision = Decision::Steer(drop(Outcome::Malformed));

/// A record of before the revision in force.
pub(super) const fn old(record: Flow) -> Flow {
    Flow {
        revision: REVISION - 1,
        ..record
    }
}

/// A decision without argument.
pub(super) const fn steer(verb: Verb) -> Steer {
    Steer { verb, argument: 0 }
}

/// To the agent, by a slot when no socket has the tuple.
pub(super) const fn to_agent(verb: Verb, slot: Slot) -> Steer {
    Steer {
        verb,
        argument: slot as u32,
    }
}

/// To a pod of this node.
pub(super) fn to_pod(verb: Verb, pod: Who) -> Steer {
    Steer {
        verb,
        argument: pod.ifindex(),
    }
}

/// The first packet of a flow that passes.
pub(super) const fn new(opener: Opener) -> Steer {
    Steer {
        verb: Verb::PassNew,
        argument: opener as u32,
    }
}

/// To nobody, and the sender is told.
pub(super) const fn reset(outcome: Outcome) -> Steer {
    Steer {
        verb: Verb::Reset,
        argument: outcome as u32,
    }
}

/// To nobody.
pub(super) const fn drop(outcome: Outcome) -> Steer {
    Steer {
        verb: Verb::Drop,
        argument: outcome as u32,
    }
}

/// Whether a hook sees what pods send.
pub fn is_outward(hook: Hook) -> bool {
    match hook {
        Hook::FromPod | Hook::ToNet | Hook::ToNode | Hook::Connect => true,
        Hook::ToPod | Hook::FromNet => false,
    }
}

/// The vectors of one family.
pub(super) struct Rows {
    pub(super) family: Family,
    vectors: Vec<Vector>,
}

impl Rows {
    fn new(family: Family) -> Self {
        Self {
            family,
            vectors: Vec::new(),
        }
    }

    /// Adds a vector; origin and record are set on what is returned.
    pub(super) fn add(
        &mut self,
        name: &str,
        hook: Hook,
        at: u32,
        frame: Vec<u8>,
        expect: Decision,
    ) -> &mut Vector {
        self.vectors.push(Vector {
            name: format!("{}, {:?}: {name}", hook.name(), self.family),
            hook,
            ifindex: at,
            origin: Origin::Forwarded,
            client: 0,
            frame,
            flow: None,
            recorded: BTreeMap::new(),
            expect,
        });
        self.vectors.last_mut().expect("just pushed")
    }

    /// Adds a packet between a local pod and a peer: out of the pod at `from_pod` and `to_net`, into it at `to_pod`.
    pub(super) fn between(
        &mut self,
        name: &str,
        hook: Hook,
        carried: Carried,
        (pod, peer): ((Who, u16), (Who, u16)),
        verdict: Steer,
    ) -> &mut Vector {
        let (from, to) = if is_outward(hook) {
            (pod, peer)
        } else {
            (peer, pod)
        };
        let frame = self.carrying(carried, from, to);
        let flow = FlowKey {
            protocol: frame.protocol().into(),
            ..self.flow(pod, peer)
        };
        let name = format!("{carried:?}: {name}");
        let expect = Decision::Steer(verdict);
        let (at, client) = match hook {
            Hook::ToNet => (UPLINK, pod.0.ifindex()),
            _ => (pod.0.ifindex(), 0),
        };
        let vector = self.add(&name, hook, at, frame.bytes(), expect);
        vector.flow = Some(flow);
        vector.client = client;
        vector
    }

    fn carrying(&self, carried: Carried, from: (Who, u16), to: (Who, u16)) -> Frame {
        let family = self.family;
        let ends = (from.0.at(family, from.1), to.0.at(family, to.1));
        let (request, reply) = match family {
            Family::V4 => (8, 0),
            Family::V6 => (128, 129),
        };
        let echo = |kind| Frame::icmp(ends.0.ip(), ends.1.ip(), kind, from.1);
        match carried {
            Carried::Tcp(flags) => Frame::tcp(ends.0, ends.1, flags),
            Carried::Udp => Frame::udp(ends.0, ends.1),
            Carried::Sctp => Frame::sctp(ends.0, ends.1),
            Carried::Echo => echo(request),
            Carried::EchoReply => echo(reply),
        }
    }

    /// A segment from one port to another.
    pub(super) fn segment(&self, from: (Who, u16), to: (Who, u16), flags: u8) -> Frame {
        Frame::tcp(
            from.0.at(self.family, from.1),
            to.0.at(self.family, to.1),
            flags,
        )
    }

    /// A flow as the first end sees it.
    pub(super) fn flow(&self, pod: (Who, u16), peer: (Who, u16)) -> FlowKey {
        let (family, ifindex) = (self.family, pod.0.ifindex());
        flow(ifindex, pod.0.at(family, pod.1), peer.0.at(family, peer.1))
    }
}
