//! Rows `telemetry.*`: what it costs to tell of everything, beside the same agents while nobody asks.
//!
//! Told: a line in the log for every connection, a scrape of each agent a second, and a reader of each one's flows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use mesh_tests::node::Node;
use mesh_tests::process::Process;
use mesh_tests::web;

use crate::Plan;
use crate::load::{self, Ends, Measured, Work};
use crate::memory::resident;
use crate::report::Report;
use crate::row::{Better, Row};
use crate::stage::Stage;
use crate::traffic::{Sample, units};

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "telemetry";

/// Rows, with their work: between nodes, so that both agents tell of everything.
const ROWS: [(&str, Work); 3] = [
    ("cr", CHURN),
    ("pp32", Work::PingPong(32)),
    ("bulk1", Work::Bulk(1)),
];
const CHURN: Work = Work::Churn(16);
const PORT: u16 = 9_400;
/// Between scrapes.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an agent still notes connections that open after the last reader, and a little.
const INTEREST: Duration = Duration::from_secs(11);
/// Connections after which memory is what it was before, and those that come first: caches fill up and the allocator keeps
/// what it once had.
const MANY: f64 = 100_000.0;
const FIRST: f64 = 50_000.0;
/// Where the agents serve metrics.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);

/// Of a row: units of work a second, and the agents' CPU time for one (in `units`), which other work on the machine
/// moves less.
type Figures = [[f64; 2]; ROWS.len()];

/// Measures all of them.
pub(crate) fn measure(plan: &Plan, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    if !plan.wants(KEY) {
        return Ok(());
    }
    let mut pairs: Vec<[Figures; 2]> = Vec::new();
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
        pairs.push([off, on]);
    }
    for (index, (name, work)) in ROWS.into_iter().enumerate() {
        let (unit, cpu) = units(work);
        let of = |figure: usize| pairs.iter().map(move |it| it.map(|it| it[index][figure]));
        let key = format!("{KEY}.{name}");
        report.add(Row::new(&key, unit, Better::More).pairs(of(0)));
        report.add(Row::new(format!("{key}.cpu"), cpu, Better::Less).pairs(of(1)));
    }
    let grown = told(stage, || grown(stage))?;
    report.add(Row::new(format!("{KEY}.grown"), "MB", Better::Less).alone([grown]));
    log(stage, "--all")
}

/// The figures of all rows.
fn all(plan: &Plan, stage: &Stage<'_>) -> Result<Figures> {
    let mut figures = Figures::default();
    for (figures, (_, work)) in figures.iter_mut().zip(ROWS) {
        let measured = run(stage, work, Duration::from_secs_f64(plan.seconds))?;
        let sample = Sample::of(work, measured);
        *figures = [sample.rate, sample.agents];
    }
    Ok(figures)
}

fn run(stage: &Stage<'_>, work: Work, time: Duration) -> Result<Measured> {
    let ends = Ends {
        client: &stage.mesh.client,
        server: &stage.mesh.remote,
        port: PORT,
    };
    let measured = load::run(work, ends, &stage.meter, time)?;
    ensure!(measured.errors == 0, "{work:?}: {} errors", measured.errors);
    Ok(measured)
}

/// The figures while nobody is told of anything.
fn quiet(plan: &Plan, stage: &Stage<'_>) -> Result<Figures> {
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

/// By how much an agent has grown in very many connections, in MB.
fn grown(stage: &Stage<'_>) -> Result<f64> {
    open(stage, FIRST)?;
    let before = resident(stage.lab)?;
    open(stage, MANY)?;
    let after = resident(stage.lab)?;
    eprintln!(
        "bench: telemetry  {MANY} connections: {:.2} MB, then {:.2} MB",
        before / 1e3,
        after / 1e3
    );
    Ok((after - before) / 1e3)
}

/// Opens and closes at least so many connections.
fn open(stage: &Stage<'_>, count: f64) -> Result<()> {
    let (mut done, time) = (0.0, Duration::from_secs(2));
    while done < count {
        done += run(stage, CHURN, time)?.units;
    }
    sleep(PERIOD);
    Ok(())
}
