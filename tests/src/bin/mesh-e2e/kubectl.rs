//! `kubectl`, run to its end or for as long as something is wanted of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::pods::Pod;

/// The client of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: Option<PathBuf>,
}

impl Kubectl {
    pub(crate) fn new(program: &Path, kubeconfig: Option<&Path>) -> Self {
        Self {
            program: program.to_owned(),
            kubeconfig: kubeconfig.map(Path::to_owned),
        }
    }

    /// Runs it and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// When it ends with another code than 0, with what it wrote to its standard error.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments, None)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same for what answers in JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("kubectl did not answer in JSON")
    }

    /// Creates or changes an object; a `List` is several.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        let output = self.output(&["apply", "-f", "-"], Some(&object.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl apply of {object}: {}", said.trim());
        }
        Ok(())
    }

    /// Runs a script in a pod, whatever code it ends with.
    pub(crate) fn sh(&self, pod: &Pod, script: &str) -> Result<Output> {
        self.output(
            &[
                "exec",
                "-n",
                &pod.namespace,
                &pod.name,
                "--",
                "sh",
                "-c",
                script,
            ],
            None,
        )
    }

    /// Starts a script in a pod, with its standard input and output as pipes.
    pub(crate) fn start(&self, pod: &Pod, script: &str) -> Result<Child> {
        self.command(&[
            "exec",
            "-i",
            "-n",
            &pod.namespace,
            &pod.name,
            "--",
            "sh",
            "-c",
            script,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Runs it with this standard input, and returns whatever comes of it.
    pub(crate) fn output(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        let mut child = self
            .command(arguments)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}: --kubectl names it",
                    self.program.display()
                )
            })?;
        if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
            pipe.write_all(text.as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(file) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        command.args(arguments);
        command
    }
}
