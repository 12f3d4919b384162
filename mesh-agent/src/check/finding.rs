//! CORE: what a check found, and how it is printed.

use serde::Serialize;

use crate::args::Format;

/// How a part of a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be, or only told.
    Ok,
    /// The agent runs, but something may surprise.
    Warn,
    /// The agent cannot run, or pods will not have their network.
    Fail,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it ended.
    pub outcome: Outcome,
    /// What was looked at, and what was found.
    pub what: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

impl Finding {
    /// Nothing is to be done.
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self::new(Outcome::Ok, what, "")
    }

    /// Something may surprise.
    pub(super) fn warn(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Outcome::Warn, what, remedy)
    }

    /// It does not work like this.
    pub(super) fn fail(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Outcome::Fail, what, remedy)
    }

    fn new(outcome: Outcome, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            outcome,
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

/// Whether nothing fails.
pub fn passes(findings: &[Finding]) -> bool {
    findings.iter().all(|it| it.outcome != Outcome::Fail)
}

/// The answer as it is printed.
pub fn render(findings: &[Finding], format: Format) -> String {
    match format {
        Format::Json => serde_json::to_string_pretty(findings).unwrap_or_default() + "\n",
        Format::Text => findings.iter().map(line).collect(),
    }
}

fn line(it: &Finding) -> String {
    let word = match it.outcome {
        Outcome::Ok => "ok  ",
        Outcome::Warn => "WARN",
        Outcome::Fail => "FAIL",
    };
    let separator = if it.remedy.is_empty() { "" } else { "; " };
    format!("{word}  {}{separator}{}\n", it.what, it.remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_fails() {
        let (ok, warn) = (Finding::ok("a is b"), Finding::warn("c", "do d"));
        let fail = Finding::fail("e", "do f");
        assert!(passes(&[ok.clone(), warn.clone()]) && !passes(&[warn.clone(), fail.clone()]));
        let text = render(&[ok, warn, fail.clone()], Format::Text);
        assert_eq!(text, "ok    a is b\nWARN  c; do d\nFAIL  e; do f\n");
        let json: serde_json::Value = serde_json::from_str(&render(&[fail], Format::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{"outcome": "fail", "what": "e", "remedy": "do f"}])
        );
    }
}
