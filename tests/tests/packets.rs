//! Packet by packet: the real object decides, counts, records and rewrites as the shared code says it does.
//!
//! `BPF_PROG_TEST_RUN` runs a program beside the receive path, where the kernel refuses `bpf_sk_assign`: a packet that
//! found its listener is counted as `drop_assign_failed` here. The scenarios show the assignment itself. Nor does it take
//! frames without a whole IP header; those are left to the host.

use std::collections::BTreeMap;
use std::net::TcpListener;

use anyhow::{Context, Result};
use mesh_common::maps::{Flow, FlowKey, Slot};
use mesh_common::names::{MARK_AGENT, MARK_MASK};
use mesh_common::packet::Packet;
use mesh_common::steer::{Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::counters::Packets;
use mesh_tests::netns::Netns;
use mesh_tests::object::{Object, action};
use mesh_tests::vectors::{self, Vector};
use mesh_tests::world::{Decision, HOST_MAC, NO_POD, Table, UPLINK, Who};

/// A mark with a foreign bit, and with ours as a pod might forge them.
const FORGED: u32 = MARK_AGENT | 0x4000;

#[test]
fn the_object_does_what_the_table_says() -> Result<()> {
    in_namespace("mesh-packets-table", |object, listener| {
        for vector in vectors::all().into_iter().filter(is_runnable) {
            let own = slot(&vector);
            object.set_listeners(listener, |index| Some(index) == own)?;
            check(object, &vector, Slots::Filled)?;
            if own.is_some() {
                object.set_listeners(listener, |index| Some(index) != own)?;
                check(object, &vector, Slots::Empty)?;
            }
        }
        Ok(())
    })
}

/// Whatever the bytes, kernel and host agree. The seed is fixed: a failure names a packet that can be added to the table.
#[test]
fn the_object_agrees_with_the_host_on_damaged_packets() -> Result<()> {
    in_namespace("mesh-packets-damaged", |object, listener| {
        object.set_listeners(listener, |_| true)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let vectors = vectors::all();
        for round in 0..20_000 {
            let mut vector = vectors[random.below(vectors.len())].clone();
            damage(&mut vector.frame, &mut random);
            if !is_runnable(&vector) {
                continue;
            }
            let mut table = Table::cluster();
            table.flows.extend(vector.recorded);
            vector.expect = table.decide(vector.hook, vector.ifindex, vector.origin, &vector.frame);
            let packet = Packet::parse(vector.frame.as_slice());
            vector.flow = Some(match vector.hook {
                Hook::FromPod => packet.flow_of_source(vector.ifindex),
                Hook::ToPod | Hook::FromNet => packet.flow_of_destination(vector.ifindex),
            });
            vector.name = format!(
                "round {round}, from: {}, {:02x?}",
                vector.name, vector.frame
            );
            check(object, &vector, Slots::Filled)?;
        }
        Ok(())
    })
}

/// Runs a test with the object loaded and filled, in a namespace that has the interfaces of the table.
fn in_namespace(
    name: &str,
    test: impl FnOnce(&mut Object, &TcpListener) -> Result<()> + Send,
) -> Result<()> {
    Netns::remove(name)?;
    let netns = Netns::create(name)?;
    let result = (|| {
        for who in Who::ALL {
            let index = who.ifindex();
            if index != 0 {
                netns.ip(&format!(
                    "link add p{index} index {index} type veth peer name q{index}"
                ))?;
            }
        }
        netns.ip(&format!(
            "link add up index {UPLINK} type veth peer name no index {NO_POD}"
        ))?;
        netns.run(|| {
            let mut object = Object::load()?;
            object.fill(&Table::cluster())?;
            test(&mut object, &TcpListener::bind("[::]:0")?)
        })
    })();
    Netns::remove(name)?;
    result
}

/// Whether the kernel takes the frame: it wants the fixed part of the IP header whole.
fn is_runnable(vector: &Vector) -> bool {
    let header = match vector.frame[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 1,
    };
    vector.frame.len() >= 14 + header
}

/// What stands in the slots that the packet may need.
#[derive(Clone, Copy, PartialEq)]
enum Slots {
    Filled,
    Empty,
}

/// The slot that a packet needs when its tuple has no socket.
fn slot(vector: &Vector) -> Option<u32> {
    let v6 = vector.frame[12..14] == [0x86, 0xdd];
    match vector.expect {
        Decision::Steer(Steer {
            verb: Verb::Capture | Verb::SocketOrListener,
            argument,
        }) => Some(Slot::index(argument, v6)),
        _ => None,
    }
}

/// What must be seen of a packet from outside.
struct Effect {
    outcome: Outcome,
    action: u32,
    flows: BTreeMap<FlowKey, Flow>,
    redirected: Option<u32>,
}

fn effect(vector: &Vector, slots: Slots) -> Result<Effect> {
    let Steer { verb, argument } = match vector.expect {
        Decision::UnknownPod => Steer {
            verb: Verb::Drop,
            argument: Outcome::UnknownPod as u32,
        },
        Decision::Steer(steer) => steer,
    };
    let flow = || vector.flow.context("the table tells no flow");
    let mut flows: BTreeMap<_, _> = vector.recorded.into_iter().collect();
    match verb {
        Verb::PassNew => flows.extend([(flow()?, Flow::PLAIN)]),
        Verb::LocalNew => {
            let (ours, neighbour) = (flow()?, argument);
            let theirs = Packet::parse(&*vector.frame).flow_of_destination(neighbour);
            flows.extend([
                (ours, Flow::local(neighbour)),
                (theirs, Flow::local(ours.ifindex)),
            ]);
        }
        Verb::PassAgent | Verb::Capture => {
            flows.remove(&flow()?);
        }
        _ => {}
    }
    let (outcome, action, redirected) = match verb {
        Verb::Pass | Verb::PassNew | Verb::PassAgent | Verb::SocketOrPass => {
            (Outcome::Pass, action::OK, None)
        }
        Verb::Local | Verb::LocalNew | Verb::SocketOrLocal => {
            (Outcome::Local, action::REDIRECT, Some(argument))
        }
        Verb::Capture | Verb::SocketOrListener => match slots {
            Slots::Filled => (Outcome::AssignFailed, action::SHOT, None),
            Slots::Empty => (Outcome::AgentAbsent, action::SHOT, None),
        },
        Verb::Drop => {
            let index = usize::try_from(argument)?;
            (
                *Outcome::ALL.get(index).context("an outcome")?,
                action::SHOT,
                None,
            )
        }
    };
    Ok(Effect {
        outcome,
        action,
        flows,
        redirected,
    })
}

fn check(object: &mut Object, vector: &Vector, slots: Slots) -> Result<()> {
    let name = &vector.name;
    let effect = effect(vector, slots).with_context(|| name.clone())?;
    object.set_flows(&vector.recorded.into_iter().collect())?;
    let before = object.counters()?;
    // Only what comes from inside can bear a mark of its choice.
    let forged = vector.hook == Hook::FromPod;
    let mark = if forged { FORGED } else { 0 };
    let ran = object
        .run(
            vector.hook,
            vector.ifindex,
            vector.origin,
            mark,
            &vector.frame,
        )
        .with_context(|| name.clone())?;

    assert_eq!(ran.action, effect.action, "action: {name}");
    let moved = object.counters()?.since(&before);
    moved.assert(&[(vector.hook, effect.outcome, Packets::Exactly(1))]);
    let total: u64 = Outcome::ALL
        .iter()
        .map(|outcome| moved.total(*outcome))
        .sum();
    assert_eq!(total, 1, "counters: {name}\n{moved}");
    assert_eq!(object.flows()?, effect.flows, "flows: {name}");
    if forged {
        assert_eq!(ran.mark, FORGED & !MARK_MASK, "mark: {name}");
    }
    let mut frame = vector.frame.clone();
    if let Some(pod) = effect.redirected {
        let to = Who::ALL
            .into_iter()
            .find(|who| who.ifindex() == pod)
            .context("a local pod")?;
        frame[..6].copy_from_slice(&to.mac());
        frame[6..12].copy_from_slice(&HOST_MAC);
    }
    assert_eq!(ran.frame, frame, "bytes: {name}");
    Ok(())
}

/// Changes some bytes of the headers, or the length.
fn damage(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = 12 + random.below(frame.len() - 12);
        frame[at] = match random.below(3) {
            0 => frame[at] ^ 1 << random.below(8),
            1 => [0, 6, 17, 43, 44, 51, 58, 59, 60, 0xff][random.below(10)],
            _ => random.0.to_le_bytes()[0],
        };
    }
    if random.below(4) == 0 {
        frame.truncate(14 + random.below(frame.len() - 13));
    }
}

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}
