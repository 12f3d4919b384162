//! Refused segments of every shape: each but a reset is answered with one.

use mesh_common::maps::Opener;
use mesh_common::steer::Origin;
use mesh_common::verdict::{Hook, Outcome};

use super::rows::{CLIENT, REFUSED, Rows, SERVER, old, reset};
use crate::frames::{Frame, flag, protocol};
use crate::world::Who::{Judged, Unruled, Untold};
use crate::world::{Decision, Family, Who, plain};

/// A segment, and what is special about it.
struct Shape {
    name: String,
    flags: u8,
    frame: Frame,
}

impl Rows {
    /// Adds the vectors of this file.
    pub(super) fn resets(&mut self) {
        for shape in self.shapes((Judged, CLIENT), (Untold, SERVER)) {
            let refused = if shape.opens() {
                REFUSED
            } else {
                reset(Outcome::NoFlow)
            };
            let at = Judged.ifindex();
            let flow = self.flow((Judged, CLIENT), (Untold, SERVER));
            let expect = Decision::Steer(refused);
            let vector = self.add(&shape.name, Hook::FromPod, at, shape.frame.bytes(), expect);
            vector.flow = Some(flow);
        }
        for origin in [Origin::Forwarded, Origin::Node] {
            for shape in self.shapes((Untold, CLIENT), (Unruled, SERVER)) {
                let at = Unruled.ifindex();
                let flow = self.flow((Unruled, SERVER), (Untold, CLIENT));
                let name = format!("{origin:?} {}", shape.name);
                let expect = Decision::Steer(REFUSED);
                let vector = self.add(&name, Hook::ToPod, at, shape.frame.bytes(), expect);
                vector.flow = Some(flow);
                vector.origin = origin;
                if !shape.opens() {
                    vector.known(old(plain(Opener::Peer)));
                }
            }
        }
    }

    fn shapes(&self, from: (Who, u16), to: (Who, u16)) -> Vec<Shape> {
        let mut shapes = Vec::new();
        let mut add = |name: String, flags, change: &dyn Fn(Frame) -> Frame| {
            let frame = change(self.segment(from, to, flags));
            let name = format!("refused, flags {flags:#04x}, {name}");
            shapes.push(Shape { name, flags, frame });
        };
        for flags in FLAGS {
            for length in [0, 1, 536, 1399] {
                let data = vec![0xa5; length];
                let name = format!("{length} bytes of data");
                add(name, flags, &|frame| frame.payload(&data));
            }
            for words in [1, 5, 10] {
                let name = format!("{words} words of TCP options");
                add(name, flags, &|frame| {
                    frame.tcp_options(words).payload(b"data")
                });
            }
        }
        for flags in [flag::SYN, flag::ACK] {
            match self.family {
                Family::V4 => {
                    for words in [1, 5, 6, 10] {
                        let name = format!("{words} words of options");
                        add(name, flags, &|frame| frame.options(words).payload(b"odd"));
                    }
                }
                Family::V6 => {
                    for numbers in EXTENSIONS {
                        let name = format!("extension headers {numbers:?}");
                        add(name, flags, &|frame| {
                            let frame = frame.payload(b"odd");
                            numbers.iter().fold(frame, |f, number| f.extension(*number))
                        });
                    }
                    add("an atomic fragment".to_owned(), flags, &|frame| {
                        frame.fragment(0, false)
                    });
                }
            }
        }
        shapes
    }
}

impl Shape {
    fn opens(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK) == flag::SYN
    }
}

const FLAGS: [u8; 10] = [
    flag::SYN,
    flag::SYN | flag::FIN,
    flag::SYN | flag::RST,
    flag::SYN | flag::ACK,
    flag::ACK,
    flag::FIN,
    flag::FIN | flag::ACK,
    0,
    flag::RST,
    flag::RST | flag::ACK,
];

const EXTENSIONS: [&[u8]; 5] = [
    &[protocol::HOP_BY_HOP],
    &[protocol::ROUTING],
    &[protocol::AUTHENTICATION],
    &[protocol::HOP_BY_HOP, protocol::DESTINATION_OPTIONS],
    &[0, 60, 43, 51, 60, 60],
];
