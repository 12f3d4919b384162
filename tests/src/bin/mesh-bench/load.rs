//! The load: clients in one pod, servers in another, the same for both sides of a pair. Blocking sockets, a thread for
//! each connection at each end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, Scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use mesh_tests::pod::{PATIENCE, Pod};
use mesh_tests::wait::uninterrupted;
use mesh_tests::world::Family;
use socket2::SockRef;

use crate::cpu::{Meter, Used};

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Send as much as goes, in so many connections. The unit is a byte, counted where it arrives.
    Bulk(usize),
    /// Send 64 bytes and wait for as many, in so many connections. The unit is a round trip.
    PingPong(usize),
    /// Connect, one round trip, close; so many at a time. The unit is a connection.
    Churn(usize),
}

/// Who loads whom.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) client: &'a Pod<'a>,
    pub(crate) server: &'a Pod<'a>,
    /// The first port of the servers.
    pub(crate) port: u16,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Measured {
    /// How long it was.
    pub(crate) seconds: f64,
    /// How much was done.
    pub(crate) units: f64,
    /// Microseconds that each unit took; empty for bulk.
    pub(crate) latencies: Vec<f64>,
    /// Units that failed.
    pub(crate) errors: u64,
    pub(crate) cpu: Used,
}

/// Ports of the servers that connections come and go at: a client has ports for seconds, for each of them.
const CHURN_PORTS: u16 = 8;
/// One write, and the room for one read.
const BLOCK: usize = 256 << 10;
const MESSAGE: usize = 64;
/// How long load runs before it counts: tunnels are made, windows grow.
const WARM_UP: Duration = Duration::from_millis(300);
/// How often a server that waits for a client looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What all threads of a run see.
#[derive(Default)]
struct Shared {
    /// For clients.
    stop: AtomicBool,
    /// For servers: there are no clients any more.
    over: AtomicBool,
    /// What is done now is measured.
    counts: AtomicBool,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// Loads for some time, and measures all but the beginning.
///
/// # Errors
/// When a connection that is to last does not.
pub(crate) fn run(work: Work, ends: Ends<'_>, meter: &Meter, time: Duration) -> Result<Measured> {
    let shared = Shared::default();
    let servers = match work {
        Work::Bulk(count) | Work::PingPong(count) => count,
        // A server still reads the end of one connection while its client opens the next.
        Work::Churn(count) => 2 * count / usize::from(CHURN_PORTS),
    };
    let listeners = ports(work, ends).map(|port| listen(ends.server, port));
    let listeners: Vec<_> = listeners.collect::<Result<_>>()?;
    thread::scope(|scope| {
        for listener in &listeners {
            for _ in 0..servers {
                scope.spawn(|| serve(listener, work, &shared));
            }
        }
        let measured = measure(scope, work, ends, meter, time, &shared);
        // The first has been told, unless the clocks failed.
        shared.stop.store(true, Relaxed);
        shared.over.store(true, Relaxed);
        measured
    })
}

fn measure<'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: Work,
    ends: Ends<'scope>,
    meter: &Meter,
    time: Duration,
    shared: &'scope Shared,
) -> Result<Measured> {
    let (Work::Bulk(count) | Work::PingPong(count) | Work::Churn(count)) = work;
    let clients: Vec<_> = ports(work, ends)
        .cycle()
        .take(count)
        .map(|port| {
            scope.spawn(move || {
                ends.client.netns().enter();
                let to = ends.server.at(Family::V4, port);
                client(work, to, shared).with_context(|| format!("{work:?} to {to}"))
            })
        })
        .collect();
    sleep(WARM_UP);
    let (before, bytes) = (meter.read()?, shared.bytes.load(Relaxed));
    let start = Instant::now();
    shared.counts.store(true, Relaxed);
    sleep(time);
    shared.counts.store(false, Relaxed);
    let (seconds, bytes) = (
        start.elapsed().as_secs_f64(),
        shared.bytes.load(Relaxed) - bytes,
    );
    let cpu = meter.read()?.since(&before);
    shared.stop.store(true, Relaxed);
    let mut latencies = Vec::new();
    for client in clients {
        let taken = client.join().map_err(|_| anyhow!("a client panicked"))??;
        latencies.extend(taken);
    }
    let units = match work {
        Work::Bulk(_) => bytes as f64,
        _ => latencies.len() as f64,
    };
    Ok(Measured {
        seconds,
        units,
        latencies,
        errors: shared.errors.load(Relaxed),
        cpu,
    })
}

/// Of the servers.
fn ports(work: Work, ends: Ends<'_>) -> Range<u16> {
    let count = match work {
        Work::Bulk(_) | Work::PingPong(_) => 1,
        Work::Churn(_) => CHURN_PORTS,
    };
    ends.port..ends.port + count
}

fn listen(pod: &Pod<'_>, port: u16) -> Result<TcpListener> {
    let listener = pod.listen(port)?;
    SockRef::from(&listener).set_read_timeout(Some(LOOK))?;
    Ok(listener)
}

fn serve(listener: &TcpListener, work: Work, shared: &Shared) {
    while !shared.over.load(Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            // What goes wrong shows at the client.
            let _ = prepare(&stream).and_then(|()| match work {
                Work::Bulk(_) => sink(stream, shared),
                Work::PingPong(_) | Work::Churn(_) => echo(stream),
            });
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn sink(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match uninterrupted(|| stream.read(&mut block))? {
            0 => return Ok(()),
            n => shared.bytes.fetch_add(n as u64, Relaxed),
        };
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        match uninterrupted(|| stream.read(&mut message))? {
            0 => return Ok(()),
            n => stream.write_all(&message[..n])?,
        }
    }
}

/// Works until it is told to stop, and returns how long each unit took while they counted, in microseconds.
fn client(work: Work, to: SocketAddr, shared: &Shared) -> io::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    let mut note = |since: Instant| {
        if shared.counts.load(Relaxed) {
            latencies.push(since.elapsed().as_secs_f64() * 1e6);
        }
    };
    let goes_on = || !shared.stop.load(Relaxed);
    match work {
        Work::Bulk(_) => {
            let block = vec![0x5a; BLOCK];
            let mut stream = connect(to)?;
            while goes_on() {
                stream.write_all(&block)?;
            }
        }
        Work::PingPong(_) => {
            let stream = connect(to)?;
            while goes_on() {
                let start = Instant::now();
                round_trip(&stream)?;
                note(start);
            }
        }
        Work::Churn(_) => {
            while goes_on() {
                let start = Instant::now();
                match connect(to).and_then(|stream| round_trip(&stream)) {
                    Ok(()) => note(start),
                    Err(error) => {
                        if shared.errors.fetch_add(1, Relaxed) == 0 {
                            eprintln!("bench: the first error: {work:?} to {to}: {error}");
                        }
                    }
                }
            }
        }
    }
    Ok(latencies)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    prepare(&stream)?;
    Ok(stream)
}

fn round_trip(mut stream: &TcpStream) -> io::Result<()> {
    let mut message = [0x5a; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}
