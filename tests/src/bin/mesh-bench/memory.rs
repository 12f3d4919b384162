//! Rows `mem.*`: what an agent holds, idle and with open connections through it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Lab;
use mesh_tests::pod::{PATIENCE, Pod};
use mesh_tests::world::Family;
use socket2::{SockRef, Socket};

use crate::Plan;
use crate::machine::kilobytes;
use crate::report::Report;
use crate::row::{Better, Row};
use crate::stage::Stage;

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "mem";

const PORT: u16 = 8_900;
/// Pods that connect, on both nodes: an agent grants one no more than its share of connections, and a direction no more
/// than half of all.
const CLIENTS: usize = 4;
const COUNTS: [usize; 2] = [1_000, 5_000];
/// Connections whose servers read nothing, and whose clients send as much as goes: near the most that four pods may have
/// with the usual limit on open files, 20,000.
const STALLED: usize = 5_000;
/// What sockets of these hold at either end, in bytes.
const SMALL: usize = 64 << 10;
/// How long nothing more may go until a client gives up.
const STALL: Duration = Duration::from_millis(20);
/// How long after the last byte an agent is idle.
const REST: Duration = Duration::from_secs(1);

/// Measures all of them: the mean of both agents, as every connection goes through both.
pub(crate) fn measure(plan: &Plan, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    if !plan.wants(KEY) {
        return Ok(());
    }
    eprintln!("bench: memory, idle and with {COUNTS:?} connections");
    let ways = Way::all(stage)?;
    thread::sleep(REST);
    let idle = resident(stage.lab)?;
    let mut row = |name: &str, unit, value| {
        report.add(Row::new(format!("{KEY}.{name}"), unit, Better::Less).alone([value]));
    };
    row("idle", "MB", idle / 1e3);
    let (mut open, mut held) = (Vec::new(), idle);
    for count in COUNTS {
        while open.len() < count {
            let number = open.len();
            let opened = ways[number % CLIENTS].open();
            open.push(opened.with_context(|| format!("connection {number}"))?);
        }
        thread::sleep(REST);
        held = resident(stage.lab)?;
        row(&count.to_string(), "MB", held / 1e3);
    }
    row("connection", "KB", (held - idle) / open.len() as f64);
    drop(open);
    thread::sleep(REST);
    let before = resident(stage.lab)?;
    let stalled = thread::scope(|scope| {
        let stall = |way| move || (0..STALLED / CLIENTS).map(|_| Way::stall(way)).collect();
        let threads: Vec<_> = ways.iter().map(|way| scope.spawn(stall(way))).collect();
        let all = threads
            .into_iter()
            .map(|it| it.join().expect("does not panic"));
        all.collect::<Result<Vec<Vec<_>>>>()
    })?;
    thread::sleep(REST);
    row("stalled", "MB", (resident(stage.lab)? - before) / 1e3);
    drop(stalled);
    Ok(())
}

/// From a pod of one node to a server on the other.
struct Way<'a> {
    client: Pod<'a>,
    to: SocketAddr,
    listener: TcpListener,
}

impl<'a> Way<'a> {
    fn all(stage: &Stage<'a>) -> Result<Vec<Self>> {
        (0..CLIENTS)
            .map(|number| {
                let (node, server) = if number % 2 == 0 {
                    ("n1", &stage.mesh.remote)
                } else {
                    ("n2", &stage.mesh.neighbour)
                };
                let port = PORT + u16::try_from(number)?;
                let listener = server.listen(port)?;
                SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
                let client = stage.lab.pod(&format!("holder{number}"));
                Ok(Self {
                    client: client.namespace("mesh").on(node).create()?,
                    to: server.at(Family::V4, port),
                    listener,
                })
            })
            .collect()
    }

    /// Opens a connection and sends a byte each way: both ends of it.
    fn open(&self) -> Result<[TcpStream; 2]> {
        let mut client = self.client.connect(self.to)?;
        let (mut server, _) = self.listener.accept()?;
        let mut byte = [0];
        client.write_all(b"x")?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        Ok([client, server])
    }
}

impl Way<'_> {
    /// Opens a connection and sends until nothing goes any more.
    fn stall(&self) -> Result<[TcpStream; 2]> {
        let prepare = |socket: &Socket| socket.set_send_buffer_size(SMALL);
        SockRef::from(&self.listener).set_recv_buffer_size(SMALL)?;
        let mut client = self.client.connect_with(self.to, prepare)?;
        let (server, _) = self.listener.accept()?;
        client.set_write_timeout(Some(STALL))?;
        let block = vec![0x5a; SMALL];
        while client.write(&block).is_ok() {}
        Ok([client, server])
    }
}

/// Resident memory of an agent, the mean of all, in kB of 1000 bytes.
pub(crate) fn resident(lab: &Lab) -> Result<f64> {
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
