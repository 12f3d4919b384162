//! CORE: which address a new pod gets.
//!
//! Addresses are handed out in turn, each family on its own, so that one that was given back rests for as long as the
//! ranges allow: peers remember addresses longer than pods live. State is the set of taken addresses and the last one given;
//! both follow from the attachments, nothing else is stored.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The addresses of a node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipam {
    v4: Family,
    v6: Family,
}

/// Why a pod gets no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The node has no pod CIDR, or none that is known yet.
    #[error("the node has no pod CIDR; check spec.podCIDRs of its Node object")]
    NoRange,
    /// Every IPv4 address of the node's pod CIDRs is taken.
    #[error("no IPv4 address is left in the node's pod CIDRs; delete pods or add a larger CIDR")]
    ExhaustedV4,
    /// Every IPv6 address of the node's pod CIDRs is taken.
    #[error("no IPv6 address is left in the node's pod CIDRs; delete pods or add a larger CIDR")]
    ExhaustedV6,
}

impl Ipam {
    /// No ranges, and nothing taken.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the ranges to allocate from, in order; what is taken stays taken, inside of them or not.
    ///
    /// The network address, the one after it (by habit a gateway's) and the last one (broadcast) are never given.
    pub fn set_ranges(&mut self, cidrs: &[IpNet]) {
        let ranges = |v6: bool| {
            let of_family = cidrs.iter().filter(move |it| it.addr().is_ipv6() == v6);
            of_family.map(Range::of).collect()
        };
        self.v4.ranges = ranges(false);
        self.v6.ranges = ranges(true);
    }

    /// Marks an address as taken and makes it the last one given.
    ///
    /// At start, take the addresses of all attachments in the order they were made.
    pub fn take(&mut self, address: IpAddr) {
        let (family, number) = self.family(address);
        family.taken.insert(number);
        family.last = number;
    }

    /// Gives an address back; one that is not taken is fine.
    pub fn release(&mut self, address: IpAddr) {
        let (family, number) = self.family(address);
        family.taken.remove(&number);
    }

    /// Takes one address of each family that has a range, IPv4 first.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is taken then.
    pub fn allocate(&mut self) -> Result<Vec<IpAddr>, Unavailable> {
        let addresses = self.peek()?;
        for address in &addresses {
            self.take(*address);
        }
        Ok(addresses)
    }

    /// The addresses that [`Self::allocate`] would take.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn peek(&self) -> Result<Vec<IpAddr>, Unavailable> {
        let mut addresses = Vec::new();
        if !self.v4.ranges.is_empty() {
            let number = self.v4.next().ok_or(Unavailable::ExhaustedV4)?;
            addresses.push(v4(number).into());
        }
        if !self.v6.ranges.is_empty() {
            let number = self.v6.next().ok_or(Unavailable::ExhaustedV6)?;
            addresses.push(Ipv6Addr::from_bits(number).into());
        }
        if addresses.is_empty() {
            return Err(Unavailable::NoRange);
        }
        Ok(addresses)
    }

    /// How many addresses of the ranges are taken and how many are free, IPv4 and IPv6; `None` for a family without ranges.
    pub fn usage(&self) -> [Option<(u128, u128)>; 2] {
        [&self.v4, &self.v6].map(|family| (!family.ranges.is_empty()).then(|| family.usage()))
    }

    fn family(&mut self, address: IpAddr) -> (&mut Family, u128) {
        match address {
            IpAddr::V4(_) => (&mut self.v4, number(address)),
            IpAddr::V6(_) => (&mut self.v6, number(address)),
        }
    }
}

/// One family; addresses as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Family {
    ranges: Vec<Range>,
    taken: BTreeSet<u128>,
    /// The last address given; 0 before the first.
    last: u128,
}

impl Family {
    /// The first free address after the last one given, going round through all ranges.
    fn next(&self) -> Option<u128> {
        let start = self.ranges.iter().position(|it| it.contains(self.last));
        let rest = start.map(|at| self.ranges[at].after(self.last));
        let later = start.map_or(0, |at| at + 1);
        // The range it started in comes last once more, from its beginning.
        let in_turn =
            (0..self.ranges.len()).map(|step| self.ranges[(later + step) % self.ranges.len()]);
        rest.into_iter()
            .chain(in_turn)
            .find_map(|it| self.first_free(it))
    }

    fn usage(&self) -> (u128, u128) {
        let in_a_range = |number: &&u128| self.ranges.iter().any(|it| it.contains(**number));
        let taken = self.taken.iter().filter(in_a_range).count() as u128;
        let all = self
            .ranges
            .iter()
            .map(|it| (it.last + 1).saturating_sub(it.first));
        (taken, all.sum::<u128>() - taken)
    }

    fn first_free(&self, range: Range) -> Option<u128> {
        if range.first > range.last {
            return None;
        }
        let mut candidate = range.first;
        for taken in self.taken.range(range.first..=range.last) {
            if *taken != candidate {
                break;
            }
            candidate += 1;
        }
        (candidate <= range.last).then_some(candidate)
    }
}

/// Addresses that may be given, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
}

impl Range {
    /// The usable part of a CIDR; of one that has none, an empty range, which is exhausted rather than absent.
    fn of(cidr: &IpNet) -> Self {
        Self {
            first: number(cidr.network()).saturating_add(2),
            last: number(cidr.broadcast()).saturating_sub(1),
        }
    }

    fn contains(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// What comes after a number of the range.
    fn after(&self, number: u128) -> Self {
        Self {
            first: number + 1,
            ..*self
        }
    }
}

fn v4(number: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::try_from(number).expect("ranges of IPv4 hold IPv4 addresses"))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(it) => it.to_bits().into(),
        IpAddr::V6(it) => it.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usage_is_of_the_ranges() {
        let mut ipam = ipam(&["10.0.0.0/29", "10.0.1.0/30"]);
        assert_eq!(ipam.usage(), [Some((0, 6)), None]);
        ipam.allocate().unwrap();
        ipam.take("192.0.2.1".parse().unwrap());
        assert_eq!(ipam.usage(), [Some((1, 5)), None]);
    }

    fn ipam(cidrs: &[&str]) -> Ipam {
        let mut ipam = Ipam::new();
        ipam.set_ranges(
            &cidrs
                .iter()
                .map(|it| it.parse().unwrap())
                .collect::<Vec<_>>(),
        );
        ipam
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn first_address_of_each_family() {
        let check = |cidrs: &[&str], expect: Result<&[&str], Unavailable>| {
            let got = ipam(cidrs).allocate().map(|it| texts(&it));
            assert_eq!(
                got,
                expect.map(|it| it.iter().map(ToString::to_string).collect())
            );
        };
        check(&["10.1.2.0/24"], Ok(&["10.1.2.2"]));
        check(
            &["fd00:1::/64", "10.1.2.0/24"],
            Ok(&["10.1.2.2", "fd00:1::2"]),
        );
        check(&["fd00:1::/64"], Ok(&["fd00:1::2"]));
        check(&["10.1.2.0/30"], Ok(&["10.1.2.2"]));
        check(&["10.1.2.0/31", "10.9.0.0/24"], Ok(&["10.9.0.2"]));
        check(&["10.1.2.77/24"], Ok(&["10.1.2.2"]));
        check(&[], Err(Unavailable::NoRange));
        check(&["10.1.2.0/32"], Err(Unavailable::ExhaustedV4));
        check(&["255.255.255.255/32"], Err(Unavailable::ExhaustedV4));
        check(
            &["10.1.2.0/24", "ffff::/128"],
            Err(Unavailable::ExhaustedV6),
        );
        check(&["10.1.2.0/24", "::/127"], Err(Unavailable::ExhaustedV6));
    }

    #[test]
    fn goes_round_before_it_gives_again() {
        let mut ipam = ipam(&["10.0.0.0/29", "10.0.1.0/30"]);
        let given: Vec<_> = (0..14)
            .map(|_| {
                let address = ipam.allocate().unwrap()[0];
                ipam.release(address);
                address.to_string()
            })
            .collect();
        let round = [
            "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.1.2",
        ];
        let expect: Vec<_> = round
            .iter()
            .cycle()
            .take(14)
            .map(ToString::to_string)
            .collect();
        assert_eq!(given, expect);
    }

    #[test]
    fn nothing_is_taken_when_one_family_is_exhausted() {
        let mut ipam = ipam(&["10.0.0.0/24", "fd00::/126"]);
        ipam.allocate().unwrap();
        let before = ipam.clone();
        assert_eq!(ipam.allocate(), Err(Unavailable::ExhaustedV6));
        assert_eq!(ipam, before);
    }

    #[test]
    fn new_ranges_keep_what_is_taken() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        ipam.allocate().unwrap();
        ipam.set_ranges(&["10.7.0.0/24".parse().unwrap()]);
        assert_eq!(texts(&ipam.allocate().unwrap()), ["10.7.0.2"]);
        ipam.set_ranges(&["10.0.0.0/29".parse().unwrap()]);
        assert_eq!(texts(&ipam.allocate().unwrap()), ["10.0.0.3"]);
    }

    #[test]
    fn restored_state_goes_on_after_the_last_one() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        for address in [
            "10.0.0.9",
            "10.0.0.200",
            "10.0.0.17",
            "10.0.0.18",
            "192.0.2.1",
        ] {
            ipam.take(address.parse().unwrap());
        }
        assert_eq!(texts(&ipam.peek().unwrap()), ["10.0.0.2"]);
        ipam.take("10.0.0.17".parse().unwrap());
        assert_eq!(texts(&ipam.peek().unwrap()), ["10.0.0.19"]);
    }

    proptest! {
        /// Whatever is allocated and released in whatever order, no address has two owners, every address is of a
        /// range, and exhaustion is told only when it is true.
        #[test]
        fn never_twice(
            prefixes in prop::collection::vec(26_u8..=30, 1..4),
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..300),
        ) {
            let cidrs: Vec<IpNet> = prefixes
                .iter()
                .enumerate()
                .map(|(i, prefix)| format!("10.0.{i}.0/{prefix}").parse().unwrap())
                .collect();
            let capacity: usize = prefixes.iter().map(|it| (1_usize << (32 - it)) - 3).sum();
            let mut ipam = Ipam::new();
            ipam.set_ranges(&cidrs);
            let mut held = VecDeque::new();
            for (allocate, which) in steps {
                if allocate || held.is_empty() {
                    match ipam.allocate() {
                        Ok(given) => {
                            prop_assert!(!held.contains(&given[0]), "{} given twice", given[0]);
                            prop_assert!(cidrs.iter().any(|it| it.contains(&given[0])));
                            held.push_back(given[0]);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, Unavailable::ExhaustedV4);
                            prop_assert_eq!(held.len(), capacity);
                        }
                    }
                } else if let Some(address) = held.remove(which.index(held.len())) {
                    ipam.release(address);
                }
            }
        }
    }
}
