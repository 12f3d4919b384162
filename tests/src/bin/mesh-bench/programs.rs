//! Rows `tc.*`: nanoseconds that a program takes for a packet (`BPF_PROG_TEST_RUN`), without the stack around it.
//!
//! A packet is the same again and again, so maps and branches are warm: a lower bound. Where `bpf_sk_assign` would hand it
//! to a socket, the kernel refuses that in a test run; looking for the socket is in the figure.

use std::collections::BTreeSet;

use anyhow::Result;
use mesh_common::names::MARK_SERVICE;
use mesh_common::steer::Verb;
use mesh_common::verdict::Hook;
use mesh_tests::object::{Object, in_namespace};
use mesh_tests::vectors::{self, Vector};
use mesh_tests::world::{Decision, Table};

use crate::report::Report;
use crate::row::{Better, Row};

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "tc";

/// Times each packet is seen in a sample, and samples.
const REPEAT: u32 = 200_000;
const SAMPLES: usize = 5;

/// Measures one packet of each kind at each hook.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    eprintln!("bench: programs, packet by packet");
    in_namespace("mesh-bench-programs", |object, listener| {
        object.set_listeners(listener, |_| true)?;
        let mut seen = BTreeSet::new();
        for vector in vectors::all().iter().filter(|it| is_ipv4(it)) {
            let Some(kind) = kind(vector) else {
                continue;
            };
            let key = format!("{KEY}.{}.{kind}", vector.hook.name());
            if seen.insert(key.clone()) {
                let times = (0..SAMPLES).map(|_| time(object, vector));
                let times = times.collect::<Result<Vec<_>>>()?;
                report.add(Row::new(key, "ns", Better::Less).alone(times));
            }
        }
        Ok(())
    })
}

/// Verbs that leave the maps as they were; the others are what happens to the first packet of a flow alone.
fn kind(vector: &Vector) -> Option<&'static str> {
    let Decision::Steer(steer) = vector.expect else {
        return None;
    };
    Some(match steer.verb {
        Verb::Pass if vector.recorded.is_empty() => "pass",
        Verb::Pass => "known",
        Verb::Local => "local",
        Verb::Capture => "capture",
        Verb::SocketOrListener => "socket",
        Verb::Drop => "drop",
        _ => return None,
    })
}

fn is_ipv4(vector: &Vector) -> bool {
    vector.frame.len() >= 14 + 20 && vector.frame[12..14] == [0x08, 0x00]
}

fn time(object: &mut Object, vector: &Vector) -> Result<f64> {
    let mut table = Table::cluster();
    table.flows.clone_from(&vector.recorded);
    object.set_flows(&table)?;
    let mark = if vector.hook == Hook::ToNet {
        MARK_SERVICE
    } else {
        0
    };
    Ok(object.time(vector, mark, REPEAT)?.as_nanos() as f64)
}
