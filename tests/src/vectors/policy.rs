//! TCP of pods under policy: what opens, what goes on, what ends when the rules change.

use mesh_common::HBONE_PORT;
use mesh_common::maps::{Flow, Opener, Slot};
use mesh_common::steer::{Origin, Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};

use super::rows::{
    CLIENT, Carried, REFUSED, Rows, SERVER, Vector, drop, new, old, reset, steer, to_agent, to_pod,
};
use crate::frames::flag;
use crate::rules::{DNS, GAP, INWARD, OUTWARD, PROVED, RANGE};
use crate::world::Who::{
    Enrolled, Judged, JudgedEnrolled, Left, Neighbour, OnlyEgress, OnlyIngress, Outcast, Plain,
    Remote, RemotePlain, Service, Stranger, Unruled, Untold,
};
use crate::world::{Who, local, plain};

impl Rows {
    /// Adds the vectors of this file.
    pub(super) fn policy(&mut self) {
        self.judged_opens();
        self.enrolled_opens();
        self.judged_is_opened_to();
        self.node_opens();
        self.judged_goes_on();
        self.short_cut_goes_on();
        self.judged_hears_on();
        self.services();
    }

    /// A connection that a pod opens.
    fn goes(&mut self, from: Who, to: Who, port: u16, verdict: Steer) {
        let name = format!("{from:?} opens to {to:?} port {port}");
        let ends = ((from, CLIENT), (to, port));
        let syn = Carried::Tcp(flag::SYN);
        self.between(&name, Hook::FromPod, syn, ends, verdict);
    }

    /// A connection that is opened to a pod.
    fn comes(&mut self, from: Who, to: Who, port: u16, verdict: Steer) -> &mut Vector {
        let name = format!("{from:?} opens to {to:?} port {port}");
        let ends = ((to, port), (from, CLIENT));
        let syn = Carried::Tcp(flag::SYN);
        self.between(&name, Hook::ToPod, syn, ends, verdict)
    }

    // One row a packet.
    #[rustfmt::skip]
    fn judged_opens(&mut self) {
        let passes = new(Opener::Pod);
        self.goes(Judged, RemotePlain, SERVER, passes);
        self.goes(Judged, RemotePlain, OUTWARD, passes);
        self.goes(Judged, RemotePlain, INWARD, REFUSED);
        self.goes(Judged, Enrolled, SERVER, passes);
        self.goes(Judged, Neighbour, SERVER, REFUSED);
        for port in [RANGE, RANGE + 2, RANGE + 4, RANGE + 7] {
            self.goes(Judged, Stranger, port, passes);
        }
        for port in [RANGE - 1, GAP, RANGE + 8, SERVER] {
            self.goes(Judged, Stranger, port, REFUSED);
        }
        self.goes(Judged, Outcast, RANGE, REFUSED);
        self.goes(Judged, Untold, SERVER, REFUSED);
        self.goes(Judged, Remote, HBONE_PORT, REFUSED);
        self.goes(OnlyIngress, Untold, SERVER, passes);
        self.goes(OnlyEgress, Stranger, SERVER, passes);
        self.goes(OnlyEgress, RemotePlain, SERVER, REFUSED);
        self.goes(Unruled, RemotePlain, SERVER, REFUSED);
        self.goes(Unruled, Unruled, SERVER, passes);
        self.goes(Plain, Judged, INWARD, passes);
        // What the tunnel carries is judged, not the tunnel.
        let inbound = to_agent(Verb::Capture, Slot::Inbound);
        self.goes(Judged, JudgedEnrolled, HBONE_PORT, inbound);
        self.goes(Unruled, Enrolled, HBONE_PORT, inbound);
    }

    // One row a packet.
    #[rustfmt::skip]
    fn enrolled_opens(&mut self) {
        let outbound = to_agent(Verb::Capture, Slot::Outbound);
        self.goes(JudgedEnrolled, Remote, SERVER, outbound);
        self.goes(JudgedEnrolled, Remote, OUTWARD, REFUSED);
        self.goes(JudgedEnrolled, RemotePlain, SERVER, new(Opener::Pod));
        self.goes(JudgedEnrolled, RemotePlain, OUTWARD, REFUSED);
        self.goes(JudgedEnrolled, Plain, SERVER, new(Opener::Pod));
        self.goes(JudgedEnrolled, Stranger, SERVER, REFUSED);
        // The agent judges, once it knows the endpoint.
        for port in [SERVER, OUTWARD, HBONE_PORT] {
            self.goes(JudgedEnrolled, Service, port, outbound);
            self.goes(JudgedEnrolled, Untold, port, outbound);
        }
        self.goes(JudgedEnrolled, Stranger, HBONE_PORT, outbound);
        self.goes(JudgedEnrolled, Enrolled, SERVER, to_pod(Verb::LocalNew, Enrolled));
        self.goes(JudgedEnrolled, Enrolled, OUTWARD, REFUSED);
        self.goes(JudgedEnrolled, Neighbour, SERVER, REFUSED);
        self.goes(JudgedEnrolled, JudgedEnrolled, OUTWARD, to_pod(Verb::LocalNew, JudgedEnrolled));
        // The short cut proves who is there; the neighbour's own rules are asked, too.
        let short_cut = to_pod(Verb::LocalNew, JudgedEnrolled);
        self.goes(Enrolled, JudgedEnrolled, SERVER, short_cut);
        self.goes(Enrolled, JudgedEnrolled, PROVED, short_cut);
        self.goes(Enrolled, JudgedEnrolled, INWARD, REFUSED);
        self.goes(Neighbour, JudgedEnrolled, SERVER, REFUSED);
        self.goes(Enrolled, Judged, SERVER, new(Opener::Pod));
    }

    // One row a packet.
    #[rustfmt::skip]
    fn judged_is_opened_to(&mut self) {
        let passes = new(Opener::Peer);
        for friend in [RemotePlain, Plain, Enrolled] {
            self.comes(friend, Judged, SERVER, passes);
            self.comes(friend, Judged, INWARD, passes);
            self.comes(friend, Judged, OUTWARD, REFUSED);
            self.comes(friend, OnlyIngress, SERVER, passes);
            self.comes(friend, Unruled, SERVER, REFUSED);
        }
        for port in [RANGE, RANGE + 2, RANGE + 4, RANGE + 7] {
            self.comes(Stranger, Judged, port, passes);
        }
        for port in [RANGE - 1, GAP, RANGE + 8, SERVER] {
            self.comes(Stranger, Judged, port, REFUSED);
        }
        self.comes(Outcast, Judged, RANGE, REFUSED);
        self.comes(Untold, Judged, SERVER, REFUSED);
        self.comes(Untold, OnlyIngress, SERVER, REFUSED);
        self.comes(Untold, OnlyEgress, SERVER, passes);
        self.comes(Unruled, Unruled, SERVER, passes);
        // Plaintext proves nothing.
        self.comes(RemotePlain, JudgedEnrolled, INWARD, passes);
        self.comes(RemotePlain, JudgedEnrolled, PROVED, REFUSED);
        self.comes(Remote, JudgedEnrolled, SERVER, REFUSED);
    }

    /// A process of the node is known by where it is, not by its address.
    fn node_opens(&mut self) {
        for (to, verdict) in [
            (Judged, new(Opener::Node)),
            (JudgedEnrolled, new(Opener::Node)),
            (OnlyIngress, new(Opener::Node)),
            (OnlyEgress, new(Opener::Node)),
            (Unruled, REFUSED),
        ] {
            for from in [Untold, Outcast] {
                self.comes(from, to, OUTWARD, verdict).origin = Origin::Node;
                let agent = steer(Verb::PassAgent);
                let vector = self.comes(from, to, OUTWARD, agent);
                vector.origin = Origin::Agent;
                vector.known(plain(Opener::Peer));
            }
        }
    }

    /// A later segment out of a pod, whatever its flags.
    fn goes_on_as(
        &mut self,
        ends: ((Who, u16), (Who, u16)),
        records: (Option<Flow>, Option<Flow>),
        verdict: Steer,
    ) {
        let ((pod, _), (peer, port)) = ends;
        let name = format!("{pod:?} goes on to {peer:?} port {port}, {records:?}");
        let theirs = self.flow(ends.1, ends.0);
        for flags in LATER {
            let carried = Carried::Tcp(flags);
            let vector = self.between(&name, Hook::FromPod, carried, ends, verdict);
            vector.recorded.extend(records.1.map(|flow| (theirs, flow)));
            if let Some(flow) = records.0 {
                vector.known(flow);
            }
        }
    }

    // One row a packet.
    #[rustfmt::skip]
    fn judged_goes_on(&mut self) {
        let [pod, peer, node] = [Opener::Pod, Opener::Peer, Opener::Node].map(plain);
        let (pass, renew) = (steer(Verb::Pass), steer(Verb::PassRenew));
        let mut client = |from, to, port, record, verdict| {
            self.goes_on_as(((from, CLIENT), (to, port)), (record, None), verdict);
        };
        client(Judged, RemotePlain, SERVER, None, reset(Outcome::NoFlow));
        client(Unruled, RemotePlain, SERVER, None, reset(Outcome::NoFlow));
        client(Judged, RemotePlain, SERVER, Some(pod), pass);
        client(Judged, RemotePlain, SERVER, Some(old(pod)), renew);
        client(Judged, Stranger, RANGE + 7, Some(old(pod)), renew);
        client(Judged, Stranger, GAP, Some(old(pod)), REFUSED);
        client(Judged, Untold, SERVER, Some(pod), pass);
        client(Judged, Untold, SERVER, Some(old(pod)), REFUSED);
        client(Unruled, RemotePlain, SERVER, Some(old(pod)), REFUSED);
        client(OnlyIngress, Untold, SERVER, Some(old(pod)), renew);
        client(OnlyEgress, Stranger, SERVER, Some(old(pod)), renew);
        client(OnlyEgress, RemotePlain, SERVER, Some(old(pod)), REFUSED);
        client(JudgedEnrolled, RemotePlain, SERVER, Some(old(pod)), renew);
        client(JudgedEnrolled, RemotePlain, OUTWARD, Some(old(pod)), REFUSED);
        client(Enrolled, Untold, SERVER, Some(old(pod)), renew);
        client(Left, Untold, SERVER, Some(old(pod)), renew);
        client(Plain, Untold, SERVER, Some(old(pod)), pass);
        // The agent may speak with the neighbour's address; the neighbour's `to_pod` knows nothing of such a flow.
        client(Judged, Enrolled, SERVER, None, steer(Verb::SocketOrPass));
        client(Judged, Enrolled, HBONE_PORT, None, to_agent(Verb::SocketOrListener, Slot::Inbound));
        let mut server = |port, from, to, record, verdict| {
            self.goes_on_as(((from, port), (to, CLIENT)), (Some(record), None), verdict);
        };
        server(SERVER, Judged, RemotePlain, old(peer), renew);
        server(INWARD, Judged, RemotePlain, old(peer), renew);
        server(OUTWARD, Judged, RemotePlain, old(peer), REFUSED);
        server(SERVER, Judged, Untold, peer, pass);
        server(SERVER, Judged, Untold, old(peer), REFUSED);
        server(SERVER, Judged, Untold, old(node), renew);
        server(SERVER, Unruled, Untold, node, pass);
        server(SERVER, Unruled, Untold, old(node), REFUSED);
        server(SERVER, OnlyEgress, Untold, old(peer), renew);
        server(INWARD, JudgedEnrolled, RemotePlain, old(peer), renew);
        server(PROVED, JudgedEnrolled, RemotePlain, old(peer), REFUSED);
    }

    // One row a packet.
    #[rustfmt::skip]
    fn short_cut_goes_on(&mut self) {
        let (here, there) = (local(Enrolled, Opener::Peer), local(JudgedEnrolled, Opener::Pod));
        let (goes, renew) = (to_pod(Verb::Local, JudgedEnrolled), to_pod(Verb::LocalRenew, JudgedEnrolled));
        let mut client = |port, records, verdict| {
            self.goes_on_as(((Enrolled, CLIENT), (JudgedEnrolled, port)), records, verdict);
        };
        client(SERVER, (Some(there), Some(here)), goes);
        client(PROVED, (Some(old(there)), Some(old(here))), renew);
        client(PROVED, (Some(old(there)), Some(here)), renew);
        client(INWARD, (Some(there), Some(old(here))), goes);
        client(INWARD, (Some(old(there)), Some(old(here))), REFUSED);
        // Its record was evicted, and is not needed.
        client(PROVED, (Some(old(there)), None), renew);
        client(INWARD, (Some(old(there)), None), REFUSED);

        let there = local(Enrolled, Opener::Pod);
        let renew = to_pod(Verb::LocalRenew, Enrolled);
        let outbound = to_agent(Verb::SocketOrListener, Slot::Outbound);
        let mut client = |port, record, verdict| {
            self.goes_on_as(((JudgedEnrolled, CLIENT), (Enrolled, port)), (record, None), verdict);
        };
        client(SERVER, Some(there), to_pod(Verb::Local, Enrolled));
        client(SERVER, Some(old(there)), renew);
        client(OUTWARD, Some(old(there)), REFUSED);
        // Nobody knows whether it was allowed.
        client(SERVER, None, outbound);
        client(SERVER, Some(local(Left, Opener::Pod)), outbound);
        let mut server = |port, verdict| {
            let ends = ((JudgedEnrolled, port), (Enrolled, CLIENT));
            self.goes_on_as(ends, (Some(old(here)), None), verdict);
        };
        server(SERVER, renew);
        server(PROVED, renew);
        server(INWARD, REFUSED);
    }

    /// A later segment into a pod, whatever its flags.
    fn comes_on(
        &mut self,
        origin: Origin,
        ends: ((Who, u16), (Who, u16)),
        record: Option<Flow>,
        verdict: Steer,
    ) {
        let ((pod, port), (peer, peer_port)) = ends;
        let name = format!("{origin:?} {peer:?} {peer_port} goes on to {pod:?} {port}, {record:?}");
        for flags in LATER {
            let carried = Carried::Tcp(flags);
            let vector = self.between(&name, Hook::ToPod, carried, ends, verdict);
            vector.origin = origin;
            if let Some(flow) = record {
                vector.known(flow);
            }
        }
    }

    // One row a packet.
    #[rustfmt::skip]
    fn judged_hears_on(&mut self) {
        use Origin::{Agent, Forwarded, Node};
        let [pod, peer, node] = [Opener::Pod, Opener::Peer, Opener::Node].map(plain);
        let (pass, renew) = (steer(Verb::Pass), steer(Verb::PassRenew));
        let mut request = |origin, from, to, port, record, verdict| {
            self.comes_on(origin, ((to, port), (from, CLIENT)), record, verdict);
        };
        request(Forwarded, RemotePlain, Judged, SERVER, None, reset(Outcome::NoFlow));
        request(Forwarded, RemotePlain, OnlyEgress, SERVER, None, reset(Outcome::NoFlow));
        request(Forwarded, RemotePlain, Judged, SERVER, Some(peer), pass);
        request(Forwarded, RemotePlain, Judged, SERVER, Some(old(peer)), renew);
        request(Forwarded, Untold, Judged, SERVER, Some(peer), pass);
        request(Forwarded, Untold, Judged, SERVER, Some(old(peer)), REFUSED);
        request(Forwarded, RemotePlain, Unruled, SERVER, Some(old(peer)), REFUSED);
        request(Forwarded, Untold, OnlyEgress, SERVER, Some(old(peer)), renew);
        request(Forwarded, Untold, Enrolled, SERVER, Some(old(peer)), renew);
        request(Forwarded, Untold, Plain, SERVER, Some(old(peer)), pass);
        request(Forwarded, Enrolled, JudgedEnrolled, PROVED, Some(old(local(Enrolled, Opener::Peer))), renew);
        request(Forwarded, RemotePlain, JudgedEnrolled, PROVED, Some(old(peer)), REFUSED);
        request(Node, Untold, Judged, OUTWARD, None, pass);
        request(Node, Untold, Judged, OUTWARD, Some(old(node)), renew);
        request(Node, Untold, Unruled, OUTWARD, Some(old(node)), REFUSED);
        request(Agent, Untold, Judged, OUTWARD, None, pass);
        request(Agent, Untold, Unruled, OUTWARD, Some(old(peer)), pass);
        let mut reply = |from, to, port, record, verdict| {
            self.comes_on(Forwarded, ((to, CLIENT), (from, port)), Some(record), verdict);
        };
        reply(RemotePlain, Judged, SERVER, pod, pass);
        reply(RemotePlain, Judged, OUTWARD, old(pod), renew);
        reply(RemotePlain, Judged, INWARD, old(pod), REFUSED);
        reply(Untold, Judged, SERVER, pod, pass);
        reply(Untold, Judged, SERVER, old(pod), REFUSED);
        reply(Untold, OnlyIngress, SERVER, old(pod), renew);
        reply(RemotePlain, OnlyEgress, SERVER, old(pod), REFUSED);
    }
}

impl Rows {
    /// What goes to a service is judged by what it is translated to.
    // One row a packet.
    #[rustfmt::skip]
    fn services(&mut self) {
        let put_off = new(Opener::PodToService);
        let known = plain(Opener::PodToService);
        for from in [Judged, OnlyEgress, Unruled] {
            for port in [SERVER, HBONE_PORT] {
                self.goes(from, Service, port, put_off);
            }
            let ends = ((from, CLIENT), (Service, SERVER));
            for (record, verb) in [(known, Verb::Pass), (old(known), Verb::PassRenew)] {
                let marked = Steer { verb, argument: Opener::PodToService as u32 };
                self.goes_on_as(ends, (Some(record), None), marked);
                self.between("datagrams go on", Hook::FromPod, Carried::Udp, ends, marked).known(record);
            }
            self.between("a datagram", Hook::FromPod, Carried::Udp, ends, put_off);
        }
        self.goes(OnlyIngress, Service, SERVER, new(Opener::Pod));

        let (pod, passes) = (plain(Opener::Pod), new(Opener::Pod));
        let (pass, renew) = (steer(Verb::Pass), steer(Verb::PassRenew));
        let mut leaves = |from: Who, to, port, record: Option<Flow>, verdict| {
            for carried in [Carried::Tcp(flag::SYN), Carried::Tcp(flag::ACK), Carried::Tcp(0)] {
                self.translated(carried, (from, (to, port)), record, verdict);
            }
        };
        leaves(Judged, RemotePlain, SERVER, None, passes);
        leaves(Judged, RemotePlain, INWARD, None, REFUSED);
        leaves(Judged, Stranger, RANGE, None, passes);
        leaves(Judged, Stranger, GAP, None, REFUSED);
        leaves(Judged, RemotePlain, INWARD, Some(pod), pass);
        leaves(Judged, RemotePlain, SERVER, Some(old(pod)), renew);
        leaves(Judged, RemotePlain, INWARD, Some(old(pod)), REFUSED);
        leaves(OnlyEgress, RemotePlain, SERVER, None, REFUSED);
        leaves(Unruled, RemotePlain, SERVER, None, REFUSED);
        // Nothing translated it: no rule names a service's address.
        leaves(Judged, Service, SERVER, Some(known), REFUSED);
        leaves(Judged, Service, SERVER, Some(old(known)), REFUSED);
        self.translated(Carried::Udp, (Judged, (RemotePlain, DNS)), None, passes);
        self.translated(Carried::Udp, (Judged, (RemotePlain, SERVER)), None, drop(Outcome::Policy));
        self.translated(Carried::Udp, (Judged, (RemotePlain, SERVER)), Some(old(pod)), drop(Outcome::Policy));
    }

    /// A packet of a pod to a service, where it leaves the node translated.
    fn translated(
        &mut self,
        carried: Carried,
        (from, to): (Who, (Who, u16)),
        record: Option<Flow>,
        verdict: Steer,
    ) {
        let name = format!("{from:?} by a service to {to:?}, {record:?}");
        let ends = ((from, CLIENT), to);
        let vector = self.between(&name, Hook::ToNet, carried, ends, verdict);
        if let Some(flow) = record {
            vector.known(flow);
        }
    }
}

/// Flags of segments that open nothing.
const LATER: [u8; 5] = [
    flag::ACK,
    flag::SYN | flag::ACK,
    flag::RST,
    flag::FIN | flag::ACK,
    0,
];
