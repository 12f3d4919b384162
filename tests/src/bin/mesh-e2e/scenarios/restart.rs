//! The agents are replaced under load, as an upgrade does: what the README's table promises, counted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Scenario;
use crate::calls::Calls;
use crate::cluster::Cluster;
use crate::pods::Pod;
use crate::report::Report;
use crate::stream::{State, Stream};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "restart",
    about: "the agents are replaced under load: only open tunnels may end, new connections at most wait",
    run,
};

/// How long a new connection may wait for an agent to serve again, in seconds.
const HELD: u32 = 30;

/// Connections of one kind.
struct Class {
    name: &'static str,
    calls: Calls,
    stream: Stream,
    /// Whether an open connection may end, as long as its pods get to know.
    may_end: bool,
}

fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let plain = cluster.namespace("restart-plain", false)?;
    let mesh = cluster.namespace("restart-mesh", true)?;
    let outside = report.step("three plain pods are ready", || {
        cluster.pods(&plain, [("client", n1), ("near", n1), ("far", n2)])
    })?;
    let inside = report.step("three enrolled pods are ready", || {
        cluster.pods(&mesh, [("client", n1), ("near", n1), ("far", n2)])
    })?;
    let classes = report.step(
        "a connection of each kind is open, and new ones all the time",
        || {
            let class = |name, pods: &[Pod; 3], to: usize, may_end| -> Result<Class> {
                let (client, server) = (&pods[0], &pods[to]);
                Ok(Class {
                    name,
                    calls: Calls::start(cluster, client, &server.http(), HELD)?,
                    stream: Stream::open(cluster, client, server, 7001)?,
                    may_end,
                })
            };
            Ok([
                class("plain, same node", &outside, 1, false)?,
                class("plain, other node", &outside, 2, false)?,
                class("enrolled, same node", &inside, 1, false)?,
                class("enrolled, other node", &inside, 2, true)?,
            ])
        },
    )?;
    let began = Instant::now();
    report.step("every agent is replaced", || {
        cluster.roll_agents()?;
        cluster.healthy(Duration::from_mins(1))
    })?;
    // Whoever waits is to have his answer.
    std::thread::sleep(Duration::from_secs(10));
    for class in &classes {
        report.measure(class.name, || outcome(class, began))?;
    }
    report.step("a new connection of each kind works", || {
        for pods in [&outside, &inside] {
            cluster.reaches(&pods[0], &pods[1])?;
            cluster.reaches(&pods[0], &pods[2])?;
        }
        Ok(())
    })?;
    report.step("probes are green", || {
        cluster.probes_green(&plain)?;
        cluster.probes_green(&mesh)
    })
}

/// What became of connections since a moment.
///
/// # Errors
/// When it is not what is promised.
fn outcome(class: &Class, since: Instant) -> Result<String> {
    let count = class.calls.count(since);
    let open = match class.stream.state() {
        State::Open => format!(
            "the open one carried on ({} lines)",
            class.stream.advances()?
        ),
        State::Ended if class.may_end => "the open one was ended".to_owned(),
        state => anyhow::bail!("the open connection is {state:?}"),
    };
    ensure!(
        count.failed == 0,
        "of {} new connections {} failed: after, code {:?}",
        count.answered + count.failed,
        count.failed,
        class.calls.failures(since)
    );
    ensure!(
        count.answered > 20,
        "only {} new connections",
        count.answered
    );
    Ok(format!(
        "{open}; {} new ones, none failed, the longest took {:.1} s",
        count.answered,
        count.longest.as_secs_f64()
    ))
}
