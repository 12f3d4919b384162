//! Rows `telemetry.*`: what it costs to tell of everything, beside the same agents while nobody asks.
//!
//! Told: a line in the log for every connection, a scrape of each agent a second, and a reader of each one's flows.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use mesh_tests::node::Node;
use mesh_tests::process::Process;
use mesh_tests::web;

use crate::Plan;
use crate::load::{self, Ends, Work};
use crate::memory::resident;
use crate::report::Report;
use crate::row::{Better, Row};
use crate::stage::Stage;

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "telemetry";

/// Rows, with their work: between nodes, so that both agents tell of everything.
const ROWS: [(&str, &str, Work); 3] = [
    ("cr", "conn/s", CHURN),
    ("pp32.rate", "trips/s", Work::PingPong(32)),
    ("bulk1", "Gbit/s", Work::Bulk(1)),
];
const CHURN: Work = Work::Churn(16);
const PORT: u16 = 9_400;
/// Between scrapes.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an agent still notes connections that open after the last reader, and a little.
const INTEREST: Duration = Duration::from_secs(11);
/// Connections after which memory is what it was before.
const MANY: f64 = 100_000.0;
/// Where the agents serve metrics.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);

/// Measures all of them.
pub(crate) fn measure(plan: &Plan, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    if !plan.wants(KEY) {
        return Ok(());
    }
    let mut figures = ROWS.map(|_| Vec::new());
    for number in 1..=plan.pairs {
        let (off, on) = if number % 2 == 1 {
            let off = quiet(plan, stage)?;
            (off, told(stage, || all(plan, stage))?)
        } else {
            let on = told(stage, || all(plan, stage))?;
            (quiet(plan, stage)?, on)
        };
        eprintln!(
            "bench: telemetry  pair {number}/{}: off {off:.1?}, on {on:.1?}",
            plan.pairs
        );
        for (figures, pair) in figures.iter_mut().zip(off.into_iter().zip(on)) {
            figures.push([pair.0, pair.1]);
        }
    }
    for ((name, unit, _), pairs) in ROWS.into_iter().zip(figures) {
        report.add(Row::new(format!("{KEY}.{name}"), unit, Better::More).pairs(pairs));
    }
    let grown = told(stage, || grown(stage))?;
    report.add(Row::new(format!("{KEY}.grown"), "MB", Better::Less).alone([grown]));
    log(stage, "--all")
}

/// A figure of each row.
fn all(plan: &Plan, stage: &Stage<'_>) -> Result<[f64; ROWS.len()]> {
    let mut figures = [0.0; ROWS.len()];
    for (figure, (.., work)) in figures.iter_mut().zip(ROWS) {
        let rate = run(stage, work, Duration::from_secs_f64(plan.seconds))?;
        *figure = match work {
            Work::Bulk(_) => rate * 8e-9,
            Work::PingPong(_) | Work::Churn(_) => rate,
        };
    }
    Ok(figures)
}

/// Units of work a second.
fn run(stage: &Stage<'_>, work: Work, time: Duration) -> Result<f64> {
    let ends = Ends {
        client: &stage.mesh.client,
        server: &stage.mesh.remote,
        port: PORT,
    };
    let measured = load::run(work, ends, &stage.meter, time)?;
    ensure!(measured.errors == 0, "{work:?}: {} errors", measured.errors);
    Ok(measured.units / measured.seconds)
}

/// The figures while nobody is told of anything.
fn quiet(plan: &Plan, stage: &Stage<'_>) -> Result<[f64; ROWS.len()]> {
    log(stage, "--off")?;
    sleep(INTEREST);
    all(plan, stage)
}

/// Does something while everything is told.
fn told<T>(stage: &Stage<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    log(stage, "--all")?;
    let nodes = stage.lab.nodes();
    let readers: Vec<_> = nodes
        .iter()
        .map(|it| reader(stage, it))
        .collect::<Result<_>>()?;
    let is_over = AtomicBool::new(false);
    let done = scope(|scope| {
        let scrapers: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(|| scrape(node, &is_over)))
            .collect();
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        for scraper in scrapers {
            scraper
                .join()
                .map_err(|_| anyhow!("a scraper panicked"))??;
        }
        done
    });
    for mut reader in readers {
        ensure!(reader.is_running(), "a reader of flows has ended");
        reader.stop()?;
    }
    done
}

/// Whether the agents' logs tell of connections.
fn log(stage: &Stage<'_>, word: &str) -> Result<()> {
    for node in stage.lab.nodes() {
        let output = node.netns().output(&mut node.command(&["log", word]))?;
        ensure!(output.status.success(), "log {word}: {output:?}");
    }
    Ok(())
}

fn reader(stage: &Stage<'_>, node: &Node) -> Result<Process> {
    let mut flows = node.command(&["flows", "--follow", "-o", "json"]);
    let records = stage.lab.directory().join("pids");
    Process::spawn(node.netns(), &mut flows, Path::new("/dev/null"), &records)
}

fn scrape(node: &Node, is_over: &AtomicBool) -> Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let (status, _) = web::get(node.netns(), METRICS, "/metrics")?;
        ensure!(status == 200, "a scrape of {}: {status}", node.name());
        while begin.elapsed() < PERIOD && !is_over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// By how much an agent has grown after very many connections, in MB; the first rows have warmed it up.
fn grown(stage: &Stage<'_>) -> Result<f64> {
    let before = resident(stage.lab)?;
    let (mut done, time) = (0.0, Duration::from_secs(2));
    while done < MANY {
        done += run(stage, CHURN, time)? * time.as_secs_f64();
    }
    let after = resident(stage.lab)?;
    eprintln!(
        "bench: telemetry  {done:.0} connections: {:.2} MB, then {:.2} MB",
        before / 1e3,
        after / 1e3
    );
    Ok((after - before) / 1e3)
}
