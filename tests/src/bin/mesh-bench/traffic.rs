//! Rows `cross.*` and `same.*`: what pods see of the path between them.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::Plan;
use crate::load::{self, Ends, Measured, Work};
use crate::report::{Report, digits};
use crate::row::{Better, Cost, Row};
use crate::stage::{Pods, Stage};
use crate::statistics::{median, percentile};

/// Rows, with their work.
const ROWS: [(&str, Work); 6] = [
    ("bulk1", Work::Bulk(1)),
    ("bulk8", Work::Bulk(8)),
    ("pp1", Work::PingPong(1)),
    (FAIR, Work::PingPong(1)),
    ("pp32", Work::PingPong(32)),
    ("cr", Work::Churn(16)),
];
/// The row in which another pod of the client's node is greedy meanwhile.
const FAIR: &str = "fair";
const GREED: Work = Work::Bulk(8);

/// Of the servers.
const PORT: u16 = 9_000;
const GREEDY_PORT: u16 = 9_100;
/// How long greed has gone on before anybody looks.
const LEAD: Duration = Duration::from_millis(300);

/// Whose servers are loaded.
#[derive(Clone, Copy)]
enum Place {
    /// Those of the other node.
    Cross,
    /// Those of the client's node.
    Same,
}

impl Place {
    const ALL: [(Self, &str); 2] = [(Self::Cross, "cross"), (Self::Same, "same")];

    fn ends<'a>(self, pods: &'a Pods<'a>) -> Ends<'a> {
        let server = match self {
            Self::Cross => &pods.remote,
            Self::Same => &pods.neighbour,
        };
        Ends {
            client: &pods.client,
            server,
            port: PORT,
        }
    }
}

/// A group of rows.
struct Chosen {
    place: Place,
    work: Work,
    is_beside_greed: bool,
    key: String,
}

fn chosen(plan: &Plan) -> impl Iterator<Item = Chosen> {
    let all = Place::ALL.into_iter().flat_map(|(place, prefix)| {
        ROWS.map(|(name, work)| Chosen {
            place,
            work,
            is_beside_greed: name == FAIR,
            key: format!("{prefix}.{name}"),
        })
    });
    // On one node there is nothing but the kernel to be fair.
    all.filter(|it| !(it.is_beside_greed && matches!(it.place, Place::Same)))
        .filter(|it| plan.wants(&it.key))
}

/// Loads, beside a greedy neighbour if there is to be one.
fn load(chosen: &Chosen, pods: &Pods<'_>, stage: &Stage<'_>, time: Duration) -> Result<Measured> {
    let run = || load::run(chosen.work, chosen.place.ends(pods), &stage.meter, time);
    if !chosen.is_beside_greed {
        return run();
    }
    let ends = Ends {
        client: &pods.neighbour,
        server: &pods.remote,
        port: GREEDY_PORT,
    };
    thread::scope(|scope| {
        let greed = scope.spawn(|| load::run(GREED, ends, &stage.meter, time + 2 * LEAD));
        thread::sleep(LEAD);
        let measured = run();
        greed
            .join()
            .map_err(|_| anyhow!("the greedy neighbour panicked"))??;
        measured
    })
}

/// Whether a row of these is asked for.
pub(crate) fn is_wanted(plan: &Plan) -> bool {
    chosen(plan).next().is_some()
}

/// Measures the rows that are asked for.
pub(crate) fn measure(plan: &Plan, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs_f64(plan.seconds);
    for chosen in chosen(plan) {
        let Chosen { work, key, .. } = &chosen;
        let mut pairs = Vec::new();
        for number in 1..=plan.pairs {
            let side = |pods| load(&chosen, pods, stage, time);
            // Who is first takes turns, too.
            let [plain, mesh] = if number % 2 == 1 {
                [side(&stage.plain)?, side(&stage.mesh)?]
            } else {
                let mesh = side(&stage.mesh)?;
                [side(&stage.plain)?, mesh]
            };
            let pair = [plain, mesh].map(|it| Sample::of(*work, it));
            progress(key, *work, &format!("{number}/{}", plan.pairs), &pair);
            pairs.push(pair);
        }
        for row in rows(key, *work, &pairs) {
            report.add(row);
        }
    }
    Ok(())
}

/// One side of a pair.
pub(crate) struct Sample {
    /// Gbit/s, or units a second.
    pub(crate) rate: f64,
    /// Microseconds.
    p50: f64,
    p99: f64,
    /// For a unit of work.
    pub(crate) agents: f64,
    all: f64,
    others: f64,
    errors: u64,
}

impl Sample {
    pub(crate) fn of(work: Work, mut measured: Measured) -> Self {
        let cpu = measured.cpu;
        let rate = measured.units / measured.seconds;
        // Seconds for a GB, or microseconds for anything else.
        let (rate, unit) = match work {
            Work::Bulk(_) => (rate * 8e-9, measured.units / 1e9),
            Work::PingPong(_) | Work::Churn(_) => (rate, measured.units / 1e6),
        };
        Self {
            rate,
            p50: percentile(&mut measured.latencies, 50),
            p99: percentile(&mut measured.latencies, 99),
            agents: cpu.agents / unit,
            all: cpu.all / unit,
            others: cpu.others,
            errors: measured.errors,
        }
    }
}

/// Of a rate, and of CPU time for a unit of work.
pub(crate) fn units(work: Work) -> (&'static str, &'static str) {
    match work {
        Work::Bulk(_) => ("Gbit/s", "s/GB"),
        Work::PingPong(_) => ("trips/s", "us"),
        Work::Churn(_) => ("conn/s", "us"),
    }
}

fn progress(key: &str, work: Work, turn: &str, [plain, mesh]: &[Sample; 2]) {
    let (unit, cpu) = units(work);
    eprintln!(
        "bench: {key:<10} pair {turn}: plain {}, mesh {} {unit} ({:.2}); agents {:.3} {cpu}; others had {:.1} cores; {} and {} errors",
        digits(plain.rate),
        digits(mesh.rate),
        mesh.rate / plain.rate,
        mesh.agents,
        mesh.others,
        plain.errors,
        mesh.errors,
    );
}

fn rows(key: &str, work: Work, pairs: &[[Sample; 2]]) -> Vec<Row> {
    let (unit, cpu) = units(work);
    let of = |figure: fn(&Sample) -> f64| pairs.iter().map(move |pair| pair.each_ref().map(figure));
    let middle =
        |side: usize, figure: fn(&Sample) -> f64| median(of(figure).map(|pair| pair[side]));
    let row = |key: String, unit, better, figure| {
        let mut row = Row::new(key, unit, better).pairs(of(figure));
        row.errors = pairs.iter().flatten().map(|it| it.errors).sum();
        row.cost = Some(Cost {
            agents: middle(1, |it| it.agents),
            all: [0, 1].map(|side| middle(side, |it| it.all)),
            unit: cpu,
            others: median(pairs.iter().flatten().map(|it| it.others)),
        });
        row
    };
    let rate = |key: String| row(key, unit, Better::More, |it| it.rate);
    match work {
        Work::Bulk(_) | Work::Churn(_) => vec![rate(key.to_owned())],
        Work::PingPong(_) => vec![
            row(format!("{key}.p50"), "us", Better::Less, |it| it.p50),
            row(format!("{key}.p99"), "us", Better::Less, |it| it.p99),
            rate(format!("{key}.rate")),
        ],
    }
}
