//! Look-ups in compiled policy, as the kernel makes them in its copy.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{PolicyEntry, PolicyKey};
use mesh_common::policy::Policies;

use super::Compiled;

/// Its policy sets and classes are of one generation, whatever its number.
impl Policies for Compiled {
    fn class(&self, _generation: u32, addr: &Addr) -> u32 {
        let mut longer = 129;
        while let Some(bits) = next_shorter(&self.classes, longer) {
            if let Some(class) = self.classes.get(&(bits, network(*addr, bits))) {
                return *class;
            }
            longer = bits;
        }
        0
    }

    fn entry(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
        let number = key.port.number();
        let ports = (0..=16_u32).rev().map(|bits| {
            let rest = u16::MAX.checked_shr(bits).unwrap_or(0);
            let port = Port::new(number & !rest);
            (PolicyKey::ANY_PORT + bits, PolicyKey { port, ..*key })
        });
        let any = PolicyKey {
            protocol: 0,
            port: Port::new(0),
            ..*key
        };
        let mut prefixes = ports.chain([(PolicyKey::ANY_PROTOCOL, any)]);
        prefixes.find_map(|it| self.entries.get(&it))
    }
}

/// The longest prefix length in the table below `bits`.
fn next_shorter(classes: &BTreeMap<(u32, Addr), u32>, bits: u32) -> Option<u32> {
    // No address is less than the absent one.
    let shorter = classes.range(..(bits, Addr::NONE)).next_back();
    shorter.map(|((bits, _), _)| *bits)
}

/// The first address of the prefix of `bits` bits that holds an address.
fn network(addr: Addr, bits: u32) -> Addr {
    let octets = match IpAddr::from(addr) {
        IpAddr::V4(it) => it.to_ipv6_mapped(),
        IpAddr::V6(it) => it,
    };
    let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
    Ipv6Addr::from(u128::from(octets) & !rest).into()
}
