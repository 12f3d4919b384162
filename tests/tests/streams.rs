//! Connections behave as without the mesh: who speaks first, half-close, reset, much data, many at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::app::{App, Server, echoes, raise_descriptor_limit};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::pattern;
use mesh_tests::pod::{PATIENCE, Pod};
use mesh_tests::world::Family;
use socket2::SockRef;

const BULK: u64 = 200 << 20;

/// Runs a check for every way between two pods: another node and the same one, both families.
fn every_way(name: &str, check: impl Fn(&Pod<'_>, &Pod<'_>, Family) -> Result<()>) -> Result<()> {
    scenario(name, |lab| {
        let (client, servers) = pods(lab)?;
        for server in &servers {
            for family in Family::BOTH {
                check(&client, server, family)
                    .with_context(|| format!("{} by {family:?}", server.name()))?;
            }
        }
        Ok(())
    })
}

fn pods(lab: &Lab) -> Result<(Pod<'_>, [Pod<'_>; 2])> {
    lab.namespace("shop").ambient().create()?;
    let pod = |name, node| lab.pod(name).namespace("shop").on(node).create();
    Ok((
        pod("client", "n1")?,
        [pod("far", "n2")?, pod("near", "n1")?],
    ))
}

#[test]
fn the_server_speaks_first() -> Result<()> {
    every_way("greet", |client, server, family| {
        let _app = Server::start(server, 2525, App::Greet("220 ready\r\n"))?;
        let mut stream = client.connect(server.at(family, 2525))?;
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting, b"220 ready\r\n");
        echoes(&stream, b"HELO")?;
        Ok(())
    })
}

#[test]
fn one_side_ends_and_the_other_goes_on() -> Result<()> {
    every_way("half_close", |client, server, family| {
        let _app = Server::start(server, 9000, App::AfterEnd)?;
        let mut stream = client.connect(server.at(family, 9000))?;
        stream.write_all(b"stressed")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert_eq!(answer, "desserts");
        Ok(())
    })
}

#[test]
fn a_reset_reaches_the_other_end() -> Result<()> {
    every_way("reset", |client, server, family| {
        let listener = server.listen(9001)?;
        for client_resets in [true, false] {
            let near = client.connect(server.at(family, 9001))?;
            let (far, _) = listener.accept()?;
            far.set_read_timeout(Some(PATIENCE))?;
            // Both have spoken, so the connection stands from end to end.
            (&near).write_all(b"x")?;
            (&far).read_exact(&mut [0])?;
            let (resets, mut other) = if client_resets {
                (near, far)
            } else {
                (far, near)
            };
            SockRef::from(&resets).set_linger(Some(Duration::ZERO))?;
            drop(resets);
            let seen = other.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(
                seen,
                Err(ErrorKind::ConnectionReset),
                "client resets: {client_resets}"
            );
        }
        Ok(())
    })
}

#[test]
fn nobody_listens() -> Result<()> {
    every_way("nobody", |client, server, family| {
        // The tunnel is asked for once the connection to the agent stands: the refusal may come as a reset.
        let refused = match client.connect(server.at(family, 9)) {
            Ok(mut stream) => stream.read(&mut [0]).map_err(|error| error.kind()),
            Err(error) => Err(error.kind()),
        };
        let expected = [
            Err(ErrorKind::ConnectionReset),
            Err(ErrorKind::ConnectionRefused),
        ];
        assert!(expected.contains(&refused), "{refused:?}");
        Ok(())
    })
}

#[test]
fn much_data_both_ways() -> Result<()> {
    every_way("bulk", |client, server, family| {
        let _app = Server::start(server, 9002, App::Bulk(BULK))?;
        let stream = client.connect(server.at(family, 9002))?;
        let start = Instant::now();
        pattern::exchange(&stream, BULK)?;
        println!(
            "{} {family:?}: {} MiB each way in {:?}",
            server.name(),
            BULK >> 20,
            start.elapsed()
        );
        Ok(())
    })
}

#[test]
fn many_at_once() -> Result<()> {
    raise_descriptor_limit()?;
    scenario("many", |lab| {
        let (client, servers) = pods(lab)?;
        for server in &servers {
            let app = Server::start(server, 9003, App::Echo)?;
            let clients = at_once(&client, server.at(Family::V4, 9003), 500)?;
            assert_eq!(clients, 500, "{}", server.name());
            assert_eq!(app.clients().len(), 500, "{}", server.name());
        }
        Ok(())
    })
}

/// Opens connections from one thread each, all open at the same time, and counts those that work.
fn at_once(client: &Pod<'_>, to: SocketAddr, count: usize) -> Result<usize> {
    let streams: Vec<_> = client.netns().run(|| {
        thread::scope(|scope| {
            // Threads are born in the namespace of their parent.
            let open = || std::net::TcpStream::connect_timeout(&to, PATIENCE);
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(open)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("does not panic"))
                .collect()
        })
    });
    let streams = streams.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    for (number, stream) in streams.iter().enumerate() {
        stream.set_read_timeout(Some(PATIENCE))?;
        echoes(stream, format!("connection {number}").as_bytes())
            .with_context(|| format!("connection {number}"))?;
    }
    Ok(streams.len())
}
