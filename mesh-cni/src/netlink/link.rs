//! EDGE: devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkBuffer, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::Netlink;
use crate::plan::{Mac, Veth};

/// What we want to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its MAC address, if it is an Ethernet device.
    pub mac: Option<Mac>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Is it set up? Says nothing about the carrier.
    pub up: bool,
}

impl Netlink {
    /// Creates a veth pair: the host's end here, the pod's end in `netns`. Both are down.
    ///
    /// # Errors
    /// `EEXIST` if either name is taken.
    pub fn create_veth(&mut self, veth: &Veth, netns: &File) -> io::Result<()> {
        let mut pod = end(&veth.pod, veth.pod_mac, veth.mtu);
        let fd = netns.as_raw_fd();
        pod.attributes.push(LinkAttribute::NetNsFd(fd));
        let mut host = end(&veth.host, veth.host_mac, veth.mtu);
        host.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(pod))),
        ]));
        let message = RouteNetlinkMessage::NewLink(host);
        self.change(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Deletes a device; `false` if there is none of that name.
    pub fn delete_link(&mut self, name: &str) -> io::Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        present(self.change(RouteNetlinkMessage::DelLink(message), 0)).map(|gone| gone.is_some())
    }

    /// Sets a device up.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Keeps a device from giving itself a link-local IPv6 address.
    pub fn set_no_link_local(&mut self, index: u32) -> io::Result<()> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![mode],
        )])];
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Looks a device up by its name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        let mut link = None;
        let answered = self.get(RouteNetlinkMessage::GetLink(message), &mut |answer| {
            link = Some(parse(answer)?);
            Ok(())
        });
        Ok(present(answered)?.and(link))
    }
}

/// `ENODEV` is an answer, not a failure.
fn present<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

fn end(name: &str, mac: Mac, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
    ];
    message
}

/// Picks what we need: a full decode would fail on attributes that only newer kernels send.
fn parse(answer: &[u8]) -> io::Result<Link> {
    let payload = NetlinkBuffer::new(answer).payload();
    let header = LinkHeader::parse(payload).map_err(io::Error::other)?;
    let mut link = Link {
        index: header.index,
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
    };
    for attribute in NlasIterator::new(&payload[LINK_HEADER_LEN..]) {
        let attribute = attribute.map_err(io::Error::other)?;
        match attribute.kind() {
            IFLA_ADDRESS => link.mac = attribute.value().try_into().ok().map(Mac),
            IFLA_MTU => {
                let bytes = attribute.value().try_into().map_err(io::Error::other)?;
                link.mtu = u32::from_ne_bytes(bytes);
            }
            _ => {}
        }
    }
    Ok(link)
}

/// Length of `struct ifinfomsg`, and attributes of `linux/if_link.h`.
const LINK_HEADER_LEN: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
