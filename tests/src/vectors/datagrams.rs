//! UDP, SCTP, ICMP and the rest, of pods under policy and of others.

use mesh_common::maps::{Flow, Opener};
use mesh_common::packet::Packet;
use mesh_common::steer::{Origin, Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};

use super::rows::{CLIENT, Carried, Rows, SERVER, Vector, drop, is_outward, new, old, steer};
use crate::frames::{Frame, ethernet, flag, protocol};
use crate::rules::{DIAMETER, DNS};
use crate::world::Who::{
    Enrolled, Judged, JudgedEnrolled, OnlyEgress, OnlyIngress, Outcast, Plain, Remote, RemotePlain,
    Stranger, Unruled, Untold,
};
use crate::world::{Decision, Family, Who, plain};

const REFUSED: Steer = drop(Outcome::Policy);
const PASS: Steer = steer(Verb::Pass);

/// A first packet and its answer, with the ports, or twice the identifier, of who opens and who is opened to.
const EXCHANGES: [(Carried, Carried, u16, u16); 3] = [
    (Carried::Udp, Carried::Udp, CLIENT, DNS),
    (Carried::Sctp, Carried::Sctp, CLIENT, DIAMETER),
    (Carried::Echo, Carried::EchoReply, 77, 77),
];

impl Rows {
    /// Adds the vectors of this file.
    pub(super) fn datagrams(&mut self) {
        for (first, answer, client, server) in EXCHANGES {
            self.opened(first, client, server);
            self.answered(answer, client, server);
            self.judged_again(first, client, server);
        }
        self.by_ports_alone();
        self.unjudged_messages();
        self.fragments_of_judged();
        self.other_protocols();
    }

    // One row a packet.
    #[rustfmt::skip]
    fn opened(&mut self, first: Carried, client: u16, server: u16) {
        let mut goes = |from, to, verdict| {
            let name = format!("{from:?} opens to {to:?}");
            self.between(&name, Hook::FromPod, first, ((from, client), (to, server)), verdict);
        };
        goes(Judged, RemotePlain, new(Opener::Pod));
        goes(Judged, Untold, REFUSED);
        goes(Judged, Stranger, REFUSED);
        goes(OnlyIngress, Untold, new(Opener::Pod));
        goes(OnlyEgress, Stranger, new(Opener::Pod));
        goes(OnlyEgress, RemotePlain, REFUSED);
        goes(Unruled, RemotePlain, REFUSED);
        goes(Unruled, Unruled, new(Opener::Pod));
        goes(JudgedEnrolled, Remote, REFUSED);
        goes(Plain, Untold, PASS);
        goes(Enrolled, Remote, PASS);
        let mut comes = |origin, from, to, verdict| {
            let name = format!("{origin:?} {from:?} opens to {to:?}");
            let ends = ((to, server), (from, client));
            self.between(&name, Hook::ToPod, first, ends, verdict).origin = origin;
        };
        for (to, friend, nobody, node) in [
            (Judged, new(Opener::Peer), REFUSED, new(Opener::Node)),
            (OnlyIngress, new(Opener::Peer), REFUSED, new(Opener::Node)),
            (OnlyEgress, new(Opener::Peer), new(Opener::Peer), new(Opener::Node)),
            (JudgedEnrolled, REFUSED, REFUSED, new(Opener::Node)),
            (Unruled, REFUSED, REFUSED, REFUSED),
            (Plain, PASS, PASS, PASS),
            (Enrolled, PASS, PASS, PASS),
        ] {
            comes(Origin::Forwarded, RemotePlain, to, friend);
            comes(Origin::Forwarded, Untold, to, nobody);
            comes(Origin::Node, Outcast, to, node);
            comes(Origin::Agent, Untold, to, PASS);
        }
        for pod in [Judged, Unruled] {
            comes(Origin::Forwarded, pod, pod, new(Opener::Peer));
        }
    }

    /// Answers follow the record, whatever the rules say of their direction.
    fn answered(&mut self, answer: Carried, client: u16, server: u16) {
        for peer in [RemotePlain, Untold] {
            for pod in [Judged, Unruled] {
                let ends = ((pod, server), (peer, client));
                let name = format!("{pod:?} answers {peer:?}");
                self.between(&name, Hook::FromPod, answer, ends, PASS)
                    .known(plain(Opener::Peer));
                let ends = ((pod, client), (peer, server));
                let name = format!("{peer:?} answers {pod:?}");
                self.between(&name, Hook::ToPod, answer, ends, PASS)
                    .known(plain(Opener::Pod));
            }
        }
        for (hook, what) in [(Hook::FromPod, "out of"), (Hook::ToPod, "into")] {
            let name = format!("nobody asked, {what} the pod");
            let ends = ((Judged, server), (Untold, client));
            self.between(&name, hook, answer, ends, REFUSED);
        }
    }

    // One row a packet.
    #[rustfmt::skip]
    fn judged_again(&mut self, carried: Carried, client: u16, server: u16) {
        let renew = steer(Verb::PassRenew);
        let [by_pod, by_peer, by_node] = [Opener::Pod, Opener::Peer, Opener::Node].map(|o| old(plain(o)));
        for hook in [Hook::FromPod, Hook::ToPod] {
            let mut on = |opened_by: Flow, pod, peer, verdict| {
                let (at, to) = if opened_by == by_pod { (client, server) } else { (server, client) };
                let name = format!("{pod:?} with {peer:?}, {opened_by:?}");
                self.between(&name, hook, carried, ((pod, at), (peer, to)), verdict).known(opened_by);
            };
            on(by_pod, Judged, RemotePlain, renew);
            on(by_pod, Judged, Untold, REFUSED);
            on(by_pod, Unruled, RemotePlain, REFUSED);
            on(by_pod, OnlyIngress, Untold, renew);
            on(by_pod, Plain, Untold, PASS);
            on(by_peer, Judged, RemotePlain, renew);
            on(by_peer, Judged, Untold, REFUSED);
            on(by_peer, Unruled, RemotePlain, REFUSED);
            on(by_peer, OnlyEgress, Untold, renew);
            on(by_node, Judged, Untold, renew);
            on(by_node, Unruled, Untold, REFUSED);
        }
    }

    /// What a record or a rule does not speak for is judged by itself.
    fn by_ports_alone(&mut self) {
        let friends = ((Judged, DNS), (RemotePlain, CLIENT));
        let passes = new(Opener::Peer);
        self.between(
            "refused as opened, allowed from the peer",
            Hook::ToPod,
            Carried::Udp,
            friends,
            passes,
        )
        .known(old(plain(Opener::Pod)));
        for (carried, port) in [(Carried::Udp, DNS + 1), (Carried::Sctp, DIAMETER + 1)] {
            let out = ((Judged, CLIENT), (RemotePlain, port));
            self.between("another port", Hook::FromPod, carried, out, REFUSED);
            let inward = ((Judged, port), (RemotePlain, CLIENT));
            self.between("another port", Hook::ToPod, carried, inward, REFUSED);
        }
        for (carried, other, port) in [
            (Carried::Udp, protocol::TCP, DNS),
            (Carried::Sctp, protocol::UDP, DIAMETER),
        ] {
            let ends = ((Judged, CLIENT), (Untold, port));
            let vector = self.between(
                "a record of another protocol",
                Hook::ToPod,
                carried,
                ends,
                REFUSED,
            );
            let key = vector.flow.map(|mut flow| {
                flow.protocol = other.into();
                flow
            });
            vector
                .recorded
                .extend(key.map(|key| (key, plain(Opener::Pod))));
        }
        let asked = self.between(
            "",
            Hook::FromPod,
            Carried::Echo,
            ((OnlyIngress, 77), (Untold, 77)),
            new(Opener::Pod),
        );
        let asked = asked.flow;
        let ends = ((OnlyIngress, 78), (Untold, 78));
        let name = "another identifier";
        let vector = self.between(name, Hook::ToPod, Carried::EchoReply, ends, REFUSED);
        vector
            .recorded
            .extend(asked.map(|key| (key, plain(Opener::Pod))));
    }

    /// Adds a frame out of a pod and into it, from and to a peer.
    fn both_ways(
        &mut self,
        name: &str,
        (pod, peer): (Who, Who),
        frame: impl Fn(Who, Who) -> Frame,
        [out, inward]: [Steer; 2],
    ) {
        let at = pod.ifindex();
        for (hook, from, to, verdict) in [
            (Hook::FromPod, pod, peer, out),
            (Hook::ToPod, peer, pod, inward),
        ] {
            let bytes = frame(from, to).bytes();
            let packet = Packet::parse(bytes.as_slice());
            let name = format!("{name}, {from:?} to {to:?}");
            let vector = self.add(&name, hook, at, bytes, Decision::Steer(verdict));
            vector.flow = Some(if is_outward(hook) {
                packet.flow_of_source(at)
            } else {
                packet.flow_of_destination(at)
            });
        }
    }

    fn unjudged_messages(&mut self) {
        let family = self.family;
        let (errors, other): (&[u8], u8) = match family {
            Family::V4 => (&[3, 11, 12], 13),
            Family::V6 => (&[1, 2, 3, 4], 144),
        };
        let message =
            |kind| move |from: Who, to: Who| Frame::icmp(from.ip(family), to.ip(family), kind, 9);
        for kind in errors {
            for pod in [Judged, JudgedEnrolled, Unruled, Plain] {
                let name = format!("ICMP error {kind} passes");
                self.both_ways(&name, (pod, Untold), message(*kind), [PASS, PASS]);
            }
        }
        let news = [new(Opener::Pod), new(Opener::Peer)];
        let name = "a message without identifier";
        self.both_ways(name, (Judged, RemotePlain), message(other), news);
        self.both_ways(name, (Judged, Untold), message(other), [REFUSED; 2]);
        self.both_ways(name, (Plain, Untold), message(other), [PASS; 2]);
        let arp = ethernet(0x0806);
        for hook in [Hook::FromPod, Hook::ToPod] {
            let at = Unruled.ifindex();
            self.add("ARP passes", hook, at, arp.clone(), Decision::Steer(PASS));
        }
    }

    fn fragments_of_judged(&mut self) {
        let family = self.family;
        let udp = |offset, more| {
            move |from: Who, to: Who| {
                Frame::udp(from.at(family, DNS), to.at(family, DNS)).fragment(offset, more)
            }
        };
        let news = [new(Opener::Pod), new(Opener::Peer)];
        let first = "the first fragment is judged";
        self.both_ways(first, (Judged, RemotePlain), udp(0, true), news);
        self.both_ways(first, (Judged, Untold), udp(0, true), [REFUSED; 2]);
        let later = "later fragments pass";
        self.both_ways(later, (Judged, Untold), udp(8, true), [PASS; 2]);
        self.both_ways(later, (Unruled, Untold), udp(1400, false), [PASS; 2]);

        let tcp = |offset, more| {
            move |from: Who, to: Who| {
                let ends = (from.at(family, CLIENT), to.at(family, SERVER));
                Frame::tcp(ends.0, ends.1, flag::SYN).fragment(offset, more)
            }
        };
        let dropped = [drop(Outcome::Fragment); 2];
        for (offset, more) in [(0, true), (8, true), (24, false)] {
            for pod in [Judged, JudgedEnrolled, OnlyIngress, OnlyEgress, Unruled] {
                let name = "TCP fragments are dropped";
                self.both_ways(name, (pod, RemotePlain), tcp(offset, more), dropped);
            }
        }
        let fragment = tcp(0, true)(Untold, Judged).bytes();
        let at = Judged.ifindex();
        let name = "the node's TCP fragments pass";
        let vector: &mut Vector = self.add(name, Hook::ToPod, at, fragment, Decision::Steer(PASS));
        vector.origin = Origin::Node;
    }

    /// Protocols without ports have port 0; only rules for all protocols speak for them.
    fn other_protocols(&mut self) {
        const ESP: u8 = 50;
        let family = self.family;
        let frame =
            |from: Who, to: Who| Frame::ip(from.ip(family), to.ip(family), ESP, vec![0; 20]);
        self.both_ways("ESP", (Judged, RemotePlain), frame, [REFUSED; 2]);
        let news = [new(Opener::Pod), REFUSED];
        self.both_ways("ESP", (OnlyIngress, RemotePlain), frame, news);
        self.both_ways("ESP", (Plain, RemotePlain), frame, [PASS; 2]);
        let bytes = frame(Untold, Judged).bytes();
        let flow = Packet::parse(bytes.as_slice()).flow_of_destination(Judged.ifindex());
        let passes = Decision::Steer(new(Opener::Node));
        let at = Judged.ifindex();
        let vector = self.add("ESP of the node", Hook::ToPod, at, bytes, passes);
        vector.origin = Origin::Node;
        vector.flow = Some(flow);
    }
}
