//! Calling `mesh-cni` as a container runtime does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::netns::Netns;

/// The plugin with the configuration of one node.
#[derive(Clone, Debug)]
pub struct Cni {
    binary: PathBuf,
    socket: PathBuf,
}

/// One call.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// Keys that are added to the network configuration on standard input.
    pub config: Value,
}

/// What the plugin answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit code.
    pub exit: i32,
    /// The JSON on standard output; null when there is none.
    pub json: Value,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// The error code, when it is an error.
    pub fn code(&self) -> Option<u64> {
        self.json["code"].as_u64()
    }

    /// The result of a call that succeeded.
    ///
    /// # Errors
    /// The code, message and details of a call that did not.
    pub fn success(&self) -> Result<&Value> {
        anyhow::ensure!(self.exit == 0, "mesh-cni: {} {}", self.json, self.stderr);
        Ok(&self.json)
    }
}

impl Cni {
    /// The plugin at a path, speaking to the agent at a socket.
    pub fn new(binary: &Path, socket: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            socket: socket.to_owned(),
        }
    }

    /// Makes a call from a node's network namespace.
    pub fn call(&self, node: &Netns, command: &str, call: &Call) -> Result<Answer> {
        self.call_raw(node, command, call, &self.config(call))
    }

    /// Starts a call and kills the plugin (SIGKILL) after some time, unless it has ended.
    pub fn call_and_kill(
        &self,
        node: &Netns,
        command: &str,
        call: &Call,
        after: Duration,
    ) -> Result<()> {
        let mut child = self.spawn(node, command, call, &self.config(call))?;
        sleep(after);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn config(&self, call: &Call) -> Vec<u8> {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "mesh",
            "type": "mesh-cni",
            "socket": self.socket,
        });
        for (key, value) in call.config.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config.to_string().into_bytes()
    }

    /// Makes a call with any bytes on standard input.
    pub fn call_raw(
        &self,
        node: &Netns,
        command: &str,
        call: &Call,
        stdin: &[u8],
    ) -> Result<Answer> {
        let output = self.spawn(node, command, call, stdin)?.wait_with_output()?;
        Ok(Answer {
            exit: output.status.code().unwrap_or(-1),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Starts a call, its input written and ended.
    fn spawn(&self, node: &Netns, command: &str, call: &Call, stdin: &[u8]) -> Result<Child> {
        let mut plugin = Command::new(&self.binary);
        plugin
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &call.container)
            .env("CNI_NETNS", &call.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", &call.args)
            .env("CNI_PATH", self.binary.parent().unwrap_or(&self.binary))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = node
            .run(|| plugin.spawn())
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        if let Some(mut pipe) = child.stdin.take() {
            // A plugin that does not read its input answers nevertheless.
            let _ = pipe.write_all(stdin);
        }
        Ok(child)
    }
}
