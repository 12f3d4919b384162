//! How long the mesh took to recover, by kind of fault.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::faults::Kind;

/// Recoveries of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<Kind, Vec<Duration>>);

impl Tally {
    pub(crate) fn add(&mut self, kind: Kind, recovery: Duration) {
        self.0.entry(kind).or_default().push(recovery);
    }

    /// A table: kind, how often, median and worst in milliseconds.
    pub(crate) fn table(mut self) -> String {
        let mut lines = vec![format!(
            "{:20} {:>5} {:>8} {:>8}",
            "fault", "times", "median", "worst"
        )];
        for (kind, recoveries) in &mut self.0 {
            recoveries.sort_unstable();
            let [median, worst] =
                [recoveries.len() / 2, recoveries.len() - 1].map(|at| recoveries[at].as_millis());
            let (name, times) = (kind.to_string(), recoveries.len());
            lines.push(format!("{name:20} {times:>5} {median:>8} {worst:>8}"));
        }
        lines.join("\n")
    }
}
