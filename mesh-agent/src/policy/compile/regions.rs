//! Where the prefixes of policies begin and end.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use mesh_common::addr::Addr;

/// The addresses of a prefix that are in none of the longer ones.
pub(super) struct Region {
    /// Length of the prefix in bits of an [`Addr`].
    pub(super) bits: u32,
    /// Its first address.
    first: u128,
    /// The region of the next shorter prefix around it; none for the whole.
    pub(super) parent: Option<usize>,
    /// Whether a policy names the prefix.
    pub(super) told: bool,
    /// One of its addresses; none when the longer prefixes leave nothing.
    pub(super) sample: Option<IpAddr>,
}

/// Every address is in one region: of the longest prefix that it is in.
///
/// All IPv4 addresses and all there are count as prefixes too, so that IPv6 prefixes around the IPv4-mapped ones end there.
pub(super) struct Regions {
    /// What is around a region comes before it.
    pub(super) all: Vec<Region>,
    /// By length and first address.
    index: BTreeMap<(u32, u128), usize>,
    /// The lengths of all prefixes.
    lengths: BTreeSet<u32>,
}

/// `::ffff:0:0/96`.
const MAPPED: (u32, u128) = (96, 0xffff_0000_0000);

/// `::/0` and [`MAPPED`].
const WHOLES: [(u32, u128); 2] = [(0, 0), MAPPED];

impl Regions {
    /// The regions that some prefixes make.
    pub(super) fn of<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Self {
        let mut places = BTreeMap::from(WHOLES.map(|(bits, first)| ((first, bits), false)));
        places.extend(
            nets.filter_map(place)
                .map(|(bits, first)| ((first, bits), true)),
        );
        let (mut all, mut index) = (Vec::<Region>::new(), BTreeMap::new());
        // The first address of each region that no longer prefix seen so far has taken.
        let mut free: Vec<Option<u128>> = Vec::new();
        let mut around: Vec<usize> = Vec::new();
        for ((first, bits), told) in places {
            around.retain(|it| last(all[*it].bits, all[*it].first) >= first);
            let parent = around.last().copied();
            if let Some(free) = parent.map(|it| &mut free[it])
                && *free == Some(first)
            {
                *free = last(bits, first).checked_add(1);
            }
            index.insert((bits, first), all.len());
            around.push(all.len());
            free.push(Some(first));
            all.push(Region {
                bits,
                first,
                parent,
                told,
                sample: None,
            });
        }
        for (region, free) in iter::zip(&mut all, free) {
            let free = free.filter(|it| *it <= last(region.bits, region.first));
            region.sample = free.map(|it| IpAddr::from(Ipv6Addr::from(it)).to_canonical());
        }
        let lengths = index.keys().map(|(bits, _)| *bits).collect();
        Self {
            all,
            index,
            lengths,
        }
    }

    /// The region of a prefix, which was among those they were made of; none when no address can be in it.
    pub(super) fn of_net(&self, net: &IpNet) -> Option<usize> {
        self.index.get(&place(net)?).copied()
    }

    /// The region that an address is in.
    pub(super) fn locate(&self, address: IpAddr) -> usize {
        let address = number(address);
        let mut found = self.lengths.iter().rev().filter_map(|bits| {
            let first = address & !last(*bits, 0);
            self.index.get(&(*bits, first))
        });
        found.next().copied().unwrap_or(0)
    }

    /// The regions of all IPv4 addresses and of all there are, as far as they are in no longer prefix.
    pub(super) fn wholes(&self) -> impl Iterator<Item = usize> {
        let [all, mapped] = WHOLES;
        [mapped, all]
            .into_iter()
            .filter_map(|it| self.index.get(&it).copied())
    }

    /// A region and those around it.
    pub(super) fn around(&self, region: usize) -> impl Iterator<Item = usize> {
        iter::successors(Some(region), |it| self.all[*it].parent)
    }
}

impl Region {
    /// The first address of its prefix.
    pub(super) fn first(&self) -> Addr {
        Ipv6Addr::from(self.first).into()
    }
}

/// Length and first address of a prefix; none for IPv6 prefixes of IPv4-mapped addresses, which no packet has.
fn place(net: &IpNet) -> Option<(u32, u128)> {
    let (bits, first) = match net {
        IpNet::V4(it) => (96 + u32::from(it.prefix_len()), number(it.network().into())),
        IpNet::V6(it) => (u32::from(it.prefix_len()), it.network().into()),
    };
    let is_mapped = bits >= MAPPED.0 && first & !last(MAPPED.0, 0) == MAPPED.1;
    (net.addr().is_ipv4() || !is_mapped).then_some((bits, first))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(it) => it.to_ipv6_mapped().into(),
        IpAddr::V6(it) => it.into(),
    }
}

/// The last address of a prefix.
fn last(bits: u32, first: u128) -> u128 {
    first | u128::MAX.checked_shr(bits).unwrap_or(0)
}
