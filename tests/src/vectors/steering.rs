//! Who may reach whom, and by which way.

use mesh_common::HBONE_PORT;
use mesh_common::maps::{Flow, Opener, Slot};
use mesh_common::steer::{Origin, Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};

use super::rows::{
    CLIENT, MALFORMED, Rows, SERVER, Vector, drop, new, reset, steer, to_agent, to_pod,
};
use crate::frames::{Frame, ethernet, flag};
use crate::world::Who::{
    Enrolled, Left, Neighbour, Plain, PlainStrict, Remote, RemotePlain, Service, Stranger, Strict,
    Untold,
};
use crate::world::{Decision, NO_POD, UPLINK, Who, local, plain};

impl Rows {
    /// Adds the vectors of this file.
    pub(super) fn steering(&mut self) {
        self.pod_opens();
        self.pod_goes_on();
        self.pod_sends_something_else();
        self.pod_is_reached();
        self.node_is_reached();
    }

    /// The first packet of a connection that a pod opens.
    fn opens(&mut self, name: &str, from: Who, to: Who, port: u16, verdict: Steer) {
        let ends = ((from, CLIENT), (to, port));
        let frame = self.segment(ends.0, ends.1, flag::SYN).bytes();
        let flow = self.flow(ends.0, ends.1);
        let vector = self.add(
            name,
            Hook::FromPod,
            from.ifindex(),
            frame,
            Decision::Steer(verdict),
        );
        vector.flow = Some(flow);
    }

    // One row a packet.
    #[rustfmt::skip]
    fn pod_opens(&mut self) {
        let outbound = to_agent(Verb::Capture, Slot::Outbound);
        let inbound = to_agent(Verb::Capture, Slot::Inbound);
        let plain = new(Opener::Pod);
        self.opens("enrolled to remote enrolled is captured", Enrolled, Remote, SERVER, outbound);
        self.opens("enrolled to a service is captured", Enrolled, Service, SERVER, outbound);
        self.opens("enrolled to its neighbour is short-cut", Enrolled, Neighbour, SERVER, to_pod(Verb::LocalNew, Neighbour));
        self.opens("enrolled to a strict neighbour is short-cut", Enrolled, Strict, SERVER, to_pod(Verb::LocalNew, Strict));
        self.opens("enrolled to a plain neighbour passes", Enrolled, Plain, SERVER, plain);
        self.opens("enrolled to one that left passes", Enrolled, Left, SERVER, plain);
        self.opens("enrolled to remote plain passes", Enrolled, RemotePlain, SERVER, plain);
        self.opens("enrolled to a stranger passes", Enrolled, Stranger, SERVER, plain);
        for to in [Remote, Neighbour, Plain, Stranger, Service] {
            let name = format!("enrolled to the tunnel port of {to:?} is never forwarded");
            self.opens(&name, Enrolled, to, HBONE_PORT, outbound);
        }
        self.opens("plain to remote enrolled passes", Plain, Remote, SERVER, plain);
        self.opens("plain to enrolled neighbour is left to to_pod", Plain, Enrolled, SERVER, plain);
        self.opens("plain to a service passes", Plain, Service, SERVER, plain);
        self.opens("plain that speaks HBONE to a neighbour", Plain, Enrolled, HBONE_PORT, inbound);
        self.opens("plain that speaks HBONE to a remote pod", Plain, Remote, HBONE_PORT, plain);
        self.opens("plain to a plain tunnel port passes", Plain, PlainStrict, HBONE_PORT, plain);
        self.opens("one that left to remote enrolled passes", Left, Remote, SERVER, plain);
        self.opens("one that left to a service passes", Left, Service, SERVER, plain);
        self.opens("enrolled to a pod of which nothing is told", Enrolled, Untold, SERVER, outbound);
        self.opens("plain to a pod of which nothing is told", Plain, Untold, SERVER, plain);
    }

    /// A later packet of a connection, with or without a record.
    fn goes_on(
        &mut self,
        name: &str,
        from: Who,
        to: (Who, u16),
        record: Option<Flow>,
        verdict: Steer,
    ) {
        let from_port = (from, CLIENT);
        let key = self.flow(from_port, to);
        for flags in [
            flag::ACK,
            flag::SYN | flag::ACK,
            flag::RST,
            flag::FIN | flag::ACK,
            0,
        ] {
            let name = format!("{name} (flags {flags:#04x})");
            let frame = self.segment(from_port, to, flags).bytes();
            let expect = Decision::Steer(verdict);
            let vector = self.add(&name, Hook::FromPod, from.ifindex(), frame, expect);
            vector.flow = Some(key);
            vector.recorded = record.map(|flow| (key, flow)).into_iter().collect();
        }
    }

    // One row a packet.
    #[rustfmt::skip]
    fn pod_goes_on(&mut self) {
        let outbound = to_agent(Verb::SocketOrListener, Slot::Outbound);
        let inbound = to_agent(Verb::SocketOrListener, Slot::Inbound);
        let plain = Some(plain(Opener::Pod));
        let evicted = to_pod(Verb::SocketOrLocal, Neighbour);
        let local = |to| Some(local(to, Opener::Pod));
        self.goes_on("orphan to remote enrolled stays", Enrolled, (Remote, SERVER), None, outbound);
        self.goes_on("orphan to a stranger stays", Enrolled, (Stranger, SERVER), None, outbound);
        self.goes_on("orphan to a plain pod stays", Enrolled, (Plain, SERVER), None, outbound);
        self.goes_on("plain flow to a stranger passes", Enrolled, (Stranger, SERVER), plain, steer(Verb::Pass));
        self.goes_on("plain flow to a pod enrolled since passes", Enrolled, (Remote, SERVER), plain, steer(Verb::Pass));
        self.goes_on("local flow is short-cut", Enrolled, (Neighbour, SERVER), local(Neighbour), to_pod(Verb::Local, Neighbour));
        self.goes_on("local flow without record is short-cut", Enrolled, (Neighbour, SERVER), None, evicted);
        self.goes_on("local flow outlives the label", Enrolled, (Left, SERVER), local(Left), to_pod(Verb::Local, Left));
        self.goes_on("orphan to one that left stays", Enrolled, (Left, SERVER), None, outbound);
        self.goes_on("local flow to a pod that is gone", Enrolled, (Remote, SERVER), local(Neighbour), outbound);
        self.goes_on("local flow to an earlier pod of the address", Enrolled, (Neighbour, SERVER), local(Left), evicted);
        self.goes_on("open tunnel outlives the label", Left, (Remote, SERVER), None, outbound);
        self.goes_on("plain flow of one that left passes", Left, (Remote, SERVER), plain, steer(Verb::Pass));
        self.goes_on("plain to a stranger passes", Plain, (Stranger, SERVER), None, steer(Verb::Pass));
        self.goes_on("plain to remote enrolled passes", Plain, (Remote, SERVER), None, steer(Verb::Pass));
        self.goes_on("plain to plain passes", Plain, (PlainStrict, SERVER), None, steer(Verb::Pass));
        let agent = steer(Verb::SocketOrPass);
        self.goes_on("plain to the agent as the neighbour", Plain, (Enrolled, SERVER), None, agent);
        self.goes_on("plain flow to the neighbour passes", Plain, (Enrolled, SERVER), plain, steer(Verb::Pass));
        self.goes_on("plain that speaks HBONE", Plain, (Enrolled, HBONE_PORT), None, inbound);
    }

    fn pod_sends_something_else(&mut self) {
        let at = Enrolled.ifindex();
        let hook = Hook::FromPod;
        let dropped = |outcome| Decision::Steer(drop(outcome));
        let pass = Decision::Steer(steer(Verb::Pass));
        for other in [Neighbour, Remote, Service, Stranger] {
            let frame = self
                .segment((other, CLIENT), (Remote, SERVER), flag::SYN)
                .bytes();
            self.add(
                "a foreign source is dropped",
                hook,
                at,
                frame,
                dropped(Outcome::Spoofed),
            );
            let frame = Frame::udp(other.at(self.family, 53), Remote.at(self.family, 53)).bytes();
            self.add(
                "a foreign UDP source is dropped",
                hook,
                at,
                frame,
                dropped(Outcome::Spoofed),
            );
        }
        let frame = self
            .segment((Enrolled, CLIENT), (Remote, SERVER), flag::ACK)
            .bytes();
        self.add(
            "no pod at the interface",
            hook,
            NO_POD,
            frame,
            Decision::UnknownPod,
        );
        let frame = Frame::udp(Enrolled.at(self.family, 53), Remote.at(self.family, 53)).bytes();
        self.add("UDP passes", hook, at, frame, pass);
        self.add("ARP passes", hook, at, ethernet(0x0806), pass);
        self.add(
            "LLDP is dropped",
            hook,
            at,
            ethernet(0x88cc),
            dropped(Outcome::EtherType),
        );
        let tagged = self
            .segment((Enrolled, CLIENT), (Remote, SERVER), flag::SYN)
            .tagged(7);
        self.add(
            "a VLAN tag is dropped",
            hook,
            at,
            tagged,
            dropped(Outcome::EtherType),
        );
    }

    /// A packet that is about to reach a pod.
    fn reaches(
        &mut self,
        name: &str,
        to: Who,
        flags: u8,
        origin: Origin,
        verdict: Steer,
    ) -> &mut Vector {
        let ends = ((Stranger, CLIENT), (to, SERVER));
        let frame = self.segment(ends.0, ends.1, flags).bytes();
        let flow = self.flow(ends.1, ends.0);
        let vector = self.add(
            name,
            Hook::ToPod,
            to.ifindex(),
            frame,
            Decision::Steer(verdict),
        );
        vector.origin = origin;
        vector.flow = Some(flow);
        vector
    }

    fn pod_is_reached(&mut self) {
        use Origin::{Agent, Forwarded, Node};
        let (syn, ack) = (flag::SYN, flag::ACK);
        self.reaches(
            "plaintext to a permissive pod passes",
            Enrolled,
            syn,
            Forwarded,
            new(Opener::Peer),
        );
        self.reaches(
            "plaintext to a strict pod is refused",
            Strict,
            syn,
            Forwarded,
            reset(Outcome::Strict),
        );
        self.reaches(
            "a probe reaches a strict pod",
            Strict,
            syn,
            Node,
            new(Opener::Node),
        );
        self.reaches(
            "the agent reaches a strict pod",
            Strict,
            syn,
            Agent,
            steer(Verb::PassAgent),
        );
        self.reaches(
            "strict means nothing outside the mesh",
            PlainStrict,
            syn,
            Forwarded,
            new(Opener::Peer),
        );
        self.reaches(
            "plaintext to a plain pod passes",
            Plain,
            syn,
            Forwarded,
            new(Opener::Peer),
        );
        for to in [Enrolled, Strict, Left] {
            let name = format!("an orphan to {to:?} is reset");
            self.reaches(&name, to, ack, Forwarded, reset(Outcome::NoFlow));
            self.reaches(
                "the agent's segments pass",
                to,
                ack,
                Agent,
                steer(Verb::Pass),
            );
            self.reaches("the node's segments pass", to, ack, Node, steer(Verb::Pass));
        }
        self.reaches(
            "an orphan to a plain pod passes",
            Plain,
            ack,
            Forwarded,
            steer(Verb::Pass),
        );
        for (to, path) in [
            (Enrolled, plain(Opener::Pod)),
            (Enrolled, plain(Opener::Peer)),
            (Strict, plain(Opener::Node)),
            (Enrolled, local(Neighbour, Opener::Peer)),
        ] {
            let key = self.flow((to, SERVER), (Stranger, CLIENT));
            let vector = self.reaches(
                "a recorded flow passes",
                to,
                ack,
                Forwarded,
                steer(Verb::Pass),
            );
            vector.recorded.insert(key, path);
        }
        let hook = Hook::ToPod;
        let to = Enrolled.ifindex();
        let pass = Decision::Steer(steer(Verb::Pass));
        let udp = Frame::udp(Stranger.at(self.family, 53), Enrolled.at(self.family, 53)).bytes();
        self.add("UDP passes", hook, to, udp, pass);
        self.add("ARP passes", hook, to, ethernet(0x0806), pass);
        let frame = self.segment((Stranger, CLIENT), (Enrolled, SERVER), syn);
        let vlan = Decision::Steer(drop(Outcome::EtherType));
        self.add("a VLAN tag is dropped", hook, to, frame.tagged(7), vlan);
        self.add("a cut header is dropped", hook, to, frame.cut(1), MALFORMED);
        self.add(
            "no pod at the interface",
            hook,
            NO_POD,
            frame.bytes(),
            Decision::UnknownPod,
        );
    }

    /// A packet from another machine.
    fn arrives(&mut self, name: &str, to: (Who, u16), flags: u8, verdict: Steer) {
        let from = (Remote, CLIENT);
        let frame = self.segment(from, to, flags).bytes();
        self.add(name, Hook::FromNet, UPLINK, frame, Decision::Steer(verdict));
    }

    fn node_is_reached(&mut self) {
        let (syn, ack) = (flag::SYN, flag::ACK);
        let pass = steer(Verb::Pass);
        for to in [Enrolled, Strict] {
            self.arrives(
                "a tunnel is captured",
                (to, HBONE_PORT),
                syn,
                to_agent(Verb::SocketOrListener, Slot::Inbound),
            );
            self.arrives(
                "a tunnel goes on",
                (to, HBONE_PORT),
                ack,
                to_agent(Verb::SocketOrListener, Slot::Inbound),
            );
            self.arrives("plaintext is left to to_pod", (to, SERVER), syn, pass);
            self.arrives(
                "a reply may be the agent's",
                (to, CLIENT),
                ack,
                steer(Verb::SocketOrPass),
            );
        }
        self.arrives("no tunnel to one that left", (Left, HBONE_PORT), syn, pass);
        self.arrives(
            "open tunnels outlive the label",
            (Left, HBONE_PORT),
            ack,
            steer(Verb::SocketOrPass),
        );
        for to in [Plain, PlainStrict, Remote, RemotePlain, Service, Stranger] {
            for (port, flags) in [
                (HBONE_PORT, syn),
                (HBONE_PORT, ack),
                (SERVER, syn),
                (SERVER, ack),
            ] {
                let name = format!("{to:?} port {port} passes");
                self.arrives(&name, (to, port), flags, pass);
            }
        }
        let hook = Hook::FromNet;
        let pass = Decision::Steer(steer(Verb::Pass));
        let forged = Decision::Steer(drop(Outcome::Spoofed));
        for flags in [syn, ack] {
            let frame = self
                .segment((Neighbour, CLIENT), (Enrolled, SERVER), flags)
                .bytes();
            self.add(
                "a pod of this node from outside",
                hook,
                UPLINK,
                frame,
                forged,
            );
        }
        let frame = self.segment((Remote, CLIENT), (Enrolled, HBONE_PORT), syn);
        self.add("a VLAN tag passes", hook, UPLINK, frame.tagged(7), pass);
        self.add(
            "fragments are left to to_pod",
            hook,
            UPLINK,
            frame.clone().fragment(0, true).bytes(),
            pass,
        );
        self.add(
            "a cut header is the stack's",
            hook,
            UPLINK,
            frame.cut(1),
            pass,
        );
        self.add("ARP passes", hook, UPLINK, ethernet(0x0806), pass);
    }
}
