//! The clock of a node is set: connections stay, and certificates are renewed by what it says then.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{scenario, stop};
use mesh_tests::pod::Pod;
use mesh_tests::wait::eventually;
use mesh_tests::world::Family;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};

const SECRET: &[u8] = b"whatever the time";
/// Certificates are good for one.
const DAYS: i64 = 2;
/// How soon new tunnels stand: every ten seconds the agent looks what the clock says.
const NOTICED: Duration = Duration::from_secs(30);

#[test]
#[ignore = "sets the clock of the machine: `cargo xtask vm-test`"]
fn certificates_follow_it() -> Result<()> {
    scenario("clock", |lab| {
        lab.namespace("shop").ambient().create()?;
        let pod = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let first = pod("first", "n1")?;
        let others = [pod("second", "n1")?, pod("third", "n1")?];
        let (near, far) = (pod("near", "n1")?, pod("far", "n2")?);
        let _apps = [&near, &far].map(|it| Server::start(it, 8080, App::Echo));
        let at = |it: &Pod<'_>| it.at(Family::V4, 8080);
        let open = [first.connect(at(&near))?, first.connect(at(&far))?];
        for stream in &open {
            echoes(stream, SECRET)?;
        }
        let wire = lab.capture()?;
        // The others have no tunnels yet.
        for (client, days) in others.iter().zip([DAYS, -DAYS]) {
            let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
            clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::hours(days * 24))?;
            for stream in &open {
                echoes(stream, SECRET).with_context(|| format!("{days} days on"))?;
            }
            eventually("new connections", NOTICED, || {
                for server in [&near, &far] {
                    echoes(&client.connect(at(server))?, SECRET)?;
                }
                Ok(true)
            })
            .with_context(|| format!("{days} days on"))?;
            for node in lab.nodes() {
                eventually("certificates are valid", NOTICED, || {
                    let problems = node.problems()?;
                    ensure!(problems.is_empty(), "{}: {problems}", node.name());
                    Ok(true)
                })?;
            }
        }
        assert!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
        Ok(())
    })
}
