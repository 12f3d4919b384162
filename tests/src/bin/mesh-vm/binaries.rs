//! Runs Rust test binaries, and counts what they say.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::texts;

/// Runs every test of the plan, whatever becomes of the others, and tells how many passed and which did not.
pub(crate) fn run(plan: &Value) -> Result<Value> {
    let (mut passed, mut failed) = (0, Vec::new());
    for line in plan["tests"].as_array().into_iter().flatten() {
        let words = texts(line);
        let (program, arguments) = words.split_first().context("a test without a program")?;
        println!("mesh-vm: {}", words.join(" "));
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped());
        for pair in plan["environment"].as_object().into_iter().flatten() {
            command.env(pair.0, pair.1.as_str().unwrap_or_default());
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let output = child.stdout.take().context("a pipe")?;
        let mut told = false;
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            match result(&line) {
                Some((_, Told::Passed)) => passed += 1,
                Some((name, Told::Failed)) => failed.push(name.to_owned()),
                None => {}
            }
            told |= line.starts_with("test result: ");
        }
        let status = child.wait()?;
        if !told || (!status.success() && failed.is_empty()) {
            failed.push(format!("{program} ({status})"));
        }
    }
    Ok(json!({ "passed": passed, "failed": failed }))
}

/// What a test came to.
enum Told {
    Passed,
    Failed,
}

/// The name of a test, and what it came to, if a line of `libtest` tells it.
fn result(line: &str) -> Option<(&str, Told)> {
    let (name, told) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match told {
        "ok" => Some((name, Told::Passed)),
        told if told.starts_with("FAILED") => Some((name, Told::Failed)),
        _ => None,
    }
}
