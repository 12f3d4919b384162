//! Rows `bare.*`: what the programs cost pods that are not enrolled, beside the same pods without any program.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;

use crate::Plan;
use crate::cpu::Meter;
use crate::load::{self, Ends, Work};
use crate::report::Report;
use crate::row::{Better, Row};
use crate::stage::Stage;
use crate::statistics::percentile;

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "bare";

/// Rows, with their work: between nodes, so that uplinks' programs are in it.
const ROWS: [(&str, &str, Better, Work); 3] = [
    ("bulk1", "Gbit/s", Better::More, Work::Bulk(1)),
    ("pp1.p50", "us", Better::Less, Work::PingPong(1)),
    ("cr", "conn/s", Better::More, Work::Churn(16)),
];
const PORT: u16 = 9_300;

/// Measures all of them, and leaves the agents running.
pub(crate) fn measure(plan: &Plan, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    if !plan.wants(KEY) {
        return Ok(());
    }
    let mut figures = ROWS.map(|_| Vec::new());
    for number in 1..=plan.pairs {
        stage
            .lab
            .nodes()
            .iter()
            .try_for_each(|it| it.agent().stop())?;
        stage
            .lab
            .nodes()
            .iter()
            .try_for_each(|it| strip(stage, it))?;
        let bare = all(plan, stage)?;
        for node in stage.lab.nodes() {
            node.agent().start()?;
        }
        let plain = all(plan, stage)?;
        eprintln!(
            "bench: bare       pair {number}/{}: without programs {bare:.1?}, with {plain:.1?}",
            plan.pairs
        );
        for (figures, pair) in figures.iter_mut().zip(bare.into_iter().zip(plain)) {
            figures.push([pair.0, pair.1]);
        }
    }
    for ((name, unit, better, _), pairs) in ROWS.into_iter().zip(figures) {
        report.add(Row::new(format!("{KEY}.{name}"), unit, better).pairs(pairs));
    }
    Ok(())
}

/// A figure of each row.
fn all(plan: &Plan, stage: &Stage<'_>) -> Result<[f64; ROWS.len()]> {
    let ends = Ends {
        client: &stage.plain.client,
        server: &stage.plain.remote,
        port: PORT,
    };
    let meter = Meter::new(stage.lab)?;
    let mut figures = [0.0; ROWS.len()];
    for (figure, (.., work)) in figures.iter_mut().zip(ROWS) {
        let time = Duration::from_secs_f64(plan.seconds);
        let mut measured = load::run(work, ends, &meter, time)?;
        let rate = measured.units / measured.seconds;
        *figure = match work {
            Work::Bulk(_) => rate * 8e-9,
            Work::PingPong(_) => percentile(&mut measured.latencies, 50),
            Work::Churn(_) => rate,
        };
    }
    Ok(figures)
}

/// Takes every program off a node whose agent has ended; the next agent attaches its own.
fn strip(stage: &Stage<'_>, node: &Node) -> Result<()> {
    let links = node.pins().join("links");
    for link in fs::read_dir(&links).with_context(|| links.display().to_string())? {
        fs::remove_file(link?.path())?;
    }
    let all = [&stage.plain, &stage.mesh];
    let pods = all
        .iter()
        .flat_map(|it| [&it.client, &it.neighbour, &it.remote]);
    for pod in pods.filter(|it| it.node().name() == node.name()) {
        let clsact = ["qdisc", "del", "dev", host(pod)?, "clsact"];
        node.netns().exec("tc", clsact)?;
    }
    Ok(())
}

/// The host's end of a pod's veth.
fn host<'a>(pod: &'a Pod<'_>) -> Result<&'a str> {
    let name = pod.added()["interfaces"][0]["name"].as_str();
    name.context("a result without interfaces")
}
