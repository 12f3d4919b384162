//! Packet by packet: the real object decides, counts, records and rewrites as the shared code says it does.
//!
//! `BPF_PROG_TEST_RUN` runs a program beside the receive path, where the kernel refuses `bpf_sk_assign`: a packet that
//! found its listener is counted as `drop_assign_failed` here. The scenarios show the assignment itself. Nor does it take
//! frames without a whole IP header; those are left to the host.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mesh_common::maps::{Flow, FlowKey, Opener, Slot};
use mesh_common::names::{MARK_AGENT, MARK_ANSWER, MARK_MASK, MARK_SERVICE};
use mesh_common::packet::{Bytes, Packet};
use mesh_common::reset;
use mesh_common::steer::{Origin, Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::counters::Packets;
use mesh_tests::frames;
use mesh_tests::object::{self, Object, action, in_namespace};
use mesh_tests::vectors::{self, Vector, is_outward};
use mesh_tests::wait::patience;
use mesh_tests::world::{Decision, HOST_MAC, REVISION, Table, Who, local, plain};

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

/// What a program built is not judged again where it comes in, by whatever device.
#[test]
fn an_answer_passes() -> Result<()> {
    in_namespace("mesh-packets-answer", |object, _| {
        let vector = vectors::all()
            .into_iter()
            .find(|it| it.hook == Hook::FromPod && it.expect == spoofed());
        let vector = vector.context("a vector with a foreign source")?;
        let at = (vector.ifindex, 0);
        for (mark, wanted) in [(MARK_ANSWER, action::OK), (MARK_AGENT, action::SHOT)] {
            let ran = object.run(vector.hook, at, vector.origin, mark, &vector.frame)?;
            assert_eq!(ran.action, wanted, "mark {mark:#x}");
        }
        Ok(())
    })
}

fn spoofed() -> Decision {
    Decision::Steer(Steer {
        verb: Verb::Drop,
        argument: Outcome::Spoofed as u32,
    })
}

/// Whatever the bytes, kernel and host agree. The seed is fixed: a failure names a packet that can be added to the table.
#[test]
fn the_object_agrees_with_the_host_on_damaged_packets() -> Result<()> {
    in_namespace("mesh-packets-damaged", |object, listener| {
        object.set_listeners(listener, |_| true)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let vectors = vectors::all();
        let mut table = Table::cluster();
        for round in 0..20_000 / patience() {
            let mut vector = vectors[random.below(vectors.len())].clone();
            damage(&mut vector.frame, &mut random);
            if !is_runnable(&vector) {
                continue;
            }
            table.flows.clone_from(&vector.recorded);
            let at = (vector.ifindex, vector.client);
            vector.expect = table.decide(vector.hook, at, vector.origin, &vector.frame);
            let packet = Packet::parse(vector.frame.as_slice());
            let pod = if vector.client == 0 {
                vector.ifindex
            } else {
                vector.client
            };
            vector.flow = Some(if is_outward(vector.hook) {
                packet.flow_of_source(pod)
            } else {
                packet.flow_of_destination(pod)
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

/// Whether the kernel takes the frame: it wants the fixed part of the IP header whole. Older ones want no input device.
fn is_runnable(vector: &Vector) -> bool {
    let header = match vector.frame[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 1,
    };
    vector.frame.len() >= 14 + header && object::is_runnable(vector.hook, vector.origin)
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
    frame: Vec<u8>,
    /// Our bits of the mark.
    mark: u32,
}

impl Effect {
    /// A packet that stays as it is.
    fn unchanged(vector: &Vector, outcome: Outcome, action: u32) -> Result<Self> {
        Ok(Self {
            outcome,
            action,
            flows: flows_after(vector)?,
            frame: vector.frame.clone(),
            mark: 0,
        })
    }

    fn of(vector: &Vector, slots: Slots) -> Result<Self> {
        let Steer { verb, argument } = steer(vector);
        let unchanged = |outcome, action| Self::unchanged(vector, outcome, action);
        match verb {
            Verb::Pass | Verb::PassNew | Verb::PassRenew => {
                let mut effect = unchanged(Outcome::Pass, action::OK)?;
                if argument == Opener::PodToService as u32 {
                    effect.mark = MARK_SERVICE;
                }
                Ok(effect)
            }
            Verb::PassAgent | Verb::SocketOrPass => unchanged(Outcome::Pass, action::OK),
            Verb::Local | Verb::LocalNew | Verb::LocalRenew | Verb::SocketOrLocal => {
                let mut effect = unchanged(Outcome::Local, action::REDIRECT)?;
                let mut pods = Who::ALL.into_iter();
                let to = pods.find(|who| who.ifindex() == argument);
                effect.frame[..6].copy_from_slice(&to.context("a local pod")?.mac());
                effect.frame[6..12].copy_from_slice(&HOST_MAC);
                Ok(effect)
            }
            Verb::Capture | Verb::SocketOrListener => match slots {
                Slots::Filled => unchanged(Outcome::AssignFailed, action::SHOT),
                Slots::Empty => unchanged(Outcome::AgentAbsent, action::SHOT),
            },
            Verb::Drop => unchanged(outcome(argument)?, action::SHOT),
            Verb::Reset => {
                let mut effect = unchanged(outcome(argument)?, action::SHOT)?;
                if let Some(answer) = reset_for(&vector.frame) {
                    effect.action = action::REDIRECT;
                    effect.frame = answer;
                    effect.mark = MARK_ANSWER;
                }
                Ok(effect)
            }
        }
    }
}

fn steer(vector: &Vector) -> Steer {
    match vector.expect {
        Decision::UnknownPod => Steer {
            verb: Verb::Drop,
            argument: Outcome::UnknownPod as u32,
        },
        Decision::Steer(steer) => steer,
    }
}

fn outcome(number: u32) -> Result<Outcome> {
    let outcome = Outcome::ALL.get(usize::try_from(number)?);
    outcome.copied().context("an outcome")
}

/// The records once the packet has been seen.
fn flows_after(vector: &Vector) -> Result<BTreeMap<FlowKey, Flow>> {
    let Steer { verb, argument } = steer(vector);
    let flow = || vector.flow.context("the table tells no flow");
    let mut flows = vector.recorded.clone();
    match verb {
        Verb::PassNew => {
            let judged = Flow {
                opener: argument,
                ..plain(Opener::Pod)
            };
            flows.insert(flow()?, judged);
        }
        Verb::PassRenew | Verb::LocalRenew => {
            let record = flows.get_mut(&flow()?).context("a record")?;
            record.revision = REVISION;
        }
        Verb::LocalNew => {
            let find = |index| Who::ALL.into_iter().find(|who| who.ifindex() == index);
            let here = find(vector.ifindex).context("a local pod")?;
            let there = find(argument).context("a local pod")?;
            let theirs = Packet::parse(&*vector.frame).flow_of_destination(argument);
            flows.insert(flow()?, local(there, Opener::Pod));
            flows.insert(theirs, local(here, Opener::Peer));
        }
        Verb::PassAgent | Verb::Capture | Verb::Reset => {
            flows.remove(&flow()?);
        }
        Verb::Pass
        | Verb::Local
        | Verb::SocketOrListener
        | Verb::SocketOrLocal
        | Verb::SocketOrPass
        | Verb::Drop => {}
    }
    Ok(flows)
}

/// The reset of the sender of a frame; `None` for a reset.
fn reset_for(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(frame);
    let length = u32::try_from(frame.len()).ok()? - packet.transport;
    let header = frame.load::<reset::Header>(packet.transport)?;
    let tcp = reset::answer(&packet, &header, length)?;
    let (ipv4, ipv6) = (reset::ipv4(&packet), reset::ipv6(&packet));
    let ip = if packet.src.is_v4() {
        &ipv4[..]
    } else {
        &ipv6[..]
    };
    let mut answer = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    answer.extend(ip.iter().chain(&tcp).flat_map(|word| word.to_ne_bytes()));
    Some(answer)
}

fn check(object: &mut Object, vector: &Vector, slots: Slots) -> Result<()> {
    let name = &vector.name;
    let effect = Effect::of(vector, slots).with_context(|| name.clone())?;
    let mut table = Table::cluster();
    table.flows.clone_from(&vector.recorded);
    object.set_flows(&table)?;
    let before = object.counters()?;
    // Only what comes from inside can bear a mark of its choice.
    let mark = match vector.hook {
        Hook::FromPod => FORGED,
        Hook::ToNet => MARK_SERVICE,
        _ => 0,
    };
    let at = (vector.ifindex, vector.client);
    let ran = object
        .run(vector.hook, at, vector.origin, mark, &vector.frame)
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
    let kept = match (vector.hook, vector.origin) {
        (Hook::FromPod, _) => FORGED & !MARK_MASK,
        (Hook::ToNet, _) if effect.mark == 0 => MARK_SERVICE,
        (_, Origin::Agent) => MARK_AGENT,
        (_, Origin::Forwarded | Origin::Itself | Origin::Node) => 0,
    };
    assert_eq!(ran.mark, kept | effect.mark, "mark: {name}");
    assert_eq!(ran.frame, effect.frame, "bytes: {name}");
    if effect.mark == MARK_ANSWER {
        frames::assert_checksums(&ran.frame);
    }
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
