//! `--soak`: load of every kind in turn for a long time, and whether the agents' memory and descriptors stay as they are.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::load::{self, Ends, Work};
use crate::memory::resident;
use crate::stage::Stage;

/// One turn of each.
const WORKS: [Work; 4] = [
    Work::Bulk(8),
    Work::PingPong(32),
    Work::Churn(16),
    Work::Bulk(1),
];
const TURN: Duration = Duration::from_secs(5);
const PORT: u16 = 9_200;

/// The agents after a round of all works.
struct Sample {
    minutes: f64,
    /// Mean of the agents.
    megabytes: f64,
    /// Of all agents.
    descriptors: usize,
}

/// Loads the mesh for so many minutes, and tells how memory and descriptors went.
///
/// # Errors
/// When work fails, or descriptors are leaked.
pub(crate) fn run(stage: &Stage<'_>, minutes: u64) -> Result<()> {
    let (start, time) = (Instant::now(), Duration::from_mins(minutes));
    let ends = Ends {
        client: &stage.mesh.client,
        server: &stage.mesh.remote,
        port: PORT,
    };
    let (mut samples, mut units, mut errors) = (Vec::new(), [0.0; WORKS.len()], 0);
    while start.elapsed() < time {
        for (total, work) in units.iter_mut().zip(WORKS) {
            let measured = load::run(work, ends, &stage.meter, TURN)?;
            *total += measured.units;
            errors += measured.errors;
        }
        let sample = Sample {
            minutes: start.elapsed().as_secs_f64() / 60.0,
            megabytes: resident(stage.lab)? / 1e3,
            descriptors: descriptors(stage)?,
        };
        eprintln!(
            "bench: soak {:>5.1} min: {:.1} MB an agent, {} descriptors, {errors} errors",
            sample.minutes, sample.megabytes, sample.descriptors
        );
        samples.push(sample);
    }
    let [gigabytes, trips, connections, more] = units;
    println!(
        "{:.0} GB, {trips:.0} round trips, {connections:.0} connections, {errors} errors",
        (gigabytes + more) / 1e9
    );
    // The first half is for buffers and windows to reach their size.
    let settled = &samples[samples.len() / 2..];
    println!(
        "memory of an agent: {:.1} MB after the first round, {:.1} MB after the last; slope of the second half {:+.2} MB an hour",
        samples[0].megabytes,
        settled[settled.len() - 1].megabytes,
        slope(settled) * 60.0
    );
    let [first, last] = [&samples[0], &settled[settled.len() - 1]].map(|it| it.descriptors);
    println!("descriptors: {first} after the first round, {last} after the last");
    ensure!(errors == 0, "{errors} connections failed");
    ensure!(last <= first + 64, "descriptors are leaked");
    Ok(())
}

/// Megabytes a minute, by least squares.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.minutes), mean(|it| it.megabytes));
    let both = samples
        .iter()
        .map(|it| (it.minutes - x) * (it.megabytes - y));
    let own = samples.iter().map(|it| (it.minutes - x).powi(2));
    both.sum::<f64>() / own.sum::<f64>()
}

fn descriptors(stage: &Stage<'_>) -> Result<usize> {
    let agents = stage.lab.nodes().iter().filter_map(|it| it.agent().pid());
    let open = agents.map(|pid| Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count()));
    open.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line() {
        let samples = [0.0, 1.0, 2.0, 3.0].map(|minutes| Sample {
            minutes,
            megabytes: 20.0 + 0.5 * minutes,
            descriptors: 0,
        });
        assert!((slope(&samples) - 0.5).abs() < 1e-9);
    }
}
