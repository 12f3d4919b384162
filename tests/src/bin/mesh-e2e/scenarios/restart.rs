//! The agents are replaced under load, as an upgrade does: what the README's table promises, counted.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Scenario;
use crate::calls::Calls;
use crate::cluster::Cluster;
use crate::pods::Pod;
use crate::report::Report;
use crate::stream::{State, Stream};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "restart",
    about: "the agents end and come back under load: only open tunnels may end, new connections at most wait",
    run,
};

/// How long a new connection may wait for an agent to serve again, in seconds.
const HELD: u32 = 60;

/// How long an agent waits for another node's to answer; a Kubernetes without `maxSurge` may leave a node without one for
/// longer.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// Connections of one kind.
struct Class {
    name: &'static str,
    calls: Calls,
    stream: Stream,
    /// Whether agents carry them: an open one may end, as long as its pods get to know, and a new one may have to wait.
    is_tunnelled: bool,
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
            let class = |name, pods: &[Pod; 3], to: usize, is_tunnelled| -> Result<Class> {
                let (client, server) = (&pods[0], &pods[to]);
                Ok(Class {
                    name,
                    calls: Calls::start(cluster, client, &server.http(), HELD)?,
                    stream: Stream::open(cluster, client, server, 7001)?,
                    is_tunnelled,
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
    report.step("the agents end and are back", || {
        cluster.restart_agents()?;
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
    let open = match class.stream.state() {
        State::Open => format!(
            "the open one carried on ({} lines)",
            class.stream.advances()?
        ),
        State::Ended if class.is_tunnelled => "the open one was ended".to_owned(),
        state => bail!("the open connection is {state:?}"),
    };
    let (count, failures) = (class.calls.count(since), class.calls.failures(since));
    let too_early = |(took, _): &&(Duration, i32)| !class.is_tunnelled || *took < GIVEN_UP;
    if let Some((took, code)) = failures.iter().find(too_early) {
        bail!("a new connection failed after {took:.1?} with code {code}; {failures:?}");
    }
    ensure!(
        count.answered > 20,
        "only {} new connections",
        count.answered
    );
    Ok(format!(
        "{open}; {} new ones answered, {} given up, the longest took {:.1} s",
        count.answered,
        failures.len(),
        count.longest.as_secs_f64()
    ))
}
