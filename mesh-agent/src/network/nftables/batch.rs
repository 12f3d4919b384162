//! CORE: the messages of a transaction, as bytes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::names::{MARK_AGENT, MARK_DELIVER, MARK_MASK};

use super::TABLE;
use super::attributes::{Attributes, REGISTER};
use crate::network::masquerade::Masquerade;

/// A transaction: what it says is in force as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Batch {
    /// The messages, from `NFNL_MSG_BATCH_BEGIN` to `NFNL_MSG_BATCH_END`.
    pub(super) bytes: Vec<u8>,
    /// Number of messages between the two, each of which is acknowledged.
    pub(super) messages: u32,
}

/// Makes our table say this and nothing else, whatever it said; and that the agent's traffic is not translated, by
/// netfilter nor by IPVS.
pub(in crate::network) fn masquerading(plan: &Masquerade) -> Batch {
    let mut batch = Batch::begin();
    batch.clear_table();
    batch.message(NEWTABLE, CREATE, |it| it.text(1, TABLE));
    for family in [V4, V6] {
        batch.set(&family, &plan.kept);
    }
    batch.chain(CHAIN, (POSTROUTING, SOURCE_NAT), "nat");
    for source in &plan.sources {
        batch.masquerade(source);
    }
    // What comes in for the agent, and what it answers.
    for (chain, hook, mark) in [
        ("captured", PREROUTING, MARK_DELIVER),
        ("agent", OUTPUT, MARK_AGENT),
    ] {
        batch.chain(chain, (hook, RAW), "filter");
        batch.untrack(chain, mark);
    }
    for (chain, priority) in [("hidden", BEFORE_IPVS), ("shown", AFTER_IPVS)] {
        batch.chain(chain, (INPUT, priority), "filter");
        for family in [V4, V6] {
            batch.swap(chain, &family);
        }
    }
    batch.end()
}

/// Removes our table; fine when there is none.
pub(in crate::network) fn removal() -> Batch {
    let mut batch = Batch::begin();
    batch.clear_table();
    batch.end()
}

/// `struct nlmsghdr` and `struct nfgenmsg` of a message, whose length is set when it is whole.
pub(super) fn header(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
) -> usize {
    let start = bytes.len();
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    // Sequence and port: the kernel knows the socket, and one transaction is under way at a time.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    start
}

pub(super) fn set_length(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            messages: 0,
        };
        batch.mark(BATCH_BEGIN);
        batch
    }

    fn end(mut self) -> Self {
        self.mark(BATCH_END);
        self
    }

    fn mark(&mut self, kind: u16) {
        let start = header(&mut self.bytes, kind, 0, 0, SUBSYSTEM);
        set_length(&mut self.bytes, start);
    }

    fn message(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Attributes<'_>)) {
        let start = header(&mut self.bytes, SUBSYSTEM << 8 | kind, flags | ACK, INET, 0);
        write(&mut Attributes(&mut self.bytes));
        set_length(&mut self.bytes, start);
        self.messages += 1;
    }

    /// Made first: deleting a table that is not there fails.
    fn clear_table(&mut self) {
        self.message(NEWTABLE, CREATE, |it| it.text(1, TABLE));
        self.message(DELTABLE, 0, |it| it.text(1, TABLE));
    }

    /// The set of a family, of intervals.
    fn set(&mut self, family: &Family, nets: &BTreeSet<IpNet>) {
        self.message(NEWSET, CREATE, |set| {
            set.text(1, TABLE);
            set.text(2, family.set);
            set.word(3, SET_INTERVAL);
            set.word(4, family.key_type);
            set.word(5, family.length);
            set.word(10, family.set_id);
        });
        let bounds = family.bounds(nets);
        for bounds in bounds.chunks(ELEMENTS) {
            self.message(NEWSETELEM, CREATE, |list| {
                list.text(1, TABLE);
                list.text(2, family.set);
                list.nest(3, |elements| {
                    for (address, is_end) in bounds {
                        elements.nest(1, |element| {
                            if *is_end {
                                element.word(3, INTERVAL_END);
                            }
                            element.value(1, address);
                        });
                    }
                });
            });
        }
    }

    /// A chain at a hook, with its priority.
    fn chain(&mut self, name: &str, (hook, priority): (u32, i32), kind: &str) {
        self.message(NEWCHAIN, CREATE, |chain| {
            chain.text(1, TABLE);
            chain.text(3, name);
            chain.nest(4, |it| {
                it.word(1, hook);
                it.word(2, priority.cast_unsigned());
            });
            chain.text(7, kind);
        });
    }

    /// What bears a mark of ours is not tracked, hence not translated: a connection that the agent was given goes where the
    /// pod wanted it to, whatever kube-proxy would make of it.
    fn untrack(&mut self, chain: &str, mark: u32) {
        self.rule(chain, |list| {
            list.meta(META_MARK);
            list.masked(&MARK_MASK.to_ne_bytes());
            list.equals(&mark.to_ne_bytes());
            list.expression("notrack", |_| {});
        });
    }

    /// What is to be delivered to the agent has source and destination the other way round.
    ///
    /// IPVS would schedule what comes in for one of its services, though routing says that it is for a socket here and it
    /// has that socket. It heeds neither conntrack nor marks, but looks services up by destination: so the addresses are
    /// swapped before IPVS, and once more behind it. No pod's address is a service's; no state is needed, no checksum
    /// changes, and extension headers are in nobody's way. (To change the protocol number would do, too, but from 7.3 on
    /// the kernel refuses that to nftables.)
    fn swap(&mut self, chain: &str, family: &Family) {
        self.rule(chain, |list| {
            list.meta(META_MARK);
            list.masked(&MARK_MASK.to_ne_bytes());
            list.equals(&MARK_DELIVER.to_ne_bytes());
            list.meta(META_NFPROTO);
            list.equals(&[family.number]);
            swap_addresses(list, family);
        });
    }

    /// From a network, to none of its family's set: masquerade, with ports that two nodes' kernels do not choose alike.
    fn masquerade(&mut self, source: &IpNet) {
        let family = if source.addr().is_ipv4() { V4 } else { V6 };
        self.rule(CHAIN, |list| {
            list.meta(META_NFPROTO);
            list.equals(&[family.number]);
            list.payload(family.source_at, family.length);
            list.masked(&octets(source.netmask()));
            list.equals(&octets(source.network()));
            list.payload(family.source_at + family.length, family.length);
            list.expression("lookup", |lookup| {
                lookup.text(1, family.set);
                lookup.word(2, REGISTER);
                lookup.word(4, family.set_id);
                lookup.word(5, NOT_IN_SET);
            });
            list.expression("masq", |masq| masq.word(1, RANDOM_FULLY));
        });
    }

    /// The next rule of a chain, of these expressions.
    fn rule(&mut self, chain: &str, write: impl FnOnce(&mut Attributes<'_>)) {
        self.message(NEWRULE, CREATE | APPEND, |rule| {
            rule.text(1, TABLE);
            rule.text(2, chain);
            rule.nest(4, write);
        });
    }
}

/// What is different in an IP family.
struct Family {
    /// `NFPROTO_*`.
    number: u8,
    set: &'static str,
    set_id: u32,
    /// How `nft` shows the set's elements.
    key_type: u32,
    /// Length of an address in bytes.
    length: u32,
    /// Where the source address is in the header; the destination follows it.
    source_at: u32,
    /// Two registers of an address each, one behind the other.
    registers: [u32; 2],
}

const V4: Family = Family {
    number: 2,
    set: "kept4",
    set_id: 4,
    key_type: 7,
    length: 4,
    source_at: 12,
    // `NFT_REG32_00` and `NFT_REG32_01`.
    registers: [8, 9],
};
const V6: Family = Family {
    number: 10,
    set: "kept6",
    set_id: 6,
    key_type: 8,
    length: 16,
    source_at: 8,
    // `NFT_REG_1` and `NFT_REG_2`.
    registers: [1, 2],
};

impl Family {
    /// The first addresses of intervals, and (`true`) of what follows them, in order. Intervals that touch are one: the
    /// kernel refuses those that overlap.
    fn bounds(&self, nets: &BTreeSet<IpNet>) -> Vec<(Vec<u8>, bool)> {
        let mut intervals: Vec<(u128, u128)> = Vec::new();
        let mine = nets
            .iter()
            .filter(|net| net.addr().is_ipv4() == (self.length == 4));
        let mut all: Vec<_> = mine
            .map(|net| (number(net.network()), number(net.broadcast())))
            .collect();
        all.sort_unstable();
        for (first, last) in all {
            match intervals.last_mut() {
                Some((_, before)) if first <= before.saturating_add(1) => {
                    *before = last.max(*before);
                }
                _ => intervals.push((first, last)),
            }
        }
        let skipped = 16 - self.length as usize;
        let bytes = |number: u128| number.to_be_bytes()[skipped..].to_vec();
        let highest = u128::MAX >> (8 * skipped);
        let bounds = intervals.into_iter().flat_map(|(first, last)| {
            let end = (last < highest).then(|| (bytes(last + 1), true));
            [Some((bytes(first), false)), end]
        });
        bounds.flatten().collect()
    }
}

/// Source and destination of the network header change places; its checksum is the same then.
fn swap_addresses(list: &mut Attributes<'_>, family: &Family) {
    let (source_at, length) = (family.source_at, family.length);
    let [first, second] = family.registers;
    list.payload_to(first, source_at + length, length);
    list.payload_to(second, source_at, length);
    list.store(first, source_at, 2 * length);
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(it) => it.to_bits().into(),
        IpAddr::V6(it) => it.to_bits(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(it) => it.octets().to_vec(),
        IpAddr::V6(it) => it.octets().to_vec(),
    }
}

/// Name of our chain that masquerades.
const CHAIN: &str = "postrouting";
/// Elements in one message; an attribute has at most 64 KiB.
const ELEMENTS: usize = 1000;

// Of `linux/netlink.h` and `linux/netfilter/nfnetlink.h`.
pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(super) const SUBSYSTEM: u16 = 10;

// Of `linux/netfilter/nf_tables.h` and `linux/netfilter.h`.
pub(super) const INET: u8 = 1;
const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const SET_INTERVAL: u32 = 4;
const INTERVAL_END: u32 = 1;
const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const NOT_IN_SET: u32 = 1;
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const RAW: i32 = -300;
const SOURCE_NAT: i32 = 100;
/// IPVS looks at what comes in at `NF_IP_PRI_NAT_SRC` - 2 and - 1 (`ip_vs_ops4` and `ip_vs_ops6` in `ip_vs_core.c`).
const BEFORE_IPVS: i32 = SOURCE_NAT - 3;
const AFTER_IPVS: i32 = SOURCE_NAT;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: concurrent connections do not race for one port.
const RANDOM_FULLY: u32 = 0x10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::nftables::attributes::NESTED;

    fn bounds(family: &Family, nets: &[&str]) -> Vec<(IpAddr, bool)> {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        let address = |bytes: Vec<u8>| match <[u8; 4]>::try_from(&bytes[..]) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).unwrap()),
        };
        family
            .bounds(&nets)
            .into_iter()
            .map(|(bytes, end)| (address(bytes), end))
            .collect()
    }

    #[test]
    fn intervals_that_touch_or_overlap_are_one() {
        let of = |nets: &[&str]| {
            let list = bounds(&V4, nets);
            list.iter()
                .map(|(address, end)| format!("{}{address}", if *end { "-" } else { "" }))
                .collect::<Vec<_>>()
        };
        let apart = of(&["10.0.1.0/24", "10.0.3.0/24", "fd00::/64"]);
        assert_eq!(apart, ["10.0.1.0", "-10.0.2.0", "10.0.3.0", "-10.0.4.0"]);
        assert_eq!(
            of(&["10.0.1.0/24", "10.0.2.0/24"]),
            ["10.0.1.0", "-10.0.3.0"]
        );
        assert_eq!(
            of(&["10.0.0.0/8", "10.1.0.0/16", "10.0.0.1/32"]),
            ["10.0.0.0", "-11.0.0.0"]
        );
        assert_eq!(
            of(&["240.0.0.0/4"]),
            ["240.0.0.0"],
            "nothing follows the last address"
        );
        assert_eq!(of(&["0.0.0.0/0"]), ["0.0.0.0"]);
        assert_eq!(
            bounds(&V6, &["ff00::/8"]),
            [("ff00::".parse().unwrap(), false)]
        );
        assert_eq!(
            bounds(&V6, &["fd00::/64"])[1],
            ("fd00:0:0:1::".parse().unwrap(), true)
        );
    }

    #[test]
    fn messages_are_whole() {
        let kept = (0..=255)
            .flat_map(|a| (0..16).map(move |b| format!("10.{a}.{}.0/24", b * 2).parse().unwrap()));
        let plan = Masquerade {
            sources: ["10.0.0.0/24", "fd00::/64"]
                .map(|net| net.parse().unwrap())
                .into(),
            kept: kept.collect(),
        };
        let Batch { bytes, messages } = masquerading(&plan);
        let (mut rest, mut kinds) = (&bytes[..], Vec::new());
        while let Some(length) = rest.first_chunk::<4>() {
            let length = u32::from_ne_bytes(*length) as usize;
            assert_eq!(length % 4, 0);
            kinds.push(u16::from_ne_bytes([rest[4], rest[5]]) & 0xff);
            rest = &rest[length..];
        }
        assert_eq!(kinds.len(), messages as usize + 2);
        assert_eq!((kinds[0], kinds[kinds.len() - 1]), (BATCH_BEGIN, BATCH_END));
        assert_eq!(
            kinds[1..4],
            [NEWTABLE, DELTABLE, NEWTABLE],
            "replaced in one transaction"
        );
        // 4096 intervals of two bounds each.
        assert_eq!(kinds.iter().filter(|kind| **kind == NEWSETELEM).count(), 9);
        assert_eq!(kinds.iter().filter(|kind| **kind == NEWCHAIN).count(), 5);
        assert_eq!(kinds.iter().filter(|kind| **kind == NEWRULE).count(), 8);
    }

    #[test]
    fn addresses_change_places() {
        let attribute = |kind: u16, content: &[u8]| {
            let length = u16::try_from(4 + content.len()).unwrap();
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let payload = |parts: [(u16, u32); 4]| {
            let parts = parts.map(|(kind, word)| attribute(kind, &word.to_be_bytes()));
            let parts = attribute(2 | NESTED, &parts.concat());
            attribute(1 | NESTED, &[attribute(1, b"payload\0"), parts].concat())
        };
        // Register to write to, base, offset, length; the register to read from comes last.
        let cases = [
            (V4, [[8, 1, 16, 4], [9, 1, 12, 4], [1, 12, 8, 8]]),
            (V6, [[1, 1, 24, 16], [2, 1, 8, 16], [1, 8, 32, 1]]),
        ];
        for (family, [destination, source, written]) in cases {
            let load = |[register, base, offset, length]: [u32; 4]| {
                payload([(1, register), (2, base), (3, offset), (4, length)])
            };
            let [base, offset, length, register] = written;
            let store = payload([(2, base), (3, offset), (4, length), (5, register)]);
            let mut bytes = Vec::new();
            swap_addresses(&mut Attributes(&mut bytes), &family);
            assert_eq!(bytes, [load(destination), load(source), store].concat());
        }
    }
}
