//! Rows `mem.*`: what an agent holds, idle and with open connections through it.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::app::echoes;
use mesh_tests::lab::Lab;
use mesh_tests::world::Family;

use crate::Plan;
use crate::machine::kilobytes;
use crate::report::Report;
use crate::row::{Better, Row};
use crate::stage::Stage;

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "mem";

const PORT: u16 = 8_900;
const COUNTS: [usize; 2] = [1_000, 5_000];
/// How long after the last byte an agent is idle.
const REST: Duration = Duration::from_secs(1);

/// Measures all of them: the mean of both agents, as every connection goes through both.
pub(crate) fn measure(plan: &Plan, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    if !plan.wants(KEY) {
        return Ok(());
    }
    eprintln!("bench: memory, idle and with {COUNTS:?} connections");
    thread::sleep(REST);
    let idle = resident(stage.lab)?;
    let mut row = |name: &str, unit, value| {
        report.add(Row::new(format!("{KEY}.{name}"), unit, Better::Less).alone([value]));
    };
    row("idle", "MB", idle / 1e3);
    let (mut open, mut held) = (Vec::new(), idle);
    let listener = stage.mesh.remote.listen(PORT)?;
    for count in COUNTS {
        while open.len() < count {
            let number = open.len();
            let opened = open_one(stage, &listener);
            open.push(opened.with_context(|| format!("connection {number}"))?);
        }
        thread::sleep(REST);
        held = resident(stage.lab)?;
        row(&count.to_string(), "MB", held / 1e3);
    }
    row("connection", "KB", (held - idle) / open.len() as f64);
    Ok(())
}

/// Opens a connection and sends a byte each way: both ends of it.
fn open_one(stage: &Stage<'_>, listener: &std::net::TcpListener) -> Result<[TcpStream; 2]> {
    let to = stage.mesh.remote.at(Family::V4, PORT);
    let client = stage.mesh.client.connect(to)?;
    let (server, _) = listener.accept()?;
    let echoed = thread::scope(|scope| {
        scope.spawn(|| std::io::copy(&mut std::io::Read::take(&server, 1), &mut &server));
        echoes(&client, b"x")
    });
    echoed?;
    Ok([client, server])
}

/// Resident memory of an agent, the mean of all, in kB of 1000 bytes.
fn resident(lab: &Lab) -> Result<f64> {
    let agents: Vec<_> = lab
        .nodes()
        .iter()
        .filter_map(|node| node.agent().pid())
        .collect();
    ensure!(!agents.is_empty(), "no agent runs");
    let each = agents
        .iter()
        .map(|pid| kilobytes(&format!("/proc/{pid}/status"), "VmRSS"));
    Ok(each.sum::<Result<f64>>()? * 1.024 / agents.len() as f64)
}
