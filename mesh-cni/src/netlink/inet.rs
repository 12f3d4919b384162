//! EDGE: addresses, routes and neighbours of both families.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::Netlink;
use crate::plan::{self, Mac};

/// Where the kernel would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index of the device.
    pub index: u32,
    /// The next hop, unless the destination is on the link.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// Adds an address as a host prefix, usable at once.
    pub fn add_address(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = IpNet::from(address).prefix_len();
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        if address.is_ipv6() {
            // The agent vouches for the address, and detection would keep it unusable for a second.
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        self.change(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a permanent neighbour entry.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        let mut message = neighbour(index, address);
        message.header.state = NeighbourState::Permanent;
        let mac = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
        message.attributes.push(mac);
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds a default route by way of a next hop that need not be in any prefix of the device.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = route(plan::default_destination(gateway));
        message.header.scope = RouteScope::Universe;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Gateway(gateway.into()),
            RouteAttribute::Oif(index),
        ];
        let message = RouteNetlinkMessage::NewRoute(message);
        self.change(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route to one address that is on the link.
    ///
    /// # Errors
    /// `EEXIST` if the address is routed elsewhere already.
    pub fn add_host_route(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = route(address.into());
        message.header.scope = match address {
            IpAddr::V4(_) => RouteScope::Link,
            // IPv6 routes have no scope.
            IpAddr::V6(_) => RouteScope::Universe,
        };
        message.attributes = vec![
            RouteAttribute::Destination(address.into()),
            RouteAttribute::Oif(index),
        ];
        let message = RouteNetlinkMessage::NewRoute(message);
        self.change(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The addresses of a device with their prefixes.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<IpNet>> {
        let mut addresses = Vec::new();
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(message, &mut |answer| {
            if let RouteNetlinkMessage::NewAddress(message) = decode(answer)?
                && message.header.index == index
            {
                addresses.extend(local(&message));
            }
            Ok(())
        })?;
        Ok(addresses)
    }

    /// Asks which way a packet to `destination` would go; `None` if there is none.
    pub fn route_to(&mut self, destination: IpAddr) -> io::Result<Option<Found>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        message.attributes = vec![RouteAttribute::Destination(destination.into())];
        let mut found = None;
        let answer = self.get(RouteNetlinkMessage::GetRoute(message), &mut |answer| {
            if let RouteNetlinkMessage::NewRoute(message) = decode(answer)? {
                found = way(&message);
            }
            Ok(())
        });
        match answer {
            Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => Ok(None),
            answer => answer.map(|()| found),
        }
    }

    /// The MAC address of a permanent neighbour entry.
    pub fn permanent_neighbour(&mut self, index: u32, address: IpAddr) -> io::Result<Option<Mac>> {
        let mut mac = None;
        let message = RouteNetlinkMessage::GetNeighbour(neighbour(index, address));
        let answer = self.get(message, &mut |answer| {
            if let RouteNetlinkMessage::NewNeighbour(message) = decode(answer)?
                && message.header.state == NeighbourState::Permanent
            {
                mac = message.attributes.iter().find_map(link_layer);
            }
            Ok(())
        });
        match answer {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            answer => answer.map(|()| mac),
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn route(destination: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message
}

fn decode(answer: &[u8]) -> io::Result<RouteNetlinkMessage> {
    let message = NetlinkMessage::deserialize(answer).map_err(io::Error::other)?;
    match message.payload {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// An IPv4 address is in `IFA_LOCAL`, an IPv6 one without a peer only in `IFA_ADDRESS`.
fn local(message: &AddressMessage) -> Option<IpNet> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        attributes().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn way(message: &RouteMessage) -> Option<Found> {
    let mut index = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                gateway = Some((*address).into());
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => {
                gateway = Some((*address).into());
            }
            _ => {}
        }
    }
    index.map(|index| Found { index, gateway })
}

fn link_layer(attribute: &NeighbourAttribute) -> Option<Mac> {
    match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac[..].try_into().ok().map(Mac),
        _ => None,
    }
}
