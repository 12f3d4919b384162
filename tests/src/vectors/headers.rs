//! Headers that are unusual, contradict themselves or end too early.

use mesh_common::maps::Slot;
use mesh_common::steer::{Origin, Verb};
use mesh_common::verdict::{Hook, Outcome};

use super::rows::{CLIENT, MALFORMED, Rows, SERVER, drop, steer, to_agent};
use crate::frames::{Frame, flag, protocol};
use crate::world::Decision;
use crate::world::Who::{Enrolled, Plain, Remote, Stranger};
use crate::world::{Family, Who};

const ETHERNET: usize = 14;

impl Rows {
    /// Adds the vectors of this file.
    pub(super) fn headers(&mut self) {
        self.cut();
        self.fragments();
        match self.family {
            Family::V4 => self.headers_v4(),
            Family::V6 => {
                self.headers_v6();
                self.neighbour_discovery();
            }
        }
    }

    /// A connection that an enrolled pod opens to a remote one: captured, when its headers are understood.
    fn opening(&self) -> Frame {
        self.segment((Enrolled, CLIENT), (Remote, SERVER), flag::SYN)
    }

    fn captured() -> Decision {
        Decision::Steer(to_agent(Verb::Capture, Slot::Outbound))
    }

    fn leaves(&mut self, name: &str, frame: Vec<u8>, expect: Decision) {
        let flow = self.flow((Enrolled, CLIENT), (Remote, SERVER));
        let vector = self.add(name, Hook::FromPod, Enrolled.ifindex(), frame, expect);
        vector.flow = Some(flow);
    }

    fn cut(&mut self) {
        let whole = self.opening().bytes().len() - ETHERNET;
        for missing in 1..=whole {
            let name = format!("{missing} bytes short");
            self.leaves(&name, self.opening().cut(missing), MALFORMED);
        }
        let longer = self.opening().payload(b"GET / HTTP/1.1\r\n");
        self.leaves(
            "data in the first segment",
            longer.bytes(),
            Self::captured(),
        );
    }

    fn fragments(&mut self) {
        let dropped = Decision::Steer(drop(Outcome::Fragment));
        let passed = Decision::Steer(steer(Verb::Pass));
        let (to, from) = (Enrolled.ifindex(), Plain.ifindex());
        for (offset, more) in [(0, true), (24, true), (24, false), (8, false)] {
            let name = format!("fragment at {offset}, more: {more}");
            let tcp = |from, to| {
                self.segment((from, CLIENT), (to, SERVER), flag::SYN)
                    .fragment(offset, more)
                    .bytes()
            };
            let udp = Frame::udp(Enrolled.at(self.family, 53), Remote.at(self.family, 53));
            let frames = [
                tcp(Enrolled, Remote),
                tcp(Plain, Enrolled),
                tcp(Stranger, Enrolled),
                tcp(Stranger, Plain),
            ];
            let [enrolled, plain, inward, inward_plain] = frames;
            self.leaves(&name, enrolled, dropped);
            self.leaves(
                &format!("UDP {name}"),
                udp.fragment(offset, more).bytes(),
                passed,
            );
            self.add(&name, Hook::FromPod, from, plain, passed);
            self.add(&name, Hook::ToPod, from, inward_plain, passed);
            for (origin, expect) in [
                (Origin::Forwarded, dropped),
                (Origin::Node, passed),
                (Origin::Agent, passed),
            ] {
                let name = format!("{origin:?} {name}");
                self.add(&name, Hook::ToPod, to, inward.clone(), expect)
                    .origin = origin;
            }
        }
    }

    fn headers_v4(&mut self) {
        for words in 1..=10 {
            let name = format!("{words} words of options");
            self.leaves(
                &name,
                self.opening().options(words).bytes(),
                Self::captured(),
            );
        }
        for (name, first, expect) in [
            ("IPv6 in an IPv4 frame", 0x65, MALFORMED),
            ("a header of four words", 0x44, MALFORMED),
            ("a header of no words", 0x40, MALFORMED),
            ("a header that is longer than the packet", 0x4f, MALFORMED),
        ] {
            let mut frame = self.opening().bytes();
            frame[ETHERNET] = first;
            self.leaves(name, frame, expect);
        }
        for (name, flags) in [("don't fragment", 0x40), ("the reserved bit", 0x80)] {
            let mut frame = self.opening().bytes();
            frame[ETHERNET + 6] = flags;
            self.leaves(name, frame, Self::captured());
        }
        let to = Remote.ip(self.family);
        let icmp = Frame::ip(Enrolled.ip(self.family), to, protocol::ICMP, vec![8; 8]);
        self.leaves(
            "ICMP passes",
            icmp.bytes(),
            Decision::Steer(steer(Verb::Pass)),
        );
        for source in [
            "0.0.0.0",
            "169.254.1.1",
            "224.0.0.1",
            "127.0.0.1",
            "255.255.255.255",
        ] {
            let source = source.parse().expect("a literal");
            let frame = Frame::ip(source, to, protocol::UDP, vec![0; 8]).bytes();
            let spoofed = Decision::Steer(drop(Outcome::Spoofed));
            self.leaves(&format!("source {source}"), frame, spoofed);
        }
    }

    fn headers_v6(&mut self) {
        let chained = |frame: Frame, numbers: &[u8]| {
            numbers
                .iter()
                .fold(frame, |frame, number| frame.extension(*number))
        };
        let followed = [
            protocol::HOP_BY_HOP,
            protocol::ROUTING,
            protocol::DESTINATION_OPTIONS,
            protocol::AUTHENTICATION,
        ];
        for number in followed {
            let frame = self.opening().extension(number);
            self.leaves(
                &format!("extension header {number}"),
                frame.bytes(),
                Self::captured(),
            );
            let short = Frame::ip(
                Enrolled.ip(self.family),
                Remote.ip(self.family),
                number,
                vec![6],
            );
            self.leaves(
                &format!("extension header {number} cut short"),
                short.bytes(),
                MALFORMED,
            );
            let mut long = frame.bytes();
            long[ETHERNET + 41] = 255;
            self.leaves(
                &format!("extension header {number} beyond the end"),
                long,
                MALFORMED,
            );
        }
        let six = chained(self.opening(), &[0, 60, 43, 51, 60, 60]);
        self.leaves("six extension headers", six.bytes(), Self::captured());
        let seven = six.extension(60);
        self.leaves("seven extension headers", seven.bytes(), MALFORMED);

        let atomic = chained(self.opening(), &[0]).fragment(0, false);
        self.leaves(
            "an atomic fragment is a whole packet",
            atomic.bytes(),
            Self::captured(),
        );
        let hidden = self
            .opening()
            .fragment(0, true)
            .extension(protocol::DESTINATION_OPTIONS);
        let dropped = Decision::Steer(drop(Outcome::Fragment));
        self.leaves(
            "options in a fragment may hide TCP",
            hidden.bytes(),
            dropped,
        );
        for number in [50, 59, 4, 41] {
            let frame = Frame::ip(
                Enrolled.ip(self.family),
                Remote.ip(self.family),
                number,
                vec![0; 20],
            );
            self.leaves(
                &format!("protocol {number} passes"),
                frame.bytes(),
                Decision::Steer(steer(Verb::Pass)),
            );
        }
        let mut frame = self.opening().bytes();
        frame[ETHERNET] = 0x45;
        self.leaves("IPv4 in an IPv6 frame", frame, MALFORMED);
        self.mapped();
    }

    /// IPv4-mapped addresses are no addresses of IPv6 packets (RFC 4942, 2.2): here they would stand for the IPv4 pod.
    fn mapped(&mut self) {
        let mapped = |who: Who| match who.ip(Family::V4) {
            std::net::IpAddr::V4(v4) => (v4.to_ipv6_mapped(), CLIENT).into(),
            std::net::IpAddr::V6(_) => unreachable!("asked for IPv4"),
        };
        for (source, destination) in [
            (mapped(Enrolled), mapped(Remote)),
            (mapped(Enrolled), Remote.at(Family::V6, SERVER)),
            (Enrolled.at(Family::V6, CLIENT), mapped(Remote)),
        ] {
            let frame = Frame::tcp(source, destination, flag::SYN).bytes();
            self.leaves("an IPv4-mapped address", frame, MALFORMED);
        }
    }

    fn neighbour_discovery(&mut self) {
        let [link, none, group, router] =
            ["fe80::5", "::", "ff02::1", "ff02::2"].map(|text| text.parse().expect("a literal"));
        let passed = Decision::Steer(steer(Verb::Pass));
        let dropped = Decision::Steer(drop(Outcome::LinkLocal));
        for (kind, expect) in [
            (133, passed),
            (134, dropped),
            (135, passed),
            (136, passed),
            (137, dropped),
            (128, dropped),
            (143, dropped),
        ] {
            for source in [link, none] {
                let frame = Frame::icmp6(source, router, kind).bytes();
                self.leaves(&format!("ICMPv6 {kind} from {source}"), frame, expect);
            }
        }
        let frame = Frame::icmp6(link, group, 134).fragment(0, true).bytes();
        self.leaves("a router advertisement in fragments", frame, dropped);
        for source in [link, none, group] {
            let tcp = Frame::tcp(
                (source, CLIENT).into(),
                Remote.at(self.family, SERVER),
                flag::SYN,
            );
            self.leaves(&format!("TCP from {source}"), tcp.bytes(), dropped);
        }
    }
}
