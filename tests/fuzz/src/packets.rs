//! Frames, as any pod and any neighbour on the network can send them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mesh_common::addr::Addr;
use mesh_common::maps::{Flow, FlowKey, Opener, flags};
use mesh_common::packet::{Bytes, Kind, Packet};
use mesh_common::reset;
use mesh_common::steer::{Origin, Steer, Verb};
use mesh_common::verdict::Hook;
use mesh_tests::world::{Decision, Family, REVISION, Table, Who};

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new(Table::cluster());
}

const HOOKS: [Hook; 4] = [Hook::FromPod, Hook::ToPod, Hook::FromNet, Hook::ToNet];
const ORIGINS: [Origin; 4] = [
    Origin::Agent,
    Origin::Node,
    Origin::Itself,
    Origin::Forwarded,
];

/// Four bytes that choose hook, pod, origin and record, then a frame.
pub fn packets(input: &[u8]) {
    let Some(([hook, who, origin, record], frame)) = input.split_first_chunk() else {
        return;
    };
    let packet = Packet::parse(frame);
    lies_within(&packet, frame);
    answers(&packet, frame);

    let hook = pick(&HOOKS, *hook);
    let who = pick(&Who::ALL, *who);
    let origin = pick(&ORIGINS, *origin);
    let decision = TABLE.with_borrow_mut(|table| {
        table.flows = recorded(&packet, hook, who, *record);
        table.decide(hook, (who.ifindex(), who.ifindex()), origin, frame)
    });
    if let Decision::Steer(steer) = decision {
        keeps_what_is_promised(&packet, hook, who, steer);
    }
}

fn pick<T: Copy>(all: &[T], choice: u8) -> T {
    all[usize::from(choice) % all.len()]
}

/// A record of the packet's own flow, or none.
fn recorded(packet: &Packet, hook: Hook, who: Who, choice: u8) -> BTreeMap<FlowKey, Flow> {
    let key = match hook {
        Hook::ToPod => packet.flow_of_destination(who.ifindex()),
        _ => packet.flow_of_source(who.ifindex()),
    };
    let [neighbour, opener, age] = [choice >> 5, choice >> 2 & 7, choice & 3];
    let flow = Flow {
        neighbour: if neighbour == 0 {
            0
        } else {
            9 + u32::from(neighbour)
        },
        opener: pick(
            &[
                Opener::Pod,
                Opener::PodToService,
                Opener::Peer,
                Opener::Node,
            ],
            opener,
        ) as u32,
        revision: REVISION - u32::from(age & 1),
    };
    (age & 2 == 0).then_some((key, flow)).into_iter().collect()
}

/// What was read of a frame is there.
fn lies_within(packet: &Packet, frame: &[u8]) {
    let header = match packet.kind {
        Kind::Tcp | Kind::TcpOpening => 20,
        _ if packet.src_port.0 != 0 || packet.dst_port.0 != 0 => 4,
        _ => return,
    };
    let end = packet.transport as usize + header;
    assert!(end <= frame.len(), "{packet:?} in {} bytes", frame.len());
}

/// The answer to a segment is one that nobody answers.
fn answers(packet: &Packet, frame: &[u8]) {
    if !matches!(packet.kind, Kind::Tcp | Kind::TcpOpening) {
        return;
    }
    let header = frame.load(packet.transport).expect("it was parsed");
    let length = u32::try_from(frame.len()).expect("frames are short") - packet.transport;
    let Some(answer) = reset::answer(packet, &header, length) else {
        return;
    };
    assert_eq!(reset::answer(packet, &answer, 20), None);
    let _ = (reset::ipv4(packet), reset::ipv6(packet));
}

/// ARCHITECTURE.md, invariants 1 and 6, of every frame there is.
fn keeps_what_is_promised(packet: &Packet, hook: Hook, who: Who, steer: Steer) {
    let drops = matches!(steer.verb, Verb::Drop | Verb::Reset);
    if hook != Hook::FromPod {
        return;
    }
    assert!(
        drops || packet.kind != Kind::Malformed,
        "{packet:?}: {steer:?}"
    );
    if !is_of(who, packet.src) {
        let link = matches!(packet.kind, Kind::Arp | Kind::Neighbour);
        assert!(drops || link, "spoofed: {packet:?}: {steer:?}");
        return;
    }
    if who.flags().is_none_or(|it| it & flags::ENROLLED == 0) {
        return;
    }
    let meshed = is_of(Who::Remote, packet.dst) || is_of(Who::Service, packet.dst);
    let may_pass = match packet.kind {
        Kind::TcpOpening if meshed => steer.verb == Verb::Capture,
        Kind::TcpFragment => false,
        _ => true,
    };
    assert!(drops || may_pass, "in plaintext: {packet:?}: {steer:?}");
}

fn is_of(who: Who, address: Addr) -> bool {
    let mut own = Family::BOTH.iter().map(|it| Addr::from(who.ip(*it)));
    own.any(|it| it == address)
}
