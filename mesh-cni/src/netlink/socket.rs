//! EDGE: the socket: numbered requests, their answers and acknowledgements.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// A route netlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An acknowledgement need not carry the whole request back.
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has the kernel change something, and waits until it has.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK, &mut |_| Ok(()))
    }

    /// Has the kernel tell of one object; `NLM_F_ACK` makes the end of the answer certain.
    pub(super) fn get(
        &mut self,
        message: RouteNetlinkMessage,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK, each)
    }

    /// Has the kernel tell of every object of a kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.exchange(message, NLM_F_DUMP, each)
    }

    /// Sends a request and hands every message of the answer, header included, to `each` up to the end of the answer.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.sequence += 1;
        self.send(message, flags)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let header = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let length = header.length() as usize;
                if header.sequence_number() == self.sequence && Self::is_end(&rest[..length], each)?
                {
                    return Ok(());
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Is this the end of the answer? What is not goes to `each`.
    fn is_end(message: &[u8], each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        let kind = NetlinkBuffer::new(message).message_type();
        if kind != NLMSG_ERROR && kind != NLMSG_DONE {
            each(message)?;
            return Ok(false);
        }
        // Both begin with a negated errno; an empty NLMSG_DONE means none.
        let code = message.get(16..20).and_then(|code| code.try_into().ok());
        match code.map_or(0, i32::from_ne_bytes) {
            0 => Ok(true),
            errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        }
    }
}

/// `NLMSG_ERROR` and `NLMSG_DONE` of `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
