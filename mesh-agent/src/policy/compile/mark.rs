//! Signs by which policies tell peers apart.

use super::ports::Spans;
use crate::model::Protocol;
use crate::policy::Direction;

/// Something that views see in a peer. Peers with equal marks are treated alike, those with different ones perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mark<'a> {
    /// Network policies grant it something: index of the [`Grant`].
    Granted(usize),
    /// One of the matches of an index holds for it, with its identity or without.
    From { matches: usize, proved: bool },
    /// It gives a port a name.
    Port {
        name: &'a str,
        protocol: Protocol,
        port: u16,
    },
    /// It is a pod of this node, so it may have proved its identity, if it has one.
    Local { has_identity: bool },
    /// It has an IPv6 address, and so have its peers.
    V6,
    /// It is the pod of a [`View::alone`], by index.
    Own(usize),
}

/// Ports that a view grants to some peers, whichever of its policies do.
pub(super) struct Grant<'a> {
    /// The view.
    pub(super) view: usize,
    /// From which end connections are judged.
    pub(super) direction: Direction,
    /// The ports.
    pub(super) ports: Spans<'a>,
}
