//! The compiled policy of the packet tests' cluster: classes of addresses, and what each set says of them.

use std::net::IpAddr;

use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{CLASS_NODE, ClassKey, Direction, PolicyEntry, PolicyKey};

use crate::frames::protocol;
use crate::trie::Trie;
use crate::world::{Family, Who};

/// Rules in every direction, for TCP, UDP, SCTP and ICMP.
pub const SET: u32 = 1;
/// Rules for TCP alone, some of which want a proof.
pub const TCP_SET: u32 = 2;
/// A set without entries.
pub const NO_SET: u32 = 9;

/// The generation of classes that most pods look into.
pub const GENERATION: u32 = 1;
/// Another one, where the stranger is the friend.
pub const OTHER_GENERATION: u32 = 2;

/// A port that friends may reach, and be reached at, over TCP.
pub const SERVER: u16 = 8_080;
/// A port that friends may reach over TCP; they are not reached at it.
pub const INWARD: u16 = 7_000;
/// A port that friends are reached at over TCP; they may not reach it.
pub const OUTWARD: u16 = 7_100;
/// A port that friends may reach over TCP with a proof of who they are.
pub const PROVED: u16 = 7_443;
/// The first of eight ports that outsiders may reach, and be reached at, over TCP.
pub const RANGE: u16 = 9_000;
/// A port in the middle of the eight that is refused.
pub const GAP: u16 = 9_003;
/// A port that friends may reach, and be reached at, over UDP.
pub const DNS: u16 = 53;
/// A port that friends may reach, and be reached at, over SCTP.
pub const DIAMETER: u16 = 3_868;

const FRIEND: u32 = 1;
const OUTSIDE: u32 = 2;
const OUTCAST: u32 = 3;

/// Bits of a key for one address.
const HOST: u32 = 160;

/// `CLASSES`.
pub fn classes() -> Trie<ClassKey, u32> {
    let mut classes = Trie::default();
    let mut add = |length, generation, ip: IpAddr, class| {
        let addr = Addr::from(ip);
        classes.insert(length, ClassKey { generation, addr }, class);
    };
    for family in Family::BOTH {
        for friend in [
            Who::Plain,
            Who::Enrolled,
            Who::JudgedEnrolled,
            Who::Remote,
            Who::RemotePlain,
        ] {
            add(HOST, GENERATION, friend.ip(family), FRIEND);
        }
        let network = match family {
            Family::V4 => HOST - 8,
            Family::V6 => HOST - 96,
        };
        add(network, GENERATION, Who::Stranger.ip(family), OUTSIDE);
        add(HOST, GENERATION, Who::Outcast.ip(family), OUTCAST);
        add(HOST, OTHER_GENERATION, Who::Stranger.ip(family), FRIEND);
    }
    classes
}

/// `POLICY`.
pub fn policy() -> Trie<PolicyKey, PolicyEntry> {
    use Direction::{Egress, Ingress};
    let mut rules = Rules(Trie::default());
    let one = |protocol, port| (PolicyKey::ONE_PORT, protocol, port);
    for direction in [Ingress, Egress] {
        let friend = (SET, FRIEND, direction);
        rules.add(friend, false, one(protocol::TCP, SERVER), true);
        rules.add(friend, false, one(protocol::UDP, DNS), true);
        rules.add(friend, false, one(protocol::SCTP, DIAMETER), true);
        for icmp in [protocol::ICMP, protocol::ICMPV6] {
            rules.add(friend, false, (PolicyKey::ANY_PORT, icmp, 0), true);
        }
        let outside = (SET, OUTSIDE, direction);
        let eight = PolicyKey::ONE_PORT - 3;
        rules.add(outside, false, (eight, protocol::TCP, RANGE), true);
        rules.add(outside, false, one(protocol::TCP, GAP), false);
    }
    for (direction, port) in [(Ingress, INWARD), (Egress, OUTWARD)] {
        let friend = (SET, FRIEND, direction);
        rules.add(friend, false, one(protocol::TCP, port), true);
    }
    for set in [SET, TCP_SET] {
        let node = (set, CLASS_NODE, Ingress);
        rules.add(node, false, (PolicyKey::ANY_PROTOCOL, 0, 0), true);
    }
    let ingress = (TCP_SET, FRIEND, Ingress);
    rules.add(ingress, false, one(protocol::TCP, INWARD), true);
    rules.add(ingress, true, one(protocol::TCP, SERVER), true);
    rules.add(ingress, true, one(protocol::TCP, PROVED), true);
    let egress = (TCP_SET, FRIEND, Egress);
    rules.add(egress, false, one(protocol::TCP, SERVER), true);
    rules.0
}

struct Rules(Trie<PolicyKey, PolicyEntry>);

impl Rules {
    fn add(
        &mut self,
        (set, class, direction): (u32, u32, Direction),
        proved: bool,
        (length, protocol, port): (u32, u8, u16),
        allow: bool,
    ) {
        let key = PolicyKey {
            set,
            class,
            direction: direction as u8,
            proof: proved.into(),
            protocol,
            zero: 0,
            port: Port::new(port),
            end: 0,
        };
        let allow = allow.into();
        self.0.insert(length, key, PolicyEntry { allow });
    }
}
