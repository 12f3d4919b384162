//! CORE: how a pod is wired, as data.
//!
//! A veth pair, point to point: the pod's end holds host addresses and a default route over a link-local next hop, the
//! host's end holds nothing but routes to the pod. Every neighbour is a permanent entry, so neither side ever asks by
//! ARP or neighbour discovery, and both ends make no IPv6 address of their own, so nothing is sent before the workload
//! sends.
//!
//! Invariant: a step that hangs on the veth needs no undo of its own, because the kernel drops addresses, routes and
//! neighbour entries together with the device.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::cni::{Attachment, Wiring};
use mesh_common::names::{GATEWAY_V4, GATEWAY_V6};

/// An end of the veth pair, and the network namespace it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In the node's namespace.
    Host,
    /// In the pod's.
    Pod,
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of an end, a function of the attachment alone, locally administered: DEL knows its interface by it.
    pub fn of(attachment: &Attachment, end: End) -> Self {
        let tag = match end {
            End::Host => b'h',
            End::Pod => b'p',
        };
        // FNV-1a, 64 bits, with the high half folded in.
        let name = attachment.container.bytes().chain([b'/']);
        let bytes = name.chain(attachment.ifname.bytes()).chain([b'/', tag]);
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [mut mac @ .., fifth, sixth] = hash.to_be_bytes();
        mac[0] = (mac[0] & 0xfc) | 0x02;
        mac[4] ^= fifth;
        mac[5] ^= sixth;
        Self(mac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// The pair of devices to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Name of the host's end.
    pub host: String,
    /// MAC address of the host's end.
    pub host_mac: Mac,
    /// Name of the pod's end.
    pub pod: String,
    /// MAC address of the pod's end.
    pub pod_mac: Mac,
    /// MTU of both, in bytes.
    pub mtu: u32,
}

/// One change to the kernel's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Delete the host's end that a killed ADD left, if there is one.
    RemoveLeftover {
        /// Its name.
        host: String,
    },
    /// Create both ends at once, each with its name, MAC address and MTU, the pod's directly in its namespace.
    CreateVeth(Veth),
    /// Learn the indices of both ends, which the kernel chose.
    FindVeth {
        /// Name of the host's end.
        host: String,
        /// Name of the pod's end.
        pod: String,
    },
    /// Keep an end from giving itself a link-local IPv6 address.
    NoLinkLocal(End),
    /// Keep the host's end from taking an address or a route from a pod's router advertisement.
    IgnoreAdvertisements {
        /// Its name.
        host: String,
    },
    /// Set the pod's loopback device up.
    LoopbackUp,
    /// Set an end up.
    Up(End),
    /// Give the pod's end an address; an IPv6 one without duplicate address detection.
    Address(IpAddr),
    /// Tell an end a neighbour's MAC address for good.
    Neighbour {
        /// The end.
        end: End,
        /// Address of the neighbour.
        address: IpAddr,
        /// Its MAC address.
        mac: Mac,
    },
    /// Send the pod's traffic to the host's end: the default route of one family.
    DefaultRoute {
        /// The next hop, which is on the link whatever the addresses say.
        gateway: IpAddr,
    },
    /// Send the host's traffic for one address to the pod.
    PodRoute(IpAddr),
}

/// One change taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Delete the host's end, and with it the pod's and everything on both.
    DeleteVeth {
        /// Its name.
        host: String,
    },
}

impl Step {
    /// What takes the step back; `None` where nothing is left that the undo of [`Step::CreateVeth`] does not take along.
    pub fn undo(&self) -> Option<Undo> {
        match self {
            Self::CreateVeth(veth) => Some(Undo::DeleteVeth {
                host: veth.host.clone(),
            }),
            // What a killed ADD left is of no use to anyone, and a loopback device that is up is what every pod has;
            // the rest goes with the veth.
            Self::RemoveLeftover { .. }
            | Self::LoopbackUp
            | Self::FindVeth { .. }
            | Self::NoLinkLocal(_)
            | Self::IgnoreAdvertisements { .. }
            | Self::Up(_)
            | Self::Address(_)
            | Self::Neighbour { .. }
            | Self::DefaultRoute { .. }
            | Self::PodRoute(_) => None,
        }
    }
}

/// Which namespaces have IPv6 at all: a kernel can be without it, or be started without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// The kernel has it.
    Present,
    /// The kernel does not know it.
    Absent,
}

/// The steps that wire `attachment` as `wiring` says, in order.
pub fn plan(attachment: &Attachment, wiring: &Wiring, ipv6: Ipv6) -> Vec<Step> {
    let host = attachment.host_ifname();
    let veth = Veth {
        host: host.clone(),
        host_mac: Mac::of(attachment, End::Host),
        pod: attachment.ifname.clone(),
        pod_mac: Mac::of(attachment, End::Pod),
        mtu: wiring.mtu,
    };
    let (host_mac, pod_mac) = (veth.host_mac, veth.pod_mac);
    let mut steps = vec![
        Step::RemoveLeftover { host: host.clone() },
        Step::CreateVeth(veth),
        Step::FindVeth {
            host: host.clone(),
            pod: attachment.ifname.clone(),
        },
    ];
    if ipv6 == Ipv6::Present {
        // Before the devices are up: link-local addresses are made at that moment.
        steps.extend([
            Step::NoLinkLocal(End::Pod),
            Step::NoLinkLocal(End::Host),
            Step::IgnoreAdvertisements { host },
        ]);
    }
    steps.extend([Step::LoopbackUp, Step::Up(End::Pod), Step::Up(End::Host)]);
    for &address in &wiring.addresses {
        steps.extend(address_steps(address, host_mac, pod_mac));
    }
    steps
}

fn address_steps(address: IpAddr, host_mac: Mac, pod_mac: Mac) -> [Step; 5] {
    let gateway = gateway(address);
    [
        Step::Address(address),
        Step::Neighbour {
            end: End::Pod,
            address: gateway,
            mac: host_mac,
        },
        Step::DefaultRoute { gateway },
        Step::Neighbour {
            end: End::Host,
            address,
            mac: pod_mac,
        },
        Step::PodRoute(address),
    ]
}

/// The next hop of the default route in the family of `address`.
pub fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// The destination of the default route in the family of `address`.
pub fn default_destination(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => ipnet::Ipv4Net::default().into(),
        IpAddr::V6(_) => ipnet::Ipv6Net::default().into(),
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "the host's end of the veth",
            Self::Pod => "the pod's end of the veth",
        })
    }
}

/// Reads after "cannot".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveLeftover { host } => write!(f, "delete {host}, left by an earlier ADD"),
            Self::CreateVeth(veth) => {
                let Veth { host, pod, mtu, .. } = veth;
                write!(f, "create the veth pair {host} and {pod} of MTU {mtu}")
            }
            Self::FindVeth { host, pod } => write!(f, "find the veth pair {host} and {pod}"),
            Self::NoLinkLocal(end) => write!(f, "set addr_gen_mode of {end} to none"),
            Self::IgnoreAdvertisements { host } => {
                write!(f, "set net.ipv6.conf.{host}.accept_ra to 0")
            }
            Self::LoopbackUp => f.write_str("set the pod's loopback device up"),
            Self::Up(end) => write!(f, "set {end} up"),
            Self::Address(address) => write!(f, "add address {address} to the pod"),
            Self::Neighbour { end, address, mac } => {
                write!(f, "add neighbour {address} at {mac} to {end}")
            }
            Self::DefaultRoute { gateway } => {
                write!(f, "add the default route via {gateway} to the pod")
            }
            Self::PodRoute(address) => write!(f, "add the route to {address} to the host"),
        }
    }
}

/// Reads after "cannot".
impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteVeth { host } => write!(f, "delete {host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    fn names(addresses: &[&str], ipv6: Ipv6) -> Vec<String> {
        let wiring = Wiring {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mtu: 1400,
        };
        let steps = plan(&attachment(), &wiring, ipv6);
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn dual_stack_in_order() {
        let host = attachment().host_ifname();
        let host_mac = Mac::of(&attachment(), End::Host);
        let pod_mac = Mac::of(&attachment(), End::Pod);
        assert_eq!(
            names(&["10.0.0.9", "fd00::9"], Ipv6::Present),
            [
                format!("delete {host}, left by an earlier ADD"),
                format!("create the veth pair {host} and eth0 of MTU 1400"),
                format!("find the veth pair {host} and eth0"),
                "set addr_gen_mode of the pod's end of the veth to none".to_owned(),
                "set addr_gen_mode of the host's end of the veth to none".to_owned(),
                format!("set net.ipv6.conf.{host}.accept_ra to 0"),
                "set the pod's loopback device up".to_owned(),
                "set the pod's end of the veth up".to_owned(),
                "set the host's end of the veth up".to_owned(),
                "add address 10.0.0.9 to the pod".to_owned(),
                format!("add neighbour 169.254.1.1 at {host_mac} to the pod's end of the veth"),
                "add the default route via 169.254.1.1 to the pod".to_owned(),
                format!("add neighbour 10.0.0.9 at {pod_mac} to the host's end of the veth"),
                "add the route to 10.0.0.9 to the host".to_owned(),
                "add address fd00::9 to the pod".to_owned(),
                format!("add neighbour fe80::1 at {host_mac} to the pod's end of the veth"),
                "add the default route via fe80::1 to the pod".to_owned(),
                format!("add neighbour fd00::9 at {pod_mac} to the host's end of the veth"),
                "add the route to fd00::9 to the host".to_owned(),
            ]
        );
    }

    #[test]
    fn a_kernel_without_ipv6_is_not_asked_for_it() {
        let steps = names(&["10.0.0.9"], Ipv6::Absent);
        assert!(steps.iter().all(|step| !step.contains("addr_gen_mode")));
        assert!(steps.iter().all(|step| !step.contains("ipv6")));
        assert_eq!(steps.len(), 11);
    }

    #[test]
    fn only_the_veth_needs_an_undo() {
        let wiring = Wiring {
            addresses: vec!["10.0.0.9".parse().unwrap()],
            mtu: 1500,
        };
        let steps = plan(&attachment(), &wiring, Ipv6::Present);
        let undos: Vec<_> = steps.iter().filter_map(Step::undo).collect();
        let host = attachment().host_ifname();
        assert_eq!(undos, [Undo::DeleteVeth { host }]);
    }

    #[test]
    fn mac_addresses_are_local_unicast_and_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for container in 0..1000 {
            let attachment = Attachment {
                container: format!("c{container}"),
                ifname: "eth0".to_owned(),
            };
            for end in [End::Host, End::Pod] {
                let mac = Mac::of(&attachment, end);
                assert_eq!(mac.0[0] & 0x03, 0x02, "{mac}");
                assert!(seen.insert(mac.0), "{mac} twice");
            }
        }
    }
}
