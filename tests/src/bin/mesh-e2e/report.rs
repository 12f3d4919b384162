//! What is told of a run: a line a step with its time, and a table at the end.

use std::time::{Duration, Instant};

use anyhow::Result;

/// What has been shown so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    scenarios: Vec<(String, bool, Duration)>,
}

impl Report {
    /// Runs a scenario, and returns whether it held. An error ends it; one that no step has told is told here.
    pub(crate) fn scenario(
        &mut self,
        name: &str,
        about: &str,
        run: impl FnOnce(&mut Self) -> Result<()>,
    ) -> bool {
        println!("\n{name}: {about}");
        let began = Instant::now();
        let outcome = run(self);
        if let Err(error) = &outcome {
            told(false, began.elapsed(), &format!("{error:#}"));
        }
        self.scenarios
            .push((name.to_owned(), outcome.is_ok(), began.elapsed()));
        outcome.is_ok()
    }

    /// Does a step of a scenario, and tells what it is and how long it took.
    #[expect(clippy::unused_self, reason = "the report is the only voice of a run")]
    pub(crate) fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let value = work().map_err(|error| error.context(what.to_owned()))?;
        told(true, began.elapsed(), what);
        Ok(value)
    }

    /// Does a step that finds something out, and tells that, too.
    #[expect(clippy::unused_self, reason = "the report is the only voice of a run")]
    pub(crate) fn measure(&self, what: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        let began = Instant::now();
        let found = work().map_err(|error| error.context(what.to_owned()))?;
        told(true, began.elapsed(), &format!("{what}: {found}"));
        Ok(())
    }

    /// Prints the table, and returns whether everything held.
    pub(crate) fn table(&self) -> bool {
        println!("\nScenarios:");
        for (name, held, took) in &self.scenarios {
            told(*held, *took, name);
        }
        self.scenarios.iter().all(|(_, held, _)| *held)
    }
}

fn told(held: bool, took: Duration, what: &str) {
    let verdict = if held { "ok" } else { "FAILED" };
    println!("   {verdict:<6} {:>6.1} s  {what}", took.as_secs_f64());
}
