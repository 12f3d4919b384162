//! The run: draw, apply, wait until all is well, check; step by step.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::app::raise_descriptor_limit;
use mesh_tests::capture::Capture;
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, stop};
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::pod::PATIENCE;
use mesh_tests::programs::one_each;

use crate::Args;
use crate::faults::Fault;
use crate::invariants::{self, Held, Told};
use crate::stage::{FLAGS, OPEN, Stage};
use crate::tally::Tally;
use crate::traffic::{PLAIN, SECRET, Traffic};

/// Within what nodes hold what they held.
const BOUND: Duration = Duration::from_secs(10);

/// Within what all classes of traffic work again. A stream can end without a word to a client that has nothing to send, which
/// finds out when its patience ends.
const RECOVERY: Duration = PATIENCE.saturating_add(Duration::from_secs(5));

/// Does the steps; a violation is told with all that it takes to have it again.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    raise_descriptor_limit()?;
    let lab = Lab::without_agents(&args.lab, 2, FLAGS)?;
    let stage = Stage::set(&lab)?;
    let traffic = Traffic::of(&stage);
    let began = Instant::now();
    let mut tally = Tally::default();
    let outcome = thread::scope(|scope| {
        traffic.begin(scope);
        let outcome = steps(args, &stage, &traffic, &mut tally);
        traffic.end();
        outcome
    });
    println!("{}", tally.table());
    let passed = match outcome {
        Ok(()) => {
            let (seed, seconds) = (args.seed, began.elapsed().as_secs());
            println!(
                "seed {seed}: {} steps in {seconds} s, nothing broken",
                args.steps
            );
            true
        }
        Err(error) => {
            println!("VIOLATION: {error:#}");
            lab.print_logs();
            false
        }
    };
    if args.keep && !passed {
        drop(stage);
        lab.keep();
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn steps(args: &Args, stage: &Stage<'_>, traffic: &Traffic<'_>, tally: &mut Tally) -> Result<()> {
    recovery(traffic, Instant::now()).context("before the first step")?;
    // What came before the servers did.
    traffic.pairs.iter().for_each(|pair| drop(pair.take()));
    let before = settled(stage, &[]).context("before the first step")?;
    let wire = stage.lab.capture()?;
    for step in args.from..args.from + args.steps {
        let fault = Fault::draw(args.seed, step, &args.only);
        let began = Instant::now();
        let outcome = one(stage, traffic, &wire, &fault, &before);
        let recovery = outcome.with_context(|| {
            format!(
                "seed {}, step {step}: {fault}; again: --seed {0} --from {step} --steps 1",
                args.seed
            )
        })?;
        println!(
            "{step:5} {fault:50} recovered in {:5} ms, step of {:5} ms",
            recovery.as_millis(),
            began.elapsed().as_millis()
        );
        tally.add(fault.kind, recovery);
    }
    stop(wire).map(drop)
}

/// One step; returns how long after the fault, or its healing, all classes of traffic worked.
fn one(
    stage: &Stage<'_>,
    traffic: &Traffic<'_>,
    wire: &[Capture],
    fault: &Fault,
    before: &[Held],
) -> Result<Duration> {
    let pods = fault.apply(stage)?;
    let healed = Instant::now();
    let recovery = recovery(traffic, healed)?;
    stage.lab.settle()?;
    settled(stage, before)?;

    let told: Vec<_> = traffic
        .pairs
        .iter()
        .map(|pair| {
            let (broken, trespassed) = pair.take();
            let who = format!("{:?} {:?}", pair.class, pair.family);
            Told {
                who,
                class: pair.class,
                broken,
                trespassed,
            }
        })
        .collect();
    let mut found = invariants::of_traffic(&told, |class| fault.spares(class));
    let (plaintext, is_heard) = heard(wire);
    found.extend(invariants::of_the_wire(&plaintext, is_heard));
    let stay = stage
        .pods()
        .map(|pod| (pod.name().to_owned(), pod.addresses().to_vec()));
    let all: Vec<_> = pods.into_iter().chain(stay).collect();
    found.extend(invariants::of_addresses(&all));
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(recovery)
}

/// Waits until every pair's open stream and new connections work.
fn recovery(traffic: &Traffic<'_>, since: Instant) -> Result<Duration> {
    loop {
        let all = traffic.pairs.iter().map(|pair| pair.recovered(since));
        if let Some(recovered) = all.collect::<Option<Vec<_>>>() {
            return Ok(recovered.into_iter().max().unwrap_or_default());
        }
        if since.elapsed() > RECOVERY {
            let late = traffic
                .pairs
                .iter()
                .filter(|it| it.recovered(since).is_none());
            let late: Vec<_> = late.map(|it| (it.class, it.family, it.seen())).collect();
            bail!("not recovered within {RECOVERY:?}: {late:?}");
        }
        sleep(Duration::from_millis(10));
    }
}

/// Waits until the nodes hold what they held before; without that, until they hold anything without a problem.
fn settled(stage: &Stage<'_>, before: &[Held]) -> Result<Vec<Held>> {
    let deadline = Instant::now() + BOUND;
    loop {
        let held = thread::scope(|scope| {
            let looks = stage
                .lab
                .nodes()
                .iter()
                .map(|node| scope.spawn(|| held(stage, node)));
            let looks: Vec<_> = looks.collect();
            let looks = looks
                .into_iter()
                .map(|it| it.join().expect("it does not panic"));
            looks.collect::<Result<Vec<_>>>()
        })?;
        let found: Vec<_> = if before.is_empty() {
            held.iter().flat_map(|it| it.problems.clone()).collect()
        } else {
            let both = before.iter().zip(&held);
            both.flat_map(|(before, after)| invariants::of_a_node(before, after))
                .collect()
        };
        if found.is_empty() {
            return Ok(held);
        }
        if Instant::now() > deadline {
            bail!("not as it was within {BOUND:?}:\n{}", found.join("\n"));
        }
        sleep(Duration::from_millis(50));
    }
}

fn held(stage: &Stage<'_>, node: &Node) -> Result<Held> {
    let netns = node.netns();
    let rules = netns.exec("ip", ["rule"])? + &netns.exec("ip", ["-6", "rule"])?;
    let mut problems = Vec::new();
    if let Err(error) = one_each(node, |device| device == UPLINK) {
        problems.push(format!("programs: {error:#}"));
    }
    let status = netns.output(&mut node.command(&["status"]))?;
    if !status.status.success() {
        let told = [status.stdout, status.stderr].concat();
        problems.push(String::from_utf8_lossy(&told).into_owned());
    }
    for address in stage.near.addresses() {
        let server = SocketAddr::new(*address, OPEN).to_string();
        let carried = netns.exec("ss", ["-Htn", "state", "established", "src", &server])?;
        let carried = carried.lines();
        problems.extend(
            carried.map(|it| format!("a process is in between two pods of the node: {it}")),
        );
    }
    let pid = node.agent().pid().context("no agent")?;
    Ok(Held {
        node: node.name().to_owned(),
        holdings: Holdings::of(node)?,
        rules,
        tables: netns.exec("nft", ["-s", "list", "ruleset"])?,
        problems,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
    })
}

/// The packets that show the secret, and whether any shows what is no secret.
fn heard(wire: &[Capture]) -> (Vec<String>, bool) {
    let recordings: Vec<_> = wire.iter().map(Capture::take).collect();
    let shown = recordings.iter().flat_map(|it| it.with(SECRET));
    let shown: BTreeSet<_> = shown.map(|packet| format!("{packet:?}")).collect();
    let is_heard = recordings.iter().any(|it| it.contains(PLAIN));
    (shown.into_iter().collect(), is_heard)
}
